//! What runs while the loops do.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lockwatch_tests::trial::{self, Program};
use nix::sys::signal::Signal;

use crate::floor::{Attached, Floor, Places};

/// Whatever is started must be attached by then, and end when it is told to.
const LIMIT: Duration = Duration::from_secs(120);
/// What a tool does once after it is attached, such as a first survey, is over by then.
const SETTLE: Duration = Duration::from_secs(2);

/// How long a tool that does not tell has to rest until it is taken to be attached.
const REST: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);

/// What is attached, and how.
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    what: What,
}

enum What {
    /// lockwatch with these arguments. It is attached when it says a line that begins so on
    /// standard error.
    Lockwatch(&'static [&'static str], &'static str),
    Floor(Floor),
    /// Another tool: a program in [`PEERS`] and its arguments. When it is attached it does
    /// not tell.
    Peer(&'static [&'static str]),
}

/// Folder of the other tools, with their programs in bin and all that those need in lib, the
/// loader, too: `cargo xtask bench` puts it there.
const PEERS: &str = "/peers";

/// How long rwsems are held, by fexit and fentry: one map, in which a task has its locks.
const HOLDS_BY_BPFTRACE: &str = "\
    fexit:vmlinux:down_read, fexit:vmlinux:down_write { @at[tid, (uint64)args.sem] = nsecs; } \
    fexit:vmlinux:down_read_killable, fexit:vmlinux:down_write_killable, \
    fexit:vmlinux:down_read_interruptible \
    /retval == 0/ { @at[tid, (uint64)args.sem] = nsecs; } \
    fexit:vmlinux:down_read_trylock, fexit:vmlinux:down_write_trylock \
    /retval != 0/ { @at[tid, (uint64)args.sem] = nsecs; } \
    fentry:vmlinux:up_read, fentry:vmlinux:up_write /@at[tid, (uint64)args.sem]/ \
    { @ns = hist(nsecs - @at[tid, (uint64)args.sem]); delete(@at[tid, (uint64)args.sem]); }";

/// How long locks are waited for.
const WAITS_BY_BPFTRACE: &str = "\
    rawtracepoint:contention_begin { @at[tid] = nsecs; } \
    rawtracepoint:contention_end /@at[tid]/ { @ns = hist(nsecs - @at[tid]); delete(@at[tid]); }";

const PERF_RECORD: [&str; 7] = [
    "perf",
    "record",
    "--all-cpus",
    "--event",
    "lock:contention_begin,lock:contention_end",
    "--output",
    "/dev/null",
];

/// Metrics are scraped from there, by nobody.
const EXPORT: [&str; 3] = ["export", "--listen", "127.0.0.1:9822"];

/// All of them.
pub(crate) const MODES: &[Mode] = &[
    lockwatch("watch", &["watch"], "watching"),
    lockwatch("export", &EXPORT, "exporting"),
    lockwatch(
        "export --callers-from 1h",
        &[EXPORT[0], EXPORT[1], EXPORT[2], "--callers-from", "1h"],
        "exporting",
    ),
    lockwatch(
        "watch --track-holds --without fexit",
        &["watch", "--track-holds", "--without", "fexit"],
        "watching",
    ),
    lockwatch(
        "export --track-holds --without fexit",
        &[
            EXPORT[0],
            EXPORT[1],
            EXPORT[2],
            "--track-holds",
            "--without",
            "fexit",
        ],
        "exporting",
    ),
    lockwatch(
        "watch --track-holds",
        &["watch", "--track-holds"],
        "watching",
    ),
    lockwatch(
        "export --track-holds",
        &[EXPORT[0], EXPORT[1], EXPORT[2], "--track-holds"],
        "exporting",
    ),
    floor("floor: contention tracepoints, empty", Floor::Contention),
    floor(
        "floor: contention and scheduler tracepoints, empty",
        Floor::Watch,
    ),
    floor(
        "floor: contention tracepoints, begins kept",
        Floor::ContentionKept,
    ),
    floor("floor: mmap_lock tracepoints, empty", Floor::MmapLock),
    floor("floor: fexit and fentry, empty", Floor::Holds),
    peer("klockstat", &["klockstat-libbpf"]),
    peer("bpftrace: holds", &["bpftrace", "-e", HOLDS_BY_BPFTRACE]),
    peer("bpftrace: waits", &["bpftrace", "-e", WAITS_BY_BPFTRACE]),
    peer("perf record", &PERF_RECORD),
    peer(
        "perf record -g",
        &[
            PERF_RECORD[0],
            PERF_RECORD[1],
            "-g",
            PERF_RECORD[2],
            PERF_RECORD[3],
            PERF_RECORD[4],
            PERF_RECORD[5],
            PERF_RECORD[6],
        ],
    ),
];

