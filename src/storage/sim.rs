//! Storage in memory that fails as disks fail: a crash may take exactly what was not synced.
//!
//! Owns: live and durable bytes of every file, live and durable names, the count of operations, planned faults. Every
//! fault affects live and durable state at once, so both are in this file, long as it is. Single-threaded, seeded, no
//! clock: the same calls give the same faults.
//!
//! ```text
//!   write ──► live bytes ──► (sync) ──► durable bytes      create, rename, remove ──► live names
//!                 └── crash: each sector by the Fate            └── (sync_dir) ──► durable names
//! ```
//!
//! The fault model: what may happen, and what the store then owes its users.
//!
//! | fault | simulated by | WAL | manifest | `CURRENT`, `STORE` | SST |
//! | --- | --- | --- | --- | --- | --- |
//! | power cut at any operation; unsynced bytes kept, lost, reordered, torn at 512 bytes; names likewise | [`SimStorage::crash`] | survive | survive | survive | survive |
//! | an operation fails, once or for ever: EIO, ENOSPC, a short write | [`Fault`] | end the process, survive | end the process, survive | survive | survive, try again |
//! | a failed sync that kept a part, and that the next sync does not make up for | [`Fault`] on a sync | as above | as above | survive | survive |
//! | a bit flips, a block is zeroed or replaced by another one | [`SimStorage::corrupt`], [`SimStorage::misplace`] | refuse to start¹ | refuse to start² | refuse to start | refuse to start, or to answer |
//! | a block cannot be read | [`SimStorage::make_unreadable`] | refuse to start¹ | refuse to start² | refuse to start | refuse to start, or to answer |
//! | a torn write takes the rest of its block along; the end of a file is zeroed | [`SimStorage::overwrite`] | refuse to start¹ | refuse to start² | refuse to start | refuse to start, or to answer |
//! | the device lies about a sync | [`SimStorage::lie`] | refuse to start¹ | – | – | – |
//! | a file is gone, cut short, from another shard or older | [`SimStorage::overwrite`] | refuse to start | refuse to start | refuse to start | refuse to start, or to answer |
//!
//! "Survive" means that everything acknowledged is there, and no byte is wrong. "Refuse" means an error with file and
//! offset. Where the damage hit bytes that hold nothing, a correct answer is fine, too.
//!
//! 1. Everything that a mark covers is there, or the start is refused (W4). Damage to what was synced after the newest
//!    mark looks like the torn end of a crash: it is cut and reported. An older copy of the last WAL is noticed once
//!    the manifest says how far the WAL was durable, which takes 200 ms without a write.
//! 2. Damage to the last edit looks like a torn end. The files that this edit named or released are then looked for.
//!    Either the state before the edit gives the same answers, or a file is missing or superfluous, and the start is
//!    refused.
//!
//! Not survived: a device that loses what it confirmed, or that writes the last confirmed bytes to another location.

mod contents;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::{Rc, Weak};
use std::task::Poll;

use self::contents::{Contents, ZEROS};
use super::{Access, AlignedBuf, BLOCK_BYTES, File, SECTOR_BYTES, Storage};
use crate::codec::to_usize;
use crate::file_name::FileName;
use crate::random::Random;

/// What happens to bytes and names that were not synced, in a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All of them are lost.
    Lost,
    /// All of them are kept.
    Kept,
    /// The process was killed, and the power stayed on. All of them are kept, and still not synced. A write that was in
    /// flight lands a few operations later, because the kernel finishes what it was given.
    Killed,
    /// Drawn from the seed: first how likely bytes, and names, are kept, and whether that is drawn for whole writes or
    /// for single sectors; then the fate of each of them. This tears and reorders writes, and separates files from
    /// their names.
    Random,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// With this `errno`. If a sync fails, each sector is kept or lost, and no later sync covers it.
    Errno(i32),
    /// A write ends after its first half; any other operation fails with EIO.
    Short,
}

/// A planned fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The operation that fails, counted from 1 over all operations that reach the device.
    pub operation: u64,
    /// How it fails.
    pub failure: Failure,
    /// Whether all later operations fail as well.
    pub for_ever: bool,
}

/// A write that was in flight when the process was killed lands within this many operations.
const LATE_OPERATIONS: u64 = 40;

/// A directory in memory. Clones share it.
#[derive(Clone)]
pub struct SimStorage(Rc<RefCell<Disk>>);

