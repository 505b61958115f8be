//! Which compaction is next. Pure: a function from a version to a decision.
//!
//! Levelled, as in LevelDB: L0 is due by its number of files, L1 and deeper levels by their bytes. Each level is ten
//! times as large as the level above. The level furthest over its size goes first, unless L0 has many files: every read
//! looks at each of them, and writes stop when there are too many. Within a level, the file goes that rewrites the least
//! for its size; of equal files, the first.
//!
//! Space comes back without more writes. When no level is due, a file of mostly tombstones is. And in a shard that rests,
//! the upper levels are merged into the last one as long as they hold more than an eighth of its bytes: as many bytes of
//! the last level may be overwritten or deleted there. On request, everything that was written before the request is merged
//! into one level, and files of that level that still hold tombstones, or entries that have expired, are rewritten.
//!
//! K1  Inputs from L0 are the oldest files, so a newer file never goes below an older one (N3).
//! K2  All files of the target level that overlap the inputs are part of the compaction (N1).

use std::collections::HashSet;
use std::rc::Rc;

use crate::codec::to_usize;
use crate::key::{FileNumber, SeqNo, UnixMillis};
use crate::manifest::damage::{Damage, KeyRange};
use crate::manifest::{LEVELS, SharedMeta, Version};
use crate::sst::builder::{LARGE_ENTRY_BYTES, memory_bytes};

/// Files in L0 that make a compaction due.
pub const L0_FILES: usize = 4;
/// The most files of L0 that one compaction takes.
const L0_INPUTS_MAX: usize = 12;
/// Files in L0 with which it goes before every other level. A level that is far over its size, because the store was
/// written with larger memtables, would otherwise keep L0 waiting until writes stop.
const L0_FILES_FIRST: usize = 2 * L0_FILES;
/// A shard that rests merges upper levels that hold more than this part of the bytes of the last level.
const REST_RATIO: u64 = 8;
/// How much larger each level is than the level above.
const LEVEL_RATIO: u64 = 10;

/// What the decision depends on in addition to the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that L1 should have at most.
    pub base_bytes: u64,
    /// Bytes at which an output file ends.
    pub sst_bytes: u64,
    /// Bytes of memory that a compaction should take at most.
    pub merge_bytes: usize,
}

impl Limits {
    /// Limits that suit memtables of this size: L1 holds as much as four flushes make.
    pub fn for_memtables(memtable_bytes: usize) -> Self {
        let memtable = memtable_bytes as u64;
        Self { base_bytes: 4 * memtable, sst_bytes: memtable.min(64 << 20), merge_bytes: usize::MAX }
    }

    /// Bytes that a level below L0 should have at most. The last level has no limit.
    fn level_bytes(&self, level: usize) -> u64 {
        if level + 1 == LEVELS {
            return u64::MAX;
        }
        (1..level).fold(self.base_bytes, |bytes, _| bytes.saturating_mul(LEVEL_RATIO))
    }
}

/// How much is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What keeps reads and writes fast.
    Due,
    /// Also what a shard has time for to which nobody has written for a while.
    Rest,
    /// Also everything that gives space back.
    Everything {
        /// Files that hold only later writes are left alone.
        up_to: SeqNo,
        /// Entries that expire later stay.
        now: UnixMillis,
    },
}

/// Work to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compaction {
    /// The level of the inputs.
    pub level: usize,
    /// Files that go down: from L0 one or more, the newest first, from any other level one. If there are none, the others
    /// are rewritten where they are.
    pub inputs: Vec<SharedMeta>,
    /// Files of the next level that overlap the inputs, in key order.
    pub overlapping: Vec<SharedMeta>,
    /// Only keys up to this one go down. What the input holds beyond it goes to a new file of its own level.
    pub split: Option<Box<[u8]>>,
    /// Entries of these keys stay above damage that they hide (N4). They go to a new file of their level as well.
    pub stays: Vec<KeyRange>,
}

