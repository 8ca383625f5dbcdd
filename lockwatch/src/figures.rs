//! Figures as a person reads them at night: `6m12s`, `1,469 tasks`.

use std::fmt;

use crate::task::Nanos;

/// A span of time in the two units that matter: `350ms`, `3.2s`, `6m12s`, `2h03m`, `4d01h`.
///
/// Cut off, never rounded up: what is shown has really passed.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub Nanos);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Nanos(ns) = self.0;
        let (micros, millis, secs) = (ns / 1_000, ns / 1_000_000, ns / 1_000_000_000);
        let (minutes, hours, days) = (secs / 60, secs / 3_600, secs / 86_400);
        let text = if ns == 0 {
            "0s".to_owned()
        } else if millis == 0 {
            format!("{micros}µs")
        } else if secs == 0 {
            format!("{millis}ms")
        } else if secs < 10 && millis % 1_000 >= 100 {
            format!("{secs}.{}s", millis % 1_000 / 100)
        } else if minutes == 0 {
            format!("{secs}s")
        } else if hours == 0 {
            format!("{minutes}m{:02}s", secs % 60)
        } else if days == 0 {
            format!("{hours}h{:02}m", minutes % 60)
        } else {
            format!("{days}d{:02}h", hours % 24)
        };
        f.pad(&text)
    }
}

/// A time to two digits: `850ns`, `1.2ms`, `12ms`, `3.2s`; from a minute on as [`Span`].
///
/// Cut off, never rounded up.
#[derive(Clone, Copy, Debug)]
pub struct Brief(pub Nanos);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MINUTE: u64 = 60_000_000_000;
        let Nanos(ns) = self.0;
        let (unit, name) = match ns {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            1_000_000..1_000_000_000 => (1_000_000, "ms"),
            1_000_000_000..MINUTE => (1_000_000_000, "s"),
            _ => return Span(self.0).fmt(f),
        };
        let (whole, tenth) = (ns / unit, ns % unit * 10 / unit);
        let text = if whole < 10 && tenth > 0 {
            format!("{whole}.{tenth}{name}")
        } else {
            format!("{whole}{name}")
        };
        f.pad(&text)
    }
}

/// A number with thousands separators: `1,469`.
#[derive(Clone, Copy, Debug)]
pub struct Count(pub u64);

impl Count {
    /// Of something that is already in memory.
    pub fn of(len: usize) -> Self {
        Self(len as u64)
    }

    /// With its noun in the right number: `1 task`, `1,469 tasks`.
    pub fn nouns(self, one: &str, many: &str) -> String {
        format!("{self} {}", if self.0 == 1 { one } else { many })
    }
}

impl From<u32> for Count {
    fn from(count: u32) -> Self {
        Self(count.into())
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() + digits.len() / 3);
        for (place, digit) in digits.chars().enumerate() {
            if place != 0 && (digits.len() - place).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_two_units() {
        const SEC: u64 = 1_000_000_000;
        for (ns, text) in [
            (0, "0s"),
            (900, "0µs"),
            (850_000, "850µs"),
            (350_000_000, "350ms"),
            (999_999_999, "999ms"),
            (SEC, "1s"),
            (SEC + 49_000_000, "1s"),
            (3 * SEC + 250_000_000, "3.2s"),
            (59 * SEC + 999_999_999, "59s"),
            (372 * SEC, "6m12s"),
            (60 * SEC, "1m00s"),
            (7_380 * SEC, "2h03m"),
            (97 * 3_600 * SEC, "4d01h"),
        ] {
            assert_eq!(Span(Nanos(ns)).to_string(), text, "{ns} ns");
        }
    }

    #[test]
    fn brief_times_show_two_digits() {
        for (ns, text) in [
            (0, "0ns"),
            (9, "9ns"),
            (850, "850ns"),
            (1_000, "1µs"),
            (1_299, "1.2µs"),
            (12_900, "12µs"),
            (999_999, "999µs"),
            (1_200_000, "1.2ms"),
            (3_250_000_000, "3.2s"),
            (59_999_999_999, "59s"),
            (60_000_000_000, "1m00s"),
        ] {
            assert_eq!(Brief(Nanos(ns)).to_string(), text, "{ns} ns");
        }
        assert_eq!(format!("{:>6}", Brief(Nanos(1_500))), " 1.5µs");
    }

    #[test]
    fn counts_have_thousands_separators() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1_469, "1,469"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(Count(count).to_string(), text);
        }
        assert_eq!(Count(1).nouns("task", "tasks"), "1 task");
        assert_eq!(Count(0).nouns("task", "tasks"), "0 tasks");
    }
}
