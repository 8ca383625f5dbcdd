//! Which roots are told apart, so that the number of series is bounded.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{OTHER, Root};

/// Roots that are told apart at a time; the others are `other`.
const ROOTS: usize = 10;

/// What is written of a root: class, stuck, comm.
pub(super) type RootName = [String; 3];

/// Blocked tasks by root; those that block most, and all others as one.
pub(super) fn roots(roots: &[Root]) -> BTreeMap<RootName, u64> {
    let mut sums: BTreeMap<RootName, u64> = BTreeMap::new();
    for root in roots {
        let name = [
            root.class.to_string(),
            root.stuck.clone(),
            root.comm.clone(),
        ];
        *sums.entry(name).or_default() += root.blocked_tasks;
    }
    let mut most: Vec<(RootName, u64)> = sums.into_iter().collect();
    most.sort_by_key(|&(_, blocked)| Reverse(blocked));
    let rest = most.split_off(most.len().min(ROOTS));
    let mut told: BTreeMap<RootName, u64> = most.into_iter().collect();
    for (_, blocked) in rest {
        *told.entry([OTHER; 3].map(str::to_owned)).or_default() += blocked;
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_bounded_and_none_is_twice() {
        let root = |number: u64| Root {
            class: crate::lock::LockClass::MmapLock,
            comm: format!("task{number}"),
            stuck: "fuse".to_owned(),
            blocked_tasks: number,
        };
        let twice: Vec<Root> = (1..=20).chain(1..=20).map(root).collect();
        let told = roots(&twice);
        assert_eq!(told.len(), ROOTS + 1);
        assert_eq!(told.values().sum::<u64>(), 2 * (1..=20).sum::<u64>());
        let blocked = |comm: &str| {
            let mut with = told.iter().filter(|(name, _)| name[2] == comm);
            with.next().map(|(_, &blocked)| blocked)
        };
        assert_eq!(blocked("task20"), Some(40));
        assert_eq!(blocked("task10"), None);
        assert_eq!(blocked(OTHER), Some(2 * (1..=10).sum::<u64>()));
    }
}
