//! The command line: one definition for parsing, `--help`, man page and completions.

mod export;
pub mod histogram;

use std::{io::IsTerminal, path::PathBuf, str::FromStr, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{NonEmptyStringValueParser, PossibleValuesParser},
};
use tracing_subscriber::filter::LevelFilter;

pub use self::export::{CountArgs, ExportArgs};
use crate::{
    detect::{self, Detectors, Thresholds},
    kernel::watchdogs,
    plan::Mechanism,
    report::text::Style,
    task::{Nanos, Tgid},
};

/// Says which kernel lock a hanging host waits for, who holds it, and why
///
/// A host crawls: top hangs, tasks pile up in state D. lockwatch names the rwsem
/// (mmap_lock, i_rwsem, s_umount, …) they wait for, the task that holds it, what that
/// task is stuck in, and what would happen next. Tasks that hang on something else, and CPUs
/// that do not go on (soft and hard lockups), are told with what keeps them.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "\
Exit status: 0 nothing found, 1 stall found, 2 error.
Results go to standard output, everything else to standard error.",
    after_long_help = "\
Examples:
  lockwatch diagnose                     what is stuck now, even if it hung an hour ago
  lockwatch diagnose --format json       the same for a program (contract lockwatch.report/1)
  lockwatch diagnose --threshold 100ms   shorter waits count, too
  lockwatch watch --for 1h               report stalls, hanging tasks and locked-up CPUs live
  lockwatch record -o FILE               the same into a file; lockwatch report FILE reads it
  lockwatch histogram                    how long locks are waited for, by class and caller
  lockwatch check                        what works on this host, and what is missing

Exit status: 0 nothing found, 1 stall found, 2 error.
Results go to standard output, everything else to standard error."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How much to say on standard error.
    #[command(flatten)]
    pub verbosity: Verbosity,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what is stuck now
    ///
    /// Reads the state of all tasks and of the sleeping locks they wait for, twice (a few
    /// times more while queues change), and says for each lock who holds it, on what
    /// evidence, why that task does not let go, and who waits; and which tasks have been in
    /// uninterruptible sleep too long, by what they wait for. Works on a host that hung
    /// before lockwatch was started. Attaches nothing to the kernel and opens no file that
    /// could hang, so that it cannot hang on what it diagnoses. For the tenth of a second
    /// that it takes it runs before the host's other work, where that is allowed (nice -20,
    /// CAP_SYS_NICE): a host that crawls may have no CPU to spare.
    #[command(after_long_help = "\
Examples:
  lockwatch diagnose
  lockwatch diagnose --threshold 100ms
  lockwatch diagnose --hung-task 10s      tasks in state D for 10 s hang, whatever they wait for
  lockwatch diagnose --format json | jq -r '.findings[].sentence'
  lockwatch diagnose --format json -o /run/stall.json

How to read it:
  held by    the holder and the evidence for its name: certain, likely, or only possible
  queue      who waits, in order; WRITE in front makes all later readers wait
  root       whom everybody waits for in the end
  why        what the rules of the lock make of that, and explanations of known patterns
  next       who gets the lock when it is released
  ways out   what you could do, and what that risks; lockwatch does none of it

Exit status: 0 no wait of the threshold or longer and nothing hangs, 1 stall found, 2 error.")]
    Diagnose(DiagnoseArgs),
    /// Report stalls as they stand and as they end
    ///
    /// Keeps watching: reports a wait when it passes the threshold and again when it
    /// ends, with the holder where the kernel lets us know it.
    ///
    /// And what hangs that is no lock, as the kernel's own detectors have it, but with the
    /// reason: tasks in uninterruptible sleep, one report for all that wait for the same thing
    /// (hung-task); CPUs that give no other task a turn, with the task, softirq or interrupt
    /// that keeps them, what is held there and who waits (soft-lockup); CPUs that take no
    /// interrupts (hard-lockup). Each is told when found, again at twice its age, and at its
    /// end. Each CPU is sampled for that, four times a second as a rule.
    #[command(after_long_help = "\
