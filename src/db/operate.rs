//! Carries out operations: what an [`Op`] does to a shard, and what its outcome is.
//!
//! An operation starts with a synchronous step ([`Db::start`]). Most end there: a get that memory can answer, or a set
//! that only waits for its commit group. An operation that needs the disk becomes a [`Pending`]. A `Pending` owns its
//! key, so it borrows nothing from the caller while it is awaited.
//!
//! The place of a delete in the order of writes is fixed at once: its tombstone joins the forming group while the
//! lookup of what it deletes is still under way. The lookup sees the state below the tombstone's SeqNo, writes in
//! flight included. These writes become durable before the tombstone, so the answer is exact once the tombstone is
//! durable. There is one exception: a delete of a key whose entry may be lost to damage first finds out whether it has to
//! be refused. (A delete that is the first to meet the damage gets the error all the same, and its tombstone stays.)

use bytes::Bytes;

use super::admission::WaitPosition;
use super::commit::Ticket;
use super::read::{Found, Lookup, Progress, Wants};
use super::{Db, SeqNo};
use crate::config::KEY_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Entry, EntryKind, Key, NewValue, UnixMillis, ValueKind};
use crate::op::{Op, Outcome, ToBytes};
use crate::storage::Storage;

/// The value of a tombstone.
const NOTHING: NewValue<'static> = NewValue::Short(b"");

/// How the first step of an operation ended.
pub enum Started<S: Storage> {
    /// The outcome is known, and was lent to the caller.
    Lent,
    /// The outcome is known.
    Known(Outcome<Bytes>),
    /// This will be the outcome, once the ticket says that the write is durable.
    Committing(Ticket, Outcome<Bytes>),
    /// The disk is needed.
    Pending(Pending<S>),
}

/// An operation that needs the disk.
pub struct Pending<S: Storage> {
    key: Key<Bytes>,
    lookup: Lookup<S>,
    then: Then,
}

/// What an operation does with the answer of its lookup.
enum Then {
    /// Return it.
    Return,
    /// Say whether the key was there, once the tombstone is durable.
    Deleted(Ticket, SeqNo),
    /// Write the tombstone then, unless the lookup has come to damage.
    Delete(UnixMillis),
}

impl<S: Storage> Pending<S> {
    /// Whether the operation takes its place in the order of writes only when it completes. Until then its caller must not
    /// start another operation on the key.
    pub fn writes_later(&self) -> bool {
        matches!(self.then, Then::Delete(_))
    }

    /// Completes the operation.
    ///
    /// # Errors
    /// `Corruption` or `Io` if a block cannot be read; `Overloaded`; `Poisoned` if a write has failed.
    ///
    /// Cancel safety: safe; a write that was taken goes on.
    pub async fn finish(self, db: &Db<S>) -> Result<Outcome<Bytes>> {
        let Self { key, lookup, then } = self;
        let found = lookup.finish(db, key.bytes()).await;
        match then {
            Then::Return => Ok(outcome(found?)),
            Then::Deleted(ticket, seqno) => {
                // The found value is released here, and not held until the group is durable.
                let outcome = found.map(|found| deleted(&found, seqno));
                ticket.await?;
                outcome
            }
            Then::Delete(now) => {
                let found = found?;
                // A write that came meanwhile is in memory, and decides.
                let newer = db.begin_lookup(key.as_ref(), db.0.writes.last(), Wants::Existence, now);
                let found = newer.known().unwrap_or(found);
                let (ticket, seqno) = db.write(key.as_ref(), EntryKind::TOMBSTONE, NOTHING)?;
                ticket.await?;
                Ok(deleted(&found, seqno))
            }
        }
    }
}

fn outcome(found: Option<Found>) -> Outcome<Bytes> {
    match found {
        Some(Found { value, seqno, expires }) => Outcome::Value { value, seqno, expires },
        None => Outcome::Missing,
    }
}

fn deleted(found: &Option<Found>, seqno: SeqNo) -> Outcome<Bytes> {
    if found.is_some() { Outcome::Written { seqno } } else { Outcome::Missing }
}

