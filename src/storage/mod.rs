//! Files, as the engine sees them: two small traits with the durability contract of each method.
//!
//! Owns: the traits, the aligned buffer that every transfer uses, and the operations that need more than one call
//! ([`write_file_atomically`]).
//!
//! There are two implementations: [`uring`] on the ring of the calling thread, and [`sim`] in memory, which can lose
//! what was not synced, tear writes and fail operations. Production code runs unchanged on both.
//!
//! ```text
//!   create / rename / remove ──► visible at once ──► durable after sync_dir
//!   write_at                 ──► visible at once ──► durable after sync
//! ```
//!
//! S1  A name is sure to survive a crash only if a `sync_dir` that began after the name was made has returned. Until
//!     then it may survive or not.
//! S2  A byte is sure to survive a crash only if a `sync` of its file that began after the byte was written has
//!     returned. Until then each 512-byte sector of a write holds the old or the new bytes, independently of its
//!     neighbours.
//! S3  A sector that is overwritten with the bytes that it already holds cannot change.
//! S4  After a failed write or sync nothing is known about the bytes written since the last successful sync, and after
//!     a failed `sync_dir` nothing is known about the names, for as long as the process lives.
//!
//! The device is assumed to keep S3, and to have reached stable storage when a sync returns.

pub mod buffer;
pub mod device;
pub mod directory;
pub mod sim;
pub mod uring;

use std::collections::BTreeMap;
use std::io;

pub use buffer::AlignedBuf;

pub use crate::config::{BLOCK_BYTES, SECTOR_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;

/// What a file is opened for. An implementation may choose its flags accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    Read,
    /// Reads, and writes made durable by [`File::sync`].
    Write,
    /// Overwrites of bytes that are allocated and synced, most of them followed by a [`File::sync`]: the commit path.
    /// The implementation may make the write itself durable and the sync free.
    Overwrite,
}

/// One directory of files.
///
/// Cancel safety, all methods: if a future is dropped, its operation may still run, and its effect is then unknown.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait Storage: Clone + 'static {
    /// An open file.
    type File: File;

    /// The name of a file as messages show it, for example `shard-000/000007.wal`.
    fn label(&self, name: FileName) -> String;

    /// The directory as messages show it, for example `shard-000`.
    fn directory_label(&self) -> String;

    /// All files with names of ringkeep, with their lengths, in the order of [`FileName`]. For start-up only: it
    /// blocks.
    fn list(&self) -> io::Result<Vec<(FileName, u64)>>;

    /// Creates a file that must not exist, and opens it for [`Access::Write`]. The name is not durable yet (S1).
    async fn create(&self, name: FileName) -> io::Result<Self::File>;

    /// Opens a file that must exist.
    async fn open(&self, name: FileName, access: Access) -> io::Result<Self::File>;

    /// Renames a file, replacing a file that has the new name. Readers see the old or the new file, never none.
    async fn rename(&self, from: FileName, to: FileName) -> io::Result<()>;

    /// Removes a name. The bytes stay readable through open files.
    async fn remove(&self, name: FileName) -> io::Result<()>;

    /// Makes all creations, renames and removals so far durable. After one failure it fails for ever: the lost names
    /// may be those of another task, whose own sync must not report success for them (S4).
    async fn sync_dir(&self) -> io::Result<()>;

    /// The path of the directory, or of a directory of the store above it, if that path no longer leads to the same
    /// directory. All other methods use the directory itself, wherever it is by now.
    async fn lost_path(&self) -> io::Result<Option<String>>;

    /// Whether `name` still leads to `file`.
    async fn leads_to(&self, name: FileName, file: &Self::File) -> io::Result<bool>;

    /// Lets every other ready task, and the kernel, run first. Long computations call it between slices.
    async fn pause(&self);
}

/// One open file. Clones share it; it closes when the last clone is dropped.
///
/// Offsets and lengths are multiples of [`BLOCK_BYTES`]. Buffers are owned by the operation until it ends.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait File: Clone + 'static {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file. Returns the count.
    async fn read_at(&self, buffer: AlignedBuf, offset: u64) -> (io::Result<usize>, AlignedBuf);

    /// Writes all of `buffer` at `offset`. A short write is continued or reported as an error, never silent.
    async fn write_at(&self, buffer: AlignedBuf, offset: u64) -> (io::Result<()>, AlignedBuf);

    /// Reserves space and sets the length to at least `bytes`; new bytes read as zero.
    async fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Gives back the space of all bytes from `offset` on. They read as zeros, and the length stays the same.
    async fn release(&self, offset: u64) -> io::Result<()>;

    /// Makes all writes so far durable, and the length with them (S2).
    async fn sync(&self) -> io::Result<()>;

    /// The length of the file; `None` if the file has no name any more. Does not wait.
    fn named_bytes(&self) -> io::Result<Option<u64>>;
}

