//! The catalog of a shard: which files it consists of, and the numbers of new ones.
//!
//! Owns: the manifest, the version in force, and the next file number.
//!
//! G1  A file number is given out once. An edit says by itself that its number and all below are taken.
//! G2  The version in force is the one that the last durable edit made. It changes in the same synchronous step in which
//!     the edit is found to be durable, so whoever waited for the edit finds it in force.
//! G3  Edits are appended one at a time, in the order in which they asked.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::{Mutex, Notify};

use crate::error::Result;
use crate::key::FileNumber;
use crate::manifest::{Manifest, SharedMeta, State, Version, VersionEdit};
use crate::record::file::RecordFile;
use crate::storage::Storage;

pub(super) struct Catalog<S: Storage> {
    manifest: Mutex<Manifest<S>>,
    version: RefCell<Rc<Version>>,
    next_file: Cell<u64>,
    changed: Notify,
}

impl<S: Storage> Catalog<S> {
    /// The catalog of a manifest that was just written.
    pub(super) fn new(manifest: Manifest<S>) -> Self {
        let catalog = Self {
            version: RefCell::new(manifest.state().version.clone()),
            next_file: Cell::new(manifest.state().next_file.0),
            manifest: Mutex::new(manifest),
            changed: Notify::new(),
        };
        catalog.changed.notify_one(); // a compaction may be due
        catalog
    }

    /// The version in force.
    pub(super) fn version(&self) -> Rc<Version> {
        self.version.borrow().clone()
    }

    /// Whether `version` is in force.
    pub(super) fn is_in_force(&self, version: &Rc<Version>) -> bool {
        Rc::ptr_eq(version, &self.version.borrow())
    }

    /// Files in L0.
    pub(super) fn l0_files(&self) -> usize {
        self.version.borrow().level(0).len()
    }

    /// Waits until the version has changed. Cancel safety: safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The number of a new file (G1).
    pub(super) fn new_file(&self) -> FileNumber {
        let number = self.next_file.get();
        self.next_file.set(number + 1);
        FileNumber(number)
    }

    /// Appends an edit, if the state `agrees` once it is the edit's turn, and puts its version in force. Returns the SSTs
    /// that the version does not name any more; `None` if the state did not agree.
    ///
    /// # Errors
    /// That of `agrees`. `Poisoned` if the edit may or may not be durable. After any other error it certainly is not.
    ///
    /// Cancel safety: not safe.
    pub(super) async fn edit(
        &self,
        mut edit: VersionEdit,
        agrees: impl FnOnce(&State) -> Result<bool>,
    ) -> Result<Option<Vec<SharedMeta>>> {
        let mut manifest = self.manifest.lock().await; // G3
        if !agrees(manifest.state())? {
            return Ok(None);
        }
        edit.next_file = Some(self.new_file()); // G1; a fresh manifest takes this number, if the present one is full
        let before = self.version();
        manifest.append(&edit).await?;
        self.version.replace(manifest.state().version.clone()); // G2
        self.changed.notify_one();
        let removed = before.files().filter(|file| edit.remove_ssts.iter().any(|(_, n)| *n == file.number));
        let moved = |file: &SharedMeta| edit.add_ssts.iter().any(|(_, added)| added.number == file.number);
        Ok(Some(removed.filter(|file| !moved(file)).cloned().collect()))
    }

    /// Lends the open manifest file to `look`, when no edit is under way.
    pub(super) async fn look_at_manifest<R>(&self, look: impl AsyncFnOnce(&RecordFile<S::File>) -> R) -> R {
        look(self.manifest.lock().await.log()).await
    }

    /// The WALs that are kept though recovery does not need them.
    pub(super) async fn kept_wals(&self) -> Vec<FileNumber> {
        self.manifest.lock().await.state().kept_wals.keys().copied().collect()
    }
}
