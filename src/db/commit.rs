//! Group commit: one write and one sync for all writes that arrived during the last sync, and one result for all of
//! their writers.
//!
//! Owns: the queue of groups, the tickets that their writers wait for, how far the shard is committed, and the reason why
//! it is not committed any further.
//!
//! ```text
//!   forming ──taken by the committer──► (published) ──► written ──► synced ──► visible: every ticket is answered
//!      │                                 publish                    mark       feed
//!      └── meanwhile the next group forms. There is no timer: a group takes writes until the sync before it ends.
//! ```
//!
//! Other components attach to a commit at three points ([`Attached`]). Before the WAL is written, `publish` may put the
//! group into an external log, so that the store is always a prefix of that log. Once the group is durable, `mark`
//! learns how far the WAL is durable. Once the group is visible, `feed` gets it, with its bytes.
//!
//! C1  One group at a time is appended and synced; groups are committed in the order in which they were begun.
//! C2  A ticket is answered exactly once. The answer is `Ok` only after its group was appended and, if every group is
//!     synced, after a sync has returned that began after the append (P1).
//! C3  After a failed append or sync nothing is appended or committed any more, and every ticket is answered with that
//!     failure (P6).
//! C4  A group is committed only in a WAL that still had its name and its length after the sync.
//! C5  A group is published before it is written, marked after it is synced and before any ticket is answered, and fed
//!     after it becomes visible. Groups pass each point in their order.
//!
//! Appending the next group while one is synced was built and measured. It makes groups half as large, because clients
//! that wait for an answer send nothing, and each group has a fixed cost. In 12 pairs, the median rate of sets was 7 %
//! lower with 64 connections, 3 % higher with 256, and 10 % higher with 64 x 16 pipelined. That gain is too small for a
//! design in which a crash may tear two groups.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::config::GROUP_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKind, FileNumber, NewValue, SeqNo};
use crate::storage::{AlignedBuf, File};
use crate::wal::writer::Wal;
use crate::wal::{Group, GroupBuilder};

/// What else happens when a group is committed.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait Attached {
    /// Puts a group, whose payload is complete, into an external log before it is written to the WAL. Returns its position
    /// there, which becomes part of the group; 0 if there is no such log.
    ///
    /// # Errors
    /// Any; the group is then not written, and nothing is committed any more (C3).
    async fn publish(&self, _payload: &[u8]) -> Result<u64> {
        Ok(0)
    }

    /// Learns that `wal` is durable up to the offset `durable`, and that all WALs before it are wholly durable. A call
    /// may give a lower offset than an earlier call.
    fn mark(&self, _wal: FileNumber, _durable: u64) {}

    /// Gets a group that has become visible. The bytes stay valid for as long as the group is held.
    fn feed(&self, _group: &Rc<Group>) {}
}

/// Nothing is attached.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingAttached;

impl Attached for NothingAttached {}

/// A promise to report that a write has become durable, or that it has failed. Cheap to clone; dropping it is harmless.
#[derive(Clone)]
pub struct Ticket(Rc<GroupResult>);

#[derive(Default)]
struct GroupResult {
    result: RefCell<Option<Result<()>>>,
    wakers: RefCell<Vec<Waker>>,
}

impl GroupResult {
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
    result: Rc<GroupResult>,
}

/// The groups that are not committed yet, in order, and how far the shard is committed.
pub struct CommitQueue<F: File, A = NothingAttached> {
    attached: A,
    /// If this is `false`, a group is committed as soon as it is appended.
    sync_every_group: bool,
    /// Groups that the committer has not taken yet; the last one may still be forming.
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
    /// A group was committed or synced, or the queue has failed.
    progressed: Notify,
    /// Memory of appended groups, to be reused by the next groups. Two suffice: one group forms while another is
    /// written.
    buffers: RefCell<Vec<AlignedBuf>>,
    /// The WAL of the last group, which must be durable before another WAL takes its first group (W3).
    last_wal: RefCell<Option<Rc<Wal<F>>>>,
}

