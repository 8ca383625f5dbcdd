//! Kernel memory behind one trait: a BPF reader, and images in tests.

/// Reads kernel memory. A bad address is an answer, never a fault.
pub trait KernelMemory {
    /// Reads every `(address, len)`; a read that fails gives `None`.
    ///
    /// # Errors
    /// When the reader itself stops working.
    fn read_batch(&mut self, reads: &[(u64, usize)]) -> Result<Vec<Option<Vec<u8>>>, MemoryError>;

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