/// Replaces a small file as a whole: after a crash it holds the old or the new bytes, and after the return the new
/// bytes. Steps: write `temporary`, sync it and its name, rename it to `name`, sync the directory.
///
/// # Errors
/// `Poisoned` if it is uncertain which bytes are in force; any other kind if the old bytes are in force.
pub async fn write_file_atomically<S: Storage>(
    storage: &S,
    temporary: FileName,
    name: FileName,
    bytes: AlignedBuf,
) -> Result<()> {
    let attempt = |what: &str| format!("{what} {}", storage.label(temporary));
    match storage.remove(temporary).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(attempt("remove"), error)),
    }
    let file = storage.create(temporary).await.map_err(|error| Error::io(attempt("create"), error))?;
    file.write_at(bytes, 0).await.0.map_err(|error| Error::io(attempt("write"), error))?;
    file.sync().await.map_err(|error| Error::io(attempt("sync"), error))?;
    // Otherwise a crash might keep the rename and lose the creation, and so give `name` to an older temporary file.
    sync_names(storage).await?;
    let uncertain = |what, error| Error::io(attempt(what), error).with_kind(ErrorKind::Poisoned);
    storage.rename(temporary, name).await.map_err(|error| uncertain("rename", error))?;
    sync_names(storage).await
}

/// Makes all creations, renames and removals so far durable.
///
/// # Errors
/// `Poisoned`: it is unknown which names will last, and no later sync can tell (S4).
pub async fn sync_names<S: Storage>(storage: &S) -> Result<()> {
    storage.sync_dir().await.map_err(|error| {
        Error::io(format!("sync {}", storage.directory_label()), error).with_kind(ErrorKind::Poisoned)
    })
}

/// The files of a directory and their lengths.
pub type Files = BTreeMap<FileName, u64>;

/// Lists the directory of a shard.
///
/// # Errors
/// `Io`.
pub fn list_files<S: Storage>(storage: &S) -> Result<Files> {
    let files = storage.list().map_err(|error| {
        let message = format!("list {}", storage.directory_label());
        match error.kind() {
            // The directory was made, and its name synced, before anything was in it.
            io::ErrorKind::NotFound => Error::io(message, error).with_kind(ErrorKind::Corruption),
            _ => Error::io(message, error),
        }
    })?;
    Ok(files.into_iter().collect())
}

/// Opens a file. The error names the file.
pub async fn open_file<S: Storage>(storage: &S, name: FileName, access: Access) -> Result<S::File> {
    let attempt = || format!("open {}", storage.label(name));
    storage.open(name, access).await.map_err(|error| Error::io(attempt(), error))
}

/// Reads a file, but at most its first `bytes_max` bytes.
pub async fn read_file<S: Storage>(storage: &S, name: FileName, bytes_max: usize) -> Result<AlignedBuf> {
    let attempt = |what: &str| format!("{what} {}", storage.label(name));
    let file = open_file(storage, name, Access::Read).await?;
    let (result, mut buffer) = file.read_at(AlignedBuf::zeroed(bytes_max), 0).await;
    let count = result.map_err(|error| Error::io(attempt("read"), error))?;
    buffer.truncate(count);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::sim::{Fate, SimStorage};
    use super::*;

    async fn replace(storage: &SimStorage, byte: u8) {
        let bytes = AlignedBuf::from(&[byte; BLOCK_BYTES][..]);
        write_file_atomically(storage, FileName::StoreTemporary, FileName::Store, bytes).await.unwrap();
    }

    #[test]
    fn a_file_that_is_replaced_has_its_old_or_its_new_bytes_after_every_crash() {
        block_on(async {
            for seed in 0..300 {
                let storage = SimStorage::new(seed);
                replace(&storage, 1).await;
                // A process that was killed has left a temporary file with other bytes, and they are durable.
                let left = storage.create(FileName::StoreTemporary).await.unwrap();
                left.write_at(AlignedBuf::from(&[9; BLOCK_BYTES][..]), 0).await.0.unwrap();
                left.sync().await.unwrap();
                storage.sync_dir().await.unwrap();
                storage.record();
                replace(&storage, 2).await;
                for snapshot in storage.take_snapshots() {
                    let bytes = snapshot.crash(Fate::Random).bytes(FileName::Store);
                    assert!(
                        [1, 2].iter().any(|byte| bytes == [*byte; BLOCK_BYTES]),
                        "seed {seed}: {}",
                        bytes[0]
                    );
                }
                assert_eq!(storage.crash(Fate::Lost).bytes(FileName::Store), [2; BLOCK_BYTES], "seed {seed}");
            }
        });
    }
}
