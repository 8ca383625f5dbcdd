//! What ends a stall before its time: a signal, or the end of standard input.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::read,
};

/// The signals that end a stall, as a descriptor.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals, in all threads and children to come: a signal must
    /// not take a holder or a waiter out of its place.
    pub(crate) fn catch() -> Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().context("cannot block signals")?;
        let fd =
            SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("cannot make a signalfd")?;
        Ok(Self(fd))
    }

    /// One of them has come.
    pub(crate) fn arrived(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Sleeps until `deadline`, or until a signal or (if asked for) the end of
    /// standard input comes.
    pub(crate) fn sleep_until(&self, deadline: Instant, until_eof: bool) -> Result<()> {
        let stdin = io::stdin();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let left =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            if until_eof {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for the end of the stall"),
            }
            let is_ready = |at: usize| fds.get(at).is_some_and(|fd| fd.any().unwrap_or(false));
            if is_ready(0) {
                return Ok(());
            }
            // What is written there does not matter, only that it ends.
            if is_ready(1) && read(stdin.as_fd(), &mut [0; 256]).unwrap_or(0) == 0 {
                return Ok(());
            }
        }
    }
}
