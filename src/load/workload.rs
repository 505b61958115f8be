//! What a run does: a table of workloads, and the stream of operations that follows from a workload. Pure.
//!
//! The mixes A to D and F are those of YCSB (Cooper et al., "Benchmarking cloud serving systems", SoCC 2010). E needs
//! scans, which the server does not offer. A read-modify-write counts as its read and its write; YCSB counts it once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::choose::{Access, Chooser};
use super::data::Key;
use crate::random::Random;

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Write the next key in order.
    FillNext,
    /// Write the next key of an order that looks random.
    FillShuffled,
    /// Write any key.
    FillAny,
    /// Read a key.
    Read,
    /// Read a key that was never written and lies between two that were.
    ReadMissing,
    /// Write a key that exists.
    Update,
    /// Write a key that does not exist yet.
    Insert,
    /// Delete a key.
    Delete,
    /// Read a key, and write it when the answer has come.
    ReadThenUpdate,
}

/// Steps, with the share of each in percent.
type Mix = &'static [(u64, Step)];

/// One kind of load.
#[derive(Debug, PartialEq, Eq)]
pub struct Workload {
    /// The name that users type.
    pub name: &'static str,
    /// One line for the help.
    pub about: &'static str,
    /// What to do, and how often.
    mix: Mix,
    /// Which keys to use, unless the user decides.
    access: Option<Access>,
}

/// Every workload.
pub const WORKLOADS: &[Workload] = &[
    fill("fill-seq", "write every key once, in order", &[(100, Step::FillNext)]),
    fill("fill-unique", "write every key once, in a random order", &[(100, Step::FillShuffled)]),
    fill(
        "fill-random",
        "write random keys, as many times as there are keys; some keys are written more than once",
        &[(100, Step::FillAny)],
    ),
    Workload::chosen("overwrite", "write keys that exist", &[(100, Step::Update)]),
    Workload::chosen("read", "read keys that exist", &[(100, Step::Read)]),
    Workload::chosen(
        "read-missing",
        "read keys that do not exist; they lie between those that exist",
        &[(100, Step::ReadMissing)],
    ),
    Workload::chosen("delete", "delete keys", &[(100, Step::Delete)]),
    ycsb(
        "ycsb-a",
        "half reads, half updates, zipfian",
        &[(50, Step::Read), (50, Step::Update)],
        Access::Zipfian,
    ),
    ycsb(
        "ycsb-b",
        "95 % reads, 5 % updates, zipfian",
        &[(95, Step::Read), (5, Step::Update)],
        Access::Zipfian,
    ),
    ycsb("ycsb-c", "reads, zipfian", &[(100, Step::Read)], Access::Zipfian),
    ycsb(
        "ycsb-d",
        "95 % reads of the latest keys, 5 % inserts; ends with twice as many keys",
        &[(95, Step::Read), (5, Step::Insert)],
        Access::Latest,
    ),
    ycsb(
        "ycsb-f",
        "half reads, half reads followed by an update (counted as two), zipfian",
        &[(50, Step::Read), (50, Step::ReadThenUpdate)],
        Access::Zipfian,
    ),
];

const fn fill(name: &'static str, about: &'static str, mix: Mix) -> Workload {
    Workload { name, about, mix, access: Some(Access::Uniform) }
}

const fn ycsb(name: &'static str, about: &'static str, mix: Mix, access: Access) -> Workload {
    Workload { name, about, mix, access: Some(access) }
}

impl Workload {
    const fn chosen(name: &'static str, about: &'static str, mix: Mix) -> Self {
        Self { name, about, mix, access: None }
    }

    /// The workload with that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        WORKLOADS.iter().find(|workload| workload.name == name)
    }

    /// Whether the workload fills an empty store, and so ends by itself.
    pub fn fills(&self) -> bool {
        matches!(self.mix, [(_, Step::FillNext | Step::FillShuffled | Step::FillAny)])
    }

    /// Whether the workload adds keys beyond those that a fill has written.
    pub fn inserts(&self) -> bool {
        self.mix.iter().any(|(_, step)| *step == Step::Insert)
    }
}

/// What to do with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Read it.
    Get,
    /// Read it, and call [`Stream::set_later`] when the answer has come.
    GetThenSet,
    /// Write it.
    Set,
    /// Write it for the first time, and call [`Stream::inserted`] when the answer has come.
    Insert,
    /// Delete it.
    Delete,
}

impl Verb {
    /// Whether the request carries a value.
    pub fn writes_value(self) -> bool {
        matches!(self, Self::Set | Self::Insert)
    }
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// What to do.
    pub verb: Verb,
    /// The key to do it with.
    pub key: Key,
}

