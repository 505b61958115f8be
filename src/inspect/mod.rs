//! Shows what a store consists of, also if it does not start. Changes nothing.
//!
//! Owns: what is shown, and what stands in the place of a part that cannot be read. [`crate::check`] says whether every
//! byte is as it was written. Here a part that does not verify costs its own line, and all others are shown:
//!
//! | damaged | what is shown all the same |
//! | --- | --- |
//! | `STORE` | the shards whose directories exist; the id of the store comes from their files |
//! | `CURRENT` | the newest manifest that is there |
//! | a manifest | the state after its last edit that verifies |
//! | a WAL | its groups before the damage, and its marks |
//! | the end of a sorted file | what the manifest says about it; its blocks ([`Shard::survey`]) |
//!
//! Files that no manifest names are shown with what they say about themselves. Of a sorted file only the footer and the
//! properties are read, except by [`Shard::survey`] and [`Shard::history`].

mod history;

use std::rc::Rc;

pub use history::{History, Version};

use crate::data_dir::{DataDir, open_storage};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Owner};
use crate::key::{FileNumber, SeqNo, ShardId, Slot};
use crate::manifest::{Edits, State, current, read};
use crate::presence::{missing, unnamed};
use crate::record::claimed_store;
use crate::record::mark::Mark;
use crate::record::replay::End;
use crate::sst::SstMeta;
use crate::sst::block::BlockKind;
use crate::sst::reader::Sst;
use crate::sst::survey::{Surveyed, survey};
use crate::storage::device::Device;
use crate::storage::uring::UringStorage;
use crate::storage::{BLOCK_BYTES, Files, Storage, list_files, read_file};
use crate::store::Store;
use crate::wal::decode_group;
use crate::wal::reader::{self, Source};

/// A data directory, looked at from outside.
pub struct Inspection {
    /// What `STORE` says.
    pub store: Result<Store>,
    /// The id of the store, or 0 if no file says it.
    pub id: u64,
    /// The files beside the directories of the shards.
    pub files: Files,
    /// The shards, as far as their directories can be read.
    pub shards: Vec<(ShardId, Result<Shard<UringStorage>>)>,
}

impl Inspection {
    /// Reads `STORE`, and of the shards that `wanted` names (all if it names none) the manifests.
    ///
    /// # Errors
    /// `Configuration` if there is no store, if another version wrote it, or if it has no such shard; `Io`.
    pub async fn of(data_dir: &DataDir, wanted: Option<ShardId>) -> Result<Self> {
        let shown = data_dir.directory().path().display();
        let device = Device::for_reading(data_dir.directory())
            .map_err(|error| Error::io(format!("read {shown}"), error))?;
        let root = data_dir.storage(device)?;
        let files = list_files(&root)?;
        let found = data_dir.shards_found()?;
        let store = match data_dir.load_store(&root).await {
            Ok(Some(store)) => Ok(store),
            // Without the first shard there may be others.
            Ok(None) if !found.is_empty() => {
                Err(Error::new(ErrorKind::Corruption, format!("{} is missing", FileName::Store)))
            }
            Ok(None) => {
                let message = format!("{shown} holds no store: there is no {}", FileName::Store);
                return Err(Error::new(ErrorKind::Configuration, message));
            }
            Err(error) if error.kind() == ErrorKind::Corruption => Err(error),
            Err(error) => return Err(error),
        };
        let mut shards = match &store {
            Ok(store) => (0..store.shards).map(ShardId).collect(),
            Err(_) => found,
        };
        if let Some(wanted) = wanted {
            shards.retain(|shard| *shard == wanted);
            if shards.is_empty() {
                let message = format!("{shown} has no shard {}", wanted.0);
                return Err(Error::new(ErrorKind::Configuration, message));
            }
        }
        let opened = |shard| data_dir.shard(shard).and_then(|at| open_storage(&at, device, false));
        let storages: Vec<_> = shards.into_iter().map(|shard| (shard, opened(shard))).collect();
        let id = match &store {
            Ok(store) => store.id,
            Err(_) => claimed_id(storages.iter().filter_map(|(_, storage)| storage.as_ref().ok())).await,
        };
        let in_use = store.as_ref().map_or(true, |store| store.ready);
        let mut shards = Vec::new();
        for (shard, storage) in storages {
            let shard_read = match storage {
                Ok(storage) => Shard::open(storage, Owner { store_id: id, shard }, in_use).await,
                Err(error) => Err(error),
            };
            shards.push((shard, shard_read));
        }
        Ok(Self { store, id, files, shards })
    }