impl<S: Storage> Db<S> {
    /// Starts an operation at `now`. If memory decides the outcome of a get, the outcome is offered to `lend` without a
    /// copy of the value. If `lend` takes it, it returns `true` ([`Started::Lent`]); otherwise the value is copied. A set
    /// shares a large value that owns its bytes.
    ///
    /// # Errors
    /// `InvalidRequest` or `TooLarge` for an operation that can never succeed. A write that may succeed later is
    /// refused with `Overloaded` or `DiskFull`; the caller can wait for its turn with [`Self::wait_for_room`].
    /// `ShuttingDown`; `Poisoned`; `Corruption` if a cached block does not decode.
    #[inline]
    pub fn start<B: ToBytes>(
        &self,
        op: &Op<B>,
        now: UnixMillis,
        lend: impl FnOnce(Outcome<&[u8]>) -> bool,
    ) -> Result<Started<S>> {
        if op.writes() {
            self.0.admission.nobody_waits()?;
        }
        self.operate(op, now, lend)
    }

    /// As [`Self::start`], for an operation whose turn has come (see [`WaitPosition::first`]).
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in_turn<B: ToBytes>(
        &self,
        op: &Op<B>,
        now: UnixMillis,
        _turn: &WaitPosition,
    ) -> Result<Started<S>> {
        self.operate(op, now, |_| unreachable!("writes lend nothing"))
    }

    fn operate<B: ToBytes>(
        &self,
        op: &Op<B>,
        now: UnixMillis,
        lend: impl FnOnce(Outcome<&[u8]>) -> bool,
    ) -> Result<Started<S>> {
        check_key(op.key().bytes())?;
        match op {
            Op::Get { key } => self.start_get(key.as_ref(), now, lend),
            Op::Set { key, value, expires } => {
                let kind = EntryKind::value(*expires);
                let (ticket, seqno) = self.write(key.as_ref(), kind, self.new_value(value))?;
                Ok(Started::Committing(ticket, Outcome::Written { seqno }))
            }
            Op::Delete { key } => {
                let key = key.as_ref();
                // What memory knows is asked first: if it is an error, there is no tombstone.
                let mut lookup = self.begin_lookup(key, self.0.writes.last(), Wants::Existence, now);
                let progress = lookup.poll_cached(self, key.bytes())?;
                if matches!(progress, Progress::NeedsDisk) && self.version().may_have_lost(key.bytes()) {
                    let then = Then::Delete(now);
                    return Ok(Started::Pending(Pending { key: key.to_owned(), lookup, then }));
                }
                let (ticket, seqno) = self.write(key, EntryKind::TOMBSTONE, NOTHING)?;
                Ok(match progress {
                    Progress::Done(found) => Started::Committing(ticket, deleted(&found, seqno)),
                    Progress::NeedsDisk => {
                        let then = Then::Deleted(ticket, seqno);
                        Started::Pending(Pending { key: key.to_owned(), lookup, then })
                    }
                })
            }
        }
    }

