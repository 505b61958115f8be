//! Chooses the next key. Pure.

use rand_distr::{Distribution, Zipf};

use crate::random::{Random, hash};

/// How often each key is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Access {
    /// Every key equally often.
    Uniform,
    /// A few keys much more often than the others (exponent 0.99, as in YCSB); they lie anywhere among the keys.
    Zipfian,
    /// As zipfian, but the most frequent keys are those that fill-seq and inserts wrote last.
    Latest,
}

/// Exponent of the zipfian distribution: YCSB's. YCSB draws from 10^10 ranks whatever the number of keys; here there
/// are as many ranks as keys. Of a million keys, the hottest gets 6.5 % of the requests here, and 3.8 % in YCSB.
const ZIPF_EXPONENT: f64 = 0.99;

/// Chooses among the keys of a run.
#[derive(Debug, Clone, Copy)]
pub struct Chooser {
    count: u64,
    zipf: Zipf<f64>,
    permutation: Permutation,
}

impl Chooser {
    /// Chooses among the first `count` keys; `count` is at least 1.
    pub fn new(count: u64, seed: u64) -> Self {
        assert!(0 < count, "a run needs at least one key");
        let Ok(zipf) = Zipf::new(count as f64, ZIPF_EXPONENT) else {
            unreachable!("the count is at least 1 and the exponent is positive")
        };
        Self { count, zipf, permutation: Permutation::new(count, seed) }
    }

    /// The number of keys that exist at first.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Draws the number of a key. `present` is the number of keys that exist by now: at least as many as at first.
    pub fn choose(&self, access: Access, present: u64, random: &mut Random) -> u64 {
        match access {
            Access::Uniform => random.below(present),
            Access::Zipfian => self.permutation.of(self.rank(random)),
            Access::Latest => present - 1 - self.rank(random),
        }
    }

    /// The `index`-th key in an order that visits each key once and looks random. After the last key the order starts
    /// again.
    pub fn shuffled(&self, index: u64) -> u64 {
        self.permutation.of(index % self.count)
    }

    fn rank(&self, random: &mut Random) -> u64 {
        (self.zipf.sample(random) as u64).clamp(1, self.count) - 1
    }
}

/// A permutation of the numbers below a count: a Feistel network over the next even number of bits, applied again until
/// the result is below the count (Black and Rogaway, 2002).
#[derive(Debug, Clone, Copy)]
struct Permutation {
    count: u64,
    half_bits: u32,
    seed: u64,
}

const ROUNDS: u64 = 4;

impl Permutation {
    fn new(count: u64, seed: u64) -> Self {
        let bits = u64::BITS - (count - 1).leading_zeros();
        Self { count, half_bits: bits.div_ceil(2).max(1), seed }
    }

    fn of(&self, mut number: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        loop {
            let (mut left, mut right) = (number >> self.half_bits, number & mask);
            for round in 0..ROUNDS {
                (left, right) = (right, left ^ (hash(self.seed.wrapping_add(round), right) & mask));
            }
            number = left << self.half_bits | right;
            if number < self.count {
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_visits_each_number_once_and_not_in_order() {
        for count in [1, 2, 3, 100, 1000, 4096, 4097] {
            let chooser = Chooser::new(count, 7);
            let mut visited: Vec<u64> = (0..count).map(|index| chooser.shuffled(index)).collect();
            assert!(count < 100 || !visited.is_sorted());
            visited.sort_unstable();
            assert!(visited.into_iter().eq(0..count));
        }
    }

    #[test]
    fn each_access_asks_for_the_keys_that_it_promises() {
        const COUNT: u64 = 1000;
        const DRAWS: usize = 100_000;
        let chooser = Chooser::new(COUNT, 7);
        let draw = |access, present| {
            let mut random = Random::new(3);
            let mut counts = vec![0; present as usize];
            for _ in 0..DRAWS {
                counts[chooser.choose(access, present, &mut random) as usize] += 1;
            }
            counts
        };
        let uniform = draw(Access::Uniform, COUNT);
        assert!(uniform.iter().all(|count| (50..200).contains(count)));
        let zipfian = draw(Access::Zipfian, COUNT);
        let hottest = (0..COUNT as usize).max_by_key(|&key| zipfian[key]).unwrap();
        // The sum of k^-0.99 for k up to 1,000 is 7.73: the hottest key gets an eighth of the draws.
        assert!((11_000..15_000).contains(&zipfian[hottest]), "{}", zipfian[hottest]);
        assert_ne!(hottest, 0, "the hottest key is not the first one");
        let latest = draw(Access::Latest, COUNT + 500);
        assert!((11_000..15_000).contains(&latest[COUNT as usize + 499]));
        assert!(
            latest[..500].iter().all(|count| *count == 0),
            "the distribution reaches only the last 1,000 keys"
        );
    }
}
