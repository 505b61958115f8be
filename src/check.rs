//! Reads a store from end to end and says what is not as it was written. Changes nothing.
//!
//! Owns: which invariants hold between files. The invariants inside a file are checked by other modules: those of
//! records by [`crate::record::replay`], of commit groups by [`crate::wal`], of sorted files by [`crate::sst::verify`],
//! of edits by [`crate::manifest`].
//!
//! A1  Every file that the manifest names is there in its length, and every byte of it that holds anything is under a
//!     checksum that matches.
//! A2  WALs continue where the sorted files end, without a gap (W1), and no write is in a WAL that nothing names.
//! A3  The properties of every sorted file are what the manifest says, and its writes are among those that the manifest
//!     calls flushed. The number of every file that the manifest names is below the number of the next file.
//! A4  Of two entries of a key the newer one is in the higher level (N3), and every key belongs to its shard.
//!
//! A note is something that a crash may leave and the next start puts in order: the torn end of a WAL, a file that
//! nothing names. What the system does not let us read, and what a later version wrote, is listed separately: neither
//! says that bytes are wrong. Everything else is damage.

use std::rc::Rc;

use crate::error::{CorruptionReason, Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Owner};
use crate::key::{FileNumber, SeqNo, ShardId, Slot};
use crate::manifest::{Loaded, State, Version, load_in_use};
use crate::presence::{missing, unnamed};
use crate::record::replay::{End, KnownEnd, first_nonzero};
use crate::source::Source as _;
use crate::source::merge::Merge;
use crate::sst::SstMeta;
use crate::sst::reader::Sst;
use crate::sst::run::{OpenSst, Run};
use crate::sst::verify::verify;
use crate::sst::window::ReadAhead;
use crate::storage::{Access, Files, Storage, list_files, open_file};
use crate::wal::reader::{Source, first_write, read};

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is not as it was written, in the order in which it was found.
    pub damage: Vec<Error>,
    /// What could not be read, and so was not checked.
    pub unread: Vec<Error>,
    /// What a later version of ringkeep has written.
    pub later: Vec<Error>,
    /// Things that a crash may leave.
    pub notes: Vec<String>,
    /// Where each WAL ends, and how far it was witnessed; empty after a clean stop.
    pub log_ends: Vec<String>,
    /// Files that were checked.
    pub files: u64,
    /// Entries in sorted files, and writes in WALs.
    pub entries: u64,
}

impl Report {
    /// Adds an error to the list of its kind.
    pub fn add_error(&mut self, error: Error) {
        match error.kind() {
            ErrorKind::Corruption => self.damage.push(error),
            ErrorKind::Configuration => self.later.push(error),
            _ => self.unread.push(error),
        }
    }

    /// Adds the report of another shard.
    pub fn add(&mut self, other: Self) {
        self.damage.extend(other.damage);
        self.unread.extend(other.unread);
        self.later.extend(other.later);
        self.notes.extend(other.notes);
        self.log_ends.extend(other.log_ends);
        self.files += other.files;
        self.entries += other.entries;
    }
}

/// Checks one shard of a store. `slots` says to which shard each slot of the store belongs. `progress` is told how many
/// bytes have been read.
pub async fn check_shard<S: Storage>(
    storage: &S,
    owner: Owner,
    slots: &[ShardId],
    mut progress: impl FnMut(u64),
) -> Report {
    let mut report = Report::default();
    let outcome = async {
        let check = Check::new(storage, owner, slots).await?;
        check.manifest(&mut report).await?;
        check.presence(&mut report).await?;
        check.wals(&mut report, &mut progress).await;
        check.kept_wals(&mut report, &mut progress).await;
        check.ssts(&mut report, &mut progress).await;
        check.order(&mut report, &mut progress).await
    };
    if let Err(error) = outcome.await {
        report.add_error(error);
    }
    report
}

/// Checks the manifest and the WALs of one shard: everything without which it cannot be opened, except sorted files.
pub async fn check_logs<S: Storage>(storage: &S, owner: Owner, slots: &[ShardId]) -> Report {
    let mut report = Report::default();
    let outcome = async {
        let check = Check::new(storage, owner, slots).await?;
        check.manifest(&mut report).await?;
        let is_log = |(name, _): &(FileName, Error)| !matches!(name, FileName::Sst(_));
        report.damage.extend(check.missing().filter(is_log).map(|(_, error)| error));
        report.damage.extend(unnamed(storage, owner, check.state(), &check.files).await?);
        check.wals(&mut report, &mut |_| {}).await;
        check.kept_wals(&mut report, &mut |_| {}).await;
        Ok(())
    };
    if let Err(error) = outcome.await {
        report.add_error(error);
    }
    report
}

/// Bytes that [`check_shard`] will report as progress, roughly.
pub fn bytes_to_read(files: &Files) -> u64 {
    let bytes = |(name, bytes): (&FileName, &u64)| match name {
        FileName::Wal(_) => *bytes,
        FileName::Sst(_) => 2 * bytes, // once for the file itself, once for the order between files
        _ => 0,
    };
    files.iter().map(bytes).sum()
}

