//! Bloom filter over the keys of one partition (Bloom, CACM 1970). Pure.
//!
//! ```text
//!   u8 probes   bits
//! ```
//!
//! A key has ten bits and seven probes: 0.8 % of absent keys pass the filter. The probes of a key are `h + i * d`
//! (Kirsch and Mitzenmacher, ESA 2006) over one 64-bit hash. These measurements for 4,000 keys decided the choice
//! (`cargo bench --bench designs -- filters`, on the machine of BENCHMARKS.md):
//!
//! | | bits per key | absent keys that pass | build | look up an absent key | look up a present key |
//! | --- | ---: | ---: | ---: | ---: | ---: |
//! | Bloom | 10.0 | 0.83 % | 30 µs | 2.2 ns | 7.2 ns |
//! | binary fuse, 8 bits | 11.3 | 0.39 % | 104 µs | 4.1 ns | 3.7 ns |
//!
//! A Bloom filter is built faster, and every merge builds filters. It answers faster for absent keys, and most filters
//! that a lookup asks do not hold the key: they belong to the levels above the level of the key.

use crate::codec::to_usize;
use crate::error::CorruptionReason;

const BITS_PER_KEY: usize = 10;
const PROBES: u8 = 7;

/// Builds the filter over keys with these hashes.
pub fn build(hashes: &[u64]) -> Vec<u8> {
    let bytes = (hashes.len() * BITS_PER_KEY).div_ceil(8).max(8);
    let mut filter = vec![0; 1 + bytes];
    filter[0] = PROBES;
    for &hash in hashes {
        for bit in probes(hash, PROBES, bytes * 8) {
            filter[1 + bit / 8] |= 1 << (bit % 8);
        }
    }
    filter
}

/// Whether a key with this hash may have been added. The answer `false` is certain.
pub fn may_contain(filter: &[u8], hash: u64) -> Result<bool, CorruptionReason> {
    let Some((&count, bits)) = filter.split_first().filter(|(_, bits)| !bits.is_empty()) else {
        return Err(CorruptionReason::Damaged("the filter is empty"));
    };
    Ok(probes(hash, count, bits.len() * 8).all(|bit| bits[bit / 8] & (1 << (bit % 8)) != 0))
}

fn probes(hash: u64, count: u8, bits: usize) -> impl Iterator<Item = usize> {
    let delta = hash.rotate_left(32) | 1;
    (0..u64::from(count)).map(move |index| {
        // The high half of a product maps the probe to the range without a division.
        let probe = u128::from(hash.wrapping_add(index.wrapping_mul(delta)));
        to_usize(u64::try_from((probe * bits as u128) >> 64).unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::filter_hash;

    #[test]
    fn t2_added_keys_are_found_and_few_others_are() {
        for count in [1_u32, 10, 1_000, 4_000] {
            let hash = |n: u32| filter_hash(&n.to_le_bytes());
            let filter = build(&(0..count).map(hash).collect::<Vec<_>>());
            assert!((0..count).all(|n| may_contain(&filter, hash(n)).unwrap()));
            let wrong = (1_000_000..1_010_000).filter(|&n| may_contain(&filter, hash(n)).unwrap()).count();
            assert!(wrong < 200, "{wrong} of 10,000 absent keys with {count} present");
        }
        assert!(may_contain(&[], 1).is_err() && may_contain(&[7], 1).is_err());
    }
}
