//! Opens a shard: `CURRENT` → manifest → files that must be there → WALs in order.
//!
//! 1. The manifest says which files make up the shard. A file that is missing, a WAL that is too short, or an SST of
//!    another length stops the start, and the error names the file. Files that the manifest does not name are leftovers
//!    of a crash. A WAL that holds writes found in no other file is not a leftover: the edit that named it was lost,
//!    and the start is refused.
//! 2. The WALs are replayed in order. Each ends where its last record verifies. A torn record after that is cut and
//!    reported. A gap in the SeqNos is damage (W1).
//!    If the memtables take more memory than the shard has for them, they are flushed on the way, the oldest first, and
//!    a WAL that does not fit is flushed in parts. Only the fresh manifest names these files, together with the WALs
//!    that are left. Before that they are leftovers like any other, and the next start replays the same WALs again.
//! 3. What was replayed is synced, so that it may be shown (P2). Then a fresh manifest is written that fixes where each
//!    WAL ends. So a write of the killed process that the kernel finishes late cannot appear at a later open among
//!    writes that were acknowledged in the meantime.
//! 4. Leftovers are removed only now. Until then, an edit of the killed process might still have landed in the old
//!    manifest, and named one of them. (If the disk is too full for step 3, leftovers are removed first, once what was
//!    read is durable. Should such an edit still land, and a second crash come just then, the next start is refused.)
//! 5. Replayed memtables are frozen, and the background flush turns them into SSTs while requests are served. A WAL
//!    without a write has no memtable, and the fresh manifest does not name it. A write of the killed process that
//!    lands in that WAL late was never acknowledged. A start that finds such a write knows by the number of the WAL
//!    that the WAL was released.
//!
//! The WAL of a clean stop is used again as it is. After any other stop new writes go to a new WAL, because the kernel
//! may still be writing to the WAL of the killed process.
//!
//! A crash during any of these steps leaves either the old manifest or the fresh one in force. Nothing that the old
//! manifest names, or may come to name, is changed before the fresh manifest is in force (except as in step 4).
//!
//! After an unclean stop the start logs where the last WAL ended, and how far a mark had witnessed it (W4).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use tokio::sync::Notify;

use super::admission::Admission;
use super::catalog::Catalog;
use super::flush::write_sst;
use super::sample::Counts;
use super::tree::Tree;
use super::wals::{unused, wal_sizes};
use super::writes::{Frozen, Held, Writes};
use super::{Db, Inner};
use crate::config::DbConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Owner};
use crate::key::{FileNumber, SeqNo};
use crate::manifest::{Loaded, Manifest, State, VersionEdit, WalMeta, load_in_use, make_durable};
use crate::memory::Memory;
use crate::memtable::Memtable;
use crate::presence::{missing, unexpected_data, unnamed};
use crate::record::file::FIRST_RECORD;
use crate::record::mark::Mark;
use crate::record::replay::{End, KnownEnd};
use crate::storage::{Storage, list_files};
use crate::wal::reader::{Source, replay};
use crate::wal::writer::Wal;

/// The length of a new WAL and of a new manifest where there is no space for the usual length.
const SHORT_BYTES: u64 = 64 << 10;

/// What an open found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Writes replayed from WALs.
    pub writes: u64,
    /// Bytes of WALs that held these writes.
    pub wal_bytes: u64,
    /// Bytes of torn groups that were cut.
    pub torn_bytes: u64,
    /// Files that nothing named and that were removed.
    pub leftovers: u64,
    /// Where the last WAL ended; `None` after a clean stop.
    pub log_end: Option<LogEnd>,
}

/// What a shard is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Serve,
    Repair,
}

/// Where the writes of a shard ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// The last WAL that holds a group, or the first WAL if none does.
    pub wal: FileNumber,
    /// The end of its last group.
    pub offset: u64,
    /// How far it was witnessed. Damage below this offset is refused.
    pub witnessed: u64,
}

impl Recovered {
    /// Adds what another shard found.
    pub fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.wal_bytes += other.wal_bytes;
        self.torn_bytes += other.torn_bytes;
        self.leftovers += other.leftovers;
    }
}

