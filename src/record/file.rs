//! A file of records that grows, is written, synced and used again: the common part of WALs and manifests.
//!
//! Owns: where the next record goes, how far the file is allocated and durable, and when a mark is due
//! ([`mark`](super::mark)). [`replay`](mod@super::replay) reads what is written here.
//!
//! ```text
//!   slot 0 │ slot 1 │ record │ record │ …      │ zeros or an earlier use │ zeros            │
//!                            durable   end      limit                     allocated          capacity
//! ```
//!
//! A file begins short and grows. Every byte below `allocated` is written and synced before a record is placed there.
//! So an append changes no metadata except the time of the last change, and a sync is one flush of the device, without
//! the commit of a new length. An append rewrites the 4 KiB block that the last record ended in, with the same bytes at
//! its front. By R1 and S3 those bytes cannot change, whatever the crash tears.
//!
//! Under load a mark is written together with a record, and the sync of that record covers both. A mark costs a sync of
//! its own only when no records arrive ([`RecordFile::mark`]), or when a record would reach beyond the limit.
//!
//! What a crash may leave, and why it is survived:
//! - before both marks were synced: a file that nothing names yet (E4); the next open removes it;
//! - while the file grows: a longer file with zeros at its end. The length that the manifest knows is a lower bound;
//! - during an append: a record that does not verify, and after it none that does: a torn end, cut and reported;
//! - during an append with a mark: a record as above, and the old mark or the new one (E3), both true (E1);
//! - without syncs (`--sync never`): records after a lost record, which may verify. No record says that the lost record
//!   was durable, so all of them are cut.
//!
//! Later damage to a synced record is told from a torn end in three ways: the newest mark and later records say what
//! was durable (R2), the SeqNos have no gaps across WALs, and the manifest names the files that must be there.

use std::cell::{Cell, RefCell};

use tokio::sync::Mutex;

use super::RecordBuilder;
use super::mark::{Mark, SLOTS};
use crate::codec::{align_up, to_usize};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::Identity;
use crate::storage::{Access, AlignedBuf, BLOCK_BYTES, File, Storage, open_file, sync_names};

/// Where the first record starts: after the slots of the marks.
pub const FIRST_RECORD: u64 = SLOTS * BLOCK_BYTES as u64;
/// Zeros are written in steps of this many bytes: large enough for most of the device's bandwidth, small enough not to
/// delay commits at the same time.
const ZEROS_BYTES: usize = 1 << 20;
/// A mark is due after this many steps.
const MARK_STEPS: u64 = 4;
/// A mark raises the limit to this many steps beyond the end of the file: the steps until the next mark is due, and two
/// for the group that carries that mark.
const LIMIT_STEPS: u64 = MARK_STEPS + 2;
/// A file grows to twice its length, but by at most this many steps at a time.
const GROWTH_STEPS_MAX: u64 = 16;

/// How long a file of records may become, and in which steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The greatest length, a multiple of the block size.
    pub capacity: u64,
    /// The first length, and the unit in which marks and growth are counted; a multiple of the block size.
    pub step: u64,
}

impl Sizes {
    /// A file that has its whole length from the start.
    pub fn fixed(capacity: u64) -> Self {
        Self { capacity, step: capacity }
    }

    fn first_length(self) -> u64 {
        self.step.max(FIRST_RECORD + BLOCK_BYTES as u64).min(self.capacity)
    }

    /// The length to grow to from `allocated`, at least `least`.
    fn next_length(self, allocated: u64, least: u64) -> u64 {
        let doubled = allocated + allocated.min(GROWTH_STEPS_MAX * self.step);
        align_up(doubled.max(least), BLOCK_BYTES as u64).min(self.capacity)
    }
}

