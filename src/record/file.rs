//! A preallocated file of records: appended to, recycled, replayed. The WAL and the manifest stand on it.
//!
//! Owns: where the next record goes, what is durable, and the decision between a torn end and damage (R2).
//! Knows nothing of what a payload means.
//!
//! The file has its full length from the start and every byte was written once, so an append changes no
//! metadata but the time of the last change: a sync is one flush of the device, not the commit of a new length.
//! Block 0 holds the head record: a u8, whether bytes of an earlier use may be left behind the records. Appends start
//! at block 1. An append rewrites the 4 KiB block that the last record ended in, with the same bytes in front: by R1 and
//! S3 they cannot change, whatever the crash tears.
//!
//! What a crash may leave, and why it is survived:
//! - before the head was synced: nothing names the file yet (its owner adds it to the manifest afterwards), so
//!   it is removed at the next open;
//! - during an append: the record does not verify, nothing behind it does: a torn end, cut and reported;
//! - without syncs (`--sync never`), records behind a lost one may verify; their `durable` is not beyond it: cut;
//! - damage to a synced record, where a record appended after that sync follows: it says `durable` beyond it: refused
//!   (R2);
//! - damage behind that, to the last synced record as a rule, cannot be told from a torn end by this file alone. The
//!   owner adds what it knows: numbers without gaps across WALs, files that the manifest must name, an [`Extent`].

use std::cell::{Cell, RefCell};
use std::future::ready;
use std::io;
use std::pin::Pin;

use tokio::sync::Mutex;

use super::{Flaw, Identity, RecordBuilder, decode};
use crate::codec::{Reader, align_up, to_usize};
use crate::error::{CorruptionReason, Error, Result};
use crate::file_name::FileName;
use crate::storage::{Access, AlignedBuf, BLOCK_BYTES, File, SECTOR_BYTES, Storage, open_file, sync_names};

/// Where appends start: behind the block of the head record.
pub const FIRST_RECORD: u64 = BLOCK_BYTES as u64;
/// Zeros are written in steps of this many bytes: large enough for the device's full bandwidth, small enough not to hold
/// up the ring.
const ZEROS_BYTES: usize = 4 << 20;
/// Records are read in steps of this many bytes, one ahead.
const READ_BYTES: usize = 1 << 20;

/// An open file of records, at its end.
pub struct RecordFile<F: File> {
    file: F,
    label: String,
    identity: Identity,
    /// Length of the file, a multiple of the block size.
    capacity: u64,
    /// End of the last record.
    end: Cell<u64>,
    /// Bytes that a sync has covered. `durable <= end <= capacity`, and none of them ever shrinks.
    durable: Cell<u64>,
    /// Checksum of the last record.
    chain: Cell<u32>,
    /// The bytes of the last, partly filled block.
    front: RefCell<Vec<u8>>,
    /// How the last sync ended; locked while one is on its way.
    synced: Mutex<Result<()>>,
}

impl<F: File> RecordFile<F> {
    /// Creates a file: every byte is zero-written; head record, file and directory are synced (P7: before the
    /// first use).
    pub async fn create<S: Storage<File = F>>(
        storage: &S,
        name: FileName,
        identity: Identity,
        capacity: u64,
    ) -> Result<Self> {
        assert!(capacity.is_multiple_of(BLOCK_BYTES as u64) && FIRST_RECORD < capacity);
        let label = storage.label(name);
        let attempt = |what: &str| format!("{what} {label}");
        let file = storage.create(name).await.map_err(|error| Error::io(attempt("create"), error))?;
        file.allocate(capacity).await.map_err(|error| Error::io(attempt("allocate space for"), error))?;
        let mut zeros = AlignedBuf::zeroed(ZEROS_BYTES.min(to_usize(capacity)));
        let mut at = 0;
        while at < capacity {
            zeros.truncate(to_usize(capacity - at));
            let (result, back) = file.write_at(zeros, at).await;
            result.map_err(|error| Error::io(attempt("write zeros to"), error))?;
            zeros = back;
            at += zeros.len() as u64;
        }
        file.sync().await.map_err(|error| Error::io(attempt("sync"), error))?;
        Self::write_head(storage, name, file, identity, capacity, false).await
    }