    fn new_value<'a, B: ToBytes>(&self, value: &'a B) -> NewValue<'a> {
        if self.0.config.large_value_bytes <= value.as_ref().len() {
            NewValue::Large(value.to_bytes())
        } else {
            NewValue::Short(value.as_ref())
        }
    }

    fn start_get(
        &self,
        key: Key<&[u8]>,
        now: UnixMillis,
        lend: impl FnOnce(Outcome<&[u8]>) -> bool,
    ) -> Result<Started<S>> {
        let mut lend = Some(lend);
        let snapshot = self.visible();
        let known = self.in_memory(key, snapshot, |entry| {
            let lend = lend.take().expect("one entry decides");
            let Entry { value, seqno, kind, .. } = entry;
            if !kind.is_value_at(now) {
                return if lend(Outcome::Missing) { Started::Lent } else { Started::Known(Outcome::Missing) };
            }
            if lend(Outcome::Value { value, seqno, expires: kind.expires }) {
                return Started::Lent;
            }
            match self.copy(value) {
                Some(value) => Started::Known(Outcome::Value { value, seqno, expires: kind.expires }),
                None => {
                    let lookup = self.wait_for_permit(value.len(), snapshot, now);
                    Started::Pending(Pending { key: key.to_owned(), lookup, then: Then::Return })
                }
            }
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let mut lookup = self.search(key, Wants::Value, now);
        Ok(match lookup.poll_cached(self, key.bytes())? {
            Progress::Done(found) => Started::Known(outcome(found)),
            Progress::NeedsDisk => {
                let key = key.to_owned();
                Started::Pending(Pending { key, lookup, then: Then::Return })
            }
        })
    }

    /// Takes a tombstone into the forming group, and begins the lookup of what it deletes.
    fn write_tombstone(&self, key: Key<&[u8]>, now: UnixMillis) -> Result<(Ticket, SeqNo, Lookup<S>)> {
        // The lookup begins first. The write may then freeze the memtable, which does not change what the lookup sees.
        let lookup = self.begin_lookup(key, self.0.writes.last(), Wants::Existence, now);
        let (ticket, seqno) = self.write(key, EntryKind::TOMBSTONE, NOTHING)?;
        Ok((ticket, seqno, lookup))
    }

    /// Takes a write into the forming group, if there is room.
    fn write(&self, key: Key<&[u8]>, kind: EntryKind, value: NewValue<'_>) -> Result<(Ticket, SeqNo)> {
        let inner = &*self.0;
        let value_bytes = value.as_ref().len();
        if inner.config.value_bytes_max < value_bytes {
            let message = format!("the value is longer than {} bytes", inner.config.value_bytes_max);
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        if let Some(error) = inner.writes.queue.failure() {
            return Err(error); // D4
        }
        let taken = self.take(key, kind, value);
        if taken.is_err() {
            inner.counts.stalls.add(1);
        }
        taken
    }

    fn take(&self, key: Key<&[u8]>, kind: EntryKind, value: NewValue<'_>) -> Result<(Ticket, SeqNo)> {
        let inner = &*self.0;
        if kind.value == ValueKind::Value {
            inner.admission.admit_growth()?; // J4
        }
        let queued = inner.writes.queue.bytes() + value.as_ref().len();
        inner.admission.admit(&self.backlog(), queued, inner.config.queue_bytes_max())?;
        let taken = inner.writes.take(key, kind, value);
        taken.map_err(|no_room| inner.admission.refusal(no_room.work, no_room.why))
    }

    /// The key with its hashes.
    pub fn key<'a>(&self, key: &'a [u8]) -> Key<&'a [u8]> {
        Key::new(key, self.0.config.key_hash)
    }

    /// Takes a value into the forming group. It is neither durable nor visible before the ticket says so.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<Ticket> {
        self.set_expiring(key, value, None)
    }

    /// As [`Self::set`], for a value that expires.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn set_expiring(&self, key: &[u8], value: &[u8], expires: Option<UnixMillis>) -> Result<Ticket> {
        check_key(key)?;
        Ok(self.write(self.key(key), EntryKind::value(expires), self.new_value(&value))?.0)
    }

    /// Takes a tombstone into the forming group, and looks up what it deletes at `now`. The answer is exact once the ticket
    /// says that the tombstone is durable.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn delete(&self, key: &[u8], now: UnixMillis) -> Result<(Ticket, Lookup<S>)> {
        check_key(key)?;
        let (ticket, _, lookup) = self.write_tombstone(self.key(key), now)?;
        Ok((ticket, lookup))
    }

    /// Begins a search for the durable value of a key at `now`.
    ///
    /// # Errors
    /// `InvalidRequest` or `TooLarge`.
    pub fn lookup(&self, key: &[u8], now: UnixMillis) -> Result<Lookup<S>> {
        check_key(key)?;
        Ok(self.begin_lookup(self.key(key), self.visible(), Wants::Value, now))
    }

    /// The durable value of a key at `now`.
    ///
    /// # Errors
    /// As [`Self::lookup`]; `Corruption` or `Io` if a block cannot be read.
    pub async fn get(&self, key: &[u8], now: UnixMillis) -> Result<Option<Bytes>> {
        let found = self.lookup(key, now)?.finish(self, key).await?;
        Ok(found.map(|found| found.value))
    }
}

fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(ErrorKind::InvalidRequest, "the key is empty"));
    }
    if KEY_BYTES_MAX < key.len() {
        let message = format!("the key is longer than {KEY_BYTES_MAX} bytes");
        return Err(Error::new(ErrorKind::TooLarge, message));
    }
    Ok(())
}
