//! Names of functions without what compilers add to them, and a set of them that is quick to
//! refuse: it is asked of every function that a kernel has.

use rustc_hash::FxHashMap;

/// A function's name without the suffixes that compilers add and that differ per
/// build: `.isra.0`, `.constprop.0`, `.part.0`, `.cold`, `.llvm.123`.
pub fn stem(name: &str) -> &str {
    // By bytes: for so short a text, faster than what `find` does.
    match name.bytes().position(|byte| byte == b'.') {
        Some(dot) if dot > 0 => &name[..dot],
        _ => name,
    }
}

/// A bit for each two letters, in words.
const WORDS: usize = (1 << 16) / 64;

/// What is to be known of some stems.
#[derive(Debug)]
pub struct Stems<'n, V> {
    /// A bit for each two letters that a stem begins with: most names are refused by it.
    beginnings: Box<[u64; WORDS]>,
    of: FxHashMap<&'n str, V>,
}

impl<'n, V> Stems<'n, V> {
    /// Word and bit.
    fn place(beginning: [u8; 2]) -> (usize, u64) {
        let number = usize::from(u16::from_le_bytes(beginning));
        (number / 64, 1 << (number % 64))
    }

    /// What is known of a stem.
    pub fn get(&self, stem: &str) -> Option<&V> {
        self.may_have(stem).then(|| self.of.get(stem)).flatten()
    }

    /// What is known of the stem of a name.
    pub fn of_name(&self, name: &str) -> Option<&V> {
        let known = || self.of.get(stem(name));
        self.may_have(name).then(known).flatten()
    }

    fn may_have(&self, name: &str) -> bool {
        name.as_bytes().first_chunk().is_none_or(|&beginning| {
            let (word, bit) = Self::place(beginning);
            self.beginnings[word] & bit != 0
        })
    }

    /// What is known of this stem, to be changed.
    pub fn entry(&mut self, stem: &'n str) -> &mut V
    where
        V: Default,
    {
        match stem.as_bytes().first_chunk() {
            Some(&beginning) => {
                let (word, bit) = Self::place(beginning);
                self.beginnings[word] |= bit;
            }
            // What is behind so short a stem may be anything.
            None => self.beginnings.fill(u64::MAX),
        }
        self.of.entry(stem).or_default()
    }
}

impl<V> Default for Stems<'_, V> {
    fn default() -> Self {
        Self {
            beginnings: Box::new([0; WORDS]),
            of: FxHashMap::default(),
        }
    }
}

impl<'n> FromIterator<&'n str> for Stems<'n, ()> {
    fn from_iter<I: IntoIterator<Item = &'n str>>(stems: I) -> Self {
        let mut all = Self::default();
        for stem in stems {
            all.entry(stem);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_by_their_stems() {
        let stems = Stems::from_iter(["down", "__down", "up"]);
        for name in [
            "down",
            "down.isra.0",
            "__down.constprop.0.cold",
            "up.part.0",
        ] {
            assert!(stems.of_name(name).is_some(), "{name}");
        }
        for name in ["", "d", "dow", "downs", "_down", "up_read", ".up"] {
            assert!(stems.of_name(name).is_none(), "{name}");
        }
        assert!(stems.get("up").is_some() && stems.get("up.part.0").is_none());
    }

    #[test]
    fn a_stem_of_one_letter_is_known_too() {
        let stems = Stems::from_iter(["x"]);
        assert!(stems.of_name("x.cold").is_some() && stems.of_name("x").is_some());
        assert!(stems.of_name("y").is_none() && stems.of_name("xy").is_none());
    }

    #[test]
    fn names_without_a_stem_are_their_own() {
        assert_eq!(stem("schedule"), "schedule");
        assert_eq!(stem(".hidden"), ".hidden");
        assert_eq!(stem("schedule.part.0.cold"), "schedule");
    }
}
