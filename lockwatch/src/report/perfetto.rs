//! Waits and holds over time as a Perfetto trace: a track for each lock with one for each
//! task below it, and an arrow from each holder to those who wait for it.
//!
//! The messages are the part of perfetto's `protos/perfetto/trace/` (v50) that is needed.

mod proto;

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use prost::Message as _;

use self::proto::{
    CLOCK_MONOTONIC, CLOCK_REALTIME, Clock, ClockSnapshot, DebugAnnotation, EventType, SystemInfo,
    Trace, TracePacket, TrackDescriptor, TrackEvent, Utsname,
};
use super::{Host, text};
use crate::{
    graph::timeline::{Slice, Timeline, Track},
    lock::{Confidence, LockMode},
    task::TaskKey,
};

/// Arrows; more are of no use to anybody.
const FLOWS_MAX: u64 = 1 << 17;

/// Writes the trace.
///
/// # Errors
/// When `out` does.
pub fn write_trace(out: &mut dyn Write, host: &Host, timeline: &Timeline) -> io::Result<()> {
    let mut drawing = Drawing::default();
    for ((_, name), track) in timeline.tracks() {
        drawing.lock(&name, &track);
    }
    let mut packets = vec![system(host), clocks(timeline)];
    packets.append(&mut drawing.descriptors);
    // On one track an end comes before the begin of what follows, and a hold before the
    // wait that its arrow goes to.
    drawing
        .events
        .sort_by_key(|(at_ns, order, _)| (*at_ns, *order));
    packets.extend(
        drawing
            .events
            .into_iter()
            .map(|(at_ns, _, event)| TracePacket {
                timestamp: Some(at_ns),
                timestamp_clock_id: Some(CLOCK_MONOTONIC),
                track_event: Some(event),
                ..packet()
            }),
    );
    out.write_all(&Trace { packet: packets }.encode_to_vec())
}

/// Everything is of one writer.
fn packet() -> TracePacket {
    TracePacket {
        trusted_packet_sequence_id: Some(1),
        ..TracePacket::default()
    }
}

fn system(host: &Host) -> TracePacket {
    let utsname = Utsname {
        sysname: Some("Linux".to_owned()),
        release: Some(host.kernel.clone()),
        machine: Some(host.arch.clone()),
    };
    TracePacket {
        system_info: Some(SystemInfo {
            utsname: Some(utsname),
        }),
        ..packet()
    }
}

/// Tells a viewer what time of day it was.
fn clocks(timeline: &Timeline) -> TracePacket {
    let (at, at_ns) = timeline.anchor().unwrap_or_default();
    let real_ns = u64::try_from(at.as_nanosecond()).unwrap_or(0);
    let clock = |clock_id, timestamp| Clock {
        clock_id: Some(clock_id),
        timestamp: Some(timestamp),
    };
    TracePacket {
        clock_snapshot: Some(ClockSnapshot {
            clocks: vec![
                clock(CLOCK_MONOTONIC, at_ns),
                clock(CLOCK_REALTIME, real_ns),
            ],
            primary_trace_clock: Some(CLOCK_MONOTONIC.cast_signed()),
        }),
        ..packet()
    }
}

/// What comes first at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    End,
    Hold,
    Wait,
    Arrow,
}

#[derive(Default)]
struct Drawing {
    descriptors: Vec<TracePacket>,
    events: Vec<(u64, Order, TrackEvent)>,
    tracks: u64,
    flows: u64,
}

impl Drawing {
    fn lock(&mut self, name: &str, track: &Track) {
        let lock = self.track(&clean(name), None);
        let mut holds: Vec<(&Slice, u64, Vec<u64>)> = Vec::new();
        let mut of_holders = BTreeMap::new();
        for hold in &track.holds {
            let holder = self.task_track(&mut of_holders, hold, lock, "holds");
            holds.push((hold, holder, Vec::new()));
        }
        let mut of_waiters = BTreeMap::new();
        for wait in &track.waits {
            let waiter = self.task_track(&mut of_waiters, wait, lock, "waits");
            let mut event = begin(waiter, wait);
            for (hold, _, flows) in &mut holds {
                let meet_ns = hold.from_ns.max(wait.from_ns);
                let meet = meet_ns <= hold.to_ns && meet_ns < wait.to_ns;
                if !meet || self.flows >= FLOWS_MAX {
                    continue;
                }
                self.flows += 1;
                flows.push(self.flows);
                if hold.from_ns <= wait.from_ns {
                    event.terminating_flow_ids.push(self.flows);
                } else {
                    // An arrow goes forward in time: to where the holder is first known.
                    let found = TrackEvent {
                        r#type: Some(EventType::Instant.into()),
                        track_uuid: Some(waiter),
                        name: Some(format!("held by {}", clean(&hold.task.to_string()))),
                        categories: vec!["lock".to_owned()],
                        terminating_flow_ids: vec![self.flows],
                        ..TrackEvent::default()
                    };
                    self.events.push((meet_ns, Order::Arrow, found));
                }
            }
            self.slice(waiter, wait, event, Order::Wait);
        }
        for (hold, holder, flows) in holds {
            let mut event = begin(holder, hold);
            event.flow_ids = flows;
            self.slice(holder, hold, event, Order::Hold);
        }
    }

