//! Thousands of random runs, and the seed of the run that fails.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::{Row, setting};

/// What was tried: runs, acknowledged writes, and cases of damage that were refused.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tried {
    pub runs: u64,
    pub acknowledged: u64,
    pub detected: u64,
}

impl Tried {
    fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.acknowledged += other.acknowledged;
        self.detected += other.detected;
    }
}

/// Prints the seed if the test fails while this is held.
pub struct PrintsSeed(pub u64);

impl Drop for PrintsSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat it with RINGKEEP_SEED={}", self.0);
        }
    }
}

/// Calls `run` with one seed after the other, beginning at `RINGKEEP_SEED`, until there were at least `runs` runs in
/// all. Reports them in the row `name`.
pub fn campaign(name: &'static str, runs: u64, run: impl Fn(u64) -> Tried + Sync) {
    let first = setting("RINGKEEP_SEED", 7);
    let begin = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let work = |worker| {
        let (mut tried, mut seed) = (Tried::default(), first + worker);
        while tried.runs < runs.div_ceil(workers) {
            let _prints_seed = PrintsSeed(seed);
            tried.add(run(seed));
            seed += workers;
        }
        tried
    };
    let mut totals = Tried::default();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        handles.into_iter().for_each(|handle| totals.add(handle.join().unwrap()));
    });
    let Tried { runs, acknowledged, detected } = totals;
    Row { name, runs, acknowledged, detected, seconds: begin.elapsed(), ..Row::default() }.report();
}

/// Calls `test` with `cases` random inputs. `RINGKEEP_SEED` determines the inputs; without it they differ each time. If
/// a case fails, this prints the seed and the shortest input that fails.
pub fn for_random<S: Strategy>(cases: u32, inputs: S, test: impl Fn(S::Value)) {
    let seed = setting("RINGKEEP_SEED", RandomState::new().hash_one(0));
    let _prints_seed = PrintsSeed(seed);
    let rng_seed = RngSeed::Fixed(seed);
    let config = Config { cases, rng_seed, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&inputs, |input| {
        test(input);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
