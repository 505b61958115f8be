//! Backups: a copy of a store in a directory of its own, and the way back.
//!
//! Owns: what a backup consists of, the order in which it is made, and when it is complete.
//!
//! ```text
//!   BACKUP  STORE  shard-000/{CURRENT, MANIFEST-000012, 000009.sst, …}  shard-001/…
//! ```
//!
//! A backup has the layout of a data directory, without WALs: the server flushes before it lends its files
//! ([`Snapshot`](crate::db::Snapshot)). So every file of a backup is immutable, and the next backup into the same directory
//! copies only what is new. A restore is the same work with a backup as the source.
//!
//! The file `BACKUP` marks the directory. A server refuses a directory with this mark: a store that goes on in the place
//! of a backup would give the same file numbers to other files. A restore removes the mark last.
//!
//! What a crash may leave, at each step, and why it is survived:
//!
//! 1. The mark is written and synced. After a crash, the directory is refused by servers, and the next run goes on.
//! 2. Sorted files are linked or copied, read back whole, and synced. After a crash, files that no manifest names are there,
//!    perhaps cut. The next run reads them whole before it relies on them, or goes on where they end.
//! 3. Their names are synced; a manifest names them, and `CURRENT` the manifest. After a crash, the shard is that of the
//!    backup before or of this one. Each shard is consistent by itself: no write depends on another shard.
//! 4. Files that the manifest does not name are removed. After a crash, some are left. The next run removes them.
//! 5. `STORE` is written, after all shards: a directory with `STORE` has every shard.
//! 6. A restore removes the mark.
//!
//! So a file that a manifest of the backup names was read whole after it was copied, and verified. A backup never ends as
//! complete if a part of a file could not be read, or does not verify.

pub mod archive;
pub mod folder;
pub mod pace;

use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::Rc;

use rustix::fs::OFlags;

use self::pace::Pace;
use crate::config::BLOCK_BYTES;
use crate::data_dir::{DataDir, open_storage};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::{FileName, shard_directory};
use crate::identity::{FileKind, Owner};
use crate::key::{SeqNo, ShardId};
use crate::manifest::{Loaded, Manifest, SharedMeta, State, load};
use crate::sst::reader::Sst;
use crate::sst::verify::verify;
use crate::storage::device::Device;
use crate::storage::directory::Directory;
use crate::storage::uring::UringStorage;
use crate::storage::{Files, Storage, list_files, sync_names};
use crate::store::Store;

/// Least length of a manifest, which takes no edits: a start writes another one.
pub const MANIFEST_BYTES: u64 = 64 << 10;
/// Bytes that are copied at a time.
const PART_BYTES: usize = 1 << 20;
/// After a restore, SeqNos go on this much higher. So none is given out twice that the store gave out after its backup, as
/// long as there were fewer writes than that.
pub const SEQNO_GAP: u64 = 1 << 32;

/// What is copied.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The store.
    pub store: Store,
    /// The shards, without WALs, in their order.
    pub shards: Vec<State>,
}

impl Contents {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().flat_map(|state| state.version.files()).map(|file| file.bytes).sum()
    }

    /// Key ranges that were lost to damage.
    pub fn damages(&self) -> usize {
        self.shards.iter().map(|state| state.version.damage().len()).sum()
    }
}

/// Where files come from.
pub trait Source {
    /// Makes a hard link to a file, in the directory `to`. `false` if that is not possible.
    fn link(&mut self, shard: ShardId, file: FileName, to: &Directory) -> bool;

    /// Reads `bytes` bytes of a sorted file from `offset` on, both multiples of the block size.
    ///
    /// # Errors
    /// Any.
    fn read(&mut self, shard: ShardId, file: FileName, offset: u64, bytes: usize) -> Result<Vec<u8>>;

    /// A whole copy of a file does not verify: the source may want to know.
    fn suspect(&mut self, _: ShardId, _: FileName) {}
}

/// What the directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A backup, which later runs may bring up to date.
    Backup,
    /// A data directory.
    Restore,
}

impl Purpose {
    /// The text of the mark.
    fn mark(self) -> &'static str {
        match self {
            Self::Backup => {
                "backup\nA backup made by `ringkeep backup`. `ringkeep restore` makes a data directory from it.\n"
            }
            Self::Restore => "restore\nA restore that has not finished. Run `ringkeep restore` again.\n",
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Files that are hard links to files of the store.
    pub linked: u64,
    /// Files that were copied.
    pub copied: u64,
    /// Files that were there.
    pub kept: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Files that do not verify.
    pub damaged: u64,
}

/// How files are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Copies even where a hard link is possible.
    pub copy: bool,
    /// Bytes in a second at most.
    pub rate: Option<u64>,
    /// Files that do not verify are taken as they are, and counted.
    pub damaged: bool,
    /// Source and target are one directory: files are verified, and stay as they are.
    pub in_place: bool,
}

