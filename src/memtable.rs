//! The newest writes of a shard, in memory. Single-threaded; no locks, no `unsafe`. Pure.
//!
//! Owns: entries (key, SeqNo, kind, value), the bytes that they take, and their order, by
//! [`crate::key::compare`]. Knows nothing of durability: the reader says up to which SeqNo it may see.
//!
//! A point lookup needs no order, and a flush needs it once. So entries are only appended, a hash index finds the
//! newest entry of a key, and the order is made when the memtable is flushed ([`InOrder`]), in steps that the
//! flush can put pauses between. A skip list was tried first: keeping the order at all times cost 31 % of the
//! processor time of a set and 44 % of that of a get, nearly all of it cache misses. What decided
//! (`cargo bench --bench designs -- memtables`, on the machine of BENCHMARKS.md), for 380,000 entries:
//!
//! | | all inserted | as many found | walked in order, once a flush |
//! | --- | ---: | ---: | ---: |
//! | this one | 0.073 s | 0.11 s | 0.091 s |
//! | `BTreeMap` | 0.56 s | 0.57 s | 0.013 s |
//! | crossbeam's skip list | 1.59 s | 1.06 s | 0.081 s |
//!
//! ```text
//!   hash index ──► record ──older──► record …
//!   page: u64 SeqNo  u32 older  u32 value bytes  u16 key bytes  u8 kind  key  value  up to 8 │ next record …
//! ```
//!
//! M1  Entries are only added. A lookup at SeqNo n gives the same answer for ever, once all up to n are in.
//! M2  `bytes` counts every page and the index, so that a bound on it is a bound on memory.
//! M3  No insert does more than a small share of the work that growing takes: the index is many small tables, and
//!     pages never move.

use std::cmp::Ordering;

use crate::hash_index::HashIndex;
use crate::key::{Entry, KeyHash, SeqNo, ValueKind, common_prefix, compare};

/// Bytes of a page of records; a larger record gets a page of its own.
const PAGE_BYTES: usize = 1 << 18;
/// Records start at multiples of this. Their places are counted in it.
const UNIT_BYTES: usize = 8;
const UNITS_IN_PAGE: usize = PAGE_BYTES / UNIT_BYTES;
const HEADER_BYTES: usize = 19;
/// Tables of the index: each growth moves 1/64 of the entries (M3).
const TABLES: usize = 64;
/// Entries sorted in one step. Half a thousand take about 50 µs.
const RUN_ENTRIES: usize = 512;
/// No record.
const NONE: u32 = u32::MAX;

/// A multi-version map from keys to values.
pub struct Memtable {
    key_hash: KeyHash,
    /// They never move.
    pages: Vec<Vec<u8>>,
    pages_bytes: usize,
    /// The newest record of each key.
    index: HashIndex,
    entries: u64,
    last: SeqNo,
    /// Bytes that all keys have in common with the first one.
    common: usize,
}

/// A record in a page.
struct Record<'a> {
    entry: Entry<'a>,
    /// The version of the key before this one.
    older: u32,
}

impl Memtable {
    /// An empty memtable. Its first page is allocated with the first entry.
    pub fn new(key_hash: KeyHash) -> Self {
        Self {
            key_hash,
            pages: Vec::new(),
            pages_bytes: 0,
            index: HashIndex::new(TABLES),
            entries: 0,
            last: SeqNo(0),
            common: usize::MAX,
        }
    }

    /// Bytes of memory held (M2).
    pub fn bytes(&self) -> usize {
        self.pages_bytes + self.index.bytes()
    }

    /// Entries, all versions counted.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// SeqNo of the last entry; 0 if there is none.
    pub fn last(&self) -> SeqNo {
        self.last
    }

