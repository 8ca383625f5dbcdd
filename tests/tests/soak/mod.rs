//! The parts of the soak: what it listens to, and how it judges that.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

pub(crate) mod judge;
pub(crate) mod listener;
pub(crate) mod truths;

use std::time::Duration;

/// From here on CPUs are locked up, and tasks hang. The disk of a healthy host, with all
/// this load on it, makes nobody wait for that long.
pub(crate) const SOFT: Duration = Duration::from_secs(2);
pub(crate) const HARD: Duration = Duration::from_secs(3);
pub(crate) const HUNG: Duration = Duration::from_secs(5);