#[derive(Clone)]
struct Disk {
    /// Shared with snapshots until one of them changes a file.
    files: Vec<Rc<Inode>>,
    live_names: BTreeMap<FileName, usize>,
    durable_names: BTreeMap<FileName, usize>,
    /// Files that are open: a file takes its space until it has neither a name nor a handle.
    handles: BTreeMap<usize, Weak<()>>,
    /// Changes of names since the last directory sync, in order. `names_taken` counts the changes before them.
    unsynced_names: Vec<NameChange>,
    names_taken: usize,
    /// A directory sync failed.
    names_lost: bool,
    /// The path now leads to another directory.
    moved: bool,
    /// Syncs return although only a part of the bytes is durable.
    lying: bool,
    /// Bytes that all files together may take; `None` for no bound.
    capacity: Option<u64>,
    operations: u64,
    fault: Option<Fault>,
    random: Random,
    /// Writes in flight; and those of a killed process, each with the operation after which the kernel finishes it.
    in_flight: Vec<Write>,
    late: Vec<(u64, Write)>,
    /// The disk before each operation, if snapshots are recorded.
    snapshots: Option<Vec<Disk>>,
}

/// Bytes on their way to an offset of a file.
#[derive(Clone)]
struct Write {
    inode: usize,
    offset: usize,
    bytes: Rc<[u8]>,
}

#[derive(Clone, Default)]
struct Inode {
    live: Contents,
    durable: Contents,
    /// Writes since the last sync, in order. `taken` counts the writes before them.
    unsynced: Vec<(usize, Rc<[u8]>)>,
    taken: usize,
    /// Bytes for which space is allocated.
    allocated: usize,
    /// A sync failed, or lied: live bytes may differ from durable ones without being in `unsynced`.
    diverged: bool,
    /// Numbers of the blocks that cannot be read until they are written. The error depends on the number.
    unreadable: BTreeSet<usize>,
}

/// How likely something is kept, in eighths, and whether that is drawn for each sector or for each write.
struct Coin {
    eighths: u64,
    sectors: bool,
}

impl Coin {
    fn new(fate: Fate, random: &mut Random) -> Self {
        let eighths = match fate {
            Fate::Lost => 0,
            Fate::Kept | Fate::Killed => 8,
            Fate::Random => [0, 1, 4, 4, 7, 8][to_usize(random.below(6))],
        };
        Self { eighths, sectors: random.below(2) == 0 }
    }

