//! Values that expire, on simulated storage. From its expiry on, a key is absent for every reader, wherever its entry
//! is (P10). From a minute after the expiry on, a compaction turns the entry into a tombstone, and older values stay
//! hidden (X4).
//!
//! `tests/engine/model.rs` mixes random expiries with all other operations.

use crate::common::sim::{CONFIG, Shard, operate, read_all};
use futures_executor::block_on;
use ringkeep::config::DbConfig;
use ringkeep::db::Found;
use ringkeep::key::{EntryKind, SeqNo, UnixMillis};
use ringkeep::op::{Op, Outcome};
use ringkeep::source::Source;
use ringkeep::sst::run::Run;
use ringkeep::sst::window::ReadAhead;
use ringkeep::storage::sim::Fate;

const KEY: &[u8] = b"key";

/// When the value of the key expires.
const EXPIRES: UnixMillis = UnixMillis(1_000_000_000_000);

/// How long after its expiry a compaction leaves an entry as it is.
const MARGIN_MILLIS: u64 = 60_000;

const JUST_BEFORE: UnixMillis = UnixMillis(EXPIRES.0 - 1);
const LAST_OF_MARGIN: UnixMillis = UnixMillis(EXPIRES.0 + MARGIN_MILLIS - 1);
const AFTER_MARGIN: UnixMillis = UnixMillis(EXPIRES.0 + MARGIN_MILLIS);
const MUCH_LATER: UnixMillis = UnixMillis(EXPIRES.0 + 1_000 * MARGIN_MILLIS);

/// Times before and after the expiry, in an order in which the clock jumps both ways.
const PRESENT_AT: [UnixMillis; 2] = [UnixMillis::START, JUST_BEFORE];
const ABSENT_AT: [UnixMillis; 4] = [EXPIRES, MUCH_LATER, AFTER_MARGIN, UnixMillis(u64::MAX)];

/// A memtable holds one entry, and L1 holds less than one file, so entries that are compacted to L1 move on to L2.
const DEEP: DbConfig = DbConfig { memtable_bytes: 5_000, ..CONFIG };

/// Where the newest entry of the key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    ActiveMemtable,
    FrozenMemtable,
    L0,
    L1,
}
use Place::{ActiveMemtable, FrozenMemtable, L0, L1};

const PLACES: [Place; 4] = [ActiveMemtable, FrozenMemtable, L0, L1];

/// Moves what the active memtable holds to `place`.
async fn sink(shard: &Shard, place: Place) {
    match place {
        ActiveMemtable => {}
        FrozenMemtable => shard.freeze().await,
        L0 => shard.flush().await,
        L1 => {
            shard.flush().await;
            // Writes as many files with keys around this key as a compaction needs.
            while shard.db.version().level(0).len() < 4 {
                shard.set(b"a", b"other").await;
                shard.set(b"z", b"other").await;
                shard.flush().await;
            }
            assert!(shard.db.compact_next(JUST_BEFORE).await.unwrap());
            assert!(!shard.db.version().level(1).is_empty() && shard.db.version().level(0).is_empty());
        }
    }
}

/// A shard whose key holds a value that expires, in `place`. If `older` is a place, the key has an older value there.
/// Returns what a reader finds before the expiry.
async fn shard_with(older: Option<Place>, place: Place) -> (Shard, Found) {
    let shard = Shard::create(CONFIG, 1).await;
    if let Some(older) = older {
        shard.set(KEY, b"older").await;
        sink(&shard, older).await;
    }
    let seqno = shard.set_expiring(KEY, b"value", Some(EXPIRES)).await;
    sink(&shard, place).await;
    (shard, Found { value: "value".into(), seqno, expires: Some(EXPIRES) })
}

/// Every shard of [`shard_with`], as it is and as the next process finds it.
async fn for_all_places(test: impl AsyncFn(&str, Shard, Found)) {
    for older in [None].into_iter().chain(PLACES.map(Some)) {
        for place in PLACES {
            for crash in [None, Some(Fate::Lost), Some(Fate::Kept), Some(Fate::Killed)] {
                let (mut shard, found) = shard_with(older, place).await;
                if let Some(fate) = crash {
                    shard = shard.after_crash(fate).await;
                }
                let name = format!("{place:?}, older value: {older:?}, crash: {crash:?}");
                test(&name, shard, found).await;
            }
        }
    }
}

/// What a scan of everything finds of the key.
async fn scan(shard: &Shard, now: UnixMillis) -> Option<Found> {
    let entries = read_all(&mut shard.db.scan(&shard.db.view(), now), b"", async || {}).await;
    entries.into_iter().find(|(key, _)| key == KEY).map(|(_, found)| found)
}

/// The entries of the key in sorted files, from the highest level to the lowest: level, SeqNo and kind.
async fn entries_in_files(shard: &Shard) -> Vec<(usize, SeqNo, EntryKind)> {
    let mut entries = Vec::new();
    for (level, files) in shard.db.version().levels() {
        for file in files {
            let mut run = Run::new(&shard.db, [file.clone()], ReadAhead::Full);
            while run.advance().await.unwrap() {
                run.read(|entry| {
                    if entry.key == KEY {
                        entries.push((level, entry.seqno, entry.kind));
                    }
                });
            }
        }
    }
    entries
}

