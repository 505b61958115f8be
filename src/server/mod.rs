//! The process: what has to hold before threads start, how they start, and how they stop together.
//!
//! Owns: the order of the start, the phases of the stop, and the exit.
//!
//! Start: ring probed → address reserved → data directory there and locked → `STORE` read or written → threads open
//! their shards → `STORE` says ready → sockets listen → `listening on …` is printed.
//!
//! ```text
//!   Opening ──► Running ──(signal, /shutdown)──► Draining ──(all drained)──► Syncing ──(all closed)──► Closed
//!                  │                                └──(drain time-out)──► Aborting ──► Syncing
//!                  └──(WAL or manifest lost)──► replies are sent for a moment, then exit 74
//! ```
//!
//! A stop that is killed half-way is a crash like any other: the next start replays the WALs.

mod access;
mod listen;
mod memory;
mod reload;
mod signals;
mod space;
mod start;
mod supervisor;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use rustix::fs::Mode;
use tokio::sync::{mpsc, watch};

use self::listen::{bind, bound_buffers, check_exposure};
use self::reload::Reload;
pub use self::reload::{Operator, Settings};
use self::signals::Signals;
use self::space::{Monitor, memtable_bytes_max};
use self::start::{Common, OTHER_FILES, primitive, probe_device};
use crate::config::{Config, DbConfig, Listen, MEMTABLE_BYTES_MIN, ShutdownMode, SyncMode};
use crate::data_dir::DataDir;
use crate::db::Recovered;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{
    file_size_max, give_back_large_buffers, memory_bytes, parallelism, processors, raise_open_files,
};
use crate::memory::{Memory, Parts};
use crate::ring;
use crate::shard::handler::StopLines;
use crate::shard::live::Live;
use crate::shard::phase::{Event, Phase};
use crate::storage::device::Device;
use crate::store::Store;

/// How much longer the stop waits after it has cut off connections at the drain time-out.
const ABORT_TIME: Duration = Duration::from_secs(5);
/// When the WAL is lost, how long the replies that report it may take to leave.
const FATAL_TIME: Duration = Duration::from_millis(500);
/// Stands for no limit, and is short enough to be added to the current time.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Runs the server to its end, for `operator`.
///
/// # Errors
/// What kept the server from starting or running. The kind of the error decides the exit status.
pub fn run(settings: Settings, operator: Rc<dyn Operator>) -> Result<()> {
    let Settings { mut config, shown } = settings;
    config.validate()?;
    give_back_large_buffers();
    // Whatever was inherited: files are 0600 and directories 0700.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let (ring, runtime) = ring::probe()?;
    if ring == ring::Flags::Plain {
        tracing::warn!(
            "this kernel has no cooperative rings (Linux 6.0 has them): requests take more processor time"
        );
    }
    warn(&config);
    let open_files = raise_open_files();
    limit_connections(&mut config, open_files)?;
    check_file_size(&config)?;
    let settings = Settings { config, shown };
    runtime.block_on(Server::run(settings, ring, open_files, operator))
}

/// Checks what a start would check of the settings, and warns of what it would warn of. Binds nothing, and does not look at
/// the data directory.
///
/// # Errors
/// As the start.
pub fn check(config: &Config) -> Result<()> {
    config.validate()?;
    warn(config);
    for listen in &config.listen {
        check_exposure(config, listen)?;
    }
    plan(config).map(|_| ())
}

/// What follows from the settings before anything of the system is taken.
struct Outline {
    threads: usize,
    /// Shards of a new store.
    shards: u16,
    live: Live,
}

/// # Errors
/// `Configuration` if the memory is too small, or a file of the access rules is wrong; `Permission`.
fn plan(config: &Config) -> Result<Outline> {
    let threads = config.threads.map_or_else(|| parallelism().min(processors().len()), usize::from);
    let shards = config.shards.unwrap_or(u16::try_from(threads).unwrap_or(u16::MAX));
    Parts::of(config, shards)?;
    let live = access::read(config)?;
    access::warn(&live);
    Ok(Outline { threads, shards, live })
}

