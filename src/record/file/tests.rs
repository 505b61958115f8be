use futures_executor::block_on;

use super::*;
use crate::key::FileNumber;
use crate::record::replay::{End, Extent, KnownEnd, replay};
use crate::record::tests::IDENTITY;
use crate::storage::sim::{Failure, Fate, Fault, SimFile, SimStorage};

pub(crate) const NAME: FileName = FileName::Wal(FileNumber(7));
const STEP: u64 = 8_192;
const SIZES: Sizes = Sizes { capacity: 1 << 18, step: STEP };

pub(crate) async fn append(file: &RecordFile<SimFile>, payload: &[u8]) {
    let mut record = RecordBuilder::new(AlignedBuf::with_capacity(0), file.end());
    record.extend_from_slice(payload);
    file.append(record).await.unwrap();
}

pub(crate) async fn create(storage: &SimStorage, sizes: Sizes) -> RecordFile<SimFile> {
    RecordFile::create(storage, NAME, IDENTITY, sizes).await.unwrap()
}

/// What a replay finds: the payloads and the end.
pub(crate) async fn read(storage: &SimStorage) -> Result<(Vec<Vec<u8>>, End)> {
    let files = storage.files();
    let (_, file_bytes) = *files.iter().find(|(name, _)| *name == NAME).expect("the file is there");
    let file = storage.open(NAME, Access::Read).await.unwrap();
    let mut payloads = Vec::new();
    let extent = Extent { label: "w", identity: IDENTITY, file_bytes, known_end: KnownEnd::default() };
    let end = replay(storage, &file, extent, async |_, payload| {
        payloads.push(payload.to_vec());
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .await?;
    Ok((payloads, end))
}

/// Payloads of many lengths: records that share a block, fill one, and span several.
pub(crate) fn payloads() -> Vec<Vec<u8>> {
    [1, 400, 456, 457, 3_000, 9_000, 5, 4_040].iter().map(|&n: &usize| vec![n.to_le_bytes()[0]; n]).collect()
}

fn fail_next(storage: &SimStorage, failure: Failure) {
    let operation = storage.operations() + 1;
    storage.set_fault(Some(Fault { operation, failure, for_ever: false }));
}

#[test]
fn r1_every_synced_record_survives_every_crash_of_the_next_append() {
    block_on(async {
        for seed in 0..50 {
            let storage = SimStorage::new(seed);
            let file = create(&storage, Sizes::fixed(1 << 16)).await;
            for (index, payload) in payloads().iter().enumerate() {
                append(&file, payload).await;
                for fate in [Fate::Lost, Fate::Random, Fate::Kept] {
                    let (found, end) = read(&storage.crash(fate)).await.unwrap();
                    assert!(found.len() == index || found.len() == index + 1, "seed {seed}");
                    assert_eq!(found[..], payloads()[..found.len()]);
                    assert!(end.offset <= file.end());
                }
                file.sync().await.unwrap();
                assert_eq!(read(&storage.crash(Fate::Lost)).await.unwrap().0.len(), index + 1);
            }
        }
    });
}

/// Opens every state that the disk goes through: no mark says too much (E1), nothing lies beyond a limit (E2), and
/// a torn mark leaves the mark before it (E3).
#[test]
fn e1_e2_e3_marks_are_true_at_every_operation_of_a_file_that_grows() {
    for seed in 0..30 {
        let storage = SimStorage::new(seed);
        let mut random = crate::random::Random::new(seed);
        let (file, mut synced) = (block_on(create(&storage, SIZES)), 0);
        for round in 0..60_usize {
            storage.record();
            let payload = vec![round as u8; [10, 500, 3_000, 40_000][random.below(4) as usize]];
            let end = file.end() + crate::record::record_bytes(payload.len()) as u64;
            if SIZES.capacity < end {
                break;
            }
            let both = async {
                if file.wants_growth(file.end()) || file.allocated() < end {
                    file.grow(&storage, end).await.unwrap();
                }
                if random.below(3) == 0 {
                    file.request_mark();
                }
                append(&file, &payload).await;
                if random.below(3) != 0 {
                    file.sync().await.unwrap();
                }
            };
            block_on(both);
            if random.below(5) == 0 {
                block_on(file.mark()).unwrap();
            }
            for snapshot in storage.take_snapshots() {
                for fate in [Fate::Lost, Fate::Kept, Fate::Random, Fate::Random, Fate::Killed] {
                    let left = snapshot.crash(fate);
                    let (found, end) = block_on(read(&left)).unwrap_or_else(|error| {
                        panic!("seed {seed}, operation {}, {fate:?}: {error}", snapshot.operations())
                    });
                    assert!(synced <= found.len(), "seed {seed}: {synced} synced, {} found", found.len());
                    assert!(end.mark.durable <= end.offset && end.bad_slot.is_none(), "{end:?}");
                    // Nothing lies beyond the limit, not even what was torn.
                    let bytes = left.bytes(NAME);
                    let beyond = &bytes[to_usize(end.mark.limit).next_multiple_of(BLOCK_BYTES)..];
                    assert!(beyond.iter().all(|byte| *byte == 0), "seed {seed}");
                }
            }
            if file.durable() == file.end() {
                synced = round + 1;
            }
        }
        assert!(SIZES.step * 4 < file.end(), "the file has grown");
    }
}

#[test]
fn marks_cost_no_sync_of_their_own_under_load() {
    block_on(async {
        let storage = SimStorage::new(1);
        let file = create(&storage, Sizes { capacity: 1 << 20, step: STEP }).await;
        file.grow(&storage, 1 << 20).await.unwrap();
        append(&file, b"the first").await;
        file.sync().await.unwrap();
        let before = storage.operations();
        for _ in 0..300 {
            append(&file, &[1; 1_000]).await;
            file.sync().await.unwrap();
        }
        // A write and a sync for each record, and one write more for each mark.
        let (bytes, more) = (300 * 1_536, storage.operations() - before - 600);
        assert!(
            (bytes / (MARK_STEPS * STEP) - 1..=bytes / (MARK_STEPS * STEP) + 2).contains(&more),
            "{more}"
        );
        assert!(file.durable() - file.witnessed() <= (MARK_STEPS + 1) * STEP);
    });
}

#[test]
fn a_full_disk_ends_no_file_that_grows() {
    block_on(async {
        let storage = SimStorage::new(1);
        let file = create(&storage, SIZES).await;
        append(&file, b"one").await;
        let before = file.allocated();
        let full = |operation: u64, for_ever: bool| {
            let (operation, failure) = (storage.operations() + operation, Failure::Errno(libc::ENOSPC));
            storage.set_fault(Some(Fault { operation, failure, for_ever }));
        };
        // Open, allocate, write.
        for operation in [2, 3] {
            full(operation, true);
            let error = file.grow(&storage, 0).await.unwrap_err();
            assert_eq!((error.kind(), file.allocated()), (ErrorKind::DiskFull, before));
        }
        storage.set_fault(None);
        file.sync().await.unwrap();
        // With little space, the file takes what it needs, and gives back what the first attempt took.
        full(3, false);
        file.grow(&storage, before + 1).await.unwrap();
        assert_eq!(file.allocated(), before + STEP);
        storage.set_fault(None);
        let before = file.allocated();
        file.grow(&storage, 0).await.unwrap();
        assert_eq!(file.allocated(), 2 * before);
        let before = file.allocated();
        let operation = storage.operations() + 2 + before.div_ceil(ZEROS_BYTES as u64) + 1;
        storage.set_fault(Some(Fault { operation, failure: Failure::Errno(libc::EIO), for_ever: false }));
        assert_eq!(
            file.grow(&storage, 0).await.unwrap_err().kind(),
            ErrorKind::Poisoned,
            "the sync of the growth failed"
        );
    });
}

#[test]
fn s4_a_failed_sync_fails_all_who_sync_meanwhile_or_later() {
    block_on(async {
        for seed in 0..20 {
            let storage = SimStorage::new(seed);
            let file = create(&storage, SIZES).await;
            append(&file, b"one").await;
            fail_next(&storage, Failure::Errno(libc::EIO));
            let (one, two) = tokio::join!(file.sync(), file.sync());
            assert!(one.is_err() && two.is_err() && file.sync().await.is_err(), "seed {seed}");
            assert_eq!(file.durable(), FIRST_RECORD);
        }
    });
}

/// The failed sync may have lost the zeros as well, and the sync of the growth would not report that.
#[test]
fn s4_a_file_does_not_grow_and_takes_no_mark_after_a_failed_sync() {
    block_on(async {
        let storage = SimStorage::new(1);
        let file = create(&storage, SIZES).await;
        append(&file, b"one").await;
        file.sync().await.unwrap();
        append(&file, b"two").await;
        let (allocated, mark) = (file.allocated(), file.mark.get());
        fail_next(&storage, Failure::Errno(libc::EIO));
        assert!(file.sync().await.is_err());
        assert_eq!(file.grow(&storage, 0).await.unwrap_err().kind(), ErrorKind::Poisoned);
        assert!(file.mark().await.is_err());
        assert_eq!((file.allocated(), file.mark.get()), (allocated, mark));
    });
}

/// The sync of a growth may be the one that the kernel tells of a failure, and then the sync of a group is told nothing.
#[test]
fn s4_a_growth_whose_sync_fails_fails_the_syncs_beside_it() {
    block_on(async {
        let mut failed_beside = 0;
        for (seed, operation) in (0..60).flat_map(|seed| (1..14).map(move |operation| (seed, operation))) {
            let storage = SimStorage::new(seed);
            let file = create(&storage, SIZES).await;
            append(&file, b"one").await;
            file.sync().await.unwrap();
            let fault = Fault {
                operation: storage.operations() + operation,
                failure: Failure::Errno(libc::EIO),
                for_ever: false,
            };
            storage.set_fault(Some(fault));
            let group = async {
                let mut record = RecordBuilder::new(AlignedBuf::with_capacity(0), file.end());
                record.extend_from_slice(b"two");
                file.append(record).await?;
                file.sync().await?;
                file.mark().await
            };
            let (grown, group) = tokio::join!(file.grow(&storage, 0), group);
            storage.set_fault(None);
            if grown.is_err_and(|error| error.kind() == ErrorKind::Poisoned) {
                failed_beside += u32::from(group.is_err());
                assert!(file.sync().await.is_err());
            }
            let left = read(&storage.crash(Fate::Lost)).await;
            let (payloads, end) = left.unwrap_or_else(|error| panic!("seed {seed}, {fault:?}: {error}"));
            assert!(file.durable() <= end.offset && !payloads.is_empty(), "seed {seed}, {fault:?}");
        }
        assert!(0 < failed_beside);
    });
}

#[test]
fn e4_a_file_is_not_used_again_while_zeros_or_a_mark_are_on_their_way_to_it() {
    block_on(async {
        for grow in [false, true] {
            let storage = SimStorage::new(1);
            let file = create(&storage, SIZES).await;
            append(&file, b"one").await;
            file.sync().await.unwrap();
            let work = async { if grow { file.grow(&storage, 0).await } else { file.mark().await } };
            let (done, usable) = tokio::join!(biased; work, async { file.retire() });
            done.unwrap();
            assert!(!usable && file.retire(), "grow: {grow}");
        }
    });
}

#[test]
fn e4_a_recycled_file_shows_nothing_of_its_past() {
    block_on(async {
        let storage = SimStorage::new(1);
        let old = FileName::Wal(FileNumber(1));
        let identity = Identity { file: FileNumber(1), ..IDENTITY };
        let sizes = Sizes::fixed(1 << 16);
        let file = RecordFile::create(&storage, old, identity, sizes).await.unwrap();
        for payload in payloads() {
            append(&file, &payload).await;
        }
        assert!(file.retire());
        file.sync().await.unwrap();
        let writes = storage.operations();
        file.mark().await.unwrap();
        file.grow(&storage, 0).await.unwrap();
        assert_eq!(storage.operations(), writes, "a retired file is not written to");
        let file = RecordFile::recycle(&storage, old, NAME, IDENTITY, file.allocated(), sizes).await.unwrap();
        let (found, end) = read(&storage.crash(Fate::Lost)).await.unwrap();
        assert!(found.is_empty() && end.mark.used_before);
        append(&file, b"new").await;
        let (found, end) = read(&storage).await.unwrap();
        assert_eq!((found.len(), end.torn_bytes), (1, 0));
    });
}

#[test]
fn a_file_that_was_removed_replaced_or_cut_is_noticed() {
    block_on(async {
        let storage = SimStorage::new(1);
        let file = create(&storage, SIZES).await;
        file.check_in_place().unwrap();
        file.grow(&storage, 0).await.unwrap();
        let whole = storage.bytes(NAME);
        storage.overwrite(NAME, &whole[..whole.len() - 1]);
        let error = file.check_in_place().unwrap_err();
        assert!(error.to_string().contains("was cut to"), "{error}");
        storage.overwrite(NAME, &whole);
        file.check_in_place().unwrap();
        storage.rename(NAME, FileName::Wal(FileNumber(8))).await.unwrap();
        file.check_in_place().unwrap();
        assert!(!storage.leads_to(NAME, file.file()).await.unwrap(), "a look at the name tells");
        storage.lose(FileName::Wal(FileNumber(8)));
        let error = file.check_in_place().unwrap_err();
        assert!(
            error.kind() == ErrorKind::Poisoned && error.to_string().contains("000007.wal was removed"),
            "{error}"
        );
    });
}
