//! The writes of a shard that are not in sorted files yet: the memtables, and the WALs that hold the same writes.
//!
//! Owns: the SeqNo of the next write, the active and the frozen memtables, their WALs, the spare WAL, the commit queue,
//! and the policy by which flushed WALs are kept. All of this changes in synchronous steps. The code that reads or
//! writes files before and after these steps is in `flush`, `wals` and `commit`.
//!
//! D1  `visible` is the last SeqNo of the last committed group: readers see no write that a power cut could still take
//!     (P2). Writes above it are already in the memtable, where deletes look at them.
//! D2  A memtable and a WAL belong together: the memtable holds exactly the writes of its WAL. They are frozen and released
//!     together.
//! D3  A memtable is flushed only when all of its writes are committed. The oldest memtable is flushed first.
//! D4  After `Poisoned` no write is accepted or acknowledged (P6).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::Notify;

use super::admission::Work;
use super::commit::{CommitQueue, NothingAttached, Ticket};
use super::pressure::FROZEN_MAX;
use super::retention::{ReleaseAfterFlush, Retention};
use crate::config::{DbConfig, KEY_BYTES_MAX, WRITE_OVERHEAD_BYTES_MAX};
use crate::key::{Entry, EntryKind, FileNumber, Key, KeyHash, NewValue, SeqNo};
use crate::memory::Account;
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
    /// It was replayed. It is never used again: the kernel may still finish a write of the killed process in this file.
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
    /// `wal_bytes` is a lower bound on the length of the WAL's file.
    pub(super) fn new(memtable: Rc<Memtable>, wal: FileNumber, wal_bytes: u64, held: Held<S>) -> Rc<Self> {
        Rc::new(Self { memtable, wal, wal_bytes, held: RefCell::new(Some(held)) })
    }

    /// A lower bound on the length of the WAL's file.
    pub(super) fn wal_bytes(&self) -> u64 {
        match &*self.held.borrow() {
            Some(Held::Written(wal)) => wal.file().allocated(),
            _ => self.wal_bytes,
        }
    }
}

impl<S: Storage> Active<S> {
    fn new(wal: Rc<Wal<S::File>>, key_hash: KeyHash, account: &Account) -> Self {
        Self { memtable: Rc::new(Memtable::on_account(key_hash, Some(account.charge()))), wal }
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
    /// What the memtables of all shards hold.
    account: Account,
    /// The SeqNo of the next write.
    next: Cell<SeqNo>,
    pub(super) queue: CommitQueue<S::File, NothingAttached>,
    active: RefCell<Active<S>>,
    /// The oldest first.
    frozen: RefCell<VecDeque<Rc<Frozen<S>>>>,
    pub(super) spare: Spare<S>,
    /// A freeze was requested, and waits for a spare WAL or for a flush.
    freeze_due: Cell<bool>,
    /// The length that the active WAL must reach before the refused writes fit.
    wal_bytes_wanted: Cell<u64>,
    pub(super) retention: RefCell<Rc<dyn Retention>>,
    /// Nobody has written for a while.
    rests: Cell<bool>,
    /// WALs that took no group and that the manifest still names, because it could not be edited.
    dropped: RefCell<Vec<FileNumber>>,
    frozen_came: Notify,
    growth_wanted: Notify,
}

/// The WAL that the next freeze will need.
pub(super) struct Spare<S: Storage> {
    wal: RefCell<Option<Rc<Wal<S::File>>>>,
    /// A task is making it.
    coming: Cell<bool>,
    wanted: Notify,
}

/// The permission to make the spare WAL. One task holds it at a time, and gives it back by dropping it.
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

