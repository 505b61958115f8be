//! `ringkeep backup DIR` and `ringkeep restore BACKUP DIR`: a copy of a running store, and the way back.

use std::future::poll_fn;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::owner::own_like;
use super::values::size;
use super::{counted, remote, styled};
use crate::backup::archive::{Writer, unpack};
use crate::backup::folder::Folder;
use crate::backup::{Contents, Done, Options, Purpose, Source, Target};
use crate::client::{Body, Client, Patience, Request};
use crate::config::BLOCK_BYTES;
use crate::data_dir::DataDir;
use crate::error::{Error, ErrorKind, Result};
use crate::escape::from_hexadecimal;
use crate::file_name::{FileName, shard_directory};
use crate::host::{end_by, is_ignored, random_number};
use crate::key::ShardId;
use crate::manifest::{State, VersionEdit};
use crate::ring;
use crate::storage::directory::Directory;
use crate::store::Store;

/// The flush before a backup may take this long, and so may a part of a file.
const PATIENCE: Duration = Duration::from_secs(150);
/// The longest list of files.
const LIST_BYTES_MAX: u64 = 4 << 30;
const TEMPLATE: &str = "{bar:40} {bytes} of {total_bytes} ({bytes_per_sec}, {eta} left)";

/// Arguments of `ringkeep backup`.
#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The directory of the backup, which is created if it does not exist; - for standard output
    #[arg(value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    server: remote::Server,
    /// Copy files even where a hard link is possible: the copy then has bytes of its own
    #[arg(long)]
    copy: bool,
    /// Copy at most this much in a second, as in 50MiB
    #[arg(long, value_name = "SIZE", value_parser = size(1..=usize::MAX))]
    rate: Option<ByteSize>,
    /// Take files that do not verify as they are; after a restore, repair gives up what is lost
    #[arg(long)]
    damaged: bool,
}

/// Arguments of `ringkeep restore`.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The directory of the backup; - for an archive on standard input
    #[arg(value_name = "BACKUP")]
    from: PathBuf,
    /// The new data directory: one that does not exist, or is empty
    #[arg(value_name = "DIR")]
    to: PathBuf,
    /// Take files that do not verify as they are; run repair on DIR afterwards, before a server
    #[arg(long)]
    damaged: bool,
}

impl Backup {
    pub(super) fn run(self) -> Result<()> {
        let (_, runtime) = ring::probe()?;
        let client = self.server.client(Patience::PerStep(PATIENCE))?;
        let options = Options {
            copy: self.copy || is_stream(&self.to),
            rate: self.rate.map(|rate| rate.as_u64()),
            damaged: self.damaged,
            in_place: false,
        };
        if is_stream(&self.to) {
            return runtime.block_on(to_archive(client, options));
        }
        let mut source = RemoteStore::open(client)?;
        let data_dir = DataDir::open_or_create(&self.to)?;
        runtime.block_on(async {
            let contents = source.contents.clone();
            source.check_apart(&data_dir)?;
            let target = Target::open(&data_dir, Purpose::Backup, Some(&contents.store)).await?;
            let bar = styled(ProgressBar::new(contents.bytes()), TEMPLATE);
            let progress = |bytes| bar.inc(bytes);
            let after = async |_: &Directory, _, _| Ok(());
            let done = target.fill(&contents, &mut source, options, progress, after).await;
            bar.finish_and_clear();
            let done = done?;
            report("backup", &self.to, &contents, &done, "were there");
            check_damages(&contents, &done)
        })
    }
}

