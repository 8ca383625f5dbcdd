//! Which compiler builds the kernel objects.
//!
//! `core` has to be built for the BPF target, so it takes a rustc with the
//! standard library's source, a matching LLVM in `bpf-linker`, and leave to
//! use `-Zbuild-std`. A rustup nightly with `rust-src` is all that; where it
//! is missing, [`super::debian`] makes a private toolchain.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::debian;
use crate::process::{self, say};

/// Said whenever neither way leads to a toolchain.
const OUTSIDERS_WAY: &str = "on any system: `rustup toolchain install nightly \
    --component rust-src`, then `cargo install bpf-linker`";

/// Where to take the compiler from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    /// rustup's nightly if it is complete, else the private one
    #[default]
    Auto,
    /// rustup's nightly with rust-src, and the bpf-linker on PATH
    Rustup,
    /// the private one, made from Debian's packages on first use
    Private,
}

/// What made an object: enough to tell why two builds differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// First line of `rustc -vV`.
    pub(crate) rustc: String,
    /// Version of the LLVM in rustc, as `rustc -vV` gives it.
    pub(crate) llvm: String,
    /// What `bpf-linker --version` says.
    pub(crate) bpf_linker: String,
}

impl Identity {
    /// Runs the two programs: an unusable toolchain has no identity.
    pub(crate) fn of(rustc: &Path, bpf_linker: &Path) -> Result<Self> {
        let version = process::capture(Command::new(rustc).arg("-vV"))?;
        let linker = process::capture(Command::new(bpf_linker).arg("--version"))?;
        let llvm = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .with_context(|| format!("{} -vV names no LLVM version", rustc.display()))?;
        Ok(Self {
            rustc: version.lines().next().unwrap_or_default().to_owned(),
            llvm: llvm.to_owned(),
            bpf_linker: linker.trim().to_owned(),
        })
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            rustc,
            llvm,
            bpf_linker,
        } = self;
        write!(f, "{rustc}, LLVM {llvm}, {bpf_linker}")
    }
}

/// A compiler that can build the kernel objects.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// The compiler itself, no rustup proxy.
    pub(crate) rustc: PathBuf,
    /// The cargo to go with it; `None`: the one that runs us.
    pub(crate) cargo: Option<PathBuf>,
    /// Absolute path of bpf-linker.
    pub(crate) bpf_linker: PathBuf,
    /// Directory that holds the standard library's source below `lib/rustlib/src`.
    pub(crate) sysroot: PathBuf,
    /// What to write into the manifest.
    pub(crate) identity: Identity,
}

impl Toolchain {
    /// Finds or makes a toolchain.
    pub(crate) fn get(choice: Choice) -> Result<Self> {
        let rustup_lacks = match choice {
            Choice::Private => "not asked for".to_owned(),
            Choice::Auto | Choice::Rustup => match from_rustup() {
                Ok(toolchain) => return Ok(toolchain),
                Err(error) => format!("{error:#}"),
            },
        };
        let private_lacks = match choice {
            Choice::Rustup => "not asked for".to_owned(),
            Choice::Auto | Choice::Private => match debian::private_toolchain() {
                Ok(toolchain) => return Ok(toolchain),
                Err(error) => format!("{error:#}"),
            },
        };
        bail!(
            "no compiler for the kernel objects\n  rustup's: {rustup_lacks}\n  \
             private: {private_lacks}\n  remedy: {OUTSIDERS_WAY}"
        );
    }
}

/// A nightly of rustup that has rust-src; the error says what is missing.
fn from_rustup() -> Result<Toolchain> {
    let list = process::capture(Command::new("rustup").args(["toolchain", "list", "--quiet"]))
        .or_else(|_| process::capture(Command::new("rustup").args(["toolchain", "list"])))
        .context("rustup does not answer")?;
    let nightlies: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .collect();
    if nightlies.is_empty() {
        bail!("rustup has no nightly");
    }
    let complete = nightlies.iter().find_map(|name| {
        let rustc =
            process::capture(Command::new("rustup").args(["which", "--toolchain", name, "rustc"]))
                .ok()?;
        let rustc = PathBuf::from(rustc.trim());
        let sysroot = rustc.parent()?.parent()?.to_path_buf();
        has_core_source(&sysroot).then_some((rustc, sysroot))
    });
    let (rustc, sysroot) = complete
        .with_context(|| format!("{} is there, but without rust-src", nightlies.join(", ")))?;
    let bpf_linker = on_path("bpf-linker").context("bpf-linker is not on PATH")?;
    let identity = Identity::of(&rustc, &bpf_linker)?;
    let cargo = rustc.with_file_name("cargo");
    say(format_args!("compiler from rustup: {identity}"));
    Ok(Toolchain {
        cargo: cargo.exists().then_some(cargo),
        rustc,
        bpf_linker,
        sysroot,
        identity,
    })
}

/// Whether `core` can be built: the directory alone exists after a removed component too.
pub(crate) fn has_core_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .is_file()
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
