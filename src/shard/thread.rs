//! One thread: its ring, its part of the connections, its shards, from their opening to their close.
//!
//! Owns: the tasks of the thread and the order in which they end. Knows nothing of the other threads but their
//! mailboxes and how many connections they have.
//!
//! 1. The engines are opened.
//! 2. The listener listens.
//! 3. Draining: no more accepts, requests in flight are answered, idle connections close.
//! 4. Syncing, once every thread has drained: the engines close.
//! 5. Closed, once every thread has: the clients that watch the stop get their last line.
//! 6. Nothing is in flight any more, and the runtime is dropped.
//!
//! The steps are the phases that `server` announces; the thread answers with events.

use std::cell::Cell;
use std::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_uring::net::{TcpListener, TcpStream};

use super::handler::{Dispatcher, Status, StopLines};
use super::mailbox::{Ends, Mailbox};
use super::router::{Router, ThreadId};
use super::{Background, Engine};
use crate::config::Config;
use crate::data_dir::open_storage;
use crate::db::{CloseStep, Db, LogEnd, Recovered};
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::host::{RingFlags, descriptor, pin};
use crate::http::connection::serve;
use crate::http::peers::Peers;
use crate::key::KeyHash;
use crate::record::Owner;
use crate::storage::Storage;
use crate::storage::directory::Directory;

/// How often dates are renewed and stale connections looked for.
const TICK: Duration = Duration::from_secs(1);
/// How long accepting rests after an error: without descriptors, say, trying again at once only burns time.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Such errors are logged at most this often.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(5);
/// How long a client may take for its last line, and then for its end.
const LAST_LINE_TIME: Duration = Duration::from_secs(1);
/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 1024;

/// Where the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Engines are being opened.
    Opening,
    /// Requests are served.
    Running,
    /// Requests in flight are answered; no others are.
    Draining,
    /// What still waits for its client is cut off.
    Aborting,
    /// Engines are being closed.
    Syncing,
    /// Everything is durable.
    Closed,
}

/// What a thread tells the server.
pub enum Event {
    /// Its engines are open.
    Opened(Recovered),
    /// Its engines cannot be opened, or it cannot run at all.
    Failed(Error),
    /// It accepts connections.
    Listening,
    /// A client asks for the stop.
    Stop(StopLines),
    /// No request is in flight.
    Drained,
    /// A step of the stop.
    Step(String),
    /// Its engines are closed.
    Closed,
    /// The WAL or the manifest is lost: the process has to end (P6).
    Fatal(Error),
}

/// What a thread is given.
pub struct Plan {
    /// Its number.
    pub id: ThreadId,
    /// The processor that it stays on.
    pub processor: Option<usize>,
    /// Flags of its ring.
    pub ring: RingFlags,
    /// Everything that a user chose.
    pub config: Arc<Config>,
    /// The map from keys to threads.
    pub router: Router,
    /// Its shards: who they are, where they are, and whether they are to be created.
    pub shards: Vec<ShardPlan>,
    /// A socket that is bound and does not listen yet.
    pub socket: socket2::Socket,
    /// Its mailbox.
    pub ends: Ends,
    /// Connections that other threads hand over.
    pub handed: mpsc::UnboundedReceiver<std::net::TcpStream>,
    /// What the threads know of each other's connections.
    pub balance: Arc<Balance>,
    /// The phase to follow.
    pub phase: watch::Receiver<Phase>,
    /// Where events go.
    pub events: mpsc::UnboundedSender<Event>,
    /// Bytes that large requests may take on this thread.
    pub request_bytes_max: usize,
    /// The hash function that finds keys in memory, for all threads.
    pub key_hash: KeyHash,
}

/// One shard of a thread.
pub struct ShardPlan {
    /// Who it is.
    pub owner: Owner,
    /// Its directory, held open.
    pub directory: Directory,
    /// What the directory stands on.
    pub device: crate::storage::uring::Device,
    /// Its part of the configuration.
    pub config: crate::config::DbConfig,
    /// Whether it is to be created.
    pub create: bool,
}