const fn lockwatch(
    name: &'static str,
    arguments: &'static [&'static str],
    ready: &'static str,
) -> Mode {
    let what = What::Lockwatch(arguments, ready);
    Mode { name, what }
}

const fn floor(name: &'static str, floor: Floor) -> Mode {
    let what = What::Floor(floor);
    Mode { name, what }
}

const fn peer(name: &'static str, command: &'static [&'static str]) -> Mode {
    let what = What::Peer(command);
    Mode { name, what }
}

/// It is attached. Dropped, it is gone.
pub(crate) enum Running {
    Tool(Program),
    Floor(Attached),
}

impl Mode {
    /// Whether it is another tool.
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self.what, What::Peer(_))
    }

    /// Starts it, and waits until it is attached and has settled; how much the CPU did from the
    /// start of a tool until it was attached, ns.
    pub(crate) fn start(&self, places: &Places) -> Result<(Running, Option<u64>)> {
        let begun = match self.what {
            What::Lockwatch(arguments, ready) => {
                let mut command = Command::new(trial::lockwatch()?);
                command.args(arguments).stdin(Stdio::null());
                let begin = busy_ns()?;
                let program = start(&mut command, ready)?;
                (Running::Tool(program), Some(busy_ns()? - begin))
            }
            What::Floor(floor) => (Running::Floor(places.attach(floor)?), None),
            What::Peer(command) => {
                let begin = busy_ns()?;
                let mut command = peer_command(command);
                let program = Program::start(command.stdin(Stdio::null()))?;
                let end = wait_for_rest()?;
                (Running::Tool(program), Some(end - begin))
            }
        };
        thread::sleep(SETTLE);
        Ok(begun)
    }
}

/// A program in [`PEERS`], by the loader there.
fn peer_command(command: &[&str]) -> Command {
    let [program, arguments @ ..] = command else {
        unreachable!("a command is a program and its arguments");
    };
    let lib = format!("{PEERS}/lib");
    let mut command = Command::new(format!("{lib}/ld-linux-x86-64.so.2"));
    command
        .args(["--library-path", &lib])
        .arg(format!("{PEERS}/bin/{program}"))
        .args(arguments);
    command
}

/// Waits until the CPU has had next to nothing to do for some time; what it did until then, ns.
fn wait_for_rest() -> Result<u64> {
    let end = Instant::now() + LIMIT;
    let (mut at, mut since) = (busy_ns()?, Instant::now());
    while since.elapsed() < REST {
        ensure!(Instant::now() < end, "the machine does not come to rest");
        thread::sleep(LOOK);
        let now = busy_ns()?;
        if now - at > LOOK.as_nanos() as u64 / 20 {
            since = Instant::now();
            at = now;
        }
    }
    Ok(at)
}

/// Starts it, and waits for a line on standard error that begins so.
fn start(command: &mut Command, ready: &str) -> Result<Program> {
    let mut program = Program::start(command)?;
    let end = Instant::now() + LIMIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match program.err_line(left)? {
            Some(line) if line.starts_with(ready) => return Ok(program),
            Some(_) => {}
            None => bail!("it ended: {}", program.end(LIMIT)?.describe()),
        }
    }
}

impl Running {
    /// Ends it.
    pub(crate) fn stop(self) -> Result<()> {
        match self {
            Self::Floor(attached) => drop(attached),
            Self::Tool(program) => {
                program.signal(Signal::SIGINT);
                let ended = program.end(LIMIT)?;
                // lockwatch says with 1 that something was found; tools may leave the signal
                // as it is.
                let by_signal = ended.status.signal() == Some(Signal::SIGINT as i32);
                if !by_signal && !matches!(ended.code(), Some(0 | 1)) {
                    bail!("{}", ended.describe());
                }
            }
        }
        // What the kernel does later to free what was attached.
        thread::sleep(SETTLE);
        Ok(())
    }
}

/// How long all CPUs have run tasks, ns: the seventh figure of each CPU in /proc/schedstat
/// (Documentation/scheduler/sched-stats.rst, versions 15 to 17). What the running task does
/// is in it once it has slept.
fn busy_ns() -> Result<u64> {
    let text = fs::read_to_string("/proc/schedstat").context("no statistics of the scheduler")?;
    let cpus = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        words.next()?.strip_prefix("cpu")?;
        words.nth(6)?.parse::<u64>().ok()
    });
    Ok(cpus.sum())
}
