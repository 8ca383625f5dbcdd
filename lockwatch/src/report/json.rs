//! Reports as JSON: the contracts `lockwatch.report/1` and `lockwatch.check/1`.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::{Report, check::Check, text::is_unprintable};

/// Writes the report, indented, with a line feed at the end.
///
/// # Errors
/// When `out` does.
pub fn write_report(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    write_pretty(out, report)
}

/// Writes what `check` found, as [`write_report`] does.
///
/// # Errors
/// When `out` does.
pub fn write_check(out: &mut dyn Write, check: &Check) -> io::Result<()> {
    write_pretty(out, check)
}

/// Writes any value the way reports are written.
///
/// # Errors
/// When `out` does.
pub(crate) fn write_pretty<T: Serialize>(out: &mut dyn Write, value: &T) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(
        &mut *out,
        TerminalSafe(PrettyFormatter::new()),
    ))?;
    out.write_all(b"\n")
}

/// Writes a value as one line, for streams of values.
///
/// # Errors
/// When `out` does.
pub fn write_line<T: Serialize>(out: &mut dyn Write, value: &T) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(
        &mut *out,
        TerminalSafe(serde_json::ser::CompactFormatter),
    ))?;
    out.write_all(b"\n")
}

/// Escapes what JSON allows but a terminal may obey (C1 controls, text direction), so
/// that a hostile task name can be looked at with `cat`.
struct TerminalSafe<F>(F);

impl<F: Formatter> Formatter for TerminalSafe<F> {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(is_unprintable) {
            let (plain, from) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut chars = from.chars();
            if let Some(c) = chars.next() {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn the_contract_by_example() {
        let survey = example::write_held_directory();
        let mut report = example::report(&survey, example::SEC);
        report.lockwatch = "0.0.0";
        let mut out = Vec::new();
        write_report(&mut out, &report).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }

    #[test]
    fn lockups_by_example() {
        for (name, survey) in [
            ("soft", example::soft_lockup_in_softirq()),
            ("hard", example::hard_lockup()),
        ] {
            let report = example::report(&survey, example::SEC);
            let lockups = serde_json::to_value(&report.lockups).unwrap();
            let text = serde_json::to_string_pretty(&lockups).unwrap();
            insta::assert_snapshot!(format!("lockups_by_example_{name}"), text);
        }
    }

    #[test]
    fn earlier_holds_by_example() {
        let report = example::report(&example::held_before(), example::SEC);
        let holds = serde_json::to_value(&report.locks[0].recent_holds).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&holds).unwrap());
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_still_the_same_text() {
        let name = "a\u{9b}31m\u{202e}\u{7f}\x1b[0m ü";
        let mut out = Vec::new();
        write_line(&mut out, &name).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "\"a\\u009b31m\\u202e\\u007f\\u001b[0m ü\"\n");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), name);
    }
}