/// A directory that becomes a backup, or a data directory.
pub struct Target<'a> {
    data_dir: &'a DataDir,
    purpose: Purpose,
    root: UringStorage,
    device: Device,
}

impl<'a> Target<'a> {
    /// Takes an empty directory, or one that an earlier run for the same purpose has left, of the store `store`.
    ///
    /// # Errors
    /// `CannotCreate` if something else is in the directory; `Configuration` if it is of another store; `Io`.
    pub async fn open(data_dir: &'a DataDir, purpose: Purpose, store: Option<&Store>) -> Result<Self> {
        let directory = data_dir.directory();
        let shown = directory.path().display();
        let failed = |what: &str| format!("{what} {shown}");
        let mut listed = directory.list().map_err(|error| Error::io(failed("list"), error))?;
        listed.retain(|(name, _)| name != "lost+found"); // of a new file system
        match mark(directory)? {
            Some(found) if found == purpose => {}
            Some(_) | None if listed.is_empty() => write_mark(directory, purpose)?,
            Some(Purpose::Restore) => {
                let message = format!("{shown} is a restore that has not finished: choose another directory");
                return Err(Error::new(ErrorKind::CannotCreate, message));
            }
            Some(Purpose::Backup) => {
                let message = format!("{shown} is a backup: choose an empty directory");
                return Err(Error::new(ErrorKind::CannotCreate, message));
            }
            None => {
                let message = format!("{shown} is not empty, and no backup: choose an empty directory");
                return Err(Error::new(ErrorKind::CannotCreate, message));
            }
        }
        let device = Device::probe(directory).map_err(|error| Error::io(failed("write to"), error))?;
        let root = data_dir.storage(device)?;
        if let (Some(found), Some(store)) = (Store::load(&root).await?, store)
            && found.id != store.id
        {
            let message = format!(
                "{shown} is a backup of another store (a reshard makes another one as well): choose an empty directory"
            );
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        Ok(Self { data_dir, purpose, root, device })
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        self.data_dir.directory()
    }

    /// Copies `contents` from `source`. `progress` is told how many bytes are done, and `after` which files are complete.
    ///
    /// # Errors
    /// Any. What was done stays, and another run goes on from there.
    pub async fn fill(
        &self,
        contents: &Contents,
        source: &mut impl Source,
        options: Options,
        mut progress: impl FnMut(u64),
        mut after: impl AsyncFnMut(&Directory, ShardId, FileName) -> Result<()>,
    ) -> Result<Done> {
        let mut done = Done::default();
        let mut pace = Pace::new(options.rate);
        for (shard, state) in (0..).map(ShardId).zip(&contents.shards) {
            let owner = Owner { store_id: contents.store.id, shard };
            let name = shard_directory(shard);
            let directory = self.data_dir.directory();
            directory.create_child(&name).map_err(|error| Error::io(format!("create {name}"), error))?;
            sync_names(&self.root).await?;
            let directory = self.data_dir.shard(shard)?;
            let storage = open_storage(&directory, self.device, true)?;
            let before = load(&storage, owner).await.unwrap_or_default(); // a damaged one is replaced
            let copy = Copy {
                owner,
                directory: &directory,
                storage: &storage,
                files: list_files(&storage)?,
                before: before.as_ref(),
                options,
            };
            for meta in state.version.files() {
                copy.bring(meta, source, &mut pace, &mut done).await?;
                progress(meta.bytes);
                after(&directory, shard, FileName::Sst(meta.number)).await?;
            }
            sync_names(&storage).await?;
            for name in self.name(&copy, state).await? {
                after(&directory, shard, name).await?;
            }
        }
        let store = Store { ready: true, ..contents.store.clone() };
        if Store::load(&self.root).await?.as_ref() != Some(&store) {
            store.save(&self.root).await?;
        }
        Ok(done)
    }

    /// Puts a manifest in force that names the files of `state`, and removes all others. Returns the names of the manifest and
    /// of `CURRENT`.
    async fn name(&self, copy: &Copy<'_>, state: &State) -> Result<[FileName; 2]> {
        let mut state = state.clone();
        if self.purpose == Purpose::Restore {
            state.flushed = SeqNo(state.flushed.0.saturating_add(SEQNO_GAP));
        }
        let same = |before: &&Loaded| {
            before.state.version == state.version
                && before.state.flushed == state.flushed
                && before.state.wals.is_empty()
        };
        let number = match copy.before.filter(same) {
            Some(before) => before.number,
            None => {
                // Above everything that is there: after a restore onto itself, this manifest has a number already.
                let files = list_files(copy.storage)?;
                let highest = files.keys().filter_map(|name| name.number()).max().unwrap_or_default();
                state.next_file = state.next_file.max(highest.next());
                let manifest =
                    Manifest::create(copy.storage.clone(), copy.owner, state.clone(), MANIFEST_BYTES);
                manifest.await?.number()
            }
        };
        let manifest = FileName::Manifest(number);
        for name in list_files(copy.storage)?.into_keys() {
            let is_kept = name == FileName::Current
                || name == manifest
                || state.version.files().any(|file| FileName::Sst(file.number) == name);
            if !is_kept {
                let removed = copy.storage.remove(name).await;
                removed.map_err(|error| Error::io(format!("remove {}", copy.storage.label(name)), error))?;
            }
        }
        sync_names(copy.storage).await?;
        Ok([manifest, FileName::Current])
    }

    /// Ends a restore: from now on the directory is a data directory.
    ///
    /// # Errors
    /// `Io`.
    pub async fn release(self) -> Result<()> {
        let directory = self.data_dir.directory();
        let removed = directory.remove_file(&FileName::Backup.to_string());
        removed.map_err(|error| Error::io(format!("remove {}", FileName::Backup), error))?;
        sync_names(&self.root).await
    }
}

/// The mark of a directory, if it has one.
///
/// # Errors
/// `Io`.
pub fn mark(directory: &Directory) -> Result<Option<Purpose>> {
    let name = FileName::Backup.to_string();
    let mut text = [0; 8];
    let read = directory.open_file(&name, OFlags::RDONLY).and_then(|file| file.read_at(&mut text, 0));
    match read {
        // A crash may leave an empty mark in an empty directory.
        Ok(_) => Ok(Some(if text.starts_with(b"restore") { Purpose::Restore } else { Purpose::Backup })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("read {name}"), error)),
    }
}