    /// Whether the shard may hold `key`. Without `STORE` every shard may.
    pub fn may_hold(&self, shard: ShardId, key: &[u8]) -> bool {
        self.store.as_ref().map_or(true, |store| store.slots[Slot::of(key).index()] == shard)
    }

    /// What is wrong with `STORE`, with directories, and with manifests.
    pub fn errors(&self) -> impl Iterator<Item = &Error> {
        let of_shards = self.shards.iter().flat_map(|(_, shard)| match shard {
            Ok(shard) => shard.errors().collect::<Vec<_>>(),
            Err(error) => vec![error],
        });
        self.store.as_ref().err().into_iter().chain(of_shards)
    }
}

/// The id of the store according to the files of its shards.
async fn claimed_id<'a, S: Storage>(shards: impl Iterator<Item = &'a S>) -> u64 {
    for storage in shards {
        for name in list_files(storage).unwrap_or_default().into_keys() {
            let front = read_file(storage, name, BLOCK_BYTES).await;
            if let Some(id) = front.ok().and_then(|front| claimed_store(&front)) {
                return id;
            }
        }
    }
    0
}

/// A shard.
pub struct Shard<S: Storage> {
    storage: S,
    owner: Owner,
    /// All its files.
    pub files: Files,
    /// The manifest that `CURRENT` names; `None` if the shard was never in use.
    pub current: Result<Option<FileNumber>>,
    /// The manifest whose edits were read.
    pub manifest: Option<ManifestReport>,
    /// The state after its last edit that verifies.
    pub state: State,
    /// What the state names and the directory has not, or not in the right length.
    pub missing: Vec<(FileName, Error)>,
    /// WALs that the manifest should name.
    pub unnamed: Vec<Error>,
}

/// How a manifest was read.
pub struct ManifestReport {
    /// Its number.
    pub number: FileNumber,
    /// Its length.
    pub bytes: u64,
    /// `CURRENT` does not say that it is in force.
    pub assumed: bool,
    /// Its edits that verify.
    pub edits: u64,
    /// Where its edits end.
    pub end: Result<End>,
}

/// Why a WAL is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The next start reads it.
    Needed,
    /// Its writes are in sorted files, and the manifest keeps it all the same.
    Kept,
    /// The manifest does not name it.
    Unnamed,
}

/// A commit group in a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Where it is.
    pub offset: u64,
    /// Length of its payload.
    pub bytes: u64,
    /// Its first write.
    pub first: SeqNo,
    /// Its last write.
    pub last: SeqNo,
}

/// A WAL.
pub struct WalReport {
    /// Its number.
    pub number: FileNumber,
    /// Its length.
    pub bytes: u64,
    /// Why it is there.
    pub role: Role,
    /// Its newest mark.
    pub mark: Result<Mark>,
    /// Its groups up to the end, or to the damage.
    pub groups: Vec<Group>,
    /// Where its groups end.
    pub end: Result<End>,
    /// The first group that does not follow the write before it.
    pub gap: Option<Error>,
}

/// Where a sorted file belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In this level.
    Level(usize),
    /// It was damaged, and replaced by another file; it is kept until it is repaired.
    Quarantine,
    /// The manifest does not name it.
    Unnamed,
}