impl Restore {
    pub(super) fn run(self) -> Result<()> {
        let (_, runtime) = ring::probe()?;
        runtime.block_on(async {
            if is_stream(&self.from) {
                let to = DataDir::open_or_create(&self.to)?;
                let target = Target::open(&to, Purpose::Restore, None).await?;
                let bar = styled(ProgressBar::no_length(), "{spinner} {bytes} ({bytes_per_sec})");
                let unpacked = unpack(std::io::stdin().lock(), &to, |bytes| bar.inc(bytes));
                bar.finish_and_clear();
                unpacked?;
                return self.fill(target, &mut Folder(&to), true).await;
            }
            if self.from.is_file() {
                let (from, to) = (self.from.display(), self.to.display());
                let message =
                    format!("{from} is a file: restore an archive by `ringkeep restore - {to} < {from}`");
                return Err(Error::new(ErrorKind::Configuration, message));
            }
            let from = DataDir::open(&self.from)?;
            let mut source = Folder(&from);
            let contents = source.contents().await?;
            let to = DataDir::open_or_create(&self.to)?;
            let target = Target::open(&to, Purpose::Restore, Some(&contents.store)).await?;
            self.fill(target, &mut source, false).await
        })
    }

    async fn fill(&self, target: Target<'_>, source: &mut Folder<'_>, in_place: bool) -> Result<()> {
        let contents = source.contents().await?;
        let bar = styled(ProgressBar::new(contents.bytes()), TEMPLATE);
        let options = Options { copy: true, rate: None, damaged: self.damaged, in_place };
        let after = async |_: &Directory, _, _| Ok(());
        let done = target.fill(&contents, source, options, |bytes| bar.inc(bytes), after).await;
        bar.finish_and_clear();
        let done = done?;
        own_like(&self.to, target.directory())?;
        target.release().await?;
        let kept_why = if in_place { "unpacked" } else { "were there" };
        report("data directory", &self.to, &contents, &done, kept_why);
        check_damages(&contents, &done)
    }
}

fn is_stream(path: &Path) -> bool {
    path == Path::new("-")
}

/// A closed standard output does not change the exit status.
fn report(what: &str, path: &Path, contents: &Contents, done: &Done, kept_why: &str) {
    let Done { linked, copied, kept, copied_bytes, bytes, .. } = *done;
    let shards = counted(contents.shards.len() as u64, "shard");
    let files = counted(linked + copied + kept, "file");
    let _ = writeln!(
        std::io::stdout(),
        "{}: {what} of store {:016x}, {shards}, {} in {files}: {copied} copied ({}), {linked} linked, {kept} {kept_why}",
        path.display(),
        contents.store.id,
        ByteSize(bytes),
        ByteSize(copied_bytes),
    );
}

/// Says what damage the copy has, if it has any: what its source had in quarantine, and what `--damaged` has let pass.
fn check_damages(contents: &Contents, done: &Done) -> Result<()> {
    let why = match (contents.damages() as u64, done.damaged) {
        (0, 0) => return Ok(()),
        (lost, 0) => format!("{} had lost entries before, there as here", counted(lost, "file")),
        (0, damaged) => format!("{} of the source did not verify", counted(damaged, "file")),
        (lost, damaged) => {
            let lost = counted(lost, "file");
            format!(
                "{lost} had lost entries before, there as here, and {damaged} more of the source did not verify"
            )
        }
    };
    let message = format!(
        "the copy is complete, but {why}: reads of some of its keys fail; `ringkeep check` lists them, and `ringkeep repair` \
         gives them up in a data directory"
    );
    Err(Error::new(ErrorKind::Corruption, message))
}

/// Writes a backup to standard output. Each file is fetched to a directory of its own first, and verified there.
async fn to_archive(client: Client, options: Options) -> Result<()> {
    if std::io::stdout().is_terminal() {
        let message = "standard output is a terminal: redirect it, as in `ringkeep backup - > backup.tar`";
        return Err(Error::new(ErrorKind::Configuration, message));
    }
    let mut source = RemoteStore::open(client)?;
    let contents = source.contents.clone();
    let spool = Spool::new()?;
    let data_dir = DataDir::open(&spool.0)?;
    let target = Target::open(&data_dir, Purpose::Backup, None).await?;
    let mut archive = Writer::new(std::io::stdout().lock());
    archive.append(data_dir.directory(), None, FileName::Backup)?;
    let bar = styled(ProgressBar::new(contents.bytes()), TEMPLATE);
    let after = async |directory: &Directory, shard: ShardId, name: FileName| {
        archive.append(directory, Some(shard), name)?;
        let removed = directory.remove_file(&name.to_string());
        removed.map_err(|error| Error::io(format!("remove {}/{name}", shard_directory(shard)), error))
    };
    let done = target.fill(&contents, &mut source, options, |bytes| bar.inc(bytes), after).await;
    bar.finish_and_clear();
    let done = done?;
    archive.append(data_dir.directory(), None, FileName::Store)?;
    archive.finish()?;
    check_damages(&contents, &done)
}

