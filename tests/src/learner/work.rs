//! Processes that take and give back locks all the time, each in another way.
//!
//! None of them looks at a process that is not one of them: the lab's would stop it.

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _},
    num::NonZeroUsize,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    libc,
    sys::{
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap},
        prctl,
        signal::Signal,
    },
};

/// What a process does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Maps, fills, advises, locks and unmaps memory.
    Map,
    /// Reads what /proc tells of itself and of its parent.
    Proc,
    /// Lists directories, and makes, looks for and removes files.
    Files,
    /// Asks for file systems, and has them written.
    Systems,
}

const ALL: [Kind; 5] = [Kind::Map, Kind::Map, Kind::Proc, Kind::Files, Kind::Systems];

/// The processes. Dropped, they end.
#[derive(Debug)]
pub(crate) struct Workers(Vec<Child>);

impl Workers {
    pub(crate) fn start() -> Result<Self> {
        let own = env::current_exe().context("cannot find our own program")?;
        let mut workers = Self(Vec::new());
        for kind in ALL {
            let name = format!("{kind:?}").to_lowercase();
            let child = Command::new(&own)
                .args(["work", &name])
                .stdin(Stdio::piped())
                .spawn()
                .context("cannot start a worker")?;
            workers.0.push(child);
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It has not been waited for: its number is its own.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Works until standard input ends.
pub(crate) fn work(kind: Kind) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    thread::spawn(move || {
        loop {
            // Whatever a file system or a kernel refuses is left out.
            match kind {
                Kind::Map => {
                    let _ = map();
                }
                Kind::Proc => proc(),
                Kind::Files => files(),
                Kind::Systems => systems(),
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    let mut end = Vec::new();
    io::stdin().read_to_end(&mut end)?;
    Ok(())
}

const PAGE: usize = 4096;
const LENGTH: usize = 24 << 20;

fn map() -> nix::Result<()> {
    let length = NonZeroUsize::new(LENGTH).ok_or(nix::errno::Errno::EINVAL)?;
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap_anonymous(None, length, both, MapFlags::MAP_PRIVATE) }?;
    let advise = |advice| {
        // SAFETY: the mapping just made, which nothing refers to.
        let _ = unsafe { madvise(start, LENGTH, advice) };
    };
    advise(MmapAdvise::MADV_NOHUGEPAGE);
    for page in (0..LENGTH).step_by(PAGE) {
        let byte = start.as_ptr().wrapping_byte_add(page).cast::<u8>();
        // SAFETY: inside of the mapping, which nothing else uses.
        unsafe { byte.write_volatile(1) };
    }
    for advice in [
        MmapAdvise::MADV_COLD,
        MmapAdvise::MADV_PAGEOUT,
        MmapAdvise::MADV_WILLNEED,
        MmapAdvise::MADV_FREE,
        MmapAdvise::MADV_DONTNEED,
    ] {
        advise(advice);
    }
    // SAFETY: the mapping just made.
    let _ = unsafe { mlock(start, LENGTH) };
    // SAFETY: nothing refers to it.
    unsafe { munmap(start, LENGTH) }
}

fn proc() {
    let parent = nix::unistd::getppid();
    for process in ["self".to_owned(), parent.to_string()] {
        for name in [
            "maps",
            "smaps",
            "smaps_rollup",
            "numa_maps",
            "cmdline",
            "environ",
            "status",
            "pagemap",
        ] {
            let mut bytes = vec![0; 1 << 16];
            let Ok(mut file) = File::open(format!("/proc/{process}/{name}")) else {
                continue;
            };
            for _ in 0..64 {
                if !matches!(file.read(&mut bytes), Ok(1..)) {
                    break;
                }
            }
        }
    }
}

fn files() {
    list(Path::new("/proc/self"), 3);
    list(Path::new("/sys/kernel"), 3);
    list(Path::new("/bin"), 2);
    let folder = env::temp_dir().join(format!("hold-learner-{}", std::process::id()));
    let _ = fs::create_dir(&folder);
    for number in 0..64 {
        let (one, other) = (
            folder.join(format!("a{number}")),
            folder.join(format!("b{number}")),
        );
        let _ = fs::write(&one, vec![1; 3 * PAGE]);
        let _ = fs::metadata(folder.join(format!("none{number}")));
        let _ = fs::rename(&one, &other);
        let _ = fs::read(&other);
    }
    list(&folder, 1);
    let _ = fs::remove_dir_all(&folder);
}

/// Lists a folder and those in it, so many levels deep, and asks for each entry.
fn list(folder: &Path, levels: u32) {
    if levels == 0 {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), levels - 1);
        } else {
            let _ = entry.metadata();
        }
    }
}

fn systems() {
    for path in ["/", "/tmp", "/proc", "/sys", "/dev"] {
        let Ok(folder) = File::open(path) else {
            continue;
        };
        let _ = nix::sys::statvfs::fstatvfs(&folder);
        if let Ok(stat) = nix::sys::stat::fstat(&folder) {
            let mut answer = [0u64; 16];
            // SAFETY: the buffer is longer than a `struct ustat`.
            unsafe { libc::syscall(libc::SYS_ustat, stat.st_dev, answer.as_mut_ptr()) };
        }
        let _ = nix::unistd::syncfs(&folder);
    }
    nix::unistd::sync();
}
