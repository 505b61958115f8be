//! The live SSTs of a shard, by level. Immutable and shared; an edit makes the next version. Pure.
//!
//! L0 holds flushed memtables: its files overlap, the newest comes first. L1 and deeper levels are disjoint and in key
//! order.
//!
//! N1  In L1 and deeper no two files overlap, and files are in key order.
//! N2  L0 is in descending order of SeqNo, and the SeqNo ranges of its files do not overlap.
//! N3  Of two entries of a key, the newer one is in the higher level (L0 is the highest), or in the newer file of L0.
//! N4  The keys of a [`Damage`] have no entry in its level, except in newer files of L0. So a lookup comes to newer entries
//!     of these keys before it comes to the damage, and to older ones after it.

use std::rc::Rc;

use super::damage::Damage;
use super::{SharedMeta, VersionEdit};
use crate::error::CorruptionReason;
use crate::key::SeqNo;

/// Levels, L0 included. Each level is ten times as large as the level above, so the last one holds over a hundred TiB.
pub const LEVELS: usize = 7;

/// The live SSTs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    levels: [Vec<SharedMeta>; LEVELS],
    damage: Vec<Rc<Damage>>,
}

impl Version {
    /// The files of a level.
    pub fn level(&self, level: usize) -> &[SharedMeta] {
        &self.levels[level]
    }

