//! A WAL that takes groups: space is reserved when a write arrives, and is filled when its group is appended.

use std::cell::Cell;

use super::{Group, GroupBuilder};
use crate::error::Result;
use crate::file_name::FileName;
use crate::identity::{FileKind, Owner};
use crate::key::{FileNumber, SeqNo};
use crate::record::file::{RecordFile, Sizes};
use crate::record::mark::Mark;
use crate::record::record_bytes;
use crate::storage::{AlignedBuf, File, SECTOR_BYTES, Storage};

/// An open WAL.
pub struct Wal<F: File> {
    number: FileNumber,
    file: RecordFile<F>,
    /// End of the last group that was begun. `file.end() <= reserved <= file.allocated()`.
    reserved: Cell<u64>,
}

impl<F: File> Wal<F> {
    fn new(number: FileNumber, file: RecordFile<F>) -> Self {
        let reserved = Cell::new(file.end());
        Self { number, file, reserved }
    }

    /// Creates a WAL, ready for its first group as soon as the manifest names it (P7).
    ///
    /// # Errors
    /// As [`RecordFile::create`].
    pub async fn create<S: Storage<File = F>>(
        storage: &S,
        owner: Owner,
        number: FileNumber,
        sizes: Sizes,
    ) -> Result<Self> {
        let identity = owner.identity(FileKind::Wal, number);
        let file = RecordFile::create(storage, FileName::Wal(number), identity, sizes).await?;
        Ok(Self::new(number, file))
    }

    /// Makes a new WAL of `from`, which is retired ([`RecordFile::retire`]) and which no manifest names.
    ///
    /// # Errors
    /// As [`RecordFile::recycle`].
    pub async fn recycle<S: Storage<File = F>>(
        storage: &S,
        owner: Owner,
        from: &Self,
        number: FileNumber,
        sizes: Sizes,
    ) -> Result<Self> {
        let identity = owner.identity(FileKind::Wal, number);
        let (old, new, allocated) = (from.file.name(), FileName::Wal(number), from.file.allocated());
        Ok(Self::new(number, RecordFile::recycle(storage, old, new, identity, allocated, sizes).await?))
    }

    /// Continues with a WAL that a clean stop left empty. `mark` is its newest mark, and `allocated` of its bytes were
    /// written and synced.
    ///
    /// # Errors
    /// `Io`.
    pub async fn open_empty<S: Storage<File = F>>(
        storage: &S,
        owner: Owner,
        number: FileNumber,
        mark: Mark,
        allocated: u64,
        sizes: Sizes,
    ) -> Result<Self> {
        let (name, identity) = (FileName::Wal(number), owner.identity(FileKind::Wal, number));
        Ok(Self::new(number, RecordFile::open_empty(storage, name, identity, mark, allocated, sizes).await?))
    }

    /// The number of the WAL.
    pub fn number(&self) -> FileNumber {
        self.number
    }

    /// The file of records that holds the groups.
    pub fn file(&self) -> &RecordFile<F> {
        &self.file
    }

    /// Ends the use of the WAL: it takes no mark from now on. Returns whether its file can be recycled as a WAL of at
    /// most `capacity` bytes.
    pub fn retire(&self, capacity: u64) -> bool {
        self.file.retire() && self.file.allocated() <= capacity
    }

    /// Whether a write of `bytes` (with its overhead) fits within the capacity, in a group of its own if necessary. If
    /// it does not fit, the WAL is full.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.end_with(bytes) <= self.file.capacity()
    }

    /// Whether the same write fits within the allocated length. If it does not fit, the WAL has to grow first.
    pub fn is_allocated_for(&self, bytes: usize) -> bool {
        self.end_with(bytes) <= self.file.allocated()
    }

    /// The furthest offset at which the WAL can end after one more write of `bytes`.
    pub fn end_with(&self, bytes: usize) -> u64 {
        self.reserved.get() + record_bytes(bytes) as u64 + SECTOR_BYTES as u64
    }

    /// Whether the WAL is half full.
    pub fn is_half_full(&self) -> bool {
        self.file.capacity() / 2 <= self.reserved.get()
    }

    /// Whether the WAL should grow now, so that no write has to wait for it.
    pub fn wants_growth(&self) -> bool {
        self.file.wants_growth(self.reserved.get())
    }

    /// Begins the next group.
    pub fn begin_group(&self, buffer: AlignedBuf, first: SeqNo) -> GroupBuilder {
        GroupBuilder::new(buffer, self.reserved.get(), first)
    }

    /// Reserves the space of a group that a write was added to.
    pub fn reserve(&self, group: &GroupBuilder) {
        assert!(group.end() <= self.file.allocated(), "is_allocated_for was asked first");
        self.reserved.set(group.end());
    }

    /// Writes a complete group. Groups are appended in the order in which they were begun.
    ///
    /// # Errors
    /// As [`RecordFile::append`].
    pub async fn append(&self, group: GroupBuilder) -> Result<Group> {
        let (first, last) = (group.first, group.last());
        let payload = group.record.payload_range();
        let written = self.file.append(group.record).await?;
        Ok(Group { first, last, written, payload })
    }

    /// Makes all appended groups durable. [`RecordFile::sync`] says what an error means.
    ///
    /// # Errors
    /// As [`RecordFile::sync`].
    pub async fn sync(&self) -> Result<()> {
        self.file.sync().await
    }
}
