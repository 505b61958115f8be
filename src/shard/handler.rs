//! Carries out commands: on an engine of this thread at once, on another thread's by letter.
//!
//! Owns: the way from a command to its answer. Knows nothing of sockets.
//!
//! What can be answered from memory is answered on the spot, without a task; what needs the disk or has to wait
//! for room gets one.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Engine;
use super::mailbox::{Answer, Awaited, Mailbox, Operation, Request};
use super::router::{Router, ThreadId};
use crate::db::{Lookup, Place, Progress, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::http::{Command, Handler, PIPELINE_MAX, Reply, Response};
use crate::key::ShardId;
use crate::storage::uring::UringStorage;

/// How long a write waits for room before it is refused (P9), and how long for each MiB of its value more: the WAL may
/// have to grow by as much. A disk that takes longer is overloaded.
const ROOM_TIME: Duration = Duration::from_millis(500);
const ROOM_TIME_PER_MIB: Duration = Duration::from_millis(50);

/// Lines for a client that asked for the stop and watches it.
pub type StopLines = mpsc::UnboundedSender<String>;

/// Whether requests are served, and why not.
pub trait Status {
    /// Asks for the stop; its steps go to `watcher`.
    fn stop(&self, watcher: StopLines);
    /// Why the server is not ready, if it is not.
    fn unready(&self) -> Option<&'static str>;
}

/// The handler of a thread's connections, and of the letters of other threads.
pub struct Dispatcher<T> {
    id: ThreadId,
    router: Router,
    /// The engines of this thread, by shard; `None` for other threads' shards.
    engines: Vec<Option<Engine>>,
    mailbox: Rc<Mailbox>,
    status: T,
    tasks: Tasks,
}

/// The tasks that commands have started, so that the end of the last one can be waited for.
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

/// An answer of an engine of this thread.
enum Started {
    Now(Result<Answer>),
    Later(Waiting),
    /// The write waits for room, and others of its sender must not go ahead of it.
    Barrier(Waiting),
}

/// An answer on its way.
pub enum Waiting {
    /// A write, and what to answer when it is durable.
    Write(Ticket, Answer),
    /// A task of this thread.
    Task(JoinHandle<Result<Answer>>),
    /// Another thread.
    Letter(Awaited),
}

impl Future for Waiting {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Answer>> {
        Poll::Ready(match &mut *self {
            Self::Write(ticket, answer) => {
                let result = ready!(Pin::new(ticket).poll(context));
                result.map(|()| std::mem::replace(answer, Answer::Written))
            }
            Self::Task(task) => match ready!(Pin::new(task).poll(context)) {
                Ok(result) => result,
                Err(error) => Err(Error::new(ErrorKind::Io, format!("a task ended badly: {error}"))),
            },
            Self::Letter(awaited) => ready!(Pin::new(awaited).poll(context)),
        })
    }
}

/// An answer on its way to a client.
pub struct Pending(Waiting);

impl Future for Pending {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response> {
        Pin::new(&mut self.0).poll(context).map(respond)
    }
}

fn respond(result: Result<Answer>) -> Response {
    match result {
        Ok(Answer::Written) => Response::OK,
        Ok(Answer::Value(value)) => Response::value(value),
        Ok(Answer::Missing) => Response::KEY_NOT_FOUND,
        Err(error) => {
            if matches!(
                error.kind(),
                ErrorKind::Corruption | ErrorKind::Configuration | ErrorKind::Io | ErrorKind::Permission
            ) {
                log_failure(&error);
            }
            Response::error(&error)
        }
    }
}

/// Failures are logged at most this often by a thread: a client may ask for a damaged block again and again.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    /// When this thread last logged a failure, and how many it has kept to itself since.
    static LOGGED: Cell<(Option<Instant>, u64)> = const { Cell::new((None, 0)) };
}