/// Connections of every thread, and the way to hand one over.
pub struct Balance {
    /// Connections, by thread.
    pub connections: Vec<AtomicUsize>,
    /// Where to hand a socket to, by thread.
    pub hand: Vec<mpsc::UnboundedSender<std::net::TcpStream>>,
}

impl Balance {
    fn total(&self) -> usize {
        self.connections.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The thread that should serve one more connection that arrived at `here`.
    fn choose(&self, here: ThreadId) -> ThreadId {
        let count = |thread: usize| self.connections[thread].load(Ordering::Relaxed);
        let least = (0..self.connections.len()).min_by_key(|&thread| count(thread)).unwrap_or(here.0);
        if count(least) < count(here.0) { ThreadId(least) } else { here }
    }
}

/// Runs a thread to its end. Nothing is in flight when it returns.
pub fn run(plan: Plan) {
    let events = plan.events.clone();
    let fail = |error: Error| {
        // Nobody listens if the server is gone already.
        let _ = events.send(Event::Failed(error));
    };
    if let Some(processor) = plan.processor
        && let Err(error) = pin(processor)
    {
        tracing::warn!(%error, "the thread stays unpinned");
    }
    // Built here: the ring belongs to the thread that builds it (SINGLE_ISSUER).
    match tokio_uring::Runtime::new(&plan.ring.builder()) {
        Ok(runtime) => match runtime.block_on(Thread::live(plan)) {
            Ok(Quiet::Nothing) => drop(runtime),
            // Buffers must outlive the operations that use them; the process ends, and they with it.
            Ok(Quiet::Perhaps) => std::mem::forget(runtime),
            Err(error) => {
                fail(error);
                std::mem::forget(runtime);
            }
        },
        Err(error) => fail(Error::io("build a ring for a thread", error)),
    }
}

/// What is in flight on the ring of a thread that has ended.
enum Quiet {
    Nothing,
    Perhaps,
}

struct Thread {
    id: ThreadId,
    balance: Arc<Balance>,
    connections_max: usize,
    peers: Peers<TcpStream>,
    dispatcher: Dispatcher<Follower>,
    phase: watch::Receiver<Phase>,
    events: mpsc::UnboundedSender<Event>,
    /// A connection has ended.
    ended: tokio::sync::Notify,
    refused_at: Cell<Option<Instant>>,
}

/// What connections need to know of the server.
struct Follower {
    phase: watch::Receiver<Phase>,
    events: mpsc::UnboundedSender<Event>,
}

impl Status for Follower {
    fn stop(&self, watcher: StopLines) {
        let _ = self.events.send(Event::Stop(watcher)); // fails only when the stop is over
    }

    fn unready(&self) -> Option<&'static str> {
        (*self.phase.borrow() != Phase::Running).then_some("the server is stopping")
    }
}

