//! One shard's engine: sets, gets and deletes over WAL, memtables and SSTs.
//!
//! Owns: the order of writes, what readers may see, and the life of memtables. Knows nothing of threads, HTTP
//! or time: it spawns nothing and reads no clock. Background work is offered as futures (`commit_next`,
//! `flush_next`, `grow_wal`, `prepare_spare`, `compact_next`, `remove_next`) that the shard drives, so that a seeded test can
//! drive them on simulated storage. All state is `Cell`s and `RefCell`s of one thread, never borrowed across an await.
//!
//! ```text
//!   set ──► SeqNo, forming group, active memtable ──(commit)──► visible, ticket answered
//!                                  │ full, or WAL full, or asked to
//!                                  ▼
//!                             frozen memtable ──(flush)──► L0 SST ──► manifest edit ──► WAL recycled
//!   get ──► active memtable ──► frozen, newest first ──► L0, newest first ──► L1 … L6        (at `visible`)
//! ```
//!
//! D1  `visible` is the last SeqNo of the last committed group: readers see no write that a power cut could
//!     still take (P2). Writes above it are in the memtable already, for deletes to look at.
//! D2  A memtable and a WAL belong together: the memtable holds exactly the writes of its WAL. They are frozen
//!     and released together.
//! D3  A memtable is flushed only when all of it is committed, the oldest first.
//! D4  After `Poisoned` no write is accepted, and none is acknowledged (P6).
//!
//! What a crash may leave, at each step of a flush, and why it is survived:
//! - before the manifest edit: an SST that nothing names, removed at open; the WAL is replayed;
//! - after the edit: the WAL that no manifest names is removed at open; the SST was synced, and its name, before
//!   the edit was written (P7);
//! - while the WAL is recycled: it has the old or the new name, and no manifest names either: removed.

pub mod commit;
mod compact;
mod flush;
pub mod read;
mod recovery;
pub mod stall;
mod values;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::unsync::Cache;
use tokio::sync::futures::Notified;
use tokio::sync::{Mutex, MutexGuard, Notify, OnceCell, OwnedSemaphorePermit, Semaphore};

