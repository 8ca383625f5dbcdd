//! `cargo xtask vm`: the live tests on real kernels, in virtual machines.

mod catalogue;
mod cpio;
mod generator;
mod image;
mod initramfs;
mod junit;
mod machine;
mod module;
mod outcome;
mod programs;
pub(crate) mod results;
mod run;
mod settings;
mod switch;
mod transcript;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

use self::catalogue::{KERNELS, Kernel};
use self::image::Image;
use self::initramfs::Base;
pub(crate) use self::initramfs::Question;
use self::outcome::{Outcome, Table};
use self::run::Runner;
pub(crate) use self::settings::Settings;
pub(crate) use self::switch::{Args as SwitchArgs, run as switch_off};
use crate::archive::Archive;
use crate::cache;
use crate::live::count::Count;
use crate::live::{self, targets};
use crate::packages::{self, Program};
use crate::process::{self, say, timed};
use crate::verified::{Loaded, Programs};
use crate::workspace::Workspace;

/// Run the live tests on real kernels, each in a virtual machine.
///
/// Kernels are Debian's, the newest of each series. They are fetched from the mirror
/// that the machine's own apt sources name, and kept in the cache ($LOCKWATCH_CACHE,
/// else $XDG_CACHE_HOME/lockwatch or ~/.cache/lockwatch, below vm/). Each is booted
/// in QEMU, without KVM, with lockwatch, the stall lab and the live tests in its
/// initramfs; every test runs alone and is killed at its time limit.
///
/// Results: a table; vm/junit.xml and vm/results.json (of a run of all tests; docs/kernels.md
/// is made of it) in cargo's target directory; and per kernel a folder beside them with console.log (what the kernel says) and guest.log (what the tests say).
/// The last line is the sum: `N passed, N failed, N skipped`. A kernel that cannot be fetched
/// or booted is a failure. A test whose stall a kernel cannot have leaves itself
/// out, with the reason, and counts as skipped; the catalogue names it beforehand. A test
/// that fails is tried once more, in a machine of its own. If it passes then, it counts as
/// passed, and as flaky, and is listed with its failure; more than three flaky tests are a
/// failure.
///
/// Needs a Debian system; QEMU, busybox and strace are installed if they are missing
/// and we are root.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which kernels, such as 6.12 or 7.3-rt [default: all]
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// Say which kernels there are, and what of them is in the cache
    #[arg(long)]
    list: bool,
    /// Only tests whose `target::name` contains this; may be given more than once
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Run this shell command in the machines instead of tests, and show what it says
    #[arg(long, value_name = "COMMAND", conflicts_with = "filter")]
    command: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// What machines are booted for.
#[derive(Debug)]
pub(crate) enum Errand<'e> {
    /// The live tests whose `target::name` contains one of these; without any, all tests,
    /// and the facts.
    Tests { filter: &'e [String] },
    /// What the machine tells of its kernel.
    Facts,
    /// What one command tells of each kernel.
    Ask {
        question: &'e Question,
        besides: Besides<'e>,
    },
    /// A shell script, whose lines are printed; bare, without the kernel's name before them.
    Script { text: &'e str, bare: bool },
}

/// What machines have that others have not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Besides<'b> {
    /// Programs of ours by their names in the machine, which get the libraries that they need.
    pub(crate) programs: &'b [(String, PathBuf)],
    /// Files as they are by their paths in the machine.
    pub(crate) files: &'b [(String, PathBuf)],
}

/// Exit code 0: every machine booted, and no test failed.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let kernels = chosen(&args.kernels)?;
    if args.list {
        list(&kernels, &cache()?);
        return Ok(ExitCode::SUCCESS);
    }
    let workspace = Workspace::load()?;
    let errand = match &args.command {
        Some(text) => Errand::Script { text, bare: false },
        None => Errand::Tests {
            filter: &args.filter,
        },
    };
    let outcomes = send(&workspace, &kernels, &args.settings, &errand)?;

    let home = home(&workspace);
    let write = |name: &str, text: String| {
        let path = home.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("junit.xml", junit::document(&outcomes))?;
    // A part of the tests says nothing of a kernel as a whole.
    if args.command.is_none() && args.filter.is_empty() {
        write(RESULTS, results::document(&outcomes)?)?;
    }
    print!("\n{}", Table(&outcomes));
    println!("logs, junit.xml and {RESULTS}: {}", home.display());
    let count: Count = outcomes.iter().map(Outcome::count).sum();
    if args.command.is_none() && count.passed + count.failed == 0 {
        bail!("no test was run: --filter leaves none");
    }
    Ok(live::conclude(
        outcomes.iter().flat_map(Outcome::stories),
        count,
    ))
}

