//! Storage in memory that fails as disks fail: what a crash may take is exactly what was not synced.
//!
//! Owns: live and durable bytes of every file, live and durable names, the count of operations, planned faults.
//! Knows nothing of what the bytes mean. Single-threaded, seeded, no clock: the same calls give the same faults.
//!
//! ```text
//!   write ──► live bytes ──► (sync) ──► durable bytes      create, rename, remove ──► live names
//!                 └── crash: each sector by the Fate            └── (sync_dir) ──► durable names
//! ```
//!
//! Faults that the store must survive: a crash between any two operations with any [`Fate`] of what was not
//! synced; an operation that fails once or for ever, with any error. Faults that it must detect or refuse:
//! bytes changed behind its back ([`SimStorage::corrupt`], [`SimStorage::overwrite`]). It may refuse to start
//! after them, and must never answer wrongly.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use super::{Access, AlignedBuf, BLOCK_BYTES, File, SECTOR_BYTES, Storage};
use crate::codec::to_usize;
use crate::file_name::FileName;
use crate::random::Random;

/// What becomes of bytes and names that were not synced when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All of them are gone.
    Lost,
    /// All of them are there.
    Kept,
    /// Each sector and each name is kept or lost by the toss of a seeded coin: this tears and reorders writes.
    Random,
}

/// A fault that is going to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The operation that fails, counted from 1 over all operations that reach the device.
    pub operation: u64,
    /// The error it fails with, as an `errno`.
    pub errno: i32,
    /// Whether all later operations fail as well.
    pub for_ever: bool,
}

/// A directory in memory. Clones share it.
#[derive(Clone)]
pub struct SimStorage(Rc<RefCell<Disk>>);

#[derive(Clone)]
struct Disk {
    files: Vec<Inode>,
    live_names: BTreeMap<FileName, usize>,
    durable_names: BTreeMap<FileName, usize>,
    /// Changes of names since the last directory sync, in order.
    unsynced_names: Vec<NameChange>,
    operations: u64,
    fault: Option<Fault>,
    random: Random,
}

#[derive(Clone, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
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
    /// An empty directory; `seed` decides every [`Fate::Random`].
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Disk {
            files: Vec::new(),
            live_names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            operations: 0,
            fault: None,
            random: Random::new(seed),
        })))
    }

    /// Operations that reached the device so far.
    pub fn operations(&self) -> u64 {
        self.0.borrow().operations
    }

    /// Plans a fault, or none.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.0.borrow_mut().fault = fault;
    }

    /// The directory as a machine finds it after the power came back. This one is left as it is.
    #[must_use]
    pub fn crash(&self, fate: Fate) -> Self {
        let mut disk = self.0.borrow().clone();
        // Another crash after the same operations tosses other coins.
        let mut random = Random::new(self.0.borrow_mut().random.next_u64());
        let mut keep = || match fate {
            Fate::Lost => false,
            Fate::Kept => true,
            Fate::Random => random.below(2) == 0,
        };
        for inode in &mut disk.files {
            for (offset, bytes) in std::mem::take(&mut inode.unsynced) {
                for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                    if keep() {
                        put(&mut inode.durable, offset + index * SECTOR_BYTES, sector);
                    }
                }
            }
            inode.live.clone_from(&inode.durable);
        }
        for change in std::mem::take(&mut disk.unsynced_names) {
            if keep() {
                change.apply(&mut disk.durable_names);
            }
        }
        disk.live_names.clone_from(&disk.durable_names);
        disk.fault = None;
        disk.random = random;
        Self(Rc::new(RefCell::new(disk)))
    }

    /// Names and lengths, as [`Storage::list`], without the `Result`.
    pub fn files(&self) -> Vec<(FileName, u64)> {
        let disk = self.0.borrow();
        disk.live_names.iter().map(|(&name, &inode)| (name, disk.files[inode].live.len() as u64)).collect()
    }

    /// The live bytes of a file.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn bytes(&self, name: FileName) -> Vec<u8> {
        let disk = self.0.borrow();
        disk.files[disk.live_names[&name]].live.clone()
    }

    /// Replaces the bytes of a file, live and durable, behind the store's back.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn overwrite(&self, name: FileName, bytes: &[u8]) {
        let mut disk = self.0.borrow_mut();
        let inode = disk.live_names[&name];
        disk.files[inode] = Inode { live: bytes.into(), durable: bytes.into(), unsynced: Vec::new() };
    }

    /// Flips the bits of `mask` in one byte of a file, live and durable.
    ///
    /// # Panics
    /// If there is no such file or byte.
    pub fn corrupt(&self, name: FileName, offset: u64, mask: u8) {
        let mut bytes = self.bytes(name);
        bytes[to_usize(offset)] ^= mask;
        self.overwrite(name, &bytes);
    }

    /// Counts an operation and fails it if that was planned. Yields once, so that tasks interleave.
    async fn operation(&self) -> io::Result<()> {
        self.pause().await;
        let mut disk = self.0.borrow_mut();
        disk.operations += 1;
        match disk.fault {
            Some(fault)
                if disk.operations == fault.operation
                    || (fault.for_ever && fault.operation < disk.operations) =>
            {
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            _ => Ok(()),
        }
    }

    fn change(&self, change: NameChange) {
        let mut disk = self.0.borrow_mut();
        change.apply(&mut disk.live_names);
        disk.unsynced_names.push(change);
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    if bytes.len() < offset + part.len() {
        bytes.resize(offset + part.len(), 0);
    }
    bytes[offset..offset + part.len()].copy_from_slice(part);
}

impl Storage for SimStorage {
    type File = SimFile;

    fn label(&self, name: FileName) -> String {
        name.to_string()
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
            disk.files.push(Inode::default());
            disk.files.len() - 1
        };
        self.change(NameChange::Create(name, inode));
        Ok(SimFile { storage: self.clone(), inode, access: Access::Write })
    }

    async fn open(&self, name: FileName, access: Access) -> io::Result<SimFile> {
        self.operation().await?;
        let inode = *self.0.borrow().live_names.get(&name).ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { storage: self.clone(), inode, access })
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
        self.operation().await?;
        let mut disk = self.0.borrow_mut();
        disk.unsynced_names.clear();
        let live = disk.live_names.clone();
        disk.durable_names = live;
        Ok(())
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
}

