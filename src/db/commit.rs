//! Group commit: one write and one sync for all writes that arrived meanwhile, one result for all who wait.
//!
//! Owns: the queue of groups, the tickets that their writers wait on, how far the shard is committed, and why it is
//! not any more. Knows nothing of memtables.
//!
//! ```text
//!   forming ──(taken by the committer)──► appended ──► synced ──► committed: visible, every ticket answered
//!      └── meanwhile the next group forms; there is no timer: a group is as large as the sync before was long
//! ```
//!
//! C1  One group at a time is appended and synced; groups are committed in the order in which they were begun.
//! C2  A ticket is answered exactly once; `Ok` only once its group was appended and, if every group is synced, a sync
//!     that began thereafter has returned (P1).
//! C3  After a failed append or sync nothing is appended or committed any more, and every ticket is answered so (P6).
//! C4  A group is committed only in a WAL that still had its name and its length after the sync.
//!
//! Appending the next group while one is synced was built and measured: it halves the groups, since clients who wait
//! for an answer send nothing, and each group has its price. Of 12 pairs, the median with 64 connections was 7 % fewer sets
//! a second, with 256 3 % more, with 64 x 16 pipelined 10 % more: too little for two groups that a crash may tear.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::config::GROUP_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{FileNumber, SeqNo, ValueKind};
use crate::storage::{AlignedBuf, File};
use crate::wal::GroupBuilder;
use crate::wal::writer::Wal;

/// A promise that a write becomes durable, or that its failure is told. Cheap to clone; dropping it is harmless.
#[derive(Clone)]
pub struct Ticket(Rc<Outcome>);

#[derive(Default)]
struct Outcome {
    result: RefCell<Option<Result<()>>>,
    wakers: RefCell<Vec<Waker>>,
}

impl Outcome {
    fn answer(&self, result: Result<()>) {
        let before = self.result.replace(Some(result));
        assert!(before.is_none(), "a group is answered once"); // C2
        for waker in self.wakers.take() {
            waker.wake();
        }
    }
}

impl Future for Ticket {
    type Output = Result<()>;

