//! The page of metrics: asks every thread for its figures, and writes them as Prometheus reads them.
//!
//! Threads count in plain cells. A scrape asks each thread ([`super::inquiry`]), and adds the answers up, so counting costs
//! a thread nothing but an addition. One scrape at a time is under way.
//!
//! Names and units follow the naming practices of Prometheus: base units, `_total` for counts, `_info` for facts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, oneshot, watch};

use super::inquiry::{Inquirer, Question, ThreadSample};
use super::live::Live;
use super::space::Space;
use crate::db::{Recovered, Sample};
use crate::host;
use crate::http::Response;
use crate::key::UnixMillis;
use crate::manifest::LEVELS;
use crate::tally::{BOUNDS_MICROS, Histogram};

/// How long a scrape waits for the threads.
const SCRAPE_TIME: Duration = Duration::from_secs(5);
pub(super) const SILENT: &str = "a thread does not answer";

/// What is known without asking the threads.
pub struct Facts {
    /// The data directory.
    pub data_dir: std::fs::File,
    /// The version, the settings and the limits in force, as the page for people shows them.
    pub shown: serde_json::Value,
    /// Limits that may change.
    pub live: watch::Receiver<Arc<Live>>,
}

/// Asks all threads for their figures. Clones share it.
#[derive(Clone)]
pub struct Scraper(Arc<Shared>);

struct Shared {
    inquirer: Inquirer,
    space: Space,
    begin: UnixMillis,
    facts: Facts,
    /// Held by the scrape that is under way, so that at most one question of this kind waits at each thread.
    turn: Mutex<()>,
}

impl Scraper {
    /// A scraper of a server that has begun at `begin`.
    pub fn new(inquirer: Inquirer, space: Space, begin: UnixMillis, facts: Facts) -> Self {
        Self(Arc::new(Shared { inquirer, space, begin, facts, turn: Mutex::new(()) }))
    }

    /// Asks every thread. A thread that has ended does not answer. Cancel safety: safe.
    async fn ask(&self) -> Vec<ThreadSample> {
        let _turn = self.0.turn.lock().await;
        self.0.inquirer.ask_all(Question::Sample).await
    }

    /// Waits until every thread has answered. `false` if one has ended. Cancel safety: safe.
    pub async fn every_thread_answers(&self) -> bool {
        self.ask().await.len() == self.0.inquirer.threads()
    }

    /// The page for Prometheus. Cancel safety: safe.
    pub(super) async fn page(&self) -> Response {
        let Some(page) = self.gather().await else { return Response::unavailable(SILENT) };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(page));
        let mut text = String::new();
        match prometheus_text::encode(&mut text, &registry) {
            Ok(()) => {
                text.truncate(text.trim_end().len());
                Response::metrics(text)
            }
            Err(fmt::Error) => Response::unavailable("the metrics could not be written"),
        }
    }

    /// The version, the settings, and the limits in force now.
    pub(super) fn facts(&self) -> serde_json::Value {
        let mut shown = self.0.facts.shown.clone();
        let live = self.0.facts.live.borrow().clone();
        let limits = &mut shown["limits"];
        limits["connections"] = live.connections_max.into();
        limits["connections_per_address"] = live.connections_per_address_max.into();
        let times = [
            ("idle_seconds", live.times.idle),
            ("head_seconds", live.times.head),
            ("body_seconds", live.times.body),
            ("reply_seconds", live.times.reply),
        ];
        for (name, time) in times {
            limits[name] = time.as_secs_f64().into();
        }
        shown
    }

    /// Everything that a page shows; `None` if a thread does not answer.
    pub(super) async fn gather(&self) -> Option<Page> {
        let threads = tokio::time::timeout(SCRAPE_TIME, self.ask()).await.ok()?;
        let (found, process) = oneshot::channel();
        let shared = self.0.clone();
        let look = move || {
            let volume = rustix::fs::fstatvfs(&shared.facts.data_dir);
            let bytes = |blocks: u64, volume: &rustix::fs::StatVfs| blocks.saturating_mul(volume.f_frsize);
            let disk =
                volume.map(|volume| (bytes(volume.f_bavail, &volume), bytes(volume.f_blocks, &volume)));
            let _ = found.send((host::process(), disk.unwrap_or_default())); // the client has left
        };
        // Not on this thread, which serves requests.
        let _ = std::thread::Builder::new().name("ringkeep-look".into()).spawn(look);
        let (process, (disk_free, disk_bytes)) = process.await.unwrap_or_default();
        let (full, begin) = (self.0.space.is_full(), self.0.begin);
        Some(Page { threads, full, begin, process, disk_free, disk_bytes })
    }
}

/// What a page shows.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) threads: Vec<ThreadSample>,
    pub(super) full: bool,
    pub(super) begin: UnixMillis,
    pub(super) process: host::Process,
    pub(super) disk_free: u64,
    pub(super) disk_bytes: u64,
}

/// A figure of shards: its name, what it says, and how to read it. The page has the sum over all shards.
type Figure = (&'static str, &'static str, fn(&Sample) -> u64);

