//! The entries of a memtable in key order, made on demand.
//!
//! Entries arrive in the order of their SeqNos. The order is made in steps: a step sorts the next 512 entries into a
//! *run*, or merges 4,096 heads of two neighbouring runs. A [`MemtableSource`] takes the runs that cover its snapshot
//! and merges them as it is read. So a set never pays for order. A scan of a memtable that still takes writes sorts
//! only the entries that it has to see. A flush continues with the runs that scans have left.
//!
//! ```text
//!   records:  0 ········ 511 │ 512 ········ 1023 │ 1024 ········ 1535 │ 1536 … (not ordered yet)
//!   runs:     └── merged into one run of 1024 ──┘ └── run of 512 ────┘
//! ```
//!
//! A head is the place of an entry, and eight bytes of its key: those after the prefix that all keys of the run share.
//! Heads lie side by side in memory, and are compared by these bytes. The keys themselves are read only where these
//! bytes are equal.
//!
//! O1  Every entry up to `ordered` is in exactly one run. Later entries are in no run.
//! O2  Runs are immutable. A source keeps the runs that it began with, while others are sorted, merged and replaced.
//! O3  No version is ever removed from the order. Readers at an older snapshot need the older versions, and a memtable
//!     is short-lived.
//! O4  A memtable lives in an `Rc` from its creation. Freezing it only moves a pointer, so a source that began before
//!     the freeze goes on.
//! O5  The bytes of the order are counted apart from those of the entries ([`Memtable::order_bytes`]).
//!
//! For 380,000 entries, sorting takes about 40 ms and merging them for a flush about 50 ms (`cargo bench --bench designs --
//! memtables`, on the machine of BENCHMARKS.md), in steps of about 50 µs.

use std::cmp::Ordering;
use std::rc::Rc;

use super::{At, Memtable, NONE, Records};
use crate::arena::UNIT_BYTES;
use crate::error::Result;
use crate::key::{Entry, SeqNo, compare};
use crate::source::tournament::Tournament;
use crate::source::{PASSED_MAX, Source, Step};

/// Entries sorted in one step: about 50 µs.
const RUN_ENTRIES: usize = 512;
/// Heads merged in one step: about as long.
const MERGE_HEADS: usize = 4096;

/// The order that has been made so far.
#[derive(Default)]
pub(super) struct Order {
    /// The page of the first entry that is in no run yet, and its offset there.
    page: usize,
    offset: usize,
    /// The last entry that is in a run.
    ordered: SeqNo,
    /// Runs in the order of their entries' SeqNos.
    runs: Vec<Rc<Run>>,
    /// Two neighbouring runs that are being merged.
    merging: Option<Merging>,
}

/// Some entries in order.
struct Run {
    heads: Vec<Head>,
    /// The length of the prefix that all keys of the memtable shared when the run was sorted.
    common: usize,
}

/// An entry in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    /// Eight bytes of the key after the common prefix; a shorter key is padded with zeros.
    prefix: u64,
    /// The place of the record; `NONE` after the last entry.
    place: u32,
}

impl Head {
    const END: Self = Self { prefix: u64::MAX, place: NONE };

    fn order(self, other: Self, records: &Records) -> Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| match (self.place, other.place) {
            (NONE, _) | (_, NONE) => self.place.cmp(&other.place),
            _ => {
                let of = |head: Self| {
                    let entry = records.record(head.place).entry;
                    (entry.key, entry.seqno)
                };
                compare(of(self), of(other))
            }
        })
    }
}

/// Makes heads of a run comparable with those of runs whose keys have fewer bytes in common.
#[derive(Debug, Clone, Copy)]
struct Rebase {
    /// The additional bytes that the keys of the run share, from the highest byte of the number down.
    shared: u64,
    /// By how many bits the prefix moves down to make room for `shared`.
    bits: u32,
}

impl Rebase {
    /// From the common prefix of `run` to one of `common` bytes.
    fn new(run: &Run, common: usize, records: &Records) -> Self {
        let bytes = run.common - common;
        let shared = match run.heads.first() {
            Some(head) if 0 < bytes => prefix(&records.key_at(head.place)[common..run.common]),
            _ => 0,
        };
        Self { shared, bits: u32::try_from(8 * bytes).unwrap_or(u32::MAX) }
    }

