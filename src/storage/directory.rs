//! A directory that is held open, and the operations on it at start-up, before there is a ring.
//!
//! A path is looked up once. From then on this process uses the descriptor of the directory. If somebody moves the
//! directory or puts another one in its place, the process goes on in the directory that it has opened, and touches
//! nothing in the other one. [`UringStorage`](super::uring::UringStorage) does the same at run time.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, linkat, mkdirat, openat, stat, statat, unlinkat};

/// Identifies a file or directory, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeId {
    /// The device.
    pub device: u64,
    /// The number on that device.
    pub number: u64,
}

impl From<&rustix::fs::Stat> for InodeId {
    fn from(stat: &rustix::fs::Stat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino }
    }
}

impl From<&rustix::fs::Statx> for InodeId {
    fn from(statx: &rustix::fs::Statx) -> Self {
        let device = rustix::fs::makedev(statx.stx_dev_major, statx.stx_dev_minor);
        Self { device, number: statx.stx_ino }
    }
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// Its size.
    pub bytes: u64,
    /// What is free.
    pub available_bytes: u64,
    /// Whether files can be created, as far as their number is concerned.
    pub has_inodes: bool,
}

/// An open directory. It can be sent to the thread that will use it.
#[derive(Debug)]
pub struct Directory {
    file: File,
    /// The paths of the directories above it that belong to the store, and last the path by which it was opened. Each
    /// path has to lead to the same inode as at the start.
    pub(super) paths: Vec<(PathBuf, InodeId)>,
    /// What messages put before a file name: nothing for the data directory, `shard-000/` for the directory of a shard.
    pub(super) prefix: String,
}

impl Directory {
    /// Opens the directory at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        // Anything else is refused before it is opened: a pipe would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
        let found = fstat(&file)?;
        Ok(Self { file, paths: vec![(path, InodeId::from(&found))], prefix: String::new() })
    }

    /// Opens the directory `name` in this one.
    pub fn child(&self, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = File::from(openat(&self.file, name, flags, Mode::empty())?);
        let id = InodeId::from(&fstat(&file)?);
        let mut paths = self.paths.clone();
        paths.push((self.path().join(name), id));
        Ok(Self { file, paths, prefix: format!("{name}/") })
    }

    /// Creates the directory `name` in this one, if it does not exist.
    pub fn create_child(&self, name: &str) -> io::Result<()> {
        match mkdirat(&self.file, name, Mode::RWXU) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Whether there is a file or directory `name` in this one.
    pub fn contains(&self, name: &str) -> io::Result<bool> {
        match statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The absolute path by which the directory was opened. It may lead elsewhere by now.
    pub fn path(&self) -> &Path {
        &self.paths.last().expect("a directory has a path").0
    }

    /// Whether the path still leads to this directory.
    pub fn is_in_place(&self) -> io::Result<bool> {
        let (path, id) = self.paths.last().expect("a directory has a path");
        match stat(path) {
            Ok(found) => Ok(InodeId::from(&found) == *id),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The size of the file system below the directory, and what is free for this process.
    pub fn volume(&self) -> io::Result<Volume> {
        let found = rustix::fs::fstatvfs(&self.file)?;
        Ok(Volume {
            bytes: found.f_blocks.saturating_mul(found.f_frsize),
            available_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            has_inodes: found.f_files == 0 || 0 < found.f_favail,
        })
    }

    /// Whether the directory is on a file system that keeps its files in memory.
    pub fn is_in_memory(&self) -> bool {
        const TMPFS: u64 = 0x0102_1994; // of the kernel's magic.h
        const RAMFS: u64 = 0x8584_58f6;
        #[expect(clippy::cast_sign_loss, reason = "a magic number, whose type differs by platform")]
        rustix::fs::fstatfs(&self.file).is_ok_and(|found| [TMPFS, RAMFS].contains(&(found.f_type as u64)))
    }

    /// The open directory, to be locked or synced.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Names and lengths of everything in the directory, in no particular order.
    pub fn list(&self) -> io::Result<Vec<(String, u64)>> {
        list(&self.file)
    }

    /// Opens the file `name` for reading and writing, with `flags`.
    pub fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        Ok(openat(&self.file, name, OFlags::CLOEXEC | flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Gives the file `name` a name in another directory as well.
    pub fn link_file(&self, name: &str, to: &Self, new: &str) -> io::Result<()> {
        Ok(linkat(&self.file, name, &to.file, new, AtFlags::empty())?)
    }

    /// Which directory this is.
    pub fn id(&self) -> InodeId {
        self.paths.last().expect("a directory has a path").1
    }

    /// Removes the file `name`.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.file, name, AtFlags::empty())?)
    }
}

/// Names and lengths of everything in an open directory. A name that is not UTF-8 is not ours, and is left out.
pub(super) fn list(directory: &impl AsFd) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if [".", ".."].contains(&name) {
            continue;
        }
        let bytes = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_size;
        found.push((name.to_owned(), u64::try_from(bytes).unwrap_or_default()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_directory_is_the_one_that_was_opened_wherever_its_path_leads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        std::fs::create_dir(&path).unwrap();
        let held = Directory::open(&path).unwrap();
        held.create_child("shard-000").unwrap();
        held.create_child("shard-000").unwrap();
        let child = held.child("shard-000").unwrap();
        assert!(held.is_in_place().unwrap() && child.is_in_place().unwrap());

        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        assert!(!held.is_in_place().unwrap());
        std::fs::create_dir_all(path.join("shard-000")).unwrap();
        assert!(!held.is_in_place().unwrap() && !child.is_in_place().unwrap());
        child.open_file("a", OFlags::CREATE | OFlags::RDWR).unwrap();
        assert_eq!(child.list().unwrap(), [("a".to_owned(), 0)]);
        assert!(folder.path().join("moved/shard-000/a").exists());
        assert!(std::fs::read_dir(path.join("shard-000")).unwrap().next().is_none());
        child.remove_file("a").unwrap();
        assert!(!child.contains("a").unwrap() && held.contains("shard-000").unwrap());
        assert!(Directory::open(&path.join("nothing")).is_err());
    }
}
