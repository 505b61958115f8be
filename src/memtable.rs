//! The newest writes of a shard, in memory, in order. Single-threaded; no locks, no `unsafe`. Pure.
//!
//! Owns: entries (key, SeqNo, kind, value) sorted by [`crate::key::compare`], and the bytes that they take.
//! Knows nothing of durability: the reader says up to which SeqNo it may see.
//!
//! A skip list (Pugh, CACM 1990) over pages: nodes, links and bytes live in pages that never move and are
//! freed all at once. A `BTreeMap` was the alternative; dropping one of 64 MiB walks and frees half a million
//! allocations, which holds up the shard for tens of milliseconds, and its memory can only be guessed at.
//!
//! ```text
//!   node:  prefix(key)  SeqNo  ──► bytes page: key, value        links[height]: next node per level
//! ```
//!
//! M1  Entries are only added. A lookup at SeqNo n gives the same answer for ever, once all up to n are in.
//! M2  `bytes` counts every page, so that a bound on it is a bound on memory.

use std::cmp::Ordering;

use crate::key::{Entry, SeqNo, ValueKind};
use crate::random::Random;

/// Tallest tower: with a quarter of the nodes rising each level, enough for 4^12 = 16 million entries.
const HEIGHT_MAX: usize = 12;
/// Nodes or links in a page.
const PAGE_ITEMS: usize = 1 << 12;
/// Bytes of a page of keys and values; larger entries get a page of their own.
const PAGE_BYTES: usize = 1 << 18;
/// The node before the first, and the end of every level.
const HEAD: u32 = 0;

/// Items in pages that never move.
struct Paged<T>(Vec<Vec<T>>);

impl<T: Copy> Paged<T> {
    /// Appends `items`, which stay together in one page, and returns the index of the first.
    fn push(&mut self, items: &[T]) -> u32 {
        let full = self.0.last().is_none_or(|page| PAGE_ITEMS < page.len() + items.len());
        if full {
            self.0.push(Vec::with_capacity(PAGE_ITEMS));
        }
        let page_index = self.0.len() - 1;
        let page = &mut self.0[page_index];
        let index = page_index * PAGE_ITEMS + page.len();
        page.extend_from_slice(items);
        u32::try_from(index).expect("a memtable is frozen long before it has 4 billion items")
    }

    fn get(&self, index: u32) -> &T {
        &self.0[index as usize / PAGE_ITEMS][index as usize % PAGE_ITEMS]
    }

    fn get_mut(&mut self, index: u32) -> &mut T {
        &mut self.0[index as usize / PAGE_ITEMS][index as usize % PAGE_ITEMS]
    }

    fn bytes(&self) -> usize {
        self.0.len() * PAGE_ITEMS * size_of::<T>()
    }
}

#[derive(Clone, Copy)]
struct Node {
    /// The first eight bytes of the key, big-endian: most comparisons end here, without touching the key.
    prefix: u64,
    seqno: SeqNo,
    page: u32,
    offset: u32,
    value_bytes: u32,
    /// Index of the links of this node, one per level from the lowest.
    links: u32,
    key_bytes: u16,
    kind: ValueKind,
}