impl Compaction {
    /// Whether an edit alone carries out the compaction. A file of mostly tombstones is rewritten, to be rid of them.
    pub fn is_move(&self) -> bool {
        self.inputs.len() == 1
            && self.overlapping.is_empty()
            && self.stays.is_empty()
            && !mostly_tombstones(&self.inputs[0])
    }

    /// Whether an entry of an input with this key does not go down.
    pub fn stays_above(&self, key: &[u8]) -> bool {
        self.split.as_deref().is_some_and(|split| split < key)
            || self.stays.iter().any(|range| range.contains(key))
    }

    /// A first part of the compaction for which `bytes` of space suffice until its inputs are given back, or the smallest
    /// part that there is: one input, the oldest (K1), and as many of the files that it overlaps as fit, from the first key
    /// on. All of those files that overlap keys up to the split are in it (K2), and what is beyond the split stays above
    /// the others.
    #[must_use]
    pub fn within(mut self, bytes: u64, stuck: &Stuck) -> Self {
        let total: u64 = self.inputs.iter().chain(&self.overlapping).map(|file| file.bytes).sum();
        if self.inputs.is_empty() || self.is_move() || total <= bytes {
            return self;
        }
        let oldest = self.inputs.iter().rposition(|file| !stuck.contains(&file.number)).unwrap_or_default();
        self.inputs = vec![self.inputs.swap_remove(oldest)];
        let input = &self.inputs[0];
        self.overlapping.retain(|file| file.overlaps(&input.smallest, &input.largest));
        let mut left = bytes.saturating_sub(input.bytes);
        let fit = self.overlapping.iter().take_while(|file| {
            let fits = file.bytes <= left;
            left = left.saturating_sub(file.bytes);
            fits
        });
        let count = fit.count().max(1);
        if count < self.overlapping.len() {
            self.overlapping.truncate(count);
            self.split = self.overlapping.last().map(|last| last.largest.clone());
        }
        self
    }

    /// Bytes of memory that the compaction takes: a block of each input, and what it takes to write the outputs.
    pub fn memory_bytes(&self) -> usize {
        let longest = |file: &SharedMeta| to_usize(file.longest);
        let below = self.overlapping.iter().map(longest).max();
        let runs = self.inputs.iter().map(longest).chain(below);
        let read: usize = runs.clone().map(|longest| longest.max(LARGE_ENTRY_BYTES)).sum();
        read + memory_bytes(runs.max().unwrap_or_default())
    }

    /// The level that the outputs go to.
    pub fn target(&self) -> usize {
        self.level + 1
    }
}

/// The compaction that is next, if there is one. Files that are `stuck` hold only keys that have to stay above damage: they
/// go nowhere by themselves, and count for nothing.
pub fn pick(version: &Version, limits: &Limits, effort: Effort, stuck: &Stuck) -> Option<Compaction> {
    Picker { version, limits, stuck }.pick(effort)
}

/// Files that hold only keys which have to stay above damage.
pub type Stuck = HashSet<FileNumber>;

struct Picker<'a> {
    version: &'a Version,
    limits: &'a Limits,
    stuck: &'a Stuck,
}

/// The ranges of damage that hold keys from `smallest` to `largest`.
fn ranges_within<'a>(
    damage: impl Iterator<Item = &'a Rc<Damage>>,
    smallest: &[u8],
    largest: &[u8],
) -> Vec<KeyRange> {
    let ranges = damage.flat_map(|damage| &damage.ranges);
    ranges.filter(|range| range.overlaps(smallest, largest)).cloned().collect()
}

fn mostly_tombstones(file: &SharedMeta) -> bool {
    file.entries < 2 * file.tombstones
}

