//! Addresses and lock words as serde writes them: `"0xffff888000001000"`. As JSON numbers
//! they would lose bits in most readers.

use std::fmt;

use serde::{Deserializer, Serializer, de};

/// As a hexadecimal string.
///
/// # Errors
/// When the serializer cannot take it.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
pub(crate) fn serialize<S: Serializer>(word: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{word:#x}"))
}

/// From such a string.
///
/// # Errors
/// When it is none.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_str(Word)
}

/// Takes text as it comes: every event of a recording has such a word.
struct Word;

impl de::Visitor<'_> for Word {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hexadecimal word")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or_else(|| E::custom("not a hexadecimal word"))
    }
}
