//! `ringkeep inspect DATA`: shows what a store consists of, also if it does not start.

mod json;
mod text;

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::values::number;
use crate::config::{KEY_BYTES_MAX, SHARDS_MAX};
use crate::data_dir::DataDir;
use crate::error::{Error, ErrorKind, Result};
use crate::escape::{from_hexadecimal, unescaped};
use crate::file_name::{FileName, parse_shard_directory};
use crate::inspect::{History, Inspection, Shard, SstReport, SstSurvey, WalReport};
use crate::key::ShardId;
use crate::ring;
use crate::storage::uring::UringStorage;

/// Arguments of `ringkeep inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ringkeep inspect /var/lib/ringkeep\n  \
                        ringkeep inspect /var/lib/ringkeep --key user%00one\n  \
                        ringkeep inspect /var/lib/ringkeep --file shard-000/000009.sst --blocks\n  \
                        ringkeep inspect /var/lib/ringkeep --json | jq '.shards[].levels'")]
pub(super) struct Inspect {
    /// The data directory
    #[arg(value_name = "DATA")]
    data_dir: PathBuf,
    /// Only this shard
    #[arg(long, value_name = "N", value_parser = number::<u16>(0..=u64::from(SHARDS_MAX) - 1))]
    shard: Option<u16>,
    /// Only this log or sorted file, the latter read in full; for example 000009.sst or shard-000/000009.sst
    #[arg(long, value_name = "NAME", value_parser = file, conflicts_with = "key")]
    file: Option<(Option<ShardId>, FileName)>,
    /// Every version of this key in any log or sorted file; %00 stands for a byte, and %25 for a percent sign
    #[arg(long, value_name = "KEY", value_parser = Key::escaped, group = "a_key")]
    key: Option<Key>,
    /// The same, with the key in hexadecimal digits
    #[arg(long, value_name = "DIGITS", value_parser = Key::hexadecimal, group = "a_key", conflicts_with = "file")]
    key_hex: Option<Key>,
    /// List every commit group of the logs
    #[arg(long, conflicts_with = "a_key")]
    groups: bool,
    /// List every block of the sorted file
    #[arg(long, requires = "file")]
    blocks: bool,
    /// One JSON object, for programs
    #[arg(long)]
    json: bool,
}

/// The bytes of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key(Vec<u8>);

impl Key {
    fn escaped(text: &str) -> std::result::Result<Self, String> {
        unescaped(text).and_then(Self::new)
    }

    fn hexadecimal(text: &str) -> std::result::Result<Self, String> {
        let bytes = from_hexadecimal(text).ok_or("expected two hexadecimal digits for each byte")?;
        Self::new(bytes)
    }

    fn new(bytes: Vec<u8>) -> std::result::Result<Self, String> {
        if bytes.is_empty() || KEY_BYTES_MAX < bytes.len() {
            return Err(format!("a key has 1 to {KEY_BYTES_MAX} bytes"));
        }
        Ok(Self(bytes))
    }
}

/// Reads the name of a log or a sorted file, with the directory of its shard or without.
fn file(text: &str) -> std::result::Result<(Option<ShardId>, FileName), String> {
    let (shard, name) = match text.rsplit_once('/') {
        Some((directory, name)) => (parse_shard_directory(directory).map(Some), name),
        None => (Some(None), text),
    };
    match (shard, FileName::parse(name)) {
        (Some(shard), Some(name @ (FileName::Wal(_) | FileName::Sst(_)))) => Ok((shard, name)),
        _ => {
            Err("expected the name of a log or a sorted file, such as 000007.wal or shard-000/000009.sst"
                .into())
        }
    }
}

/// What was asked for, of one shard.
enum Part {
    Whole { wals: Vec<WalReport>, ssts: Vec<SstReport> },
    History(History),
    Wal(WalReport),
    Sst(SstSurvey),
}

/// A shard, and what was asked for.
struct ShardView<'a> {
    shard: ShardId,
    read: &'a Result<Shard<UringStorage>>,
    /// If the shard can be read, and the question is about it.
    part: Option<Part>,
}

/// What is shown.
struct View<'a> {
    data_dir: String,
    inspection: &'a Inspection,
    shards: Vec<ShardView<'a>>,
    /// The key that was asked for.
    key: Option<&'a [u8]>,
    groups: bool,
    blocks: bool,
}

