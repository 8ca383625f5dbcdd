//! Numbers and bytes as Sun RPC sends them (RFC 4506): big-endian, in units of four bytes.

/// What has come, to be read from the front.
pub(super) struct Received<'a>(pub(super) &'a [u8]);

impl<'a> Received<'a> {
    pub(super) fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    pub(super) fn long(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*bytes))
    }

    /// Bytes with their number in front.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number()? as usize;
        let padded = length.checked_next_multiple_of(4)?;
        let (bytes, rest) = self.0.split_at_checked(padded)?;
        self.0 = rest;
        Some(&bytes[..length])
    }
}

/// What is to be sent.
#[derive(Default)]
pub(super) struct Sent(Vec<u8>);

impl Sent {
    pub(super) fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(super) fn numbers(self, numbers: &[u32]) -> Self {
        numbers
            .iter()
            .fold(self, |sent, &number| sent.number(number))
    }

    pub(super) fn long(mut self, number: u64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    /// Bytes with their number in front.
    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let mut sent = self.number(bytes.len() as u32);
        sent.0.extend(bytes);
        sent.0.resize(sent.0.len().next_multiple_of(4), 0);
        sent
    }

    /// As one record of a stream (RFC 5531, 11): its length, and that it is the last part.
    pub(super) fn into_record(self) -> Vec<u8> {
        const LAST: u32 = 1 << 31;
        let mark = (LAST | self.0.len() as u32).to_be_bytes();
        [&mark[..], &self.0].concat()
    }
}

/// Takes the first whole record out of a stream; `None` while it is not whole.
pub(super) fn take_record(stream: &mut Vec<u8>) -> Option<Vec<u8>> {
    const LAST: u32 = 1 << 31;
    let mut record = Vec::new();
    let mut at = 0;
    loop {
        let mark = stream.get(at..)?.first_chunk()?;
        let mark = u32::from_be_bytes(*mark);
        let end = at + 4 + (mark & !LAST) as usize;
        record.extend(stream.get(at + 4..end)?);
        at = end;
        if mark & LAST != 0 {
            stream.drain(..at);
            return Some(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let record = Sent::default()
            .number(7)
            .long(1 << 40)
            .bytes(b"five!")
            .numbers(&[1, 2])
            .into_record();
        assert!(record.len().is_multiple_of(4));
        let mut stream = [&record[..], &record[..9]].concat();
        let whole = take_record(&mut stream).unwrap();
        let mut received = Received(&whole);
        assert_eq!(received.number(), Some(7));
        assert_eq!(received.long(), Some(1 << 40));
        assert_eq!(received.bytes(), Some(&b"five!"[..]));
        assert_eq!((received.number(), received.number()), (Some(1), Some(2)));
        assert_eq!(received.number(), None);
        assert_eq!(take_record(&mut stream), None);
        assert_eq!(stream.len(), 9, "kept until the rest comes");
    }

    #[test]
    fn a_record_may_come_in_parts() {
        let mut stream = vec![0, 0, 0, 1, b'a', 0x80, 0, 0, 2, b'b', b'c', 1];
        assert_eq!(take_record(&mut stream).as_deref(), Some(&b"abc"[..]));
        assert_eq!(stream, [1]);
    }

    #[test]
    fn lengths_that_lie_are_no_bytes() {
        assert_eq!(Received(&[0, 0, 0, 9, 1, 2, 3, 4]).bytes(), None);
        assert_eq!(Received(&[0xff; 8]).bytes(), None);
        assert_eq!(Received(&[0; 3]).number(), None);
    }
}
