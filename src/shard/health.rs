//! What the threads tell each other about damage: `/readyz` answers for the whole store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Files that have lost entries, most of them named in an answer.
const NAMED_MAX: usize = 10;

/// Damaged files, by shard. Clones share it.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<u16, Vec<String>>>>);

impl Health {
    /// Takes note of the damaged files of a shard.
    pub(super) fn set(&self, shard: u16, files: Vec<String>) {
        let mut shards = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if files.is_empty() {
            shards.remove(&shard);
        } else {
            shards.insert(shard, files);
        }
    }

    /// What is damaged, if anything is.
    pub(super) fn degraded(&self) -> Option<String> {
        let shards = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let files: Vec<&str> = shards.values().flatten().map(String::as_str).collect();
        if files.is_empty() {
            return None;
        }
        let named = files[..files.len().min(NAMED_MAX)].join(", ");
        let more = if NAMED_MAX < files.len() { ", ..." } else { "" };
        Some(format!("degraded: entries are lost to damage in {named}{more}"))
    }
}
