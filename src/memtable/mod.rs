//! The newest writes of a shard, in memory. Single-threaded; no locks, no `unsafe`. Pure.
//!
//! Owns: entries, the memory that they take, and their order on demand ([`order`]). The reader says up to which SeqNo
//! it may see entries; durability is decided elsewhere.
//!
//! A point lookup needs no order, and a flush needs it once. So a set only appends an entry, and a hash index finds the
//! newest entry of a key. The order is made when a reader asks for it. A skip list was tried first. Keeping the order
//! at all times cost 31 % of the processor time of a set and 44 % of that of a get, nearly all of it in cache misses.
//! The measurement that decided (`cargo bench --bench designs -- memtables`, on the machine of BENCHMARKS.md), for
//! 380,000 entries:
//!
//! | | insert all | look up as many | walk in order, once per flush |
//! | --- | ---: | ---: | ---: |
//! | this memtable | 0.073 s | 0.11 s | 0.091 s |
//! | `BTreeMap` | 0.56 s | 0.57 s | 0.013 s |
//! | crossbeam's skip list | 1.59 s | 1.06 s | 0.081 s |
//!
//! ```text
//!   hash index ──► record ──older──► record …
//!   page: u64 SeqNo  u32 older  u32 value bytes  u16 key bytes  u8 kind  [u64 expires]  key  value  up to 8 │ next …
//! ```
//!
//! A large value is not copied into a page: the memtable and the request share its bytes. In place of the value, its
//! record holds the index (u32) of the value in a list of large values.
//!
//! M1  Entries are only added. A lookup at SeqNo n gives the same answer for ever, once all entries up to n are in.
//! M2  `bytes` counts every page, the large values and the index, and decides when a memtable is frozen. `order_bytes`
//!     counts the order, which takes 16 bytes for each entry once a reader asks for it, and twice that while runs are
//!     merged.
//! M3  No insert does more than a small share of the work that growth takes: the index consists of many small tables,
//!     and pages never move.

pub mod order;

use std::cell::{Cell, RefCell};

use self::order::Order;
use crate::arena::{Address, UNIT_BYTES};
use crate::hash_index::HashIndex;
use bytes::Bytes;

use crate::key::{Entry, EntryKind, Key, KeyHash, NewValue, SeqNo, UnixMillis, ValueKind, common_prefix};
use crate::memory::Charge;

/// Bytes of a page of records; a larger record gets a page of its own. The first pages are shorter, so that a memtable
/// with few writes takes little memory.
const PAGE_BYTES: usize = 1 << 18;
const PAGE_BYTES_FIRST: usize = 1 << 14;
const HEADER_BYTES: usize = 19;
const EXPIRES_BYTES: usize = 8;
/// Set in the kind byte of a record that has an expiry.
const EXPIRES: u8 = 0x10;
/// Set in the kind byte of a record whose value is among the large values.
const LARGE: u8 = 0x20;
const LARGE_INDEX_BYTES: usize = 4;
/// Tables of the index: each growth moves 1/64 of the entries (M3).
const TABLES: usize = 64;
/// Set in the kind byte of a record whose key began with a value in this memtable.
const NEW: u8 = 0x40;
/// Bytes of a cache line. The processor fetches lines in pairs, so touching every other line is enough.
const CACHE_LINE_BYTES: usize = 64;
/// No record.
const NONE: u32 = u32::MAX;

type At = Address<PAGE_BYTES>;

/// A multi-version map from keys to values.
pub struct Memtable {
    records: RefCell<Records>,
    order: RefCell<Order>,
    entries: Cell<u64>,
    keys: Cell<Keys>,
    last: Cell<SeqNo>,
    /// Bytes of the longest entry.
    longest: Cell<usize>,
    /// What the memtable holds, on the account of all memtables.
    charge: RefCell<Option<Charge>>,
}

/// Keys by their newest entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keys {
    /// Those that were set.
    pub values: u64,
    /// Those that were deleted, and were there before this memtable. A key that was set first and deleted later is no longer
    /// counted: most such keys are new.
    pub tombstones: u64,
}

/// What a key has in a memtable.
#[derive(Clone, Copy)]
struct KeyState {
    newest: ValueKind,
    /// Whether its first entry has a value.
    is_new: bool,
}

impl KeyState {
    /// After an entry of the kind `newest`.
    fn of(before: Option<Self>, newest: ValueKind) -> Self {
        Self { newest, is_new: before.map_or(newest == ValueKind::Value, |before| before.is_new) }
    }