    /// Adds an entry. SeqNos only grow.
    ///
    /// # Panics
    /// If `seqno` is not above all before it, or a key or value is over the limits of `config`.
    pub fn insert(&mut self, key: &[u8], seqno: SeqNo, kind: ValueKind, value: &[u8]) {
        assert!(self.last < seqno, "SeqNos only grow"); // M1
        self.common = match self.entries {
            0 => key.len(),
            _ => self.common.min(common_prefix(record(&self.pages, 0).entry.key, key)),
        };
        let place = self.make_room(HEADER_BYTES + key.len() + value.len());
        let Self { key_hash, pages, index, .. } = self;
        let same = |other| record(pages, other).entry.key == key;
        let older = index.insert(key_hash.of(key), place, same).unwrap_or(NONE);
        let page = &mut self.pages[place as usize / UNITS_IN_PAGE];
        page.extend_from_slice(&seqno.0.to_le_bytes());
        page.extend_from_slice(&older.to_le_bytes());
        page.extend_from_slice(&u32::try_from(value.len()).expect("values are under 4 GiB").to_le_bytes());
        page.extend_from_slice(&u16::try_from(key.len()).expect("keys are under 64 KiB").to_le_bytes());
        page.push(kind as u8);
        page.extend_from_slice(key);
        page.extend_from_slice(value);
        page.resize(page.len().next_multiple_of(UNIT_BYTES), 0);
        self.entries += 1;
        self.last = seqno;
    }

    /// The newest entry of `key`, whose [`KeyHash`] is `hash`, at or below `snapshot`.
    pub fn get(&self, hash: u64, key: &[u8], snapshot: SeqNo) -> Option<Entry<'_>> {
        let mut place = self.index.get(hash, |place| self.record(place).entry.key == key)?;
        // Versions above the snapshot are in flight: few, and on their way to be seen.
        while place != NONE {
            let Record { entry, older } = self.record(place);
            if entry.seqno <= snapshot {
                return Some(entry);
            }
            place = older;
        }
        None
    }

    /// Brings what it holds of keys of these hashes near the processor.
    pub fn prefetch(&self, hashes: &[u64]) {
        if 0 < self.entries {
            self.index.prefetch(hashes, |place| bytes_from(&self.pages, place)[0]);
        }
    }

    fn record(&self, place: u32) -> Record<'_> {
        record(&self.pages, place)
    }

    /// The place of the next record, of `bytes`, in a page that has room for it.
    fn make_room(&mut self, bytes: usize) -> u32 {
        let bytes = bytes.next_multiple_of(UNIT_BYTES);
        if self.pages.last().is_none_or(|page| PAGE_BYTES < page.len() + bytes) {
            let capacity = bytes.max(PAGE_BYTES);
            self.pages.push(Vec::with_capacity(capacity));
            self.pages_bytes += capacity;
        }
        let page = self.pages.len() - 1;
        let place = u32::try_from(page * UNITS_IN_PAGE + self.pages[page].len() / UNIT_BYTES);
        place.ok().filter(|place| *place != NONE).expect("it is frozen long before 32 GiB")
    }
}

/// The record at `place`, and what follows it in its page.
fn bytes_from(pages: &[Vec<u8>], place: u32) -> &[u8] {
    &pages[place as usize / UNITS_IN_PAGE][place as usize % UNITS_IN_PAGE * UNIT_BYTES..]
}

fn record(pages: &[Vec<u8>], place: u32) -> Record<'_> {
    let (header, rest) = bytes_from(pages, place).split_at(HEADER_BYTES);
    let number = |from: usize| {
        u32::from_le_bytes([header[from], header[from + 1], header[from + 2], header[from + 3]])
    };
    let seqno = SeqNo(u64::from(number(4)) << 32 | u64::from(number(0)));
    let kind = ValueKind::decode(header[18]).expect("an insert put a kind there");
    let (key, rest) = rest.split_at(usize::from(u16::from_le_bytes([header[16], header[17]])));
    Record { entry: Entry { key, seqno, kind, value: &rest[..number(12) as usize] }, older: number(8) }
}

