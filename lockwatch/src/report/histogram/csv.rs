//! Histograms as comma-separated values: a line for each bucket of each series.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use super::{Histograms, Label};
use crate::report::text::is_unprintable;

/// Writes a header and all buckets that are not empty. `share` is how much of its series is
/// that short or shorter, from 0 to 1.
///
/// # Errors
/// When `out` does.
pub fn write(out: &mut dyn Write, histograms: &Histograms) -> io::Result<()> {
    writeln!(
        out,
        "measure,class,kind,mode,caller,tag,from_ns,to_ns,count,sum_ns,share"
    )?;
    for series in &histograms.series {
        let label = label(&series.label)?;
        let mut counted = 0;
        for bucket in &series.buckets {
            counted += bucket.count;
            let share = counted as f64 / series.count as f64;
            writeln!(
                out,
                "{label},{},{},{},{},{share:.9}",
                bucket.from_ns.0, bucket.to_ns.0, bucket.count, bucket.sum_ns.0
            )?;
        }
    }
    Ok(())
}

fn label(label: &Label) -> io::Result<String> {
    let word = |value: serde_json::Result<serde_json::Value>| -> io::Result<String> {
        Ok(value?.as_str().unwrap_or_default().to_owned())
    };
    let fields = [
        word(serde_json::to_value(label.measure))?,
        label.class.clone().unwrap_or_default(),
        word(serde_json::to_value(label.kind))?,
        word(serde_json::to_value(label.mode))?,
        label.caller.clone().unwrap_or_default(),
        label.tag.clone().unwrap_or_default(),
    ];
    Ok(fields.map(|text| quoted(&text).into_owned()).join(","))
}

/// A field as it must be written.
fn quoted(text: &str) -> Cow<'_, str> {
    let text: Cow<'_, str> = if text.contains(is_unprintable) {
        text.replace(is_unprintable, "?").into()
    } else {
        text.into()
    };
    if text.contains([',', '"']) {
        return format!("\"{}\"", text.replace('"', "\"\"")).into();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::histogram::{By, Selection, example};

    #[test]
    fn by_example() {
        let selection = Selection {
            by: By::Caller,
            classes: vec!["cgroup_mutex".to_owned(), "unknown".to_owned()],
            ..Selection::default()
        };
        let mut out = Vec::new();
        write(&mut out, &Histograms::of(example::counted(), &selection)).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }

    #[test]
    fn what_would_be_two_fields_is_one() {
        assert_eq!(quoted("a,\"b\"\n"), "\"a,\"\"b\"\"?\"");
        assert_eq!(quoted("<slab>:x"), "<slab>:x");
    }
}
