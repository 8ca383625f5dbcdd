//! The metrics there are. docs/opentelemetry.md has this table, held against it by a test.

/// What kind of metric it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A distribution, from the start of the run on.
    ExponentialHistogram,
    /// A sum from the start of the run on, which only grows.
    Counter,
    /// A sum of now, which can be added up over hosts.
    UpDownCounter,
    /// A value of now, which cannot be added up.
    Gauge,
}

impl Kind {
    /// What the specification calls it.
    pub const fn words(self) -> &'static str {
        match self {
            Self::ExponentialHistogram => "exponential histogram",
            Self::Counter => "counter",
            Self::UpDownCounter => "up-down counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Instrument {
    /// Its name. What Prometheus makes of it, with the unit, is what the metric is called
    /// where Prometheus fetches it, docs/prometheus.md.
    pub name: &'static str,
    /// What kind it is.
    pub kind: Kind,
    /// Its unit, in UCUM.
    pub unit: &'static str,
    /// What its series are told apart by.
    pub attributes: &'static [&'static str],
    /// What it is.
    pub description: &'static str,
}

const SERIES: &[&str] = &["class", "kind", "mode", "caller"];

pub(super) static WAIT: Instrument = Instrument {
    name: "lockwatch.lock.wait",
    kind: Kind::ExponentialHistogram,
    unit: "s",
    attributes: SERIES,
    description: "How long tasks waited for locks that they found taken.",
};

pub(super) static HOLD: Instrument = Instrument {
    name: "lockwatch.lock.hold",
    kind: Kind::ExponentialHistogram,
    unit: "s",
    attributes: SERIES,
    description: "How long tasks held locks, where holds are tracked.",
};

pub(super) static UNCOUNTED: Instrument = Instrument {
    name: "lockwatch.uncounted",
    kind: Kind::Counter,
    unit: "{time}",
    attributes: &["measure"],
    description: "Waits and holds that are in no histogram, as the map of counts was full.",
};

pub(super) static STALLS: Instrument = Instrument {
    name: "lockwatch.stalls",
    kind: Kind::Counter,
    unit: "{stall}",
    attributes: &[],
    description: "Locks that tasks waited for longer than the threshold, those that stand included.",
};

pub(super) static STALLS_STANDING: Instrument = Instrument {
    name: "lockwatch.stalls_standing",
    kind: Kind::UpDownCounter,
    unit: "{stall}",
    attributes: &[],
    description: "Locks that tasks are waiting for longer than the threshold.",
};

pub(super) static LONGEST_STANDING: Instrument = Instrument {
    name: "lockwatch.stall.longest_standing",
    kind: Kind::Gauge,
    unit: "s",
    attributes: &[],
    description: "The longest wait so far in the stalls that stand; 0 if none does.",
};

pub(super) static LONGEST: Instrument = Instrument {
    name: "lockwatch.stall.longest",
    kind: Kind::Gauge,
    unit: "s",
    attributes: &[],
    description: "The longest wait in any stall of the run.",
};

pub(super) static THRESHOLD: Instrument = Instrument {
    name: "lockwatch.stall.threshold",
    kind: Kind::Gauge,
    unit: "s",
    attributes: &[],
    description: "How long a wait has to be for a stall.",
};

pub(super) static BLOCKED_TASKS: Instrument = Instrument {
    name: "lockwatch.blocked_tasks",
    kind: Kind::UpDownCounter,
    unit: "{task}",
    attributes: &[],
    description: "Tasks that wait in the stalls that stand.",
};

pub(super) static ROOT_BLOCKED_TASKS: Instrument = Instrument {
    name: "lockwatch.root.blocked_tasks",
    kind: Kind::UpDownCounter,
    unit: "{task}",
    attributes: &["class", "stuck", "comm"],
    description: "Tasks that wait, through any number of locks, for tasks of this name.",
};

pub(super) static HANGS: Instrument = Instrument {
    name: "lockwatch.hangs",
    kind: Kind::Counter,
    unit: "{finding}",
    attributes: &["detector"],
    description: "Findings of hanging tasks and CPUs, those that stand included.",
};

