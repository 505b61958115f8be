//! Reads a file of records from its marks to its end, and decides whether everything that was written is still there.
//!
//! Owns: the decision between a torn end and damage (R2, E1 to E4), and reading ahead. The caller of [`replay`] decides
//! what a payload means.
//!
//! The records are read one after the other until one does not verify. Then:
//!
//! 1. If the newest mark, or what the caller knows of the end, says that the file was durable beyond this offset, the
//!    record is damaged or gone, and the file is refused.
//! 2. Otherwise every sector up to the limit of the newest mark is searched (up to the end of the file if a slot is
//!    bad, E3). A record found there that says that the file was durable beyond this offset is a witness, and the file
//!    is refused (R2).
//! 3. Otherwise this offset is where a crash tore the file: the end. The bytes there were never acknowledged, or were
//!    acknowledged so recently that neither a mark nor a record says so.
//!
//! A record whose checksum matches and whose version is unknown makes the replay refuse the file, wherever that record
//! is.
//!
//! If the caller knows the end exactly, the records end there, unless a mark says more. In that case one of the two is
//! an old copy, and the file is refused.
//!
//! A block that the device cannot read counts as a block that does not verify, and the same three steps decide. A large
//! read that fails for that reason is repeated block by block.

use std::future::ready;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;

use super::file::FIRST_RECORD;
use super::mark::Mark;
use super::{Flaw, decode};
use crate::codec::{align_up, to_usize};
use crate::error::{CorruptionReason, Error, Result, clone_io, is_unreadable};
use crate::identity::Identity;
use crate::storage::{AlignedBuf, BLOCK_BYTES, File, SECTOR_BYTES, Storage};

/// Records are read in steps of this many bytes; one step is read ahead.
const READ_BYTES: usize = 1 << 20;

/// Which file to replay, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Extent<'a> {
    /// The name of the file as messages show it.
    pub label: &'a str,
    /// The identity that its records must have.
    pub identity: Identity,
    /// The length of the file.
    pub file_bytes: u64,
    /// What is known of the end from elsewhere.
    pub known_end: KnownEnd,
}

/// What is known of the end of a file of records without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownEnd {
    /// Records were durable up to this offset; there may be more.
    AtLeast(u64),
    /// A recovery or a clean stop fixed the end here. Whatever lies after this offset is ignored.
    Exactly(u64),
}

impl KnownEnd {
    /// Bytes that are known to be durable.
    pub fn durable(self) -> u64 {
        let (Self::AtLeast(offset) | Self::Exactly(offset)) = self;
        offset
    }
}

impl Default for KnownEnd {
    fn default() -> Self {
        Self::AtLeast(FIRST_RECORD)
    }
}

/// Where the records of a file end.
#[derive(Debug, Clone)]
pub struct End {
    /// End of the last record that verified.
    pub offset: u64,
    /// Bytes of the torn record at that offset, which is cut; 0 if there is none.
    pub torn_bytes: u64,
    /// Why that record does not verify; `None` if no record begins there.
    pub torn_reason: Option<CorruptionReason>,
    /// The error for a block at or after the end that the system could not read.
    pub unread: Option<Error>,
    /// Bytes that were durable according to the newest mark or to what the caller knows of the end.
    pub witnessed: u64,
    /// The newest mark.
    pub mark: Mark,
    /// What is wrong with the other slot, if that slot is bad.
    pub bad_slot: Option<CorruptionReason>,
}

/// Reads the marks and then the records of a file, and gives each payload and its offset to `visit`. Ends at the torn
/// end, where `visit` breaks, or at the end that is known exactly.
///
/// # Errors
/// `Corruption` if a mark is gone or both marks are bad, if the file is shorter than a mark says, if `visit` refuses a
/// payload, or if a record that was durable does not verify; `Configuration` if a later version wrote the file; `Io` if
/// bytes that were durable cannot be read.
///
/// Cancel safety: not safe.
pub async fn replay<S: Storage>(
    storage: &S,
    file: &S::File,
    extent: Extent<'_>,
    mut visit: impl AsyncFnMut(u64, &[u8]) -> Result<ControlFlow<()>>,
) -> Result<End> {
    let mut window = Window::new(storage, file, extent.label, extent.file_bytes);
    let end = walk(&mut window, extent, &mut visit).await;
    window.close().await;
    end
}

