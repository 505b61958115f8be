//! The background work of an engine: one task for each kind of work, and when each runs.
//!
//! ```text
//!   commit · mark · note ends · flush · grow · prepare · compact · remove · rest · check names
//! ```
//!
//! A task owns operations of the ring, so it is never dropped: it is told to end, and awaited.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Engine;
use super::commits::Commits;
use super::handler::wall_clock;
use super::health::Health;
use super::space::Space;
use crate::config::{Config, SyncMode};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Memory;

/// How long background work that failed waits before it is tried again.
const RETRY_TIME: Duration = Duration::from_secs(1);
/// The end of the WAL is marked when there was no commit for this long. The check is made at the same interval, so a
/// mark follows at most twice this time after the queue of groups has run empty.
const MARK_IDLE_TIME: Duration = Duration::from_millis(3);
/// The end of the WAL is also noted in the manifest when there was no commit for this long.
const NOTE_IDLE_TIME: Duration = Duration::from_millis(100);
/// How often a group carries a mark under load.
const MARK_INTERVAL: Duration = Duration::from_secs(1);
/// A shard rests when there was no commit for this long. Then it gives back what space it can.
const REST_TIME: Duration = Duration::from_secs(20);
/// A shard that has rested takes as many writes before it rests again, or `--flush-interval` has to pass.
const REST_WRITES_MIN: u64 = 64;
/// A shard counts as stalled when writes are refused in so many looks, a second apart.
const STALL_LOOKS: u32 = 3;
/// How often the names of the files in use are checked.
const NAMES_INTERVAL: Duration = Duration::from_millis(400);
/// While a shard serves, its obsolete files are removed at this rate. A file system that is mounted with `discard`
/// tells the device at once which blocks are free, and some devices serve nothing else meanwhile: 64 MiB took 11 to 14
/// ms on the machine of BENCHMARKS.md, and all files of a compaction together 90 ms. RocksDB bounds the rate for the
/// same reason (the delete scheduler of `SstFileManager`). The rate is far above that of compactions, so no files pile
/// up.
const REMOVED_BYTES_PER_SECOND: f64 = 512e6;
/// How often obsolete files are looked for. Writes that wait for space on a full disk wait for this.
const REMOVAL_INTERVAL: Duration = Duration::from_millis(100);

/// The background work of one engine.
pub struct Background {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Background {
    /// Starts the work. An error that ends the process is sent to `fatal`.
    pub fn start(
        db: &Engine,
        config: &Config,
        fatal: &mpsc::UnboundedSender<Error>,
        (space, memory, health, commits): (&Space, &Memory, &Health, &Rc<Commits>),
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let synced = config.sync == SyncMode::Always;
        let worker = Worker {
            db: db.clone(),
            stopped,
            fatal: fatal.clone(),
            synced,
            space: space.clone(),
            health: health.clone(),
            flush_interval: config.flush_interval,
            commits: commits.clone(),
            failing: None,
        };
        let flush_space = space.clone();
        let mut tasks = vec![
            tokio_uring::spawn(worker.clone().commit()),
            tokio_uring::spawn(worker.clone().repeat(
                "flush a memtable",
                async |db| db.flush_due().await,
                async move |db| {
                    let _turn = flush_space.turn().await;
                    db.flush_next().await
                },
            )),
            tokio_uring::spawn(worker.clone().repeat(
                "prepare a WAL",
                async |db| db.spare_wanted().await,
                async |db| db.prepare_spare().await,
            )),
            tokio_uring::spawn(worker.clone().repeat(
                "make the WAL longer",
                async |db| db.growth_wanted().await,
                async |db| db.grow_wal().await,
            )),
            tokio_uring::spawn(worker.clone().compact(config.compaction_interval)),
            tokio_uring::spawn(worker.clone().remove()),
            tokio_uring::spawn(worker.clone().request_flushes(config.flush_interval)),
            tokio_uring::spawn(worker.clone().mark()),
            tokio_uring::spawn(worker.clone().note_ends()),
            tokio_uring::spawn(worker.clone().request_marks()),
            tokio_uring::spawn(worker.clone().check_names()),
            tokio_uring::spawn(worker.clone().rest()),
            tokio_uring::spawn(worker.clone().follow_space()),
            tokio_uring::spawn(worker.clone().follow_memory(memory.memtables.follow())),
        ];
        if let SyncMode::Interval(interval) = config.sync {
            tasks.push(tokio_uring::spawn(worker.sync(interval)));
        }
        Self { stop, tasks }
    }

