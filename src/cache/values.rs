//! Values that were read recently, by key. A key that is read often is found here without a walk through blocks.
//!
//! Owns: which values stay, and their memory. The caller says which value is current.
//!
//! The block cache keeps 4 KiB for a key that is read often, and finding the key there takes four blocks and four
//! searches. Here it takes one probe of a hash index and one record. Records lie one after the other in pages, in the
//! order in which they were inserted. When space is needed, the oldest page is emptied. Records that were read since
//! their insertion are inserted again, up to half a page (FIFO with reinsertion; Yang et al., "FIFO queues are all you
//! need for cache eviction", SOSP 2023). So a record costs its bytes and about 30 more, and there are no links.
//!
//! ```text
//!   index:   hash ──► page, offset
//!   page:    record │ record │ …
//!   record:  u16 key bytes  u16 value bytes  u8 read  u8 expires  2 zero  u64 SeqNo  [u64 expires]  key  value
//!            zeros up to a multiple of 8
//! ```
//!
//! F1  A cached value is the value that the sorted files in force hold for its key. Only a flush changes that value:
//!     the flush removes every key of its memtable from the cache before its file is in force. Until then the memtable
//!     hides these keys.
//! F2  Memory stays within the budget: the pages, and an index of some 10 to 20 bytes for each record.
//! F3  An insert empties at most one page, which holds a few thousand records at most. Only while the index outgrows
//!     its share may an insert empty several pages.

use std::cell::RefCell;

use crate::arena::{Address, UNIT_BYTES};
use crate::hash_index::HashIndex;
use crate::key::{Entry, EntryKind, KeyHash, SeqNo, UnixMillis};

/// Bytes of a page. Emptying a page takes some 50 µs.
const PAGE_BYTES: usize = 64 << 10;
/// Larger records are left to the block cache, where each has a block nearly to itself.
const RECORD_BYTES_MAX: usize = 4 << 10;
const HEADER_BYTES: usize = 16;
const EXPIRES_BYTES: usize = 8;
const READ_AT: usize = 4;
const EXPIRES_AT: usize = 5;
const SEQNO_AT: usize = 8;
/// Tables of the index: the growth of a table moves 1/1024 of the records (F3).
const TABLES: usize = 1024;

/// Values by key.
pub struct ValueCache(RefCell<Pages>);

struct Pages {
    key_hash: KeyHash,
    bytes_max: usize,
    /// A ring of pages. Until the first round has ended, the pages that it has not reached are empty.
    pages: Vec<Vec<u8>>,
    /// Bytes that all pages together have allocated.
    allocated: usize,
    /// The page that is being filled.
    current: usize,
    /// Where the record of a key is, as the number of its address.
    index: HashIndex,
}

type At = Address<PAGE_BYTES>;

impl ValueCache {
    /// An empty cache of at most `bytes_max`, but at least two pages.
    pub fn new(bytes_max: usize, key_hash: KeyHash) -> Self {
        let count = (bytes_max / PAGE_BYTES).clamp(2, At::PAGES_MAX);
        Self(RefCell::new(Pages {
            key_hash,
            bytes_max,
            pages: (0..count).map(|_| Vec::new()).collect(),
            allocated: 0,
            current: 0,
            index: HashIndex::new(TABLES),
        }))
    }

