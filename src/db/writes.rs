//! The writes of a shard that are not in sorted files yet: memtables, and the WALs that hold the same writes.
//!
//! Owns: the SeqNo of the next write, the active and the frozen memtables, their WALs, the spare WAL, the commit queue, and
//! the policy by which flushed WALs are kept. All of it changes in synchronous steps; what reads or writes files around it
//! is in `flush`, `wals` and `commit`.
//!
//! D1  `visible` is the last SeqNo of the last committed group: readers see no write that a power cut could still take
//!     (P2). Writes above it are in the memtable already, for deletes to look at.
//! D2  A memtable and a WAL belong together: the memtable holds exactly the writes of its WAL. They are frozen and released
//!     together.
//! D3  A memtable is flushed only when all of it is committed, the oldest first.
//! D4  After `Poisoned` no write is accepted, and none is acknowledged (P6).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::Notify;

use super::admission::Work;
use super::commit::{CommitQueue, NothingAttached, Ticket};
use super::pressure::FROZEN_MAX;
use super::retention::{ReleaseAfterFlush, Retention};
use crate::config::{DbConfig, KEY_BYTES_MAX, WRITE_OVERHEAD_BYTES_MAX};
use crate::key::{Entry, EntryKind, FileNumber, Key, KeyHash, SeqNo};
use crate::memtable::Memtable;
use crate::storage::Storage;
use crate::wal::writer::Wal;

/// Where new writes go: a memtable, and the WAL that holds the same writes (D2).
struct Active<S: Storage> {
    memtable: Rc<Memtable>,
    wal: Rc<Wal<S::File>>,
}

/// A memtable that takes no more writes, and the number of its WAL.
pub(super) struct Frozen<S: Storage> {
    pub(super) memtable: Rc<Memtable>,
    pub(super) wal: FileNumber,
    wal_bytes: u64,
    /// The open WAL, until it is released.
    pub(super) held: RefCell<Option<Held<S>>>,
}

/// The open WAL of a frozen memtable.
pub(super) enum Held<S: Storage> {
    /// This process wrote it.
    Written(Rc<Wal<S::File>>),
    /// It was replayed. It is never used again: the kernel may still finish a write of the killed process there.
    Replayed(S::File),
}

impl<S: Storage> Held<S> {
    pub(super) fn file(&self) -> &S::File {
        match self {
            Self::Written(wal) => wal.file().file(),
            Self::Replayed(file) => file,
        }
    }
}

impl<S: Storage> Frozen<S> {
    /// `wal_bytes` is the length that the file of a replayed WAL has at least.
    pub(super) fn new(memtable: Rc<Memtable>, wal: FileNumber, wal_bytes: u64, held: Held<S>) -> Rc<Self> {
        Rc::new(Self { memtable, wal, wal_bytes, held: RefCell::new(Some(held)) })
    }

    /// The length that the file of the WAL has at least.
    pub(super) fn wal_bytes(&self) -> u64 {
        match &*self.held.borrow() {
            Some(Held::Written(wal)) => wal.file().allocated(),
            _ => self.wal_bytes,
        }
    }
}

impl<S: Storage> Active<S> {
    fn new(wal: Rc<Wal<S::File>>, key_hash: KeyHash) -> Self {
        Self { memtable: Rc::new(Memtable::new(key_hash)), wal }
    }

    fn freeze(self) -> Rc<Frozen<S>> {
        let number = self.wal.number();
        Frozen::new(self.memtable, number, self.wal.file().allocated(), Held::Written(self.wal))
    }
}

/// Why a write is not taken now, and which work makes room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom {
    pub(super) work: Work,
    pub(super) why: &'static str,
}

pub(super) struct Writes<S: Storage> {
    key_hash: KeyHash,
    memtable_bytes_max: usize,
    /// The SeqNo of the next write.
    next: Cell<SeqNo>,
    pub(super) queue: CommitQueue<S::File, NothingAttached>,
    active: RefCell<Active<S>>,
    /// The oldest first.
    frozen: RefCell<VecDeque<Rc<Frozen<S>>>>,
    pub(super) spare: Spare<S>,
    /// A freeze was asked for, and waits for a spare WAL.
    freeze_due: Cell<bool>,
    /// The length that the active WAL must have before a write that was refused for it fits.
    wal_bytes_wanted: Cell<u64>,
    pub(super) retention: RefCell<Rc<dyn Retention>>,
    frozen_came: Notify,
    growth_wanted: Notify,
}

/// The WAL that the next freeze will need.
pub(super) struct Spare<S: Storage> {
    wal: RefCell<Option<Rc<Wal<S::File>>>>,
    /// Somebody is making it.
    coming: Cell<bool>,
    wanted: Notify,
}