fn write_mark(directory: &Directory, purpose: Purpose) -> Result<()> {
    let name = FileName::Backup.to_string();
    let written =
        directory.open_file(&name, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC).and_then(|file| {
            file.write_all_at(purpose.mark().as_bytes(), 0)?;
            file.sync_all()?;
            directory.file().sync_all()
        });
    written.map_err(|error| Error::io(format!("write {name}"), error))
}

/// Copies files of one shard.
struct Copy<'a> {
    owner: Owner,
    directory: &'a Directory,
    storage: &'a UringStorage,
    /// What an earlier run has left: files, and the manifest.
    files: Files,
    before: Option<&'a Loaded>,
    options: Options,
}

impl Copy<'_> {
    /// Brings one file: keeps, links or copies it, and verifies it.
    async fn bring(
        &self,
        meta: &SharedMeta,
        source: &mut impl Source,
        pace: &mut Pace,
        done: &mut Done,
    ) -> Result<()> {
        let name = FileName::Sst(meta.number);
        done.bytes += meta.bytes;
        if self.options.in_place {
            done.kept += 1;
            let verified = self.verify(meta).await;
            return self.accept(verified, done);
        }
        let mut have = self.files.get(&name).copied();
        if have == Some(meta.bytes) {
            // With `copy`, a link to a file of the store is not what is wanted.
            let fits = !(self.options.copy && self.is_shared(meta)?);
            let known = fits && self.is_known(meta) && self.has_same_end(meta, source)?;
            if known || (fits && self.verify(meta).await.is_ok()) {
                self.sync(meta)?;
                done.kept += 1;
                return Ok(());
            }
        }
        if let Some(bytes) = have
            && (meta.bytes <= bytes || self.is_known(meta) || self.is_shared(meta)?)
        {
            self.remove(meta)?; // it is another file, or damaged
            have = None;
        }
        if have.is_none() && !self.options.copy && source.link(self.owner.shard, name, self.directory) {
            if self.verify(meta).await.is_ok() {
                self.sync(meta)?;
                done.linked += 1;
                return Ok(());
            }
            // The directory may be that of another host, or the file may be damaged: the server knows.
            self.remove(meta)?;
        }
        let resumed = have.is_some();
        done.copied_bytes += self.copy(meta, have.unwrap_or_default(), source, pace)?;
        let mut verified = self.verify(meta).await;
        if verified.is_err() && resumed {
            self.remove(meta)?; // what an earlier run has left was not what it seemed
            done.copied_bytes += self.copy(meta, 0, source, pace)?;
            verified = self.verify(meta).await;
        }
        if verified.as_ref().is_err_and(Error::is_damage) {
            source.suspect(self.owner.shard, name);
        }
        self.accept(verified, done)?;
        done.copied += 1;
        Ok(())
    }

    /// Lets damage pass, if that is wanted.
    fn accept(&self, verified: Result<()>, done: &mut Done) -> Result<()> {
        match verified {
            Err(error) if self.options.damaged && error.is_damage() => {
                tracing::warn!(%error, "a file is taken as it is");
                done.damaged += 1;
                Ok(())
            }
            Err(error) if error.is_damage() => {
                let message = format!("{error}; with --damaged the file is taken as it is");
                Err(Error::new(error.kind(), message))
            }
            verified => verified,
        }
    }

    /// Whether the manifest of an earlier run describes the same file.
    fn is_known(&self, meta: &SharedMeta) -> bool {
        self.before.is_some_and(|before| before.state.version.files().any(|file| **file == **meta))
    }

    /// Whether the last block of a file is that of the source. It has checksums of what leads to all others.
    fn has_same_end(&self, meta: &SharedMeta, source: &mut impl Source) -> Result<bool> {
        let name = FileName::Sst(meta.number);
        let at = meta.bytes.saturating_sub(BLOCK_BYTES as u64);
        let theirs = source.read(self.owner.shard, name, at, BLOCK_BYTES)?;
        let mut ours = vec![0; theirs.len()];
        let file = self.open(meta, OFlags::RDONLY)?;
        Ok(file.read_exact_at(&mut ours, at).is_ok() && ours == theirs)
    }

    /// Whether the file has other names, perhaps in a data directory. Such a file is never written to.
    fn is_shared(&self, meta: &SharedMeta) -> Result<bool> {
        let links = self.open(meta, OFlags::RDONLY)?.metadata().map(|metadata| metadata.nlink());
        let label = self.storage.label(FileName::Sst(meta.number));
        links.map(|links| 1 < links).map_err(|error| Error::io(format!("look at {label}"), error))
    }

    fn open(&self, meta: &SharedMeta, flags: OFlags) -> Result<std::fs::File> {
        let name = FileName::Sst(meta.number);
        let opened = self.directory.open_file(&name.to_string(), flags);
        opened.map_err(|error| Error::io(format!("open {}", self.storage.label(name)), error))
    }

    fn remove(&self, meta: &SharedMeta) -> Result<()> {
        let name = FileName::Sst(meta.number);
        let removed = self.directory.remove_file(&name.to_string());
        removed.map_err(|error| Error::io(format!("remove {}", self.storage.label(name)), error))
    }

    fn sync(&self, meta: &SharedMeta) -> Result<()> {
        let synced = self.open(meta, OFlags::RDONLY)?.sync_all();
        let label = self.storage.label(FileName::Sst(meta.number));
        synced.map_err(|error| Error::io(format!("sync {label}"), error))
    }

    /// Copies a file, of which `have` bytes are there, and syncs it. Returns the number of bytes that were copied.
    fn copy(&self, meta: &SharedMeta, have: u64, source: &mut impl Source, pace: &mut Pace) -> Result<u64> {
        let name = FileName::Sst(meta.number);
        let label = self.storage.label(name);
        let file = self.open(meta, OFlags::RDWR | OFlags::CREATE)?;
        let from = have / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let mut at = from;
        while at < meta.bytes {
            let bytes = usize::try_from(meta.bytes - at).unwrap_or(PART_BYTES).min(PART_BYTES);
            let part = source.read(self.owner.shard, name, at, bytes)?;
            if part.len() != bytes {
                let message = format!("{label}: {} bytes came at offset {at}, not {bytes}", part.len());
                return Err(Error::new(ErrorKind::Io, message));
            }
            let written = file.write_all_at(&part, at);
            written.map_err(|error| Error::io(format!("write {label} at offset {at}"), error))?;
            at += bytes as u64;
            pace.spend(bytes as u64);
        }
        file.sync_all().map_err(|error| Error::io(format!("sync {label}"), error))?;
        Ok(at - from)
    }

    /// Reads the whole file, and compares it with what the manifest says.
    async fn verify(&self, meta: &SharedMeta) -> Result<()> {
        let identity = self.owner.identity(FileKind::Sst, meta.number);
        let sst = Rc::new(Sst::open(self.storage, identity, meta.bytes).await?);
        match verify(sst, meta, |_| Ok(()), |_| {}).await.into_iter().next() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}
