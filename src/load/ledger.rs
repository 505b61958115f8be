//! What each key may hold: the knowledge by which answers are judged. Pure, and shared by all load threads.
//!
//! Every write of a run has a version: the number of writes to its key so far, in the order in which they were sent.
//! Writes that are under way at the same time may take effect in any order. So what a key holds is known exactly only
//! if the writes to that key do not overlap.
//!
//! ```text
//!   writes of a key    1 ──────┤   2 ───────┤   3 ─────────────────┤   5 ────┤
//!                                               3 begins alone: base(3) = 2
//!                                                      4 begins while 3 is under way: base(4) = 2
//!                                                                      5 begins while 4 is under way: base(5) = 3
//! ```
//!
//! - **L1** The base of a write is the last version before all writes that were under way when it began. All versions
//!   up to the base had ended by then. Once the write is acknowledged, no read that begins sees `base` or anything
//!   older.
//! - **L2** The floor of a key is the greatest `base + 1` of its acknowledged writes. A read may show any version from
//!   the floor when the read began to the last version sent when it ended, and nothing else. It may show "not found"
//!   only if one of these versions is a delete, or if nothing is known to be there.
//! - **L3** A write that was refused or never answered does not change the floor; whether it took effect is not known.
//! - **L4** A version that was read has taken effect. While its write is under way, reading it raises the floor as if
//!   the write were acknowledged. The key need not hold this version, even if it was sent last: another write that was
//!   under way at the same time may have taken effect after it. A value that does not hold its version raises nothing:
//!   it may be an older value with the same bytes.
//!
//! If a connection waits for each answer, or if two writes of one key are rarely under way at a time, the floor is
//! exact: it is the last version. Otherwise the floor lags by as many versions as are under way together.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keys are divided into this many groups; each group has one lock.
const STRIPES: u64 = 256;

/// What all keys may hold.
#[derive(Debug)]
pub struct Ledger {
    stripes: Box<[Mutex<Stripe>]>,
    /// Keys below this number existed before the run.
    filled: u64,
}

#[derive(Debug, Default)]
struct Stripe {
    keys: Vec<Entry>,
    /// The writes under way of each key that has any, in the order in which they were sent.
    under_way: HashMap<u64, Vec<UnderWay>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    /// L2; 0 if no write of this run is known to have taken effect.
    floor: u32,
    /// The version sent last.
    sent: u32,
    /// The greatest version that is a delete; 0 if there is none.
    deleted: u32,
}

#[derive(Debug, Clone, Copy)]
struct UnderWay {
    version: u32,
    base: u32,
}

/// What was known of a key when a read began.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    floor: u32,
    may_be_missing: bool,
    /// Whether the key was certainly deleted: its last version is a delete, and no other write can have come after it.
    deleted_last: bool,
    sent: u32,
    /// Whether this run, or an earlier run that it relies on, has written the key.
    known: bool,
}

impl Before {
    /// Whether anything is known of what the key holds. If nothing is, any program may have written it.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// The least version that the key may still show; 0 if no version of this run is certain.
    pub fn floor(&self) -> u32 {
        self.floor
    }
}

/// A write that is under way.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    /// The version of the write, from 1.
    pub version: u32,
    base: u32,
    before: Before,
}

/// What an answer says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The key does not exist.
    Missing,
    /// The key holds this version of this run.
    Version(u32),
    /// The key holds a value that several versions may have. The latest of this run that may have it is this one.
    AtMost(u32),
    /// The key holds a value that an earlier run has written.
    Earlier,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An acknowledged write is missing.
    Lost,
    /// The answer shows something that was never written.
    Wrong,
}

impl Ledger {
    /// A ledger of `count` keys, of which the first `filled` hold something from an earlier run.
    pub fn new(count: u64, filled: u64) -> Self {
        let stripe = |index| {
            let keys = (count + STRIPES - 1 - index) / STRIPES;
            Mutex::new(Stripe { keys: vec![Entry::default(); keys as usize], under_way: HashMap::new() })
        };
        Self { stripes: (0..STRIPES).map(stripe).collect(), filled }
    }

