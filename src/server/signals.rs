//! The signals that a server listens to.
//!
//! SIGTERM and SIGINT ask for a stop, and during a stop for its immediate end. SIGHUP asks to read the settings again.
//! SIGUSR1 and SIGUSR2, which would end the process without a word, are ignored: a tool that rotates logs must not cost
//! memtables that were not flushed. SIGXFSZ is held, so that a write beyond the limit on file sizes fails like any other
//! write.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};

/// A stop signal this soon after the first request is the same request. A tool that passes the signal on, and the terminal
/// that sends it to the whole group, ask for one stop. So does a tool that asks for `/shutdown` and then sends the signal.
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
    /// When the stop was asked for.
    asked: Option<Instant>,
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
            asked: None,
        })
    }

    /// SIGHUP.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn hangup(&self) -> Result<Signal> {
        listen(SignalKind::hangup())
    }

    /// `/shutdown` has asked for the stop.
    pub(super) fn asked_otherwise(&mut self) {
        self.asked.get_or_insert_with(Instant::now);
    }

    /// Waits for the next request, and returns the name of the signal. Cancel safety: safe.
    pub(super) async fn next(&mut self) -> &'static str {
        loop {
            let name = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            };
            if self.asked.is_some_and(|asked| asked.elapsed() <= SAME_REQUEST) {
                tracing::info!("{name}: the server stops already");
                continue;
            }
            self.asked = Some(Instant::now());
            return name;
        }
    }
}