/// Warns of settings that are allowed, and may not be meant.
fn warn(config: &Config) {
    let usable = memory_bytes();
    if usable < config.memory_bytes as u64 {
        tracing::warn!(
            "--memory {} is more than the {} that the process may use",
            ByteSize(config.memory_bytes as u64),
            ByteSize(usable)
        );
    }
    let processors = processors().len();
    if let Some(threads) = config.threads
        && processors < usize::from(threads)
    {
        tracing::warn!(
            "--threads {threads} is more than the processors, {processors}: threads that share one wait for each other"
        );
    }
    if config.insecure {
        tracing::warn!("--insecure: everyone who can connect may read, write and delete everything");
    }
    if config.shutdown == ShutdownMode::Any {
        let who = if config.token_file.is_some() { "everyone with an admin token" } else { "everyone" };
        tracing::warn!("--shutdown any: {who} who can connect may stop the server");
    }
}

/// Refuses to start if the system allows only files that are too short for a WAL.
fn check_file_size(config: &Config) -> Result<()> {
    let needed = DbConfig::wal_bytes_for(config.memtable_bytes, config.value_bytes_max);
    match file_size_max() {
        Some(limit) if limit < needed => {
            let message = format!(
                "the limit on file sizes is {}, but a WAL takes up to {}: raise the limit (ulimit -f, LimitFSIZE= in a \
                 systemd unit), or lower --memtable-size or --max-value-size",
                ByteSize(limit),
                ByteSize(needed)
            );
            Err(Error::new(ErrorKind::Configuration, message))
        }
        _ => Ok(()),
    }
}

/// Lowers the limit on connections so that descriptors are left for files.
fn limit_connections(config: &mut Config, open_files: usize) -> Result<()> {
    let most = open_files.saturating_sub(2 * OTHER_FILES);
    if most == 0 {
        let message =
            format!("the limit of {open_files} open files is too low; raise it (ulimit -n) to 4096");
        return Err(Error::new(ErrorKind::Configuration, message));
    }
    if most < config.connections_max {
        tracing::warn!(
            connections = most,
            "fewer connections than --max-connections: the limit on open files is {open_files}"
        );
        config.connections_max = most;
    }
    Ok(())
}

/// Divides the memory. What depends on its parts follows from them: the size of memtables and the number of connections.
fn fit_to_memory(config: Arc<Config>, shards: u16) -> Result<(Arc<Config>, Parts)> {
    let parts = Parts::of(&config, shards)?;
    let mut config = (*config).clone();
    config.memtable_bytes = config.memtable_bytes.min(parts.memtable_bytes(shards));
    let connections_max = parts.connections_max(config.tls.is_some());
    if connections_max < config.connections_max {
        config.connections_max = connections_max;
        tracing::info!(
            connections = config.connections_max,
            "fewer connections than --max-connections, because --memory is {}",
            ByteSize(parts.total as u64)
        );
    }
    Ok((Arc::new(config), parts))
}

/// On a small volume memtables are smaller, so that the reserve suffices for the SST of one.
fn fit_to_volume(config: Arc<Config>, data_dir: &DataDir) -> Arc<Config> {
    let Ok(volume) = data_dir.directory().volume() else { return config };
    let most = memtable_bytes_max(volume.bytes).max(MEMTABLE_BYTES_MIN as u64);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if config.memtable_bytes <= most {
        return config;
    }
    tracing::info!(
        memtable_size = %ByteSize(most as u64),
        "memtables are smaller than --memtable-size, because the volume has only {}",
        ByteSize(volume.bytes)
    );
    Arc::new(Config { memtable_bytes: most, ..(*config).clone() })
}