/// A directory for one file at a time, which is removed at the end, and before a signal ends the process.
struct Spool(PathBuf);

impl Spool {
    fn new() -> Result<Self> {
        let number = random_number().map_err(|error| Error::io("choose a name", error))?;
        let path = std::env::temp_dir().join(format!("ringkeep-backup-{number:016x}"));
        remove_at_signals(path.clone())?;
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Error::io(format!("create {} (see TMPDIR)", path.display()), error))?;
        Ok(Self(path))
    }
}

/// Removes a directory when a signal asks for the end of the process, then ends it. The thread that does so is there when
/// this function returns. It needs a runtime of its own, because the backup blocks that of its thread.
fn remove_at_signals(path: PathBuf) -> Result<()> {
    let failed = |error| Error::io("listen for signals", error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let (tell, told) = std::sync::mpsc::channel();
    let watch = async move {
        let listen = |kind: SignalKind| Ok((kind, signal(kind)?));
        // A signal that is ignored stays so: nohup counts on it.
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let kinds = kinds.into_iter().filter(|kind| !is_ignored(kind.as_raw_value()));
        let mut signals = match kinds.map(listen).collect::<std::io::Result<Vec<_>>>() {
            Ok(signals) => signals,
            Err(error) => return drop(tell.send(Err(error))),
        };
        drop(tell.send(Ok(()))); // the receiver waits
        let kind = poll_fn(|context| {
            let mut signals = signals.iter_mut();
            let came =
                signals.find_map(|(kind, signal)| signal.poll_recv(context).is_ready().then_some(*kind));
            came.map_or(Poll::Pending, Poll::Ready)
        });
        let kind = kind.await;
        // The backup may make another file meanwhile.
        let is_full = |error: std::io::Error| error.kind() == std::io::ErrorKind::DirectoryNotEmpty;
        while std::fs::remove_dir_all(&path).is_err_and(is_full) {}
        end_by(kind.as_raw_value());
    };
    let thread = std::thread::Builder::new().name("ringkeep-signals".into());
    thread.spawn(move || runtime.block_on(watch)).map_err(failed)?;
    told.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into())).map_err(failed)
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "cannot remove {}", self.0.display());
        }
    }
}

/// The store of a running server, which lends its files for as long as the connection of the list lasts.
struct RemoteStore {
    client: Client,
    /// The number of the backup.
    backup: u64,
    contents: Contents,
    /// The data directory, if this process can reach it.
    data_dir: Option<Directory>,
    /// The server has ended the loan.
    is_over: Arc<AtomicBool>,
}

impl RemoteStore {
    fn open(client: Client) -> Result<Self> {
        let reply = client.send(Request::get("/backup"))?.expect(&[200])?;
        let mut lines = BufReader::new(reply.into_body());
        let first = next_line(&mut lines, &client)?;
        let store = bytes_of(&first["store"]).ok_or_else(|| strange(&client))?;
        let store = Store::of_payload(&store, &format!("the store of {}", client.url()))?;
        let backup = first["backup"].as_u64().ok_or_else(|| strange(&client))?;
        let mut shards = Vec::new();
        loop {
            let line = next_line(&mut lines, &client)?;
            if line["lent"] == Value::Bool(true) {
                break;
            }
            let edit = bytes_of(&line["state"]).and_then(|bytes| VersionEdit::decode(&bytes).ok());
            let state = edit.and_then(|edit| State::default().apply(&edit).ok());
            if line["shard"].as_u64() != Some(shards.len() as u64) {
                return Err(strange(&client));
            }
            shards.push(state.ok_or_else(|| strange(&client))?);
        }
        if shards.len() != usize::from(store.shards) {
            return Err(strange(&client));
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        // Blank lines follow, by which the server notices whether this client is still there.
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while matches!(lines.read(&mut buffer), Ok(1..)) {}
            over.store(true, Ordering::Relaxed);
        });
        let data_dir = reachable(&first);
        Ok(Self { client, backup, contents: Contents { store, shards }, data_dir, is_over })
    }
}

