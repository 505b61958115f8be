//! The durable list of what a shard consists of: its SSTs by level, its WALs, and what has been flushed.
//!
//! Owns: the log of version edits, the switch of `CURRENT`, and the order in which both become durable.
//!
//! ```text
//!   CURRENT ──names──► MANIFEST-n: marks │ snapshot │ edit │ edit │ …       (records, see `crate::record`)
//! ```
//!
//! A file is made and synced, its name is synced, and only then does an edit name it. A file is released only after the
//! edit that no longer names it was synced (P7). Every open writes a fresh manifest, so no edit is ever appended after
//! an edit whose durability is in doubt.
//!
//! What a crash may leave, and why it is survived:
//! - a torn edit: it was not synced, so nothing was released because of it. It is cut;
//! - an edit, or a switch of `CURRENT`, that a killed process wrote and did not sync: the next open reads it, and
//!   removes nothing before a manifest of its own is in force (on a full disk: before what it read is durable);
//! - files that no manifest names (made before their edit, or released after it): the next open removes them;
//! - `CURRENT.tmp`, or a manifest that `CURRENT` does not name: an open, or the replacement of a full manifest, did not
//!   finish. The next open removes them;
//! - the last edit, damaged later: it is cut like a torn edit. If files are gone that only the state before this edit
//!   names, the open stops with the name of the first of them. Otherwise that state holds the same entries.
//!
//! Damage before the last edit is refused, and so is the loss of earlier edits together with the last edit: each edit
//! carries a mark that says how far the edits before it were durable ([`crate::record::mark`]).
//!
//! V1  What `CURRENT` names is complete: the manifest with its marks and its snapshot, and the directory, were synced
//!     before.
//! V2  Appending never needs space: the file was filled with zeros at its full length. A full manifest is replaced by a
//!     fresh one. If the replacement fails for want of space, the old manifest stays in force, unharmed.
//! V3  After a failed append, sync or switch nothing more is appended. The error is `Poisoned` (P6).

pub mod damage;
pub mod edit;
pub mod version;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;

pub use edit::{VersionEdit, WalMeta};
pub use version::{LEVELS, Version};

use crate::codec::{Reader, align_up};
use crate::error::{CorruptionReason, Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Owner};
use crate::key::{FileNumber, SeqNo};
use crate::record::file::{FIRST_RECORD, RecordFile, Sizes};
use crate::record::replay::{End, Extent, KnownEnd, replay};
use crate::record::{RecordBuilder, decode_single, encode_single, record_bytes};
use crate::storage::{
    Access, AlignedBuf, BLOCK_BYTES, File, Storage, list_files, open_file, read_file, sync_names,
    write_file_atomically,
};

/// A manifest is at least this many times as long as its snapshot, so that rewriting it stays a small part of the work.
const SNAPSHOT_RATIO: u64 = 4;

/// What a shard consists of, according to its manifest.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The SSTs.
    pub version: Rc<Version>,
    /// The WALs that recovery replays.
    pub wals: BTreeMap<FileNumber, WalMeta>,
    /// WALs that are kept although all their writes are in SSTs, with their least lengths. Nothing keeps one yet.
    pub kept_wals: BTreeMap<FileNumber, u64>,
    /// The WAL that a clean stop left empty, if the last stop was clean. An empty WAL after any other stop may still be
    /// written to: the kernel can finish a write of a killed process after its successor has started.
    pub clean_wal: Option<FileNumber>,
    /// Every write up to this one is in an SST.
    pub flushed: SeqNo,
    /// Above every file number in use.
    pub next_file: FileNumber,
}