Examples:
  lockwatch watch                                       until interrupted
  lockwatch watch --threshold 100ms --for 1h
  lockwatch watch --comm postgres --class mmap_lock
  lockwatch watch --hung-task 30s --soft-lockup 5s      hanging tasks and CPUs sooner
  lockwatch watch --priority 50 --no-detect hung-task   told even if all CPUs are busy
  lockwatch watch --format json > stalls.jsonl          one line per event

Several filters of one kind: one must match. Filters of different kinds: all must match.
Exit status: 0 nothing seen, 1 a stall, or a hanging task or CPU, seen, 2 error.")]
    Watch(WatchArgs),
    /// Export how long tasks wait for locks, as metrics and histograms
    ///
    /// Counts in the kernel how long every task waits for every sleeping lock that it finds
    /// taken, by lock class, mode and caller, and with --track-holds how long each is held;
    /// nothing is sampled and none is lost. And watches as `watch` does: stalls, what they lead
    /// back to, hanging tasks and CPUs are in the metrics, too.
    #[command(after_long_help = "\
Examples:
  lockwatch export --listen 127.0.0.1:9822          for Prometheus to scrape
  lockwatch export --hdr-log /var/log/locks.hlog    HdrHistogram logs; lockwatch histogram reads them
  lockwatch export --listen 127.0.0.1:9822 --class mmap_lock --comm postgres

Exit status: 0 nothing seen, 1 a stall, or a hanging task or CPU, seen, 2 error.")]
    Export(ExportArgs),
    /// Record what watch sees into a file, for reports later and elsewhere
    ///
    /// Records every survey, with the tasks and CPUs that hang, and every lock wait past the
    /// threshold, as `watch` sees them, and prints nothing of it. `report` makes any report from the file, on any machine,
    /// without root. What is older than a second is in the file even if lockwatch is killed.
    /// Put the file where writing does not depend on what hangs: /dev/shm or /run, say.
    #[command(after_long_help = "\
Examples:
  lockwatch record -o /run/stall.lwr                      until interrupted
  lockwatch record -o /run/stall.lwr --for 1h --threshold 100ms
  lockwatch record -o /run/stall.lwr --once               one survey, as diagnose takes it
  lockwatch report /run/stall.lwr

Exit status: 0 nothing seen, 1 a stall, or a hanging task or CPU, seen, 2 error.")]
    Record(RecordArgs),
    /// Make a report from a recording, or sum up many
    ///
    /// Text sums up what was recorded and explains each stall by the last survey that saw
    /// it. The other formats, and text with --survey or --at, are about one survey: the one
    /// with the most blocked tasks, or the one that is asked for. A Perfetto trace is always
    /// about the whole time. A recording that is cut off or damaged is read as far as it goes.
    /// Of several recordings, text and json say which host stalled how often and how long, on
    /// what, and what the detectors say, the worst first.
    #[command(after_long_help = "\
Examples:
  lockwatch report stall.lwr
  lockwatch report stall.lwr --at 2026-03-01T03:12:09Z
  lockwatch report stall.lwr --format json | jq -r '.findings[].sentence'
  lockwatch report stall.lwr --format dot | dot -Tsvg > stall.svg
  lockwatch report stall.lwr --format folded | inferno-flamegraph > waits.svg
  lockwatch report stall.lwr --format perfetto -o stall.pftrace     for ui.perfetto.dev
  lockwatch report web*.lwr                                         many hosts at a glance

Exit status: 0 no stall in it, 1 stall found, 2 error, or nothing found in a recording that
is cut off or damaged: the stall may be in what could not be read.")]
    Report(ReportArgs),
    /// Show how long locks were waited for and held: percentiles and a plot
    ///
    /// From logs that `export --hdr-log` has written, or that another tool has written in that
    /// format, or counted now. Classes come in the order of the time that they cost; waits
    /// longer than half of all are few and can be most of that, so a plot shows both.
    #[command(after_long_help = "\
Examples:
  lockwatch histogram                                      count for 10 seconds
  lockwatch histogram --for 1m --class mmap_lock --by caller
  lockwatch histogram /var/log/waits.hlog
  lockwatch histogram waits.hlog --from 2026-03-01T03:00:00Z --to 2026-03-01T04:00:00Z
  lockwatch histogram waits.hlog --format svg -o waits.svg
  lockwatch histogram waits.hlog --class mmap_lock --format hgrm > mmap.hgrm
  lockwatch histogram merge web1.hlog web2.hlog -o web.hlog