/// A sorted file.
pub struct SstReport {
    /// Its number.
    pub number: FileNumber,
    /// Where it belongs.
    pub place: Place,
    /// Its length on disk; `None` if it is not there.
    pub bytes: Option<u64>,
    /// What the manifest says about it, otherwise what it says about itself.
    pub meta: Result<Rc<SstMeta>>,
    /// What is wrong with its footer or its properties. In a file that nothing names, that is no damage: a crash leaves files
    /// that are not complete.
    pub error: Option<Error>,
}

/// All blocks of a sorted file.
pub struct SstSurvey {
    /// As without its blocks.
    pub report: SstReport,
    /// The blocks in file order, each damaged place as an error.
    pub blocks: Vec<Result<Surveyed>>,
}

impl<S: Storage> Shard<S> {
    /// Reads `CURRENT` and the manifest. `in_use` says that there has to be one.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub async fn open(storage: S, owner: Owner, in_use: bool) -> Result<Self> {
        let files = list_files(&storage)?;
        let current = if files.contains_key(&FileName::Current) {
            current(&storage, owner).await.and_then(|number| {
                let name = FileName::Manifest(number);
                let (found, label) = (files.contains_key(&name), storage.label(FileName::Current));
                let message = format!("{label} names {name}, which is missing");
                if found { Ok(Some(number)) } else { Err(Error::new(ErrorKind::Corruption, message)) }
            })
        } else if in_use {
            let label = storage.label(FileName::Current);
            Err(Error::new(ErrorKind::Corruption, format!("{label} is missing, but the shard was in use")))
        } else {
            Ok(None)
        };
        let newest = files.keys().rev().find_map(|name| match name {
            FileName::Manifest(number) => Some(*number),
            _ => None,
        });
        let named = current.as_ref().ok().copied().flatten();
        let mut edits = Edits::default();
        let manifest = match named.or(newest) {
            None => None,
            Some(number) => {
                let bytes = files.get(&FileName::Manifest(number)).copied().unwrap_or_default();
                let end = read(&storage, owner, (number, bytes), &mut edits).await;
                Some(ManifestReport { number, bytes, assumed: named.is_none(), edits: edits.count, end })
            }
        };
        let state = edits.state;
        let mut shard =
            Self { storage, owner, files, current, manifest, state, missing: vec![], unnamed: vec![] };
        // Edits that could not be read may have removed a file, or named it.
        if shard.is_certain() {
            shard.missing = missing(&shard.storage, &shard.state, &shard.files);
            let unnamed = unnamed(&shard.storage, owner, &shard.state, &shard.files).await;
            shard.unnamed = unnamed.unwrap_or_else(|error| vec![error]);
        }
        Ok(shard)
    }

    /// The name of a file in messages.
    pub fn label(&self, name: FileName) -> String {
        self.storage.label(name)
    }

    /// The name of the directory.
    pub fn directory(&self) -> String {
        self.storage.directory_label()
    }

    /// Whether the manifest in force was read to its end. If not, a file that the state does not name may be needed.
    pub fn is_certain(&self) -> bool {
        self.manifest.as_ref().is_some_and(|manifest| !manifest.assumed && manifest.end.is_ok())
    }

    /// What is wrong with `CURRENT` and the manifest, and the files that are missing.
    pub fn errors(&self) -> impl Iterator<Item = &Error> {
        let manifest = self.manifest.as_ref().and_then(|manifest| manifest.end.as_ref().err());
        let missing = self.missing.iter().map(|(_, error)| error);
        self.current.as_ref().err().into_iter().chain(manifest).chain(missing).chain(&self.unnamed)
    }

    /// Files that nothing names, except WALs and sorted files.
    pub fn left_over(&self) -> impl Iterator<Item = (FileName, u64)> {
        let manifest = self.manifest.as_ref().map(|manifest| FileName::Manifest(manifest.number));
        let named = move |name: FileName| {
            name == FileName::Current
                || Some(name) == manifest
                || matches!(name, FileName::Wal(_) | FileName::Sst(_))
        };
        self.files.iter().map(|(name, bytes)| (*name, *bytes)).filter(move |(name, _)| !named(*name))
    }

    fn role(&self, number: FileNumber) -> Role {
        if self.state.wals.contains_key(&number) {
            Role::Needed
        } else if self.state.kept_wals.contains_key(&number) {
            Role::Kept
        } else {
            Role::Unnamed
        }
    }

    fn source(&self, number: FileNumber, file_bytes: u64) -> Source {
        Source { number, file_bytes, known_end: self.state.known_end(number) }
    }

    /// Reads the WALs, those with the highest numbers last.
    pub async fn wals(&self) -> Vec<WalReport> {
        let mut reports = Vec::new();
        // The write that has to come next in a WAL that is needed, unless a part before it could not be read.
        let mut next = self.is_certain().then(|| self.state.flushed.next());
        for (&name, &bytes) in &self.files {
            let FileName::Wal(number) = name else { continue };
            let needed = self.role(number) == Role::Needed;
            let report = self.wal(number, bytes, next.filter(|_| needed)).await;
            if needed {
                let last = report.groups.last().map(|group| group.last.next()).or(next);
                next = if report.end.is_ok() && next.is_some() { last } else { None };
            }
            reports.push(report);
        }
        reports
    }

    async fn wal(&self, number: FileNumber, bytes: u64, next: Option<SeqNo>) -> WalReport {
        let source = self.source(number, bytes);
        let label = self.label(FileName::Wal(number));
        let mark = reader::mark(&self.storage, self.owner, source).await;
        let (mut groups, mut gap, mut next) = (Vec::<Group>::new(), None, next);
        let end = reader::groups(&self.storage, self.owner, source, async |offset, payload| {
            let (first, count) =
                decode_group(payload, |_| {}).map_err(|reason| Error::undecodable(&label, offset, reason))?;
            if let Some(next) = next.filter(|next| *next != first && gap.is_none()) {
                let message =
                    format!("the group starts with write {}, but {} must come next", first.0, next.0);
                gap = Some(Error::corruption(&label, offset, message)); // W1
            }
            let last = SeqNo(first.0 + u64::from(count) - 1);
            groups.push(Group { offset, bytes: payload.len() as u64, first, last });
            next = Some(last.next());
            Ok(())
        })
        .await;
        WalReport { number, bytes, role: self.role(number), mark, groups, end: end.map(|(_, end)| end), gap }
    }

    /// Looks at the sorted files: those of the levels from the highest level to the lowest, then all others.
    pub async fn ssts(&self) -> Vec<SstReport> {
        let mut reports = Vec::new();
        for (level, metas) in self.state.version.levels() {
            for meta in metas {
                reports.push(self.sst(meta.number, Place::Level(level), Some(meta.clone())).await.0);
            }
        }
        for &name in self.files.keys() {
            let FileName::Sst(number) = name else { continue };
            let place = self.place(number).0;
            if !matches!(place, Place::Level(_)) {
                reports.push(self.sst(number, place, None).await.0);
            }
        }
        reports
    }

    /// Where a sorted file belongs, and what the manifest says about it.
    fn place(&self, number: FileNumber) -> (Place, Option<Rc<SstMeta>>) {
        for (level, metas) in self.state.version.levels() {
            if let Some(meta) = metas.iter().find(|meta| meta.number == number) {
                return (Place::Level(level), Some(meta.clone()));
            }
        }
        let quarantined = self.state.version.damage().iter().any(|damage| damage.file == number);
        (if quarantined { Place::Quarantine } else { Place::Unnamed }, None)
    }

    /// Opens a sorted file and compares its properties with what the manifest says about it. Returns the file if its footer
    /// is sound.
    async fn sst(
        &self,
        number: FileNumber,
        place: Place,
        named: Option<Rc<SstMeta>>,
    ) -> (SstReport, Option<Rc<Sst<S::File>>>) {
        let name = FileName::Sst(number);
        let bytes = self.files.get(&name).copied();
        let report = |meta, error| SstReport { number, place, bytes, meta, error };
        let absent = || Error::new(ErrorKind::Corruption, format!("{} is missing", self.label(name)));
        // A file that is missing or has another length is reported as missing.
        let length = bytes.filter(|found| named.as_ref().is_none_or(|meta| meta.bytes == *found));
        let Some(length) = length else { return (report(named.ok_or_else(absent), None), None) };
        let identity = self.owner.identity(FileKind::Sst, number);
        let sst = match Sst::open(&self.storage, identity, length).await {
            Ok(sst) => Rc::new(sst),
            Err(error) => return (report(named.ok_or(error.clone()), Some(error)), None),
        };
        let report = match (named, sst.properties().await) {
            (Some(named), Ok(own)) if *named == own => report(Ok(named), None),
            (Some(named), Ok(_)) => {
                let message = "the properties are not what the manifest says";
                report(Ok(named), Some(Error::corruption(&self.label(name), 0, message)))
            }
            (None, Ok(own)) => report(Ok(Rc::new(own)), None),
            (named, Err(error)) => report(named.ok_or(error.clone()), Some(error)),
        };
        (report, Some(sst))
    }

    /// Reads all of a sorted file; `None` if there is no such file.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub async fn survey(&self, number: FileNumber) -> Result<Option<SstSurvey>> {
        let Some(&bytes) = self.files.get(&FileName::Sst(number)) else { return Ok(None) };
        let (place, named) = self.place(number);
        let (report, sst) = self.sst(number, place, named).await;
        let sst = match sst {
            Some(sst) => sst,
            None => {
                let identity = self.owner.identity(FileKind::Sst, number);
                Rc::new(Sst::open_damaged(&self.storage, identity, bytes).await?)
            }
        };
        let mut blocks = Vec::new();
        survey(sst, |block| blocks.push(block)).await;
        Ok(Some(SstSurvey { report, blocks }))
    }
}

