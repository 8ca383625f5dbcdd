//! What was learned on real kernels: in which functions a lock is really held, and in
//! which the pointer is only carried.
//!
//! The files in `learned/` are made by `cargo xtask learn`, one for each kernel. There,
//! every acquisition was traced, and stacks were looked at while nothing moved:
//! - *held*: the function whose frame acquired a lock for read has not returned yet, and
//!   is in that callee; its object, and no other, is pointed at from there on;
//! - *carried*: the survey would take the task for a holder if the function were believed,
//!   and the lock's own word says that it holds nothing;
//! - *unlinked*: it holds the lock, and no pointer on its stack says which: another one
//!   could be taken for it;
//! - *dropped*: what the function acquired was released inside of that callee.
//!
//! A function can call the same callee with the lock held and without, and compilers
//! inline differently from build to build. So only the very place counts as one that
//! holds: the same return address in a function of the same size. It was seen holding on
//! one kernel at least, and its pair of functions carrying on none.

use std::{collections::BTreeMap, sync::LazyLock};

use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

use crate::{kernel::symbols::Place, lock::LockClass};

/// The kernels, oldest first, with what was learned on each.
const KERNELS: &[(&str, &str)] = &[
    ("5.10", include_str!("learned/5.10.json")),
    ("6.1", include_str!("learned/6.1.json")),
    ("6.1-rt", include_str!("learned/6.1-rt.json")),
    ("6.12", include_str!("learned/6.12.json")),
    ("6.12-rt", include_str!("learned/6.12-rt.json")),
    ("6.18", include_str!("learned/6.18.json")),
    (
        "6.18-restricted",
        include_str!("learned/6.18-restricted.json"),
    ),
    ("7.3", include_str!("learned/7.3.json")),
    ("7.3-rt", include_str!("learned/7.3-rt.json")),
];

/// So many sleeps make a lesson.
const ENOUGH: u32 = 3;

/// What was learned on one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lessons {
    /// What `uname -r` says.
    pub release: String,
    /// Functions and their callees, in order.
    pub pairs: Vec<Pair>,
    /// Functions that acquired something, and their callees that released it, in order.
    pub dropped: Vec<(String, String)>,
}

/// A function, in a callee, and a class of lock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// As [`LockClass`] is written.
    pub class: String,
    /// Stem of the function's name.
    pub function: String,
    /// Stem of the callee's; empty: asleep in the function itself.
    pub callee: String,
    /// In how many sleeps the function held a lock of the class for read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held: u32,
    /// In how many sleeps it only seemed to.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub carried: u32,
    /// In how many sleeps it held one that its stack did not point at.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unlinked: u32,
    /// Where it held: return address as an offset in the function, and the function's
    /// size, in bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<(u64, u64)>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What is to be thought of a place in a function, in a callee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// It holds a lock of the class: learned on these kernels.
    Holds(KernelSet),
    /// It carries pointers to locks of the class and holds none.
    Carries,
}

/// A set of the kernels in the table: bit n is the one at index n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelSet(u32);

impl KernelSet {
    /// The kernels' names, oldest first.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        KERNELS
            .iter()
            .enumerate()
            .filter(move |(index, _)| self.0 & 1 << index != 0)
            .map(|(_, &(name, _))| name)
    }
}

/// What was learned of a place in a function, in a callee; `None`: nothing that would do.
pub fn lesson(class: &LockClass, place: &Place<'_>, callee: &str) -> Option<Lesson> {
    static TABLE: LazyLock<Table> = LazyLock::new(|| {
        Table::of(
            &KERNELS
                .iter()
                .map(|(_, text)| parse(text))
                .collect::<Vec<_>>(),
        )
    });
    if cfg!(feature = "mutation-no-learned-frames") {
        return None;
    }
    TABLE.lesson(class_name(class)?, place, callee)
}

fn parse(text: &str) -> Lessons {
    serde_json::from_str(text).expect("embedded, and tried by a test")
}