    fn of_record(header: &[u8]) -> Self {
        Self { newest: value_kind(header), is_new: header[18] & NEW != 0 }
    }
}

impl Keys {
    /// The count of such keys, if they are counted.
    fn of(&mut self, key: KeyState) -> Option<&mut u64> {
        match key {
            KeyState { newest: ValueKind::Value, .. } => Some(&mut self.values),
            KeyState { newest: ValueKind::Tombstone, is_new: false } => Some(&mut self.tombstones),
            KeyState { newest: ValueKind::Tombstone, is_new: true } => None,
        }
    }
}

struct Records {
    key_hash: KeyHash,
    /// The pages of records. A page never moves.
    pages: Vec<Vec<u8>>,
    pages_bytes: usize,
    large: Vec<Bytes>,
    large_bytes: usize,
    /// The newest record of each key.
    index: HashIndex,
    /// The length of the prefix that all keys share with the first key.
    common: usize,
}

/// A record in a page.
struct Record<'a> {
    entry: Entry<'a>,
    /// The value, if it is a large one.
    large: Option<&'a Bytes>,
    /// The version of the key before this one.
    older: u32,
    /// Bytes of the record, without the padding up to the next unit.
    bytes: usize,
}

impl Memtable {
    /// An empty memtable, whose memory is on no account.
    pub fn new(key_hash: KeyHash) -> Self {
        Self::on_account(key_hash, None)
    }

    /// An empty memtable, whose memory is charged to `charge`. Its first page is allocated with the first entry.
    pub fn on_account(key_hash: KeyHash, charge: Option<Charge>) -> Self {
        Self {
            records: RefCell::new(Records {
                key_hash,
                pages: Vec::new(),
                pages_bytes: 0,
                large: Vec::new(),
                large_bytes: 0,
                index: HashIndex::new(TABLES),
                common: usize::MAX,
            }),
            order: RefCell::default(),
            entries: Cell::new(0),
            keys: Cell::default(),
            last: Cell::new(SeqNo(0)),
            longest: Cell::new(0),
            charge: RefCell::new(charge),
        }
    }

    /// Bytes of memory that the entries and their index hold (M2).
    pub fn bytes(&self) -> usize {
        self.records.borrow().bytes()
    }

    /// Bytes of memory that the order of the entries holds (M2, O5). They do not count towards the size at which a
    /// memtable is frozen: a scan would otherwise make memtables smaller.
    pub fn order_bytes(&self) -> usize {
        self.order.borrow().bytes()
    }

    /// Bytes of the key and the value of the longest entry.
    pub fn longest(&self) -> usize {
        self.longest.get()
    }

    /// The number of entries, all versions counted.
    pub fn entries(&self) -> u64 {
        self.entries.get()
    }

    /// The number of keys.
    pub fn keys(&self) -> Keys {
        self.keys.get()
    }

    /// SeqNo of the last entry; 0 if there is none.
    pub fn last(&self) -> SeqNo {
        self.last.get()
    }

