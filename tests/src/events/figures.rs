//! What was measured, as `cargo xtask bench` reads it.

use serde::Serialize;

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: Unit,
    /// By what part of it it may be worse another time; absent: it does not repeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    tolerance: Option<f64>,
}

/// What it counts.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    Allocations,
    Bytes,
    PerSecond,
    Ratio,
    Count,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            tolerance: None,
        }
    }

    /// It repeats, but for this part of it.
    pub(crate) fn steady(self, tolerance: f64) -> Self {
        Self {
            tolerance: Some(tolerance),
            ..self
        }
    }
}