struct Check<'a, S: Storage> {
    storage: &'a S,
    owner: Owner,
    slots: &'a [ShardId],
    files: Files,
    loaded: Loaded,
}

impl<S: Storage> OpenSst for Check<'_, S> {
    type File = S::File;

    async fn open(&self, meta: &SstMeta) -> Result<Rc<Sst<S::File>>> {
        let identity = self.owner.identity(FileKind::Sst, meta.number);
        Ok(Rc::new(Sst::open(self.storage, identity, meta.bytes).await?))
    }
}

impl<'a, S: Storage> Check<'a, S> {
    async fn new(storage: &'a S, owner: Owner, slots: &'a [ShardId]) -> Result<Self> {
        let files = list_files(storage)?;
        let loaded = load_in_use(storage, owner).await?;
        Ok(Self { storage, owner, slots, files, loaded })
    }

    fn state(&self) -> &State {
        &self.loaded.state
    }

    fn missing(&self) -> impl Iterator<Item = (FileName, Error)> {
        missing(self.storage, self.state(), &self.files).into_iter()
    }

    fn key_belongs(&self, key: &[u8]) -> std::result::Result<(), CorruptionReason> {
        if self.slots[Slot::of(key).index()] == self.owner.shard {
            Ok(())
        } else {
            Err(CorruptionReason::Damaged("a key belongs to another shard"))
        }
    }

    async fn manifest(&self, report: &mut Report) -> Result<()> {
        report.files += 2;
        let name = FileName::Manifest(self.loaded.number);
        let file = open_file(self.storage, name, Access::Read).await?;
        let bytes = self.files.get(&name).copied().unwrap_or_default();
        self.end_of(report, &file, (name, bytes), &self.loaded.end, true).await
    }

    /// Notes what is wrong with the marks of a file of records, and what lies after its end. `open` says that no
    /// recovery has fixed the end. In that case only zeros should lie there.
    async fn end_of(
        &self,
        report: &mut Report,
        file: &S::File,
        (name, bytes): (FileName, u64),
        end: &End,
        open: bool,
    ) -> Result<()> {
        let label = self.storage.label(name);
        if let Some(reason) = end.bad_slot {
            report.notes.push(format!("{label}: one of the two marks is bad ({reason})"));
        }
        if let Some(error) = &end.unread {
            report.unread.push(error.clone());
        } else if let Some(reason) = end.torn_reason {
            report.notes.push(format!(
                "{label}: the torn end of a crash, or later damage, at offset {}, of length {} ({reason})",
                end.offset, end.torn_bytes
            ));
        } else if open
            && !end.mark.used_before
            && let Some(at) = first_nonzero(self.storage, file, &label, bytes, end.offset).await?
        {
            report.notes.push(format!(
                "{label}: offset {at}, after the last record at {}, should be zero: the torn end of a crash, or \
                 damaged later",
                end.offset
            ));
        }
        Ok(())
    }

    /// A1 for whole files, and files that the manifest does not name.
    async fn presence(&self, report: &mut Report) -> Result<()> {
        report.damage.extend(self.missing().map(|(_, error)| error));
        report.damage.extend(unnamed(self.storage, self.owner, self.state(), &self.files).await?);
        for &name in self.files.keys() {
            let kept = [FileName::Current, FileName::Manifest(self.loaded.number)].contains(&name);
            if !kept && !self.state().names(name) {
                report.notes.push(format!(
                    "{}: nothing names it; the next start removes it",
                    self.storage.label(name)
                ));
            }
            if name.number().is_some_and(|number| self.state().next_file <= number)
                && self.state().names(name)
            {
                let label = self.storage.label(name);
                report.damage.push(Error::corruption(
                    &label,
                    0,
                    "its number is not below that of the next file",
                )); // A3
            }
        }
        Ok(())
    }