/// As files spell it.
const fn class_name(class: &LockClass) -> Option<&'static str> {
    match class {
        LockClass::MmapLock => Some("mmap_lock"),
        LockClass::InodeRwsem => Some("i_rwsem"),
        LockClass::InvalidateLock => Some("invalidate_lock"),
        LockClass::SuperUmount => Some("s_umount"),
        LockClass::SuperWriters
        | LockClass::VmaLock
        | LockClass::InodeMmapRwsem
        | LockClass::AnonVma
        | LockClass::FilePosition
        | LockClass::Pipe
        | LockClass::Symbol(_)
        | LockClass::KernelData
        | LockClass::Unknown => None,
    }
}

/// All kernels' lessons in one: by class, function and callee.
#[derive(Debug, Default)]
struct Table(FxHashMap<String, FxHashMap<String, FxHashMap<String, Entry>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// At these places, each with the kernels that have it.
    Holds(BTreeMap<(u64, u64), KernelSet>),
    Carries,
}

impl Table {
    fn of(kernels: &[Lessons]) -> Self {
        let dropped: FxHashSet<(&str, &str)> = kernels
            .iter()
            .flat_map(|lessons| &lessons.dropped)
            .map(|(function, callee)| (function.as_str(), callee.as_str()))
            .collect();
        let mut seen: BTreeMap<(&str, &str, &str), Sum> = BTreeMap::new();
        for (index, lessons) in kernels.iter().enumerate() {
            for pair in &lessons.pairs {
                let key = (&*pair.class, &*pair.function, &*pair.callee);
                seen.entry(key).or_default().add(index, pair);
            }
        }
        let mut table = Self::default();
        for ((class, function, callee), sum) in seen {
            if let Some(entry) = sum.entry(dropped.contains(&(function, callee))) {
                let functions = table.0.entry(class.to_owned()).or_default();
                let callees = functions.entry(function.to_owned()).or_default();
                callees.insert(callee.to_owned(), entry);
            }
        }
        table
    }

    fn lesson(&self, class: &str, place: &Place<'_>, callee: &str) -> Option<Lesson> {
        match self.0.get(class)?.get(place.stem)?.get(callee)? {
            Entry::Holds(sites) => sites
                .get(&(place.offset, place.size))
                .map(|&kernels| Lesson::Holds(kernels)),
            Entry::Carries => Some(Lesson::Carries),
        }
    }
}

/// What all kernels say of one pair.
#[derive(Debug, Default)]
struct Sum {
    sites: BTreeMap<(u64, u64), KernelSet>,
    held: u32,
    most_held: u32,
    carried: u32,
    most_carried: u32,
    unlinked: u32,
}

impl Sum {
    fn add(&mut self, kernel: usize, pair: &Pair) {
        for &site in &pair.sites {
            self.sites.entry(site).or_default().0 |= 1 << kernel;
        }
        self.held = self.held.saturating_add(pair.held);
        self.most_held = self.most_held.max(pair.held);
        self.carried = self.carried.saturating_add(pair.carried);
        self.most_carried = self.most_carried.max(pair.carried);
        self.unlinked = self.unlinked.saturating_add(pair.unlinked);
    }

    fn entry(self, is_dropped: bool) -> Option<Entry> {
        if self.most_held >= ENOUGH && self.carried == 0 && self.unlinked == 0 && !is_dropped {
            return Some(Entry::Holds(self.sites));
        }
        let carries = self.most_carried >= ENOUGH && self.held == 0 && self.unlinked == 0;
        carries.then_some(Entry::Carries)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;
    use crate::kernel::hold_frames;

    fn pair(function: &str, held: u32, carried: u32) -> Pair {
        Pair {
            class: "i_rwsem".to_owned(),
            function: function.to_owned(),
            callee: "callee".to_owned(),
            held,
            carried,
            unlinked: 0,
            sites: vec![(8, 64)],
        }
    }

    const fn place(stem: &str, offset: u64) -> Place<'_> {
        Place {
            stem,
            start: 0x1000,
            offset,
            size: 64,
        }
    }

