//! A small HTTP server from which metrics are scraped.
//!
//! It speaks plain HTTP/1.1 and asks nobody who he is: it is meant for loopback, or to have a
//! proxy before it. Whatever a client does costs a bounded number of connections, and each a
//! bounded time.

mod accept;
mod answer;
mod listen;
mod patience;

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
};

pub use self::listen::{ListenError, exposure, listen};
use self::{answer::Desk, patience::Patient};
use crate::export::{State, open_metrics::Exposition};

/// Longest head of a request in bytes.
const LONGEST_HEAD: usize = 16 * 1024;
/// Header fields in a request.
const MOST_FIELDS: usize = 64;
/// How long to wait after a connection could not be accepted, for want of file descriptors
/// mostly.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// Somebody scrapes: he is to be sent the state as it is now.
pub type Scrape = oneshot::Sender<State>;

/// What clients may ask of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. When there are more, those that nobody asks anything on are
    /// closed.
    pub connections: usize,
    /// How long a client may take for its request, and for reading the answer.
    pub request: Duration,
    /// How long a connection may be without a request.
    pub idle: Duration,
    /// How long a state may be waited for.
    pub state: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 32,
            request: Duration::from_secs(20),
            // Longer than the interval that Prometheus scrapes at if it is told nothing.
            idle: Duration::from_secs(75),
            state: Duration::from_secs(5),
        }
    }
}

/// Answers requests until it is dropped, and all connections with it.
///
/// Each scrape asks `scrapes` for the state as it is then, one scrape at a time. A connection
/// that cannot be accepted is said on stderr, and the next one is tried.
pub async fn serve(
    listener: TcpListener,
    scrapes: mpsc::Sender<Scrape>,
    exposition: Exposition,
    limits: Limits,
) -> Infallible {
    let desk = Arc::new(Desk::new(scrapes, exposition, limits.state));
    let places = Arc::new(Semaphore::new(limits.connections));
    let crowded = Arc::new(Notify::new());
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection for metrics: {error}");
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        if places.available_permits() == 0 {
            crowded.notify_waiters();
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (desk, crowded) = (Arc::clone(&desk), Arc::clone(&crowded));
        connections.spawn(attend(stream, desk, crowded, limits, place));
    }
}

/// Answers what is asked on one connection.
async fn attend(
    stream: TcpStream,
    desk: Arc<Desk>,
    crowded: Arc<Notify>,
    limits: Limits,
    _place: OwnedSemaphorePermit,
) {
    // Without it the end of an answer may wait for the client's acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("a connection for metrics is slow: {error}");
    }
    let stream = TokioIo::new(Patient::new(stream, limits.request, limits.idle));
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .max_buf_size(LONGEST_HEAD)
        .max_headers(MOST_FIELDS)
        .serve_connection(stream, service);
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            end = connection.as_mut() => {
                if let Err(error) = end {
                    tracing::debug!("a connection for metrics ended: {error}");
                }
                return;
            }
            () = crowded.notified() => connection.as_mut().graceful_shutdown(),
        }
    }
}

#[cfg(test)]
mod tests;
