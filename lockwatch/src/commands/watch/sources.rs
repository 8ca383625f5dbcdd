//! Where the knowledge comes from: what is loaded and attached, and what this host does
//! not allow.

use std::{panic::resume_unwind, sync::Arc, thread};

use anyhow::Context as _;

use super::{cpus::Cpus, surveys::Surveys};
use crate::{
    cli::SourceArgs,
    commands::one_line,
    detect::Thresholds,
    kernel::{
        capabilities,
        kallsyms::ReadSymbols,
        layout::Layout,
        offer::{Lockdown, Offer},
        symbols::Symbols,
    },
    plan::{Gap, Plan, Purpose, Wanted, plan},
    probes::{
        LoadError,
        counts::CountGlobals,
        holds::{HoldProbes, HoldsError},
        hook::Refused,
        long_holds::LongHoldGlobals,
        offer,
        stream::StreamLoadError,
        types::Types,
    },
    stream::{
        Stream, StreamOptions, TracedHolds,
        counts::{self, CountOptions, Counts, WantedError},
        long_holds,
    },
    survey::{OpenError, Parts, Surveyor},
    task::Nanos,
};

/// What is attached and ready.
pub(super) struct Sources {
    pub(super) stream: Option<Stream>,
    pub(super) surveys: Option<Surveys>,
    /// Names of kernel functions; there with surveys.
    pub(super) symbols: Option<Arc<Symbols>>,
    /// `None` where nothing samples the CPUs.
    pub(super) cpus: Option<Cpus>,
    /// `None`: nothing is counted.
    pub(super) counts: Option<Counts>,
    /// In words.
    pub(super) said: Vec<String>,
    /// What cannot be known.
    pub(super) gaps: Vec<Gap>,
}

/// What a command wants beside stalls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// How waits, and with hold tracking holds, are counted; `None`: they are not.
    pub(super) counting: Option<&'a CountOptions>,
    /// How the holders of stalled locks spend their time: for who tells it, which costs
    /// something at every switch of tasks.
    pub(super) holder_times: bool,
}

impl<'a> Asked<'a> {
    /// Stalls, and what their holders do.
    pub(super) const STALLS: Self = Self {
        counting: None,
        holder_times: true,
    };
    /// Stalls alone.
    pub(super) const BARE: Self = Self {
        counting: None,
        holder_times: false,
    };

    /// Counts.
    pub(super) const fn counts(options: &'a CountOptions) -> Self {
        Self {
            counting: Some(options),
            ..Self::BARE
        }
    }
}

impl Sources {
    /// Those of the thresholds past which something can be told here; the others are off.
    pub(super) fn tell(&self, thresholds: Thresholds) -> Thresholds {
        let samples = self.cpus.is_some();
        Thresholds {
            wait: thresholds.wait,
            hung_task: thresholds.hung_task.filter(|_| self.surveys.is_some()),
            soft_lockup: thresholds.soft_lockup.filter(|_| samples),
            hard_lockup: thresholds.hard_lockup.filter(|_| samples),
        }
    }