    /// Ends the work: what is in progress is finished or given up, never dropped.
    pub async fn stop(self, db: &Engine) {
        db.begin_close();
        self.stop.send_replace(true);
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a background task ended badly");
            }
        }
    }
}

/// One background task.
#[derive(Clone)]
struct Worker {
    db: Engine,
    stopped: watch::Receiver<bool>,
    fatal: mpsc::UnboundedSender<Error>,
    /// Whether each group is synced.
    synced: bool,
    space: Space,
    health: Health,
    flush_interval: Duration,
    /// Learns how long commits take.
    commits: Rc<Commits>,
    /// The kind of the last failure, while the work of this task fails.
    failing: Option<ErrorKind>,
}

impl Worker {
    /// Waits for `event`, which is safe to drop. `false` if the worker was told to end first.
    async fn wait(&mut self, event: impl Future<Output = ()>) -> bool {
        if *self.stopped.borrow() {
            return false;
        }
        tokio::select! {
            biased;
            _ = self.stopped.changed() => false,
            () = event => true,
        }
    }

    /// Group commit: the next group is taken as soon as the group before it is durable, or a little later when compaction
    /// has fallen behind (P9).
    async fn commit(mut self) {
        let db = self.db.clone();
        while self.wait(db.commit_due()).await {
            if !self.synced {
                // Without a sync to wait for, each group would hold one write. The pause lets the writes of one turn
                // join the group.
                db.pause().await;
            }
            let delay = db.pressure().delay();
            // The runtime's timer counts in milliseconds. Shorter delays are skipped, not rounded up.
            if Duration::from_millis(1) <= delay {
                self.wait(tokio::time::sleep(delay)).await;
            }
            let taken = Instant::now();
            if let Err(error) = db.commit_next().await {
                return self.report(error);
            }
            // No writer of this group has run since the commit ended: this task has not waited since.
            self.commits.add(db.owner().shard, taken.into_std(), Instant::now().into_std());
        }
        // Writes of clients that have left may remain, and a flush may wait for these writes.
        while db.has_uncommitted() {
            if let Err(error) = db.commit_next().await {
                return self.report(error);
            }
        }
    }

    /// Does `work` whenever it is due. When `work` fails, it is tried again until it succeeds.
    async fn repeat(
        mut self,
        what: &'static str,
        due: impl AsyncFn(&Engine),
        work: impl AsyncFn(&Engine) -> Result<()>,
    ) {
        let db = self.db.clone();
        while self.wait(due(&db)).await {
            loop {
                let result = work(&db).await;
                let done = result.is_ok();
                if !self.handle(what, result).await {
                    return;
                }
                if done {
                    break;
                }
            }
        }
    }

