//! Waits and holds over time, lock by lock: for formats that draw them.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::Input;
use crate::{
    lock::{Confidence, Lock, LockAddr, LockMode},
    stream::{Event, Scan, Wait, WaitId},
    survey::Survey,
    task::{Nanos, TaskKey, TaskName},
};

/// Slices that are kept; what comes later is counted.
const SLICES_MAX: usize = 1 << 20;

/// The time that a task spent with a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Who.
    pub task: TaskName,
    /// How it has or wants the lock.
    pub mode: LockMode,
    /// `CLOCK_MONOTONIC` ns; for a hold the earliest that is known.
    pub from_ns: u64,
    /// `CLOCK_MONOTONIC` ns; for a hold the last survey that found it.
    pub to_ns: u64,
    /// For a hold how sure it is; `None` for a wait.
    pub confidence: Option<Confidence>,
    /// False if it ended some time before `to_ns`, or goes on after it.
    pub is_exact: bool,
}

/// What happened at one lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Track {
    /// Waits of the threshold and longer, and those that stood at the end.
    pub waits: Vec<Slice>,
    /// Holds that surveys found, `likely` at least.
    pub holds: Vec<Slice>,
}

/// What happened at each lock that tasks waited too long for.
#[derive(Debug)]
pub struct Timeline {
    threshold: Nanos,
    open: FxHashMap<WaitId, Wait>,
    locks: FxHashMap<LockAddr, Open>,
    tracks: BTreeMap<(LockAddr, String), Track>,
    read_at_ns: u64,
    last_ns: u64,
    anchor: Option<(jiff::Timestamp, u64)>,
    slices: usize,
    omitted: u64,
}

/// A lock that somebody waits for. When nobody does, all that was known of the address
/// goes: the next lock there may be another one.
#[derive(Debug, Default)]
struct Open {
    waiting: usize,
    name: Option<String>,
    kind: &'static str,
    track: Track,
    /// Where in `track` the last hold of a task is, for write or not.
    last_holds: BTreeMap<(TaskKey, bool), usize>,
}

impl Timeline {
    /// Nothing yet. Waits of `threshold` and longer are kept.
    pub fn new(threshold: Nanos) -> Self {
        Self {
            threshold,
            open: FxHashMap::default(),
            locks: FxHashMap::default(),
            tracks: BTreeMap::new(),
            read_at_ns: 0,
            last_ns: 0,
            anchor: None,
            slices: 0,
            omitted: 0,
        }
    }

    /// Takes in what a graph takes in.
    pub fn take(&mut self, input: &Input) {
        match input {
            Input::Event(Event::WaitBegin(wait)) => self.begin(wait),
            Input::Event(Event::WaitEnd { wait, at_ns, .. }) => {
                self.last_ns = self.last_ns.max(*at_ns);
                self.begin(wait);
                self.end(wait.id(), *at_ns, true);
            }
            Input::Scan(scan) => self.scan(scan),
            Input::Refuted(wait) => {
                if self.open.remove(&wait.id()).is_some() {
                    self.left(wait.lock);
                }
            }
            Input::Survey(survey) => self.survey(survey),
            Input::Clock(now_ns) => self.last_ns = self.last_ns.max(*now_ns),
        }
    }

    fn begin(&mut self, wait: &Wait) {
        if self.open.len() >= SLICES_MAX {
            self.omitted += 1;
        } else if self.open.insert(wait.id(), wait.clone()).is_none() {
            let lock = self.locks.entry(wait.lock).or_default();
            lock.waiting += 1;
            lock.kind = wait.kind.words();
        }
    }

    /// Ends a wait at `at_ns`, or before that if it is not `exact`: then it counts as long
    /// as the last reading but one has proved.
    fn end(&mut self, id: WaitId, at_ns: u64, exact: bool) {
        let Some(wait) = self.open.remove(&id) else {
            return;
        };
        let proved_ns = if exact { at_ns } else { self.read_at_ns };
        if Nanos::between(wait.since_ns, proved_ns) >= self.threshold {
            if self.slices >= SLICES_MAX {
                self.omitted += 1;
            } else if let Some(lock) = self.locks.get_mut(&wait.lock) {
                self.slices += 1;
                lock.track.waits.push(waited(wait, at_ns, exact));
            }
        }
        self.left(id.lock);
    }

    /// One waits for this lock less.
    fn left(&mut self, address: LockAddr) {
        let Some(lock) = self.locks.get_mut(&address) else {
            return;
        };
        lock.waiting = lock.waiting.saturating_sub(1);
        if lock.waiting == 0
            && let Some(lock) = self.locks.remove(&address)
        {
            close(&mut self.tracks, address, lock);
        }
    }

