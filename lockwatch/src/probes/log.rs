//! What the programs in the kernel log, for debugging lockwatch itself: off, at no
//! cost, unless debug output is on (`-vv`).

use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;

/// Bytes of the log's ring buffer while it is off; the object always has one.
const OFF_LEN: u32 = 4096;

/// The level the programs log at, 0 = off; a read-only global in the object.
pub(super) fn level() -> u8 {
    if tracing::enabled!(tracing::Level::TRACE) {
        log::Level::Trace as u8
    } else if tracing::enabled!(tracing::Level::DEBUG) {
        log::Level::Debug as u8
    } else {
        0
    }
}

/// Sets the level, and a small buffer where nothing will be logged.
pub(super) fn configure<'a>(loader: &mut EbpfLoader<'a>, level: &'a u8) {
    // The object of a build without log lines has no such global.
    loader.override_global(aya_log::LEVEL, level, false);
    if *level == 0 {
        loader.map_max_entries("AYA_LOGS", OFF_LEN);
    }
}

/// Forwards log lines of the programs to this process's log.
pub(super) struct ProgramLog {
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl ProgramLog {
    /// Opens the log of an object; without effect while logging is off.
    pub(super) fn open(ebpf: &mut Ebpf) -> Self {
        if level() == 0 {
            return Self { logger: None };
        }
        let logger = EbpfLogger::init(ebpf)
            .inspect_err(|error| tracing::warn!("cannot read the kernel programs' log: {error}"))
            .ok();
        Self { logger }
    }

    /// Passes on what has been logged since.
    pub(super) fn flush(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }
}