How to read it:
  count      how many waits (or holds); spinning before a wait is part of it
  p99        99 of 100 took no longer than this
  in all     all of them together: what this class costs
  how often  a bar as long as there are many; time waited: as long as they are together

Exit status: 0, 2 error.")]
    Histogram(histogram::HistogramArgs),
    /// Say what this kernel and these privileges allow
    ///
    /// Asks the kernel what lockwatch could hook, by loading programs that do nothing
    /// (none is attached), and prints the plan that `watch` follows: each hook with its
    /// mechanism, why not a better one, and what is missing with its cost and remedy.
    /// Without privileges it says what can be known without them.
    #[command(after_long_help = "\
Examples:
  lockwatch check
  lockwatch check --format json | jq -r '.plan.gaps[].missing'
  lockwatch check > /dev/null && echo complete

How to read it:
  hooks      what watch attaches, in this order: mechanism, place, what it is for
             tp_btf (tracepoint) is cheaper than fentry and fexit (functions), these are
             cheaper than kprobe, which sees the entry of a function alone
  because    why this way and not a better one
  missing    what this host does not give, why, what that costs you, and the remedy

Exit status: 0 all that lockwatch wants is there, 1 something is missing, 2 nothing works.")]
    Check(CheckArgs),
}

/// Options of `check`.
#[derive(Clone, Copy, Debug, Args)]
pub struct CheckArgs {
    /// How to write it; json is the contract lockwatch.check/1
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// How text looks.
    #[command(flatten)]
    pub look: Look,
}

/// Options of `diagnose`.
#[derive(Clone, Debug, Args)]
pub struct DiagnoseArgs {
    /// How to write the report
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// Write the report to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Shorter waits are counted, not reported
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub threshold: Duration,
    /// From when on tasks hang.
    #[command(flatten)]
    pub hang: HangArgs,
    /// Stop after this long and report what is known by then
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub deadline: Duration,
    /// Which detectors are asked.
    #[command(flatten)]
    pub detect: Detect,
    /// How text looks.
    #[command(flatten)]
    pub look: Look,
}

/// Options of `watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Shorter waits are counted, not reported
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub threshold: Duration,
    /// Stop after this long; without it, when interrupted
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// From when on tasks hang.
    #[command(flatten)]
    pub hang: HangArgs,
    /// From when on CPUs hang.
    #[command(flatten)]
    pub lockup: LockupArgs,
    /// What is attached.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// How to write events; json is one line per event
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Only stalls in which a task of this process (or thread) waits or holds; may be repeated
    #[arg(long, value_name = "PID", value_parser = tgid)]
    pub pid: Vec<Tgid>,
    /// Only stalls in which a task with this name waits or holds; may be repeated
    #[arg(long, value_name = "COMM", value_parser = NonEmptyStringValueParser::new())]
    pub comm: Vec<String>,
    /// Only locks whose name contains this, or the lock at this 0x address; may be repeated
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub lock: Vec<String>,
    /// Only locks of this class (mmap_lock, i_rwsem, s_umount, …); may be repeated
    #[arg(long, value_name = "CLASS", value_parser = NonEmptyStringValueParser::new())]
    pub class: Vec<String>,
    /// Which detectors are asked.
    #[command(flatten)]
    pub detect: Detect,
    /// How text looks.
    #[command(flatten)]
    pub look: Look,
}

/// Which detectors are asked.
#[derive(Clone, Debug, Default, Args)]
pub struct Detect {
    /// Ask only these detectors; may be repeated
    #[arg(
        long,
        value_name = "DETECTOR",
        value_delimiter = ',',
        value_parser = detector_names()
    )]
    pub detect: Vec<String>,
    /// Ask all detectors but these; may be repeated
    #[arg(
        long,
        value_name = "DETECTOR",
        value_delimiter = ',',
        value_parser = detector_names(),
        hide_possible_values = true
    )]
    pub no_detect: Vec<String>,
}

impl Detect {
    /// The detectors that these options leave.
    pub fn detectors(&self) -> Detectors {
        let only: Vec<&str> = self.detect.iter().map(String::as_str).collect();
        let without: Vec<&str> = self.no_detect.iter().map(String::as_str).collect();
        Detectors::selected(&only, &without)
    }
}