impl<S: Storage> Db<S> {
    /// Creates the shard in a directory that may hold leftovers of a creation that did not finish.
    ///
    /// # Errors
    /// `Corruption` if the directory holds data, which means that `STORE` is wrong. After any other error, too, nothing
    /// was acknowledged.
    pub async fn create(storage: S, owner: Owner, config: DbConfig) -> Result<Self> {
        Self::create_with(storage, owner, config, Memory::ample()).await
    }

    /// As [`Self::create`], with a part in the memory of a process.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn create_with(storage: S, owner: Owner, config: DbConfig, memory: Memory) -> Result<Self> {
        if let Some(error) = unexpected_data(&storage, owner).await? {
            return Err(error);
        }
        remove_except(&storage, |_| false).await?;
        let state = State { next_file: FileNumber(1), ..State::default() };
        Ok(Self::open_state(storage, owner, config, memory, state, None).await?.0)
    }

    /// Opens the shard.
    ///
    /// # Errors
    /// `Corruption` with file and offset, or with the name of a missing file; `Configuration` if a later version wrote
    /// a file; `Poisoned`; `DiskFull`; `Io`.
    pub async fn open(storage: S, owner: Owner, config: DbConfig) -> Result<(Self, Recovered)> {
        Self::open_with(storage, owner, config, Memory::ample()).await
    }

    /// As [`Self::open`], for [`Self::repair`]: sorted files may be missing, or not have their length.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_to_repair(storage: S, owner: Owner, config: DbConfig) -> Result<Self> {
        let opened = Self::open_for(Purpose::Repair, storage, owner, config, Memory::ample());
        opened.await.map(|(db, _)| db)
    }

    /// As [`Self::open`], with a part in the memory of a process.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(
        storage: S,
        owner: Owner,
        config: DbConfig,
        memory: Memory,
    ) -> Result<(Self, Recovered)> {
        Self::open_for(Purpose::Serve, storage, owner, config, memory).await
    }

    async fn open_for(
        purpose: Purpose,
        storage: S,
        owner: Owner,
        config: DbConfig,
        memory: Memory,
    ) -> Result<(Self, Recovered)> {
        let Loaded { state, number, end } = load_in_use(&storage, owner).await?;
        report(&storage.label(FileName::Manifest(number)), "version edit", &end);
        let spares = |name| match purpose {
            Purpose::Serve => false,
            Purpose::Repair => matches!(name, FileName::Sst(_)),
        };
        let missing = missing(&storage, &state, &list_files(&storage)?);
        if let Some((_, error)) = missing.into_iter().find(|(name, _)| !spares(*name)) {
            return Err(error);
        }
        Self::open_state(storage, owner, config, memory, state, Some(number)).await
    }

    /// Opens the shard in `state`. `loaded` is the number of the manifest that holds this state; `None` for a new
    /// shard.
    async fn open_state(
        storage: S,
        owner: Owner,
        config: DbConfig,
        memory: Memory,
        mut state: State,
        loaded: Option<FileNumber>,
    ) -> Result<(Self, Recovered)> {
        let leftovers = look_at_leftovers(&storage, owner, &mut state).await?;
        let full = |prepared: &Result<Prepared<S>>| {
            prepared.as_ref().is_err_and(|error| error.kind() == ErrorKind::DiskFull)
        };
        let mut prepared = Self::prepare(&storage, owner, &config, &memory, state.clone()).await;
        if full(&prepared) && 0 < leftovers {
            // The leftovers may take the space that is lacking.
            if let Some(number) = loaded {
                make_durable(&storage, number).await?;
            }
            let in_force = |name| matches!(name, FileName::Current | FileName::Manifest(_));
            remove_except(&storage, |name| state.names(name) || in_force(name)).await?;
            look_at_leftovers(&storage, owner, &mut state).await?;
            prepared = Self::prepare(&storage, owner, &config, &memory, state.clone()).await;
        }
        if full(&prepared) {
            // With little space a shard can still be read, and take deletes. Nothing is flushed on the way: memory is
            // given back when there is space again.
            let unbounded = Memory { memtables: memory.memtables.unbounded(), ..memory.clone() };
            let short = DbConfig {
                wal_step_bytes: SHORT_BYTES.min(config.wal_step_bytes),
                manifest_bytes: SHORT_BYTES.min(config.manifest_bytes),
                ..config
            };
            prepared = Self::prepare(&storage, owner, &short, &unbounded, state).await;
        }
        let Prepared { replayed: Replayed { next, frozen, mut recovered, .. }, wal, manifest } = prepared?;
        recovered.leftovers = leftovers;
        let state = manifest.state().clone();
        let number = manifest.number();
        remove_except(&storage, |name| {
            state.names(name) || name == FileName::Current || name == FileName::Manifest(number)
        })
        .await?;
        let inner = Inner {
            writes: Writes::new(&config, memory.memtables.clone(), next, wal, frozen),
            tree: Tree::new(&config, &memory.merges, &state.version),
            admission: Admission::default(),
            catalog: Catalog::new(manifest),
            space_changed: Notify::new(),
            edited: Notify::new(),
            counts: Counts::default(),
            storage,
            owner,
            config,
            memory,
        };
        Ok((Self(Rc::new(inner)), recovered))
    }

    /// Replays the WALs, makes the WAL for new writes, and puts a fresh manifest in force that names all of them.
    async fn prepare(
        storage: &S,
        owner: Owner,
        config: &DbConfig,
        memory: &Memory,
        mut state: State,
    ) -> Result<Prepared<S>> {
        let mut replayed = replay_all(storage, owner, config, memory, &mut state).await?;
        let flushed = std::mem::take(&mut replayed.flushed);
        let prepared = Self::serve_from(storage, owner, config, state, replayed).await;
        if let Err(error) = &prepared {
            give_up(storage, &flushed, error).await;
        }
        prepared
    }

    /// Makes the WAL for new writes, and puts a fresh manifest in force.
    async fn serve_from(
        storage: &S,
        owner: Owner,
        config: &DbConfig,
        mut state: State,
        mut replayed: Replayed<S>,
    ) -> Result<Prepared<S>> {
        let sizes = wal_sizes(config);
        let (wal, made) = match replayed.clean {
            Some(Clean { number, mark, bytes }) => {
                (Wal::open_empty(storage, owner, number, mark, bytes, sizes).await?, None)
            }
            None => {
                let number = state.next_file;
                match Wal::create(storage, owner, number, sizes).await {
                    Ok(wal) => (wal, Some(FileName::Wal(number))),
                    Err(error) => {
                        give_up(storage, &[FileName::Wal(number)], &error).await;
                        return Err(error);
                    }
                }
            }
        };
        state.next_file = state.next_file.max(wal.number().next());
        state.clean_wal = None;
        state.wals = std::mem::take(&mut replayed.wals);
        state.wals.insert(wal.number(), unused(&wal));
        match Manifest::create(storage.clone(), owner, state, config.manifest_bytes).await {
            Ok(manifest) => Ok(Prepared { replayed, wal, manifest }),
            Err(error) => {
                give_up(storage, made.as_slice(), &error).await;
                Err(error)
            }
        }
    }
}

