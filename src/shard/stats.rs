//! The page for people: the same figures as the page of metrics, by shard, with the settings and limits in force.

use std::cmp::Reverse;

use serde_json::{Map, Value, json};

use super::metrics::{Page, SILENT, Scraper};
use crate::db::Sample;
use crate::http::Response;
use crate::http::probe::SLOWEST_MAX;
use crate::key::UnixMillis;
use crate::manifest::LEVELS;
use crate::tally::{BOUNDS_MICROS, Histogram};

/// The page. Cancel safety: safe.
pub(super) async fn page(scraper: Scraper, now: UnixMillis) -> Response {
    match scraper.gather().await {
        Some(page) => Response::json(show(&page, &scraper.facts(), now).to_string()),
        None => Response::unavailable(SILENT),
    }
}

/// The page. `facts` are the fields that no thread has to be asked for.
fn show(page: &Page, facts: &Value, now: UnixMillis) -> Value {
    let (entries, keys) = (page.total(|shard| shard.entries), page.total(|shard| shard.keys));
    let sst_bytes = page.total(sst_bytes);
    let mut shards: Vec<_> = page.shards().collect();
    shards.sort_by_key(|shard| shard.shard);
    let live = |bytes: u64| (bytes as f64 * keys as f64 / entries.max(1) as f64) as u64;
    let mut commits = Histogram::default();
    page.threads.iter().for_each(|thread| commits.merge(&thread.commits));
    let (groups, writes) = (page.total(|shard| shard.groups), page.total(|shard| shard.writes));
    let mut shown = match facts {
        Value::Object(facts) => facts.clone(),
        _ => Map::new(),
    };
    let fields = json!({
        "uptime_seconds": now.0.saturating_sub(page.begin.0) / 1000,
        "keys_estimate": keys,
        "bytes": {
            "live_estimate": live(sst_bytes) + page.total(|shard| shard.memtable_bytes),
            "sorted_files": sst_bytes,
            "logs": page.total(|shard| shard.wal_bytes),
            "memtables": page.total(|shard| shard.memtable_bytes),
        },
        "disk": { "free_bytes": page.disk_free, "bytes": page.disk_bytes, "full": page.full },
        "process": {
            "resident_bytes": page.process.resident_bytes,
            "open_files": page.process.open_files,
            "io_workers": page.process.io_workers,
        },
        "connections": {
            "open": page.threads.iter().map(|thread| thread.http.open).sum::<u64>(),
            "accepted": page.threads.iter().map(|thread| thread.http.accepted).sum::<u64>(),
        },
        "requests": requests(page),
        "commits": {
            "writes": writes,
            "groups": groups,
            "writes_per_group": writes as f64 / groups.max(1) as f64,
            "p50_seconds_at_most": quantile(&commits, 0.5),
            "p99_seconds_at_most": quantile(&commits, 0.99),
        },
        "caches": {
            "value_hit_ratio": ratio(page.total(|shard| shard.value_hits), page.total(|shard| shard.value_misses)),
            "block_hit_ratio": ratio(page.total(|shard| shard.block_hits), page.total(|shard| shard.block_misses)),
        },
        "filters": {
            "excluded": page.total(|shard| shard.filter_excluded),
            "mistaken": page.total(|shard| shard.filter_mistaken),
        },
        "compaction": {
            "read_bytes": page.total(|shard| shard.compaction_read_bytes),
            "written_bytes": page.total(|shard| shard.compaction_written_bytes),
            "debt_bytes": page.total(|shard| shard.debt_bytes),
        },
        "backups": page.backups(),
        "write_stalls": page.total(|shard| shard.stalls),
        "damages": page.total(|shard| shard.damages),
        "slowest_requests": slowest(page),
        "shards": shards.into_iter().map(of_shard).collect::<Vec<_>>(),
    });
    if let Value::Object(fields) = fields {
        shown.extend(fields);
    }
    shown.into()
}

fn sst_bytes(shard: &Sample) -> u64 {
    shard.levels.iter().map(|(_, bytes)| bytes).sum()
}

fn of_shard(shard: &Sample) -> Value {
    let levels = (0..LEVELS).filter(|level| 0 < shard.levels[*level].0).map(|level| {
        let (files, bytes) = shard.levels[level];
        json!({ "level": level, "files": files, "bytes": bytes })
    });
    json!({
        "shard": shard.shard,
        "seqno": shard.seqno,
        "entries": shard.entries,
        "tombstones": shard.tombstones,
        "levels": levels.collect::<Vec<_>>(),
        "memtables": shard.memtables,
        "memtable_bytes": shard.memtable_bytes,
        "log_bytes": shard.wal_bytes,
        "queued_bytes": shard.queued_bytes,
    })
}

/// The slowest of the requests that were measured, slowest first. Each thread keeps as many as are shown, so none is missed.
fn slowest(page: &Page) -> Value {
    let mut requests: Vec<_> = page.threads.iter().flat_map(|thread| &thread.http.slowest).collect();
    requests.sort_by_key(|request| Reverse(request.split.total));
    let shown = requests.into_iter().take(SLOWEST_MAX).map(|request| {
        let mut shown = json!({
            "endpoint": request.endpoint,
            "status": request.status,
            "shard": request.split.shard.map(|shard| shard.0),
            "bytes_in": request.bytes_in,
            "bytes_out": request.bytes_out,
            "unix_seconds": request.at.0 as f64 / 1e3,
        });
        for (name, took) in request.split.parts() {
            shown[format!("{name}_seconds")] = took.as_secs_f64().into();
        }
        shown
    });
    shown.collect()
}

/// Replies by endpoint and status.
fn requests(page: &Page) -> Value {
    let mut requests = Map::new();
    for (endpoint, status, count) in page.threads.iter().flat_map(|thread| &thread.http.replies) {
        let of_endpoint = requests.entry(*endpoint).or_insert_with(|| json!({}));
        let so_far = of_endpoint[status.to_string()].as_u64().unwrap_or_default();
        of_endpoint[status.to_string()] = (so_far + count).into();
    }
    requests.into()
}

/// The part of hits; `null` if there was nothing.
fn ratio(hits: u64, misses: u64) -> Value {
    if hits + misses == 0 { Value::Null } else { (hits as f64 / (hits + misses) as f64).into() }
}

/// The bound below which this part of the durations lies, in seconds; `null` if there were none, or if it has no bound.
fn quantile(durations: &Histogram, part: f64) -> Value {
    let wanted = (durations.count() as f64 * part).ceil() as u64;
    let mut below = 0;
    for (bound, count) in BOUNDS_MICROS.iter().zip(durations.buckets) {
        below += count;
        if 0 < wanted && wanted <= below {
            return (*bound as f64 / 1e6).into();
        }
    }
    Value::Null
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_quantile_is_the_bound_below_which_a_part_of_the_durations_lies() {
        let mut durations = Histogram::default();
        assert_eq!(quantile(&durations, 0.5), Value::Null);
        durations.observe(Duration::from_micros(80), 98);
        durations.observe(Duration::from_micros(2_000), 2);
        assert_eq!((quantile(&durations, 0.5), quantile(&durations, 0.99)), (0.0001.into(), 0.0025.into()));
        durations.observe(Duration::from_secs(60), 1_000);
        assert_eq!(quantile(&durations, 0.99), Value::Null);
        assert_eq!((ratio(0, 0), ratio(3, 1)), (Value::Null, 0.75.into()));
    }
}