fn detector_names() -> PossibleValuesParser {
    PossibleValuesParser::new(detect::ALL.iter().map(|detector| detector.name()))
}

/// From when on tasks and CPUs hang.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct HangArgs {
    /// Tasks this long in uninterruptible sleep (state D) hang; 0s: none does. Without it
    /// the kernel's own setting counts (kernel.hung_task_timeout_secs), 120s if it has none
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub hung_task: Option<Duration>,
}

/// From when on CPUs hang.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct LockupArgs {
    /// A CPU this long in the kernel, while others should run there, is locked up; 0s: none
    /// is. Without it the kernel's own setting counts (2 × kernel.watchdog_thresh), 20s if
    /// it has none
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub soft_lockup: Option<Duration>,
    /// A CPU this long without a timer interrupt is locked up; 0s: none is. Without it the
    /// kernel's own setting counts (kernel.watchdog_thresh), 10s if it has none
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub hard_lockup: Option<Duration>,
}

/// From when on something counts: what the user says, else as the kernel is set. Without
/// `lockup`, CPUs are not looked at.
pub fn thresholds(wait: Duration, hang: HangArgs, lockup: Option<LockupArgs>) -> Thresholds {
    let of_kernel = watchdogs::thresholds(Nanos::from_duration(wait), lockup.is_some());
    let lockup = lockup.unwrap_or_default();
    let chosen = |asked: Option<Duration>, of_kernel: Option<Nanos>| match asked {
        Some(asked) => (!asked.is_zero()).then(|| Nanos::from_duration(asked)),
        None => of_kernel,
    };
    Thresholds {
        hung_task: chosen(hang.hung_task, of_kernel.hung_task),
        soft_lockup: chosen(lockup.soft_lockup, of_kernel.soft_lockup),
        hard_lockup: chosen(lockup.hard_lockup, of_kernel.hard_lockup),
        ..of_kernel
    }
}

/// What `watch` and `record` attach.
#[derive(Clone, Debug, Args)]
pub struct SourceArgs {
    /// Know the holders of rwsems exactly, with their hold times, from their acquiring
    ///
    /// Without it, a survey of the stalled host finds holders by what they leave on their
    /// stacks, which names most and can leave some unnamed. With it, every acquiring and
    /// releasing of an rwsem on this host, contended or not, runs a program in the kernel
    /// that notes it: about 0.1 µs more for each pair.
    #[arg(long)]
    pub track_holds: bool,
    /// With --track-holds, remember the last holds of each class of lock that were this long,
    /// so that a report of a later stall of the same lock, by diagnose, too, can say who had
    /// it before; 0s: none
    #[arg(long, value_name = "DURATION", default_value = "10ms", value_parser = duration,
          requires = "track_holds")]
    pub long_hold: Duration,
    /// Run as a real-time task of this priority (SCHED_FIFO, 1 to 99), so that busy CPUs do
    /// not keep lockwatch from telling of them
    #[arg(long, value_name = "PRIORITY", value_parser = clap::value_parser!(u8).range(1..=99))]
    pub priority: Option<u8>,
    /// Do without this way of hooking (tp_btf, raw_tp, fentry, fexit, kprobe), as if the
    /// kernel refused it: for tests, and for kernels on which it does harm; may be repeated
    #[arg(long, value_name = "MECHANISM", value_parser = mechanism, hide = true)]
    pub without: Vec<Mechanism>,
}

/// Options of `record`.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// The file; made readable by its owner only, for it holds names, paths and addresses
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace FILE if it exists
    #[arg(long)]
    pub force: bool,
    /// Take one survey and end, as `diagnose` does; attaches nothing
    #[arg(long, conflicts_with_all = ["duration", "track_holds", "without"])]
    pub once: bool,
    /// Waits this long or longer are stalls: they are recorded with their exact ends, and
    /// surveys are taken while they stand
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub threshold: Duration,
    /// Stop after this long; without it, when interrupted
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// From when on tasks hang.
    #[command(flatten)]
    pub hang: HangArgs,
    /// From when on CPUs hang.
    #[command(flatten)]
    pub lockup: LockupArgs,
    /// What is attached.
    #[command(flatten)]
    pub sources: SourceArgs,
}