/// [`replay`], reading through a window.
async fn walk<S: Storage>(
    window: &mut Window<'_, S>,
    extent: Extent<'_>,
    visit: &mut impl AsyncFnMut(u64, &[u8]) -> Result<ControlFlow<()>>,
) -> Result<End> {
    let Extent { label, identity, known_end, .. } = extent;
    let (mark, bad_slot) = marks(window, extent).await?;
    if bad_slot.is_none() {
        window.file_bytes = window.file_bytes.min(mark.limit); // E2
    }
    let witnessed = mark.durable.max(known_end.durable());
    let end =
        |offset| End { offset, torn_bytes: 0, torn_reason: None, unread: None, witnessed, mark, bad_slot };
    let mut offset = FIRST_RECORD;
    let mut chain = 0;
    let (flaw, unread) = loop {
        if known_end == KnownEnd::Exactly(offset) {
            check_exact_end(label, offset, &mark)?;
            return Ok(end(offset));
        }
        match window.record(identity, offset).await? {
            Ok(record) if record.chain == chain => {
                chain = record.crc;
                let bytes = record.bytes as u64;
                let flow = visit(offset, record.payload).await?;
                offset += bytes;
                if flow.is_break() {
                    return Ok(end(offset));
                }
            }
            Ok(record) => {
                let reason = CorruptionReason::Damaged("the record does not follow the one before it");
                break (Flaw::Damaged { reason, bytes: record.bytes }, None);
            }
            Err(flaw) => {
                let bytes = match flaw {
                    Flaw::Damaged { bytes, .. } => bytes,
                    _ => SECTOR_BYTES,
                };
                break (flaw, window.unread(offset, bytes));
            }
        }
    };
    let (reason, claimed) =
        claim(flaw, unread.is_some()).map_err(|later| Error::undecodable(label, offset, later))?;
    let refused = |by: std::fmt::Arguments<'_>| match &unread {
        Some(error) => error.clone(),
        None => Error::corruption(label, offset, format_args!("{reason}, and {by}")),
    };
    if offset < witnessed {
        return Err(refused(format_args!("the file was durable up to offset {witnessed}"))); // E1
    }
    let witness = window.last_durable_witness(identity, offset).await?;
    if offset < witness {
        return Err(refused(format_args!("a later record says that {witness} bytes were durable"))); // R2
    }
    let torn_bytes = (claimed as u64).min(extent.file_bytes.saturating_sub(offset));
    let torn_reason = (0 < torn_bytes).then_some(reason);
    let unread = unread.or_else(|| window.unread(offset, usize::MAX));
    Ok(End { torn_bytes, torn_reason, unread, ..end(offset) })
}

/// Refuses an end that the manifest knows exactly and that a mark contradicts (E1).
fn check_exact_end(label: &str, end: u64, mark: &Mark) -> Result<()> {
    if mark.durable <= end {
        return Ok(());
    }
    let reason = format_args!(
        "the manifest says that the records end here, and a mark says that {} bytes are durable: one of the two is an \
         old copy",
        mark.durable
    );
    Err(Error::corruption(label, end, reason))
}

/// What is wrong where no record verifies, and how many bytes it claims to take.
///
/// # Errors
/// A record of a later version.
fn claim(flaw: Flaw, unreadable: bool) -> std::result::Result<(CorruptionReason, usize), CorruptionReason> {
    Ok(match flaw {
        Flaw::LaterVersion(reason) => return Err(reason),
        Flaw::Absent(_) if unreadable => (CorruptionReason::Damaged("unreadable block"), SECTOR_BYTES),
        Flaw::Absent(reason) => (reason, 0),
        Flaw::Damaged { reason, bytes } => (reason, bytes),
        Flaw::Incomplete { bytes } => {
            (CorruptionReason::Damaged("the record runs past the end of the file"), bytes)
        }
    })
}

/// The newest mark of a file, whatever state its records are in.
///
/// # Errors
/// As [`replay`], as far as the marks are concerned.
///
/// Cancel safety: not safe.
pub async fn newest_mark<S: Storage>(storage: &S, file: &S::File, extent: Extent<'_>) -> Result<Mark> {
    let mut window = Window::new(storage, file, extent.label, extent.file_bytes);
    let newest = marks(&mut window, extent).await;
    window.close().await;
    newest.map(|(mark, _)| mark)
}