    /// A2.
    async fn wals(&self, report: &mut Report, progress: &mut impl FnMut(u64)) {
        let mut next = self.state().flushed.next();
        for (&number, wal) in &self.state().wals {
            let name = FileName::Wal(number);
            let Some(&bytes) = self.files.get(&name).filter(|bytes| wal.bytes <= **bytes) else {
                return; // reported as missing; the SeqNo that must come next is not known any more
            };
            report.files += 1;
            let known_end = self.state().known_end(number);
            let source = Source { number, file_bytes: bytes, known_end };
            let (mut writes, mut foreign) = (0, None);
            let outcome = async {
                let visit = |entry: crate::key::Entry<'_>| {
                    writes += 1;
                    if let Err(reason) = self.key_belongs(entry.key) {
                        foreign.get_or_insert(reason);
                    }
                };
                let (file, end) = read(self.storage, self.owner, source, &mut next, visit).await?;
                let open = matches!(wal.end, KnownEnd::AtLeast(_));
                if let Err(error) = self.end_of(report, &file, (name, bytes), &end, open).await {
                    report.add_error(error); // the groups were read all the same
                }
                if self.state().clean_wal.is_none() {
                    report.log_ends.push(format!(
                        "{} ends at offset {}, and is witnessed up to offset {}",
                        self.storage.label(name),
                        end.offset,
                        end.witnessed
                    ));
                }
                match foreign {
                    Some(reason) => Err(Error::corruption(&self.storage.label(name), 0, reason)), // A4
                    None => Ok(()),
                }
            };
            let outcome = outcome.await;
            report.entries += writes;
            progress(bytes);
            if let Err(error) = outcome {
                report.add_error(error);
                return; // the SeqNo that must come next is not known any more
            }
        }
    }

    /// A1 of the WALs that recovery does not need. The writes before a kept WAL may be in no WAL any more, so each begins
    /// anywhere.
    async fn kept_wals(&self, report: &mut Report, progress: &mut impl FnMut(u64)) {
        for (&number, &least) in &self.state().kept_wals {
            let name = FileName::Wal(number);
            let Some(&bytes) = self.files.get(&name).filter(|bytes| least <= **bytes) else {
                continue; // reported as missing
            };
            report.files += 1;
            let mut writes = 0;
            let outcome = async {
                let first = first_write(self.storage, self.owner, number, bytes).await?;
                let mut next = first.unwrap_or_default();
                let source = Source { number, file_bytes: bytes, known_end: KnownEnd::default() };
                let (file, end) = read(self.storage, self.owner, source, &mut next, |_| writes += 1).await?;
                self.end_of(report, &file, (name, bytes), &end, false).await
            };
            if let Err(error) = outcome.await {
                report.add_error(error);
            }
            report.entries += writes;
            progress(bytes);
        }
    }

    /// A1 and A3.
    async fn ssts(&self, report: &mut Report, progress: &mut impl FnMut(u64)) {
        for damage in self.state().version.damage() {
            let label = self.storage.label(FileName::Sst(damage.file));
            let message = format!("{}; `ringkeep repair` gives them up", damage.describe(&label, None));
            report.damage.push(Error::new(ErrorKind::Corruption, message));
        }
        for meta in self.state().version.files() {
            let name = FileName::Sst(meta.number);
            if self.files.get(&name) != Some(&meta.bytes) {
                continue; // reported as missing
            }
            report.files += 1;
            match self.open(meta).await {
                Ok(sst) => {
                    let visit = |entry: &crate::key::Entry<'_>| self.key_belongs(entry.key);
                    for error in verify(sst, meta, visit, &mut *progress).await {
                        report.add_error(error);
                    }
                    report.entries += meta.entries;
                }
                Err(error) => report.add_error(error),
            }
            if self.state().flushed < meta.last {
                let label = self.storage.label(name);
                report.damage.push(Error::corruption(
                    &label,
                    0,
                    "it holds writes above the last flushed write",
                ));
            }
        }
    }

    /// A4: walks all levels in parallel. Only if every file is sound, because the walk would end at the first damage.
    async fn order(&self, report: &mut Report, progress: &mut impl FnMut(u64)) -> Result<()> {
        if !(report.damage.is_empty() && report.unread.is_empty() && report.later.is_empty()) {
            return Ok(());
        }
        // Of one key, entries come from the newest to the oldest. So they come from the highest level to the lowest.
        let mut merge = Merge::new(runs(self, &self.state().version));
        let (mut key, mut last): (Vec<u8>, Option<(SeqNo, usize, FileNumber)>) = (Vec::new(), None);
        let mut read = 0;
        while merge.advance().await? {
            let run = merge.current().unwrap_or_default();
            let file = merge.sources()[run].file().map(|file| file.number).unwrap_or_default();
            let (seqno, same) = merge.read(|entry| {
                read += entry.key.len() + entry.value.len();
                let same = last.is_some() && *entry.key == *key;
                if !same {
                    key.clear();
                    key.extend_from_slice(entry.key);
                }
                (entry.seqno, same)
            });
            if let Some((newer, above, newer_file)) = last.filter(|_| same)
                && !(seqno < newer && above < run)
            {
                let reason =
                    CorruptionReason::Damaged("an entry is newer than an entry of its key in a higher level");
                return Err(Error::corruption(&self.storage.label(FileName::Sst(newer_file)), 0, reason));
            }
            last = Some((seqno, run, file));
            if 1 << 20 <= read {
                progress(std::mem::take(&mut read) as u64);
            }
        }
        progress(read as u64);
        Ok(())
    }
}

/// Runs over all files: one for each file of L0, the newest first, then one for each level.
fn runs<'a, S: Storage>(check: &'a Check<'a, S>, version: &Version) -> Vec<Run<'a, Check<'a, S>>> {
    let mut runs = Vec::new();
    for (level, files) in version.levels() {
        if level == 0 {
            runs.extend(files.iter().map(|file| Run::new(check, [file.clone()], ReadAhead::Full)));
        } else {
            runs.push(Run::new(check, files.iter().cloned(), ReadAhead::Full));
        }
    }
    runs
}

#[cfg(test)]
mod tests;
