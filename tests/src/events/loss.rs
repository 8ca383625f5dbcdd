//! What `watch` and `export` lose while tasks contend as hard as they can, and what they
//! cost meanwhile.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lockwatch_tests::{storm::Storm, trial::Program};
use nix::{sys::signal::Signal, unistd::Pid};

use crate::figures::{Figure, Unit};

/// How long a storm lasts.
const TIME: Duration = Duration::from_secs(2);
/// How long lockwatch may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(10);
const STORMS: [(Storm, &str); 2] = [(Storm::Pipe, "pipe"), (Storm::MmapLock, "mmap_lock")];
/// Threads: the waits rise with them until the machine makes no more.
const THREADS: [u32; 4] = [2, 4, 16, 48];

/// What one run came to.
struct Run {
    waits: f64,
    lost: f64,
    /// Processor time of lockwatch over that of the storm.
    share: f64,
}

/// All storms against both. `lockwatch`: the released binary.
pub(crate) fn measure(lockwatch: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (verb, measured) in [
        ("watch", watch as fn(&Path, Storm, u32) -> Result<Run>),
        ("export", export),
    ] {
        let (mut most, mut lost_in_all) = (0.0_f64, 0.0);
        for (storm, lock) in STORMS {
            for threads in THREADS {
                let run = measured(lockwatch, storm, threads)?;
                let name = format!("{verb}, {lock} × {threads}");
                let figure =
                    |what: &str, value, unit| Figure::new(format!("{name}: {what}"), value, unit);
                figures.push(figure("waits", run.waits, Unit::PerSecond));
                figures.push(figure("CPU of lockwatch", run.share, Unit::Ratio));
                most = most.max(run.waits);
                lost_in_all += run.lost;
            }
        }
        figures.push(Figure::new(
            format!("{verb}: most waits"),
            most,
            Unit::PerSecond,
        ));
        figures.push(Figure::new(
            format!("{verb}: lost"),
            lost_in_all,
            Unit::Count,
        ));
    }
    Ok(figures)
}

fn watch(lockwatch: &Path, storm: Storm, threads: u32) -> Result<Run> {
    let mut command = Command::new(lockwatch);
    command.args(["watch", "--format", "json", "--threshold", "100ms"]);
    let program = ready(&mut command, "watching")?;
    let (took, cpu) = blow(&program, storm, threads)?;
    program.signal(Signal::SIGINT);
    let ended = program.end(PATIENCE)?;
    let last = ended.stdout.lines().last().context("watch said nothing")?;
    let summary: serde_json::Value = serde_json::from_str(last)?;
    ensure!(summary["event"] == "summary", "no summary: {last}");
    let lost = summary["lost"].as_object().context("no losses")?;
    let waits = summary["waits"].as_f64().context("no count of waits")?;
    ensure!(waits > 0.0, "nobody waited");
    Ok(Run {
        waits: waits / took.as_secs_f64(),
        lost: lost.values().filter_map(serde_json::Value::as_f64).sum(),
        share: cpu.as_secs_f64() / took.as_secs_f64(),
    })
}

fn export(lockwatch: &Path, storm: Storm, threads: u32) -> Result<Run> {
    // Free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(lockwatch);
    command.args(["export", "--listen", &address.to_string()]);
    let program = ready(&mut command, "exporting")?;
    let (took, cpu) = blow(&program, storm, threads)?;
    let metrics = scrape(address)?;
    program.signal(Signal::SIGINT);
    program.end(PATIENCE)?;
    let sum = |wanted: &[&str]| -> f64 {
        let samples = metrics.lines().filter_map(|line| line.rsplit_once(' '));
        let samples = samples.filter(|(name, _)| {
            let name = name.split('{').next().unwrap_or_default();
            wanted.contains(&name)
        });
        samples
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum()
    };
    let waits = sum(&["lockwatch_lock_wait_seconds_count"]);
    ensure!(waits > 0.0, "nobody waited: {metrics}");
    Ok(Run {
        waits: waits / took.as_secs_f64(),
        lost: sum(&["lockwatch_lost_total", "lockwatch_uncounted_total"]),
        share: cpu.as_secs_f64() / took.as_secs_f64(),
    })
}

/// Starts it, and waits until it has attached what it needs.
fn ready(command: &mut Command, word: &str) -> Result<Program> {
    let mut program = Program::start(command)?;
    loop {
        let line = program.err_line(PATIENCE)?;
        let line = line.with_context(|| format!("it ended: {}", program.stderr_so_far()))?;
        if line.starts_with(word) {
            return Ok(program);
        }
    }
}

/// The storm; how long it took, and the processor time of the program meanwhile.
fn blow(program: &Program, storm: Storm, threads: u32) -> Result<(Duration, Duration)> {
    let before = cpu_of(program.pid())?;
    let begun = Instant::now();
    storm.run(threads, TIME)?;
    let took = begun.elapsed();
    let used = cpu_of(program.pid())?.saturating_sub(before);
    Ok((took, used))
}

/// Processor time of a process, in user space and in the kernel.
fn cpu_of(process: Pid) -> Result<Duration> {
    let clock = nix::time::clock_getcpuclockid(process)?;
    Ok(nix::time::clock_gettime(clock)?.into())
}

fn scrape(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.contains(" 200 OK"), "no metrics: {answer}");
    Ok(answer)
}
