//! What was counted: requests, latencies, and when answers came. Pure. Each thread has its own tally; all are merged at
//! the end.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::ledger::Fault;

/// The verbs that have a histogram of their own.
pub const VERBS: [&str; 3] = ["get", "set", "delete"];

/// Longer latencies are recorded as this one: two hours, in nanoseconds.
const LATENCY_MAX: u64 = 2 * 3600 * 1_000_000_000;
/// Significant digits of a latency that are kept: the error is below 0.1 %.
const DIGITS: u8 = 3;

/// An answer that is counted.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// The index of its verb in [`VERBS`].
    pub verb: usize,
    /// When the request began or, in an open loop, was due.
    pub from: Instant,
    /// When the answer came.
    pub now: Instant,
    /// Whether the answer says that the key does not exist.
    pub missing: bool,
    /// Length of the value that was sent or received.
    pub value_bytes: usize,
}

/// Counts of a run, or of a thread's part of it.
#[derive(Debug, Clone)]
pub struct Tally {
    /// When counting began: after the warm-up.
    pub begin: Instant,
    /// Latencies in nanoseconds, in the order of [`VERBS`].
    pub latencies: [Histogram<u64>; 3],
    /// How late requests were that were due and never sent (open loop). Their latencies would have been greater.
    pub unsent: Histogram<u64>,
    /// Requests answered, by the millisecond in which the answer came.
    per_millisecond: Vec<u32>,
    /// Reads and deletes whose key did not exist.
    pub missing: u64,
    /// Requests that the server refused for now (503, 507). Whether a refused write took effect is left open.
    pub refused: u64,
    /// Requests sent late although their connection had nothing else to do: the load tool was too slow.
    pub sent_late: u64,
    /// Requests that were never answered.
    pub unanswered: u64,
    /// Acknowledged writes that were missing.
    pub lost: u64,
    /// Answers that differ from what was written.
    pub wrong: u64,
    /// The first lost write or wrong answer, as a sentence.
    pub first_fault: Option<String>,
    /// Bytes of values sent and received.
    pub value_bytes: u64,
}

impl Tally {
    /// An empty tally.
    pub fn new(begin: Instant) -> Self {
        let Ok(empty) = Histogram::new_with_bounds(1, LATENCY_MAX, DIGITS) else {
            unreachable!("a histogram may have these bounds and three digits")
        };
        Self {
            begin,
            latencies: [empty.clone(), empty.clone(), empty.clone()],
            unsent: empty,
            per_millisecond: Vec::new(),
            missing: 0,
            refused: 0,
            sent_late: 0,
            unanswered: 0,
            lost: 0,
            wrong: 0,
            first_fault: None,
            value_bytes: 0,
        }
    }

    /// Counts a request that was answered.
    pub fn answered(&mut self, answer: Answer) {
        let Answer { verb, from, now, missing, value_bytes } = answer;
        if now < self.begin {
            return; // B4
        }
        if self.begin <= from {
            self.latencies[verb].saturating_record(nanoseconds(now.saturating_duration_since(from))); // B4
        }
        self.missing += u64::from(missing);
        self.value_bytes += value_bytes as u64;
        let millisecond = now.saturating_duration_since(self.begin).as_millis() as usize;
        if self.per_millisecond.len() <= millisecond {
            self.per_millisecond.resize(millisecond + 1, 0);
        }
        self.per_millisecond[millisecond] += 1;
    }

    /// Counts a request that the server refused for now.
    pub fn refused(&mut self, now: Instant) {
        self.refused += u64::from(self.begin <= now);
    }

    /// Counts a request that was `due` earlier and is sent late by an idle connection.
    pub fn sent_late(&mut self, due: Instant) {
        self.sent_late += u64::from(self.begin <= due); // B4
    }

    /// Extends the time of counting to `end` at least, whether answers came or not.
    pub fn last_until(&mut self, end: Instant) {
        let milliseconds = end.saturating_duration_since(self.begin).as_millis() as usize;
        self.per_millisecond.resize(milliseconds.max(self.per_millisecond.len()), 0);
    }

    /// Counts `count` requests that are given up at `end`. The first of them was `due`; all count as late as the first.
    pub fn given_up(&mut self, due: Instant, end: Instant, count: u64) {
        if self.begin <= due {
            self.unsent.saturating_record_n(nanoseconds(end.saturating_duration_since(due)), count); // B4
        }
    }

    /// Counts an answer that is at fault; `what` describes the fault.
    pub fn fault(&mut self, fault: Fault, what: impl FnOnce() -> String) {
        match fault {
            Fault::Lost => self.lost += 1,
            Fault::Wrong => self.wrong += 1,
        }
        self.first_fault.get_or_insert_with(what);
    }

