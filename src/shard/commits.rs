//! When the commit groups of a thread's shards were taken, and how long they took.

use std::cell::RefCell;
use std::time::Instant;

use crate::key::ShardId;
use crate::tally::Histogram;

/// The commits of a thread. Its background work adds them.
#[derive(Default)]
pub struct Commits {
    durations: RefCell<Histogram>,
    /// By shard.
    last_taken: RefCell<Vec<Option<Instant>>>,
}

impl Commits {
    /// Adds a group of a shard that was taken at one moment and was durable at another. It is called before any writer of
    /// the group goes on.
    pub fn add(&self, shard: ShardId, taken: Instant, durable: Instant) {
        self.durations.borrow_mut().observe(durable.saturating_duration_since(taken), 1);
        let mut last = self.last_taken.borrow_mut();
        let index = usize::from(shard.0);
        if last.len() <= index {
            last.resize(index + 1, None);
        }
        last[index] = Some(taken);
    }

    /// When the last group of the shard was taken.
    pub fn last_taken(&self, shard: ShardId) -> Option<Instant> {
        *self.last_taken.borrow().get(usize::from(shard.0))?
    }

    /// How long groups took.
    pub fn durations(&self) -> Histogram {
        self.durations.borrow().clone()
    }
}