pub(super) static HANGS_STANDING: Instrument = Instrument {
    name: "lockwatch.hangs_standing",
    kind: Kind::UpDownCounter,
    unit: "{finding}",
    attributes: &["detector"],
    description: "Findings of hanging tasks and CPUs that stand.",
};

pub(super) static LOST: Instrument = Instrument {
    name: "lockwatch.lost",
    kind: Kind::Counter,
    unit: "{event}",
    attributes: &["kind"],
    description: "What could not be sent, kept or read.",
};

pub(super) static CPU: Instrument = Instrument {
    name: "lockwatch.cpu",
    kind: Kind::Counter,
    unit: "s",
    attributes: &[],
    description: "CPU time of lockwatch itself.",
};

pub(super) static RESIDENT: Instrument = Instrument {
    name: "lockwatch.resident_memory",
    kind: Kind::UpDownCounter,
    unit: "By",
    attributes: &[],
    description: "Resident memory of lockwatch itself.",
};

pub(super) static MAPS: Instrument = Instrument {
    name: "lockwatch.map_memory",
    kind: Kind::UpDownCounter,
    unit: "By",
    attributes: &[],
    description: "Memory of lockwatch's maps in the kernel.",
};

pub(super) static START: Instrument = Instrument {
    name: "lockwatch.start_time",
    kind: Kind::Gauge,
    unit: "s",
    attributes: &[],
    description: "When the run began, since the Unix epoch.",
};

/// All of them, in the order in which they are sent.
pub static INSTRUMENTS: [&Instrument; 17] = [
    &WAIT,
    &HOLD,
    &UNCOUNTED,
    &STALLS,
    &STALLS_STANDING,
    &LONGEST_STANDING,
    &LONGEST,
    &THRESHOLD,
    &BLOCKED_TASKS,
    &ROOT_BLOCKED_TASKS,
    &HANGS,
    &HANGS_STANDING,
    &LOST,
    &CPU,
    &RESIDENT,
    &MAPS,
    &START,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// By the rules of OpenTelemetry's specification (compatibility/prometheus), as far as
    /// the units and kinds go that are used here. `cargo xtask otlp` holds the same column
    /// against a real Prometheus.
    fn in_prometheus(instrument: &Instrument) -> String {
        let unit = match instrument.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            annotation => {
                assert!(annotation.starts_with('{'), "{annotation}");
                ""
            }
        };
        let suffix = match instrument.kind {
            Kind::Counter => "_total",
            _ => "",
        };
        format!("{}{unit}{suffix}", instrument.name.replace('.', "_"))
    }

    #[test]
    fn the_docs_tell_of_every_metric() {
        let docs = include_str!("../../../../docs/opentelemetry.md");
        let written: Vec<&str> = docs
            .lines()
            .filter(|line| line.starts_with("| `lockwatch."))
            .collect();
        let row = |instrument: &&Instrument| {
            let attributes = instrument.attributes.iter();
            let attributes: Vec<String> = attributes.map(|name| format!("`{name}`")).collect();
            format!(
                "| `{}` | `{}` | {} | `{}` | {} | {} |",
                instrument.name,
                in_prometheus(instrument),
                instrument.kind.words(),
                instrument.unit,
                attributes.join(", "),
                instrument.description
            )
        };
        let expected: Vec<String> = INSTRUMENTS.iter().map(row).collect();
        assert_eq!(
            written,
            expected,
            "the table should be\n{}",
            expected.join("\n")
        );
    }

    /// Whoever has both needs one dashboard.
    #[test]
    fn names_are_those_that_prometheus_fetches() {
        let docs = include_str!("../../../../docs/prometheus.md");
        for instrument in INSTRUMENTS {
            let row = format!("| `{}` |", in_prometheus(instrument));
            assert!(docs.contains(&row), "docs/prometheus.md has no {row}");
        }
    }
}
