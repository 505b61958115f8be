//! One thread: its ring, its part of the connections, and its shards from their opening to their close.
//!
//! 1. The engines are opened.
//! 2. The listener listens.
//! 3. Draining: no connection is accepted any more, requests in flight are answered, idle connections close.
//! 4. Syncing, once every thread has drained: the engines close.
//! 5. Closed, once every thread has closed its engines: the clients that watch the stop get their last line.
//! 6. Once nothing is in flight any more, the runtime is dropped. If that takes too long, the runtime is leaked.
//!
//! The steps are the phases that `server` announces; the thread answers with events.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::Engine;
use super::accept::{Balance, Connections};
use super::background::Background;
use super::commits::Commits;
use super::handler::{Dispatcher, Others, Status, StopLines, wall_clock};
use super::health::Health;
use super::inquiry::{Question, Questions, ThreadSample};
use super::listener::{Bound, Listener};
use super::live::Live;
use super::mailbox::{Ends, Mailbox};
use super::phase::{Event, Phase};
use super::router::{Router, ThreadId};
use super::socket::Handed;
use super::space::Space;
use crate::config::{Config, DbConfig, SyncMode};
use crate::data_dir::open_storage;
use crate::db::{CloseStep, Db, LogEnd, Recovered};
use crate::error::{Error, Result};
use crate::file_name::FileName;
use crate::host::pin;
use crate::http::authority::LastAddress;
use crate::http::peers::{Peers, Rules};
use crate::identity::Owner;
use crate::key::KeyHash;
use crate::memory::Memory;
use crate::ring;
use crate::storage::Storage;
use crate::storage::device::Device;
use crate::storage::directory::Directory;

/// How often the date is renewed and stale connections are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How long a client may take to receive its last line, and how long its connection may take to end after that.
const LAST_LINE_TIME: Duration = Duration::from_secs(1);

/// What a thread is given.
pub struct Plan {
    /// Its number.
    pub id: ThreadId,
    /// The processor that it stays on.
    pub processor: Option<usize>,
    /// Flags of its ring.
    pub ring: ring::Flags,
    /// Everything that a user chose.
    pub config: Arc<Config>,
    /// The map from keys to threads.
    pub router: Router,
    /// Its shards.
    pub shards: Vec<ShardPlan>,
    /// Sockets that are bound.
    pub sockets: Vec<Bound>,
    /// Its ends of the rings between threads.
    pub ends: Ends,
    /// Connections that other threads hand over.
    pub handed: mpsc::UnboundedReceiver<Handed>,
    /// What the threads know of each other's connections.
    pub balance: Arc<Balance>,
    /// The phase to follow.
    pub phase: watch::Receiver<Phase>,
    /// Where events go.
    pub events: mpsc::UnboundedSender<Event>,
    /// The space on the disk.
    pub space: Space,
    /// The memory that all threads share.
    pub memory: Memory,
    /// What is damaged.
    pub health: Health,
    /// The hash function that finds keys in memory, for all threads.
    pub key_hash: KeyHash,
    /// What may change while the server runs, now and later.
    pub live: watch::Receiver<Arc<Live>>,
    /// What reaches all threads.
    pub others: Others,
    /// Where this thread is asked.
    pub questions: Questions,
}

/// One shard of a thread.
pub struct ShardPlan {
    /// Who it is.
    pub owner: Owner,
    /// Its directory, held open.
    pub directory: Directory,
    /// The device of the directory.
    pub device: Device,
    /// Its part of the configuration.
    pub config: DbConfig,
    /// Whether it is to be created.
    pub create: bool,
}