impl<F: File, A: Attached> CommitQueue<F, A> {
    /// An empty queue of a shard whose writes up to `visible` are durable.
    pub(super) fn new(visible: SeqNo, sync_every_group: bool, attached: A) -> Self {
        Self {
            attached,
            sync_every_group,
            groups: RefCell::default(),
            bytes: Cell::new(0),
            visible: Cell::new(visible),
            committed: Cell::new((0, 0)),
            failure: RefCell::new(None),
            arrived: Notify::new(),
            progressed: Notify::new(),
            buffers: RefCell::default(),
            last_wal: RefCell::new(None),
        }
    }

    /// The last SeqNo that is committed.
    pub(super) fn visible(&self) -> SeqNo {
        self.visible.get()
    }

    /// Bytes of all groups that are not committed.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Whether every group is committed.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.get() == 0
    }

    /// Groups committed, and writes in them.
    pub(super) fn committed(&self) -> (u64, u64) {
        self.committed.get()
    }

    /// Why nothing is committed any more; `None` if commits go on.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.borrow().clone()
    }

    /// Adds a write to the forming group of `wal`, or begins a group. `wal` has room for the write.
    pub(super) fn push(
        &self,
        wal: &Rc<Wal<F>>,
        seqno: SeqNo,
        key: &[u8],
        kind: EntryKind,
        value: NewValue<'_>,
    ) -> Ticket {
        let mut groups = self.groups.borrow_mut();
        let joins = groups
            .back()
            .is_some_and(|group| Rc::ptr_eq(&group.wal, wal) && group.builder.bytes() < GROUP_BYTES_MAX);
        if !joins {
            let buffer =
                self.buffers.borrow_mut().pop().unwrap_or_else(|| AlignedBuf::with_capacity(16 << 10));
            let builder = wal.begin_group(buffer, seqno);
            groups.push_back(CommitGroup { wal: wal.clone(), builder, result: Rc::default() });
            self.arrived.notify_one();
        }
        let group = groups.back_mut().expect("a group was pushed if there was none");
        let before = if joins { group.builder.bytes() } else { 0 };
        let last = group.builder.add(key, kind, value);
        assert_eq!(last, seqno, "SeqNos have no gaps"); // W1
        wal.reserve(&group.builder);
        self.bytes.set(self.bytes.get() + group.builder.bytes() - before);
        Ticket(group.result.clone())
    }

    /// Waits until there is a group to commit.
    ///
    /// Cancel safety: safe; nothing is taken.
    pub(super) async fn commit_due(&self) {
        while self.groups.borrow().is_empty() {
            self.arrived.notified().await;
        }
    }

    /// Waits until a group is committed or synced, or the queue has failed.
    ///
    /// Cancel safety: safe.
    pub(super) async fn progressed(&self) {
        self.progressed.notified().await;
    }

    /// Waits until everything up to `last` is committed.
    ///
    /// # Errors
    /// The failure of the queue.
    ///
    /// Cancel safety: safe.
    pub(super) async fn committed_up_to(&self, last: SeqNo) -> Result<()> {
        loop {
            // Registered before the checks, so that no commit between the checks and the wait is missed.
            let progressed = self.progressed.notified();
            if let Some(error) = self.failure() {
                return Err(error);
            }
            if last <= self.visible() {
                return Ok(());
            }
            progressed.await;
        }
    }

    /// Commits the oldest group, if there is one. One commit at a time. `pause` is awaited between two slices of large
    /// values.
    ///
    /// # Errors
    /// `Poisoned`; every ticket has been answered.
    ///
    /// Cancel safety: not safe; once begun it has to be awaited to its end.
    pub(super) async fn commit(&self, pause: impl AsyncFn()) -> Result<()> {
        let Some(group) = self.groups.borrow_mut().pop_front() else { return Ok(()) };
        let bytes = group.builder.bytes();
        let count = u64::from(group.builder.count);
        let result = group.result.clone();
        let written = self.write(group, pause).await.map_err(|error| self.fail(&error));
        // Something else may have failed meanwhile. It is then unknown whether this group will last.
        let written = self.failure().map_or(written, Err);
        let group = match written {
            Ok(group) => group,
            Err(error) => {
                result.answer(Err(error.clone())); // C3
                self.progressed.notify_waiters();
                return Err(error);
            }
        };
        assert!(self.visible.get() < group.last, "groups are committed in order"); // C1
        self.visible.set(group.last);
        self.bytes.set(self.bytes.get() - bytes);
        let (groups, writes) = self.committed.get();
        self.committed.set((groups + 1, writes + count));
        result.answer(Ok(())); // C2
        self.progressed.notify_waiters();
        let group = Rc::new(group);
        self.attached.feed(&group); // C5
        if let Ok(group) = Rc::try_unwrap(group) {
            self.keep_buffer(group.into_buffer());
        }
        Ok(())
    }

    /// Takes a group from forming to durable.
    async fn write(&self, group: CommitGroup<F>, pause: impl AsyncFn()) -> Result<Group> {
        let CommitGroup { wal, mut builder, .. } = group;
        builder.complete(pause).await;
        if let Some(error) = self.failure() {
            return Err(error); // C3
        }
        let position = self.attached.publish(builder.payload()).await?; // C5
        builder.set_published(position);
        let before = self.last_wal.borrow().clone();
        if let Some(before) = before.filter(|before| !Rc::ptr_eq(before, &wal)) {
            before.sync().await?; // W3
            // The second group of the new WAL witnesses the first group, and so the whole WAL before it (W1).
            wal.file().request_mark();
        }
        self.last_wal.replace(Some(wal.clone()));
        let group = wal.append(builder).await?;
        if self.sync_every_group {
            wal.sync().await?;
        }
        wal.file().check_in_place()?; // C4
        self.attached.mark(wal.number(), wal.file().durable()); // C5
        Ok(group)
    }

    fn keep_buffer(&self, buffer: AlignedBuf) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < 2 && buffer.capacity() <= 2 * GROUP_BYTES_MAX {
            buffers.push(buffer);
        }
    }

    /// Makes everything durable that was appended without a sync.
    ///
    /// # Errors
    /// `Poisoned`.
    ///
    /// Cancel safety: not safe.
    pub(super) async fn sync(&self) -> Result<()> {
        // WALs before the last one are durable already (W3).
        let Some(wal) = self.last_wal.borrow().clone() else { return Ok(()) };
        let result = wal.sync().await.map_err(|error| self.fail(&error));
        if result.is_ok() {
            self.attached.mark(wal.number(), wal.file().durable());
        }
        self.progressed.notify_waiters();
        result
    }

    /// The WAL of the last group, and how far it is durable; `None` before the first group.
    pub(super) fn durable(&self) -> Option<(FileNumber, u64)> {
        self.last_wal.borrow().as_ref().map(|wal| (wal.number(), wal.file().durable()))
    }

    /// Lets go of a WAL whose writes are all in SSTs: as long as a file is open, its removal frees no space.
    pub(super) fn forget(&self, number: FileNumber) {
        let is_it = |last: &mut Rc<Wal<F>>| last.number() == number;
        self.last_wal.borrow_mut().take_if(is_it);
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

    /// Writes a mark and syncs it, unless the last mark already covers everything that is durable (W4).
    ///
    /// # Errors
    /// `Poisoned`.
    ///
    /// Cancel safety: not safe.
    pub(super) async fn write_mark(&self) -> Result<()> {
        let Some(wal) = self.last_wal.borrow().clone() else { return Ok(()) };
        let result = wal.file().mark().await.map_err(|error| self.fail(&error));
        self.progressed.notify_waiters();
        result
    }

    /// Commits nothing from now on, and tells every writer that waits (C3). The writers of the group that is being
    /// committed are told by its commit. Returns the first failure.
    pub(super) fn fail(&self, error: &Error) -> Error {
        let first =
            self.failure.borrow_mut().get_or_insert_with(|| error.with_kind(ErrorKind::Poisoned)).clone();
        for group in self.groups.take() {
            group.result.answer(Err(first.clone()));
        }
        self.bytes.set(0);
        self.progressed.notify_waiters();
        first
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::db::tests::step;
    use crate::identity::Owner;
    use crate::key::ShardId;
    use crate::record::file::Sizes;
    use crate::storage::Storage;
    use crate::storage::sim::{Failure, Fault, SimFile, SimStorage};
    use crate::wal::decode_group;

    const OWNER: Owner = Owner { store_id: 1, shard: ShardId(0) };

    /// What the attached stand-in has seen, in order.
    #[derive(Debug, PartialEq, Eq)]
    enum Seen {
        Published(u64),
        Marked(FileNumber, u64),
        Fed(SeqNo, SeqNo),
    }

    #[derive(Clone, Default)]
    struct Recorder {
        seen: Rc<RefCell<Vec<Seen>>>,
        held: Rc<RefCell<Vec<Rc<Group>>>>,
        refuses: Rc<Cell<bool>>,
    }

    impl Attached for Recorder {
        async fn publish(&self, payload: &[u8]) -> Result<u64> {
            if self.refuses.get() {
                return Err(Error::new(ErrorKind::Io, "the external log refuses the group"));
            }
            let (first, count) = decode_group(payload, |_| {}).expect("the payload is complete");
            self.seen.borrow_mut().push(Seen::Published(first.0));
            Ok(1_000 + u64::from(count))
        }

        fn mark(&self, wal: FileNumber, durable: u64) {
            self.seen.borrow_mut().push(Seen::Marked(wal, durable));
        }

        fn feed(&self, group: &Rc<Group>) {
            self.seen.borrow_mut().push(Seen::Fed(group.first, group.last));
            self.held.borrow_mut().push(group.clone());
        }
    }

    struct Fixture {
        storage: SimStorage,
        wal: Rc<Wal<SimFile>>,
        queue: Rc<CommitQueue<SimFile, Recorder>>,
        recorder: Recorder,
    }

    impl Fixture {
        fn new(sync_every_group: bool) -> Self {
            let storage = SimStorage::new(1);
            let sizes = Sizes { capacity: 1 << 20, step: 1 << 20 };
            let wal = block_on(Wal::create(&storage, OWNER, FileNumber(1), sizes)).unwrap();
            let recorder = Recorder::default();
            let queue = Rc::new(CommitQueue::new(SeqNo(0), sync_every_group, recorder.clone()));
            Self { storage, wal: Rc::new(wal), queue, recorder }
        }

        fn push(&self, seqno: u64) -> Ticket {
            self.queue.push(&self.wal, SeqNo(seqno), b"key", EntryKind::VALUE, b"value".into())
        }

        fn answer(&self, ticket: &Ticket) -> Option<Result<()>> {
            step(&mut Box::pin(ticket.clone()))
        }

        /// Makes the disk fail from the operation with this number on, counted from now.
        fn break_disk(&self, operations_from_now: u64) {
            self.storage.set_fault(Some(Fault {
                operation: self.storage.operations() + operations_from_now,
                failure: Failure::Errno(libc::EIO),
                for_ever: true,
            }));
        }
    }

    #[test]
    fn c1_groups_are_committed_in_the_order_in_which_they_were_begun() {
        let fixture = Fixture::new(true);
        let mut tickets = vec![fixture.push(1), fixture.push(2)];
        // A group that is being written takes no more: the next write begins another.
        {
            let mut commit = Box::pin(fixture.queue.commit(async || {}));
            assert!(step(&mut commit).is_none());
            tickets.push(fixture.push(3));
            block_on(commit).unwrap();
        }
        assert_eq!(fixture.queue.visible(), SeqNo(2));
        assert!(fixture.answer(&tickets[1]).is_some() && fixture.answer(&tickets[2]).is_none());
        block_on(fixture.queue.commit(async || {})).unwrap();
        assert_eq!((fixture.queue.visible(), fixture.queue.committed()), (SeqNo(3), (2, 3)));
    }

    #[test]
    fn c2_a_ticket_is_answered_after_the_sync_and_not_before() {
        let fixture = Fixture::new(true);
        let ticket = fixture.push(1);
        let before = fixture.wal.file().durable();
        let mut commit = Box::pin(fixture.queue.commit(async || {}));
        let mut polls = 0;
        loop {
            let done = step(&mut commit).is_some();
            let answered = fixture.answer(&ticket).is_some();
            assert_eq!(answered, done);
            assert!(!answered || before < fixture.wal.file().durable());
            polls += 1;
            if done {
                break;
            }
        }
        assert!(1 < polls, "the write and its sync are awaited");
        assert!(matches!(fixture.answer(&ticket), Some(Ok(()))));
    }

    #[test]
    fn c3_after_a_failure_every_ticket_gets_it_and_nothing_is_committed() {
        // The write fails, or its sync.
        for operations in [1, 2] {
            let fixture = Fixture::new(true);
            fixture.break_disk(operations);
            let tickets = [fixture.push(1), fixture.push(2)];
            let error = block_on(fixture.queue.commit(async || {})).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Poisoned);
            for ticket in &tickets {
                assert_eq!(fixture.answer(ticket).unwrap().unwrap_err().kind(), ErrorKind::Poisoned);
            }
            assert_eq!((fixture.queue.visible(), fixture.queue.committed()), (SeqNo(0), (0, 0)));
            assert!(fixture.queue.failure().is_some());
        }
    }

    #[test]
    fn c3_what_fails_elsewhere_fails_the_group_that_is_being_committed() {
        let fixture = Fixture::new(true);
        let mut tickets = vec![fixture.push(1)];
        let mut commit = Box::pin(fixture.queue.commit(async || {}));
        assert!(step(&mut commit).is_none());
        tickets.push(fixture.push(2));
        fixture.queue.fail(&Error::new(ErrorKind::Io, "the manifest is lost"));
        assert!(fixture.answer(&tickets[0]).is_none(), "its commit tells it");
        assert!(fixture.answer(&tickets[1]).unwrap().is_err());
        assert!(block_on(commit).is_err());
        assert!(fixture.answer(&tickets[0]).unwrap().is_err());
    }

    #[test]
    fn c3_nothing_is_appended_after_a_failure_between_two_slices() {
        let fixture = Fixture::new(true);
        let large = NewValue::Large(vec![7; 3 * crate::config::SLICE_BYTES].into());
        let ticket = fixture.queue.push(&fixture.wal, SeqNo(1), b"key", EntryKind::VALUE, large);
        let end = fixture.wal.file().end();
        let pauses = Cell::new(0);
        let result = block_on(fixture.queue.commit(async || {
            pauses.set(pauses.get() + 1);
            fixture.queue.fail(&Error::new(ErrorKind::Io, "another sync has failed"));
        }));
        assert_eq!((result.unwrap_err().kind(), pauses.get()), (ErrorKind::Poisoned, 3));
        assert!(fixture.answer(&ticket).unwrap().is_err());
        assert_eq!((fixture.wal.file().end(), fixture.queue.visible()), (end, SeqNo(0)));
    }

    #[test]
    fn c1_while_a_large_value_is_copied_other_groups_form_and_marks_are_written() {
        let fixture = Fixture::new(true);
        fixture.push(1);
        block_on(fixture.queue.commit(async || {})).unwrap();
        let value = vec![7; crate::config::SLICE_BYTES + 5];
        let large = |seqno| {
            let value = NewValue::Large(value.clone().into());
            fixture.queue.push(&fixture.wal, SeqNo(seqno), b"large", EntryKind::VALUE, value)
        };
        let mut tickets = vec![large(2), fixture.push(3)];
        let later = RefCell::new(Vec::new());
        block_on(fixture.queue.commit(async || {
            if later.borrow().is_empty() {
                later.borrow_mut().extend([fixture.push(4), large(5)]);
            }
            fixture.queue.write_mark().await.unwrap();
        }))
        .unwrap();
        assert_eq!(fixture.queue.visible(), SeqNo(3));
        block_on(fixture.queue.commit(async || {})).unwrap();
        tickets.extend(later.take());
        assert!(tickets.iter().all(|ticket| matches!(fixture.answer(ticket), Some(Ok(())))));
        let held = fixture.recorder.held.borrow();
        let mut found = Vec::new();
        for group in held.iter() {
            decode_group(group.payload(), |entry| found.push((entry.seqno.0, entry.value.len()))).unwrap();
        }
        assert_eq!(found, [(1, 5), (2, value.len()), (3, 5), (4, 5), (5, value.len())]);
    }

    #[test]
    fn c4_a_group_in_a_file_without_a_name_is_not_committed() {
        let fixture = Fixture::new(true);
        let ticket = fixture.push(1);
        block_on(fixture.storage.remove(crate::file_name::FileName::Wal(FileNumber(1)))).unwrap();
        assert_eq!(block_on(fixture.queue.commit(async || {})).unwrap_err().kind(), ErrorKind::Poisoned);
        assert!(fixture.answer(&ticket).unwrap().is_err());
    }

    #[test]
    fn c5_publish_mark_and_feed_are_called_in_this_order_for_each_group() {
        let fixture = Fixture::new(true);
        for seqno in 1..=2 {
            drop(fixture.push(seqno));
            block_on(fixture.queue.commit(async || {})).unwrap();
        }
        let durable = fixture.wal.file().durable();
        let seen = fixture.recorder.seen.borrow();
        let first = |seqno| (Seen::Published(seqno), Seen::Fed(SeqNo(seqno), SeqNo(seqno)));
        let ((publish_1, feed_1), (publish_2, feed_2)) = (first(1), first(2));
        let Seen::Marked(_, between) = seen[1] else { panic!("{seen:?}") };
        assert!(between < durable);
        let marks = [between, durable].map(|durable| Seen::Marked(FileNumber(1), durable));
        let [mark_1, mark_2] = marks;
        assert_eq!(*seen, [publish_1, mark_1, feed_1, publish_2, mark_2, feed_2]);
    }

    #[test]
    fn c5_the_position_in_the_external_log_becomes_part_of_the_group_and_bytes_outlive_the_commit() {
        let fixture = Fixture::new(true);
        for seqno in 1..=3 {
            drop(fixture.push(seqno));
            block_on(fixture.queue.commit(async || {})).unwrap();
        }
        for (index, group) in fixture.recorder.held.borrow().iter().enumerate() {
            let mut keys = 0;
            let (first, count) = decode_group(group.payload(), |_| keys += 1).unwrap();
            assert_eq!((first, count, keys), (SeqNo(index as u64 + 1), 1, 1));
            let position = group.payload()[8..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            assert_eq!(position, Some(1_001));
        }
    }

    #[test]
    fn c5_a_group_that_cannot_be_published_is_not_written() {
        let fixture = Fixture::new(true);
        fixture.recorder.refuses.set(true);
        let ticket = fixture.push(1);
        let end = fixture.wal.file().end();
        assert_eq!(block_on(fixture.queue.commit(async || {})).unwrap_err().kind(), ErrorKind::Poisoned);
        assert!(fixture.answer(&ticket).unwrap().is_err());
        assert_eq!(fixture.wal.file().end(), end);
        assert!(fixture.recorder.seen.borrow().is_empty());
    }
}
