//! Keys, sequence numbers and value kinds, and the one ordering that everything sorts by. Pure, but
//! for the seed that [`KeyHash::random`] draws.
//!
//! Entries sort by user key, bytewise ascending, then by [`SeqNo`] descending: the newest write of a key comes
//! first. Two hashes of a key are part of the format: one picks its shard, the other feeds the filters. A third, with a
//! secret seed, finds it in memory.

use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::error::CorruptionReason;

/// Slots that keys are spread over; each slot belongs to one shard (the slot map is in `STORE`).
pub const SLOT_COUNT: usize = 16_384;

/// Seed of the filter hash. It differs from the routing hash (seed 0), because the keys of one shard share
/// routing-hash bits, which would make filter bits of the same hash collide.
const FILTER_SEED: u64 = 0x72_69_6e_67_6b_65_65_70;

/// Position of a write in the order of its shard. The first write has number 1, and numbers have no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SeqNo(pub u64);

impl SeqNo {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Number of a file in its shard's directory; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileNumber(pub u64);

impl FileNumber {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Number of a shard in its store, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShardId(pub u16);

/// What a write did. On disk the low four bits of one byte, never renumbered; the high four bits are flags,
/// all zero today, so that later kinds of value (an expiry, say) need no new format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// The key was deleted.
    Tombstone = 0,
    /// The key was set.
    Value = 1,
}

impl ValueKind {
    /// Reads the byte on disk. Flags or kinds of a later version are refused, not guessed at.
    pub fn decode(byte: u8) -> Result<Self, CorruptionReason> {
        match byte {
            0 => Ok(Self::Tombstone),
            1 => Ok(Self::Value),
            _ => Err(CorruptionReason::LaterVersion { what: "entry kind", found: byte, known: 1 }),
        }
    }
}

/// One write, as memtables, SSTs and merges hand it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The user key.
    pub key: &'a [u8],
    /// When it was written.
    pub seqno: SeqNo,
    /// What was written.
    pub kind: ValueKind,
    /// The value; empty for a tombstone.
    pub value: &'a [u8],
}

/// The order of entries: key ascending, then newest first.
pub fn compare(a: (&[u8], SeqNo), b: (&[u8], SeqNo)) -> Ordering {
    a.0.cmp(b.0).then(b.1.cmp(&a.1))
}

/// The slot of a key.
pub fn slot(key: &[u8]) -> usize {
    crate::codec::to_usize(xxh3_64(key)) % SLOT_COUNT
}

/// The hash that filters are built from.
pub fn filter_hash(key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, FILTER_SEED)
}

/// The hash that finds keys in memory. Nobody is told its seed, so who chooses the keys cannot compute beforehand which
/// collide: keys of one hash are compared one by one, and a write of one more would take longer each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHash {
    seed: u64,
}

impl KeyHash {
    /// One of this seed, for tests: the same keys collide each time.
    pub const fn with_seed(seed: u64) -> Self {
        Self { seed }
    }

    /// One of a seed that is drawn.
    pub fn random() -> Self {
        Self { seed: RandomState::new().hash_one(()) }
    }

    /// The hash of a key.
    pub fn of(self, key: &[u8]) -> u64 {
        xxh3_64_with_seed(key, self.seed)
    }
}

/// Length of the longest common prefix.
pub fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let ((a_words, _), (b_words, _)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let equal = a_words.iter().zip(b_words).take_while(|(x, y)| x == y).count() * 8;
    equal + a[equal..].iter().zip(&b[equal..]).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_a_later_version_is_refused_by_name() {
        assert_eq!(ValueKind::decode(1), Ok(ValueKind::Value));
        let what = "entry kind";
        assert_eq!(ValueKind::decode(17), Err(CorruptionReason::LaterVersion { what, found: 17, known: 1 }));
    }

    #[test]
    fn newer_writes_of_a_key_come_first() {
        assert_eq!(compare((b"a", SeqNo(2)), (b"a", SeqNo(1))), Ordering::Less);
        assert_eq!(compare((b"a", SeqNo(1)), (b"b", SeqNo(2))), Ordering::Less);
        assert_eq!(compare((b"a", SeqNo(1)), (b"a\0", SeqNo(9))), Ordering::Less);
    }

    #[test]
    fn a_common_prefix_ends_at_the_first_difference_or_the_shorter_end() {
        for length in 0..40 {
            let a: Vec<u8> = (0..length).collect();
            for at in 0..a.len() {
                let mut b = a.clone();
                b[at] ^= 1;
                assert_eq!(common_prefix(&a, &b), at);
                assert_eq!((common_prefix(&a, &a[..at]), common_prefix(&a[..at], &a)), (at, at));
            }
            assert_eq!(common_prefix(&a, &a), a.len());
        }
    }

    #[test]
    fn the_hashes_are_part_of_the_format_and_never_change() {
        assert_eq!(slot(b"key1"), 10_722);
        assert_eq!(filter_hash(b"key1"), 0x2de2_e0b6_e655_24f5);
    }

    #[test]
    fn keys_that_collide_with_one_seed_do_not_with_another() {
        // So few bits that some keys collide.
        let bits = |hash: KeyHash, key: u64| hash.of(&key.to_le_bytes()) & ((1 << 24) - 1);
        let (known, other) = (KeyHash::with_seed(1), KeyHash::random());
        let mut keys: Vec<u64> = (0..1 << 14).collect();
        keys.sort_unstable_by_key(|key| bits(known, *key));
        let pairs = keys.array_windows().filter(|[a, b]| bits(known, *a) == bits(known, *b));
        let (found, again) = pairs.fold((0, 0), |(found, again), [a, b]| {
            (found + 1, again + u32::from(bits(other, *a) == bits(other, *b)))
        });
        assert!(0 < found && again < found, "{again} of {found} pairs");
        assert_ne!(KeyHash::random(), KeyHash::random(), "each is drawn");
    }
}
