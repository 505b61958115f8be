//! Back-pressure: how long the next group waits, and when writes are refused (P9). Pure.
//!
//! Background work that falls behind shows as frozen memtables, files in L0, and bytes over the level limits. Each of
//! them has a threshold at which writes begin to slow down; the worst of them decides. Files in L0 and bytes over the
//! limits also have a threshold at which writes stop. The delay grows with the square of the pressure, so a small
//! backlog costs little, and with a large backlog writes slow to a crawl before they stop.

use std::time::Duration;

use crate::compaction::L0_FILES;

/// Memtables that may wait for their flush. With the active one they bound the memory of unflushed writes.
pub const FROZEN_MAX: usize = 2;
/// The same bound after crashes: each crash adds the memtable that was active at that time. With this many frozen
/// memtables no write is taken until one of them is flushed.
pub const FROZEN_RECOVERED_MAX: usize = FROZEN_MAX + 2;
/// The numbers of files in L0 at which writes slow down, and stop. A read looks at each of these files, and 24 are
/// twice as many as one compaction takes.
const L0_FILES_SLOW: usize = 10;
const L0_FILES_STOP: usize = 24;
/// The numbers of bytes over the limits of the levels at which writes slow down, and stop, in units of L1's size.
const DEBT_SLOW: u64 = 4;
const DEBT_STOP: u64 = 32;
/// The delay just before writes stop.
const DELAY_MAX: Duration = Duration::from_millis(50);
/// A slice of background work without a backlog: about 100 µs of merging.
const SLICE_BYTES_MIN: usize = 16 << 10;
/// A slice when writes are about to stop: the backlog then costs more than long slices.
const SLICE_BYTES_MAX: usize = 256 << 10;

/// The largest slice of merging while there is a frozen memtable.
const BESIDE_FLUSH_BYTES_MAX: usize = 2 * SLICE_BYTES_MIN;

/// What background work has not done yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Frozen memtables.
    pub frozen: usize,
    /// How full the active memtable is, in hundredths.
    pub active_percent: usize,
    /// Files in L0.
    pub l0_files: usize,
    /// Bytes over the limits of the levels.
    pub debt_bytes: u64,
    /// Bytes of L1 at its limit.
    pub base_bytes: u64,
}

/// How bad the backlog is: 0 means no backlog, 1 and above stops writes.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Pressure(f64);

#[expect(clippy::cast_precision_loss, reason = "a pressure needs no more than two digits")]
impl Pressure {
    /// The pressure of a backlog.
    pub fn of(backlog: &Backlog) -> Self {
        let ratio = |value: f64, slow: f64, stop: f64| (value - slow) / (stop - slow);
        let base = backlog.base_bytes.max(1) as f64;
        let l0 = ratio(backlog.l0_files as f64, L0_FILES_SLOW as f64, L0_FILES_STOP as f64);
        let debt = ratio(backlog.debt_bytes as f64 / base, DEBT_SLOW as f64, DEBT_STOP as f64);
        // When no further memtable can be frozen, the second half of the active memtable is the last reserve. Its
        // pressure stays under 1: only a write that needs space finds out exactly whether there is any.
        let memory = if backlog.frozen < FROZEN_MAX {
            0.0
        } else {
            ratio(backlog.active_percent as f64, 50.0, 100.0).min(0.99)
        };
        Self(l0.max(debt).max(memory).max(0.0))
    }

    /// Whether writes are refused until the backlog is smaller.
    pub fn stops_writes(self) -> bool {
        1.0 <= self.0
    }

    /// How long the next commit group waits.
    pub fn delay(self) -> Duration {
        DELAY_MAX.mul_f64(self.0.min(1.0).powi(2))
    }
}

impl Backlog {
    /// Bytes of flushing between two pauses. A flush has to end before the memtables after it are full, or writes have
    /// to wait. So its slices grow as those memtables fill, long before there is pressure.
    pub fn flush_slice_bytes(&self) -> usize {
        let filled = self.frozen.saturating_sub(1) * 100 + self.active_percent;
        slice_bytes(filled as u64, 100 * FROZEN_MAX as u64)
    }