fn log_store(data_dir: &DataDir, store: &Store) {
    let path = data_dir.directory().path();
    if store.ready {
        tracing::info!(data_dir = %path.display(), bytes = %ByteSize(data_dir.bytes(store)), "opened the store");
    } else {
        tracing::info!(data_dir = %path.display(), shards = store.shards, "created a new store");
    }
}

struct Server {
    config: Arc<Config>,
    /// What may change while the server runs.
    live: watch::Receiver<Arc<Live>>,
    phase: watch::Sender<Phase>,
    events: mpsc::UnboundedReceiver<Event>,
    threads: Vec<std::thread::JoinHandle<()>>,
    /// Clients that watch the stop.
    watchers: Vec<StopLines>,
    /// The watch over the disk, and how to end it.
    monitor: Option<(watch::Sender<bool>, tokio::task::JoinHandle<Monitor>)>,
}

impl Server {
    async fn run(
        settings: Settings,
        ring: ring::Flags,
        open_files: usize,
        operator: Rc<dyn Operator>,
    ) -> Result<()> {
        let (config, chosen) = (Arc::new(settings.config), settings.shown);
        // From here on a signal is a request to stop, even one that comes while shards are opened.
        let mut signals = Signals::new()?;
        let processors = processors();
        // A server that does not have enough memory, or cannot have its address, must not create a data directory.
        let Outline { threads, shards, live } = plan(&config)?;
        let mut sockets = bind(&config, threads).await?;
        // The lock is held to the end of the process: after an error, threads may still write.
        let data_dir = &*Box::leak(Box::new(DataDir::open_or_create(&config.data_dir)?));
        let device = probe_device(data_dir)?;
        let root = data_dir.storage(device)?;
        let mut store = data_dir.open_store(&root, config.shards, shards).await?;
        let (config, parts) = fit_to_memory(fit_to_volume(config, data_dir), store.shards)?;
        bound_buffers(&sockets, &parts, config.connections_max)?;
        let reload = Reload::new(operator.clone(), &config, chosen, &sockets.places, live);
        let memory = Memory::new(&parts, store.shards);
        let (monitor, space) = Monitor::open(data_dir, &root, &config, &store).await?;
        let (stop_monitor, stopped) = watch::channel(false);
        let monitor = tokio_uring::spawn(monitor.run(stopped));
        let (phase, follow) = watch::channel(Phase::Opening);
        let (teller, events) = mpsc::unbounded_channel();
        let common = Common {
            config: config.clone(),
            ring,
            device,
            open_files,
            phase: follow,
            events: teller,
            space,
            parts,
            memory: memory.clone(),
            live: reload.follow(),
        };
        let by_thread = std::mem::take(&mut sockets.by_thread);
        let (threads, scraper) = common.start(data_dir, &store, by_thread, &processors)?;
        tokio_uring::spawn(memory::watch(memory));
        let live = reload.follow();
        tokio_uring::spawn(reload.run(signals.hangup()?));
        let mut server = Self {
            config,
            live,
            phase,
            events,
            threads,
            watchers: Vec::new(),
            monitor: Some((stop_monitor, monitor)),
        };
        if !server.open(&mut signals).await? {
            // Nothing was served, and a later start finds everything that it needs.
            tracing::info!("stopped before the shards were open");
            return Ok(());
        }
        log_store(data_dir, &store);
        if !store.ready {
            store.ready = true;
            store.save(&root).await?;
        }
        server.log_start(&store, device, &sockets.places, &parts);
        let listening = || {
            operator.announce(&sockets.places);
            supervisor::ready(&shown(&sockets.places));
            tokio_uring::spawn(supervisor::feed_watchdog(scraper));
        };
        let ended = server.serve(&mut signals, listening).await;
        if ended.is_err() {
            // The process is about to end. If the watchers of the stop were dropped, their replies would end as if the
            // stop were complete.
            std::mem::forget(server);
        }
        ended
    }