impl State {
    /// The state after an edit.
    pub fn apply(&self, edit: &VersionEdit) -> Result<Self, CorruptionReason> {
        let mut next = self.clone();
        for number in &edit.remove_wals {
            if next.wals.remove(number).is_none() && next.kept_wals.remove(number).is_none() {
                return Err(CorruptionReason::Damaged("an edit removes a WAL that is not there"));
            }
        }
        for (number, wal) in &edit.add_wals {
            next.wals.insert(*number, *wal);
        }
        for (number, durable) in &edit.durable_wals {
            let missing = CorruptionReason::Damaged("an edit names a WAL that is not there");
            let wal = next.wals.get_mut(number).ok_or(missing)?;
            if let KnownEnd::AtLeast(end) = &mut wal.end {
                *end = (*end).max(*durable);
            }
        }
        for (number, bytes) in &edit.keep_wals {
            next.wals.remove(number);
            next.kept_wals.insert(*number, *bytes);
        }
        let same = edit.add_ssts.is_empty()
            && edit.remove_ssts.is_empty()
            && edit.add_damage.is_empty()
            && edit.remove_damage.is_empty();
        if !same {
            next.version = Rc::new(self.version.apply(edit)?);
        }
        next.clean_wal = edit.clean_wal;
        next.flushed = next.flushed.max(edit.flushed.unwrap_or_default());
        next.next_file = next.next_file.max(edit.next_file.unwrap_or_default());
        Ok(next)
    }

    /// The same sorted files, without WALs. Writes that are only in WALs are not a part of it.
    pub fn without_wals(&self) -> Self {
        Self { wals: BTreeMap::new(), kept_wals: BTreeMap::new(), clean_wal: None, ..self.clone() }
    }

    /// The edit that makes this state from an empty one.
    pub fn snapshot(&self) -> VersionEdit {
        let mut edit = VersionEdit {
            next_file: Some(self.next_file),
            flushed: Some(self.flushed),
            add_wals: self.wals.iter().map(|(&number, &wal)| (number, wal)).collect(),
            keep_wals: self.kept_wals.iter().map(|(&number, &bytes)| (number, bytes)).collect(),
            clean_wal: self.clean_wal,
            add_damage: self.version.damage().to_vec(),
            ..VersionEdit::default()
        };
        for (level, files) in self.version.levels() {
            edit.add_ssts.extend(files.iter().map(|file| (level, SharedMeta::clone(file))));
        }
        edit
    }

    /// What is known of the end of a WAL. A WAL that a clean stop left empty is not searched for groups.
    pub fn known_end(&self, number: FileNumber) -> KnownEnd {
        match self.wals.get(&number) {
            Some(_) if self.clean_wal == Some(number) => KnownEnd::Exactly(FIRST_RECORD),
            Some(wal) => wal.end,
            None => KnownEnd::default(),
        }
    }

    /// Every WAL that has to be there, with its least length.
    pub fn all_wals(&self) -> impl Iterator<Item = (FileNumber, u64)> {
        let kept = self.kept_wals.iter().map(|(&number, &bytes)| (number, bytes));
        self.wals.iter().map(|(&number, wal)| (number, wal.bytes)).chain(kept)
    }

    /// Whether the state needs this file.
    pub fn names(&self, name: FileName) -> bool {
        match name {
            FileName::Wal(number) => self.wals.contains_key(&number) || self.kept_wals.contains_key(&number),
            FileName::Sst(number) => {
                self.version.files().any(|file| file.number == number)
                    || self.version.damage().iter().any(|damage| damage.file == number)
            }
            _ => false,
        }
    }
}

/// A description of an SST that several versions share.
pub type SharedMeta = Rc<crate::sst::SstMeta>;

/// What [`load`] read.
#[derive(Debug)]
pub struct Loaded {
    /// What the manifest says.
    pub state: State,
    /// Its number.
    pub number: FileNumber,
    /// Where its edits end.
    pub end: End,
}

/// As [`load`], for a shard that was in use.
///
/// # Errors
/// As [`load`]; `Corruption` if there is no `CURRENT`.
pub async fn load_in_use<S: Storage>(storage: &S, owner: Owner) -> Result<Loaded> {
    load(storage, owner).await?.ok_or_else(|| {
        let label = storage.label(FileName::Current);
        Error::new(ErrorKind::Corruption, format!("{label} is missing, but the shard was in use"))
    })
}

