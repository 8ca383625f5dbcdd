//! Programs of Debian that a verb needs on the machine.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;

/// A program, the package that has it, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    pub(crate) purpose: &'static str,
}

/// Installs the packages of those programs that are not on the PATH, saying so.
pub(crate) fn ensure(programs: &[Program]) -> Result<()> {
    let missing: Vec<&Program> = programs
        .iter()
        .filter(|program| !is_on_path(program.name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for Program {
        name,
        package,
        purpose,
    } in &missing
    {
        process::say(format_args!(
            "installing Debian's package {package}: {name} {purpose}"
        ));
    }
    let packages: Vec<&str> = missing.iter().map(|program| program.package).collect();
    if !nix::unistd::geteuid().is_root() || !is_on_path("apt-get") {
        bail!(
            "install these packages first (here only root of a Debian machine can): {}",
            packages.join(" ")
        );
    }
    let install = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
            .args(["install", "--yes", "-qq", "--no-install-recommends"])
            .args(&packages);
        process::capture(&mut command)
    };
    // A machine that has never asked the archive has no package lists.
    if install().is_err() {
        let mut update = Command::new("apt-get");
        process::capture(update.args(["update", "-qq"]))?;
        install().with_context(|| format!("cannot install {}", packages.join(" ")))?;
    }
    Ok(())
}

/// Where a program of the machine at hand is.
pub(crate) fn path(program: &str) -> Result<PathBuf> {
    find(program).with_context(|| format!("no {program} on the PATH"))
}

fn is_on_path(program: &str) -> bool {
    find(program).is_some()
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_installed() {
        let shell = Program {
            name: "sh",
            package: "no-such-package",
            purpose: "is everywhere",
        };
        ensure(&[shell]).unwrap();
        assert!(!is_on_path("no-such-program"));
    }
}
