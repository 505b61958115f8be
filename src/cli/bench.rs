//! `ringkeep bench`: flags → [`Plan`] → load → report.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::values::{address, duration, number};
use super::{counted, styled};
use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::load::choose::Access;
use crate::load::data::{Keys, Size, Values};
use crate::load::facts;
use crate::load::ledger::Ledger;
use crate::load::report;
use crate::load::run::{Outcome, run};
use crate::load::session::{Plan, Task};
use crate::load::workload::{Keyspace, WORKLOADS, Workload};

/// The report counts answers per millisecond: a longer run would take too much memory.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a workload lasts if it does not end by itself.
const DURATION: Duration = Duration::from_secs(10);
/// Servers close connections that have been idle for about a minute.
const IDLE_SECONDS_MAX: f64 = 30.0;
/// Memory that the ledger takes for each key.
const LEDGER_BYTES: u64 = 12;

/// Arguments of `ringkeep bench`. Every answer is compared with what was written.
#[derive(Debug, Args)]
#[command(after_help = workloads_help())]
pub(super) struct Bench {
    /// Workloads, in this order, separated by commas or spaces
    #[arg(value_name = "WORKLOAD", required = true, value_delimiter = ',', value_parser = workload_parser(), hide_possible_values = true)]
    workloads: Vec<&'static Workload>,
    /// Address and port of the server
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    server: SocketAddr,
    /// Connections, of all threads together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = number::<u64>(1..=60_000))]
    connections: u64,
    /// Load threads; they run on the processors of this process (use taskset to keep these apart from the server's)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<u64>(1..=1024))]
    threads: u64,
    /// Requests that a connection may have in flight
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<usize>(1..=1024))]
    pipeline: usize,
    /// Open loop: send N requests per second, whatever the server does. A latency counts from when the request was due
    /// [default: closed loop, each reply is followed by the next request]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// How long a workload sends new requests; a fill ignores it and writes all keys [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration(Duration::from_millis(1)..=DURATION_MAX))]
    duration: Option<Duration>,
    /// How many operations a workload begins [default: a fill one per key, other workloads no limit]
    #[arg(long, value_name = "N", conflicts_with = "warm_up", value_parser = number::<u64>(1..=u64::MAX))]
    operations: Option<u64>,
    /// Load that runs before the measurement; a fill has no warm-up
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration(Duration::ZERO..=DURATION_MAX))]
    warm_up: Duration,
    /// Number of keys
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = number::<u64>(1..=1 << 40))]
    key_count: u64,
    /// Bytes of a key: N, A..B (every size equally likely), or log:A..B (many short, few long); for example 16 or
    /// 16..1000
    #[arg(long, value_name = "SIZES", default_value = "16")]
    key_size: Size,
    /// Bytes of a value, in the same notation; for example log:16..1MiB
    #[arg(long, value_name = "SIZES", default_value = "100")]
    value_size: Size,
    /// Share of a value that compression can remove
    #[arg(long, value_name = "0..1", default_value_t = 0.5, value_parser = share)]
    compressible: f64,
    /// How often each key is requested, in workloads that do not fix it
    #[arg(long, value_name = "HOW", value_enum, default_value = "uniform")]
    distribution: Access,
    /// Decides which keys are requested, and in which order
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<u64>(0..=u64::MAX))]
    seed: u64,
    /// All keys exist: an earlier run wrote the same keys and values with fill-seq or fill-unique, and the clock has
    /// not been set back since
    #[arg(long)]
    filled: bool,
    /// Data directory of the server, if it is on this machine; the report then describes its storage
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// File for the complete results: histograms, throughput over time, program, machine and settings
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn workload_parser() -> impl TypedValueParser<Value = &'static Workload> {
    let names = WORKLOADS.iter().map(|workload| workload.name);
    PossibleValuesParser::new(names).try_map(|name| Workload::named(&name).ok_or("there is no such workload"))
}

fn workloads_help() -> String {
    let lines: Vec<String> =
        WORKLOADS.iter().map(|workload| format!("  {:<14}{}", workload.name, workload.about)).collect();
    format!("Workloads:\n{}", lines.join("\n"))
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=1e7).contains(&rate) => Ok(rate),
        _ => Err("expected a number of requests per second, from 0.01 to 10 million".into()),
    }
}