/// What the streams of a run share.
#[derive(Debug)]
pub struct Keyspace {
    chooser: Chooser,
    /// Keys that exist, or whose insert is on its way.
    present: AtomicU64,
    /// The greatest number of keys that may exist.
    capacity: u64,
    /// Inserts that have not been answered yet.
    on_their_way: AtomicU64,
}

impl Keyspace {
    /// `count` keys to fill and to request, and room for inserts up to `capacity` keys.
    pub fn new(count: u64, capacity: u64, seed: u64) -> Self {
        let (present, on_their_way) = (AtomicU64::new(count), AtomicU64::new(0));
        Self { chooser: Chooser::new(count, seed), present, capacity, on_their_way }
    }

    /// How many keys were written. For each insert on its way, one of the newest keys is left out.
    fn present(&self) -> u64 {
        let sent = self.present.load(Ordering::Relaxed);
        sent.saturating_sub(self.on_their_way.load(Ordering::Relaxed)).max(self.chooser.count())
    }

    /// The number of a key that does not exist yet; `None` if `capacity` is reached.
    fn insert(&self) -> Option<u64> {
        let next = |present: u64| (present < self.capacity).then_some(present + 1);
        let number = self.present.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        self.on_their_way.fetch_add(1, Ordering::Relaxed);
        Some(number)
    }
}

/// How many operations there are, and which stream takes which.
#[derive(Debug, Clone)]
pub enum Quota {
    /// Closed loop: all streams take from one count, in any order.
    Shared {
        /// Operations begun so far.
        begun: Arc<AtomicU64>,
        /// How many operations may begin.
        limit: u64,
    },
    /// Open loop: every `step`-th operation belongs to this stream, whatever the other streams do.
    InTurn {
        /// The index of the next operation.
        next: u64,
        /// The number of streams.
        step: u64,
        /// All indices are below this.
        limit: u64,
    },
}

impl Quota {
    fn left(&self) -> u64 {
        match self {
            Self::Shared { begun, limit } => limit.saturating_sub(begun.load(Ordering::Relaxed)),
            Self::InTurn { next, step, limit } => limit.saturating_sub(*next).div_ceil(*step),
        }
    }

    /// Leaves no more operations for this stream.
    fn end(&mut self) {
        match self {
            Self::Shared { limit, .. } | Self::InTurn { limit, .. } => *limit = 0,
        }
    }

    /// Takes one more operation and returns its index; `None` if none is left.
    fn take(&mut self) -> Option<u64> {
        match self {
            Self::Shared { begun, limit } => {
                let index = begun.fetch_add(1, Ordering::Relaxed);
                (index < *limit).then_some(index)
            }
            Self::InTurn { next, step, limit } => {
                let index = *next;
                *next = index.saturating_add(*step);
                (index < *limit).then_some(index)
            }
        }
    }
}

/// The operations of one connection.
#[derive(Debug)]
pub struct Stream {
    workload: &'static Workload,
    access: Access,
    keyspace: Arc<Keyspace>,
    quota: Quota,
    random: Random,
    /// Keys to be written next.
    sets: Vec<u64>,
}

impl Stream {
    /// A stream that makes its own random choices. `access` applies to workloads that leave it to the user.
    pub fn new(
        workload: &'static Workload,
        access: Access,
        keyspace: Arc<Keyspace>,
        quota: Quota,
        random: Random,
    ) -> Self {
        let access = workload.access.unwrap_or(access);
        Self { workload, access, keyspace, quota, random, sets: Vec::new() }
    }

    /// Writes the key next: it was read, or its write was refused. This write does not count against the quota.
    pub fn set_later(&mut self, number: u64) {
        self.sets.push(number);
    }

    /// Records that an insert has been answered.
    pub fn inserted(&self) {
        self.keyspace.on_their_way.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many operations are left, unless other streams take them.
    pub fn left(&self) -> u64 {
        (self.sets.len() as u64).saturating_add(self.quota.left())
    }

    /// Whether no operations are left, unless a request under way brings another.
    pub fn is_over(&self) -> bool {
        self.left() == 0
    }

    fn choose(&mut self) -> u64 {
        self.keyspace.chooser.choose(self.access, self.keyspace.present(), &mut self.random)
    }
}

impl Iterator for Stream {
    type Item = Operation;

