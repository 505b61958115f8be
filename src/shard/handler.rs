//! Carries out operations: those on a shard of this thread at once, the others by a message to the thread that has the
//! shard.
//!
//! An operation that memory can answer is answered at once, without a task. An operation that needs the disk, or has to
//! wait for room, gets a task. The engine decides which; this module knows no verbs.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Engine;
use super::commits::Commits;
use super::inquiry::{Inquirer, Question};
use super::lending::{self, Lender, Loans};
use super::mailbox::{Awaited, Mailbox, Request};
use super::metrics::Scraper;
use super::router::{Router, ThreadId};
use super::stats;
use crate::db::{SMALL_VALUE_BYTES, Started, Ticket, WaitPosition};
use crate::error::{Error, ErrorKind, Result};
use crate::http::part::Part;
use crate::http::probe::{End, Probe};
use crate::http::{Control, Controlled, Handler, LaterResponse, PIPELINE_MAX, Reply, Response};
use crate::key::{Key, SeqNo, ShardId, UnixMillis};
use crate::op::{Op, Outcome, ToBytes};

/// How long a write waits for room before it is refused (P9), and how much longer for each MiB of its value, up to a
/// bound: a few large values fill a WAL, and then wait until memtables are flushed. A disk that takes longer is overloaded.
const ROOM_TIME: Duration = Duration::from_millis(500);
const ROOM_TIME_PER_MIB: Duration = Duration::from_secs(1);
const ROOM_TIME_MAX: Duration = Duration::from_secs(10);

/// Lines for a client that asked for the stop and watches it.
pub type StopLines = mpsc::UnboundedSender<String>;

/// Whether requests are served, and why not.
pub trait Status {
    /// Asks for the stop; its steps go to `watcher`.
    fn stop(&self, watcher: StopLines);
    /// Why the server is not ready, if it is not.
    fn unready(&self) -> Option<&'static str>;
    /// What does not work, although the server is ready.
    fn degraded(&self) -> Option<String>;
    /// Completes when the server stops.
    fn stopping(&self) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// The handler of a thread's connections, and of the messages of other threads.
pub struct Dispatcher<T> {
    id: ThreadId,
    router: Router,
    /// The engines of this thread, by shard; `None` for other threads' shards.
    engines: Vec<Option<Engine>>,
    /// The commits of the engines.
    commits: Rc<Commits>,
    mailbox: Rc<Mailbox>,
    status: T,
    others: Others,
    loans: Rc<Loans>,
    tasks: Tasks,
}

/// What reaches all threads. Clones share it.
#[derive(Clone)]
pub struct Others {
    /// Asks for figures.
    pub scraper: Scraper,
    /// Lends files.
    pub lender: Lender,
    /// Asks anything else.
    pub inquirer: Inquirer,
}

/// Counts the tasks that operations have started, so that a thread can wait until the last of them has ended.
#[derive(Clone, Default)]
struct Tasks(Rc<Cell<usize>>);

impl Tasks {
    fn spawn<R: 'static>(&self, task: impl Future<Output = R> + 'static) -> JoinHandle<R> {
        let count = self.0.clone();
        count.set(count.get() + 1);
        tokio_uring::spawn(async move {
            let result = task.await;
            count.set(count.get() - 1);
            result
        })
    }
}

/// An outcome on its way.
pub enum Pending {
    /// This outcome, once the write is durable.
    Write(Ticket, Outcome<Bytes>),
    /// From a task of this thread.
    Task(JoinHandle<Result<Outcome<Bytes>>>),
    /// From another thread.
    Message(Awaited),
}

impl Future for Pending {
    type Output = Result<Outcome<Bytes>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match &mut *self {
            Self::Write(ticket, outcome) => {
                let result = ready!(Pin::new(ticket).poll(context));
                result.map(|()| std::mem::replace(outcome, Outcome::Missing))
            }
            Self::Task(task) => match ready!(Pin::new(task).poll(context)) {
                Ok(result) => result,
                Err(error) => Err(Error::new(ErrorKind::Io, format!("a task ended badly: {error}"))),
            },
            Self::Message(awaited) => ready!(Pin::new(awaited).poll(context)),
        })
    }
}

/// An outcome on its way to a client of this thread. Failures are logged here, where the client is.
pub struct ForClient(Pending);

