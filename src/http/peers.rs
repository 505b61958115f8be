//! What the connections of a thread share: their clock, their budget, and their end.
//!
//! A read or write of a connection is never dropped in flight: the ring would still use its buffer. To end a
//! connection, [`Peers`] calls `shutdown(2)` on its socket, and the read or write returns. Time-outs and the stop of the
//! server end connections in this way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::access::Policy;
use super::authority::LastAddress;
use super::label::Label;
use super::probe::{Measured, Slowest};
use super::response::{Heads, Response, Status, Wire};
use super::sampler::Sampler;
use super::stream::Stream;
use crate::config::AccessLog;
use crate::key::{KeyHash, UnixMillis};
use crate::memory::Memory;
use crate::tally::{Count, Histogram};

/// Output buffers that are kept for the next connection that needs one: 1 MiB at most.
const SPARE_OUTPUTS: usize = 64;
/// Larger output buffers are not kept.
const SPARE_OUTPUT_BYTES_MAX: usize = 16 << 10;

/// How long a connection may stay in a phase without progress, and what users choose of it.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Without a byte of the next request.
    pub idle: Duration,
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Without progress in a body.
    pub body: Duration,
    /// Until client and server agree on how to encrypt.
    pub handshake: Duration,
    /// Without progress in a reply.
    pub reply: Duration,
}

/// The clock of a thread moves this often, so a phase may have begun this much later than it seems. Limits are never shorter
/// than they say.
const TICK: Duration = Duration::from_secs(1);
/// The log says at most this often that clients were too slow.
const SAY_INTERVAL: Duration = Duration::from_secs(10);
/// A body of 16 MiB that is refused while it is being sent takes less than this at 2 MiB/s.
const LINGER_TIME: Duration = Duration::from_secs(10);
/// At the limit on connections, one that was idle for longer than this gives way to a new one.
const GIVE_WAY_TIME: Duration = Duration::from_secs(2);
/// Each byte of a body or of a large reply gives its client this much more time, so in the long run a client has to
/// reach 1 KiB per second.
const TIME_PER_BYTE: Duration = Duration::from_nanos(1_000_000_000 / 1024);
/// The same for a client that holds memory of which others are short: 64 KiB per second, after a shorter time without
/// progress.
const TIME_PER_BYTE_MIN: Duration = Duration::from_nanos(1_000_000_000 / 65_536);
const HOLDING_TIME: Duration = Duration::from_secs(10);

/// What decides on a request before its operation begins.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Who may do what.
    pub policy: Arc<Policy>,
    /// Longest value.
    pub value_bytes_max: usize,
    /// Finds keys in memory.
    pub key_hash: KeyHash,
    /// What the last requests of this thread have named.
    pub address: LastAddress,
}

/// The endpoints whose requests are timed.
pub(super) const TIMED: [Label; 3] = [Label::GET, Label::SET, Label::DELETE];
/// On average, one turn in so many is timed.
const TIMED_EVERY: u32 = 8;

/// On average, one request in so many is measured.
const MEASURED_EVERY: u32 = 128;

/// Why a request is followed to its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// It is logged.
    Log,
    /// It may be one of the slowest.
    Measure,
}