impl Thread {
    async fn live(plan: Plan) -> Result<Quiet> {
        let Plan { id, config, router, shards, socket, ends, handed, balance, mut phase, events, .. } = plan;
        let mut engines = Vec::new();
        let mut recovered = Recovered::default();
        for shard in shards {
            let (engine, found) = open(&config, shard).await?;
            recovered.add(&found);
            engines.push(engine);
        }
        let (fatal, mut fatalities) = mpsc::unbounded_channel();
        let background: Vec<_> =
            engines.iter().map(|engine| Background::start(engine, &config, &fatal)).collect();
        let mailbox = Rc::new(Mailbox::new(ends));
        let follower = Follower { phase: phase.clone(), events: events.clone() };
        let (now, date) = (Instant::now(), http_date());
        let this = Rc::new(Self {
            id,
            balance,
            connections_max: config.connections_max,
            peers: Peers::new(config.value_bytes_max, plan.request_bytes_max, plan.key_hash, now, &date),
            dispatcher: Dispatcher::new(id, router, engines.clone(), mailbox.clone(), follower),
            phase: phase.clone(),
            events: events.clone(),
            ended: tokio::sync::Notify::new(),
            refused_at: Cell::new(None),
        });
        let sender = mailbox.clone();
        let (receiver, carrier) = (mailbox, this.clone());
        // These own no operation of the ring, and can be aborted.
        let helpers = [
            tokio_uring::spawn(async move { sender.send().await }),
            tokio_uring::spawn(async move {
                receiver.receive(|requests| carrier.dispatcher.carry_out(requests)).await;
            }),
            tokio_uring::spawn(this.clone().tick()),
            tokio_uring::spawn(this.clone().take_handed(handed)),
            tokio_uring::spawn(async move {
                while let Some(error) = fatalities.recv().await {
                    let _ = events.send(Event::Fatal(error)); // the server may be going down for another one
                }
            }),
        ];
        this.tell(Event::Opened(recovered));

        wait_for(&mut phase, Phase::Running).await;
        let mut accepting = None;
        if *phase.borrow() == Phase::Running {
            socket.listen(BACKLOG).map_err(|error| {
                let taken = error.kind() == std::io::ErrorKind::AddrInUse;
                let error = Error::io("listen", error);
                if taken { error.with_kind(ErrorKind::AddressInUse) } else { error }
            })?;
            let listener = Rc::new(TcpListener::from_std(socket.into()));
            let task = tokio_uring::spawn(this.clone().accept(listener.clone()));
            accepting = Some((listener, task));
            this.tell(Event::Listening);
        }

        wait_for(&mut phase, Phase::Draining).await;
        if let Some((listener, task)) = accepting {
            stop_accepting(&listener);
            let _ = task.await; // an accept that panicked has ended as well
        }
        this.peers.drain();
        this.drained(&mut phase).await;
        this.tell(Event::Drained);

        wait_for(&mut phase, Phase::Syncing).await;
        for (engine, background) in engines.iter().zip(background) {
            background.stop(engine).await;
            this.close(engine).await?;
        }
        this.tell(Event::Closed);

        wait_for(&mut phase, Phase::Closed).await;
        // Those who watched have their last line; nobody else is left but who came too late.
        let quiet = async {
            while 0 < this.connections() || 0 < this.dispatcher.tasks() {
                // Tasks end without a word.
                let _ = tokio::time::timeout(Duration::from_millis(10), this.ended.notified()).await;
            }
        };
        let mut quiet = std::pin::pin!(quiet);
        let mut outcome = Quiet::Perhaps;
        for _ in 0..2 {
            if tokio::time::timeout(LAST_LINE_TIME, &mut quiet).await.is_ok() {
                outcome = Quiet::Nothing;
                break;
            }
            this.peers.cut_off();
        }
        for helper in helpers {
            helper.abort();
        }
        Ok(outcome)
    }

    /// Connections of this thread, those counted that have not begun.
    fn connections(&self) -> usize {
        self.balance.connections[self.id.0].load(Ordering::Relaxed)
    }

    fn tell(&self, event: Event) {
        let _ = self.events.send(event); // fails only when the server is gone
    }

    /// Accepts connections until the listener is shut down.
    async fn accept(self: Rc<Self>, listener: Rc<TcpListener>) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.clone().place(stream),
                // The listener was shut down.
                Err(_) if *self.phase.borrow() != Phase::Running => return,
                Err(error) => {
                    let now = Instant::now();
                    let silent = self
                        .refused_at
                        .get()
                        .is_some_and(|last| now.duration_since(last) < ACCEPT_LOG_INTERVAL);
                    if !silent {
                        self.refused_at.set(Some(now));
                        tracing::warn!(%error, "cannot accept a connection; more may follow unlogged");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// Serves a new connection here, or hands it to the thread with the fewest.
    fn place(self: Rc<Self>, stream: TcpStream) {
        if self.connections_max <= self.balance.total() {
            self.dispatcher.spawn(async move {
                // Best effort: the client learns it from the close, if not from the status.
                let _ = stream.write_all(TOO_MANY).await.0;
            });
            return;
        }
        let to = self.balance.choose(self.id);
        self.balance.connections[to.0].fetch_add(1, Ordering::Relaxed);
        if to != self.id {
            if let Ok(copy) = duplicate(&stream)
                && self.balance.hand[to.0].send(copy).is_ok()
            {
                return;
            }
            self.balance.connections[to.0].fetch_sub(1, Ordering::Relaxed);
            self.balance.connections[self.id.0].fetch_add(1, Ordering::Relaxed);
        }
        self.serve(stream);
    }

    async fn take_handed(self: Rc<Self>, mut handed: mpsc::UnboundedReceiver<std::net::TcpStream>) {
        while let Some(stream) = handed.recv().await {
            self.clone().serve(TcpStream::from_std(stream));
        }
    }

    fn serve(self: Rc<Self>, stream: TcpStream) {
        // A reply is one write; it must not wait for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        tokio_uring::spawn(async move {
            serve(stream, &self.dispatcher, &self.peers).await;
            self.balance.connections[self.id.0].fetch_sub(1, Ordering::Relaxed);
            self.ended.notify_one();
        });
    }

