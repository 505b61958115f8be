//! The newest writes of a shard, in memory. Single-threaded; no locks, no `unsafe`. Pure.
//!
//! Owns: entries (key, SeqNo, kind, value), the bytes that they take, and their order, by
//! [`crate::key::compare`]. Knows nothing of durability: the reader says up to which SeqNo it may see.
//!
//! A point lookup needs no order, and a flush needs it once. So entries are only appended, a hash index finds the
//! newest entry of a key, and the order is made when the memtable is flushed ([`InOrder`]), in steps that the
//! flush can put pauses between. A skip list was tried first: keeping the order at all times cost 31 % of the
//! processor time of a set and 44 % of that of a get, nearly all of it cache misses.
//!
//! ```text
//!   hash index ──► node: SeqNo, kind, older version ──► node …
//!                    └──► bytes page: key, value
//! ```
//!
//! M1  Entries are only added. A lookup at SeqNo n gives the same answer for ever, once all up to n are in.
//! M2  `bytes` counts every page and the index, so that a bound on it is a bound on memory.
//! M3  No insert does more than a small share of the work that growing takes: the index is many small tables, and
//!     pages never move.

use std::cmp::Ordering;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

use crate::key::{Entry, SeqNo, ValueKind, common_prefix, compare, filter_hash};

/// Nodes in a page.
const PAGE_NODES: usize = 1 << 12;
/// Bytes of a page of keys and values; larger entries get a page of their own.
const PAGE_BYTES: usize = 1 << 18;
/// Tables of the hash index: each grows on its own, moving 1/64 of the entries (M3).
const TABLES: usize = 64;
/// Entries sorted in one step. Half a thousand take about 50 µs.
const RUN_ENTRIES: usize = 512;
/// No older version.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    hash: u64,
    seqno: SeqNo,
    page: u32,
    offset: u32,
    value_bytes: u32,
    /// The version of the key before this one.
    older: u32,
    key_bytes: u16,
    kind: ValueKind,
}

/// A multi-version map from keys to values.
pub struct Memtable {
    /// Pages of nodes; they never move.
    nodes: Vec<Vec<Node>>,
    /// Pages of keys and values; they never move.
    pages: Vec<Vec<u8>>,
    pages_bytes: usize,
    /// The newest node of each key, by the low bits of its hash.
    index: Vec<HashTable<u32>>,
    /// Entries that the tables of the index have room for, all together.
    index_capacity: usize,
    entries: u32,
    last: SeqNo,
    /// Bytes that all keys have in common with the first one.
    common: usize,
}

impl Default for Memtable {
    fn default() -> Self {
        Self::new()
    }
}

impl Memtable {
    /// An empty memtable. Its first pages are allocated with the first entry.
    pub fn new() -> Self {
        Self {
            nodes: Vec::new(),
            pages: Vec::new(),
            pages_bytes: 0,
            index: (0..TABLES).map(|_| HashTable::new()).collect(),
            index_capacity: 0,
            entries: 0,
            last: SeqNo(0),
            common: usize::MAX,
        }
    }

    /// Bytes of memory held (M2).
    pub fn bytes(&self) -> usize {
        // A table holds its slots, a control byte for each, and is at most seven eighths full.
        self.nodes.len() * PAGE_NODES * size_of::<Node>() + self.pages_bytes + self.index_capacity * 6
    }

