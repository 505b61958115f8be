//! Who may write now, and how much background work is done between two pauses: all back-pressure of a shard.
//!
//! Owns: why a write is refused, the queue of writes that wait for room, and the slices of background work. The caller
//! passes the backlog as a value; [`super::pressure`] says what a backlog means.
//!
//! J1  A write is refused here, and never delayed. A caller that wants to wait sets a limit of its own (P9).
//! J2  Writes that wait for room are tried in the order in which they began to wait, and a write that does not wait never
//!     goes ahead of them. A waiting write whose time is up gets one more try, out of turn.
//! J3  When background work fails because of a full disk or because of damage, writes that depend on this work are
//!     refused with that reason, and not as overload.
//! J4  While the disk is full, sets are refused and deletes are not: what is left of the space belongs to them and to the
//!     work that makes room.

use std::cell::{Cell, RefCell};
use std::ops::Index;
use std::rc::Rc;

use tokio::sync::futures::Notified;
use tokio::sync::{Mutex, MutexGuard, Notify};

use super::pressure::{Backlog, FROZEN_RECOVERED_MAX, Pressure};
use crate::error::{Error, ErrorKind, Result};

/// Kinds of background work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Flush,
    PrepareWal,
    GrowWal,
    Compaction,
}

/// One `T` for each kind of work.
#[derive(Default)]
struct PerWork<T> {
    flush: T,
    prepare_wal: T,
    grow_wal: T,
    compaction: T,
}

impl<T> Index<Work> for PerWork<T> {
    type Output = T;

    fn index(&self, work: Work) -> &T {
        match work {
            Work::Flush => &self.flush,
            Work::PrepareWal => &self.prepare_wal,
            Work::GrowWal => &self.grow_wal,
            Work::Compaction => &self.compaction,
        }
    }
}

#[derive(Default)]
pub(super) struct Admission {
    /// How many bytes of background work may still be done before the next pause.
    slice_left: PerWork<Cell<usize>>,
    /// Why background work fails at present; `None` if it does not fail.
    failing: PerWork<RefCell<Option<Error>>>,
    closing: Cell<bool>,
    /// The disk is full.
    full: Cell<bool>,
    waiters: Rc<Waiters>,
    /// Writes that were refused may be tried again.
    room: Notify,
}

/// The writes that wait for room.
#[derive(Default)]
struct Waiters {
    count: Cell<usize>,
    /// Held by the write whose turn it is; tokio's mutex is fair.
    first: Mutex<()>,
}

/// A position in the queue of writes that wait for room. Dropping it leaves the queue.
pub struct WaitPosition(Rc<Waiters>);

impl WaitPosition {
    /// Waits until every write ahead in the queue has its answer. Waiters are served in the order in which they first
    /// polled this future.
    ///
    /// Cancel safety: safe; the position in the queue is kept.
    pub async fn first(&self) -> MutexGuard<'_, ()> {
        self.0.first.lock().await
    }
}

impl Drop for WaitPosition {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
    }
}

impl Admission {
    /// Takes note of whether the disk is full. Returns whether that is new.
    pub(super) fn set_full(&self, full: bool) -> bool {
        if self.full.replace(full) == full {
            return false;
        }
        for work in [Work::Flush, Work::PrepareWal, Work::GrowWal, Work::Compaction] {
            // It is tried again at once.
            self.failing[work].borrow_mut().take_if(|error| error.kind() == ErrorKind::DiskFull);
        }
        self.make_room();
        true
    }

    /// Whether the disk is full.
    pub(super) fn is_full(&self) -> bool {
        self.full.get()
    }

    /// Refuses a write that only takes space, if the disk is full (J4).
    ///
    /// # Errors
    /// `DiskFull`.
    pub(super) fn admit_growth(&self) -> Result<()> {
        if self.full.get() {
            return Err(Error::new(ErrorKind::DiskFull, "the disk is full: only deletes are accepted"));
        }
        Ok(())
    }

    /// Admits a write, as far as the backlog is concerned. `queued` is the number of bytes that wait for the WAL, the
    /// value of this write included. `queue_max` is its bound.
    ///
    /// # Errors
    /// `ShuttingDown`, `Overloaded`, or what keeps background work from catching up (J3).
    pub(super) fn admit(&self, backlog: &Backlog, queued: usize, queue_max: usize) -> Result<()> {
        if self.closing.get() {
            return Err(Error::new(ErrorKind::ShuttingDown, "the server is stopping"));
        }
        if FROZEN_RECOVERED_MAX <= backlog.frozen {
            // Each crash adds the memtable that was active at that time. Without this bound, a series of crashes before
            // the next flush would add one memtable each (P8).
            return Err(self.refusal(Work::Flush, "flushes are too far behind"));
        }
        if queue_max < queued {
            return Err(Error::new(ErrorKind::Overloaded, "too many writes wait for the disk"));
        }
        if Pressure::of(backlog).stops_writes() {
            return Err(self.refusal(Work::Compaction, "compaction is too far behind"));
        }
        Ok(())
    }

    /// The error for a write that has to wait until `work` catches up (J3).
    pub(super) fn refusal(&self, work: Work, why: &str) -> Error {
        match &*self.failing[work].borrow() {
            Some(error) if matches!(error.kind(), ErrorKind::DiskFull | ErrorKind::Corruption) => {
                error.clone()
            }
            _ => Error::new(ErrorKind::Overloaded, format!("the write was refused: {why}")),
        }
    }

