//! Frozen memtable → L0 SST, and the life of WALs around it: prepared, released, recycled. And the clean stop.

use std::rc::Rc;

use super::{Active, Db, Frozen, Held, TAKEN, Work, wal_sizes};
use crate::compaction::executor::ENTRY_COST_BYTES;
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::key::SeqNo;
use crate::manifest::{VersionEdit, WalMeta};
use crate::memtable::{InOrder, Memtable};
use crate::record::Kind;
use crate::record::file::taken_away;
use crate::record::replay::KnownEnd;
use crate::sst::SstMeta;
use crate::sst::builder::SstBuilder;
use crate::storage::{File, Storage, sync_names};
use crate::wal::writer::Wal;

/// What a clean stop did, for those who watch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseStep {
    /// The memtable is in this SST; `None` if it was empty.
    Flushed(Option<SstMeta>),
    /// The WAL holds nothing any more.
    WalCleaned,
}

impl<S: Storage> Db<S> {
    /// Asks for a flush of what is in memory, however little. Done in the background.
    pub fn request_flush(&self) {
        let inner = &*self.0;
        if inner.active.borrow().memtable.entries() == 0 {
            return;
        }
        inner.freeze_due.set(true);
        if self.freeze().is_err() {
            // For want of a spare WAL, or of room for one more frozen memtable: tried again when there is.
            inner.events.spare_wanted.notify_one();
        }
    }

    /// Makes up for a freeze that was asked for when there was no spare WAL, or no room for a frozen memtable.
    fn freeze_if_due(&self) {
        if self.0.freeze_due.get() && !self.0.closing.get() {
            let _ = self.freeze(); // it stays due, and whoever makes room tries again
        }
    }

    /// Flushes the oldest frozen memtable, if there is one.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6). After any other error the memtable is still there and the flush can
    /// be tried again.
    ///
    /// Cancel safety: not safe.
    pub async fn flush_next(&self) -> Result<()> {
        let oldest = self.0.frozen.borrow().front().cloned();
        let Some(oldest) = oldest else { return Ok(()) };
        let result = self.flush(&oldest).await;
        self.note(Work::Flush, result).map(|_| ())
    }

    /// Whether a memtable waits for its flush.
    pub fn has_frozen(&self) -> bool {
        !self.0.frozen.borrow().is_empty()
    }

    /// Writes the memtable, puts the SST in force, and releases the WAL. Steps in the order of P7.
    async fn flush(&self, frozen: &Rc<Frozen<S>>) -> Result<Option<SstMeta>> {
        let inner = &*self.0;
        let last = frozen.memtable.last();
        self.committed_up_to(last).await?; // D3
        let meta = if last == SeqNo(0) { None } else { Some(self.write_sst(&frozen.memtable).await?) };
        let edit = VersionEdit {
            flushed: meta.as_ref().map(|meta| meta.last),
            remove_wals: vec![frozen.wal],
            add_ssts: meta.iter().map(|meta| (0, Rc::new(meta.clone()))).collect(),
            ..VersionEdit::default()
        };
        if let Err(error) = self.edit(edit).await {
            if let Some(meta) = &meta
                && error.kind() != ErrorKind::Poisoned
            {
                // The old manifest is in force and does not name it.
                let _ = inner.storage.remove(FileName::Sst(meta.number)).await;
            }
            return Err(error);
        }
        let first = inner.frozen.borrow_mut().pop_front();
        assert!(
            first.is_some_and(|first| Rc::ptr_eq(&first, frozen)),
            "one flush at a time, the oldest first"
        ); // D3
        self.freeze_if_due();
        inner.events.room.notify_waiters();
        if let Err(error) = self.release_wal(frozen).await {
            if error.kind() == ErrorKind::Poisoned {
                return Err(error);
            }
            tracing::warn!(%error, "cannot release a WAL that is not needed any more; the next start will");
        }
        Ok(meta)
    }

    async fn committed_up_to(&self, last: SeqNo) -> Result<()> {
        let inner = &*self.0;
        loop {
            // Registered before the look, so that no commit in between is missed.
            let committed = inner.events.committed.notified();
            if let Some(error) = inner.queue.failure() {
                return Err(error);
            }
            if last <= inner.queue.visible() {
                return Ok(());
            }
            committed.await;
        }
    }

