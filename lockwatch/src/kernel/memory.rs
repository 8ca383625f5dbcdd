//! Kernel memory behind one trait: a BPF reader, and images in tests.

use crate::task::Comm;

/// Reads kernel memory. A bad address is an answer, never a fault.
pub trait KernelMemory {
    /// Reads every `(address, len)`; a read that fails gives `None`.
    ///
    /// # Errors
    /// When the reader itself stops working.
    fn read_batch(&mut self, reads: &[(u64, usize)]) -> Result<Vec<Option<Vec<u8>>>, MemoryError>;

    /// As [`Self::read_batch`], and hands each read over in turn instead of keeping it.
    ///
    /// # Errors
    /// As [`Self::read_batch`].
    fn read_each(
        &mut self,
        reads: &[(u64, usize)],
        take: &mut dyn FnMut(Option<&[u8]>),
    ) -> Result<(), MemoryError> {
        for bytes in self.read_batch(reads)? {
            take(bytes.as_deref());
        }
        Ok(())
    }

    /// One read; `None` for an address that is not there.
    ///
    /// # Errors
    /// As [`Self::read_batch`].
    fn read(&mut self, address: u64, len: usize) -> Result<Option<Vec<u8>>, MemoryError> {
        Ok(self.read_batch(&[(address, len)])?.pop().flatten())
    }

    /// One little-endian word; `None` for an address that is not there.
    ///
    /// # Errors
    /// As [`Self::read_batch`].
    fn read_u64(&mut self, address: u64) -> Result<Option<u64>, MemoryError> {
        Ok(self
            .read(address, 8)?
            .as_deref()
            .map(|bytes| word(bytes, 0)))
    }
}

/// The reader stopped working.
#[derive(Debug, thiserror::Error)]
#[error("cannot read kernel memory")]
pub struct MemoryError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// The little-endian word at `offset`, 0 outside of the bytes.
pub fn word(bytes: &[u8], offset: usize) -> u64 {
    bytes
        .get(offset..offset.saturating_add(8))
        .and_then(|slice| slice.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// The little-endian 32-bit word at `offset`, 0 outside of the bytes.
pub fn half_word(bytes: &[u8], offset: usize) -> u32 {
    bytes
        .get(offset..offset.saturating_add(4))
        .and_then(|slice| slice.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// The text up to the first NUL, with everything that is not printable replaced.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
        .chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// The name of a task, as [`text`] would give it.
pub fn comm(bytes: &[u8]) -> Comm {
    let end = bytes.iter().position(|&byte| byte == 0);
    let name = &bytes[..end.unwrap_or(bytes.len())];
    // Nearly all names are such, and each event has one: no text on the way.
    let is_plain = name.iter().all(|byte| matches!(byte, b' '..=b'~'));
    match str::from_utf8(name) {
        Ok(name) if is_plain => Comm::from(name),
        _ => Comm::from(text(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_text_that_it_was() {
        for name in [
            &b"kworker/0:1\0xxx"[..],
            b"",
            b"\0",
            b"fifteen letters",
            b"a\x1b[31mb\xff",
            "字字字字字".as_bytes(),
            &[0xff; 15],
            &[0x1b; 15],
        ] {
            assert_eq!(comm(name).as_str(), text(name));
        }
    }
}
