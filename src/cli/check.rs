//! `ringkeep check DATA`: every byte of a store that no server has open, read and compared with what it should be.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;

use super::styled;
use crate::check::{Report, bytes_to_read, check_shard};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::{FileName, shard_directory};
use crate::key::ShardId;
use crate::manifest::presence::{list, unexpected_data};
use crate::record::Owner;
use crate::storage::Storage;
use crate::storage::uring::{Device, UringStorage};
use crate::store::Store;
use crate::{host, server};

/// Exit status 0 if everything is as it was written, 65 if not, 1 if all that could be read is; each damage, and each
/// file that could not be read, is a line on standard output.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The data directory
    #[arg(value_name = "DATA")]
    data_dir: PathBuf,
}

impl Check {
    pub(super) fn run(self) -> Result<()> {
        let (_, runtime) = host::probe_ring()?;
        let lock = server::lock_existing(&self.data_dir)?;
        let result = runtime.block_on(check(&self.data_dir));
        drop(lock);
        let report = result?;
        let mut output = std::io::stdout().lock();
        // A closed standard output does not change the exit status.
        let _ = print(&mut output, &self.data_dir, &report);
        let data_dir = self.data_dir.display();
        match (report.damage.len(), report.unread.len()) {
            (0, 0) => Ok(()),
            (0, count) => {
                let message = format!("{count} parts of {data_dir} could not be read; what could is sound");
                Err(Error::new(ErrorKind::Io, message))
            }
            (count, _) => {
                Err(Error::new(ErrorKind::Corruption, format!("{data_dir} is damaged in {count} places")))
            }
        }
    }
}

fn print(output: &mut impl Write, data_dir: &Path, report: &Report) -> std::io::Result<()> {
    for note in &report.notes {
        writeln!(output, "note: {note}")?;
    }
    for damage in &report.damage {
        writeln!(output, "damage: {damage}")?;
    }
    for error in &report.unread {
        writeln!(output, "unread: {error}")?;
    }
    let verdict = match (report.damage.is_empty(), report.unread.is_empty()) {
        (false, _) => "damaged",
        (true, false) => "not all read",
        (true, true) => "sound",
    };
    writeln!(
        output,
        "{}: {verdict}; {} files, {} entries, {} notes, {} damages, {} unread",
        data_dir.display(),
        report.files,
        report.entries,
        report.notes.len(),
        report.damage.len(),
        report.unread.len()
    )?;
    output.flush()
}

async fn check(data_dir: &Path) -> Result<Report> {
    let device = Device::for_reading(data_dir)
        .map_err(|error| Error::io(format!("read {}", data_dir.display()), error))?;
    let storage = |path: PathBuf, prefix: String| UringStorage::new(path, prefix, device, false);
    let root = storage(data_dir.to_owned(), String::new());
    let Some(store) = Store::load(&root).await? else {
        if data_dir.join(shard_directory(ShardId(0))).exists() {
            let message = format!("{} is missing, and there are shards", FileName::Store);
            return Err(Error::new(ErrorKind::Corruption, message));
        }
        let message = format!("{} holds no store: there is no {}", data_dir.display(), FileName::Store);
        return Err(Error::new(ErrorKind::Configuration, message));
    };
    let mut report = Report { files: 1, ..Report::default() };
    if root.list().is_ok_and(|files| files.iter().any(|(name, _)| *name == FileName::StoreTemporary)) {
        report
            .notes
            .push(format!("{}: nothing names it; it is replaced when needed", FileName::StoreTemporary));
    }
    let shards: Vec<_> = (0..store.shards)
        .map(|number| {
            let owner = Owner { store_id: store.id, shard: ShardId(number) };
            let directory = shard_directory(owner.shard);
            (owner, storage(data_dir.join(&directory), format!("{directory}/")))
        })
        .collect();
    let total =
        shards.iter().filter_map(|(_, storage)| list(storage).ok()).map(|files| bytes_to_read(&files)).sum();
    let template = "{bar:40} {bytes} of {total_bytes} ({bytes_per_sec}, {eta} left)";
    let bar = styled(ProgressBar::new(total), template);
    for (owner, storage) in &shards {
        if !store.ready {
            if data_dir.join(shard_directory(owner.shard)).exists()
                && let Some(error) = unexpected_data(storage, *owner).await?
            {
                report.add_error(error);
            }
            report.notes.push(format!("{}: its creation did not finish", shard_directory(owner.shard)));
            continue;
        }
        report.add(check_shard(storage, *owner, &store.slots, |bytes| bar.inc(bytes)).await);
    }
    bar.finish_and_clear();
    Ok(report)
}