    async fn write_sst(&self, memtable: &Memtable) -> Result<SstMeta> {
        let inner = &*self.0;
        let number = self.new_file();
        let result = async {
            let identity = inner.owner.identity(Kind::Sst, number);
            let mut builder = SstBuilder::create(&inner.storage, identity).await?;
            let mut in_order = InOrder::new();
            while in_order.sort_some(memtable) {
                inner.storage.pause().await;
            }
            let mut last_key: &[u8] = b"";
            while let Some(entry) = in_order.next(memtable) {
                self.slice(Work::Flush, ENTRY_COST_BYTES).await;
                // An older version of the key before is left out.
                if entry.key == last_key {
                    continue;
                }
                last_key = entry.key;
                inner.values.remove(inner.config.key_hash.of(entry.key), entry.key); // F1 of `values`
                builder.add(&entry).await?;
                self.slice(Work::Flush, entry.key.len() + entry.value.len()).await;
            }
            let meta = builder.finish().await?;
            // The last write of a memtable is the newest of its key, so it was not left out.
            assert_eq!(meta.last, memtable.last());
            sync_names(&inner.storage).await?;
            Ok(meta)
        }
        .await;
        if result.is_err() {
            // Nothing names it; if it cannot be removed now, the next open does it.
            let _ = inner.storage.remove(FileName::Sst(number)).await;
        }
        result
    }

    /// A WAL that the manifest no longer names becomes the spare, or goes.
    async fn release_wal(&self, frozen: &Frozen<S>) -> Result<()> {
        let inner = &*self.0;
        let remove = async |number| {
            let name = FileName::Wal(number);
            let attempt = || format!("remove {}", inner.storage.label(name));
            inner.storage.remove(name).await.map_err(|error| Error::io(attempt(), error))
        };
        let name = FileName::Wal(frozen.wal);
        let Some(held) = frozen.held.take() else { return Ok(()) };
        let leads = inner.storage.leads_to(name, held.file()).await;
        if !leads.map_err(|error| Error::io(format!("look at {}", inner.storage.label(name)), error))? {
            // It would be somebody else's file that is removed, or used again.
            return Err(self.poison(&taken_away(&inner.storage.label(name), TAKEN)));
        }
        let wanted = inner.spare.borrow().is_none() && !inner.spare_coming.get();
        let from = match held {
            Held::Written(wal) if wal.retire(inner.config.wal_bytes) && wanted => wal,
            held => {
                // The WAL is closed before its name goes. Otherwise the close would free its blocks, on this thread.
                drop(held);
                return remove(frozen.wal).await;
            }
        };
        let number = self.new_file();
        inner.spare_coming.set(true);
        let result = async {
            let sizes = wal_sizes(&inner.config);
            let wal = Wal::recycle(&inner.storage, inner.owner, &from, number, sizes).await?;
            self.adopt_spare(wal).await
        }
        .await;
        inner.spare_coming.set(false);
        if let Err(error) = &result
            && error.kind() != ErrorKind::Poisoned
        {
            // It has one name or the other, and no manifest names either; its space may be what is lacking.
            let _ = remove(number).await;
            let _ = remove(frozen.wal).await;
            inner.events.spare_wanted.notify_one(); // who looked meanwhile saw it coming
        }
        result
    }

    /// Names the WAL in the manifest, so that its loss would be noticed, and makes it the spare.
    async fn adopt_spare(&self, wal: Wal<S::File>) -> Result<()> {
        let inner = &*self.0;
        let add_wals = vec![(wal.number(), unused(&wal))];
        self.edit(VersionEdit { add_wals, ..VersionEdit::default() }).await?;
        let surplus = inner.spare.replace(Some(Rc::new(wal)));
        assert!(surplus.is_none(), "`spare_coming` lets one task at a time make it");
        inner.trouble.borrow_mut()[Work::Spare as usize] = None;
        self.freeze_if_due();
        inner.events.room.notify_waiters();
        Ok(())
    }

    /// Waits until a spare WAL is wanted. Cancel safety: safe.
    pub async fn spare_wanted(&self) {
        self.0.events.spare_wanted.notified().await;
    }

    /// Waits until a memtable is frozen. Cancel safety: safe.
    pub async fn flush_due(&self) {
        while !self.has_frozen() {
            self.0.events.frozen.notified().await;
        }
    }

