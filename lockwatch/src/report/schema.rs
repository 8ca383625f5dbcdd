//! The JSON Schemas of the contracts, generated from the types.

use std::io::{self, Write};

use super::{Report, check::Check, histogram::Histograms, json, recordings::Recordings};

/// Writes the schema as it is kept in docs/schema/.
///
/// # Errors
/// When `out` does.
pub fn write(out: &mut dyn Write) -> io::Result<()> {
    let mut schema = schemars::schema_for!(Report);
    schema.insert("title".to_owned(), super::CONTRACT.into());
    json::write_pretty(out, &schema)
}

/// As [`write()`], for the contract of `check`.
///
/// # Errors
/// When `out` does.
pub fn write_check(out: &mut dyn Write) -> io::Result<()> {
    let mut schema = schemars::schema_for!(Check);
    schema.insert("title".to_owned(), super::check::CONTRACT.into());
    json::write_pretty(out, &schema)
}

/// As [`write()`], for the contract of `histogram`.
///
/// # Errors
/// When `out` does.
pub fn write_histogram(out: &mut dyn Write) -> io::Result<()> {
    let mut schema = schemars::schema_for!(Histograms);
    schema.insert("title".to_owned(), super::histogram::CONTRACT.into());
    json::write_pretty(out, &schema)
}

/// As [`write()`], for the contract of `report` over many recordings.
///
/// # Errors
/// When `out` does.
pub fn write_recordings(out: &mut dyn Write) -> io::Result<()> {
    let mut schema = schemars::schema_for!(Recordings);
    schema.insert("title".to_owned(), super::recordings::CONTRACT.into());
    json::write_pretty(out, &schema)
}

/// Holds a schema that is generated from types against the one in docs/schema/ and the
/// pages that explain it.
#[cfg(test)]
pub(crate) mod committed {
    use std::{collections::BTreeSet, env, fs, path::PathBuf};

    use serde_json::Value;

    /// `UPDATE_SCHEMA=1` in the environment rewrites the file instead.
    pub(crate) fn check(contract: &str, pages: &[&str], generated: &str) {
        let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let path = docs.join(format!("schema/{}.json", contract.replace('/', ".")));
        if env::var_os("UPDATE_SCHEMA").is_some_and(|value| value == "1") {
            fs::write(&path, generated).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == generated,
            "{} is not what the types say; run the tests with UPDATE_SCHEMA=1",
            path.display()
        );

        let text: String = pages
            .iter()
            .map(|page| fs::read_to_string(docs.join(page)).unwrap())
            .collect();
        let mut found = BTreeSet::new();
        words(&serde_json::from_str(generated).unwrap(), &mut found);
        let missing: Vec<&String> = found
            .iter()
            .filter(|word| !text.contains(&format!("`{word}`")))
            .collect();
        assert!(missing.is_empty(), "docs/{pages:?} lack {missing:?}");
    }

    /// Names of all properties and all values of enumerations.
    fn words(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match (key.as_str(), value) {
                        ("properties", Value::Object(properties)) => {
                            found.extend(properties.keys().cloned());
                        }
                        ("const", Value::String(word)) => {
                            found.insert(word.clone());
                        }
                        ("enum", Value::Array(all)) => {
                            found.extend(all.iter().filter_map(Value::as_str).map(str::to_owned));
                        }
                        _ => {}
                    }
                    words(value, found);
                }
            }
            Value::Array(all) => all.iter().for_each(|value| words(value, found)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_schemas_and_pages_are_those_of_the_types() {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        committed::check(
            crate::report::CONTRACT,
            &["report.md"],
            &String::from_utf8(out).unwrap(),
        );
        let mut out = Vec::new();
        write_check(&mut out).unwrap();
        committed::check(
            crate::report::check::CONTRACT,
            &["check.md"],
            &String::from_utf8(out).unwrap(),
        );
        let mut out = Vec::new();
        write_histogram(&mut out).unwrap();
        committed::check(
            crate::report::histogram::CONTRACT,
            &["histograms.md"],
            &String::from_utf8(out).unwrap(),
        );
        let mut out = Vec::new();
        write_recordings(&mut out).unwrap();
        committed::check(
            crate::report::recordings::CONTRACT,
            &["recording.md", "report.md"],
            &String::from_utf8(out).unwrap(),
        );
    }
}