/// Runs a thread to its end. If operations may still be in flight then, the runtime and its buffers are leaked.
pub fn run(plan: Plan) {
    let events = plan.events.clone();
    let fail = |error: Error| {
        // Fails only if the server is already gone.
        let _ = events.send(Event::Failed(error));
    };
    if let Some(processor) = plan.processor
        && let Err(error) = pin(processor)
    {
        tracing::warn!(%error, "the thread stays unpinned");
    }
    // Built here: the ring belongs to the thread that builds it (SINGLE_ISSUER).
    match tokio_uring::Runtime::new(&plan.ring.builder()) {
        Ok(runtime) => match runtime.block_on(live(plan)) {
            Ok(Quiet::Nothing) => drop(runtime),
            // Buffers must outlive the operations that use them. The process is about to end, which frees the buffers.
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

/// A thread whose engines are open.
struct Thread {
    connections: Rc<Connections<Follower>>,
    engines: Vec<Engine>,
    background: Vec<Background>,
    /// Tasks that own no operation of the ring, and can be aborted.
    helpers: Vec<JoinHandle<()>>,
    phase: watch::Receiver<Phase>,
    events: mpsc::UnboundedSender<Event>,
    space: Space,
}

/// What connections need to know of the server.
struct Follower {
    phase: watch::Receiver<Phase>,
    events: mpsc::UnboundedSender<Event>,
    space: Space,
    health: Health,
}

impl Status for Follower {
    fn stop(&self, watcher: StopLines) {
        let _ = self.events.send(Event::Stop(watcher)); // fails only when the stop is over
    }

    fn unready(&self) -> Option<&'static str> {
        let refused = self.health.unready();
        refused.or_else(|| {
            if *self.phase.borrow() != Phase::Running {
                Some("the server is stopping")
            } else if self.space.is_full() {
                Some("disk full")
            } else {
                None
            }
        })
    }

    fn degraded(&self) -> Option<String> {
        self.health.degraded()
    }

    fn stopping(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        let mut phase = self.phase.clone();
        Box::pin(async move {
            // Fails only when the server is gone.
            let _ = phase.wait_for(|now| Phase::Draining <= *now).await;
        })
    }
}

async fn live(plan: Plan) -> Result<Quiet> {
    let (mut thread, sockets) = Thread::open(plan).await?;
    thread.serve(sockets).await?;
    thread.close_engines().await?;
    Ok(thread.end().await)
}

impl Thread {
    /// Opens the engines, and starts everything except the listeners. Returns the sockets to listen on.
    async fn open(plan: Plan) -> Result<(Self, Vec<Bound>)> {
        let Plan {
            id,
            config,
            router,
            shards,
            sockets,
            ends,
            handed,
            balance,
            phase,
            events,
            space,
            memory,
            health,
            key_hash,
            live,
            others,
            questions,
            ..
        } = plan;
        let begin = Instant::now();
        let (engines, recovered) = open_all(&config, shards, &memory).await?;
        let opened = (recovered, begin.elapsed());
        let (fatal, fatalities) = mpsc::unbounded_channel();
        let commits = Rc::<Commits>::default();
        let background = engines
            .iter()
            .map(|engine| Background::start(engine, &config, &fatal, (&space, &memory, &health, &commits)))
            .collect();
        let mailbox = Rc::new(Mailbox::new(ends));
        let follower =
            Follower { phase: phase.clone(), events: events.clone(), space: space.clone(), health };
        let now = live.borrow().clone();
        let rules = Rules {
            policy: now.policy.clone(),
            value_bytes_max: config.value_bytes_max,
            key_hash,
            address: LastAddress::default(),
        };
        let peers = Peers::new(rules, now.times, memory, Instant::now(), &http_date());
        peers.log_requests(now.access_log);
        let connections = Rc::new(Connections {
            id,
            balance,
            connections_max: Cell::new(now.connections_max),
            peers,
            dispatcher: Dispatcher::new(
                (id, router),
                (engines.clone(), commits.clone()),
                mailbox.clone(),
                follower,
                others,
            ),
            refused: Cell::new(0),
            ended: Notify::new(),
            tls: RefCell::new(now.tls.clone()),
            failed_at: Cell::new(None),
        });
        let mut helpers = help(&connections, &mailbox, handed, live, (fatalities, &events));
        let answers = answer(questions, connections.clone(), engines.clone(), commits, opened);
        helpers.push(tokio_uring::spawn(answers));
        let thread = Self { connections, engines, background, helpers, phase, events, space };
        thread.tell(Event::Opened(recovered));
        Ok((thread, sockets))
    }

    /// Accepts and serves connections until the server drains, then waits until the connections have drained.
    async fn serve(&mut self, sockets: Vec<Bound>) -> Result<()> {
        self.wait_for(Phase::Running).await;
        let mut accepting = Vec::new();
        if *self.phase.borrow() < Phase::Draining {
            for socket in sockets {
                let listener = Rc::new(Listener::new(socket)?);
                let accept = self.connections.clone().accept(listener.clone(), self.phase.clone());
                accepting.push((listener, tokio_uring::spawn(accept)));
            }
            self.tell(Event::Listening);
        }
        self.wait_for(Phase::Draining).await;
        for (listener, task) in accepting {
            listener.stop().await;
            let _ = task.await; // an accept that panicked has ended as well
        }
        self.connections.peers.drain();
        self.connections.drained(&mut self.phase).await;
        self.tell(Event::Drained);
        Ok(())
    }

    /// Ends the background work and closes the engines, once every thread has drained.
    async fn close_engines(&mut self) -> Result<()> {
        self.wait_for(Phase::Syncing).await;
        for (engine, background) in self.engines.iter().zip(std::mem::take(&mut self.background)) {
            background.stop(engine).await;
            self.close(engine).await?;
        }
        self.tell(Event::Closed);
        Ok(())
    }

    async fn close(&self, engine: &Engine) -> Result<()> {
        let _turn = self.space.turn().await;
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

    /// Waits for the last connections, once every thread has closed its engines.
    async fn end(mut self) -> Quiet {
        self.wait_for(Phase::Closed).await;
        // The only connections left are those that watch the stop, which get their last line now, and those that came
        // too late.
        let mut quiet = std::pin::pin!(self.connections.quiet());
        let mut outcome = Quiet::Perhaps;
        for _ in 0..2 {
            if tokio::time::timeout(LAST_LINE_TIME, &mut quiet).await.is_ok() {
                outcome = Quiet::Nothing;
                break;
            }
            self.connections.peers.cut_off();
        }
        for helper in &self.helpers {
            helper.abort();
        }
        outcome
    }

    /// Waits until the server has reached `phase`, or a later one.
    async fn wait_for(&mut self, phase: Phase) {
        // Fails only when the server is gone; then every phase has passed.
        let _ = self.phase.wait_for(|now| phase <= *now).await;
    }

    fn tell(&self, event: Event) {
        let _ = self.events.send(event); // fails only when the server is gone
    }
}

/// Starts the tasks that own no operation of the ring: messages of other threads, the clock of the connections, changes of
/// the settings, connections that other threads hand over, and failures.
fn help(
    connections: &Rc<Connections<Follower>>,
    mailbox: &Rc<Mailbox>,
    handed: mpsc::UnboundedReceiver<Handed>,
    mut live: watch::Receiver<Arc<Live>>,
    (mut fatalities, events): (mpsc::UnboundedReceiver<Error>, &mpsc::UnboundedSender<Event>),
) -> Vec<JoinHandle<()>> {
    let (sender, receiver, owner) = (mailbox.clone(), mailbox.clone(), connections.clone());
    let (ticking, told, events) = (connections.clone(), connections.clone(), events.clone());
    vec![
        tokio_uring::spawn(async move { sender.send().await }),
        tokio_uring::spawn(async move {
            receiver.receive(|requests| owner.dispatcher.carry_out(requests)).await;
        }),
        tokio_uring::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                ticking.peers.tick(Instant::now(), &http_date());
            }
        }),
        tokio_uring::spawn(async move {
            while live.changed().await.is_ok() {
                let now = live.borrow_and_update().clone();
                told.peers.change(now.policy.clone(), now.times, now.access_log);
                told.change(&now);
            }
        }),
        tokio_uring::spawn(connections.clone().take_handed(handed)),
        tokio_uring::spawn(async move {
            while let Some(error) = fatalities.recv().await {
                let _ = events.send(Event::Fatal(error)); // the server may already be going down
            }
        }),
    ]
}

