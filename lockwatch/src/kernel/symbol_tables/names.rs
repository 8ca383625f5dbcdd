//! Names of symbols, packed: each byte stands for a token of one or more letters.

use super::{Line, words};
use crate::kernel::symbols::{Symbols, SymbolsMaker};

/// Tokens, each with its end.
const COUNT: usize = 256;

/// The table that says where each token is, in bytes.
const INDEX_LEN: usize = 2 * COUNT;

/// The most that tokens and that table take, in bytes.
pub(super) const TOKENS: u64 = 16 * 1024;

/// A marker says where the first of so many names begins (`kallsyms_markers`).
pub(super) const MARKED: usize = 256;

/// Digits stand for themselves on every kernel.
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// Hardly a token is longer, in bytes: copies of fixed length take a fraction of the time.
const PIECE: usize = 16;

/// What the bytes of names stand for.
#[derive(Debug)]
pub(super) struct Tokens(Box<[Token; COUNT]>);

#[derive(Debug)]
struct Token {
    len: usize,
    /// What fits of it.
    piece: [u8; PIECE],
    /// All of it, if it is longer.
    long: Vec<u8>,
}

impl Token {
    const EMPTY: Self = Self {
        len: 0,
        piece: [0; PIECE],
        long: Vec::new(),
    };

    fn new(text: &[u8]) -> Self {
        let mut piece = [0; PIECE];
        for (into, &byte) in piece.iter_mut().zip(text) {
            *into = byte;
        }
        let is_long = text.len() > PIECE;
        Self {
            len: text.len(),
            piece,
            long: if is_long { text.to_vec() } else { Vec::new() },
        }
    }
}

/// Room for one name.
#[derive(Debug)]
struct Unpacked([u8; Unpacked::LEN]);

impl Unpacked {
    /// Bytes: `KSYM_NAME_LEN`, the letter of its kind and a piece, of which a part may count.
    const LEN: usize = 512 + 1 + PIECE;

    const fn new() -> Self {
        Self([0; Self::LEN])
    }
}

impl Tokens {
    /// Those that end where these bytes end, and how many of these they take with their index.
    pub(super) fn before(bytes: &[u8], alignment: usize) -> Option<(Self, usize)> {
        let index = bytes.len().checked_sub(INDEX_LEN)?;
        let places = bytes[index..].chunks_exact(2);
        let places = places.map(|it| u16::from_le_bytes(it.try_into().unwrap_or_default()));
        if !places.is_sorted_by(|place, next| place < next) {
            return None;
        }
        // Of the places that could be the start, one alone agrees with the index.
        let starts = (0..index).rev().filter(|at| at.is_multiple_of(alignment));
        let tokens = |at: usize| Self::of(&bytes[at..index], &bytes[index..], alignment);
        starts
            .map(|at| (tokens(at), bytes.len() - at))
            .find_map(|(tokens, len)| Some((tokens?, len)))
    }

    /// The first ones that are somewhere in these bytes, from a multiple of 8 on.
    pub(super) fn within(bytes: &[u8]) -> Option<Self> {
        let mut from = 0;
        while let Some(found) = position(&bytes[from..], DIGITS) {
            let digits = from + found;
            let before = digits.saturating_sub(TOKENS as usize).next_multiple_of(8);
            for at in (before..=digits).step_by(8) {
                let Some(end) = end_of_strings(&bytes[at..]) else {
                    continue;
                };
                let index = (at + end).next_multiple_of(8);
                let index = bytes.get(index..index + INDEX_LEN);
                if let Some(tokens) = index.and_then(|it| Self::of(&bytes[at..at + end], it, 8)) {
                    return Some(tokens);
                }
            }
            from = digits + 1;
        }
        None
    }

    /// `None` if the index is not that of this text.
    fn of(text: &[u8], index: &[u8], alignment: usize) -> Option<Self> {
        let mut tokens = Box::new([const { Token::EMPTY }; COUNT]);
        let mut next = 0;
        for (token, start) in tokens.iter_mut().zip(index.chunks_exact(2)) {
            let start = u16::from_le_bytes(start.try_into().ok()?);
            if usize::from(start) != next {
                return None;
            }
            let rest = text.get(next..)?;
            let len = rest.iter().position(|&byte| byte == 0)?;
            *token = Token::new(&rest[..len]);
            next += len + 1;
        }
        // What is behind the last one fills up to a multiple.
        let is_filled = text.len() - next < alignment && text[next..].iter().all(|&byte| byte == 0);
        let digits = usize::from(b'0')..=usize::from(b'9');
        let mut digits = tokens[digits].iter().zip(b'0'..);
        let has_digits = digits.all(|(token, digit)| token.len == 1 && token.piece[0] == digit);
        (is_filled && has_digits).then_some(Self(tokens))
    }

