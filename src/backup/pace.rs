//! How fast files are copied.

use std::time::{Duration, Instant};

/// Slows copies down to a rate.
pub(super) struct Pace {
    rate: Option<u64>,
    begin: Instant,
    bytes: u64,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate, begin: Instant::now(), bytes: 0 }
    }

    pub(super) fn spend(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.bytes as f64 / rate.max(1) as f64);
            std::thread::sleep(due.saturating_sub(self.begin.elapsed()));
        }
    }
}
