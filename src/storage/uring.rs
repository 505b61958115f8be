//! Storage on the ring of the calling thread. Only this module and `at` use `tokio_uring::fs`.
//!
//! Owns: open flags (O_DIRECT, O_DSYNC). [`super::device`] chooses the sync primitive.
//!
//! All transfers use O_DIRECT. So memory is counted once (our cache, not the page cache as well), and recovery never
//! reads pages that a failed sync left marked clean (P6; Rebello et al., USENIX ATC 2020). A file system without
//! O_DIRECT (tmpfs) is served through the page cache, and the start logs a warning.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, StatxFlags};
use tokio_uring::fs;

use super::device::{Device, SyncPrimitive};
use super::directory::{self, Directory, InodeId};
use super::{Access, AlignedBuf, BLOCK_BYTES, File, Storage};
use crate::file_name::FileName;
use crate::host::descriptor;
use crate::one_shot;

/// A directory, reached through the ring.
#[derive(Clone)]
pub struct UringStorage(Rc<Shared>);

struct Shared {
    /// The directory itself: every operation on a file starts there, and looks up no path.
    directory: Rc<fs::File>,
    /// The paths that led to it at the start, and the inodes found there: see [`Storage::lost_path`].
    paths: Vec<(PathBuf, InodeId)>,
    /// What messages put before a file name: nothing for the data directory, `shard-000/` for the directory of a shard.
    prefix: String,
    device: Device,
    /// A sync of the directory has failed.
    names_lost: Cell<bool>,
    /// Whether commits may rely on O_DSYNC: only if every write is synced anyway.
    overwrite_is_durable: bool,
}

impl UringStorage {
    /// The files of `directory`. `sync_every_write` says that each overwrite is followed by a sync, so that O_DSYNC may
    /// replace that sync.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new(directory: &Directory, device: Device, sync_every_write: bool) -> io::Result<Self> {
        let overwrite_is_durable = sync_every_write && device.sync_primitive == SyncPrimitive::Dsync;
        let file = fs::File::from_std(directory.file().try_clone()?);
        Ok(Self(Rc::new(Shared {
            directory: Rc::new(file),
            paths: directory.paths.clone(),
            prefix: directory.prefix.clone(),
            device,
            names_lost: Cell::new(false),
            overwrite_is_durable,
        })))
    }

    fn flags(&self, access: Access) -> i32 {
        let direct = if self.0.device.direct { libc::O_DIRECT } else { 0 };
        let dsync =
            if access == Access::Overwrite && self.0.overwrite_is_durable { libc::O_DSYNC } else { 0 };
        let write = if access == Access::Read { libc::O_RDONLY } else { libc::O_RDWR };
        direct | dsync | write
    }
}

/// Attributes of an open file.
fn attributes(file: &fs::File, wanted: StatxFlags) -> io::Result<rustix::fs::Statx> {
    Ok(rustix::fs::statx(descriptor(file), "", AtFlags::EMPTY_PATH, wanted)?)
}