/// An open file of records. Records are appended at its end.
pub struct RecordFile<F: File> {
    file: F,
    name: FileName,
    label: String,
    identity: Identity,
    sizes: Sizes,
    /// Bytes that were written and synced, as records or as zeros. `durable <= end <= allocated <= capacity`, and none
    /// of these ever shrinks.
    allocated: Cell<u64>,
    /// End of the last record.
    end: Cell<u64>,
    /// End of the last record that a sync has covered.
    durable: Cell<u64>,
    /// Checksum of the last record.
    chain: Cell<u32>,
    /// The bytes of the last, partly filled block.
    front: RefCell<Vec<u8>>,
    /// Writes that have ended; `synced_writes` of them were covered by a sync.
    writes: Cell<u64>,
    synced_writes: Cell<u64>,
    /// The last mark that was written, and the last mark that was synced. The first is at most one mark ahead (E3).
    mark: Cell<Mark>,
    synced_mark: Cell<Mark>,
    mark_requested: Cell<bool>,
    /// Locked while a mark is being written.
    marking: Mutex<()>,
    /// Locked while a sync of records and marks is running.
    syncing: Mutex<()>,
    /// Why a sync of the file failed, by whichever descriptor. Nothing counts as durable from then on (S4).
    failure: RefCell<Option<Error>>,
    growing: Cell<bool>,
    /// The records are not needed any more, and the file may be recycled.
    retired: Cell<bool>,
}

impl<F: File> RecordFile<F> {
    /// Creates a file with its first length. Bytes, marks and name are synced before the return (E4, P7).
    ///
    /// # Errors
    /// Any. The file may exist, but nothing names it.
    pub async fn create<S: Storage<File = F>>(
        storage: &S,
        name: FileName,
        identity: Identity,
        sizes: Sizes,
    ) -> Result<Self> {
        let label = storage.label(name);
        let allocated = sizes.first_length();
        assert!(allocated.is_multiple_of(BLOCK_BYTES as u64) && FIRST_RECORD < allocated);
        let file = storage.create(name).await.map_err(|error| Error::io(format!("create {label}"), error))?;
        write_zeros(&file, &label, 0, allocated).await?;
        file.sync().await.map_err(|error| Error::io(format!("sync {label}"), error))?;
        Self::begin(storage, name, file, identity, allocated, sizes, false).await
    }

    /// Gives a new name and identity to a file that nothing needs any more, and of which `allocated` bytes were written
    /// and synced. The bytes after the marks stay; records among them carry the old number.
    ///
    /// # Errors
    /// Any. The file has the old or the new name, and nothing names either.
    pub async fn recycle<S: Storage<File = F>>(
        storage: &S,
        from: FileName,
        to: FileName,
        identity: Identity,
        allocated: u64,
        sizes: Sizes,
    ) -> Result<Self> {
        assert!(FIRST_RECORD < allocated && allocated <= sizes.capacity);
        let attempt = || format!("recycle {} as {}", storage.label(from), storage.label(to));
        storage.rename(from, to).await.map_err(|error| Error::io(attempt(), error))?;
        let file = open_file(storage, to, Access::Write).await?;
        Self::begin(storage, to, file, identity, allocated, sizes, true).await
    }

    /// Writes both marks of a file without a record, and syncs them and the name (E4).
    async fn begin<S: Storage<File = F>>(
        storage: &S,
        name: FileName,
        file: F,
        identity: Identity,
        allocated: u64,
        sizes: Sizes,
        used_before: bool,
    ) -> Result<Self> {
        let label = storage.label(name);
        let attempt = |what: &str| format!("{what} the marks of {label}");
        // Low, because a start reads up to the limit, and a WAL without a group should cost the start little.
        let limit = allocated.min(FIRST_RECORD + sizes.step);
        let first = Mark { number: 0, durable: FIRST_RECORD, limit, used_before };
        let second = Mark { number: 1, ..first };
        let mut slots = first.encode(identity);
        slots.extend_from_slice(&second.encode(identity));
        file.write_at(slots, 0).await.0.map_err(|error| Error::io(attempt("write"), error))?;
        file.sync().await.map_err(|error| Error::io(attempt("sync"), error))?;
        sync_names(storage).await?;
        Self::open_empty(storage, name, identity, second, allocated, sizes).await
    }