    /// All levels with their numbers, the highest (L0) first.
    pub fn levels(&self) -> impl Iterator<Item = (usize, &[SharedMeta])> {
        self.levels.iter().enumerate().map(|(level, files)| (level, &files[..]))
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &SharedMeta> {
        self.levels.iter().flatten()
    }

    /// Bytes of a level.
    pub fn bytes(&self, level: usize) -> u64 {
        self.levels[level].iter().map(|file| file.bytes).sum()
    }

    /// The files of a level below L0 whose key ranges overlap `smallest` to `largest`.
    pub fn overlapping(&self, level: usize, smallest: &[u8], largest: &[u8]) -> &[SharedMeta] {
        debug_assert!(0 < level, "L0 files overlap");
        let files = &self.levels[level];
        let from = files.partition_point(|file| *file.largest < *smallest);
        let count = files[from..].partition_point(|file| *file.smallest <= *largest);
        &files[from..from + count]
    }

    /// The only file of a level below L0 that may hold `key`.
    pub fn file_for(&self, level: usize, key: &[u8]) -> Option<&SharedMeta> {
        debug_assert!(0 < level, "L0 files overlap");
        let files = &self.levels[level];
        let at = files.partition_point(|file| *file.largest < *key);
        files.get(at).filter(|file| file.covers(key))
    }

    /// Key ranges that are in quarantine.
    pub fn damage(&self) -> &[Rc<Damage>] {
        &self.damage
    }

    /// The damage in a level to which a lookup of `key` comes before it comes to the file of this level whose last SeqNo is
    /// `last`; with `None`, to any damage in the level.
    pub fn damage_for(&self, level: usize, key: &[u8], last: Option<SeqNo>) -> Option<&Rc<Damage>> {
        self.damage.iter().find(|damage| {
            damage.level == level && last.is_none_or(|last| last <= damage.last) && damage.contains(key)
        })
    }

    /// Whether an entry of `key` may be lost, in any level.
    pub fn may_have_lost(&self, key: &[u8]) -> bool {
        self.damage.iter().any(|damage| damage.contains(key))
    }

    /// Whether any level deeper than `level` may hold `key`, or may have held it.
    pub fn may_hold_below(&self, level: usize, key: &[u8]) -> bool {
        (level + 1..LEVELS).any(|deeper| self.file_for(deeper, key).is_some())
            || self.damage.iter().any(|damage| level < damage.level && damage.contains(key))
    }

    /// The version after an edit. N1 and N2 are checked, because edits come from disk.
    pub fn apply(&self, edit: &VersionEdit) -> Result<Self, CorruptionReason> {
        let mut next = self.clone();
        for (level, number) in &edit.remove_ssts {
            let files = &mut next.levels[*level];
            let before = files.len();
            files.retain(|file| file.number != *number);
            if files.len() == before {
                return Err(CorruptionReason::Damaged("an edit removes a sorted file that is not there"));
            }
        }
        for (level, meta) in &edit.add_ssts {
            if next.files().any(|file| file.number == meta.number) {
                return Err(CorruptionReason::Damaged("an edit adds a sorted file twice"));
            }
            next.levels[*level].push(meta.clone());
        }
        for number in &edit.remove_damage {
            next.damage.retain(|damage| damage.file != *number);
        }
        for damage in &edit.add_damage {
            if next.damage.iter().any(|other| other.file == damage.file) {
                return Err(CorruptionReason::Damaged("an edit adds the damage of a file twice"));
            }
            next.damage.push(damage.clone());
        }
        next.levels[0].sort_by_key(|file| std::cmp::Reverse(file.last));
        if next.levels[0].windows(2).any(|pair| pair[0].first <= pair[1].last) {
            return Err(CorruptionReason::Damaged("two files of L0 overlap in their SeqNos")); // N2
        }
        for files in &mut next.levels[1..] {
            files.sort_by(|a, b| a.smallest.cmp(&b.smallest));
            if files.windows(2).any(|pair| pair[1].smallest <= pair[0].largest) {
                return Err(CorruptionReason::Damaged("two files of a level overlap")); // N1
            }
        }
        Ok(next)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use super::*;
    use crate::compaction::{Compaction, Effort, Limits, Stuck, pick};
    use crate::key::{FileNumber, SeqNo, UnixMillis};
    use crate::manifest::damage::KeyRange;
    use crate::random::Random;
    use crate::sst::SstMeta;

    /// A file of `bytes` bytes. Its SeqNos are made from its number.
    pub(crate) fn meta(number: u64, smallest: &str, largest: &str, bytes: u64) -> SstMeta {
        SstMeta {
            number: FileNumber(number),
            bytes,
            smallest: smallest.as_bytes().into(),
            largest: largest.as_bytes().into(),
            first: SeqNo(number * 10),
            last: SeqNo(number * 10 + 9),
            entries: 10,
            tombstones: 0,
            longest: 10,
            expiry: None,
        }
    }

    pub(crate) fn version(files: &[(usize, SstMeta)]) -> Version {
        let add_ssts = files.iter().map(|(level, meta)| (*level, Rc::new(meta.clone()))).collect();
        Version::default().apply(&VersionEdit { add_ssts, ..VersionEdit::default() }).unwrap()
    }

    #[test]
    fn n1_n2_edits_that_break_the_order_are_refused() {
        let base =
            version(&[(0, meta(3, "a", "z", 1)), (1, meta(1, "a", "f", 1)), (1, meta(2, "k", "p", 1))]);
        let add = |level, file| {
            let add_ssts = vec![(level, Rc::new(file))];
            base.apply(&VersionEdit { add_ssts, ..VersionEdit::default() })
        };
        assert!(add(1, meta(5, "f", "g", 1)).is_err());
        assert!(add(1, meta(5, "g", "j", 1)).is_ok());
        assert!(add(2, meta(2, "x", "y", 1)).is_err(), "a number is used once");
        let mut same = meta(6, "a", "b", 1);
        same.first = SeqNo(39); // the last SeqNo of the file that is there
        assert!(add(0, same).is_err());
        let newest = add(0, meta(7, "a", "b", 1)).unwrap();
        assert_eq!(newest.level(0)[0].number, FileNumber(7));
        let remove_ssts = vec![(1, FileNumber(9))];
        assert!(base.apply(&VersionEdit { remove_ssts, ..VersionEdit::default() }).is_err());
    }

    /// The files of a shard, without their bytes.
    #[derive(Default)]
    struct Model {
        version: Version,
        /// The SeqNo of every key in every file.
        contents: BTreeMap<FileNumber, BTreeMap<Vec<u8>, SeqNo>>,
        /// The newest write of each key, except for tombstones that a compaction has dropped.
        newest: BTreeMap<Vec<u8>, SeqNo>,
        last: SeqNo,
    }

    impl Model {
        /// Every seventh write is a delete.
        fn is_tombstone(seqno: SeqNo) -> bool {
            seqno.0.is_multiple_of(7)
        }

        fn file(&mut self, entries: BTreeMap<Vec<u8>, SeqNo>) -> SharedMeta {
            let number = self.contents.last_key_value().map_or(FileNumber(1), |(last, _)| last.next());
            let (smallest, largest) = (entries.keys().next(), entries.keys().next_back());
            let (smallest, largest) = smallest.zip(largest).expect("no file is empty");
            let meta = SstMeta {
                number,
                bytes: entries.len() as u64,
                smallest: smallest.as_slice().into(),
                largest: largest.as_slice().into(),
                first: *entries.values().min().expect("no file is empty"),
                last: *entries.values().max().expect("no file is empty"),
                entries: entries.len() as u64,
                tombstones: entries.values().filter(|seqno| Self::is_tombstone(**seqno)).count() as u64,
                longest: 10,
                expiry: None,
            };
            self.contents.insert(number, entries);
            Rc::new(meta)
        }

        fn flush(&mut self, keys: impl Iterator<Item = u64>) {
            let mut entries = BTreeMap::new();
            for key in keys {
                self.last = self.last.next();
                entries.insert(format!("{key:02}").into_bytes(), self.last);
            }
            self.newest.extend(entries.clone());
            let add_ssts = vec![(0, self.file(entries))];
            self.version = self.version.apply(&VersionEdit { add_ssts, ..VersionEdit::default() }).unwrap();
        }

        fn compact(&mut self, compaction: &Compaction, limits: &Limits) {
            let target = compaction.target();
            let mut edit = VersionEdit::default();
            for (level, files) in [(compaction.level, &compaction.inputs), (target, &compaction.overlapping)]
            {
                edit.remove_ssts.extend(files.iter().map(|file| (level, file.number)));
            }
            if compaction.is_move() {
                edit.add_ssts.push((target, compaction.inputs[0].clone()));
            } else {
                let mut merged: BTreeMap<Vec<u8>, SeqNo> = BTreeMap::new();
                for file in compaction.inputs.iter().chain(&compaction.overlapping) {
                    for (key, seqno) in &self.contents[&file.number] {
                        let newest = merged.entry(key.clone()).or_default();
                        *newest = (*newest).max(*seqno);
                    }
                }
                let beyond = match &compaction.split {
                    Some(split) => merged.split_off(&[split, &[0][..]].concat()),
                    None => BTreeMap::new(),
                };
                if !beyond.is_empty() {
                    let rest = self.file(beyond);
                    edit.add_ssts.push((compaction.level, rest));
                }
                merged.retain(|key, seqno| {
                    let stays = !Self::is_tombstone(*seqno) || self.version.may_hold_below(target, key);
                    if !stays && self.newest.get(key) == Some(seqno) {
                        self.newest.remove(key);
                    }
                    stays
                });
                let entries: Vec<_> = merged.into_iter().collect();
                for output in entries.chunks(limits.sst_bytes as usize) {
                    let file = self.file(output.iter().cloned().collect());
                    edit.add_ssts.push((target, file));
                }
            }
            self.version = self.version.apply(&edit).unwrap();
        }

        /// The SeqNos of a key in the order of the levels, and of the files of L0.
        fn read(&self, key: &[u8]) -> Vec<SeqNo> {
            let l0 = self.version.level(0).iter().filter(|file| file.covers(key));
            let deeper = (1..LEVELS).filter_map(|level| self.version.file_for(level, key));
            l0.chain(deeper).filter_map(|file| self.contents[&file.number].get(key).copied()).collect()
        }
    }

    #[test]
    fn n3_flushes_and_compactions_keep_newer_entries_above_older_entries() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let limits = Limits { base_bytes: 4, sst_bytes: 6, merge_bytes: usize::MAX };
            let (mut model, mut eagerness) = (Model::default(), 0);
            let mut reached = [false; LEVELS];
            for step in 0..600 {
                // At times compaction is far behind.
                if step % 30 == 0 {
                    eagerness = random.below(5);
                }
                let effort = match random.below(4) {
                    0 | 1 => Effort::Due,
                    2 => Effort::Rest,
                    _ => Effort::Everything { up_to: model.last, now: UnixMillis::START },
                };
                match pick(&model.version, &limits, effort, &Stuck::new())
                    .filter(|_| random.below(4) < eagerness)
                {
                    Some(compaction) => {
                        // At times there is little space.
                        let bytes = if step % 200 < 60 { random.below(12) } else { u64::MAX };
                        model.compact(&compaction.within(bytes, &Stuck::new()), &limits);
                    }
                    None => {
                        let count = 1 + random.below(6);
                        model.flush((0..count).map(|_| random.below(90)));
                    }
                }
                for key in (0..90).map(|key| format!("{key:02}").into_bytes()) {
                    let found = model.read(&key);
                    assert!(found.is_sorted_by(|a, b| b < a), "seed {seed}, step {step}: {found:?}");
                    let newest = model.newest.get(&key);
                    assert_eq!(found.first(), newest, "seed {seed}, step {step}: {key:?}");
                }
                for (level, files) in model.version.levels() {
                    reached[level] |= !files.is_empty();
                }
            }
            assert_eq!(reached[..4], [true; 4], "seed {seed}: files in L0 to L3");
        }
    }

