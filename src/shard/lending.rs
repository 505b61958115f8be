//! The files of the store on loan to backups.
//!
//! ```text
//!   GET /backup ──► every thread: flush, hold a snapshot of each shard ──► list of the files ──► blank lines
//!        GET /backup/part … or hard links in the data directory            until the client has what it needs
//!   connection ends ──► every thread lets go
//! ```
//!
//! A file on the list of a backup stays in place until the connection of its list ends. What is on the list holds every
//! write that was visible when the list was asked for. A loan ends with the connection, with the stop of the server, or
//! after a day.
//!
//! The list is a line of JSON for the store, one for each shard, and a last one. `store` is the payload of `STORE`, and
//! `state` is the state of the shard as a version edit (see [`crate::manifest`]), both in hexadecimal digits. So there is
//! one place that decides which files make up a shard.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::Engine;
use super::inquiry::{Inquirer, LentShard, Question};
use crate::db::Snapshot;
use crate::error::{Error, ErrorKind, Result};
use crate::escape::hexadecimal;
use crate::host::random_number;
use crate::http::Response;
use crate::http::part::Part;
use crate::key::ShardId;
use crate::storage::directory::Directory;
use crate::store::Store;

/// Backups at a time.
const BACKUPS_MAX: usize = 8;
/// How long the flush before a backup may take.
const FLUSH_TIME: Duration = Duration::from_secs(120);
/// How often a blank line shows whether the client is still there.
const BLANK_LINE_TIME: Duration = Duration::from_secs(1);
/// The longest backup.
const LOAN_TIME: Duration = Duration::from_secs(24 * 3600);

/// A snapshot of each shard of a thread.
type Snapshots = Vec<(ShardId, Snapshot)>;

/// The snapshots that a thread holds, by the number of the backup. `None` while they are being taken.
#[derive(Default)]
pub struct Loans(RefCell<HashMap<u64, Option<Snapshots>>>);

impl Loans {
    /// Takes a snapshot of each engine, and holds it until [`Self::end`].
    ///
    /// # Errors
    /// As [`Db::snapshot`](crate::db::Db::snapshot), and `Overloaded` if a flush takes too long.
    pub(super) async fn begin(&self, backup: u64, engines: Vec<Engine>) -> Result<Vec<LentShard>> {
        self.0.borrow_mut().insert(backup, None);
        let taken = tokio::time::timeout(FLUSH_TIME, snapshots(engines)).await;
        let slow = |_| Error::new(ErrorKind::Overloaded, "the flush before the backup takes too long");
        let result = taken.map_err(slow).and_then(|taken| taken);
        let mut loans = self.0.borrow_mut();
        match (loans.get_mut(&backup), result) {
            (Some(loan), Ok(snapshots)) => {
                let lines = snapshots.iter().map(|(shard, snapshot)| line(*shard, snapshot)).collect();
                *loan = Some(snapshots);
                Ok(lines)
            }
            (None, Ok(_)) => Err(Error::new(ErrorKind::InvalidRequest, "the backup is over")),
            (_, Err(error)) => {
                loans.remove(&backup);
                Err(error)
            }
        }
    }

    /// Lets go of the snapshots of a backup.
    pub(super) fn end(&self, backup: u64) {
        self.0.borrow_mut().remove(&backup);
    }

    /// Backups that have files on loan, or will.
    pub(super) fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// Whether a part lies in a file that is lent.
    pub(super) fn includes(&self, part: Part) -> bool {
        let loans = self.0.borrow();
        let Some(Some(snapshots)) = loans.get(&part.backup) else { return false };
        let bytes = snapshots.iter().find(|(shard, _)| *shard == part.shard);
        bytes
            .and_then(|(_, snapshot)| snapshot.bytes(part.file))
            .is_some_and(|bytes| part.offset() + part.bytes() as u64 <= bytes)
    }
}

async fn snapshots(engines: Vec<Engine>) -> Result<Snapshots> {
    let mut taken = Vec::new();
    for engine in engines {
        taken.push((engine.owner().shard, engine.snapshot().await?));
    }
    Ok(taken)
}

