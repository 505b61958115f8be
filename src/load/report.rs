//! Shows results: a table for people, JSON for programs. Pure.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::run::Outcome;
use super::tally::{Tally, VERBS};

/// The percentiles that are shown.
const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99)];

/// Length of one part of the time series in a report.
const SERIES_INTERVAL: Duration = Duration::from_millis(100);

/// The head of the table.
pub fn header() -> String {
    let mut line = format!("{:<14}{:>13}{:>11}{:>9}", "workload", "operations", "per s", "MB/s");
    for (name, _) in PERCENTILES {
        line += &format!("{name:>10}");
    }
    line + &format!("{:>10}", "max")
}

/// The lines of one workload: the total, each verb if there are several, and remarks.
pub fn lines(name: &str, outcome: &Outcome) -> Vec<String> {
    let tally = &outcome.tally;
    let seconds = seconds(tally);
    let all = together(tally);
    let megabytes = tally.value_bytes as f64 / seconds / 1e6;
    let mut lines = vec![line(name, tally.count(), tally.count() as f64 / seconds, Some(megabytes), &all)];
    if tally.latencies.iter().filter(|latencies| !latencies.is_empty()).count() > 1 {
        // Only requests that were sent and began after the warm-up. A request that was never sent has no verb.
        for (verb, latencies) in VERBS.iter().zip(&tally.latencies) {
            if !latencies.is_empty() {
                let per_second = latencies.len() as f64 / seconds;
                lines.push(line(&format!("  {verb}"), latencies.len(), per_second, None, latencies));
            }
        }
    }
    for (count, what) in [
        (tally.missing, "not found"),
        (tally.refused, "refused for now (503 or 507); not included in the figures above"),
        (
            tally.unsent.len(),
            "due but never sent; the percentiles of the first line include how late they were",
        ),
        (
            tally.sent_late,
            "sent over 1 ms late although their connection was idle: the load had too little processor time",
        ),
        (tally.unanswered, "never answered"),
        (tally.lost, "LOST: an acknowledged write was missing"),
        (tally.wrong, "WRONG: an answer that was never written"),
    ] {
        if 0 < count {
            lines.push(format!("  {} {what}", grouped(count)));
        }
    }
    lines.extend(outcome.failure.iter().map(|error| format!("  ended early: {error}")));
    lines.extend(tally.first_fault.iter().map(|fault| format!("  the first fault: {fault}")));
    lines
}

fn line(
    name: &str,
    count: u64,
    per_second: f64,
    megabytes: Option<f64>,
    latencies: &Histogram<u64>,
) -> String {
    let megabytes = megabytes.map_or(String::new(), |megabytes| format!("{megabytes:.1}"));
    let mut line =
        format!("{name:<14}{:>13}{:>11}{megabytes:>9}", grouped(count), grouped(per_second as u64));
    for (_, percentile) in PERCENTILES {
        line += &format!("{:>10}", time(latencies.value_at_percentile(percentile)));
    }
    line + &format!("{:>10}", time(latencies.max()))
}

/// The same results for programs. Latencies are in microseconds and count from when a request was sent or, in an open
/// loop, due.
pub fn object(name: &str, outcome: &Outcome) -> Value {
    let tally = &outcome.tally;
    let seconds = seconds(tally);
    let mut verbs = serde_json::Map::new();
    for (verb, latencies) in VERBS.iter().zip(&tally.latencies) {
        if !latencies.is_empty() {
            verbs.insert((*verb).to_owned(), latency(latencies));
        }
    }
    json!({
        "workload": name,
        "operations": tally.count(),
        "seconds": seconds,
        "per_second": tally.count() as f64 / seconds,
        "value_bytes": tally.value_bytes,
        "missing": tally.missing,
        "refused": tally.refused,
        "unsent": tally.unsent.len(),
        "sent_late": tally.sent_late,
        "unanswered": tally.unanswered,
        "lost": tally.lost,
        "wrong": tally.wrong,
        "first_fault": tally.first_fault,
        "failure": outcome.failure.as_ref().map(ToString::to_string),
        "load_processors_used": outcome.processors,
        "latency_us": latency(&together(tally)),
        "verbs": verbs,
        "longest_gap_ms": tally.longest_gap().as_millis() as u64,
        "series": { "interval_ms": SERIES_INTERVAL.as_millis() as u64, "answered": tally.series(SERIES_INTERVAL) },
    })
}