fn log_failure(error: &Error) {
    let (last, silent) = LOGGED.get();
    let now = Instant::now();
    if last.is_some_and(|last| now.duration_since(last) < LOG_INTERVAL) {
        LOGGED.set((last, silent + 1));
    } else {
        LOGGED.set((Some(now), 0));
        tracing::error!(%error, unlogged = silent, "a request failed");
    }
}

impl<T: Status> Dispatcher<T> {
    /// A dispatcher over the engines of this thread.
    pub fn new(
        id: ThreadId,
        router: Router,
        engines: impl IntoIterator<Item = Engine>,
        mailbox: Rc<Mailbox>,
        status: T,
    ) -> Self {
        let mut by_shard = Vec::new();
        for engine in engines {
            let shard = usize::from(engine.owner().shard.0);
            if by_shard.len() <= shard {
                by_shard.resize_with(shard + 1, || None);
            }
            by_shard[shard] = Some(engine);
        }
        Self { id, router, engines: by_shard, mailbox, status, tasks: Tasks::default() }
    }

    /// Starts a task whose end is waited for before the thread ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.spawn(task);
    }

    /// Tasks that commands have started and that have not ended.
    pub fn tasks(&self) -> usize {
        self.tasks.0.get()
    }

    fn engine(&self, shard: ShardId) -> &Engine {
        let engine = self.engines.get(usize::from(shard.0)).and_then(Option::as_ref);
        engine.expect("the router sends a shard's keys to the thread that has it")
    }

    /// Carries out the letters of one turn. Answers go back in letters of their own.
    pub fn carry_out(&self, requests: Vec<Request>) {
        let mut writes = Vec::new();
        for Request { shard, key, operation, sender, token } in requests {
            let db = self.engine(shard);
            let started = match operation {
                Operation::Get => get(db, &self.tasks, &key),
                Operation::Set(value) => set(db, &self.tasks, &key, &value),
                Operation::Delete => delete(db, &self.tasks, &key),
            };
            match started {
                Started::Now(result) => self.mailbox.answer(sender, token, result),
                Started::Later(Waiting::Write(ticket, answer)) => {
                    writes.push((sender, token, ticket, answer))
                }
                Started::Later(waiting) | Started::Barrier(waiting) => {
                    let mailbox = self.mailbox.clone();
                    self.tasks.spawn(async move { mailbox.answer(sender, token, waiting.await) });
                }
            }
        }
        if !writes.is_empty() {
            // Tickets are answered in order, so one task can wait for all of them.
            let mailbox = self.mailbox.clone();
            self.tasks.spawn(async move {
                for (sender, token, ticket, answer) in writes {
                    let result = ticket.await;
                    mailbox.answer(sender, token, result.map(|()| answer));
                }
            });
        }
    }

    fn ask(&self, to: ThreadId, shard: ShardId, key: &[u8], operation: Operation) -> Reply<Pending> {
        match self.mailbox.ask(to, shard, Bytes::copy_from_slice(key), operation) {
            Ok(awaited) => Reply::Later(Pending(Waiting::Letter(awaited))),
            Err(error) => Reply::Now(respond(Err(error))),
        }
    }

    fn dispatch(
        &self,
        key: &[u8],
        here: impl FnOnce(&Engine) -> Started,
        operation: impl FnOnce() -> Operation,
    ) -> Reply<Pending> {
        let shard = self.router.shard(key);
        let thread = self.router.thread(shard);
        if thread != self.id {
            return self.ask(thread, shard, key, operation());
        }
        match here(self.engine(shard)) {
            Started::Now(result) => Reply::Now(respond(result)),
            Started::Later(waiting) => Reply::Later(Pending(waiting)),
            Started::Barrier(waiting) => Reply::Barrier(Pending(waiting)),
        }
    }
}

impl<T: Status> Handler for Dispatcher<T> {
    type Pending = Pending;

