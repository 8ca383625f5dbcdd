//! Where a stack points at a lock, and which functions with such a pointer hold it.

use super::reason;
use crate::{
    kernel::hold_frames::{self, HoldFrame},
    lock::{Evidence, EvidenceKind},
    survey::{functions::Functions, look::TaskLook, names::Identity},
};

/// The words of a stack that point at the lock or at the object that contains it.
pub(in crate::survey) struct Hits {
    /// Word indexes of the lock's address.
    lock: Vec<usize>,
    /// Word indexes of the object's address.
    object: Vec<usize>,
}

impl Hits {
    pub(in crate::survey) fn find(words: &[u64], lock: u64, object: Option<u64>) -> Self {
        let mut hits = Self {
            lock: Vec::new(),
            object: Vec::new(),
        };
        for (at, &word) in words.iter().enumerate() {
            if word == lock {
                hits.lock.push(at);
            } else if Some(word) == object {
                hits.object.push(at);
            }
        }
        hits
    }

    /// Those from this word on.
    pub(in crate::survey) fn outside(mut self, from: usize) -> Self {
        self.lock.retain(|&at| at >= from);
        self.object.retain(|&at| at >= from);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock.is_empty() && self.object.is_empty()
    }

    pub(super) fn any_before(&self, end: usize) -> bool {
        self.lock.iter().chain(&self.object).any(|&at| at < end)
    }

    pub(super) fn as_evidence(
        &self,
        functions: &mut Functions<'_>,
        task: &TaskLook,
    ) -> Vec<Evidence> {
        let kinds = [
            (EvidenceKind::LockWord, &self.lock),
            (EvidenceKind::ObjectWord, &self.object),
        ];
        kinds
            .into_iter()
            .filter_map(|(kind, at)| {
                let first = *at.first()?;
                let frame = task.frames.iter().rev().find(|frame| frame.at < first);
                let function = frame.map(|frame| functions.stem(frame.return_address));
                Some(reason(kind, function.filter(|stem| !stem.is_empty()), None))
            })
            .collect()
    }
}

/// A known function on the stack, and where its frame ends.
pub(in crate::survey) struct Found {
    pub(in crate::survey) known: &'static HoldFrame,
    /// Words from the stack pointer to the end of its frame: what it keeps for the
    /// release lies there, for what it calls saves its registers.
    pub(in crate::survey) end: usize,
}

/// A function on the stack that holds this class of lock, with the lock or its
/// object in its own frame or deeper.
pub(in crate::survey) fn hold_frame(
    task: &TaskLook,
    stems: &[&str],
    from: usize,
    lock: &Identity,
    own_mm: bool,
    hits: &Hits,
) -> Option<Found> {
    let table = hold_frames::of_class(&lock.class);
    (from..stems.len()).find_map(|index| {
        let known = table.iter().find(|known| known.function == stems[index])?;
        // Stacked file systems: what the inner one points at is not the outer one's.
        if stems[..index].contains(&stems[index]) {
            return None;
        }
        let callee = index.checked_sub(1).map_or("", |callee| stems[callee]);
        let end = frame_end(task, index);
        let linked = (own_mm && known.own_mm) || hits.any_before(end);
        (known.holds_in(callee) && linked).then_some(Found { known, end })
    })
}

/// Words from the stack pointer to the end of a frame.
pub(in crate::survey) fn frame_end(task: &TaskLook, index: usize) -> usize {
    // The outermost frame has no known end; what it calls has.
    task.frames
        .get(index + 1)
        .map_or(task.frames[index].at, |outer| outer.at)
}
