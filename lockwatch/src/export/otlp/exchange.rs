//! One request and its answer.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    time::{Duration, SystemTime},
};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{self, HeaderMap},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::oneshot, task::JoinSet, time::timeout};

use super::{answer::Answer, target::Target};

/// More of an answer is not read.
const LONGEST_ANSWER: usize = 64 << 10;

/// Stack of the thread that looks a name up; all memory of lockwatch is locked.
const STACK: usize = 512 << 10;

/// Looks names up in a thread of its own. None of the event loop's: at its end that would
/// be waited for, and on a host that hangs it may never come back. No second one is started
/// while one has not answered.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    asked: Option<oneshot::Receiver<io::Result<Vec<SocketAddr>>>>,
}

impl Resolver {
    /// Can be given up at any time, and asked again.
    async fn addresses(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![(address, port).into()]);
        }
        let asked = match &mut self.asked {
            Some(asked) => asked,
            none => none.insert(look_up(host, port)?),
        };
        let answer = asked.await;
        self.asked = None;
        answer.map_err(io::Error::other)?
    }
}

fn look_up(host: &str, port: u16) -> io::Result<oneshot::Receiver<io::Result<Vec<SocketAddr>>>> {
    let (answer, asked) = oneshot::channel();
    let host = host.to_owned();
    std::thread::Builder::new()
        .name("lookup".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs();
            // Nobody may be left who wants to know.
            let _ = answer.send(found.map(Iterator::collect));
        })?;
    Ok(asked)
}

/// Sends a request and waits for its answer, no longer than `limit` in all.
pub(super) async fn exchange(
    target: &Target,
    resolver: &mut Resolver,
    body: Bytes,
    limit: Duration,
) -> Answer {
    let later = |why| Answer::Later { why, after: None };
    match timeout(limit, try_exchange(target, resolver, body)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => later(why),
        Err(_) => later(format!("no answer within {} s", limit.as_secs_f32())),
    }
}

/// An error is one of the connection, in words.
async fn try_exchange(
    target: &Target,
    resolver: &mut Resolver,
    body: Bytes,
) -> Result<Answer, String> {
    let stream = connect(target, resolver).await?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| in_words(&error))?;
    // It ends with this set, whichever way this function ends.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // The sender is told of errors, too.
        let _ = connection.await;
    });
    let request = request(target, body)?;
    let answer = sender.send_request(request).await;
    let (parts, body) = answer.map_err(|error| in_words(&error))?.into_parts();
    let body = match Limited::new(body, LONGEST_ANSWER).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() && parts.status.is_success() => {
            let why = format!(
                "it answers {} and far more than a receiver does",
                parts.status
            );
            return Ok(Answer::Refused { why });
        }
        // Who says `taken` and then breaks off has still taken it; of an error less is told.
        Err(_) => Bytes::new(),
    };
    let after = (parts.status == StatusCode::SERVICE_UNAVAILABLE
        || parts.status == StatusCode::TOO_MANY_REQUESTS)
        .then(|| retry_after(&parts.headers, SystemTime::now()))
        .flatten();
    let kind = parts.headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    Ok(Answer::of(parts.status, kind, &body, after))
}

async fn connect(target: &Target, resolver: &mut Resolver) -> Result<TcpStream, String> {
    let addresses = resolver.addresses(&target.host, target.port).await;
    let addresses = addresses.map_err(|error| format!("cannot find {}: {error}", target.host))?;
    let mut last = "it has no address".to_owned();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("cannot connect: {last}"))
}

fn request(target: &Target, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::post(target.path.as_str())
        .header(header::HOST, target.authority.as_str())
        .header(
            header::USER_AGENT,
            concat!("lockwatch/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::CONTENT_TYPE, "application/x-protobuf")
        // A connection serves one request: between two there is time in which it may die.
        .header(header::CONNECTION, "close");
    if target.gzip {
        request = request.header(header::CONTENT_ENCODING, "gzip");
    }
    for header in &target.headers {
        request = request.header(header.name(), header.value());
    }
    let request = request.body(Full::new(body));
    request.map_err(|error| format!("no request can be made: {error}"))
}

fn in_words(error: &hyper::Error) -> String {
    if error.is_parse() {
        "it does not answer in HTTP (is that its port for gRPC?)".to_owned()
    } else if error.is_incomplete_message() {
        "it closed the connection without an answer".to_owned()
    } else {
        match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }
    }
}

/// How long a server wants to be left alone: a number of seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let until = SystemTime::from(date.timestamp());
    until.duration_since(now).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_say_how_long_or_until_when() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().expect("a value"));
            retry_after(&headers, now)
        };
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        // The second that the HTTP standard has as its example is `now`.
        let date = "Sun, 06 Nov 1994 08:50:37 GMT";
        assert_eq!(after(date), Some(Duration::from_secs(60)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:00 GMT"), None);
        assert_eq!(after("soon"), None);
        assert_eq!(after("-3"), None);
    }

    #[tokio::test]
    async fn a_name_is_looked_up_and_an_address_is_not() {
        let mut resolver = Resolver::default();
        let found = resolver
            .addresses("localhost", 7)
            .await
            .expect("an address");
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        assert!(!found.is_empty());
        let found = resolver.addresses("::1", 7).await.expect("an address");
        assert_eq!(found, ["[::1]:7".parse().expect("an address")]);
        assert!(resolver.asked.is_none());
    }
}
