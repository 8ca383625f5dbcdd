//! The private toolchain: Debian's rustc with its standard library's source,
//! and bpf-linker built on Debian's LLVM.
//!
//! Nothing is installed into the system. Packages are fetched through the
//! machine's own apt (its sources, its keys), unpacked into a cache outside
//! the tree, and checked each time before they are used.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::toolchain::{Identity, Toolchain, has_core_source};
use crate::process::{self, say, timed};
use crate::{cache, deb, workspace};

/// Debian carries several compilers; this minor's source builds `core` for BPF.
const RUST_MINOR: &str = "1.96";
/// The LLVM that `rustc-web` of that minor is linked with.
const LLVM_MAJOR: &str = "22";
/// Newest bpf-linker that knows LLVM 22 and needs no `llvm-config`.
const BPF_LINKER: &str = "0.13.0";
/// Raised when the layout below changes, so that an older cache is made anew.
const LAYOUT: u32 = 2;

/// The programs find their driver library and LLVM beside themselves, not in the system.
const WRAPPER: &str = r#"#!/bin/sh
top=$(dirname "$(dirname "$(readlink -f "$0")")")
export LD_LIBRARY_PATH="$top/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$top/bin/$(basename "$0").real" "$@"
"#;

/// Programs behind that wrapper.
const WRAPPED: [&str; 2] = ["rustc", "clippy-driver"];

/// Written last: a directory without it, or with another one, is not used.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    layout: u32,
    /// Package name and version, as fetched.
    packages: Vec<(String, String)>,
    identity: Identity,
}

/// The cached toolchain, made first if it is missing or broken.
pub(crate) fn private_toolchain() -> Result<Toolchain> {
    let cache = cache::directory()?;
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create the cache {}", cache.display()))?;
    let _lock = cache::lock(&cache)?;
    let home = cache.join(format!(
        "bpf-rust{RUST_MINOR}-llvm{LLVM_MAJOR}-linker{BPF_LINKER}"
    ));
    match check(&home) {
        Ok(toolchain) => {
            say(format_args!("private compiler: {}", toolchain.identity));
            return Ok(toolchain);
        }
        Err(_) if !home.exists() => say(format_args!(
            "no private compiler yet: making one in {} (about 130 MB to download, 510 MB on disk, \
             1 to 2 minutes; nothing is installed into the system)",
            home.display()
        )),
        Err(error) => say(format_args!(
            "the private compiler is broken, making it anew: {error:#}"
        )),
    }
    make(&cache, &home)?;
    check(&home).context("the new private compiler does not work")
}

/// Accepts only what the stamp describes and what still runs.
fn check(home: &Path) -> Result<Toolchain> {
    let path = home.join("stamp.json");
    let text = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
    let stamp: Stamp =
        serde_json::from_slice(&text).with_context(|| format!("bad {}", path.display()))?;
    if stamp.layout != LAYOUT {
        bail!("layout {} instead of {LAYOUT}", stamp.layout);
    }
    let rustc = home.join("bin/rustc");
    let bpf_linker = home.join("bin/bpf-linker");
    let identity = Identity::of(&rustc, &bpf_linker)?;
    if identity != stamp.identity {
        bail!(
            "it says it is {identity}, its stamp says {}",
            stamp.identity
        );
    }
    if !has_core_source(home) {
        bail!("the standard library's source is gone");
    }
    Ok(Toolchain {
        rustc,
        cargo: None,
        bpf_linker,
        sysroot: home.to_path_buf(),
        identity,
    })
}

/// Makes the toolchain, or leaves nothing usable.
fn make(cache: &Path, home: &Path) -> Result<()> {
    // The lock is ours: what lies here is left from a run that was killed. A
    // compiler that outlived it may still write there; the next run cleans up.
    for entry in fs::read_dir(cache)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("making-")
            && let Err(error) = cache::remove(&entry.path())
        {
            say(format_args!("{error:#}"));
        }
    }
    let work = cache.join(format!("making-{}", std::process::id()));
    cache::make_whole(home, &work, build)
}