/// The inode that `path` leads to, from `directory` if the path is relative; `None` if it leads nowhere.
async fn look_up(directory: &fs::File, path: &Path) -> io::Result<Option<InodeId>> {
    let mut builder = fs::StatxBuilder::new();
    builder.pathname(path)?;
    let found = builder.dirfd(directory).flags(0).mask(libc::STATX_INO).statx().await;
    match found {
        Ok(found) => {
            let device = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor);
            Ok(Some(InodeId { device, number: found.stx_ino }))
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Storage for UringStorage {
    type File = UringFile;

    fn label(&self, name: FileName) -> String {
        format!("{}{name}", self.0.prefix)
    }

    fn directory_label(&self) -> String {
        match self.0.prefix.trim_end_matches('/') {
            "" => "the data directory".into(),
            shard => shard.into(),
        }
    }

    fn list(&self) -> io::Result<Vec<(FileName, u64)>> {
        let found = directory::list(&descriptor(&*self.0.directory))?;
        let ours = found.into_iter().filter_map(|(name, bytes)| Some((FileName::parse(&name)?, bytes)));
        let mut files: Vec<_> = ours.collect();
        files.sort_unstable();
        Ok(files)
    }

    async fn create(&self, name: FileName) -> io::Result<UringFile> {
        let flags = self.flags(Access::Write) | libc::O_CREAT | libc::O_EXCL;
        let file = one_shot::open(&self.0.directory, &name.to_string(), flags, 0o600).await?;
        Ok(UringFile { file: Rc::new(file), durable_writes: false })
    }

    async fn open(&self, name: FileName, access: Access) -> io::Result<UringFile> {
        let flags = self.flags(access);
        let file = one_shot::open(&self.0.directory, &name.to_string(), flags, 0).await?;
        Ok(UringFile { file: Rc::new(file), durable_writes: flags & libc::O_DSYNC == libc::O_DSYNC })
    }

    async fn rename(&self, from: FileName, to: FileName) -> io::Result<()> {
        one_shot::rename(&self.0.directory, &from.to_string(), &to.to_string()).await
    }

    async fn remove(&self, name: FileName) -> io::Result<()> {
        one_shot::unlink(&self.0.directory, &name.to_string()).await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        let result = self.0.directory.sync_all().await;
        if result.is_err() || self.0.names_lost.get() {
            self.0.names_lost.set(true);
            return result.and(Err(io::Error::from_raw_os_error(libc::EIO)));
        }
        Ok(())
    }

    async fn lost_path(&self) -> io::Result<Option<String>> {
        for (path, id) in &self.0.paths {
            if look_up(&self.0.directory, path).await? != Some(*id) {
                return Ok(Some(format!("the directory {}", path.display())));
            }
        }
        Ok(None)
    }

    async fn leads_to(&self, name: FileName, file: &UringFile) -> io::Result<bool> {
        let id = InodeId::from(&attributes(&file.file, StatxFlags::INO)?);
        Ok(look_up(&self.0.directory, Path::new(&name.to_string())).await? == Some(id))
    }

    async fn pause(&self) {
        if let Err(error) = tokio_uring::no_op().await {
            tracing::warn!(%error, "the ring refused a no-op");
        }
    }
}

/// A file, reached through the ring.
#[derive(Clone)]
pub struct UringFile {
    file: Rc<fs::File>,
    /// Opened with O_DSYNC: a write that has returned is durable.
    durable_writes: bool,
}

impl File for UringFile {
    async fn read_at(&self, mut buffer: AlignedBuf, offset: u64) -> (io::Result<usize>, AlignedBuf) {
        let wanted = buffer.len();
        let (result, back) = self.file.read_at(buffer, offset).await;
        buffer = back;
        let mut count = match result {
            Ok(count) => count,
            Err(error) => return (Err(error), buffer),
        };
        // A short read is the end of the file, unless a signal or the file system cut it short. So read on, from a
        // block boundary. Short reads are rare, so the second buffer costs nothing.
        while 0 < count && count < wanted {
            let done = count / BLOCK_BYTES * BLOCK_BYTES;
            let (result, rest) =
                self.file.read_at(AlignedBuf::zeroed(wanted - done), offset + done as u64).await;
            let more = match result {
                Ok(more) => more,
                Err(error) => return (Err(error), buffer),
            };
            buffer[done..].copy_from_slice(&rest);
            if done + more <= count {
                break;
            }
            count = done + more;
        }
        (Ok(count), buffer)
    }

    async fn write_at(&self, mut buffer: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf) {
        let (result, back) = self.file.write_at(buffer, offset).submit().await;
        buffer = back;
        let mut done = match result {
            Ok(count) => count,
            Err(error) => return (Err(error), buffer),
        };
        while done < buffer.len() {
            // Continue from a block boundary: the bytes before it are written.
            let from = done / BLOCK_BYTES * BLOCK_BYTES;
            let rest = AlignedBuf::from(&buffer[from..]);
            match self.file.write_at(rest, offset + from as u64).submit().await.0 {
                Ok(count) if done < from + count => done = from + count,
                Ok(_) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        match self.file.fallocate(0, bytes, 0).await {
            // This file system has no fallocate: the zero writes that follow reserve the space as well.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    async fn release(&self, offset: u64) -> io::Result<()> {
        let bytes = attributes(&self.file, StatxFlags::SIZE)?.stx_size.saturating_sub(offset);
        if bytes == 0 {
            return Ok(());
        }
        let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match self.file.fallocate(offset, bytes, flags).await {
            // This file system has no holes: the space stays taken.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    async fn sync(&self) -> io::Result<()> {
        if self.durable_writes {
            return Ok(());
        }
        self.file.sync_data().await
    }

    /// Uses a system call, not the ring. The inode of an open file is in memory, so the call never waits for the disk,
    /// and it takes a fraction of a microsecond. On the ring it would go to a worker thread.
    ///
    /// The call is `statx`, which can leave the times out. Once somebody has asked for the time of the last change,
    /// Linux 6.13 and later give the next write a fine-grained time: each commit would change metadata, and take 25 %
    /// more processor time.
    fn named_bytes(&self) -> io::Result<Option<u64>> {
        let found = attributes(&self.file, StatxFlags::NLINK | StatxFlags::SIZE)?;
        Ok((0 < found.stx_nlink).then_some(found.stx_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::FileNumber;

    /// Every operation is awaited before the runtime ends, so nothing is in flight when the runtime is dropped.
    fn on_ring(test: impl AsyncFnOnce(UringStorage)) {
        let folder = tempfile::tempdir().unwrap();
        let folder = Directory::open(folder.path()).unwrap();
        folder.create_child("x").unwrap();
        let directory = folder.child("x").unwrap();
        let device = Device::probe(&directory).unwrap();
        tokio_uring::start(async { test(UringStorage::new(&directory, device, true).unwrap()).await });
    }

    #[test]
    fn writes_are_read_back_and_names_are_listed() {
        on_ring(async |storage| {
            let name = FileName::Sst(FileNumber(3));
            let file = storage.create(name).await.unwrap();
            let mut buffer = AlignedBuf::zeroed(3 * BLOCK_BYTES);
            buffer[5000] = 7;
            file.write_at(buffer, 0).await.0.unwrap();
            file.sync().await.unwrap();
            storage.sync_dir().await.unwrap();
            storage.pause().await;

            let file = storage.open(name, Access::Overwrite).await.unwrap();
            file.allocate(4 * BLOCK_BYTES as u64).await.unwrap();
            let (count, buffer) = file.read_at(AlignedBuf::zeroed(8 * BLOCK_BYTES), 0).await;
            assert_eq!(count.unwrap(), 4 * BLOCK_BYTES, "a read stops at the end of the file");
            assert_eq!(buffer[5000], 7);
            file.release(BLOCK_BYTES as u64).await.unwrap();
            let (count, buffer) = file.read_at(AlignedBuf::zeroed(8 * BLOCK_BYTES), 0).await;
            assert!(count.unwrap() == 4 * BLOCK_BYTES && buffer[5000] == 0, "the length stays");

            let other = FileName::Wal(FileNumber(4));
            storage.rename(name, other).await.unwrap();
            assert_eq!(storage.list().unwrap(), [(other, 4 * BLOCK_BYTES as u64)]);
            assert!(storage.create(other).await.is_err(), "create never replaces");
            storage.remove(other).await.unwrap();
            assert_eq!(storage.list().unwrap(), []);
            assert_eq!(storage.label(other), "x/000004.wal");
        });
    }
}