    /// Makes a spare WAL, if there is none.
    ///
    /// # Errors
    /// As [`Self::flush_next`].
    pub async fn prepare_spare(&self) -> Result<()> {
        let inner = &*self.0;
        if inner.spare_coming.get() {
            return Ok(());
        }
        if inner.spare.borrow().is_some() {
            self.freeze_if_due();
            return self.note(Work::Spare, Ok(()));
        }
        inner.spare_coming.set(true);
        let number = self.new_file();
        let result = async {
            let sizes = wal_sizes(&inner.config);
            let wal = Wal::create(&inner.storage, inner.owner, number, sizes).await?;
            self.adopt_spare(wal).await
        }
        .await;
        inner.spare_coming.set(false);
        if let Err(error) = &result
            && error.kind() != ErrorKind::Poisoned
        {
            let _ = inner.storage.remove(FileName::Wal(number)).await; // nothing names it
        }
        self.note(Work::Spare, result)
    }

    /// Waits until the active WAL should grow. Cancel safety: safe.
    pub async fn growth_wanted(&self) {
        self.0.events.growth_wanted.notified().await;
    }

    /// Makes the active WAL longer, if it is short of space.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6). After any other error, a full disk included, writes go on as long as they fit,
    /// and it can be tried again.
    ///
    /// Cancel safety: not safe.
    pub async fn grow_wal(&self) -> Result<()> {
        let inner = &*self.0;
        loop {
            let wal = inner.active.borrow().wal.clone();
            let least = inner.wal_bytes_wanted.get();
            let before = wal.file().allocated();
            let wanted = wal.wants_growth() || before < least.min(wal.file().capacity());
            if !wanted || inner.closing.get() {
                return self.note(Work::Growth, Ok(()));
            }
            let result = wal.file().grow(&inner.storage, least).await;
            inner.events.room.notify_waiters();
            match result {
                Ok(()) if before < wal.file().allocated() => {}
                Ok(()) => return Ok(()), // somebody else is at it
                Err(error) if error.kind() == ErrorKind::Poisoned => return Err(self.poison(&error)),
                // A WAL that was flushed meanwhile may have another name, or none.
                Err(_) if !Rc::ptr_eq(&inner.active.borrow().wal, &wal) => {}
                Err(error) => return self.note(Work::Growth, Err(error)),
            }
        }
    }

    /// Refuses writes from now on, and makes a compaction in progress give up.
    pub fn begin_close(&self) {
        self.0.closing.set(true);
    }

    /// The clean stop: refuses writes, commits what waits, flushes everything, leaves an empty WAL. The caller
    /// has stopped the background futures, and no request is in flight.
    ///
    /// # Errors
    /// Any; what was acknowledged is in the WAL then, and the next open replays it.
    pub async fn close(&self, mut watch: impl FnMut(CloseStep)) -> Result<()> {
        let inner = &*self.0;
        self.begin_close();
        while !inner.queue.is_empty() {
            self.commit_next().await?;
        }
        self.sync().await?;
        let used = 0 < inner.active.borrow().memtable.entries();
        if used {
            // No write comes any more: the new memtable needs no WAL of its own (D2).
            let wal = inner.active.borrow().wal.clone();
            let full = inner.active.replace(Active::new(wal, inner.config.key_hash));
            inner.frozen.borrow_mut().push_back(full.freeze());
        }
        let mut last = None;
        loop {
            let oldest = inner.frozen.borrow().front().cloned();
            let Some(oldest) = oldest else { break };
            last = self.flush(&oldest).await?.or(last);
        }
        watch(CloseStep::Flushed(last));
        while self.remove_next().await.is_some() {}
        // The active WAL, if it took no write, else the one that was recycled or prepared.
        let empty = if used { inner.spare.borrow().clone() } else { Some(inner.active.borrow().wal.clone()) };
        let edit = VersionEdit {
            clean_wal: empty.as_ref().map(|wal| wal.number()),
            // With the length that the next start may rely on.
            add_wals: empty.iter().map(|wal| (wal.number(), unused(wal))).collect(),
            ..VersionEdit::default()
        };
        self.edit(edit).await?;
        match self.check_store().await {
            Err(error) if error.kind() == ErrorKind::Poisoned => return Err(error),
            _ => {} // what cannot be looked at proves nothing
        }
        watch(CloseStep::WalCleaned);
        Ok(())
    }
}

/// What the manifest says of a WAL without a group.
pub(super) fn unused<F: File>(wal: &Wal<F>) -> WalMeta {
    WalMeta { bytes: wal.file().allocated(), end: KnownEnd::default() }
}
