//! `ringkeep load FILE`: lines of JSON, or the strings of a Redis server, into a running server.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;

use super::entry::Entry;
use super::redis::{Found, Redis};
use super::values::{host_and_port, number};
use super::{beside, counted, misused, remote, styled};
use crate::backup::SEQNO_GAP;
use crate::backup::pace::Pace;
use crate::client::{Client, Patience, Request, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::escape::escaped;
use crate::shard::handler::wall_clock;

/// Requests of a connection that are on their way together.
const PIPELINED: usize = 64;
/// Bytes of the values that are on their way together.
const ROUND_BYTES: usize = 16 << 20;
/// Longest line: a value of 256 MiB in base64, or with escapes.
const LINE_BYTES_MAX: u64 = 2 << 30;
const PATIENCE: Duration = Duration::from_secs(60);
/// A server that is overloaded is asked again so many times, after a second each.
const TRIES: u32 = 60;

/// Arguments of `ringkeep load`.
#[derive(Debug, Args)]
pub(super) struct Load {
    /// Lines as `ringkeep dump` writes them; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    input: PathBuf,
    #[command(flatten)]
    server: remote::Server,
    /// Take the strings of a Redis server instead, and list the keys of other types
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port, conflicts_with_all = ["input", "resume"])]
    from_redis: Option<String>,
    /// Number of the database of Redis
    #[arg(long, value_name = "N", default_value = "0", value_parser = number::<u32>(0..=u64::from(u32::MAX)), requires = "from_redis", conflicts_with = "input")]
    redis_db: u32,
    /// File with the password of Redis
    #[arg(long, value_name = "FILE", requires = "from_redis", conflicts_with = "input")]
    redis_password_file: Option<PathBuf>,
    /// Keep the progress in FILE.progress, and go on from there; a line that was on its way is sent again
    #[arg(long, requires = "input")]
    resume: bool,
    /// Send at most this many entries in a second
    #[arg(long, value_name = "N", value_parser = number::<u64>(1..=u64::MAX))]
    rate: Option<u64>,
    /// Connections to the server
    #[arg(long, value_name = "N", default_value = "8", value_parser = number::<u16>(1..=256))]
    connections: u16,
}

/// What was loaded.
#[derive(Debug, Default)]
struct Total {
    loaded: u64,
    expired: u64,
    not_taken: u64,
    /// Lines that an earlier run has loaded.
    there: u64,
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::Io, message)
}

impl Load {
    pub(super) fn run(self) -> Result<()> {
        if self.resume && self.input == Path::new("-") {
            misused("--resume needs a file, and standard input is none");
        }
        let client = self.server.client(Patience::PerStep(PATIENCE))?;
        let sessions = (0..self.connections).map(|_| client.session()).collect::<Result<Vec<_>>>()?;
        let mut sender = Sender {
            client,
            lenient: self.from_redis.is_some(),
            sessions,
            pace: Pace::new(self.rate),
            total: Total::default(),
        };
        match &self.from_redis {
            Some(address) => self.take_redis(address, &mut sender)?,
            None => self.take_lines(&mut sender)?,
        }
        let Total { loaded, expired, not_taken, there } = sender.total;
        let from = if there == 0 { String::new() } else { format!(", from line {} on", there + 1) };
        let _ =
            writeln!(std::io::stdout(), "{loaded} loaded, {expired} expired, {not_taken} not taken{from}");
        if 0 < not_taken {
            let keys = counted(not_taken, "key");
            return Err(wrong(format!("{keys}, as listed above, could not be taken")));
        }
        Ok(())
    }

