//! Running cargo for the BPF target.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::OBJECTS;
use super::toolchain::Toolchain;
use crate::process::{self, say};
use crate::workspace::{self, Workspace};

const TARGET: &str = "bpfel-unknown-none";

/// What the compiler is told; part of the source hash, for it decides the result too.
///
/// v3: atomics that return a value, 32-bit jumps; every kernel since 5.1 has it.
/// BTF is made from debug info, so that has to be full.
pub(crate) const FLAGS: [&str; 3] = ["-Ctarget-cpu=v3", "-Cdebuginfo=2", "-Clink-arg=--btf"];

/// The profile, whole, so that the workspace's own can change without a new object.
pub(crate) const PROFILE: [(&str, &str); 9] = [
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "false"),
    ("CARGO_PROFILE_RELEASE_LTO", "thin"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "none"),
];

/// Builds all objects and returns their linked, unstripped bytes in the order of [`OBJECTS`].
pub(crate) fn objects(workspace: &Workspace, toolchain: &Toolchain) -> Result<Vec<Vec<u8>>> {
    let mut command = cargo("build", workspace, toolchain);
    say("building the kernel objects (a minute when core is built too) …");
    process::run(&mut command).context("the kernel objects do not build")?;
    OBJECTS
        .iter()
        .map(|name| {
            let path = target(workspace).join(TARGET).join("release").join(name);
            fs::read(&path).with_context(|| format!("cargo built no {}", path.display()))
        })
        .collect()
}

/// Lints what only the BPF target compiles; `cargo clippy` sees the host's half.
pub(crate) fn clippy(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let driver = toolchain.rustc.with_file_name("clippy-driver");
    if !driver.is_file() {
        bail!(
            "no {}: run `rustup component add clippy` for that toolchain, or use \
             `--toolchain private`",
            driver.display()
        );
    }
    let mut command = cargo("check", workspace, toolchain);
    // What cargo-clippy does; the one of the host would run the host's driver.
    command.env("RUSTC_WORKSPACE_WRAPPER", driver).env(
        "CLIPPY_ARGS",
        "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__",
    );
    say("clippy for the BPF target …");
    process::run(&mut command).context("clippy for the BPF target")
}

/// A directory apart from the host's: another compiler must not invalidate its files.
fn target(workspace: &Workspace) -> PathBuf {
    workspace.target.join("ebpf")
}

fn cargo(verb: &str, workspace: &Workspace, toolchain: &Toolchain) -> Command {
    let mut command = workspace::cargo_or(toolchain.cargo.as_deref());
    for name in [
        "CARGO_BUILD_TARGET",
        "LD_LIBRARY_PATH",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    command
        .current_dir(&workspace.root)
        .args([
            verb,
            "--release",
            "--locked",
            "--package",
            "lockwatch-ebpf",
            "--bins",
        ])
        .args(["--target", TARGET, "-Zbuild-std=core"])
        .env("CARGO_TARGET_DIR", target(workspace))
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(workspace, toolchain))
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .envs(PROFILE);
    command
}

/// All flags, in cargo's encoding, which allows spaces inside a flag.
fn rustflags(workspace: &Workspace, toolchain: &Toolchain) -> String {
    let mut flags: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
    flags.push(format!(
        "--cfg=bpf_target_arch=\"{}\"",
        std::env::consts::ARCH
    ));
    flags.push(format!("-Clinker={}", toolchain.bpf_linker.display()));
    // Line tables and panic messages name files: relative to the workspace, so
    // that the linker finds our own to quote from, and no one's home elsewhere.
    let mut remap = |from: &Path, to: &str| {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    };
    remap(&workspace.root, ".");
    remap(&toolchain.sysroot.join("lib/rustlib/src/rust"), "rust");
    for registry in registries() {
        remap(&registry, "crates");
    }
    flags.join("\u{1f}")
}

/// Where cargo unpacks crates: one directory per registry.
fn registries() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let Some(home) = home else { return Vec::new() };
    let mut found: Vec<PathBuf> = fs::read_dir(home.join("registry/src"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}
