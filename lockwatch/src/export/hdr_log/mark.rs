//! What lockwatch says in comments of a log, beside what the format itself has.

use std::{fmt, time::Duration};

use crate::{latency::CountsLost, report::text::is_unprintable};

/// A comment of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Where it was counted; a merged log has several.
    Host(String),
    /// An interval, before its lines.
    Interval(Interval),
}

/// What is true of all lines of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    /// Unix time of its begin.
    pub(super) start: Duration,
    /// From there on.
    pub(super) length: Duration,
    /// Lines it has; an interval with fewer was cut off.
    pub(super) series: u64,
    /// What was lost in it.
    pub(super) lost: CountsLost,
}

/// As a comment without its `#`.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => {
                let shown = |c| if is_unprintable(c) { '?' } else { c };
                write!(f, "[Host: {}]", name.chars().map(shown).collect::<String>())
            }
            Self::Interval(interval) => write!(
                f,
                "[Interval: {:.3} {:.3} series={} lost_waits={} lost_holds={}]",
                interval.start.as_secs_f64(),
                interval.length.as_secs_f64(),
                interval.series,
                interval.lost.waits,
                interval.lost.holds,
            ),
        }
    }
}

impl Mark {
    /// Of a line of a log; none if it is no comment of ours.
    pub(super) fn of_line(line: &str) -> Option<Self> {
        let inner = line.strip_prefix("#[")?.strip_suffix(']')?;
        if let Some(name) = inner.strip_prefix("Host: ") {
            return Some(Self::Host(name.to_owned()));
        }
        let mut fields = inner.strip_prefix("Interval: ")?.split(' ');
        let mut field = |name: &str| fields.next()?.strip_prefix(name);
        let time = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok();
        Some(Self::Interval(Interval {
            start: time(field("")?)?,
            length: time(field("")?)?,
            series: field("series=")?.parse().ok()?,
            lost: CountsLost {
                waits: field("lost_waits=")?.parse().ok()?,
                holds: field("lost_holds=")?.parse().ok()?,
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let interval = Mark::Interval(Interval {
            start: Duration::from_millis(1_764_135_369_123),
            length: Duration::from_millis(10_002),
            series: 5,
            lost: CountsLost { waits: 3, holds: 0 },
        });
        let text =
            "#[Interval: 1764135369.123 10.002 series=5 lost_waits=3 lost_holds=0]".to_owned();
        assert_eq!(format!("#{interval}"), text);
        let Some(Mark::Interval(read)) = Mark::of_line(&text) else {
            panic!("not read");
        };
        assert_eq!(format!("#{}", Mark::Interval(read)), text);
        let host = Mark::Host("we\nb1".to_owned());
        assert_eq!(
            Mark::of_line(&format!("#{host}")),
            Some(Mark::Host("we?b1".to_owned()))
        );
    }

    #[test]
    fn comments_of_others_are_none() {
        for line in [
            "",
            "#",
            "#[Host]",
            "#[Interval: 1 2]",
            "#[Interval: -1.0 2.0 series=1 lost_waits=0 lost_holds=0]",
            "#[StartTime: 1.000 (seconds since epoch)]",
        ] {
            assert_eq!(Mark::of_line(line), None, "{line}");
        }
    }
}