/// The line of a shard.
fn line(shard: ShardId, snapshot: &Snapshot) -> LentShard {
    let mut state = Vec::new();
    snapshot.state().snapshot().encode(&mut state);
    let files: Vec<_> = snapshot
        .state()
        .version
        .files()
        .map(|file| json!({ "file": file.number.0, "bytes": file.bytes }))
        .collect();
    let line = json!({ "shard": shard.0, "files": files, "state": hexadecimal(&state) }).to_string();
    LentShard { shard, line: line + "\n" }
}

/// Begins backups. Clones share the count of them.
#[derive(Clone)]
pub struct Lender {
    inquirer: Inquirer,
    /// What the list says of the store.
    store: Arc<serde_json::Value>,
    under_way: Arc<AtomicUsize>,
}

impl Lender {
    /// Lends the files of a store in `data_dir`.
    pub fn new(inquirer: Inquirer, store: &Store, data_dir: &Directory) -> Self {
        let store = json!({
            "store": hexadecimal(&store.encode()),
            "shards": store.shards,
            "data_dir": data_dir.path().to_str(),
            "inode": [data_dir.id().device, data_dir.id().number],
        });
        Self { inquirer, store: Arc::new(store), under_way: Arc::default() }
    }

    /// Asks all threads for their files. `stop` completes when the server stops.
    pub(super) async fn lend(self, stop: impl Future<Output = ()> + 'static) -> Response {
        let Ok(id) = random_number() else {
            return Response::unavailable("the kernel gives no random number");
        };
        if BACKUPS_MAX <= self.under_way.fetch_add(1, Ordering::Relaxed) {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            return Response::unavailable("as many backups as are allowed at a time are under way");
        }
        let loan = Rc::new(Loan { id, lender: self.clone() });
        let answers = self.inquirer.ask_all(|answer| Question::Lend(id, answer)).await;
        let mut shards = Vec::new();
        for answer in answers {
            match answer {
                Ok(lent) => shards.extend(lent),
                Err(error) => {
                    tracing::warn!(%error, "a backup cannot begin");
                    return Response::error(&error);
                }
            }
        }
        if Some(shards.len() as u64) != self.store["shards"].as_u64() {
            return Response::unavailable("the server is stopping"); // a thread has ended
        }
        shards.sort_unstable_by_key(|lent| lent.shard);
        let (sender, lines) = mpsc::unbounded_channel();
        let mut store = (*self.store).clone();
        store["backup"] = id.into();
        let all = [format!("{store}\n")].into_iter().chain(shards.into_iter().map(|lent| lent.line));
        for line in all.chain([format!("{}\n", json!({ "lent": true }))]) {
            let _ = sender.send(line); // the client may have left; the next line shows it
        }
        tracing::info!(backup = id, "a backup has begun: its files stay until it ends");
        tokio_uring::spawn(keep(loan, sender, stop));
        Response::lines(lines)
    }
}

/// Keeps a loan until its client has left.
async fn keep(loan: Rc<Loan>, lines: mpsc::UnboundedSender<String>, stop: impl Future<Output = ()>) {
    let blank_lines = async {
        while lines.send("\n".into()).is_ok() {
            tokio::time::sleep(BLANK_LINE_TIME).await;
        }
    };
    tokio::select! {
        () = blank_lines => {}
        () = lines.closed() => {}
        () = stop => {}
        () = tokio::time::sleep(LOAN_TIME) => {}
    }
    tracing::info!(backup = loan.id, "the backup has ended");
    drop(loan);
}

/// A backup that is under way.
struct Loan {
    id: u64,
    lender: Lender,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.lender.inquirer.tell_all(|| Question::Return(self.id));
        self.lender.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The answer to a request for a part.
pub(super) async fn part(inquirer: &Inquirer, thread: super::router::ThreadId, part: Part) -> Result<Bytes> {
    let answer = inquirer.ask(thread, |answer| Question::Part(part, answer)).await;
    answer.unwrap_or_else(|| Err(Error::new(ErrorKind::ShuttingDown, "the thread of the shard has ended")))
}
