//! The name of a task, kept where the task is kept.

use std::{fmt, ops::Deref};

use lockwatch_ebpf::survey::COMM_LEN;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Room for the longest name, without the 0 behind it, each byte of which has become U+FFFD.
const LEN: usize = 3 * (COMM_LEN - 1);

/// Name of a thread, control characters replaced: in place and without an allocation, for
/// every event of the stream brings one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Comm {
    /// Behind `len` they are 0.
    bytes: [u8; LEN],
    len: u8,
}

impl Comm {
    /// As text.
    pub fn as_str(&self) -> &str {
        // Cut between characters when it was made.
        str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl Default for Comm {
    fn default() -> Self {
        Self {
            bytes: [0; LEN],
            len: 0,
        }
    }
}

/// What is longer than a name in the kernel can become is cut.
impl From<&str> for Comm {
    fn from(name: &str) -> Self {
        let mut comm = Self::default();
        let len = name.floor_char_boundary(LEN);
        comm.bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        comm.len = len as u8;
        comm
    }
}

impl From<String> for Comm {
    fn from(name: String) -> Self {
        Self::from(&*name)
    }
}

impl Deref for Comm {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for Comm {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Comm {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl Serialize for Comm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Comm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

/// Takes text as it comes, without a `String` in between.
struct Text;

impl de::Visitor<'_> for Text {
    type Value = Comm;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a task")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Comm, E> {
        Ok(Comm::from(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        let long = "é".repeat(40);
        assert_eq!(Comm::from(&*long).as_str(), "é".repeat(22));
    }

    #[test]
    fn names_that_read_the_same_are_the_same() {
        assert_eq!(Comm::from("a"), Comm::from("a".to_owned()));
        assert!(Comm::from("a") < Comm::from("ab") && Comm::from("ab") < Comm::from("b"));
        assert_eq!(format!("[{:>3}]", Comm::from("a")), "[  a]");
    }

    #[test]
    fn json_has_it_as_a_string() {
        let comm = Comm::from("a\"\u{fffd}b");
        let json = serde_json::to_string(&comm).unwrap();
        assert_eq!(json, "\"a\\\"\u{fffd}b\"");
        assert_eq!(serde_json::from_str::<Comm>(&json).unwrap(), comm);
    }
}
