//! What a trace holds, read back. `cargo xtask formats` holds it against perfetto's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::*;
use crate::{report::example, survey::Survey, task::Nanos};

fn trace(survey: Survey) -> Trace {
    let timeline = Timeline::of_survey(&Arc::new(survey), Nanos(example::SEC));
    let mut out = Vec::new();
    write_trace(&mut out, &example::host(), &timeline).unwrap();
    Trace::decode(out.as_slice()).unwrap()
}

fn events(trace: &Trace) -> impl Iterator<Item = (u64, &TrackEvent)> {
    trace
        .packet
        .iter()
        .filter_map(|packet| Some((packet.timestamp?, packet.track_event.as_ref()?)))
}

#[test]
fn each_lock_has_a_track_and_each_task_one_below_it() {
    let trace = trace(example::write_held_directory());
    let descriptors: Vec<&TrackDescriptor> = trace
        .packet
        .iter()
        .filter_map(|packet| packet.track_descriptor.as_ref())
        .collect();
    let locks: Vec<_> = descriptors
        .iter()
        .filter(|d| d.parent_uuid.is_none())
        .collect();
    assert_eq!(locks.len(), 1);
    assert!(locks[0].name().contains("i_rwsem"), "{locks:?}");
    for task in descriptors.iter().filter(|d| d.parent_uuid.is_some()) {
        assert_eq!(task.parent_uuid, locks[0].uuid);
    }
}

#[test]
fn slices_of_one_track_begin_and_end_in_turn() {
    for survey in [
        example::incident(),
        example::several_locks(),
        example::cycle(),
        example::granted_reader(),
    ] {
        let mut open: BTreeMap<u64, bool> = BTreeMap::new();
        let mut before = 0;
        for (at_ns, event) in events(&trace(survey)) {
            assert!(at_ns >= before, "in the order of time");
            before = at_ns;
            let open = open.entry(event.track_uuid()).or_default();
            match event.r#type() {
                EventType::SliceBegin => assert!(!std::mem::replace(open, true)),
                EventType::SliceEnd => assert!(std::mem::replace(open, false)),
                EventType::Instant => assert!(*open, "inside the wait"),
                EventType::Unspecified => panic!("{event:?}"),
            }
        }
        assert!(open.values().all(|open| !open));
    }
}

#[test]
fn every_waiter_has_an_arrow_from_the_holder() {
    let survey = example::incident();
    let waiters = survey.locks[0].waiters.len();
    let trace = trace(survey);
    let mut begun: BTreeSet<u64> = BTreeSet::new();
    let mut ended = BTreeSet::new();
    for (_, event) in events(&trace) {
        begun.extend(&event.flow_ids);
        for id in &event.terminating_flow_ids {
            assert!(begun.contains(id), "an arrow begins at its holder");
            assert!(ended.insert(*id));
        }
    }
    assert_eq!(ended.len(), waiters);
    assert_eq!(begun.len(), waiters);
}