impl Future for ForClient {
    type Output = Result<Outcome<Bytes>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(logged)
    }
}

/// Failures are logged at most this often by a thread: a client may ask for a damaged block again and again.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    /// When this thread last logged a failure, and how many failures it has not logged since.
    static LOGGED: Cell<(Option<Instant>, u64)> = const { Cell::new((None, 0)) };
}

/// Logs a failure that its client cannot do anything about.
fn logged<R>(result: Result<R>) -> Result<R> {
    let Err(error) = &result else { return result };
    if matches!(
        error.kind(),
        ErrorKind::Corruption | ErrorKind::Configuration | ErrorKind::Io | ErrorKind::Permission
    ) {
        let (last, silent) = LOGGED.get();
        let now = Instant::now();
        if last.is_some_and(|last| now.duration_since(last) < LOG_INTERVAL) {
            LOGGED.set((last, silent + 1));
        } else {
            LOGGED.set((Some(now), 0));
            tracing::error!(%error, unlogged = (0 < silent).then_some(silent), "a request failed");
        }
    }
    result
}

impl<T: Status> Dispatcher<T> {
    /// A dispatcher over the engines of this thread.
    pub fn new(
        (id, router): (ThreadId, Router),
        (engines, commits): (impl IntoIterator<Item = Engine>, Rc<Commits>),
        mailbox: Rc<Mailbox>,
        status: T,
        others: Others,
    ) -> Self {
        let mut by_shard = Vec::new();
        for engine in engines {
            let shard = usize::from(engine.owner().shard.0);
            if by_shard.len() <= shard {
                by_shard.resize_with(shard + 1, || None);
            }
            by_shard[shard] = Some(engine);
        }
        let (loans, tasks) = (Rc::default(), Tasks::default());
        Self { id, router, engines: by_shard, commits, mailbox, status, others, loans, tasks }
    }

    /// Tasks that operations have started and that have not ended.
    pub fn tasks(&self) -> usize {
        self.tasks.0.get()
    }

    /// Backups that have files of this thread on loan.
    pub(super) fn backups(&self) -> usize {
        self.loans.count()
    }

    fn engine(&self, shard: ShardId) -> &Engine {
        let engine = self.engines.get(usize::from(shard.0)).and_then(Option::as_ref);
        engine.expect("the router sends a shard's keys to the thread that has it")
    }

    /// Begins an operation on a shard of this thread, and measures it if there is a `probe`.
    #[inline]
    fn begin_here<B: ToBytes>(
        &self,
        shard: ShardId,
        op: Op<B>,
        now: UnixMillis,
        probe: Option<Probe>,
        lend: impl FnOnce(Outcome<&[u8]>) -> bool,
    ) -> Reply<Pending> {
        if let Some(probe) = &probe {
            probe.begin(shard, Instant::now());
        }
        let writes = op.writes();
        let reply = begin(self.engine(shard), &self.tasks, op, now, lend);
        match probe {
            None => reply,
            Some(probe) => self.measure(reply, shard, writes, probe),
        }
    }

    /// Notes in a `probe` when and how an operation ends.
    #[cold]
    fn measure(&self, reply: Reply<Pending>, shard: ShardId, writes: bool, probe: Probe) -> Reply<Pending> {
        let commits = self.commits.clone();
        let end = move |is_ok: bool| {
            let now = Instant::now();
            let end = match (writes, is_ok) {
                (false, _) => End::Read,
                (true, true) => End::Written(commits.last_taken(shard).unwrap_or(now)),
                (true, false) => End::Refused,
            };
            probe.end(end, now);
        };
        let (pending, kind): (_, fn(Pending) -> Reply<Pending>) = match reply {
            Reply::Later(pending) => (pending, Reply::Later),
            Reply::Barrier(pending) => (pending, Reply::Barrier),
            Reply::Lent => {
                end(true);
                return reply;
            }
            Reply::Known(result) => {
                end(result.is_ok());
                return Reply::Known(result);
            }
        };
        kind(Pending::Task(self.tasks.spawn(async move {
            let result = pending.await;
            end(result.is_ok());
            result
        })))
    }