    /// Refuses a write while others wait for room (J2).
    ///
    /// # Errors
    /// `Overloaded`.
    pub(super) fn nobody_waits(&self) -> Result<()> {
        if 0 < self.waiters.count.get() {
            return Err(Error::new(ErrorKind::Overloaded, "other writes wait for room"));
        }
        Ok(())
    }

    /// Joins the queue of writes that wait for room.
    pub(super) fn wait_for_room(&self) -> WaitPosition {
        self.waiters.count.set(self.waiters.count.get() + 1);
        WaitPosition(self.waiters.clone())
    }

    /// Completes at the next [`Self::make_room`] after this call.
    pub(super) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    /// Writes that were refused may be tried again.
    pub(super) fn make_room(&self) {
        self.room.notify_waiters();
    }

    /// Records how background work ended (J3).
    pub(super) fn note<T>(&self, work: Work, result: Result<T>) -> Result<T> {
        let failing = result.as_ref().err().filter(|error| error.kind() != ErrorKind::ShuttingDown).cloned();
        self.failing[work].replace(failing);
        result
    }

    /// Counts `bytes` of background work. Returns `true` if the work has to pause because its slice is used up. The
    /// length of the next slice follows from the backlog.
    pub(super) fn spend(&self, work: Work, bytes: usize, backlog: impl FnOnce() -> Backlog) -> bool {
        let left = &self.slice_left[work];
        if let Some(rest) = left.get().checked_sub(bytes) {
            left.set(rest);
            return false;
        }
        left.set(match work {
            Work::Flush => backlog().flush_slice_bytes(),
            Work::PrepareWal | Work::GrowWal | Work::Compaction => backlog().compaction_slice_bytes(),
        });
        true
    }

    /// Refuses every write from now on.
    pub(super) fn close(&self) {
        self.closing.set(true);
    }

    /// Whether writes are refused because the shard is closing.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Backlog = Backlog { frozen: 0, active_percent: 0, l0_files: 0, debt_bytes: 0, base_bytes: 1 };

    #[test]
    fn j1_each_kind_of_backlog_refuses_with_its_reason() {
        let admission = Admission::default();
        let admit =
            |backlog, queued| admission.admit(&backlog, queued, 100).map_err(|error| error.to_string());
        assert_eq!(admit(IDLE, 100), Ok(()));
        assert!(admit(IDLE, 101).unwrap_err().contains("wait for the disk"));
        let frozen = Backlog { frozen: FROZEN_RECOVERED_MAX, ..IDLE };
        assert!(admit(frozen, 0).unwrap_err().contains("flushes are too far behind"));
        let files = Backlog { l0_files: 1_000, ..IDLE };
        assert!(admit(files, 0).unwrap_err().contains("compaction is too far behind"));
        admission.close();
        assert!(admit(IDLE, 0).unwrap_err().contains("stopping"));
    }

    #[test]
    fn j2_a_write_is_refused_while_others_wait() {
        let admission = Admission::default();
        admission.nobody_waits().unwrap();
        let (one, other) = (admission.wait_for_room(), admission.wait_for_room());
        drop(one);
        assert_eq!(admission.nobody_waits().unwrap_err().kind(), ErrorKind::Overloaded);
        drop(other);
        admission.nobody_waits().unwrap();
    }

    #[test]
    fn j3_the_reason_of_failing_work_takes_the_place_of_overload() {
        let admission = Admission::default();
        let kind = |work| admission.refusal(work, "why").kind();
        let _ = admission.note::<()>(Work::Compaction, Err(Error::new(ErrorKind::DiskFull, "full")));
        assert_eq!((kind(Work::Compaction), kind(Work::Flush)), (ErrorKind::DiskFull, ErrorKind::Overloaded));
        let _ = admission.note::<()>(Work::Flush, Err(Error::new(ErrorKind::Io, "once")));
        assert_eq!(kind(Work::Flush), ErrorKind::Overloaded, "it is tried again");
        admission.note(Work::Compaction, Ok(())).unwrap();
        assert_eq!(kind(Work::Compaction), ErrorKind::Overloaded);
    }

    #[test]
    fn j4_on_a_full_disk_only_writes_that_give_space_back_are_admitted() {
        let admission = Admission::default();
        admission.admit_growth().unwrap();
        let _ = admission.note::<()>(Work::GrowWal, Err(Error::new(ErrorKind::DiskFull, "full")));
        assert!(admission.set_full(true) && !admission.set_full(true));
        assert_eq!(admission.admit_growth().unwrap_err().kind(), ErrorKind::DiskFull);
        admission.admit(&IDLE, 0, 100).unwrap();
        // A delete that needs a longer WAL waits for the next try, which has the reserve.
        assert_eq!(admission.refusal(Work::GrowWal, "why").kind(), ErrorKind::Overloaded);
        assert!(admission.set_full(false));
        admission.admit_growth().unwrap();
    }

    #[test]
    fn x2_a_slice_ends_when_it_is_used_up_and_each_kind_of_work_has_its_own() {
        let admission = Admission::default();
        assert!(admission.spend(Work::Flush, 1, || IDLE), "the first slice begins with a pause");
        let whole = IDLE.flush_slice_bytes();
        assert!(!admission.spend(Work::Flush, whole, || panic!("the slice is not used up")));
        assert!(admission.spend(Work::Compaction, 1, || IDLE));
        assert!(admission.spend(Work::Flush, 1, || IDLE));
    }
}
