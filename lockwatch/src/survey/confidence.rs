//! How sure a name is: one function, one table.

use crate::{
    daemon::ServesEvidence,
    lock::{Confidence, EvidenceKind},
};

/// What a kind of evidence proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// A pointer that may be stale, or that others carry too.
    Hint,
    /// What we know of the kernel's code.
    Knowledge,
    /// The lock's owner field, on a kernel whose readers clear it, or an acquisition that
    /// was traced: false only after a release by another task.
    Word,
    /// The kernel's own state.
    Proof,
}

/// The circumstances the evidence was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// Found in both looks, on a task that did not run in between (a writer that owns
    /// the lock may run).
    pub in_both_looks: bool,
    /// Holds that there is more than a hint of, in each look.
    pub found: [u32; 2],
    /// Holds by the lock's own count, in each look: its readers, or 1 if write-held.
    /// `None` where the lock does not count them.
    pub counted: [Option<u32>; 2],
}

/// The strength of a kind of evidence.
pub const fn strength(kind: EvidenceKind) -> Strength {
    match kind {
        EvidenceKind::WriterOwner | EvidenceKind::Granted => Strength::Proof,
        EvidenceKind::ReaderOwner | EvidenceKind::TracedAcquire => Strength::Word,
        EvidenceKind::FaultFlags | EvidenceKind::HoldFrame | EvidenceKind::LearnedFrame => {
            Strength::Knowledge
        }
        EvidenceKind::TracedInPart
        | EvidenceKind::LastHolder
        | EvidenceKind::LockWord
        | EvidenceKind::ObjectWord => Strength::Hint,
    }
}

/// How sure a name with this strongest evidence is.
///
/// | evidence | one look | both | both, and as many found as the lock counts |
/// |---|---|---|---|
/// | hint | possible | possible | possible |
/// | knowledge | possible | likely | certain |
/// | word | possible | likely | certain |
/// | proof | likely | certain | certain |
///
/// More found than the lock counts means that some evidence is wrong: then
/// knowledge makes nobody more than possible, and the lock's word stands.
pub fn confidence(strongest: Strength, seen: Circumstances) -> Confidence {
    let closed = seen.found.map(Some) == seen.counted;
    let too_many = seen
        .found
        .iter()
        .zip(seen.counted)
        .any(|(&found, counted)| counted.is_some_and(|counted| found > counted));
    match (strongest, seen.in_both_looks) {
        (Strength::Proof, true) => Confidence::Certain,
        (Strength::Proof, false) => Confidence::Likely,
        (Strength::Word | Strength::Knowledge, true) if closed => Confidence::Certain,
        (Strength::Word, true) => Confidence::Likely,
        (Strength::Knowledge, true) if !too_many => Confidence::Likely,
        (Strength::Word | Strength::Knowledge, _) | (Strength::Hint, _) => Confidence::Possible,
    }
}

/// The circumstances in which a thread may serve the clients of its daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The evidence is the same in both looks, and a client waited for the same request in
    /// both.
    pub in_both_looks: bool,
    /// The thread did not run between the looks.
    pub stood: bool,
    /// In one of them it waited for user space or a timer.
    pub is_parked: bool,
    /// The request of such a client has been read; otherwise it is anybody's to read.
    pub is_sent: bool,
    /// The thread may have run since the oldest of these requests was made.
    pub ran: bool,
    /// Which of the other threads cannot have read that request, because they have been asleep
    /// since before.
    pub others_slept: OthersSlept,
}

/// Threads that have been asleep since before a request was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OthersSlept {
    /// Not even all of those that are parked.
    Unknown,
    /// Those that are parked. One that waits for the next request ran: it may have read this
    /// one, and answer later.
    ButIdle,
    /// All of them.
    All,
}