/// The entries of a memtable that takes no more of them, in order: sorted in runs, then merged as they are asked
/// for. Everything takes the memtable as an argument, so that nothing is borrowed between two steps.
///
/// Comparisons look at eight bytes behind what all keys have in common, side by side, and at the keys themselves only
/// where those are equal. The runs are merged by a tournament (Knuth, TAOCP volume 3, 5.4.1, tree of losers): when
/// the winner moves on, it plays against those that lost on its way, one for each level.
pub struct InOrder {
    /// Where the entries begin that are in no run yet.
    page: usize,
    offset: usize,
    runs: Vec<std::vec::IntoIter<Head>>,
    /// The next entry of each run.
    heads: Vec<Head>,
    /// The run that won the tournament, then the loser of each match: of `n`, against the winner of `2n` or `2n + 1`;
    /// run r enters it at `runs + r`.
    matches: Vec<u32>,
}

/// An entry in a run.
#[derive(Clone, Copy)]
struct Head {
    /// The eight bytes.
    prefix: u64,
    /// `NONE` behind the last.
    place: u32,
}

impl Head {
    const END: Self = Self { prefix: u64::MAX, place: NONE };

    fn order(self, other: Self, memtable: &Memtable) -> Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| match (self.place, other.place) {
            (NONE, _) | (_, NONE) => self.place.cmp(&other.place),
            _ => {
                let of = |head: Self| {
                    let entry = memtable.record(head.place).entry;
                    (entry.key, entry.seqno)
                };
                compare(of(self), of(other))
            }
        })
    }
}

impl InOrder {
    /// Nothing is sorted yet.
    pub fn new() -> Self {
        Self { page: 0, offset: 0, runs: Vec::new(), heads: Vec::new(), matches: Vec::new() }
    }

    /// Sorts a run; `false` once all are.
    pub fn sort_some(&mut self, memtable: &Memtable) -> bool {
        let mut run = Vec::with_capacity(RUN_ENTRIES);
        while let Some(page) = memtable.pages.get(self.page)
            && run.len() < RUN_ENTRIES
        {
            if page.len() <= self.offset {
                (self.page, self.offset) = (self.page + 1, 0);
                continue;
            }
            let place = (self.page * UNITS_IN_PAGE + self.offset / UNIT_BYTES) as u32;
            let entry = memtable.record(place).entry;
            run.push(Head { prefix: prefix(&entry.key[memtable.common..]), place });
            let bytes = HEADER_BYTES + entry.key.len() + entry.value.len();
            self.offset += bytes.next_multiple_of(UNIT_BYTES);
        }
        if run.is_empty() {
            if self.matches.is_empty() {
                self.begin(memtable);
            }
            return false;
        }
        run.sort_unstable_by(|a, b| a.order(*b, memtable));
        self.runs.push(run.into_iter());
        true
    }

    /// Plays all matches for the first time.
    fn begin(&mut self, memtable: &Memtable) {
        self.heads = self.runs.iter_mut().map(|run| run.next().unwrap_or(Head::END)).collect();
        let runs = self.runs.len();
        let mut winners: Vec<u32> = (0..2 * runs).map(|at| at.saturating_sub(runs) as u32).collect();
        self.matches = vec![0; runs];
        for at in (1..runs).rev() {
            let (a, b) = (winners[2 * at], winners[2 * at + 1]);
            let a_wins = self.head(a).order(self.head(b), memtable).is_lt();
            (winners[at], self.matches[at]) = if a_wins { (a, b) } else { (b, a) };
        }
        if let Some(winner) = self.matches.first_mut() {
            *winner = winners[1];
        }
    }

    fn head(&self, run: u32) -> Head {
        self.heads[run as usize]
    }

    /// The next entry; all runs are sorted.
    pub fn next<'a>(&mut self, memtable: &'a Memtable) -> Option<Entry<'a>> {
        let mut winner = *self.matches.first()?;
        let found = self.head(winner).place;
        if found == NONE {
            return None;
        }
        let run = winner as usize;
        self.heads[run] = self.runs[run].next().unwrap_or(Head::END);
        let mut at = (self.runs.len() + run) / 2;
        while 0 < at {
            if self.head(self.matches[at]).order(self.head(winner), memtable).is_lt() {
                std::mem::swap(&mut self.matches[at], &mut winner);
            }
            at /= 2;
        }
        self.matches[0] = winner;
        Some(memtable.record(found).entry)
    }
}

