//! Key ranges that are lost to damage. Pure.
//!
//! A sorted file with a damaged block is replaced by a file with everything that verifies. What was in the damaged block
//! is not known, so the keys around it are in quarantine: the manifest keeps a [`Damage`] in the place of the block. A
//! lookup that comes to it ends with an error, because an older entry may be wrong. Newer entries of these keys stay above
//! it, where lookups find them first (N4).

use crate::codec::{Reader, put_bytes, put_varint};
use crate::error::CorruptionReason;
use crate::escape::escaped;
use crate::key::{FileNumber, SeqNo};

/// Keys from `from` on, and below `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub from: Box<[u8]>,
    /// The first key that is not in the range.
    pub to: Box<[u8]>,
}

impl KeyRange {
    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.from <= *key && *key < *self.to
    }

    /// Whether any key from `smallest` to `largest` is in the range.
    pub fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        *self.from <= *largest && *smallest < *self.to
    }
}

impl std::fmt::Display for KeyRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A bound that ends in a zero byte nearly always is the successor of a key.
        let bound = |key: &[u8], exact: &str, successor: &str| match key.split_last() {
            Some((0, key)) => format!("{successor} \"{}\"", escaped(key)),
            _ => format!("{exact} \"{}\"", escaped(key)),
        };
        write!(f, "{} {}", bound(&self.from, "from", "after"), bound(&self.to, "below", "up to"))
    }
}

/// The key that follows `key` immediately.
pub fn successor(key: &[u8]) -> Box<[u8]> {
    [key, &[0]].concat().into()
}

/// What a sorted file has lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The level of the file.
    pub level: usize,
    /// The file. It is not read any more, and is kept until it is repaired.
    pub file: FileNumber,
    /// The highest SeqNo that the file held. In L0 it says which files are newer.
    pub last: SeqNo,
    /// The keys, in order. The ranges do not overlap.
    pub ranges: Vec<KeyRange>,
}

impl Damage {
    /// Whether an entry of `key` may be lost.
    pub fn contains(&self, key: &[u8]) -> bool {
        let at = self.ranges.partition_point(|range| *range.to <= *key);
        self.ranges.get(at).is_some_and(|range| range.contains(key))
    }

    /// A line about what was lost. `label` is the name of the file, and `entries` is how many it has lost, if that is known.
    pub fn describe(&self, label: &str, entries: Option<u64>) -> String {
        let ranges: Vec<String> = self.ranges.iter().map(KeyRange::to_string).collect();
        let lost = match entries {
            None => "entries are lost".to_owned(),
            Some(1) => "1 entry is lost".to_owned(),
            Some(entries) => format!("{entries} entries are lost"),
        };
        format!("{label}: {lost} among the keys {}", ranges.join(", "))
    }

    /// Appends all fields except the level.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.file.0);
        put_varint(out, self.last.0);
        put_varint(out, self.ranges.len() as u64);
        for range in &self.ranges {
            put_bytes(out, &range.from);
            put_bytes(out, &range.to);
        }
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(level: usize, reader: &mut Reader<'_>) -> Result<Self, CorruptionReason> {
        let wrong = CorruptionReason::Damaged("the damaged key ranges of a sorted file are not in order");
        let (file, last) = (FileNumber(reader.varint()?), SeqNo(reader.varint()?));
        let count = reader.varint()?;
        let mut ranges: Vec<KeyRange> = Vec::new();
        for _ in 0..count {
            let from: Box<[u8]> = reader.length_and_bytes()?.into();
            let to: Box<[u8]> = reader.length_and_bytes()?.into();
            if to <= from || ranges.last().is_some_and(|before| from < before.to) {
                return Err(wrong);
            }
            ranges.push(KeyRange { from, to });
        }
        if ranges.is_empty() {
            return Err(wrong);
        }
        Ok(Self { level, file, last, ranges })
    }
}
