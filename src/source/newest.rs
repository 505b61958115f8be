//! The newest version of each key, at a snapshot.

use super::{Source, Step};
use crate::error::Result;
use crate::key::{Entry, SeqNo};

/// A source that passes over all versions of a key except the newest at or below a snapshot. That version may be a
/// tombstone, or may have expired: what it means is for the caller to decide.
pub struct Newest<S> {
    source: S,
    snapshot: SeqNo,
    /// The key of the last entry; `None` in front of the first.
    last: Option<Vec<u8>>,
}

impl<S: Source> Newest<S> {
    /// The newest versions of `source` at `snapshot`.
    pub fn new(source: S, snapshot: SeqNo) -> Self {
        Self { source, snapshot, last: None }
    }

    /// The source below.
    pub fn source(&self) -> &S {
        &self.source
    }
}

impl<S: Source> Source for Newest<S> {
    fn seek(&mut self, key: &[u8]) {
        self.last = None;
        self.source.seek(key);
    }

    fn step(&mut self) -> Result<Step> {
        loop {
            match self.source.step()? {
                Step::Entry => {}
                other => return Ok(other),
            }
            let Self { source, snapshot, last } = self;
            let found = source.read(|entry| {
                if *snapshot < entry.seqno || last.as_deref() == Some(entry.key) {
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
    }

    fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
        self.source.read(read)
    }

    async fn supply(&mut self) -> Result<()> {
        self.source.supply().await
    }
}