    /// Opens a file without records. Its newest mark is `mark`, and `allocated` of its bytes were written and synced.
    ///
    /// # Errors
    /// `Io`.
    pub async fn open_empty<S: Storage<File = F>>(
        storage: &S,
        name: FileName,
        identity: Identity,
        mark: Mark,
        allocated: u64,
        sizes: Sizes,
    ) -> Result<Self> {
        Ok(Self {
            file: open_file(storage, name, Access::Overwrite).await?,
            name,
            label: storage.label(name),
            identity,
            sizes,
            allocated: Cell::new(allocated),
            end: Cell::new(FIRST_RECORD),
            durable: Cell::new(FIRST_RECORD),
            chain: Cell::new(0),
            front: RefCell::default(),
            writes: Cell::new(0),
            synced_writes: Cell::new(0),
            mark: Cell::new(mark),
            synced_mark: Cell::new(mark),
            mark_requested: Cell::new(false),
            marking: Mutex::new(()),
            syncing: Mutex::new(()),
            failure: RefCell::new(None),
            growing: Cell::new(false),
            retired: Cell::new(false),
        })
    }

    /// The greatest length.
    pub fn capacity(&self) -> u64 {
        self.sizes.capacity
    }

    /// Bytes that records may take without a [`Self::grow`].
    pub fn allocated(&self) -> u64 {
        self.allocated.get()
    }

    /// End of the last record that was appended.
    pub fn end(&self) -> u64 {
        self.end.get()
    }

    /// The name of the file as messages show it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Bytes that a sync has covered.
    pub fn durable(&self) -> u64 {
        self.durable.get()
    }

    /// Bytes that the newest durable mark says are durable.
    pub fn witnessed(&self) -> u64 {
        self.synced_mark.get().durable
    }

    /// The open file.
    pub fn file(&self) -> &F {
        &self.file
    }

    /// The name of the file.
    pub fn name(&self) -> FileName {
        self.name
    }

    /// Whether the file should grow now, because little space is left after records that reach up to `reserved`.
    pub fn wants_growth(&self, reserved: u64) -> bool {
        let allocated = self.allocated.get();
        let left = allocated.saturating_sub(reserved);
        allocated < self.sizes.capacity && left < (allocated / 2).min(GROWTH_STEPS_MAX / 2 * self.sizes.step)
    }

    /// Whether [`Self::retire`] was called.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Ends the use of a file whose records nobody needs any more: from now on it takes no mark and does not grow.
    /// Returns `false` if the file must not be recycled, because a mark or zeros may still be on their way to it.
    pub fn retire(&self) -> bool {
        self.retired.set(true);
        !self.growing.get() && self.marking.try_lock().is_ok()
    }

    /// Checks that the file still has a name and its length. Bytes in a file that somebody has removed, replaced or cut
    /// are lost when this process ends. Does not wait.
    ///
    /// # Errors
    /// `Poisoned` if the name or a part of the length is gone, or if the file cannot be examined.
    pub fn check_in_place(&self) -> Result<()> {
        let what = match self.file.named_bytes() {
            Ok(Some(bytes)) if self.allocated.get() <= bytes => return Ok(()),
            Ok(Some(bytes)) => format!("cut to {bytes} bytes"),
            Ok(None) => "removed or replaced".into(),
            Err(error) => {
                let error = Error::io(format!("look at {}", self.label), error);
                return Err(error.with_kind(ErrorKind::Poisoned));
            }
        };
        Err(taken_away(&self.label, &what))
    }

    /// Asks for a mark to be written with the next record that can carry one.
    pub fn request_mark(&self) {
        self.mark_requested.set(true);
    }