    async fn compact(mut self, interval: Duration) {
        let db = self.db.clone();
        let due = async || {
            let _ = tokio::time::timeout(interval, db.compaction_due()).await; // the levels are checked in both cases
        };
        while self.wait(due()).await {
            loop {
                let turn = self.space.turn().await;
                let compacted = db.compact_next(wall_clock()).await;
                drop(turn);
                match compacted {
                    Ok(done) => {
                        self.recovered("compact");
                        if !done || *self.stopped.borrow() {
                            break;
                        }
                    }
                    Err(error) if error.is_damage() || error.kind() == ErrorKind::Configuration => {
                        // What is damaged was taken out of the way, so this is something else. The same files would be
                        // picked again and again.
                        if self.failing.replace(error.kind()) != Some(error.kind()) {
                            let shard = self.db.owner().shard.0;
                            tracing::error!(shard, %error, "cannot compact; it is tried again now and then");
                        }
                        if !self.wait(tokio::time::sleep(interval)).await {
                            return;
                        }
                        break;
                    }
                    Err(error) => {
                        if !self.handle("compact", Err(error)).await {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Removes obsolete files, one after the other. Nothing signals that the last reader of a file has ended, so the worker
    /// checks now and then.
    async fn remove(mut self) {
        let db = self.db.clone();
        while self.wait(tokio::time::sleep(REMOVAL_INTERVAL)).await {
            while let Some(bytes) = db.remove_next().await {
                let pause = Duration::from_secs_f64(bytes as f64 / REMOVED_BYTES_PER_SECOND);
                if !self.wait(tokio::time::sleep(pause)).await {
                    return;
                }
            }
        }
    }

    async fn request_flushes(mut self, interval: Duration) {
        let db = self.db.clone();
        while self.wait(tokio::time::sleep(interval)).await {
            db.request_flush();
        }
    }

    /// Marks the end of the WAL whenever commits have paused (W4).
    async fn mark(mut self) {
        let db = self.db.clone();
        loop {
            while db.is_witnessed() {
                if !self.wait(db.commit_seen()).await {
                    return;
                }
            }
            let durable = db.durable();
            if !self.wait(tokio::time::sleep(MARK_IDLE_TIME)).await {
                return;
            }
            if db.durable() == durable
                && !db.has_uncommitted()
                && let Err(error) = db.mark().await
            {
                return self.report(error);
            }
        }
    }

    /// Notes the end of the WAL in the manifest whenever commits have paused for longer (W4).
    async fn note_ends(mut self) {
        let db = self.db.clone();
        let mut noted = db.durable();
        loop {
            if db.durable() == noted && !self.wait(db.commit_seen()).await {
                return;
            }
            let durable = db.durable();
            if !self.wait(tokio::time::sleep(NOTE_IDLE_TIME)).await {
                return;
            }
            if db.durable() == durable && durable != noted {
                let result = db.note_end().await;
                let done = result.is_ok();
                if !self.handle("note the end of a WAL", result).await {
                    return;
                }
                if done {
                    noted = durable;
                }
            }
        }
    }

    /// Tells the engine whether the disk is full. While it is, what deletes have written is flushed every second, so that
    /// they give space back. Counts the bytes of the shard.
    async fn follow_space(mut self) {
        let db = self.db.clone();
        let mut full = self.space.follow();
        let (mut counted, mut stopped) = (None, 0);
        db.set_disk_full(self.space.is_full());
        loop {
            let version = db.version();
            let now = version.files().map(|file| file.bytes).sum();
            let longest = version.files().map(|file| file.bytes).max().unwrap_or_default();
            self.space.count(counted.replace(now), now, longest);
            self.health.set(db.owner().shard.0, db.damaged_files());
            stopped = if db.pressure().stops_writes() { stopped + 1 } else { 0 };
            self.note_stall(STALL_LOOKS <= stopped);
            let changed = async {
                let _ = tokio::time::timeout(RETRY_TIME, full.changed()).await; // what matters is read below
            };
            if !self.wait(changed).await {
                return;
            }
            let full = self.space.is_full();
            db.set_disk_full(full);
            if full {
                db.request_flush();
            }
        }
    }

    /// Takes note of whether writes have been refused for a while because compaction cannot keep up, or has stopped.
    fn note_stall(&self, is_stalled: bool) {
        let shard = self.db.owner().shard.0;
        if self.health.set_stalled(shard, is_stalled) {
            if is_stalled {
                tracing::warn!(
                    shard,
                    "writes are refused until compaction has caught up; /readyz answers 503"
                );
            } else {
                tracing::info!(shard, "compaction has caught up: writes are accepted again");
            }
        }
    }

    /// Lets the engine look whenever the memory for memtables has become short, or has come free.
    async fn follow_memory(mut self, mut changes: watch::Receiver<u64>) {
        let db = self.db.clone();
        loop {
            db.memory_changed();
            let changed = async {
                let _ = changes.changed().await; // the sender lives as long as the process
            };
            if !self.wait(changed).await {
                return;
            }
        }
    }

    /// Lets the shard rest whenever commits have paused for longer still, and once after the start.
    async fn rest(mut self) {
        let db = self.db.clone();
        let mut last: Option<(Instant, u64)> = None;
        loop {
            let committed = db.committed();
            if !self.wait(tokio::time::sleep(REST_TIME)).await {
                return;
            }
            if db.committed() != committed || db.has_uncommitted() {
                continue;
            }
            // A trickle of writes with pauses must not become a flush for each of them.
            let writes = committed.1;
            if last.is_some_and(|(at, before)| {
                writes - before < REST_WRITES_MIN && at.elapsed() < self.flush_interval
            }) {
                continue;
            }
            last = Some((Instant::now(), writes));
            db.rest();
            while db.has_frozen() {
                // Nothing signals the end of a flush.
                if !self.wait(tokio::time::sleep(RETRY_TIME)).await {
                    return;
                }
            }
            let result = db.shorten_wals().await;
            if !self.handle("shorten the WALs", result).await {
                return;
            }
            while db.committed() == committed {
                if !self.wait(db.commit_seen()).await {
                    return;
                }
            }
        }
    }

    /// Lets a group carry a mark regularly while commits do not pause.
    async fn request_marks(mut self) {
        let db = self.db.clone();
        while self.wait(tokio::time::sleep(MARK_INTERVAL)).await {
            db.request_mark();
        }
    }

    /// Ends the process if the directory, a WAL or the manifest was moved, removed or replaced.
    async fn check_names(mut self) {
        let db = self.db.clone();
        while self.wait(tokio::time::sleep(NAMES_INTERVAL)).await {
            match db.check_names().await {
                Err(error) if error.kind() == ErrorKind::Poisoned => return self.report(error),
                // For example, this process may have lost the right to search a directory above. That proves nothing.
                Err(error) => {
                    tracing::debug!(%error, "cannot check whether the files in use still have their names")
                }
                Ok(()) => {}
            }
        }
    }

    async fn sync(mut self, interval: Duration) {
        let db = self.db.clone();
        while self.wait(tokio::time::sleep(interval)).await {
            if let Err(error) = db.sync().await {
                return self.report(error);
            }
        }
    }

    /// Takes note of how work ended. After a failure, waits before the next try. `false` if there must not be another try.
    /// The log has one line when failures of a kind begin, and one when they are over.
    async fn handle(&mut self, what: &str, result: Result<()>) -> bool {
        let Err(error) = result else {
            self.recovered(what);
            return true;
        };
        match error.kind() {
            ErrorKind::ShuttingDown => false,
            ErrorKind::Poisoned => {
                self.report(error);
                false
            }
            ErrorKind::DiskFull => {
                // The server gives the reserve back, and has a line in the log for the state of the disk.
                self.space.report();
                tracing::debug!(shard = self.db.owner().shard.0, %error, "cannot {what}: the disk is full");
                let db = self.db.clone();
                let changed = async {
                    let _ = tokio::time::timeout(RETRY_TIME, db.space_changed()).await;
                };
                self.wait(changed).await
            }
            kind => {
                if self.failing.replace(kind) != Some(kind) {
                    let shard = self.db.owner().shard.0;
                    tracing::error!(shard, %error, "cannot {what}; it is tried again every second");
                }
                self.wait(tokio::time::sleep(RETRY_TIME)).await
            }
        }
    }

    fn recovered(&mut self, what: &str) {
        if self.failing.take().is_some() {
            tracing::info!(shard = self.db.owner().shard.0, "able to {what} again");
        }
    }

    fn report(&self, error: Error) {
        self.health.fail();
        // The server may already be going down because of another failure.
        let _ = self.fatal.send(error);
    }
}