fn share(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

impl Bench {
    pub(super) fn run(self) -> Result<()> {
        if !self.filled && !self.workloads.first().is_some_and(|workload| workload.fills()) {
            return Err(configuration(
                "nothing is known of the keys: begin with a fill workload, or give --filled if an earlier run wrote \
                 them",
            ));
        }
        if self.rate.is_some_and(|rate| IDLE_SECONDS_MAX < self.connections as f64 / rate) {
            return Err(configuration(
                "each connection would be idle for too long between requests, and servers close idle ones: \
                 use fewer --connections or a greater --rate",
            ));
        }
        // A run may insert as many keys as it begins with.
        let inserts = self.workloads.iter().any(|workload| workload.inserts());
        let capacity = if inserts { 2 * self.key_count } else { self.key_count };
        if host::memory_bytes() / 2 < capacity * LEDGER_BYTES {
            let message = format!(
                "checking answers takes {LEDGER_BYTES} bytes per key, which is too much memory for {capacity} keys: \
                 use a smaller --key-count"
            );
            return Err(configuration(message));
        }
        let keys = Keys::new(self.key_size, capacity).map_err(|digits| {
            configuration(format!("{capacity} keys need a --key-size of at least {digits} bytes"))
        })?;
        let plan = self.plan(keys);
        host::raise_open_files();
        let storage = self.data_dir.as_deref().map(facts::storage).transpose()?;
        let write = |path: &PathBuf, text: &str| {
            std::fs::write(path, text).map_err(|error| Error::io(format!("write {}", path.display()), error))
        };
        if let Some(path) = &self.json {
            write(path, "")?; // if the file cannot be written, fail before the work
        }
        let (results, verdict) = self.all(&plan, capacity);
        if let Some(path) = &self.json {
            let report = json!({
                "program": facts::program(),
                "machine": facts::machine(),
                "storage": storage,
                "settings": self.settings(&plan),
                "workloads": results,
            });
            write(path, &format!("{report:#}\n"))?;
        }
        verdict
    }

    /// Carries out the workloads up to the first that fails. Returns their results, and an error if anything was wrong.
    fn all(&self, plan: &Plan, capacity: u64) -> (Vec<Value>, Result<()>) {
        let ledger = Arc::new(Ledger::new(capacity, if self.filled { self.key_count } else { 0 }));
        let keyspace = Arc::new(Keyspace::new(self.key_count, capacity, self.seed));
        let mut output = std::io::stdout().lock();
        say(&mut output, &report::header());
        let (mut results, mut faults, mut kind) = (Vec::new(), Vec::new(), ErrorKind::Io);
        let processors = plan.threads.min(host::processors().len() as u64);
        for (ordinal, &workload) in (0..).zip(&self.workloads) {
            let limit = match (self.operations, workload.fills()) {
                (Some(operations), _) => operations,
                (None, true) => self.key_count,
                (None, false) => u64::MAX,
            };
            let mut plan = plan.clone();
            if workload.fills() {
                (plan.duration, plan.warm_up) = (None, Duration::ZERO);
            } else if self.operations.is_none() {
                plan.duration.get_or_insert(DURATION);
            }
            let bar = progress_bar(workload.name, limit);
            let task = Task { workload, ordinal, limit, ledger: ledger.clone(), keyspace: keyspace.clone() };
            let outcome = run(&plan, task, |done| bar.set_position(done));
            bar.finish_and_clear();
            let outcome = match outcome {
                Ok(outcome) => outcome,
                Err(error) => {
                    faults.push(format!("{}: {error}", workload.name));
                    kind = error.kind();
                    break;
                }
            };
            for line in report::lines(workload.name, &outcome) {
                say(&mut output, &line);
            }
            if plan.rate.is_none() && 0.95 * processors as f64 <= outcome.processors {
                say(
                    &mut output,
                    "  the load used all of its processors: the server may be faster than measured",
                );
            }
            let mut result = report::object(workload.name, &outcome);
            result["duration_s"] = json!(plan.duration.map(|duration| duration.as_secs_f64()));
            result["warm_up_s"] = json!(plan.warm_up.as_secs_f64());
            results.push(result);
            faults.extend(fault(workload, &outcome, self.filled));
            if outcome.failure.is_some() {
                break;
            }
        }
        let verdict = if faults.is_empty() { Ok(()) } else { Err(Error::new(kind, faults.join("; "))) };
        (results, verdict)
    }

    fn plan(&self, keys: Keys) -> Plan {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Plan {
            server: self.server,
            connections: self.connections,
            threads: self.threads.min(self.connections),
            pipeline: self.pipeline,
            rate: self.rate,
            warm_up: self.warm_up,
            duration: self.duration,
            access: self.distribution,
            seed: self.seed,
            keys,
            values: Values::new(self.value_size, self.compressible),
            epoch: u64::try_from(now.as_micros()).unwrap_or_default(),
        }
    }

    fn settings(&self, plan: &Plan) -> Value {
        json!({
            "server": self.server.to_string(),
            "connections": self.connections,
            "threads": plan.threads,
            "pipeline": self.pipeline,
            "rate": self.rate,
            "operations": self.operations,
            "key_count": self.key_count,
            "key_size": self.key_size.to_string(),
            "value_size": self.value_size.to_string(),
            "compressible": self.compressible,
            "distribution": format!("{:?}", self.distribution).to_lowercase(),
            "seed": self.seed,
            "filled": self.filled,
        })
    }
}

/// The faults of a workload, which make the exit status 1.
fn fault(workload: &Workload, outcome: &Outcome, filled: bool) -> Option<String> {
    let tally = &outcome.tally;
    let mut found = Vec::new();
    if 0 < tally.lost + tally.wrong {
        found.push(format!(
            "{} lost, {} wrong",
            counted(tally.lost, "acknowledged write"),
            counted(tally.wrong, "answer")
        ));
        if filled {
            found.push(
                "unless --filled, --key-count or --key-size do not fit what the earlier run wrote".into(),
            );
        }
    }
    found.extend(outcome.failure.as_ref().map(ToString::to_string));
    (!found.is_empty()).then(|| format!("{}: {}", workload.name, found.join(", ")))
}

fn configuration(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Configuration, message)
}

/// A closed standard output does not change the exit status.
fn say(output: &mut impl Write, line: &str) {
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn progress_bar(name: &'static str, limit: u64) -> ProgressBar {
    let (bar, template) = if limit == u64::MAX {
        (ProgressBar::new_spinner(), "{msg} {spinner} {human_pos} ({per_sec})")
    } else {
        (ProgressBar::new(limit), "{msg} {bar:40} {human_pos} of {human_len} ({per_sec}, {eta} left)")
    };
    styled(bar.with_message(name), template)
}
