//! Keys, values and amounts that the benches share: those of BENCHMARKS.md.

use ringkeep::random::{Random, hash};

pub(crate) const KEY_BYTES: usize = 16;
pub(crate) const VALUE_BYTES: usize = 100;
/// The number of entries that a memtable of 64 MiB holds.
pub(crate) const MEMTABLE_ENTRIES: u64 = 380_000;

pub(crate) fn key(number: u64) -> Vec<u8> {
    format!("{number:0KEY_BYTES$}").into_bytes()
}

/// The `number`-th key of a random order, as long as all other keys.
pub(crate) fn shuffled_key(number: u64) -> Vec<u8> {
    key(hash(1, number) % 10_u64.pow(KEY_BYTES as u32))
}

/// A value of which half compresses.
pub(crate) fn value(number: u64) -> Vec<u8> {
    let mut value = Vec::new();
    let mut random = Random::new(number);
    while value.len() < VALUE_BYTES / 2 {
        value.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    value.truncate(VALUE_BYTES / 2);
    value.resize(VALUE_BYTES, b'v');
    value
}
