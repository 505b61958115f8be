//! Tests of the simulated disk: it loses what a real disk may lose, and nothing else.

use futures_executor::block_on;

use super::*;
use crate::key::FileNumber;

const NAME: FileName = FileName::Wal(FileNumber(1));

#[test]
fn s1_s2_a_crash_takes_what_was_not_synced_and_nothing_else() {
    block_on(async {
        let storage = SimStorage::new(1);
        let file = storage.create(NAME).await.unwrap();
        file.write_at(AlignedBuf::from(&[1; BLOCK_BYTES][..]), 0).await.0.unwrap();
        file.sync().await.unwrap();
        assert_eq!(storage.crash(Fate::Lost).files(), [], "the name was not synced");
        storage.sync_dir().await.unwrap();
        file.write_at(AlignedBuf::from(&[2; BLOCK_BYTES][..]), 0).await.0.unwrap();

        assert_eq!(storage.crash(Fate::Lost).bytes(NAME), [1; BLOCK_BYTES]);
        assert_eq!(storage.crash(Fate::Kept).bytes(NAME), [2; BLOCK_BYTES]);
        let mut torn = 0;
        for _ in 0..100 {
            let bytes = storage.crash(Fate::Random).bytes(NAME);
            torn += usize::from(bytes.contains(&1) && bytes.contains(&2));
            assert!(bytes.chunks(SECTOR_BYTES).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        }
        assert!((10..90).contains(&torn), "some sectors are old and some are new: {torn}");
    });
}

/// What happens to an overwrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mishap {
    NotSynced,
    FailedWrite,
    ShortWrite,
    FailedSync,
    LyingSync,
}

/// Overwrites the synced bytes `old` of a file by `new`. Returns the disk before each operation of that, and after the
/// last.
async fn overwrite(seed: u64, old: &[u8], new: &[u8], mishap: Mishap) -> Vec<SimStorage> {
    let storage = SimStorage::new(seed);
    let file = storage.create(NAME).await.unwrap();
    file.write_at(AlignedBuf::from(old), 0).await.0.unwrap();
    file.sync().await.unwrap();
    storage.sync_dir().await.unwrap();
    let next = storage.operations() + 1;
    let fault = |operation, failure| Some(Fault { operation, failure, for_ever: false });
    storage.set_fault(match mishap {
        Mishap::FailedWrite => fault(next, Failure::Errno(libc::EIO)),
        Mishap::ShortWrite => fault(next, Failure::Short),
        Mishap::FailedSync => fault(next + 1, Failure::Errno(libc::EIO)),
        Mishap::NotSynced | Mishap::LyingSync => None,
    });
    storage.lie(mishap == Mishap::LyingSync);
    storage.record();
    let written = file.write_at(AlignedBuf::from(new), 0).await.0;
    assert_eq!(written.is_err(), matches!(mishap, Mishap::FailedWrite | Mishap::ShortWrite));
    if mishap != Mishap::NotSynced {
        assert_eq!(file.sync().await.is_err(), mishap == Mishap::FailedSync);
    }
    let mut disks = storage.take_snapshots();
    disks.push(storage);
    disks
}

