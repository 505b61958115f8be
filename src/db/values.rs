//! Values that were read lately, by key: what spares a hot key the walk through the blocks of sorted files.
//!
//! Owns: which values stay, and their memory. Knows nothing of files; the caller says what is current.
//!
//! A cache of blocks keeps 4 KiB for a key that is read often, and finding it there takes four blocks and as many
//! searches. Here a key is one probe of a hash index and one place in memory. Records lie one behind the other in
//! pages, in the order in which they came; the oldest page is emptied when room is needed, and what was read since it
//! came is put in again, up to half a page (FIFO with reinsertion; Yang et al., "FIFO queues are all you need for
//! cache eviction", SOSP 2023). So a record costs its bytes and some 20 more, and nothing is linked.
//!
//! ```text
//!   index: hash ──► page, offset        page: u16 key bytes  u16 value bytes  u8 read  3 zero  key  value  up to 8
//! ```
//!
//! F1  A value that is here is what the sorted files in force say of its key. Only a flush changes that: it removes
//!     every key of its memtable, which hides them, before they are in force in a file.
//! F2  Memory stays within the budget: the pages, and beside them an index of some 10 to 20 bytes a record.
//! F3  An insert empties one page at most, of no more than some thousand records; a few only while the index outgrows
//!     its share.

use std::cell::RefCell;

use bytes::Bytes;

use crate::hash_index::HashIndex;
use crate::key::KeyHash;

/// Bytes of a page. Emptying one takes some 50 µs.
const PAGE_BYTES: usize = 64 << 10;
/// Records start at multiples of this.
const UNIT_BYTES: usize = 8;
/// Larger records are left to the cache of blocks, where they have a block nearly to themselves.
const RECORD_BYTES_MAX: usize = 4 << 10;
const HEADER_BYTES: usize = 8;
const READ_AT: usize = 4;
/// Tables of the index: each growth moves 1/1024 of the records (F3).
const TABLES: usize = 1024;

/// Values by key.
pub(super) struct ValueCache(RefCell<Pages>);

struct Pages {
    key_hash: KeyHash,
    bytes_max: usize,
    /// A ring of pages; all before the first lap has ended may be empty.
    pages: Vec<Vec<u8>>,
    /// Bytes that the pages have allocated, all together.
    allocated: usize,
    /// The page that is being filled.
    current: usize,
    /// Where the record of a key is, in units from the first page on.
    index: HashIndex,
}

const UNITS_IN_PAGE: usize = PAGE_BYTES / UNIT_BYTES;

impl ValueCache {
    /// An empty cache of at most `bytes_max`, but at least two pages.
    pub(super) fn new(bytes_max: usize, key_hash: KeyHash) -> Self {
        let count = (bytes_max / PAGE_BYTES).clamp(2, u32::MAX as usize / UNITS_IN_PAGE);
        Self(RefCell::new(Pages {
            key_hash,
            bytes_max,
            pages: (0..count).map(|_| Vec::new()).collect(),
            allocated: 0,
            current: 0,
            index: HashIndex::new(TABLES),
        }))
    }

    /// A copy of the value of `key`, whose [`KeyHash`] is `hash`.
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<Bytes> {
        let pages = &mut *self.0.borrow_mut();
        let at = pages.index.get(hash, |at| key_at(&pages.pages, at) == key)?;
        let (page, offset) = place(at);
        let page = &mut pages.pages[page];
        page[offset + READ_AT] = 1;
        let (key_bytes, value_bytes) = lengths(page, offset);
        let from = offset + HEADER_BYTES + key_bytes;
        Some(Bytes::copy_from_slice(&page[from..from + value_bytes]))
    }

    /// Brings what it holds of keys of these hashes near the processor.
    pub(super) fn prefetch(&self, hashes: &[u64]) {
        let Pages { pages, index, .. } = &*self.0.borrow();
        index.prefetch(hashes, |at| {
            let (page, offset) = place(at);
            pages[page][offset]
        });
    }

    /// Keeps the value of a key, if it is not too long. The caller knows that it is current (F1).
    pub(super) fn insert(&self, hash: u64, key: &[u8], value: &[u8]) {
        if RECORD_BYTES_MAX < key.len() + value.len() {
            return;
        }
        let pages = &mut *self.0.borrow_mut();
        let bytes = record_bytes(key.len(), value.len());
        if PAGE_BYTES < pages.pages[pages.current].len() + bytes {
            pages.turn();
        }
        let offset = pages.append(key, value);
        pages.point(hash, unit(pages.current, offset));
    }

    /// Forgets a key.
    pub(super) fn remove(&self, hash: u64, key: &[u8]) {
        let pages = &mut *self.0.borrow_mut();
        let Pages { pages, index, .. } = pages;
        index.remove(hash, |at| key_at(pages, at) == key); // its bytes go with their page
    }
}

impl Pages {
    /// Bytes of memory held (F2).
    fn bytes(&self) -> usize {
        self.allocated + self.index.bytes()
    }

    /// Makes the next page the current one, and gives up others as long as small records need much of an index.
    fn turn(&mut self) {
        self.current = (self.current + 1) % self.pages.len();
        self.empty(self.current);
        let mut oldest = self.current;
        // The new page, and what the index may grow by until it is full, have to fit as well.
        while self.bytes_max < self.bytes() + 2 * PAGE_BYTES {
            oldest = (oldest + 1) % self.pages.len();
            if oldest == self.current {
                break;
            }
            self.empty(oldest);
        }
    }

