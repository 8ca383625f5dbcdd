//! A real Prometheus, and something for it to scrape.

pub(crate) mod endpoint;
pub(crate) mod http;
pub(crate) mod prometheus;
pub(crate) mod rules;
pub(crate) mod scene;
