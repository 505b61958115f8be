//! Several sources as one: all versions of all keys, in order.

use super::tournament::Tournament;
use super::{Source, Step};
use crate::error::Result;
use crate::key::{Entry, compare};

/// A merge of sources.
pub struct Merge<S> {
    sources: Vec<S>,
    /// Whether a source has ended.
    ended: Vec<bool>,
    state: State,
    /// The order of the sources' entries, once each has one.
    tournament: Tournament,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// This source and those after it have to move to their first entry.
    Beginning(usize),
    /// The winner was read and has to move on.
    Moving,
    /// The winner stands at the current entry, or every source has ended.
    Standing,
}

impl<S: Source> Merge<S> {
    /// A merge of sources that stand in front of their first entries.
    pub fn new(sources: Vec<S>) -> Self {
        Self {
            ended: vec![false; sources.len()],
            sources,
            state: State::Beginning(0),
            tournament: Tournament::default(),
        }
    }

    /// The index of the source that the current entry comes from.
    pub fn current(&self) -> Option<usize> {
        self.tournament.winner()
    }

    /// The sources.
    pub fn sources(&self) -> &[S] {
        &self.sources
    }
}

/// Whether the entry of source `a` comes before that of source `b`. Of equal entries, the entry of the first source
/// comes first.
fn less<S: Source>(sources: &[S], ended: &[bool], a: usize, b: usize) -> bool {
    match (ended[a], ended[b]) {
        (true, _) => false,
        (false, true) => true,
        (false, false) => sources[a].read(|x| {
            sources[b].read(|y| compare((x.key, x.seqno), (y.key, y.seqno)).then(a.cmp(&b)).is_lt())
        }),
    }
}

impl<S: Source> Source for Merge<S> {
    fn seek(&mut self, key: &[u8]) {
        self.sources.iter_mut().for_each(|source| source.seek(key));
        self.state = State::Beginning(0);
    }

    fn step(&mut self) -> Result<Step> {
        let Self { sources, ended, state, tournament } = self;
        while let State::Beginning(next) = *state {
            let Some(source) = sources.get_mut(next) else {
                *tournament = Tournament::new(sources.len(), |a, b| less(sources, ended, a, b));
                *state = State::Standing;
                return Ok(self.standing());
            };
            match source.step()? {
                step @ (Step::Need | Step::Pause) => return Ok(step),
                step => ended[next] = step == Step::End,
            }
            *state = State::Beginning(next + 1);
        }
        let Some(winner) = tournament.winner().filter(|winner| !ended[*winner]) else { return Ok(Step::End) };
        *state = State::Moving;
        match sources[winner].step()? {
            step @ (Step::Need | Step::Pause) => return Ok(step),
            step => ended[winner] = step == Step::End,
        }
        tournament.replay(|a, b| less(sources, ended, a, b));
        *state = State::Standing;
        Ok(self.standing())
    }

    fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
        assert!(self.state == State::Standing, "the last step returned an entry");
        let winner = self.tournament.winner().expect("an entry has a source");
        self.sources[winner].read(read)
    }

    async fn supply(&mut self) -> Result<()> {
        let needy = match self.state {
            State::Beginning(next) => Some(next),
            State::Moving => self.tournament.winner(),
            State::Standing => None,
        };
        match needy {
            Some(needy) => self.sources[needy].supply().await,
            None => Ok(()),
        }
    }
}

impl<S> Merge<S> {
    fn standing(&self) -> Step {
        match self.tournament.winner() {
            Some(winner) if !self.ended[winner] => Step::Entry,
            _ => Step::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures_executor::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::key::{EntryKind, SeqNo};
    use crate::source::newest::Newest;

    /// Entries in order. Every other entry has to be supplied first.
    struct List {
        entries: Vec<(Vec<u8>, SeqNo)>,
        /// The number of entries up to and including the current one.
        at: usize,
        supplied: usize,
    }

    impl List {
        fn new(mut entries: Vec<(Vec<u8>, SeqNo)>) -> Self {
            entries.sort_by(|a, b| compare((&a.0, a.1), (&b.0, b.1)));
            Self { entries, at: 0, supplied: 0 }
        }
    }

    impl Source for List {
        fn seek(&mut self, key: &[u8]) {
            self.at = self.entries.partition_point(|entry| *entry.0 < *key);
        }

        fn step(&mut self) -> Result<Step> {
            if self.at == self.entries.len() {
                return Ok(Step::End);
            }
            if self.at % 2 == 1 && self.supplied != self.at {
                return Ok(Step::Need);
            }
            self.at += 1;
            Ok(Step::Entry)
        }

        fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
            let (key, seqno) = &self.entries[self.at - 1];
            read(Entry { key, seqno: *seqno, kind: EntryKind::VALUE, value: b"" })
        }

        async fn supply(&mut self) -> Result<()> {
            self.supplied = self.at;
            Ok(())
        }
    }

    fn all(source: &mut impl Source) -> Vec<(Vec<u8>, SeqNo)> {
        let mut found = Vec::new();
        while block_on(source.advance()).unwrap() {
            found.push(source.read(|entry| (entry.key.to_vec(), entry.seqno)));
        }
        found
    }

    proptest! {
        #[test]
        fn a_merge_gives_every_version_in_order_and_the_newest_of_each_key_at_a_snapshot(
            writes in prop::collection::vec((0_usize..6, prop::collection::vec(0_u8..4, 0..4)), 0..120),
            from in prop::collection::vec(0_u8..4, 0..4),
        ) {
            let mut lists = vec![Vec::new(); 6];
            let mut model = BTreeSet::new();
            for (index, (list, key)) in writes.into_iter().enumerate() {
                let seqno = SeqNo(index as u64);
                lists[list].push((key.clone(), seqno));
                model.insert((key, std::cmp::Reverse(seqno)));
            }
            let merge = || Merge::new(lists.iter().cloned().map(List::new).collect());
            let expected: Vec<_> = model.iter().map(|(key, seqno)| (key.clone(), seqno.0)).collect();
            let mut merged = merge();
            prop_assert_eq!(all(&mut merged), expected.clone());
            merged.seek(&from);
            let rest: Vec<_> = expected.iter().filter(|(key, _)| from <= *key).cloned().collect();
            prop_assert_eq!(all(&mut merged), rest);
            for snapshot in [0, 1, 60, 200].map(SeqNo) {
                let mut newest: Vec<(Vec<u8>, SeqNo)> =
                    expected.iter().filter(|(_, seqno)| *seqno <= snapshot).cloned().collect();
                newest.dedup_by(|a, b| a.0 == b.0);
                prop_assert_eq!(all(&mut Newest::new(merge(), snapshot)), newest);
            }
        }
    }

    #[test]
    fn of_equal_entries_that_of_the_first_source_comes_first() {
        let list = || List::new(vec![(b"a".to_vec(), SeqNo(1))]);
        let mut merge = Merge::new(vec![list(), list(), list()]);
        let mut order = Vec::new();
        while merge.step().unwrap() == Step::Entry {
            order.push(merge.current().unwrap());
        }
        assert_eq!(order, [0, 1, 2]);
    }
}