    fn prefetch<'a>(&self, mut keys: impl Iterator<Item = &'a [u8]>) {
        // One alone leaves nothing to do meanwhile.
        let (Some(first), Some(second)) = (keys.next(), keys.next()) else { return };
        let mut found = [(ShardId(0), &b""[..]); PIPELINE_MAX];
        let mut count = 0;
        for (found, key) in found.iter_mut().zip([first, second].into_iter().chain(keys)) {
            *found = (self.router.shard(key), key);
            count += 1;
        }
        let found = &mut found[..count];
        found.sort_unstable_by_key(|(shard, _)| *shard);
        for of_shard in found.chunk_by(|(a, _), (b, _)| a == b) {
            let shard = usize::from(of_shard[0].0.0);
            if let Some(Some(engine)) = self.engines.get(shard) {
                engine.prefetch(of_shard.iter().map(|(_, key)| *key));
            }
        }
    }

    fn handle(&self, command: Command<'_>) -> Reply<Pending> {
        match command {
            Command::Get { key } => self.dispatch(&key, |db| get(db, &self.tasks, &key), || Operation::Get),
            Command::Set { key, value } => self.dispatch(
                &key,
                |db| set(db, &self.tasks, &key, &value),
                || Operation::Set(Bytes::copy_from_slice(&value)),
            ),
            Command::Delete { key } => {
                self.dispatch(&key, |db| delete(db, &self.tasks, &key), || Operation::Delete)
            }
            Command::Livez => Reply::Now(Response::OK),
            Command::Readyz => Reply::Now(match self.status.unready() {
                None => Response::OK,
                Some(why) => Response::unavailable(why),
            }),
            Command::Shutdown => {
                let (watcher, lines) = mpsc::unbounded_channel();
                self.status.stop(watcher);
                Reply::Now(Response::lines(lines))
            }
        }
    }
}

fn get(db: &Engine, tasks: &Tasks, key: &[u8]) -> Started {
    let mut lookup = match db.lookup(key) {
        Ok(lookup) => lookup,
        Err(error) => return Started::Now(Err(error)),
    };
    match lookup.poll_cached(db, key) {
        Ok(Progress::Done(value)) => Started::Now(Ok(found(value))),
        Ok(Progress::NeedsDisk) => {
            let (db, key) = (db.clone(), key.to_vec());
            let task = async move { lookup.finish(&db, &key).await.map(found) };
            Started::Later(Waiting::Task(tasks.spawn(task)))
        }
        Err(error) => Started::Now(Err(error)),
    }
}

fn found(value: Option<Bytes>) -> Answer {
    value.map_or(Answer::Missing, Answer::Value)
}

fn set(db: &Engine, tasks: &Tasks, key: &[u8], value: &[u8]) -> Started {
    match in_turn(db).and_then(|()| db.set(key, value)) {
        Ok(ticket) => Started::Later(Waiting::Write(ticket, Answer::Written)),
        Err(error) if can_wait(&error) => {
            let (db, key, value) = (db.clone(), key.to_vec(), value.to_vec());
            let place = db.wait_for_room();
            let task = async move {
                let ticket = with_room(&db, place, value.len(), || db.set(&key, &value)).await?;
                ticket.await.map(|()| Answer::Written)
            };
            Started::Barrier(Waiting::Task(tasks.spawn(task)))
        }
        Err(error) => Started::Now(Err(error)),
    }
}

fn delete(db: &Engine, tasks: &Tasks, key: &[u8]) -> Started {
    match in_turn(db).and_then(|()| db.delete(key)) {
        Ok((ticket, mut lookup)) => match lookup.poll_cached(db, key) {
            Ok(Progress::Done(value)) => Started::Later(Waiting::Write(ticket, existed(value))),
            Ok(Progress::NeedsDisk) => {
                let (db, key) = (db.clone(), key.to_vec());
                let task = async move { deleted(&db, &key, ticket, lookup).await };
                Started::Later(Waiting::Task(tasks.spawn(task)))
            }
            Err(error) => Started::Now(Err(error)),
        },
        Err(error) if can_wait(&error) => {
            let (db, key) = (db.clone(), key.to_vec());
            let place = db.wait_for_room();
            let task = async move {
                let (ticket, lookup) = with_room(&db, place, 0, || db.delete(&key)).await?;
                deleted(&db, &key, ticket, lookup).await
            };
            Started::Barrier(Waiting::Task(tasks.spawn(task)))
        }
        Err(error) => Started::Now(Err(error)),
    }
}

