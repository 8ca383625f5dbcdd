//! Text as in URLs, where `%2C` is a comma.

/// Takes the escapes out.
///
/// # Errors
/// In words, when a `%` has no two hex digits behind it, or what comes out is no UTF-8.
pub(super) fn decoded(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let high = digit(rest.next());
        let (Some(high), Some(low)) = (high, digit(rest.next())) else {
            return Err("a `%` is not followed by two hex digits (itself it is %25)");
        };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| "a value is no UTF-8")
}
