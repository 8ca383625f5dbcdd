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
    /// Scenarios that the stall lab cannot make on it; their tests may leave themselves out.
    pub(crate) impossible: &'static [&'static str],
    /// Tests that cannot pass on it.
    pub(crate) exceptions: &'static [Exception],
}

/// Tests that are run on a kernel and expected to fail, and why: that counts as skipped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    /// Part of `target::test`.
    pub(crate) tests: &'static str,
    pub(crate) reason: &'static str,
}

/// `lock:contention_begin` came with 5.19 (include/trace/events/lock.h).
const NO_CONTENTION: Exception = Exception {
    tests: "live_watch::",
    reason: "no lock:contention tracepoints before Linux 5.19",
};

/// On 6.12 and older, MAP_FIXED over a dirty FUSE mapping does not wait for the
/// late WRITE while it holds mmap_lock; on 6.18 and 7.3 it does.
const NO_WRITER: Exception = Exception {
    tests: "address_space_held_by_a_writer",
    reason: "the lab cannot hold an mmap_lock for write on this kernel",
};
const NO_WRITER_EITHER: Exception = Exception {
    tests: "address_space_is_write_held",
    ..NO_WRITER
};

/// A sync does not wait for FUSE before 6.18; a write fault keeps mmap_lock itself before 6.7;
/// PREEMPT_RT hands a lock to nobody before it runs.
const UP_TO_6_12: &[&str] = &["super-read-held-sync"];
const UP_TO_6_12_RT: &[&str] = &["super-read-held-sync", "granted"];
const UP_TO_6_1: &[&str] = &["super-read-held-sync", "vma-read-held"];
const UP_TO_6_1_RT: &[&str] = &["super-read-held-sync", "vma-read-held", "granted"];
const RT: &[&str] = &["granted"];

/// A sync is passed on to the lab by fuseblk's SYNCFS (fs/fuse/inode.c, fuse_sync_fs).
const NO_SYNCFS: Exception = Exception {
    tests: "a_file_system_that_a_sync_has_passed",
    reason: "fuseblk gets no SYNCFS before Linux 6.18",
};
const NO_SYNCFS_EITHER: Exception = Exception {
    tests: "a_sync_that_has_passed_is_no_suspect",
    ..NO_SYNCFS
};

/// What the stall lab's scenarios need, with all they depend on, where it is not built in.
pub(crate) const MODULES: [&str; 4] = ["fuse", "loop", "overlay", "ext4"];
/// ext4 asks the kernel's crypto for crc32c when it mounts, and depends on no module of that
/// name (fs/ext4/super.c up to 6.12; later ones call lib/crc).
pub(crate) const MODULES_IF_SHIPPED: [&str; 1] = ["crc32c_generic"];

/// All kernels, oldest first.
pub(crate) const KERNELS: [Kernel; 9] = [
    Kernel {
        impossible: UP_TO_6_1,
        exceptions: &[
            NO_CONTENTION,
            NO_WRITER,
            NO_WRITER_EITHER,
            NO_SYNCFS,
            NO_SYNCFS_EITHER,
        ],
        ..kernel("5.10", "linux-image-5.10.0-", "-cloud-amd64")
    },
    Kernel {
        impossible: UP_TO_6_1,
        exceptions: &[NO_WRITER, NO_WRITER_EITHER, NO_SYNCFS, NO_SYNCFS_EITHER],
        ..kernel("6.1", "linux-image-6.1.0-", "-cloud-amd64")
    },
    Kernel {
        impossible: UP_TO_6_1_RT,
        exceptions: &[NO_WRITER, NO_WRITER_EITHER, NO_SYNCFS, NO_SYNCFS_EITHER],
        ..kernel("6.1-rt", "linux-image-6.1.0-", "-rt-amd64")
    },
    Kernel {
        impossible: UP_TO_6_12,
        exceptions: &[NO_WRITER, NO_WRITER_EITHER, NO_SYNCFS, NO_SYNCFS_EITHER],
        ..kernel("6.12", "linux-image-6.12.", "-cloud-amd64")
    },
    Kernel {
        impossible: UP_TO_6_12_RT,
        exceptions: &[NO_WRITER, NO_WRITER_EITHER, NO_SYNCFS, NO_SYNCFS_EITHER],
        required: false,
        ..kernel("6.12-rt", "linux-image-6.12.", "-rt-amd64")
    },
    kernel("6.18", "linux-image-6.18.", "-cloud-amd64"),
    Kernel {
        required: false,
        ..kernel("7.2", "linux-binary-7.2.", "-cloud-amd64")
    },
    kernel("7.3", "linux-binary-7.3.", "-cloud-amd64"),
    Kernel {
        impossible: RT,
        ..kernel("7.3-rt", "linux-binary-7.3.", "-rt-amd64")
    },
];

/// That stall stands for 0.7 s at most; a survey takes longer in an emulated machine.
const TOO_SHORT: Exception = Exception {
    tests: "granted_to_a_reader_without_a_cpu",
    reason: "the stall is over before an emulated machine can look at it",
};

/// What no guest can run.
const EVERYWHERE: &[Exception] = &[TOO_SHORT];

const fn kernel(name: &'static str, prefix: &'static str, suffix: &'static str) -> Kernel {
    Kernel {
        name,
        prefix,
        suffix,
        required: true,
        impossible: &[],
        exceptions: &[],
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

    /// Why a test, `target::name`, is expected to fail on this kernel.
    pub(crate) fn exception(&self, test: &str) -> Option<&'static str> {
        self.exceptions
            .iter()
            .chain(EVERYWHERE)
            .find(|exception| test.contains(exception.tests))
            .map(|exception| exception.reason)
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

    #[test]
    fn an_exception_says_why() {
        let kernel = Kernel::by_name("5.10").unwrap();
        assert!(kernel.exception("live_watch::any").is_some());
        assert!(kernel.exception("live_diagnose::any").is_none());
    }
}
