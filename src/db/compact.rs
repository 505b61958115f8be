//! Runs compactions in slices, and removes the files that they made obsolete, one by one.

use std::rc::Rc;

use super::{Db, Work};
use crate::compaction::executor::{Environment, Outputs};
use crate::compaction::{Compaction, Effort, execute, pick};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Identity};
use crate::key::UnixMillis;
use crate::manifest::{SharedMeta, VersionEdit};
use crate::memory::Permit;
use crate::sst::SstMeta;
use crate::sst::reader::Sst;
use crate::sst::run::OpenSst;
use crate::storage::{Storage, sync_names};

/// An entry is removed for good only when it expired this long ago. If the clock is set back by less, the entry is
/// found again.
const EXPIRY_MARGIN_MILLIS: u64 = 60_000;

impl<S: Storage> Db<S> {
    /// Waits until the version has changed.
    ///
    /// Cancel safety: safe.
    pub async fn compaction_due(&self) {
        self.0.catalog.changed().await;
    }

    /// Runs the compaction that is due at `now`. Returns `false` if no compaction is due.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6); `ShuttingDown` if the engine is closing. After any other error the inputs are
    /// in force, and the compaction can be tried again. If an input is damaged, the next call takes it out of the way.
    ///
    /// Cancel safety: not safe.
    pub async fn compact_next(&self, now: UnixMillis) -> Result<bool> {
        if let Some(number) = self.0.tree.take_suspect() {
            let result = self.look_at(number).await;
            return self.note(Work::Compaction, result).map(|()| true);
        }
        let result = self.compact(UnixMillis(now.0.saturating_sub(EXPIRY_MARGIN_MILLIS))).await;
        self.note(Work::Compaction, result)
    }

    async fn compact(&self, now: UnixMillis) -> Result<bool> {
        let inner = &*self.0;
        let version = self.version();
        let full = inner.admission.is_full();
        let effort = match inner.tree.wanted.get() {
            Some(up_to) => Effort::Everything { up_to, now },
            // On a full disk, too, space counts more than work.
            None if inner.writes.rests() || full => Effort::Rest,
            None => Effort::Due,
        };
        let picked = pick(&version, &inner.tree.limits, effort, &inner.tree.stuck.borrow());
        let Some(compaction) = picked else {
            if inner.tree.wanted.take().is_some() {
                inner.edited.notify_waiters();
            }
            return Ok(false);
        };
        // On a full disk, the work that makes room has to do with the space of a few outputs.
        let compaction = if full {
            compaction.within(2 * inner.tree.limits.sst_bytes, &inner.tree.stuck.borrow())
        } else {
            compaction
        };
        let outputs = if compaction.is_move() {
            Outputs::default()
        } else {
            let _permit = self.memory_for_merge(compaction.memory_bytes()).await?;
            let result = execute(&Inputs(self), &compaction, &version, &inner.tree.limits, now).await;
            match result {
                Err(error) if error.is_damage() => {
                    let inputs = compaction.inputs.iter().chain(&compaction.overlapping);
                    // All of them are looked at, because the error does not say which one it is.
                    inputs.for_each(|file| inner.tree.suspect(file.number));
                    return if inner.tree.merge_failed() { Ok(true) } else { Err(error) };
                }
                result => {
                    inner.tree.merged();
                    result?
                }
            }
        };
        if let Some(rest) = &outputs.rest
            && (compaction.split.is_none() || !outputs.went_down)
        {
            inner.tree.stuck.borrow_mut().insert(rest.number);
        }
        let mut edit = VersionEdit::default();
        let removed = |level: usize| move |file: &SharedMeta| (level, file.number);
        edit.remove_ssts.extend(compaction.inputs.iter().map(removed(compaction.level)));
        edit.remove_ssts.extend(compaction.overlapping.iter().map(removed(compaction.target())));
        if compaction.is_move() {
            edit.add_ssts.push((compaction.target(), compaction.inputs[0].clone()));
        }
        edit.add_ssts.extend(outputs.merged.iter().map(|meta| (compaction.target(), Rc::new(meta.clone()))));
        edit.add_ssts.extend(outputs.rest.iter().map(|meta| (compaction.level, Rc::new(meta.clone()))));
        self.replace_files(edit, outputs.files()).await?;
        self.count(&compaction, &outputs);
        Ok(true)
    }