    /// Cancel safety: the write goes on whether or not anyone waits.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(result) = &*self.0.result.borrow() {
            return Poll::Ready(result.clone());
        }
        let mut wakers = self.0.wakers.borrow_mut();
        // One task usually waits for many writes of a group, one after the other.
        if !wakers.last().is_some_and(|last| last.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// A group that is not committed yet.
struct CommitGroup<F: File> {
    wal: Rc<Wal<F>>,
    builder: GroupBuilder,
    outcome: Rc<Outcome>,
}

/// Groups in order, from the one that is forming to the last one that was committed.
pub struct CommitQueue<F: File> {
    /// Without it, a group is committed as soon as it is appended.
    sync_every_group: bool,
    /// Those that nobody has taken yet; the last one may still be forming.
    groups: RefCell<VecDeque<CommitGroup<F>>>,
    /// Bytes of all groups that are not committed.
    bytes: Cell<usize>,
    /// The last SeqNo of the last committed group.
    visible: Cell<SeqNo>,
    /// Groups committed, and writes in them.
    committed: Cell<(u64, u64)>,
    /// Why nothing is committed any more (C3).
    failure: RefCell<Option<Error>>,
    arrived: Notify,
    /// Memory of appended groups, for the next: one forms while one is written.
    buffers: RefCell<Vec<AlignedBuf>>,
    /// The WAL of the last group, which must be durable before another takes its first (W3).
    last_wal: RefCell<Option<Rc<Wal<F>>>>,
}

impl<F: File> CommitQueue<F> {
    /// An empty queue of a shard whose writes up to `visible` are durable.
    pub(super) fn new(visible: SeqNo, sync_every_group: bool) -> Self {
        Self {
            sync_every_group,
            groups: RefCell::default(),
            bytes: Cell::new(0),
            visible: Cell::new(visible),
            committed: Cell::new((0, 0)),
            failure: RefCell::new(None),
            arrived: Notify::new(),
            buffers: RefCell::default(),
            last_wal: RefCell::new(None),
        }
    }

    /// The last SeqNo that is committed.
    pub fn visible(&self) -> SeqNo {
        self.visible.get()
    }

    /// Bytes that wait for the disk.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Whether every group is committed.
    pub fn is_empty(&self) -> bool {
        self.bytes.get() == 0
    }

    /// Groups committed, and writes in them.
    pub fn committed(&self) -> (u64, u64) {
        self.committed.get()
    }

    /// Why nothing is committed any more, if it is so.
    pub fn failure(&self) -> Option<Error> {
        self.failure.borrow().clone()
    }

    /// Adds a write to the forming group of `wal`, which has room for it, or begins one.
    pub(super) fn push(
        &self,
        wal: &Rc<Wal<F>>,
        seqno: SeqNo,
        key: &[u8],
        kind: ValueKind,
        value: &[u8],
    ) -> Ticket {
        let mut groups = self.groups.borrow_mut();
        let joins = groups
            .back()
            .is_some_and(|group| Rc::ptr_eq(&group.wal, wal) && group.builder.bytes() < GROUP_BYTES_MAX);
        if !joins {
            let buffer =
                self.buffers.borrow_mut().pop().unwrap_or_else(|| AlignedBuf::with_capacity(16 << 10));
            let builder = wal.begin_group(buffer, seqno);
            groups.push_back(CommitGroup { wal: wal.clone(), builder, outcome: Rc::default() });
            self.arrived.notify_one();
        }
        let group = groups.back_mut().expect("a group was pushed if there was none");
        let before = if joins { group.builder.bytes() } else { 0 };
        let last = group.builder.add(key, kind, value);
        assert_eq!(last, seqno, "SeqNos have no gaps"); // W1
        wal.reserve(&group.builder);
        self.bytes.set(self.bytes.get() + group.builder.bytes() - before);
        Ticket(group.outcome.clone())
    }

    /// Waits until there is a group to commit.
    ///
    /// Cancel safety: safe; nothing is taken.
    pub(super) async fn commit_due(&self) {
        while self.groups.borrow().is_empty() {
            self.arrived.notified().await;
        }
    }

    /// Commits the oldest group, if there is one. One commit at a time.
    ///
    /// Cancel safety: not safe; once begun it has to be awaited to its end.
    pub(super) async fn commit(&self) -> Result<()> {
        let Some(group) = self.groups.borrow_mut().pop_front() else { return Ok(()) };
        let last = group.builder.last();
        let bytes = group.builder.bytes();
        let count = u64::from(group.builder.count);
        let outcome = group.outcome.clone();
        if let Err(error) = self.write(group).await {
            self.fail(&error);
        }
        // Something else may have failed meanwhile, too: whether this group will last is not known then.
        if let Some(error) = self.failure() {
            outcome.answer(Err(error.clone())); // C3
            return Err(error);
        }
        assert!(self.visible.get() < last, "groups are committed in order"); // C1
        self.visible.set(last);
        self.bytes.set(self.bytes.get() - bytes);
        let (groups, writes) = self.committed.get();
        self.committed.set((groups + 1, writes + count));
        outcome.answer(Ok(())); // C2
        Ok(())
    }

    async fn write(&self, group: CommitGroup<F>) -> Result<()> {
        let before = self.last_wal.borrow().clone();
        if let Some(before) = before.filter(|before| !Rc::ptr_eq(before, &group.wal)) {
            before.sync().await?; // W3
            // The second group of the new WAL witnesses the first, and with it the whole of the WAL before (W1).
            group.wal.file().request_mark();
        }
        self.last_wal.replace(Some(group.wal.clone()));
        let buffer = group.wal.append(group.builder).await?;
        if self.sync_every_group {
            group.wal.sync().await?;
        }
        group.wal.file().check_in_place()?; // C4
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < 2 && buffer.capacity() <= 2 * GROUP_BYTES_MAX {
            buffers.push(buffer);
        }
        Ok(())
    }

    /// Makes everything durable that was appended without a sync.
    pub(super) async fn sync(&self) -> Result<()> {
        // Those before the last WAL are durable already (W3).
        let Some(wal) = self.last_wal.borrow().clone() else { return Ok(()) };
        wal.sync().await.map_err(|error| self.fail(&error))
    }

    /// The WAL of the last group, and how far it is durable; `None` before the first.
    pub(super) fn durable(&self) -> Option<(FileNumber, u64)> {
        self.last_wal.borrow().as_ref().map(|wal| (wal.number(), wal.file().durable()))
    }

    /// Whether a durable mark says how far the last WAL is durable (W4).
    pub(super) fn is_witnessed(&self) -> bool {
        self.last_wal.borrow().as_ref().is_none_or(|wal| {
            // What a retired WAL held is in an SST.
            wal.file().is_retired() || wal.file().durable() <= wal.file().witnessed()
        })
    }

    /// Lets the next group carry a mark (W4).
    pub(super) fn request_mark(&self) {
        if let Some(wal) = &*self.last_wal.borrow() {
            wal.file().request_mark();
        }
    }

    /// Writes a mark and syncs it, unless one says it all (W4).
    pub(super) async fn mark(&self) -> Result<()> {
        let Some(wal) = self.last_wal.borrow().clone() else { return Ok(()) };
        wal.file().mark().await.map_err(|error| self.fail(&error))
    }

    /// Commits nothing from now on, and tells everyone who waits; but for the group that is being committed, whose
    /// commit tells it (C3). Returns the first reason.
    pub(super) fn fail(&self, error: &Error) -> Error {
        let first =
            self.failure.borrow_mut().get_or_insert_with(|| error.with_kind(ErrorKind::Poisoned)).clone();
        for group in self.groups.take() {
            group.outcome.answer(Err(first.clone()));
        }
        self.bytes.set(0);
        first
    }
}
