//! `ringkeep reshard DIR --shards N`: another number of shards for a store that no server has open.
//!
//! The new store is built beside the old one, and every file of it is synced before anything names it. Then the two
//! directories change places in one step (`RENAME_EXCHANGE`), and the old one is removed.
//!
//! What a crash may leave, and why it is survived:
//! - before the exchange: the old store, untouched, and beside it a directory with the mark of an unfinished restore, which
//!   servers refuse. The next run builds it anew;
//! - after the exchange: the new store, complete and without a mark, and beside it the old one, which is removed by hand.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::Args;
use indicatif::ProgressBar;

use super::dump::shards;
use super::owner::own_like;
use super::values::number;
use super::{beside, counted, styled};
use crate::backup::{MANIFEST_BYTES, Purpose, Target, mark};
use crate::config::SHARDS_MAX;
use crate::data_dir::{DataDir, open_storage};
use crate::db::at_rest::AtRest;
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::{FileName, parse_shard_directory, shard_directory};
use crate::host::random_number;
use crate::identity::{FileKind, Owner};
use crate::key::{FileNumber, SeqNo, ShardId, Slot};
use crate::manifest::{LEVELS, Manifest, State, Version, VersionEdit};
use crate::ring;
use crate::shard::handler::wall_clock;
use crate::source::Source;
use crate::source::merge::Merge;
use crate::sst::builder::SstBuilder;
use crate::storage::device::Device;
use crate::storage::sync_names;
use crate::storage::uring::{UringFile, UringStorage};
use crate::store::Store;

/// Bytes at which a sorted file ends.
const SST_BYTES: u64 = 64 << 20;

/// Arguments of `ringkeep reshard`.
#[derive(Debug, Args)]
pub(super) struct Reshard {
    /// The data directory
    #[arg(value_name = "DIR")]
    data_dir: PathBuf,
    /// The new number of shards
    #[arg(long, value_name = "N", value_parser = number::<u16>(1..=u64::from(SHARDS_MAX)))]
    shards: u16,
    /// Leave DIR as it is, and make the new data directory here
    #[arg(long, value_name = "NEW")]
    to: Option<PathBuf>,
}

impl Reshard {
    pub(super) fn run(self) -> Result<()> {
        let (_, runtime) = ring::probe()?;
        let path = self.data_dir.canonicalize().unwrap_or_else(|_| self.data_dir.clone());
        let from = DataDir::open(&path)?;
        let beside = match &self.to {
            Some(path) => path.clone(),
            None => {
                check_replaceable(&from)?;
                place_beside(&path)?
            }
        };
        runtime.block_on(async {
            let (store, old) = shards(&from).await?;
            if store.shards == self.shards {
                let message =
                    format!("{} has {} already", path.display(), counted(self.shards.into(), "shard"));
                return Err(Error::new(ErrorKind::Configuration, message));
            }
            let to = DataDir::open_or_create(&beside)?;
            let built = async {
                let target = Target::open(&to, Purpose::Restore, None).await?;
                let entries = build(&to, &old, self.shards).await?;
                own_like(&path, to.directory())?;
                target.release().await?;
                Ok(entries)
            };
            let entries = built.await.inspect_err(|_| {
                if self.to.is_none() {
                    let _ = std::fs::remove_dir_all(&beside); // otherwise the next run removes it
                }
            })?;
            if self.to.is_none() {
                exchange(&path, &beside)?;
                std::fs::remove_dir_all(&beside).map_err(|error| {
                    Error::io(format!("remove the old store {}", beside.display()), error)
                })?;
            }
            let place = self.to.as_ref().unwrap_or(&path).display();
            let _ = writeln!(
                std::io::stdout(),
                "{place}: {}, {}; its backups need a directory of their own",
                counted(self.shards.into(), "shard"),
                counted(entries, "key")
            );
            Ok(())
        })
    }
}

/// Refuses a directory that cannot change places with another one, or must not be removed afterwards.
fn check_replaceable(from: &DataDir) -> Result<()> {
    let directory = from.directory();
    let shown = directory.path().display();
    let refuse = |why: &str| {
        let message = format!("{shown} {why}; --to makes the new store elsewhere");
        Err(Error::new(ErrorKind::Configuration, message))
    };
    if mark(directory)?.is_some() {
        return refuse("is a backup, or a restore that has not finished");
    }
    let above = directory.path().parent().map(std::fs::metadata);
    if above.is_none_or(|above| above.is_ok_and(|above| above.dev() != directory.id().device)) {
        return refuse("is a volume of its own, so nothing can change places with it");
    }
    let failed = |error| Error::io(format!("list {shown}"), error);
    for (name, _) in directory.list().map_err(failed)? {
        let foreign = match parse_shard_directory(&name) {
            Some(shard) => {
                let files = from.shard(shard)?.list().map_err(failed)?;
                files.into_iter().map(|(file, _)| file).find(|file| FileName::parse(file).is_none())
            }
            None => FileName::parse(&name).is_none().then_some(name),
        };
        if let Some(foreign) = foreign {
            return refuse(&format!(
                "holds {foreign}, which is no part of the store and would be removed with it"
            ));
        }
    }
    Ok(())
}