    fn stripe(&self, number: u64) -> MutexGuard<'_, Stripe> {
        // A panic ends the process, so no thread meets a poisoned lock.
        self.stripes[(number % STRIPES) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn before(&self, number: u64, entry: &Entry) -> Before {
        Before {
            floor: entry.floor,
            may_be_missing: match entry.floor {
                0 => self.filled <= number || 0 < entry.deleted,
                floor => floor <= entry.deleted,
            },
            deleted_last: 0 < entry.floor && entry.floor == entry.deleted && entry.floor == entry.sent,
            sent: entry.sent,
            known: 0 < entry.floor || number < self.filled,
        }
    }

    /// Begins a read: returns what is known of the key.
    pub fn begin_read(&self, number: u64) -> Before {
        let stripe = self.stripe(number);
        self.before(number, &stripe.keys[(number / STRIPES) as usize])
    }

    /// The version of a key that was sent last.
    pub fn sent(&self, number: u64) -> u32 {
        self.stripe(number).keys[(number / STRIPES) as usize].sent
    }

    /// Ends a read: judges what it has `seen` (L2, L4).
    pub fn end_read(&self, number: u64, before: Before, seen: Seen) -> Option<Fault> {
        let mut stripe = self.stripe(number);
        let Stripe { keys, under_way } = &mut *stripe;
        let entry = &mut keys[(number / STRIPES) as usize];
        if let Seen::Version(version) = seen {
            let writes = under_way.get(&number).map(Vec::as_slice).unwrap_or_default();
            let certain =
                writes.iter().find(|write| write.version == version).map_or(0, |write| write.base + 1);
            entry.floor = entry.floor.max(certain); // L4
        }
        let fault = |wrong: bool, fault| wrong.then_some(fault);
        match seen {
            // A delete that was sent during the read explains the missing key.
            Seen::Missing => fault(!before.may_be_missing && entry.deleted <= before.sent, Fault::Lost),
            Seen::Version(version) | Seen::AtMost(version) if entry.sent < version => Some(Fault::Wrong),
            Seen::Version(version) | Seen::AtMost(version) => fault(version < before.floor, Fault::Lost),
            Seen::Earlier => fault(0 < before.floor, Fault::Lost),
        }
    }

    /// Begins a write. Returns `None`, and the write must not be sent, if the key has no version left.
    pub fn begin_write(&self, number: u64, delete: bool) -> Option<Write> {
        let mut stripe = self.stripe(number);
        let Stripe { keys, under_way } = &mut *stripe;
        let entry = &mut keys[(number / STRIPES) as usize];
        let version = entry.sent.checked_add(1)?;
        let before = self.before(number, entry);
        let writes = under_way.entry(number).or_default();
        let base = writes.first().map_or(entry.sent, |oldest| oldest.version - 1); // L1
        writes.push(UnderWay { version, base });
        entry.sent = version;
        if delete {
            entry.deleted = version;
        }
        Some(Write { version, base, before })
    }

    /// Ends a write, `acknowledged` or not (L1, L3).
    pub fn end_write(&self, number: u64, write: Write, acknowledged: bool) {
        let mut stripe = self.stripe(number);
        let Stripe { keys, under_way } = &mut *stripe;
        let entry = &mut keys[(number / STRIPES) as usize];
        if acknowledged {
            entry.floor = entry.floor.max(write.base + 1);
        }
        if let Some(writes) = under_way.get_mut(&number) {
            writes.retain(|other| other.version != write.version);
            if writes.is_empty() {
                under_way.remove(&number);
            }
        }
    }

    /// Judges the answer to a delete: whether the key was `found`.
    pub fn judge_delete(&self, number: u64, write: Write, found: bool) -> Option<Fault> {
        let stripe = self.stripe(number);
        let entry = &stripe.keys[(number / STRIPES) as usize];
        // Another write that was under way at the same time explains either answer.
        let alone = entry.sent == write.version && write.base + 1 == write.version;
        match found {
            false if alone && !write.before.may_be_missing => Some(Fault::Lost),
            true if alone && write.before.deleted_last => Some(Fault::Wrong),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const KEY: u64 = 300;

    fn read(ledger: &Ledger, seen: Seen) -> Option<Fault> {
        ledger.end_read(KEY, ledger.begin_read(KEY), seen)
    }

    fn begin(ledger: &Ledger, delete: bool) -> Write {
        ledger.begin_write(KEY, delete).unwrap()
    }

    /// A write that is acknowledged before anything else begins.
    fn write(ledger: &Ledger, delete: bool) -> u32 {
        let write = begin(ledger, delete);
        ledger.end_write(KEY, write, true);
        write.version
    }

    #[test]
    fn a_key_written_one_at_a_time_is_known_exactly() {
        let ledger = Ledger::new(301, 0);
        assert_eq!(read(&ledger, Seen::Missing), None);
        for version in 1..=3 {
            let write = begin(&ledger, false);
            assert_eq!(write.version, version);
            ledger.end_write(KEY, write, true);
            assert_eq!(read(&ledger, Seen::Version(version)), None);
            assert_eq!(read(&ledger, Seen::Version(version - 1)), Some(Fault::Lost));
            assert_eq!(read(&ledger, Seen::Version(version + 1)), Some(Fault::Wrong));
            assert_eq!(read(&ledger, Seen::Missing), Some(Fault::Lost));
            assert_eq!(read(&ledger, Seen::Earlier), Some(Fault::Lost));
        }
        let delete = begin(&ledger, true);
        assert_eq!(ledger.judge_delete(KEY, delete, true), None);
        assert_eq!(ledger.judge_delete(KEY, delete, false), Some(Fault::Lost));
        ledger.end_write(KEY, delete, true);
        assert_eq!(read(&ledger, Seen::Missing), None);
        assert_eq!(read(&ledger, Seen::Version(3)), Some(Fault::Lost));
        let delete = begin(&ledger, true);
        assert_eq!(ledger.judge_delete(KEY, delete, false), None);
        assert_eq!(ledger.judge_delete(KEY, delete, true), Some(Fault::Wrong));
    }

    /// A write, as the server of [`World`] sees it.
    #[derive(Clone, Copy)]
    struct Sent {
        write: Write,
        delete: bool,
        /// Nothing else was under way when it began.
        alone: bool,
        took_effect: bool,
    }

    /// A read, and what the server has found for it.
    struct Reading {
        before: Before,
        found: Option<Seen>,
        /// The last write that was acknowledged before the read began, of those that began alone.
        certain: u32,
    }

    /// A key, a server that is right about it, and clients that overlap.
    struct World {
        ledger: Ledger,
        writes: Vec<Sent>,
        reads: Vec<Reading>,
        holds: Seen,
        certain: u32,
    }

    impl World {
        /// Takes one step, if it is possible. Returns a read that has ended.
        fn step(&mut self, random: &mut Random) -> Option<Reading> {
            let mut choose = |count: usize| random.below(count.max(1) as u64) as usize;
            match choose(6) {
                0 if self.writes.len() < 4 => {
                    let (delete, alone) = (choose(4) == 0, self.writes.is_empty());
                    let write = begin(&self.ledger, delete);
                    self.writes.push(Sent { write, delete, alone, took_effect: false });
                }
                1 if !self.writes.is_empty() => {
                    let index = choose(self.writes.len());
                    let sent = &mut self.writes[index];
                    if !std::mem::replace(&mut sent.took_effect, true) {
                        self.holds =
                            if sent.delete { Seen::Missing } else { Seen::Version(sent.write.version) };
                    }
                }
                2 if !self.writes.is_empty() => {
                    let sent = self.writes.swap_remove(choose(self.writes.len()));
                    // A write that took no effect was refused. One that took effect may seem to be refused.
                    let acknowledged = sent.took_effect && choose(4) != 0;
                    self.ledger.end_write(KEY, sent.write, acknowledged);
                    if acknowledged && sent.alone {
                        self.certain = self.certain.max(sent.write.version);
                    }
                }
                3 if self.reads.len() < 4 => {
                    let before = self.ledger.begin_read(KEY);
                    self.reads.push(Reading { before, found: None, certain: self.certain });
                }
                4 if !self.reads.is_empty() => {
                    let index = choose(self.reads.len());
                    self.reads[index].found.get_or_insert(self.holds);
                }
                5 if !self.reads.is_empty() => {
                    let index = choose(self.reads.len());
                    if self.reads[index].found.is_some() {
                        return Some(self.reads.swap_remove(index));
                    }
                }
                _ => {}
            }
            None
        }
    }

    #[test]
    fn b2_a_read_that_shows_less_than_was_acknowledged_before_it_is_noticed_and_no_other_is() {
        let (mut ended, mut stale) = (0, 0);
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let (writes, reads, ledger) = (Vec::new(), Vec::new(), Ledger::new(301, 0));
            let mut world = World { ledger, writes, reads, holds: Seen::Missing, certain: 0 };
            for step in 0..500 {
                let Some(Reading { before, found, certain }) = world.step(&mut random) else { continue };
                ended += 1;
                // What a wrong server might have answered.
                let judge = |seen| world.ledger.end_read(KEY, before, seen);
                for older in 1..certain {
                    stale += 1;
                    assert_eq!(judge(Seen::Version(older)), Some(Fault::Lost), "seed {seed}, step {step}");
                }
                let never_sent = world.ledger.sent(KEY) + 1;
                assert_eq!(judge(Seen::Version(never_sent)), Some(Fault::Wrong), "seed {seed}, step {step}");
                assert_eq!(judge(found.unwrap()), None, "seed {seed}, step {step}: {found:?}");
            }
        }
        assert!(1_000 < ended && 1_000 < stale, "{ended} reads, {stale} stale answers");
    }

    #[test]
    fn l1_writes_under_way_together_may_end_in_any_order() {
        let ledger = Ledger::new(301, 0);
        write(&ledger, false);
        let second = begin(&ledger, false);
        let third = begin(&ledger, false);
        let before = ledger.begin_read(KEY);
        ledger.end_write(KEY, third, true);
        for version in [2, 3] {
            assert_eq!(read(&ledger, Seen::Version(version)), None);
        }
        assert_eq!(read(&ledger, Seen::Version(1)), Some(Fault::Lost));
        assert_eq!(
            ledger.end_read(KEY, before, Seen::Version(1)),
            None,
            "the read began before the acknowledgement"
        );
        ledger.end_write(KEY, second, true);
        assert_eq!(read(&ledger, Seen::Version(2)), None, "version 2 may have taken effect last");
        write(&ledger, false);
        assert_eq!(read(&ledger, Seen::Version(3)), Some(Fault::Lost), "no other write was under way with 4");
    }

    #[test]
    fn l1_a_key_that_is_never_quiet_is_known_up_to_what_was_under_way() {
        let ledger = Ledger::new(301, 0);
        let mut last = begin(&ledger, false);
        for _ in 0..10 {
            let next = begin(&ledger, false);
            ledger.end_write(KEY, last, true);
            last = next;
        }
        // Version 10 has ended; version 9 was under way when it began.
        assert_eq!(read(&ledger, Seen::Version(8)), Some(Fault::Lost));
        for version in [9, 10, 11] {
            assert_eq!(read(&ledger, Seen::Version(version)), None);
        }
    }

    #[test]
    fn l2_a_delete_that_comes_and_goes_during_a_read_explains_a_missing_key() {
        let ledger = Ledger::new(301, 0);
        write(&ledger, false);
        let before = ledger.begin_read(KEY);
        assert_eq!(ledger.end_read(KEY, before, Seen::Missing), Some(Fault::Lost));
        write(&ledger, true);
        write(&ledger, false);
        assert_eq!(ledger.end_read(KEY, before, Seen::Missing), None);
        assert_eq!(read(&ledger, Seen::Missing), Some(Fault::Lost));
    }

    #[test]
    fn l4_what_was_read_does_not_go_away_again() {
        let ledger = Ledger::new(301, 0);
        write(&ledger, false);
        let under_way = begin(&ledger, false);
        assert_eq!(read(&ledger, Seen::Version(1)), None);
        assert_eq!(read(&ledger, Seen::Version(under_way.version)), None);
        assert_eq!(read(&ledger, Seen::Version(1)), Some(Fault::Lost));
    }

    #[test]
    fn l4_the_version_sent_last_need_not_be_the_one_that_stays() {
        let ledger = Ledger::new(301, 0);
        let (first, second) = (begin(&ledger, false), begin(&ledger, false));
        let before = ledger.begin_read(KEY);
        // The server applies the second write, answers the read, and applies the first.
        ledger.end_write(KEY, second, true);
        ledger.end_write(KEY, first, true);
        assert_eq!(ledger.end_read(KEY, before, Seen::Version(second.version)), None);
        assert_eq!(read(&ledger, Seen::Version(first.version)), None);
    }

    #[test]
    fn l4_a_value_that_does_not_say_its_version_proves_none() {
        let ledger = Ledger::new(301, 0);
        let first = write(&ledger, false);
        let before = ledger.begin_read(KEY);
        let second = write(&ledger, false);
        let third = begin(&ledger, false);
        // The answer is the first version, which has the same bytes as the third and comes late.
        assert_eq!(ledger.end_read(KEY, before, Seen::AtMost(third.version)), None);
        assert_eq!(read(&ledger, Seen::Version(second)), None, "the third has not taken effect");
        assert_eq!(read(&ledger, Seen::AtMost(first)), Some(Fault::Lost));
        assert_eq!(read(&ledger, Seen::AtMost(4)), Some(Fault::Wrong));
    }

    #[test]
    fn l3_a_refused_write_may_be_there_or_not() {
        let ledger = Ledger::new(301, 0);
        for acknowledged in [true, false] {
            let write = begin(&ledger, false);
            ledger.end_write(KEY, write, acknowledged);
        }
        assert_eq!(read(&ledger, Seen::Version(1)), None);
        assert_eq!(read(&ledger, Seen::Version(2)), None);
        assert_eq!(read(&ledger, Seen::Missing), Some(Fault::Lost));
    }

    #[test]
    fn a_key_has_so_many_versions_and_no_more() {
        let ledger = Ledger::new(301, 0);
        ledger.stripe(KEY).keys[(KEY / STRIPES) as usize].sent = u32::MAX - 1;
        assert_eq!(begin(&ledger, false).version, u32::MAX);
        assert!(ledger.begin_write(KEY, false).is_none());
    }

    #[test]
    fn keys_of_an_earlier_run_are_there_whatever_their_version() {
        let ledger = Ledger::new(1000, 301);
        assert_eq!(read(&ledger, Seen::Earlier), None);
        assert_eq!(read(&ledger, Seen::Missing), Some(Fault::Lost));
        assert_eq!(ledger.end_read(301, ledger.begin_read(301), Seen::Missing), None);
    }
}
