//! `ringkeep bench`: flags → [`Plan`] → load → report.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::serve::address;
use crate::error::{Error, ErrorKind, Result};
use crate::load::choose::Access;
use crate::load::data::{Keys, Size, Values};
use crate::load::facts;
use crate::load::ledger::Ledger;
use crate::load::report;
use crate::load::run::{Outcome, Plan, run};
use crate::load::workload::{Keyspace, WORKLOADS, Workload};

/// How long a workload lasts that does not end by itself.
const DURATION: Duration = Duration::from_secs(10);

/// Workloads run one after the other over the same keys, and every answer is compared with what was written.
///
/// Exit status 1 if an acknowledged write is not there or an answer is wrong.
#[derive(Debug, Args)]
#[command(after_help = workloads_help())]
pub(super) struct Bench {
    /// What to do, in this order
    #[arg(value_name = "WORKLOAD", required = true, value_delimiter = ',', value_parser = workload_parser(), hide_possible_values = true)]
    workloads: Vec<&'static Workload>,
    /// Where the server listens
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    server: SocketAddr,
    /// Connections, all threads together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    connections: u64,
    /// Load threads; they run where the process may (see taskset), best where the server does not
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: u64,
    /// Requests that a connection may have under way
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pipeline: u64,
    /// Open loop: requests a second, due whatever the server does; latency counts from then [default: closed loop]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// How long each workload asks for more [default: 10s; a fill ends by itself]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// How many operations each workload begins [default: a fill one for each key, others no limit]
    #[arg(long, value_name = "N")]
    operations: Option<u64>,
    /// Load before the measurement, beside --duration
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Keys that there are
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    key_count: u64,
    /// Bytes of a key: N, A..B (each as likely), or log:A..B (many short, few long)
    #[arg(long, value_name = "SIZES", default_value = "16")]
    key_size: Size,
    /// Bytes of a value, written in the same way
    #[arg(long, value_name = "SIZES", default_value = "100")]
    value_size: Size,
    /// Share of a value that compression can take away
    #[arg(long, value_name = "0..1", default_value_t = 0.5, value_parser = share)]
    compressible: f64,
    /// Which keys are asked for, where the workload leaves it open
    #[arg(long, value_name = "HOW", value_enum, default_value = "uniform")]
    distribution: Access,
    /// Decides keys, values and every choice
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Every key is there from an earlier run with the same keys, values and seed
    #[arg(long)]
    filled: bool,
    /// The server's data directory, if it is on this machine: its device is described in the report
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Writes everything that was counted to this file, with where it comes from
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn workload_parser() -> impl TypedValueParser<Value = &'static Workload> {
    let names = WORKLOADS.iter().map(|workload| workload.name);
    PossibleValuesParser::new(names).try_map(|name| Workload::named(&name).ok_or("no such workload"))
}

