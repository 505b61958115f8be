//! Where the time of a request goes: measured for one request in many, and for those that ask for it. Pure.
//!
//! ```text
//!   arrived ──queue──► begun ──lookup──────────────────────────► done ──► reply        (reads)
//!                        ├────group──► its group is taken ──sync──► done ──► reply     (writes)
//!                        └────room─────────────────────────────────► done ──► reply     (writes that are refused)
//! ```
//!
//! The connection makes a [`Probe`] when a request begins, and sends it along with the operation. The thread that has the
//! key notes two moments in it; the connection reads them when it puts the reply together. The idea of a `Server-Timing`
//! field is from the W3C's Server Timing.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::response::Status;
use crate::key::{ShardId, UnixMillis};

/// The moments of one request. Clones share them.
#[derive(Debug, Clone)]
pub struct Probe(Arc<Moments>);

/// In nanoseconds since `arrived`; 0 if the moment has not come. The messages between threads order what they write here, so
/// the atomics need no ordering of their own.
#[derive(Debug)]
struct Moments {
    arrived: Instant,
    begun: AtomicU64,
    taken: AtomicU64,
    done: AtomicU64,
    shard: AtomicU32,
    end: AtomicU8,
}

const NO_SHARD: u32 = u32::MAX;

/// How an operation has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It wrote nothing, and was not meant to.
    Read,
    /// Its commit group was taken at this moment.
    Written(Instant),
    /// It was a write, and was refused.
    Refused,
}

impl Probe {
    /// For a request that has arrived at this moment.
    pub(super) fn new(arrived: Instant) -> Self {
        let (begun, taken, done, end) = Default::default();
        Self(Arc::new(Moments { arrived, begun, taken, done, shard: AtomicU32::new(NO_SHARD), end }))
    }

    /// The operation begins in this shard.
    pub fn begin(&self, shard: ShardId, now: Instant) {
        self.0.shard.store(shard.0.into(), Ordering::Relaxed);
        self.note(&self.0.begun, now);
    }

    /// The operation is done.
    pub fn end(&self, end: End, now: Instant) {
        let number = match end {
            End::Read => READ,
            End::Written(taken) => {
                self.note(&self.0.taken, taken);
                WRITTEN
            }
            End::Refused => REFUSED,
        };
        self.0.end.store(number, Ordering::Relaxed);
        self.note(&self.0.done, now);
    }

    fn note(&self, moment: &AtomicU64, now: Instant) {
        let since = now.saturating_duration_since(self.0.arrived).as_nanos();
        moment.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Where the time has gone, if the reply is ready now.
    pub(super) fn split(&self, now: Instant) -> Split {
        let [begun, taken, done] = [&self.0.begun, &self.0.taken, &self.0.done]
            .map(|moment| Duration::from_nanos(moment.load(Ordering::Relaxed)));
        let total = now.saturating_duration_since(self.0.arrived);
        let shard = u16::try_from(self.0.shard.load(Ordering::Relaxed)).ok().map(ShardId);
        let stages = match (shard, self.0.end.load(Ordering::Relaxed)) {
            (None, _) => Stages::Unknown,
            (Some(_), WRITTEN) => Stages::Write {
                queue: begun,
                group: taken.saturating_sub(begun),
                sync: done.saturating_sub(taken.max(begun)),
            },
            (Some(_), REFUSED) => Stages::Refused { queue: begun, room: done.saturating_sub(begun) },
            (Some(_), _) => Stages::Read { queue: begun, lookup: done.saturating_sub(begun) },
        };
        Split { shard, stages, total }
    }
}

const READ: u8 = 0;
const WRITTEN: u8 = 1;
const REFUSED: u8 = 2;

/// Where the time of a request has gone. What the parts leave of `total` is the way back from another thread, and the wait
/// for the replies to earlier requests of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// The shard that has the key, if there is one.
    pub shard: Option<ShardId>,
    /// What is known of the parts.
    pub stages: Stages,
    /// From the moment at which the connection has read the head of the request to its reply, without the time in which the
    /// client sent the body.
    pub total: Duration,
}

/// The parts of the time of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stages {
    /// The request was no operation, or never reached a shard.
    Unknown,
    /// The operation was a read.
    Read {
        /// Until the thread of the shard began the operation. The request may have waited for earlier requests of its
        /// connection, for memory, and for that thread.
        queue: Duration,
        /// Until the outcome was known.
        lookup: Duration,
    },
    /// The operation wrote.
    Write {
        /// As for a read.
        queue: Duration,
        /// Until the commit group of the write was taken. A wait for room is in it.
        group: Duration,
        /// Until the group was durable, or with `--sync never` and `interval`, written. A delete may look up its key in
        /// either part.
        sync: Duration,
    },
    /// The operation was a write, and was refused.
    Refused {
        /// As for a read.
        queue: Duration,
        /// Until it was refused: a write may wait for room first.
        room: Duration,
    },
}

impl Split {
    /// The parts, by name, in the order of time.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let parts = match self.stages {
            Stages::Unknown => [None; 3],
            Stages::Read { queue, lookup } => [Some(("queue", queue)), Some(("lookup", lookup)), None],
            Stages::Refused { queue, room } => [Some(("queue", queue)), Some(("room", room)), None],
            Stages::Write { queue, group, sync } => {
                [("queue", queue), ("group", group), ("sync", sync)].map(Some)
            }
        };
        parts.into_iter().flatten().chain([("total", self.total)])
    }

    /// The value of a `Server-Timing` field: milliseconds.
    pub(super) fn field(&self) -> String {
        let mut field = String::new();
        for (name, took) in self.parts() {
            let separator = if field.is_empty() { "" } else { ", " };
            let _ = write!(field, "{separator}{name};dur={:.3}", took.as_secs_f64() * 1e3); // a string takes everything
        }
        field
    }
}

