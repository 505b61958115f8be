//! The signals that a server listens to.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Held, never waited for: a write beyond the limit on file sizes then fails like any other write, and does not end
    /// the process silently.
    _file_size: Signal,
    /// Signals that have come.
    pub(super) seen: u32,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| Error::io("listen for signals", error));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            _file_size: listen(SignalKind::from_raw(libc::SIGXFSZ))?,
            seen: 0,
        })
    }

    /// Waits for the next signal. Cancel safety: safe.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        self.seen += 1;
    }
}