/// Removes new files that nothing names. Otherwise each failed start would leave files, and they would fill the disk.
async fn give_up<S: Storage>(storage: &S, names: &[FileName], error: &Error) {
    if error.kind() != ErrorKind::Poisoned {
        for name in names {
            let _ = storage.remove(*name).await; // it may not exist
        }
    }
}

/// A replayed shard, and the WAL and the manifest with which it will serve. All of it is durable.
struct Prepared<S: Storage> {
    replayed: Replayed<S>,
    wal: Wal<S::File>,
    manifest: Manifest<S>,
}

/// Checks the files that the manifest does not name. Their numbers are not used again. Returns how many files a crash
/// has left over.
///
/// # Errors
/// `Corruption` if one of them is a WAL that holds writes found in no other file, or is damaged; `Configuration` if a
/// later version wrote it; `Io`.
async fn look_at_leftovers<S: Storage>(storage: &S, owner: Owner, state: &mut State) -> Result<u64> {
    let files = list_files(storage)?;
    if let Some(error) = unnamed(storage, owner, state, &files).await?.into_iter().next() {
        return Err(error);
    }
    let highest = files.keys().filter_map(|name| name.number()).max();
    state.next_file = state.next_file.max(highest.unwrap_or_default().next());
    let left =
        |name: &&FileName| !state.names(**name) && !matches!(name, FileName::Current | FileName::Manifest(_));
    Ok(files.keys().filter(left).count() as u64)
}

