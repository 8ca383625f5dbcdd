//! What `watch` prints: a stall while it stands, and once more when it has ended.

use std::io::{self, Write};

use crate::{
    cli::Format,
    commands::watch::{
        event::{
            CONTRACT, Checked, Found, FoundEnded, Line, Totals, Watching, ended, holder_spent,
            standing,
        },
        holders::HolderTimes,
        progress::Reason,
        words::{by_kind, clock, findings_of_hangs, name, printable, spent, unsurveyed},
    },
    detect::{Subject, Thresholds},
    figures::{Count, Span},
    graph::{Forecasts, Stall},
    plan::Gap,
    report::{
        OwnStacks, Report, json,
        over_time::{Due, Ended, Why},
        text,
    },
    stream::{Lost, Wait},
};

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
}

impl Output {
    pub(super) fn new(out: Box<dyn Write>, format: Format, style: text::Style) -> Self {
        Self { out, format, style }
    }

    /// Watching begins. Text says so on standard error alone, which the caller does.
    /// `thresholds`: those that tell something here.
    pub(super) fn watching(
        &mut self,
        thresholds: Thresholds,
        sources: &[String],
        gaps: &[Gap],
    ) -> io::Result<()> {
        if self.format == Format::Text {
            return Ok(());
        }
        self.line(&Line::Watching(Watching {
            schema: CONTRACT,
            at: jiff::Timestamp::now(),
            threshold_ns: thresholds.wait,
            hung_task_ns: thresholds.hung_task,
            soft_lockup_ns: thresholds.soft_lockup,
            hard_lockup_ns: thresholds.hard_lockup,
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
            let mut stacks = OwnStacks::of(report);
            let lockup = report.lockup_of(finding).map(|it| stacks.with(it));
            let hung = report.hung_of(finding).map(|it| stacks.with(it));
            return self.line(&Line::Finding(Box::new(Found {
                at: now.at,
                finding: standing.id,
                reason: *why,
                age_ns,
                said: finding,
                lockup,
                hung,
                chains: report.chains_behind(finding),
                stacks: stacks.into_table(),
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
    pub(super) fn finding_ended(&mut self, ended: &Ended, at: jiff::Timestamp) -> io::Result<()> {
        let Ended { standing, length } = ended;
        if self.format == Format::Json {
            return self.line(&Line::FindingEnded(FoundEnded {
                at,
                finding: standing.id,
                detector: &standing.detector,
                sentence: &standing.sentence,
                length_ns: *length,
            }));
        }
        let bound = match standing.subject {
            Subject::Cpu(_) => "",
            // The next look at all tasks has found it to be over.
            Subject::Awaited(_) => "at most ",
        };
        writeln!(
            self.out,
            "{} finding {} {} ended after {bound}{} · {}\n",
            clock(at),
            standing.id,
            standing.detector,
            Span(*length),
            printable(&standing.sentence),
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

#[cfg(test)]
mod tests;