    fn count(&self, compaction: &Compaction, outputs: &Outputs) {
        let bytes = |files: &[SharedMeta]| files.iter().map(|file| file.bytes).sum::<u64>();
        let (read, written) = match compaction.is_move() {
            true => (0, 0),
            false => (
                bytes(&compaction.inputs) + bytes(&compaction.overlapping),
                outputs.files().map(|file| file.bytes).sum(),
            ),
        };
        let counts = &self.0.counts;
        counts.compactions.add(1);
        counts.compaction_read_bytes.add(read);
        counts.compaction_written_bytes.add(written);
        tracing::debug!(
            level = compaction.level,
            inputs = compaction.inputs.len() + compaction.overlapping.len(),
            read_bytes = read,
            outputs = outputs.files().count(),
            written_bytes = written,
            moved = compaction.is_move(),
            "compacted"
        );
    }

    /// Carries out an edit that names `new` files. Their names are synced first (P7). If the edit fails, they are removed.
    pub(super) async fn replace_files(
        &self,
        edit: VersionEdit,
        new: impl Iterator<Item = &SstMeta>,
    ) -> Result<()> {
        let inner = &*self.0;
        let result = match sync_names(&inner.storage).await {
            Ok(()) => self.edit(edit).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &result
            && error.kind() != ErrorKind::Poisoned
        {
            for meta in new {
                let _ = inner.storage.remove(FileName::Sst(meta.number)).await; // nothing names it
            }
        }
        result
    }

    /// Waits for memory for a compaction, unless the engine closes.
    pub(super) async fn memory_for_merge(&self, bytes: usize) -> Result<Permit> {
        loop {
            if self.0.admission.is_closing() {
                return Err(stopping());
            }
            if let Some(permit) = self.0.memory.merges.take(bytes).await {
                return Ok(permit);
            }
        }
    }

    /// Gives back the space of everything that was deleted, overwritten, or has expired before the call: flushes it, and has
    /// the background merge it all into one level. Writes go on meanwhile.
    ///
    /// # Errors
    /// `ShuttingDown` if the shard closes; the failure of the shard.
    ///
    /// Cancel safety: safe. The work goes on.
    pub async fn compact_all(&self) -> Result<()> {
        let up_to = self.snapshot().await?.state().flushed;
        let inner = &*self.0;
        inner.tree.wanted.set(inner.tree.wanted.get().max(Some(up_to)));
        inner.catalog.look_again();
        loop {
            let edited = inner.edited.notified();
            self.check_serving()?;
            if inner.tree.wanted.get().is_none() {
                return Ok(());
            }
            edited.await;
        }
    }

    /// Removes an SST that no version and no reader needs. Returns its length; `None` if there is no such SST.
    ///
    /// Cancel safety: not safe.
    pub async fn remove_next(&self) -> Option<u64> {
        let inner = &*self.0;
        if inner.writes.queue.failure().is_some() {
            return None; // the names may lead to somebody else's files by now
        }
        let meta = inner.tree.take_obsolete()?;
        let name = FileName::Sst(meta.number);
        if let Err(error) = inner.storage.remove(name).await {
            tracing::warn!(file = inner.storage.label(name), %error, "cannot remove an SST; the next start will");
        }
        Some(meta.bytes)
    }
}

fn stopping() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the compaction ends: the server is stopping")
}

/// What a compaction sees of its shard.
struct Inputs<'a, S: Storage>(&'a Db<S>);

impl<S: Storage> OpenSst for Inputs<'_, S> {
    type File = S::File;

    /// Inputs that are not open yet bypass the cache of open files, where they would evict files that readers use.
    async fn open(&self, meta: &SstMeta) -> Result<Rc<Sst<S::File>>> {
        let Db(inner) = self.0;
        match inner.tree.opened(meta.number) {
            Some(sst) => Ok(sst),
            None => {
                let identity = inner.owner.identity(FileKind::Sst, meta.number);
                Ok(Rc::new(Sst::open(&inner.storage, identity, meta.bytes).await?))
            }
        }
    }

    async fn pause(&self) {
        self.0.0.storage.pause().await;
    }
}

impl<S: Storage> Environment for Inputs<'_, S> {
    type Storage = S;

    fn storage(&self) -> &S {
        &self.0.0.storage
    }

    fn new_file(&self) -> Identity {
        let Db(inner) = self.0;
        inner.owner.identity(FileKind::Sst, inner.catalog.new_file())
    }

    async fn spend(&self, bytes: usize) -> Result<()> {
        self.0.slice(Work::Compaction, bytes).await;
        let Db(inner) = self.0;
        if inner.admission.is_closing() {
            return Err(stopping());
        }
        inner.writes.queue.failure().map_or(Ok(()), Err)
    }
}
