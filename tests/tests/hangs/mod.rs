//! What the tests of lockups and hanging tasks have in common: `watch`, the kernel's log and
//! settings.

#![allow(
    dead_code,
    reason = "a part of each binary, of which none needs everything"
)]
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

pub(crate) mod lockup;

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::unix::fs::OpenOptionsExt as _,
    process::Command,
    time::{Duration, Instant},
};

use lockwatch_tests::{
    trial::{
        self, Program,
        lockup::{Finding, Line},
    },
    truth::Tid,
};
use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::Signal,
    unistd::Pid,
};

/// From here on a CPU is locked up.
pub(crate) const SOFT: Duration = Duration::from_secs(2);
pub(crate) const HARD: Duration = Duration::from_secs(3);

/// How long `watch` may take to be ready, and to end when told to.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A finding comes this long after its threshold at the latest.
pub(crate) const PROMPT: Duration = Duration::from_secs(2);

/// How exact the length of one must be.
pub(crate) const EXACT: Duration = Duration::from_millis(1500);

/// How long a lockup lasts: nearly as long as the lab makes one on a machine that others use.
pub(crate) fn hold() -> Duration {
    if is_own_machine() {
        // The kernel's own detector says something, too.
        Duration::from_secs(12)
    } else {
        Duration::from_millis(6500)
    }
}

pub(crate) fn is_own_machine() -> bool {
    env::var("LOCKWATCH_OWN_MACHINE").is_ok_and(|value| value == "1")
}

/// A `watch` that looks for what hangs. Dropped, it is killed.
pub(crate) struct Watch {
    program: Program,
    pub(crate) findings: Vec<Finding>,
    /// Number, detector and length of what has ended.
    pub(crate) ended: Vec<(u64, String, u64)>,
    /// How many findings it says itself that it has reported, at its end.
    summed_up: Option<u64>,
}

impl Watch {
    /// Tasks hang from `hung` on.
    pub(crate) fn start(hung: &str) -> Self {
        Self::start_with(SOFT, HARD, hung, &[])
    }

    /// From these on CPUs are locked up, and tasks hang.
    pub(crate) fn start_with(soft: Duration, hard: Duration, hung: &str, more: &[&str]) -> Self {
        let mut command = Command::new(trial::lockwatch().unwrap());
        command.args(["watch", "--format", "json"]).args(more);
        command.args(["--soft-lockup", &in_words(soft)]);
        command.args(["--hard-lockup", &in_words(hard)]);
        command.args(["--hung-task", hung]);
        let mut program = Program::start(&mut command).unwrap();
        let begun = Instant::now();
        loop {
            let line = program.err_line(trial::bound(PATIENCE)).unwrap();
            let line = line.unwrap_or_else(|| panic!("watch ended: {}", program.stderr_so_far()));
            if line.starts_with("watching") {
                break;
            }
            assert!(
                begun.elapsed() < trial::bound(PATIENCE),
                "watch is not ready: {line}"
            );
        }
        Self {
            program,
            findings: Vec::new(),
            ended: Vec::new(),
            summed_up: None,
        }
    }