/// Answers the questions of other threads. Cancel safety: safe.
async fn answer(
    questions: Questions,
    connections: Rc<Connections<Follower>>,
    engines: Vec<Engine>,
    commits: Rc<Commits>,
    (recovered, opening): (Recovered, Duration),
) {
    let each = |question| match question {
        Question::Sample(answer) => {
            let _ = answer.send(ThreadSample {
                http: connections.peers.sample(wall_clock()),
                shards: engines.iter().map(Engine::sample).collect(),
                commits: commits.durations(),
                backups: connections.dispatcher.backups(),
                recovered,
                opening,
            }); // the client has left
        }
        question => connections.dispatcher.answer(question),
    };
    questions.each(each).await;
}

/// Creates or opens the engines of a thread. Returns what recovery has found in all of them.
async fn open_all(
    config: &Config,
    shards: Vec<ShardPlan>,
    memory: &Memory,
) -> Result<(Vec<Engine>, Recovered)> {
    let mut engines = Vec::new();
    let mut recovered = Recovered::default();
    for shard in shards {
        let (engine, found) = open(config, shard, memory.clone()).await?;
        recovered.add(&found);
        engines.push(engine);
    }
    Ok((engines, recovered))
}

/// Creates or opens the engine of a shard, and logs what recovery has found.
async fn open(config: &Config, plan: ShardPlan, memory: Memory) -> Result<(Engine, Recovered)> {
    let always = config.sync == SyncMode::Always;
    let storage = open_storage(&plan.directory, plan.device, always)?;
    if plan.create {
        let engine = Db::create_with(storage, plan.owner, plan.config, memory).await?;
        return Ok((engine, Recovered::default()));
    }
    let labels = storage.clone();
    let name = |wal| labels.label(FileName::Wal(wal));
    let begin = Instant::now();
    let (engine, recovered) = Db::open_with(storage, plan.owner, plan.config, memory).await?;
    for damage in engine.damages_known() {
        tracing::error!("{damage}: reads and deletes of them get 500; `ringkeep repair` gives them up");
    }
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