/// A request that was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// What it asked for.
    pub endpoint: &'static str,
    /// The status of its reply.
    pub status: u16,
    /// Bytes of the request.
    pub bytes_in: usize,
    /// Bytes of the body of the reply.
    pub bytes_out: usize,
    /// When the reply was ready.
    pub at: UnixMillis,
    /// Where its time has gone.
    pub split: Split,
}

impl Measured {
    pub(super) fn new(
        (endpoint, status): (&'static str, Status),
        (bytes_in, bytes_out): (usize, usize),
        at: UnixMillis,
        split: Split,
    ) -> Self {
        Self { endpoint, status: status.code(), bytes_in, bytes_out, at, split }
    }
}

/// Requests that a thread keeps of each span.
pub const SLOWEST_MAX: usize = 8;
const SPAN_MILLIS: u64 = 10 * 60 * 1000;

/// The slowest of the measured requests of this span and the one before. So what is slow only at the start, or at night, does
/// not hide what is slow now.
#[derive(Debug, Default)]
pub(super) struct Slowest {
    /// The number of the span of `now`.
    span: u64,
    now: Vec<Measured>,
    before: Vec<Measured>,
}

impl Slowest {
    /// Adds a request, if it is among the slowest.
    pub(super) fn add(&mut self, request: Measured) {
        self.turn_to(request.at);
        if self.now.len() < SLOWEST_MAX {
            self.now.push(request);
        } else if let Some(fastest) = self.now.iter_mut().min_by_key(|request| request.split.total)
            && fastest.split.total < request.split.total
        {
            *fastest = request;
        }
    }

    /// Those of the last ten to twenty minutes.
    pub(super) fn of(&mut self, now: UnixMillis) -> Vec<Measured> {
        self.turn_to(now);
        self.now.iter().chain(&self.before).cloned().collect()
    }

    /// Lets the span of `at` be the present one. A clock that was set back begins a span, too.
    fn turn_to(&mut self, at: UnixMillis) {
        let span = at.0 / SPAN_MILLIS;
        if span != self.span {
            let last = std::mem::take(&mut self.now);
            self.before = if span == self.span + 1 { last } else { Vec::new() };
            self.span = span;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn measured(total: u32, at: u64) -> Measured {
        let split = Split { shard: None, stages: Stages::Unknown, total: MILLI * total };
        Measured::new(("get", Status::Ok), (1, 2), UnixMillis(at), split)
    }

    #[test]
    fn the_parts_of_a_read_and_of_a_write_follow_each_other() {
        let start = Instant::now();
        let at = |millis: u32| start + MILLI * millis;
        let probe = Probe::new(start);
        assert_eq!(probe.split(at(3)).field(), "total;dur=3.000");
        probe.begin(ShardId(4), at(5));
        probe.end(End::Read, at(7));
        let split = probe.split(at(10));
        assert_eq!((split.shard, split.total), (Some(ShardId(4)), MILLI * 10));
        assert_eq!(split.field(), "queue;dur=5.000, lookup;dur=2.000, total;dur=10.000");

        probe.end(End::Refused, at(7));
        assert_eq!(probe.split(at(10)).field(), "queue;dur=5.000, room;dur=2.000, total;dur=10.000");

        probe.end(End::Written(at(6)), at(9));
        assert_eq!(
            probe.split(at(10)).field(),
            "queue;dur=5.000, group;dur=1.000, sync;dur=3.000, total;dur=10.000"
        );
        // A group that was taken before the write began cannot be its own.
        probe.end(End::Written(at(4)), at(9));
        assert_eq!(
            probe.split(at(10)).field(),
            "queue;dur=5.000, group;dur=0.000, sync;dur=4.000, total;dur=10.000"
        );
    }

    #[test]
    fn a_probe_without_an_end_has_no_negative_part() {
        let start = Instant::now();
        let probe = Probe::new(start);
        probe.begin(ShardId(0), start + MILLI);
        assert_eq!(probe.split(start).stages, Stages::Read { queue: MILLI, lookup: Duration::ZERO });
        probe.begin(ShardId(0), start.checked_sub(MILLI).unwrap());
        assert_eq!(probe.split(start).field(), "queue;dur=0.000, lookup;dur=0.000, total;dur=0.000");
    }

    #[test]
    fn the_slowest_of_two_spans_are_kept() {
        let mut slowest = Slowest::default();
        let totals = |slowest: &mut Slowest, at| {
            let mut totals: Vec<_> =
                slowest.of(UnixMillis(at)).iter().map(|request| request.split.total.as_millis()).collect();
            totals.sort_unstable();
            totals
        };
        for total in (1..=20).rev().chain(21..=22) {
            slowest.add(measured(total, SPAN_MILLIS));
        }
        assert_eq!(totals(&mut slowest, SPAN_MILLIS), (15..=22).collect::<Vec<_>>());
        slowest.add(measured(1, 2 * SPAN_MILLIS));
        assert_eq!(totals(&mut slowest, 3 * SPAN_MILLIS - 1).len(), SLOWEST_MAX + 1);
        assert_eq!(totals(&mut slowest, 3 * SPAN_MILLIS), [1]);
        assert_eq!(totals(&mut slowest, SPAN_MILLIS), [], "the clock was set back");
    }
}