/// Reads `CURRENT` and the manifest that it names; `None` if there is no `CURRENT`.
///
/// # Errors
/// `Corruption` if `CURRENT`, the manifest or an edit does not verify, or if the manifest is missing; `Configuration`
/// if a later version wrote one of them; `Io`.
pub async fn load<S: Storage>(storage: &S, owner: Owner) -> Result<Option<Loaded>> {
    let files = list_files(storage)?;
    if !files.contains_key(&FileName::Current) {
        return Ok(None);
    }
    let number = current(storage, owner).await?;
    let name = FileName::Manifest(number);
    let label = storage.label(name);
    let Some(bytes) = files.get(&name) else {
        let message = format!("{label} is missing, but {} names it", storage.label(FileName::Current));
        return Err(Error::new(ErrorKind::Corruption, message));
    };
    let mut edits = Edits::default();
    let end = read(storage, owner, (number, *bytes), &mut edits).await?;
    Ok(Some(Loaded { state: edits.state, number, end }))
}

/// The number of the manifest that `CURRENT` names.
///
/// # Errors
/// `Corruption` if `CURRENT` does not verify; `Configuration` if a later version wrote it; `Io`.
pub async fn current<S: Storage>(storage: &S, owner: Owner) -> Result<FileNumber> {
    let current = read_file(storage, FileName::Current, 2 * BLOCK_BYTES).await?;
    decode_single(&current, owner.identity(FileKind::Current, FileNumber(0)), 0)
        .and_then(|payload| Reader::new(payload).u64())
        .map(FileNumber)
        .map_err(|reason| Error::undecodable(&storage.label(FileName::Current), 0, reason))
}

/// The edits of a manifest.
#[derive(Debug, Default)]
pub struct Edits {
    /// The state after the last of them.
    pub state: State,
    /// Their number, with the snapshot.
    pub count: u64,
}

