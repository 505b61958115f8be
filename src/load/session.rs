//! What all load threads of a workload share: the plan, the pace, and how far the workload has come.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::choose::Access;
use super::data::{Keys, Values};
use super::ledger::{Ledger, Seen};
use super::workload::{Keyspace, Quota, Stream, Workload};
use crate::error::Error;
use crate::random::{Random, hash};

/// No answer takes this long unless the server hangs, and no fill is refused this long unless it always will be.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the user chose, for all workloads of an invocation.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the server listens.
    pub server: SocketAddr,
    /// Connections of all threads together.
    pub connections: u64,
    /// Load threads.
    pub threads: u64,
    /// Requests that a connection may have under way.
    pub pipeline: usize,
    /// Requests that are due per second (open loop); `None` in a closed loop.
    pub rate: Option<f64>,
    /// Load before counting begins.
    pub warm_up: Duration,
    /// How long to send new requests.
    pub duration: Option<Duration>,
    /// Which keys to request, where the workload leaves it to the user.
    pub access: Access,
    /// Seed of every random choice.
    pub seed: u64,
    /// The bytes of keys.
    pub keys: Keys,
    /// The bytes of values.
    pub values: Values,
    /// Tells the versions of this invocation from those of earlier ones: the clock in microseconds when it started. No
    /// key is written more often than once per microsecond.
    pub epoch: u64,
}

impl Plan {
    /// The version that is put into a value.
    pub fn version(&self, version: u32) -> u64 {
        self.epoch + u64::from(version)
    }

    /// What a version found in a value means; `None` if it is from the future.
    pub fn seen(&self, version: u64) -> Option<Seen> {
        match version.checked_sub(self.epoch) {
            None | Some(0) => Some(Seen::Earlier),
            Some(version) => u32::try_from(version).ok().map(Seen::Version),
        }
    }
}

/// When requests of an open loop are due: request k of all connections at `start + k / rate`, on connection k mod
/// connections.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    start: Instant,
    rate: f64,
    connections: u64,
}

impl Pace {
    /// When request `index` of a connection is due.
    pub fn time(&self, connection: u64, index: u64) -> Instant {
        self.start + Duration::from_secs_f64((index * self.connections + connection) as f64 / self.rate)
    }

    /// How many requests of a connection are due before `now`.
    pub fn due(&self, connection: u64, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start).as_secs_f64() * self.rate;
        // Rounded up: the request that is due at `now` itself is not counted.
        match (passed.ceil() as u64).checked_sub(connection + 1) {
            Some(whole) => whole / self.connections + 1,
            None => 0,
        }
    }

    /// The round after `round`. In each round, every connection of a thread is woken for its request with the number of
    /// the round; `connection` is the first of them. Rounds in which every request is already due are skipped, except
    /// the last: one wake sends all requests that are due.
    pub fn next_round(&self, connection: u64, round: u64, now: Instant) -> u64 {
        (round + 1).max(self.due(connection, now).saturating_sub(2))
    }
}

