//! The memory of the process: one budget, its parts, and the parts that all threads share.
//!
//! Owns: how the budget of `--memory` is divided ([`Parts`]), and the accounts of the parts that threads share
//! ([`Memory`]): a [`Pool`] hands out permits for bytes, and the [`Account`] of the memtables counts what they hold.
//!
//! | part | what it holds |
//! | --- | --- |
//! | memtables | the memtables of all shards, and what recovery reads |
//! | caches | cached values and blocks |
//! | buffers | input and output of connections, beyond what each of them has |
//! | requests | long bodies on their way in, commit groups, long values on their way out |
//! | body | a body for which the part before has no room, one at a time |
//! | merges | compactions, flushes, and blocks that are read only to see whether a key is there |
//! | rest | the program itself, rings, and up to 16 KiB for each connection |
//!
//! Z1  The parts together are the budget. A part is taken from before memory is allocated, and given back by dropping
//!     what was taken.
//! Z2  A wait for memory is given up [`WAIT_TICKS`] after it began. Work that must not give up takes from pools of its
//!     own, and holds nothing of them while it waits.
//! Z3  A value of the greatest size can always be written and read, whatever the budget: the part `body` has room for
//!     it, and a pool gives half of what it has to a request for more. Two such values may exceed a small part.
//! Z4  Memtables are short of memory at three quarters of their part. Then each that has a fair share is flushed. When a
//!     write has to wait, more than half of the part is in use, so there is such a memtable, or a flush under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytesize::ByteSize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::{Config, KEY_BYTES_MAX, MEMTABLE_BYTES_MIN};
use crate::error::{Error, ErrorKind, Result};

/// A wait for memory is given up after this many calls of [`Pool::tick`], which come once a second.
pub const WAIT_TICKS: u64 = 10;
/// What a connection may hold without a permit. An encrypted one also holds its keys, what has arrived of a record, and what
/// is encrypted at a time.
pub const CONNECTION_BYTES: usize = 16 << 10;
const ENCRYPTED_CONNECTION_BYTES: usize = 64 << 10;
const KIB: usize = 1 << 10;

/// How a budget is divided, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// The budget.
    pub total: usize,
    /// All memtables.
    pub memtables: usize,
    /// All caches.
    pub caches: usize,
    /// Input and output of connections.
    pub buffers: usize,
    /// Long bodies and values.
    pub requests: usize,
    /// One body of the greatest size, and its copy in a commit group.
    pub body: usize,
    /// Flushes and compactions.
    pub merges: usize,
}

impl Parts {
    /// Divides the budget that a user has chosen among `shards` shards and what they have in common.
    ///
    /// # Errors
    /// `Configuration` if the budget is too small for the greatest values, or for the caches.
    pub fn of(config: &Config, shards: u16) -> Result<Self> {
        let Config { memory_bytes: total, value_bytes_max, cache_bytes, memtable_bytes, .. } = *config;
        let refuse = |message: String| Err(Error::new(ErrorKind::Configuration, message));
        if total < 3 * value_bytes_max || total < MIN_BYTES {
            return refuse(format!(
                "--memory {} is too small: with --max-value-size {} it must be at least {}",
                ByteSize(total as u64),
                ByteSize(value_bytes_max as u64),
                ByteSize(MIN_BYTES.max(3 * value_bytes_max) as u64)
            ));
        }
        let body = 2 * (value_bytes_max + KEY_BYTES_MAX);
        // The body is a part of the fifth that belongs to requests, as far as it fits.
        let requests = (total / 5).saturating_sub(body).max(total / 16);
        let left = total.saturating_sub(requests + body);
        // While one memtable of a shard takes writes, two may wait for their flush; one more is for the change.
        let memtables_most = (left / 20 * 9).min(4 * usize::from(shards) * memtable_bytes);
        let both = left / 10 * 7;
        // What memtables do not need is free for caches.
        let caches_most = (left / 5 * 2).max(both - memtables_most);
        if let Some(wanted) = cache_bytes
            && caches_most < wanted
        {
            return refuse(format!(
                "--cache-size {} is too large for --memory {}: it may be {} at most",
                ByteSize(wanted as u64),
                ByteSize(total as u64),
                format_args!("{}MiB", caches_most >> 20) // rounded down, so that it can be given
            ));
        }
        let memtables = memtables_most.min(both - cache_bytes.unwrap_or_default());
        Ok(Self {
            total,
            memtables,
            caches: cache_bytes.unwrap_or(both - memtables),
            buffers: requests / 4,
            requests: requests / 4 * 3,
            body,
            merges: left / 10,
        })
    }