/// The directory in which the new store is built. What an earlier run has left there is removed.
fn place_beside(path: &Path) -> Result<PathBuf> {
    let beside = beside(path, ".reshard");
    if !beside.exists() {
        return Ok(beside);
    }
    let left = DataDir::open(&beside)?; // nobody else uses it
    if mark(left.directory())? != Some(Purpose::Restore) {
        let message = format!(
            "{} is in the way: if an earlier reshard has left the old store there, remove it",
            beside.display()
        );
        return Err(Error::new(ErrorKind::CannotCreate, message));
    }
    std::fs::remove_dir_all(&beside).map_err(|error| {
        Error::io(format!("remove {}, which an earlier run has left", beside.display()), error)
    })?;
    Ok(beside)
}

/// Lets two directories change places, durably.
fn exchange(one: &Path, other: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        let message =
            format!("exchange {} and {}; the new store is complete", one.display(), other.display());
        Error::io(message, error)
    };
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags)
        .map_err(|error| failed(error.into()))?;
    let parent = one.parent().unwrap_or(Path::new("/"));
    std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)
}

/// A new shard that is being written.
struct Shard {
    owner: Owner,
    storage: UringStorage,
    builder: Option<SstBuilder<UringFile>>,
    next_file: u64,
    edit: VersionEdit,
}

impl Shard {
    async fn end_file(&mut self) -> Result<()> {
        if let Some(builder) = self.builder.take() {
            self.edit.add_ssts.push((LEVELS - 1, Rc::new(builder.finish().await?)));
        }
        Ok(())
    }

    async fn builder(&mut self) -> Result<&mut SstBuilder<UringFile>> {
        if self.builder.as_ref().is_some_and(|builder| SST_BYTES <= builder.bytes()) {
            self.end_file().await?;
        }
        if self.builder.is_none() {
            let identity = self.owner.identity(FileKind::Sst, FileNumber(self.next_file));
            self.next_file += 1;
            self.builder = Some(SstBuilder::create(&self.storage, identity).await?);
        }
        self.builder.as_mut().ok_or_else(|| Error::new(ErrorKind::Io, "there is no sorted file"))
    }

    /// Puts the files in force (P7).
    async fn finish(mut self, last: SeqNo) -> Result<()> {
        self.end_file().await?;
        sync_names(&self.storage).await?;
        let wrong =
            |reason| Error::new(ErrorKind::Io, format!("the new files contradict each other: {reason}"));
        let state = State {
            version: Rc::new(Version::default().apply(&self.edit).map_err(wrong)?),
            flushed: last,
            next_file: FileNumber(self.next_file),
            ..State::default()
        };
        Manifest::create(self.storage, self.owner, state, MANIFEST_BYTES).await.map(drop)
    }
}

/// Writes all values of the old shards to new ones. Returns how many there are. SeqNos stay, so the new ones go on above
/// those of all old shards.
async fn build(to: &DataDir, old: &[AtRest<UringStorage>], count: u16) -> Result<u64> {
    let directory = to.directory();
    let failed = |error| Error::io(format!("write to {}", directory.path().display()), error);
    let device = Device::probe(directory).map_err(failed)?;
    let root = to.storage(device)?;
    let id = random_number().map_err(|error| Error::io("choose an id for the new store", error))?;
    let store = Store { ready: true, ..Store::new(id, count) };
    let mut new = Vec::new();
    for shard in (0..count).map(ShardId) {
        directory.create_child(&shard_directory(shard)).map_err(failed)?;
        let storage = open_storage(&to.shard(shard)?, device, true)?;
        for (name, _) in crate::storage::list_files(&storage)? {
            use crate::storage::Storage as _;
            storage.remove(name).await.map_err(failed)?; // an earlier run has left it
        }
        let owner = Owner { store_id: id, shard };
        new.push(Shard { owner, storage, builder: None, next_file: 1, edit: VersionEdit::default() });
    }
    sync_names(&root).await?;
    let bar = styled(
        ProgressBar::new(old.iter().map(AtRest::bytes).sum()),
        "{bar:40} {bytes} of {total_bytes} ({bytes_per_sec}, {eta} left)",
    );
    let now = wall_clock();
    let mut all = Merge::new(old.iter().map(|shard| shard.scan(now)).collect());
    let mut entries = 0;
    while all.advance().await? {
        let (slot, bytes) = all.read(|entry| (Slot::of(entry.key), entry.key.len() + entry.value.len()));
        let shard = &mut new[usize::from(store.slots[slot.index()].0)];
        let builder = shard.builder().await?;
        while !all.read(|entry| builder.add(&entry)) {}
        builder.write_full().await?;
        entries += 1;
        bar.inc(bytes as u64);
    }
    bar.finish_and_clear();
    let last = old.iter().map(AtRest::last).max().unwrap_or_default();
    for shard in new {
        shard.finish(last).await?;
    }
    store.save(&root).await?;
    Ok(entries)
}