    fn lessons(pairs: &[Pair]) -> Lessons {
        Lessons {
            release: String::new(),
            pairs: pairs.to_vec(),
            dropped: vec![("dropper".to_owned(), "callee".to_owned())],
        }
    }

    #[test]
    fn one_kernel_may_teach_and_none_may_object() {
        let table = Table::of(&[
            lessons(&[
                pair("dropper", 9, 0),
                pair("holder", 3, 0),
                pair("rare", 2, 0),
            ]),
            lessons(&[pair("carrier", 0, 3), pair("holder", 1, 0)]),
            lessons(&[pair("both", 3, 1), pair("seldom", 0, 2)]),
        ]);
        let lesson = |function| table.lesson("i_rwsem", &place(function, 8), "callee");
        assert_eq!(lesson("holder"), Some(Lesson::Holds(KernelSet(0b11))));
        assert_eq!(lesson("carrier"), Some(Lesson::Carries));
        for unclear in ["dropper", "rare", "both", "seldom"] {
            assert_eq!(lesson(unclear), None, "{unclear}");
        }
        let holder = |class, offset| table.lesson(class, &place("holder", offset), "callee");
        assert_eq!(holder("i_rwsem", 16), None, "another place");
        assert_eq!(holder("s_umount", 8), None, "another class");
    }

    #[test]
    fn a_pair_that_is_not_pointed_at_teaches_nothing() {
        let unlinked = Pair {
            unlinked: 1,
            ..pair("holder", 9, 0)
        };
        let table = Table::of(&[lessons(&[unlinked])]);
        assert_eq!(table.lesson("i_rwsem", &place("holder", 8), "callee"), None);
    }

    #[test]
    fn the_files_are_in_order_and_all_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernel/learned");
        let found: BTreeSet<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let listed: BTreeSet<String> = KERNELS
            .iter()
            .map(|(name, _)| format!("{name}.json"))
            .collect();
        assert_eq!(found, listed);
        for (name, text) in KERNELS {
            let lessons = parse(text);
            assert!(!lessons.release.is_empty(), "{name}");
            let key = |pair: &Pair| {
                (
                    pair.class.clone(),
                    pair.function.clone(),
                    pair.callee.clone(),
                )
            };
            let keys: Vec<_> = lessons.pairs.iter().map(key).collect();
            assert!(keys.is_sorted_by(|a, b| a < b), "{name}");
            assert!(lessons.dropped.is_sorted_by(|a, b| a < b), "{name}");
            for pair in &lessons.pairs {
                assert!(class_of(&pair.class).is_some(), "{name}: {pair:?}");
                assert!(pair.held > 0 || pair.sites.is_empty(), "{name}: {pair:?}");
            }
        }
    }

    fn class_of(name: &str) -> Option<LockClass> {
        [
            LockClass::MmapLock,
            LockClass::InodeRwsem,
            LockClass::InvalidateLock,
            LockClass::SuperUmount,
        ]
        .into_iter()
        .find(|class| class_name(class) == Some(name))
    }

    #[test]
    fn no_kernel_contradicts_the_hand_made_table() {
        let kernels: Vec<Lessons> = KERNELS.iter().map(|(_, text)| parse(text)).collect();
        let table = Table::of(&kernels);
        for pair in kernels.iter().flat_map(|lessons| &lessons.pairs) {
            let class = class_of(&pair.class).unwrap();
            let known = hold_frames::of_class(&class)
                .iter()
                .find(|known| known.function == pair.function && known.holds_in(&pair.callee));
            let lesson = table.lesson(&pair.class, &place(&pair.function, 0), &pair.callee);
            assert!(
                known.is_none() || lesson != Some(Lesson::Carries),
                "learned as a carrier: {pair:?}"
            );
        }
    }
}