    /// Opens what this host allows; what is missing is said, with its cost.
    pub(super) fn open(
        thresholds: Thresholds,
        args: &SourceArgs,
        asked: Asked<'_>,
    ) -> anyhow::Result<Self> {
        capabilities::check_namespaces()?;
        let options = StreamOptions {
            ends_from: thresholds.wait,
            begins: false,
        };
        let types = Types::read().map_err(|error| match capabilities::check() {
            Ok(()) => anyhow::Error::new(OpenError::from(error)),
            Err(missing) => OpenError::from(missing).into(),
        });
        let types = types.context("nothing can be watched on this host")?;
        let (mut parts, trial) = thread::scope(|scope| {
            let ask = || offer::trial(Some(&types.kernel));
            // Most of its time it waits for the kernel.
            let asking = thread::Builder::new().spawn_scoped(scope, ask);
            let parts = Parts::load(&types);
            let trial = asking.map_or_else(
                |_| ask(),
                |asking| asking.join().unwrap_or_else(|panic| resume_unwind(panic)),
            );
            (parts, trial)
        });
        let image = parts.as_mut().ok().and_then(Parts::symbols_of_the_image);
        let ReadSymbols { symbols, spelled } = ReadSymbols::of(image);
        let surveyor = parts
            .and_then(|parts| Surveyor::new(parts, types.layout.clone(), symbols?))
            .map_err(anyhow::Error::new);
        let offer = Offer::of_this_kernel(Some(&types.kernel), spelled, trial);
        let symbols = surveyor.as_ref().ok().map(Surveyor::symbols);
        let attached = Attached::by_plan(
            offer,
            &types,
            args,
            symbols.as_ref(),
            &options,
            asked,
            // Nothing but a survey confirms what CPUs are suspected of.
            surveyor.is_ok().then_some(thresholds),
        );
        let has_stream = attached
            .as_ref()
            .is_ok_and(|attached| attached.stream.is_some());
        let surveyor = match surveyor {
            Err(surveyor) if !has_stream => {
                if let Err(stream) = &attached {
                    tracing::debug!("no stream: {stream:#}");
                }
                return Err(surveyor.context("nothing can be watched on this host"));
            }
            surveyor => surveyor,
        };
        let mut said = Vec::new();
        if !has_stream {
            said.push("lock waits from a survey a second".to_owned());
        }
        let mut gaps = Vec::new();
        let (stream, holds, cpus, counts) = match attached {
            Ok(attached) => {
                said.extend(attached.said());
                gaps = attached.plan.gaps;
                (
                    attached.stream,
                    attached.holds,
                    attached.cpus,
                    attached.counts,
                )
            }
            // What was asked for cannot be, and not what the host allows.
            Err(error) if error.is::<WantedError>() => return Err(error),
            Err(error) => {
                tracing::warn!("short stalls are missed, and all times are rough: {error:#}");
                gaps.push(Gap::lockups(
                    "nothing could be attached on this host".to_owned(),
                    None,
                ));
                (None, None, None, None)
            }
        };
        let no_surveys = surveyor.as_ref().err().map(|error| format!("{error:#}"));
        let gaps = Gap::set_right(gaps, no_surveys.as_deref());
        let surveys = match surveyor {
            Ok(mut surveyor) => {
                said.push("surveys".to_owned());
                if let Some(holds) = holds {
                    surveyor = surveyor.with_holds(Box::new(TracedHolds::new(holds)));
                }
                Some(Surveys::start(surveyor).context("cannot start a thread")?)
            }
            Err(error) => {
                tracing::warn!("holders and names of locks are not known: {error:#}");
                None
            }
        };
        Ok(Self {
            stream,
            surveys,
            symbols,
            cpus,
            counts,
            said,
            gaps,
        })
    }
}

/// The plan that was carried out.
struct Attached {
    plan: Plan,
    /// `None` where the plan sees no waits.
    stream: Option<Stream>,
    holds: Option<HoldProbes>,
    /// `None` where the plan does not sample, or no threshold asks for it.
    cpus: Option<Cpus>,
    /// `None` if nothing is counted.
    counts: Option<Counts>,
}

impl Attached {
    /// Makes a plan of what the kernel offers and carries it out. What the kernel refuses all the same is left out of the next plan. CPUs are sampled for the thresholds
    /// in `sampled`.
    fn by_plan(
        mut offer: Offer,
        types: &Types,
        args: &SourceArgs,
        symbols: Option<&Arc<Symbols>>,
        options: &StreamOptions,
        asked: Asked<'_>,
        sampled: Option<Thresholds>,
    ) -> anyhow::Result<Self> {
        let layout = &types.layout;
        let wanted = Wanted {
            holds: args.track_holds,
            holder_times: asked.holder_times,
        };
        for &mechanism in &args.without {
            let why = "it is not wanted (--without)".to_owned();
            offer.refused.insert(mechanism, why);
        }
        let names = symbols.map(Arc::as_ref);
        let globals = match asked.counting {
            Some(counting) => counts::globals(counting, layout, names)?,
            None => counts::classes_alone(layout),
        };
        // What is kept of them is read from memory.
        let long_holds = if offer.lockdown == Some(Lockdown::Confidentiality) {
            LongHoldGlobals::OFF
        } else {
            long_holds::globals(Nanos::from_duration(args.long_hold), layout)
        };
        let globals = (&globals, &long_holds);
        loop {
            let plan = plan(&offer, wanted);
            let carried_out = Self::carry_out(plan, types, names, options, globals);
            let error = match carried_out {
                Ok(mut attached) => {
                    if let Some(counting) = asked.counting {
                        attached.count(counting, layout, symbols);
                    }
                    return Ok(attached.and_cpus(layout, sampled));
                }
                Err(error) => error,
            };
            match refusal(&error) {
                Some(refused) if !offer.refused.contains_key(&refused.mechanism) => {
                    let (mechanism, why) = (refused.mechanism, format!("{error:#}"));
                    tracing::warn!("doing without {}: {why}", mechanism.name());
                    offer.refused.insert(mechanism, why);
                }
                _ => return Err(error),
            }
        }
    }