/// The newest mark, and what is wrong with the other slot if that slot is bad (E3).
async fn marks<S: Storage>(
    window: &mut Window<'_, S>,
    extent: Extent<'_>,
) -> Result<(Mark, Option<CorruptionReason>)> {
    let Extent { label, identity, file_bytes, .. } = extent;
    let slots = to_usize(FIRST_RECORD);
    window.bytes(0, slots).await?;
    for at in (0..FIRST_RECORD).step_by(BLOCK_BYTES) {
        let unread = window.unread(at, BLOCK_BYTES).is_some();
        let slot = window.bytes(at, BLOCK_BYTES).await?;
        // E4: both slots held a mark before anything named the file, and no torn write leaves zeros.
        if !unread && !slot.is_empty() && slot.iter().all(|byte| *byte == 0) {
            return Err(Error::corruption(label, at, "the mark there is gone"));
        }
    }
    let newest = Mark::newest(window.bytes(0, slots).await?, identity);
    let (mark, bad_slot) = newest.map_err(|reason| match (reason, window.unread(0, slots)) {
        (CorruptionReason::Damaged(why), None) => {
            Error::corruption(label, 0, format_args!("{why}, and the other mark is bad as well"))
        }
        (CorruptionReason::Damaged(_), Some(unread)) => unread,
        (later, _) => Error::undecodable(label, 0, later),
    })?;
    if file_bytes < mark.limit {
        let reason = format_args!("the file has {file_bytes} bytes, but it had at least {}", mark.limit);
        return Err(Error::corruption(label, file_bytes, reason)); // E2: the limit never exceeds the allocated length
    }
    Ok((mark, bad_slot))
}

/// The offset of the first byte at or after `offset` that is not zero, if there is one.
///
/// # Errors
/// `Io`.
///
/// Cancel safety: not safe.
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
    match window.unread(offset, usize::MAX) {
        Some(error) => Err(error),
        None => found,
    }
}

/// A part of a file in memory, moved forward in steps. While one step is looked at, the next is being read. So a window
/// is closed, not dropped: the buffer of a running read belongs to the kernel until the read ends.
struct Window<'a, S: Storage> {
    storage: &'a S,
    file: &'a S::File,
    label: &'a str,
    /// Where reading ends: at the end of the file, or at the limit.
    file_bytes: u64,
    buffer: AlignedBuf,
    start: u64,
    ahead: Option<Ahead>,
    /// Offsets of the blocks that could not be read, each with its error. These blocks are zeros in `buffer`.
    unread: Vec<(u64, io::Error)>,
}

/// The read of the step after a window.
struct Ahead {
    start: u64,
    read: Pin<Box<dyn Future<Output = (io::Result<usize>, AlignedBuf)>>>,
}

impl<'a, S: Storage> Window<'a, S> {
    fn new(storage: &'a S, file: &'a S::File, label: &'a str, file_bytes: u64) -> Self {
        let buffer = AlignedBuf::with_capacity(0);
        Self { storage, file, label, file_bytes, buffer, start: 0, ahead: None, unread: Vec::new() }
    }

