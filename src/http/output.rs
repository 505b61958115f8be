//! The replies of a connection that are ready to be written, and the memory that they may take.
//!
//! A connection has a few KiB of its own for input and as many for output. For more output it takes an extra from the
//! memory that all connections share. If there is none, it goes on with what it has, and writes more often.

use bytes::Bytes;

use super::peers::Peers;
use super::response::{Wire, add_field};
use super::stream::Stream;
use crate::memory::{Memory, Permit, Pool};
use crate::op::Outcome;

/// What a connection has of its own, for input and for output.
pub(super) const OWN_BYTES: usize = 8 << 10;
/// Values up to this size are copied into the output after their head; larger values are written from where they are.
pub(super) const COPY_BYTES_MAX: usize = 32 << 10;
/// Values up to this size come without a permit.
pub(super) const SMALL_BYTES: usize = 4 << 10;
/// Replies are written when this much of them is ready, even if more follow.
pub(super) const OUTPUT_BYTES: usize = 64 << 10;
/// Small replies that wait for their turn hold about this much, if there is an extra for them (H5).
pub(super) const HELD_SMALL_BYTES_MAX: usize = 64 << 10;
/// Other replies that wait for their turn hold about this much, plus one value (H5).
pub(super) const HELD_LARGE_BYTES_MAX: usize = 1 << 20;
/// The extra.
const EXTRA_BYTES: usize = OUTPUT_BYTES + HELD_SMALL_BYTES_MAX;
/// The length that is expected of a value on its way. At first it is fixed; then it follows the lengths of earlier
/// values, but never falls below a minimum.
pub(super) const EXPECTED_BYTES_FIRST: usize = 64 << 10;
pub(super) const EXPECTED_BYTES_MIN: usize = SMALL_BYTES;

/// What is ready, and what is held for its turn.
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    extra: Option<Permit>,
    /// How long the next value is expected to be, judging by the last ones.
    expected: usize,
    /// Bytes that pending replies hold, or are expected to hold: with values up to `SMALL_BYTES`, and with others.
    held_small: usize,
    held_large: usize,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), extra: None, expected: EXPECTED_BYTES_FIRST, held_small: 0, held_large: 0 }
    }

    /// Gives back what an idle connection does not need.
    pub(super) fn rest<S: Stream>(&mut self, peers: &Peers<S>) {
        self.extra = None;
        peers.give_output(std::mem::take(&mut self.bytes));
    }

    /// Gets a buffer, if there is none.
    pub(super) fn begin<S: Stream>(&mut self, peers: &Peers<S>) {
        if self.bytes.capacity() == 0 {
            self.bytes = peers.take_output();
        }
    }

    fn has_extra(&mut self, pool: &Pool) -> bool {
        // Half of the pool is left to requests, which cannot do without it.
        if self.extra.is_none() && pool.taken() + EXTRA_BYTES <= pool.bytes() / 2 {
            self.extra = pool.try_take(EXTRA_BYTES);
        }
        self.extra.is_some()
    }

    /// Whether it is time to write.
    pub(super) fn is_full(&mut self, pool: &Pool) -> bool {
        OUTPUT_BYTES <= self.bytes.len() || (OWN_BYTES <= self.bytes.len() && !self.has_extra(pool))
    }

    /// Takes an outcome that is offered with a borrowed value. If it is the `next` to be written, it goes to the output;
    /// otherwise a copy is put into `kept`. `false` if the value is too long for that. A request that is followed gets a
    /// copy, since the end of its operation has not been noted yet.
    pub(super) fn offer<S: Stream>(
        &mut self,
        outcome: Outcome<&[u8]>,
        (next, wire): (bool, Wire),
        peers: &Peers<S>,
        kept: &mut Option<Outcome<Bytes>>,
    ) -> bool {
        let bytes = outcome.value_bytes();
        let is_small = bytes <= SMALL_BYTES
            || (next && bytes <= COPY_BYTES_MAX && self.has_extra(&peers.memory.buffers));
        if !is_small {
            return false;
        }
        if next && !wire.followed {
            self.begin(peers);
            self.expect_after(&outcome);
            peers.count(wire, wire.status_of(&outcome));
            peers.heads().put_outcome(&mut self.bytes, &outcome, wire);
        } else {
            *kept = Some(outcome.to_owned());
        }
        true
    }

    /// Adds where the time went to the head that begins at `at`, if its client is told so.
    #[inline]
    pub(super) fn add_timing(&mut self, at: usize, timing: Option<String>) {
        if let Some(timing) = timing {
            add_field(&mut self.bytes, at, "server-timing", &timing);
        }
    }

    /// Adjusts the length that is expected of the next value to this outcome.
    pub(super) fn expect_after<B: AsRef<[u8]>>(&mut self, outcome: &Outcome<B>) {
        if let Outcome::Value { value, .. } = outcome {
            self.expected = value.as_ref().len().max(self.expected / 2).max(EXPECTED_BYTES_MIN);
        }
    }

    /// Counts a reply that waits for its turn; `bytes` of its value, if they are known. `true` if no more may wait (H5).
    pub(super) fn hold(&mut self, bytes: Option<usize>, memory: &Memory) -> bool {
        let bytes = bytes.unwrap_or(self.expected);
        if bytes <= SMALL_BYTES {
            self.held_small += bytes;
        } else {
            self.held_large += bytes;
        }
        // While memory is short, a long value must not be held behind another one that waits for it.
        HELD_LARGE_BYTES_MAX <= self.held_large
            || HELD_SMALL_BYTES_MAX <= self.held_small
            || (0 < self.held_large && memory.requests.is_short())
            || ((0 < self.held_large || OWN_BYTES <= self.held_small) && !self.has_extra(&memory.buffers))
    }

    /// Whether anything is held that others may be waiting for.
    pub(super) fn holds_shared_memory(&self) -> bool {
        self.extra.is_some() || 0 < self.held_large
    }

    /// Takes note that no reply waits for its turn any more.
    pub(super) fn holds_nothing(&mut self) {
        (self.held_small, self.held_large) = (0, 0);
    }
}
