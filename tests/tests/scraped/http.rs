//! One GET request.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// No answer takes that long.
const LIMIT: Duration = Duration::from_secs(20);

/// The body of the answer to a request with these header fields, each with its line end.
///
/// # Errors
/// Where there is no answer, or one with another status than 200.
pub(crate) fn get(address: SocketAddr, path: &str, fields: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)
        .with_context(|| format!("nothing listens on {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    // Of that version: an answer that is not cut into chunks.
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\n{fields}\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    if !head.contains(" 200 OK") {
        bail!("{path}: {head}\n{body}");
    }
    Ok(body.to_owned())
}

/// A value as part of a query.
pub(crate) fn escaped(value: &str) -> String {
    let mut escaped = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
