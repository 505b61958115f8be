//! The data directory: found or created, locked, and opened once. Every command that works on a store starts here.
//!
//! Owns: the lock, `STORE` at the start, and the directories of the shards.
//!
//! ```text
//!   path ──(looked up once)──► directory, held open ──► flock on the directory itself ──► STORE ──► shard-000, …
//! ```
//!
//! Y1  The directory is an inode, not a path. Once the directory is open, every file is reached through a descriptor of
//!     the directory that holds the file. If the path leads elsewhere later, this process touches nothing there.
//! Y2  The lock is on the directory itself. So no file can be removed to get around the lock, and two processes that
//!     reach the same directory by different paths exclude each other. Those that only read share the lock.
//! Y3  A lock counts only if the path still leads to the locked directory. Otherwise another process may have locked
//!     the directory that is there now, and the lookup is repeated.
//!
//! A crash while a data directory is created leaves directories that are empty, or a `STORE` that says `creating`: see
//! [`crate::store`]. The names of new directories are synced before anything is written into them (P7).

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::file_name::{FileName, parse_shard_directory, shard_directory};
use crate::host::random_number;
use crate::key::ShardId;
use crate::storage::device::Device;
use crate::storage::directory::Directory;
use crate::storage::sync_names;
use crate::storage::uring::UringStorage;
use crate::store::Store;

/// A killed predecessor may keep its files open for a moment, because its ring is freed last.
const LOCK_TRIES: u32 = 40;
const LOCK_REST: Duration = Duration::from_millis(50);

/// A data directory that nobody else uses.
#[derive(Debug)]
pub struct DataDir {
    directory: Directory,
}