/// Why no machine can be run here; `None`: it can be tried.
pub(crate) fn refusal() -> Option<String> {
    if cfg!(not(target_arch = "x86_64")) {
        return Some("the machines run programs of this one, which is no x86-64".to_owned());
    }
    let lacks = |program: &str| packages::path(program).is_err();
    if lacks("apt-get") {
        return Some("there is no apt-get: the kernels are Debian's".to_owned());
    }
    let missing = lacks(QEMU.name) && !nix::unistd::geteuid().is_root();
    missing.then(|| format!("{} is not installed", QEMU.package))
}

/// Names of the kernels that every `cargo xtask test` boots.
pub(crate) fn required() -> impl Iterator<Item = &'static str> {
    KERNELS
        .iter()
        .filter(|kernel| kernel.required)
        .map(|kernel| kernel.name)
}

/// What lockwatch loads on each of the named kernels (all, if none), or why that is unknown.
pub(crate) fn loaded(names: &[String]) -> Result<Vec<(String, Result<Loaded, String>)>> {
    let workspace = Workspace::load()?;
    let outcomes = send(
        &workspace,
        &chosen(names)?,
        &Settings::USUAL,
        &Errand::Facts,
    )?;
    Ok(outcomes
        .iter()
        .map(|outcome| {
            let name = outcome.kernel.name.to_owned();
            (name, outcome.fact(initramfs::VERIFIED))
        })
        .collect())
}

/// What a command tells of each of the named kernels (all, if none), or why it does not.
pub(crate) fn ask<T: serde::de::DeserializeOwned>(
    workspace: &Workspace,
    names: &[String],
    settings: &Settings,
    question: &Question,
    besides: Besides<'_>,
) -> Result<Vec<(String, Result<T, String>)>> {
    let errand = Errand::Ask { question, besides };
    let outcomes = send(workspace, &chosen(names)?, settings, &errand)?;
    Ok(outcomes
        .iter()
        .map(|outcome| {
            let name = outcome.kernel.name.to_owned();
            (name, outcome.fact(question.subject))
        })
        .collect())
}

/// Runs a shell script on one kernel, prints what it says, and gives its exit code.
pub(crate) fn script(workspace: &Workspace, kernel: &str, text: &str) -> Result<bool> {
    let kernels = chosen(&[kernel.to_owned()])?;
    let errand = Errand::Script { text, bare: true };
    let outcomes = send(workspace, &kernels, &Settings::USUAL, &errand)?;
    Ok(outcomes.iter().all(|outcome| outcome.trouble.is_none()))
}

