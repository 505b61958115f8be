//! What the threads know of the space on the disk, and tell the server about it.
//!
//! The server decides whether the disk is full ([`crate::server`]). While it is, sets are refused, and the space that the
//! server had reserved is there for the work that makes room: flushes, compactions and short WALs for deletes. That work
//! is done one at a time for the whole store, so that the reserve need not be larger than one of them takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// The space on the disk. Clones share it.
#[derive(Clone)]
pub struct Space(Arc<Shared>);

struct Shared {
    full: watch::Sender<bool>,
    /// An operation of a thread found the disk full.
    reported: Notify,
    /// Bytes of the sorted files of all shards that have counted theirs.
    counted_bytes: AtomicU64,
    /// Bytes of the sorted files at the start; 0 once every shard has counted.
    seed_bytes: AtomicU64,
    /// Shards that have not counted yet.
    uncounted: AtomicUsize,
    /// The longest sorted file so far.
    longest_bytes: AtomicU64,
    /// Held by work that makes room on a full disk.
    turn: Arc<Semaphore>,
}

impl Space {
    /// The space of a store of `shards` shards, whose sorted files have `bytes` in all.
    pub fn new(shards: u16, bytes: u64) -> Self {
        Self(Arc::new(Shared {
            full: watch::Sender::new(false),
            reported: Notify::new(),
            counted_bytes: AtomicU64::new(0),
            seed_bytes: AtomicU64::new(bytes),
            uncounted: AtomicUsize::new(usize::from(shards)),
            longest_bytes: AtomicU64::new(0),
            turn: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        *self.0.full.borrow()
    }

    /// Follows whether the disk is full.
    pub fn follow(&self) -> watch::Receiver<bool> {
        self.0.full.subscribe()
    }

    /// Announces to all threads whether the disk is full.
    pub fn announce(&self, full: bool) {
        self.0.full.send_replace(full);
    }

    /// Tells the server that an operation found the disk full.
    pub fn report(&self) {
        self.0.reported.notify_one();
    }

    /// Waits until an operation has found the disk full. Cancel safety: safe.
    pub async fn reported(&self) {
        self.0.reported.notified().await;
    }

    /// Waits for the turn of work that makes room, if the disk is full.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        if !self.is_full() {
            return None;
        }
        self.0.turn.clone().acquire_owned().await.ok() // the semaphore is never closed
    }

    /// Replaces what a shard has counted before, if it has, by what it counts now. Its longest file has `longest` bytes.
    pub(super) fn count(&self, before: Option<u64>, now: u64, longest: u64) {
        self.0.counted_bytes.fetch_add(now.wrapping_sub(before.unwrap_or_default()), Ordering::Relaxed);
        self.0.longest_bytes.fetch_max(longest, Ordering::Relaxed);
        if before.is_none() && self.0.uncounted.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.seed_bytes.store(0, Ordering::Relaxed);
        }
    }

    /// Bytes of the sorted files of all shards, as of some moments ago.
    pub fn data_bytes(&self) -> u64 {
        self.0.counted_bytes.load(Ordering::Relaxed).max(self.0.seed_bytes.load(Ordering::Relaxed))
    }

    /// Bytes of the longest sorted file.
    pub fn longest_bytes(&self) -> u64 {
        self.0.longest_bytes.load(Ordering::Relaxed)
    }
}