    fn head(self, head: Head) -> Head {
        Head { prefix: self.shared | head.prefix.checked_shr(self.bits).unwrap_or(0), ..head }
    }
}

/// The runs `first` and `first + 1`, while they are merged into one run.
struct Merging {
    first: usize,
    taken: [usize; 2],
    merged: Run,
}

impl Order {
    pub(super) fn bytes(&self) -> usize {
        let heads = self.runs.iter().map(|run| run.heads.capacity()).sum::<usize>();
        let merged = self.merging.as_ref().map_or(0, |merging| merging.merged.heads.capacity());
        (heads + merged) * size_of::<Head>()
    }

    /// Takes a step towards an order that covers `up_to`. Returns `false` if there was nothing to do.
    fn step(&mut self, records: &Records, last: SeqNo, up_to: SeqNo, wants: Wants) -> bool {
        if wants == Wants::FewRuns && self.merge_some(records) {
            return true;
        }
        self.ordered < up_to.min(last) && self.sort_some(records)
    }

    /// Sorts the next entries into a run.
    fn sort_some(&mut self, records: &Records) -> bool {
        let mut heads = Vec::with_capacity(RUN_ENTRIES);
        while let Some(page) = records.pages.get(self.page)
            && heads.len() < RUN_ENTRIES
        {
            if page.len() <= self.offset {
                if self.page + 1 == records.pages.len() {
                    break; // the next entry may still be added to this page
                }
                (self.page, self.offset) = (self.page + 1, 0);
                continue;
            }
            let place = At { page: self.page, offset: self.offset }.number();
            let record = records.record(place);
            heads.push(Head { prefix: prefix(&record.entry.key[records.common..]), place });
            self.ordered = record.entry.seqno;
            self.offset += record.bytes.next_multiple_of(UNIT_BYTES);
        }
        if heads.is_empty() {
            return false;
        }
        heads.sort_unstable_by(|a, b| a.order(*b, records));
        self.runs.push(Rc::new(Run { heads, common: records.common }));
        true
    }

    /// Merges some more neighbouring runs of similar length, if there are any.
    fn merge_some(&mut self, records: &Records) -> bool {
        let mut left = MERGE_HEADS;
        while 0 < left && (self.merging.is_some() || self.begin_merge()) {
            left = self.merge(records, left);
        }
        left < MERGE_HEADS
    }

    /// Begins to merge the shortest two neighbouring runs of similar length. Returns `false` if there are no such runs.
    fn begin_merge(&mut self) -> bool {
        let bytes = |pair: &[Rc<Run>]| pair[0].heads.len() + pair[1].heads.len();
        // A run that is at least twice as long as the next run waits until the next run has grown. So the number of
        // merges of an entry grows only with the logarithm of the number of entries.
        let pairs = self.runs.windows(2).enumerate();
        let similar = pairs.filter(|(_, pair)| pair[0].heads.len() < 2 * pair[1].heads.len());
        let Some((first, pair)) = similar.min_by_key(|(_, pair)| bytes(pair)) else { return false };
        let common = pair[0].common.min(pair[1].common);
        let merged = Run { heads: Vec::with_capacity(bytes(pair)), common };
        self.merging = Some(Merging { first, taken: [0, 0], merged });
        true
    }

    /// Merges at most `left` more heads. Returns how many of `left` were not used.
    fn merge(&mut self, records: &Records, mut left: usize) -> usize {
        let Self { runs, merging, .. } = self;
        let Some(Merging { first, taken, merged }) = merging else { return left };
        let pair = [&runs[*first], &runs[*first + 1]];
        let rebase = pair.map(|run| Rebase::new(run, merged.common, records));
        let head = |taken: &[usize; 2], side: usize| {
            pair[side].heads.get(taken[side]).map_or(Head::END, |head| rebase[side].head(*head))
        };
        while 0 < left {
            let heads = [head(taken, 0), head(taken, 1)];
            let side = usize::from(heads[1].order(heads[0], records).is_lt());
            if heads[side].place == NONE {
                let merged = Run { heads: std::mem::take(&mut merged.heads), common: merged.common };
                runs.splice(*first..*first + 2, [Rc::new(merged)]);
                *merging = None;
                break;
            }
            merged.heads.push(heads[side]);
            taken[side] += 1;
            left -= 1;
        }
        left
    }
}

