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
use crate::key::{FileNumber, SeqNo, ShardId, Slot};
use crate::manifest::presence::{Files, list, missing, unnamed};
use crate::manifest::{Loaded, State, Version, load};
use crate::record::replay::{End, KnownEnd, first_nonzero};
use crate::record::{Kind, Owner};
use crate::source::Source as _;
use crate::source::merge::Merge;
use crate::sst::SstMeta;
use crate::sst::reader::Sst;
use crate::sst::run::{OpenSst, Run};
use crate::sst::verify::verify;
use crate::sst::window::ReadAhead;
use crate::storage::{Access, Storage, open_file};
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
        let files = list(storage)?;
        let Some(loaded) = load(storage, owner).await? else {
            let label = storage.label(FileName::Current);
            return Err(Error::new(
                ErrorKind::Corruption,
                format!("{label} is missing, but the shard was in use"),
            ));
        };
        let check = Check { storage, owner, slots, files, loaded };
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
        let identity = self.owner.identity(Kind::Sst, meta.number);
        Ok(Rc::new(Sst::open(self.storage, identity, meta.bytes).await?))
    }
}

impl<S: Storage> Check<'_, S> {
    fn state(&self) -> &State {
        &self.loaded.state
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
                "{label}: {} bytes at offset {} are the torn end of a crash, or were damaged later ({reason})",
                end.torn_bytes, end.offset
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
        report.damage.extend(missing(self.storage, self.state(), &self.files));
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
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Range;

    use futures_executor::block_on;

    use super::*;
    use crate::codec::to_usize;
    use crate::config::tests::SMALL;
    use crate::config::{BLOCK_BYTES, DbConfig, SECTOR_BYTES};
    use crate::db::Db;
    use crate::key::{Entry, EntryKind, SLOT_COUNT, UnixMillis};
    use crate::manifest::{Manifest, SharedMeta, VersionEdit};
    use crate::random::Random;
    use crate::record::file::{FIRST_RECORD, Sizes};
    use crate::sst::Expiry;
    use crate::sst::builder::SstBuilder;
    use crate::storage::sim::{Fate, SimStorage};
    use crate::wal::writer::Wal;

    const OWNER: Owner = Owner { store_id: 3, shard: ShardId(1) };
    const CONFIG: DbConfig = DbConfig {
        value_bytes_max: 4_000,
        wal_bytes: DbConfig::wal_bytes_for(1 << 20, 4_000),
        wal_step_bytes: 1 << 16,
        manifest_bytes: 1 << 14,
        ..SMALL
    };
    /// Entries of a sorted file. One more write went into its memtable.
    const ENTRIES: u64 = 30;
    /// The last write in the sorted files.
    const FLUSHED: u64 = 2 * (ENTRIES + 1);

    fn key(number: u64) -> Vec<u8> {
        format!("key {number:02}").into_bytes()
    }

    /// A shard whose process was killed.
    struct Shard {
        storage: SimStorage,
        /// The sorted files, the older file first. They hold the same keys.
        ssts: [FileNumber; 2],
        /// The WALs, the older WAL first. Each holds three groups of one write.
        wals: [FileNumber; 2],
        /// The bytes of the older WAL after its first group.
        one_group: Vec<u8>,
    }

    /// A part of a file that holds something.
    struct Part {
        name: FileName,
        bytes: Range<u64>,
        /// The part is one of two marks: the other mark is enough to read the file.
        is_mark: bool,
    }

    impl Shard {
        async fn new() -> Self {
            let storage = SimStorage::new(1);
            let db = Db::create(storage.clone(), OWNER, CONFIG).await.unwrap();
            for generation in 0..2 {
                for number in 0..ENTRIES {
                    let expires = (number == 4).then_some(UnixMillis(50));
                    db.set_expiring(&key(number), &[generation; 600], expires).unwrap();
                }
                db.delete(&key(5), UnixMillis::START).unwrap();
                db.commit_next().await.unwrap();
                freeze(&db).await;
                db.flush_next().await.unwrap();
            }
            let write = async |number| {
                db.set(&key(number), b"in a WAL").unwrap();
                db.commit_next().await.unwrap();
                db.durable().expect("a group was committed").0
            };
            let older = write(0).await;
            let one_group = storage.bytes(FileName::Wal(older));
            write(1).await;
            write(2).await;
            db.mark().await.unwrap();
            freeze(&db).await;
            write(0).await;
            write(1).await;
            let newer = write(2).await;
            db.mark().await.unwrap();
            let version = db.version();
            let [newer_sst, older_sst] = version.level(0) else { panic!("two memtables were flushed") };
            let ssts = [older_sst.number, newer_sst.number];
            Self { storage: storage.crash(Fate::Kept), ssts, wals: [older, newer], one_group }
        }

        /// The same shard, to be damaged.
        fn copy(&self) -> SimStorage {
            self.storage.crash(Fate::Kept)
        }

        async fn parts(&self) -> Vec<Part> {
            let loaded = load(&self.storage, OWNER).await.unwrap().expect("the shard is there");
            let whole = |name, length| Part { name, bytes: 0..length, is_mark: false };
            let mut parts = vec![whole(FileName::Current, BLOCK_BYTES as u64)];
            parts.extend(
                loaded.state.version.files().map(|file| whole(FileName::Sst(file.number), file.bytes)),
            );
            let groups_end = FIRST_RECORD + 3 * SECTOR_BYTES as u64;
            let wals = self.wals.map(|number| (FileName::Wal(number), groups_end));
            for (name, end) in
                wals.into_iter().chain([(FileName::Manifest(loaded.number), loaded.end.offset)])
            {
                parts.push(Part { name, bytes: FIRST_RECORD..end, is_mark: false });
                for mark in (0..FIRST_RECORD).step_by(BLOCK_BYTES) {
                    parts.push(Part { name, bytes: mark..mark + SECTOR_BYTES as u64, is_mark: true });
                }
            }
            parts
        }
    }

    /// Freezes the memtable. The next writes go to another WAL.
    async fn freeze(db: &Db<SimStorage>) {
        db.request_flush();
        if !db.has_frozen() {
            db.prepare_spare().await.unwrap();
        }
        assert!(db.has_frozen());
    }

    /// Checks a shard that owns all slots, except those of `foreign` keys.
    async fn check_without(storage: &SimStorage, foreign: &[Vec<u8>]) -> Report {
        let mut slots = vec![OWNER.shard; SLOT_COUNT];
        foreign.iter().for_each(|key| slots[Slot::of(key).index()] = ShardId(0));
        let contents = || storage.files().into_iter().map(|(name, _)| (name, storage.bytes(name)));
        let before: BTreeMap<_, _> = contents().collect();
        let report = check_shard(storage, OWNER, &slots, |_| {}).await;
        assert!(before == contents().collect(), "a check changes nothing");
        report
    }

    async fn check(storage: &SimStorage) -> Report {
        check_without(storage, &[]).await
    }

    /// Whether an error says all of this.
    fn says(error: &Error, words: &[&str]) -> bool {
        words.iter().all(|word| error.to_string().contains(word))
    }

    fn assert_damaged(report: &Report, words: &[&str]) {
        assert!(report.damage.iter().any(|error| says(error, words)), "no {words:?}: {report:?}");
    }

    fn assert_not_damaged(report: &Report, context: &str) {
        let errors = [&report.damage, &report.unread, &report.later];
        assert!(errors.iter().all(|errors| errors.is_empty()), "{context}: {report:?}");
    }

    /// Replaces the manifest by a manifest with another state.
    async fn rewrite_manifest(storage: &SimStorage, change: impl FnOnce(&mut State)) {
        let mut state = load(storage, OWNER).await.unwrap().expect("the shard is there").state;
        change(&mut state);
        Manifest::create(storage.clone(), OWNER, state, CONFIG.manifest_bytes).await.unwrap();
    }

    fn version(add_ssts: Vec<(usize, SharedMeta)>) -> Rc<Version> {
        Rc::new(Version::default().apply(&VersionEdit { add_ssts, ..VersionEdit::default() }).unwrap())
    }

    /// A sorted file with these keys and SeqNos.
    async fn sst(storage: &SimStorage, number: FileNumber, entries: &[(&[u8], u64)]) -> SharedMeta {
        let identity = OWNER.identity(Kind::Sst, number);
        let mut builder = SstBuilder::create(storage, identity).await.unwrap();
        for &(key, seqno) in entries {
            builder.add(&Entry { key, seqno: SeqNo(seqno), kind: EntryKind::VALUE, value: b"" });
        }
        Rc::new(builder.finish().await.unwrap())
    }

    #[test]
    fn a_sound_shard_is_read_as_a_whole() {
        block_on(async {
            let report = check(&Shard::new().await.storage).await;
            assert_not_damaged(&report, "a sound shard");
            assert!(report.notes.is_empty(), "{report:?}");
            assert_eq!(report.files, 6, "CURRENT, the manifest, two sorted files, two WALs");
            assert_eq!(report.entries, 2 * ENTRIES + 6);
            assert_eq!(report.log_ends.len(), 2, "one for each WAL");
        });
    }

    #[test]
    fn a1_a_file_that_is_missing_or_has_another_length_is_damage() {
        block_on(async {
            let shard = Shard::new().await;
            for (name, bytes) in shard.storage.files() {
                let label = name.to_string();
                let lost = shard.copy();
                lost.lose(name);
                assert_damaged(&check(&lost).await, &[&label, "missing"]);

                let mut contents = shard.storage.bytes(name);
                let shorter = shard.copy();
                shorter.overwrite(name, &contents[..to_usize(bytes) - BLOCK_BYTES]);
                assert_damaged(&check(&shorter).await, &[&label]);

                contents.extend_from_slice(&[0; BLOCK_BYTES]);
                let longer = shard.copy();
                longer.overwrite(name, &contents);
                let report = check(&longer).await;
                match name {
                    // Files of records grow.
                    FileName::Wal(_) | FileName::Manifest(_) => assert_not_damaged(&report, &label),
                    _ => assert_damaged(&report, &[&label]),
                }
            }
        });
    }

    #[test]
    fn a1_every_flipped_bit_is_found() {
        block_on(async {
            let seed = 11;
            let mut random = Random::new(seed);
            let shard = Shard::new().await;
            for Part { name, bytes, is_mark } in shard.parts().await {
                for _ in 0..40 {
                    let at = bytes.start + random.below(bytes.end - bytes.start);
                    let context = format!("seed {seed}: a bit in byte {at} of {name}");
                    let damaged = shard.copy();
                    damaged.corrupt(name, at, 1 << random.below(8));
                    let report = check(&damaged).await;
                    assert!(report.unread.is_empty() && report.later.is_empty(), "{context}: {report:?}");
                    let label = name.to_string();
                    let noted = |words: &str| {
                        report.notes.iter().any(|note| note.contains(&label) && note.contains(words))
                    };
                    let found = report.damage.iter().any(|error| says(error, &[&label, "damaged at offset"]));
                    // The last edit of a manifest looks torn, and the WAL that it names is missed.
                    let found = found || (noted("torn end") && !report.damage.is_empty());
                    assert!(
                        if is_mark { noted("one of the two marks") } else { found },
                        "{context}: {report:?}"
                    );
                }
            }
        });
    }

    #[test]
    fn a1_what_cannot_be_read_is_not_called_damage() {
        block_on(async {
            let shard = Shard::new().await;
            for Part { name, bytes, is_mark } in shard.parts().await {
                for block in bytes.start / BLOCK_BYTES as u64..bytes.end.div_ceil(BLOCK_BYTES as u64) {
                    let unreadable = shard.copy();
                    unreadable.make_unreadable(name, block);
                    let report = check(&unreadable).await;
                    let unread = report.unread.iter().any(|error| says(error, &[&name.to_string()]));
                    let expected = (true, !is_mark, is_mark);
                    let found = (report.damage.is_empty(), unread, !report.notes.is_empty());
                    assert_eq!(found, expected, "block {block} of {name}: {report:?}");
                }
            }
        });
    }

    #[test]
    fn a2_a_gap_in_the_writes_is_damage() {
        block_on(async {
            let shard = Shard::new().await;
            let [older, newer] = shard.wals.map(|number| FileName::Wal(number).to_string());
            // An older copy of a WAL verifies. The next WAL tells that groups are missing.
            let gap = shard.copy();
            gap.overwrite(FileName::Wal(shard.wals[0]), &shard.one_group);
            let at = format!("{newer} is damaged at offset {FIRST_RECORD}");
            let (found, next) = (format!("write {}", FLUSHED + 4), format!("write {} must", FLUSHED + 2));
            assert_damaged(&check(&gap).await, &[&at, &found, &next]);
            // The first WAL does not begin where the sorted files end.
            for flushed in [FLUSHED - 1, FLUSHED + 1] {
                let gap = shard.copy();
                rewrite_manifest(&gap, |state| state.flushed = SeqNo(flushed)).await;
                let next = format!("write {} must come next", flushed + 1);
                assert_damaged(&check(&gap).await, &[&older, &next]);
            }
        });
    }

    #[test]
    fn a2_a_wal_that_nothing_names_is_damage_only_if_its_writes_are_nowhere_else() {
        block_on(async {
            let shard = Shard::new().await;
            let [older, newer] = shard.wals;
            let unnamed = shard.copy();
            rewrite_manifest(&unnamed, |state| assert!(state.wals.remove(&newer).is_some())).await;
            let first = format!("holds write {}", FLUSHED + 4);
            assert_damaged(&check(&unnamed).await, &[&FileName::Wal(newer).to_string(), &first]);

            // A crash may come after a WAL was made and before an edit names it, or while the WAL is being made.
            let unused = shard.copy();
            let [finished, unfinished] = [newer.0 + 50, newer.0 + 51].map(FileNumber);
            let sizes = Sizes { capacity: CONFIG.wal_bytes, step: CONFIG.wal_step_bytes };
            Wal::create(&unused, OWNER, finished, sizes).await.unwrap();
            unused.create(FileName::Wal(unfinished)).await.unwrap();
            unused.overwrite(FileName::Wal(unfinished), &[0; 4 * BLOCK_BYTES]);
            let report = check(&unused).await;
            assert_not_damaged(&report, "two WALs without a write");
            for name in [finished, unfinished].map(FileName::Wal) {
                let label = name.to_string();
                let noted =
                    report.notes.iter().any(|note| note.contains(&label) && note.contains("nothing names"));
                assert!(noted, "{label}: {report:?}");
            }

            // A WAL with a lower number than a named WAL was flushed and released.
            let released = shard.copy();
            rewrite_manifest(&released, |state| {
                assert!(state.wals.remove(&older).is_some());
                state.flushed = SeqNo(FLUSHED + 3);
            })
            .await;
            assert_not_damaged(&check(&released).await, "a released WAL");
        });
    }

    #[test]
    fn a3_the_properties_of_a_sorted_file_are_what_the_manifest_says() {
        fn expiry(meta: &mut SstMeta) -> &mut Expiry {
            meta.expiry.as_mut().expect("an entry of the file expires")
        }
        block_on(async {
            let shard = Shard::new().await;
            type Change = fn(&mut SstMeta);
            let changes: [(&str, Change); 10] = [
                ("the smallest key", |meta| meta.smallest = b"key".as_slice().into()),
                ("the largest key", |meta| meta.largest = b"key 99".as_slice().into()),
                ("the first SeqNo", |meta| meta.first.0 += 1),
                ("the last SeqNo", |meta| meta.last.0 -= 1),
                ("the number of entries", |meta| meta.entries += 1),
                ("the number of tombstones", |meta| meta.tombstones += 1),
                ("whether anything expires", |meta| meta.expiry = None),
                ("how many entries expire", |meta| expiry(meta).entries += 1),
                ("when the first entry expires", |meta| expiry(meta).first.0 -= 1),
                ("when the last entry expires", |meta| expiry(meta).last.0 += 1),
            ];
            for (number, (what, change)) in shard.ssts.into_iter().flat_map(|n| changes.map(|c| (n, c))) {
                let wrong = shard.copy();
                rewrite_manifest(&wrong, |state| {
                    let mut files: Vec<_> =
                        state.version.level(0).iter().map(|file| (0, file.clone())).collect();
                    let file = files.iter_mut().find(|(_, file)| file.number == number);
                    change(Rc::make_mut(&mut file.expect("the file is in L0").1));
                    state.version = version(files);
                })
                .await;
                let report = check(&wrong).await;
                let label = FileName::Sst(number).to_string();
                for words in ["the entries are not what", "the properties are not what"] {
                    let found = report.damage.iter().any(|error| says(error, &[&label, words]));
                    assert!(found, "{what} of {label}, {words}: {report:?}");
                }
            }
        });
    }

    #[test]
    fn a3_every_write_of_a_sorted_file_was_flushed() {
        block_on(async {
            let shard = Shard::new().await;
            let wrong = shard.copy();
            rewrite_manifest(&wrong, |state| state.flushed = SeqNo(FLUSHED - 1)).await;
            let label = FileName::Sst(shard.ssts[1]).to_string();
            assert_damaged(&check(&wrong).await, &[&label, "above the last flushed write"]);
        });
    }

    #[test]
    fn a3_the_number_of_every_file_is_below_the_number_of_the_next_file() {
        block_on(async {
            let shard = Shard::new().await;
            let ([a, b], [c, d]) = (shard.ssts, shard.wals);
            let named =
                [(a, FileName::Sst(a)), (b, FileName::Sst(b)), (c, FileName::Wal(c)), (d, FileName::Wal(d))];
            for next_file in named.into_iter().flat_map(|(number, _)| [number, number.next()]) {
                let wrong = shard.copy();
                // The manifest takes the number below.
                rewrite_manifest(&wrong, |state| state.next_file = FileNumber(next_file.0 - 1)).await;
                let report = check(&wrong).await;
                for (number, name) in named {
                    let words = [&name.to_string(), "its number is not below that of the next file"];
                    let found = report.damage.iter().any(|error| says(error, &words));
                    assert_eq!(found, next_file <= number, "{name}, next file {}: {report:?}", next_file.0);
                }
            }
        });
    }

    #[test]
    fn a4_an_older_entry_above_a_newer_entry_is_damage() {
        block_on(async {
            let shard = Shard::new().await;
            let files = load(&shard.storage, OWNER).await.unwrap().expect("the shard is there").state.version;
            let file =
                |number| files.files().find(|file| file.number == number).expect("it is named").clone();
            let [older, newer] = shard.ssts.map(file);
            let label = FileName::Sst(newer.number).to_string();
            for (level, deeper) in [(0, 1), (0, 6), (1, 2), (3, 5)] {
                let context = format!("levels {level} and {deeper}");
                let sound = shard.copy();
                let files = vec![(level, newer.clone()), (deeper, older.clone())];
                rewrite_manifest(&sound, |state| state.version = version(files)).await;
                assert_not_damaged(&check(&sound).await, &context);
                let wrong = shard.copy();
                let files = vec![(level, older.clone()), (deeper, newer.clone())];
                rewrite_manifest(&wrong, |state| state.version = version(files)).await;
                assert_damaged(
                    &check(&wrong).await,
                    &[&label, "newer than an entry of its key in a higher level"],
                );
            }
        });
    }

    #[test]
    fn a4_the_file_of_the_newer_entry_is_named_even_if_the_entry_is_the_last_of_the_file() {
        block_on(async {
            let storage = Shard::new().await.storage;
            let numbers = [101, 102, 103].map(FileNumber);
            let files = vec![
                (2, sst(&storage, numbers[0], &[(b"a", 3), (b"c", 4)]).await),
                (3, sst(&storage, numbers[1], &[(b"a", 1), (b"b", 2), (b"c", 5)]).await),
                (3, sst(&storage, numbers[2], &[(b"d", 6)]).await),
            ];
            rewrite_manifest(&storage, |state| {
                state.version = version(files);
                state.next_file = FileNumber(200);
            })
            .await;
            let label = FileName::Sst(numbers[1]).to_string();
            let words = [&label, "newer than an entry of its key in a higher level"];
            assert_damaged(&check(&storage).await, &words);
        });
    }

    #[test]
    fn a4_a_key_of_another_shard_is_damage() {
        block_on(async {
            let shard = Shard::new().await;
            let report = check_without(&shard.storage, &[key(ENTRIES - 1)]).await;
            for number in shard.ssts {
                assert_damaged(&report, &[&FileName::Sst(number).to_string(), "belongs to another shard"]);
            }
            assert!(
                !report.damage.iter().any(|error| says(error, &[".wal"])),
                "no WAL has the key: {report:?}"
            );
            let report = check_without(&shard.storage, &[key(2)]).await;
            let label = FileName::Wal(shard.wals[0]).to_string();
            assert_damaged(&report, &[&label, "belongs to another shard"]);
        });
    }
}