    /// Lends the entry of `key`, whose [`KeyHash`] is `hash`, if it is cached. The entry may have expired.
    pub fn get<R>(&self, hash: u64, key: &[u8], read: impl FnOnce(Entry<'_>) -> R) -> Option<R> {
        let pages = &mut *self.0.borrow_mut();
        let number = pages.index.get(hash, |number| key_at(&pages.pages, number) == key)?;
        let At { page, offset } = At::from_number(number);
        pages.pages[page][offset + READ_AT] = 1;
        Some(read(record(&pages.pages[page][offset..]).0))
    }

    /// Loads the records of keys with these hashes into the processor's caches.
    pub fn prefetch(&self, hashes: &[u64]) {
        let Pages { pages, index, .. } = &*self.0.borrow();
        index.prefetch(hashes, |number| {
            let At { page, offset } = At::from_number(number);
            pages[page][offset]
        });
    }

    /// Caches a value, unless it is too long. The caller must know that the value is current (F1).
    pub fn insert(&self, hash: u64, entry: Entry<'_>) {
        if RECORD_BYTES_MAX < entry.key.len() + entry.value.len() {
            return;
        }
        let pages = &mut *self.0.borrow_mut();
        if PAGE_BYTES < pages.pages[pages.current].len() + record_bytes(entry) {
            pages.turn();
        }
        let number = pages.append(entry);
        pages.point(hash, number);
    }

    /// Removes a key.
    pub fn remove(&self, hash: u64, key: &[u8]) {
        let pages = &mut *self.0.borrow_mut();
        let Pages { pages, index, .. } = pages;
        index.remove(hash, |number| key_at(pages, number) == key); // the bytes stay until their page is emptied
    }
}

impl Pages {
    /// Bytes of memory held (F2).
    fn bytes(&self) -> usize {
        self.allocated + self.index.bytes()
    }

    /// Makes the next page the current one. Empties further pages while the index takes too much of the budget.
    fn turn(&mut self) {
        self.current = (self.current + 1) % self.pages.len();
        self.empty(self.current);
        // This comes before the loop. Otherwise a record that is inserted again would allocate the page inside the
        // loop, and take the memory that the loop has just freed. The loop would then empty two pages (F3).
        self.allocate_current();
        let mut oldest = self.current;
        // The index needs space to grow until the new page is full.
        while self.bytes_max < self.bytes() + PAGE_BYTES {
            oldest = (oldest + 1) % self.pages.len();
            if oldest == self.current {
                break;
            }
            self.empty(oldest);
        }
    }

    /// Empties a page. Records that were read since their insertion go into the current page, until it is half full.
    fn empty(&mut self, page: usize) {
        let old = std::mem::take(&mut self.pages[page]);
        self.allocated -= old.capacity();
        let begin = self.pages[self.current].len();
        let mut offset = 0;
        while offset < old.len() {
            let (entry, bytes) = record(&old[offset..]);
            let hash = self.key_hash.of(entry.key);
            let here = At { page, offset }.number();
            // The index does not name a record that was removed, or whose key was inserted again.
            if self.index.remove(hash, |number| number == here) {
                let has_room = self.pages[self.current].len() + bytes <= PAGE_BYTES / 2;
                if old[offset + READ_AT] != 0 && has_room {
                    self.append(entry);
                }
            }
            offset += bytes;
        }
        // The index compares keys in pages. So the records that stay are added to the index only now, when it names
        // nothing in the old page.
        let mut offset = begin;
        while offset < self.pages[self.current].len() {
            let (entry, bytes) = record(&self.pages[self.current][offset..]);
            let hash = self.key_hash.of(entry.key);
            self.point(hash, At { page: self.current, offset }.number());
            offset += bytes;
        }
    }

    /// Gives the current page its memory, if it has none.
    fn allocate_current(&mut self) {
        let page = &mut self.pages[self.current];
        if page.capacity() == 0 {
            page.reserve_exact(PAGE_BYTES);
            self.allocated += page.capacity();
        }
    }

    /// Appends a record to the current page, which has space for it. Returns its number.
    fn append(&mut self, entry: Entry<'_>) -> u32 {
        self.allocate_current();
        let page = &mut self.pages[self.current];
        let offset = page.len();
        let narrow = |bytes: usize| u16::try_from(bytes).expect("records are under 4 KiB").to_le_bytes();
        page.extend_from_slice(&narrow(entry.key.len()));
        page.extend_from_slice(&narrow(entry.value.len()));
        page.extend_from_slice(&[0, u8::from(entry.kind.expires.is_some()), 0, 0]);
        page.extend_from_slice(&entry.seqno.0.to_le_bytes());
        if let Some(expires) = entry.kind.expires {
            page.extend_from_slice(&expires.0.to_le_bytes());
        }
        page.extend_from_slice(entry.key);
        page.extend_from_slice(entry.value);
        page.resize(page.len().next_multiple_of(UNIT_BYTES), 0);
        At { page: self.current, offset }.number()
    }