    /// Adds an entry. Each SeqNo must be above all before it.
    ///
    /// # Panics
    /// If `seqno` is not above all before it, or a key or value is over the limits of `config`.
    pub fn insert<'a>(&self, key: Key<&[u8]>, seqno: SeqNo, kind: EntryKind, value: impl Into<NewValue<'a>>) {
        let value = value.into();
        assert!(self.last.get() < seqno, "SeqNos only grow"); // M1
        let records = &mut *self.records.borrow_mut();
        debug_assert_eq!(
            key.hash(),
            records.key_hash.of(key.bytes()),
            "one hash function for all keys of a process"
        );
        let value_bytes = value.as_ref().len();
        let older = records.insert(key, seqno, kind, value, self.entries.get() == 0);
        let mut keys = self.keys.get();
        if let Some(count) = keys.of(KeyState::of(older, kind.value)) {
            *count += 1;
        }
        if let Some(count) = older.and_then(|older| keys.of(older)) {
            *count -= 1;
        }
        self.keys.set(keys);
        self.entries.set(self.entries.get() + 1);
        self.last.set(seqno);
        self.longest.set(self.longest.get().max(key.bytes().len() + value_bytes));
        if let Some(charge) = &mut *self.charge.borrow_mut() {
            charge.set(records.bytes());
        }
    }

    /// As [`Self::insert`], for an entry that was read from a WAL.
    ///
    /// # Panics
    /// As [`Self::insert`].
    pub fn insert_entry(&self, entry: Entry<'_>) {
        let hash = self.records.borrow().key_hash;
        self.insert(Key::new(entry.key, hash), entry.seqno, entry.kind, entry.value);
    }

    /// Lends the newest entry of `key` at or below `snapshot`, if there is one. `hash` is the [`KeyHash`] of the key.
    pub fn get<R>(
        &self,
        hash: u64,
        key: &[u8],
        snapshot: SeqNo,
        read: impl FnOnce(Entry<'_>) -> R,
    ) -> Option<R> {
        self.records.borrow().find(hash, key, snapshot).map(|record| read(record.entry))
    }

    /// As [`Self::get`], with the value of the entry for keeps: a large value is shared, any other is copied.
    pub fn get_owned<R>(
        &self,
        hash: u64,
        key: &[u8],
        snapshot: SeqNo,
        read: impl FnOnce(Entry<'_>, Bytes) -> R,
    ) -> Option<R> {
        self.records.borrow().find(hash, key, snapshot).map(|Record { entry, large, .. }| {
            read(entry, large.cloned().unwrap_or_else(|| Bytes::copy_from_slice(entry.value)))
        })
    }

    /// Loads the records of keys with these hashes into the processor's caches: the beginning of each record, and with
    /// `values` also the bytes of a short value.
    pub fn prefetch(&self, hashes: &[u64], values: bool) {
        if 0 < self.entries.get() {
            let records = self.records.borrow();
            records.index.prefetch(hashes, |place| {
                let bytes = records.bytes_from(place);
                let further = if values { bytes.get(2 * CACHE_LINE_BYTES).copied() } else { None };
                bytes[0].wrapping_add(further.unwrap_or(0))
            });
        }
    }
}

impl Records {
    fn bytes(&self) -> usize {
        self.pages_bytes + self.large_bytes + self.large.capacity() * size_of::<Bytes>() + self.index.bytes()
    }

    /// The newest record of `key` at or below `snapshot`.
    fn find(&self, hash: u64, key: &[u8], snapshot: SeqNo) -> Option<Record<'_>> {
        let mut place = self.index.get(hash, |place| self.key_at(place) == key)?;
        // Versions above the snapshot are in flight: few, and about to become visible.
        while place != NONE {
            let record = self.record(place);
            if record.entry.seqno <= snapshot {
                return Some(record);
            }
            place = record.older;
        }
        None
    }

    /// Adds a record. Returns what the key had before.
    fn insert(
        &mut self,
        key: Key<&[u8]>,
        seqno: SeqNo,
        kind: EntryKind,
        value: NewValue<'_>,
        first: bool,
    ) -> Option<KeyState> {
        let (hash, key) = (key.hash(), key.bytes());
        let value_bytes = value.as_ref().len();
        let (flag, index);
        let value = match value {
            NewValue::Short(value) => {
                flag = 0;
                value
            }
            NewValue::Large(value) => {
                flag = LARGE;
                index = u32::try_from(self.large.len()).expect("large values are few").to_le_bytes();
                self.large_bytes += value.len();
                self.large.push(value);
                &index[..]
            }
        };
        self.common = if first { key.len() } else { self.common.min(common_prefix(self.key_at(0), key)) };
        let expires_bytes = if kind.expires.is_some() { EXPIRES_BYTES } else { 0 };
        let place = self.make_room(HEADER_BYTES + expires_bytes + key.len() + value.len());
        let Self { pages, index, .. } = self;
        let older = index.insert(hash, place, |other| key_at(pages, other) == key);
        let before = older.map(|place| KeyState::of_record(bytes_from(pages, place)));
        let flag = flag | if KeyState::of(before, kind.value).is_new { NEW } else { 0 };
        let older = older.unwrap_or(NONE);
        let page = &mut pages[At::from_number(place).page];
        page.extend_from_slice(&seqno.0.to_le_bytes());
        page.extend_from_slice(&older.to_le_bytes());
        page.extend_from_slice(&u32::try_from(value_bytes).expect("values are under 4 GiB").to_le_bytes());
        page.extend_from_slice(&u16::try_from(key.len()).expect("keys are under 64 KiB").to_le_bytes());
        match kind.expires {
            None => page.push(kind.value as u8 | flag),
            Some(expires) => {
                page.push(kind.value as u8 | EXPIRES | flag);
                page.extend_from_slice(&expires.0.to_le_bytes());
            }
        }
        page.extend_from_slice(key);
        page.extend_from_slice(value);
        page.resize(page.len().next_multiple_of(UNIT_BYTES), 0);
        before
    }

    /// Makes room for a record of `bytes` bytes in a page, and returns the place of that record.
    fn make_room(&mut self, bytes: usize) -> u32 {
        let bytes = bytes.next_multiple_of(UNIT_BYTES);
        if self.pages.last().is_none_or(|page| page.capacity() < page.len() + bytes) {
            let capacity = bytes.max(self.pages_bytes.clamp(PAGE_BYTES_FIRST, PAGE_BYTES));
            self.pages.push(Vec::with_capacity(capacity));
            self.pages_bytes += capacity;
        }
        let page = self.pages.len() - 1;
        At { page, offset: self.pages[page].len() }.number()
    }

    fn bytes_from(&self, place: u32) -> &[u8] {
        bytes_from(&self.pages, place)
    }

    fn key_at(&self, place: u32) -> &[u8] {
        key_at(&self.pages, place)
    }

    fn record(&self, place: u32) -> Record<'_> {
        let bytes = self.bytes_from(place);
        let (header, mut rest) = bytes.split_at(HEADER_BYTES);
        let mut kind = EntryKind { value: value_kind(header), expires: None };
        if header[18] & EXPIRES != 0 {
            let (expires, behind) =
                rest.split_first_chunk::<EXPIRES_BYTES>().expect("an insert put it there");
            kind.expires = Some(UnixMillis(u64::from_le_bytes(*expires)));
            rest = behind;
        }
        let (key, rest) = rest.split_at(key_bytes(header));
        let (value, large, rest) = if header[18] & LARGE == 0 {
            let (value, rest) = rest.split_at(number(header, 12) as usize);
            (value, None, rest)
        } else {
            let large = &self.large[number(rest, 0) as usize];
            (&large[..], Some(large), &rest[LARGE_INDEX_BYTES..])
        };
        let seqno = SeqNo(u64::from(number(header, 4)) << 32 | u64::from(number(header, 0)));
        Record {
            entry: Entry { key, seqno, kind, value },
            large,
            older: number(header, 8),
            bytes: bytes.len() - rest.len(),
        }
    }
}

