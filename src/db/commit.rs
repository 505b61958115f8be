//! Group commit: one write and one sync for all writes that arrived meanwhile, one result for all who wait.
//!
//! Owns: the queue of groups, and the tickets that their writers wait on. Knows nothing of memtables.
//!
//! ```text
//!   forming ──(taken by the committer)──► written ──► synced ──► every ticket answered
//!      └── meanwhile the next group forms; there is no timer: a group is as large as the sync before was long
//! ```
//!
//! C1  One group at a time is written and synced; groups complete in the order in which they were begun.
//! C2  A ticket is answered exactly once, and `Ok` only after the sync of its group returned (P1).
//! C3  After a failed write or sync every group behind it fails too, and no group is written again (P6).

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

/// A group on its way to its WAL.
pub struct CommitGroup<F: File> {
    wal: Rc<Wal<F>>,
    builder: GroupBuilder,
    outcome: Rc<Outcome>,
}

/// Groups in order; the last one may still be forming.
pub struct CommitQueue<F: File> {
    groups: RefCell<VecDeque<CommitGroup<F>>>,
    bytes: Cell<usize>,
    arrived: Notify,
    /// Memory of finished groups, for the next: one forms while one is written.
    buffers: RefCell<Vec<AlignedBuf>>,
    /// The WAL of the last group, which must be durable before another takes its first (W3).
    last_wal: RefCell<Option<Rc<Wal<F>>>>,
    /// Groups committed, and writes in them.
    committed: Cell<(u64, u64)>,
}

impl<F: File> CommitQueue<F> {
    pub(super) fn new() -> Self {
        Self {
            groups: RefCell::new(VecDeque::new()),
            bytes: Cell::new(0),
            arrived: Notify::new(),
            buffers: RefCell::new(Vec::new()),
            last_wal: RefCell::new(None),
            committed: Cell::new((0, 0)),
        }
    }

    /// Bytes that wait for the committer.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Whether no group waits.
    pub fn is_empty(&self) -> bool {
        self.groups.borrow().is_empty()
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
    pub(super) async fn wait(&self) {
        while self.is_empty() {
            self.arrived.notified().await;
        }
    }

    /// Writes the oldest group, and syncs it if `sync`. Returns its last SeqNo and the tickets to answer once
    /// that is visible; `None` if the queue is empty.
    ///
    /// Cancel safety: not safe; once begun it has to be awaited to its end.
    pub(super) async fn commit(&self, sync: bool) -> Result<Option<(SeqNo, Answer)>> {
        let Some(group) = self.groups.borrow_mut().pop_front() else { return Ok(None) };
        let last = group.builder.last();
        let bytes = group.builder.bytes();
        let outcome = group.outcome.clone();
        let (groups, writes) = self.committed.get();
        let count = u64::from(group.builder.count);
        match self.write(group, sync).await {
            Ok(()) => {
                self.bytes.set(self.bytes.get().saturating_sub(bytes));
                self.committed.set((groups + 1, writes + count));
                Ok(Some((last, Answer(outcome))))
            }
            Err(error) => {
                let error = error.with_kind(ErrorKind::Poisoned);
                outcome.answer(Err(error.clone())); // C3
                Err(error)
            }
        }
    }

    async fn write(&self, group: CommitGroup<F>, sync: bool) -> Result<()> {
        let before = self.last_wal.replace(Some(group.wal.clone()));
        if let Some(before) = before.filter(|before| !Rc::ptr_eq(before, &group.wal)) {
            before.sync().await?; // W3
        }
        let buffer = group.wal.append(group.builder).await?;
        if sync {
            group.wal.sync().await?;
        }
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < 2 && buffer.capacity() <= 2 * GROUP_BYTES_MAX {
            buffers.push(buffer);
        }
        Ok(())
    }

    /// The WAL of the last group, and how far it is durable; `None` before the first.
    pub(super) fn durable(&self) -> Option<(FileNumber, u64)> {
        self.last_wal.borrow().as_ref().map(|wal| (wal.number(), wal.durable()))
    }

    /// Syncs what was written without a sync.
    pub(super) async fn sync(&self) -> Result<()> {
        let wal = self.last_wal.borrow().clone();
        match wal {
            Some(wal) => wal.sync().await,
            None => Ok(()),
        }
    }

    /// Answers everything that waits with `error` (C3).
    pub(super) fn fail(&self, error: &Error) {
        for group in self.groups.take() {
            group.outcome.answer(Err(error.clone()));
        }
        self.bytes.set(0);
    }

    /// Groups committed, and writes in them.
    pub fn committed(&self) -> (u64, u64) {
        self.committed.get()
    }
}

/// The tickets of a group that is durable.
pub(super) struct Answer(Rc<Outcome>);

impl Answer {
    /// Tells them.
    pub(super) fn give(self, result: Result<()>) {
        self.0.answer(result);
    }
}
