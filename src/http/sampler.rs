//! Chooses one of so many events, without a clock and without anything that threads share. Pure.

use std::cell::Cell;

use crate::random::Random;

/// Chooses on average one event of `one_in`. The distance between two of them is random, so an event that comes in step with
/// others, as the second request of each pair, is chosen as often as they are.
#[derive(Debug)]
pub(super) struct Sampler {
    one_in: u32,
    left: Cell<u32>,
    random: Cell<Random>,
}

impl Sampler {
    pub(super) fn new(one_in: u32) -> Self {
        Self { one_in, left: Cell::new(one_in), random: Cell::new(Random::new(one_in.into())) }
    }

    /// Whether this event is chosen.
    #[inline]
    pub(super) fn chooses(&self) -> bool {
        let left = self.left.get() - 1;
        self.left.set(left);
        left == 0 && self.begin_again()
    }

    #[cold]
    fn begin_again(&self) -> bool {
        let mut random = self.random.get();
        let distance = 1 + random.below(2 * u64::from(self.one_in) - 1);
        self.left.set(u32::try_from(distance).unwrap_or(self.one_in));
        self.random.set(random);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_is_chosen_in_every_phase_of_a_pattern() {
        const EVENTS: usize = 1 << 20;
        for (one_in, period) in [(8, 2), (8, 8), (128, 2), (128, 16), (128, 64)] {
            let sampler = Sampler::new(one_in);
            let mut chosen = vec![0; period];
            for event in 0..EVENTS {
                chosen[event % period] += usize::from(sampler.chooses());
            }
            let expected = EVENTS / one_in as usize / period;
            for count in &chosen {
                assert!(
                    (expected / 2..2 * expected).contains(count),
                    "one in {one_in}, period {period}: {chosen:?}"
                );
            }
        }
        assert!((0..100).all(|_| Sampler::new(1).chooses()));
    }
}