    /// The letter of its kind and the name; `None` if no name is so long.
    fn unpack<'r>(&self, packed: &[u8], room: &'r mut Unpacked) -> Option<&'r [u8]> {
        let mut at = 0;
        for &byte in packed {
            let token = &self.0[usize::from(byte)];
            if token.len <= PIECE {
                room.0
                    .get_mut(at..at + PIECE)?
                    .copy_from_slice(&token.piece);
            } else {
                let into = room.0.get_mut(at..at + token.len)?;
                into.copy_from_slice(&token.long);
            }
            at += token.len;
        }
        room.0.get(..at)
    }

    /// Whether these names are those of the lines.
    pub(super) fn spell(&self, names: &[u8], lines: &[Line]) -> bool {
        let mut rest = names;
        let mut room = Unpacked::new();
        lines.iter().all(|line| {
            let Some((packed, others)) = split(rest) else {
                return false;
            };
            rest = others;
            self.unpack(packed, &mut room) == Some(line.spelled.as_bytes())
        })
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// The end of as many strings as there are tokens.
fn end_of_strings(bytes: &[u8]) -> Option<usize> {
    let ends = bytes.iter().enumerate().filter(|&(_, &byte)| byte == 0);
    ends.map(|(at, _)| at + 1).nth(COUNT - 1)
}

/// The first packed name and what is behind it. Its length comes first, in seven bits; from 6.1
/// on there may be seven more in a second byte.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, mut rest) = bytes.split_first()?;
    let mut len = usize::from(first);
    if first & 0x80 != 0 {
        let (&second, behind) = rest.split_first()?;
        len = usize::from(first & 0x7f) | usize::from(second) << 7;
        rest = behind;
    }
    rest.split_at_checked(len)
}

/// The length of so many names; `None` if the bytes end before.
pub(super) fn skip(bytes: &[u8], count: u32) -> Option<usize> {
    let mut rest = bytes;
    for _ in 0..count {
        (_, rest) = split(rest)?;
    }
    Some(bytes.len() - rest.len())
}

/// Where every so many names begin, in a table that ends where some bytes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Markers {
    pub(super) count: usize,
    /// With what fills them up to a multiple, in bytes.
    pub(super) len: usize,
    /// Where the last of these names begin.
    pub(super) last: u32,
}

impl Markers {
    /// The most that they take, in bytes: those of 4 million symbols.
    pub(super) const MAX: u64 = 64 * 1024;

    /// Those that end where these bytes end.
    pub(super) fn before(bytes: &[u8], alignment: usize) -> Option<Self> {
        let of = |filled: usize| {
            let (markers, behind) = bytes.split_at_checked(bytes.len().checked_sub(filled)?)?;
            let mut next = u32::MAX;
            let mut count = 0;
            let last = words(markers.last_chunk::<4>()?).next()?;
            for marker in markers.rchunks_exact(4).flat_map(words) {
                if marker >= next {
                    break;
                }
                (next, count) = (marker, count + 1);
            }
            // The first name is at 0, and others are behind it.
            let is_it = next == 0 && count > 1 && behind.iter().all(|&byte| byte == 0);
            is_it.then_some(Self {
                count,
                len: 4 * count + filled,
                last,
            })
        };
        (0..alignment).step_by(4).find_map(of)
    }
}

/// All names, and whatever lies behind them.
#[derive(Debug)]
pub(super) struct Names(Vec<u8>);

impl Names {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The symbols with these addresses; `None` if the names do not suffice, or do not lie
    /// where the markers behind them say.
    pub(super) fn symbols(
        &self,
        tokens: &Tokens,
        addresses: &[u64],
        alignment: usize,
    ) -> Option<Symbols> {
        let mut rest = &*self.0;
        let mut made = SymbolsMaker::with_capacity(addresses.len());
        let mut starts = Vec::with_capacity(addresses.len() / MARKED + 1);
        let mut room = Unpacked::new();
        for (index, &address) in addresses.iter().enumerate() {
            if index.is_multiple_of(MARKED) {
                starts.push(self.0.len() - rest.len());
            }
            let (packed, others) = split(rest)?;
            rest = others;
            let (&kind, name) = tokens.unpack(packed, &mut room)?.split_first()?;
            made.push(address, kind, name)?;
        }
        let end = self.0.len() - rest.len();
        let markers = self.0.get(end.next_multiple_of(alignment)..)?;
        let marked = words(markers).map(|start| start as usize);
        marked
            .take(starts.len())
            .eq(starts)
            .then(|| made.of_the_image())
            .flatten()
    }
}
