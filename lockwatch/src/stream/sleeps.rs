//! Why a watched task slept, from the stacks with which it fell asleep.

use crate::{
    kernel::{sleep_frames, symbols::Symbols},
    stream::Times,
    task::{Nanos, Stuck, StuckClass},
};

/// Time that a task spent asleep for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsleepIn {
    /// What for.
    pub class: StuckClass,
    /// The function that says so; `None` where no stack was to be had.
    pub function: Option<String>,
    /// How long.
    pub time: Nanos,
}

/// The reasons for which a task slept, the longest first. `found`: why it did when it
/// was first watched. What was not told apart is left out.
pub fn asleep_in(times: &Times, found: &Stuck, symbols: &Symbols) -> Vec<AsleepIn> {
    let mut reasons: Vec<AsleepIn> = Vec::new();
    let mut add = |class: StuckClass, function: Option<&str>, time: Nanos| {
        let known = reasons
            .iter_mut()
            .find(|known| known.class == class && known.function.as_deref() == function);
        match known {
            Some(known) => known.time.0 += time.0,
            None => reasons.push(AsleepIn {
                class,
                function: function.map(str::to_owned),
                time,
            }),
        }
    };
    add(found.class, found.frame.as_deref(), times.found_asleep);
    for slept in &times.sleeps {
        let stems: Vec<&str> = slept
            .frames
            .iter()
            .map(|&address| symbols.stem_of_return(address))
            .collect();
        let (class, function) = match sleep_frames::of_switch(&stems) {
            Some((class, function)) => (class, Some(function)),
            None => (StuckClass::Unknown, None),
        };
        add(class, function, slept.time);
    }
    reasons.retain(|reason| reason.time.0 > 0);
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.time));
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Slept;

    #[test]
    fn sleeps_for_one_reason_are_one_whatever_the_stack() {
        let symbols = Symbols::parse(
            "ffffffff81000100 t __schedule\n\
             ffffffff81000200 t request_wait_answer\n\
             ffffffff81000300 t fuse_readpage\n\
             ffffffff81000400 t fuse_mkdir\n\
             ffffffff81000500 t msleep\n\
             ffffffff81000600 t end\n"
                .to_owned(),
        )
        .unwrap();
        let slept = |functions: &[u64], ns| Slept {
            frames: functions
                .iter()
                .map(|at| 0xffff_ffff_8100_0010 + at)
                .collect(),
            time: Nanos(ns),
        };
        let times = Times {
            found_asleep: Nanos(5),
            sleeps: vec![
                slept(&[0x100, 0x200, 0x300], 3),
                slept(&[0x100, 0x200, 0x400], 4),
                slept(&[0x100, 0x500], 9),
                slept(&[0x100, 0x600], 0),
            ],
            ..Times::default()
        };
        let found = Stuck {
            class: StuckClass::Fuse,
            frame: Some("request_wait_answer".to_owned()),
            since: None,
            device: None,
        };
        let reason = |class, function: &str, ns| AsleepIn {
            class,
            function: Some(function.to_owned()),
            time: Nanos(ns),
        };
        assert_eq!(
            asleep_in(&times, &found, &symbols),
            [
                reason(StuckClass::Fuse, "request_wait_answer", 12),
                reason(StuckClass::Sleep, "msleep", 9),
            ]
        );
    }
}
