//! The catalog of a shard: which files it consists of, and the numbers of new ones.
//!
//! Owns: the manifest, the version in force, and the next file number.
//!
//! G1  A file number is given out once. Each edit takes a number of its own, and says that all numbers below it are
//!     taken.
//! G2  The version in force is the one that the last durable edit made. It changes in the same synchronous step in
//!     which the edit is found to be durable. So a caller that waited for the edit finds the new version in force.
//! G3  Edits are appended one at a time, in the order in which they were requested.

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

    /// Waits until the version has changed. Cancel safety: safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Lets [`Self::changed`] complete although the version has not changed.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    /// The number of a new file (G1).
    pub(super) fn new_file(&self) -> FileNumber {
        let number = self.next_file.get();
        self.next_file.set(number + 1);
        FileNumber(number)
    }

    /// Appends an edit, if the state `agrees` once it is the edit's turn, and puts its version in force. Returns the
    /// SSTs that the new version does not name any more; `None` if the state did not agree.
    ///
    /// # Errors
    /// The error of `agrees`. `Poisoned` if the edit may or may not be durable. After any other error it is certainly
    /// not durable.
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
        edit.next_file = Some(self.new_file()); // G1; the number is for a fresh manifest, if the present one is full
        let before = self.version();
        manifest.append(&edit).await?;
        self.version.replace(manifest.state().version.clone()); // G2
        self.changed.notify_one();
        let removed = before.files().filter(|file| edit.remove_ssts.iter().any(|(_, n)| *n == file.number));
        let moved = |file: &SharedMeta| {
            edit.add_ssts.iter().any(|(_, added)| added.number == file.number)
                || edit.add_damage.iter().any(|damage| damage.file == file.number) // it is kept
        };
        Ok(Some(removed.filter(|file| !moved(file)).cloned().collect()))
    }

    /// Lends the open manifest file to `look`, when no edit is under way.
    pub(super) async fn look_at_manifest<R>(&self, look: impl AsyncFnOnce(&RecordFile<S::File>) -> R) -> R {
        look(self.manifest.lock().await.log()).await
    }

    /// What the shard consists of, according to the last durable edit.
    pub(super) async fn state(&self) -> State {
        self.manifest.lock().await.state().clone()
    }

    /// The WALs that are kept although recovery does not need them.
    pub(super) async fn kept_wals(&self) -> Vec<FileNumber> {
        self.manifest.lock().await.state().kept_wals.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::db::tests::{OWNER, step};
    use crate::error::{Error, ErrorKind};
    use crate::manifest::WalMeta;
    use crate::manifest::load;
    use crate::record::replay::KnownEnd;
    use crate::storage::sim::{Fate, SimStorage};

    async fn catalog(storage: &SimStorage) -> Catalog<SimStorage> {
        let state = State { next_file: FileNumber(1), ..State::default() };
        Catalog::new(Manifest::create(storage.clone(), OWNER, state, 1 << 14).await.unwrap())
    }

    fn add_wal(number: FileNumber) -> VersionEdit {
        let meta = WalMeta { bytes: 4096, end: KnownEnd::default() };
        VersionEdit { add_wals: vec![(number, meta)], ..VersionEdit::default() }
    }

    fn add_sst(number: u64, key: &str) -> VersionEdit {
        let meta = crate::manifest::version::tests::meta(number, key, key, 10);
        VersionEdit { add_ssts: vec![(1, Rc::new(meta))], ..VersionEdit::default() }
    }

    #[test]
    fn g1_a_file_number_is_given_out_once_even_over_a_crash() {
        block_on(async {
            let storage = SimStorage::new(1);
            let catalog = catalog(&storage).await;
            let mut given = Vec::new();
            for _ in 0..3 {
                given.extend([catalog.new_file(), catalog.new_file()]);
                let number = catalog.new_file();
                given.push(number);
                catalog.edit(add_wal(number), |_| Ok(true)).await.unwrap();
            }
            assert!(given.is_sorted_by(|a, b| a < b));
            let loaded = load(&storage.crash(Fate::Lost), OWNER).await.unwrap().unwrap();
            assert!(given.iter().all(|number| *number < loaded.state.next_file));
        });
    }

    #[test]
    fn g2_the_version_in_force_is_that_of_the_last_durable_edit() {
        block_on(async {
            let storage = SimStorage::new(1);
            let catalog = catalog(&storage).await;
            let before = catalog.version();
            {
                let mut edit = Box::pin(catalog.edit(add_sst(7, "a"), |_| Ok(true)));
                // As long as the edit is under way, the old version is in force.
                let mut polls = 0;
                while step(&mut edit).is_none() {
                    assert!(catalog.is_in_force(&before));
                    polls += 1;
                }
                assert!(0 < polls, "the manifest is written and synced");
            }
            assert!(!catalog.is_in_force(&before));
            let loaded = load(&storage.crash(Fate::Lost), OWNER).await.unwrap().unwrap();
            assert_eq!(loaded.state.version.level(1).len(), catalog.version().level(1).len());
            // An edit that is refused or that fails changes nothing.
            let now = catalog.version();
            assert!(catalog.edit(add_sst(8, "b"), |_| Ok(false)).await.unwrap().is_none());
            let refused = Error::new(ErrorKind::Io, "refused");
            catalog.edit(add_sst(8, "b"), |_| Err(refused)).await.unwrap_err();
            assert!(catalog.is_in_force(&now));
        });
    }

    #[test]
    fn g3_edits_are_appended_one_at_a_time_in_the_order_in_which_they_asked() {
        block_on(async {
            let storage = SimStorage::new(1);
            let catalog = catalog(&storage).await;
            let order = RefCell::new(Vec::new());
            let edit = |number: u64, key: &'static str| {
                let (order, catalog) = (&order, &catalog);
                catalog.edit(add_sst(number, key), move |state| {
                    order.borrow_mut().push((number, state.version.level(1).len()));
                    Ok(true)
                })
            };
            let (first, second, third) = tokio::join!(edit(1, "a"), edit(2, "b"), edit(3, "c"));
            for result in [first, second, third] {
                result.unwrap();
            }
            // Each edit sees the state that the edit before it has made.
            assert_eq!(*order.borrow(), [(1, 0), (2, 1), (3, 2)]);
            let loaded = load(&storage.crash(Fate::Lost), OWNER).await.unwrap().unwrap();
            assert_eq!(loaded.state.version.level(1).len(), 3);
        });
    }
}
