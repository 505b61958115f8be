//! Keys, sequence numbers and value kinds, and the one ordering that everything sorts by. Pure, except for the seed
//! that [`KeyHash::random`] draws.
//!
//! Entries sort by user key, bytewise ascending, then by [`SeqNo`] descending: the newest write of a key comes first.
//!
//! A key has three hashes. The first picks its slot, and with it its shard. The second feeds the filters of sorted files.
//! Both are part of the format. The third, with a secret seed, finds the key in memory. A [`Key`] carries what a request
//! needs on every path: the bytes, the slot and the hash for memory, each computed once.

use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::codec::{Reader, VARINT_BYTES_MAX, find, to_usize, varint};
use crate::error::CorruptionReason;

/// Slots that keys are spread over; each slot belongs to one shard (the slot map is in `STORE`).
pub const SLOT_COUNT: usize = 16_384;

/// Seed of the filter hash. It differs from the seed of the slot hash (0): the keys of one shard share bits of their slot
/// hash, and filters built from the same hash would share those bits, too.
const FILTER_SEED: u64 = 0x72_69_6e_67_6b_65_65_70;

/// A key, and what is computed from it once per request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<B> {
    bytes: B,
    hash: u64,
    slot: Slot,
}

impl<B> Key<B> {
    /// The [`KeyHash`] of the key, which finds it in memory.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The slot of the key.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The same key, with other storage for the same bytes.
    pub fn map<'a, C>(&'a self, bytes: impl FnOnce(&'a B) -> C) -> Key<C> {
        Key { bytes: bytes(&self.bytes), hash: self.hash, slot: self.slot }
    }
}

impl<B: AsRef<[u8]>> Key<B> {
    /// The key `bytes`, hashed for its slot and for memory.
    pub fn new(bytes: B, hash: KeyHash) -> Self {
        let (hash, slot) = (hash.of(bytes.as_ref()), Slot::of(bytes.as_ref()));
        Self { bytes, hash, slot }
    }

    /// The bytes of the key.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The same key, borrowed.
    pub fn as_ref(&self) -> Key<&[u8]> {
        Key { bytes: self.bytes.as_ref(), hash: self.hash, slot: self.slot }
    }
}

impl Key<&[u8]> {
    /// A copy that owns its bytes.
    pub fn to_owned(self) -> Key<Bytes> {
        self.map(|bytes| Bytes::copy_from_slice(bytes))
    }
}

/// Number of a slot, from 0 up to, but not including, [`SLOT_COUNT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot of a key. Keys with the same hash tag share a slot. The hash tag is the part between the first `{` and the
    /// next `}`, if both exist and the part is not empty (the rule of Redis Cluster); without one, the whole key counts.
    pub fn of(key: &[u8]) -> Self {
        let slot = to_usize(xxh3_64(hash_tag(key).unwrap_or(key))) % SLOT_COUNT;
        Self(u16::try_from(slot).expect("SLOT_COUNT fits in 16 bits"))
    }

    /// The index of the slot in a slot map.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

const _: () = assert!(SLOT_COUNT <= 1 << 16, "a slot has 16 bits");

fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let behind = &key[find(b'{', key)? + 1..];
    let end = find(b'}', behind)?;
    (0 < end).then(|| &behind[..end])
}

/// A moment of the wall clock, in milliseconds since the Unix epoch. The clock may jump, and expiry jumps with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Before every expiry: at this moment nothing has expired.
    pub const START: Self = Self(0);
}

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

/// What a write did. On disk the kind is in the low four bits of one byte, and its numbers never change. The high four
/// bits are flags: see [`EntryKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// The key was deleted.
    Tombstone = 0,
    /// The key was set.
    Value = 1,
}

/// The flag of an entry that expires.
const EXPIRES: u8 = 0x10;

/// How an entry begins wherever it is stored: what was written, and when that expires.
///
/// ```text
///   u8 kind, and 0x10 if the entry expires   varint milliseconds since the Unix epoch, if the entry expires
/// ```
///
/// The other three flags are reserved. A reader refuses them by name: an entry with an unknown flag would be misread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryKind {
    /// What was written.
    pub value: ValueKind,
    /// The entry counts as deleted from this moment on. A tombstone never expires.
    pub expires: Option<UnixMillis>,
}

/// Bytes of the longest encoded [`EntryKind`].
pub const ENTRY_KIND_BYTES_MAX: usize = 1 + VARINT_BYTES_MAX;

/// A value as a write brings it.
#[derive(Debug, Clone)]
pub enum NewValue<'a> {
    /// Its bytes are copied wherever they are needed.
    Short(&'a [u8]),
    /// Its bytes are shared. They keep hardly more memory than their length.
    Large(Bytes),
}

impl AsRef<[u8]> for NewValue<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Large(bytes) => bytes,
        }
    }
}

impl<'a, B: AsRef<[u8]> + ?Sized> From<&'a B> for NewValue<'a> {
    fn from(bytes: &'a B) -> Self {
        Self::Short(bytes.as_ref())
    }
}

impl EntryKind {
    /// A deletion.
    pub const TOMBSTONE: Self = Self { value: ValueKind::Tombstone, expires: None };
    /// A value that does not expire.
    pub const VALUE: Self = Self { value: ValueKind::Value, expires: None };

    /// A value that expires, or does not.
    pub const fn value(expires: Option<UnixMillis>) -> Self {
        Self { value: ValueKind::Value, expires }
    }