    /// Gives a file that nothing needs any more a new name and identity, and syncs both. Its bytes are left:
    /// they carry the old number.
    pub async fn recycle<S: Storage<File = F>>(
        storage: &S,
        from: FileName,
        to: FileName,
        identity: Identity,
        capacity: u64,
    ) -> Result<Self> {
        let attempt = |what: &str| format!("{what} {} as {}", storage.label(from), storage.label(to));
        storage.rename(from, to).await.map_err(|error| Error::io(attempt("recycle"), error))?;
        Self::begin_again(storage, to, identity, capacity).await
    }

    /// Writes a new head to a file that holds no record that is needed.
    pub async fn begin_again<S: Storage<File = F>>(
        storage: &S,
        name: FileName,
        identity: Identity,
        capacity: u64,
    ) -> Result<Self> {
        let file = open_file(storage, name, Access::Write).await?;
        Self::write_head(storage, name, file, identity, capacity, true).await
    }

    async fn write_head<S: Storage<File = F>>(
        storage: &S,
        name: FileName,
        file: F,
        identity: Identity,
        capacity: u64,
        used_before: bool,
    ) -> Result<Self> {
        let label = storage.label(name);
        let attempt = |what: &str| format!("{what} {label}");
        let head = super::encode_single(&[u8::from(used_before)], identity, 0);
        file.write_at(head, 0).await.0.map_err(|error| Error::io(attempt("write the head of"), error))?;
        file.sync().await.map_err(|error| Error::io(attempt("sync the head of"), error))?;
        sync_names(storage).await?;
        let file = open_file(storage, name, Access::Overwrite).await?;
        Ok(Self::at_start(file, label, identity, capacity))
    }

    /// An open file that holds its head and nothing else.
    fn at_start(file: F, label: String, identity: Identity, capacity: u64) -> Self {
        Self {
            file,
            label,
            identity,
            capacity,
            end: Cell::new(FIRST_RECORD),
            durable: Cell::new(FIRST_RECORD),
            chain: Cell::new(0),
            front: RefCell::new(Vec::new()),
            synced: Mutex::new(Ok(())),
        }
    }

    /// Length of the file.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// End of the last record that was appended.
    pub fn end(&self) -> u64 {
        self.end.get()
    }

    /// How messages call the file.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Bytes that a sync has covered.
    pub fn durable(&self) -> u64 {
        self.durable.get()
    }

    /// Writes `record`, which was begun at [`Self::end`]. It is durable after the next [`Self::sync`].
    /// Returns the buffer for the next record. One append at a time.
    ///
    /// After an error nothing may be appended: what the file holds is uncertain (S4).
    pub async fn append(&self, record: RecordBuilder) -> Result<AlignedBuf> {
        assert_eq!(record.offset(), self.end.get(), "records are appended in order");
        let end = record.end();
        assert!(end <= self.capacity, "the owner reserved the space");
        let (buffer, at, crc) =
            record.finish(&self.front.borrow(), self.identity, self.chain.get(), self.durable.get());
        let length = buffer.len();
        let (result, buffer) = self.file.write_at(buffer, at).await;
        result.map_err(|error| {
            Error::io(format!("write {length} bytes at offset {at} of {}", self.label), error)
        })?;
        let last_block = to_usize(end - at) / BLOCK_BYTES * BLOCK_BYTES;
        let mut front = self.front.borrow_mut();
        front.clear();
        front.extend_from_slice(&buffer[last_block..to_usize(end - at)]);
        self.chain.set(crc);
        self.end.set(end);
        Ok(buffer)
    }

    /// Makes every record durable whose append has returned. An append may run meanwhile; a second sync waits for
    /// the first, since the kernel tells only one of them what failed.
    ///
    /// After an error nothing may be appended, and every later sync fails, too (S4).
    pub async fn sync(&self) -> Result<()> {
        let mut synced = self.synced.lock().await;
        synced.clone()?;
        let end = self.end.get();
        if self.durable.get() < end {
            let result = self.file.sync().await;
            *synced =
                result.map_err(|error| Error::io(format!("sync {} up to offset {end}", self.label), error));
            synced.clone()?;
            self.durable.set(end);
        }
        Ok(())
    }
}

