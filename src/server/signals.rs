//! The signals that a server listens to.
//!
//! SIGTERM and SIGINT ask for a stop. SIGHUP asks to read the settings again. SIGUSR1 and SIGUSR2, which would end
//! the process without a word, are ignored: a tool that rotates logs must not cost memtables that were not flushed. SIGXFSZ
//! is held, so that a write beyond the limit on file sizes fails like any other write.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};

/// A stop signal this soon after another one is the same request. A tool that passes the signal on, and the terminal that
/// sends it to the whole group, ask for one stop.
const SAME_REQUEST: Duration = Duration::from_secs(1);

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::io("listen for signals", error))
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Never waited for: they only keep the default action of the signal away.
    _ignored: Vec<Signal>,
    /// When the last request came.
    last: Option<Instant>,
    /// Requests so far.
    pub(super) seen: u32,
}

impl Signals {
    /// Takes the signals over from the system, for the rest of the life of the process.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn new() -> Result<Self> {
        let ignored = [
            SignalKind::hangup(), // until somebody waits for it
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::from_raw(libc::SIGXFSZ),
        ];
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            _ignored: ignored.into_iter().map(listen).collect::<Result<_>>()?,
            last: None,
            seen: 0,
        })
    }

    /// SIGHUP.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn hangup(&self) -> Result<Signal> {
        listen(SignalKind::hangup())
    }

    /// Waits for the next request to stop, and returns its name. Cancel safety: safe.
    pub(super) async fn next(&mut self) -> &'static str {
        loop {
            let name = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            };
            let now = Instant::now();
            if self.last.is_none_or(|last| SAME_REQUEST < now.duration_since(last)) {
                self.last = Some(now);
                self.seen += 1;
                return name;
            }
        }
    }
}
