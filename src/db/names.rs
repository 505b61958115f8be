//! Checks that the names of a shard still lead to the files that are in use. If a name does not, somebody has moved,
//! removed or replaced the file, and further writes to it would be lost.

use std::rc::Rc;

use super::Db;
use super::wals::TAKEN;
use crate::error::{Error, Result};
use crate::file_name::FileName;
use crate::record::file::{RecordFile, taken_away};
use crate::storage::Storage;

impl<S: Storage> Db<S> {
    /// Checks the directory, the WALs and the manifest.
    ///
    /// # Errors
    /// `Poisoned` if a name does not lead to its file; `Io` if the check itself fails.
    ///
    /// Cancel safety: not safe.
    pub async fn check_names(&self) -> Result<()> {
        self.check_store().await?;
        let inner = &*self.0;
        let storage = &inner.storage;
        let look = |error| Error::io(format!("look at {}", storage.directory_label()), error);
        for wal in [Some(inner.writes.active_wal()), inner.writes.spare.get()].into_iter().flatten() {
            let file = wal.file();
            let leads = storage.leads_to(file.name(), file.file()).await.map_err(look)?;
            // Meanwhile the WAL may have been flushed and renamed.
            let spare = inner.writes.spare.get().is_some_and(|spare| Rc::ptr_eq(&spare, &wal));
            if inner.writes.is_active(&wal) || spare {
                self.check_file(file, leads)?;
            }
        }
        for frozen in inner.writes.all_frozen() {
            let name = FileName::Wal(frozen.wal);
            let file = frozen.held.borrow().as_ref().map(|held| held.file().clone());
            let Some(file) = file else { continue };
            let leads = storage.leads_to(name, &file).await.map_err(look)?;
            if !leads && inner.writes.is_frozen(&frozen) {
                return Err(self.poison(&taken_away(&storage.label(name), TAKEN)));
            }
        }
        Ok(())
    }

    /// As [`Self::check_names`], for the directory and the manifest only.
    pub(super) async fn check_store(&self) -> Result<()> {
        let inner = &*self.0;
        let storage = &inner.storage;
        let label = storage.directory_label();
        let look = |error| Error::io(format!("look at {label}"), error);
        if let Some(path) = storage.lost_path().await.map_err(look)? {
            return Err(self.poison(&taken_away(&path, TAKEN)));
        }
        inner
            .catalog
            .look_at_manifest(async |log| {
                let leads = storage.leads_to(log.name(), log.file()).await.map_err(look)?;
                self.check_file(log, leads)
            })
            .await
    }

    fn check_file(&self, file: &RecordFile<S::File>, name_leads_to_it: bool) -> Result<()> {
        let result =
            if name_leads_to_it { file.check_in_place() } else { Err(taken_away(file.label(), TAKEN)) };
        result.map_err(|error| self.poison(&error))
    }
}
