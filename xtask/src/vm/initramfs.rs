//! The machine's whole file system, made in memory: programs, libraries,
//! modules, and what is to be run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use super::image::Image;
use super::programs;
use crate::live::targets::Target;
use crate::packages::{self, Program};

/// The first process.
const INIT: &str = include_str!("init.sh");
/// Where the kernel's own maker of lockups is in the machine, if it is.
pub(crate) const GENERATOR: &str = "generator/test_lockup.ko";
/// Tools of the live tests that busybox has not, or not with all options.
const TOOLS: [Program; 3] = [
    Program {
        name: "strace",
        package: "strace",
        purpose: "tells the live tests which files lockwatch touches",
    },
    Program {
        name: "setpriv",
        package: "util-linux",
        purpose: "takes privileges away from lockwatch",
    },
    Program {
        name: "unshare",
        package: "util-linux",
        purpose: "puts lockwatch into a container",
    },
];

/// What a machine does once it has booted.
#[derive(Debug)]
pub(crate) enum Work<'w> {
    /// Tells these facts, and runs these tests, each no longer than that many seconds.
    Tests {
        tests: &'w [PlannedTest],
        facts: &'w [Question],
    },
    /// Runs a shell script instead, to look around.
    Script(&'w str),
}

/// Subjects of what a machine tells of its kernel, and the commands that do.
pub(crate) const VERIFIED: &str = "verified";
pub(crate) const CHECK: &str = "check";

/// What every machine is asked of its kernel.
pub(crate) fn facts() -> [Question; 2] {
    [
        Question::new(VERIFIED, "xtask vm-verified"),
        Question::new(CHECK, "lockwatch check --format json"),
    ]
}

/// A command that tells something in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) subject: &'static str,
    pub(crate) command: String,
    /// It is killed after so many seconds, by the guest's clock.
    pub(crate) limit_s: u64,
}

impl Question {
    fn new(subject: &'static str, command: &str) -> Self {
        Self {
            subject,
            command: command.to_owned(),
            limit_s: 180,
        }
    }
}

/// One test that is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedTest {
    pub(crate) target: String,
    pub(crate) name: String,
    pub(crate) limit_s: u64,
}

/// The part that is the same on each kernel.
#[derive(Debug)]
pub(crate) struct Base {
    /// Path in the machine, contents.
    files: Vec<(String, Vec<u8>)>,
}

impl Base {
    /// Gathers programs and libraries, `own` by their names in the machine, and `plain` files by
    /// their paths there; `work` is for files in between.
    pub(crate) fn gather(
        own: &[(String, PathBuf)],
        targets: &[Target],
        plain: &[(String, PathBuf)],
        work: &Path,
    ) -> Result<Self> {
        let busybox = Program {
            name: "busybox",
            package: "busybox-static",
            purpose: "is the userland of the test machines",
        };
        // Only tests need more.
        let tools: &[Program] = if targets.is_empty() { &[] } else { &TOOLS };
        packages::ensure(&[&[busybox], tools].concat())?;
        let busybox = packages::path(busybox.name)?;
        let xtask = std::env::current_exe().context("cannot find our own program")?;
        let tests = targets
            .iter()
            .map(|target| (target.name.clone(), target.binary.clone()));
        let mut files = Vec::new();
        let mut binaries = vec![busybox.clone()];
        let xtask = [("xtask".to_owned(), xtask)];
        for (name, binary) in own.iter().cloned().chain(xtask).chain(tests) {
            files.push((format!("/bin/{name}"), programs::stripped(&binary, work)?));
            binaries.push(binary);
        }
        files.push(("/bin/busybox".to_owned(), read(&busybox)?));
        for Program { name, .. } in tools {
            let tool = packages::path(name)?;
            files.push((format!("/bin/{name}"), read(&tool)?));
            binaries.push(tool);
        }
        for library in programs::libraries(&binaries)? {
            files.push((library.display().to_string(), read(&library)?));
        }
        for (path, file) in plain {
            files.push((path.clone(), read(file)?));
        }
        Ok(Self { files })
    }

    /// The archive for one kernel.
    pub(crate) fn pack(
        &self,
        image: &Image,
        work: &Work<'_>,
        environment: &str,
    ) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        archive.folder("dev");
        // The first process' own output, until it has mounted /dev.
        archive.device("dev/console", 5, 1);
        archive.file("init", INIT.as_bytes());
        archive.link("bin/sh", "busybox");
        for (path, contents) in &self.files {
            archive.file(path, contents);
        }
        let mut order = String::new();
        for module in &image.modules {
            let name = module.file_name().context("a module without a name")?;
            let name = name.to_string_lossy();
            archive.file(&format!("modules/{name}"), &read(module)?);
            order.push_str(&format!("{name}\n"));
        }
        archive.file("modules/order", order.as_bytes());
        if let Ok(generator) = &image.generator {
            archive.file(GENERATOR, &read(generator)?);
        }
        archive.file("environment", environment.as_bytes());
        match work {
            Work::Tests { tests, facts } => {
                archive.file("plan", plan(tests).as_bytes());
                let lines = facts
                    .iter()
                    .map(|one| format!("{} {} {}\n", one.subject, one.limit_s, one.command));
                archive.file("facts", lines.collect::<String>().as_bytes());
            }
            Work::Script(script) => archive.file("script", script.as_bytes()),
        }
        Ok(archive.finish())
    }
}

fn plan(tests: &[PlannedTest]) -> String {
    tests
        .iter()
        .map(|test| format!("{} {} {}\n", test.target, test.name, test.limit_s))
        .collect()
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
