//! The JSON Schema of the contract, generated from the types.

use std::io::{self, Write};

use super::{Report, json};

/// Writes the schema as it is kept in docs/schema/.
///
/// # Errors
/// When `out` does.
pub fn write(out: &mut dyn Write) -> io::Result<()> {
    let mut schema = schemars::schema_for!(Report);
    schema.insert("title".to_owned(), super::CONTRACT.into());
    json::write_pretty(out, &schema)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, env, fs, path::PathBuf};

    use serde_json::Value;

    use super::*;

    fn docs() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs")
    }

    fn generated() -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let path = docs().join("schema/lockwatch.report.1.json");
        if env::var_os("UPDATE_SCHEMA").is_some_and(|value| value == "1") {
            fs::write(&path, generated()).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == generated(),
            "{} is not what the types say; run the tests with UPDATE_SCHEMA=1",
            path.display()
        );
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

    #[test]
    fn the_page_explains_every_word_of_the_schema() {
        let page = fs::read_to_string(docs().join("report.md")).unwrap();
        let mut found = BTreeSet::new();
        words(&serde_json::from_str(&generated()).unwrap(), &mut found);
        let missing: Vec<&String> = found
            .iter()
            .filter(|word| !page.contains(&format!("`{word}`")))
            .collect();
        assert!(missing.is_empty(), "docs/report.md lacks {missing:?}");
    }
}