use self::commit::CommitQueue;
pub use self::commit::Ticket;
pub use self::flush::CloseStep;
use self::read::Wants;
pub use self::read::{Lookup, Progress};
pub use self::recovery::{LogEnd, Recovered};
use self::stall::{Backlog, FROZEN_MAX, FROZEN_RECOVERED_MAX, Pressure};
use self::values::ValueCache;
use crate::compaction::{Limits, debt_bytes};
use crate::config::{DbConfig, KEY_BYTES_MAX, WRITE_OVERHEAD_BYTES_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::key::{FileNumber, KeyHash, SeqNo, ValueKind};
use crate::manifest::{Manifest, SharedMeta, State, Version, VersionEdit};
use crate::memtable::Memtable;
use crate::record::file::{RecordFile, Sizes, taken_away};
use crate::record::replay::KnownEnd;
use crate::record::{Kind, Owner};
use crate::sst::cache::BlockCache;
use crate::sst::reader::Sst;
use crate::storage::Storage;
use crate::wal::writer::Wal;

/// Most keys that are prefetched together; what is beyond is left out.
const PREFETCHED: usize = 64;
/// What has happened to a file whose name does not lead to it any more.
const TAKEN: &str = "moved, removed or replaced";
/// Reads up to this size are not counted one by one.
const SMALL_READ_BYTES: usize = 64 << 10;

/// The engine of one shard. Clones share it.
pub struct Db<S: Storage>(Rc<Inner<S>>);

impl<S: Storage> Clone for Db<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Where new writes go: a memtable, and the WAL that holds the same writes (D2).
struct Active<S: Storage> {
    memtable: Memtable,
    wal: Rc<Wal<S::File>>,
}

/// A memtable that takes no more writes, and the number of its WAL.
struct Frozen<S: Storage> {
    memtable: Memtable,
    wal: FileNumber,
    /// The open WAL, until it is released.
    held: RefCell<Option<Held<S>>>,
}

/// The open WAL of a frozen memtable.
enum Held<S: Storage> {
    /// This process wrote it.
    Written(Rc<Wal<S::File>>),
    /// It was replayed, and is never used again: the kernel may still finish a write of the killed process there.
    Replayed(S::File),
}

impl<S: Storage> Held<S> {
    fn file(&self) -> &S::File {
        match self {
            Self::Written(wal) => wal.file().file(),
            Self::Replayed(file) => file,
        }
    }
}

impl<S: Storage> Frozen<S> {
    fn new(memtable: Memtable, wal: FileNumber, held: Held<S>) -> Rc<Self> {
        Rc::new(Self { memtable, wal, held: RefCell::new(Some(held)) })
    }
}

impl<S: Storage> Active<S> {
    fn new(wal: Rc<Wal<S::File>>, key_hash: KeyHash) -> Self {
        Self { memtable: Memtable::new(key_hash), wal }
    }

    fn freeze(self) -> Rc<Frozen<S>> {
        Frozen::new(self.memtable, self.wal.number(), Held::Written(self.wal))
    }
}

type OpenFile<S> = OnceCell<Rc<Sst<<S as Storage>::File>>>;

struct Inner<S: Storage> {
    storage: S,
    owner: Owner,
    config: DbConfig,
    limits: Limits,
    /// The SeqNo of the next write.
    next: Cell<SeqNo>,
    /// Its `visible` is the last SeqNo that readers see (D1), its `failure` why writes have failed for good (D4).
    queue: CommitQueue<S::File>,
    active: RefCell<Active<S>>,
    /// The oldest first.
    frozen: RefCell<VecDeque<Rc<Frozen<S>>>>,
    /// The WAL that the next freeze will need.
    spare: RefCell<Option<Rc<Wal<S::File>>>>,
    /// Somebody is making the spare WAL.
    spare_coming: Cell<bool>,
    /// A freeze was asked for, and waits for a spare WAL.
    freeze_due: Cell<bool>,
    /// The length that the active WAL must have before a write that was refused for it fits.
    wal_bytes_wanted: Cell<u64>,
    version: RefCell<Rc<Version>>,
    /// Bytes of `version` over its limits.
    debt: Cell<u64>,
    manifest: Mutex<Manifest<S>>,
    next_file: Cell<u64>,
    cache: BlockCache,
    values: ValueCache,
    /// SSTs that are open, or being opened: many lookups that need a file open it once.
    open_files: RefCell<Cache<FileNumber, Rc<OpenFile<S>>>>,
    /// SSTs that the version in force no longer names, until they are removed; a reader may still look at them.
    obsolete: RefCell<Vec<SharedMeta>>,
    /// Bytes of background work until the next pause, by [`Work`].
    slice_left: [Cell<usize>; 4],
    /// Why background work fails at the moment, if it does, by [`Work`].
    trouble: RefCell<[Option<Error>; 4]>,
    closing: Cell<bool>,
    /// Writes that wait for room, and the turnstile that they pass one by one.
    waiting: Cell<usize>,
    turnstile: Mutex<()>,
    /// Memory that large values may take on their way to readers, in KiB (P8).
    large_reads: Arc<Semaphore>,
    /// Large blocks that deletes look at, a few at a time; the cache does not keep them.
    large_checks: Arc<Semaphore>,
    events: Events,
}

/// Kinds of background work.
#[derive(Clone, Copy)]
enum Work {
    Flush,
    Spare,
    Compaction,
    Growth,
}

/// What the background futures wait for.
#[derive(Default)]
struct Events {
    /// A group was committed or synced, or the queue has failed.
    committed: Notify,
    /// A memtable was frozen.
    frozen: Notify,
    /// A spare WAL is wanted.
    spare_wanted: Notify,
    /// The active WAL should become longer.
    growth_wanted: Notify,
    /// The version changed.
    version: Notify,
    /// Writes that were refused may be tried again.
    room: Notify,
}

impl<S: Storage> Db<S> {
    /// Takes a write into the forming group. It is not durable, and not visible, before the ticket says so.
    ///
    /// # Errors
    /// `InvalidRequest` or `TooLarge` for what can never be written; `Overloaded` or `DiskFull` for what can be
    /// written later (see [`Self::room`]); `ShuttingDown`; `Poisoned`.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<Ticket> {
        self.write(key, ValueKind::Value, value)
    }

    /// Takes a tombstone into the forming group, and looks up what it deletes: the state below its SeqNo, with
    /// writes in flight, which become durable before it. The answer is exact once the ticket is.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn delete(&self, key: &[u8]) -> Result<(Ticket, Lookup<S>)> {
        let below = SeqNo(self.0.next.get().0 - 1);
        self.check_key(key)?;
        // The lookup is taken first: the write may freeze the memtable, which changes nothing below.
        let lookup = Lookup::new(self, key, below, Wants::Existence);
        let ticket = self.write(key, ValueKind::Tombstone, b"")?;
        Ok((ticket, lookup))
    }

    /// Brings what memory holds of some keys near the processor: together, their cache misses overlap (see
    /// [`crate::hash_index`]). Changes no answer.
    pub fn prefetch<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        let inner = &*self.0;
        let mut hashes = [0; PREFETCHED];
        let mut count = 0;
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = inner.config.key_hash.of(key);
            count += 1;
        }
        let hashes = &hashes[..count];
        inner.active.borrow().memtable.prefetch(hashes);
        inner.frozen.borrow().iter().for_each(|frozen| frozen.memtable.prefetch(hashes));
        inner.values.prefetch(hashes);
    }

    /// Starts a search for the durable value of a key.
    ///
    /// # Errors
    /// `InvalidRequest` or `TooLarge`.
    pub fn lookup(&self, key: &[u8]) -> Result<Lookup<S>> {
        self.check_key(key)?;
        Ok(Lookup::new(self, key, self.0.queue.visible(), Wants::Value))
    }

    /// The durable value of a key.
    ///
    /// # Errors
    /// As [`Self::lookup`]; `Corruption` or `Io` if a block cannot be read.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.lookup(key)?.finish(self, key).await
    }

    fn check_key(&self, key: &[u8]) -> Result<()> {
        if key.is_empty() {
            return Err(Error::new(ErrorKind::InvalidRequest, "the key is empty"));
        }
        if KEY_BYTES_MAX < key.len() {
            let message = format!("the key is longer than {KEY_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        Ok(())
    }

    fn write(&self, key: &[u8], kind: ValueKind, value: &[u8]) -> Result<Ticket> {
        let inner = &*self.0;
        self.check_key(key)?;
        if inner.config.value_bytes_max < value.len() {
            let message = format!("the value is longer than {} bytes", inner.config.value_bytes_max);
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        if let Some(error) = inner.queue.failure() {
            return Err(error);
        }
        if inner.closing.get() {
            return Err(Error::new(ErrorKind::ShuttingDown, "the server is stopping"));
        }
        if FROZEN_RECOVERED_MAX <= inner.frozen.borrow().len() {
            // A crash adds what was active then. With every crash before the next flush there would be one more (P8).
            return Err(self.no_room(Work::Flush, "flushes are too far behind"));
        }
        if inner.config.queue_bytes_max() < inner.queue.bytes() + value.len() {
            return Err(Error::new(ErrorKind::Overloaded, "too many writes wait for the disk"));
        }
        if self.pressure().stops_writes() {
            return Err(self.no_room(Work::Compaction, "compaction is too far behind"));
        }
        let bytes = key.len() + value.len() + WRITE_OVERHEAD_BYTES_MAX - KEY_BYTES_MAX;
        if !self.active_has_room(bytes) {
            self.freeze()?;
        }
        let active = &mut *inner.active.borrow_mut();
        if !active.wal.is_allocated_for(bytes) {
            let wanted = inner.wal_bytes_wanted.get().max(active.wal.end_with(bytes));
            inner.wal_bytes_wanted.set(wanted);
            inner.events.growth_wanted.notify_one();
            return Err(self.no_room(Work::Growth, "the WAL has to grow first"));
        }
        let seqno = inner.next.get();
        inner.next.set(seqno.next());
        let ticket = inner.queue.push(&active.wal, seqno, key, kind, value);
        active.memtable.insert(key, seqno, kind, value); // D1, D2
        // Half way there is still time to prepare the next WAL before a write has to wait for it.
        let half = inner.config.memtable_bytes / 2 <= active.memtable.bytes() || active.wal.is_half_full();
        if half && inner.spare.borrow().is_none() {
            inner.events.spare_wanted.notify_one();
        }
        if active.wal.wants_growth() {
            inner.events.growth_wanted.notify_one();
        }
        Ok(ticket)
    }

    fn active_has_room(&self, bytes: usize) -> bool {
        let active = self.0.active.borrow();
        active.memtable.entries() == 0
            || (active.memtable.bytes() < self.0.config.memtable_bytes && active.wal.has_room(bytes))
    }

    /// Freezes the active memtable, and gives the next writes a new one and the spare WAL.
    fn freeze(&self) -> Result<()> {
        let inner = &*self.0;
        if FROZEN_MAX <= inner.frozen.borrow().len() {
            return Err(self.no_room(Work::Flush, "flushes are too far behind"));
        }
        let Some(wal) = inner.spare.borrow_mut().take() else {
            inner.events.spare_wanted.notify_one();
            return Err(self.no_room(Work::Spare, "the next WAL is not ready"));
        };
        inner.freeze_due.set(false);
        inner.wal_bytes_wanted.set(0);
        let full = inner.active.replace(Active::new(wal, inner.config.key_hash));
        inner.frozen.borrow_mut().push_back(full.freeze());
        inner.events.frozen.notify_one();
        Ok(())
    }

    /// A refusal that ends when `work` catches up; or when what keeps it from its work is over.
    fn no_room(&self, work: Work, why: &str) -> Error {
        match &self.0.trouble.borrow()[work as usize] {
            Some(error) if matches!(error.kind(), ErrorKind::DiskFull | ErrorKind::Corruption) => {
                error.clone()
            }
            _ => Error::new(ErrorKind::Overloaded, format!("the write was refused: {why}")),
        }
    }

    /// Completes when a write that was refused as `Overloaded` is worth another try. It counts from its creation,
    /// not from its first poll, so create it before the try.
    ///
    /// Cancel safety: safe.
    pub fn room(&self) -> Notified<'_> {
        self.0.events.room.notified()
    }

    /// Takes a place among the writes that wait for room. Places are taken in the order of the calls; later
    /// writes have to take one, too, as long as there are any (see [`Self::waits_for_room`]).
    pub fn wait_for_room(&self) -> Place<S> {
        self.0.waiting.set(self.0.waiting.get() + 1);
        Place(self.clone())
    }

    /// Whether a write waits for room.
    pub fn waits_for_room(&self) -> bool {
        0 < self.0.waiting.get()
    }

    /// How far background work is behind.
    pub fn pressure(&self) -> Pressure {
        Pressure::of(&self.backlog())
    }

    fn backlog(&self) -> Backlog {
        let inner = &*self.0;
        let version = inner.version.borrow();
        let bytes = inner.active.borrow().memtable.bytes();
        Backlog {
            frozen: inner.frozen.borrow().len(),
            active_percent: bytes.saturating_mul(100) / inner.config.memtable_bytes,
            l0_files: version.level(0).len(),
            debt_bytes: inner.debt.get(),
            base_bytes: inner.limits.base_bytes,
        }
    }

    /// Waits until there is a group to commit. Cancel safety: safe.
    pub async fn commit_due(&self) {
        self.0.queue.commit_due().await;
    }

    /// Lets every other ready task, and the kernel, go first.
    pub async fn pause(&self) {
        self.0.storage.pause().await;
    }

    /// Whether a group waits to be committed.
    pub fn has_uncommitted(&self) -> bool {
        !self.0.queue.is_empty()
    }

    /// Appends the oldest group to its WAL, if there is one, syncs it if that is the mode, and answers its writers. The
    /// caller may wait before, to slow writers down. One call at a time.
    ///
    /// # Errors
    /// `Poisoned`: every waiter has been told, and the process has to end (P6).
    ///
    /// Cancel safety: not safe.
    pub async fn commit_next(&self) -> Result<()> {
        let result = self.0.queue.commit().await;
        self.tell_waiters();
        result
    }

    /// Groups are committed, or never will be.
    fn tell_waiters(&self) {
        self.0.events.committed.notify_waiters();
        self.0.events.room.notify_waiters();
    }

    /// Syncs groups that were committed without a sync (`--sync DURATION`). Errors and cancel safety as
    /// [`Self::commit_next`].
    pub async fn sync(&self) -> Result<()> {
        let result = self.0.queue.sync().await;
        self.tell_waiters();
        result
    }

    /// The WAL of the last group, and how far it is durable; `None` before the first.
    pub fn durable(&self) -> Option<(FileNumber, u64)> {
        self.0.queue.durable()
    }

    /// Whether a mark says how far the WAL is durable, so that its end cannot be lost unnoticed (W4).
    pub fn is_witnessed(&self) -> bool {
        self.0.queue.is_witnessed()
    }

    /// Waits until a group is committed, or synced after that. Cancel safety: safe.
    pub async fn commit_seen(&self) {
        self.0.events.committed.notified().await;
    }

    /// Lets the next group carry a mark (W4). To be called every second.
    pub fn request_mark(&self) {
        self.0.queue.request_mark();
    }

    /// Writes and syncs a mark, unless the last one says it all (W4). For a moment without writes.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6).
    ///
    /// Cancel safety: not safe.
    pub async fn mark(&self) -> Result<()> {
        let result = self.0.queue.mark().await;
        self.tell_waiters();
        result
    }

    /// Notes in the manifest how far the last WAL is durable, so that an older copy of it does not pass for it (W4). For a
    /// longer pause of writes.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6); after any other the manifest is as it was.
    ///
    /// Cancel safety: not safe.
    pub async fn note_end(&self) -> Result<()> {
        let Some((number, durable)) = self.0.queue.durable() else { return Ok(()) };
        let edit = VersionEdit { durable_wals: vec![(number, durable)], ..VersionEdit::default() };
        self.edit_if(edit, |state| {
            // It may have been flushed and released by now.
            state.wals.get(&number).is_some_and(|wal| match wal.end {
                KnownEnd::AtLeast(known) => known < durable,
                KnownEnd::Exactly(_) => false,
            })
        })
        .await
    }

    /// Checks that the names of the shard still lead to the files that are in use: the directory, the WALs and the
    /// manifest. If they do not, somebody has moved, removed or replaced them, and what is written now
    /// would be lost.
    ///
    /// # Errors
    /// `Poisoned` if a name leads elsewhere; `Io` if that cannot be found out.
    ///
    /// Cancel safety: not safe.
    pub async fn check_names(&self) -> Result<()> {
        self.check_store().await?;
        let inner = &*self.0;
        let storage = &inner.storage;
        let look = |error| Error::io(format!("look at {}", storage.directory_label()), error);
        let wals = [Some(inner.active.borrow().wal.clone()), inner.spare.borrow().clone()];
        for wal in wals.into_iter().flatten() {
            let file = wal.file();
            let leads = storage.leads_to(file.name(), file.file()).await.map_err(look)?;
            // Meanwhile it may have been flushed, and have got another name.
            let active = Rc::ptr_eq(&inner.active.borrow().wal, &wal);
            let spare = inner.spare.borrow().as_ref().is_some_and(|spare| Rc::ptr_eq(spare, &wal));
            if active || spare {
                self.check_file(file, leads)?;
            }
        }
        let frozen: Vec<_> = inner.frozen.borrow().iter().cloned().collect();
        for frozen in frozen {
            let name = FileName::Wal(frozen.wal);
            let file = frozen.held.borrow().as_ref().map(|held| held.file().clone());
            let Some(file) = file else { continue };
            let leads = storage.leads_to(name, &file).await.map_err(look)?;
            let still = inner.frozen.borrow().iter().any(|now| Rc::ptr_eq(now, &frozen));
            if !leads && still {
                return Err(self.poison(&taken_away(&storage.label(name), TAKEN)));
            }
        }
        Ok(())
    }

    /// As [`Self::check_names`], of the directory and the manifest alone.
    pub(super) async fn check_store(&self) -> Result<()> {
        let inner = &*self.0;
        let storage = &inner.storage;
        let label = storage.directory_label();
        let look = |error| Error::io(format!("look at {label}"), error);
        if let Some(path) = storage.lost_path().await.map_err(look)? {
            return Err(self.poison(&taken_away(&path, TAKEN)));
        }
        let manifest = inner.manifest.lock().await;
        let log = manifest.log();
        let leads = storage.leads_to(log.name(), log.file()).await.map_err(look)?;
        self.check_file(log, leads)
    }

    fn check_file(&self, file: &RecordFile<S::File>, name_leads_to_it: bool) -> Result<()> {
        let result =
            if name_leads_to_it { file.check_in_place() } else { Err(taken_away(file.label(), TAKEN)) };
        result.map_err(|error| self.poison(&error))
    }

    /// Refuses every write from now on, and tells everyone who waits (D4).
    fn poison(&self, error: &Error) -> Error {
        let first = self.0.queue.fail(error);
        self.tell_waiters();
        first
    }

    /// Appends an edit to the manifest and puts the new version in force. The edit says by itself that the
    /// next file number is taken.
    async fn edit(&self, edit: VersionEdit) -> Result<()> {
        self.edit_if(edit, |_| true).await
    }

    /// As [`Self::edit`], if the state agrees when the manifest is locked.
    async fn edit_if(&self, mut edit: VersionEdit, agrees: impl Fn(&State) -> bool) -> Result<()> {
        let inner = &*self.0;
        let mut manifest = inner.manifest.lock().await;
        if !agrees(manifest.state()) {
            return Ok(());
        }
        if let Some(error) = inner.queue.failure() {
            return Err(error);
        }
        edit.next_file = Some(self.new_file()); // which a fresh manifest takes, if this one is full
        let before = inner.version.borrow().clone();
        if let Err(error) = manifest.append(&edit).await {
            return Err(if error.kind() == ErrorKind::Poisoned { self.poison(&error) } else { error });
        }
        inner.version.replace(manifest.state().version.clone());
        inner.debt.set(debt_bytes(&inner.version.borrow(), &inner.limits));
        let removed = before.files().filter(|file| edit.remove_ssts.iter().any(|(_, n)| *n == file.number));
        let moved = |file: &SharedMeta| edit.add_ssts.iter().any(|(_, added)| added.number == file.number);
        inner.obsolete.borrow_mut().extend(removed.filter(|file| !moved(file)).cloned());
        inner.events.version.notify_one();
        inner.events.room.notify_waiters();
        Ok(())
    }

    fn new_file(&self) -> FileNumber {
        let number = self.0.next_file.get();
        self.0.next_file.set(number + 1);
        FileNumber(number)
    }

    /// Notes whether background work fails at the moment; writes are refused for the same reason.
    fn note<T>(&self, work: Work, result: Result<T>) -> Result<T> {
        let trouble = result.as_ref().err().filter(|error| error.kind() != ErrorKind::ShuttingDown).cloned();
        self.0.trouble.borrow_mut()[work as usize] = trouble;
        result
    }

    /// Accounts for background work, and pauses when its slice is used up (X2).
    async fn slice(&self, work: Work, bytes: usize) {
        let inner = &*self.0;
        let left = &inner.slice_left[work as usize];
        match left.get().checked_sub(bytes) {
            Some(rest) => left.set(rest),
            None => {
                let backlog = self.backlog();
                left.set(match work {
                    Work::Flush => backlog.flush_slice_bytes(),
                    Work::Spare | Work::Growth | Work::Compaction => backlog.compaction_slice_bytes(),
                });
                inner.storage.pause().await;
            }
        }
    }

    /// An SST, open.
    async fn open_sst(&self, meta: &SharedMeta) -> Result<Rc<Sst<S::File>>> {
        let inner = &*self.0;
        let open = inner.open_files.borrow().get(&meta.number).cloned();
        let open = open.unwrap_or_else(|| {
            let open = Rc::new(OpenFile::<S>::new());
            inner.open_files.borrow_mut().insert(meta.number, open.clone());
            open
        });
        let identity = inner.owner.identity(Kind::Sst, meta.number);
        let sst = open
            .get_or_try_init(async || Sst::open(&inner.storage, identity, meta.bytes).await.map(Rc::new))
            .await?;
        Ok(sst.clone())
    }

    /// Leave to hold `bytes` for a reader; given back when the guard is dropped. Small reads need none: their number
    /// is bounded by the requests under way.
    ///
    /// # Errors
    /// `Overloaded`.
    fn hold_for_reader(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>> {
        if bytes <= SMALL_READ_BYTES {
            return Ok(None);
        }
        // A value larger than all of it, from a time with another `--max-value-size`, takes what cached blocks leave.
        let config = &self.0.config;
        let kibibytes =
            bytes.div_ceil(1024).min((config.large_reads_bytes_max() - config.cache_bytes) / 1024);
        let kibibytes = u32::try_from(kibibytes).expect("values are under 4 TiB");
        match self.0.large_reads.clone().try_acquire_many_owned(kibibytes) {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => Err(Error::new(ErrorKind::Overloaded, "too many large values are being read")),
        }
    }

    /// Waits until a block of `bytes` may be read to see whether a key is there.
    async fn hold_for_check(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes <= SMALL_READ_BYTES {
            return None;
        }
        // It is never closed; and without leave the check is made all the same.
        self.0.large_checks.clone().acquire_owned().await.ok()
    }

    /// A copy of a value in memory, counted like a read.
    fn copy_for_reader(&self, value: &[u8]) -> Result<Bytes> {
        Ok(match self.hold_for_reader(value.len())? {
            None => Bytes::copy_from_slice(value),
            Some(permit) => Bytes::from_owner(HeldValue(value.to_vec(), permit)),
        })
    }

    /// The SST, if it is open.
    fn opened_sst(&self, number: FileNumber) -> Option<Rc<Sst<S::File>>> {
        self.0.open_files.borrow().get(&number)?.get().cloned()
    }

    /// The SSTs in force.
    pub fn version(&self) -> Rc<Version> {
        self.0.version.borrow().clone()
    }

    /// Which shard this is.
    pub fn owner(&self) -> Owner {
        self.0.owner
    }

    /// Commit groups and writes so far: their ratio is the mean size of a group.
    pub fn committed(&self) -> (u64, u64) {
        self.0.queue.committed()
    }
}

/// How long the WALs of a shard may become, and in which steps.
fn wal_sizes(config: &DbConfig) -> Sizes {
    Sizes { capacity: config.wal_bytes, step: config.wal_step_bytes }
}

/// A place among the writes that wait for room; it is given up when this is dropped.
pub struct Place<S: Storage>(Db<S>);

impl<S: Storage> Place<S> {
    /// Waits until nobody who came before is left. Whoever polls this in the order of the places comes in it.
    ///
    /// Cancel safety: safe; the place is kept.
    pub async fn first(&self) -> MutexGuard<'_, ()> {
        self.0.0.turnstile.lock().await
    }
}

impl<S: Storage> Drop for Place<S> {
    fn drop(&mut self) {
        let waiting = &self.0.0.waiting;
        waiting.set(waiting.get() - 1);
    }
}

/// A value on its way to a reader, and the leave to hold it.
struct HeldValue(Vec<u8>, #[allow(dead_code, reason = "it is there to be dropped")] OwnedSemaphorePermit);

impl AsRef<[u8]> for HeldValue {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
