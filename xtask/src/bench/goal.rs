//! What lockwatch is meant to cost at most.

use std::fmt::{self, Display, Formatter};

use super::figure::{Committed, Figure};

/// A bound of a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// The figure's name and kernel.
    pub(crate) figure: &'static str,
    pub(crate) kernel: &'static str,
    /// In the figure's unit: at most that much, or at least where more is better.
    pub(crate) value: f64,
    /// What is measured, for people.
    pub(crate) what: &'static str,
}

/// All of them, in the order of the document's table.
pub(crate) const GOALS: &[Goal] = &[
    Goal {
        figure: "read pair/watch",
        kernel: "6.12",
        value: 0.0,
        what: "added to a pair of acquiring and releasing for read that nobody waits for",
    },
    Goal {
        figure: "contended rwsem cycle/export",
        kernel: "6.12",
        value: 1_500.0,
        what: "added to a cycle with one wait, which is also counted in histograms by class and caller",
    },
    Goal {
        figure: "contended rwsem cycle/export --callers-from 1h",
        kernel: "6.12",
        value: 1_500.0,
        what: "added to a cycle with one wait, which is also counted in histograms by class",
    },
    Goal {
        figure: "read pair/watch --track-holds",
        kernel: "6.12",
        value: 480.0,
        what: "added to a pair for read, with `--track-holds`",
    },
    Goal {
        figure: "attach/watch",
        kernel: "6.12",
        value: 0.5e9,
        what: "from the start of `watch` until it is attached",
    },
    Goal {
        figure: "mmap (stress-ng)/watch: CPU time",
        kernel: "running",
        value: 1.01,
        what: "CPU time of a load that does nothing but map and unmap, with `watch`",
    },
    Goal {
        figure: "ready/watch",
        kernel: "running",
        value: 300e6,
        what: "`watch`: from exec to attached",
    },
    Goal {
        figure: "ready/watch --track-holds",
        kernel: "running",
        value: 300e6,
        what: "`watch --track-holds`: from exec to attached",
    },
    Goal {
        figure: "ready/export",
        kernel: "running",
        value: 300e6,
        what: "`export`: from exec to attached",
    },
    Goal {
        figure: "1469 waiters/diagnose",
        kernel: "running",
        value: 60e6,
        what: "`diagnose` with 1,469 tasks that wait, besides the pause between its looks",
    },
    Goal {
        figure: "1469 waiters/survey",
        kernel: "running",
        value: 10e6,
        what: "a survey with 1,469 tasks that wait, everything loaded",
    },
    Goal {
        figure: "20000 waiters/survey",
        kernel: "running",
        value: 150e6,
        what: "a survey with 20,000 tasks that wait, everything loaded",
    },
    Goal {
        figure: "20000 waiters/survey, peak",
        kernel: "running",
        value: 60.0 * 1024.0 * 1024.0,
        what: "… and the most memory that it takes",
    },
    Goal {
        figure: "resident/watch",
        kernel: "6.12",
        value: 25.0 * 1024.0 * 1024.0,
        what: "`watch`: resident memory",
    },
    Goal {
        figure: "resident/watch --track-holds",
        kernel: "6.12",
        value: 25.0 * 1024.0 * 1024.0,
        what: "`watch --track-holds`: resident memory",
    },
    Goal {
        figure: "maps/watch",
        kernel: "6.12",
        value: 8e6,
        what: "`watch`: memory of its maps in the kernel",
    },
    Goal {
        figure: "release binary",
        kernel: "",
        value: 6.0 * 1024.0 * 1024.0,
        what: "size of the released binary",
    },
    Goal {
        figure: "source to detectors",
        kernel: "",
        value: 3e6,
        what: "events that one core takes from the source to the detectors",
    },
    Goal {
        figure: "of an event",
        kernel: "",
        // Tables that grow are all that is left: 74 times in three million events.
        value: 0.001,
        what: "how often an event asks for memory",
    },
    Goal {
        figure: "watch: lost",
        kernel: "running",
        value: 0.0,
        what: "lost by `watch` at the most waits that the machine makes",
    },
    Goal {
        figure: "export: lost",
        kernel: "running",
        value: 0.0,
        what: "lost by `export` at the most waits that the machine makes",
    },
    Goal {
        figure: "replayed, counted, by 2: waits",
        kernel: "running",
        value: 500_000.0,
        what: "waits replayed through the programs",
    },
    Goal {
        figure: "replayed, counted, by 2: lost",
        kernel: "running",
        value: 0.0,
        what: "… of which are lost",
    },
];

impl Goal {
    /// The goal with what was measured, as cells of a row.
    pub(crate) fn cells(&self, committed: &Committed) -> [String; 4] {
        let figure = committed
            .figures()
            .find(|figure| figure.name == self.figure && figure.kernel == self.kernel);
        let what = match self.kernel {
            "" => self.what.to_owned(),
            kernel => format!("{} ({kernel})", self.what),
        };
        match figure {
            None => [
                what,
                self.value.to_string(),
                "not measured".to_owned(),
                "–".to_owned(),
            ],
            Some(figure) => [
                what,
                Bound { goal: self, figure }.to_string(),
                figure.unit.tell(figure.value),
                if self.is_met_by(figure) { "✓" } else { "✗" }.to_owned(),
            ],
        }
    }

    fn is_met_by(&self, figure: &Figure) -> bool {
        if figure.unit.more_is_better() {
            figure.value >= self.value
        } else {
            figure.value <= self.value
        }
    }
}

struct Bound<'b> {
    goal: &'b Goal,
    figure: &'b Figure,
}

impl Display for Bound<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sign = if self.figure.unit.more_is_better() {
            '≥'
        } else {
            '≤'
        };
        write!(f, "{sign} {}", self.figure.unit.tell(self.goal.value))
    }
}