    /// Bytes of merging between two pauses. Slices grow as L0 fills and as the debt grows, until writes slow down.
    pub fn compaction_slice_bytes(&self) -> usize {
        let above = self.l0_files.saturating_sub(L0_FILES);
        let l0 = slice_bytes(above as u64, (L0_FILES_SLOW - L0_FILES) as u64);
        let bytes = l0.max(slice_bytes(self.debt_bytes, self.base_bytes.saturating_mul(DEBT_SLOW)));
        // A flush goes first. Writes may have to wait for it at once; they wait for a merge only when L0 is full.
        if 0 < self.frozen { bytes.min(BESIDE_FLUSH_BYTES_MAX) } else { bytes }
    }
}

/// The length of a slice also grows with the square, because a commit group passes through the event loop four times,
/// and may wait for a slice each time.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a length between the two bounds, to a digit or two"
)]
fn slice_bytes(part: u64, whole: u64) -> usize {
    let share = (part as f64 / whole.max(1) as f64).min(1.0);
    SLICE_BYTES_MIN + ((SLICE_BYTES_MAX - SLICE_BYTES_MIN) as f64 * share.powi(2)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_delay_grows_with_the_backlog_and_then_writes_stop() {
        let pressure = |l0_files, debt_bytes, frozen, active_percent| {
            Pressure::of(&Backlog { frozen, active_percent, l0_files, debt_bytes, base_bytes: 100 })
        };
        let idle = pressure(4, 100, 1, 99);
        assert!(idle.delay().is_zero() && !idle.stops_writes());
        let mut last = Duration::ZERO;
        for l0_files in 11..24 {
            let busy = pressure(l0_files, 0, 0, 0);
            assert!(last < busy.delay() && !busy.stops_writes());
            last = busy.delay();
        }
        assert!(pressure(24, 0, 0, 0).stops_writes());
        assert!(pressure(0, 3_200, 0, 0).stops_writes() && !pressure(0, 3_100, 0, 0).stops_writes());
        let full = pressure(0, 0, 2, 100);
        assert!(!full.stops_writes() && Duration::from_millis(40) < full.delay());
        assert!(full.delay() <= DELAY_MAX);
    }

    #[test]
    fn slices_grow_with_what_they_have_to_keep_up_with() {
        let backlog = Backlog { base_bytes: 1 << 30, ..Backlog::default() };
        assert_eq!(
            (backlog.flush_slice_bytes(), backlog.compaction_slice_bytes()),
            (SLICE_BYTES_MIN, SLICE_BYTES_MIN)
        );
        let half = Backlog { frozen: 1, active_percent: 100, ..backlog };
        let full = Backlog { frozen: 2, active_percent: 100, ..backlog };
        assert!(
            SLICE_BYTES_MIN < half.flush_slice_bytes() && half.flush_slice_bytes() < full.flush_slice_bytes()
        );
        assert!(full.flush_slice_bytes() <= SLICE_BYTES_MAX);
        let behind = Backlog { l0_files: 8, debt_bytes: 3 << 30, ..backlog };
        let far = Backlog { debt_bytes: u64::MAX, ..behind };
        assert!(SLICE_BYTES_MIN < behind.compaction_slice_bytes());
        assert!(behind.compaction_slice_bytes() < far.compaction_slice_bytes());
        assert!(far.compaction_slice_bytes() <= SLICE_BYTES_MAX);
        let many = Backlog { l0_files: L0_FILES_SLOW, ..backlog };
        assert_eq!(many.compaction_slice_bytes(), SLICE_BYTES_MAX);
        let at = |l0_files| Backlog { l0_files, ..backlog }.compaction_slice_bytes();
        assert_eq!(at(L0_FILES), SLICE_BYTES_MIN, "a compaction that is due is no backlog yet");
        let half = at(L0_FILES.midpoint(L0_FILES_SLOW));
        assert!(2 * SLICE_BYTES_MIN < half && half < SLICE_BYTES_MAX / 3, "{half}");
        assert_eq!(Backlog { frozen: 1, ..many }.compaction_slice_bytes(), BESIDE_FLUSH_BYTES_MAX);
    }
}