    /// Empties a page. What was read since it came is put into the current one, as long as that is not half full.
    fn empty(&mut self, page: usize) {
        let old = std::mem::take(&mut self.pages[page]);
        self.allocated -= old.capacity();
        let begin = self.pages[self.current].len();
        let mut offset = 0;
        while offset < old.len() {
            let (key_bytes, value_bytes) = lengths(&old, offset);
            let bytes = record_bytes(key_bytes, value_bytes);
            let from = offset + HEADER_BYTES;
            let (key, value) =
                (&old[from..from + key_bytes], &old[from + key_bytes..from + key_bytes + value_bytes]);
            let hash = self.key_hash.of(key);
            let here = unit(page, offset);
            // A record that was removed, or whose key came again, is not what the index means.
            if self.index.remove(hash, |at| at == here) {
                let has_room = self.pages[self.current].len() + bytes <= PAGE_BYTES / 2;
                if old[offset + READ_AT] != 0 && has_room {
                    self.append(key, value);
                }
            }
            offset += bytes;
        }
        // The index compares keys in pages: those that stay go in now that nothing in it means the old page.
        let mut offset = begin;
        while offset < self.pages[self.current].len() {
            let (key_bytes, value_bytes) = lengths(&self.pages[self.current], offset);
            let hash = self.key_hash.of(key_at(&self.pages, unit(self.current, offset)));
            self.point(hash, unit(self.current, offset));
            offset += record_bytes(key_bytes, value_bytes);
        }
    }

    /// Appends a record to the current page, which has room for it. Returns where it is.
    fn append(&mut self, key: &[u8], value: &[u8]) -> usize {
        let page = &mut self.pages[self.current];
        if page.capacity() == 0 {
            page.reserve_exact(PAGE_BYTES);
            self.allocated += page.capacity();
        }
        let offset = page.len();
        let narrow = |bytes: usize| u16::try_from(bytes).expect("records are under 4 KiB").to_le_bytes();
        page.extend_from_slice(&narrow(key.len()));
        page.extend_from_slice(&narrow(value.len()));
        page.extend_from_slice(&[0; 4]);
        page.extend_from_slice(key);
        page.extend_from_slice(value);
        page.resize(offset + record_bytes(key.len(), value.len()), 0);
        offset
    }

    /// Makes the index mean the record at `at`.
    fn point(&mut self, hash: u64, at: u32) {
        let Self { pages, index, .. } = self;
        let key = key_at(pages, at);
        index.insert(hash, at, |other| key_at(pages, other) == key);
    }
}

fn unit(page: usize, offset: usize) -> u32 {
    u32::try_from(page * UNITS_IN_PAGE + offset / UNIT_BYTES).expect("the ring has fewer units")
}

fn place(at: u32) -> (usize, usize) {
    (at as usize / UNITS_IN_PAGE, at as usize % UNITS_IN_PAGE * UNIT_BYTES)
}

fn lengths(page: &[u8], offset: usize) -> (usize, usize) {
    let number = |at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
    (number(offset), number(offset + 2))
}

fn key_at(pages: &[Vec<u8>], at: u32) -> &[u8] {
    let (page, offset) = place(at);
    let from = offset + HEADER_BYTES;
    &pages[page][from..from + lengths(&pages[page], offset).0]
}

fn record_bytes(key_bytes: usize, value_bytes: usize) -> usize {
    (HEADER_BYTES + key_bytes + value_bytes).next_multiple_of(UNIT_BYTES)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::random::Random;

    const KEY_HASH: KeyHash = KeyHash::with_seed(1);

    fn get(cache: &ValueCache, key: &[u8]) -> Option<Bytes> {
        cache.get(KEY_HASH.of(key), key)
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
                    cache.insert(KEY_HASH.of(&key), &key, &value);
                    model.insert(key, value);
                }
                4 => {
                    cache.remove(KEY_HASH.of(&key), &key);
                    model.remove(&key);
                }
                _ => {
                    if let Some(value) = get(&cache, &key) {
                        assert_eq!(Some(&value[..]), model.get(&key).map(|value| &value[..]), "seed {seed}");
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
                cache.insert(KEY_HASH.of(&key), &key, &vec![1; value_bytes]);
                most = most.max(if number % 1000 == 0 { cache.0.borrow().bytes() } else { 0 });
            }
            assert!(most <= budget, "{value_bytes}: {most} of {budget}");
            let pages = cache.0.borrow();
            assert_eq!(pages.allocated, pages.pages.iter().map(Vec::capacity).sum::<usize>());
            drop(pages);
            let kept = (0..400_000_u32).filter(|number| get(&cache, &number.to_be_bytes()).is_some()).count();
            assert!(budget / 3 < kept * record_bytes(4, value_bytes), "{value_bytes}: {kept}");
        }
    }

    #[test]
    fn what_is_read_stays_and_what_is_not_goes_and_a_large_value_never_comes() {
        let cache = ValueCache::new(1 << 20, KEY_HASH);
        cache.insert(KEY_HASH.of(b"hot"), b"hot", b"1");
        cache.insert(KEY_HASH.of(b"cold"), b"cold", b"1");
        for number in 0..200_000_u32 {
            let key = number.to_be_bytes();
            cache.insert(KEY_HASH.of(&key), &key, &[0; 100]);
            assert_eq!(get(&cache, b"hot").unwrap(), "1");
        }
        assert_eq!(get(&cache, b"cold"), None);
        cache.insert(KEY_HASH.of(b"large"), b"large", &vec![0; RECORD_BYTES_MAX]);
        assert_eq!(get(&cache, b"large"), None);
    }
}