    /// Serves until a stop is asked for, and stops. Calls `listening` when clients can connect.
    async fn serve(&mut self, signals: &mut Signals, listening: impl FnOnce()) -> Result<()> {
        self.phase.send_replace(Phase::Running);
        let mut missing = self.threads.len();
        let counts = |event: &Event| matches!(event, Event::Listening);
        if self.gather(signals, &mut missing, None, counts).await? == Gathered::All {
            listening();
            self.wait_for_stop(signals).await?;
        }
        self.stop(signals).await
    }

    fn log_start(&self, store: &Store, device: Device, places: &[Listen], parts: &Parts) {
        let primitive = primitive(&self.config, device);
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = shown(places),
            shards = store.shards,
            threads = self.threads.len(),
            sync = %self.config.sync,
            primitive,
            "ringkeep starts"
        );
        let size = |bytes: usize| ByteSize(bytes as u64);
        tracing::info!(
            memory = %size(parts.total),
            memtables = %size(parts.memtables),
            memtable = %size(self.config.memtable_bytes),
            caches = %size(parts.caches),
            requests = %size(parts.buffers + parts.requests + parts.body),
            merges = %size(parts.merges),
            connections = self.config.connections_max,
            "the memory and its parts"
        );
        if let Some(tokens) = &self.live.borrow().policy.tokens {
            tracing::info!(%tokens, "requests need a token");
        }
        if self.config.sync != SyncMode::Always {
            tracing::warn!(
                "--sync {}: a power cut may lose acknowledged writes; with --sync always it loses none",
                self.config.sync
            );
        }
    }

    /// Waits until every thread has opened its shards. `false` if a signal came first.
    async fn open(&mut self, signals: &mut Signals) -> Result<bool> {
        let mut recovered = Recovered::default();
        let opened = |event: &Event| match event {
            Event::Opened(found) => {
                recovered.add(found);
                true
            }
            _ => false,
        };
        let mut missing = self.threads.len();
        let outcome = self.gather(signals, &mut missing, None, opened).await?;
        if 0 < recovered.leftovers {
            tracing::info!(files = recovered.leftovers, "removed files that no manifest names");
        }
        Ok(outcome == Gathered::All)
    }

    /// Waits for `missing` more events that `counts` accepts.
    async fn gather(
        &mut self,
        signals: &mut Signals,
        missing: &mut usize,
        limit: Option<Duration>,
        mut counts: impl FnMut(&Event) -> bool,
    ) -> Result<Gathered> {
        let deadline = tokio::time::Instant::now() + limit.unwrap_or(FOR_EVER);
        while 0 < *missing {
            tokio::select! {
                name = signals.next() => {
                    let at_once = if self.is_stopping() { " at once" } else { "" };
                    tracing::info!("{name}: the server stops{at_once}");
                    return Ok(Gathered::Signal);
                }
                () = tokio::time::sleep_until(deadline) => return Ok(Gathered::TimedOut),
                event = self.events.recv() => {
                    if event.as_ref().is_some_and(&mut counts) {
                        *missing -= 1;
                    } else {
                        self.common(event).await?;
                    }
                }
            }
        }
        Ok(Gathered::All)
    }

    /// Events that may come at any time.
    async fn common(&mut self, event: Option<Event>) -> Result<()> {
        match event {
            Some(Event::Fatal(error)) => Err(self.fail(error).await),
            Some(Event::Failed(error)) => Err(error),
            Some(Event::Stop(watcher)) => {
                if self.is_stopping() {
                    tracing::info!("/shutdown: the server stops already");
                }
                self.watchers.push(watcher);
                Ok(())
            }
            Some(Event::Step(step)) => {
                self.show(&step);
                Ok(())
            }
            Some(Event::Opened(_) | Event::Listening | Event::Drained | Event::Closed) => Ok(()),
            None => Err(Error::new(ErrorKind::Io, "every thread has ended before the stop")),
        }
    }

    async fn wait_for_stop(&mut self, signals: &mut Signals) -> Result<()> {
        while self.watchers.is_empty() {
            tokio::select! {
                name = signals.next() => {
                    tracing::info!("{name}: the server stops");
                    return Ok(());
                }
                event = self.events.recv() => self.common(event).await?,
            }
        }
        signals.asked_otherwise();
        tracing::info!("/shutdown: the server stops");
        Ok(())
    }

    fn is_stopping(&self) -> bool {
        Phase::Running < *self.phase.borrow()
    }

    /// The graceful stop.
    async fn stop(&mut self, signals: &mut Signals) -> Result<()> {
        supervisor::stopping();
        let at_once = || {
            let message = "a signal during the stop ended it at once; the next start replays the WALs";
            Err(Error::new(ErrorKind::Io, message))
        };
        let (delay, drain_timeout) = {
            let live = self.live.borrow();
            (live.shutdown_delay, live.drain_timeout)
        };
        self.phase.send_replace(Phase::Leaving);
        if !delay.is_zero() {
            self.show("stopping: not ready any more, requests are served for --shutdown-delay");
            let mut missing = 1; // no event counts
            if self.gather(signals, &mut missing, Some(delay), |_| false).await? == Gathered::Signal {
                return at_once();
            }
        }
        self.show("stopping: no more connections are accepted");
        self.phase.send_replace(Phase::Draining);
        let mut missing = self.threads.len();
        for limit in [drain_timeout, ABORT_TIME] {
            match self
                .gather(signals, &mut missing, Some(limit), |event| matches!(event, Event::Drained))
                .await?
            {
                Gathered::All => break,
                Gathered::Signal => return at_once(),
                Gathered::TimedOut if *self.phase.borrow() == Phase::Draining => {
                    self.show(
                        "the drain time-out is over: connections that wait for their clients are cut off",
                    );
                    self.phase.send_replace(Phase::Aborting);
                }
                Gathered::TimedOut => {
                    let message = "requests in flight do not end; the next start replays the WALs";
                    return Err(Error::new(ErrorKind::Io, message));
                }
            }
        }
        self.show("requests drained");
        let mut monitor = None;
        if let Some((stop, watch)) = self.monitor.take() {
            stop.send_replace(true);
            monitor = watch.await.ok(); // without it, the reserve is allocated at the next start
        }
        self.phase.send_replace(Phase::Syncing);
        let mut missing = self.threads.len();
        match self.gather(signals, &mut missing, None, |event| matches!(event, Event::Closed)).await? {
            Gathered::All => {}
            Gathered::Signal | Gathered::TimedOut => return at_once(),
        }
        if let Some(monitor) = monitor {
            monitor.restore().await;
        }
        self.show("stopped");
        // A client that asks for the stop from now on gets an empty reply at once: there is nothing left to watch.
        self.events.close();
        while self.events.try_recv().is_ok() {}
        self.watchers.clear();
        self.phase.send_replace(Phase::Closed);
        for thread in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                tracing::error!("a thread ended badly");
            }
        }
        Ok(())
    }

    /// The WAL or the manifest is lost: waiting clients are told, then the process ends (P6).
    async fn fail(&mut self, error: Error) -> Error {
        tracing::error!("nothing more is acknowledged, and the process ends"); // the error comes last
        self.phase.send_replace(Phase::Draining);
        tokio::time::sleep(FATAL_TIME).await;
        error
    }

    /// Reports a step of the stop to the log and to the clients that watch it.
    fn show(&mut self, step: &str) {
        tracing::info!("{step}");
        // Watchers that have left are removed.
        self.watchers.retain(|watcher| watcher.send(format!("{step}\n")).is_ok());
    }
}

/// The places where the server listens.
fn shown(places: &[Listen]) -> String {
    places.iter().map(Listen::to_string).collect::<Vec<_>>().join(" ")
}

/// How a wait for events ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gathered {
    /// All have come.
    All,
    /// A signal asks for the stop, or for its immediate end.
    Signal,
    /// The time is over.
    TimedOut,
}