    /// Entries, all versions counted.
    pub fn entries(&self) -> u64 {
        u64::from(self.entries)
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
            _ => self.common.min(common_prefix(self.key(self.node(0)), key)),
        };
        let (page, offset) = self.store(key, value);
        let hash = filter_hash(key);
        let new = self.entries;
        let Self { nodes, pages, index, .. } = self;
        let table = &mut index[table_of(hash)];
        let capacity = table.capacity();
        let same = |&node: &u32| {
            let node = node_in(nodes, node);
            node.hash == hash && key_in(pages, node) == key
        };
        let older = match table.entry(hash, same, |&node| node_in(nodes, node).hash) {
            Slot::Occupied(mut newest) => std::mem::replace(newest.get_mut(), new),
            Slot::Vacant(slot) => {
                slot.insert(new);
                NONE
            }
        };
        self.index_capacity += table.capacity() - capacity;
        if (new as usize).is_multiple_of(PAGE_NODES) {
            nodes.push(Vec::with_capacity(PAGE_NODES));
        }
        let last_page = nodes.len() - 1;
        nodes[last_page].push(Node {
            hash,
            seqno,
            page,
            offset,
            value_bytes: u32::try_from(value.len()).expect("values are under 4 GiB"),
            older,
            key_bytes: u16::try_from(key.len()).expect("keys are under 64 KiB"),
            kind,
        });
        self.entries = new.checked_add(1).filter(|count| *count != NONE).expect("frozen long before that");
        self.last = seqno;
    }

    /// The newest entry of `key` at or below `snapshot`.
    pub fn get(&self, key: &[u8], snapshot: SeqNo) -> Option<Entry<'_>> {
        let hash = filter_hash(key);
        let same = |&node: &u32| {
            let node = self.node(node);
            node.hash == hash && self.key(node) == key
        };
        let mut at = *self.index[table_of(hash)].find(hash, same)?;
        // Versions above the snapshot are in flight: few, and on their way to be seen.
        while at != NONE {
            let node = self.node(at);
            if node.seqno <= snapshot {
                return Some(self.entry(node));
            }
            at = node.older;
        }
        None
    }

    fn node(&self, index: u32) -> &Node {
        node_in(&self.nodes, index)
    }

    fn key(&self, node: &Node) -> &[u8] {
        key_in(&self.pages, node)
    }

    fn entry(&self, node: &Node) -> Entry<'_> {
        let from = node.offset as usize + usize::from(node.key_bytes);
        let value = &self.pages[node.page as usize][from..from + node.value_bytes as usize];
        Entry { key: self.key(node), seqno: node.seqno, kind: node.kind, value }
    }

    /// Copies key and value, one behind the other, into a page.
    fn store(&mut self, key: &[u8], value: &[u8]) -> (u32, u32) {
        let bytes = key.len() + value.len();
        let fits = self.pages.last().is_some_and(|page| page.len() + bytes <= page.capacity());
        if !fits {
            let capacity = bytes.max(PAGE_BYTES);
            self.pages.push(Vec::with_capacity(capacity));
            self.pages_bytes += capacity;
        }
        let index = self.pages.len() - 1;
        let page = &mut self.pages[index];
        let offset = page.len();
        page.extend_from_slice(key);
        page.extend_from_slice(value);
        let narrow = |number: usize| u32::try_from(number).expect("pages are few and small");
        (narrow(index), narrow(offset))
    }
}

fn node_in(nodes: &[Vec<Node>], index: u32) -> &Node {
    &nodes[index as usize / PAGE_NODES][index as usize % PAGE_NODES]
}

fn key_in<'a>(pages: &'a [Vec<u8>], node: &Node) -> &'a [u8] {
    let from = node.offset as usize;
    &pages[node.page as usize][from..from + usize::from(node.key_bytes)]
}

/// The table of a hash. hashbrown looks at the lowest and the highest bits, so this takes some between.
fn table_of(hash: u64) -> usize {
    (hash >> 40) as usize % TABLES
}

/// The entries of a memtable that takes no more of them, in order: sorted in runs, then merged as they are asked
/// for. Everything takes the memtable as an argument, so that nothing is borrowed between two steps.
///
/// Comparisons look at eight bytes behind what all keys have in common, side by side in the runs, and at the
/// keys themselves only where those are equal.
pub struct InOrder {
    /// Those eight bytes, and the node.
    runs: Vec<Vec<(u64, u32)>>,
    /// How many entries are in runs.
    taken: u32,
    /// Run and place of the next entry of each run, as a heap: the smallest first.
    heap: Vec<(u32, u32)>,
}

impl InOrder {
    /// Nothing is sorted yet.
    pub fn new() -> Self {
        Self { runs: Vec::new(), taken: 0, heap: Vec::new() }
    }

    /// Sorts a run; `false` once all are.
    pub fn sort_some(&mut self, memtable: &Memtable) -> bool {
        let end = memtable.entries.min(self.taken.saturating_add(RUN_ENTRIES as u32));
        if self.taken < end {
            let mut run: Vec<(u64, u32)> = (self.taken..end)
                .map(|index| (prefix(&memtable.key(memtable.node(index))[memtable.common..]), index))
                .collect();
            run.sort_unstable_by(|a, b| order(memtable, *a, *b));
            self.runs.push(run);
            self.taken = end;
            return true;
        }
        if self.heap.is_empty() {
            self.heap = (0..self.runs.len()).map(|run| (run as u32, 0)).collect();
            for at in (0..self.heap.len() / 2).rev() {
                self.sink(memtable, at);
            }
        }
        false
    }

