//! What dashboards and rules ask for.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The folder `docs` of the tree.
pub(crate) fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// The dashboard.
pub(crate) fn dashboard() -> Result<Value> {
    let text = fs::read_to_string(docs().join("grafana/lockwatch.json"))?;
    serde_json::from_str(&text).context("the dashboard is not JSON")
}

/// The expressions of a dashboard's panels, with its variables filled in.
pub(crate) fn expressions(dashboard: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect(dashboard, &mut found);
    found
        .into_iter()
        .map(|expression| {
            expression
                .replace("$__rate_interval", "1m")
                .replace("$__range", "1m")
                .replace("$instance", ".*")
                .replace("$class", ".*")
        })
        .collect()
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "expr" => found.push(text.clone()),
                    _ => collect(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

/// The names of metrics in a text: words that begin as all of ours do. What a rule records
/// has a colon before it.
pub(crate) fn names(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !(letter.is_ascii_alphanumeric() || "_:".contains(letter)))
        .filter(|word| word.starts_with("lockwatch_"))
        .collect()
}