    /// Takes lines for that long.
    pub(crate) fn listen_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.program.out_line(left) {
                Ok(Some(line)) => self.take(&line),
                Ok(None) => panic!("watch ended: {}", self.program.stderr_so_far()),
                // No line came.
                Err(_) => {}
            }
        }
    }

    /// Binds a thread of it, by its name, to the CPU that the lab locks up.
    pub(crate) fn bind_to_victim(&self, thread: &str) {
        let own = sched_getaffinity(Pid::this()).unwrap();
        let cpus = (0..CpuSet::count()).rev();
        let victim = cpus.into_iter().find(|&cpu| own.is_set(cpu).unwrap());
        let mut only = CpuSet::new();
        only.set(victim.unwrap()).unwrap();
        let is_named = |folder: &fs::DirEntry| {
            let comm = fs::read_to_string(folder.path().join("comm"));
            comm.is_ok_and(|comm| comm.trim() == thread)
        };
        // It gives itself its name, once it runs.
        let deadline = Instant::now() + trial::bound(PATIENCE);
        let folder = loop {
            let threads = fs::read_dir(format!("/proc/{}/task", self.program.pid())).unwrap();
            if let Some(folder) = threads.flatten().find(is_named) {
                break folder;
            }
            assert!(Instant::now() < deadline, "it has no thread named {thread}");
            std::thread::sleep(Duration::from_millis(10));
        };
        let tid = folder.file_name().to_str().unwrap().parse().unwrap();
        sched_setaffinity(Pid::from_raw(tid), &only).unwrap();
    }

    /// Takes lines until `is_enough`.
    pub(crate) fn listen(
        &mut self,
        what: &str,
        limit: Duration,
        is_enough: impl Fn(&Self) -> bool,
    ) {
        let deadline = Instant::now() + limit;
        while !is_enough(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.program.out_line(left) {
                Ok(Some(line)) => self.take(&line),
                Ok(None) => panic!(
                    "watch ended before {what}: {}",
                    self.program.stderr_so_far()
                ),
                Err(error) => panic!(
                    "{what} was not seen within {limit:?}: {error:#}\n{:#?}",
                    self.findings
                ),
            }
        }
    }

    fn take(&mut self, line: &str) {
        match serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")) {
            Line::Finding(finding) => self.findings.push(*finding),
            Line::FindingEnded {
                finding,
                detector,
                length_ns,
            } => self.ended.push((finding, detector, length_ns)),
            Line::Summary { findings } => self.summed_up = Some(findings),
            Line::Other => {}
        }
    }

    /// Ends it: it has found nothing at all.
    pub(crate) fn end_without_findings(mut self) {
        self.finish();
        assert!(
            self.findings.is_empty(),
            "something is found where all is well: {:#?}",
            self.findings
        );
        assert_eq!(self.summed_up, Some(0), "{}", self.program.stderr_so_far());
    }

    /// Tells it to end, and takes what it still says.
    fn finish(&mut self) {
        self.program.signal(Signal::SIGINT);
        while let Some(line) = self.program.out_line(trial::bound(PATIENCE)).unwrap() {
            self.take(&line);
        }
    }

    /// Ends it, and takes what it still says. Nothing but the one finding may be among it.
    pub(crate) fn end(mut self, number: u64) {
        self.finish();
        let others: Vec<&Finding> = self
            .findings
            .iter()
            .filter(|finding| finding.finding != number)
            .collect();
        assert!(others.is_empty(), "something else is found: {others:#?}");
        let found = self.findings.iter().filter(|one| one.reason == "found");
        assert_eq!(
            found.count(),
            1,
            "told more than once: {:#?}",
            self.findings
        );
        assert_eq!(self.ended.len(), 1, "ends: {:?}", self.ended);
    }
}

/// A time as an option of lockwatch has it.
pub(crate) fn in_words(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

/// The kernel's log from now on.
pub(crate) struct Log(File);

impl Log {
    pub(crate) fn from_now() -> Self {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut device = options.open("/dev/kmsg").unwrap();
        device.seek(io::SeekFrom::End(0)).unwrap();
        Self(device)
    }

    /// The texts that came since.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.0.read(&mut buffer) {
                Ok(length) => {
                    let record = String::from_utf8_lossy(&buffer[..length]);
                    let line = record.lines().next().unwrap_or_default();
                    let text = line.split_once(';').map_or(line, |(_, text)| text);
                    lines.push(text.to_owned());
                }
                // Records that were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return lines,
                Err(error) => panic!("/dev/kmsg: {error}"),
            }
        }
    }
}

/// A setting of the kernel of our own machine, which is put back.
pub(crate) struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    /// `None` where the kernel has no such setting.
    pub(crate) fn set(path: &'static str, value: &str) -> Option<Self> {
        assert!(is_own_machine(), "the kernel's settings are not ours");
        let before = fs::read_to_string(path).ok()?;
        fs::write(path, value).unwrap();
        Some(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.path, self.before.trim());
    }
}

/// Half the time after which the kernel takes a CPU for locked up, s.
pub(crate) const WATCHDOG_THRESH: &str = "2";

/// CPU, comm and thread of `watchdog: BUG: soft lockup - CPU#1 stuck for 9s! [comm:12]`.
pub(crate) fn soft_lockup_of_kernel(line: &str) -> Option<(u32, String, Tid)> {
    let (_, rest) = line.split_once("BUG: soft lockup - CPU#")?;
    let (cpu, rest) = rest.split_once(' ')?;
    let (_, task) = rest.split_once('[')?;
    let (comm, tid) = task.trim_end().trim_end_matches(']').rsplit_once(':')?;
    Some((cpu.parse().ok()?, comm.to_owned(), Tid(tid.parse().ok()?)))
}