    /// Gives the permission to make the spare WAL, if there is no spare and no other task is making one.
    pub(super) fn begin(&self) -> Option<Making<'_>> {
        let free = self.wal.borrow().is_none() && !self.coming.replace(true);
        if free { Some(Making(&self.coming)) } else { None }
    }

    /// Makes `wal` the spare. Only the holder of the permission calls this.
    pub(super) fn put(&self, wal: Wal<S::File>, _making: &Making<'_>) {
        let surplus = self.wal.replace(Some(Rc::new(wal)));
        assert!(surplus.is_none(), "one task at a time makes the spare WAL");
    }

    pub(super) fn get(&self) -> Option<Rc<Wal<S::File>>> {
        self.wal.borrow().clone()
    }

    /// Takes the spare WAL away if it is longer than `bytes`.
    pub(super) fn take_long(&self, bytes: u64) -> Option<Rc<Wal<S::File>>> {
        self.wal.borrow_mut().take_if(|wal| bytes < wal.file().allocated())
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
    /// The writes of a shard whose next SeqNo is `next`. All writes before that are durable. New writes go to `wal`.
    pub(super) fn new(
        config: &DbConfig,
        account: Account,
        next: SeqNo,
        wal: Wal<S::File>,
        frozen: VecDeque<Rc<Frozen<S>>>,
    ) -> Self {
        Self {
            key_hash: config.key_hash,
            memtable_bytes_max: config.memtable_bytes,
            next: Cell::new(next),
            queue: CommitQueue::new(SeqNo(next.0 - 1), config.sync_every_group, NothingAttached),
            active: RefCell::new(Active::new(Rc::new(wal), config.key_hash, &account)),
            account,
            frozen: RefCell::new(frozen),
            spare: Spare::none(),
            freeze_due: Cell::new(false),
            wal_bytes_wanted: Cell::new(0),
            retention: RefCell::new(Rc::new(ReleaseAfterFlush)),
            rests: Cell::new(false),
            dropped: RefCell::default(),
            frozen_came: Notify::new(),
            growth_wanted: Notify::new(),
        }
    }

    /// The SeqNo of the last write that was taken.
    pub(super) fn last(&self) -> SeqNo {
        SeqNo(self.next.get().0 - 1)
    }

    /// Takes a write into the forming group and the active memtable. Returns the ticket and the SeqNo of the write.
    ///
    /// # Errors
    /// Why there is no room, and what makes room.
    pub(super) fn take(
        &self,
        key: Key<&[u8]>,
        kind: EntryKind,
        value: NewValue<'_>,
    ) -> Result<(Ticket, SeqNo), NoRoom> {
        let bytes = key.bytes().len() + value.as_ref().len() + WRITE_OVERHEAD_BYTES_MAX - KEY_BYTES_MAX;
        if !self.active_has_room(bytes) {
            self.freeze()?;
        }
        if !self.account.admits(bytes) {
            self.account.refused();
            return Err(NoRoom {
                work: Work::Flush,
                why: "the memory for writes that are not flushed is used up",
            });
        }
        let active = self.active.borrow();
        if !active.wal.is_allocated_for(bytes) {
            self.wal_bytes_wanted.set(self.wal_bytes_wanted.get().max(active.wal.end_with(bytes)));
            self.growth_wanted.notify_one();
            return Err(NoRoom { work: Work::GrowWal, why: "the WAL has to grow first" });
        }
        let seqno = self.next.get();
        self.next.set(seqno.next());
        self.rests.set(false);
        let ticket = self.queue.push(&active.wal, seqno, key.bytes(), kind, value.clone());
        active.memtable.insert(key, seqno, kind, value); // D1, D2
        // Once the memtable or the WAL is half full, there is still time to prepare the next WAL before a write has to
        // wait.
        let half = self.memtable_bytes_max / 2 <= active.memtable.bytes() || active.wal.is_half_full();
        if half && !self.spare.is_there() {
            self.spare.want();
        }
        if active.wal.wants_growth() {
            self.growth_wanted.notify_one();
        }
        drop(active);
        self.freeze_if_short();
        Ok((ticket, seqno))
    }

    fn active_has_room(&self, bytes: usize) -> bool {
        let active = self.active.borrow();
        active.memtable.entries() == 0
            || (active.memtable.bytes() < self.memtable_bytes_max && active.wal.has_room(bytes))
    }

    /// Freezes the active memtable. The next writes go to a new memtable and to the spare WAL.
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
        let full = self.active.replace(Active::new(wal, self.key_hash, &self.account));
        self.frozen.borrow_mut().push_back(full.freeze());
        self.frozen_came.notify_one();
        Ok(())
    }

    /// Freezes the active memtable as soon as possible, however little it holds.
    pub(super) fn request_freeze(&self) {
        if self.active.borrow().memtable.entries() == 0 {
            return;
        }
        self.freeze_due.set(true);
        if self.freeze().is_err() {
            self.spare.want(); // there is no spare WAL, or no room for another frozen memtable
        }
    }

    /// If the memtables of all shards are short of memory, freezes the active memtable, provided that it has at least half
    /// of its share (Z4).
    pub(super) fn freeze_if_short(&self) {
        if self.account.is_short() && self.account.share() / 2 <= self.active.borrow().memtable.bytes() {
            self.request_freeze();
        }
    }

    /// Carries out a freeze that was requested when it was not possible.
    pub(super) fn freeze_if_due(&self) {
        if self.freeze_due.get() {
            let _ = self.freeze(); // after an error the freeze stays due, and is tried again
        }
    }

    /// Freezes the active memtable for the last time. No write follows, so the new memtable needs no WAL of its own
    /// (D2). Returns `false` if the memtable was empty.
    pub(super) fn freeze_last(&self) -> bool {
        if self.active.borrow().memtable.entries() == 0 {
            return false;
        }
        let wal = self.active_wal();
        let full = self.active.replace(Active::new(wal, self.key_hash, &self.account));
        self.frozen.borrow_mut().push_back(full.freeze());
        true
    }

    /// Takes note that nobody has written for a while. The next write ends the rest.
    pub(super) fn rest(&self) {
        self.rests.set(true);
        self.request_freeze();
    }

    /// Remembers a WAL that is still to be removed.
    pub(super) fn keep_dropped(&self, number: FileNumber) {
        self.dropped.borrow_mut().push(number);
    }

    /// Takes the number of a WAL that is still to be removed.
    pub(super) fn take_dropped(&self) -> Option<FileNumber> {
        self.dropped.borrow_mut().pop()
    }

    /// Whether nobody has written for a while.
    pub(super) fn rests(&self) -> bool {
        self.rests.get()
    }

    /// Puts the spare WAL in the place of the active one, if no write has gone to the active one and that is longer.
    /// Returns the WAL that was active.
    pub(super) fn replace_unused_wal(&self) -> Option<Rc<Wal<S::File>>> {
        let mut active = self.active.borrow_mut();
        let mut spare = self.spare.wal.borrow_mut();
        let shorter = spare.as_ref()?.file().allocated() < active.wal.file().allocated();
        if !shorter || 0 < active.memtable.entries() {
            return None; // D2: the memtable holds what is in the WAL
        }
        self.wal_bytes_wanted.set(0);
        Some(std::mem::replace(&mut active.wal, spare.take()?))
    }

    /// Whether no write has gone to the active WAL, and that is longer than `bytes`.
    pub(super) fn has_long_unused_wal(&self, bytes: u64) -> bool {
        let active = self.active.borrow();
        active.memtable.entries() == 0 && bytes < active.wal.file().allocated()
    }

    /// The oldest frozen memtable.
    pub(super) fn oldest_frozen(&self) -> Option<Rc<Frozen<S>>> {
        self.frozen.borrow().front().cloned()
    }

    /// All frozen memtables, the oldest first.
    pub(super) fn all_frozen(&self) -> Vec<Rc<Frozen<S>>> {
        self.frozen.borrow().iter().cloned().collect()
    }

    /// The number of frozen memtables.
    pub(super) fn frozen(&self) -> usize {
        self.frozen.borrow().len()
    }

    /// Whether `frozen` is still there.
    pub(super) fn is_frozen(&self, frozen: &Rc<Frozen<S>>) -> bool {
        self.frozen.borrow().iter().any(|now| Rc::ptr_eq(now, frozen))
    }

    /// Releases the oldest frozen memtable. Its writes are in a sorted file in force.
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

    /// The length that the active WAL must reach before the refused writes fit; 0 if no write was refused.
    pub(super) fn wal_bytes_wanted(&self) -> u64 {
        self.wal_bytes_wanted.get()
    }

    /// How full the active memtable is, in hundredths.
    pub(super) fn active_percent(&self) -> usize {
        self.active.borrow().memtable.bytes().saturating_mul(100) / self.memtable_bytes_max
    }

    /// Lends the newest entry of a key at or below `snapshot`, if a memtable holds one.
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

    /// Loads the records of these hashes in the active memtable into the processor's caches.
    pub(super) fn prefetch_active(&self, hashes: &[u64], values: bool) {
        self.active.borrow().memtable.prefetch(hashes, values);
    }

    /// Loads the records of these hashes in the frozen memtables into the processor's caches.
    pub(super) fn prefetch_frozen(&self, hashes: &[u64]) {
        self.frozen.borrow().iter().for_each(|frozen| frozen.memtable.prefetch(hashes, true));
    }

    /// Bytes of the active WAL, and at least those of the WALs of frozen memtables.
    pub(super) fn wal_bytes(&self) -> u64 {
        let frozen = self.frozen.borrow().iter().map(|frozen| frozen.wal_bytes()).sum::<u64>();
        self.active.borrow().wal.file().allocated() + frozen
    }

    /// The memtables, the newest first.
    pub(super) fn memtables(&self) -> Vec<Rc<Memtable>> {
        let active = self.active.borrow().memtable.clone();
        std::iter::once(active).chain(self.frozen.borrow().iter().rev().map(|f| f.memtable.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures_executor::block_on;

    use super::*;
    use crate::config::tests::SMALL;
    use crate::db::Db;
    use crate::db::tests::{NOW, OWNER, create, freeze, run_on, ssts, step};
    use crate::error::{Error, ErrorKind, Result};
    use crate::file_name::FileName;
    use crate::manifest::load;
    use crate::op::Op;
    use crate::random::Random;
    use crate::record::replay::KnownEnd;
    use crate::storage::sim::{Failure, Fate, Fault, SimStorage};
    use crate::wal::reader::{Source, read};

    #[test]
    fn d1_readers_see_a_write_when_it_is_committed_and_deletes_see_it_before() {
        let db = create(&SimStorage::new(1));
        let get = || block_on(db.get(b"k", NOW)).unwrap();
        let ticket = db.set(b"k", b"1").unwrap();
        assert_eq!(get(), None);
        let (_, lookup) = db.delete(b"k", NOW).unwrap();
        assert!(block_on(lookup.finish(&db, b"k")).unwrap().is_some(), "there was something to delete");
        drop(db.set(b"k", b"2").unwrap());
        assert_eq!((get(), db.visible()), (None, SeqNo(0)));
        block_on(db.commit_next()).unwrap();
        block_on(ticket).unwrap();
        assert_eq!((get().as_deref(), db.visible()), (Some(&b"2"[..]), SeqNo(3)));
        // A frozen memtable may hold writes that are not committed, too.
        drop(db.set(b"k", b"3").unwrap());
        assert!(freeze(&db));
        drop(db.set(b"k", b"4").unwrap());
        for (seen, visible) in [(b"2", 3), (b"3", 4), (b"4", 5)] {
            assert_eq!((get().as_deref(), db.visible()), (Some(&seen[..]), SeqNo(visible)));
            block_on(db.commit_next()).unwrap();
        }
    }

    #[test]
    fn d1_what_a_reader_sees_survives_a_power_cut_at_any_moment() {
        let storage = SimStorage::new(1);
        let db = create(&storage);
        for value in 1..=4 {
            drop(db.set(b"k", &[value]).unwrap());
            let mut commit = Box::pin(db.commit_next());
            loop {
                let done = step(&mut commit).is_some();
                let seen = block_on(db.get(b"k", NOW)).unwrap();
                let (after, _) = block_on(Db::open(storage.crash(Fate::Lost), OWNER, SMALL)).unwrap();
                assert!(seen <= block_on(after.get(b"k", NOW)).unwrap(), "{seen:?} was seen, and is lost");
                if done {
                    assert_eq!(seen.as_deref(), Some(&[value][..]));
                    break;
                }
            }
        }
    }

    /// Checks that each memtable holds the writes of its WAL, and that the manifest names the WALs that are in use. All
    /// writes must be committed.
    fn check_pairs(db: &Db<SimStorage>, storage: &SimStorage, context: &str) {
        let writes = &db.0.writes;
        let active = writes.active.borrow();
        let frozen = writes.all_frozen();
        let pairs = frozen.iter().map(|frozen| (&frozen.memtable, frozen.wal));
        let mut next = db.version().files().map(|file| file.last).max().unwrap_or_default().next();
        let mut wals = BTreeSet::from_iter(writes.spare.get().map(|spare| spare.number()));
        for (memtable, number) in pairs.chain([(&active.memtable, active.wal.number())]) {
            wals.insert(number);
            let files = storage.files();
            let file =
                files.iter().find(|(name, _)| *name == FileName::Wal(number)).expect("the WAL is there");
            let source = Source { number, file_bytes: file.1, known_end: KnownEnd::default() };
            let mut count = 0;
            let replayed = read(storage, OWNER, source, &mut next, |entry| {
                count += 1;
                let hash = SMALL.key_hash.of(entry.key);
                let same = memtable.get(hash, entry.key, entry.seqno, |found| found == entry);
                assert_eq!(same, Some(true), "{context}: {:?} of WAL {number:?}", entry.seqno);
            });
            block_on(replayed).unwrap();
            assert_eq!(count, memtable.entries(), "{context}: writes of WAL {number:?}");
        }
        let named = block_on(load(storage, OWNER)).unwrap().unwrap().state.wals;
        assert!(named.keys().eq(&wals), "{context}: {named:?} are named, and {wals:?} are in use");
    }

    #[test]
    fn d2_a_memtable_holds_the_writes_of_its_wal_and_both_come_and_go_together() {
        for seed in 0..5 {
            let mut random = Random::new(seed);
            let storage = SimStorage::new(seed);
            let db = create(&storage);
            let mut flushes = 0;
            for turn in 0..150 {
                for _ in 0..random.below(4) {
                    let key = [random.below(20) as u8];
                    let value = vec![7; random.below(40_000) as usize];
                    // A write that finds no room is in neither memtable nor WAL.
                    let _ = if random.below(4) == 0 {
                        db.delete(&key, NOW).map(|_| ())
                    } else {
                        db.set(&key, &value).map(|_| ())
                    };
                }
                match random.below(8) {
                    0 => drop(freeze(&db)),
                    1 => block_on(db.prepare_spare()).unwrap(),
                    2 => block_on(db.grow_wal()).unwrap(),
                    _ => {}
                }
                while db.has_uncommitted() {
                    block_on(db.commit_next()).unwrap();
                }
                check_pairs(&db, &storage, &format!("seed {seed}, turn {turn}"));
                if random.below(4) == 0 && db.has_frozen() {
                    let released = db.0.writes.oldest_frozen().unwrap().wal;
                    block_on(db.flush_next()).unwrap();
                    flushes += 1;
                    check_pairs(&db, &storage, &format!("seed {seed}, turn {turn}, after a flush"));
                    assert!(!storage.files().iter().any(|(name, _)| *name == FileName::Wal(released)));
                }
            }
            assert!(5 < flushes, "seed {seed}: {flushes} flushes");
        }
    }

    #[test]
    fn d2_a_write_that_comes_while_a_shard_shortens_its_wals_keeps_its_wal() {
        for steps in 0.. {
            let storage = SimStorage::new(1);
            let db = create(&storage);
            let is_long = || db.0.writes.has_long_unused_wal(SMALL.wal_step_bytes);
            for turn in 0.. {
                assert!(turn < 20, "no WAL has grown and is used again");
                for value in [vec![7; 200_000], vec![8; 200_000]] {
                    block_on(db.grow_wal()).unwrap();
                    drop(db.set(b"k", &value));
                    block_on(db.grow_wal()).unwrap();
                }
                while db.has_uncommitted() {
                    block_on(db.commit_next()).unwrap();
                }
                block_on(db.prepare_spare()).unwrap();
                assert!(freeze(&db));
                if is_long() {
                    break;
                }
                block_on(db.flush_next()).unwrap();
            }
            db.rest();
            let mut shortening = Box::pin(db.shorten_wals());
            let mut is_done = false;
            for _ in 0..steps {
                is_done = is_done || step(&mut shortening).is_some();
            }
            drop(db.set(b"late", b"1").unwrap());
            if !is_done {
                block_on(shortening).unwrap();
            }
            while db.has_uncommitted() {
                block_on(db.commit_next()).unwrap();
            }
            check_pairs(&db, &storage, &format!("a write after {steps} steps"));
            if is_done {
                assert!(3 < steps, "the WAL was not replaced");
                return;
            }
        }
    }

    #[test]
    fn d3_a_memtable_is_flushed_when_all_of_it_is_committed_and_the_oldest_first() {
        let storage = SimStorage::new(1);
        let db = create(&storage);
        for value in [b"1", b"2"] {
            drop(db.set(b"k", value).unwrap());
            assert!(freeze(&db));
        }
        for number in 1..=2 {
            let mut flush = Box::pin(db.flush_next());
            assert!(run_on(&mut flush).is_none(), "a write of memtable {number} is not committed");
            assert_eq!((ssts(&storage).len(), db.version().files().count()), (number - 1, number - 1));
            block_on(db.commit_next()).unwrap();
            run_on(&mut flush).expect("all of the memtable is committed").unwrap();
            let newest = db.version().level(0)[0].clone();
            assert_eq!((newest.first, newest.last), (SeqNo(number as u64), SeqNo(number as u64)));
        }
        assert_eq!(db.version().level(0).len(), 2);
        assert_eq!(block_on(db.get(b"k", NOW)).unwrap().unwrap(), &b"2"[..]);
    }

    /// Writes, commits and does background work, until something fails. Returns the tickets of the writes that were
    /// taken.
    async fn work(db: &Db<SimStorage>, tickets: &mut Vec<Ticket>) -> Result<()> {
        for number in 0..5 {
            tickets.push(db.set(&[number], b"1")?);
            db.prepare_spare().await?;
            db.request_flush();
            tickets.push(db.delete(&[number], NOW)?.0);
            db.commit_next().await?;
            tickets.push(db.set(&[number], b"2")?);
            db.flush_next().await?;
            db.sync().await?;
            db.commit_next().await?;
            db.mark().await?;
            db.note_end().await?;
            while db.compact_next(NOW).await? {}
        }
        assert!(db.version().level(0).len() < 5, "there was a compaction");
        Ok(())
    }

    #[test]
    fn d4_after_a_failure_no_write_is_accepted_and_none_is_acknowledged() {
        let mut failures = 0;
        for operation in 1.. {
            let storage = SimStorage::new(operation);
            let db = create(&storage);
            let operation = storage.operations() + operation;
            // The disk works again after the failure, but the shard must stay poisoned.
            let failure = Failure::Errno(libc::EIO);
            storage.set_fault(Some(Fault { operation, failure, for_ever: false }));
            let mut tickets = Vec::new();
            let result = block_on(work(&db, &mut tickets));
            let poisoned =
                |result: Result<()>| result.is_err_and(|error| error.kind() == ErrorKind::Poisoned);
            if poisoned(result) {
                failures += 1;
                let visible = db.visible();
                let check = || {
                    // The SeqNos of the writes are 1, 2, 3, ...
                    for (number, ticket) in (1..).zip(&tickets) {
                        let answer = step(&mut Box::pin(ticket.clone())).expect("nobody waits for ever");
                        assert_eq!(
                            answer.is_ok(),
                            number <= visible.0,
                            "operation {operation}, write {number}"
                        );
                    }
                };
                check();
                let op = Op::Set { key: db.key(b"k"), value: b"v", expires: None };
                assert!(poisoned(db.start(&op, NOW, |_| true).map(|_| ())), "operation {operation}");
                assert!(poisoned(db.set(b"k", b"v").map(|_| ())), "operation {operation}");
                assert!(poisoned(db.delete(b"k", NOW).map(|_| ())), "operation {operation}");
                for _ in 0..3 {
                    let _ = block_on(db.commit_next());
                    let _ = block_on(db.sync());
                    let _ = block_on(db.prepare_spare());
                    let _ = block_on(db.flush_next());
                }
                check();
                assert_eq!(db.visible(), visible, "operation {operation}");
            }
            if storage.operations() < operation {
                break;
            }
        }
        assert!(10 < failures, "{failures} failures were final");
    }

    #[test]
    fn d4_a_failure_elsewhere_is_told_to_writers_that_wait() {
        let db = create(&SimStorage::new(1));
        let ticket = db.set(b"k", b"v").unwrap();
        db.poison(&Error::new(ErrorKind::Io, "the manifest is lost"));
        assert_eq!(block_on(ticket).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(db.set(b"k", b"v").err().unwrap().kind(), ErrorKind::Poisoned);
        block_on(db.commit_next()).unwrap();
        assert_eq!(block_on(db.get(b"k", NOW)).unwrap(), None);
    }
}
