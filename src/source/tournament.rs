//! A tournament that finds the smallest of many heads (Knuth, The Art of Computer Programming, volume 3, 5.4.1: tree of
//! losers). Pure.
//!
//! When the winner is replaced, only the matches on its way to the top are played again: one for each level. The
//! tournament keeps the numbers of the players; the caller compares the heads that these numbers stand for.

/// The tournament.
#[derive(Debug, Default)]
pub struct Tournament {
    /// The winner of all, then the loser of each match. Match `n` is between the winners of `2n` and `2n + 1`; player `p`
    /// enters at `players + p`.
    matches: Vec<u32>,
}

impl Tournament {
    /// Plays all matches between players 0 to `players - 1`. `less` says whether the first of two players is smaller.
    pub fn new(players: usize, less: impl Fn(usize, usize) -> bool) -> Self {
        let mut winners: Vec<u32> = (0..2 * players).map(|at| at.saturating_sub(players) as u32).collect();
        let mut matches = vec![0; players];
        for at in (1..players).rev() {
            let (a, b) = (winners[2 * at], winners[2 * at + 1]);
            let a_wins = less(a as usize, b as usize);
            (winners[at], matches[at]) = if a_wins { (a, b) } else { (b, a) };
        }
        if let Some(winner) = matches.first_mut() {
            *winner = winners[1];
        }
        Self { matches }
    }

    /// The smallest player; `None` if there is no player.
    #[inline]
    pub fn winner(&self) -> Option<usize> {
        self.matches.first().map(|winner| *winner as usize)
    }

    /// Plays the winner's matches again, after its head has changed.
    #[inline]
    pub fn replay(&mut self, less: impl Fn(usize, usize) -> bool) {
        let Some(&(mut winner)) = self.matches.first() else { return };
        let mut at = (self.matches.len() + winner as usize) / 2;
        while 0 < at {
            if less(self.matches[at] as usize, winner as usize) {
                std::mem::swap(&mut self.matches[at], &mut winner);
            }
            at /= 2;
        }
        self.matches[0] = winner;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn players_win_in_ascending_order() {
        let seed = 4;
        let mut random = Random::new(seed);
        for players in 0..40 {
            // Each player has numbers to give, in ascending order, then infinity.
            let mut hands: Vec<Vec<u64>> =
                (0..players).map(|_| (0..random.below(9)).map(|_| random.below(50)).collect()).collect();
            let mut expected: Vec<u64> = hands.concat();
            expected.sort_unstable();
            hands.iter_mut().for_each(|hand| hand.sort_unstable_by(|a, b| b.cmp(a)));
            let head = |hands: &[Vec<u64>], player: usize| *hands[player].last().unwrap_or(&u64::MAX);
            let mut tournament = Tournament::new(players, |a, b| head(&hands, a) < head(&hands, b));
            let mut found = Vec::new();
            while let Some(winner) = tournament.winner()
                && let Some(number) = hands[winner].pop()
            {
                found.push(number);
                tournament.replay(|a, b| head(&hands, a) < head(&hands, b));
            }
            assert_eq!(found, expected, "seed {seed}, {players} players");
        }
    }
}
