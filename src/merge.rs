//! K-way merge of sorted sources: each key once, its newest entry only. The sources load themselves.
//!
//! Owns: the order in which entries of several sources come out. Knows nothing of files or levels.
//!
//! Sources are few (L0 files and one run per level: a dozen or two), so the smallest key is found by looking at
//! all of them; a heap would touch as many keys and need a rule for equal ones besides.

use crate::error::Result;
use crate::key::Entry;

/// A sorted run of entries, each key once.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait Source {
    /// Moves to the next entry, or to the end; a new source stands before its first entry.
    async fn advance(&mut self) -> Result<()>;

    /// The entry it stands at; `None` at the end.
    fn entry(&self) -> Option<Entry<'_>>;
}

/// Several sources as one.
pub struct Merge<S> {
    sources: Vec<S>,
    /// The source of the current entry.
    current: Option<usize>,
}

impl<S: Source> Merge<S> {
    /// A merge that stands before its first entry, over sources that do as well.
    pub async fn new(mut sources: Vec<S>) -> Result<Self> {
        for source in &mut sources {
            source.advance().await?;
        }
        Ok(Self { sources, current: None })
    }

    /// Moves to the next key and returns its newest entry; older entries of that key are passed over.
    pub async fn next(&mut self) -> Result<Option<Entry<'_>>> {
        if let Some(current) = self.current.take() {
            self.sources[current].advance().await?;
        }
        let mut smallest: Option<usize> = None;
        for index in 0..self.sources.len() {
            let Some(entry) = self.sources[index].entry() else { continue };
            let Some(best) = smallest else {
                smallest = Some(index);
                continue;
            };
            let Some(best_entry) = self.sources[best].entry() else { continue };
            match entry.key.cmp(best_entry.key).then(best_entry.seqno.cmp(&entry.seqno)) {
                std::cmp::Ordering::Less => {
                    if entry.key == best_entry.key {
                        self.sources[best].advance().await?;
                    }
                    smallest = Some(index);
                }
                _ => {
                    if entry.key == best_entry.key {
                        self.sources[index].advance().await?;
                    }
                }
            }
        }
        self.current = smallest;
        Ok(smallest.and_then(|index| self.sources[index].entry()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_executor::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::key::{SeqNo, ValueKind};

    struct List(Vec<(Vec<u8>, SeqNo)>, usize);

    impl Source for List {
        async fn advance(&mut self) -> Result<()> {
            self.1 += 1;
            Ok(())
        }
        fn entry(&self) -> Option<Entry<'_>> {
            let (key, seqno) = self.0.get(self.1.checked_sub(1)?)?;
            Some(Entry { key, seqno: *seqno, kind: ValueKind::Value, value: b"" })
        }
    }

    proptest! {
        #[test]
        fn every_key_comes_once_in_order_with_its_newest_entry(
            writes in prop::collection::vec((0_usize..6, prop::collection::vec(0_u8..4, 0..4)), 0..120),
        ) {
            let mut lists = vec![BTreeMap::new(); 6];
            let mut model = BTreeMap::new();
            for (index, (list, key)) in writes.into_iter().enumerate() {
                lists[list].insert(key.clone(), SeqNo(index as u64));
                model.insert(key, SeqNo(index as u64));
            }
            let merged = block_on(async {
                let sources = lists.into_iter().map(|list| List(list.into_iter().collect(), 0)).collect();
                let mut merge = Merge::new(sources).await.unwrap();
                let mut merged = Vec::new();
                while let Some(entry) = merge.next().await.unwrap() {
                    merged.push((entry.key.to_vec(), entry.seqno));
                }
                merged
            });
            prop_assert_eq!(merged, model.into_iter().collect::<Vec<_>>());
        }
    }
}