    fn scan(&mut self, scan: &Scan) {
        self.last_ns = self.last_ns.max(scan.at_ns);
        if scan.complete {
            let present: FxHashSet<WaitId> = scan.waits.iter().map(Wait::id).collect();
            let is_gone = |id: &&WaitId| id.since_ns < scan.at_ns && !present.contains(id);
            let mut gone: Vec<WaitId> = self.open.keys().filter(is_gone).copied().collect();
            gone.sort_by_key(|id| (id.since_ns, id.task, id.lock));
            for id in gone {
                self.end(id, scan.at_ns, false);
            }
            self.read_at_ns = scan.at_ns;
        }
        for wait in &scan.waits {
            self.begin(wait);
        }
    }

    fn survey(&mut self, survey: &Survey) {
        self.last_ns = self.last_ns.max(survey.taken_at_ns);
        self.anchor
            .get_or_insert((survey.taken_at, survey.taken_at_ns));
        for found in &survey.locks {
            if let Some(lock) = self.locks.get_mut(&found.address) {
                lock.name = Some(found.name.clone());
                self.slices += lock.hold(found, survey);
            }
        }
    }

    /// The tracks by lock and its name, each with its waits and holds from the first to the
    /// last. What has not ended stands until the last moment that is known.
    pub fn tracks(&self) -> BTreeMap<(LockAddr, String), Track> {
        let mut tracks = self.tracks.clone();
        let mut standing: BTreeMap<LockAddr, Vec<Slice>> = BTreeMap::new();
        for wait in self.open.values() {
            if Nanos::between(wait.since_ns, self.last_ns) >= self.threshold {
                let slice = waited(wait.clone(), self.last_ns, false);
                standing.entry(wait.lock).or_default().push(slice);
            }
        }
        for (&address, lock) in &self.locks {
            let mut track = lock.track.clone();
            track
                .waits
                .extend(standing.remove(&address).unwrap_or_default());
            let lock = Open {
                waiting: 0,
                name: lock.name.clone(),
                kind: lock.kind,
                track,
                last_holds: BTreeMap::new(),
            };
            close(&mut tracks, address, lock);
        }
        for track in tracks.values_mut() {
            for slices in [&mut track.waits, &mut track.holds] {
                slices.sort_by_key(|slice| (slice.from_ns, slice.task.key, slice.to_ns));
            }
        }
        tracks
    }

    /// One moment as a time of day and on `CLOCK_MONOTONIC`, in ns; `None` without surveys.
    pub fn anchor(&self) -> Option<(jiff::Timestamp, u64)> {
        self.anchor
    }

    /// Slices that found no room.
    pub fn omitted(&self) -> u64 {
        self.omitted
    }
}

/// Nobody waits for this lock any more.
fn close(tracks: &mut BTreeMap<(LockAddr, String), Track>, address: LockAddr, lock: Open) {
    let Open {
        name, kind, track, ..
    } = lock;
    if track.waits.is_empty() {
        return;
    }
    let name = name.unwrap_or_else(|| format!("unknown {kind} at {address}"));
    let known = tracks.entry((address, name)).or_default();
    known.waits.extend(track.waits);
    known.holds.extend(track.holds);
}

fn waited(wait: Wait, to_ns: u64, is_exact: bool) -> Slice {
    Slice {
        task: wait.task,
        mode: wait.mode,
        from_ns: wait.since_ns.min(to_ns),
        to_ns,
        confidence: None,
        is_exact,
    }
}

impl Open {
    /// Adds what a survey says of the lock's holders; how many holds are new.
    fn hold(&mut self, lock: &Lock, survey: &Survey) -> usize {
        let holds = &mut self.track.holds;
        let before = holds.len();
        for holder in &lock.holders {
            if holder.confidence < Confidence::Likely {
                continue;
            }
            // Found in two looks it held the lock in between, too.
            let looks = if holder.stood {
                survey.paused
            } else {
                Nanos(0)
            };
            let held = holder.held.unwrap_or_default().max(looks);
            let from_ns = survey.taken_at_ns.saturating_sub(held.0);
            let key = (holder.task.key, holder.mode == LockMode::Write);
            // Of one and the same hold only if it began before it was last seen.
            let last = self.last_holds.get(&key);
            if let Some(slice) = last.and_then(|&index| holds.get_mut(index))
                && from_ns <= slice.to_ns
            {
                slice.from_ns = slice.from_ns.min(from_ns);
                slice.to_ns = slice.to_ns.max(survey.taken_at_ns);
                slice.confidence = slice.confidence.max(Some(holder.confidence));
            } else {
                self.last_holds.insert(key, holds.len());
                holds.push(Slice {
                    task: holder.task.clone(),
                    mode: holder.mode,
                    from_ns,
                    to_ns: survey.taken_at_ns,
                    confidence: Some(holder.confidence),
                    is_exact: false,
                });
            }
        }
        holds.len() - before
    }
}

impl Timeline {
    /// The timeline of one survey.
    pub fn of_survey(survey: &std::sync::Arc<Survey>, threshold: Nanos) -> Self {
        let mut timeline = Self::new(threshold);
        let mut scan = crate::stream::PolledWaits::default().read(survey);
        scan.at_ns = survey.taken_at_ns;
        timeline.take(&Input::Scan(scan));
        timeline.take(&Input::Survey(std::sync::Arc::clone(survey)));
        timeline
    }
}
