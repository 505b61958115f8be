//! The sorted files of a shard as readers use them: open files, caches, and files that wait for their removal.
//!
//! Owns: the caches, the open files, the obsolete files, and how far behind compaction is. The catalog owns which files
//! are in force.
//!
//! U1  A file is removed only when no version and no reader holds its description any more.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use quick_cache::unsync::Cache;
use tokio::sync::OnceCell;

use super::budget::ReadBudget;
use crate::cache::blocks::BlockCache;
use crate::cache::values::ValueCache;
use crate::compaction::{Limits, debt_bytes};
use crate::config::DbConfig;
use crate::error::Result;
use crate::identity::{FileKind, Owner};
use crate::key::FileNumber;
use crate::manifest::{SharedMeta, Version};
use crate::sst::SstMeta;
use crate::sst::reader::Sst;
use crate::storage::Storage;

type OpenFile<S> = OnceCell<Rc<Sst<<S as Storage>::File>>>;

pub(super) struct Tree<S: Storage> {
    pub(super) limits: Limits,
    pub(super) blocks: BlockCache,
    pub(super) values: ValueCache,
    pub(super) budget: ReadBudget,
    /// Files that are open, or being opened. Lookups that need a file at the same time open it only once.
    open_files: RefCell<Cache<FileNumber, Rc<OpenFile<S>>>>,
    /// Files that the version in force does not name any more. A reader may still use them (U1).
    obsolete: RefCell<Vec<SharedMeta>>,
    /// Bytes by which the version in force exceeds the limits of its levels.
    debt: Cell<u64>,
}

impl<S: Storage> Tree<S> {
    pub(super) fn new(config: &DbConfig, version: &Version) -> Self {
        let limits = Limits::for_memtables(config.memtable_bytes);
        Self {
            limits,
            blocks: BlockCache::new(config.cache_bytes - config.cache_bytes / 2),
            values: ValueCache::new(config.cache_bytes / 2, config.key_hash),
            budget: ReadBudget::new(config),
            open_files: RefCell::new(Cache::new(config.open_files_max)),
            obsolete: RefCell::default(),
            debt: Cell::new(debt_bytes(version, &limits)),
        }
    }

    /// How many bytes compaction is behind.
    pub(super) fn debt_bytes(&self) -> u64 {
        self.debt.get()
    }

    /// Records that a new version is in force, which does not name the files `removed` any more.
    pub(super) fn version_changed(&self, version: &Version, removed: Vec<SharedMeta>) {
        self.debt.set(debt_bytes(version, &self.limits));
        self.obsolete.borrow_mut().extend(removed);
    }

    /// The file, if it is open.
    pub(super) fn opened(&self, number: FileNumber) -> Option<Rc<Sst<S::File>>> {
        self.open_files.borrow().get(&number)?.get().cloned()
    }

    /// Opens the file and keeps it open.
    pub(super) async fn open(&self, storage: &S, owner: Owner, meta: &SstMeta) -> Result<Rc<Sst<S::File>>> {
        let open = self.open_files.borrow().get(&meta.number).cloned();
        let open = open.unwrap_or_else(|| {
            let open = Rc::new(OpenFile::<S>::new());
            self.open_files.borrow_mut().insert(meta.number, open.clone());
            open
        });
        let identity = owner.identity(FileKind::Sst, meta.number);
        let sst = open.get_or_try_init(async || Sst::open(storage, identity, meta.bytes).await.map(Rc::new));
        sst.await.cloned()
    }

    /// Takes a file that may be removed now, and closes it (U1).
    pub(super) fn take_obsolete(&self) -> Option<SharedMeta> {
        let free = self.obsolete.borrow().iter().position(|meta| Rc::strong_count(meta) == 1)?;
        let meta = self.obsolete.borrow_mut().swap_remove(free);
        self.open_files.borrow_mut().remove(&meta.number);
        Some(meta)
    }
}
