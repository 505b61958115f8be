//! A WAL that takes groups: space is spoken for when a write arrives, and filled when its group is appended.

use std::cell::Cell;

use super::GroupBuilder;
use crate::error::Result;
use crate::file_name::FileName;
use crate::key::{FileNumber, SeqNo};
use crate::record::file::RecordFile;
use crate::record::{Kind, Owner, record_bytes};
use crate::storage::{AlignedBuf, File, Storage};

/// An open WAL.
pub struct Wal<F: File> {
    number: FileNumber,
    file: RecordFile<F>,
    /// End of the last group that was begun. `file.end() <= reserved <= file.capacity()`.
    reserved: Cell<u64>,
}

impl<F: File> Wal<F> {
    fn new(number: FileNumber, file: RecordFile<F>) -> Self {
        let reserved = Cell::new(file.end());
        Self { number, file, reserved }
    }

    /// Creates a WAL, ready for its first group as soon as the manifest names it (P7).
    pub async fn create<S: Storage<File = F>>(
        storage: &S,
        owner: Owner,
        number: FileNumber,
        capacity: u64,
    ) -> Result<Self> {
        let identity = owner.identity(Kind::Wal, number);
        let file = RecordFile::create(storage, FileName::Wal(number), identity, capacity).await?;
        Ok(Self::new(number, file))
    }

    /// Makes a WAL of one that is not needed any more, and that no manifest names.
    pub async fn recycle<S: Storage<File = F>>(
        storage: &S,
        owner: Owner,
        from: FileNumber,
        number: FileNumber,
        capacity: u64,
    ) -> Result<Self> {
        let identity = owner.identity(Kind::Wal, number);
        let (from, to) = (FileName::Wal(from), FileName::Wal(number));
        Ok(Self::new(number, RecordFile::recycle(storage, from, to, identity, capacity).await?))
    }

    /// Goes on with a WAL that a clean stop has left empty. Its head is written anew, and says that bytes of an earlier
    /// use may follow: it may have been recycled.
    pub async fn open_empty<S: Storage<File = F>>(
        storage: &S,
        owner: Owner,
        number: FileNumber,
        capacity: u64,
    ) -> Result<Self> {
        let identity = owner.identity(Kind::Wal, number);
        Ok(Self::new(
            number,
            RecordFile::begin_again(storage, FileName::Wal(number), identity, capacity).await?,
        ))
    }

    /// Its number.
    pub fn number(&self) -> FileNumber {
        self.number
    }

    /// Length of the file.
    pub fn capacity(&self) -> u64 {
        self.file.capacity()
    }

    /// End of what is spoken for.
    pub fn reserved(&self) -> u64 {
        self.reserved.get()
    }

    /// Whether a write of `bytes` (with its overhead) still fits, in a group of its own if need be.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.reserved.get() + record_bytes(bytes) as u64 + crate::storage::SECTOR_BYTES as u64
            <= self.capacity()
    }

    /// Begins the next group.
    pub fn begin_group(&self, buffer: AlignedBuf, first: SeqNo) -> GroupBuilder {
        GroupBuilder::new(buffer, self.reserved.get(), first)
    }

    /// Speaks for the space of a group that has grown.
    pub fn reserve(&self, group: &GroupBuilder) {
        assert!(group.end() <= self.capacity(), "has_room was asked before");
        self.reserved.set(group.end());
    }

    /// Writes a group; groups are appended in the order in which they were begun. Returns the buffer.
    pub async fn append(&self, group: GroupBuilder) -> Result<AlignedBuf> {
        self.file.append(group.finish()).await
    }

    /// How far the groups are durable.
    pub fn durable(&self) -> u64 {
        self.file.durable()
    }

    /// Makes all appended groups durable. See [`RecordFile::sync`] for what an error means.
    pub async fn sync(&self) -> Result<()> {
        self.file.sync().await
    }
}
