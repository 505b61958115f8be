//! `ringkeep dump DIR`: the keys and values of a store as lines of JSON.

use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;

use super::entry::{Entry, put_line};
use super::styled;
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

/// Arguments of `ringkeep dump`.
#[derive(Debug, Args)]
pub(super) struct Dump {
    /// The store: a backup, or a data directory that no server has open
    #[arg(value_name = "DIR")]
    data_dir: PathBuf,
    /// Where the lines go; - for standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Go on after the last complete line of FILE
    #[arg(long, requires = "output")]
    resume: bool,
    /// Write at most this many lines in a second
    #[arg(long, value_name = "N")]
    rate: Option<u64>,
}

type Output = Box<dyn Write>;

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

impl Dump {
    pub(super) fn run(self) -> Result<()> {
        let (_, runtime) = ring::probe()?;
        let data_dir = DataDir::open_to_read(&self.data_dir)?;
        let failed = |error| Error::io(format!("write {}", self.output.display()), error);
        let (mut output, after) = self.open().map_err(failed)?;
        let lines = runtime.block_on(async {
            let (_, shards) = shards(&data_dir).await?;
            let bytes = shards.iter().map(AtRest::bytes).sum();
            let bar = styled(ProgressBar::new(bytes), "{bar:40} {bytes} of {total_bytes} ({bytes_per_sec})");
            let now = wall_clock();
            let mut all = Merge::new(shards.iter().map(|shard| shard.scan(now)).collect());
            if let Some(after) = &after {
                all.seek(&[after, &[0][..]].concat()); // the first key above it
            }
            let (mut lines, mut pace, mut line) = (0_u64, Pace::new(self.rate), String::new());
            while all.advance().await? {
                line.clear();
                all.read(|entry| {
                    put_line(&mut line, entry.key, entry.value, entry.kind.expires.map(|at| at.0));
                });
                output.write_all(line.as_bytes()).map_err(failed)?;
                lines += 1;
                bar.inc(line.len() as u64);
                pace.spend(1);
            }
            bar.finish_and_clear();
            Ok::<_, Error>(lines)
        })?;
        output.flush().map_err(failed)?;
        tracing::info!(lines, "dumped {}", self.data_dir.display());
        Ok(())
    }

    /// The output, and the key after which it goes on.
    fn open(&self) -> std::io::Result<(Output, Option<Vec<u8>>)> {
        if self.output == Path::new("-") {
            return Ok((Box::new(BufWriter::new(std::io::stdout())), None));
        }
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(!self.resume)
            .open(&self.output)?;
        let (mut end, mut last, mut line) = (0, None, Vec::new());
        let mut reader = BufReader::new(&file);
        while 0 < reader.read_until(b'\n', &mut line)? {
            let text = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
            // A line that was cut is written again.
            let Some(entry) = text.and_then(|text| Entry::parse(text).ok()) else { break };
            end += line.len() as u64;
            last = Some(entry.key);
            line.clear();
        }
        file.set_len(end)?;
        file.seek(SeekFrom::End(0))?;
        Ok((Box::new(BufWriter::new(file)), last))
    }
}