impl Picker<'_> {
    fn pick(&self, effort: Effort) -> Option<Compaction> {
        if L0_FILES_FIRST <= self.movable(0).count() {
            return self.of_l0();
        }
        let due = (0..LEVELS - 1).filter(|&level| 1.0 <= self.score(level)).max_by(|&a, &b| {
            // Of equal scores the higher level goes first, because reads look at it first.
            self.score(a).total_cmp(&self.score(b)).then(b.cmp(&a))
        });
        match due {
            Some(level) => self.of_level(level),
            None => self.of_tombstones().or_else(|| match effort {
                Effort::Due => None,
                Effort::Rest => self.of_a_rest(),
                Effort::Everything { up_to, now } => self.of_everything(up_to, now),
            }),
        }
    }

    /// The files of a level that are not stuck.
    fn movable(&self, level: usize) -> impl Iterator<Item = &SharedMeta> {
        self.version.level(level).iter().filter(|file| !self.stuck.contains(&file.number))
    }

    fn bytes(&self, level: usize) -> u64 {
        self.movable(level).map(|file| file.bytes).sum()
    }

    /// A compaction that drops tombstones, or brings them closer to what they hide.
    fn of_tombstones(&self) -> Option<Compaction> {
        if self.movable(0).any(mostly_tombstones) {
            return self.of_l0();
        }
        (1..LEVELS - 1).find_map(|level| self.cheapest(level, mostly_tombstones))
    }

    /// A compaction that merges what may be overwritten, or may overwrite something, into the last level.
    fn of_a_rest(&self) -> Option<Compaction> {
        let has_files = |level: &usize| self.movable(*level).next().is_some();
        let last = (0..LEVELS).rev().find(has_files)?;
        if last == 0 {
            return if 1 < self.movable(0).count() { self.of_l0() } else { None };
        }
        let above: u64 = (0..last).map(|level| self.bytes(level)).sum();
        if above * REST_RATIO <= self.bytes(last) {
            return None;
        }
        self.of_level((0..last).find(has_files)?)
    }

    /// A compaction that brings what was written up to `up_to` closer to the last level, or rewrites a file of the last
    /// level that holds what nobody needs.
    fn of_everything(&self, up_to: SeqNo, now: UnixMillis) -> Option<Compaction> {
        let last = (0..LEVELS).rev().find(|level| self.movable(*level).next().is_some())?;
        let is_wanted = |file: &SharedMeta| file.first <= up_to;
        if self.movable(0).any(is_wanted) {
            return self.of_l0();
        }
        if let Some(compaction) = (1..last).find_map(|level| self.cheapest(level, is_wanted)) {
            return Some(compaction);
        }
        let version = self.version;
        let file = self.movable(last).find(|file| {
            let has_expired = file.expiry.is_some_and(|expiry| expiry.first <= now);
            let (smallest, largest) = (&file.smallest, &file.largest);
            let damage = version.damage().iter().filter(|damage| last < damage.level);
            is_wanted(file)
                && (0 < file.tombstones || has_expired)
                && (last + 1..LEVELS).all(|level| version.overlapping(level, smallest, largest).is_empty())
                && ranges_within(damage, smallest, largest).is_empty()
        })?;
        let (level, overlapping) = (last.checked_sub(1)?, vec![file.clone()]);
        Some(Compaction { level, inputs: Vec::new(), overlapping, split: None, stays: Vec::new() })
    }

    /// The next compaction of a level that has files.
    fn of_level(&self, level: usize) -> Option<Compaction> {
        if level == 0 { self.of_l0() } else { self.cheapest(level, |_| true) }
    }

    #[expect(clippy::cast_precision_loss, reason = "a score needs no more than two digits")]
    fn score(&self, level: usize) -> f64 {
        if level == 0 {
            self.movable(0).count() as f64 / L0_FILES as f64
        } else {
            self.bytes(level) as f64 / self.limits.level_bytes(level) as f64
        }
    }

    /// The oldest files of L0 (K1). The oldest file moves alone if it overlaps no other file of L0 and no file of L1. An
    /// overlap with newer files of L0 would not break the order, but the compaction of those files would soon rewrite the
    /// moved file. Files that are older and newer than some damage in L0 are not merged with each other (N4).
    fn of_l0(&self) -> Option<Compaction> {
        let files = self.version.level(0);
        let damage = || self.version.damage().iter().filter(|damage| damage.level == 0);
        let older_damage = |file: &SharedMeta| damage().filter(|damage| damage.last < file.last).count();
        let mut groups = files.chunk_by(|a, b| older_damage(a) == older_damage(b)).rev();
        let group = groups.find(|group| group.iter().any(|file| !self.stuck.contains(&file.number)))?;
        // Stuck files at the old end hold only keys that stay above damage, and so do those keys of newer files. So they
        // may be left out.
        let settled = group.iter().rev().take_while(|file| self.stuck.contains(&file.number)).count();
        let unsettled = &group[..group.len() - settled];
        let oldest = unsettled.last()?;
        let of = |inputs: &[SharedMeta]| {
            let smallest = inputs.iter().map(|file| &file.smallest).min()?;
            let largest = inputs.iter().map(|file| &file.largest).max()?;
            let overlapping = self.version.overlapping(1, smallest, largest).to_vec(); // K2
            let above = damage().filter(|damage| damage.last < oldest.last);
            let below = self.version.damage().iter().filter(|damage| damage.level == 1);
            let stays = ranges_within(above.chain(below), smallest, largest);
            Some(Compaction { level: 0, inputs: inputs.to_vec(), overlapping, split: None, stays })
        };
        let alone = !files
            .iter()
            .any(|file| file.number != oldest.number && file.overlaps(&oldest.smallest, &oldest.largest))
            && self.version.overlapping(1, &oldest.smallest, &oldest.largest).is_empty();
        if alone {
            return of(&unsettled[unsettled.len() - 1..]);
        }
        let fits = |compaction: &Compaction| compaction.memory_bytes() <= self.limits.merge_bytes;
        for count in (settled + 1..=group.len().min(L0_INPUTS_MAX)).rev() {
            let compaction = of(&group[group.len() - count..])?;
            if fits(&compaction) {
                return Some(compaction);
            }
        }
        for count in (2..=unsettled.len().min(L0_INPUTS_MAX)).rev() {
            let compaction = of(&unsettled[unsettled.len() - count..])?;
            if fits(&compaction) {
                return Some(compaction);
            }
        }
        of(&unsettled[unsettled.len() - 1..])
    }

    /// The file of a level that rewrites the fewest bytes of the level below for each byte of its own.
    fn cheapest(&self, level: usize, wanted: impl Fn(&SharedMeta) -> bool) -> Option<Compaction> {
        let version = self.version;
        let overlapping = |file: &SharedMeta| version.overlapping(level + 1, &file.smallest, &file.largest);
        let file = self.movable(level).filter(|file| wanted(file)).min_by_key(|file| {
            let below: u64 = overlapping(file).iter().map(|file| file.bytes).sum();
            below.saturating_mul(1000) / file.bytes.max(1)
        })?;
        let overlapping = overlapping(file).to_vec(); // K2
        let below = version.damage().iter().filter(|damage| damage.level == level + 1);
        let stays = ranges_within(below, &file.smallest, &file.largest);
        Some(Compaction { level, inputs: vec![file.clone()], overlapping, split: None, stays })
    }

    fn below_l0(&self) -> u64 {
        (1..LEVELS).map(|level| self.bytes(level).saturating_sub(self.limits.level_bytes(level))).sum()
    }
}

