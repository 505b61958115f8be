//! An index from the hash of a key to the *place* of its record, a 32-bit number that the caller has chosen. Pure. The
//! index sees neither keys nor records: the caller compares them.
//!
//! Owns: growth without a long pause. A hash table that doubles moves all of its entries at once. This index consists
//! of many small tables that grow one by one, so each growth moves only a small share.
//!
//! A slot keeps half of the hash together with the place. So only one probe in four billion touches the record of
//! another key, and growth touches no record at all. A slot with the place alone would cost a cache miss for each
//! record that growth moves.

use std::hint::black_box;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// How many slots are read before the first of their records is touched.
const PREFETCHED: usize = 32;

/// The index of many records.
pub struct HashIndex {
    /// The table of a hash is chosen by some of its bits.
    tables: Box<[HashTable<Slot>]>,
    /// Bytes that all tables together have allocated.
    allocated: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    place: u32,
}

impl Slot {
    /// hashbrown uses the lowest and the highest bits of a hash.
    fn spread(hash: u32) -> u64 {
        u64::from(hash) << 32 | u64::from(hash)
    }
}

impl HashIndex {
    /// An empty index of `tables` tables, a power of two.
    pub fn new(tables: usize) -> Self {
        assert!(tables.is_power_of_two());
        Self { tables: (0..tables).map(|_| HashTable::new()).collect(), allocated: 0 }
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.tables.len() * size_of::<HashTable<Slot>>() + self.allocated
    }

    /// The place of the record with this hash for which `same` returns `true`.
    pub fn get(&self, hash: u64, same: impl Fn(u32) -> bool) -> Option<u32> {
        let (table, half) = self.split(hash);
        let slot = self.tables[table].find(Slot::spread(half), |slot| slot.hash == half && same(slot.place));
        slot.map(|slot| slot.place)
    }

    /// Loads the slots and records of hashes that will soon be looked up into the processor's caches. `touch` reads a
    /// byte of the record at a place; the record may be that of another key.
    ///
    /// Memory serves some ten loads at a time, if no load needs the result of another load. A lookup is a chain of
    /// loads (slot, then record), and the next lookup is too far ahead for the processor to start on it. Here the
    /// processor can load all slots at the same time, and then all records. Lookups of 16 keys at a time, with a
    /// million keys in the memtable, took 0.16 µs each with a prefetch and 0.29 µs without (`cargo bench --bench
    /// designs -- lookups`).
    pub fn prefetch(&self, hashes: &[u64], touch: impl Fn(u32) -> u8) {
        let mut places = [None; PREFETCHED];
        let mut sum = 0_u8;
        for hashes in hashes.chunks(PREFETCHED) {
            for (place, hash) in places.iter_mut().zip(hashes) {
                *place = self.get(*hash, |_| true);
            }
            for place in places[..hashes.len()].iter().flatten() {
                sum = sum.wrapping_add(touch(*place));
            }
        }
        black_box(sum); // without this, the compiler would leave out the loads
    }

    /// Adds a record. It replaces the record for which `same` returns `true`, and the place of that record is returned.
    pub fn insert(&mut self, hash: u64, place: u32, same: impl Fn(u32) -> bool) -> Option<u32> {
        let (table, half) = self.split(hash);
        let table = &mut self.tables[table];
        let before = table.allocation_size();
        let entry = table.entry(
            Slot::spread(half),
            |slot| slot.hash == half && same(slot.place),
            |slot| Slot::spread(slot.hash),
        );
        let replaced = match entry {
            Entry::Occupied(mut slot) => Some(std::mem::replace(&mut slot.get_mut().place, place)),
            Entry::Vacant(slot) => {
                slot.insert(Slot { hash: half, place });
                None
            }
        };
        self.allocated = self.allocated + table.allocation_size() - before;
        replaced
    }

    /// Removes a record. `false` if there is no such record.
    pub fn remove(&mut self, hash: u64, same: impl Fn(u32) -> bool) -> bool {
        let (table, half) = self.split(hash);
        let table = &mut self.tables[table];
        let found = table.find_entry(Slot::spread(half), |slot| slot.hash == half && same(slot.place));
        found.map(|slot| slot.remove()).is_ok()
    }

    /// The table of a hash, and the half of the hash that a slot keeps. The two use different bits.
    fn split(&self, hash: u64) -> (usize, u32) {
        ((hash >> 32) as usize & (self.tables.len() - 1), hash as u32)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::random::Random;

    #[test]
    fn a_prefetch_touches_the_record_of_every_key_that_is_there() {
        let mut index = HashIndex::new(4);
        let hash = |key: u64| key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for key in 0..100 {
            index.insert(hash(key), key as u32, |place| u64::from(place) == key);
        }
        let touched = std::cell::RefCell::new(Vec::new());
        let hashes: Vec<u64> = (50..150).map(hash).collect();
        index.prefetch(&hashes, |place| {
            touched.borrow_mut().push(place);
            u8::MAX
        });
        assert_eq!(touched.into_inner(), (50..100).collect::<Vec<u32>>());
    }

    #[test]
    fn agrees_with_a_map_where_hashes_collide() {
        let seed = 3;
        let mut random = Random::new(seed);
        let mut index = HashIndex::new(4);
        // The key of a record follows from its place. Two keys share a hash.
        let hash = |key: u32| u64::from(key / 2).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let key_of = |place: u32| place % 3000;
        let mut model = HashMap::new();
        for step in 0..100_000 {
            let key = random.below(3000) as u32;
            match random.below(3) {
                0 => {
                    assert_eq!(
                        index.remove(hash(key), |place| key_of(place) == key),
                        model.remove(&key).is_some()
                    );
                }
                1 => {
                    let place = step * 3000 + key;
                    let replaced = index.insert(hash(key), place, |place| key_of(place) == key);
                    assert_eq!(replaced, model.insert(key, place), "seed {seed}");
                }
                _ => {
                    assert_eq!(index.get(hash(key), |place| key_of(place) == key), model.get(&key).copied());
                }
            }
            let allocated: usize = index.tables.iter().map(HashTable::allocation_size).sum();
            assert_eq!(index.allocated, allocated, "seed {seed}");
        }
    }
}