    /// Answers a question of another thread, or of this one.
    pub(super) fn answer(&self, question: Question) {
        // If nobody waits for the answer any more, it is dropped.
        let engines = self.engines.iter().flatten().cloned().collect();
        let loans = self.loans.clone();
        match question {
            Question::Sample(_) => {} // answered by the thread, which knows its connections
            // These own no operation of the ring: a stop need not wait for them.
            Question::Lend(backup, answer) => {
                tokio_uring::spawn(async move {
                    let _ = answer.send(loans.begin(backup, engines).await);
                });
            }
            Question::Part(part, answer) if loans.includes(part) => {
                let engine = self.engine(part.shard).clone();
                if part.is_suspect {
                    engine.look_again_at(part.file);
                }
                self.tasks.spawn(async move {
                    let _ = answer.send(engine.read_part(part.file, part.offset(), part.bytes()).await);
                });
            }
            Question::Part(_, answer) => {
                let message = "no backup is lent this part of a file";
                let _ = answer.send(Err(Error::new(ErrorKind::InvalidRequest, message)));
            }
            Question::Return(backup) => loans.end(backup),
            Question::Compact(answer) => {
                tokio_uring::spawn(async move {
                    let _ = answer.send(compact(engines).await);
                });
            }
        }
    }

    /// Carries out the requests that came in one turn. Each result goes back in a message of its own.
    pub fn carry_out(&self, requests: Vec<Request>) {
        let now = self.now();
        let mut writes = Vec::new();
        for Request { shard, op, probe, sender, token } in requests {
            let answer = |result| self.mailbox.answer(sender, token, result);
            let lend = |outcome: Outcome<&[u8]>| {
                let small = outcome.value_bytes() <= SMALL_VALUE_BYTES;
                if small {
                    answer(Ok(outcome.to_owned()));
                }
                small
            };
            match self.begin_here(shard, op, now, probe, lend) {
                Reply::Lent => {}
                Reply::Known(result) => answer(result),
                Reply::Later(Pending::Write(ticket, outcome)) => {
                    writes.push((sender, token, ticket, outcome))
                }
                Reply::Later(pending) | Reply::Barrier(pending) => {
                    let mailbox = self.mailbox.clone();
                    self.tasks.spawn(async move { mailbox.answer(sender, token, pending.await) });
                }
            }
        }
        if !writes.is_empty() {
            // An engine answers its tickets in order, so one task waits for all of them. If this thread has several
            // shards, an answer may wait a little for the write of another shard.
            let mailbox = self.mailbox.clone();
            self.tasks.spawn(async move {
                for (sender, token, ticket, outcome) in writes {
                    let result = ticket.await;
                    mailbox.answer(sender, token, result.map(|()| outcome));
                }
            });
        }
    }
}

impl<T: Status> Handler for Dispatcher<T> {
    type Pending = ForClient;

    fn now(&self) -> UnixMillis {
        wall_clock()
    }

    fn clock(&self) -> Instant {
        Instant::now()
    }

    fn prefetch(&self, mut keys: impl Iterator<Item = Key<()>>, sets: bool) {
        // A single key gains nothing: there is no other key to fetch at the same time.
        let (Some(first), Some(second)) = (keys.next(), keys.next()) else { return };
        let mut found = [(ShardId(0), 0); PIPELINE_MAX];
        let mut count = 0;
        for (found, key) in found.iter_mut().zip([first, second].into_iter().chain(keys)) {
            *found = (self.router.shard(key.slot()), key.hash());
            count += 1;
        }
        let found = &mut found[..count];
        found.sort_unstable_by_key(|(shard, _)| *shard);
        for of_shard in found.chunk_by(|(a, _), (b, _)| a == b) {
            let shard = usize::from(of_shard[0].0.0);
            if let Some(Some(engine)) = self.engines.get(shard) {
                engine.prefetch(of_shard.iter().map(|(_, hash)| *hash), sets);
            }
        }
    }

    fn begin<B: ToBytes>(
        &self,
        op: Op<B>,
        now: UnixMillis,
        probe: Option<Probe>,
        lend: impl FnOnce(Outcome<&[u8]>) -> bool,
    ) -> Reply<ForClient> {
        let shard = self.router.shard(op.key().slot());
        let thread = self.router.thread(shard);
        if thread != self.id {
            return match self.mailbox.ask(thread, shard, op, probe) {
                Ok(awaited) => Reply::Later(ForClient(Pending::Message(awaited))),
                Err(error) => Reply::Known(Err(error)),
            };
        }
        match self.begin_here(shard, op, now, probe, lend) {
            Reply::Lent => Reply::Lent,
            Reply::Known(result) => Reply::Known(logged(result)),
            Reply::Later(pending) => Reply::Later(ForClient(pending)),
            Reply::Barrier(pending) => Reply::Barrier(ForClient(pending)),
        }
    }