/// The content of the WALs.
struct Replayed<S: Storage> {
    /// The SeqNo of the next write.
    next: SeqNo,
    /// A memtable for each WAL, the oldest first.
    frozen: VecDeque<Rc<Frozen<S>>>,
    /// The WALs that stay, and where each of them ends.
    wals: BTreeMap<FileNumber, WalMeta>,
    /// The sorted files that were written because memory did not suffice for all writes.
    flushed: Vec<FileName>,
    clean: Option<Clean>,
    recovered: Recovered,
}

/// The empty WAL of a clean stop, which will be used again.
struct Clean {
    number: FileNumber,
    mark: Mark,
    /// Bytes of the WAL that were written and synced.
    bytes: u64,
}

/// Replays every WAL. A WAL without a write is not needed any more, except the WAL of a clean stop.
async fn replay_all<S: Storage>(
    storage: &S,
    owner: Owner,
    config: &DbConfig,
    memory: &Memory,
    state: &mut State,
) -> Result<Replayed<S>> {
    let mut replayed = Replayed {
        next: state.flushed.next(),
        frozen: VecDeque::new(),
        wals: BTreeMap::new(),
        flushed: Vec::new(),
        clean: None,
        recovered: Recovered::default(),
    };
    let mut replay = Replay { storage, owner, config, memory, state, replayed: &mut replayed };
    let files = list_files(storage)?;
    let wals: Vec<_> = replay.state.wals.iter().map(|(&number, &wal)| (number, wal.bytes)).collect();
    for (number, bytes) in wals {
        let file_bytes = files.get(&FileName::Wal(number)).copied().unwrap_or_default();
        if let Err(error) = replay.wal(number, bytes, file_bytes).await {
            give_up(storage, &replayed.flushed, &error).await;
            return Err(error);
        }
    }
    Ok(replayed)
}

/// A replay under way.
struct Replay<'a, S: Storage> {
    storage: &'a S,
    owner: Owner,
    config: &'a DbConfig,
    memory: &'a Memory,
    /// Follows the sorted files that are written.
    state: &'a mut State,
    replayed: &'a mut Replayed<S>,
}