/// Fetches and builds all of it; where it is.
fn build(work: &Path) -> Result<PathBuf> {
    let debs = work.join("debs");
    let unpacked = work.join("unpacked");
    let new = work.join("toolchain");
    for directory in [
        &debs,
        &unpacked,
        &new.join("bin"),
        &new.join("lib/rustlib/src/rust"),
    ] {
        fs::create_dir_all(directory)?;
    }
    let packages = resolve()?;
    let names: Vec<&str> = packages.iter().map(|(name, _)| name.as_str()).collect();
    let exact: Vec<String> = packages
        .iter()
        .map(|(name, version)| format!("{name}={version}"))
        .collect();
    timed(
        &format!("downloading {} with apt", names.join(", ")),
        || deb::download(&exact, &debs),
    )?;
    timed("unpacking", || {
        for (name, members) in CONTENTS {
            unpack(&debs, &package_name(name), members, &unpacked)?;
        }
        arrange(&unpacked, &new)
    })?;
    let what = format!("building bpf-linker {BPF_LINKER} with cargo (links the objects)");
    timed(&what, || install_linker(work, &new))?;

    let identity = Identity::of(&new.join("bin/rustc"), &new.join("bin/bpf-linker"))?;
    let stamp = Stamp {
        layout: LAYOUT,
        packages,
        identity,
    };
    fs::write(new.join("stamp.json"), serde_json::to_vec_pretty(&stamp)?)?;
    Ok(new)
}

/// What each package is fetched for; `{rust}` and `{llvm}` stand for the versions above.
const CONTENTS: [(&str, &[&str]); 6] = [
    ("rustc-web", &["./usr/bin/rustc"]),
    ("rust-web-clippy", &["./usr/bin/clippy-driver"]),
    (
        "libstd-rust-web-{rust}",
        &["./usr/lib/*/librustc_driver-*.so"],
    ),
    ("libstd-rust-web-dev", &["./usr/lib/rustlib/*"]),
    ("rust-web-src", &["./usr/src/rustc-*/library/*"]),
    ("libllvm{llvm}", &["./usr/lib/*/libLLVM*"]),
];

fn package_name(pattern: &str) -> String {
    pattern
        .replace("{rust}", RUST_MINOR)
        .replace("{llvm}", LLVM_MAJOR)
}

/// Package names with the newest version apt has of the wanted minor.
///
/// A security update retires exact versions, so none is written down here; the
/// Rust packages only fit each other in the same version.
fn resolve() -> Result<Vec<(String, String)>> {
    for program in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
        Command::new(program)
            .arg("--version")
            .output()
            .with_context(|| format!("`{program}` is missing: this way needs a Debian system"))?;
    }
    let upstream = format!("{RUST_MINOR}.");
    let find = || -> Result<Option<String>> {
        let versions = versions("rustc-web")?;
        Ok(versions.into_iter().find(|v| v.starts_with(&upstream)))
    };
    let mut rust = find()?;
    if rust.is_none() && nix::unistd::geteuid().is_root() {
        timed(
            "apt-get update (the package lists are missing or old)",
            || {
                process::run(
                    Command::new("apt-get")
                        .args(["-q", "update"])
                        .stdout(Stdio::null()),
                )
            },
        )?;
        rust = find()?;
    }
    let rust = rust.with_context(|| {
        format!(
            "apt knows no rustc-web {RUST_MINOR}.x: run `apt-get update` as root (the package \
             comes with Debian's security archive; its source must be in the apt sources)"
        )
    })?;
    CONTENTS
        .iter()
        .map(|(pattern, _)| {
            let name = package_name(pattern);
            let known = versions(&name)?;
            let version = if name.contains("rust") {
                known.into_iter().find(|v| *v == rust)
            } else {
                known.into_iter().next()
            };
            let version = version
                .with_context(|| format!("apt has rustc-web {rust} but no {name} to go with it"))?;
            Ok((name, version))
        })
        .collect()
}

/// All versions of a package that apt could fetch, newest first.
fn versions(package: &str) -> Result<Vec<String>> {
    let table = process::capture(Command::new("apt-cache").args(["madison", package]))?;
    Ok(parse_madison(&table))
}

