//! Sorted entries from anywhere: the one way to read a shard in key order. Pure, except that [`Source::supply`] may read
//! files.
//!
//! A [`Source`] is a synchronous state machine. A step ends at an entry, at the end, or with the need for something
//! that is not in memory: a block, an open file, or the order of a memtable. The caller then awaits [`Source::supply`]
//! and steps again. A step that passes over many entries ends early, too. Between two steps the caller may pause, so a
//! long read never holds up the other work of a thread.
//!
//! ```text
//!   memtable ──┐
//!   memtable ──┤
//!   SST of L0 ─┼─► Merge: all versions of all keys ──► Newest: one version per key ──► flush, compaction, scan
//!   level 1 ───┤
//!   level 2 ───┘
//! ```
//!
//! Flush, compaction, scans and `ringkeep check` all read through these types.

pub mod merge;
pub mod newest;
pub mod tournament;

use crate::error::Result;
use crate::key::Entry;

/// How a step of a [`Source`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The source stands at an entry.
    Entry,
    /// There are no more entries.
    End,
    /// The next step needs what [`Source::supply`] provides.
    Need,
    /// The step has passed over many entries. The next step goes on; nothing has to be supplied.
    Pause,
}

/// The most entries that one step passes over: about 50 µs.
pub const PASSED_MAX: usize = 512;

/// Entries in the order of [`crate::key::compare`]: by key, and the versions of a key from the newest to the oldest.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait Source {
    /// Moves in front of the first entry whose key is at or above `key`. A new source stands in front of its first entry.
    fn seek(&mut self, key: &[u8]);

    /// Moves to the next entry. After [`Step::Need`] and [`Step::Pause`] the source stands at no entry, and the next step
    /// goes on towards it.
    ///
    /// # Errors
    /// `Corruption` if a block does not decode.
    fn step(&mut self) -> Result<Step>;

    /// Lends the entry that the source stands at. It is lent to a closure, because a memtable may take the next write as
    /// soon as the closure returns.
    ///
    /// # Panics
    /// If the last step did not return [`Step::Entry`].
    fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R;

    /// Provides what the last step needed. One call does a bounded amount of work; more calls may be needed.
    ///
    /// # Errors
    /// `Corruption` or `Io`.
    ///
    /// Cancel safety: safe; the source has not moved.
    async fn supply(&mut self) -> Result<()>;

    /// Moves to the next entry without pauses, and supplies whatever the steps need. Returns `false` at the end.
    ///
    /// # Errors
    /// As [`Self::step`] and [`Self::supply`].
    ///
    /// Cancel safety: safe; the next call goes on.
    async fn advance(&mut self) -> Result<bool> {
        loop {
            match self.step()? {
                Step::Entry => return Ok(true),
                Step::End => return Ok(false),
                Step::Need => self.supply().await?,
                Step::Pause => {}
            }
        }
    }
}