/// The task of making the spare WAL; it is over when this is dropped.
pub(super) struct Making<'a>(&'a Cell<bool>);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl<S: Storage> Spare<S> {
    fn none() -> Self {
        Self { wal: RefCell::new(None), coming: Cell::new(false), wanted: Notify::new() }
    }

    /// Takes on the task of making the spare WAL, if there is none and nobody else is at it.
    pub(super) fn begin(&self) -> Option<Making<'_>> {
        let free = self.wal.borrow().is_none() && !self.coming.replace(true);
        if free { Some(Making(&self.coming)) } else { None }
    }

    /// Puts the WAL in place that the holder of `_making` has made.
    pub(super) fn put(&self, wal: Wal<S::File>, _making: &Making<'_>) {
        let surplus = self.wal.replace(Some(Rc::new(wal)));
        assert!(surplus.is_none(), "one task at a time makes the spare WAL");
    }

    pub(super) fn get(&self) -> Option<Rc<Wal<S::File>>> {
        self.wal.borrow().clone()
    }

    pub(super) fn is_there(&self) -> bool {
        self.wal.borrow().is_some()
    }

    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Waits until a spare WAL is wanted. Cancel safety: safe.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl<S: Storage> Writes<S> {
    /// The writes of a shard whose next SeqNo is `next`, and all before it are durable. New writes go to `wal`.
    pub(super) fn new(
        config: &DbConfig,
        next: SeqNo,
        wal: Wal<S::File>,
        frozen: VecDeque<Rc<Frozen<S>>>,
    ) -> Self {
        Self {
            key_hash: config.key_hash,
            memtable_bytes_max: config.memtable_bytes,
            next: Cell::new(next),
            queue: CommitQueue::new(SeqNo(next.0 - 1), config.sync_every_group, NothingAttached),
            active: RefCell::new(Active::new(Rc::new(wal), config.key_hash)),
            frozen: RefCell::new(frozen),
            spare: Spare::none(),
            freeze_due: Cell::new(false),
            wal_bytes_wanted: Cell::new(0),
            retention: RefCell::new(Rc::new(ReleaseAfterFlush)),
            frozen_came: Notify::new(),
            growth_wanted: Notify::new(),
        }
    }

    /// The SeqNo of the last write that was taken.
    pub(super) fn last(&self) -> SeqNo {
        SeqNo(self.next.get().0 - 1)
    }

    /// Takes a write into the forming group and the active memtable. Returns its SeqNo as well.
    ///
    /// # Errors
    /// Why there is no room, and what makes room.
    pub(super) fn take(
        &self,
        key: Key<&[u8]>,
        kind: EntryKind,
        value: &[u8],
    ) -> Result<(Ticket, SeqNo), NoRoom> {
        let bytes = key.bytes().len() + value.len() + WRITE_OVERHEAD_BYTES_MAX - KEY_BYTES_MAX;
        if !self.active_has_room(bytes) {
            self.freeze()?;
        }
        let active = &*self.active.borrow();
        if !active.wal.is_allocated_for(bytes) {
            self.wal_bytes_wanted.set(self.wal_bytes_wanted.get().max(active.wal.end_with(bytes)));
            self.growth_wanted.notify_one();
            return Err(NoRoom { work: Work::GrowWal, why: "the WAL has to grow first" });
        }
        let seqno = self.next.get();
        self.next.set(seqno.next());
        let ticket = self.queue.push(&active.wal, seqno, key.bytes(), kind, value);
        active.memtable.insert(key, seqno, kind, value); // D1, D2
        // Half way there is still time to prepare the next WAL before a write has to wait for it.
        let half = self.memtable_bytes_max / 2 <= active.memtable.bytes() || active.wal.is_half_full();
        if half && !self.spare.is_there() {
            self.spare.want();
        }
        if active.wal.wants_growth() {
            self.growth_wanted.notify_one();
        }
        Ok((ticket, seqno))
    }

    fn active_has_room(&self, bytes: usize) -> bool {
        let active = self.active.borrow();
        active.memtable.entries() == 0
            || (active.memtable.bytes() < self.memtable_bytes_max && active.wal.has_room(bytes))
    }

    /// Freezes the active memtable, and gives the next writes a new one and the spare WAL.
    fn freeze(&self) -> Result<(), NoRoom> {
        if FROZEN_MAX <= self.frozen.borrow().len() {
            return Err(NoRoom { work: Work::Flush, why: "flushes are too far behind" });
        }
        let Some(wal) = self.spare.wal.borrow_mut().take() else {
            self.spare.want();
            return Err(NoRoom { work: Work::PrepareWal, why: "the next WAL is not ready" });
        };
        self.freeze_due.set(false);
        self.wal_bytes_wanted.set(0);
        let full = self.active.replace(Active::new(wal, self.key_hash));
        self.frozen.borrow_mut().push_back(full.freeze());
        self.frozen_came.notify_one();
        Ok(())
    }

    /// Freezes the active memtable, however little is in it, as soon as that is possible.
    pub(super) fn request_freeze(&self) {
        if self.active.borrow().memtable.entries() == 0 {
            return;
        }
        self.freeze_due.set(true);
        if self.freeze().is_err() {
            self.spare.want(); // a spare WAL, or room for one more frozen memtable, is lacking
        }
    }

    /// Makes up for a freeze that was asked for and not possible then.
    pub(super) fn freeze_if_due(&self) {
        if self.freeze_due.get() {
            let _ = self.freeze(); // it stays due, and whoever makes room tries again
        }
    }

    /// Freezes the active memtable for the last time: no write comes any more, so the new memtable needs no WAL of its own
    /// (D2). `false` if the memtable was empty.
    pub(super) fn freeze_last(&self) -> bool {
        if self.active.borrow().memtable.entries() == 0 {
            return false;
        }
        let wal = self.active_wal();
        let full = self.active.replace(Active::new(wal, self.key_hash));
        self.frozen.borrow_mut().push_back(full.freeze());
        true
    }

    /// The oldest frozen memtable.
    pub(super) fn oldest_frozen(&self) -> Option<Rc<Frozen<S>>> {
        self.frozen.borrow().front().cloned()
    }

    /// All frozen memtables, the oldest first.
    pub(super) fn all_frozen(&self) -> Vec<Rc<Frozen<S>>> {
        self.frozen.borrow().iter().cloned().collect()
    }

    /// Frozen memtables.
    pub(super) fn frozen(&self) -> usize {
        self.frozen.borrow().len()
    }

    /// Whether `frozen` is still there.
    pub(super) fn is_frozen(&self, frozen: &Rc<Frozen<S>>) -> bool {
        self.frozen.borrow().iter().any(|now| Rc::ptr_eq(now, frozen))
    }

    /// Lets go of the oldest frozen memtable, whose writes are in a sorted file in force.
    pub(super) fn release_oldest(&self, frozen: &Rc<Frozen<S>>) {
        let first = self.frozen.borrow_mut().pop_front();
        let is_oldest = first.is_some_and(|first| Rc::ptr_eq(&first, frozen));
        assert!(is_oldest, "one flush at a time, the oldest first"); // D3
    }

    /// Waits until there is a frozen memtable. Cancel safety: safe.
    pub(super) async fn frozen_came(&self) {
        while self.frozen() == 0 {
            self.frozen_came.notified().await;
        }
    }

    /// Waits until the active WAL should grow. Cancel safety: safe.
    pub(super) async fn growth_wanted(&self) {
        self.growth_wanted.notified().await;
    }

    /// The WAL that takes new writes.
    pub(super) fn active_wal(&self) -> Rc<Wal<S::File>> {
        self.active.borrow().wal.clone()
    }

    /// Whether `wal` takes new writes.
    pub(super) fn is_active(&self, wal: &Rc<Wal<S::File>>) -> bool {
        Rc::ptr_eq(&self.active.borrow().wal, wal)
    }

    /// The length that the active WAL must have at least, for a write that was refused.
    pub(super) fn wal_bytes_wanted(&self) -> u64 {
        self.wal_bytes_wanted.get()
    }

    /// How full the active memtable is, in hundredths.
    pub(super) fn active_percent(&self) -> usize {
        self.active.borrow().memtable.bytes().saturating_mul(100) / self.memtable_bytes_max
    }

    /// Lends the newest entry of a key at or below `snapshot` that a memtable holds.
    pub(super) fn find<R>(
        &self,
        hash: u64,
        key: &[u8],
        snapshot: SeqNo,
        mut read: impl FnMut(Entry<'_>) -> R,
    ) -> Option<R> {
        let found = self.active.borrow().memtable.get(hash, key, snapshot, &mut read);
        found.or_else(|| {
            let frozen = self.frozen.borrow();
            frozen.iter().rev().find_map(|frozen| frozen.memtable.get(hash, key, snapshot, &mut read))
        })
    }

    /// Brings the records of the active memtable with these hashes near the processor.
    pub(super) fn prefetch_active(&self, hashes: &[u64], values: bool) {
        self.active.borrow().memtable.prefetch(hashes, values);
    }

    /// Brings the records of the frozen memtables with these hashes near the processor.
    pub(super) fn prefetch_frozen(&self, hashes: &[u64]) {
        self.frozen.borrow().iter().for_each(|frozen| frozen.memtable.prefetch(hashes, true));
    }

    /// The memtables, the newest first.
    pub(super) fn memtables(&self) -> Vec<Rc<Memtable>> {
        let active = self.active.borrow().memtable.clone();
        std::iter::once(active).chain(self.frozen.borrow().iter().rev().map(|f| f.memtable.clone())).collect()
    }
}
