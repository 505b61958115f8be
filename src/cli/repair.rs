//! `ringkeep repair DATA`: gives up what is damaged in sorted files, and keeps everything else.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::counted;
use super::owner::own_like;
use crate::backup::mark;
use crate::check::check_logs;
use crate::config::{DbConfig, MANIFEST_BYTES, WAL_STEP_BYTES};
use crate::data_dir::{DataDir, open_storage};
use crate::db::Db;
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::Owner;
use crate::key::{KeyHash, ShardId};
use crate::ring;
use crate::storage::device::Device;

/// Settings of a shard while it is repaired: nothing is read through the cache.
const MEMTABLE_BYTES: usize = 64 << 20;
const CACHE_BYTES: usize = 1 << 20;
const OPEN_FILES_MAX: usize = 64;

/// Arguments of `ringkeep repair`.
#[derive(Debug, Args)]
pub(super) struct Repair {
    /// The data directory
    #[arg(value_name = "DATA")]
    data_dir: PathBuf,
    /// Say what would be given up, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Repair {
    pub(super) fn run(self) -> Result<()> {
        let (_, runtime) = ring::probe()?;
        // The lock is held to the end of the process.
        let data_dir = &*Box::leak(Box::new(DataDir::open(&self.data_dir)?));
        if mark(data_dir.directory())?.is_some() && !self.dry_run {
            let message = format!(
                "{} is a backup: make a data directory from it by `ringkeep restore --damaged`, and repair that",
                self.data_dir.display()
            );
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        let mut lines = Vec::new();
        let result = runtime.block_on(repair(data_dir, self.dry_run, &mut lines));
        let mut output = std::io::stdout().lock();
        for line in &lines {
            let _ = writeln!(output, "{line}"); // a closed standard output does not change the exit status
        }
        result?;
        own_like(&self.data_dir, data_dir.directory())?;
        let shown = self.data_dir.display();
        match (lines.len() as u64, self.dry_run) {
            (0, _) => {
                let _ = writeln!(output, "{shown}: no sorted file is damaged");
            }
            (count, true) => {
                let message = format!("{}, and nothing was changed", counted(count, "damaged file"));
                return Err(Error::new(ErrorKind::Corruption, format!("{shown}: {message}")));
            }
            (count, false) => {
                let _ = writeln!(output, "{shown}: {}, repaired", counted(count, "damaged file"));
            }
        }
        Ok(())
    }
}

async fn repair(data_dir: &DataDir, dry_run: bool, lines: &mut Vec<String>) -> Result<()> {
    let path = data_dir.directory().path().display();
    let opened = |error| Error::io(format!("read {path}"), error);
    let device = if dry_run {
        Device::for_reading(data_dir.directory()).map_err(opened)?
    } else {
        Device::probe(data_dir.directory()).map_err(opened)?
    };
    let root = data_dir.storage(device)?;
    let store = data_dir.load_store(&root).await?.filter(|store| store.ready);
    let Some(store) = store else {
        let message =
            format!("{path} holds no store: there is no {}, or it is not complete", FileName::Store);
        return Err(Error::new(ErrorKind::Configuration, message));
    };
    let config = DbConfig {
        sync_every_group: true,
        memtable_bytes: MEMTABLE_BYTES,
        cache_bytes: CACHE_BYTES,
        value_bytes_max: 1,
        large_value_bytes: 1,
        open_files_max: OPEN_FILES_MAX,
        wal_bytes: DbConfig::wal_bytes_for(MEMTABLE_BYTES, 1),
        wal_step_bytes: WAL_STEP_BYTES,
        manifest_bytes: MANIFEST_BYTES,
        key_hash: KeyHash::random(),
    };
    // Every shard is looked at before one is changed: what cannot be repaired in one of them must not cost entries of others.
    let (mut damaged, mut found, mut failed) = (Vec::new(), Vec::new(), None);
    for shard in (0..store.shards).map(ShardId) {
        let owner = Owner { store_id: store.id, shard };
        let storage = open_storage(&data_dir.shard(shard)?, device, true)?;
        let logs = check_logs(&storage, owner, &store.slots).await;
        failed = failed.or(logs.damage.into_iter().chain(logs.later).chain(logs.unread).next());
        match Db::damages(&storage, owner).await {
            Ok(lines) if lines.is_empty() => {} // opening the shard would begin a new log
            Ok(lines) => {
                found.extend(lines);
                damaged.push((storage, owner));
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if dry_run {
        lines.append(&mut found);
        return failed.map_or(Ok(()), Err);
    }
    if let Some(error) = failed {
        return Err(Error::new(error.kind(), format!("{error}; nothing was changed")));
    }
    for (storage, owner) in damaged {
        let db = Db::open_to_repair(storage, owner, config).await?;
        let repaired = db.repair(lines).await;
        db.close(|_| {}).await?;
        repaired?;
    }
    Ok(())
}
