//! `ringkeep check DATA`: reads every byte of a store that no server has open, and reports what is damaged.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;

use super::{counted, styled};
use crate::check::{Report, bytes_to_read, check_shard};
use crate::data_dir::{DataDir, open_storage};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::{FileName, shard_directory};
use crate::identity::Owner;
use crate::key::ShardId;
use crate::presence::unexpected_data;
use crate::ring;
use crate::storage::device::Device;
use crate::storage::{Storage, list_files};

/// Arguments of `ringkeep check`.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The data directory
    #[arg(value_name = "DATA")]
    data_dir: PathBuf,
}

impl Check {
    pub(super) fn run(self) -> Result<()> {
        let (_, runtime) = ring::probe()?;
        let data_dir = DataDir::open_to_read(&self.data_dir)?;
        let report = runtime.block_on(check(&data_dir))?;
        let mut output = std::io::stdout().lock();
        // A closed standard output does not change the exit status.
        let _ = print(&mut output, &self.data_dir, &report);
        let shown = self.data_dir.display();
        match (report.damage.len() as u64, report.later.first(), report.unread.len() as u64) {
            (0, None, 0) => Ok(()),
            (0, None, count) => {
                let parts = counted(count, "part");
                let message =
                    format!("{parts} of {shown} could not be read; everything that could be read is sound");
                Err(Error::new(ErrorKind::Io, message))
            }
            (0, Some(later), _) => Err(later.clone()),
            (count, _, _) => {
                let places = counted(count, "place");
                let message = format!(
                    "{shown} is damaged in {places}, listed on standard output; put back what was moved, or restore a backup. \
                     Of sorted files alone, `ringkeep repair` can give up what is lost: --dry-run says what that would be"
                );
                Err(Error::new(ErrorKind::Corruption, message))
            }
        }
    }
}

fn print(output: &mut impl Write, data_dir: &Path, report: &Report) -> std::io::Result<()> {
    for end in &report.log_ends {
        writeln!(output, "log: {end}")?;
    }
    for note in &report.notes {
        writeln!(output, "note: {note}")?;
    }
    for (what, errors) in
        [("damage", &report.damage), ("later version", &report.later), ("unread", &report.unread)]
    {
        for error in errors {
            writeln!(output, "{what}: {error}")?;
        }
    }
    let verdict = match (report.damage.is_empty(), report.later.is_empty(), report.unread.is_empty()) {
        (false, _, _) => "damaged",
        (true, false, _) => "of a later version",
        (true, true, false) => "not read in full",
        (true, true, true) => "sound",
    };
    writeln!(
        output,
        "{}: {verdict}; {}, {}, {}, {} damaged, {} unread",
        data_dir.display(),
        counted(report.files, "file"),
        counted(report.entries, "entry"),
        counted(report.notes.len() as u64, "note"),
        report.damage.len(),
        report.unread.len()
    )?;
    output.flush()
}

async fn check(data_dir: &DataDir) -> Result<Report> {
    let device = Device::for_reading(data_dir.directory())
        .map_err(|error| Error::io(format!("read {}", data_dir.directory().path().display()), error))?;
    let root = data_dir.storage(device)?;
    let Some(store) = data_dir.load_store(&root).await? else {
        let path = data_dir.directory().path().display();
        let message = format!("{path} holds no store: there is no {}", FileName::Store);
        return Err(Error::new(ErrorKind::Configuration, message));
    };
    let mut report = Report { files: 1, ..Report::default() };
    if root.list().is_ok_and(|files| files.iter().any(|(name, _)| *name == FileName::StoreTemporary)) {
        report
            .notes
            .push(format!("{}: nothing names it; it is replaced when needed", FileName::StoreTemporary));
    }
    let mut shards = Vec::new();
    for shard in (0..store.shards).map(ShardId) {
        let owner = Owner { store_id: store.id, shard };
        if !store.ready {
            let name = shard_directory(shard);
            report.notes.push(format!("{name}: the creation of this shard did not finish"));
            if !data_dir.has_shard(shard)? {
                continue;
            }
        }
        match data_dir.shard(shard) {
            Ok(directory) => shards.push((owner, open_storage(&directory, device, false)?)),
            Err(error) => report.add_error(error),
        }
    }
    let total = shards
        .iter()
        .filter_map(|(_, storage)| list_files(storage).ok())
        .map(|files| bytes_to_read(&files))
        .sum();
    let template = "{bar:40} {bytes} of {total_bytes} ({bytes_per_sec}, {eta} left)";
    let bar = styled(ProgressBar::new(total), template);
    for (owner, storage) in &shards {
        if !store.ready {
            if let Some(error) = unexpected_data(storage, *owner).await? {
                report.add_error(error);
            }
            continue;
        }
        report.add(check_shard(storage, *owner, &store.slots, |bytes| bar.inc(bytes)).await);
    }
    bar.finish_and_clear();
    Ok(report)
}