/// What the threads of one workload share.
pub struct Session {
    /// What the user chose.
    pub plan: Plan,
    /// The workload that is carried out.
    pub workload: &'static Workload,
    /// What each key may hold.
    pub ledger: Arc<Ledger>,
    keyspace: Arc<Keyspace>,
    limit: u64,
    /// Operations begun so far, in a closed loop.
    begun: Arc<AtomicU64>,
    /// The number of the workload among those of the invocation.
    ordinal: u64,
    start: OnceLock<Instant>,
    answered: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Session {
    pub(super) fn new(plan: &Plan, task: Task) -> Self {
        Self {
            plan: plan.clone(),
            workload: task.workload,
            ledger: task.ledger,
            keyspace: task.keyspace,
            limit: task.limit,
            begun: Arc::default(),
            ordinal: task.ordinal,
            start: OnceLock::new(),
            answered: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// The operations of a connection.
    pub fn stream(&self, connection: u64) -> Stream {
        let random = Random::new(hash(hash(self.plan.seed, self.ordinal), connection));
        let quota = match self.plan.rate {
            None => Quota::Shared { begun: self.begun.clone(), limit: self.limit },
            Some(_) => Quota::InTurn { next: connection, step: self.plan.connections, limit: self.limit },
        };
        Stream::new(self.workload, self.plan.access, self.keyspace.clone(), quota, random)
    }

    /// When the threads began.
    pub fn start(&self) -> Instant {
        *self.start.get_or_init(Instant::now)
    }

    /// When requests are due; `None` in a closed loop.
    pub fn pace(&self) -> Option<Pace> {
        let (start, connections) = (self.start(), self.plan.connections);
        self.plan.rate.map(|rate| Pace { start, rate, connections })
    }

    /// When to stop sending new requests.
    pub fn deadline(&self) -> Option<Instant> {
        self.plan.duration.map(|duration| self.start() + self.plan.warm_up + duration)
    }

    /// The deadline, if it has passed; else `now`.
    pub fn end(&self, now: Instant) -> Instant {
        self.deadline().map_or(now, |deadline| deadline.min(now))
    }

    /// Whether something has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether to send no more requests.
    pub fn is_over(&self, now: Instant) -> bool {
        self.has_failed() || self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Counts answers that have come.
    pub fn answered(&self, count: u64) {
        self.answered.fetch_add(count, Ordering::Relaxed);
    }

    /// Records a failure: the run ends. Only the first failure is kept.
    pub fn fail(&self, error: Error) {
        self.failed.store(true, Ordering::Relaxed);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Ends the session; the thread that fails reports why.
    pub fn give_up(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// The first failure, if there was one.
    pub fn take_failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What to carry out.
#[derive(Clone)]
pub struct Task {
    /// The workload.
    pub workload: &'static Workload,
    /// The number of the workload among those of the invocation. Each number chooses other keys.
    pub ordinal: u64,
    /// How many operations to begin at most.
    pub limit: u64,
    /// What each key may hold.
    pub ledger: Arc<Ledger>,
    /// Which keys exist.
    pub keyspace: Arc<Keyspace>,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A session whose threads began at `start`.
    pub(in crate::load) fn begun_at(start: Instant, plan: &Plan, task: Task) -> Session {
        let session = Session::new(plan, task);
        session.start.set(start).unwrap();
        session
    }

    #[test]
    fn requests_are_due_in_turn_and_never_early() {
        let start = Instant::now();
        let pace = Pace { start, rate: 1000.0, connections: 4 };
        assert_eq!(pace.time(1, 2) - start, Duration::from_millis(9));
        assert_eq!(pace.due(1, pace.time(1, 2)), 2, "the third is due from that moment on, not before");
        for connection in 0..4 {
            for milliseconds in 0..100 {
                let now = start + Duration::from_millis(milliseconds) + Duration::from_micros(500);
                let due = pace.due(connection, now);
                assert!(due == 0 || pace.time(connection, due - 1) <= now);
                assert!(now < pace.time(connection, due));
            }
        }
        let all: u64 =
            (0..4).map(|connection| pace.due(connection, start + Duration::from_secs_f64(9.9995))).sum();
        assert_eq!(all, 10_000);
    }

    #[test]
    fn no_round_waits_while_one_of_its_requests_is_overdue() {
        let start = Instant::now();
        let pace = Pace { start, rate: 1000.0, connections: 4 };
        for microseconds in (0..100_000).step_by(300) {
            // Round 2 ends here, in time or late.
            let now = pace.time(3, 2) + Duration::from_micros(microseconds);
            let next = pace.next_round(0, 2, now);
            let last_left_out = pace.time(3, next - 1);
            assert!(
                next == 3 || pace.time(3, next) <= now,
                "{microseconds}: rounds are skipped only if the next one is already due"
            );
            assert!(
                now <= last_left_out + Duration::from_millis(9),
                "{microseconds}: the pace catches up at once"
            );
        }
    }
}
