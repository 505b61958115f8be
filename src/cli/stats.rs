//! `ringkeep stats` and `ringkeep compact`: a look at a running server, and the one command that gives space back at once.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use serde_json::Value;

use super::moment;
use super::remote::Server;
use crate::client::{Client, Patience, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::key::UnixMillis;

/// A server that works answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a compaction may take.
const COMPACTION_PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);
const STATS_BYTES_MAX: u64 = 64 << 20;

/// Arguments of `ringkeep stats`.
#[derive(Debug, Args)]
pub(super) struct Stats {
    #[command(flatten)]
    server: Server,
    /// Print the JSON document that the server sends
    #[arg(long)]
    json: bool,
}

/// Arguments of `ringkeep compact`.
#[derive(Debug, Args)]
pub(super) struct Compact {
    #[command(flatten)]
    server: Server,
}

impl Stats {
    pub(super) fn run(self) -> Result<()> {
        let text = fetch(&self.server.client(Patience::InAll(PATIENCE))?)?;
        let shown = if self.json { text } else { table(&parse(&text)?) };
        let _ = std::io::stdout().write_all(shown.as_bytes()); // a closed output does not change the exit status
        Ok(())
    }
}

impl Compact {
    pub(super) fn run(self) -> Result<()> {
        let client = self.server.client(Patience::PerStep(COMPACTION_PATIENCE))?;
        let bytes = || Ok::<_, Error>(ByteSize(number(&parse(&fetch(&client)?)?["bytes"]["sorted_files"])));
        let before = bytes()?;
        client.send(Request { method: "POST", ..Request::get("/compact") })?.expect(&[200])?;
        let _ = writeln!(std::io::stdout(), "compacted: {before} of sorted files before, {} now", bytes()?);
        Ok(())
    }
}

fn fetch(client: &Client) -> Result<String> {
    client.send(Request::get("/stats"))?.expect(&[200])?.text(STATS_BYTES_MAX)
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = format!(
            "the reply to /stats is no JSON from line {line}, column {column} on: is it a ringkeep server that answers?"
        );
        Error::new(ErrorKind::Io, message)
    })
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// A line for each figure, then a table of the shards.
fn table(stats: &Value) -> String {
    let mut lines = Vec::new();
    flatten("", stats, &mut lines);
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut shown = String::new();
    for (name, value) in lines {
        let _ = writeln!(shown, "{name:width$}  {value}"); // a string takes everything
    }
    let _ = writeln!(
        shown,
        "\nshard  entries      tombstones   memtables    log          files and bytes by level"
    );
    for shard in stats["shards"].as_array().into_iter().flatten() {
        let size = |name: &str| ByteSize(number(&shard[name])).to_string();
        let levels = shard["levels"].as_array().into_iter().flatten().map(|level| {
            let bytes = ByteSize(number(&level["bytes"]));
            format!("L{} {} {bytes}", number(&level["level"]), number(&level["files"]))
        });
        let _ = writeln!(
            shown,
            "{:<6} {:<12} {:<12} {:<12} {:<12} {}",
            number(&shard["shard"]),
            number(&shard["entries"]),
            number(&shard["tombstones"]),
            size("memtable_bytes"),
            size("log_bytes"),
            levels.collect::<Vec<_>>().join(", "),
        );
    }
    let requests = stats["slowest_requests"].as_array().map_or(&[][..], Vec::as_slice);
    if !requests.is_empty() {
        let _ = writeln!(
            shown,
            "\nslowest of the requests that were measured in the last ten to twenty minutes, in milliseconds"
        );
        let _ = writeln!(
            shown,
            "total      queue      group      sync       lookup     room       rest       reply at                  what"
        );
    }
    for request in requests {
        let seconds = |name: &str| request[format!("{name}_seconds")].as_f64();
        let (total, parts) = (seconds("total"), ["queue", "group", "sync", "lookup", "room"].map(seconds));
        let rest = total.map(|total| (total - parts.iter().flatten().sum::<f64>()).max(0.0));
        for time in [total].into_iter().chain(parts).chain([rest]) {
            let millis = time.map_or_else(|| "-".into(), |seconds| format!("{:.3}", seconds * 1e3));
            let _ = write!(shown, "{millis:<10} ");
        }
        let _ = writeln!(
            shown,
            "{:<25} {} {}, {} in, {} out{}",
            moment(UnixMillis(request["unix_seconds"].as_f64().map_or(0, |at| (at * 1e3) as u64))),
            request["endpoint"].as_str().unwrap_or("-"),
            number(&request["status"]),
            ByteSize(number(&request["bytes_in"])),
            ByteSize(number(&request["bytes_out"])),
            request["shard"].as_u64().map_or(String::new(), |shard| format!(", shard {shard}")),
        );
    }
    shown
}

/// The figures below `value`, with their names, except those of single shards and requests.
fn flatten(name: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields.iter().filter(|(_, value)| !value.is_array()) {
                let name = if name.is_empty() { field.clone() } else { format!("{name} {field}") };
                flatten(&name.replace('_', " "), value, lines);
            }
        }
        Value::Null => lines.push((name.into(), "-".into())),
        Value::String(text) => lines.push((name.into(), text.clone())),
        Value::Number(number) => {
            let is_bytes = name.split(' ').any(|word| word == "bytes");
            let bytes = number.as_u64().filter(|_| is_bytes).map(|bytes| ByteSize(bytes).to_string());
            let shown = match number.as_f64() {
                Some(value) if number.is_f64() => format!("{}", (value * 1e4).round() / 1e4),
                _ => number.to_string(),
            };
            lines.push((name.into(), bytes.unwrap_or(shown)));
        }
        value => lines.push((name.into(), value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_figure_has_a_line_and_every_shard_a_row() {
        let stats = json!({
            "uptime_seconds": 7,
            "bytes": { "sorted_files": 2048 },
            "caches": { "value_hit_ratio": null },
            "requests": { "get": { "200": 3 } },
            "shards": [{
                "shard": 1, "entries": 5, "tombstones": 2, "memtable_bytes": 1024, "log_bytes": 1048576,
                "levels": [{ "level": 0, "files": 2, "bytes": 4096 }, { "level": 1, "files": 1, "bytes": 1 }],
            }],
            "slowest_requests": [{
                "endpoint": "set", "status": 200, "shard": 1, "bytes_in": 2048, "bytes_out": 3, "unix_seconds": 1.5,
                "total_seconds": 0.013, "queue_seconds": 0.001, "group_seconds": 0.0015, "sync_seconds": 0.01,
            }],
        });
        let shown = table(&stats);
        let lines: Vec<_> =
            shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in [
            "bytes sorted files 2.0 KiB",
            "caches value hit ratio -",
            "requests get 200 3",
            "uptime seconds 7",
        ] {
            assert!(lines.iter().any(|found| found == line), "{line} is not in\n{shown}");
        }
        for row in [
            "1 5 2 1.0 KiB 1.0 MiB L0 2 4.0 KiB, L1 1 1 B",
            "13.000 1.000 1.500 10.000 - - 0.500 1970-01-01T00:00:01.500Z set 200, 2.0 KiB in, 3 B out, shard 1",
        ] {
            assert!(lines.iter().any(|found| found == row), "{row} is not in\n{shown}");
        }
    }
}