/// The answer to a delete, once its tombstone is durable and what it deleted is known.
async fn deleted(db: &Engine, key: &[u8], ticket: Ticket, lookup: Lookup<UringStorage>) -> Result<Answer> {
    // The value that it found is not held until the group is durable.
    let answer = lookup.finish(db, key).await.map(existed);
    ticket.await?;
    answer
}

fn existed(value: Option<Bytes>) -> Answer {
    if value.is_some() { Answer::Written } else { Answer::Missing }
}

fn can_wait(error: &Error) -> bool {
    error.kind() == ErrorKind::Overloaded
}

/// Refuses a write while others wait for room: it must not go ahead of them.
fn in_turn(db: &Engine) -> Result<()> {
    if db.waits_for_room() {
        return Err(Error::new(ErrorKind::Overloaded, "other writes wait for room"));
    }
    Ok(())
}

/// Tries a write that was refused for want of room until there is room, for a while, in the order of the calls.
async fn with_room<R>(
    db: &Engine,
    place: Place<UringStorage>,
    value_bytes: usize,
    mut write: impl FnMut() -> Result<R>,
) -> Result<R> {
    let mebibytes = u32::try_from(value_bytes >> 20).unwrap_or(u32::MAX);
    let deadline = tokio::time::Instant::now() + ROOM_TIME + ROOM_TIME_PER_MIB.saturating_mul(mebibytes);
    // Those in front may take the whole time; then there is still one try.
    let _turn = tokio::time::timeout_at(deadline, place.first()).await;
    loop {
        let room = db.room();
        match write() {
            Err(error) if can_wait(&error) => {
                if tokio::time::timeout_at(deadline, room).await.is_err() {
                    return Err(error);
                }
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DbConfig, MANIFEST_BYTES};
    use crate::db::Db;
    use crate::key::KeyHash;
    use crate::record::Owner;
    use crate::storage::directory::Directory;
    use crate::storage::uring::Device;

    const CONFIG: DbConfig = DbConfig {
        sync_every_group: true,
        memtable_bytes: 1 << 20,
        cache_bytes: 1 << 20,
        value_bytes_max: 1_000,
        open_files_max: 16,
        wal_bytes: DbConfig::wal_bytes_for(1 << 20, 1_000),
        wal_step_bytes: 1 << 20,
        manifest_bytes: MANIFEST_BYTES,
        key_hash: KeyHash::with_seed(1),
    };

    /// Lets every task go on until nothing is left to do without an event.
    async fn settle(db: &Engine) {
        for _ in 0..20 {
            db.pause().await;
        }
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
            // There is room, but somebody waits: for a place, and then in front of it.
            for delete_it in [false, true] {
                let waiting = db.wait_for_room();
                let first = waiting.first().await;
                let started =
                    if delete_it { delete(&db, &tasks, b"k") } else { set(&db, &tasks, b"k", b"v") };
                let Started::Barrier(Waiting::Task(task)) = started else {
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
            assert!(!db.waits_for_room() && tasks.0.get() == 0);
            // Without anybody who waits it is taken at once.
            let Started::Later(Waiting::Write(ticket, _)) = set(&db, &tasks, b"k", b"w") else {
                panic!("there is room")
            };
            db.commit_next().await.unwrap();
            ticket.await.unwrap();
            db.close(|_| {}).await.unwrap();
        });
    }
}
