//! Counts and durations of one thread, for the page of metrics. They are plain cells: a scrape asks the thread for a copy.
//! Pure.

use std::cell::Cell;
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(Cell<u64>);

impl Count {
    /// Adds `more`.
    #[inline]
    pub fn add(&self, more: u64) {
        self.0.set(self.0.get().wrapping_add(more));
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Upper bounds of durations that are counted together, in microseconds. There is one more bucket, without a bound.
pub const BOUNDS_MICROS: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 10_000_000];

/// How long something took, in buckets.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// How many were at or below each bound and above the bound before it.
    pub buckets: [u64; BOUNDS_MICROS.len() + 1],
    /// All of them together.
    pub sum: Duration,
}

impl Histogram {
    /// Adds `count` that took equally long.
    pub fn observe(&mut self, took: Duration, count: u32) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS_MICROS.partition_point(|bound| *bound < micros)] += u64::from(count);
        self.sum += took * count;
    }

    /// Adds those of another one.
    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(other.buckets) {
            *own += more;
        }
        self.sum += other.sum;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_below_their_bounds_and_added_up() {
        let mut first = Histogram::default();
        for micros in [0, 50, 51, 100, 11_000_000] {
            first.observe(Duration::from_micros(micros), 1);
        }
        assert_eq!((first.buckets[0], first.buckets[1], first.buckets[BOUNDS_MICROS.len()]), (2, 2, 1));
        let mut second = first.clone();
        second.merge(&first);
        assert_eq!((second.count(), second.sum), (10, Duration::from_micros(22_000_402)));
        second.observe(Duration::from_millis(1), 3);
        assert_eq!(
            (second.buckets[4], second.count(), second.sum),
            (3, 13, Duration::from_micros(22_003_402))
        );
        assert!(BOUNDS_MICROS.is_sorted());
    }
}