    /// Adds the tally of another thread, counted from the same moment.
    pub fn merge(&mut self, other: Self) {
        for (own, added) in self.latencies.iter_mut().zip(&other.latencies) {
            // This fails only if the bounds differ.
            let _ = own.add(added);
        }
        let length = self.per_millisecond.len().max(other.per_millisecond.len());
        self.per_millisecond.resize(length, 0);
        for (own, added) in self.per_millisecond.iter_mut().zip(other.per_millisecond) {
            *own += added;
        }
        self.missing += other.missing;
        self.refused += other.refused;
        let _ = self.unsent.add(&other.unsent);
        self.sent_late += other.sent_late;
        self.unanswered += other.unanswered;
        self.lost += other.lost;
        self.wrong += other.wrong;
        self.value_bytes += other.value_bytes;
        self.first_fault = self.first_fault.take().or(other.first_fault);
    }

    /// Requests answered.
    pub fn count(&self) -> u64 {
        self.per_millisecond.iter().map(|&count| u64::from(count)).sum()
    }

    /// The time from the beginning to the last answer, or to the end that was given to `last_until`.
    pub fn duration(&self) -> Duration {
        Duration::from_millis(self.per_millisecond.len() as u64)
    }

    /// Requests answered in each `interval` of at least a millisecond; the last interval may be cut short.
    pub fn series(&self, interval: Duration) -> Vec<u64> {
        let width = interval.as_millis().max(1) as usize;
        self.per_millisecond
            .chunks(width)
            .map(|part| part.iter().map(|&count| u64::from(count)).sum())
            .collect()
    }

    /// The longest time without an answer, to the millisecond.
    pub fn longest_gap(&self) -> Duration {
        let (mut longest, mut current) = (0, 0);
        for &count in &self.per_millisecond {
            current = if count == 0 { current + 1 } else { 0 };
            longest = longest.max(current);
        }
        Duration::from_millis(longest)
    }
}

/// A latency as the histograms keep it: at least 1.
fn nanoseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_gaps_are_those_of_all_threads() {
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        let (mut one, mut other) = (Tally::new(begin), Tally::new(begin));
        let answer =
            |verb, from, now| Answer { verb, from: at(from), now: at(now), missing: true, value_bytes: 5 };
        one.answered(answer(0, 0, 1));
        one.answered(answer(0, 0, 100));
        other.answered(answer(1, 10, 40));
        other.refused(begin);
        other.fault(Fault::Lost, || "first".into());
        other.fault(Fault::Wrong, || "second".into());
        assert_eq!(one.longest_gap(), Duration::from_millis(98));
        one.merge(other);
        assert_eq!((one.count(), one.lost, one.wrong), (3, 1, 1));
        assert_eq!((one.missing, one.value_bytes, one.refused), (3, 15, 1));
        assert_eq!(one.first_fault.as_deref(), Some("first"));
        assert_eq!(one.longest_gap(), Duration::from_millis(59));
        assert_eq!(one.series(Duration::from_millis(50)), [2, 0, 1]);
        one.last_until(at(200));
        assert_eq!(
            (one.duration(), one.longest_gap()),
            (Duration::from_millis(200), Duration::from_millis(99))
        );
        one.last_until(at(150));
        assert_eq!(one.duration(), Duration::from_millis(200));
        assert_eq!((one.latencies[0].len(), one.latencies[1].len(), one.latencies[2].len()), (2, 1, 0));
        assert!((99_900_000..100_100_000).contains(&one.latencies[0].max()));
    }

    #[test]
    fn b4_answers_count_behind_the_warm_up_and_latencies_of_what_began_there() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut tally = Tally::new(at(2));
        let answer =
            |from, now| Answer { verb: 0, from: at(from), now: at(now), missing: true, value_bytes: 1 };
        tally.answered(answer(0, 1));
        tally.refused(at(1));
        tally.given_up(at(1), at(9), 1);
        tally.sent_late(at(1));
        assert_eq!(tally.sent_late, 0);
        assert_eq!((tally.count(), tally.latencies[0].len(), tally.missing), (0, 0, 0));
        assert_eq!((tally.refused, tally.unsent.len()), (0, 0));
        tally.answered(answer(1, 3));
        assert_eq!((tally.count(), tally.latencies[0].len(), tally.missing), (1, 0, 1));
        tally.answered(answer(3, 4));
        tally.given_up(at(5), at(9), 3);
        tally.sent_late(at(5));
        assert_eq!(tally.sent_late, 1);
        assert_eq!((tally.count(), tally.latencies[0].len(), tally.unsent.len()), (2, 1, 3));
    }
}