    fn slice(&mut self, track: u64, slice: &Slice, event: TrackEvent, order: Order) {
        self.events.push((slice.from_ns, order, event));
        let end = TrackEvent {
            r#type: Some(EventType::SliceEnd.into()),
            track_uuid: Some(track),
            ..TrackEvent::default()
        };
        // One that takes no time would end before it begins.
        let to_ns = slice.to_ns.max(slice.from_ns + 1);
        self.events.push((to_ns, Order::End, end));
    }

    /// The track of a task below a lock's. Of one task on one track no two slices overlap.
    fn task_track(
        &mut self,
        known: &mut BTreeMap<TaskKey, Vec<(u64, u64)>>,
        slice: &Slice,
        lock: u64,
        what: &str,
    ) -> u64 {
        let lanes = known.entry(slice.task.key).or_default();
        let to_ns = slice.to_ns.max(slice.from_ns + 1);
        if let Some((busy_ns, track)) = lanes.iter_mut().find(|lane| lane.0 <= slice.from_ns) {
            *busy_ns = to_ns;
            return *track;
        }
        let name = format!("{} {what}", clean(&slice.task.to_string()));
        let track = self.track(&name, Some(lock));
        lanes.push((to_ns, track));
        track
    }

    fn track(&mut self, name: &str, parent_uuid: Option<u64>) -> u64 {
        self.tracks += 1;
        self.descriptors.push(TracePacket {
            track_descriptor: Some(TrackDescriptor {
                uuid: Some(self.tracks),
                name: Some(name.to_owned()),
                parent_uuid,
            }),
            ..packet()
        });
        self.tracks
    }
}

fn begin(track: u64, slice: &Slice) -> TrackEvent {
    let (verb, sure) = match slice.confidence {
        None => ("waits", None),
        Some(Confidence::Certain) => ("holds", Some("certain")),
        Some(Confidence::Likely) => ("holds", Some("likely")),
        Some(Confidence::Possible) => ("holds", Some("possible")),
    };
    let mode = match slice.mode {
        LockMode::Read => "read",
        LockMode::Write => "write",
    };
    let note = |name: &str, value: &str| DebugAnnotation {
        name: Some(name.to_owned()),
        string_value: Some(value.to_owned()),
        ..DebugAnnotation::default()
    };
    let number = |name: &str, value: u32| DebugAnnotation {
        name: Some(name.to_owned()),
        uint_value: Some(value.into()),
        ..DebugAnnotation::default()
    };
    let mut notes = vec![
        note("comm", &clean(&slice.task.comm)),
        number("tid", slice.task.key.tid.0),
        number("tgid", slice.task.tgid.0),
        note("mode", mode),
    ];
    notes.extend(sure.map(|sure| note("confidence", sure)));
    if !slice.is_exact {
        let bound = match slice.confidence {
            None => "not exact: it ended some time before, or stands",
            Some(_) => "not exact: the last survey that found it",
        };
        notes.push(note("end", bound));
    }
    TrackEvent {
        r#type: Some(EventType::SliceBegin.into()),
        track_uuid: Some(track),
        name: Some(format!("{verb} ({mode})")),
        categories: vec!["lock".to_owned()],
        debug_annotations: notes,
        ..TrackEvent::default()
    }
}

/// Names come from whoever runs on the host: nothing that a viewer might obey.
fn clean(name: &str) -> String {
    name.replace(text::is_unprintable, "?")
}

#[cfg(test)]
mod tests;