impl File for SimFile {
    async fn read_at(&self, mut buffer: AlignedBuf, offset: u64) -> (io::Result<usize>, AlignedBuf) {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64) && buffer.len().is_multiple_of(BLOCK_BYTES));
        if let Err(error) = self.storage.operation().await {
            return (Err(error), buffer);
        }
        let disk = self.storage.0.borrow();
        let live = disk.files[self.inode].live.get(to_usize(offset)..).unwrap_or_default();
        let count = live.len().min(buffer.len());
        buffer[..count].copy_from_slice(&live[..count]);
        (Ok(count), buffer)
    }

    async fn write_at(&self, buffer: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64) && buffer.len().is_multiple_of(BLOCK_BYTES));
        assert!(self.access != Access::Read, "a file opened for reads is not written");
        if let Err(error) = self.storage.operation().await {
            return (Err(error), buffer);
        }
        let mut disk = self.storage.0.borrow_mut();
        let inode = &mut disk.files[self.inode];
        put(&mut inode.live, to_usize(offset), &buffer);
        inode.unsynced.push((to_usize(offset), buffer.to_vec()));
        drop(disk);
        (Ok(()), buffer)
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.storage.operation().await?;
        let mut disk = self.storage.0.borrow_mut();
        let inode = &mut disk.files[self.inode];
        let missing = to_usize(bytes).saturating_sub(inode.live.len());
        let from = inode.live.len();
        put(&mut inode.live, from, &vec![0; missing]);
        inode.unsynced.push((from, vec![0; missing]));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        self.storage.operation().await?;
        let mut disk = self.storage.0.borrow_mut();
        let inode = &mut disk.files[self.inode];
        for (offset, bytes) in std::mem::take(&mut inode.unsynced) {
            put(&mut inode.durable, offset, &bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::key::FileNumber;

    const NAME: FileName = FileName::Wal(FileNumber(1));

    #[test]
    fn s1_s2_a_crash_takes_what_was_not_synced_and_nothing_else() {
        block_on(async {
            let storage = SimStorage::new(1);
            let file = storage.create(NAME).await.unwrap();
            file.write_at(AlignedBuf::from(&[1; BLOCK_BYTES][..]), 0).await.0.unwrap();
            file.sync().await.unwrap();
            assert_eq!(storage.crash(Fate::Lost).files(), [], "the name was not synced");
            storage.sync_dir().await.unwrap();
            file.write_at(AlignedBuf::from(&[2; BLOCK_BYTES][..]), 0).await.0.unwrap();

            assert_eq!(storage.crash(Fate::Lost).bytes(NAME), [1; BLOCK_BYTES]);
            assert_eq!(storage.crash(Fate::Kept).bytes(NAME), [2; BLOCK_BYTES]);
            let torn = storage.crash(Fate::Random).bytes(NAME);
            assert!(torn.contains(&1) && torn.contains(&2), "some sectors are old and some are new");
            assert!(torn.chunks(SECTOR_BYTES).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        });
    }

    #[test]
    fn a_planned_fault_hits_its_operation_once_or_for_ever() {
        block_on(async {
            let storage = SimStorage::new(1);
            let file = storage.create(NAME).await.unwrap();
            storage.set_fault(Some(Fault { operation: 2, errno: libc::EIO, for_ever: false }));
            assert_eq!(file.sync().await.unwrap_err().raw_os_error(), Some(libc::EIO));
            file.sync().await.unwrap();
            storage.set_fault(Some(Fault { operation: 4, errno: libc::ENOSPC, for_ever: true }));
            assert!(file.sync().await.is_err());
            assert!(file.sync().await.is_err());
            assert_eq!(storage.operations(), 5);
        });
    }
}
