//! The sorted files of a shard as readers use them: open files, caches, and files that wait for their removal.
//!
//! Owns: the caches, the open files, the obsolete files, and how far behind compaction is. The catalog owns which files
//! are in force.
//!
//! U1  A file is removed only when no version and no reader holds its description any more.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use quick_cache::unsync::Cache;
use tokio::sync::OnceCell;

use crate::cache::blocks::BlockCache;
use crate::cache::values::ValueCache;
use crate::compaction::{Limits, Stuck, debt_bytes, debt_bytes_to_come};
use crate::config::DbConfig;
use crate::error::Result;
use crate::identity::{FileKind, Owner};
use crate::key::{FileNumber, SeqNo};
use crate::manifest::{SharedMeta, Version};
use crate::memory::Pool;
use crate::sst::SstMeta;
use crate::sst::reader::Sst;
use crate::storage::Storage;

type OpenFile<S> = OnceCell<Rc<Sst<<S as Storage>::File>>>;

/// After so many compactions in a row that came to damage, the next one waits.
const FAILED_MERGES_MAX: u32 = 4;

pub(super) struct Tree<S: Storage> {
    pub(super) limits: Limits,
    /// Everything up to this write is to be merged into one level.
    pub(super) wanted: Cell<Option<SeqNo>>,
    /// See [`pick`](crate::compaction::pick). After a start each of them is found again by one more merge.
    pub(super) stuck: RefCell<Stuck>,
    /// Files that somebody could not read.
    suspects: RefCell<BTreeSet<FileNumber>>,
    /// Files that were read whole afterwards without finding damage.
    sound: RefCell<BTreeSet<FileNumber>>,
    /// Compactions in a row that came to damage.
    failed_merges: Cell<u32>,
    pub(super) blocks: BlockCache,
    pub(super) values: ValueCache,
    /// Files that are open, or being opened. Lookups that need a file at the same time open it only once.
    open_files: RefCell<Cache<FileNumber, Rc<OpenFile<S>>>>,
    /// Files that the version in force does not name any more. A reader may still use them (U1).
    obsolete: RefCell<Vec<SharedMeta>>,
    /// Bytes by which the version in force exceeds the limits of its levels.
    debt: Cell<u64>,
    /// Debt that was there at the start, or was to come from L0. The store may have been written with other settings, and then writes must
    /// not stop until it has the shape of the present ones. What was worked off once does not count again.
    inherited: Cell<u64>,
}

impl<S: Storage> Tree<S> {
    /// Compactions take their memory from `merges`.
    pub(super) fn new(config: &DbConfig, merges: &Pool, version: &Version) -> Self {
        let limits = Limits { merge_bytes: merges.bytes(), ..Limits::for_memtables(config.memtable_bytes) };
        Self {
            limits,
            wanted: Cell::new(None),
            stuck: RefCell::default(),
            suspects: RefCell::default(),
            sound: RefCell::default(),
            failed_merges: Cell::new(0),
            blocks: BlockCache::new(config.cache_bytes - config.cache_bytes / 2),
            values: ValueCache::new(config.cache_bytes / 2, config.key_hash),
            open_files: RefCell::new(Cache::new(config.open_files_max)),
            obsolete: RefCell::default(),
            debt: Cell::new(debt_bytes(version, &limits, &Stuck::new())),
            inherited: Cell::new(debt_bytes_to_come(version, &limits, &Stuck::new())),
        }
    }

    /// How many bytes compaction has fallen behind since the start.
    pub(super) fn debt_bytes(&self) -> u64 {
        self.debt.get().saturating_sub(self.inherited.get())
    }

    /// How many files are open.
    pub(super) fn open_files(&self) -> usize {
        self.open_files.borrow().len()
    }

    /// Records that a new version is in force, which does not name the files `removed` any more.
    pub(super) fn version_changed(&self, version: &Version, removed: Vec<SharedMeta>) {
        let stuck = &*self.stuck.borrow();
        self.debt.set(debt_bytes(version, &self.limits, stuck));
        self.inherited.set(self.inherited.get().min(debt_bytes_to_come(version, &self.limits, stuck)));
        self.obsolete.borrow_mut().extend(removed);
    }

    /// The number of files in L0 that compaction can work off.
    pub(super) fn l0_files(&self, version: &Version) -> usize {
        let stuck = self.stuck.borrow();
        version.level(0).iter().filter(|file| !stuck.contains(&file.number)).count()
    }

    /// Takes note that a file could not be read.
    pub(super) fn suspect(&self, number: FileNumber) {
        self.suspects.borrow_mut().insert(number);
    }

    /// Takes the number of a file that could not be read.
    pub(super) fn take_suspect(&self) -> Option<FileNumber> {
        self.suspects.borrow_mut().pop_first()
    }

    /// Takes note that a file was read whole, and nothing is wrong with it. `false` if that is not the first time.
    pub(super) fn clear(&self, number: FileNumber) -> bool {
        self.sound.borrow_mut().insert(number)
    }

    /// Takes note that a compaction came to damage. `false` if this happens again and again.
    pub(super) fn merge_failed(&self) -> bool {
        self.failed_merges.set(self.failed_merges.get() + 1);
        !self.failed_merges.get().is_multiple_of(FAILED_MERGES_MAX)
    }

    /// Takes note that a compaction was carried out.
    pub(super) fn merged(&self) {
        self.failed_merges.set(0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::SMALL;
    use crate::manifest::version::tests::{meta, version};
    use crate::memory::Memory;
    use crate::storage::sim::SimStorage;

    #[test]
    fn debt_that_was_there_at_the_start_does_not_count_until_it_has_grown() {
        const MIB: u64 = 1 << 20;
        let of = |l0: u64, l1: u64, l2: u64| {
            let files = [(0, l0), (1, l1), (2, l2)]
                .map(|(level, bytes)| (level, meta(1 + level as u64, "a", "z", bytes)));
            version(&files)
        };
        // L1 may hold 4 MiB, and L2 40.
        assert_eq!(Limits::for_memtables(SMALL.memtable_bytes).base_bytes, 4 * MIB);
        let tree: Tree<SimStorage> =
            Tree::new(&SMALL, &Memory::ample().merges, &of(60 * MIB, 300 * MIB, MIB));
        let debt = |l0, l1, l2| {
            tree.version_changed(&of(l0, l1, l2), Vec::new());
            tree.debt_bytes() / MIB
        };
        assert_eq!(tree.debt_bytes(), 0);
        assert_eq!(debt(0, 360 * MIB, MIB), 0, "L0 goes down");
        assert_eq!(debt(0, 370 * MIB, MIB), 10, "what was written since the start counts");
        assert_eq!(debt(0, 200 * MIB, 171 * MIB), 0, "39 MiB have found their place");
        assert_eq!(debt(0, 210 * MIB, 171 * MIB), 10, "and do not count a second time");
        assert_eq!(debt(0, 4 * MIB, 40 * MIB), 0);
        assert_eq!(debt(0, 5 * MIB, 40 * MIB), 1);
    }
}
