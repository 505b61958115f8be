//! `ringkeep dump DIR`: the keys and values of a store as lines of JSON.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;

use super::entry::{Entry, put_line};
use super::values::number;
use super::{beside, misused, styled};
use crate::backup::pace::Pace;
use crate::data_dir::{DataDir, open_storage};
use crate::db::at_rest::{AtRest, damaged};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Owner;
use crate::key::ShardId;
use crate::ring;
use crate::shard::handler::wall_clock;
use crate::source::Source;
use crate::source::merge::Merge;
use crate::storage::device::Device;
use crate::storage::uring::UringStorage;
use crate::store::Store;

/// The ending of the file beside an unfinished dump that says of which state it is.
const STATE: &str = ".state";

/// Arguments of `ringkeep dump`.
#[derive(Debug, Args)]
pub(super) struct Dump {
    /// The store: a backup, or a data directory that no server has open
    #[arg(value_name = "DIR")]
    data_dir: PathBuf,
    /// Where the lines go, by way of FILE.part; - for standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Go on after the last complete line of FILE.part, which an interrupted dump has left; the store must be as it was
    #[arg(long, requires = "output")]
    resume: bool,
    /// Write at most this many lines in a second
    #[arg(long, value_name = "N", value_parser = number::<u64>(1..=u64::MAX))]
    rate: Option<u64>,
}

/// Opens every shard of a store that nobody serves.
pub(super) async fn shards(data_dir: &DataDir) -> Result<(Store, Vec<AtRest<UringStorage>>)> {
    let shown = data_dir.directory().path().display();
    let device = Device::for_reading(data_dir.directory())
        .map_err(|error| Error::io(format!("read {shown}"), error))?;
    let root = data_dir.storage(device)?;
    let Some(store) = data_dir.load_store(&root).await?.filter(|store| store.ready) else {
        return Err(Error::new(ErrorKind::Configuration, format!("{shown} holds no complete store")));
    };
    let mut shards = Vec::new();
    for shard in (0..store.shards).map(ShardId) {
        let storage = open_storage(&data_dir.shard(shard)?, device, false)?;
        let opened = AtRest::open(storage, Owner { store_id: store.id, shard }).await?;
        if opened.is_damaged() {
            return Err(damaged(&shown.to_string()));
        }
        shards.push(opened);
    }
    Ok((store, shards))
}

/// Says what can be done about a block that does not verify.
fn advise(error: Error) -> Error {
    if error.kind() != ErrorKind::Corruption {
        return error;
    }
    let message = format!(
        "{error}; for a dump of everything else, run `ringkeep repair` on the store first, or restore the backup with \
         --damaged and repair that"
    );
    Error::new(ErrorKind::Corruption, message)
}

/// The store, and how far its shards have come: what lines of one dump must have in common.
fn state_of(store: &Store, shards: &[AtRest<UringStorage>]) -> String {
    let seqnos: Vec<u64> = shards.iter().map(|shard| shard.last().0).collect();
    serde_json::json!({ "store": format!("{:016x}", store.id), "seqnos": seqnos }).to_string()
}

impl Dump {
    pub(super) fn run(self) -> Result<()> {
        if self.resume && self.is_stream() {
            misused("--resume needs a file, and the output is none");
        }
        let (_, runtime) = ring::probe()?;
        let data_dir = DataDir::open_to_read(&self.data_dir)?;
        let lines = runtime.block_on(async {
            let (store, shards) = shards(&data_dir).await?; // before an output is touched
            let mut all = Merge::new(shards.iter().map(|shard| shard.scan(wall_clock())).collect());
            if let Some(stream) = self.stream()? {
                let mut output = BufWriter::new(stream);
                let lines = self.write(&mut all, &shards, &mut output).await?;
                let flushed = output.flush();
                flushed.map_err(|error| Error::io(format!("write {}", self.output.display()), error))?;
                return Ok(lines);
            }
            let part = self.part();
            let failed = |error| Error::io(format!("write {}", part.display()), error);
            let (file, there) = self.open(&part, &state_of(&store, &shards), &mut all).await?;
            let mut output = BufWriter::new(file);
            let lines = there + self.write(&mut all, &shards, &mut output).await?;
            output.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
            std::fs::rename(&part, &self.output).map_err(|error| {
                Error::io(format!("rename {} to {}", part.display(), self.output.display()), error)
            })?;
            let _ = std::fs::remove_file(beside(&part, STATE)); // the next dump replaces it
            Ok::<_, Error>(lines)
        })?;
        tracing::info!(lines, "dumped {}", self.data_dir.display());
        Ok(())
    }