/// Options of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// The recording; several are summed up
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
    /// Write the report to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Report this survey of the recording, by its number from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub survey: Option<u64>,
    /// Report the last survey taken by this time (2026-03-01T03:12:09Z)
    #[arg(long, value_name = "TIME", conflicts_with = "survey", value_parser = timestamp)]
    pub at: Option<jiff::Timestamp>,
    /// Which detectors are asked.
    #[command(flatten)]
    pub detect: Detect,
    /// How text looks.
    #[command(flatten)]
    pub look: Look,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For a person
    Text,
    /// For a program: the contract lockwatch.report/1
    Json,
    /// A graph of tasks and locks for graphviz
    Dot,
    /// Folded stacks of the waiters, for flame graphs, weighted by wait in µs
    Folded,
    /// A trace for ui.perfetto.dev: a track for each lock, waits and holds as slices
    Perfetto,
}

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person
    Text,
    /// For a program
    Json,
}

/// How text looks.
#[derive(Clone, Copy, Debug, Args)]
pub struct Look {
    /// Use colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto)]
    pub color: When,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Columns where the terminal does not tell.
const COLUMNS: usize = 120;

impl Look {
    /// The style for standard output.
    pub fn for_stdout(self) -> Style {
        let stdout = std::io::stdout();
        let color = match self.color {
            When::Auto => anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never,
            When::Always => true,
            When::Never => false,
        };
        let width = if stdout.is_terminal() {
            rustix::termios::tcgetwinsize(&stdout)
                .ok()
                .map(|size| usize::from(size.ws_col))
                .filter(|&columns| columns > 0)
        } else {
            std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok())
        };
        Style {
            width: width.unwrap_or(COLUMNS),
            color,
        }
    }

    /// The style for a file.
    pub fn for_file(self) -> Style {
        Style {
            width: COLUMNS,
            color: self.color == When::Always,
        }
    }
}

/// How much to say on standard error.
#[derive(Clone, Copy, Debug, Args)]
pub struct Verbosity {
    /// Say more on standard error; -vv even more
    #[arg(short, long, global = true, display_order = 100, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say only errors on standard error
    #[arg(
        short,
        long,
        global = true,
        display_order = 101,
        conflicts_with = "verbose"
    )]
    pub quiet: bool,
}

impl Verbosity {
    /// From here on, log lines of the chosen levels go to standard error.
    pub fn start_logging(self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::INFO,
            (false, 2) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        };
        let color = anstream::AutoStream::choice(&std::io::stderr());
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .with_ansi(color != anstream::ColorChoice::Never)
            .with_target(level >= LevelFilter::DEBUG)
            .without_time()
            // They would go to standard error too, by a macro that panics if it cannot write.
            .log_internal_errors(false)
            .init();
    }
}

/// A duration as people write it.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = jiff::SignedDuration::from_str(text)
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or("write a duration as 250ms, 1s, 1m30s or 1h")?;
    // Longer than this, nanoseconds no longer fit their type.
    if duration.as_nanos() > u128::from(Nanos(u64::MAX).0) {
        return Err("too long: at most 584 years".to_owned());
    }
    Ok(duration)
}

/// A moment, with its offset from UTC.
fn timestamp(text: &str) -> Result<jiff::Timestamp, &'static str> {
    text.parse()
        .map_err(|_| "expected a time such as 2026-03-01T03:12:09Z")
}

fn mechanism(text: &str) -> Result<Mechanism, String> {
    let mut all = Mechanism::ALL.into_iter();
    all.find(|mechanism| mechanism.name() == text)
        .ok_or_else(|| "no way of hooking has this name".to_owned())
}

fn tgid(text: &str) -> Result<Tgid, std::num::ParseIntError> {
    text.parse().map(Tgid)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_time_is_asked_for_by_example() {
        assert!(timestamp("2026-03-01T03:12:09Z").is_ok());
        let parsed = Cli::try_parse_from(["lockwatch", "report", "x", "--at", "3s"]);
        let error = parsed.unwrap_err().to_string();
        let expected = "expected a time such as 2026-03-01T03:12:09Z";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("250ms", 250),
            ("1s", 1_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "1", "-1s", "1x", "one second", "9999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