/// An ordered, multi-version map from keys to values.
pub struct Memtable {
    nodes: Paged<Node>,
    links: Paged<u32>,
    pages: Vec<Vec<u8>>,
    pages_bytes: usize,
    height: usize,
    entries: u64,
    last: SeqNo,
    random: Random,
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
            nodes: Paged(Vec::new()),
            links: Paged(Vec::new()),
            pages: Vec::new(),
            pages_bytes: 0,
            height: 1,
            entries: 0,
            last: SeqNo(0),
            random: Random::new(0),
        }
    }

    /// Bytes of memory held (M2).
    pub fn bytes(&self) -> usize {
        self.nodes.bytes() + self.links.bytes() + self.pages_bytes
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
        if self.entries == 0 {
            let head = Node {
                prefix: 0,
                seqno: SeqNo(0),
                page: 0,
                offset: 0,
                value_bytes: 0,
                links: self.links.push(&[HEAD; HEIGHT_MAX]),
                key_bytes: 0,
                kind: ValueKind::Tombstone,
            };
            self.nodes.push(&[head]);
        }
        let (before, _) = self.find(key, seqno);
        let height = self.random_height();
        let mut links = [HEAD; HEIGHT_MAX];
        for (level, link) in links.iter_mut().enumerate().take(height) {
            *link = self.link(before[level], level);
        }
        let links = self.links.push(&links[..height]);
        let (page, offset) = self.store(key, value);
        let node = self.nodes.push(&[Node {
            prefix: prefix(key),
            seqno,
            page,
            offset,
            value_bytes: u32::try_from(value.len()).expect("values are under 4 GiB"),
            links,
            key_bytes: u16::try_from(key.len()).expect("keys are under 64 KiB"),
            kind,
        }]);
        for (level, &previous) in before.iter().enumerate().take(height) {
            let slot = self.nodes.get(previous).links + u32::try_from(level).expect("levels are few");
            *self.links.get_mut(slot) = node;
        }
        self.height = self.height.max(height);
        self.entries += 1;
        self.last = seqno;
    }

    /// The newest entry of `key` at or below `snapshot`.
    pub fn get(&self, key: &[u8], snapshot: SeqNo) -> Option<Entry<'_>> {
        if self.entries == 0 {
            return None;
        }
        let (_, node) = self.find(key, snapshot);
        (node != HEAD).then(|| self.entry(node)).filter(|entry| entry.key == key)
    }

    /// The first entry, to walk from with [`Self::after`].
    pub fn first(&self) -> Option<Position> {
        if self.entries == 0 { None } else { self.position(HEAD) }
    }

    /// The entry behind `position`.
    pub fn after(&self, position: Position) -> Option<Position> {
        self.position(position.0)
    }

    /// The entry at `position`.
    pub fn at(&self, position: Position) -> Entry<'_> {
        self.entry(position.0)
    }

    fn position(&self, before: u32) -> Option<Position> {
        let node = self.link(before, 0);
        (node != HEAD).then_some(Position(node))
    }

    /// For each level the last node that sorts before (`key`, `seqno`), and the first that does not.
    fn find(&self, key: &[u8], seqno: SeqNo) -> ([u32; HEIGHT_MAX], u32) {
        let prefix = prefix(key);
        let mut before = [HEAD; HEIGHT_MAX];
        let mut node = HEAD;
        let mut next = HEAD;
        // A node that did not sort before the target one level up is not compared again.
        let mut ceiling = HEAD;
        for level in (0..self.height).rev() {
            loop {
                next = self.link(node, level);
                if next == HEAD || next == ceiling || self.compare(next, prefix, key, seqno).is_ge() {
                    break;
                }
                node = next;
            }
            ceiling = next;
            before[level] = node;
        }
        (before, next)
    }

    fn compare(&self, node: u32, prefix: u64, key: &[u8], seqno: SeqNo) -> Ordering {
        let node = self.nodes.get(node);
        node.prefix.cmp(&prefix).then_with(|| self.key(node).cmp(key)).then_with(|| seqno.cmp(&node.seqno))
    }

    fn link(&self, node: u32, level: usize) -> u32 {
        let level = u32::try_from(level).expect("levels are few");
        *self.links.get(self.nodes.get(node).links + level)
    }

    fn key(&self, node: &Node) -> &[u8] {
        let from = node.offset as usize;
        &self.pages[node.page as usize][from..from + usize::from(node.key_bytes)]
    }

    fn entry(&self, node: u32) -> Entry<'_> {
        let node = self.nodes.get(node);
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

    /// 1, and one more with probability 1/4 each. Seeded the same every time: heights need no secrecy, since
    /// nothing that a client sends has a say in them.
    fn random_height(&mut self) -> usize {
        let bits = self.random.next();
        (1 + bits.trailing_zeros() as usize / 2).min(HEIGHT_MAX)
    }
}

/// The first eight bytes of a key as a number of the same order; shorter keys are padded with zeros.
fn prefix(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; 8];
            bytes[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(bytes)
        }
    }
}

/// A place in a memtable that only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position(u32);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn walk(memtable: &Memtable) -> Vec<Entry<'_>> {
        std::iter::successors(memtable.first(), |position| memtable.after(*position))
            .map(|position| memtable.at(position))
            .collect()
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
                (prop::collection::vec(0_u8..3, 0..12), prop::option::of(0_u8..255)), 1..300),
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