/// Counts since the start. `_total` is appended to the names.
const COUNTS: [Figure; 16] = [
    ("ringkeep_commit_groups", "Commit groups; each took one sync.", |shard| shard.groups),
    ("ringkeep_committed_writes", "Writes that were committed.", |shard| shard.writes),
    (
        "ringkeep_write_stalls",
        "Times that a write found no room. Most of them waited, and tried again.",
        |shard| shard.stalls,
    ),
    ("ringkeep_flushes", "Memtables that were flushed to a sorted file.", |shard| shard.flushes),
    ("ringkeep_flushed_bytes", "Bytes of sorted files that flushes wrote.", |shard| shard.flushed_bytes),
    ("ringkeep_compactions", "Compactions, moves of whole files included.", |shard| shard.compactions),
    ("ringkeep_compaction_read_bytes", "Bytes of sorted files that compactions merged.", |shard| {
        shard.compaction_read_bytes
    }),
    ("ringkeep_compaction_written_bytes", "Bytes of sorted files that compactions wrote.", |shard| {
        shard.compaction_written_bytes
    }),
    ("ringkeep_value_cache_hits", "Lookups that found their key among cached values.", |shard| {
        shard.value_hits
    }),
    ("ringkeep_value_cache_misses", "Lookups that found it neither there nor in a memtable.", |shard| {
        shard.value_misses
    }),
    ("ringkeep_block_cache_hits", "Blocks of sorted files that were in the cache.", |shard| shard.block_hits),
    ("ringkeep_block_cache_misses", "Blocks of sorted files that were not in the cache.", |shard| {
        shard.block_misses
    }),
    ("ringkeep_filter_excluded", "Sorted files that a filter has excluded from a lookup.", |shard| {
        shard.filter_excluded
    }),
    (
        "ringkeep_filter_mistaken",
        "Sorted files that no filter has excluded from a lookup, although the key was not there.",
        |shard| shard.filter_mistaken,
    ),
    ("ringkeep_filter_right", "Sorted files in which a lookup has found its key.", |shard| {
        shard.filter_right
    }),
    (
        "ringkeep_damaged_reads",
        "Reads of sorted files that came to bytes which do not verify, or which the device did not return.",
        |shard| shard.damaged_reads,
    ),
];

/// Figures of the moment.
const GAUGES: [Figure; 10] = [
    ("ringkeep_memtables", "Memtables, those that wait for their flush included.", |shard| shard.memtables),
    ("ringkeep_memtable_bytes", "Memory of memtables.", |shard| shard.memtable_bytes),
    ("ringkeep_wal_bytes", "Length of the logs that a start would read.", |shard| shard.wal_bytes),
    ("ringkeep_queued_bytes", "Bytes of writes that are not durable yet.", |shard| shard.queued_bytes),
    ("ringkeep_compaction_debt_bytes", "Bytes that compaction has fallen behind since the start.", |shard| {
        shard.debt_bytes
    }),
    ("ringkeep_block_cache_bytes", "Memory of cached blocks.", |shard| shard.cached_block_bytes),
    ("ringkeep_open_sst_files", "Sorted files that are open.", |shard| shard.open_files),
    ("ringkeep_entries", "Entries, older versions of keys and deletes included.", |shard| shard.entries),
    ("ringkeep_tombstones", "Deletes in sorted files.", |shard| shard.tombstones),
    ("ringkeep_damages", "Gaps in sorted files that damage has left.", |shard| shard.damages),
];

impl Page {
    pub(super) fn shards(&self) -> impl Iterator<Item = &Sample> {
        self.threads.iter().flat_map(|thread| &thread.shards)
    }

    pub(super) fn total(&self, of: impl Fn(&Sample) -> u64) -> u64 {
        self.shards().map(of).sum()
    }

    /// Backups that have files on loan. Each has files of every thread.
    pub(super) fn backups(&self) -> usize {
        self.threads.iter().map(|thread| thread.backups).max().unwrap_or_default()
    }