    /// Whether the output is standard output, or what is at its place is no file: a pipe or a device. Such a thing is written
    /// to, and never replaced.
    fn is_stream(&self) -> bool {
        self.output == Path::new("-") || std::fs::metadata(&self.output).is_ok_and(|found| !found.is_file())
    }

    fn stream(&self) -> Result<Option<Box<dyn Write>>> {
        if self.output == Path::new("-") {
            return Ok(Some(Box::new(std::io::stdout())));
        }
        if self.is_stream() {
            let opened = OpenOptions::new().write(true).open(&self.output);
            let opened =
                opened.map_err(|error| Error::io(format!("write {}", self.output.display()), error))?;
            return Ok(Some(Box::new(opened)));
        }
        Ok(None)
    }

    /// Where lines go until all of them are written: an older dump stays until then.
    fn part(&self) -> PathBuf {
        beside(&self.output, ".part")
    }

    /// Writes the values that `all` still has to come to. Returns how many there are.
    async fn write(
        &self,
        all: &mut impl Source,
        shards: &[AtRest<UringStorage>],
        output: &mut impl Write,
    ) -> Result<u64> {
        let bytes = shards.iter().map(AtRest::bytes).sum();
        let bar = styled(ProgressBar::new(bytes), "{bar:40} {bytes} of {total_bytes} ({bytes_per_sec})");
        let (mut lines, mut pace, mut line) = (0_u64, Pace::new(self.rate), String::new());
        while all.advance().await.map_err(advise)? {
            line.clear();
            all.read(|entry| put_line(&mut line, entry.key, entry.value, entry.kind.expires.map(|at| at.0)));
            let written = output.write_all(line.as_bytes());
            written.map_err(|error| Error::io(format!("write {}", self.output.display()), error))?;
            lines += 1;
            bar.inc(line.len() as u64);
            pace.spend(1);
        }
        bar.finish_and_clear();
        Ok(lines)
    }

    /// Opens the file of the lines, which only its owner may read. With `--resume`, moves `all` behind its last line, and
    /// returns how many lines there are: they must be of the same state of the store.
    async fn open(&self, part: &Path, state: &str, all: &mut impl Source) -> Result<(File, u64)> {
        let failed = |error| Error::io(format!("write {}", part.display()), error);
        let state_path = beside(part, STATE);
        if self.resume && part.exists() {
            if std::fs::read_to_string(&state_path).ok().as_deref() != Some(state) {
                let message =
                    format!("{} is not of this store as it is now: remove the file", part.display());
                return Err(Error::new(ErrorKind::Configuration, message));
            }
        } else {
            std::fs::write(&state_path, state)
                .map_err(|error| Error::io(format!("write {}", state_path.display()), error))?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(!self.resume).mode(0o600);
        let mut file = options.open(part).map_err(failed)?;
        let (mut end, mut count, mut last, mut line) = (0, 0, Vec::new(), Vec::new());
        let mut reader = BufReader::new(&file);
        // A last line that was cut is written again.
        while 0 < reader.read_until(b'\n', &mut line).map_err(failed)? && line.ends_with(b"\n") {
            end += line.len() as u64;
            count += 1;
            last.clone_from(&line);
            line.clear();
        }
        if !last.is_empty() {
            let text = std::str::from_utf8(&last).unwrap_or_default();
            let mut ours = String::new();
            if let Ok(entry) = Entry::parse(text) {
                all.seek(&entry.key);
                if all.advance().await? {
                    all.read(|found| {
                        put_line(&mut ours, found.key, found.value, found.kind.expires.map(|at| at.0));
                    });
                }
            }
            if ours != text {
                let message =
                    format!("the last line of {} is not one of this store: remove the file", part.display());
                return Err(Error::new(ErrorKind::Configuration, message));
            }
        }
        file.set_len(end).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok((file, count))
    }
}