impl<S: Storage> Replay<'_, S> {
    /// Replays a WAL whose file has `file_bytes`; `bytes` of them are in the manifest.
    async fn wal(&mut self, number: FileNumber, bytes: u64, file_bytes: u64) -> Result<()> {
        let known_end = self.state.known_end(number);
        let source = Source { number, file_bytes, known_end };
        let memtable = RefCell::new(self.memtable());
        let (mut next, before) = (self.replayed.next, self.replayed.next);
        let mut in_parts = false;
        let storage = self.storage;
        let (file, end) = replay(
            storage,
            self.owner,
            source,
            &mut next,
            |entry| memtable.borrow().insert_entry(entry),
            async || {
                if self.has_room(memtable.borrow().bytes()) {
                    return Ok(());
                }
                while !self.has_room(memtable.borrow().bytes()) && self.flush_oldest().await? {}
                if !self.has_room(memtable.borrow().bytes()) {
                    let full = memtable.replace(self.memtable());
                    self.flush(full).await?;
                    in_parts = true;
                }
                Ok(())
            },
        )
        .await?;
        report(&storage.label(FileName::Wal(number)), "commit group", &end);
        let writes = next.0 - before.0;
        self.replayed.next = next;
        let Replayed { recovered, clean, .. } = &mut *self.replayed;
        recovered.torn_bytes += end.torn_bytes;
        if self.state.clean_wal.is_none() && (0 < writes || recovered.log_end.is_none()) {
            recovered.log_end = Some(LogEnd { wal: number, offset: end.offset, witnessed: end.witnessed });
        }
        if self.state.clean_wal == Some(number)
            && end.bad_slot.is_none()
            && FIRST_RECORD < bytes
            && bytes <= self.config.wal_bytes
        {
            *clean = Some(Clean { number, mark: end.mark, bytes });
        }
        if writes == 0 {
            // If such a WAL were kept, each start that is killed would leave one more.
            return Ok(());
        }
        recovered.writes += writes;
        recovered.wal_bytes += end.offset - FIRST_RECORD;
        let memtable = memtable.into_inner();
        if in_parts {
            // A WAL and a memtable hold the same writes (D2), so the rest goes the way of the first part.
            return if 0 < memtable.entries() { self.flush(memtable).await } else { Ok(()) };
        }
        self.replayed.wals.insert(number, WalMeta { bytes, end: KnownEnd::Exactly(end.offset) });
        self.replayed.frozen.push_back(Frozen::new(memtable, number, bytes, Held::Replayed(file)));
        Ok(())
    }

    fn memtable(&self) -> Rc<Memtable> {
        let charge = self.memory.memtables.charge();
        Rc::new(Memtable::on_account(self.config.key_hash, Some(charge)))
    }

    /// Whether the shard may keep what it has replayed so far in memory, with `bytes` of the present WAL.
    fn has_room(&self, bytes: usize) -> bool {
        let frozen: usize = self.replayed.frozen.iter().map(|frozen| frozen.memtable.bytes()).sum();
        frozen + bytes <= self.memory.memtables.share()
    }

    /// Flushes the memtable of the oldest WAL that is in memory (D3). The WAL is not needed any more. `false` if there is
    /// none.
    async fn flush_oldest(&mut self) -> Result<bool> {
        let Some(oldest) = self.replayed.frozen.pop_front() else { return Ok(false) };
        self.replayed.wals.remove(&oldest.wal);
        self.flush(oldest.memtable.clone()).await?;
        Ok(true)
    }

    /// Writes a memtable to a sorted file, which the fresh manifest will name.
    async fn flush(&mut self, memtable: Rc<Memtable>) -> Result<()> {
        let number = self.state.next_file;
        self.state.next_file = number.next();
        self.replayed.flushed.push(FileName::Sst(number));
        let (pool, pause) = (&self.memory.flushes, async |_| self.storage.pause().await);
        let identity = self.owner.identity(FileKind::Sst, number);
        let meta = write_sst(self.storage, identity, &memtable, pool, |_| {}, pause).await?;
        let edit = VersionEdit {
            flushed: Some(meta.last),
            add_ssts: vec![(0, Rc::new(meta))],
            clean_wal: self.state.clean_wal,
            ..VersionEdit::default()
        };
        let manifest = self.storage.directory_label();
        *self.state = self.state.apply(&edit).map_err(|reason| Error::undecodable(&manifest, 0, reason))?;
        Ok(())
    }
}

/// Logs what only a crash or damage leaves at the end of a file. `what` names the content of one record of the file.
fn report(file: &str, what: &str, end: &End) {
    if let Some(reason) = end.torn_reason {
        tracing::warn!(file, offset = end.offset, bytes = end.torn_bytes, %reason, "cut a torn {what}");
    }
    if let Some(reason) = end.bad_slot {
        tracing::warn!(file, %reason, "one of the two marks is bad: the file was searched to its end");
    }
    if let Some(error) = &end.unread {
        tracing::warn!(file, %error, "a part of the file cannot be read; nothing shows that it held a {what}");
    }
}

/// Removes every file of ours for which `stays` returns `false`.
async fn remove_except<S: Storage>(storage: &S, stays: impl Fn(FileName) -> bool) -> Result<()> {
    for name in list_files(storage)?.into_keys() {
        if !stays(name) {
            let label = storage.label(name);
            storage.remove(name).await.map_err(|error| Error::io(format!("remove {label}"), error))?;
        }
    }
    Ok(())
}