/// The record at `place`, and what follows it in its page.
#[inline]
fn bytes_from(pages: &[Vec<u8>], place: u32) -> &[u8] {
    let At { page, offset } = At::from_number(place);
    &pages[page][offset..]
}

#[inline]
fn key_at(pages: &[Vec<u8>], place: u32) -> &[u8] {
    let bytes = bytes_from(pages, place);
    let from = HEADER_BYTES + if bytes[18] & EXPIRES == 0 { 0 } else { EXPIRES_BYTES };
    &bytes[from..from + key_bytes(bytes)]
}

#[inline]
fn value_kind(header: &[u8]) -> ValueKind {
    if header[18] & !(EXPIRES | LARGE | NEW) == 0 { ValueKind::Tombstone } else { ValueKind::Value }
}

#[inline]
fn key_bytes(header: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([header[16], header[17]]))
}

#[inline]
fn number(header: &[u8], from: usize) -> u32 {
    u32::from_le_bytes([header[from], header[from + 1], header[from + 2], header[from + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const KEY_HASH: KeyHash = KeyHash::with_seed(1);

    pub(super) fn insert(memtable: &Memtable, key: &[u8], seqno: u64, kind: EntryKind, value: &[u8]) {
        memtable.insert(Key::new(key, KEY_HASH), SeqNo(seqno), kind, value);
    }

    /// SeqNo, kind and value of what a lookup finds.
    pub(super) fn get(memtable: &Memtable, key: &[u8], seqno: u64) -> Option<(u64, EntryKind, Vec<u8>)> {
        memtable.get(KEY_HASH.of(key), key, SeqNo(seqno), |entry| {
            assert_eq!(entry.key, key);
            (entry.seqno.0, entry.kind, entry.value.to_vec())
        })
    }

    #[test]
    fn m1_a_lookup_sees_the_newest_version_at_or_below_its_snapshot() {
        let memtable = Memtable::new(KEY_HASH);
        assert_eq!(get(&memtable, b"k", 9), None);
        let soon = EntryKind::value(Some(UnixMillis(77)));
        insert(&memtable, b"k", 1, EntryKind::VALUE, b"one");
        insert(&memtable, b"k\0", 2, EntryKind::VALUE, b"other");
        insert(&memtable, b"k", 3, EntryKind::TOMBSTONE, b"");
        insert(&memtable, b"k", 4, soon, b"four");
        let at = |seqno| get(&memtable, b"k", seqno);
        let one = Some((1, EntryKind::VALUE, b"one".to_vec()));
        assert_eq!(at(0), None);
        assert_eq!((at(1), at(2)), (one.clone(), one));
        assert_eq!(at(3), Some((3, EntryKind::TOMBSTONE, Vec::new())));
        assert_eq!(at(9), Some((4, soon, b"four".to_vec())));
        assert_eq!(get(&memtable, b"", 9), None);
    }

    #[test]
    fn keys_count_by_their_newest_entry() {
        let memtable = Memtable::new(KEY_HASH);
        for (seqno, key, kind, keys) in [
            (1, b"a", EntryKind::VALUE, (1, 0)),
            (2, b"a", EntryKind::VALUE, (1, 0)),
            (3, b"b", EntryKind::TOMBSTONE, (1, 1)),
            (4, b"a", EntryKind::TOMBSTONE, (0, 1)),
            (5, b"a", EntryKind::TOMBSTONE, (0, 1)),
            (6, b"b", EntryKind::VALUE, (1, 0)),
            (7, b"b", EntryKind::TOMBSTONE, (0, 1)),
            (8, b"a", EntryKind::VALUE, (1, 1)),
        ] {
            insert(&memtable, key, seqno, kind, b"v");
            let Keys { values, tombstones } = memtable.keys();
            assert_eq!((values, tombstones), keys, "after {seqno}");
        }
    }

    #[test]
    fn m2_large_values_are_shared_and_counted() {
        let memtable = Memtable::new(KEY_HASH);
        let value = Bytes::from(vec![7; 3 * PAGE_BYTES]);
        let large = |key, seqno, kind| {
            memtable.insert(Key::new(key, KEY_HASH), SeqNo(seqno), kind, NewValue::Large(value.clone()));
        };
        let soon = EntryKind::value(Some(UnixMillis(77)));
        insert(&memtable, b"a", 1, EntryKind::VALUE, b"short");
        large(b"a", 2, EntryKind::VALUE);
        large(b"b", 3, soon);
        insert(&memtable, b"a", 4, EntryKind::VALUE, b"short again");
        assert!(6 * PAGE_BYTES < memtable.bytes() && memtable.bytes() < 7 * PAGE_BYTES);
        assert_eq!(memtable.longest(), 1 + value.len());
        assert_eq!(get(&memtable, b"a", 2), Some((2, EntryKind::VALUE, value.to_vec())));
        assert_eq!(get(&memtable, b"a", 4), Some((4, EntryKind::VALUE, b"short again".to_vec())));
        let owned = |key: &[u8], seqno| {
            memtable.get_owned(KEY_HASH.of(key), key, SeqNo(seqno), |entry, value| (entry.kind, value))
        };
        let (kind, shared) = owned(b"b", 9).unwrap();
        assert_eq!((kind, shared.as_ptr()), (soon, value.as_ptr()));
        assert_eq!(owned(b"a", 1).unwrap().1, b"short"[..]);
        assert_eq!(owned(b"c", 9), None);
    }

    #[test]
    fn m2_large_entries_have_pages_of_their_own_and_are_counted() {
        let memtable = Memtable::new(KEY_HASH);
        insert(&memtable, b"a", 1, EntryKind::VALUE, &vec![7; 3 * PAGE_BYTES]);
        insert(&memtable, b"b", 2, EntryKind::VALUE, b"small");
        assert!(4 * PAGE_BYTES < memtable.bytes() && memtable.bytes() < 6 * PAGE_BYTES);
        memtable.prefetch(&[b"a", b"b", b"c"].map(|key| KEY_HASH.of(key)), true);
        assert_eq!(get(&memtable, b"a", 2).unwrap().2.len(), 3 * PAGE_BYTES);
    }

    #[test]
    fn m3_no_insert_moves_a_page() {
        let memtable = Memtable::new(KEY_HASH);
        let addresses = || {
            let records = memtable.records.borrow();
            records.pages.iter().map(|page| (page.as_ptr(), page.capacity())).collect::<Vec<_>>()
        };
        let mut before = addresses();
        for number in 1..20_000_u64 {
            insert(&memtable, &number.to_be_bytes(), number, EntryKind::VALUE, &[0; 100]);
            let after = addresses();
            assert_eq!(after[..before.len()], before);
            before = after;
        }
        assert!(8 < before.len());
    }
}
