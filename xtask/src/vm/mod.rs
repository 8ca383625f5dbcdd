//! `cargo xtask vm`: the live tests on real kernels, in virtual machines.

mod archive;
mod catalogue;
mod cpio;
mod image;
mod initramfs;
mod junit;
mod machine;
mod module;
mod outcome;
mod programs;
mod run;
mod switch;
mod transcript;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

use self::archive::Archive;
use self::catalogue::{KERNELS, Kernel};
use self::image::Image;
use self::initramfs::Base;
use self::outcome::{Count, Outcome, Table};
use self::run::Runner;
pub(crate) use self::switch::{Args as SwitchArgs, run as switch_off};
use crate::cache;
use crate::packages::{self, Program};
use crate::process::{say, timed};
use crate::workspace::Workspace;

/// Run the live tests on real kernels, each in a virtual machine.
///
/// Kernels are Debian's, the newest of each series. They are fetched from the mirror
/// that the machine's own apt sources name, and kept in the cache ($LOCKWATCH_CACHE,
/// else $XDG_CACHE_HOME/lockwatch or ~/.cache/lockwatch, below vm/). Each is booted
/// in QEMU, without KVM, with lockwatch, the stall lab and the live tests in its
/// initramfs; every test runs alone and is killed at its time limit.
///
/// Results: a table; vm/junit.xml in cargo's target directory; and per kernel a folder
/// beside it with console.log (what the kernel says) and guest.log (what the tests say).
/// The last line is the sum: `N passed, N failed, N skipped`. A kernel that cannot be fetched
/// or booted is a failure.
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
    /// How often the live tests try each scenario
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: u32,
    /// Machines at the same time; on two cores, two take half the time of one
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    jobs: u32,
    /// Processors of a machine
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory of a machine, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// A machine is killed after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    timeout: u64,
    /// A test is killed after so many seconds, by the guest's clock
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    test_timeout: u64,
    /// Keep the initramfs beside the logs
    #[arg(long)]
    keep: bool,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Run this shell command in the machines instead of tests, and show what it says
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
}

/// Exit code 0: every machine booted, and no test failed.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let kernels = chosen(&args.kernels)?;
    let cache = cache::directory()?.join("vm");
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create the cache {}", cache.display()))?;
    if args.list {
        list(&kernels, &cache);
        return Ok(ExitCode::SUCCESS);
    }
    packages::ensure(&[Program {
        name: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: "runs the test machines",
    }])?;
    let workspace = Workspace::load()?;
    let images = fetch(&kernels, &cache)?;
    let targets = timed(
        "building lockwatch, the stall lab and the live tests",
        || programs::build(&workspace),
    )?;
    let home = workspace.target.join("vm");
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let _logs = cache::lock(&home)?;
    let base = Base::gather(&workspace, &targets, &home)?;
    let runner = Runner {
        args,
        base: &base,
        targets: &targets,
        home: &home,
    };
    let outcomes = run_all(&runner, &kernels, images);

    let junit = home.join("junit.xml");
    fs::write(&junit, junit::document(&outcomes))
        .with_context(|| format!("cannot write {}", junit.display()))?;
    print!("\n{}", Table(&outcomes));
    println!("logs and junit.xml: {}", home.display());
    let count = Count::of_all(&outcomes);
    if args.command.is_none() && count.passed + count.failed == 0 {
        bail!("no test was run: --filter leaves none");
    }
    println!("{count}");
    Ok(if count.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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
fn fetch(kernels: &[&'static Kernel], cache: &Path) -> Result<Vec<Result<Image>>> {
    let _lock = cache::lock(cache)?;
    let archive = Archive::open(&cache.join("apt"))?;
    let newest_of_all = |packages: &[String]| -> Vec<Result<Image>> {
        kernels
            .iter()
            .map(|kernel| image::newest(kernel, &archive, packages, cache))
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
        for _ in 0..runner.args.jobs {
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