    #[test]
    fn a_key_has_at_most_one_file_per_level() {
        let version =
            version(&[(1, meta(1, "b", "f", 1)), (1, meta(2, "k", "p", 1)), (3, meta(4, "a", "z", 1))]);
        let number = |key: &str| version.file_for(1, key.as_bytes()).map(|file| file.number.0);
        assert_eq!(
            ["a", "b", "f", "g", "k", "p", "q"].map(number),
            [None, Some(1), Some(1), None, Some(2), Some(2), None]
        );
        assert!(version.may_hold_below(1, b"g") && !version.may_hold_below(3, b"g"));
        assert_eq!(version.overlapping(1, b"e", b"k").len(), 2);
    }

    #[test]
    fn n4_a_key_that_damage_may_have_held_may_be_below() {
        let range = KeyRange { from: b"g".as_slice().into(), to: b"i".as_slice().into() };
        let damage = Damage { level: 3, file: FileNumber(1), last: SeqNo(1), ranges: vec![range] };
        let edit = VersionEdit { add_damage: vec![Rc::new(damage)], ..VersionEdit::default() };
        let version = version(&[]).apply(&edit).unwrap();
        assert!(version.may_hold_below(1, b"h") && version.may_hold_below(2, b"g"));
        assert!(!version.may_hold_below(1, b"i") && !version.may_hold_below(3, b"h"));
    }
}