fn latency(latencies: &Histogram<u64>) -> Value {
    let micros = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let mut object = serde_json::Map::new();
    object.insert("count".into(), latencies.len().into());
    object.insert("min".into(), micros(latencies.min()).into());
    object.insert("mean".into(), (latencies.mean() / 1e3).into());
    for (name, percentile) in PERCENTILES {
        object.insert(name.into(), micros(latencies.value_at_percentile(percentile)).into());
    }
    object.insert("max".into(), micros(latencies.max()).into());
    // Pairs: the greatest latency of a bucket, and how many latencies fell into it.
    let buckets: Vec<Value> = latencies
        .iter_recorded()
        .map(|step| json!([micros(step.value_iterated_to()), step.count_at_value()]))
        .collect();
    object.insert("histogram".into(), buckets.into());
    object.into()
}

/// The latencies of all verbs, and of requests that were never sent.
fn together(tally: &Tally) -> Histogram<u64> {
    let mut all = tally.unsent.clone();
    for latencies in &tally.latencies {
        // This fails only if the bounds differ.
        let _ = all.add(latencies);
    }
    all
}

fn seconds(tally: &Tally) -> f64 {
    tally.duration().as_secs_f64().max(1e-3)
}

/// Nanoseconds, to three digits, with the unit that fits.
fn time(nanoseconds: u64) -> String {
    let (value, unit) = match nanoseconds {
        0..1_000_000 => (nanoseconds as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (nanoseconds as f64 / 1e6, "ms"),
        _ => (nanoseconds as f64 / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::load::ledger::Fault;
    use crate::load::tally::Answer;

    fn outcome() -> Outcome {
        let begin = Instant::now();
        let mut tally = Tally::new(begin);
        for index in 0..2000_u64 {
            let from = begin + Duration::from_millis(index);
            let now = from + Duration::from_micros(100);
            let verb = (index % 2) as usize;
            tally.answered(Answer { verb, from, now, missing: index == 7, value_bytes: 1000 });
        }
        Outcome { tally, processors: 0.5, failure: None }
    }

    #[test]
    fn the_table_shows_rates_and_percentiles() {
        let lines = lines("ycsb-a", &outcome());
        let words: Vec<&str> = lines[0].split_whitespace().collect();
        assert_eq!(words[..6], ["ycsb-a", "2,000", "1,000", "1.0", "100", "µs"]);
        assert!(lines[1].starts_with("  get") && lines[2].starts_with("  set"));
        assert_eq!(lines[3], "  1 not found");
        assert_eq!(lines[0].chars().count(), header().chars().count());
        assert_eq!(
            [time(999), time(12_345), time(1_234_567), time(61_000_000_000)],
            ["1.00 µs", "12.3 µs", "1.23 ms", "61.0 s"]
        );
        assert_eq!([grouped(0), grouped(999), grouped(1_234_567)], ["0", "999", "1,234,567"]);
    }

    #[test]
    fn faults_are_shown_and_the_object_has_the_whole_histogram() {
        let mut outcome = outcome();
        outcome.tally.fault(Fault::Lost, || "Get of key x".into());
        let text = lines("read", &outcome).join("\n");
        assert!(text.contains("1 LOST") && text.contains("the first fault: Get of key x"));
        let object = object("read", &outcome);
        assert_eq!(object["lost"], 1);
        let counted: u64 = object["latency_us"]["histogram"]
            .as_array()
            .unwrap()
            .iter()
            .map(|bucket| bucket[1].as_u64().unwrap())
            .sum();
        assert_eq!(counted, 2000);
        assert_eq!(object["series"]["answered"].as_array().unwrap().len(), 20);
        assert!((99.0..101.0).contains(&object["verbs"]["get"]["p50"].as_f64().unwrap()));
    }
}