#[test]
fn s3_a_sector_that_is_overwritten_with_the_same_bytes_does_not_change() {
    use Mishap::{FailedSync, FailedWrite, LyingSync, NotSynced, ShortWrite};
    let (mut new_sectors, mut old_sectors) = (0, 0);
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut noise = || random.next_u64().to_le_bytes()[0];
        let old: Vec<u8> = (0..2 * BLOCK_BYTES).map(|_| noise()).collect();
        let mut new = old.clone();
        for sector in new.chunks_mut(SECTOR_BYTES).filter(|sector| sector[0].is_multiple_of(2)) {
            sector.fill_with(&mut noise);
        }
        let mut check = |disk: &SimStorage, context: &str| {
            let found = disk.bytes(NAME);
            for at in (0..found.len()).step_by(SECTOR_BYTES) {
                let [old, new, found] = [&old, &new, &found].map(|bytes| &bytes[at..at + SECTOR_BYTES]);
                assert!(found == old || found == new, "seed {seed}, {context}, offset {at}");
                new_sectors += usize::from(found != old);
                old_sectors += usize::from(found != new);
            }
        };
        let mishap = [NotSynced, FailedWrite, ShortWrite, FailedSync, LyingSync][to_usize(seed % 5)];
        for disk in block_on(overwrite(seed, &old, &new, mishap)) {
            for fate in [Fate::Lost, Fate::Kept, Fate::Random, Fate::Random] {
                check(&disk.crash(fate), &format!("{mishap:?}, {fate:?}"));
            }
            // A write in flight lands during the next operations. The power may go before and after that.
            let killed = disk.crash(Fate::Killed);
            for _ in 0..=LATE_OPERATIONS {
                check(&killed, &format!("{mishap:?}, killed"));
                check(&killed.crash(Fate::Random), &format!("{mishap:?}, killed and a power cut"));
                block_on(killed.lost_path()).unwrap();
            }
        }
    }
    assert!(1_000 < new_sectors && 1_000 < old_sectors, "{new_sectors} and {old_sectors}");
}

#[test]
fn a_planned_fault_hits_its_operation_once_or_for_ever() {
    block_on(async {
        let storage = SimStorage::new(1);
        let file = storage.create(NAME).await.unwrap();
        storage.set_fault(Some(Fault { operation: 2, failure: Failure::Errno(libc::EIO), for_ever: false }));
        assert_eq!(file.sync().await.unwrap_err().raw_os_error(), Some(libc::EIO));
        file.sync().await.unwrap();
        storage.set_fault(Some(Fault {
            operation: 4,
            failure: Failure::Errno(libc::ENOSPC),
            for_ever: true,
        }));
        assert!(file.sync().await.is_err());
        assert!(file.sync().await.is_err());
        assert_eq!(storage.operations(), 5);
    });
}

#[test]
fn a_short_write_and_a_failed_sync_leave_a_part() {
    block_on(async {
        let storage = SimStorage::new(1);
        let file = storage.create(NAME).await.unwrap();
        storage.sync_dir().await.unwrap();
        storage.set_fault(Some(Fault { operation: 3, failure: Failure::Short, for_ever: false }));
        let (result, buffer) = file.write_at(AlignedBuf::from(&[1; 2 * BLOCK_BYTES][..]), 0).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WriteZero);
        assert_eq!(storage.bytes(NAME), [1; BLOCK_BYTES]);
        file.write_at(buffer, 0).await.0.unwrap();

        let mut kept = Vec::new();
        for seed in 0..20 {
            let storage = SimStorage::of(Disk { random: Random::new(seed), ..storage.0.borrow().clone() });
            let file = storage.open(NAME, Access::Write).await.unwrap();
            let operation = storage.operations() + 1;
            storage.set_fault(Some(Fault { operation, failure: Failure::Errno(libc::EIO), for_ever: false }));
            assert!(file.sync().await.is_err());
            file.sync().await.unwrap();
            kept.push(storage.crash(Fate::Kept).bytes(NAME));
        }
        let whole = kept.iter().filter(|bytes| ***bytes == [1; 2 * BLOCK_BYTES]).count();
        assert!((1..20).contains(&whole), "a later sync does not help: {whole} of 20");
    });
}

#[test]
fn snapshots_are_the_directory_before_each_operation() {
    block_on(async {
        let storage = SimStorage::new(1);
        storage.record();
        let file = storage.create(NAME).await.unwrap();
        file.write_at(AlignedBuf::from(&[1; BLOCK_BYTES][..]), 0).await.0.unwrap();
        file.write_at(AlignedBuf::from(&[2; BLOCK_BYTES][..]), 0).await.0.unwrap();
        let snapshots = storage.take_snapshots();
        let lengths: Vec<_> = snapshots.iter().map(|snapshot| snapshot.files().len()).collect();
        assert_eq!(lengths, [0, 1, 1]);
        assert_eq!(snapshots[1].bytes(NAME), [0; 0]);
        assert_eq!(snapshots[2].bytes(NAME), [1; BLOCK_BYTES]);
        assert!(storage.take_snapshots().is_empty());
    });
}
