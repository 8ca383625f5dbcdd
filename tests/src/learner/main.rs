//! Learns on the running kernel in which functions a lock is held and in which a pointer
//! to it is only carried: see `lockwatch::kernel::learned`.
//!
//! Every acquisition is traced, with its stack. Meanwhile the stall lab makes its stalls
//! one after another, some processes take locks all the time, and the stacks of all tasks
//! are looked at again and again. What was learned is printed as JSON.

mod acquisitions;
mod align;
mod book;
mod measure;
mod work;

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use lockwatch::{
    kernel::{btf::Btf, layout::Layout},
    plan::{Wanted, plan},
    probes::{counts::CountGlobals, holds::HoldProbes, long_holds::LongHoldGlobals, offer},
    stream::TracedHolds,
    survey::Surveyor,
};
use lockwatch_ebpf::acquisitions::Hold;
use lockwatch_tests::{trial::Lab, truth::Scenario};

use self::{acquisitions::Acquisitions, book::Book, measure::Variant, work::Workers};

/// Learn which functions hold locks on the running kernel; what is found is printed as JSON
///
/// Needs root and BPF, and the stall lab (STALL_LAB_BIN).
#[derive(Parser)]
#[command(name = "hold-learner", version)]
enum Verb {
    /// Learn
    Learn {
        /// How long to look, in seconds; what is begun is ended
        #[arg(long = "for", value_name = "SECONDS", default_value_t = 120)]
        seconds: u64,
    },
    /// Take locks until standard input ends: what a learner starts
    #[command(hide = true)]
    Work { kind: work::Kind },
    /// Tell how sure builds of lockwatch are of the readers of the lab's stalls
    Measure {
        /// What a build is called, and its binary
        #[arg(value_name = "NAME=PATH", required = true)]
        variants: Vec<Variant>,
    },
}

/// The stalls, in turn; one that this kernel cannot have is left out. Those with readers
/// come more often: a function has to be seen holding in several sleeps.
const SCENARIOS: [Scenario; 13] = [
    Scenario::InodeReadHeld,
    Scenario::SuperReadHeld,
    Scenario::MmapReadHeld,
    Scenario::SuperReadHeldSync,
    Scenario::VmaReadHeld,
    Scenario::InodeReadHeldOverlay,
    Scenario::SuperReadHeld,
    Scenario::InodeWriteHeld,
    Scenario::MmapWriteHeld,
    Scenario::FilePosHeld,
    Scenario::PipeHeld,
    Scenario::SuperReadHeld,
    Scenario::SuperFreezing,
];

/// Looks at each stall.
const LOOKS: u32 = 4;

/// Looks between two stalls.
const LOOKS_BETWEEN: u32 = 20;

/// Our program and the tracker's, at one return, are not further apart: one stack is unwound
/// in between.
const AT_ONCE_NS: u64 = 2_000_000;

const PAUSE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let outcome = match Verb::parse() {
        Verb::Learn { seconds } => learn(Duration::from_secs(seconds)),
        Verb::Work { kind } => work::work(kind),
        Verb::Measure { variants } => measure::measure(&variants),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hold-learner: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn learn(time: Duration) -> Result<()> {
    let types = Btf::from_sys()?;
    let layout = Layout::from_btf(&types)?;
    let btf = aya::Btf::from_sys_fs().context("the kernel has no BTF")?;
    let plan = plan(&offer::ask(Some(&types)), Wanted::ALL);
    let mmap_lock = layout.mm.mmap_lock;
    let mut probes = HoldProbes::load(
        &plan,
        &layout.task,
        mmap_lock,
        &CountGlobals::OFF,
        &LongHoldGlobals::OFF,
        &btf,
    )?
    .context("nothing tracks holds on this kernel")?;
    let of_tracker = acquisitions::missed();
    // Whoever is in the tracker's state is in ours.
    let mut acquisitions = Acquisitions::attach(&plan, mmap_lock, &btf)?;
    probes.attach()?;
    let mut surveyor = Surveyor::open()?.with_holds(Box::new(TracedHolds::new(probes)));
    let symbols = surveyor.symbols();
    let mut book = Book::new(&symbols);
    let workers = Workers::start()?;
    let end = Instant::now() + time;
    let mut looks = 0;
    let mut look = |book: &mut Book<'_>, count: u32| -> Result<()> {
        for _ in 0..count {
            let mut acquired = Vec::new();
            let resting = surveyor.study(
                |task, switches| book.is_new(task, switches),
                || acquired = acquisitions.now(),
            )?;
            let stacks = &mut acquisitions;
            book.enter(&resting, |hold| {
                let same = |of: &Hold| of.lock == hold.lock.0 && of.tid == hold.task.tid.0;
                let (_, how) = acquired.iter().find(|(of, _)| same(of))?;
                // Of another acquisition, if ours or the tracker's program was left out.
                let at_once = hold.since_ns.abs_diff(how.at_ns) < AT_ONCE_NS;
                at_once.then(|| stacks.stack(how.stack)).flatten()
            });
            looks += 1;
            thread::sleep(PAUSE);
        }
        Ok(())
    };
    let mut scenarios = SCENARIOS.iter().cycle();
    while Instant::now() < end {
        look(&mut book, LOOKS_BETWEEN)?;
        let Some(&scenario) = scenarios.next() else {
            break;
        };
        match Lab::raise(scenario, 2) {
            Ok(lab) => {
                look(&mut book, LOOKS)?;
                lab.finish()?;
            }
            Err(error) => eprintln!("hold-learner: {}: {error:#}", scenario.name()),
        }
    }
    drop(workers);
    let missed = |tracker: bool| -> u64 {
        let all = acquisitions::missed();
        let of = all
            .iter()
            .filter(|(id, _)| of_tracker.contains_key(*id) == tracker);
        of.map(|(_, times)| times).sum()
    };
    for (acquired, released) in acquisitions.ended() {
        let (acquired, released) = (acquisitions.stack(acquired), acquisitions.stack(released));
        if let (Some(acquired), Some(released)) = (acquired, released) {
            book.enter_release(&acquired, &released);
        }
    }
    eprintln!(
        "hold-learner: {looks} looks; {}; runs missed: {} of the tracker, {} of the learner",
        book.sum(),
        missed(true),
        missed(false)
    );
    let release = rustix::system::uname();
    let account = book.account(&release.release().to_string_lossy());
    println!("{}", serde_json::to_string(&account)?);
    Ok(())
}