/// How sure it is that the clients of a daemon wait for one of its threads; `None` for one
/// that has no request.
///
/// | evidence | one look | both | both, and it stood | both, stood, and nothing was read |
/// |---|---|---|---|---|
/// | idle | none | none | none | none |
/// | only thread | possible | certain | certain | certain |
/// | others idle, all asleep since before the request | possible | likely | certain | possible |
/// | others idle | possible | likely | likely | possible |
/// | others parked, all asleep since before the request | possible | possible | certain | possible |
/// | others parked, those asleep since before the request | possible | possible | likely | possible |
/// | others parked | possible | possible | possible | possible |
/// | one of several | possible | possible | possible | possible |
///
/// Nobody but the only thread can read or answer, whatever it does meanwhile. Where others
/// are idle, they will read what nobody has read. If all others have been asleep since before
/// the request, nobody else can have read it; otherwise a parked one may be at work on it (an
/// answer that comes by a socket, a timer), and an idle one may have put it off. A thread that
/// has been asleep since before has read none itself, and a parked thread beside idle ones
/// may be the one that started them: both are possible only.
pub const fn serves(evidence: ServesEvidence, seen: Service) -> Option<Confidence> {
    use ServesEvidence::{Idle, OneOfSeveral, OnlyThread, OthersIdle, OthersParked};
    let all_slept = matches!(seen.others_slept, OthersSlept::All);
    let parked_slept = !matches!(seen.others_slept, OthersSlept::Unknown);
    Some(match (evidence, seen.in_both_looks) {
        (Idle, _) => return None,
        (OnlyThread, true) => Confidence::Certain,
        (OthersIdle | OthersParked, true) if seen.is_parked || !seen.is_sent || !seen.ran => {
            Confidence::Possible
        }
        (OthersIdle | OthersParked, true) if seen.stood && all_slept => Confidence::Certain,
        (OthersIdle, true) => Confidence::Likely,
        (OthersParked, true) if seen.stood && parked_slept => Confidence::Likely,
        (OnlyThread | OthersIdle | OthersParked | OneOfSeveral, _) => Confidence::Possible,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(in_both_looks: bool, found: [u32; 2], counted: [u32; 2]) -> Circumstances {
        Circumstances {
            in_both_looks,
            found,
            counted: counted.map(Some),
        }
    }

    #[test]
    fn the_table() {
        use Strength::{Hint, Knowledge, Proof, Word};
        assert_eq!(
            confidence(Hint, seen(true, [1, 1], [1, 1])),
            Confidence::Possible
        );
        assert_eq!(
            confidence(Knowledge, seen(true, [1, 1], [1, 1])),
            Confidence::Certain
        );
        assert_eq!(
            confidence(Knowledge, seen(true, [1, 1], [2, 2])),
            Confidence::Likely
        );
        assert_eq!(
            confidence(Knowledge, seen(false, [1, 1], [1, 1])),
            Confidence::Possible
        );
        assert_eq!(
            confidence(Knowledge, seen(true, [2, 2], [1, 1])),
            Confidence::Possible
        );
        assert_eq!(
            confidence(Word, seen(true, [2, 2], [1, 1])),
            Confidence::Likely
        );
        assert_eq!(
            confidence(Proof, seen(true, [0, 0], [0, 0])),
            Confidence::Certain
        );
        let uncounted = Circumstances {
            counted: [None; 2],
            ..seen(true, [1, 1], [1, 1])
        };
        assert_eq!(confidence(Knowledge, uncounted), Confidence::Likely);
        assert_eq!(
            confidence(Proof, seen(false, [0, 0], [0, 0])),
            Confidence::Likely
        );
    }

    #[test]
    fn who_serves_is_certain_only_where_nobody_else_can() {
        use ServesEvidence::{Idle, OneOfSeveral, OnlyThread, OthersIdle, OthersParked};
        let all = Service {
            in_both_looks: true,
            stood: true,
            is_parked: false,
            is_sent: true,
            ran: true,
            others_slept: OthersSlept::All,
        };
        let put_off = Service {
            others_slept: OthersSlept::ButIdle,
            ..all
        };
        assert_eq!(serves(OthersIdle, put_off), Some(Confidence::Likely));
        assert_eq!(serves(OthersParked, put_off), Some(Confidence::Likely));
        let unknown = Service {
            others_slept: OthersSlept::Unknown,
            ..all
        };
        assert_eq!(serves(OthersIdle, unknown), Some(Confidence::Likely));
        assert_eq!(serves(OthersParked, unknown), Some(Confidence::Possible));
        let slept = Service { ran: false, ..all };
        assert_eq!(serves(OthersIdle, slept), Some(Confidence::Possible));
        assert_eq!(serves(OnlyThread, slept), Some(Confidence::Certain));
        let parked = Service {
            is_parked: true,
            ..all
        };
        assert_eq!(serves(OthersIdle, parked), Some(Confidence::Possible));
        assert_eq!(serves(OnlyThread, parked), Some(Confidence::Certain));
        assert_eq!(serves(Idle, all), None);
        assert_eq!(serves(OnlyThread, all), Some(Confidence::Certain));
        assert_eq!(serves(OthersIdle, all), Some(Confidence::Certain));
        assert_eq!(serves(OthersParked, all), Some(Confidence::Certain));
        assert_eq!(serves(OneOfSeveral, all), Some(Confidence::Possible));
        let queued = Service {
            is_sent: false,
            ..all
        };
        assert_eq!(serves(OnlyThread, queued), Some(Confidence::Certain));
        assert_eq!(serves(OthersIdle, queued), Some(Confidence::Possible));
        let ran = Service {
            stood: false,
            ..all
        };
        assert_eq!(serves(OthersIdle, ran), Some(Confidence::Likely));
        assert_eq!(serves(OthersParked, ran), Some(Confidence::Possible));
        for evidence in [OnlyThread, OthersIdle, OthersParked, OneOfSeveral] {
            let once = Service {
                in_both_looks: false,
                ..all
            };
            assert_eq!(serves(evidence, once), Some(Confidence::Possible));
        }
    }

    proptest! {
        #[test]
        fn readers_are_never_certain_while_the_count_is_open(found in 0u32..9, readers in 0u32..9, both: bool) {
            prop_assume!(found != readers);
            let seen = seen(both, [found; 2], [readers; 2]);
            prop_assert_ne!(confidence(Strength::Knowledge, seen), Confidence::Certain);
            prop_assert_ne!(confidence(Strength::Word, seen), Confidence::Certain);
            prop_assert_eq!(confidence(Strength::Hint, seen), Confidence::Possible);
        }
    }
}