    /// The `count` bytes at `offset`; fewer only where reading ends.
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
        let end = to_usize(self.end().min(self.file_bytes).saturating_sub(self.start));
        let rest = self.buffer[..end].get(to_usize(offset - self.start)..).unwrap_or_default();
        Ok(&rest[..count.min(rest.len())])
    }

    fn end(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// The error for the first block that could not be read among the blocks of the `count` bytes at `offset`.
    fn unread(&self, offset: u64, count: usize) -> Option<Error> {
        let from = offset / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let end = offset.saturating_add(count as u64);
        let (at, error) = self.unread.iter().find(|(at, _)| (from..end).contains(at))?;
        Some(self.cannot_read(BLOCK_BYTES, *at, clone_io(error)))
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

    /// Waits for the read that is running, if there is one.
    async fn close(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            let _ = ahead.read.await; // nobody needs its bytes
        }
    }

    /// Extends the window by a step, or finds that the file ends here.
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
        let count = match result {
            Ok(count) => count,
            Err(error) if is_unreadable(&error) => return self.step_by_block(start, length).await,
            Err(error) => return Err(self.cannot_read(length, start, error)),
        };
        self.buffer.extend_from_slice(&read[..count]);
        let next = self.end();
        if count < length {
            self.file_bytes = next;
        } else if next < self.file_bytes {
            // The buffer is reused: fresh memory for each step would cost as much as the read.
            read.resize(self.step_bytes(next));
            let file = self.file.clone();
            let mut read = Box::pin(async move { file.read_at(read, next).await });
            let read: Pin<Box<dyn Future<Output = _>>> = tokio::select! {
                biased;
                done = &mut read => Box::pin(ready(done)),
                // The kernel gets the read only during this pause.
                () = self.storage.pause() => read,
            };
            self.ahead = Some(Ahead { start: next, read });
        }
        Ok(())
    }

    /// Reads `length` bytes at `start` again, one block at a time. A block that cannot be read counts as zeros, and is
    /// noted in `unread`.
    async fn step_by_block(&mut self, start: u64, length: usize) -> Result<()> {
        let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
        for at in (start..start + length as u64).step_by(BLOCK_BYTES) {
            let (result, read) = self.file.read_at(block, at).await;
            block = read;
            match result {
                Ok(count) => {
                    self.buffer.extend_from_slice(&block[..count]);
                    if count < BLOCK_BYTES {
                        self.file_bytes = self.end();
                        break;
                    }
                }
                Err(error) if is_unreadable(&error) => {
                    self.unread.push((at, error));
                    self.buffer.resize(self.buffer.len() + BLOCK_BYTES);
                }
                Err(error) => return Err(self.cannot_read(BLOCK_BYTES, at, error)),
            }
        }
        Ok(())
    }

    fn cannot_read(&self, length: usize, at: u64, error: io::Error) -> Error {
        Error::io(format!("read {length} bytes at offset {at} of {}", self.label), error)
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
            // The length comes from a header that is not verified yet, so it counts only if it stays within the file.
            if offset + bytes as u64 <= self.file_bytes {
                needed = bytes;
            }
        }
        Ok(decode(self.bytes(offset, needed).await?, identity, offset))
    }

    /// The furthest offset that a record after `from` says was durable; 0 if there is no such record. The nearest
    /// records may have been written before a sync covered the record at `from`, so the search goes on to the end.
    async fn last_durable_witness(&mut self, identity: Identity, from: u64) -> Result<u64> {
        let mut witness = 0;
        let mut offset = from + SECTOR_BYTES as u64;
        while offset < self.file_bytes {
            match self.record(identity, offset).await? {
                Ok(record) => witness = witness.max(record.durable),
                Err(Flaw::LaterVersion(reason)) => {
                    return Err(Error::undecodable(self.label, offset, reason));
                }
                Err(_) => {}
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
    use crate::error::ErrorKind;
    use crate::record::file::Sizes;
    use crate::record::file::tests::{NAME, append, create, read};
    use crate::record::tests::IDENTITY;
    use crate::storage::sim::SimStorage;

    const SECTOR: u64 = SECTOR_BYTES as u64;

    #[test]
    fn r2_damage_before_a_durable_record_is_refused_and_a_torn_end_is_cut() {
        block_on(async {
            let storage = SimStorage::new(1);
            let file = create(&storage, Sizes::fixed(1 << 16)).await;
            for payload in [b"one", b"two"] {
                append(&file, payload).await;
                file.sync().await.unwrap();
            }
            storage.corrupt(NAME, FIRST_RECORD + 60, 1);
            let error = read(&storage).await.unwrap_err();
            assert!(error.to_string().starts_with("w is damaged at offset 8192"), "{error}");
            storage.corrupt(NAME, FIRST_RECORD + 60, 1);

            storage.corrupt(NAME, FIRST_RECORD + SECTOR + 60, 1);
            let (found, end) = read(&storage).await.unwrap();
            assert_eq!((found.len(), end.offset, end.torn_bytes), (1, FIRST_RECORD + SECTOR, SECTOR));
            assert!(end.torn_reason.is_some());
            storage.corrupt(NAME, FIRST_RECORD + SECTOR + 60, 1);

            file.mark().await.unwrap();
            storage.corrupt(NAME, FIRST_RECORD + SECTOR + 60, 1);
            let error = read(&storage).await.unwrap_err();
            assert!(error.to_string().contains("the file was durable up to offset 9216"), "{error}");
        });
    }

    #[test]
    fn e1_an_end_that_is_known_exactly_is_not_below_what_a_mark_knows() {
        block_on(async {
            let storage = SimStorage::new(1);
            let file = create(&storage, Sizes::fixed(1 << 16)).await;
            append(&file, b"one").await;
            file.sync().await.unwrap();
            let replay_to = async |offset| {
                let opened = storage.open(NAME, crate::storage::Access::Read).await.unwrap();
                let known_end = KnownEnd::Exactly(offset);
                let identity = crate::record::tests::IDENTITY;
                let extent = Extent { label: "w", identity, file_bytes: 1 << 16, known_end };
                replay(&storage, &opened, extent, async |_, _| Ok(ControlFlow::Continue(()))).await
            };
            assert_eq!(replay_to(FIRST_RECORD).await.unwrap().offset, FIRST_RECORD);
            file.mark().await.unwrap();
            let error = replay_to(FIRST_RECORD).await.unwrap_err();
            assert!(
                error.kind() == ErrorKind::Corruption && error.to_string().contains("old copy"),
                "{error}"
            );
            assert_eq!(replay_to(FIRST_RECORD + SECTOR).await.unwrap().offset, FIRST_RECORD + SECTOR);
        });
    }

    #[test]
    fn a_record_that_does_not_follow_the_one_before_it_ends_the_file() {
        block_on(async {
            let storage = SimStorage::new(1);
            let file = create(&storage, Sizes::fixed(1 << 16)).await;
            append(&file, b"one").await;
            append(&file, b"two").await;
            let mut bytes = storage.bytes(NAME);
            let at = FIRST_RECORD + SECTOR;
            let second = &mut bytes[to_usize(at)..][..SECTOR_BYTES];
            crate::record::seal(second, 3, IDENTITY, at, 7, FIRST_RECORD, crate::codec::crc32);
            storage.overwrite(NAME, &bytes);
            let (found, end) = read(&storage).await.unwrap();
            assert_eq!((found.len(), end.offset, end.torn_bytes), (1, at, SECTOR));
        });
    }

    #[test]
    fn e4_a_slot_of_zeros_is_refused() {
        block_on(async {
            let storage = SimStorage::new(1);
            create(&storage, Sizes::fixed(1 << 16)).await;
            let whole = storage.bytes(NAME);
            for slot in 0..2 {
                let mut zeroed = whole.clone();
                zeroed[slot * BLOCK_BYTES..][..BLOCK_BYTES].fill(0);
                storage.overwrite(NAME, &zeroed);
                let message =
                    format!("w is damaged at offset {}: the mark there is gone", slot * BLOCK_BYTES);
                assert_eq!(read(&storage).await.unwrap_err().to_string(), message);
            }
        });
    }

    #[test]
    fn e3_one_bad_slot_is_reported_and_the_file_is_searched_and_two_are_refused() {
        block_on(async {
            let storage = SimStorage::new(1);
            let sizes = Sizes { capacity: 1 << 18, step: 8_192 };
            let file = create(&storage, sizes).await;
            file.grow(&storage, 1 << 18).await.unwrap();
            let older = |storage: &SimStorage| {
                let mark = |slot: u64| {
                    let block = &storage.bytes(NAME)[to_usize(slot) * BLOCK_BYTES..][..BLOCK_BYTES];
                    Mark::decode(block, IDENTITY, slot).unwrap()
                };
                if mark(0).number < mark(1).number { mark(0) } else { mark(1) }
            };
            let mut count = 0;
            while file.end() <= older(&storage).limit || older(&storage).number < 2 {
                append(&file, &[1; 5_000]).await;
                file.sync().await.unwrap();
                count += 1;
            }
            let (found, end) = read(&storage).await.unwrap();
            assert!(end.mark.limit < 1 << 18 && found.len() == count);
            let newest = end.mark.offset();
            storage.corrupt(NAME, newest + 60, 1);
            let (found, end) = read(&storage).await.unwrap();
            assert!(found.len() == count && end.bad_slot.is_some(), "more than the older mark allows");
            storage.corrupt(NAME, (newest + BLOCK_BYTES as u64) % FIRST_RECORD + 60, 1);
            let error = read(&storage).await.unwrap_err();
            assert!(
                error.kind() == ErrorKind::Corruption && error.to_string().contains("other mark"),
                "{error}"
            );
        });
    }

    #[test]
    fn records_are_read_across_steps_and_damage_is_found_steps_later() {
        block_on(async {
            let storage = SimStorage::new(1);
            let capacity = 12 * READ_BYTES as u64;
            let file = create(&storage, Sizes::fixed(capacity)).await;
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
            let (found, end) = read(&storage).await.unwrap();
            assert!(found == payloads && end.offset == file.end() && end.torn_bytes == 0);

            file.sync().await.unwrap();
            append(&file, b"witness").await;
            let witness = format!("a later record says that {} bytes were durable", file.durable());
            for offset in offsets {
                // The payload, then the length, which then says nearly 4 GiB.
                for at in [offset + 60, offset + 11] {
                    storage.corrupt(NAME, at, 0x80);
                    let error = read(&storage).await.unwrap_err().to_string();
                    assert!(error.starts_with(&format!("w is damaged at offset {offset}:")), "{error}");
                    assert!(error.contains(&witness), "{error}");
                    storage.corrupt(NAME, at, 0x80);
                }
            }
        });
    }

    #[test]
    fn r2_damage_is_refused_if_only_the_last_record_was_appended_after_the_sync() {
        block_on(async {
            let storage = SimStorage::new(1);
            let file = create(&storage, Sizes::fixed(1 << 16)).await;
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
                error.to_string().contains("a later record says that 8704 bytes were durable"),
                "{error}"
            );
        });
    }

    #[test]
    fn a_start_reads_the_records_and_a_few_steps() {
        block_on(async {
            let storage = SimStorage::new(1);
            let step = 1 << 20;
            let file = create(&storage, Sizes { capacity: 64 << 20, step }).await;
            file.grow(&storage, 64 << 20).await.unwrap();
            for _ in 0..10 {
                append(&file, &vec![1; 1 << 20]).await;
                file.sync().await.unwrap();
            }
            let before = storage.operations();
            assert_eq!(read(&storage).await.unwrap().0.len(), 10);
            let reads = storage.operations() - before - 1;
            assert!(reads < 10 + 8, "{reads} reads of 1 MiB for 10 MiB of 64");
        });
    }

    #[test]
    fn an_unreadable_block_counts_only_where_it_may_hold_what_was_durable() {
        block_on(async {
            for marked in [false, true] {
                let storage = SimStorage::new(1);
                let file = create(&storage, Sizes::fixed(1 << 16)).await;
                for _ in 0..3 {
                    append(&file, &[7; 4_000]).await; // one block each
                    file.sync().await.unwrap();
                }
                if marked {
                    file.mark().await.unwrap();
                }
                let try_block = async |block: u64| {
                    let bad = storage.crash(crate::storage::sim::Fate::Kept);
                    bad.make_unreadable(NAME, block);
                    read(&bad).await
                };
                // Without a mark that covers the last record, that record may just as well be torn.
                match try_block(4).await {
                    Err(error) => {
                        assert!(marked, "{error}");
                        let message =
                            "cannot read 4096 bytes at offset 16384 of w: Input/output error (os error 5)";
                        assert_eq!(error.to_string(), message);
                    }
                    Ok((found, end)) => {
                        assert!(!marked && found.len() == 2 && end.unread.is_some() && 0 < end.torn_bytes);
                    }
                }
                let error = try_block(3).await.unwrap_err();
                assert!(error.to_string().contains("No data available"), "a later record covers it: {error}");
                let (found, end) = try_block(9).await.unwrap();
                assert!(found.len() == 3 && end.torn_bytes == 0 && end.unread.is_some(), "it was empty");
                let (found, end) = try_block(0).await.unwrap();
                assert!(found.len() == 3 && end.bad_slot.is_some(), "the other mark is used");
            }
        });
    }
}
