//! No plan promises what cannot be loaded.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya_obj::{Object, ProgramSection, generated::bpf_insn};
use lockwatch_ebpf::stream::WAIT_SITES;
use proptest::prelude::*;

use super::{holds, stream};
use crate::{
    kernel::offer::Lockdown,
    lock::{LockKind, LockMode},
    plan::{
        Awaited, Hook, Mechanism, Offer, Outcome, Purpose, State, WaitEnds, Wanted, plan,
        tests::{KERNELS, less, offer},
    },
};

/// How a program is attached, and what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Embedded {
    mechanism: Mechanism,
    /// It calls `bpf_probe_read_kernel`, which a kernel that is locked down for
    /// confidentiality does not offer.
    reads_memory: bool,
}

/// Number of `bpf_probe_read_kernel` (include/uapi/linux/bpf.h).
const PROBE_READ_KERNEL: i32 = 113;
/// Number of `bpf_get_stack`.
const GET_STACK: i32 = 67;
/// `BPF_JMP | BPF_CALL`, of a helper or of a function, by the source register.
const CALL: u8 = 0x85;
const OF_HELPER: u8 = 0;
const OF_FUNCTION: u8 = 1;

/// Whether a program that is linked with its functions reads memory, in what is not about
/// counting: the verifier drops that where nothing is to be counted, and it is where stacks are
/// looked at.
fn reads_memory(instructions: &[bpf_insn]) -> bool {
    let callee = |at: usize| {
        let next = at as i64 + 1;
        usize::try_from(next + i64::from(instructions[at].imm)).expect("a function of the program")
    };
    let is_call =
        |at: usize, of: u8| instructions[at].code == CALL && instructions[at].src_reg() == of;
    let calls = (0..instructions.len()).filter(|&at| is_call(at, OF_FUNCTION));
    let starts: BTreeSet<usize> = calls.map(callee).chain([0]).collect();
    let (mut seen, mut ahead) = (BTreeSet::new(), vec![0]);
    while let Some(start) = ahead.pop() {
        if !seen.insert(start) {
            continue;
        }
        let end = starts.range(start + 1..).next();
        let body = start..end.copied().unwrap_or(instructions.len());
        let helpers = body.clone().filter(|&at| is_call(at, OF_HELPER));
        let helpers: BTreeSet<i32> = helpers.map(|at| instructions[at].imm).collect();
        if helpers.contains(&GET_STACK) {
            continue;
        }
        if helpers.contains(&PROBE_READ_KERNEL) {
            return true;
        }
        ahead.extend(body.filter(|&at| is_call(at, OF_FUNCTION)).map(callee));
    }
    false
}

/// The programs of an object.
fn programs_of(object: &[u8]) -> BTreeMap<String, Embedded> {
    let mut object = Object::parse(object).expect("an embedded object");
    let sections = object.functions.keys().map(|(section, _)| *section);
    let sections: HashSet<usize> = sections.collect();
    object.relocate_calls(&sections).expect("functions to call");
    let functions = object.functions;
    let program = |(name, program): (String, aya_obj::Program)| {
        let mechanism = match program.section {
            ProgramSection::BtfTracePoint => Mechanism::TpBtf,
            ProgramSection::RawTracePoint => Mechanism::RawTp,
            ProgramSection::FEntry { .. } => Mechanism::Fentry,
            ProgramSection::FExit { .. } => Mechanism::Fexit,
            ProgramSection::KProbe => Mechanism::Kprobe,
            _ => return None,
        };
        let function = functions
            .get(&program.function_key())
            .expect("the function of a program");
        let embedded = Embedded {
            mechanism,
            reads_memory: reads_memory(&function.instructions),
        };
        Some((name, embedded))
    };
    object.programs.into_iter().filter_map(program).collect()
}

/// All that is embedded.
struct Objects {
    stream: BTreeMap<String, Embedded>,
    in_task_storage: BTreeMap<String, Embedded>,
    by_tid: BTreeMap<String, Embedded>,
}

impl Objects {
    fn read() -> Self {
        Self {
            stream: programs_of(stream::OBJECT),
            in_task_storage: programs_of(holds::object(State::TaskStorage)),
            by_tid: programs_of(holds::object(State::Hash)),
        }
    }

    /// Each hook of the plan has one program, which is attached as the hook says and needs
    /// nothing that is not offered.
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
                let program = object.get(name);
                prop_assert_eq!(
                    program.map(|program| program.mechanism),
                    Some(hook.mechanism),
                    "{} for {:?}",
                    name,
                    hook
                );
                let reads = program.is_some_and(|program| program.reads_memory);
                prop_assert!(
                    !reads || offer.lockdown != Some(Lockdown::Confidentiality),
                    "{name} reads memory that is locked down: {hook:?}"
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
fn what_reads_memory_is_told_from_what_follows_types() {
    let objects = Objects::read();
    let reads = |object: &BTreeMap<String, Embedded>, name: &str| object[name].reads_memory;
    assert!(reads(&objects.stream, "wait_begin_0"));
    assert!(reads(&objects.stream, "wait_kprobe_0"));
    assert!(reads(&objects.by_tid, "down_read"));
    assert!(!reads(&objects.in_task_storage, "down_read"));
    assert!(!reads(&objects.stream, "contention_end"));
}

#[test]
fn each_hook_of_each_kernel_has_its_program() {
    let objects = Objects::read();
    for kernel in KERNELS {
        let offered = offer(kernel);
        objects
            .check(&offered, Wanted::ALL)
            .unwrap_or_else(|error| panic!("{kernel}: {error}"));
    }
}

#[test]
fn whatever_is_taken_away_each_hook_has_its_program() {
    let objects = Objects::read();
    let offers = prop::sample::select(KERNELS.to_vec()).prop_flat_map(|name| less(offer(name)));
    proptest!(|(offer in offers, holds in any::<bool>(), holder_times in any::<bool>())| {
        objects.check(&offer, Wanted { holds, holder_times })?;
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
