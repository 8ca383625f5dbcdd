use std::collections::BTreeSet;

use lockwatch_ebpf::stream::WAIT_SITES;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::{kernel::offer::Lockdown, lock::LockKind};

/// A file of `check --format json`.
#[derive(Deserialize)]
struct Captured {
    offer: Offer,
}

/// What a kernel was found to offer, from tests/fixtures/offers.
pub(crate) fn offer(kernel: &str) -> Offer {
    let path = format!(
        "{}/tests/fixtures/offers/{kernel}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(&path).expect(&path);
    serde_json::from_str::<Captured>(&text).expect(&path).offer
}

/// Has these mechanisms refused, as a host's policy does.
fn forbid(offer: &mut Offer, mechanisms: &[Mechanism]) {
    let refused = mechanisms.iter().map(|&one| (one, "forbidden".to_owned()));
    offer.refused.extend(refused);
}

/// The kernels that were run, and those made from source facts.
pub(crate) const KERNELS: [&str; 12] = [
    "3.10",
    "4.19",
    "5.10",
    "6.1",
    "6.1-rt",
    "6.12",
    "6.12-rt",
    "6.18",
    "6.18-restricted",
    "7.2",
    "7.3",
    "7.3-rt",
];

fn planned(kernel: &str) -> Plan {
    plan(&offer(kernel), Wanted::ALL)
}

/// A plan as the snapshots have it: a line for each decision.
fn shown(plan: &Plan) -> String {
    let mut lines = vec![format!("state {:?}", plan.state)];
    lines.extend(plan.hooks.iter().map(|hook| {
        format!(
            "{} {} ({}): {:?}",
            hook.mechanism.name(),
            hook.target,
            hook.parameters,
            hook.purpose
        )
    }));
    lines.extend(
        plan.reasons
            .iter()
            .map(|reason| format!("because {reason}")),
    );
    lines.extend(plan.gaps.iter().map(|gap| {
        let Gap {
            subject,
            missing,
            why,
            cost,
            remedy,
        } = gap;
        let remedy = remedy.as_deref().unwrap_or("-");
        format!("gap {subject:?}: {missing} | {why} | {cost} | {remedy}")
    }));
    lines.join("\n")
}

#[test]
fn each_kernel_has_its_plan() {
    for kernel in KERNELS {
        insta::assert_snapshot!(kernel, shown(&planned(kernel)));
    }
}

fn targets(plan: &Plan, mechanism: Mechanism) -> BTreeSet<&str> {
    plan.hooks
        .iter()
        .filter(|hook| hook.mechanism == mechanism)
        .map(|hook| hook.target.as_str())
        .collect()
}

#[test]
fn where_functions_are_refused_tracepoints_do() {
    let plan = planned("6.18-restricted");
    assert!(
        plan.hooks
            .iter()
            .all(|hook| hook.mechanism == Mechanism::TpBtf)
    );
    let targets = targets(&plan, Mechanism::TpBtf);
    for name in [
        "contention_begin",
        "contention_end",
        "mmap_lock_acquire_returned",
        "mmap_lock_released",
    ] {
        assert!(targets.contains(name), "{name} in {targets:?}");
    }
    let gaps: Vec<Subject> = plan.gaps.iter().map(|gap| gap.subject).collect();
    assert_eq!(gaps, [Subject::Holds]);
}

#[test]
fn positions_in_mmap_lock_tracepoints_follow_their_arguments() {
    let purposes = |kernel| {
        let mut offer = offer(kernel);
        forbid(&mut offer, &[Mechanism::Fentry, Mechanism::Fexit]);
        let plan = plan(&offer, Wanted::ALL);
        plan.hooks
            .iter()
            .map(|hook| hook.purpose)
            .filter(|purpose| {
                matches!(
                    purpose,
                    Purpose::MmapAcquired { .. } | Purpose::MmapReleased { .. }
                )
            })
            .collect::<Vec<_>>()
    };
    let at = |write| {
        [
            Purpose::MmapReleased { write },
            Purpose::MmapAcquired {
                write,
                success: write + 1,
            },
        ]
    };
    assert_eq!(purposes("6.12"), at(2), "with memcg_path");
    assert_eq!(purposes("6.18"), at(1), "without");
}

#[test]
fn before_the_contention_tracepoints_functions_tell_waits() {
    let plan = planned("5.10");
    for name in ["rwsem_down_read_slowpath", "rwsem_down_write_slowpath"] {
        assert!(targets(&plan, Mechanism::Fentry).contains(name), "{name}");
        assert!(targets(&plan, Mechanism::Fexit).contains(name), "{name}");
    }
    assert_eq!(plan.state, State::Hash);
    let last = plan.hooks.last().expect("hooks");
    assert_eq!(last.purpose, Purpose::TaskExit, "the hash map is cleaned");
}

#[test]
fn without_types_kprobes_would_see_begins_but_nothing_can_run() {
    for (kernel, names) in [
        (
            "3.10",
            &["rwsem_down_read_failed", "rwsem_down_write_failed"][..],
        ),
        (
            "4.19",
            &[
                "rwsem_down_read_failed",
                "rwsem_down_read_failed_killable",
                "rwsem_down_write_failed",
                "rwsem_down_write_failed_killable",
            ],
        ),
    ] {
        let mut offer = offer(kernel);
        offer.lacking.remove(&Feature::RingBuffer);
        let plan = plan(&offer, Wanted::ALL);
        let found = targets(&plan, Mechanism::Kprobe);
        assert_eq!(found, names.iter().copied().collect(), "{kernel}");
        assert_eq!(found.len(), plan.hooks.len(), "{kernel}: nothing else");
        let everything: Vec<_> = plan.gaps_in(Subject::Everything).collect();
        assert!(
            everything.iter().any(|gap| gap.why.contains("BTF")),
            "{kernel}: {everything:?}"
        );
    }
}

#[test]
fn a_clone_or_a_release_out_of_sight_leaves_no_hold_for_ever() {
    let mut offer = offer("6.12");
    offer.symbols.insert(
        "up_read".to_owned(),
        vec!["up_read".into(), "up_read.isra.0".into()],
    );
    let plan = plan(&offer, Wanted::ALL);
    let holds = |hook: &Hook| matches!(hook.purpose, Purpose::Acquire { .. });
    assert!(!plan.hooks.iter().any(holds));
    assert!(
        plan.gaps_in(Subject::Holds)
            .any(|gap| gap.why.contains("isra"))
    );
}

#[test]
fn where_typed_tracepoints_are_refused_raw_ones_do() {
    let mut offer = offer("6.18-restricted");
    forbid(&mut offer, &[Mechanism::TpBtf]);
    let raw = plan(&offer, Wanted::ALL);
    let typed = planned("6.18-restricted");
    assert_eq!(
        targets(&raw, Mechanism::RawTp),
        targets(&typed, Mechanism::TpBtf)
    );
    assert_eq!(raw.hooks.len(), typed.hooks.len(), "nothing else");
    assert_eq!(raw.gaps, typed.gaps);
}

#[test]
fn what_a_raw_tracepoint_must_read_and_may_not_is_a_gap() {
    let mut offer = offer("6.18-restricted");
    forbid(&mut offer, &[Mechanism::TpBtf]);
    offer.lockdown = Some(Lockdown::Confidentiality);
    let plan = plan(&offer, Wanted::ALL);
    assert_eq!(plan.hooks, []);
    for subject in [Subject::WaitBegins, Subject::Holds] {
        assert!(
            plan.gaps_in(subject)
                .any(|gap| gap.why.contains("confidentiality")),
            "{subject:?}: {:?}",
            plan.gaps
        );
    }
}

#[test]
fn functions_whose_programs_would_read_locked_down_memory_are_a_gap() {
    // Typed, or by kprobe.
    for refused in [None, Some(Mechanism::Fexit)] {
        let mut offer = offer("5.10");
        offer.lockdown = Some(Lockdown::Integrity);
        forbid(&mut offer, refused.as_slice());
        assert!(plan(&offer, Wanted::WITHOUT_HOLDS).sees_waits());
        offer.lockdown = Some(Lockdown::Confidentiality);
        let plan = plan(&offer, Wanted::WITHOUT_HOLDS);
        assert_eq!(plan.hooks, [], "{refused:?}");
        let gap = plan.gaps_in(Subject::WaitBegins).next().expect("a gap");
        assert!(gap.why.contains("confidentiality"), "{gap:?}");
    }
}

#[test]
fn who_does_not_tell_what_holders_do_hooks_no_switches() {
    for kernel in KERNELS {
        let with = plan(&offer(kernel), Wanted::WITHOUT_HOLDS);
        let wanted = Wanted {
            holder_times: false,
            ..Wanted::WITHOUT_HOLDS
        };
        let without = plan(&offer(kernel), wanted);
        // The oldest have no such hooks, of which nobody is told who does not want them.
        let is_old = ["3.10", "4.19"].contains(&kernel);
        assert_eq!(with.sees_holder_times(), !is_old, "{kernel}");
        assert!(!without.sees_holder_times(), "{kernel}");
        let of_times = |hook: &Hook| {
            matches!(
                hook.purpose,
                Purpose::HolderSwitch { .. } | Purpose::HolderWakeup
            )
        };
        let rest: Vec<Hook> = with
            .hooks
            .into_iter()
            .filter(|hook| !of_times(hook))
            .collect();
        assert_eq!(without.hooks, rest, "{kernel}");
        let gaps = with.gaps.into_iter();
        let rest: Vec<_> = gaps
            .filter(|gap| gap.subject != Subject::HolderTimes)
            .collect();
        assert_eq!(without.gaps, rest, "{kernel}");
    }
}

#[test]
fn without_task_storage_holds_need_memory_that_is_not_locked_down() {
    let mut offer = offer("6.12");
    offer.lockdown = Some(Lockdown::Confidentiality);
    let is_hold = |hook: &Hook| matches!(hook.purpose, Purpose::Release { .. });
    let stored = plan(&offer, Wanted::ALL);
    assert!(stored.hooks.iter().any(is_hold), "{:?}", stored.gaps);
    offer
        .lacking
        .insert(Feature::TaskStorage, "not there".to_owned());
    let hashed = plan(&offer, Wanted::ALL);
    assert!(!hashed.hooks.iter().any(is_hold));
    assert!(hashed.sees_waits());
    let gap = hashed.gaps_in(Subject::Holds).next().expect("a gap");
    assert!(gap.why.contains("confidentiality"), "{gap:?}");
}

#[test]
fn no_reason_claims_a_kind_that_was_left_out() {
    let mut offer = offer("5.10");
    let clones = (0..WAIT_SITES).map(|number| format!("rwsem_down_read_slowpath.isra.{number}"));
    offer
        .symbols
        .insert("rwsem_down_read_slowpath".to_owned(), clones.collect());
    let plan = plan(&offer, Wanted::WITHOUT_HOLDS);
    let begins = |hook: &&Hook| matches!(hook.purpose, Purpose::WaitBegin { .. });
    assert_eq!(plan.hooks.iter().filter(begins).count(), WAIT_SITES);
    // What comes behind that is why.
    let claims = plan
        .reasons
        .iter()
        .filter_map(|reason| reason.split(" by ").next());
    let claims: Vec<&str> = claims.collect();
    let claimed = |what: &str| claims.iter().any(|claim| claim.contains(what));
    assert!(claimed("rwsem_down_read_slowpath.isra.0"));
    assert!(!claimed("mutexes"), "{claims:?}");
    // One clone is one too many, as the writers' function comes first.
    let last = format!("rwsem_down_read_slowpath.isra.{}", WAIT_SITES - 1);
    assert!(!claimed(&last), "{claims:?}");
    let left_out = plan
        .gaps_in(Subject::WaitBegins)
        .any(|gap| gap.missing.contains("__mutex_lock") && gap.missing.contains(&last));
    assert!(left_out, "{:?}", plan.gaps);
}

#[test]
fn more_functions_than_programs_are_a_gap() {
    let mut offer = offer("5.10");
    forbid(&mut offer, &[Mechanism::Fentry, Mechanism::Fexit]);
    let clones = (0..WAIT_SITES).map(|number| format!("rwsem_down_read_slowpath.isra.{number}"));
    offer
        .symbols
        .insert("rwsem_down_read_slowpath".to_owned(), clones.collect());
    let plan = plan(&offer, Wanted::WITHOUT_HOLDS);
    let begins = |hook: &&Hook| matches!(hook.purpose, Purpose::WaitBegin { .. });
    assert_eq!(plan.hooks.iter().filter(begins).count(), WAIT_SITES);
    assert!(
        plan.gaps_in(Subject::WaitBegins)
            .any(|gap| gap.missing.contains("waits in rwsem_down_write_slowpath")),
        "{:?}",
        plan.gaps
    );
}

#[test]
fn a_mutex_wait_never_begins_where_only_a_survey_could_end_it() {
    let mut offer = offer("5.10");
    forbid(&mut offer, &[Mechanism::Fexit]);
    let plan = plan(&offer, Wanted::WITHOUT_HOLDS);
    let kinds: BTreeSet<String> = plan
        .hooks
        .iter()
        .filter_map(|hook| match hook.purpose {
            Purpose::WaitBegin {
                awaited: Some(awaited),
                ..
            } => Some(format!("{:?}", awaited.kind)),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, BTreeSet::from([format!("{:?}", LockKind::Rwsem)]));
}

#[test]
fn a_layout_that_nobody_knows_is_a_gap_and_not_a_guess() {
    let mut offer = offer("6.12");
    offer.unknown_layout = Some("no rw_semaphore.count".to_owned());
    let plan = plan(&offer, Wanted::ALL);
    let gap = plan.gaps_in(Subject::Everything).next().expect("a gap");
    assert_eq!(gap.why, "no rw_semaphore.count");
}

#[test]
fn without_samples_of_cpus_lockups_are_a_gap() {
    let offered = offer("6.18-restricted");
    let gaps = |offer: &Offer| -> Vec<Gap> {
        let plan = plan(offer, Wanted::ALL);
        plan.gaps_in(Subject::Lockups).cloned().collect()
    };
    assert_eq!(
        gaps(&offered),
        [],
        "tracepoints and samples are all it takes"
    );
    let mut lacking = offered.clone();
    let why = "a security policy of this host forbids it".to_owned();
    lacking.lacking.insert(Feature::CpuSamples, why.clone());
    assert!(gaps(&lacking)[0].why.ends_with(&why));
    let mut locked = offered.clone();
    locked.lockdown = Some(Lockdown::Confidentiality);
    assert!(gaps(&locked)[0].remedy.is_some());
    let mut untraced = offered;
    forbid(&mut untraced, &[Mechanism::RawTp]);
    assert_eq!(gaps(&untraced).len(), 1);
}

/// An offer from which anything may be taken away.
pub(crate) fn less(offer: Offer) -> impl Strategy<Value = Offer> {
    let keep = |len: usize| prop::collection::vec(prop::bool::weighted(0.8), len);
    let refuse = prop::sample::subsequence(Mechanism::ALL.to_vec(), 0..=Mechanism::ALL.len());
    let features = [
        Feature::TaskStorage,
        Feature::TaskIterator,
        Feature::RingBuffer,
        Feature::CpuSamples,
    ];
    let lack = prop::sample::subsequence(features.to_vec(), 0..=1);
    let lockdowns = [None, Some(Lockdown::None), Some(Lockdown::Integrity)];
    let lockdown = prop_oneof![
        2 => prop::sample::select(lockdowns.to_vec()),
        1 => Just(Some(Lockdown::Confidentiality)),
    ];
    (
        keep(offer.tracepoints.len()),
        keep(offer.functions.len()),
        keep(offer.symbols.len()),
        refuse,
        lack,
        prop::bool::weighted(0.9),
        lockdown,
    )
        .prop_map(
            move |(tracepoints, functions, symbols, refused, lacking, btf, lockdown)| {
                let mut offer = offer.clone();
                offer.lockdown = lockdown;
                let mut kept = tracepoints.iter();
                offer
                    .tracepoints
                    .retain(|_, _| *kept.next().unwrap_or(&true));
                let mut kept = functions.iter();
                offer.functions.retain(|_, _| *kept.next().unwrap_or(&true));
                let mut kept = symbols.iter();
                offer.symbols.retain(|_, _| *kept.next().unwrap_or(&true));
                if !btf {
                    offer.btf = false;
                    offer.tracepoints.clear();
                    offer.functions.clear();
                }
                forbid(&mut offer, &refused);
                for feature in lacking {
                    offer.lacking.insert(feature, "not there".to_owned());
                }
                offer
            },
        )
}

/// Whether the kernel offers this hook, as it is spelled.
fn is_offered(offer: &Offer, hook: &Hook) -> bool {
    let spelled = offer.symbols.values().flatten();
    let place = match hook.mechanism {
        Mechanism::TpBtf | Mechanism::RawTp => offer
            .tracepoints
            .get(&hook.target)
            .is_some_and(|arguments| arguments.len() == usize::from(hook.parameters)),
        Mechanism::Fentry | Mechanism::Fexit => {
            offer.btf && offer.functions.get(&hook.target) == Some(&hook.parameters)
        }
        Mechanism::Kprobe => spelled.filter(|name| **name == hook.target).count() == 1,
    };
    place && offer.refusal(hook.mechanism).is_none()
}

fn check_plan(offer: &Offer, wanted: Wanted) -> Result<(), TestCaseError> {
    let plan = plan(offer, wanted);
    prop_assert!(wanted.holder_times || !plan.sees_holder_times());
    let mut places = BTreeSet::new();
    for hook in &plan.hooks {
        prop_assert!(is_offered(offer, hook), "{hook:?}");
        prop_assert!(
            places.insert((hook.mechanism, &hook.target)),
            "twice: {hook:?}"
        );
        if let Purpose::WaitBegin { awaited, end } = hook.purpose {
            let ends = |other: &Hook| {
                matches!(other.purpose, Purpose::WaitEnd { awaited: ended, .. } if ended == awaited)
                    && (awaited.is_none() || other.target == hook.target)
            };
            match end {
                WaitEnds::Hook => prop_assert!(plan.hooks.iter().any(ends), "no end: {hook:?}"),
                WaitEnds::Survey => {
                    let said = plan.gaps_in(Subject::WaitEnds).count() > 0;
                    prop_assert!(said, "nobody says when it ends: {hook:?}");
                }
            }
        }
    }
    let mode_of = |hook: &Hook| match hook.purpose {
        Purpose::Acquire { mode, .. } => Some(mode),
        _ => None,
    };
    for mode in plan.hooks.iter().filter_map(mode_of) {
        let released = Purpose::Release { mode };
        prop_assert!(
            plan.hooks.iter().any(|hook| hook.purpose == released),
            "held for ever"
        );
    }
    if !plan.sees_waits() {
        prop_assert!(plan.gaps_in(Subject::WaitBegins).count() > 0);
    }
    for gap in &plan.gaps {
        prop_assert!(!gap.missing.is_empty() && !gap.why.is_empty() && !gap.cost.is_empty());
    }
    Ok(())
}

proptest! {
    #[test]
    fn whatever_is_taken_away_the_plan_stays_sound(
        offer in prop::sample::select(KERNELS.to_vec()).prop_flat_map(|kernel| less(offer(kernel))),
        holds in any::<bool>(),
        holder_times in any::<bool>(),
    ) {
        check_plan(&offer, Wanted { holds, holder_times })?;
    }
}