/// Bytes over the limits of the levels: the work that compaction still has to do.
pub fn debt_bytes(version: &Version, limits: &Limits, stuck: &Stuck) -> u64 {
    let picker = Picker { version, limits, stuck };
    let l0 = if picker.movable(0).count() < L0_FILES { 0 } else { picker.bytes(0) };
    l0 + picker.below_l0()
}

/// The debt that there will be once L0 is merged, however few files it has.
pub fn debt_bytes_to_come(version: &Version, limits: &Limits, stuck: &Stuck) -> u64 {
    let picker = Picker { version, limits, stuck };
    picker.bytes(0) + picker.below_l0()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::version::tests::{meta, version};
    use crate::sst::SstMeta;

    const LIMITS: Limits = Limits { base_bytes: 1000, sst_bytes: 100, merge_bytes: usize::MAX };

    fn check(files: &[(usize, crate::sst::SstMeta)], expected: Option<(usize, &[u64], &[u64])>) {
        let picked = pick(&version(files), &LIMITS, Effort::Due, &Stuck::new());
        let numbers = |files: &[SharedMeta]| files.iter().map(|file| file.number.0).collect::<Vec<_>>();
        let picked = picked.map(|c| (c.level, numbers(&c.inputs), numbers(&c.overlapping)));
        assert_eq!(picked, expected.map(|(level, a, b)| (level, a.to_vec(), b.to_vec())));
    }

    #[test]
    fn nothing_is_due_below_the_limits() {
        check(&[], None);
        check(&[(0, meta(1, "a", "z", 9_000)), (1, meta(2, "a", "z", 999))], None);
    }

    #[test]
    fn k1_k2_l0_goes_whole_with_all_that_overlaps_below() {
        let l0 = |number| (0, meta(number, "b", "m", 10));
        let mut files =
            vec![l0(3), l0(4), l0(5), l0(6), (1, meta(1, "a", "b", 10)), (1, meta(2, "n", "z", 10))];
        check(&files, Some((0, &[6, 5, 4, 3], &[1])));
        files.extend((7..20).map(l0));
        let oldest: Vec<u64> = (3..15).rev().collect();
        check(&files, Some((0, &oldest, &[1])));
    }

    #[test]
    fn files_in_key_order_move_down_one_by_one() {
        let files = [
            (0, meta(1, "a", "b", 10)),
            (0, meta(2, "c", "d", 10)),
            (0, meta(3, "e", "f", 10)),
            (0, meta(4, "g", "h", 10)),
        ];
        let picked = pick(&version(&files), &LIMITS, Effort::Due, &Stuck::new()).unwrap();
        assert!(picked.is_move() && picked.inputs[0].number.0 == 1 && picked.target() == 1);
    }

    #[test]
    fn a_level_over_its_size_gives_the_file_that_rewrites_least() {
        check(
            &[
                (1, meta(1, "a", "f", 600)),
                (1, meta(2, "g", "z", 600)),
                (2, meta(3, "a", "c", 900)),
                (2, meta(4, "d", "f", 900)),
                (2, meta(5, "h", "i", 900)),
            ],
            Some((1, &[2], &[5])),
        );
    }

    #[test]
    fn mostly_tombstones_are_due_wherever_they_are() {
        let mut dead = meta(1, "a", "f", 10);
        dead.tombstones = 9;
        check(&[(1, dead.clone()), (2, meta(2, "a", "b", 10))], Some((1, &[1], &[2])));
        // With few files in L0, too, and where nothing lies below. An edit alone would not remove the tombstones.
        for level in [0, 1, 3] {
            let picked =
                pick(&version(&[(level, dead.clone())]), &LIMITS, Effort::Due, &Stuck::new()).unwrap();
            assert!(!picked.is_move() && picked.level == level, "{picked:?}");
        }
    }

    #[test]
    fn on_request_a_file_of_the_last_level_is_rewritten_if_it_holds_what_nobody_needs() {
        let picked = |file: &SstMeta, up_to| {
            let effort = Effort::Everything { up_to: SeqNo(up_to), now: UnixMillis(50) };
            pick(&version(&[(2, file.clone())]), &LIMITS, effort, &Stuck::new())
                .map(|picked| (picked.level, picked.inputs.len(), picked.overlapping[0].number.0))
        };
        let sound = meta(1, "a", "f", 1_000);
        let first = sound.first.0;
        assert_eq!(picked(&sound, first), None);
        // A single tombstone among many entries is not due by itself.
        let dead = SstMeta { tombstones: 1, entries: 100, ..sound };
        assert_eq!(picked(&dead, first), Some((1, 0, 1)));
        assert_eq!(picked(&dead, first - 1), None, "it was written after the request");
        assert_eq!(pick(&version(&[(2, dead)]), &LIMITS, Effort::Due, &Stuck::new()), None);
    }

    #[test]
    fn l0_with_many_files_goes_before_a_level_that_is_far_over_its_size() {
        let mut files = vec![(1, meta(1, "a", "z", 100_000))];
        files.extend((2..9).map(|number| (0, meta(number, "b", "m", 10))));
        assert_eq!(pick(&version(&files), &LIMITS, Effort::Due, &Stuck::new()).unwrap().level, 1);
        files.push((0, meta(9, "b", "m", 10)));
        assert_eq!(pick(&version(&files), &LIMITS, Effort::Due, &Stuck::new()).unwrap().level, 0);
    }

    #[test]
    fn a_shard_that_rests_merges_its_upper_levels_into_the_last_one() {
        let files = |l0, l1, l2| {
            let files = [(0, meta(1, "a", "z", l0)), (1, meta(2, "a", "z", l1)), (2, meta(3, "a", "z", l2))];
            files.into_iter().filter(|(_, file)| 0 < file.bytes).collect::<Vec<_>>()
        };
        let level = |files: &[_], rests| {
            let effort = if rests { Effort::Rest } else { Effort::Due };
            pick(&version(files), &LIMITS, effort, &Stuck::new()).map(|picked| picked.level)
        };
        assert_eq!(level(&files(10, 100, 800), false), None);
        assert_eq!(level(&files(10, 100, 800), true), Some(0), "110 bytes are more than an eighth of 800");
        assert_eq!(level(&files(0, 110, 800), true), Some(1));
        assert_eq!(level(&files(10, 80, 800), true), None);
        assert_eq!(level(&files(10, 0, 0), true), None, "one file alone has nothing to merge with");
        let two = [(0, meta(1, "a", "z", 10)), (0, meta(2, "a", "z", 10))];
        assert_eq!(level(&two, true), Some(0));
    }

    #[test]
    fn k1_k2_a_part_of_a_compaction_takes_the_oldest_input_up_to_the_end_of_a_file() {
        let mut files: Vec<_> = (3..7).map(|number| (0, meta(number, "b", "m", 10))).collect();
        files.extend(
            [("a", "c"), ("d", "f"), ("g", "k"), ("l", "z")]
                .iter()
                .enumerate()
                .map(|(index, (smallest, largest))| (1, meta(10 + index as u64, smallest, largest, 10))),
        );
        let whole = pick(&version(&files), &LIMITS, Effort::Due, &Stuck::new()).unwrap();
        assert_eq!((whole.inputs.len(), whole.overlapping.len()), (4, 4));
        assert_eq!(whole.clone().within(80, &Stuck::new()), whole);
        for (bytes, count, split) in
            [(79, 4, None), (49, 3, Some("k")), (30, 2, Some("f")), (1, 1, Some("c"))]
        {
            let part = whole.clone().within(bytes, &Stuck::new());
            assert_eq!((part.inputs[0].number.0, part.inputs.len(), part.overlapping.len()), (3, 1, count));
            assert_eq!(part.split.as_deref(), split.map(str::as_bytes), "{bytes}");
        }
    }

    #[test]
    fn debt_counts_what_is_over_the_limits() {
        let limits = &LIMITS;
        assert_eq!(debt_bytes(&version(&[(1, meta(1, "a", "b", 900))]), limits, &Stuck::new()), 0);
        assert_eq!(
            debt_bytes(
                &version(&[(1, meta(1, "a", "b", 1_500)), (2, meta(2, "a", "b", 10_500))]),
                limits,
                &Stuck::new()
            ),
            1_000
        );
    }
}