/// What a source of a memtable asks of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// Sorted runs, however many: for a single walk over all entries, as in a flush.
    SortedRuns,
    /// Few runs, merged as needed: for walks that begin at many keys, as in scans.
    FewRuns,
}

/// The entries of a memtable up to a snapshot, in order.
pub struct MemtableSource {
    memtable: Rc<Memtable>,
    snapshot: SeqNo,
    wants: Wants,
    /// Where to begin, once the order is made.
    from: Vec<u8>,
    /// The runs, once the order covers the snapshot.
    cursors: Option<Cursors>,
}

struct Cursors {
    runs: Vec<(Rc<Run>, Rebase)>,
    /// The next head of each run.
    next: Vec<usize>,
    heads: Vec<Head>,
    tournament: Tournament,
    /// The entry that the source stands at.
    current: u32,
}

impl MemtableSource {
    /// The entries of `memtable` at or below `snapshot`.
    pub fn new(memtable: Rc<Memtable>, snapshot: SeqNo, wants: Wants) -> Self {
        Self { memtable, snapshot, wants, from: Vec::new(), cursors: None }
    }
}

impl Cursors {
    /// Cursors in front of the first entry at or above `from`.
    fn new(runs: &[Rc<Run>], from: &[u8], records: &Records) -> Self {
        let common = runs.iter().map(|run| run.common).min().unwrap_or_default();
        let runs: Vec<_> = runs.iter().map(|run| (run.clone(), Rebase::new(run, common, records))).collect();
        let begin = |(run, _): &(Rc<Run>, Rebase)| {
            if from.is_empty() {
                0
            } else {
                run.heads.partition_point(|head| records.key_at(head.place) < from)
            }
        };
        let mut cursors = Self {
            next: runs.iter().map(begin).collect(),
            heads: Vec::with_capacity(runs.len()),
            runs,
            tournament: Tournament::default(),
            current: NONE,
        };
        for run in 0..cursors.runs.len() {
            let head = cursors.take(run);
            cursors.heads.push(head);
        }
        let heads = &cursors.heads;
        cursors.tournament = Tournament::new(heads.len(), |a, b| heads[a].order(heads[b], records).is_lt());
        cursors
    }

    /// The next head of a run.
    fn take(&mut self, run: usize) -> Head {
        let (heads, rebase) = &self.runs[run];
        let head = heads.heads.get(self.next[run]).map_or(Head::END, |head| rebase.head(*head));
        self.next[run] += 1;
        head
    }

    /// Moves to the next entry. Returns `false` at the end.
    fn advance(&mut self, records: &Records) -> bool {
        let Some(winner) = self.tournament.winner() else { return false };
        self.current = self.heads[winner].place;
        if self.current == NONE {
            return false;
        }
        self.heads[winner] = self.take(winner);
        let Self { heads, tournament, .. } = self;
        tournament.replay(|a, b| heads[a].order(heads[b], records).is_lt());
        true
    }
}

impl Source for MemtableSource {
    fn seek(&mut self, key: &[u8]) {
        self.from = key.to_vec();
        self.cursors = None;
    }

    fn step(&mut self) -> Result<Step> {
        let records = self.memtable.records.borrow();
        let cursors = match &mut self.cursors {
            Some(cursors) => cursors,
            none => {
                let order = self.memtable.order.borrow();
                if order.ordered < self.snapshot.min(self.memtable.last()) {
                    return Ok(Step::Need);
                }
                none.insert(Cursors::new(&order.runs, &self.from, &records)) // O2
            }
        };
        for _ in 0..PASSED_MAX {
            if !cursors.advance(&records) {
                return Ok(Step::End);
            }
            if records.record(cursors.current).entry.seqno <= self.snapshot {
                return Ok(Step::Entry);
            }
        }
        Ok(Step::Pause) // many entries are above the snapshot
    }

    fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
        let cursors = self.cursors.as_ref().expect("the last step returned an entry");
        assert!(cursors.current != NONE, "the last step returned an entry");
        read(self.memtable.records.borrow().record(cursors.current).entry)
    }

    async fn supply(&mut self) -> Result<()> {
        let Self { memtable, snapshot, wants, .. } = self;
        memtable.order.borrow_mut().step(&memtable.records.borrow(), memtable.last(), *snapshot, *wants);
        Ok(())
    }
}

/// The first eight bytes, as a number that sorts as the bytes do. Fewer bytes are padded with zeros.
fn prefix(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(padded)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BTreeMap;

    use futures_executor::block_on;
    use proptest::prelude::*;

    use super::super::tests::{KEY_HASH, get, insert};
    use super::*;
    use crate::key::{EntryKind, UnixMillis};

    type VersionedKey = (Vec<u8>, Reverse<u64>);
    type Model = BTreeMap<VersionedKey, (EntryKind, Vec<u8>)>;
    type Entries = Vec<(VersionedKey, (EntryKind, Vec<u8>))>;

    fn walk(mut source: MemtableSource) -> Entries {
        let mut found = Vec::new();
        while block_on(source.advance()).unwrap() {
            found.push(source.read(|entry| {
                ((entry.key.to_vec(), Reverse(entry.seqno.0)), (entry.kind, entry.value.to_vec()))
            }));
        }
        found
    }

    fn expected(model: &Model, from: &[u8], snapshot: u64) -> Entries {
        let from = (from.to_vec(), Reverse(u64::MAX));
        let seen = model.range(from..).filter(|((_, seqno), _)| seqno.0 <= snapshot);
        seen.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn runs(memtable: &Memtable) -> Vec<usize> {
        memtable.order.borrow().runs.iter().map(|run| run.heads.len()).collect()
    }

    /// Checks O1, and that every run is sorted both by its heads and by its keys.
    fn check_runs(memtable: &Memtable) {
        let (records, order) = (memtable.records.borrow(), memtable.order.borrow());
        let mut seen = Vec::new();
        for run in &order.runs {
            assert!(run.heads.is_sorted_by(|a, b| a.order(*b, &records).is_lt()));
            let entries: Vec<_> = run.heads.iter().map(|head| records.record(head.place).entry).collect();
            assert!(entries.is_sorted_by(|a, b| compare((a.key, a.seqno), (b.key, b.seqno)).is_lt()));
            seen.extend(entries.iter().map(|entry| entry.seqno.0));
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=order.ordered.0).collect::<Vec<_>>(), "O1");
    }

    proptest! {
        /// Keys with a common prefix that becomes shorter, scans in between, and a walk over everything at the end.
        #[test]
        fn o1_o2_walks_at_any_snapshot_and_from_any_key_agree_with_a_sorted_map(
            prefix in prop::collection::vec(0_u8..2, 0..20),
            writes in prop::collection::vec(
                (0_usize..24, prop::collection::vec(0_u8..3, 0..12), prop::option::of(0_u8..255)), 1..1_800),
            scans in prop::collection::vec((0_usize..1_800, prop::bool::ANY), 0..4),
        ) {
            let memtable = Rc::new(Memtable::new(KEY_HASH));
            let mut model = Model::new();
            let mut begun = Vec::new();
            let mut common = usize::MAX;
            for (index, (kept, key, value)) in writes.iter().enumerate() {
                let seqno = index as u64 + 1;
                // Most keys share the whole prefix.
                common = common.min(if *kept == 0 { key.len() } else { usize::MAX });
                let key = [&prefix[..prefix.len().min(common)], key].concat();
                let kind = match value {
                    None => EntryKind::TOMBSTONE,
                    Some(value) => EntryKind::value((value % 3 == 0).then_some(UnixMillis(u64::from(*value) << 33))),
                };
                let value: Vec<u8> = value.iter().copied().collect();
                insert(&memtable, &key, seqno, kind, &value);
                model.insert((key, Reverse(seqno)), (kind, value));
                for (at, few) in &scans {
                    if *at == index {
                        let wants = if *few { Wants::FewRuns } else { Wants::SortedRuns };
                        let mut source = MemtableSource::new(memtable.clone(), SeqNo(seqno), wants);
                        // Some sources get their runs now, and the others later.
                        while index % 2 == 0 && source.step().unwrap() == Step::Need {
                            block_on(source.supply()).unwrap();
                        }
                        if index % 2 == 0 {
                            source.seek(b"");
                        }
                        begun.push((source, seqno));
                    }
                }
                if index % 97 == 0 {
                    check_runs(&memtable);
                }
            }
            for (source, snapshot) in begun {
                prop_assert_eq!(walk(source), expected(&model, b"", snapshot));
            }
            let last = writes.len() as u64;
            for wants in [Wants::FewRuns, Wants::SortedRuns] {
                for (snapshot, from) in [(last, &prefix[..]), (last / 2, b""), (u64::MAX, &[1]), (0, b"")] {
                    let mut source = MemtableSource::new(memtable.clone(), SeqNo(snapshot), wants);
                    source.seek(from);
                    prop_assert_eq!(walk(source), expected(&model, from, snapshot));
                }
            }
            check_runs(&memtable);
            for (key, Reverse(seqno)) in model.keys() {
                prop_assert_eq!(get(&memtable, key, *seqno).map(|found| found.0), Some(*seqno));
            }
        }
    }

    fn fill(memtable: &Memtable, from: u64, to: u64) {
        for number in from..to {
            let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            insert(memtable, &key, number, EntryKind::VALUE, b"v");
        }
    }

    #[test]
    fn o2_o4_a_source_keeps_the_runs_that_it_began_with() {
        let memtable = Rc::new(Memtable::new(KEY_HASH));
        fill(&memtable, 1, 2_000);
        let mut source = MemtableSource::new(memtable.clone(), SeqNo(1_500), Wants::SortedRuns);
        while source.step().unwrap() == Step::Need {
            block_on(source.supply()).unwrap();
        }
        let mut count = 1;
        fill(&memtable, 2_000, 4_000);
        // Another reader merges the runs meanwhile.
        assert_eq!(walk(MemtableSource::new(memtable.clone(), SeqNo(u64::MAX), Wants::FewRuns)).len(), 3_999);
        while source.step().unwrap() == Step::Entry {
            count += 1;
        }
        assert_eq!(count, 1_500);
    }

    #[test]
    fn o3_versions_that_were_overwritten_stay_in_the_order() {
        let memtable = Rc::new(Memtable::new(KEY_HASH));
        for seqno in 1..=3_000 {
            insert(&memtable, b"key", seqno, EntryKind::VALUE, b"");
        }
        for snapshot in [3_000, 1_700, 1] {
            let found = walk(MemtableSource::new(memtable.clone(), SeqNo(snapshot), Wants::FewRuns));
            assert_eq!(found.len() as u64, snapshot);
        }
    }

    #[test]
    fn o5_order_is_counted_apart_and_merging_keeps_the_runs_few() {
        let memtable = Rc::new(Memtable::new(KEY_HASH));
        fill(&memtable, 1, 40_001);
        let (entries, heads) = (memtable.bytes(), 40_000 * size_of::<Head>());
        walk(MemtableSource::new(memtable.clone(), SeqNo(u64::MAX), Wants::SortedRuns));
        assert_eq!(memtable.bytes(), entries);
        assert!((heads..heads + heads / 8).contains(&memtable.order_bytes()));
        assert_eq!(runs(&memtable).len(), 40_000_usize.div_ceil(RUN_ENTRIES));
        let mut source = MemtableSource::new(memtable.clone(), SeqNo(u64::MAX), Wants::FewRuns);
        let mut steps = 0;
        while memtable.order.borrow_mut().step(
            &memtable.records.borrow(),
            memtable.last(),
            SeqNo(u64::MAX),
            Wants::FewRuns,
        ) {
            steps += 1;
            assert!(memtable.order_bytes() <= 2 * (heads + heads / 8), "O5");
        }
        assert!(steps < 200, "{steps} steps");
        assert!(runs(&memtable).len() < 10, "{:?}", runs(&memtable));
        source.seek(b"");
        assert_eq!(walk(source).len(), 40_000);
    }
}
