//! What a shard tells of itself: figures of the moment, and counts since it was opened.

use std::rc::Rc;

use super::Db;
use crate::manifest::{LEVELS, SharedMeta, Version};
use crate::memtable::{Keys, Memtable};
use crate::storage::Storage;
use crate::tally::Count;

/// Counts since the shard was opened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Writes that the engine had no room for. Most of them have waited, and were tried again.
    pub(super) stalls: Count,
    pub(super) flushes: Count,
    pub(super) flushed_bytes: Count,
    pub(super) compactions: Count,
    pub(super) compaction_read_bytes: Count,
    pub(super) compaction_written_bytes: Count,
    /// Lookups that found their key among cached values, and those that did not.
    pub(super) value_hits: Count,
    pub(super) value_misses: Count,
    /// Files that a filter has excluded from a lookup, those that it did not although the key was absent, and those that had
    /// the key.
    pub(super) filter_excluded: Count,
    pub(super) filter_mistaken: Count,
    pub(super) filter_right: Count,
    /// Reads that came to bytes that do not verify, or that the device could not return.
    pub(super) damaged_reads: Count,
}

/// A shard at one moment. Counts are since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the page of metrics says what each of them means")]
pub struct Sample {
    pub shard: u16,
    pub groups: u64,
    pub writes: u64,
    pub stalls: u64,
    pub flushes: u64,
    pub flushed_bytes: u64,
    pub compactions: u64,
    pub compaction_read_bytes: u64,
    pub compaction_written_bytes: u64,
    pub value_hits: u64,
    pub value_misses: u64,
    pub block_hits: u64,
    pub block_misses: u64,
    pub cached_block_bytes: u64,
    pub memtable_bytes: u64,
    pub memtables: u64,
    pub wal_bytes: u64,
    pub queued_bytes: u64,
    pub debt_bytes: u64,
    pub open_files: u64,
    pub damages: u64,
    pub filter_excluded: u64,
    pub filter_mistaken: u64,
    pub filter_right: u64,
    pub damaged_reads: u64,
    /// Entries of sorted files and memtables, older versions of keys included.
    pub entries: u64,
    /// Keys that have a value, roughly.
    pub keys: u64,
    /// Those of the entries in sorted files that are tombstones.
    pub tombstones: u64,
    /// The last write that is durable.
    pub seqno: u64,
    /// Files and bytes of each level.
    pub levels: [(u64, u64); LEVELS],
}

impl<S: Storage> Db<S> {
    /// The shard as it is now.
    pub fn sample(&self) -> Sample {
        let inner = &*self.0;
        let (counts, version) = (&inner.counts, self.version());
        let (groups, writes) = self.committed();
        let memtables = inner.writes.memtables();
        let mut levels = [(0, 0); LEVELS];
        for (level, files) in version.levels() {
            levels[level] = (files.len() as u64, files.iter().map(|file| file.bytes).sum());
        }
        let entries: u64 = version.files().map(|file| file.entries).sum();
        let in_memory: u64 = memtables.iter().map(|memtable| memtable.entries()).sum();
        Sample {
            shard: inner.owner.shard.0,
            groups,
            writes,
            stalls: counts.stalls.get(),
            flushes: counts.flushes.get(),
            flushed_bytes: counts.flushed_bytes.get(),
            compactions: counts.compactions.get(),
            compaction_read_bytes: counts.compaction_read_bytes.get(),
            compaction_written_bytes: counts.compaction_written_bytes.get(),
            value_hits: counts.value_hits.get(),
            value_misses: counts.value_misses.get(),
            block_hits: inner.tree.blocks.hits(),
            block_misses: inner.tree.blocks.misses(),
            cached_block_bytes: inner.tree.blocks.bytes(),
            memtable_bytes: memtables.iter().map(|memtable| memtable.bytes() as u64).sum(),
            memtables: memtables.len() as u64,
            wal_bytes: inner.writes.wal_bytes(),
            queued_bytes: inner.writes.queue.bytes() as u64,
            debt_bytes: inner.tree.debt_bytes(),
            open_files: inner.tree.open_files() as u64,
            damages: version.damage().len() as u64,
            filter_excluded: counts.filter_excluded.get(),
            filter_mistaken: counts.filter_mistaken.get(),
            filter_right: counts.filter_right.get(),
            damaged_reads: counts.damaged_reads.get(),
            entries: entries + in_memory,
            keys: keys(&version, &memtables),
            tombstones: version.files().map(|file| file.tombstones).sum(),
            seqno: self.visible().0,
            levels,
        }
    }
}

/// Keys that have a value, roughly: from the oldest entries to the newest ones, a tombstone takes one key away. A key that
/// was set again counts once for each file that has it, until its entries meet in a compaction. A key that was new when it
/// was deleted takes another key away, once its tombstone is in a file.
fn keys(version: &Version, memtables: &[Rc<Memtable>]) -> u64 {
    let of_files = |files: &[SharedMeta]| {
        let tombstones = files.iter().map(|file| file.tombstones).sum();
        Keys { values: files.iter().map(|file| file.entries).sum::<u64>() - tombstones, tombstones }
    };
    let levels = (1..LEVELS).rev().map(|level| of_files(version.level(level)));
    let newest_level = version.level(0).chunks(1).rev().map(of_files);
    let in_memory = memtables.iter().rev().map(|memtable| memtable.keys());
    let newer = levels.chain(newest_level).chain(in_memory);
    newer.fold(0, |keys, newer| keys.saturating_sub(newer.tombstones) + newer.values)
}