    fn keeps(&self, random: &mut Random) -> bool {
        random.below(8) < self.eighths
    }
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: Rc<[u8]>) {
        if !bytes.is_empty() {
            self.live.write(offset, &bytes);
            // A device writes a block that it cannot read to another location.
            let blocks = offset / BLOCK_BYTES..(offset + bytes.len()).div_ceil(BLOCK_BYTES);
            self.unreadable.retain(|block| !blocks.contains(block));
            self.unsynced.push((offset, bytes));
        }
    }

    /// Decides for every byte that was not synced whether it is kept.
    fn settle(&mut self, coin: &Coin, random: &mut Random) {
        self.taken += self.unsynced.len();
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            let things = if coin.sectors { SECTOR_BYTES } else { bytes.len().max(1) };
            for (index, thing) in bytes.chunks(things).enumerate() {
                if coin.keeps(random) {
                    self.durable.write(offset + index * things, thing);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum NameChange {
    Create(FileName, usize),
    Rename(FileName, FileName),
    Remove(FileName),
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<FileName, usize>) {
        match self {
            Self::Create(name, inode) => {
                names.insert(name, inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(&from) {
                    names.insert(to, inode);
                }
            }
            Self::Remove(name) => {
                names.remove(&name);
            }
        }
    }
}

impl SimStorage {
    /// An empty directory. All that is random comes from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::of(Disk {
            files: Vec::new(),
            live_names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            handles: BTreeMap::new(),
            unsynced_names: Vec::new(),
            names_taken: 0,
            names_lost: false,
            moved: false,
            lying: false,
            capacity: None,
            operations: 0,
            fault: None,
            random: Random::new(seed),
            in_flight: Vec::new(),
            late: Vec::new(),
            snapshots: None,
        })
    }

    fn of(disk: Disk) -> Self {
        Self(Rc::new(RefCell::new(disk)))
    }

    /// Operations that reached the device so far.
    pub fn operations(&self) -> u64 {
        self.0.borrow().operations
    }

    /// Plans a fault; `None` cancels it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.0.borrow_mut().fault = fault;
    }

    /// Bounds the bytes that all files together may take; `None` ends that. An operation that needs more fails with ENOSPC.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.borrow_mut().capacity = bytes;
    }

    /// Bytes that all files together take, those that were removed and are still open included.
    pub fn allocated(&self) -> u64 {
        let disk = self.0.borrow();
        let open =
            disk.handles.iter().filter(|(_, handle)| 0 < handle.strong_count()).map(|(inode, _)| inode);
        let inodes: BTreeSet<_> = disk.live_names.values().chain(open).collect();
        inodes.into_iter().map(|&inode| disk.files[inode].allocated as u64).sum()
    }

    fn handle(&self, inode: usize, access: Access) -> SimFile {
        let mut disk = self.0.borrow_mut();
        let known = disk.handles.get(&inode).and_then(Weak::upgrade);
        let handle = known.unwrap_or_default();
        disk.handles.insert(inode, Rc::downgrade(&handle));
        SimFile { storage: self.clone(), inode, access, _handle: handle }
    }

    /// Allocates the bytes of a file up to `end`.
    fn take_space(&self, inode: usize, end: usize) -> io::Result<()> {
        let taken = self.allocated();
        let mut disk = self.0.borrow_mut();
        let more = end.saturating_sub(disk.files[inode].allocated);
        if 0 < more && disk.capacity.is_some_and(|capacity| capacity < taken + more as u64) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if 0 < more {
            Rc::make_mut(&mut disk.files[inode]).allocated = end;
        }
        Ok(())
    }

    /// From now on, records a snapshot of the directory before each operation.
    pub fn record(&self) {
        self.0.borrow_mut().snapshots = Some(Vec::new());
    }

    /// The snapshots since the last call, in order. They share what they have in common.
    pub fn take_snapshots(&self) -> Vec<Self> {
        let mut disk = self.0.borrow_mut();
        disk.snapshots.as_mut().map(std::mem::take).unwrap_or_default().into_iter().map(Self::of).collect()
    }

    /// The directory as the next process finds it, after the power came back or the process was killed. `self` stays as
    /// it is. Another crash of it draws other random numbers.
    #[must_use]
    pub fn crash(&self, fate: Fate) -> Self {
        let mut random = {
            let mut disk = self.0.borrow_mut();
            // Snapshots share the random state of the disk that they were taken from.
            let place = disk.operations.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Random::new(disk.random.next_u64() ^ place)
        };
        let disk = self.0.borrow();
        if fate == Fate::Killed {
            let mut files = disk.files.clone();
            for file in files.iter_mut().filter(|file| file.diverged) {
                // Reads go past the page cache: the next process sees what the device has.
                let file = Rc::make_mut(file);
                file.live = file.durable.clone();
                for (offset, bytes) in &file.unsynced {
                    file.live.write(*offset, bytes);
                }
            }
            // A file system that lost names is mounted again before it syncs any.
            let live_names =
                if disk.names_lost { disk.durable_names.clone() } else { disk.live_names.clone() };
            let landing = |write| (disk.operations + random.below(LATE_OPERATIONS), write);
            let late = disk.in_flight.iter().cloned().map(landing).collect();
            return Self::of(Disk {
                fault: None,
                random,
                files,
                live_names,
                names_lost: false,
                in_flight: Vec::new(),
                late,
                snapshots: None,
                handles: BTreeMap::new(),
                ..disk.clone()
            });
        }
        let (bytes, names) = (Coin::new(fate, &mut random), Coin::new(fate, &mut random));
        let mut durable_names = disk.durable_names.clone();
        for change in &disk.unsynced_names {
            if names.keeps(&mut random) {
                change.apply(&mut durable_names);
            }
        }
        // Files without a name are gone.
        let mut files = Vec::with_capacity(durable_names.len());
        for inode in durable_names.values_mut() {
            let mut file = disk.files[*inode].clone();
            if !file.unsynced.is_empty() || file.diverged {
                let file = Rc::make_mut(&mut file);
                file.settle(&bytes, &mut random);
                file.live = file.durable.clone();
                file.diverged = false;
            }
            *inode = files.len();
            files.push(file);
        }
        Self::of(Disk {
            files,
            live_names: durable_names.clone(),
            durable_names,
            handles: BTreeMap::new(),
            unsynced_names: Vec::new(),
            names_taken: 0,
            names_lost: false,
            moved: false,
            lying: false,
            capacity: disk.capacity,
            operations: disk.operations,
            fault: None,
            random,
            in_flight: Vec::new(),
            late: Vec::new(),
            snapshots: None,
        })
    }

    /// Names and lengths, as [`Storage::list`], without the `Result`.
    pub fn files(&self) -> Vec<(FileName, u64)> {
        let disk = self.0.borrow();
        disk.live_names.iter().map(|(&name, &inode)| (name, disk.files[inode].live.length as u64)).collect()
    }

    /// The live bytes of a file.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn bytes(&self, name: FileName) -> Vec<u8> {
        let disk = self.0.borrow();
        disk.files[disk.live_names[&name]].live.to_vec()
    }

    fn inode(&self, name: FileName) -> std::cell::RefMut<'_, Inode> {
        std::cell::RefMut::map(self.0.borrow_mut(), |disk| {
            let inode = disk.live_names[&name];
            Rc::make_mut(&mut disk.files[inode])
        })
    }

    /// Replaces the bytes of a file, live and durable, behind the store's back.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn overwrite(&self, name: FileName, bytes: &[u8]) {
        let contents = Contents::from(bytes);
        *self.inode(name) = Inode { live: contents.clone(), durable: contents, ..Inode::default() };
    }

    /// Removes a file behind the store's back.
    pub fn lose(&self, name: FileName) {
        let mut disk = self.0.borrow_mut();
        disk.live_names.remove(&name);
        disk.durable_names.remove(&name);
    }

    /// Flips the bits of `mask` in one byte of a file, live and durable.
    ///
    /// # Panics
    /// If there is no such file or byte.
    pub fn corrupt(&self, name: FileName, offset: u64, mask: u8) {
        let mut inode = self.inode(name);
        let Inode { live, durable, .. } = &mut *inode;
        for contents in [live, durable] {
            let at = to_usize(offset);
            assert!(at < contents.length, "the file is shorter");
            let block = contents.blocks[at / BLOCK_BYTES].get_or_insert_with(|| Rc::new(ZEROS));
            Rc::make_mut(block)[at % BLOCK_BYTES] ^= mask;
        }
    }

    /// Makes every read of one block of a file fail, with EIO or ENODATA, until the block is written.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn make_unreadable(&self, name: FileName, block: u64) {
        self.inode(name).unreadable.insert(to_usize(block));
    }

    /// Makes the path of the directory lead somewhere else from now on.
    pub fn move_away(&self) {
        self.0.borrow_mut().moved = true;
    }

    /// Makes syncs of files return when only a part of the bytes is durable, or none, like a device that confirms what
    /// is only in its cache; `false` ends that. Bytes that were falsely confirmed and lost do not come back with later
    /// syncs.
    pub fn lie(&self, lying: bool) {
        self.0.borrow_mut().lying = lying;
    }

    /// Puts a copy of one block in the place of another block, as a misdirected write does.
    ///
    /// # Panics
    /// If there is no such file or block.
    pub fn misplace(&self, from: (FileName, u64), to: (FileName, u64)) {
        let bytes = self.bytes(from.0);
        let at = to_usize(from.1) * BLOCK_BYTES;
        let block = &bytes[at..at + BLOCK_BYTES];
        let mut inode = self.inode(to.0);
        let Inode { live, durable, .. } = &mut *inode;
        for contents in [live, durable] {
            assert!(to_usize(to.1) < contents.blocks.len(), "the file is shorter");
            contents.write(to_usize(to.1) * BLOCK_BYTES, block);
        }
    }

    /// Counts an operation, and returns the failure planned for it, if any. Yields once, so that tasks interleave.
    async fn count(&self) -> Option<Failure> {
        self.pause().await;
        let mut disk = self.0.borrow_mut();
        if let Some(mut snapshots) = disk.snapshots.take() {
            snapshots.push(disk.clone());
            disk.snapshots = Some(snapshots);
        }
        disk.operations += 1;
        let now = disk.operations;
        let (due, late): (Vec<_>, Vec<_>) =
            std::mem::take(&mut disk.late).into_iter().partition(|(landing, _)| *landing < now);
        disk.late = late;
        for (_, write) in due {
            Rc::make_mut(&mut disk.files[write.inode]).write(write.offset, write.bytes);
        }
        let fault = disk.fault?;
        let hit = disk.operations == fault.operation || (fault.for_ever && fault.operation < disk.operations);
        hit.then_some(fault.failure)
    }

    /// Lets other tasks run for some turns: a sync takes longer than a write, and covers what was written before it
    /// began.
    async fn dawdle(&self) {
        let turns = Random::new(self.0.borrow_mut().random.next_u64()).below(8);
        for _ in 0..turns {
            self.pause().await;
        }
    }

    /// An operation that happens as a whole or not at all.
    async fn operation(&self) -> io::Result<()> {
        match self.count().await {
            None => Ok(()),
            Some(failure) => Err(failure.error()),
        }
    }

    fn change(&self, change: NameChange) {
        let mut disk = self.0.borrow_mut();
        change.apply(&mut disk.live_names);
        disk.unsynced_names.push(change);
    }
}

