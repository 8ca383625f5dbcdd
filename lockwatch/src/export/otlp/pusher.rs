//! The task that pushes.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Write as _},
    mem,
    sync::Arc,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use hyper::body::Bytes;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use tokio::{sync::watch, task::yield_now, time::sleep};

use super::{
    answer::Answer,
    exchange::{Resolver, exchange},
    pace::Pace,
    request::{Parts, request},
    series,
    target::Target,
};
use crate::export::{
    State,
    roots::{RootName, roots},
};

/// Roots that are kept in mind for a receiver which does not answer, at most.
const ROOTS_KNOWN: usize = 200;

/// Distributions that are converted before others get their turn.
const SERIES_AT_ONCE: usize = 8;
/// Bytes that are compressed before others get their turn.
const BYTES_AT_ONCE: usize = 64 << 10;

/// A state that is to be pushed.
#[derive(Debug, Default)]
pub(super) struct Offer {
    state: State,
    is_last: bool,
}

impl Offer {
    pub(super) fn of(state: State) -> Self {
        Self {
            state,
            is_last: false,
        }
    }

    pub(super) fn last(state: State) -> Self {
        Self {
            state,
            is_last: true,
        }
    }
}

/// What has become of the pushes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushes {
    /// Pushes that the receiver has taken, if only in part.
    pub taken: u64,
    /// Pushes that failed, each try counted.
    pub failed: u64,
    /// Points of pushes it has taken in part that it has not taken.
    pub rejected_points: u64,
}

/// Pushes states to one receiver.
pub(super) struct Pusher {
    target: Target,
    resource: Resource,
    offers: watch::Receiver<Arc<Offer>>,
    resolver: Resolver,
    pace: Pace,
    /// Roots that the receiver may take for standing.
    known_roots: BTreeSet<RootName>,
    pushes: watch::Sender<Pushes>,
    said: Said,
}

impl Pusher {
    pub(super) fn new(
        target: Target,
        resource: Resource,
        offers: watch::Receiver<Arc<Offer>>,
        say: impl FnMut(&str) + Send + 'static,
    ) -> Self {
        Self {
            said: Said {
                target: target.to_string(),
                trouble: None,
                failed: 0,
                say: Box::new(say),
            },
            target,
            resource,
            offers,
            resolver: Resolver::default(),
            pace: Pace::default(),
            known_roots: BTreeSet::new(),
            pushes: watch::Sender::new(Pushes::default()),
        }
    }

    /// Changes as pushes are made.
    pub(super) fn pushes(&self) -> watch::Receiver<Pushes> {
        self.pushes.subscribe()
    }

    /// Pushes what is offered, until the last is or nobody can offer any more.
    pub(super) async fn run(mut self) {
        while self.offers.changed().await.is_ok() {
            let offer = Arc::clone(&self.offers.borrow_and_update());
            let wait = self.push(&offer).await;
            if offer.is_last {
                return;
            }
            let Some(wait) = wait else { continue };
            // The end does not wait. Else what is newest then is tried next.
            tokio::select! {
                () = sleep(wait) => {}
                _ = self.offers.wait_for(|offer| offer.is_last) => {}
            }
            self.offers.mark_changed();
        }
    }

    /// Pushes once; how long to wait if it is to be tried again.
    async fn push(&mut self, offer: &Offer) -> Option<Duration> {
        let standing: BTreeSet<RootName> = roots(&offer.state.roots).into_keys().collect();
        let body = pack(offer, &self.resource, &self.known_roots, self.target.gzip);
        let answer = match body.await {
            Ok(body) => exchange(&self.target, &mut self.resolver, body, self.target.timeout).await,
            Err(error) => Answer::Refused {
                why: format!("a request cannot be packed: {error}"),
            },
        };
        let is_taken = matches!(answer, Answer::Taken | Answer::Partly { .. });
        if is_taken {
            self.known_roots = standing;
        } else {
            // It may have been taken all the same.
            self.known_roots.extend(standing);
            while self.known_roots.len() > ROOTS_KNOWN {
                self.known_roots.pop_first();
            }
        }
        self.pushes.send_modify(|pushes| match answer {
            Answer::Taken => pushes.taken += 1,
            Answer::Partly { rejected, .. } => {
                pushes.taken += 1;
                pushes.rejected_points += rejected;
            }
            Answer::Later { .. } | Answer::Refused { .. } => pushes.failed += 1,
        });
        self.said.tell(&answer);
        if let Answer::Later { after, .. } = answer {
            return Some(self.pace.slower(after));
        }
        self.pace = Pace::default();
        None
    }
}

/// The body of a request. Lets others go on in between: with a thousand series it is some
/// milliseconds' work.
async fn pack(
    offer: &Offer,
    resource: &Resource,
    known_roots: &BTreeSet<RootName>,
    gzip: bool,
) -> io::Result<Bytes> {
    let mut series = Vec::new();
    for (number, (key, distributions)) in (1..).zip(series::as_written(&offer.state.latency)) {
        series.push((key, series::together(&distributions)));
        if number % SERIES_AT_ONCE == 0 {
            yield_now().await;
        }
    }
    let request = request(Parts {
        resource,
        series,
        state: &offer.state,
        known_roots,
        is_last: offer.is_last,
    });
    yield_now().await;
    let body = request.encode_to_vec();
    // It is many times as large, and its answer takes its time.
    drop(request);
    yield_now().await;
    if !gzip {
        return Ok(body.into());
    }
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    for part in body.chunks(BYTES_AT_ONCE) {
        packed.write_all(part)?;
        yield_now().await;
    }
    Ok(packed.finish()?.into())
}

/// Says what is wrong when that changes.
struct Said {
    target: String,
    /// What was said last, if it was no good news.
    trouble: Option<String>,
    /// Tries that failed since the last good one.
    failed: u64,
    say: Box<dyn FnMut(&str) + Send>,
}

impl Said {
    fn tell(&mut self, answer: &Answer) {
        let target = &self.target;
        let trouble = match answer {
            Answer::Taken => None,
            Answer::Partly { rejected: 0, why } => Some(format!("{target}: {why}")),
            // How many there are is not the same each time.
            Answer::Partly { why, .. } => Some(format!(
                "{target} does not take all of the metrics: {why}; the same is sent again and again"
            )),
            Answer::Later { why, .. } => Some(format!(
                "metrics do not get to {target}: {why}; it is tried again, and nothing is lost \
                 if it comes back during this run"
            )),
            Answer::Refused { why } => Some(format!(
                "metrics do not get to {target}: {why}; the next ones are sent all the same"
            )),
        };
        let failed = mem::take(&mut self.failed);
        match answer {
            Answer::Later { .. } | Answer::Refused { .. } => self.failed = failed + 1,
            Answer::Taken | Answer::Partly { .. } => {}
        }
        if trouble == self.trouble {
            return;
        }
        match &trouble {
            Some(line) => (self.say)(line),
            None if failed > 0 => {
                let tries = if failed == 1 { "try" } else { "tries" };
                (self.say)(&format!(
                    "{target} takes metrics again, after {failed} failed {tries}"
                ));
            }
            None => (self.say)(&format!("{target} takes all of the metrics again")),
        }
        self.trouble = trouble;
    }
}

impl fmt::Debug for Pusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pusher")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