impl Default for InOrder {
    fn default() -> Self {
        Self::new()
    }
}

/// The first eight bytes as a number of the same order; fewer are padded with zeros.
fn prefix(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(padded)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const KEY_HASH: KeyHash = KeyHash::with_seed(1);

    fn get<'a>(memtable: &'a Memtable, key: &[u8], seqno: u64) -> Option<Entry<'a>> {
        memtable.get(KEY_HASH.of(key), key, SeqNo(seqno))
    }

    fn walk(memtable: &Memtable) -> Vec<Entry<'_>> {
        let mut in_order = InOrder::new();
        while in_order.sort_some(memtable) {}
        std::iter::from_fn(|| in_order.next(memtable)).collect()
    }

    #[test]
    fn m1_a_lookup_sees_the_newest_version_at_or_below_its_snapshot() {
        let mut memtable = Memtable::new(KEY_HASH);
        assert_eq!(get(&memtable, b"k", 9), None);
        memtable.insert(b"k", SeqNo(1), ValueKind::Value, b"one");
        memtable.insert(b"k\0", SeqNo(2), ValueKind::Value, b"other");
        memtable.insert(b"k", SeqNo(3), ValueKind::Tombstone, b"");
        let at = |seqno| get(&memtable, b"k", seqno).map(|entry| (entry.seqno.0, entry.kind));
        assert_eq!(at(0), None);
        assert_eq!(at(1), Some((1, ValueKind::Value)));
        assert_eq!(at(2), Some((1, ValueKind::Value)));
        assert_eq!(at(3), Some((3, ValueKind::Tombstone)));
        assert_eq!(get(&memtable, b"", 9), None);
        assert_eq!(walk(&memtable).len(), 3);
    }

    #[test]
    fn m2_large_entries_have_pages_of_their_own_and_are_counted() {
        let mut memtable = Memtable::new(KEY_HASH);
        memtable.insert(b"a", SeqNo(1), ValueKind::Value, &vec![7; 3 * PAGE_BYTES]);
        memtable.insert(b"b", SeqNo(2), ValueKind::Value, b"small");
        assert!(4 * PAGE_BYTES < memtable.bytes() && memtable.bytes() < 6 * PAGE_BYTES);
        memtable.prefetch(&[b"a", b"b", b"c"].map(|key| KEY_HASH.of(key)));
        assert_eq!(get(&memtable, b"a", 2).unwrap().value.len(), 3 * PAGE_BYTES);
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(
            writes in prop::collection::vec(
                (prop::collection::vec(0_u8..3, 0..12), prop::option::of(0_u8..255)), 1..1_500),
        ) {
            let mut memtable = Memtable::new(KEY_HASH);
            let mut model = BTreeMap::new();
            for (index, (key, value)) in writes.iter().enumerate() {
                let seqno = SeqNo(index as u64 + 1);
                let kind = if value.is_some() { ValueKind::Value } else { ValueKind::Tombstone };
                let value: Vec<u8> = value.iter().copied().collect();
                memtable.insert(key, seqno, kind, &value);
                model.insert((key.clone(), std::cmp::Reverse(seqno)), (kind, value));
            }
            let walked: Vec<_> = walk(&memtable)
                .iter()
                .map(|e| ((e.key.to_vec(), std::cmp::Reverse(e.seqno)), (e.kind, e.value.to_vec())))
                .collect();
            prop_assert_eq!(walked, model.clone().into_iter().collect::<Vec<_>>());
            for (key, _) in &writes {
                for snapshot in [0, 1, writes.len() as u64 / 2, writes.len() as u64] {
                    let from = (key.clone(), std::cmp::Reverse(SeqNo(snapshot)));
                    let expected = model.range(from..).next().filter(|((k, _), _)| k == key);
                    let found = get(&memtable, key, snapshot);
                    prop_assert_eq!(found.map(|e| e.seqno), expected.map(|((_, s), _)| s.0));
                }
            }
        }
    }
}