/// What is known of the end of a file without reading it. Its beginning is behind the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Records were durable up to this offset; there may be more.
    AtLeast(u64),
    /// A recovery has fixed the end: what lies behind it was never acknowledged.
    Exactly(u64),
}

impl Default for Extent {
    fn default() -> Self {
        Self::AtLeast(FIRST_RECORD)
    }
}

/// Where the records of a file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// End of the last record that verified.
    pub offset: u64,
    /// Bytes of a torn record behind it: written, never acknowledged, cut.
    pub torn_bytes: u64,
    /// Why the record there does not verify, if there is the beginning of one.
    pub torn_reason: Option<CorruptionReason>,
    /// Whether bytes of an earlier use may be left behind it; else they are zero.
    pub used_before: bool,
}

/// Reads a file of `file_bytes` from its head on, giving each payload and its offset to `visit`, up to the torn
/// end, or to where `extent` says.
///
/// # Errors
/// `Corruption` if the head is missing, if `visit` refuses a payload, or if a record that was durable does not
/// verify, by R2 or by `extent`; `Io` if the file cannot be read.
pub async fn replay<S: Storage>(
    storage: &S,
    file: &S::File,
    label: &str,
    identity: Identity,
    file_bytes: u64,
    extent: Extent,
    mut visit: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<End> {
    let mut window = Window::new(storage, file, label, file_bytes);
    let end = walk(&mut window, identity, extent, &mut visit).await;
    window.close().await;
    end
}

/// The way of [`replay`] through a window.
async fn walk<S: Storage>(
    window: &mut Window<'_, S>,
    identity: Identity,
    extent: Extent,
    visit: &mut impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<End> {
    let (label, file_bytes) = (window.label, window.file_bytes);
    let head = window.bytes(0, BLOCK_BYTES).await?;
    let used_before = super::decode_single(head, identity, 0)
        .and_then(|payload| Ok(Reader::new(payload).u8()? != 0))
        .map_err(|reason| Error::corruption(label, 0, format_args!("{reason} (the head of the file)")))?;
    let mut offset = FIRST_RECORD;
    let mut chain = 0;
    loop {
        if extent == Extent::Exactly(offset) {
            return Ok(End { offset, torn_bytes: 0, torn_reason: None, used_before });
        }
        let flaw = match window.record(identity, offset).await? {
            Ok(record) if record.chain == chain => {
                chain = record.crc;
                let bytes = record.bytes as u64;
                visit(offset, record.payload)?;
                offset += bytes;
                continue;
            }
            Ok(record) => Flaw::Damaged {
                reason: CorruptionReason("the record does not follow the one before it"),
                bytes: record.bytes,
            },
            Err(flaw) => flaw,
        };
        let (reason, claimed) = match flaw {
            Flaw::Absent(reason) => (reason, 0),
            Flaw::Damaged { reason, bytes } => (reason, bytes),
            Flaw::Incomplete { bytes } => {
                (CorruptionReason("the record runs past the end of the file"), bytes)
            }
        };
        let (Extent::AtLeast(durable) | Extent::Exactly(durable)) = extent;
        if offset < durable {
            let message = format_args!("{reason}, and the file was durable up to offset {durable}");
            return Err(Error::corruption(label, offset, message));
        }
        let witness = window.last_durable_witness(identity, offset).await?;
        if offset < witness {
            let message = format_args!("{reason}, and a later record says that {witness} bytes were durable");
            return Err(Error::corruption(label, offset, message));
        }
        let torn_bytes = (claimed as u64).min(file_bytes - offset);
        let torn_reason = (0 < torn_bytes).then_some(reason);
        return Ok(End { offset, torn_bytes, torn_reason, used_before });
    }
}

/// The first byte from `offset` on that is not zero, if there is one.
///
/// # Errors
/// `Io`.
pub async fn first_nonzero<S: Storage>(
    storage: &S,
    file: &S::File,
    label: &str,
    file_bytes: u64,
    offset: u64,
) -> Result<Option<u64>> {
    let mut window = Window::new(storage, file, label, file_bytes);
    let found = window.first_nonzero(offset).await;
    window.close().await;
    found
}

/// A part of a file in memory, moved forward in steps. While one is looked at, the next is being read: a window is
/// closed, not dropped, since the buffer of a read belongs to the kernel until it ends.
struct Window<'a, S: Storage> {
    storage: &'a S,
    file: &'a S::File,
    label: &'a str,
    file_bytes: u64,
    buffer: AlignedBuf,
    start: u64,
    ahead: Option<Ahead>,
}

/// The step behind a window.
struct Ahead {
    start: u64,
    read: Pin<Box<dyn Future<Output = (io::Result<usize>, AlignedBuf)>>>,
}

impl<'a, S: Storage> Window<'a, S> {
    fn new(storage: &'a S, file: &'a S::File, label: &'a str, file_bytes: u64) -> Self {
        let buffer = AlignedBuf::with_capacity(0);
        Self { storage, file, label, file_bytes, buffer, start: 0, ahead: None }
    }

    /// `count` bytes at `offset`, fewer only where the file ends.
    async fn bytes(&mut self, offset: u64, count: usize) -> Result<&[u8]> {
        let wanted_end = (offset + count as u64).min(self.file_bytes);
        if offset < self.start || self.end() < wanted_end {
            let start = offset / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
            let kept = if self.start <= start { to_usize(self.end().saturating_sub(start)) } else { 0 };
            let from = self.buffer.len() - kept;
            self.buffer.copy_within(from.., 0);
            self.buffer.truncate(kept);
            self.start = start;
            while self.end() < wanted_end.min(self.file_bytes) {
                self.step().await?;
            }
        }
        let rest = self.buffer.get(to_usize(offset - self.start)..).unwrap_or_default();
        Ok(&rest[..count.min(rest.len())])
    }

    fn end(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    async fn first_nonzero(&mut self, mut offset: u64) -> Result<Option<u64>> {
        loop {
            let bytes = self.bytes(offset, BLOCK_BYTES).await?;
            if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
                return Ok(Some(offset + at as u64));
            }
            if bytes.is_empty() {
                return Ok(None);
            }
            offset += bytes.len() as u64;
        }
    }

    /// Waits for the read on its way, if there is one.
    async fn close(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            let _ = ahead.read.await; // nobody needs its bytes
        }
    }

    /// Makes the window longer, or finds that the file ends here.
    async fn step(&mut self) -> Result<()> {
        let start = self.end();
        if self.ahead.as_ref().is_some_and(|ahead| ahead.start != start) {
            self.close().await;
        }
        let (result, mut read) = match self.ahead.take() {
            Some(ahead) => ahead.read.await,
            None => self.file.read_at(AlignedBuf::zeroed(self.step_bytes(start)), start).await,
        };
        let length = read.len();
        let count = result.map_err(|error| {
            Error::io(format!("read {length} bytes at offset {start} of {}", self.label), error)
        })?;
        self.buffer.extend_from_slice(&read[..count]);
        let next = self.end();
        if count < length {
            self.file_bytes = next;
        } else if next < self.file_bytes {
            // Used again: fresh memory for each step would cost as much as the read.
            read.resize(self.step_bytes(next));
            let file = self.file.clone();
            let mut read = Box::pin(async move { file.read_at(read, next).await });
            let read: Pin<Box<dyn Future<Output = _>>> = tokio::select! {
                biased;
                done = &mut read => Box::pin(ready(done)),
                // Only now the kernel gets it.
                () = self.storage.pause() => read,
            };
            self.ahead = Some(Ahead { start: next, read });
        }
        Ok(())
    }

    /// Bytes of the step at `start`.
    fn step_bytes(&self, start: u64) -> usize {
        let rest = align_up(self.file_bytes.saturating_sub(start), BLOCK_BYTES as u64);
        READ_BYTES.min(to_usize(rest))
    }

    /// The record at `offset`.
    async fn record(
        &mut self,
        identity: Identity,
        offset: u64,
    ) -> Result<std::result::Result<super::Record<'_>, Flaw>> {
        let mut needed = SECTOR_BYTES;
        if let Err(Flaw::Incomplete { bytes }) = decode(self.bytes(offset, needed).await?, identity, offset) {
            // The length comes from a header that is not verified yet: it may not reach past the file.
            if offset + bytes as u64 <= self.file_bytes {
                needed = bytes;
            }
        }
        Ok(decode(self.bytes(offset, needed).await?, identity, offset))
    }

    /// The furthest offset that a record behind `from` says was durable; 0 if there is no such record. The nearest
    /// records may have been written before a sync covered the one at `from`, so it is looked for up to the end.
    async fn last_durable_witness(&mut self, identity: Identity, from: u64) -> Result<u64> {
        let mut witness = 0;
        let mut offset = from + SECTOR_BYTES as u64;
        while offset < self.file_bytes {
            if let Ok(record) = self.record(identity, offset).await? {
                witness = witness.max(record.durable);
            }
            offset += SECTOR_BYTES as u64;
        }
        Ok(witness)
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::key::FileNumber;
    use crate::record::tests::IDENTITY;
    use crate::storage::sim::{Failure, Fate, Fault, SimFile, SimStorage};

    const NAME: FileName = FileName::Wal(FileNumber(7));
    const CAPACITY: u64 = 1 << 16;

    async fn append(file: &RecordFile<SimFile>, payload: &[u8]) {
        let mut record = RecordBuilder::new(AlignedBuf::with_capacity(0), file.end());
        record.extend_from_slice(payload);
        file.append(record).await.unwrap();
    }

    async fn read(storage: &SimStorage) -> Result<(Vec<Vec<u8>>, End)> {
        read_bytes(storage, CAPACITY).await
    }

    async fn read_bytes(storage: &SimStorage, file_bytes: u64) -> Result<(Vec<Vec<u8>>, End)> {
        let file = storage.open(NAME, Access::Read).await.unwrap();
        let mut payloads = Vec::new();
        let end = replay(storage, &file, "w", IDENTITY, file_bytes, Extent::default(), |_, payload| {
            payloads.push(payload.to_vec());
            Ok(())
        })
        .await?;
        Ok((payloads, end))
    }

    /// Payloads of many lengths: records that share a block, fill one, and span several.
    fn payloads() -> Vec<Vec<u8>> {
        [1, 400, 456, 457, 3_000, 9_000, 5, 4_040]
            .iter()
            .map(|&n: &usize| vec![n.to_le_bytes()[0]; n])
            .collect()
    }

    #[test]
    fn r1_every_synced_record_survives_every_crash_of_the_next_append() {
        block_on(async {
            for seed in 0..50 {
                let storage = SimStorage::new(seed);
                let file = RecordFile::create(&storage, NAME, IDENTITY, CAPACITY).await.unwrap();
                for (index, payload) in payloads().iter().enumerate() {
                    append(&file, payload).await;
                    for fate in [Fate::Lost, Fate::Random, Fate::Kept] {
                        let (found, end) = read(&storage.crash(fate)).await.unwrap();
                        assert!(found.len() == index || found.len() == index + 1, "seed {seed}");
                        assert_eq!(found[..], payloads()[..found.len()]);
                        assert!(end.offset <= file.end());
                    }
                    file.sync().await.unwrap();
                    assert_eq!(read(&storage.crash(Fate::Lost)).await.unwrap().0.len(), index + 1);
                }
            }
        });
    }

    #[test]
    fn r2_damage_before_a_durable_record_is_refused_and_a_torn_end_is_cut() {
        block_on(async {
            let storage = SimStorage::new(1);
            let file = RecordFile::create(&storage, NAME, IDENTITY, CAPACITY).await.unwrap();
            for payload in [b"one", b"two"] {
                append(&file, payload).await;
                file.sync().await.unwrap();
            }
            storage.corrupt(NAME, FIRST_RECORD + 60, 1);
            let error = read(&storage).await.unwrap_err();
            assert!(error.to_string().starts_with("w is damaged at offset 4096"), "{error}");
            storage.corrupt(NAME, FIRST_RECORD + 60, 1);

            storage.corrupt(NAME, FIRST_RECORD + 512 + 60, 1);
            let (found, end) = read(&storage).await.unwrap();
            assert_eq!((found.len(), end.offset, end.torn_bytes), (1, FIRST_RECORD + 512, 512));
            assert!(end.torn_reason.is_some());

            storage.corrupt(NAME, 100, 1);
            assert!(read(&storage).await.is_err(), "the head was synced before the first use");
        });
    }

    #[test]
    fn records_are_read_across_steps_and_damage_is_found_steps_behind() {
        block_on(async {
            let storage = SimStorage::new(1);
            let capacity = 12 * READ_BYTES as u64;
            let file = RecordFile::create(&storage, NAME, IDENTITY, capacity).await.unwrap();
            let payloads: Vec<_> =
                [10, READ_BYTES - 4_000, 2_000, 2 * READ_BYTES + 5, READ_BYTES, 700, 3 * READ_BYTES]
                    .iter()
                    .map(|&n| (0..n).map(|at| (at % 251) as u8).collect::<Vec<u8>>())
                    .collect();
            let mut offsets = Vec::new();
            for payload in &payloads {
                offsets.push(file.end());
                append(&file, payload).await;
            }
            let (found, end) = read_bytes(&storage, capacity).await.unwrap();
            assert!(found == payloads && end.offset == file.end() && end.torn_bytes == 0);

            file.sync().await.unwrap();
            append(&file, b"witness").await;
            let witness = format!("a later record says that {} bytes were durable", file.durable());
            for offset in offsets {
                // In the payload, then in the length, which says nearly 4 GiB then.
                for at in [offset + 60, offset + 11] {
                    storage.corrupt(NAME, at, 0x80);
                    let error = read_bytes(&storage, capacity).await.unwrap_err().to_string();
                    assert!(error.starts_with(&format!("w is damaged at offset {offset}:")), "{error}");
                    assert!(error.contains(&witness), "{error}");
                    storage.corrupt(NAME, at, 0x80);
                }
            }
            let error =
                read_bytes(&storage, capacity + 5 * READ_BYTES as u64).await.map(|(found, _)| found.len());
            assert_eq!(
                error.unwrap(),
                payloads.len() + 1,
                "a file that is shorter than it should be is read to its end"
            );
        });
    }

    #[test]
    fn s4_a_failed_sync_fails_all_who_sync_meanwhile_or_later() {
        block_on(async {
            for seed in 0..20 {
                let storage = SimStorage::new(seed);
                let file = RecordFile::create(&storage, NAME, IDENTITY, CAPACITY).await.unwrap();
                append(&file, b"one").await;
                let fault = Fault {
                    operation: storage.operations() + 1,
                    failure: Failure::Errno(5),
                    for_ever: false,
                };
                storage.set_fault(Some(fault));
                let (one, two) = tokio::join!(file.sync(), file.sync());
                assert!(one.is_err() && two.is_err() && file.sync().await.is_err(), "seed {seed}");
                assert_eq!(file.durable(), FIRST_RECORD);
            }
        });
    }

    #[test]
    fn r2_damage_is_refused_if_only_the_last_record_was_appended_after_the_sync() {
        block_on(async {
            let storage = SimStorage::new(1);
            let file = RecordFile::create(&storage, NAME, IDENTITY, CAPACITY).await.unwrap();
            append(&file, b"synced").await;
            let meanwhile = async {
                for _ in 0..3 {
                    append(&file, &[1; 12_000]).await;
                }
            };
            let (synced, ()) = tokio::join!(file.sync(), meanwhile);
            synced.unwrap();
            append(&file, b"last").await;
            storage.corrupt(NAME, FIRST_RECORD + 60, 1);
            let error = read(&storage).await.unwrap_err();
            assert!(
                error.to_string().contains("a later record says that 4608 bytes were durable"),
                "{error}"
            );
        });
    }

    #[test]
    fn a_recycled_file_shows_nothing_of_its_past() {
        block_on(async {
            let storage = SimStorage::new(1);
            let old = FileName::Wal(FileNumber(1));
            let identity = Identity { file: FileNumber(1), ..IDENTITY };
            let file = RecordFile::create(&storage, old, identity, CAPACITY).await.unwrap();
            for payload in payloads() {
                append(&file, &payload).await;
            }
            let file = RecordFile::recycle(&storage, old, NAME, IDENTITY, CAPACITY).await.unwrap();
            assert_eq!(read(&storage).await.unwrap().0.len(), 0);
            append(&file, b"new").await;
            let (found, end) = read(&storage).await.unwrap();
            assert_eq!((found.len(), end.torn_bytes), (1, 0));
        });
    }
}