    /// The next entry; all runs are sorted.
    pub fn next<'a>(&mut self, memtable: &'a Memtable) -> Option<Entry<'a>> {
        assert_eq!(self.taken, memtable.entries, "the memtable is frozen, and its runs are sorted");
        let &(run, place) = self.heap.first()?;
        let (_, node) = self.runs[run as usize][place as usize];
        if place as usize + 1 < self.runs[run as usize].len() {
            self.heap[0].1 += 1;
        } else {
            self.heap.swap_remove(0);
        }
        self.sink(memtable, 0);
        Some(memtable.entry(memtable.node(node)))
    }

    /// Moves the head at `at` down to its place in the heap.
    fn sink(&mut self, memtable: &Memtable, mut at: usize) {
        let head = |this: &Self, at: usize| {
            let (run, place) = this.heap[at];
            this.runs[run as usize][place as usize]
        };
        loop {
            let left = 2 * at + 1;
            let Some(smallest) = (left..self.heap.len().min(left + 2))
                .min_by(|a, b| order(memtable, head(self, *a), head(self, *b)))
            else {
                return;
            };
            if order(memtable, head(self, at), head(self, smallest)).is_lt() {
                return;
            }
            self.heap.swap(at, smallest);
            at = smallest;
        }
    }
}

impl Default for InOrder {
    fn default() -> Self {
        Self::new()
    }
}

fn order(memtable: &Memtable, a: (u64, u32), b: (u64, u32)) -> Ordering {
    a.0.cmp(&b.0).then_with(|| {
        let of = |index| {
            let node = memtable.node(index);
            (memtable.key(node), node.seqno)
        };
        compare(of(a.1), of(b.1))
    })
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

    fn walk(memtable: &Memtable) -> Vec<Entry<'_>> {
        let mut in_order = InOrder::new();
        while in_order.sort_some(memtable) {}
        std::iter::from_fn(|| in_order.next(memtable)).collect()
    }

    #[test]
    fn m1_a_lookup_sees_the_newest_version_at_or_below_its_snapshot() {
        let mut memtable = Memtable::new();
        assert_eq!(memtable.get(b"k", SeqNo(9)), None);
        memtable.insert(b"k", SeqNo(1), ValueKind::Value, b"one");
        memtable.insert(b"k\0", SeqNo(2), ValueKind::Value, b"other");
        memtable.insert(b"k", SeqNo(3), ValueKind::Tombstone, b"");
        let at = |seqno| memtable.get(b"k", SeqNo(seqno)).map(|entry| (entry.seqno.0, entry.kind));
        assert_eq!(at(0), None);
        assert_eq!(at(1), Some((1, ValueKind::Value)));
        assert_eq!(at(2), Some((1, ValueKind::Value)));
        assert_eq!(at(3), Some((3, ValueKind::Tombstone)));
        assert_eq!(memtable.get(b"", SeqNo(9)), None);
        assert_eq!(walk(&memtable).len(), 3);
    }

    #[test]
    fn m2_large_entries_have_pages_of_their_own_and_are_counted() {
        let mut memtable = Memtable::new();
        memtable.insert(b"a", SeqNo(1), ValueKind::Value, &vec![7; 3 * PAGE_BYTES]);
        memtable.insert(b"b", SeqNo(2), ValueKind::Value, b"small");
        assert!(4 * PAGE_BYTES < memtable.bytes() && memtable.bytes() < 6 * PAGE_BYTES);
        assert_eq!(memtable.get(b"a", SeqNo(2)).unwrap().value.len(), 3 * PAGE_BYTES);
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(
            writes in prop::collection::vec(
                (prop::collection::vec(0_u8..3, 0..12), prop::option::of(0_u8..255)), 1..1_500),
        ) {
            let mut memtable = Memtable::new();
            let mut model = BTreeMap::new();
            for (index, (key, value)) in writes.iter().enumerate() {
                let seqno = SeqNo(index as u64 + 1);
                let kind = if value.is_some() { ValueKind::Value } else { ValueKind::Tombstone };
                let value: Vec<u8> = value.iter().copied().collect();
                memtable.insert(key, seqno, kind, &value);
                model.insert((key.clone(), std::cmp::Reverse(seqno)), (kind, value));
            }
            let capacity: usize = memtable.index.iter().map(HashTable::capacity).sum();
            prop_assert_eq!(memtable.index_capacity, capacity); // M2
            let walked: Vec<_> = walk(&memtable)
                .iter()
                .map(|e| ((e.key.to_vec(), std::cmp::Reverse(e.seqno)), (e.kind, e.value.to_vec())))
                .collect();
            prop_assert_eq!(walked, model.clone().into_iter().collect::<Vec<_>>());
            for (key, _) in &writes {
                for snapshot in [0, 1, writes.len() as u64 / 2, writes.len() as u64] {
                    let from = (key.clone(), std::cmp::Reverse(SeqNo(snapshot)));
                    let expected = model.range(from..).next().filter(|((k, _), _)| k == key);
                    let found = memtable.get(key, SeqNo(snapshot));
                    prop_assert_eq!(found.map(|e| e.seqno), expected.map(|((_, s), _)| s.0));
                }
            }
        }
    }
}
