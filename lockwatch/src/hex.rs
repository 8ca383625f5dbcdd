//! Addresses and lock words as serde writes them: `"0xffff888000001000"`. As JSON numbers
//! they would lose bits in most readers.

use serde::{Deserialize as _, Deserializer, Serializer, de};

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
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    text.strip_prefix("0x")
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| de::Error::custom("not a hexadecimal word"))
}