    /// Writes `record`, which was begun at [`Self::end`] and ends within [`Self::allocated`]. The record is durable
    /// after the next [`Self::sync`]. Returns the buffer for the next record. Only one append may run at a time.
    ///
    /// # Errors
    /// Any. Nothing may be appended after an error, because what the file holds is uncertain (S4).
    ///
    /// Cancel safety: not safe.
    pub async fn append(&self, record: RecordBuilder) -> Result<AlignedBuf> {
        assert_eq!(record.offset(), self.end.get(), "records are appended in order");
        let end = record.end();
        assert!(end <= self.allocated.get(), "the owner has reserved the space");
        if self.synced_mark.get().limit < end {
            self.raise_limit(end).await?; // E2
        }
        let (buffer, at, crc) =
            record.finish(&self.front.borrow(), self.identity, self.chain.get(), self.durable.get());
        let length = buffer.len();
        let marking = if self.mark_is_due(end) { self.marking.try_lock().ok() } else { None };
        let (result, buffer) = if marking.is_none() {
            self.file.write_at(buffer, at).await
        } else {
            let (group, mark) = tokio::join!(self.file.write_at(buffer, at), self.write_mark(end));
            mark?;
            group
        };
        result.map_err(|error| {
            Error::io(format!("write {length} bytes at offset {at} of {}", self.label), error)
        })?;
        let last_block = to_usize(end - at) / BLOCK_BYTES * BLOCK_BYTES;
        let mut front = self.front.borrow_mut();
        front.clear();
        front.extend_from_slice(&buffer[last_block..to_usize(end - at)]);
        self.chain.set(crc);
        self.end.set(end);
        self.writes.set(self.writes.get() + 1);
        Ok(buffer)
    }

    /// Whether the record that ends at `end` should carry a mark.
    fn mark_is_due(&self, end: u64) -> bool {
        let (mark, step) = (self.mark.get(), self.sizes.step);
        let news = self.durable.get().saturating_sub(mark.durable);
        let due = MARK_STEPS * step <= news
            || (self.mark_requested.get() && 0 < news)
            || (mark.limit < end + step && mark.limit < self.allocated.get());
        due && self.mark_is_synced()
    }

    fn mark_is_synced(&self) -> bool {
        self.mark.get() == self.synced_mark.get()
    }

    /// Writes the next mark, for a file that will end at `end`. The caller holds `marking`.
    async fn write_mark(&self, end: u64) -> Result<()> {
        self.check_synced()?;
        assert!(self.mark_is_synced(), "at most one mark is not synced"); // E3
        let last = self.mark.get();
        let limit = self.allocated.get().min(end + LIMIT_STEPS * self.sizes.step).max(last.limit);
        let mark = Mark { number: last.number + 1, durable: self.durable.get(), limit, ..last };
        if last.durable < mark.durable {
            self.mark_requested.set(false);
        }
        let (result, _) = self.file.write_at(mark.encode(self.identity), mark.offset()).await;
        result.map_err(|error| {
            Error::io(format!("write a mark at offset {} of {}", mark.offset(), self.label), error)
        })?;
        self.mark.set(mark);
        self.writes.set(self.writes.get() + 1);
        Ok(())
    }

    /// Fails if a sync has failed: what was written before that sync is uncertain, whatever later syncs say (S4).
    fn check_synced(&self) -> Result<()> {
        self.failure.borrow().clone().map_or(Ok(()), Err)
    }

    /// Takes note of how a sync of the file ended.
    fn note_sync(&self, result: Result<()>) -> Result<()> {
        if let Err(error) = result {
            self.failure.borrow_mut().get_or_insert(error);
        }
        self.check_synced()
    }

    /// Makes a mark durable whose limit is at least `end`.
    async fn raise_limit(&self, end: u64) -> Result<()> {
        let _marking = self.marking.lock().await;
        if !self.mark_is_synced() {
            self.sync().await?;
        }
        if self.mark.get().limit < end {
            self.write_mark(end).await?;
            self.sync().await?;
        }
        assert!(end <= self.synced_mark.get().limit); // E2
        Ok(())
    }

    /// Makes a mark durable that says how far the file is durable, unless the last mark already says so. Meant for a
    /// moment without appends, because it takes a sync of its own.
    ///
    /// # Errors
    /// As [`Self::append`].
    ///
    /// Cancel safety: not safe.
    pub async fn mark(&self) -> Result<()> {
        let _marking = self.marking.lock().await;
        if self.retired.get() {
            return Ok(());
        }
        if !self.mark_is_synced() {
            self.sync().await?;
        }
        if self.mark.get().durable < self.durable.get() {
            self.write_mark(self.end.get()).await?;
            self.sync().await?;
        }
        Ok(())
    }