fn workloads_help() -> String {
    let lines: Vec<String> =
        WORKLOADS.iter().map(|workload| format!("  {:<14}{}", workload.name, workload.about)).collect();
    format!("Workloads:\n{}", lines.join("\n"))
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if 0.0 < rate && rate <= 1e8 => Ok(rate),
        _ => Err("expected a number of requests a second, up to 100 million".into()),
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
            return Err(configuration("there is nothing to ask for: begin with a fill, or say --filled"));
        }
        if !self.warm_up.is_zero() && self.duration.is_none() {
            return Err(configuration("--warm-up needs a --duration"));
        }
        // A run may insert as many keys again.
        let inserts = self.workloads.iter().any(|workload| workload.inserts());
        let capacity = if inserts { 2 * self.key_count } else { self.key_count };
        let keys = Keys::new(self.key_size, capacity, self.seed).map_err(|digits| {
            configuration(format!("so many keys need a --key-size of at least {digits}"))
        })?;
        let plan = self.plan(keys)?;
        let storage = self.data_dir.as_deref().map(facts::storage).transpose()?;
        let ledger = Arc::new(Ledger::new(capacity, if self.filled { self.key_count } else { 0 }));
        let keyspace = Arc::new(Keyspace::new(self.key_count, capacity, self.seed));
        let mut output = std::io::stdout().lock();
        say(&mut output, &report::header());
        let (mut results, mut faults) = (Vec::new(), Vec::new());
        for workload in &self.workloads {
            let outcome = self.one(&plan, workload, &ledger, &keyspace)?;
            for line in report::lines(workload.name, &outcome) {
                say(&mut output, &line);
            }
            results.push(report::object(workload.name, &outcome));
            faults.extend(fault(workload.name, &outcome));
            if outcome.failure.is_some() {
                break;
            }
            if plan.rate.is_none() && 0.95 * plan.threads as f64 <= outcome.processors {
                say(&mut output, "  the load used all of its processors: the server may be faster than this");
            }
        }
        if let Some(path) = &self.json {
            let report = json!({
                "program": facts::program(),
                "machine": facts::machine(),
                "storage": storage,
                "settings": self.settings(),
                "workloads": results,
            });
            std::fs::write(path, format!("{report:#}\n"))
                .map_err(|error| Error::io(format!("write {}", path.display()), error))?;
        }
        if faults.is_empty() { Ok(()) } else { Err(Error::new(ErrorKind::Io, faults.join("; "))) }
    }

    fn plan(&self, keys: Keys) -> Result<Plan> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let epoch =
            u32::try_from(now.as_secs()).map_err(|_| configuration("the clock is beyond the year 2106"))?;
        Ok(Plan {
            server: self.server,
            connections: self.connections,
            threads: self.threads.min(self.connections),
            pipeline: usize::try_from(self.pipeline).unwrap_or(1),
            rate: self.rate,
            warm_up: self.warm_up,
            duration: self.duration,
            access: self.distribution,
            seed: self.seed,
            keys,
            values: Values::new(self.value_size, self.compressible, self.seed),
            epoch,
        })
    }

    fn one(
        &self,
        plan: &Plan,
        workload: &'static Workload,
        ledger: &Arc<Ledger>,
        keyspace: &Arc<Keyspace>,
    ) -> Result<Outcome> {
        let limit = match (self.operations, workload.fills()) {
            (Some(operations), _) => operations,
            (None, true) => self.key_count,
            (None, false) => u64::MAX,
        };
        let mut plan = plan.clone();
        if self.operations.is_none() && !workload.fills() {
            plan.duration.get_or_insert(DURATION);
        }
        let bar = progress_bar(workload.name, limit);
        let outcome = run(&plan, workload, ledger, keyspace, limit, |done| bar.set_position(done));
        bar.finish_and_clear();
        outcome
    }

    fn settings(&self) -> Value {
        json!({
            "server": self.server.to_string(),
            "connections": self.connections,
            "threads": self.threads,
            "pipeline": self.pipeline,
            "rate": self.rate,
            "duration_s": self.duration.map(|duration| duration.as_secs_f64()),
            "warm_up_s": self.warm_up.as_secs_f64(),
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

/// What makes the exit status 1.
fn fault(name: &str, outcome: &Outcome) -> Option<String> {
    let (lost, wrong) = (outcome.tally.lost, outcome.tally.wrong);
    match &outcome.failure {
        _ if 0 < lost + wrong => {
            Some(format!("{name}: {lost} acknowledged writes lost, {wrong} answers wrong"))
        }
        Some(error) => Some(format!("{name}: {error}")),
        None => None,
    }
}

fn configuration(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Configuration, message)
}

/// A closed standard output does not change the exit status.
fn say(output: &mut impl Write, line: &str) {
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// Drawn on standard error, and only if that is a terminal.
fn progress_bar(name: &'static str, limit: u64) -> ProgressBar {
    let (bar, style) = if limit == u64::MAX {
        (ProgressBar::new_spinner(), "{msg} {spinner} {human_pos} ({per_sec})")
    } else {
        (ProgressBar::new(limit), "{msg} {bar:40} {human_pos} of {human_len} ({per_sec}, {eta} left)")
    };
    let bar = bar.with_message(name);
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar, // the plain one shows the same numbers
    }
}