    fn next(&mut self) -> Option<Operation> {
        let key = |number| Key { number, missing: false };
        if let Some(number) = self.sets.pop() {
            return Some(Operation { verb: Verb::Set, key: key(number) });
        }
        let index = self.quota.take()?;
        let mut share = self.random.below(100);
        let mut step = self.workload.mix[0].1;
        for &(percent, candidate) in self.workload.mix {
            step = candidate;
            match share.checked_sub(percent) {
                Some(rest) => share = rest,
                None => break,
            }
        }
        let (verb, number) = match step {
            Step::FillNext => (Verb::Set, index % self.keyspace.chooser.count()),
            Step::FillShuffled => (Verb::Set, self.keyspace.chooser.shuffled(index)),
            Step::FillAny | Step::Update => (Verb::Set, self.choose()),
            Step::Insert => match self.keyspace.insert() {
                Some(number) => (Verb::Insert, number),
                None => {
                    self.quota.end();
                    return None;
                }
            },
            Step::Read | Step::ReadMissing => (Verb::Get, self.choose()),
            Step::Delete => (Verb::Delete, self.choose()),
            Step::ReadThenUpdate => (Verb::GetThenSet, self.choose()),
        };
        Some(Operation { verb, key: Key { number, missing: step == Step::ReadMissing } })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const COUNT: u64 = 1000;

    fn operations(name: &str, limit: u64) -> Vec<Operation> {
        let keyspace = Arc::new(Keyspace::new(COUNT, COUNT + 20, 7));
        let quota = Quota::Shared { begun: Arc::default(), limit };
        let workload = Workload::named(name).unwrap();
        let stream =
            |seed| Stream::new(workload, Access::Uniform, keyspace.clone(), quota.clone(), Random::new(seed));
        let (mut one, mut other) = (stream(0), stream(1));
        let mut found = Vec::new();
        while !(one.is_over() && other.is_over()) {
            for operation in [one.next(), other.next()].into_iter().flatten() {
                // All inserts except the last two have been answered.
                let inserted = |operation: &&Operation| operation.verb == Verb::Insert;
                if operation.verb == Verb::Insert && 2 <= found.iter().filter(inserted).count() {
                    one.inserted();
                }
                found.push(operation);
            }
        }
        found
    }

    #[test]
    fn shares_are_a_whole_and_names_are_distinct() {
        let mut names = BTreeSet::new();
        for workload in WORKLOADS {
            assert_eq!(workload.mix.iter().map(|(share, _)| share).sum::<u64>(), 100, "{}", workload.name);
            assert!(names.insert(workload.name));
        }
        assert_eq!(Workload::named("nonsense"), None);
    }

    #[test]
    fn fills_write_every_key_once_whoever_takes_which() {
        for name in ["fill-seq", "fill-unique"] {
            let found = operations(name, COUNT);
            let keys: BTreeSet<u64> = found.iter().map(|operation| operation.key.number).collect();
            assert!(keys.into_iter().eq(0..COUNT) && found.len() as u64 == COUNT);
            assert_eq!(found.is_sorted_by_key(|operation| operation.key.number), name == "fill-seq");
        }
        let keys: BTreeSet<u64> =
            operations("fill-random", COUNT).iter().map(|operation| operation.key.number).collect();
        assert!((580..690).contains(&keys.len()), "1 - 1/e of all keys: {}", keys.len());
    }

    #[test]
    fn mixes_keep_their_shares_and_inserts_their_room() {
        let share = |found: &[Operation], verb| {
            found.iter().filter(|operation| operation.verb == verb).count() * 100 / found.len()
        };
        assert!((45..=55).contains(&share(&operations("ycsb-a", 10_000), Verb::Set)));
        assert!((45..=55).contains(&share(&operations("ycsb-f", 10_000), Verb::GetThenSet)));
        assert_eq!(share(&operations("delete", 100), Verb::Delete), 100);
        let found = operations("ycsb-d", 10_000);
        assert!((200..800).contains(&found.len()), "the stream ends when there is no room: {}", found.len());
        assert!((93..=97).contains(&share(&found, Verb::Get)));
        let greatest = found.iter().map(|operation| operation.key.number).max();
        assert_eq!(greatest, Some(COUNT + 19), "there is room for 20");
        let read = found.iter().filter(|operation| operation.verb == Verb::Get);
        assert_eq!(
            read.map(|operation| operation.key.number).max(),
            Some(COUNT + 17),
            "2 inserts may be on their way"
        );
        assert!(operations("read-missing", 100).iter().all(|operation| operation.key.missing));
    }

    #[test]
    fn an_update_follows_its_read() {
        let keyspace = Arc::new(Keyspace::new(COUNT, COUNT, 7));
        let workload = Workload::named("ycsb-f").unwrap();
        let quota = Quota::InTurn { next: 0, step: 5, limit: 5 };
        let mut stream = Stream::new(workload, Access::Uniform, keyspace, quota, Random::new(3));
        let first = stream.next().unwrap();
        assert!(stream.is_over());
        stream.set_later(first.key.number);
        assert!(!stream.is_over());
        assert_eq!(stream.next(), Some(Operation { verb: Verb::Set, key: first.key }));
        assert_eq!(stream.next(), None);
    }
}