/// Boots kernels for an errand; an error: it came to none of them.
fn send(
    workspace: &Workspace,
    kernels: &[&'static Kernel],
    settings: &Settings,
    errand: &Errand<'_>,
) -> Result<Vec<Outcome>> {
    packages::ensure(&[QEMU])?;
    let wants_generators = matches!(
        errand,
        Errand::Tests { .. } | Errand::Script { bare: false, .. }
    );
    let images = fetch(kernels, &cache()?, wants_generators)?;
    let targets = timed("building what runs in the machines", || match errand {
        Errand::Script { bare: true, .. } | Errand::Facts | Errand::Ask { .. } => {
            build_programs(workspace).map(|()| Vec::new())
        }
        // The soak would take too long there.
        Errand::Tests { .. } | Errand::Script { .. } => {
            build_programs(workspace).and_then(|()| targets::build(workspace, runs_in_machines))
        }
    })?;
    let home = home(workspace);
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let _logs = cache::lock(&home)?;
    let mut own: Vec<(String, PathBuf)> = ["lockwatch", "stall-lab", "lockup-lab"]
        .map(|name| (name.to_owned(), workspace.release_binary(name)))
        .to_vec();
    let besides = match errand {
        Errand::Ask { besides, .. } => *besides,
        _ => Besides::default(),
    };
    own.extend(besides.programs.iter().cloned());
    let base = Base::gather(&own, &targets, besides.files, &home)?;
    let runner = Runner {
        settings,
        errand,
        base: &base,
        targets: &targets,
        programs: &Programs::of_objects(&workspace.root)?,
        home: &home,
    };
    Ok(run_all(&runner, kernels, images))
}

/// Whether the tests of a target run in the machines.
fn runs_in_machines(target: &str) -> bool {
    targets::is_live(target) && target != targets::SOAK || targets::is_of_machines(target)
}

/// Builds lockwatch and the lab as released.
fn build_programs(workspace: &Workspace) -> Result<()> {
    process::run(&mut crate::demo::build_command(workspace))
}

const QEMU: Program = Program {
    name: "qemu-system-x86_64",
    package: "qemu-system-x86",
    purpose: "runs the test machines",
};

/// The machine-readable results of the last whole run, in [`home`].
pub(crate) const RESULTS: &str = "results.json";

/// Where logs and results are.
pub(crate) fn home(workspace: &Workspace) -> PathBuf {
    workspace.target.join("vm")
}

fn cache() -> Result<PathBuf> {
    let cache = cache::directory()?.join("vm").join(image::LAYOUT);
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create the cache {}", cache.display()))?;
    Ok(cache)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    names
        .iter()
        .map(|name| {
            Kernel::by_name(name).with_context(|| {
                let known: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
                format!("there is no kernel {name}: there are {}", known.join(", "))
            })
        })
        .collect()
}

fn list(kernels: &[&Kernel], cache: &Path) {
    for kernel in kernels {
        let state = match image::newest_in_cache(kernel, cache) {
            Ok(image) => format!("{} in the cache", image.package),
            Err(_) => format!("{}*{}", kernel.prefix, kernel.suffix),
        };
        println!("{:<8} {state}", kernel.name);
    }
}

/// All images, or why there is none. An error: nothing can be had at all.
fn fetch(
    kernels: &[&'static Kernel],
    cache: &Path,
    wants_generators: bool,
) -> Result<Vec<Result<Image>>> {
    let _lock = cache::lock(cache)?;
    let archive = Archive::of_kernels(&cache.join("apt"))?;
    let newest_of_all = |packages: &[String]| -> Vec<Result<Image>> {
        kernels
            .iter()
            .map(|kernel| {
                let mut image = image::newest(kernel, &archive, packages, cache)?;
                if kernel.generator && wants_generators {
                    let built = generator::module(&archive, kernel.name, &image, cache);
                    image.generator = built.map_err(|error| format!("{error:#}"));
                    if let Err(why) = &image.generator {
                        say(format_args!(
                            "{}: no {}: {why}",
                            kernel.name,
                            generator::NAME
                        ));
                    }
                }
                Ok(image)
            })
            .collect()
    };
    if archive.is_fresh() {
        let images = newest_of_all(&archive.kernel_packages()?);
        // Lists of this morning may name packages that are gone by now.
        if images.iter().all(Result::is_ok) {
            return Ok(images);
        }
    }
    let packages = match archive.refresh() {
        Ok(()) => archive.kernel_packages()?,
        Err(error) => {
            say(format_args!(
                "only kernels in the cache can be used: {error:#}"
            ));
            Vec::new()
        }
    };
    Ok(newest_of_all(&packages))
}

/// Runs the machines, some at a time; outcomes are in the order of the kernels.
fn run_all(
    runner: &Runner<'_>,
    kernels: &[&'static Kernel],
    images: Vec<Result<Image>>,
) -> Vec<Outcome> {
    let waiting = Mutex::new(kernels.iter().zip(images).enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..runner.settings.jobs {
            scope.spawn(|| {
                loop {
                    let next = locked(&waiting).next();
                    let Some((number, (kernel, image))) = next else {
                        return;
                    };
                    let outcome = match image {
                        Ok(image) => runner.run(kernel, &image),
                        Err(error) => {
                            say(format_args!("{}: unavailable: {error:#}", kernel.name));
                            Outcome::unavailable(kernel, format!("unavailable: {error:#}"))
                        }
                    };
                    locked(&done).push((number, outcome));
                }
            });
        }
    });
    let mut outcomes = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
