//! What `watch` prints: a stall while it stands, and once more when it has ended.

use std::io::{self, Write};

use crate::{
    cli::Format,
    commands::watch::{
        event::{
            CONTRACT, Checked, Ended, Found, FoundEnded, HolderSpent, Line, SleptIn, Standing,
            Totals, Unsurveyed, Waiting, Watching,
        },
        progress::Reason,
    },
    detect::{Subject, Thresholds},
    figures::{Count, Span},
    graph::{Forecasts, Stall},
    lock::{LockClass, LockKind, LockMode},
    plan::Gap,
    report::{
        Lock, Report, json,
        over_time::{self, Due, Why},
        text,
    },
    stream::{AsleepIn, Lost, Times, Wait},
    task::{Nanos, TaskName},
};

/// Waiters named one by one where no survey describes the queue.
const NAMED_MAX: usize = 8;

/// How a holder spent its time during a stall.
#[derive(Clone, Debug)]
pub(super) struct HolderTimes {
    pub(super) task: TaskName,
    pub(super) times: Times,
    /// What it slept in, the longest first.
    pub(super) sleeps: Vec<AsleepIn>,
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// For people.
    pub(super) at: jiff::Timestamp,
    /// `CLOCK_MONOTONIC` ns.
    pub(super) ns: u64,
}

/// The counts of a whole run.
#[derive(Clone, Copy, Debug)]
pub(in crate::commands) struct Summary {
    /// `None` where no tracepoint counts them.
    pub(in crate::commands) waits: Option<u64>,
    pub(in crate::commands) stalls: u64,
    pub(in crate::commands) findings: u64,
    pub(in crate::commands) surveys: u64,
    pub(in crate::commands) forecasts: Forecasts,
    pub(in crate::commands) lost: Lost,
}

/// Where reports go, in which format.
pub(super) struct Output {
    out: Box<dyn Write>,
    format: Format,
    style: text::Style,
    thresholds: Thresholds,
}

impl Output {
    pub(super) fn new(
        out: Box<dyn Write>,
        format: Format,
        style: text::Style,
        thresholds: Thresholds,
    ) -> Self {
        Self {
            out,
            format,
            style,
            thresholds,
        }
    }

    /// Watching begins. Text says so on standard error alone, which the caller does.
    pub(super) fn watching(&mut self, sources: &[String], gaps: &[Gap]) -> io::Result<()> {
        if self.format == Format::Text {
            return Ok(());
        }
        let (at, threshold_ns) = (jiff::Timestamp::now(), self.thresholds.wait);
        self.line(&Line::Watching(Watching {
            schema: CONTRACT,
            at,
            threshold_ns,
            sources,
            gaps,
        }))
    }

    /// A stall that stands. `report`: of the survey that found its lock, if one has.
    /// `waits`: who waits now, the longest first. `holders`: how they have spent their time
    /// so far.
    pub(super) fn stall(
        &mut self,
        stall: &Stall,
        report: Option<&Report>,
        waits: &[&Wait],
        holders: &[HolderTimes],
        reason: Reason,
        now: Now,
    ) -> io::Result<()> {
        let Now { at, ns: now_ns } = now;
        let (style, format) = (self.style, self.format);
        let found = report.and_then(|report| {
            let lock = report.locks.iter().find(|lock| lock.at == stall.lock)?;
            Some((report, lock))
        });
        if format == Format::Json {
            let mut standing = standing(at, stall, waits, reason, now_ns, found);
            standing.holders = holders.iter().map(holder_spent).collect();
            let line = Line::Stall(Box::new(standing));
            return json::write_line(&mut self.out, &line).and_then(|()| self.out.flush());
        }
        let what = match reason {
            Reason::Crossed => "stalled for",
            Reason::NewHolder => "has a new holder, stalled for",
            Reason::Deadlock => "is in a deadlock, stalled for",
            Reason::Stands => "still stalled, for",
        };
        let age = Span(stall.age(now_ns));
        writeln!(self.out, "{} stall {} {what} {age}", clock(at), stall.id)?;
        match found {
            Some((report, lock)) => text::write_stalled(&mut self.out, report, lock, style)?,
            None => self
                .out
                .write_all(unsurveyed(stall, waits, now_ns).as_bytes())?,
        }
        self.spent(holders)?;
        writeln!(self.out)?;
        self.out.flush()
    }

