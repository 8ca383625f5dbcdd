//! No plan promises what cannot be loaded.

use std::collections::BTreeMap;

use aya_obj::{Object, ProgramSection};
use lockwatch_ebpf::stream::WAIT_SITES;
use proptest::prelude::*;

use super::{holds, stream};
use crate::{
    lock::{LockKind, LockMode},
    plan::{
        Awaited, Hook, Mechanism, Offer, Outcome, Purpose, State, WaitEnds, Wanted, plan,
        tests::{KERNELS, less, offer},
    },
};

/// The programs of an object, and how each is attached.
fn programs_of(object: &[u8]) -> BTreeMap<String, Mechanism> {
    let object = Object::parse(object).expect("an embedded object");
    let program = |(name, program): (String, aya_obj::Program)| {
        let mechanism = match program.section {
            ProgramSection::BtfTracePoint => Mechanism::TpBtf,
            ProgramSection::RawTracePoint => Mechanism::RawTp,
            ProgramSection::FEntry { .. } => Mechanism::Fentry,
            ProgramSection::FExit { .. } => Mechanism::Fexit,
            ProgramSection::KProbe => Mechanism::Kprobe,
            _ => return None,
        };
        Some((name, mechanism))
    };
    object.programs.into_iter().filter_map(program).collect()
}

/// All that is embedded.
struct Objects {
    stream: BTreeMap<String, Mechanism>,
    in_task_storage: BTreeMap<String, Mechanism>,
    by_tid: BTreeMap<String, Mechanism>,
}

impl Objects {
    fn read() -> Self {
        Self {
            stream: programs_of(stream::OBJECT),
            in_task_storage: programs_of(holds::object(State::TaskStorage)),
            by_tid: programs_of(holds::object(State::Hash)),
        }
    }

    /// Each hook of the plan has one program, which is attached as the hook says.
    fn check(&self, offer: &Offer, wanted: Wanted) -> Result<(), TestCaseError> {
        let plan = plan(offer, wanted);
        let holds_object = match plan.state {
            State::TaskStorage => &self.in_task_storage,
            State::Hash => &self.by_tid,
        };
        let (of_stream, _) = stream::programs(&plan.hooks)
            .map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        let of_holds = holds::programs(&plan.hooks)
            .map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        let mut served: Vec<&Hook> = Vec::new();
        for (object, hooks) in [(&self.stream, &of_stream), (holds_object, &of_holds)] {
            for (name, hook) in hooks {
                prop_assert_eq!(
                    object.get(name),
                    Some(&hook.mechanism),
                    "{} for {:?}",
                    name,
                    hook
                );
                served.push(hook);
            }
        }
        for hook in &plan.hooks {
            let times = served.iter().filter(|other| **other == hook).count();
            prop_assert_eq!(times, 1, "{:?}", hook);
        }
        Ok(())
    }
}

#[test]
fn each_hook_of_each_kernel_has_its_program() {
    let objects = Objects::read();
    for kernel in KERNELS {
        let offered = offer(kernel);
        objects
            .check(&offered, Wanted { holds: true })
            .unwrap_or_else(|error| panic!("{kernel}: {error}"));
    }
}

#[test]
fn whatever_is_taken_away_each_hook_has_its_program() {
    let objects = Objects::read();
    let offers = prop::sample::select(KERNELS.to_vec()).prop_flat_map(|name| less(offer(name)));
    proptest!(|(offer in offers, holds in any::<bool>())| {
        objects.check(&offer, Wanted { holds })?;
    });
}

#[test]
fn a_hook_that_no_program_serves_is_an_error_and_not_left_out() {
    let begin = |number: usize| Hook {
        purpose: Purpose::WaitBegin {
            awaited: Some(Awaited {
                kind: LockKind::Rwsem,
                mode: Some(LockMode::Read),
            }),
            end: WaitEnds::Survey,
        },
        mechanism: Mechanism::Kprobe,
        target: format!("rwsem_down_read_slowpath.isra.{number}"),
        parameters: 1,
    };
    let as_many: Vec<Hook> = (0..WAIT_SITES).map(begin).collect();
    let (served, _) = stream::programs(&as_many).expect("a program for each");
    assert_eq!(served.len(), WAIT_SITES);
    let too_many: Vec<Hook> = (0..=WAIT_SITES).map(begin).collect();
    let refused = stream::programs(&too_many).expect_err("one more than there are");
    assert_eq!(refused.target, too_many[WAIT_SITES].target);

    let acquire = Hook {
        purpose: Purpose::Acquire {
            mode: LockMode::Read,
            outcome: Outcome::Always,
        },
        ..begin(0)
    };
    let refused = holds::programs(std::slice::from_ref(&acquire)).expect_err("not by kprobe");
    assert_eq!(refused.mechanism, Mechanism::Kprobe);
}