impl RemoteStore {
    /// The request for a part of a file.
    fn part(&self, shard: ShardId, file: FileName, offset: u64, bytes: usize) -> String {
        let (backup, number) = (self.backup, file.number().unwrap_or_default().0);
        format!("/backup/part?backup={backup}&shard={}&file={number}&offset={offset}&bytes={bytes}", shard.0)
    }

    /// Refuses a backup inside the data directory, which would go with it.
    fn check_apart(&self, to: &DataDir) -> Result<()> {
        let Some(from) = &self.data_dir else { return Ok(()) };
        let (from, to) = (from.path().canonicalize(), to.directory().path().canonicalize());
        match (from, to) {
            (Ok(from), Ok(to)) if to.starts_with(&from) => {
                let message = format!("{} is inside the data directory: choose another place", to.display());
                Err(Error::new(ErrorKind::Configuration, message))
            }
            _ => Ok(()),
        }
    }
}

/// The data directory of the server, if its path leads to it here as well.
fn reachable(first: &Value) -> Option<Directory> {
    let directory = Directory::open(Path::new(first["data_dir"].as_str()?)).ok()?;
    let id = directory.id();
    (first["inode"] == Value::from(vec![id.device, id.number])).then_some(directory)
}

fn next_line(lines: &mut BufReader<Body>, client: &Client) -> Result<Value> {
    let mut line = Vec::new();
    let read = lines.by_ref().take(LIST_BYTES_MAX).read_until(b'\n', &mut line);
    read.map_err(|error| Error::io(format!("read the list of files of {}", client.url()), error))?;
    serde_json::from_slice(&line).map_err(|_| strange(client))
}

fn strange(client: &Client) -> Error {
    let message = format!("{} sends no list of files as this version of ringkeep knows it", client.url());
    Error::new(ErrorKind::Io, message)
}

/// The bytes that a value of the list has in hexadecimal digits.
fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    value.as_str().and_then(from_hexadecimal)
}

impl Source for RemoteStore {
    fn link(&mut self, shard: ShardId, file: FileName, to: &Directory) -> bool {
        let Some(data_dir) = &self.data_dir else { return false };
        let name = file.to_string();
        let linked =
            data_dir.child(&shard_directory(shard)).and_then(|from| from.link_file(&name, to, &name));
        if let Err(error) = &linked {
            tracing::debug!(%error, "files are fetched, because they cannot be linked");
            self.data_dir = None; // another file system, or no permission
        }
        linked.is_ok()
    }

    fn read(&mut self, shard: ShardId, file: FileName, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let target = self.part(shard, file, offset, bytes);
        if self.is_over.load(Ordering::Relaxed) {
            let message =
                format!("{} has ended the backup: run the command again to go on", self.client.url());
            return Err(Error::new(ErrorKind::Io, message));
        }
        self.client.send(Request::get(&target))?.expect(&[200])?.bytes(bytes as u64)
    }

    fn suspect(&mut self, shard: ShardId, file: FileName) {
        let target = self.part(shard, file, 0, BLOCK_BYTES) + "&suspect=1";
        if let Err(error) = self.client.send(Request::get(&target)).and_then(|reply| reply.expect(&[200])) {
            tracing::warn!(%error, "the server was not told of the damage");
        }
    }
}
