//! The life of WALs before and after a flush: the spare WAL is prepared, the active WAL grows, and a flushed WAL is
//! used again or removed.
//!
//! A WAL is named by the manifest before it takes a group, so that its loss would be noticed. A WAL that was flushed loses
//! its name in the manifest first, and is changed only then (P7).

use std::rc::Rc;

use super::writes::{Frozen, Held, Making};
use super::{Db, Work};
use crate::config::DbConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::key::FileNumber;
use crate::manifest::{VersionEdit, WalMeta};
use crate::record::file::{Sizes, taken_away};
use crate::record::replay::KnownEnd;
use crate::storage::{File, Storage};
use crate::wal::writer::Wal;

/// What has happened to a file whose name no longer leads to it.
pub(super) const TAKEN: &str = "moved, removed or replaced";

/// How long the WALs of a shard may become, and in which steps.
pub(super) fn wal_sizes(config: &DbConfig) -> Sizes {
    Sizes { capacity: config.wal_bytes, step: config.wal_step_bytes }
}

/// What the manifest says about a WAL without a group.
pub(super) fn unused<F: File>(wal: &Wal<F>) -> WalMeta {
    WalMeta { bytes: wal.file().allocated(), end: KnownEnd::default() }
}

impl<S: Storage> Db<S> {
    /// Turns a WAL that the manifest no longer names into the spare, or removes it.
    pub(super) async fn release_wal(&self, frozen: &Frozen<S>) -> Result<()> {
        let inner = &*self.0;
        let name = FileName::Wal(frozen.wal);
        let Some(held) = frozen.held.take() else { return Ok(()) };
        let label = || inner.storage.label(name);
        let leads = inner.storage.leads_to(name, held.file()).await;
        if !leads.map_err(|error| Error::io(format!("look at {}", label()), error))? {
            // The file that would be removed or used again belongs to somebody else.
            return Err(self.poison(&taken_away(&label(), TAKEN)));
        }
        let from = match held {
            // A shard that rests gives the space of its WALs back, and so does one on a full disk.
            Held::Written(wal)
                if wal.retire(inner.config.wal_bytes)
                    && !inner.writes.rests()
                    && !inner.admission.is_full() =>
            {
                Some(wal)
            }
            Held::Written(_) | Held::Replayed(_) => None,
        };
        match from.and_then(|wal| Some((wal, inner.writes.spare.begin()?))) {
            Some((wal, making)) => self.recycle(&wal, making).await,
            None => {
                // The WAL is closed before its name is removed. Otherwise the close would free the file's blocks, on this
                // thread.
                inner.writes.queue.forget(frozen.wal);
                self.remove_wal(frozen.wal).await
            }
        }
    }

    /// Turns a WAL that is no longer needed into the spare.
    async fn recycle(&self, from: &Rc<Wal<S::File>>, making: Making<'_>) -> Result<()> {
        let inner = &*self.0;
        let number = inner.catalog.new_file();
        let result = async {
            let sizes = wal_sizes(&inner.config);
            let wal = Wal::recycle(&inner.storage, inner.owner, from, number, sizes).await?;
            self.adopt_spare(wal, &making).await
        }
        .await;
        drop(making);
        if let Err(error) = &result
            && error.kind() != ErrorKind::Poisoned
        {
            // The file has the old or the new name, and no manifest names either. Its removal may free the space that
            // was lacking.
            let _ = self.remove_wal(number).await;
            let _ = self.remove_wal(from.number()).await;
            inner.writes.spare.want(); // a task that looked meanwhile relied on this spare
        }
        result
    }

    async fn remove_wal(&self, number: FileNumber) -> Result<()> {
        let name = FileName::Wal(number);
        let storage = &self.0.storage;
        storage
            .remove(name)
            .await
            .map_err(|error| Error::io(format!("remove {}", storage.label(name)), error))
    }

    /// Names the WAL in the manifest, so that its loss would be noticed, and makes it the spare.
    async fn adopt_spare(&self, wal: Wal<S::File>, making: &Making<'_>) -> Result<()> {
        let inner = &*self.0;
        let add_wals = vec![(wal.number(), unused(&wal))];
        self.edit(VersionEdit { add_wals, ..VersionEdit::default() }).await?;
        inner.writes.spare.put(wal, making);
        inner.admission.note(Work::PrepareWal, Ok(()))?;
        self.freeze_if_due();
        inner.admission.make_room();
        Ok(())
    }

    /// Waits until a spare WAL is wanted. Cancel safety: safe.
    pub async fn spare_wanted(&self) {
        self.0.writes.spare.wanted().await;
    }