impl Failure {
    fn error(self) -> io::Error {
        match self {
            Self::Errno(errno) => io::Error::from_raw_os_error(errno),
            Self::Short => io::Error::from_raw_os_error(libc::EIO),
        }
    }
}

impl Storage for SimStorage {
    type File = SimFile;

    fn label(&self, name: FileName) -> String {
        name.to_string()
    }

    fn directory_label(&self) -> String {
        "the directory".into()
    }

    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        Ok(self.files())
    }

    async fn create(&self, name: FileName) -> io::Result<SimFile> {
        self.operation().await?;
        if self.0.borrow().live_names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = {
            let mut disk = self.0.borrow_mut();
            disk.files.push(Rc::default());
            disk.files.len() - 1
        };
        self.change(NameChange::Create(name, inode));
        Ok(self.handle(inode, Access::Write))
    }

    async fn open(&self, name: FileName, access: Access) -> io::Result<SimFile> {
        self.operation().await?;
        let inode = *self.0.borrow().live_names.get(&name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(inode, access))
    }

    async fn rename(&self, from: FileName, to: FileName) -> io::Result<()> {
        self.operation().await?;
        if !self.0.borrow().live_names.contains_key(&from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(NameChange::Rename(from, to));
        Ok(())
    }

    async fn remove(&self, name: FileName) -> io::Result<()> {
        self.operation().await?;
        if !self.0.borrow().live_names.contains_key(&name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(NameChange::Remove(name));
        Ok(())
    }

    async fn sync_dir(&self) -> io::Result<()> {
        let covered = {
            let disk = self.0.borrow();
            disk.names_taken + disk.unsynced_names.len()
        };
        self.dawdle().await;
        let failure = self.count().await;
        let mut disk = self.0.borrow_mut();
        if disk.names_lost {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if let Some(failure) = failure {
            // As with the bytes of a file, no later sync covers these names.
            let mut random = Random::new(disk.random.next_u64());
            let coin = Coin::new(Fate::Random, &mut random);
            disk.names_lost = true;
            for change in std::mem::take(&mut disk.unsynced_names) {
                disk.names_taken += 1;
                if coin.keeps(&mut random) {
                    change.apply(&mut disk.durable_names);
                }
            }
            return Err(failure.error());
        }
        let left = covered.saturating_sub(disk.names_taken);
        for change in disk.unsynced_names.drain(..left).collect::<Vec<_>>() {
            change.apply(&mut disk.durable_names);
        }
        disk.names_taken += left;
        Ok(())
    }

    async fn lost_path(&self) -> io::Result<Option<String>> {
        self.operation().await?;
        Ok(self.0.borrow().moved.then(|| self.directory_label()))
    }

    async fn leads_to(&self, name: FileName, file: &SimFile) -> io::Result<bool> {
        self.operation().await?;
        Ok(self.0.borrow().live_names.get(&name) == Some(&file.inode))
    }

    async fn pause(&self) {
        let mut yielded = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

/// A file in memory.
#[derive(Clone)]
pub struct SimFile {
    storage: SimStorage,
    inode: usize,
    access: Access,
    _handle: Rc<()>,
}

impl File for SimFile {
    async fn read_at(&self, mut buffer: AlignedBuf, offset: u64) -> (io::Result<usize>, AlignedBuf) {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64) && buffer.len().is_multiple_of(BLOCK_BYTES));
        if let Err(error) = self.storage.operation().await {
            return (Err(error), buffer);
        }
        if let Some(error) = self.medium_error(offset, buffer.len()) {
            return (Err(error), buffer);
        }
        let disk = self.storage.0.borrow();
        let count = disk.files[self.inode].live.read(to_usize(offset), &mut buffer);
        (Ok(count), buffer)
    }

    async fn write_at(&self, buffer: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64) && buffer.len().is_multiple_of(BLOCK_BYTES));
        assert!(self.access != Access::Read, "a file opened for reading is not written");
        let bytes: Rc<[u8]> = buffer[..].into();
        let write = Write { inode: self.inode, offset: to_usize(offset), bytes: bytes.clone() };
        self.storage.0.borrow_mut().in_flight.push(write);
        let failure = self.storage.count().await;
        if let Err(error) = self.storage.take_space(self.inode, to_usize(offset) + buffer.len()) {
            self.storage.0.borrow_mut().in_flight.retain(|write| !Rc::ptr_eq(&write.bytes, &bytes));
            return (Err(error), buffer);
        }
        self.storage.0.borrow_mut().in_flight.retain(|write| !Rc::ptr_eq(&write.bytes, &bytes));
        let written = match failure {
            None => buffer.len(),
            Some(Failure::Short) => buffer.len() / 2,
            Some(Failure::Errno(_)) => 0,
        };
        if matches!(failure, Some(Failure::Errno(_))) {
            // S4: any of its sectors may have been written.
            let mut random = Random::new(self.storage.0.borrow_mut().random.next_u64());
            let coin = Coin::new(Fate::Random, &mut random);
            for (index, sector) in buffer.chunks(SECTOR_BYTES).enumerate() {
                if coin.keeps(&mut random) {
                    self.inode().write(to_usize(offset) + index * SECTOR_BYTES, sector.into());
                }
            }
        } else {
            let bytes = if written == buffer.len() { bytes } else { buffer[..written].into() };
            self.inode().write(to_usize(offset), bytes);
        }
        let result = match failure {
            None => Ok(()),
            Some(Failure::Short) => Err(io::ErrorKind::WriteZero.into()),
            Some(failure) => Err(failure.error()),
        };
        (result, buffer)
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.storage.operation().await?;
        self.storage.take_space(self.inode, to_usize(bytes))?;
        let mut inode = self.inode();
        let from = inode.live.length;
        let missing = to_usize(bytes).saturating_sub(from);
        inode.write(from, vec![0; missing].into());
        Ok(())
    }

    async fn release(&self, offset: u64) -> io::Result<()> {
        self.storage.operation().await?;
        let mut inode = self.inode();
        inode.allocated = inode.allocated.min(to_usize(offset));
        let bytes = inode.live.length.saturating_sub(to_usize(offset));
        inode.write(to_usize(offset), vec![0; bytes].into());
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        // The sync does not cover what is written while it runs.
        let covered = {
            let inode = self.inode();
            inode.taken + inode.unsynced.len()
        };
        self.storage.dawdle().await;
        let failure = self.storage.count().await;
        if let Some(failure) = failure {
            // What a failed sync leaves in the page cache is marked clean: no later sync writes it (Rebello et al.,
            // USENIX ATC 2020).
            let mut random = Random::new(self.storage.0.borrow_mut().random.next_u64());
            let coin = Coin::new(Fate::Random, &mut random);
            let mut inode = self.inode();
            inode.settle(&coin, &mut random);
            inode.diverged = true;
            return Err(failure.error());
        }
        if self.storage.0.borrow().lying {
            let mut random = Random::new(self.storage.0.borrow_mut().random.next_u64());
            let coin = Coin::new(Fate::Random, &mut random);
            let mut inode = self.inode();
            inode.settle(&coin, &mut random);
            inode.diverged = true;
            return Ok(());
        }
        let mut inode = self.inode();
        // Another sync at the same time may have covered some of them.
        let left = covered.saturating_sub(inode.taken);
        for (offset, bytes) in inode.unsynced.drain(..left).collect::<Vec<_>>() {
            inode.durable.write(offset, &bytes);
        }
        inode.taken += left;
        Ok(())
    }

    fn named_bytes(&self) -> io::Result<Option<u64>> {
        let disk = self.storage.0.borrow();
        let named = disk.live_names.values().any(|inode| *inode == self.inode);
        Ok(named.then(|| disk.files[self.inode].live.length as u64))
    }
}

impl SimFile {
    /// The error of a read that covers an unreadable block, if it covers one.
    fn medium_error(&self, offset: u64, bytes: usize) -> Option<io::Error> {
        let disk = self.storage.0.borrow();
        let blocks = &disk.files[self.inode].unreadable;
        let first = to_usize(offset) / BLOCK_BYTES;
        let block = blocks.range(first..first + bytes.div_ceil(BLOCK_BYTES)).next()?;
        Some(io::Error::from_raw_os_error([libc::EIO, libc::ENODATA][block % 2]))
    }

    fn inode(&self) -> std::cell::RefMut<'_, Inode> {
        std::cell::RefMut::map(self.storage.0.borrow_mut(), |disk| Rc::make_mut(&mut disk.files[self.inode]))
    }
}

#[cfg(test)]
mod tests;
