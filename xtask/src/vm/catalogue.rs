//! The kernels by name: which packages of Debian have them, and what they lack.

/// One kernel series in one flavour.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// How it is asked for, such as `6.12-rt`.
    pub(crate) name: &'static str,
    /// Before the changing part of its package's name.
    pub(crate) prefix: &'static str,
    /// Behind that part; the smallest flavour that will do.
    pub(crate) suffix: &'static str,
    /// Every `cargo xtask test` boots it.
    pub(crate) required: bool,
    /// The kernel's own maker of lockups is built for it, where the host can.
    pub(crate) generator: bool,
    /// CPUs are locked up on it: those tests take minutes.
    pub(crate) lockups: bool,
    /// Healthy load is no lockup on it: those tests take minutes, too, and say the same of all.
    pub(crate) healthy: bool,
    /// What cannot be made on it: scenarios of the stall lab, and tests by name. They may
    /// leave themselves out, and say why; nothing else may.
    pub(crate) impossible: &'static [&'static str],
}

/// A sync does not wait for FUSE before 6.18 (fs/fuse/inode.c, `fuse_sync_fs`).
const NO_SYNC: &str = "super-read-held-sync";
/// A write fault keeps mmap_lock itself before 6.7.
const NO_VMA: &str = "vma-read-held";
/// Nothing ends a page fault's wait for mmap_lock before 6.5.
const NO_RECURSION: &str = "deadlock-recursive-reader";
/// PREEMPT_RT hands a lock to nobody before it runs,
const NOT_GRANTED: &str = "granted";
/// and takes none with interrupts off, where only a try would do.
const NOT_REFUSED: &str = "an_attempt_that_fails_is_no_hold";
const NOT_ELSEWHERE: &str = "a_lock_released_by_another_task_is_held_no_more";
const NOT_IN_ANOTHER_NAME: &str = "a_release_in_the_name_of_another_holder_accuses_nobody";
/// Signals are sent with interrupts on; on 7.3, a machine of two CPUs stands still as a whole
/// while one of them takes no interrupts.
const NOT_HARD: &str = "hard-lockup";
/// The host stops its QEMU; seen: the guest's clock did not jump.
const NOT_STILL: &str = "a_machine_that_stands_still";
/// mmap_lock has no tracepoints before 5.11.
const NOT_BY_RAW_TP: &str = "without_typed_tracepoints_holds_are_kept_in_task_storage";
const NOT_BY_RAW_TP_AND_THREAD: &str = "without_typed_tracepoints_holds_are_kept_by_thread";
const NO_MANY_HOLDS: &str = "many-holds-of-mmap-lock";

/// What the contention tracepoints say of waits by themselves: not before them, and not on
/// `PREEMPT_RT`, where they speak of the locks inside of locks, too.
const NO_TALLY: &str = "independent-tally";

/// What the stall lab's scenarios need, with all they depend on, where it is not built in.
pub(crate) const MODULES: [&str; 5] = ["fuse", "loop", "overlay", "ext4", "nfsv3"];
/// ext4 asks the kernel's crypto for crc32c when it mounts, and depends on no module of that
/// name (fs/ext4/super.c up to 6.12; later ones call lib/crc).
pub(crate) const MODULES_IF_SHIPPED: [&str; 1] = ["crc32c_generic"];

/// All kernels, oldest first.
pub(crate) const KERNELS: [Kernel; 9] = [
    Kernel {
        impossible: &[
            NO_SYNC,
            NO_VMA,
            NO_RECURSION,
            NOT_BY_RAW_TP,
            NOT_BY_RAW_TP_AND_THREAD,
            NO_MANY_HOLDS,
            NO_TALLY,
        ],
        lockups: true,
        ..kernel("5.10", "linux-image-5.10.0-", "-cloud-amd64")
    },
    Kernel {
        // Its headers ask for the least of the host.
        generator: true,
        lockups: true,
        impossible: &[NO_SYNC, NO_VMA, NO_RECURSION],
        ..kernel("6.1", "linux-image-6.1.0-", "-cloud-amd64")
    },
    Kernel {
        impossible: &[
            NO_SYNC,
            NO_VMA,
            NO_RECURSION,
            NOT_GRANTED,
            NOT_REFUSED,
            NOT_ELSEWHERE,
            NOT_IN_ANOTHER_NAME,
            NOT_HARD,
            NO_TALLY,
        ],
        ..kernel("6.1-rt", "linux-image-6.1.0-", "-rt-amd64")
    },
    Kernel {
        lockups: true,
        healthy: true,
        impossible: &[NO_SYNC, NOT_STILL],
        ..kernel("6.12", "linux-image-6.12.", "-cloud-amd64")
    },
    Kernel {
        impossible: &[
            NO_SYNC,
            NOT_GRANTED,
            NOT_REFUSED,
            NOT_ELSEWHERE,
            NOT_IN_ANOTHER_NAME,
            NOT_HARD,
            NO_TALLY,
        ],
        required: false,
        ..kernel("6.12-rt", "linux-image-6.12.", "-rt-amd64")
    },
    kernel("6.18", "linux-image-6.18.", "-cloud-amd64"),
    Kernel {
        required: false,
        ..kernel("7.2", "linux-binary-7.2.", "-cloud-amd64")
    },
    Kernel {
        lockups: true,
        impossible: &[NOT_HARD],
        ..kernel("7.3", "linux-binary-7.3.", "-cloud-amd64")
    },
    Kernel {
        impossible: &[
            NOT_GRANTED,
            NOT_REFUSED,
            NOT_ELSEWHERE,
            NOT_IN_ANOTHER_NAME,
            NOT_HARD,
            NO_TALLY,
        ],
        ..kernel("7.3-rt", "linux-binary-7.3.", "-rt-amd64")
    },
];

