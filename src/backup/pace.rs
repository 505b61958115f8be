//! How fast data is moved.

use std::time::{Duration, Instant};

/// Slows work down to a rate.
pub struct Pace {
    rate: Option<u64>,
    begin: Instant,
    bytes: u64,
}

impl Pace {
    /// Without a rate, nothing is slowed down.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, begin: Instant::now(), bytes: 0 }
    }

    /// Counts bytes, or whatever the rate counts, and sleeps if there were too many.
    pub fn spend(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.bytes as f64 / rate.max(1) as f64);
            std::thread::sleep(due.saturating_sub(self.begin.elapsed()));
        }
    }
}