    fn carry_out(
        plan: Plan,
        types: &Types,
        symbols: Option<&Symbols>,
        options: &StreamOptions,
        (counts, long_holds): (&CountGlobals, &LongHoldGlobals),
    ) -> anyhow::Result<Self> {
        let Types {
            layout,
            hookable: btf,
            ..
        } = types;
        let mut counts = *counts;
        // Else there are no pages of tracers to look for, see `Self::count`.
        counts.config.tracers &= u32::from(plan.calls_from_trampolines());
        let counts = &counts;
        let mut stream = None;
        if plan.sees_waits() {
            stream = Some(Stream::load(&plan, layout, symbols, btf, options, counts)?);
        }
        let mmap_lock = layout.mm.mmap_lock;
        let mut holds = HoldProbes::load(&plan, &layout.task, mmap_lock, counts, long_holds, btf)?;
        // All is loaded before the first is attached.
        if let Some(stream) = &mut stream {
            stream.attach()?;
        }
        if let Some(holds) = &mut holds {
            holds.attach()?;
        }
        Ok(Self {
            plan,
            stream,
            holds,
            cpus: None,
            counts: None,
        })
    }

    /// Takes the counts of both objects together.
    fn count(&mut self, options: &CountOptions, layout: &Layout, symbols: Option<&Arc<Symbols>>) {
        let of_waits = self.stream.as_mut().and_then(Stream::take_counts);
        let of_holds = self.holds.as_mut().and_then(HoldProbes::take_counts);
        let maps = of_waits.into_iter().chain(of_holds).collect();
        let mut counts = Counts::new(maps, options, layout, symbols.cloned());
        if self.plan.calls_from_trampolines() {
            counts.leave_tracers_out();
        }
        self.counts = Some(counts);
    }

    /// Samples the CPUs, too. What forbids that takes nothing else away.
    fn and_cpus(mut self, layout: &Layout, sampled: Option<Thresholds>) -> Self {
        if let Some(thresholds) = sampled
            && self.plan.samples_cpus()
        {
            match Cpus::open(layout, thresholds) {
                Ok(cpus) => self.cpus = cpus,
                Err(error) => self.plan.lacks_lockups(one_line(&error.into())),
            }
        }
        self
    }

    fn said(&self) -> Vec<String> {
        let from = |what: &str, is_for: fn(Purpose) -> bool| {
            let mut places: Vec<&str> = self
                .plan
                .hooks
                .iter()
                .filter(|hook| is_for(hook.purpose))
                .map(|hook| hook.target.as_str())
                .collect();
            places.dedup();
            let count = places.len();
            let places = match places.as_slice() {
                [] => return None,
                [first, .., last] if count > PLACES_NAMED => format!("{first} … {last}"),
                _ => places.join(", "),
            };
            Some(format!("{what} from {places}"))
        };
        let waits = from("lock waits", |purpose| {
            matches!(purpose, Purpose::WaitBegin { .. } | Purpose::WaitEnd { .. })
        });
        let holds = from("holds", |purpose| {
            matches!(
                purpose,
                Purpose::Acquire { .. }
                    | Purpose::Release { .. }
                    | Purpose::Downgrade
                    | Purpose::MmapAcquired { .. }
                    | Purpose::MmapReleased { .. }
            )
        });
        let times = from("what holders do", |purpose| {
            matches!(
                purpose,
                Purpose::HolderSwitch { .. } | Purpose::HolderWakeup
            )
        });
        let beats = self.cpus.as_ref().map(Cpus::said);
        [waits, holds, times, beats].into_iter().flatten().collect()
    }
}

/// More places than these are named by the first and the last.
const PLACES_NAMED: usize = 4;

/// The hook that was refused, if that is what the error is about. Where something is
/// wanting, another hook would want it, too.
fn refusal(error: &anyhow::Error) -> Option<&Refused> {
    let refused = error.chain().find_map(|cause| {
        if let Some(StreamLoadError::Refused(refused)) = cause.downcast_ref() {
            return Some(refused);
        }
        if let Some(HoldsError::Refused(refused)) = cause.downcast_ref() {
            return Some(refused);
        }
        cause.downcast_ref()
    })?;
    (!matches!(refused.source, LoadError::Want(_))).then_some(refused)
}
