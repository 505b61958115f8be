//! Slot → shard → thread. Pure.
//!
//! The slot map says which shard a slot belongs to; it is part of the store. Which thread a shard belongs to is decided at
//! each start, so a store made on 2 processors opens on 1 or 16.

use crate::key::{ShardId, Slot};

/// Number of a thread of this process, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(pub usize);

/// The map from keys to threads.
#[derive(Debug, Clone)]
pub struct Router {
    slots: Vec<ShardId>,
    threads: usize,
}

impl Router {
    /// A router over the slot map of a store, whose shards are dealt out to `threads` threads.
    pub fn new(slots: Vec<ShardId>, threads: usize) -> Self {
        Self { slots, threads }
    }

    /// The shard of a slot.
    pub fn shard(&self, slot: Slot) -> ShardId {
        self.slots[slot.index()]
    }

    /// The thread of a shard.
    pub fn thread(&self, shard: ShardId) -> ThreadId {
        ThreadId(usize::from(shard.0) % self.threads)
    }

    /// The shards of a thread.
    pub fn shards(&self, thread: ThreadId) -> Vec<ShardId> {
        let mut shards: Vec<ShardId> = self.slots.clone();
        shards.sort_unstable();
        shards.dedup();
        shards.retain(|shard| self.thread(*shard) == thread);
        shards
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn every_shard_has_one_thread_and_every_key_one_shard() {
        for (shards, threads) in [(2, 1), (2, 2), (2, 16), (5, 3)] {
            let router = Router::new(Store::new(1, shards).slots, threads);
            let mut all: Vec<ShardId> =
                (0..threads).flat_map(|thread| router.shards(ThreadId(thread))).collect();
            all.sort_unstable();
            assert_eq!(all, (0..shards).map(ShardId).collect::<Vec<_>>());
            for key in [&b"a"[..], b"b", b"key1"] {
                let shard = router.shard(Slot::of(key));
                assert!(router.shards(router.thread(shard)).contains(&shard));
            }
        }
    }
}