/// What the connections of a thread have done since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Replies by endpoint and status.
    pub replies: Vec<(&'static str, u16, u64)>,
    /// How long requests took, one turn in eight, by endpoint.
    pub durations: Vec<(&'static str, Histogram)>,
    /// Connections in all.
    pub accepted: u64,
    /// Connections that are open.
    pub open: u64,
    /// Connections that were refused, or ended because of their clients, by reason.
    pub ended: Vec<(&'static str, u64)>,
    /// The slowest of the requests that were measured in the last ten to twenty minutes: one in 128, those that asked for it,
    /// and those that were logged.
    pub slowest: Vec<Measured>,
}

/// What all connections of a thread share.
pub struct Peers<S> {
    open: RefCell<BTreeMap<u64, Rc<Peer<S>>>>,
    next_id: Cell<u64>,
    /// Renewed every second.
    heads: RefCell<Rc<Heads>>,
    now: Cell<Instant>,
    draining: Cell<bool>,
    /// No connection waits for its client any more.
    aborting: Cell<bool>,
    /// The memory that the connections of all threads share (P8).
    pub(super) memory: Memory,
    rules: RefCell<Rc<Rules>>,
    times: Cell<Times>,
    /// Connections that were refused, or ended because of their clients, by reason, since the log last said so. Idle ones are
    /// not among them.
    ended: RefCell<BTreeMap<&'static str, u64>>,
    /// The same since the start.
    ended_in_all: RefCell<BTreeMap<&'static str, u64>>,
    /// Replies since the start, by endpoint and status.
    replies: [[Count; Status::ALL.len()]; Label::NAMES.len()],
    accepted: Count,
    durations: [RefCell<Histogram>; TIMED.len()],
    /// Chooses the turns that are timed, and the requests that are measured.
    timed_turns: Sampler,
    measured_requests: Sampler,
    slowest: RefCell<Slowest>,
    /// One request of so many is logged; 0 if none is. And how many are left until the next one.
    logs_one_in: Cell<u32>,
    until_logged: Cell<u32>,
    said_at: Cell<Instant>,
    /// Output buffers that no connection uses at the moment: idle connections hold none.
    spare_outputs: RefCell<Vec<Vec<u8>>>,
    /// The time of the last look for an idle connection that found none.
    none_idle_at: Cell<Option<Instant>>,
    /// Connections that watch the stop.
    watchers: Cell<usize>,
    watcher_came: Notify,
    ticks: Notify,
}

/// A connection, as the others see it.
pub(super) struct Peer<S> {
    pub(super) stream: S,
    phase: Cell<Phase>,
    since: Cell<Instant>,
    /// The connection was told to end, because its client was too slow or others need its place.
    late: Cell<bool>,
    /// The connection holds memory that others may be waiting for.
    holds: Cell<bool>,
}

/// What a connection does. [`super::connection`] draws the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No byte of the next request has arrived.
    Idle,
    /// A head has begun, and is not complete.
    Reading,
    /// A body has begun, and is not complete.
    ReadingBody,
    /// A request is under way.
    Working,
    /// A reply is being written.
    Writing,
    /// The stop is being watched.
    Watching,
    /// The last reply is written; what still arrives is dropped.
    Lingering,
}

impl Phase {
    /// Whether the connection waits for the server. Its client is not to blame for that time.
    fn waits_for_server(self) -> bool {
        matches!(self, Self::Working | Self::Watching)
    }
}

impl<S: Stream> Peer<S> {
    /// Ends the connection, in one direction or both.
    pub(super) fn end(&self, how: Shutdown) {
        // A shutdown fails only if the client has already left: then the read returns anyway.
        let _ = self.stream.shutdown(how);
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Says whether the connection holds memory that others may be waiting for.
    pub(super) fn hold(&self, holds: bool) {
        self.holds.set(holds);
    }

    pub(super) fn holds(&self) -> bool {
        self.holds.get()
    }

    /// Whether the client took too long.
    pub(super) fn is_late(&self) -> bool {
        self.late.get()
    }
}

impl<S: Stream> Peers<S> {
    /// No connections yet. Requests and replies take from `memory`.
    pub fn new(rules: Rules, times: Times, memory: Memory, now: Instant, date: &str) -> Self {
        Self {
            open: RefCell::new(BTreeMap::new()),
            next_id: Cell::new(0),
            heads: RefCell::new(Rc::new(Heads::new(date))),
            now: Cell::new(now),
            draining: Cell::new(false),
            aborting: Cell::new(false),
            memory,
            rules: RefCell::new(Rc::new(rules)),
            times: Cell::new(times),
            ended: RefCell::default(),
            ended_in_all: RefCell::default(),
            replies: Default::default(),
            accepted: Count::default(),
            durations: Default::default(),
            timed_turns: Sampler::new(TIMED_EVERY),
            measured_requests: Sampler::new(MEASURED_EVERY),
            slowest: RefCell::default(),
            logs_one_in: Cell::new(0),
            until_logged: Cell::new(0),
            said_at: Cell::new(now),
            spare_outputs: RefCell::new(Vec::new()),
            none_idle_at: Cell::new(None),
            watchers: Cell::new(0),
            watcher_came: Notify::new(),
            ticks: Notify::new(),
        }
    }

    /// Adds a connection, and returns the number by which it is removed.
    pub(super) fn add(&self, stream: S) -> (u64, Rc<Peer<S>>) {
        let id = self.next_id.get();
        self.accepted.add(1);
        self.next_id.set(id + 1);
        let peer = Rc::new(Peer {
            stream,
            phase: Cell::new(Phase::Idle),
            since: Cell::new(self.now.get()),
            late: Cell::new(false),
            holds: Cell::new(false),
        });
        self.open.borrow_mut().insert(id, peer.clone());
        (id, peer)
    }

    pub(super) fn remove(&self, id: u64) {
        self.open.borrow_mut().remove(&id);
    }

    /// The rules for requests that are parsed now.
    pub(super) fn rules(&self) -> Rc<Rules> {
        self.rules.borrow().clone()
    }

    /// Changes who may do what, which requests are logged, from the next request on, and how long connections may take.
    pub fn change(&self, policy: Arc<Policy>, times: Times, access_log: AccessLog) {
        self.log_requests(access_log);
        self.times.set(times);
        let rules = Rules { policy, ..(*self.rules()).clone() };
        self.rules.replace(Rc::new(rules));
    }

    /// Changes which requests are logged.
    pub fn log_requests(&self, access_log: AccessLog) {
        let one_in = access_log.one_in().map_or(0, std::num::NonZeroU32::get);
        self.logs_one_in.set(one_in);
        self.until_logged.set(one_in);
    }

    /// Whether the next request is followed, and why.
    #[inline]
    pub(super) fn chooses(&self) -> Option<Choice> {
        let one_in = self.logs_one_in.get();
        if one_in != 0 && self.counts_down(one_in) {
            return Some(Choice::Log);
        }
        self.measured_requests.chooses().then_some(Choice::Measure)
    }

    #[cold]
    fn counts_down(&self, one_in: u32) -> bool {
        let left = self.until_logged.get() - 1;
        self.until_logged.set(if left == 0 { one_in } else { left });
        left == 0
    }

    pub(super) fn heads(&self) -> Rc<Heads> {
        self.heads.borrow().clone()
    }

    /// An empty buffer for replies.
    pub(super) fn take_output(&self) -> Vec<u8> {
        self.spare_outputs.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes an empty buffer back, for the next connection that needs one.
    pub(super) fn give_output(&self, output: Vec<u8>) {
        let mut spare = self.spare_outputs.borrow_mut();
        if spare.len() < SPARE_OUTPUTS && (1..=SPARE_OUTPUT_BYTES_MAX).contains(&output.capacity()) {
            spare.push(output);
        }
    }

    /// Waits until the server drains. Cancel safety: safe.
    pub(super) async fn drains(&self) {
        while !self.is_draining() {
            self.ticked().await;
        }
    }

    /// Whether connections close after the requests that are under way.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Notes what a connection does from now on.
    pub(super) fn enter(&self, peer: &Peer<S>, phase: Phase) {
        peer.phase.set(phase);
        peer.since.set(self.now.get());
        if self.aborting.get() && !phase.waits_for_server() {
            peer.end(Shutdown::Both);
        } else if phase == Phase::Idle && self.draining.get() {
            peer.end(Shutdown::Read);
        }
    }

    /// Gives the client time for `bytes` that it has sent or received. The time of a phase counts from its beginning,
    /// so a client that sends a byte now and then cannot keep a connection and its memory for ever. While others wait for
    /// memory, a client that holds some of it has to be faster.
    pub(super) fn progress(&self, peer: &Peer<S>, bytes: usize) {
        if peer.phase.get() == Phase::Reading {
            return; // a head has its time, however its bytes come
        }
        let hurries = peer.holds.get() && self.is_wanted();
        let more = if hurries { TIME_PER_BYTE_MIN } else { TIME_PER_BYTE }
            .saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        peer.since.set((peer.since.get() + more).min(self.now.get()));
    }

    /// Whether others wait for memory that connections hold.
    fn is_wanted(&self) -> bool {
        let Memory { buffers, requests, body, .. } = &self.memory;
        requests.is_wanted() || body.is_wanted() || buffers.is_wanted()
    }

    /// A complete reply for a connection that is not served: 503 with this sentence.
    pub(super) fn refusal(&self, why: &'static str) -> Vec<u8> {
        let mut reply = Vec::new();
        self.heads().put_reply(&mut reply, &Response::unavailable(why), Wire::UNKNOWN);
        reply
    }

    /// Waits for the next [`Self::tick`]. Cancel safety: safe.
    pub(super) async fn ticked(&self) {
        self.ticks.notified().await;
    }

    /// Connections that are open only to watch the stop.
    pub fn watchers(&self) -> usize {
        self.watchers.get()
    }

    /// Waits until another connection watches the stop. Cancel safety: safe.
    pub async fn watcher_came(&self) {
        self.watcher_came.notified().await;
    }

    pub(super) fn add_watcher(&self) {
        self.watchers.set(self.watchers.get() + 1);
        self.watcher_came.notify_one();
    }

    pub(super) fn remove_watcher(&self) {
        self.watchers.set(self.watchers.get() - 1);
    }

    /// Called about once a second: renews the date, and ends connections that made no progress for too long.
    pub fn tick(&self, now: Instant, date: &str) {
        self.now.set(now);
        self.ticks.notify_waiters();
        if self.heads.borrow().date() != date {
            self.heads.replace(Rc::new(Heads::new(date)));
        }
        let (wanted, times) = (self.is_wanted(), self.times.get());
        for peer in self.open.borrow().values() {
            let (limit, what) = match peer.phase.get() {
                Phase::Idle if !peer.stream.is_established() => (times.handshake, Some("handshake")),
                Phase::Idle => (times.idle, None),
                Phase::ReadingBody | Phase::Writing if wanted && peer.holds.get() => {
                    (HOLDING_TIME, Some("memory"))
                }
                Phase::Reading => (times.head, Some("head")),
                Phase::ReadingBody => (times.body, Some("body")),
                Phase::Writing => (times.reply, Some("reply")),
                Phase::Lingering => (LINGER_TIME, Some("end")),
                Phase::Working | Phase::Watching => continue,
            };
            if limit + TICK < now.saturating_duration_since(peer.since.get()) {
                if let Some(what) = what {
                    self.count_end(what);
                }
                // A client that is slow with its request is told so: the read returns, and 408 is written.
                // One that is idle is closed as its protocol asks for.
                let reads = match peer.phase.get() {
                    Phase::Reading | Phase::ReadingBody => true,
                    Phase::Idle => peer.stream.is_established(),
                    _ => false,
                };
                let told = reads && !peer.late.replace(true);
                peer.end(if told { Shutdown::Read } else { Shutdown::Both });
            }
        }
        self.say(now);
    }

    /// Counts a connection that was refused or ended, for the log.
    pub fn count_end(&self, why: &'static str) {
        *self.ended.borrow_mut().entry(why).or_default() += 1;
        *self.ended_in_all.borrow_mut().entry(why).or_default() += 1;
    }

    /// Counts a reply.
    #[inline]
    pub(super) fn count(&self, wire: Wire, status: Status) {
        self.replies[wire.endpoint.index()][status as usize].add(1);
    }

    /// Whether the turn that begins is timed.
    #[inline]
    pub(super) fn times_this_turn(&self) -> bool {
        self.timed_turns.chooses()
    }

    /// Takes note of a turn that took so long, with so many requests of each timed endpoint.
    pub(super) fn timed(&self, took: Duration, counts: [u16; TIMED.len()]) {
        for (durations, count) in self.durations.iter().zip(counts).filter(|(_, count)| 0 < *count) {
            durations.borrow_mut().observe(took, count.into());
        }
    }

    /// Takes note of a request that was measured.
    pub(super) fn measured(&self, request: Measured) {
        self.slowest.borrow_mut().add(request);
    }

    /// What the connections of this thread have done since the start.
    pub fn sample(&self, now: UnixMillis) -> Sample {
        let mut replies = Vec::new();
        for (endpoint, counts) in Label::NAMES.iter().zip(&self.replies) {
            for (status, count) in Status::ALL.iter().zip(counts).filter(|(_, count)| 0 < count.get()) {
                replies.push((*endpoint, status.code(), count.get()));
            }
        }
        Sample {
            replies,
            durations: TIMED
                .iter()
                .zip(&self.durations)
                .map(|(label, durations)| (label.name(), durations.borrow().clone()))
                .collect(),
            accepted: self.accepted.get(),
            open: self.open.borrow().len() as u64,
            ended: self.ended_in_all.borrow().iter().map(|(why, count)| (*why, *count)).collect(),
            slowest: self.slowest.borrow_mut().of(now),
        }
    }

    /// Logs now and then how many connections were refused, or ended because their clients were slow.
    fn say(&self, now: Instant) {
        let mut ended = self.ended.borrow_mut();
        if !ended.is_empty() && SAY_INTERVAL <= now.saturating_duration_since(self.said_at.get()) {
            self.said_at.set(now);
            let counts: Vec<_> = ended.iter().map(|(why, count)| format!("{why}: {count}")).collect();
            ended.clear();
            tracing::info!(connections = counts.join(", "), "connections were refused, or ended");
        }
    }

    /// Ends the connection that was idle for longest, so that another one can be served in its place. `false` if none was
    /// idle for long enough.
    pub fn give_way(&self) -> bool {
        if self.none_idle_at.get() == Some(self.now.get()) {
            return false; // the clock has not moved since the last look
        }
        let open = self.open.borrow();
        let idle = open.values().filter(|peer| peer.phase.get() == Phase::Idle && !peer.late.get());
        let longest = idle.min_by_key(|peer| peer.since.get());
        match longest {
            Some(peer) if GIVE_WAY_TIME < self.now.get().saturating_duration_since(peer.since.get()) => {
                peer.late.set(true);
                // A request that has already arrived is still read, and answered.
                peer.end(Shutdown::Read);
                true
            }
            _ => {
                self.none_idle_at.set(Some(self.now.get()));
                false
            }
        }
    }

    /// Lets requests in flight finish, and closes every connection after its last reply.
    pub fn drain(&self) {
        self.draining.set(true);
        for peer in self.open.borrow().values() {
            match peer.phase.get() {
                // Requests that have already arrived are still read, and answered.
                Phase::Idle => peer.end(Shutdown::Read),
                Phase::Lingering => peer.end(Shutdown::Both),
                Phase::Reading | Phase::ReadingBody | Phase::Working | Phase::Writing | Phase::Watching => {}
            }
        }
    }

    /// Ends every connection, whatever it does.
    pub fn cut_off(&self) {
        for peer in self.open.borrow().values() {
            peer.end(Shutdown::Both);
        }
    }

    /// Ends every connection that waits for its client.
    pub fn abort(&self) {
        self.draining.set(true);
        self.aborting.set(true);
        for peer in self.open.borrow().values() {
            if !peer.phase.get().waits_for_server() {
                peer.end(Shutdown::Both);
            }
        }
    }
}