    fn fetch(&self, part: Part) -> ForClient {
        let (inquirer, thread) = (self.others.inquirer.clone(), self.router.thread(part.shard));
        let part = async move {
            let value = lending::part(&inquirer, thread, part).await?;
            Ok(Outcome::Value { value, seqno: SeqNo::default(), expires: None })
        };
        ForClient(Pending::Task(self.tasks.spawn(part)))
    }

    fn control(&self, control: Control) -> Controlled {
        Controlled::Now(match control {
            Control::Livez => Response::OK,
            Control::Options(methods) => Response::allow(methods.allow()),
            Control::Openapi => Response::OPENAPI,
            Control::Metrics => {
                let scraper = self.others.scraper.clone();
                return Controlled::Later(Box::pin(async move { scraper.page().await }));
            }
            Control::Backup => {
                let lent = self.others.lender.clone().lend(self.status.stopping());
                return Controlled::Later(unless_stopped(self.status.stopping(), lent));
            }
            Control::Stats => {
                let page = stats::page(self.others.scraper.clone(), wall_clock());
                return Controlled::Later(Box::pin(page));
            }
            Control::Compact => {
                let inquirer = self.others.inquirer.clone();
                let compacted = async move {
                    let answers = inquirer.ask_all(Question::Compact).await;
                    match answers.into_iter().find_map(Result::err) {
                        None => Response::OK,
                        Some(error) => Response::error(&error),
                    }
                };
                return Controlled::Later(unless_stopped(self.status.stopping(), compacted));
            }
            Control::Readyz => match self.status.unready() {
                None => self.status.degraded().map_or(Response::OK, Response::ok),
                Some(why) => Response::unavailable(why),
            },
            Control::Shutdown => {
                let (watcher, lines) = mpsc::unbounded_channel();
                self.status.stop(watcher);
                Response::lines(lines)
            }
        })
    }
}

/// A response that may take long, and that a stop does not wait for.
fn unless_stopped(
    stopping: impl Future<Output = ()> + 'static,
    response: impl Future<Output = Response> + 'static,
) -> LaterResponse {
    Box::pin(async move {
        tokio::select! {
            response = response => response,
            () = stopping => Response::unavailable("the server is stopping"),
        }
    })
}

/// Compacts the shards of a thread, one after the other.
async fn compact(engines: Vec<Engine>) -> Result<()> {
    for engine in engines {
        engine.compact_all().await?;
    }
    Ok(())
}

/// The wall clock.
pub fn wall_clock() -> UnixMillis {
    // A clock that is set before 1970 is wrong. It counts as 1970, when nothing has expired.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Begins an operation on an engine of this thread.
#[inline]
fn begin<B: ToBytes>(
    db: &Engine,
    tasks: &Tasks,
    op: Op<B>,
    now: UnixMillis,
    lend: impl FnOnce(Outcome<&[u8]>) -> bool,
) -> Reply<Pending> {
    match db.start(&op, now, lend) {
        Ok(Started::Lent) => Reply::Lent,
        Ok(Started::Known(outcome)) => Reply::Known(Ok(outcome)),
        Ok(Started::Committing(ticket, outcome)) => Reply::Later(Pending::Write(ticket, outcome)),
        Ok(Started::Pending(pending)) => {
            let (db, writes_later) = (db.clone(), pending.writes_later());
            if writes_later {
                // Until it has taken its place in the order of writes, no other write goes ahead.
                let position = db.wait_for_room();
                return Reply::Barrier(Pending::Task(tasks.spawn(async move {
                    let _turn = position.first().await;
                    pending.finish(&db).await
                })));
            }
            Reply::Later(Pending::Task(tasks.spawn(async move { pending.finish(&db).await })))
        }
        Err(error) if can_wait(op.as_ref(), &error) => {
            let (db, op, position) = (db.clone(), op.to_owned(), db.wait_for_room());
            Reply::Barrier(Pending::Task(tasks.spawn(async move { in_turn(&db, &op, position).await })))
        }
        Err(error) => Reply::Known(Err(error)),
    }
}

/// Whether an operation that was refused may succeed in a moment. On a full disk a delete may: the space of the reserve is
/// for it.
fn can_wait(op: Op<&[u8]>, error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Overloaded => op.writes(),
        ErrorKind::DiskFull => matches!(op, Op::Delete { .. }),
        _ => false,
    }
}