#[test]
fn p10_a_key_is_found_until_its_expiry_with_its_expiry_and_its_seqno() {
    block_on(for_all_places(async |name, shard, found| {
        for now in PRESENT_AT {
            assert_eq!(shard.find(KEY, now).await.as_ref(), Some(&found), "{name}, at {now:?}");
            assert_eq!(scan(&shard, now).await.as_ref(), Some(&found), "{name}, at {now:?}");
        }
    }));
}

#[test]
fn p10_an_expired_key_is_absent_and_hides_older_values_wherever_they_are() {
    block_on(for_all_places(async |name, shard, found| {
        for now in ABSENT_AT {
            assert_eq!(shard.find(KEY, now).await, None, "{name}, at {now:?}");
            assert_eq!(scan(&shard, now).await, None, "{name}, at {now:?}");
            // The clock is set back. From now on the entry is in a cache.
            assert_eq!(shard.find(KEY, JUST_BEFORE).await.as_ref(), Some(&found), "{name}");
        }
    }));
}

#[test]
fn p10_a_delete_reports_a_key_that_has_not_expired_and_no_other() {
    block_on(for_all_places(async |name, shard, _| {
        // A delete changes the shard, so each time gets a shard of its own.
        for now in PRESENT_AT.into_iter().chain(ABSENT_AT) {
            let shard = shard.after_crash(Fate::Kept).await;
            let outcome = operate(&shard.db, Op::Delete { key: shard.db.key(KEY) }, now).await;
            let seqno = shard.db.visible();
            let expected = if now < EXPIRES { Outcome::Written { seqno } } else { Outcome::Missing };
            assert_eq!(outcome, expected, "{name}, at {now:?}");
            assert_eq!(shard.find(KEY, UnixMillis::START).await, None, "{name}: it is deleted");
        }
    }));
}

/// An older value in L2, and a value that expires in L0, whose compaction to L1 is due. Returns the SeqNos as well.
async fn shard_with_an_older_value_below() -> (Shard, SeqNo, SeqNo) {
    let shard = Shard::create(DEEP, 1).await;
    // The oldest file of L0 would be moved as it is if no other file had its keys.
    let flush_other = async || {
        shard.set(b"other", b"other").await;
        shard.flush().await;
    };
    let flush_among_others = async |value: &[u8], expires| {
        flush_other().await;
        let seqno = shard.set_expiring(KEY, value, expires).await;
        shard.flush().await;
        flush_other().await;
        flush_other().await;
        seqno
    };
    let older = flush_among_others(b"older", None).await;
    assert_eq!(shard.compact(JUST_BEFORE).await, 2);
    let newer = flush_among_others(b"value", Some(EXPIRES)).await;
    let expected = [(0, newer, EntryKind::value(Some(EXPIRES))), (2, older, EntryKind::VALUE)];
    assert_eq!(entries_in_files(&shard).await, expected);
    (shard, newer, older)
}

#[test]
fn x4_within_a_minute_after_its_expiry_an_entry_stays_and_a_clock_that_is_set_back_finds_it() {
    block_on(async {
        let (shard, newer, _) = shard_with_an_older_value_below().await;
        assert!(0 < shard.compact(LAST_OF_MARGIN).await);
        assert_eq!(entries_in_files(&shard).await, [(2, newer, EntryKind::value(Some(EXPIRES)))]);
        let found = Found { value: "value".into(), seqno: newer, expires: Some(EXPIRES) };
        assert_eq!(shard.find(KEY, LAST_OF_MARGIN).await, None);
        assert_eq!(shard.find(KEY, JUST_BEFORE).await, Some(found.clone()));
        assert_eq!(scan(&shard, JUST_BEFORE).await, Some(found));
    });
}

#[test]
fn x4_a_minute_after_its_expiry_an_entry_becomes_a_tombstone_with_the_same_seqno() {
    block_on(async {
        let (shard, newer, older) = shard_with_an_older_value_below().await;
        assert!(shard.db.compact_next(AFTER_MARGIN).await.unwrap());
        let expected = [(1, newer, EntryKind::TOMBSTONE), (2, older, EntryKind::VALUE)];
        assert_eq!(entries_in_files(&shard).await, expected);
        let report = shard.check().await;
        assert!(report.damage.is_empty() && report.unread.is_empty(), "{report:?}");
        // The tombstone goes together with the value that it hides.
        shard.compact(AFTER_MARGIN).await;
        assert_eq!(entries_in_files(&shard).await, []);
    });
}

#[test]
fn x4_an_older_value_below_never_comes_back_whatever_the_clock_says() {
    block_on(async {
        for crash in [None, Some(Fate::Lost), Some(Fate::Kept), Some(Fate::Killed)] {
            let (mut shard, ..) = shard_with_an_older_value_below().await;
            // Once the expired value is out of L0, the older value is the only value in files.
            while shard.db.compact_next(AFTER_MARGIN).await.unwrap() {
                if let Some(fate) = crash {
                    shard = shard.after_crash(fate).await;
                }
                for now in PRESENT_AT.into_iter().chain(ABSENT_AT) {
                    assert_eq!(shard.find(KEY, now).await, None, "crash: {crash:?}, at {now:?}");
                    assert_eq!(scan(&shard, now).await, None, "crash: {crash:?}, at {now:?}");
                }
                // The next compaction runs with a clock that was set back.
                shard.db.compact_next(UnixMillis::START).await.unwrap();
            }
            assert_eq!(entries_in_files(&shard).await, []);
        }
    });
}