    /// The greatest size of a memtable, if `shards` shards share the part.
    pub fn memtable_bytes(&self, shards: u16) -> usize {
        (self.memtables / (2 * usize::from(shards))).max(MEMTABLE_BYTES_MIN)
    }

    /// How many connections the budget allows: they get a quarter of it.
    pub fn connections_max(&self, encrypted: bool) -> usize {
        self.total / 4 / if encrypted { ENCRYPTED_CONNECTION_BYTES } else { CONNECTION_BYTES }
    }
}

/// The smallest budget.
const MIN_BYTES: usize = 16 << 20;

/// The parts that all threads share. Clones share them.
#[derive(Clone)]
pub struct Memory {
    /// Input and output of connections.
    pub buffers: Pool,
    /// Long bodies and values.
    pub requests: Pool,
    /// One body at a time, for which `requests` has no room.
    pub body: Pool,
    /// Compactions.
    pub merges: Pool,
    /// Flushes. They must not wait for compactions.
    pub flushes: Pool,
    /// Blocks that are read to see whether a key is there. Those who read them hold nothing else meanwhile.
    pub checks: Pool,
    /// What memtables hold.
    pub memtables: Account,
}

impl Memory {
    /// The shared parts of a budget, nothing taken yet. `shards` shards share the memtables.
    pub fn new(parts: &Parts, shards: u16) -> Self {
        Self {
            buffers: Pool::new(parts.buffers),
            requests: Pool::new(parts.requests),
            body: Pool::new(KIB), // one permit for the whole of it
            merges: Pool::new(parts.merges / 2),
            flushes: Pool::new(parts.merges / 4),
            checks: Pool::new(parts.merges / 4),
            memtables: Account::new(parts.memtables, shards),
        }
    }

    /// So much that nothing has to wait: for a shard that stands alone.
    pub fn ample() -> Self {
        let part = 1 << 40;
        Self::new(
            &Parts {
                total: 8 * part,
                memtables: part,
                caches: part,
                buffers: part,
                requests: part,
                body: part,
                merges: part,
            },
            1,
        )
    }

    /// As [`Self::ample`], except for memtables: they have `bytes`, for one shard.
    pub fn of_memtables(bytes: usize) -> Self {
        Self { memtables: Account::new(bytes, 1), ..Self::ample() }
    }

    /// Gives up waits that have become too long. Called once a second.
    pub fn tick(&self) {
        self.buffers.tick();
        self.requests.tick();
        self.merges.tick();
        self.body.tick();
    }
}

/// Bytes that are handed out as permits. Clones share them.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    /// In KiB.
    free: Arc<Semaphore>,
    /// All bytes, in KiB.
    kibibytes: u32,
    ticks: watch::Sender<u64>,
    waiting: AtomicUsize,
}

/// One that waits for a pool.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes taken from a pool. Dropping the permit gives them back.
#[derive(Debug)]
pub struct Permit(OwnedSemaphorePermit);

impl Permit {
    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.0.num_permits() * KIB
    }

    /// Gives back what exceeds `bytes`.
    pub fn keep(&mut self, bytes: usize) {
        let excess = self.0.num_permits().saturating_sub(bytes.div_ceil(KIB));
        drop(self.0.split(excess));
    }

    /// Adds what another permit of the same pool holds.
    pub fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }
}

