//! Which function owns which word of a raw kernel stack.
//!
//! The unwinder gives return addresses without places; the raw words give places
//! without meaning. Found in order in the words, each return address gives the
//! words between it and the next one to the function it returns into. Taking the
//! nearest text address below a word instead is useless: stacks are full of stale
//! ones.

/// A return address and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Frame {
    /// Address inside the function this frame belongs to.
    pub(super) return_address: u64,
    /// Index of the word that holds it. The function owns the words after it, up to
    /// the next frame's.
    pub(super) at: usize,
}

/// Finds each unwound return address, innermost first, in the words. Stops at the
/// first that is not there: what lies further out has no place.
pub(super) fn align(unwound: &[u64], words: &[u64]) -> impl Iterator<Item = Frame> {
    let mut from = 0;
    unwound.iter().map_while(move |&return_address| {
        let mut rest = words[from..].iter();
        let at = from + rest.position(|&word| word == return_address)?;
        from = at + 1;
        Some(Frame { return_address, at })
    })
}

/// The words that belong to frame `index`: from behind its return address to the
/// next one. The outermost frame owns none, for its end is not known.
pub(super) fn frame_words<'a>(
    frames: &[Frame],
    index: usize,
    words: &'a [u64],
) -> (usize, &'a [u64]) {
    match (frames.get(index), frames.get(index + 1)) {
        (Some(frame), Some(outer)) => (frame.at + 1, &words[frame.at + 1..outer.at]),
        _ => (0, &[]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_own_the_words_up_to_the_next() {
        let words = [1, 0xa, 2, 3, 0xb, 4, 0xc];
        let frames: Vec<_> = align(&[0xa, 0xb, 0xc], &words).collect();
        assert_eq!(frame_words(&frames, 0, &words), (2, &words[2..4]));
        assert_eq!(frame_words(&frames, 1, &words), (5, &words[5..6]));
        assert_eq!(frame_words(&frames, 2, &words), (0, &[][..]));
    }

    #[test]
    fn what_cannot_be_found_ends_the_alignment() {
        assert_eq!(align(&[0xa, 0xdead, 0xc], &[0xa, 0xc]).count(), 1);
    }

    proptest! {
        #[test]
        fn places_only_grow(unwound in prop::collection::vec(0u64..8, 0..12), words in prop::collection::vec(0u64..8, 0..40)) {
            let frames: Vec<_> = align(&unwound, &words).collect();
            prop_assert!(frames.windows(2).all(|pair| pair[0].at < pair[1].at));
            prop_assert!(frames.iter().all(|frame| words[frame.at] == frame.return_address));
            for index in 0..=frames.len() {
                let _ = frame_words(&frames, index, &words);
            }
        }
    }
}
