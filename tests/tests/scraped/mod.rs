//! A real Prometheus, and something for it to scrape.

#![allow(dead_code, reason = "each test needs a part of it")]

pub(crate) mod endpoint;
pub(crate) mod http;
pub(crate) mod prometheus;
pub(crate) mod rules;
pub(crate) mod scene;
