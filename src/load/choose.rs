//! Which key is next. Pure.

use rand_distr::{Distribution, Zipf};

use crate::random::{Random, hash};

/// How often each key is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Access {
    /// All as often.
    Uniform,
    /// A few much more often than the others (exponent 0.99, as in YCSB), wherever they lie.
    Zipfian,
    /// The same, but those with the greatest numbers: what fill-seq and inserts wrote last.
    Latest,
}

/// Exponent of the zipfian distribution: YCSB's. Its program draws from 10^10 ranks whatever the number of keys, where
/// here there are as many ranks as keys: of a million the hottest is asked for by 6.5 % here, and 3.8 % there.
const ZIPF_EXPONENT: f64 = 0.99;

/// Chooses among the keys of a run.
#[derive(Debug, Clone, Copy)]
pub struct Chooser {
    count: u64,
    zipf: Zipf<f64>,
    permutation: Permutation,
}

impl Chooser {
    /// Among the first `count` keys, which are not none.
    pub fn new(count: u64, seed: u64) -> Self {
        assert!(0 < count, "there are keys to choose from");
        let Ok(zipf) = Zipf::new(count as f64, ZIPF_EXPONENT) else {
            unreachable!("the count is at least 1 and the exponent is positive")
        };
        Self { count, zipf, permutation: Permutation::new(count, seed) }
    }

    /// Keys that there are at first.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A key number, of `present` keys that there are by now: at least as many as at first.
    pub fn choose(&self, access: Access, present: u64, random: &mut Random) -> u64 {
        match access {
            Access::Uniform => random.below(present),
            Access::Zipfian => self.permutation.of(self.rank(random)),
            Access::Latest => present - 1 - self.rank(random),
        }
    }

    /// The `index`-th key in an order that visits each once and looks random; from the start again behind the last.
    pub fn shuffled(&self, index: u64) -> u64 {
        self.permutation.of(index % self.count)
    }

    fn rank(&self, random: &mut Random) -> u64 {
        (self.zipf.sample(random) as u64).clamp(1, self.count) - 1
    }
}

/// The numbers below a count in another order: a Feistel network over the next even number of bits, walked until it
/// is back below the count (Black and Rogaway, 2002).
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
        // The sum of k^-0.99 up to 1,000 is 7.73: the first of them has an eighth.
        assert!((11_000..15_000).contains(&zipfian[hottest]), "{}", zipfian[hottest]);
        assert_ne!(hottest, 0, "the hottest key lies anywhere");
        let latest = draw(Access::Latest, COUNT + 500);
        assert!((11_000..15_000).contains(&latest[COUNT as usize + 499]));
        assert!(latest[..500].iter().all(|count| *count == 0), "beyond the reach of the distribution");
    }
}