    fn take_redis(&self, address: &str, sender: &mut Sender) -> Result<()> {
        let password = match &self.redis_password_file {
            None => None,
            Some(path) => {
                let read = std::fs::read_to_string(path);
                Some(read.map_err(|error| Error::io(format!("read {}", path.display()), error))?)
            }
        };
        let password = password.as_deref().map(str::trim);
        let mut redis = Redis::connect(address, password, self.redis_db, || wall_clock().0).map_err(wrong)?;
        let bar = styled(ProgressBar::no_length(), "{spinner} {pos} entries ({per_sec})");
        while let Some(page) = redis.next().map_err(wrong)? {
            let mut round = Vec::new();
            for found in page {
                match found {
                    Found::String(entry) => {
                        round.push((String::from_utf8_lossy(&entry.key).into_owned(), entry))
                    }
                    Found::Other(key, kind) => {
                        bar.suspend(|| {
                            eprintln!("not taken: {:?} is a {kind}", String::from_utf8_lossy(&key))
                        });
                        sender.total.not_taken += 1;
                    }
                }
            }
            bar.inc(round.len() as u64);
            sender.send(round)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn take_lines(&self, sender: &mut Sender) -> Result<()> {
        let shown = self.input.display();
        let failed = |error| Error::io(format!("read {shown}"), error);
        let progress = Progress::of(&self.input, self.resume, &sender.client)?;
        let mut at = Place::default();
        let (mut input, bar): (Box<dyn BufRead>, _) = if self.input == Path::new("-") {
            let bar = styled(ProgressBar::no_length(), "{spinner} {bytes} ({bytes_per_sec})");
            (Box::new(BufReader::new(std::io::stdin())), bar)
        } else {
            let mut file = std::fs::File::open(&self.input).map_err(failed)?;
            let length = file.metadata().map_err(failed)?.len();
            at = progress.read(&mut file)?;
            if 0 < at.bytes {
                file.seek(SeekFrom::Start(at.bytes)).map_err(failed)?;
                sender.total.there = at.lines;
            }
            let template = "{bar:40} {bytes} of {total_bytes} ({bytes_per_sec}, {eta} left)";
            (Box::new(BufReader::with_capacity(1 << 20, file)), styled(ProgressBar::new(length), template))
        };
        bar.set_position(at.bytes);
        let round_lines = usize::from(self.connections) * PIPELINED;
        loop {
            let (mut round, mut bytes) = (Vec::new(), 0);
            while round.len() < round_lines && bytes < ROUND_BYTES {
                let mut line = Vec::new();
                let count = (&mut input).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?;
                if count == 0 {
                    break;
                }
                at = at.after(&line);
                let text = std::str::from_utf8(&line).map_err(|error| {
                    format!(
                        "byte {} of the line is not of UTF-8; what is not text comes as key64 or value64, in base64",
                        error.valid_up_to() + 1
                    )
                });
                let entry = text.and_then(|text| match text.trim() {
                    "" => Ok(None),
                    text => Entry::parse(text).map(Some),
                });
                let place = format!("{shown}:{}", at.lines);
                let entry =
                    entry.map_err(|why| wrong(format!("{place}: {why}; the lines before it are loaded")));
                match entry {
                    Ok(Some(entry)) => {
                        bytes += entry.value.len();
                        round.push((place, entry));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        sender.send(round)?;
                        return Err(error);
                    }
                }
            }
            let Some((first, _)) = round.first() else { break };
            let first = first.clone();
            sender.send(round).map_err(|error| {
                let message =
                    format!("{error}; every line before {first} is loaded, and some after it may be");
                Error::new(error.kind(), message)
            })?;
            progress.write(at, sender.total.loaded)?;
            bar.set_position(at.bytes);
        }
        bar.finish_and_clear();
        progress.remove();
        Ok(())
    }
}

/// Sends entries over several connections.
struct Sender {
    client: Client,
    /// Entries that the server cannot take are listed, and do not end the load.
    lenient: bool,
    sessions: Vec<Session>,
    pace: Pace,
    total: Total,
}

impl Sender {
    /// Sends entries, each with the place that it comes from, and waits until all of them are durable. Entries of one key
    /// are sent in their order.
    fn send(&mut self, round: Vec<(String, Entry)>) -> Result<()> {
        let now = wall_clock().0;
        let expired = round.iter().filter(|(_, entry)| entry.has_expired(now)).count() as u64;
        let mut shares: Vec<Vec<&(String, Entry)>> = self.sessions.iter().map(|_| Vec::new()).collect();
        let count = shares.len() as u64;
        for entry in &round {
            let share = xxhash_rust::xxh3::xxh3_64(&entry.1.key) % count;
            shares[usize::try_from(share).unwrap_or_default()].push(entry);
        }
        let client = &self.client;
        let lenient = self.lenient;
        let results: Vec<Result<u64>> = std::thread::scope(|scope| {
            let tasks: Vec<_> = self
                .sessions
                .iter_mut()
                .zip(shares)
                .map(|(session, share)| {
                    scope.spawn(move || send_all((client, session), &share, now, lenient))
                })
                .collect();
            let ended = |_| Err(wrong("a thread has ended badly".into()));
            tasks.into_iter().map(|task| task.join().unwrap_or_else(ended)).collect()
        });
        let refused: u64 = results.into_iter().sum::<Result<u64>>()?;
        self.total.not_taken += refused;
        self.total.expired += expired;
        self.total.loaded += round.len() as u64 - expired - refused;
        self.pace.spend(round.len() as u64);
        Ok(())
    }
}

/// Sends the entries of one connection. Returns how many of them the server cannot take, if that may be.
fn send_all(
    (client, session): (&Client, &mut Session),
    entries: &[&(String, Entry)],
    now: u64,
    lenient: bool,
) -> Result<u64> {
    let mut not_taken = 0;
    for part in entries.chunks(PIPELINED) {
        let mut left: Vec<&(String, Entry)> = part.to_vec();
        for tried in 1.. {
            for (_, entry) in &left {
                if entry.has_expired(now) {
                    // An older value must not stay.
                    let target = format!("/del?key={}", escaped(&entry.key));
                    session.add(Request { method: "POST", ..Request::get(&target) });
                } else {
                    session.add(Request {
                        method: "POST",
                        body: &entry.value,
                        ..Request::get(&target(entry))
                    });
                }
            }
            session.flush()?;
            let mut refused = Vec::new();
            for (place, entry) in left.iter().map(|entry| (&entry.0, entry)) {
                let (status, text) = session.reply()?;
                match status {
                    200 => {}
                    404 if entry.1.has_expired(now) => {}
                    400 | 413 | 414 if lenient => {
                        let why = String::from_utf8_lossy(&text);
                        eprintln!("not taken: {}: {}", shortened(place), why.trim_end());
                        not_taken += 1;
                    }
                    503 if tried < TRIES => refused.push(*entry),
                    _ => {
                        let text = String::from_utf8_lossy(&text);
                        let message =
                            format!("{place}: {} answers {status} {}", client.url(), text.trim_end());
                        let kind =
                            if [401, 403].contains(&status) { ErrorKind::Permission } else { ErrorKind::Io };
                        return Err(Error::new(kind, message));
                    }
                }
            }
            if refused.is_empty() {
                break;
            }
            // From the first that was refused on, so that a key does not get an older value after a newer one.
            let first = left.iter().position(|entry| std::ptr::eq(*entry, refused[0])).unwrap_or_default();
            left.drain(..first);
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    Ok(not_taken)
}

/// A name that may be very long, or empty, for a message.
fn shortened(name: &str) -> String {
    const SHOWN: usize = 64;
    let more = if name.chars().nth(SHOWN).is_some() { "…" } else { "" };
    format!("{:?}{more}", name.chars().take(SHOWN).collect::<String>())
}

/// The request that sets an entry.
fn target(entry: &Entry) -> String {
    let expires = entry.expires.map(|millis| format!("&expires={}", millis.div_ceil(1000)));
    format!("/set?key={}{}", escaped(&entry.key), expires.unwrap_or_default())
}

/// How far a file is loaded, and into which store: beside the file, in JSON.
struct Progress {
    path: Option<PathBuf>,
    store: String,
    /// The SeqNos of all shards together, when the command began.
    writes: u64,
}

/// A place in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    lines: u64,
    bytes: u64,
    /// The length and the hash of the last line.
    last: (u64, u64),
}

impl Place {
    fn after(self, line: &[u8]) -> Self {
        let length = line.len() as u64;
        let last = (length, xxhash_rust::xxh3::xxh3_64(line));
        Self { lines: self.lines + 1, bytes: self.bytes + length, last }
    }
}

impl Progress {
    fn of(input: &Path, resume: bool, client: &Client) -> Result<Self> {
        if !resume || input == Path::new("-") {
            return Ok(Self { path: None, store: String::new(), writes: 0 });
        }
        let stats = client.send(Request::get("/stats"))?.expect(&[200])?.bytes(64 << 20)?;
        let stats: serde_json::Value = serde_json::from_slice(&stats).unwrap_or_default();
        let store = stats["store"]
            .as_str()
            .ok_or_else(|| wrong("the server does not say which store it has".into()))?;
        let shards = stats["shards"].as_array().map_or(&[][..], Vec::as_slice);
        let writes = shards.iter().filter_map(|shard| shard["seqno"].as_u64()).sum();
        Ok(Self { path: Some(beside(input, ".progress")), store: store.to_owned(), writes })
    }

    /// Where to go on in `file`.
    fn read(&self, file: &mut std::fs::File) -> Result<Place> {
        let Some(path) = &self.path else { return Ok(Place::default()) };
        let shown = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Place::default()),
            Err(error) => return Err(Error::io(format!("read {shown}"), error)),
        };
        let refuse = |why: &str| Err(wrong(format!("{shown} {why}: remove it to load everything again")));
        let found: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let number = |name: &str| found[name].as_u64();
        let (Some(lines), Some(bytes), Some(length), Some(hash), Some(writes)) =
            (number("lines"), number("bytes"), number("last_bytes"), number("last_hash"), number("writes"))
        else {
            return refuse("is not the progress of a load");
        };
        if found["store"] != self.store.as_str() {
            return refuse("is of a load into another store");
        }
        // A restore leaves a gap.
        if !(writes..writes.saturating_add(SEQNO_GAP)).contains(&self.writes) {
            return refuse("is of a load into this store before it was restored");
        }
        let mut last = vec![0; usize::try_from(length.min(LINE_BYTES_MAX)).unwrap_or_default()];
        let read =
            file.seek(SeekFrom::Start(bytes.saturating_sub(length))).and_then(|_| file.read_exact(&mut last));
        if read.is_err() || bytes < length || xxhash_rust::xxh3::xxh3_64(&last) != hash {
            return refuse("is of another file, or the file has changed");
        }
        Ok(Place { lines, bytes, last: (length, hash) })
    }

    fn write(&self, place: Place, loaded: u64) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let temporary = path.with_extension("progress.tmp");
        let Place { lines, bytes, last: (length, hash) } = place;
        let progress = serde_json::json!({
            "store": self.store, "writes": self.writes + loaded, "lines": lines, "bytes": bytes, "last_bytes": length, "last_hash": hash,
        });
        let written = std::fs::write(&temporary, format!("{progress}\n"))
            .and_then(|()| std::fs::rename(&temporary, path));
        written.map_err(|error| Error::io(format!("write {}", path.display()), error))
    }

    fn remove(&self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path); // there may be none
        }
    }
}