/// Reads the edits of the manifest with this number and length. After an error, `edits` are those before it.
///
/// # Errors
/// `Corruption` if an edit does not verify; `Configuration` if a later version wrote one of them; `Io`.
pub async fn read<S: Storage>(
    storage: &S,
    owner: Owner,
    (number, file_bytes): (FileNumber, u64),
    edits: &mut Edits,
) -> Result<End> {
    let name = FileName::Manifest(number);
    let label = storage.label(name);
    let file = open_file(storage, name, Access::Read).await?;
    let identity = owner.identity(FileKind::Manifest, number);
    let extent = Extent { label: &label, identity, file_bytes, known_end: KnownEnd::default() };
    let end = replay(storage, &file, extent, async |offset, payload| {
        edits.state = VersionEdit::decode(payload)
            .and_then(|edit| edits.state.apply(&edit))
            .map_err(|reason| Error::undecodable(&label, offset, reason))?;
        edits.count += 1;
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    // V1: the snapshot was synced before CURRENT named the file.
    if edits.count == 0 {
        return Err(Error::corruption(&label, FIRST_RECORD, "the snapshot is missing, but it was durable"));
    }
    Ok(end)
}

/// Makes durable what [`load`] has read. A process that was killed between a write and its sync may have left edits or
/// names that the next power cut would still take. To be called before anything is removed because of them.
///
/// # Errors
/// `Poisoned` if a sync failed; `Io`.
pub async fn make_durable<S: Storage>(storage: &S, number: FileNumber) -> Result<()> {
    let name = FileName::Manifest(number);
    let file = open_file(storage, name, Access::Read).await?;
    let label = storage.label(name);
    file.sync().await.map_err(|error| {
        Error::io(format!("sync {label} after it was read"), error).with_kind(ErrorKind::Poisoned) // P6
    })?;
    sync_names(storage).await
}

/// The manifest in force, open for edits.
pub struct Manifest<S: Storage> {
    storage: S,
    owner: Owner,
    number: FileNumber,
    log: RecordFile<S::File>,
    state: State,
    bytes_min: u64,
    /// Why nothing is appended any more (V3).
    failure: Option<Error>,
}

impl<S: Storage> Manifest<S> {
    /// Writes a fresh manifest that starts with `state`, under the next file number, and puts it in force. The file is
    /// `bytes_min` long, or longer if the state needs it.
    ///
    /// # Errors
    /// `Poisoned` if the switch failed, so that it is unknown which manifest is in force (V3); any other kind if the
    /// old manifest still is.
    pub async fn create(storage: S, owner: Owner, mut state: State, bytes_min: u64) -> Result<Self> {
        let number = state.next_file;
        state.next_file = FileNumber(number.0 + 1);
        let mut payload = Vec::new();
        state.snapshot().encode(&mut payload);
        let wanted = FIRST_RECORD + record_bytes(payload.len()) as u64 * SNAPSHOT_RATIO;
        let capacity = align_up(wanted.max(bytes_min), BLOCK_BYTES as u64);
        let name = FileName::Manifest(number);
        let result = async {
            let identity = owner.identity(FileKind::Manifest, number);
            let log = RecordFile::create(&storage, name, identity, Sizes::fixed(capacity)).await?;
            append(&log, &payload).await?;
            log.mark().await?; // V1
            let identity = owner.identity(FileKind::Current, FileNumber(0));
            let current = encode_single(&number.0.to_le_bytes(), identity, 0);
            write_file_atomically(&storage, FileName::CurrentTemporary, FileName::Current, current).await?; // V1
            Ok::<_, Error>(log)
        }
        .await;
        match result {
            Ok(log) => Ok(Self { storage, owner, number, log, state, bytes_min, failure: None }),
            Err(error) if error.kind() == ErrorKind::Poisoned => Err(error), // V3
            Err(error) => {
                // Nothing names the file. If it cannot be removed now, the next open removes it.
                let _ = storage.remove(name).await;
                Err(error)
            }
        }
    }

    /// The state after the last edit.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Number of the manifest file.
    pub fn number(&self) -> FileNumber {
        self.number
    }

    /// The open manifest file.
    pub fn log(&self) -> &RecordFile<S::File> {
        &self.log
    }

    /// Makes an edit durable. When it returns, files that the edit removed may be released.
    ///
    /// # Errors
    /// `Poisoned` if it is unknown whether the edit is durable, and for every edit after that (V3). Any other kind if the
    /// edit certainly is not durable (V2).
    pub async fn append(&mut self, edit: &VersionEdit) -> Result<()> {
        if let Some(first) = &self.failure {
            return Err(first.clone()); // V3
        }
        let result = self.append_or_replace(edit).await;
        self.failure = result.as_ref().err().filter(|error| error.kind() == ErrorKind::Poisoned).cloned();
        result
    }

    async fn append_or_replace(&mut self, edit: &VersionEdit) -> Result<()> {
        let next = self.state.apply(edit).map_err(|reason| {
            Error::new(ErrorKind::Poisoned, format!("a version edit contradicts the state: {reason}"))
        })?;
        let mut payload = Vec::new();
        edit.encode(&mut payload);
        if self.log.end() + record_bytes(payload.len()) as u64 <= self.log.capacity() {
            append(&self.log, &payload).await.map_err(|error| error.with_kind(ErrorKind::Poisoned))?;
            self.state = next;
            return Ok(());
        }
        let old = FileName::Manifest(self.number);
        *self = Self::create(self.storage.clone(), self.owner, next, self.bytes_min).await?;
        if let Err(error) = self.storage.remove(old).await {
            tracing::warn!(file = self.storage.label(old), %error, "cannot remove a manifest; the next start will");
        }
        Ok(())
    }
}

async fn append<F: File>(log: &RecordFile<F>, payload: &[u8]) -> Result<()> {
    let mut record = RecordBuilder::new(AlignedBuf::with_capacity(BLOCK_BYTES), log.end());
    record.extend_from_slice(payload);
    log.request_mark();
    log.append(record).await?;
    log.sync().await
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::key::ShardId;
    use crate::storage::sim::{Failure, Fate, Fault, SimStorage};

    const OWNER: Owner = Owner { store_id: 5, shard: ShardId(1) };
    const BYTES: u64 = 16 << 10;

    fn wal(number: u64) -> VersionEdit {
        VersionEdit {
            add_wals: vec![(FileNumber(number), WalMeta { bytes: 4096, end: KnownEnd::default() })],
            ..VersionEdit::default()
        }
    }

    async fn wals(storage: &SimStorage) -> Vec<u64> {
        load(storage, OWNER).await.unwrap().unwrap().state.wals.keys().map(|number| number.0).collect()
    }

    #[test]
    fn v1_every_crash_leaves_the_old_or_the_new_state() {
        block_on(async {
            for seed in 0..20 {
                // The workload fails for ever from operation n on. What a crash there leaves must load.
                for operation in 1.. {
                    let storage = SimStorage::new(seed);
                    storage.set_fault(Some(Fault {
                        operation,
                        failure: Failure::Errno(libc::EIO),
                        for_ever: true,
                    }));
                    let mut done = Vec::new();
                    let run = async {
                        let mut manifest =
                            Manifest::create(storage.clone(), OWNER, State::default(), BYTES).await?;
                        done.push(0);
                        for number in 1..4 {
                            manifest.append(&wal(number)).await?;
                            done.push(number);
                        }
                        Manifest::create(storage.clone(), OWNER, manifest.state().clone(), BYTES).await?;
                        Ok::<_, Error>(())
                    };
                    let finished = run.await.is_ok();
                    for fate in [Fate::Lost, Fate::Random, Fate::Kept] {
                        let after = storage.crash(fate);
                        match (load(&after, OWNER).await.unwrap(), done.last()) {
                            (None, last) => assert_eq!(last, None, "seed {seed} operation {operation}"),
                            (Some(loaded), last) => {
                                let found = loaded.state.wals.len() as u64;
                                let last = last.copied().unwrap_or(0);
                                assert!(
                                    found == last || found == last + 1,
                                    "seed {seed} operation {operation}"
                                );
                            }
                        }
                    }
                    if finished {
                        break;
                    }
                }
            }
        });
    }

    #[test]
    fn v2_a_full_manifest_is_replaced_and_want_of_space_leaves_the_old_one() {
        block_on(async {
            let storage = SimStorage::new(1);
            let mut manifest =
                Manifest::create(storage.clone(), OWNER, State::default(), BYTES).await.unwrap();
            let first = manifest.number();
            let mut number = 0;
            while manifest.number() == first {
                number += 1;
                let add = wal(number);
                let edit = VersionEdit {
                    remove_wals: (1 < number).then(|| FileNumber(number - 1)).into_iter().collect(),
                    ..add
                };
                if manifest.log.capacity() < manifest.log.end() + 512 {
                    let operation = storage.operations() + 1;
                    storage.set_fault(Some(Fault {
                        operation,
                        failure: Failure::Errno(libc::ENOSPC),
                        for_ever: false,
                    }));
                    let error = manifest.append(&edit).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::DiskFull);
                    assert_eq!(wals(&storage).await, [number - 1]);
                }
                manifest.append(&edit).await.unwrap();
            }
            assert_eq!(wals(&storage.crash(Fate::Lost)).await, [number]);
            assert!(!storage.files().iter().any(|(name, _)| *name == FileName::Manifest(first)));
        });
    }

    #[test]
    fn edits_that_a_later_edit_has_seen_durable_cannot_be_lost_unnoticed() {
        block_on(async {
            let storage = SimStorage::new(1);
            let mut manifest =
                Manifest::create(storage.clone(), OWNER, State::default(), BYTES).await.unwrap();
            let mut ends = Vec::new();
            for number in 1..4 {
                manifest.append(&wal(number)).await.unwrap();
                ends.push(crate::codec::to_usize(manifest.log().end()));
            }
            let name = FileName::Manifest(manifest.number());
            let whole = storage.bytes(name);
            let zero_from = |from: usize| {
                let mut bytes = whole.clone();
                bytes[from..].fill(0);
                storage.overwrite(name, &bytes);
            };
            // The last edit alone looks like the torn end of a crash.
            zero_from(ends[1]);
            assert_eq!(wals(&storage).await, [1, 2]);
            zero_from(ends[0]);
            assert_eq!(load(&storage, OWNER).await.unwrap_err().kind(), ErrorKind::Corruption);
        });
    }

    /// Appends edits until the full manifest was replaced, or an edit fails. Returns the edits that are durable.
    async fn append_until_replaced(manifest: &mut Manifest<SimStorage>) -> (u64, Result<()>) {
        let first = manifest.number();
        for number in 1.. {
            match manifest.append(&wal(number)).await {
                Err(error) => return (number - 1, Err(error)),
                Ok(()) if manifest.number() != first => return (number, Ok(())),
                Ok(()) => {}
            }
        }
        unreachable!("a manifest is full at some time")
    }

    #[test]
    fn v3_after_a_failed_append_sync_or_switch_nothing_more_is_appended() {
        block_on(async {
            let (mut poisoned, mut refused) = (0, 0);
            for failure in [Failure::Errno(libc::EIO), Failure::Errno(libc::ENOSPC), Failure::Short] {
                for nth in 1.. {
                    let storage = SimStorage::new(nth);
                    let mut manifest =
                        Manifest::create(storage.clone(), OWNER, State::default(), BYTES).await.unwrap();
                    let operation = storage.operations() + nth;
                    storage.set_fault(Some(Fault { operation, failure, for_ever: false }));
                    let (durable, result) = append_until_replaced(&mut manifest).await;
                    if storage.operations() < operation {
                        break;
                    }
                    let Err(error) = result else { continue }; // a manifest that was replaced could not be removed
                    let context = format!("operation {operation}, {failure:?}: {error}");
                    let possible = if error.kind() == ErrorKind::Poisoned {
                        let operations = storage.operations();
                        for number in [durable + 1, durable + 2] {
                            let again = manifest.append(&wal(number)).await.unwrap_err();
                            assert_eq!(again.kind(), ErrorKind::Poisoned, "{context}");
                            assert_eq!(
                                again.to_string(),
                                error.to_string(),
                                "{context}: not the first cause"
                            );
                        }
                        assert_eq!(storage.operations(), operations, "{context}: another attempt");
                        poisoned += 1;
                        durable..=durable + 1
                    } else {
                        refused += 1;
                        durable..=durable
                    };
                    for fate in [Fate::Lost, Fate::Kept, Fate::Killed, Fate::Random, Fate::Random] {
                        let found = wals(&storage.crash(fate)).await.len() as u64;
                        assert!(
                            possible.contains(&found),
                            "{context}, {fate:?}: {found} edits, not {possible:?}"
                        );
                    }
                    if error.kind() != ErrorKind::Poisoned {
                        manifest.append(&wal(durable + 1)).await.unwrap();
                    }
                }
            }
            assert!(10 < poisoned && 10 < refused, "{poisoned} and {refused}");
        });
    }

    #[test]
    fn what_a_killed_process_had_not_synced_is_durable_before_anything_rests_on_it() {
        block_on(async {
            let storage = SimStorage::new(1);
            let mut manifest =
                Manifest::create(storage.clone(), OWNER, State::default(), BYTES).await.unwrap();
            storage.record();
            manifest.append(&wal(1)).await.unwrap();
            // The last operation of an append is its sync. The process is killed before that.
            let killed = storage.take_snapshots().pop().unwrap().crash(Fate::Killed);
            let loaded = load(&killed, OWNER).await.unwrap().unwrap();
            assert_eq!(loaded.state.wals.len(), 1, "the next process reads the edit");
            assert_eq!(wals(&killed.crash(Fate::Lost)).await, [0; 0], "but a power cut takes it");
            make_durable(&killed, loaded.number).await.unwrap();
            assert_eq!(wals(&killed.crash(Fate::Lost)).await, [1]);
        });
    }
}
