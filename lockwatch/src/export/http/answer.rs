//! What is answered to a request.

use std::time::Duration;

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};

use super::{Scrape, accept};
use crate::export::open_metrics::Exposition;

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

const INDEX: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<title>lockwatch</title>\n\
    <h1>lockwatch</h1>\n<p><a href=\"/metrics\">Metrics</a></p>\n</html>\n";

/// Where requests are answered.
#[derive(Debug)]
pub(super) struct Desk {
    /// One scrape at a time: states come in the order in which they were.
    scraping: Mutex<Scraping>,
    patience: Duration,
}

#[derive(Debug)]
struct Scraping {
    scrapes: mpsc::Sender<Scrape>,
    exposition: Exposition,
}

impl Desk {
    /// Waits no longer than `patience` for a state.
    pub(super) fn new(
        scrapes: mpsc::Sender<Scrape>,
        exposition: Exposition,
        patience: Duration,
    ) -> Self {
        Self {
            scraping: Mutex::new(Scraping {
                scrapes,
                exposition,
            }),
            patience,
        }
    }

    /// The answer; hyper leaves out the body of one to HEAD.
    pub(super) async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !["/", "/healthz", "/metrics"].contains(&path) {
            let text = "not found: the metrics are at /metrics\n";
            return response(StatusCode::NOT_FOUND, TEXT, text);
        }
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let text = "only GET and HEAD are allowed\n";
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allowed);
            return response;
        }
        match path {
            "/" => response(StatusCode::OK, HTML, INDEX),
            "/healthz" => response(StatusCode::OK, TEXT, "ok\n"),
            _ => self.metrics(request).await,
        }
    }

    async fn metrics<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let wanted = request.headers().get_all(ACCEPT).into_iter();
        let format = accept::format(wanted.filter_map(|field| field.to_str().ok()));
        let text = timeout(self.patience, async {
            let mut scraping = self.scraping.lock().await;
            let (scrape, state) = oneshot::channel();
            scraping.scrapes.send(scrape).await.ok()?;
            Some(scraping.exposition.text(state.await.ok()?, format))
        });
        match text.await {
            Ok(Some(text)) => response(StatusCode::OK, format.content_type(), text),
            Ok(None) => {
                let text = "lockwatch is about to end\n";
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
            }
            Err(_) => {
                let text = "lockwatch is too busy to tell its state\n";
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
            }
        }
    }
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let fields = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in fields {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}
