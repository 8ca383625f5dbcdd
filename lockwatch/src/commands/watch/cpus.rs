//! The CPUs of this host, as they beat.

use crate::{
    detect::Thresholds,
    figures::Span,
    kernel::layout::Layout,
    lockup::{Monitor, Suspect},
    probes::{LoadError, beats::BeatProbes},
};

/// Samples CPUs and tells which may be locked up.
#[derive(Debug)]
pub(super) struct Cpus {
    probes: BeatProbes,
    monitor: Monitor,
    is_unread_told: bool,
}

impl Cpus {
    /// Begins to sample, if any threshold is set.
    pub(super) fn open(layout: &Layout, thresholds: Thresholds) -> Result<Option<Self>, LoadError> {
        if thresholds.soft_lockup.is_none() && thresholds.hard_lockup.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            probes: BeatProbes::open(layout, thresholds)?,
            monitor: Monitor::new(thresholds),
            is_unread_told: false,
        }))
    }

    /// In words.
    pub(super) fn said(&self) -> String {
        let period = Span(self.probes.pace().period());
        format!("lockups from a sample of each CPU every {period}")
    }

    /// The CPUs that may be locked up now; `None` if that cannot be told this time.
    pub(super) fn suspects(&mut self) -> Option<Vec<Suspect>> {
        match self.probes.read() {
            Ok(readings) => Some(self.monitor.suspects(&readings)),
            Err(error) => {
                if !self.is_unread_told {
                    tracing::warn!("lockups of CPUs are not seen: {error}");
                    self.is_unread_told = true;
                }
                None
            }
        }
    }
}
