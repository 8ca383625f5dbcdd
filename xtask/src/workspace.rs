//! Where things are: asked of cargo, never guessed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process;

/// The workspace this xtask belongs to.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Directory of the top `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, wherever the caller has put it.
    pub(crate) target: PathBuf,
    /// Names of all integration-test targets (`tests/*.rs` of every package), sorted.
    pub(crate) test_targets: Vec<String>,
}

impl Workspace {
    /// Asks `cargo metadata`; runs no resolver, so it needs no network.
    pub(crate) fn load() -> Result<Self> {
        let here = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let mut metadata = cargo();
        metadata.current_dir(&here);
        metadata.args(["metadata", "--format-version=1", "--no-deps"]);
        let text = process::capture(&mut metadata)?;
        let json: Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
        let path = |key: &str| {
            json[key]
                .as_str()
                .map(PathBuf::from)
                .with_context(|| format!("cargo metadata has no {key}"))
        };
        Ok(Self {
            root: path("workspace_root")?,
            target: path("target_directory")?,
            test_targets: test_targets(&json),
        })
    }

    /// Where a release binary of the workspace is built.
    pub(crate) fn release_binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// `path` without the workspace root, for messages.
    pub(crate) fn display<'p>(&self, path: &'p Path) -> std::path::Display<'p> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

/// The cargo that runs us, without the variables it sets for its own children.
pub(crate) fn cargo() -> Command {
    cargo_or(None)
}

/// The given cargo, or the one that runs us, in the same environment.
pub(crate) fn cargo_or(other: Option<&Path>) -> Command {
    let program = other.map_or_else(
        || std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        |path| path.as_os_str().to_owned(),
    );
    let mut command = Command::new(program);
    // `cargo run` describes xtask in these; a build script that watches them
    // would otherwise be run again at every change between caller and callee.
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    command
}

fn test_targets(metadata: &Value) -> Vec<String> {
    let empty = Vec::new();
    let array = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> = metadata["packages"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .flat_map(|package| array(&package["targets"]))
        .filter(|target| array(&target["kind"]).iter().any(|kind| kind == "test"))
        .filter_map(|target| target["name"].as_str().map(String::from))
        .collect();
    names.sort();
    names
}
