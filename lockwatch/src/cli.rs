//! The command line: one definition for parsing, `--help`, man page and completions.

mod export;
pub mod histogram;
mod look;
mod report;
mod watch;

use std::{str::FromStr as _, time::Duration};

use clap::{Args, Parser, Subcommand};

pub use self::{
    export::{CountArgs, ExportArgs},
    look::{Format, Look, Verbosity, When},
    report::{Detect, DiagnoseArgs, ReportArgs, ReportFormat},
    watch::{HangArgs, LockupArgs, RecordArgs, SourceArgs, WatchArgs, thresholds},
};
use crate::task::{Nanos, Tgid};

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
  lockwatch export --listen 127.0.0.1:9822   the same and stalls, as metrics for Prometheus
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
    /// nothing is sampled, and what finds no room is told. And watches as `watch` does: stalls, what they lead
    /// back to, hanging tasks and CPUs are in the metrics, too.
    #[command(after_long_help = "\
Examples:
  lockwatch export --listen 127.0.0.1:9822          for Prometheus to scrape
  lockwatch export --otlp http://localhost:4318     pushed to an OpenTelemetry collector
  lockwatch export --hdr-log /var/log/locks.hlog    logs in HdrHistogram's format
  lockwatch export --listen 127.0.0.1:9822 --class mmap_lock --comm postgres

Exit status: 0 nothing seen, 1 a stall, or a hanging task or CPU, seen, 2 error.")]
    Export(ExportArgs),
    /// Record what watch sees into a file, for reports later and elsewhere
    ///
    /// Records every survey, with the tasks and CPUs that hang, and every lock wait past the
    /// threshold, as `watch` sees them, and prints nothing of it. `report` makes any report from
    /// the file, on any machine, without root. What is older than a second is in the file even if
    /// lockwatch is killed. Put the file where writing does not depend on what hangs: /dev/shm or
    /// /run, say.
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
