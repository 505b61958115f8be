//! What the threads tell each other about damage and about writes that are refused: `/readyz` answers for the whole store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files that have lost entries, most of them named in an answer.
const NAMED_MAX: usize = 10;

/// How the shards are. Clones share it.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Shards>>);

#[derive(Default)]
struct Shards {
    /// Damaged files, by shard.
    damaged: BTreeMap<u16, Vec<String>>,
    /// Shards that refuse writes because compaction has stopped, or cannot keep up.
    stalled: BTreeSet<u16>,
    /// A log or a manifest cannot be written.
    has_failed: bool,
}

impl Health {
    /// Takes note of the damaged files of a shard.
    pub(super) fn set(&self, shard: u16, files: Vec<String>) {
        let damaged = &mut self.shards().damaged;
        if files.is_empty() {
            damaged.remove(&shard);
        } else {
            damaged.insert(shard, files);
        }
    }

    /// Takes note of whether a shard refuses writes until compaction has caught up. `true` if that is new.
    pub(super) fn set_stalled(&self, shard: u16, is_stalled: bool) -> bool {
        let stalled = &mut self.shards().stalled;
        if is_stalled { stalled.insert(shard) } else { stalled.remove(&shard) }
    }

    /// Takes note that a log or a manifest cannot be written.
    pub(super) fn fail(&self) {
        self.shards().has_failed = true;
    }

    /// Why writes are refused, if they are.
    pub(super) fn unready(&self) -> Option<&'static str> {
        let shards = self.shards();
        if shards.has_failed {
            Some("a log or a manifest cannot be written: no write is acknowledged any more")
        } else if !shards.stalled.is_empty() {
            Some("writes are refused until compaction has caught up; the log says why if it cannot")
        } else {
            None
        }
    }

    fn shards(&self) -> MutexGuard<'_, Shards> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is damaged, if anything is.
    pub(super) fn degraded(&self) -> Option<String> {
        let shards = self.shards();
        let files: Vec<&str> = shards.damaged.values().flatten().map(String::as_str).collect();
        if files.is_empty() {
            return None;
        }
        let named = files[..files.len().min(NAMED_MAX)].join(", ");
        let more = if NAMED_MAX < files.len() { ", ..." } else { "" };
        Some(format!("degraded: entries are lost to damage in {named}{more}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_ready_unless_a_shard_refuses_writes() {
        let health = Health::default();
        assert_eq!((health.unready(), health.degraded()), (None, None));
        assert!(health.set_stalled(3, true) && !health.set_stalled(3, true) && health.set_stalled(4, true));
        assert!(
            health.set_stalled(3, false) && health.unready().is_some_and(|why| why.contains("compaction"))
        );
        assert!(health.set_stalled(4, false) && !health.set_stalled(4, false) && health.unready().is_none());
        health.fail();
        assert!(health.unready().is_some_and(|why| why.contains("no write is acknowledged")));
    }
}