/// Takes the second column of `package | version | source` rows.
fn parse_madison(table: &str) -> Vec<String> {
    table
        .lines()
        .filter(|line| line.ends_with("Packages"))
        .filter_map(|line| line.split('|').nth(1))
        .map(|version| version.trim().to_owned())
        .collect()
}

/// Unpacks some members of one package, owned by the caller.
fn unpack(debs: &Path, package: &str, members: &[&str], into: &Path) -> Result<()> {
    let prefix = format!("{package}_");
    let deb = entry(debs, |name| name.starts_with(&prefix))?;
    deb::unpack(&deb, members, into)
}

/// Puts the files where rustc looks for them, relative to itself.
fn arrange(unpacked: &Path, new: &Path) -> Result<()> {
    for program in WRAPPED {
        let real = new.join("bin").join(format!("{program}.real"));
        fs::rename(unpacked.join("usr/bin").join(program), real)?;
        let wrapper = new.join("bin").join(program);
        fs::write(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    }
    let lib = unpacked.join("usr/lib");
    let libraries = entry(&lib, |name| name.ends_with("-linux-gnu"))?;
    for file in fs::read_dir(&libraries)? {
        let file = file?;
        fs::rename(file.path(), new.join("lib").join(file.file_name()))?;
    }
    // bpf-linker's build looks for this name only.
    let llvm = format!("libLLVM.so.{LLVM_MAJOR}.1");
    let link = new.join("lib/libLLVM.so");
    if !link.exists() {
        symlink(&llvm, &link)?;
    }
    fs::metadata(&link).with_context(|| format!("libllvm{LLVM_MAJOR} has no {llvm}"))?;

    let rustlib = lib.join("rustlib");
    let host = entry(&rustlib, |name| name.ends_with("-linux-gnu"))?;
    let name = host.file_name().context("host target without a name")?;
    fs::rename(&host, new.join("lib/rustlib").join(name))?;
    let source = entry(&unpacked.join("usr/src"), |name| name.starts_with("rustc-"))?;
    fs::rename(
        source.join("library"),
        new.join("lib/rustlib/src/rust/library"),
    )?;
    Ok(())
}

/// Builds bpf-linker against the unpacked LLVM, with the user's own Rust.
fn install_linker(work: &Path, new: &Path) -> Result<()> {
    let mut command = workspace::cargo();
    command
        .current_dir(work)
        .args(["install", "bpf-linker", "--version", BPF_LINKER])
        .args(["--locked", "--quiet", "--no-default-features", "--features"])
        .arg(format!("llvm-{LLVM_MAJOR}"))
        .arg("--root")
        .arg(new)
        .env("LLVM_PREFIX", new)
        .env("CARGO_TARGET_DIR", work.join("target"))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        // Its build records LLVM_PREFIX, which is moved away afterwards.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Clink-arg=-Wl,-rpath,$ORIGIN/../lib",
        )
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET");
    process::run(&mut command).context(
        "bpf-linker cannot be built: cargo has to reach its registry, and it needs a C compiler and linker (gcc)",
    )
}

/// The one entry of `directory` whose name fits.
fn entry(directory: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("no {}", directory.display()))?
        .flatten()
        .find(|entry| fits(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .with_context(|| format!("nothing that fits in {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_of_a_package_comes_first() {
        let table = "\
 rustc-web | 1.96.1+dfsg1-1 | http://archive.example stable/main amd64 Packages
 rustc-web | 1.85.0+dfsg3-1 | http://archive.example stable/main amd64 Packages
 rustc-web | 1.96.1+dfsg1-1 | http://archive.example stable/main Sources
";
        assert_eq!(parse_madison(table), ["1.96.1+dfsg1-1", "1.85.0+dfsg3-1"]);
    }

    #[test]
    fn a_directory_without_a_stamp_is_no_toolchain() {
        let error = check(Path::new("/nonexistent")).unwrap_err();
        assert!(format!("{error:#}").contains("stamp.json"), "{error:#}");
    }
}