    /// Makes every record and mark durable whose write has returned. An append may run at the same time. A second sync
    /// waits for the first, because the kernel tells only one of them what failed.
    ///
    /// # Errors
    /// Any. Nothing may be appended any more, and every later sync fails, too (S4).
    ///
    /// Cancel safety: not safe.
    pub async fn sync(&self) -> Result<()> {
        let _syncing = self.syncing.lock().await;
        self.check_synced()?;
        // Whatever is written while the sync runs is left to the next sync.
        let (end, writes, mark) = (self.end.get(), self.writes.get(), self.mark.get());
        if self.synced_writes.get() < writes {
            let result = self.file.sync().await;
            // The sync of a growth may have failed meanwhile. The kernel tells only one of two syncs what failed.
            self.note_sync(
                result.map_err(|error| Error::io(format!("sync {} up to offset {end}", self.label), error)),
            )?;
            self.durable.set(end);
            self.synced_writes.set(writes);
            self.synced_mark.set(mark);
        }
        Ok(())
    }

    /// Makes the file longer: to about twice its length, and to at least `least` bytes, if the capacity allows it.
    /// Appends may go on meanwhile. A file that has its greatest length stays as it is.
    ///
    /// # Errors
    /// `Poisoned` if a sync failed: nothing may be appended any more (S4). After any other error, a full disk included,
    /// the file can be used as before, and the growth can be tried again.
    ///
    /// Cancel safety: not safe.
    pub async fn grow<S: Storage<File = F>>(&self, storage: &S, least: u64) -> Result<()> {
        let allocated = self.allocated.get();
        let length = self.sizes.next_length(allocated, least);
        if length <= allocated || self.retired.get() || self.growing.replace(true) {
            return Ok(());
        }
        let result = self.grow_to(storage, allocated, length, least).await;
        self.growing.set(false);
        self.allocated.set(result?);
        Ok(())
    }

    /// Returns the new length: `length`, or only what is needed if the disk is too full for `length`.
    async fn grow_to<S: Storage<File = F>>(
        &self,
        storage: &S,
        allocated: u64,
        length: u64,
        least: u64,
    ) -> Result<u64> {
        // A descriptor of its own: the kernel reports what failed to each descriptor separately.
        let file = open_file(storage, self.name, Access::Write).await?;
        let needed = align_up(least.max(allocated + self.sizes.step), BLOCK_BYTES as u64).min(length);
        let mut length = length;
        while let Err(error) = write_zeros(&file, &self.label, allocated, length).await {
            // A flush, which would free space, may need just the space that the failed attempt has taken.
            if let Err(error) = file.release(allocated).await {
                tracing::warn!(file = self.label, %error, "cannot give back unused space");
            }
            if error.kind() != ErrorKind::DiskFull || length == needed {
                return Err(error);
            }
            length = needed;
        }
        let result = file
            .sync()
            .await
            .map_err(|error| Error::io(format!("sync {}, which grew to {length} bytes", self.label), error));
        self.note_sync(result).map_err(|error| error.with_kind(ErrorKind::Poisoned))?;
        Ok(length)
    }
}

/// The error for a file that somebody took away while this process used it. `what` says what happened, as in `removed`.
pub fn taken_away(label: &str, what: &str) -> Error {
    let message = format!(
        "{label} was {what} while this process was using it: no more writes are acknowledged. Put back what was there, \
         make sure that nothing else changes the data directory, and start again"
    );
    Error::new(ErrorKind::Poisoned, message)
}

/// Sets the length to `to`, and writes zeros from `from` on.
async fn write_zeros<F: File>(file: &F, label: &str, from: u64, to: u64) -> Result<()> {
    file.allocate(to).await.map_err(|error| Error::io(format!("allocate {to} bytes for {label}"), error))?;
    let mut at = from;
    let mut zeros = AlignedBuf::zeroed(ZEROS_BYTES.min(to_usize(to - from)));
    while at < to {
        zeros.truncate(to_usize(to - at));
        let (result, back) = file.write_at(zeros, at).await;
        result.map_err(|error| Error::io(format!("write zeros at offset {at} of {label}"), error))?;
        zeros = back;
        at += zeros.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