const fn kernel(name: &'static str, prefix: &'static str, suffix: &'static str) -> Kernel {
    Kernel {
        name,
        prefix,
        suffix,
        required: true,
        generator: false,
        lockups: false,
        healthy: false,
        impossible: &[],
    }
}

/// All packages of a kernel by the one that has the bootable file. From 7.2 on they are
/// split: that one, the modules, and the list of what is built in.
pub(crate) fn parts(package: &str) -> Vec<String> {
    match package.strip_prefix("linux-binary-") {
        None => vec![package.to_owned()],
        Some(release) => ["binary", "modules", "base"]
            .map(|part| format!("linux-{part}-{release}"))
            .to_vec(),
    }
}

impl Kernel {
    /// Why the tests of a target are not run on it, if they are not.
    pub(crate) fn leaves_out(&self, target: &str) -> Option<String> {
        let is_run: fn(&Self) -> bool = match target {
            "live_lockup" => |kernel| kernel.lockups,
            "vm_lockup" => |kernel| kernel.lockups && !kernel.impossible.contains(&NOT_HARD),
            "live_healthy" | "vm_healthy" | "live_wanted" => |kernel| kernel.healthy,
            _ => return None,
        };
        let names = |kernels: &[Self]| {
            let kernels = kernels.iter().filter(|kernel| is_run(kernel));
            kernels
                .map(|kernel| kernel.name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        (!is_run(self)).then(|| format!("it takes minutes: run on {} only", names(&KERNELS)))
    }

    /// The kernel of that name.
    pub(crate) fn by_name(name: &str) -> Option<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name)
    }

    /// Those of the package names that are of this series and flavour, newest first.
    pub(crate) fn newest_first<'p>(&self, packages: impl Iterator<Item = &'p str>) -> Vec<&'p str> {
        let mut found: Vec<_> = packages
            .filter_map(|package| Some((self.version(package)?, package)))
            .collect();
        found.sort();
        found
            .into_iter()
            .rev()
            .map(|(_, package)| package)
            .collect()
    }

    /// The numbers of a package name's changing part: 6.12.`115+deb13.1` gives 115, 13, 1.
    fn version(&self, package: &str) -> Option<Vec<u32>> {
        let part = package
            .strip_prefix(self.prefix)?
            .strip_suffix(self.suffix)?;
        let numbers = part.replace("+deb", ".");
        // Another flavour's name has words in it.
        numbers
            .split('.')
            .map(|number| number.parse().ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_package_of_the_flavour_comes_first() {
        let packages = [
            "linux-image-6.12.90+deb12-cloud-amd64",
            "linux-image-6.12.115+deb13-cloud-amd64",
            "linux-image-6.12.115+deb13.1-cloud-amd64",
            "linux-image-6.12.117+deb13-rt-amd64",
            "linux-image-6.12.117+deb13-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64-unsigned",
            "linux-image-6.1.0-56-cloud-amd64",
        ];
        let found = |name: &str| {
            Kernel::by_name(name)
                .unwrap()
                .newest_first(packages.into_iter())
        };
        assert_eq!(
            found("6.12"),
            [
                "linux-image-6.12.115+deb13.1-cloud-amd64",
                "linux-image-6.12.115+deb13-cloud-amd64",
                "linux-image-6.12.90+deb12-cloud-amd64",
            ]
        );
        assert_eq!(found("6.12-rt"), ["linux-image-6.12.117+deb13-rt-amd64"]);
        assert_eq!(found("6.1"), ["linux-image-6.1.0-56-cloud-amd64"]);
        assert!(found("5.10").is_empty());
    }

    #[test]
    fn split_packages_belong_together() {
        let image = "linux-image-6.12.117+deb13-rt-amd64";
        assert_eq!(parts(image), [image]);
        assert_eq!(
            parts("linux-binary-7.3.4+deb13-cloud-amd64"),
            ["binary", "modules", "base"]
                .map(|part| format!("linux-{part}-7.3.4+deb13-cloud-amd64"))
        );
    }

    #[test]
    fn names_are_unique() {
        for kernel in &KERNELS {
            assert_eq!(Kernel::by_name(kernel.name), Some(kernel));
        }
    }
}