impl DataDir {
    /// Opens the directory at `path`, and creates it if it does not exist.
    ///
    /// # Errors
    /// `CannotCreate`; `Locked` if another process has the directory; `Permission`; `Io`.
    pub fn open_or_create(path: &Path) -> Result<Self> {
        let shown = path.display();
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                return Error::new(ErrorKind::CannotCreate, format!("{shown} is not a directory"));
            }
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            let error = Error::io(format!("create the directory {shown}"), error);
            if denied { error } else { error.with_kind(ErrorKind::CannotCreate) }
        })?;
        sync_names_above(path).map_err(|error| Error::io(format!("sync the name of {shown}"), error))?;
        Self::open(path)
    }

    /// Opens a directory that exists, and creates nothing.
    ///
    /// # Errors
    /// `Configuration` if it does not exist, or is no directory; `Locked` if another process has the directory;
    /// `Permission`; `Io`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, File::try_lock)
    }

    /// Opens a directory that exists for a command that only reads. Such commands may have the directory at the same time,
    /// and it may be on a file system that is read-only.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_to_read(path: &Path) -> Result<Self> {
        Self::open_with(path, File::try_lock_shared)
    }

    fn open_with(path: &Path, try_lock: TryLock) -> Result<Self> {
        let attempt = |what: &str| format!("{what} the directory {}", path.display());
        loop {
            let directory = Directory::open(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    Error::io(attempt("open"), error).with_kind(ErrorKind::Configuration)
                }
                _ => Error::io(attempt("open"), error),
            })?;
            lock(directory.file(), path, try_lock)?;
            // Y3
            if directory.is_in_place().map_err(|error| Error::io(attempt("look at"), error))? {
                return Ok(Self { directory });
            }
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The files of the directory, used through the ring of the calling thread.
    ///
    /// # Errors
    /// `Io`.
    pub fn storage(&self, device: Device) -> Result<UringStorage> {
        open_storage(&self.directory, device, true)
    }

    /// The directory of a shard.
    ///
    /// # Errors
    /// `Corruption` if it does not exist; `Permission`; `Io`.
    pub fn shard(&self, shard: ShardId) -> Result<Directory> {
        let name = shard_directory(shard);
        self.directory.child(&name).map_err(|error| {
            let missing = error.kind() == io::ErrorKind::NotFound;
            let error = Error::io(format!("open {name}"), error);
            // `STORE` names the shard, and the directory's name was synced before anything was written into it.
            if missing { error.with_kind(ErrorKind::Corruption) } else { error }
        })
    }

    /// The shards whose directories exist, whatever `STORE` says.
    ///
    /// # Errors
    /// `Io`.
    pub fn shards_found(&self) -> Result<Vec<ShardId>> {
        let names = self.directory.list().map_err(|error| Error::io("list the data directory", error))?;
        let mut found: Vec<_> = names.iter().filter_map(|(name, _)| parse_shard_directory(name)).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Whether the directory of a shard exists.
    ///
    /// # Errors
    /// `Io`.
    pub fn has_shard(&self, shard: ShardId) -> Result<bool> {
        let name = shard_directory(shard);
        self.directory.contains(&name).map_err(|error| Error::io(format!("look for {name}"), error))
    }

    /// Whether the directory is a backup, or a restore that has not finished.
    fn is_marked(&self) -> Result<bool> {
        let path = self.directory.path().display();
        let marked = self.directory.contains(&FileName::Backup.to_string());
        marked.map_err(|error| Error::io(format!("look into {path}"), error))
    }

    /// Reads `STORE`; `None` if there is no store.
    ///
    /// # Errors
    /// `Corruption` if `STORE` is missing and there are shards, or if it does not verify; `Configuration` if another
    /// version wrote it; `Io`.
    pub async fn load_store(&self, root: &UringStorage) -> Result<Option<Store>> {
        let store = Store::load(root).await?;
        let path = self.directory.path().display();
        if store.is_none() && self.is_marked()? {
            let message =
                format!("{path} is not complete: run `ringkeep backup` or `ringkeep restore` again");
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        if store.is_none() && self.has_shard(ShardId(0))? {
            let message = format!(
                "{} has shards and no {}: the file was lost, or this is not a data directory",
                self.directory.path().display(),
                FileName::Store
            );
            return Err(Error::new(ErrorKind::Corruption, message));
        }
        Ok(store)
    }

    /// Reads the store, or creates one of `shards` shards: writes `STORE`, creates the directories of the shards, and
    /// makes their names durable. `wanted` is the number of shards that the user asked for, which overrides `shards`.
    ///
    /// # Errors
    /// As [`Self::load_store`]; `Configuration` if the directory is a backup; or any error of the creation.
    pub async fn open_store(&self, root: &UringStorage, wanted: Option<u16>, shards: u16) -> Result<Store> {
        let path = self.directory.path().display();
        if self.is_marked()? {
            let message = format!(
                "{path} is a backup, or a restore that has not finished: `ringkeep restore` makes a data directory from a \
                 backup"
            );
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        let store = match self.load_store(root).await? {
            Some(store) if store.ready => {
                if wanted.is_some_and(|wanted| wanted != store.shards) {
                    tracing::warn!(
                        "--shards applies to new stores only; this store has another number: {}",
                        store.shards
                    );
                }
                // An earlier process may have been killed after it renamed `STORE` and before it synced the name.
                sync_names(root).await?;
                return Ok(store);
            }
            Some(unfinished) => unfinished,
            None => {
                self.warn_of_other_files();
                let id = random_number().map_err(|error| {
                    let message = format!(
                        "cannot choose an id for the store: the kernel gives no random number: {error}"
                    );
                    Error::new(ErrorKind::Io, message)
                })?;
                let store = Store::new(id, wanted.unwrap_or(shards));
                store.save(root).await?;
                store
            }
        };
        for shard in (0..store.shards).map(ShardId) {
            let name = shard_directory(shard);
            self.directory.create_child(&name).map_err(|error| Error::io(format!("create {name}"), error))?;
        }
        sync_names(root).await?;
        Ok(store)
    }

    /// Warns if a new store is made among other files: another directory may be meant.
    fn warn_of_other_files(&self) {
        // A new ext4 volume has this directory.
        let is_other = |name: &str| FileName::parse(name).is_none() && name != "lost+found";
        let files = self.directory.list().unwrap_or_default();
        if let Some((name, _)) = files.iter().filter(|(name, _)| is_other(name)).min() {
            tracing::warn!(
                data_dir = %self.directory.path().display(),
                holds = name,
                "the data directory holds no store, but is not empty: a new store is made in it"
            );
        }
    }

    /// Bytes of all sorted files of the store, except those that cannot be looked at.
    pub fn sst_bytes(&self, store: &Store) -> u64 {
        let is_sst = |name: &str| matches!(FileName::parse(name), Some(FileName::Sst(_)));
        self.shards(store).map(|shard| bytes(&shard, is_sst)).sum()
    }

    /// Bytes of all files of the store, except those that cannot be looked at.
    pub fn bytes(&self, store: &Store) -> u64 {
        let shards: u64 = self.shards(store).map(|shard| bytes(&shard, |_| true)).sum();
        bytes(&self.directory, |_| true) + shards
    }

    /// The directories of the shards, except those that cannot be opened.
    fn shards(&self, store: &Store) -> impl Iterator<Item = Directory> {
        (0..store.shards).filter_map(|shard| self.shard(ShardId(shard)).ok())
    }
}

/// Bytes of the files of a directory whose names are `wanted`.
fn bytes(directory: &Directory, wanted: impl Fn(&str) -> bool) -> u64 {
    let files = directory.list().unwrap_or_default();
    files.iter().filter(|(name, _)| wanted(name)).map(|(_, bytes)| bytes).sum()
}

type TryLock = fn(&File) -> std::result::Result<(), TryLockError>;
/// The process that holds the lock of a directory, as far as the kernel tells: in a container it may not.
fn holder(directory: &File) -> Option<u32> {
    let inode = format!(":{}", directory.metadata().ok()?.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // 1: FLOCK  ADVISORY  WRITE 1234 fe:01:5678 0 EOF
    let of_directory = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let is_lock = words.next() == Some("FLOCK");
        let (pid, place) = (words.nth(2)?.parse().ok()?, words.next()?);
        (is_lock && place.ends_with(&inode) && pid != 0).then_some(pid)
    };
    locks.lines().find_map(of_directory)
}

/// Locks an open directory. The directory stays locked until the last copy of its descriptor is closed (Y2).
fn lock(directory: &File, path: &Path, try_lock: TryLock) -> Result<()> {
    let shown = path.display();
    for tried in 1.. {
        match try_lock(directory) {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if tried < LOCK_TRIES => std::thread::sleep(LOCK_REST),
            Err(TryLockError::WouldBlock) => {
                let holder =
                    holder(directory).map_or("another process".into(), |pid| format!("process {pid}"));
                let message = format!("the data directory {shown} is in use by {holder}");
                return Err(Error::new(ErrorKind::Locked, message));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::io(format!("lock the data directory {shown}"), error));
            }
        }
    }
    Ok(())
}

/// Makes the name of the data directory durable, and the names of the directories above it, which may be new as well.
fn sync_names_above(path: &Path) -> io::Result<()> {
    for parent in path.canonicalize()?.ancestors().skip(1) {
        match File::open(parent).and_then(|directory| directory.sync_all()) {
            Ok(()) => {}
            // We cannot have made a directory that we may not read.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            // A read-only or special file system above has nothing to sync.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EROFS)) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The files of a directory, used through the ring of the calling thread. See [`UringStorage::new`].
///
/// # Errors
/// `Io`.
pub fn open_storage(directory: &Directory, device: Device, sync_every_write: bool) -> Result<UringStorage> {
    UringStorage::new(directory, device, sync_every_write)
        .map_err(|error| Error::io(format!("use {}", directory.path().display()), error))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::key::FileNumber;
    use crate::storage::{Access, AlignedBuf, BLOCK_BYTES, File as _, Storage};

    #[test]
    fn y2_the_lock_is_on_the_directory_and_no_file_stands_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/data");
        assert_eq!(DataDir::open(&path).unwrap_err().kind(), ErrorKind::Configuration);
        let first = DataDir::open_or_create(&path).unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "a lock leaves no file behind");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for again in [&path, &link] {
            assert_eq!(DataDir::open(again).unwrap_err().kind(), ErrorKind::Locked);
        }
        assert_eq!(DataDir::open_to_read(&path).unwrap_err().kind(), ErrorKind::Locked);
        // Another directory at the same path is another data directory.
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        let second = DataDir::open_or_create(&path).unwrap();
        assert!(!first.directory().is_in_place().unwrap() && second.directory().is_in_place().unwrap());
        drop(first);
        let refused = DataDir::open(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
        let holder = format!("is in use by process {}", std::process::id());
        assert!(refused.to_string().contains(&holder), "{refused}");
        drop(second);
        let readers = [(); 2].map(|()| DataDir::open_to_read(&path).unwrap());
        assert_eq!(DataDir::open(&path).unwrap_err().kind(), ErrorKind::Locked);
        drop(readers);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn y3_a_directory_that_was_replaced_while_its_lock_was_waited_for_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let first = DataDir::open_or_create(&path).unwrap();
        let opened = || {
            let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|leads| leads == path)).count()
        };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| DataDir::open(&path));
            while opened() < 2 {
                std::thread::yield_now();
            }
            // The second `open` waits for the lock of a directory that is moved away meanwhile.
            std::fs::rename(&path, folder.path().join("moved")).unwrap();
            std::fs::create_dir(&path).unwrap();
            drop(first);
            assert!(second.join().unwrap().unwrap().directory().is_in_place().unwrap());
        });
    }

    /// Every file and directory below `path`, and what the files hold.
    fn contents(path: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let mut found = Vec::new();
        let mut folders = vec![path.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap().path();
                found.push((entry.strip_prefix(path).unwrap().to_owned(), std::fs::read(&entry).ok()));
                if entry.is_dir() {
                    folders.push(entry);
                }
            }
        }
        found.sort();
        found
    }

    /// Makes a file of one block that holds `byte`.
    async fn write(storage: &UringStorage, name: FileName, byte: u8) {
        let file = storage.create(name).await.unwrap();
        let block = AlignedBuf::from(&[byte; BLOCK_BYTES][..]);
        file.write_at(block, 0).await.0.unwrap();
        file.sync().await.unwrap();
        storage.sync_dir().await.unwrap();
    }

    #[test]
    fn y1_a_directory_that_was_moved_is_used_on_and_the_one_at_its_path_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("data"), folder.path().join("moved"));
        let held = DataDir::open_or_create(&path).unwrap();
        // The same names lead to other files and directories.
        std::fs::rename(&path, &moved).unwrap();
        for shard in 0..3 {
            let decoy = path.join(shard_directory(ShardId(shard)));
            std::fs::create_dir_all(&decoy).unwrap();
            for number in 1..4 {
                std::fs::write(decoy.join(FileName::Wal(FileNumber(number)).to_string()), "decoy").unwrap();
            }
        }
        let before = contents(&path);
        let device = Device::probe(held.directory()).unwrap();
        tokio_uring::start(async {
            let root = held.storage(device).unwrap();
            assert!(!held.has_shard(ShardId(0)).unwrap(), "there is one at the path");
            assert!(held.load_store(&root).await.unwrap().is_none());
            let store = held.open_store(&root, Some(2), 1).await.unwrap();
            assert!(held.has_shard(ShardId(1)).unwrap() && !held.has_shard(ShardId(2)).unwrap());
            assert_eq!(held.load_store(&root).await.unwrap().unwrap().id, store.id);

            let storage = open_storage(&held.shard(ShardId(0)).unwrap(), device, true).unwrap();
            let [first, second, third] = [1, 2, 3].map(|number| FileName::Wal(FileNumber(number)));
            for (name, byte) in [(first, 1), (second, 2)] {
                write(&storage, name, byte).await;
            }
            let file = storage.open(first, Access::Read).await.unwrap();
            let (count, buffer) = file.read_at(AlignedBuf::zeroed(BLOCK_BYTES), 0).await;
            assert!(count.unwrap() == BLOCK_BYTES && buffer[..] == [1; BLOCK_BYTES]);
            assert!(storage.leads_to(first, &file).await.unwrap());
            storage.rename(first, third).await.unwrap();
            storage.remove(second).await.unwrap();
            assert_eq!(storage.list().unwrap(), [(third, BLOCK_BYTES as u64)]);
            assert!(storage.lost_path().await.unwrap().is_some(), "the changed path is noticed");
        });
        assert!(contents(&path) == before, "a file at the path has changed");
        let shard = moved.join(shard_directory(ShardId(0)));
        let third = std::fs::read(shard.join(FileName::Wal(FileNumber(3)).to_string())).unwrap();
        assert_eq!(third, [1; BLOCK_BYTES]);
    }
}