    /// A stall that has ended.
    pub(super) fn ended(
        &mut self,
        stall: &Stall,
        holders: &[HolderTimes],
        at: jiff::Timestamp,
    ) -> io::Result<()> {
        if self.format == Format::Json {
            return self.line(&Line::StallEnded(ended(at, stall, holders)));
        }
        let bound = if stall.is_length_exact() {
            ""
        } else {
            "at most "
        };
        let blocked = Count::of(stall.blocked.len()).nouns("task was", "tasks were");
        let next = match stall.forecasts {
            Forecasts { right: 0, wrong: 0 } => "",
            Forecasts { wrong: 0, .. } => " · next came as told",
            Forecasts { .. } => " · next came otherwise than told",
        };
        writeln!(
            self.out,
            "{} stall {} ended after {bound}{} · {} · {blocked} blocked{next}",
            clock(at),
            stall.id,
            Span(stall.length()),
            printable(&name(stall)),
        )?;
        self.spent(holders)?;
        writeln!(self.out)?;
        self.out.flush()
    }

    /// Tasks or a CPU that hang.
    pub(super) fn finding(&mut self, due: &Due<'_>, report: &Report, now: Now) -> io::Result<()> {
        let Due {
            standing,
            why,
            finding,
        } = due;
        let age_ns = standing.age(now.ns);
        if self.format == Format::Json {
            return self.line(&Line::Finding(Box::new(Found {
                at: now.at,
                finding: standing.id,
                reason: *why,
                age_ns,
                said: finding,
                lockup: report.lockup_of(finding),
                hung: report.hung_of(finding),
                chains: report.chains_behind(finding),
                stacks: &report.stacks,
            })));
        }
        let still = match why {
            Why::Found => "for",
            Why::Stands => "still, for",
        };
        writeln!(
            self.out,
            "{} finding {} {} {still} {}",
            clock(now.at),
            standing.id,
            finding.detector,
            Span(age_ns)
        )?;
        text::write_finding(&mut self.out, report, finding, self.style)?;
        writeln!(self.out)?;
        self.out.flush()
    }

    /// Tasks or a CPU that go on again.
    pub(super) fn finding_ended(
        &mut self,
        ended: &over_time::Standing,
        now: Now,
    ) -> io::Result<()> {
        let length_ns = ended.age(now.ns);
        if self.format == Format::Json {
            return self.line(&Line::FindingEnded(FoundEnded {
                at: now.at,
                finding: ended.id,
                detector: &ended.detector,
                sentence: &ended.sentence,
                length_ns,
            }));
        }
        let bound = match ended.subject {
            Subject::Cpu(_) => "",
            // The next look at all tasks has found it to be over.
            Subject::Awaited(_) => "at most ",
        };
        writeln!(
            self.out,
            "{} finding {} {} ended after {bound}{} · {}\n",
            clock(now.at),
            ended.id,
            ended.detector,
            Span(length_ns),
            printable(&ended.sentence),
        )?;
        self.out.flush()
    }

    /// How holders spent their time.
    fn spent(&mut self, holders: &[HolderTimes]) -> io::Result<()> {
        for holder in holders {
            let task = printable(&holder.task.to_string());
            writeln!(self.out, "  {task} {}", spent(holder))?;
        }
        Ok(())
    }