    fn engine(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, of) in COUNTS {
            count(&mut out.encode_descriptor(name, help, None, MetricType::Counter)?, self.total(of))?;
        }
        for (name, help, of) in GAUGES {
            out.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&self.total(of))?;
        }
        type OfLevel = fn(&(u64, u64)) -> u64;
        let of_level: [(&str, &str, OfLevel); 2] = [
            ("ringkeep_sst_files", "Sorted files by level.", |(files, _)| *files),
            ("ringkeep_sst_bytes", "Bytes of sorted files by level.", |(_, bytes)| *bytes),
        ];
        for (name, help, of) in of_level {
            let mut metric = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for level in 0..LEVELS {
                let total = self.total(|shard| of(&shard.levels[level]));
                metric.encode_family(&[("level", level.to_string())])?.encode_gauge(&total)?;
            }
        }
        let mut commits = Histogram::default();
        self.threads.iter().for_each(|thread| commits.merge(&thread.commits));
        let help = "From the moment a commit group is taken to the moment it is durable.";
        let name = "ringkeep_commit_duration_seconds";
        durations(&mut out.encode_descriptor(name, help, None, MetricType::Histogram)?, &commits)
    }

    fn http(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (mut replies, mut ended) = (BTreeMap::new(), BTreeMap::new());
        let (mut accepted, mut open) = (0, 0);
        for http in self.threads.iter().map(|thread| &thread.http) {
            (accepted, open) = (accepted + http.accepted, open + http.open);
            for (endpoint, status, count) in &http.replies {
                *replies.entry((*endpoint, *status)).or_default() += count;
            }
            for (reason, count) in &http.ended {
                *ended.entry(*reason).or_default() += count;
            }
        }
        let help = "Replies by endpoint and status.";
        let mut metric = out.encode_descriptor("ringkeep_http_requests", help, None, MetricType::Counter)?;
        for ((endpoint, status), replies) in replies {
            let labels = [("endpoint", endpoint.to_owned()), ("status", status.to_string())];
            count(&mut metric.encode_family(&labels)?, replies)?;
        }
        let mut took: BTreeMap<&str, Histogram> = BTreeMap::new();
        for (endpoint, more) in self.threads.iter().flat_map(|thread| &thread.http.durations) {
            took.entry(endpoint).or_default().merge(more);
        }
        let help = "From the moment a request has arrived to the moment its reply, and those of the requests that came \
                    with it, are written; of about one request in eight.";
        let name = "ringkeep_http_request_duration_seconds";
        let mut metric = out.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (endpoint, took) in took {
            durations(&mut metric.encode_family(&[("endpoint", endpoint)])?, &took)?;
        }
        let help = "Connections that were refused, or ended because their clients were slow, by reason.";
        let mut metric =
            out.encode_descriptor("ringkeep_connections_ended", help, None, MetricType::Counter)?;
        for (reason, ended) in ended {
            count(&mut metric.encode_family(&[("reason", reason)])?, ended)?;
        }
        let help = "Connections that were accepted.";
        let mut metric =
            out.encode_descriptor("ringkeep_connections_accepted", help, None, MetricType::Counter)?;
        count(&mut metric, accepted)?;
        let help = "Connections that are open.";
        out.encode_descriptor("ringkeep_connections", help, None, MetricType::Gauge)?.encode_gauge(&open)
    }

    fn process(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "The version of this program.";
        let mut metric = out.encode_descriptor("ringkeep_build_info", help, None, MetricType::Gauge)?;
        metric.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?.encode_gauge(&1_u64)?;
        let recovered = |of: fn(&Recovered) -> u64| {
            self.threads.iter().map(|thread| of(&thread.recovered)).sum::<u64>() as f64
        };
        let opening = self.threads.iter().map(|thread| thread.opening).max().unwrap_or_default();
        let gauges = [
            (
                "ringkeep_recovery_duration_seconds",
                "How long the start took to open the shards.",
                opening.as_secs_f64(),
            ),
            (
                "ringkeep_recovered_writes",
                "Writes that the start found in logs.",
                recovered(|found| found.writes),
            ),
            (
                "ringkeep_recovered_wal_bytes",
                "Bytes of logs that held writes at the start.",
                recovered(|found| found.wal_bytes),
            ),
            (
                "ringkeep_recovered_torn_bytes",
                "Bytes of torn writes that the start has cut; none of them was acknowledged.",
                recovered(|found| found.torn_bytes),
            ),
            (
                "ringkeep_disk_free_bytes",
                "Space that is free on the disk of the data.",
                self.disk_free as f64,
            ),
            ("ringkeep_disk_bytes", "Size of the disk of the data.", self.disk_bytes as f64),
            (
                "ringkeep_io_workers",
                "Threads of the kernel for operations that would block. There should be few.",
                self.process.io_workers as f64,
            ),
            ("process_resident_memory_bytes", "Memory that is resident.", self.process.resident_bytes as f64),
            ("process_open_fds", "Open descriptors.", self.process.open_files as f64),
            ("ringkeep_shards", "Shards.", self.shards().count() as f64),
            ("ringkeep_threads", "Threads that answered.", self.threads.len() as f64),
            ("ringkeep_backups", "Backups that keep files from being removed.", self.backups() as f64),
            (
                "ringkeep_disk_full",
                "1 while the disk is full and sets are refused.",
                f64::from(u8::from(self.full)),
            ),
            (
                "process_start_time_seconds",
                "When the process started, as a Unix time.",
                self.begin.0 as f64 / 1e3,
            ),
        ];
        for (name, help, value) in gauges {
            out.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        let help = "Processor time of the process, of the system for it included.";
        let mut metric = out.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, f64, f64>(&host::processor_time().as_secs_f64(), None)
    }
}

fn count(metric: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

fn durations(metric: &mut MetricEncoder<'_>, took: &Histogram) -> fmt::Result {
    let bounds = BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6);
    let buckets: Vec<_> = bounds.zip(took.buckets).collect();
    metric.encode_histogram::<NoLabelSet>(took.sum.as_secs_f64(), took.count(), &buckets, None)
}

impl Collector for Page {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        self.http(&mut out)?;
        self.engine(&mut out)?;
        self.process(&mut out)
    }
}
