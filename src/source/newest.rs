//! The newest version of each key, at a snapshot.

use super::{PASSED_MAX, Source, Step};
use crate::error::Result;
use crate::key::{Entry, SeqNo};

/// A source that passes over all versions of a key except the newest at or below a snapshot. That version may be a
/// tombstone, or may have expired; the caller decides what this means.
///
/// A key may have a million versions in a memtable, so a step that has passed over many of them ends with
/// [`Step::Pause`].
pub struct Newest<S> {
    source: S,
    snapshot: SeqNo,
    /// The key of the last entry; `None` in front of the first entry.
    last: Option<Vec<u8>>,
    passed: Passed,
}

/// Versions that were passed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// How many there were.
    pub versions: usize,
    /// Bytes of their keys and values.
    pub bytes: usize,
}

impl<S: Source> Newest<S> {
    /// The newest versions of `source` at `snapshot`.
    pub fn new(source: S, snapshot: SeqNo) -> Self {
        Self { source, snapshot, last: None, passed: Passed::default() }
    }

    /// The source below.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// What was passed over since the last call, for a caller that counts its work.
    pub fn take_passed(&mut self) -> Passed {
        std::mem::take(&mut self.passed)
    }
}

impl<S: Source> Source for Newest<S> {
    fn seek(&mut self, key: &[u8]) {
        self.last = None;
        self.source.seek(key);
    }

    fn step(&mut self) -> Result<Step> {
        for _ in 0..PASSED_MAX {
            match self.source.step()? {
                Step::Entry => {}
                other => return Ok(other),
            }
            let Self { source, snapshot, last, passed, .. } = self;
            let found = source.read(|entry| {
                if *snapshot < entry.seqno || last.as_deref() == Some(entry.key) {
                    passed.versions += 1;
                    passed.bytes += entry.key.len() + entry.value.len();
                    return false;
                }
                let last = last.get_or_insert_default();
                last.clear();
                last.extend_from_slice(entry.key);
                true
            });
            if found {
                return Ok(Step::Entry);
            }
        }
        Ok(Step::Pause)
    }

    fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
        self.source.read(read)
    }

    async fn supply(&mut self) -> Result<()> {
        self.source.supply().await
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use futures_executor::block_on;

    use super::*;
    use crate::key::{EntryKind, Key, KeyHash};
    use crate::memtable::Memtable;
    use crate::memtable::order::{MemtableSource, Wants};

    #[test]
    fn a_step_passes_over_a_bounded_number_of_versions_and_counts_them() {
        const VERSIONS: u64 = 3_000;
        let hash = KeyHash::with_seed(1);
        let memtable = Rc::new(Memtable::new(hash));
        for seqno in 1..=VERSIONS {
            memtable.insert(Key::new(b"a", hash), SeqNo(seqno), EntryKind::VALUE, b"1234");
        }
        let last = SeqNo(VERSIONS + 1);
        memtable.insert(Key::new(b"b", hash), last, EntryKind::VALUE, b"");
        for snapshot in [last, SeqNo(VERSIONS), SeqNo(1_000)] {
            let mut newest =
                Newest::new(MemtableSource::new(memtable.clone(), last, Wants::SortedRuns), snapshot);
            let (mut found, mut passed) = (Vec::new(), Passed::default());
            loop {
                let step = newest.step().unwrap();
                let Passed { versions, bytes } = newest.take_passed();
                assert!(versions <= PASSED_MAX, "snapshot {}: {versions}", snapshot.0);
                passed = Passed { versions: passed.versions + versions, bytes: passed.bytes + bytes };
                match step {
                    Step::Entry => found.push(newest.read(|entry| (entry.key.to_vec(), entry.seqno))),
                    Step::Need => block_on(newest.supply()).unwrap(),
                    Step::Pause => {}
                    Step::End => break,
                }
            }
            let mut expected = vec![(b"a".to_vec(), snapshot.min(SeqNo(VERSIONS)))];
            expected.extend((snapshot == last).then(|| (b"b".to_vec(), last)));
            assert_eq!(found, expected);
            let older = VERSIONS as usize - 1;
            let above = usize::from(snapshot != last);
            assert_eq!(passed, Passed { versions: older + above, bytes: 5 * older + above });
            newest.seek(b"b");
            assert_eq!(newest.step().unwrap() == Step::Entry, snapshot == last);
        }
    }
}
