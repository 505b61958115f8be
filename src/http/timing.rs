//! How long the turns of connections take, for the histogram of durations.

use std::time::Instant;

use super::Handler;
use super::label::Label;
use super::peers::{Peers, TIMED};
use super::stream::Stream;

/// How long the operations of a turn take, from the moment the first of them begins to the moment all replies are written.
/// Reading the clock costs something, so not every turn is timed.
#[derive(Default)]
pub(super) enum Timing {
    /// No operation has begun.
    #[default]
    Idle,
    /// This turn is not timed.
    Untimed,
    /// It is: since when, and how many operations there are of each kind.
    Since(Instant, [u16; TIMED.len()]),
}

impl Timing {
    /// An operation begins.
    #[inline]
    pub(super) fn note<S: Stream>(&mut self, endpoint: Label, peers: &Peers<S>, handler: &impl Handler) {
        if let Self::Idle = self {
            *self = if peers.times_this_turn() {
                Self::Since(handler.clock(), [0; TIMED.len()])
            } else {
                Self::Untimed
            };
        }
        if let Self::Since(_, counts) = self
            && let Some(index) = TIMED.iter().position(|timed| *timed == endpoint)
        {
            counts[index] = counts[index].saturating_add(1);
        }
    }

    /// All replies are written.
    #[inline]
    pub(super) fn end<S: Stream>(&mut self, peers: &Peers<S>, handler: &impl Handler) {
        if let Self::Since(begin, counts) = std::mem::take(self) {
            peers.timed(handler.clock().duration_since(begin), counts);
        }
    }
}