    async fn tick(self: Rc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            self.peers.tick(Instant::now(), &http_date());
        }
    }

    /// Waits until no connection is left but those that watch the stop; cuts the others off when told to.
    async fn drained(&self, phase: &mut watch::Receiver<Phase>) {
        let mut aborted = false;
        loop {
            if self.connections() <= self.peers.watchers() {
                return;
            }
            if !aborted && *phase.borrow() == Phase::Aborting {
                aborted = true;
                self.peers.abort();
            }
            tokio::select! {
                () = self.ended.notified() => {}
                () = self.peers.watcher_came() => {}
                _ = phase.changed() => {}
            }
        }
    }

    async fn close(&self, engine: &Engine) -> Result<()> {
        let shard = engine.owner().shard.0;
        engine
            .close(|step| {
                self.tell(Event::Step(match step {
                    CloseStep::Flushed(Some(meta)) => {
                        format!("memtable of shard {shard} flushed to {}", FileName::Sst(meta.number))
                    }
                    CloseStep::Flushed(None) => format!("memtable of shard {shard} was empty"),
                    CloseStep::WalCleaned => format!("WAL of shard {shard} cleaned up"),
                }));
            })
            .await
    }
}

/// Sent whole to a client beyond the limit.
const TOO_MANY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 25\r\nretry-after: 1\r\nconnection: close\r\n\r\ntoo many connections now\n";

/// Waits until the server has reached `phase`, or a later one.
async fn wait_for(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    // Fails only when the server is gone; then every phase has passed.
    let _ = phases.wait_for(|now| phase <= *now).await;
}

async fn open(config: &Config, plan: ShardPlan) -> Result<(Engine, Recovered)> {
    let always = config.sync == crate::config::SyncMode::Always;
    let storage = open_storage(&plan.directory, plan.device, always)?;
    if plan.create {
        let engine = Db::create(storage, plan.owner, plan.config).await?;
        return Ok((engine, Recovered::default()));
    }
    let labels = storage.clone();
    let name = |wal| labels.label(FileName::Wal(wal));
    let begin = Instant::now();
    let (engine, recovered) = Db::open(storage, plan.owner, plan.config).await?;
    if let Some(LogEnd { wal, offset, witnessed }) = recovered.log_end {
        tracing::info!(
            wal = name(wal),
            end = offset,
            witnessed,
            writes = recovered.writes,
            wal_bytes = recovered.wal_bytes,
            torn_bytes = recovered.torn_bytes,
            milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the last stop was not clean: replayed the log of shard {}",
            plan.owner.shard.0
        );
    }
    Ok((engine, recovered))
}

fn http_date() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}

/// Ends an accept in flight: it returns with an error.
fn stop_accepting(listener: &TcpListener) {
    if let Err(error) = socket2::SockRef::from(&descriptor(listener)).shutdown(Shutdown::Both) {
        tracing::warn!(%error, "cannot shut down the listener");
    }
}

/// A second descriptor of a connection, to be served by another thread; the first one closes with `stream`.
fn duplicate(stream: &TcpStream) -> std::io::Result<std::net::TcpStream> {
    Ok(descriptor(stream).try_clone_to_owned()?.into())
}