    /// The end of the run. Text goes to standard error: it is no result.
    pub(super) fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        let Summary {
            waits,
            stalls,
            findings,
            surveys,
            forecasts,
            lost,
        } = *summary;
        if self.format == Format::Json {
            let at = jiff::Timestamp::now();
            let lost = lost.by_kind().into_iter().collect();
            return self.line(&Line::Summary(Totals {
                at,
                waits,
                stalls,
                findings,
                surveys,
                forecasts: Checked::of(forecasts),
                lost,
            }));
        }
        let watched = waits.map_or_else(String::new, |waits| {
            format!(" {}", Count(waits).nouns("wait", "waits"))
        });
        let told = Checked::of(forecasts).map_or_else(String::new, |Checked { right, wrong }| {
            format!(
                ", who is next told right {} of {} times",
                Count(right),
                Count(right + wrong)
            )
        });
        super::say(&format!(
            "watched{watched}: {}{}, {} taken{told}, lost: {}",
            Count(stalls).nouns("stall", "stalls"),
            findings_of_hangs(findings),
            Count(surveys).nouns("survey", "surveys"),
            by_kind(&lost),
        ));
        Ok(())
    }

    fn line(&mut self, line: &Line<'_>) -> io::Result<()> {
        json::write_line(&mut self.out, line)?;
        self.out.flush()
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output")
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

fn standing<'a>(
    at: jiff::Timestamp,
    stall: &Stall,
    waits: &[&'a Wait],
    reason: Reason,
    now_ns: u64,
    found: Option<(&'a Report, &'a Lock)>,
) -> Standing<'a> {
    let waiting = |wait: &&'a Wait| Waiting {
        tid: wait.task.key.tid,
        tgid: wait.task.tgid,
        comm: &wait.task.comm,
        mode: wait.mode,
        wait_ns: Nanos::between(wait.since_ns, now_ns),
    };
    let unsurveyed = || Unsurveyed {
        address: stall.lock.to_string(),
        kind: stall.kind,
        waits: waits.iter().map(waiting).collect(),
    };
    Standing {
        at,
        stall: stall.id.0,
        reason,
        age_ns: stall.age(now_ns),
        blocked_tasks: waits.len(),
        lock: found.map(|(_, lock)| lock),
        surveyed_at: found.map(|(report, _)| report.taken_at),
        chains: found.map_or_else(Vec::new, |(report, lock)| {
            let leads_on = |chain: &&'a crate::report::Chain| chain.graph.route(lock.at).is_some();
            report.chains.iter().filter(leads_on).collect()
        }),
        daemons: found.map_or(&[], |(report, _)| report.daemons.as_slice()),
        findings: found.map_or_else(Vec::new, |(report, lock)| report.findings_on(lock)),
        stacks: found.map_or(&[], |(report, _)| report.stacks.as_slice()),
        holders: Vec::new(),
        unsurveyed: found.is_none().then(unsurveyed),
    }
}

fn ended<'a>(at: jiff::Timestamp, stall: &Stall, holders: &'a [HolderTimes]) -> Ended<'a> {
    let class = stall
        .facts
        .as_ref()
        .map_or(&LockClass::Unknown, |facts| &facts.lock().class);
    Ended {
        at,
        stall: stall.id.0,
        address: stall.lock.to_string(),
        kind: stall.kind,
        class: class.to_string(),
        name: name(stall),
        length_ns: stall.length(),
        length_is_upper_bound: !stall.is_length_exact(),
        blocked_tasks: stall.blocked.len(),
        holders: holders.iter().map(holder_spent).collect(),
        forecasts: Checked::of(stall.forecasts),
    }
}

fn holder_spent(holder: &HolderTimes) -> HolderSpent<'_> {
    let HolderTimes {
        task,
        times,
        sleeps,
    } = holder;
    HolderSpent {
        tid: task.key.tid,
        tgid: task.tgid,
        comm: &task.comm,
        asleep_ns: times.asleep,
        running_ns: times.running,
        runnable_ns: times.runnable,
        switches: times.switches,
        sleeps: sleeps
            .iter()
            .map(|sleep| SleptIn {
                class: sleep.class,
                function: sleep.function.as_deref(),
                ns: sleep.time,
            })
            .collect(),
    }
}

