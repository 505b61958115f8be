//! A backup, or a store that no server has open, as the source of a copy.

use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use super::{Contents, Source};
use crate::data_dir::{DataDir, open_storage};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::Owner;
use crate::key::ShardId;
use crate::manifest::load_in_use;
use crate::storage::device::Device;
use crate::storage::directory::Directory;

/// A directory to copy from.
pub struct Folder<'a>(pub &'a DataDir);

impl Folder<'_> {
    /// What is in the directory.
    ///
    /// # Errors
    /// `Configuration` if it holds no complete backup, or a store with writes in WALs; `Corruption`; `Io`.
    pub async fn contents(&self) -> Result<Contents> {
        let directory = self.0.directory();
        let shown = directory.path().display();
        let device =
            Device::for_reading(directory).map_err(|error| Error::io(format!("read {shown}"), error))?;
        let root = self.0.storage(device)?;
        let refuse = |what: &str| Err(Error::new(ErrorKind::Configuration, format!("{shown} {what}")));
        let Some(store) = self.0.load_store(&root).await?.filter(|store| store.ready) else {
            return refuse("holds no complete backup: run `ringkeep backup` again");
        };
        let mut shards = Vec::new();
        for shard in (0..store.shards).map(ShardId) {
            let storage = open_storage(&self.0.shard(shard)?, device, false)?;
            let owner = Owner { store_id: store.id, shard };
            let state = load_in_use(&storage, owner).await?.state;
            if !state.wals.is_empty() {
                return refuse(
                    "is a data directory, not a backup: copy it as it is, while no server has it open",
                );
            }
            shards.push(state.without_wals());
        }
        Ok(Contents { store, shards })
    }
}

impl Source for Folder<'_> {
    fn link(&mut self, _: ShardId, _: FileName, _: &Directory) -> bool {
        false // a data directory and its backup must not share the bytes that may rot
    }

    fn read(&mut self, shard: ShardId, file: FileName, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let directory = self.0.shard(shard)?;
        let mut part = vec![0; bytes];
        let read = directory
            .open_file(&file.to_string(), OFlags::RDONLY)
            .and_then(|file| file.read_exact_at(&mut part, offset));
        read.map_err(|error| {
            Error::read(
                format!("read {} at offset {offset}", directory.path().join(file.to_string()).display()),
                error,
            )
        })?;
        Ok(part)
    }
}