impl SstReport {
    /// What is damaged, and not in quarantine.
    pub fn damage(&self) -> Option<&Error> {
        self.error.as_ref().filter(|_| matches!(self.place, Place::Level(_)))
    }
}

impl WalReport {
    /// What does not verify. In a WAL that nothing names, that is no damage: its creation may not have finished.
    pub fn errors(&self) -> impl Iterator<Item = &Error> {
        // If the groups cannot be read because of the marks, the error is the same.
        self.end.as_ref().err().into_iter().chain(&self.gap)
    }

    /// What is damaged.
    pub fn damage(&self) -> impl Iterator<Item = &Error> {
        self.errors().filter(|_| self.role != Role::Unnamed)
    }

    /// Writes in its groups.
    pub fn writes(&self) -> u64 {
        self.groups.iter().map(|group| group.last.0 - group.first.0 + 1).sum()
    }

    /// The first and the last write.
    pub fn range(&self) -> Option<(SeqNo, SeqNo)> {
        self.groups.first().zip(self.groups.last()).map(|(first, last)| (first.first, last.last))
    }
}

/// The blocks of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    /// Their number.
    pub blocks: usize,
    /// Their length on disk.
    pub bytes: u64,
    /// Their length once unpacked.
    pub raw_bytes: u64,
    /// Their entries.
    pub entries: u64,
}

impl SstSurvey {
    /// The undamaged blocks by kind.
    pub fn totals(&self) -> Vec<(BlockKind, Total)> {
        use BlockKind::{Data, Filter, Index, Properties, Top};
        let mut totals = [Data, Index, Filter, Top, Properties].map(|kind| (kind, Total::default()));
        for block in self.blocks.iter().flatten() {
            for (_, total) in totals.iter_mut().filter(|(kind, _)| *kind == block.kind) {
                total.blocks += 1;
                total.bytes += u64::from(block.handle.bytes);
                total.raw_bytes += block.raw_bytes;
                total.entries += block.entries;
            }
        }
        totals.to_vec()
    }
}
