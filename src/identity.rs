//! Which file some bytes must belong to: store, shard, kind and number. Pure.
//!
//! Every checksum on disk covers these, so bytes of another store, shard, kind or file do not verify (P5).

use crate::key::{FileNumber, ShardId};

/// What a file is for. On disk one byte, never renumbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// The store's identity and slot map.
    Store = 1,
    /// The name of the manifest in force.
    Current = 2,
    /// A version edit, or a mark of a manifest.
    Manifest = 3,
    /// A commit group, or a mark of a WAL.
    Wal = 4,
    /// The footer of an SST.
    Sst = 5,
}

/// Which file a record or block must belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Id of the store.
    pub store_id: u64,
    /// The shard whose directory holds the file.
    pub shard: ShardId,
    /// Kind of the file.
    pub kind: FileKind,
    /// Number of the file.
    pub file: FileNumber,
}

/// Which shard of which store a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Id of the store.
    pub store_id: u64,
    /// The shard.
    pub shard: ShardId,
}

impl Owner {
    /// The identity of one of its files.
    pub fn identity(self, kind: FileKind, file: FileNumber) -> Identity {
        Identity { store_id: self.store_id, shard: self.shard, kind, file }
    }
}