    /// Makes the index point to the record with this number.
    fn point(&mut self, hash: u64, number: u32) {
        let Self { pages, index, .. } = self;
        let key = key_at(pages, number);
        index.insert(hash, number, |other| key_at(pages, other) == key);
    }
}

/// The record at the front of `bytes`, and its length.
fn record(bytes: &[u8]) -> (Entry<'_>, usize) {
    let long = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let expires = (bytes[EXPIRES_AT] != 0).then(|| UnixMillis(long(HEADER_BYTES)));
    let (key_at, key_bytes, value_bytes) = layout(bytes);
    let (key, value) = bytes[key_at..key_at + key_bytes + value_bytes].split_at(key_bytes);
    let entry = Entry { key, seqno: SeqNo(long(SEQNO_AT)), kind: EntryKind::value(expires), value };
    (entry, record_bytes(entry))
}

/// Where the key of a record begins, and the lengths of key and value.
fn layout(bytes: &[u8]) -> (usize, usize, usize) {
    let short = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    (HEADER_BYTES + if bytes[EXPIRES_AT] == 0 { 0 } else { EXPIRES_BYTES }, short(0), short(2))
}

fn key_at(pages: &[Vec<u8>], number: u32) -> &[u8] {
    let At { page, offset } = At::from_number(number);
    let bytes = &pages[page][offset..];
    let (from, key_bytes, _) = layout(bytes);
    &bytes[from..from + key_bytes]
}

fn record_bytes(entry: Entry<'_>) -> usize {
    let expires_bytes = if entry.kind.expires.is_some() { EXPIRES_BYTES } else { 0 };
    (HEADER_BYTES + expires_bytes + entry.key.len() + entry.value.len()).next_multiple_of(UNIT_BYTES)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::random::Random;

    const KEY_HASH: KeyHash = KeyHash::with_seed(1);

    /// SeqNo, expiry and value.
    fn get(cache: &ValueCache, key: &[u8]) -> Option<(u64, Option<UnixMillis>, Vec<u8>)> {
        cache.get(KEY_HASH.of(key), key, |entry| {
            assert_eq!(entry.key, key);
            (entry.seqno.0, entry.kind.expires, entry.value.to_vec())
        })
    }

    fn insert(cache: &ValueCache, key: &[u8], seqno: u64, expires: Option<UnixMillis>, value: &[u8]) {
        let kind = EntryKind::value(expires);
        cache.insert(KEY_HASH.of(key), Entry { key, seqno: SeqNo(seqno), kind, value });
    }

    /// The current page, the bytes of each page, and the bytes of the index.
    fn state(cache: &ValueCache) -> (usize, Vec<usize>, usize) {
        let Pages { pages, current, index, .. } = &*cache.0.borrow();
        (*current, pages.iter().map(Vec::len).collect(), index.bytes())
    }

    #[test]
    fn f1_what_is_found_is_what_was_put_last_and_not_removed() {
        let seed = 7;
        let mut random = Random::new(seed);
        let cache = ValueCache::new(1 << 20, KEY_HASH);
        let mut model = HashMap::new();
        let mut found = 0;
        for step in 0..200_000_u32 {
            let number = random.below(9_000);
            cache.prefetch(&[random.next_u64(), KEY_HASH.of(format!("{number:04}").as_bytes())]); // changes nothing
            let key = format!("{:0width$}", number, width = 4 + number as usize % 60).into_bytes();
            match random.below(10) {
                0..4 => {
                    let value = vec![step as u8; random.below(300) as usize];
                    let expires = (random.below(3) == 0).then(|| UnixMillis(random.next_u64()));
                    insert(&cache, &key, u64::from(step), expires, &value);
                    model.insert(key, (u64::from(step), expires, value));
                }
                4 => {
                    cache.remove(KEY_HASH.of(&key), &key);
                    model.remove(&key);
                }
                _ => {
                    if let Some(value) = get(&cache, &key) {
                        assert_eq!(Some(&value), model.get(&key), "seed {seed}");
                        found += 1;
                    }
                }
            }
        }
        assert!(20_000 < found, "{found} of some 100,000");
    }

    #[test]
    fn f2_memory_stays_within_the_budget_and_most_of_it_is_used() {
        for value_bytes in [0, 100, 4000] {
            let budget = 4 << 20;
            let cache = ValueCache::new(budget, KEY_HASH);
            let mut most = 0;
            for number in 0..400_000_u32 {
                let key = number.to_be_bytes();
                insert(&cache, &key, 1, None, &vec![1; value_bytes]);
                most = most.max(if number % 1000 == 0 { cache.0.borrow().bytes() } else { 0 });
            }
            assert!(most <= budget, "{value_bytes}: {most} of {budget}");
            let pages = cache.0.borrow();
            assert_eq!(pages.allocated, pages.pages.iter().map(Vec::capacity).sum::<usize>());
            drop(pages);
            let kept = (0..400_000_u32).filter(|number| get(&cache, &number.to_be_bytes()).is_some()).count();
            let record = (HEADER_BYTES + 4 + value_bytes).next_multiple_of(UNIT_BYTES);
            assert!(budget / 3 < kept * record, "{value_bytes}: {kept}");
        }
    }

    #[test]
    fn f3_an_insert_empties_one_page_and_a_few_only_while_the_index_outgrows_its_share() {
        let seed = 3;
        let mut random = Random::new(seed);
        let cache = ValueCache::new(4 << 20, KEY_HASH);
        let (mut turns, mut index_at_last_turn) = (0, cache.0.borrow().index.bytes());
        for number in 0..600_000_u32 {
            // At first the values are long and the index is small. Later the index takes memory from the pages.
            let value_bytes = if number < 20_000 { 4_000 } else { random.below(8) as usize };
            let (current_before, before, index_bytes) = state(&cache);
            insert(&cache, &number.to_be_bytes(), 1, None, &vec![1; value_bytes]);
            let (current, after, index_after) = state(&cache);
            // Records that were read are inserted again: half of them for some time, then all of them.
            if number / 50_000 % 2 == 1 || random.below(2) == 0 {
                assert!(get(&cache, &number.to_be_bytes()).is_some());
            }
            let context = format!("seed {seed}, insert {number}");
            let emptied = (0..before.len()).filter(|page| after[*page] < before[*page]).count();
            if current == current_before {
                assert_eq!(emptied, 0, "{context}: the current page has space");
                continue;
            }
            assert_eq!(current, (current_before + 1) % before.len(), "{context}: page after page");
            let outgrown = (index_after - index_at_last_turn).div_ceil(PAGE_BYTES);
            assert!(emptied <= 1 + outgrown && emptied <= 5, "{context}: {emptied}, {outgrown}");
            (turns, index_at_last_turn) = (turns + 1, index_bytes);
        }
        assert!(1_500 < turns, "{turns}");
        for page in &cache.0.borrow().pages {
            let (mut offset, mut records) = (0, 0);
            while offset < page.len() {
                (offset, records) = (offset + record(&page[offset..]).1, records + 1);
            }
            assert!(page.len() <= PAGE_BYTES && records < 3_000, "{records} in {} bytes", page.len());
        }
    }

    #[test]
    fn what_is_read_stays_and_what_is_not_goes_and_a_large_value_never_comes() {
        let cache = ValueCache::new(1 << 20, KEY_HASH);
        insert(&cache, b"hot", 1, None, b"1");
        insert(&cache, b"cold", 2, None, b"1");
        for number in 0..200_000_u32 {
            let key = number.to_be_bytes();
            insert(&cache, &key, 3, None, &[0; 100]);
            assert_eq!(get(&cache, b"hot"), Some((1, None, b"1".to_vec())));
        }
        assert_eq!(get(&cache, b"cold"), None);
        insert(&cache, b"large", 4, None, &vec![0; RECORD_BYTES_MAX]);
        assert_eq!(get(&cache, b"large"), None);
    }
}