    /// Whether a reader finds a value at `now`.
    #[inline]
    pub fn is_value_at(self, now: UnixMillis) -> bool {
        self.value == ValueKind::Value && self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether the entry has expired at `now`.
    pub fn has_expired_at(self, now: UnixMillis) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Encodes the kind into `buffer` and returns the bytes that it took.
    #[inline]
    pub fn encode(self, buffer: &mut [u8; ENTRY_KIND_BYTES_MAX]) -> &[u8] {
        buffer[0] = self.value as u8;
        let Some(UnixMillis(expires)) = self.expires else { return &buffer[..1] };
        buffer[0] |= EXPIRES;
        let mut millis = [0; VARINT_BYTES_MAX];
        let millis = varint(expires, &mut millis);
        buffer[1..=millis.len()].copy_from_slice(millis);
        &buffer[..=millis.len()]
    }

    /// Reads what [`Self::encode`] wrote. Flags and kinds of a later version are refused by name.
    #[inline]
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CorruptionReason> {
        let byte = reader.u8()?;
        match byte {
            0 => Ok(Self::TOMBSTONE),
            1 => Ok(Self::VALUE),
            0x11 => Ok(Self::value(Some(UnixMillis(reader.varint()?)))),
            0x10 => Err(CorruptionReason::Damaged("a tombstone expires")),
            _ => Err(CorruptionReason::LaterVersion { what: "entry kind", found: byte, known: 0x11 }),
        }
    }
}

/// One write, as memtables, SSTs and merges pass it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The user key.
    pub key: &'a [u8],
    /// Its position in the order of writes.
    pub seqno: SeqNo,
    /// What was written, and when that expires.
    pub kind: EntryKind,
    /// The value; empty for a tombstone.
    pub value: &'a [u8],
}

/// The order of entries: key ascending, then newest first.
pub fn compare(a: (&[u8], SeqNo), b: (&[u8], SeqNo)) -> Ordering {
    a.0.cmp(b.0).then(b.1.cmp(&a.1))
}

/// The hash that filters are built from.
pub fn filter_hash(key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, FILTER_SEED)
}

/// The hash function that finds keys in memory. Its seed is secret. Keys with the same hash are compared one by one. A
/// client that could compute which keys collide could make each write slower than the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHash {
    seed: u64,
}

impl KeyHash {
    /// The function with this seed, for tests: the same keys collide each time.
    pub const fn with_seed(seed: u64) -> Self {
        Self { seed }
    }

    /// The function with a seed drawn at random.
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
    fn an_entry_kind_round_trips_and_one_of_a_later_version_is_refused_by_name() {
        for expires in [None, Some(0), Some(1), Some(1 << 41), Some(u64::MAX)] {
            for kind in [EntryKind::value(expires.map(UnixMillis)), EntryKind::TOMBSTONE] {
                let mut buffer = [0; ENTRY_KIND_BYTES_MAX];
                let bytes = kind.encode(&mut buffer);
                let mut reader = Reader::new(bytes);
                assert_eq!(EntryKind::decode(&mut reader), Ok(kind));
                assert!(reader.is_empty());
            }
        }
        let known = [0, 1, 0x10, 0x11];
        for byte in (0..=u8::MAX).filter(|byte| !known.contains(byte)) {
            let later = CorruptionReason::LaterVersion { what: "entry kind", found: byte, known: 0x11 };
            assert_eq!(EntryKind::decode(&mut Reader::new(&[byte, 0, 0])), Err(later));
        }
        assert!(matches!(EntryKind::decode(&mut Reader::new(&[0x10, 1])), Err(CorruptionReason::Damaged(_))));
    }

    #[test]
    fn an_entry_expires_at_its_moment_and_not_before() {
        let kind = EntryKind::value(Some(UnixMillis(5)));
        assert!(kind.is_value_at(UnixMillis(4)) && !kind.has_expired_at(UnixMillis(4)));
        assert!(!kind.is_value_at(UnixMillis(5)) && kind.has_expired_at(UnixMillis(5)));
        assert!(EntryKind::VALUE.is_value_at(UnixMillis(u64::MAX)));
        assert!(!EntryKind::TOMBSTONE.is_value_at(UnixMillis(0)));
        assert!(!EntryKind::TOMBSTONE.has_expired_at(UnixMillis(u64::MAX)));
    }

    #[test]
    fn keys_with_the_same_hash_tag_share_a_slot() {
        // The examples of the Redis Cluster specification.
        for (key, tag) in [
            ("{user1000}.following", Some("user1000")),
            ("foo{}{bar}", None),
            ("foo{{bar}}zap", Some("{bar")),
            ("foo{bar}{zap}", Some("bar")),
            ("foo", None),
            ("}foo{", None),
            ("foo}{bar}", Some("bar")),
            ("", None),
        ] {
            assert_eq!(hash_tag(key.as_bytes()), tag.map(str::as_bytes), "{key}");
            assert_eq!(Slot::of(key.as_bytes()), Slot::of(tag.unwrap_or(key).as_bytes()));
        }
    }

    #[test]
    fn a_key_keeps_its_hashes_when_its_bytes_move() {
        let hash = KeyHash::with_seed(3);
        let key = Key::new(&b"{a}b"[..], hash);
        let owned = key.to_owned();
        assert_eq!(owned.as_ref(), key);
        assert_eq!(
            (owned.hash(), owned.slot(), owned.bytes()),
            (hash.of(b"{a}b"), Slot::of(b"a"), &b"{a}b"[..])
        );
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
        assert_eq!(Slot::of(b"key1").index(), 10_722);
        assert_eq!(filter_hash(b"key1"), 0x2de2_e0b6_e655_24f5);
    }

    #[test]
    fn keys_that_collide_with_one_seed_do_not_with_another() {
        // With so few bits some keys collide.
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