/// Carries out a write that was refused for lack of room. For a while it tries again whenever there may be room. Writes
/// take their turns in the order in which they began to wait.
async fn in_turn(db: &Engine, op: &Op<Bytes>, position: WaitPosition) -> Result<Outcome<Bytes>> {
    let mebibytes = u32::try_from(op.value_bytes() >> 20).unwrap_or(u32::MAX);
    let limit = ROOM_TIME_PER_MIB.saturating_mul(mebibytes).saturating_add(ROOM_TIME).min(ROOM_TIME_MAX);
    let deadline = tokio::time::Instant::now() + limit;
    let started = {
        // The writes that began to wait earlier may take up the whole time. Then one try is still left.
        let _turn = tokio::time::timeout_at(deadline, position.first()).await;
        loop {
            let room = db.room();
            match db.start_in_turn(op, wall_clock(), &position) {
                Err(error) if can_wait(op.as_ref(), &error) => {
                    if tokio::time::timeout_at(deadline, room).await.is_err() {
                        return Err(error);
                    }
                }
                started => break started?,
            }
        }
    };
    if !matches!(&started, Started::Pending(pending) if pending.writes_later()) {
        drop(position); // the next write may go on while this one is committed
    }
    match started {
        Started::Lent => unreachable!("a write lends nothing"),
        Started::Known(outcome) => Ok(outcome),
        Started::Committing(ticket, outcome) => ticket.await.map(|()| outcome),
        Started::Pending(pending) => pending.finish(db).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::SMALL;
    use crate::config::{DbConfig, MANIFEST_BYTES};
    use crate::db::Db;
    use crate::identity::Owner;
    use crate::storage::device::Device;
    use crate::storage::directory::Directory;
    use crate::storage::uring::UringStorage;

    const CONFIG: DbConfig = DbConfig {
        value_bytes_max: 1_000,
        wal_bytes: DbConfig::wal_bytes_for(1 << 20, 1_000),
        wal_step_bytes: 1 << 20,
        manifest_bytes: MANIFEST_BYTES,
        ..SMALL
    };

    /// Lets every task run until all of them wait for an event.
    async fn settle(db: &Engine) {
        for _ in 0..20 {
            db.pause().await;
        }
    }

    fn write(db: &Engine, tasks: &Tasks, delete_it: bool) -> Reply<Pending> {
        let key = db.key(b"k");
        let op = if delete_it { Op::Delete { key } } else { Op::Set { key, value: b"v", expires: None } };
        begin(db, tasks, op, wall_clock(), |_| panic!("a write lends nothing"))
    }

    #[test]
    fn p9_a_write_does_not_go_ahead_of_those_that_wait_for_room() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        let device = Device::probe(&directory).unwrap();
        tokio_uring::start(async {
            let storage = UringStorage::new(&directory, device, true).unwrap();
            let owner = Owner { store_id: 1, shard: ShardId(0) };
            let db = Db::create(storage, owner, CONFIG).await.unwrap();
            let tasks = Tasks::default();
            // There is room, but another write is first in the queue of writes that wait.
            for delete_it in [false, true] {
                let waiting = db.wait_for_room();
                let first = waiting.first().await;
                let Reply::Barrier(Pending::Task(task)) = write(&db, &tasks, delete_it) else {
                    panic!("delete: {delete_it}: it went ahead of a write that waits")
                };
                settle(&db).await;
                assert!(!db.has_uncommitted() && !task.is_finished(), "its turn has not come");
                drop(first);
                drop(waiting);
                settle(&db).await;
                assert!(db.has_uncommitted(), "its turn has come");
                db.commit_next().await.unwrap();
                task.await.unwrap().unwrap();
            }
            assert_eq!(tasks.0.get(), 0);
            // If no other write waits, a write is taken at once.
            let Reply::Later(Pending::Write(ticket, _)) = write(&db, &tasks, false) else {
                panic!("there is room")
            };
            db.commit_next().await.unwrap();
            ticket.await.unwrap();
            db.close(|_| {}).await.unwrap();
        });
    }
}
