//! `cargo xtask ebpf`: from `lockwatch-ebpf/` to the objects that lockwatch embeds.

mod btf;
mod build;
mod compare;
mod debian;
mod elf;
mod manifest;
mod strip;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use self::manifest::Manifest;
use self::toolchain::{Choice, Toolchain};
use crate::process::say;
use crate::workspace::Workspace;

/// The bins of lockwatch-ebpf; each one becomes an object.
const OBJECTS: [&str; 9] = [
    "survey",
    "stream",
    "holds",
    "holds_by_tid",
    "beats",
    "edge",
    "acquisitions",
    "tally",
    "floor",
];

/// Those that only the live tests, the learner and the bench load.
const TEST_OBJECTS: [&str; 4] = ["edge", "acquisitions", "tally", "floor"];

/// More than these say nothing new.
const DIFFERENCES_SHOWN: usize = 20;

/// Build the kernel objects that lockwatch embeds, or check the committed ones.
///
/// Compiles lockwatch-ebpf/ for the BPF target and writes one .bpf.o for each of its
/// bins and manifest.json to lockwatch/src/probes/object/. Commit them together with
/// the change of the source.
///
/// The compiler: a rustup nightly with rust-src and a bpf-linker on PATH, where
/// both are there; else a private one, made on first use from Debian's packages
/// in $LOCKWATCH_CACHE, $XDG_CACHE_HOME/lockwatch or ~/.cache/lockwatch. Nothing
/// is installed into the system.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if the committed objects are not what the sources give
    #[arg(long)]
    check: bool,
    /// With --check: compare hashes only, which needs no compiler
    #[arg(long, requires = "check")]
    no_rebuild: bool,
    /// Write nothing; run clippy on the code that only the BPF target compiles
    #[arg(long, conflicts_with = "check")]
    clippy: bool,
    /// Where to take the compiler from
    #[arg(long, value_enum, default_value_t)]
    toolchain: Choice,
}

/// Builds or checks, as asked.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::load()?;
    if args.check {
        return check(&workspace, args);
    }
    let toolchain = Toolchain::get(args.toolchain)?;
    if args.clippy {
        return build::clippy(&workspace, &toolchain);
    }
    // Before the build: a source edited meanwhile must make the object stale.
    let sources = manifest::source_hash(&workspace.root)?;
    let objects = build_stripped(&workspace, &toolchain)?;
    let manifest = Manifest::new(sources, &toolchain.identity, &objects)?;
    for (name, bytes) in OBJECTS.iter().zip(&objects) {
        let path = object_path(&workspace.root, name);
        let directory = path.parent().context("an object has no folder")?;
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        replace(&path, bytes)?;
        let instructions: u64 = manifest.objects[*name].instructions.values().sum();
        say(format_args!(
            "{}: {} bytes, {instructions} instructions",
            workspace.display(&path),
            bytes.len()
        ));
    }
    // Last: an interrupted run leaves objects that the old manifest disowns.
    replace(
        &manifest_path(&workspace.root),
        manifest.to_text()?.as_bytes(),
    )
}

/// Compares the committed objects with the sources: by hash, then by building them anew.
fn check(workspace: &Workspace, args: &Args) -> Result<()> {
    let recorded = Manifest::read(&manifest_path(&workspace.root))?;
    recorded.check_files(&workspace.root)?;
    say("the objects belong to these sources, as the manifest records");
    if args.no_rebuild {
        return Ok(());
    }
    let toolchain = Toolchain::get(args.toolchain)?;
    let rebuilt = build_stripped(workspace, &toolchain)?;
    let mut found = Vec::new();
    for (name, bytes) in OBJECTS.iter().zip(&rebuilt) {
        let path = object_path(&workspace.root, name);
        let committed =
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let differences = compare::differences(&committed, bytes)
            .with_context(|| format!("cannot compare {name}"))?;
        if differences.is_empty() {
            let how = if committed == *bytes {
                "to the byte"
            } else {
                "in all that reaches the kernel"
            };
            say(format_args!(
                "{name}: the committed object and a rebuild are equal {how}"
            ));
        }
        found.extend(
            differences
                .into_iter()
                .map(|line| format!("{name}: {line}")),
        );
    }
    let other = (toolchain.identity != recorded.toolchain).then(|| {
        format!(
            "the objects were built by {}; here is {}",
            recorded.toolchain, toolchain.identity
        )
    });
    if found.is_empty() {
        if let Some(other) = other {
            say(format_args!("note: {other}"));
        }
        return Ok(());
    }
    let remedy = other.map_or_else(
        || "the toolchain is the recorded one: `cargo xtask ebpf` makes the object anew".to_owned(),
        |other| format!("{other}: `cargo xtask ebpf` refreshes the objects and their manifest"),
    );
    let shown = found
        .iter()
        .take(DIFFERENCES_SHOWN)
        .cloned()
        .collect::<Vec<_>>();
    bail!(
        "a rebuild gives other objects, {} differences:\n  {}\n{remedy}",
        found.len(),
        shown.join("\n  ")
    );
}

fn build_stripped(workspace: &Workspace, toolchain: &Toolchain) -> Result<Vec<Vec<u8>>> {
    build::objects(workspace, toolchain)?
        .iter()
        .zip(OBJECTS)
        .map(|(linked, name)| {
            let stripped = strip::strip(linked).with_context(|| format!("object {name}"))?;
            for section in elf::Object::parse(&stripped)?.runaway_programs() {
                say(format_args!(
                    "warning: {name}: no kernel will load a program of section {section}: it \
                     ends in a call, which is how a panic is compiled (an index that is not \
                     masked, an unwrap, a division)"
                ));
            }
            say(format_args!(
                "{name}: {} bytes linked, {} stripped",
                linked.len(),
                stripped.len()
            ));
            Ok(stripped)
        })
        .collect()
}

/// Names of the programs in an object.
pub(crate) fn program_names(object: &[u8]) -> Result<Vec<String>> {
    let object = elf::Object::parse(object)?;
    let is_program = |symbol: &&elf::Symbol| {
        // Functions that programs call are in .text, rarely called ones in .text.unlikely.
        !symbol.section.starts_with(".text") && object.programs.contains_key(&symbol.section)
    };
    Ok(object
        .symbols
        .iter()
        .filter(is_program)
        .map(|symbol| symbol.name.clone())
        .collect())
}

/// Where the objects and their manifest are kept.
pub(crate) fn object_directory(root: &Path) -> PathBuf {
    root.join("lockwatch/src/probes/object")
}

fn object_path(root: &Path, name: &str) -> PathBuf {
    let directory = if TEST_OBJECTS.contains(&name) {
        root.join("tests/object")
    } else {
        object_directory(root)
    };
    directory.join(format!("{name}.bpf.o"))
}

fn manifest_path(root: &Path) -> PathBuf {
    object_directory(root).join("manifest.json")
}

/// Writes a whole file or nothing: a build of lockwatch may be reading it.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let new = path.with_extension("new");
    fs::write(&new, content)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