/// The lock's name, or what can be said of a lock that no survey has found.
fn name(stall: &Stall) -> String {
    stall.facts.as_ref().map_or_else(
        || format!("unknown {} at {}", kind(stall.kind), stall.lock),
        |facts| facts.lock().name.clone(),
    )
}

fn kind(kind: LockKind) -> &'static str {
    match kind {
        LockKind::Rwsem => "rwsem",
        LockKind::Mutex => "mutex",
        LockKind::PercpuRwsem => "per-CPU rwsem",
        LockKind::RtMutex => "rtmutex",
        LockKind::Semaphore => "semaphore",
        LockKind::VmaLock => "VMA lock",
        LockKind::Unknown => "lock",
    }
}

pub(in crate::commands) fn unsurveyed(stall: &Stall, waits: &[&Wait], now_ns: u64) -> String {
    let waited = |wait: &Wait| Span(Nanos::between(wait.since_ns, now_ns));
    let named = |wait: &&Wait| {
        let mode = match (wait.kind, wait.mode) {
            (LockKind::Mutex | LockKind::RtMutex | LockKind::Semaphore, _) => "",
            (_, LockMode::Read) => " read",
            (_, LockMode::Write) => " WRITE",
        };
        printable(&format!("{}{mode} {}", wait.task, waited(wait)))
    };
    let mut queue: Vec<String> = waits.iter().take(NAMED_MAX).map(named).collect();
    if waits.len() > NAMED_MAX {
        queue.push(format!("and {} more", Count::of(waits.len() - NAMED_MAX)));
    }
    let why = if stall.kind == LockKind::Rwsem {
        "no survey has found this lock"
    } else {
        "surveys look at rwsems only"
    };
    format!(
        "{}    {} blocked · oldest {}\n  held by  unknown: {why}\n  queue    {}\n",
        name(stall),
        Count::of(waits.len()).nouns("task", "tasks"),
        waits.first().map_or(Span(Nanos(0)), |wait| waited(wait)),
        queue.join(" · ")
    )
}

/// What a holder did since the survey that found it.
fn spent(holder: &HolderTimes) -> String {
    let HolderTimes { times, sleeps, .. } = holder;
    let slept = sleeps.first().map_or_else(String::new, |longest| {
        let function = longest.function.as_deref().unwrap_or("an unknown function");
        format!(
            ", {} of it in {} ({})",
            Span(longest.time),
            printable(function),
            text::stuck_words(longest.class)
        )
    });
    format!(
        "in the last {}: left the CPU {}, asleep {}{slept}, running {}, ready without a CPU {}",
        Span(times.total()),
        Count::from(times.switches).nouns("time", "times"),
        Span(times.asleep),
        Span(times.running),
        Span(times.runnable),
    )
}

/// `, 2 findings of hanging tasks or CPUs`; nothing where there are none.
pub(in crate::commands) fn findings_of_hangs(findings: u64) -> String {
    match findings {
        0 => String::new(),
        count => format!(
            ", {} of hanging tasks or CPUs",
            Count(count).nouns("finding", "findings")
        ),
    }
}

/// `begins 3, ends 1`, kinds that lost nothing left out.
pub(in crate::commands) fn by_kind(lost: &Lost) -> String {
    let kinds: Vec<String> = lost
        .by_kind()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    if kinds.is_empty() {
        "nothing".into()
    } else {
        kinds.join(", ")
    }
}

/// Names come from whoever runs on the host: nothing that a terminal would obey.
pub(in crate::commands) fn printable(text: &str) -> String {
    text.replace(text::is_unprintable, "?")
}

fn clock(at: jiff::Timestamp) -> impl std::fmt::Display {
    at.strftime("%FT%TZ")
}

#[cfg(test)]
mod tests;