    /// Makes a spare WAL, if there is none.
    ///
    /// # Errors
    /// As [`Self::flush_next`].
    ///
    /// Cancel safety: not safe.
    pub async fn prepare_spare(&self) -> Result<()> {
        let inner = &*self.0;
        let Some(making) = inner.writes.spare.begin() else {
            if inner.writes.spare.is_there() {
                self.freeze_if_due();
                return inner.admission.note(Work::PrepareWal, Ok(()));
            }
            return Ok(()); // another task is making it
        };
        let number = inner.catalog.new_file();
        let result = async {
            let sizes = wal_sizes(&inner.config);
            let wal = Wal::create(&inner.storage, inner.owner, number, sizes).await?;
            self.adopt_spare(wal, &making).await
        }
        .await;
        drop(making);
        if let Err(error) = &result
            && error.kind() != ErrorKind::Poisoned
        {
            let _ = self.remove_wal(number).await; // nothing names it
        }
        self.note(Work::PrepareWal, result)
    }

    /// Replaces WALs that have grown by short ones, as long as the shard rests. For a moment when nothing waits for its
    /// flush.
    ///
    /// # Errors
    /// As [`Self::flush_next`].
    ///
    /// Cancel safety: not safe.
    pub async fn shorten_wals(&self) -> Result<()> {
        let inner = &*self.0;
        let short = inner.config.wal_step_bytes;
        while let Some(number) = inner.writes.take_dropped() {
            self.remove_unused_wal(number).await?; // an earlier attempt has failed
        }
        if inner.writes.rests()
            && let Some(spare) = inner.writes.spare.take_long(short)
        {
            self.drop_unused_wal(spare).await?;
        }
        if inner.writes.rests() && inner.writes.has_long_unused_wal(short) {
            self.prepare_spare().await?;
            if let Some(long) = inner.writes.replace_unused_wal() {
                self.drop_unused_wal(long).await?;
            }
        }
        Ok(())
    }

    /// Removes a WAL that never took a group, and that the manifest names.
    async fn drop_unused_wal(&self, wal: Rc<Wal<S::File>>) -> Result<()> {
        let number = wal.number();
        // Zeros may still be on their way to it: then the file is removed while they are written, which harms nobody.
        wal.file().retire();
        drop(wal);
        self.remove_unused_wal(number).await
    }

    async fn remove_unused_wal(&self, number: FileNumber) -> Result<()> {
        if let Err(error) =
            self.edit(VersionEdit { remove_wals: vec![number], ..VersionEdit::default() }).await
        {
            self.0.writes.keep_dropped(number);
            return Err(error);
        }
        self.remove_wal(number).await // if it cannot be removed, the next start does it
    }

    /// Waits until the active WAL should grow. Cancel safety: safe.
    pub async fn growth_wanted(&self) {
        self.0.writes.growth_wanted().await;
    }

    /// Makes the active WAL longer, if it is short of space.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6). After any other error, a full disk included, writes go on as long as they fit,
    /// and the growth can be tried again.
    ///
    /// Cancel safety: not safe.
    pub async fn grow_wal(&self) -> Result<()> {
        let inner = &*self.0;
        loop {
            let wal = inner.writes.active_wal();
            let least = inner.writes.wal_bytes_wanted();
            let before = wal.file().allocated();
            let wanted = wal.wants_growth() || before < least.min(wal.file().capacity());
            if !wanted || inner.admission.is_closing() {
                return inner.admission.note(Work::GrowWal, Ok(()));
            }
            let result = wal.file().grow(&inner.storage, least).await;
            inner.admission.make_room();
            match result {
                Ok(()) if before < wal.file().allocated() => {}
                Ok(()) => return Ok(()), // another task is growing it
                Err(error) if error.kind() == ErrorKind::Poisoned => return Err(self.poison(&error)),
                // A WAL that was flushed meanwhile may have another name, or no name.
                Err(_) if !inner.writes.is_active(&wal) => {}
                Err(error) => return inner.admission.note(Work::GrowWal, Err(error)),
            }
        }
    }

    /// Removes the kept WALs that the retention policy does not keep any longer (I1).
    ///
    /// # Errors
    /// As [`Self::flush_next`].
    ///
    /// Cancel safety: not safe.
    pub async fn release_kept(&self) -> Result<()> {
        let inner = &*self.0;
        let policy = inner.writes.retention.borrow().clone();
        let released = inner.catalog.kept_wals().await;
        let released: Vec<_> = released.into_iter().filter(|number| !policy.keeps(*number, None)).collect();
        if released.is_empty() {
            return Ok(());
        }
        self.edit(VersionEdit { remove_wals: released.clone(), ..VersionEdit::default() }).await?;
        for number in released {
            self.remove_wal(number).await?; // if this fails, the next start removes it
        }
        Ok(())
    }
}
