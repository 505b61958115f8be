//! The start of the threads: what each of them is given.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, watch};

use crate::config::{Config, SyncMode};
use crate::data_dir::DataDir;
use crate::error::{Error, Result};
use crate::identity::Owner;
use crate::key::KeyHash;
use crate::memory::{Memory, Parts};
use crate::ring;
use crate::shard::accept::Balance;
use crate::shard::addresses::Addresses;
use crate::shard::handler::{Others, wall_clock};
use crate::shard::health::Health;
use crate::shard::inquiry::Inquirer;
use crate::shard::lending::Lender;
use crate::shard::listener::Bound;
use crate::shard::live::Live;
use crate::shard::mailbox::connect;
use crate::shard::metrics::{Facts, Scraper};
use crate::shard::phase::{Event, Phase};
use crate::shard::router::{Router, ThreadId};
use crate::shard::space::Space;
use crate::shard::thread::{Plan, ShardPlan, run as run_thread};
use crate::storage::device::Device;
use crate::store::Store;

/// Descriptors that are neither connections nor SSTs: rings, WALs, manifests, sockets, logs.
pub(super) const OTHER_FILES: usize = 128;
/// SSTs of all shards that are kept open at most.
const SST_FILES_MAX: usize = 16_384;

/// What all threads have in common.
pub(super) struct Common {
    pub(super) config: Arc<Config>,
    pub(super) ring: ring::Flags,
    pub(super) device: Device,
    /// The limit on open files.
    pub(super) open_files: usize,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) space: Space,
    pub(super) parts: Parts,
    pub(super) memory: Memory,
    pub(super) live: watch::Receiver<Arc<Live>>,
}

impl Common {
    /// Starts a thread for each element of `sockets`, which are the sockets of the threads, and deals the shards of the store
    /// out to the threads. If there are as many `processors`, each thread is pinned to one of them. Fewer threads are not
    /// pinned: other servers on this host would choose the same processors.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn start(
        self,
        data_dir: &DataDir,
        store: &Store,
        sockets: Vec<Vec<Bound>>,
        processors: &[usize],
    ) -> Result<(Vec<JoinHandle<()>>, Scraper)> {
        let count = sockets.len();
        let router = Router::new(store.slots.clone(), count);
        let (hand, handed): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let connections = (0..count).map(|_| AtomicUsize::new(0)).collect();
        let addresses = Addresses::new(self.config.connections_per_address_max);
        let balance = Arc::new(Balance { connections, hand, addresses });
        let sst_files = self.open_files.saturating_sub(self.config.connections_max + OTHER_FILES);
        let key_hash = KeyHash::random();
        let (files, caches) = (sst_files.min(SST_FILES_MAX), self.parts.caches);
        let config = self.config.db(store.shards, caches, files, key_hash);
        let health = Health::default();
        let mut threads = Vec::new();
        let (inquirer, questions) = Inquirer::new(count);
        let facts = self.facts(data_dir, store)?;
        let scraper = Scraper::new(inquirer.clone(), self.space.clone(), wall_clock(), facts);
        let lender = Lender::new(inquirer.clone(), store, data_dir.directory());
        let others = Others { scraper: scraper.clone(), lender, inquirer };
        let ends = connect(count).into_iter().zip(sockets).zip(handed).zip(questions).enumerate();
        for (id, (((ends, sockets), handed), questions)) in ends {
            let shards = router.shards(ThreadId(id)).into_iter().map(|shard| {
                let directory = data_dir.shard(shard)?;
                let owner = Owner { store_id: store.id, shard };
                Ok(ShardPlan { owner, directory, device: self.device, config, create: !store.ready })
            });
            let plan = Plan {
                id: ThreadId(id),
                processor: processors.get(id).copied().filter(|_| count == processors.len()),
                ring: self.ring,
                config: self.config.clone(),
                shards: shards.collect::<Result<_>>()?,
                router: router.clone(),
                sockets,
                ends,
                handed,
                balance: balance.clone(),
                phase: self.phase.clone(),
                events: self.events.clone(),
                space: self.space.clone(),
                key_hash,
                memory: self.memory.clone(),
                health: health.clone(),
                live: self.live.clone(),
                others: others.clone(),
                questions,
            };
            let thread = std::thread::Builder::new()
                .name(format!("ringkeep-{id}"))
                .spawn(move || run_thread(plan))
                .map_err(|error| Error::thread("start a thread", error))?;
            threads.push(thread);
        }
        Ok((threads, scraper))
    }

    /// What the page for people shows of this server, and what does not change.
    fn facts(&self, data_dir: &DataDir, store: &Store) -> Result<Facts> {
        let Config { sync, value_bytes_max, .. } = *self.config;
        let primitive = primitive(&self.config, self.device);
        let copied = data_dir.directory().file().try_clone();
        let shown = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("RINGKEEP_COMMIT"),
            "data_dir": data_dir.directory().path().to_string_lossy(),
            "store": format!("{:016x}", store.id),
            "sync": { "mode": sync.to_string(), "primitive": primitive, "direct": self.device.direct },
            "limits": {
                "value_bytes": value_bytes_max,
                "memory_bytes": self.parts.total,
                "memtable_bytes": self.config.memtable_bytes,
                "cache_bytes": self.parts.caches,
                "open_files": self.open_files,
            },
        });
        let data_dir = copied.map_err(|error| Error::io("keep the data directory open", error))?;
        Ok(Facts { data_dir, shown, live: self.live.clone() })
    }
}

/// What a write waits for, as people are told.
pub(super) fn primitive(config: &Config, device: Device) -> String {
    match config.sync {
        SyncMode::Always => device.sync_primitive.to_string(),
        SyncMode::Interval(_) | SyncMode::Never => "write, acknowledged before its sync".into(),
    }
}

/// Looks at the file system and the device of the data directory, and warns if it has no O_DIRECT.
///
/// # Errors
/// `Io`, `DiskFull` or `Permission`.
pub(super) fn probe_device(data_dir: &DataDir) -> Result<Device> {
    let shown = data_dir.directory().path().display();
    let device =
        Device::probe(data_dir.directory()).map_err(|error| Error::io(format!("write to {shown}"), error))?;
    if data_dir.directory().volume().is_ok_and(|volume| !volume.has_inodes) {
        tracing::warn!(
            "the file system of {shown} has no free inodes: no file can be created until other files are removed"
        );
    }
    if data_dir.directory().is_in_memory() {
        tracing::warn!(
            "{shown} is on a tmpfs, which is memory: a restart of the host takes everything that is written here"
        );
    } else if !device.direct {
        tracing::warn!(
            "the file system of {shown} has no O_DIRECT: files go through the page cache, and a failed sync may go \
             unnoticed (use ext4 or XFS)"
        );
    }
    Ok(device)
}