impl Pool {
    /// A pool of `bytes`, but at least one KiB.
    pub fn new(bytes: usize) -> Self {
        let kibibytes = (bytes / KIB).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self(Arc::new(Shared {
            free: Arc::new(Semaphore::new(kibibytes)),
            kibibytes: u32::try_from(kibibytes).unwrap_or(u32::MAX),
            ticks: watch::Sender::new(0),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// All bytes of the pool.
    pub fn bytes(&self) -> usize {
        self.0.kibibytes as usize * KIB
    }

    /// Bytes that are taken at the moment.
    pub fn taken(&self) -> usize {
        self.bytes() - self.0.free.available_permits() * KIB
    }

    /// Whether somebody waits.
    pub fn is_wanted(&self) -> bool {
        0 < self.0.waiting.load(Ordering::Relaxed)
    }

    /// Whether somebody waits, or less than half of the pool is free.
    pub fn is_short(&self) -> bool {
        self.is_wanted() || self.0.free.available_permits() < self.0.kibibytes as usize / 2
    }

    /// A request for more than half of the pool is for half of it (Z3). So it does not wait for ever for one who holds a
    /// little and waits for it.
    fn wanted(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX).min(self.0.kibibytes.div_ceil(2))
    }

    /// Whether a permit is as good as one for `bytes`.
    pub fn suffices(&self, permit: &Permit, bytes: usize) -> bool {
        self.wanted(bytes) as usize <= permit.0.num_permits()
    }

    /// Takes `bytes`, if they are free and nobody waits.
    pub fn try_take(&self, bytes: usize) -> Option<Permit> {
        self.0.free.clone().try_acquire_many_owned(self.wanted(bytes)).ok().map(Permit)
    }

    /// Takes `bytes`. Those who wait are served in their order. `None` after a wait that was too long (Z2).
    ///
    /// Cancel safety: safe; the place in the order is lost.
    pub async fn take(&self, bytes: usize) -> Option<Permit> {
        if let Some(permit) = self.try_take(bytes) {
            return Some(permit);
        }
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.0.waiting);
        let mut ticks = self.0.ticks.subscribe();
        let end = *ticks.borrow() + WAIT_TICKS;
        tokio::select! {
            biased;
            permit = self.0.free.clone().acquire_many_owned(self.wanted(bytes)) => permit.ok().map(Permit),
            _ = ticks.wait_for(|now| end < *now) => None,
        }
    }

    /// Gives up waits that have become too long. Called once a second.
    pub fn tick(&self) {
        self.0.ticks.send_modify(|now| *now += 1);
    }
}

/// Counts the bytes that memtables hold. Clones share the count.
#[derive(Clone)]
pub struct Account(Arc<Counts>);

struct Counts {
    used: AtomicUsize,
    bytes_max: usize,
    shards: usize,
    /// A write was refused for want of memory, or will be soon.
    short: AtomicBool,
    /// Changes when shards have to look: memory has become short, or memory has come free while it was short.
    changes: watch::Sender<u64>,
}

impl Account {
    fn new(bytes_max: usize, shards: u16) -> Self {
        Self(Arc::new(Counts {
            used: AtomicUsize::new(0),
            bytes_max,
            shards: usize::from(shards.max(1)),
            short: false.into(),
            changes: watch::Sender::new(0),
        }))
    }

    /// An account of its own, without a bound.
    pub fn unbounded(&self) -> Self {
        Self::new(usize::MAX / 2, 1)
    }

    /// Whether a memtable may take a write of `bytes` (Z4). A value that is longer than what is left is taken while less
    /// than half is in use.
    pub fn admits(&self, bytes: usize) -> bool {
        let used = self.used();
        used <= self.0.bytes_max / 2 || used.saturating_add(bytes) <= self.0.bytes_max
    }

    /// Bytes that all memtables hold.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Whether memtables that have a fair share have to be flushed.
    pub fn is_short(&self) -> bool {
        self.0.short.load(Ordering::Relaxed)
    }

    /// The share of one shard. A memtable of half of this size is worth a flush when memory is short (Z4): if more than
    /// half of the part is in use and nothing is being flushed, there is one.
    pub fn share(&self) -> usize {
        self.0.bytes_max / self.0.shards
    }

    /// Says that a write was refused for want of memory: memtables are flushed now. A refused write tries again after each
    /// change, so only the first refusal is one.
    pub fn refused(&self) {
        if !self.0.short.swap(true, Ordering::Relaxed) {
            self.change();
        }
    }

    /// Follows changes: after each of them, look at [`Self::is_short`].
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// A charge of a new memtable, which holds nothing yet.
    pub fn charge(&self) -> Charge {
        Charge { account: self.clone(), bytes: 0 }
    }

    fn change(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }

    fn add(&self, bytes: usize) {
        let used = self.0.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.0.bytes_max / 4 * 3 < used {
            self.0.short.store(true, Ordering::Relaxed);
            self.change();
        }
    }

    fn subtract(&self, bytes: usize) {
        let used = self.0.used.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if self.is_short() {
            if used <= self.0.bytes_max / 2 {
                self.0.short.store(false, Ordering::Relaxed);
            }
            self.change();
        }
    }
}

/// What one memtable holds, on the account of all. Dropping it gives the bytes back.
pub struct Charge {
    account: Account,
    bytes: usize,
}

impl Charge {
    /// Says how many bytes the memtable holds now; it never shrinks.
    #[inline]
    pub fn set(&mut self, bytes: usize) {
        if self.bytes < bytes {
            self.account.add(bytes - self.bytes);
            self.bytes = bytes;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if 0 < self.bytes {
            self.account.subtract(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::config::tests::config;

    fn step<F: Future>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn z1_the_parts_of_any_budget_fit_into_it_and_a_budget_that_is_too_small_is_refused() {
        const MIB: usize = 1 << 20;
        for shards in [1, 2, 8, 64] {
            for memory in [16, 48, 64, 100, 256, 1_000, 64_000] {
                for value in [1, 5, 16] {
                    for cache in [None, Some(0), Some(memory / 8), Some(memory)] {
                        let config = Config {
                            memory_bytes: memory * MIB,
                            value_bytes_max: value * MIB,
                            cache_bytes: cache.map(|cache| cache * MIB),
                            ..config()
                        };
                        let parts = Parts::of(&config, shards);
                        assert!(parts.is_err() || (3 * value <= memory && cache != Some(memory)));
                        assert!(parts.is_ok() || memory < 3 * value || cache.is_some(), "{config:?}");
                        let Ok(parts) = parts else { continue };
                        let Parts { memtables, caches, buffers, requests, body, merges, .. } = parts;
                        let sum = memtables + caches + buffers + requests + body + merges;
                        assert!(
                            sum <= memory * MIB && 0 < memtables && 0 < buffers && 0 < requests && 0 < merges
                        );
                        assert!(2 * value * MIB < body, "a body and its copy fit");
                        assert!(1 <= parts.connections_max(true));
                    }
                }
            }
        }
    }

    #[test]
    fn z1_what_is_taken_is_counted_until_it_is_dropped() {
        let pool = Pool::new(1 << 20);
        let mut permit = pool.try_take(300_000).unwrap();
        assert_eq!((permit.bytes(), pool.taken()), (293 << 10, 293 << 10));
        assert!(!pool.is_short());
        permit.merge(pool.try_take(1_000).unwrap());
        assert!(pool.suffices(&permit, 301_000) && !pool.suffices(&permit, 302_000));
        let other = pool.try_take(500_000).unwrap();
        assert!(pool.is_short() && pool.try_take(400_000).is_none());
        permit.keep(10_000);
        drop(other);
        assert_eq!(pool.taken(), 10 << 10);
        drop(permit);
        assert_eq!(pool.taken(), 0);
    }

    #[test]
    fn z2_those_who_wait_are_served_in_order_or_give_up_after_a_while() {
        let pool = Pool::new(1 << 20);
        let all = (pool.try_take(1 << 20).unwrap(), pool.try_take(1 << 20).unwrap());
        let mut first = Box::pin(pool.take(1 << 20));
        let mut second = Box::pin(pool.take(1));
        assert!(step(&mut first).is_none() && step(&mut second).is_none());
        drop(all.0);
        assert!(pool.try_take(1).is_none(), "nobody goes ahead");
        assert!(step(&mut second).is_none());
        let permit = step(&mut first).unwrap().unwrap();
        for _ in 0..WAIT_TICKS {
            pool.tick();
        }
        assert!(step(&mut second).is_none());
        pool.tick();
        assert!(step(&mut second).unwrap().is_none(), "it gave up");
        assert!(pool.is_short());
        drop((permit, all.1));
        assert!(!pool.is_short() && pool.try_take(1).is_some());
    }

    #[test]
    fn z3_a_request_for_more_than_there_is_gets_half_of_it() {
        let pool = Pool::new(1 << 20);
        let small = pool.try_take(1).unwrap();
        let permit = pool.try_take(usize::MAX).unwrap();
        assert_eq!(permit.bytes(), pool.bytes() / 2);
        assert!(pool.suffices(&permit, usize::MAX));
        let mut other = Box::pin(pool.take(usize::MAX));
        assert!(step(&mut other).is_none() && pool.is_wanted());
        drop(small);
        assert!(step(&mut other).unwrap().is_some() && !pool.is_wanted());
    }

    #[test]
    fn z4_when_memtables_are_short_of_memory_one_of_them_is_worth_a_flush() {
        let account = Account::new(1_000, 4);
        let mut changes = account.follow();
        let mut charges: Vec<_> = (0..4).map(|_| account.charge()).collect();
        charges[0].set(300);
        charges[1].set(200);
        assert!(account.admits(600) && !changes.has_changed().unwrap(), "half is free");
        charges[2].set(10);
        assert!(account.admits(490) && !account.admits(491) && !account.is_short());
        account.refused();
        assert!(account.is_short() && changes.has_changed().unwrap());
        changes.mark_unchanged();
        account.refused();
        assert!(!changes.has_changed().unwrap(), "a write that tries again is no change");
        // More than half is in use, so a memtable has half of its share.
        assert!([300, 200, 10].iter().any(|bytes| account.share() / 2 <= *bytes));
        charges.swap_remove(0);
        assert!(changes.has_changed().unwrap() && !account.is_short() && account.used() == 210);
        changes.mark_unchanged();
        charges[0].set(700);
        assert!(account.is_short() && changes.has_changed().unwrap(), "three quarters are in use");
    }
}