impl Inspect {
    pub(super) fn run(self) -> Result<()> {
        let (_, runtime) = ring::probe()?;
        let data_dir = DataDir::open_to_read(&self.data_dir)?;
        let view_error = runtime.block_on(async {
            let of_file = self.file.and_then(|(shard, _)| shard);
            let inspection = Inspection::of(&data_dir, self.shard.map(ShardId).or(of_file)).await?;
            let view = self.view(&inspection).await?;
            let text = if self.json { json::render(&view) } else { text::render(&view) };
            // A closed standard output does not change the exit status.
            let mut output = std::io::stdout().lock();
            let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
            Ok(view.verdict())
        })?;
        match view_error {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    async fn view<'a>(&'a self, inspection: &'a Inspection) -> Result<View<'a>> {
        let key = self.key.as_ref().or(self.key_hex.as_ref()).map(|key| &*key.0);
        let mut shards = Vec::new();
        for (shard, read) in &inspection.shards {
            let part = match (read, key, self.file) {
                (Err(_), ..) => None,
                (Ok(_), Some(key), _) if !inspection.may_hold(*shard, key) => None,
                (Ok(found), Some(key), _) => Some(Part::History(found.history(key).await)),
                (Ok(found), None, Some((_, name))) => one_file(found, name).await?,
                (Ok(found), None, None) => {
                    Some(Part::Whole { wals: found.wals().await, ssts: found.ssts().await })
                }
            };
            shards.push(ShardView { shard: *shard, read, part });
        }
        let data_dir = self.data_dir.display().to_string();
        if let Some((_, name)) = self.file {
            shards.retain(|shard| shard.part.is_some());
            let message = match shards.len() {
                0 => Some(format!("{data_dir} has no {name}")),
                1 => None,
                count => Some(format!(
                    "{count} shards of {data_dir} have a {name}: give its shard, as in shard-000/{name}"
                )),
            };
            if let Some(message) = message {
                return Err(Error::new(ErrorKind::Configuration, message));
            }
        }
        let (groups, blocks) = (self.groups, self.blocks);
        Ok(View { data_dir, inspection, shards, key, groups, blocks })
    }
}

/// A log or a sorted file; `None` if the shard has no such file.
async fn one_file(shard: &Shard<UringStorage>, name: FileName) -> Result<Option<Part>> {
    match name {
        FileName::Sst(number) => Ok(shard.survey(number).await?.map(Part::Sst)),
        FileName::Wal(number) => {
            let wals = shard.wals().await;
            Ok(wals.into_iter().find(|wal| wal.number == number).map(Part::Wal))
        }
        _ => Ok(None),
    }
}

impl Part {
    /// What is wrong with what is shown.
    fn errors(&self) -> Vec<&Error> {
        match self {
            Self::Whole { wals, ssts } => {
                let wals = wals.iter().flat_map(WalReport::damage);
                wals.chain(ssts.iter().filter_map(SstReport::damage)).collect()
            }
            Self::History(history) => history.errors.iter().collect(),
            Self::Wal(wal) => wal.errors().collect(),
            Self::Sst(survey) => {
                let blocks = survey.blocks.iter().filter_map(|block| block.as_ref().err());
                survey.report.error.iter().chain(blocks).collect()
            }
        }
    }
}

impl View<'_> {
    /// Everything that is wrong, each error once.
    fn errors(&self) -> Vec<&Error> {
        let parts = self.shards.iter().filter_map(|shard| shard.part.as_ref()).flat_map(Part::errors);
        let mut errors: Vec<&Error> = Vec::new();
        for error in self.inspection.errors().chain(parts) {
            if errors.iter().all(|other| other.to_string() != error.to_string()) {
                errors.push(error);
            }
        }
        errors
    }

    /// The damage that is in quarantine: known, served around, and not repaired.
    fn quarantined(&self) -> usize {
        let shards = self.inspection.shards.iter().filter_map(|(_, shard)| shard.as_ref().ok());
        shards.map(|shard| shard.state.version.damage().len()).sum()
    }

    /// Why the exit status is not 0, if it is not.
    fn verdict(&self) -> Option<Error> {
        let errors = self.errors();
        let count = |kind| errors.iter().filter(|error| error.kind() == kind).count();
        let (damaged, shown) = (count(ErrorKind::Corruption) + self.quarantined(), &self.data_dir);
        if 0 < damaged {
            let places = super::counted(damaged as u64, "place");
            let message = format!(
                "{shown} is damaged in {places}, shown where they belong; `ringkeep check` reads every byte"
            );
            return Some(Error::new(ErrorKind::Corruption, message));
        }
        if let Some(later) = errors.iter().find(|error| error.kind() == ErrorKind::Configuration) {
            return Some(Error::clone(later));
        }
        (!errors.is_empty()).then(|| {
            let parts = super::counted(errors.len() as u64, "part");
            Error::new(ErrorKind::Io, format!("{parts} of {shown} could not be read"))
        })
    }
}
