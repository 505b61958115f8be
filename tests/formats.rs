//! Golden bytes of every structure on disk. A change here is a change of the format: a store of an older version would
//! no longer open or, worse, would be read wrongly. The format version has to change with it.

use std::rc::Rc;

use futures_executor::block_on;
use ringkeep::codec::crc32;
use ringkeep::file_name::FileName;
use ringkeep::identity::{FileKind, Owner};
use ringkeep::key::{Entry, EntryKind, FileNumber, SeqNo, ShardId, UnixMillis};
use ringkeep::manifest::damage::{Damage, KeyRange};
use ringkeep::manifest::{Manifest, State, VersionEdit, WalMeta};
use ringkeep::record::file::{FIRST_RECORD, Sizes};
use ringkeep::record::replay::KnownEnd;
use ringkeep::sst::builder::SstBuilder;
use ringkeep::sst::{Expiry, SstMeta, filter};
use ringkeep::storage::AlignedBuf;
use ringkeep::storage::sim::SimStorage;
use ringkeep::store::Store;
use ringkeep::wal::writer::Wal;

const OWNER: Owner = Owner { store_id: 0x0123_4567_89ab_cdef, shard: ShardId(2) };

/// Bytes as text: the first 120 bytes without the zeros at the end, then the checksum and the number of all bytes.
fn show(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    let hex: String = bytes[..end.min(120)].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex} crc {:08x} of {}", crc32(bytes), bytes.len())
}

fn check(what: &str, bytes: &[u8], golden: &str) {
    assert_eq!(show(bytes), golden, "the format of {what} has changed");
}

fn meta() -> SstMeta {
    SstMeta {
        number: FileNumber(9),
        bytes: 20_480,
        smallest: b"apple".as_slice().into(),
        largest: b"pear".as_slice().into(),
        first: SeqNo(5),
        last: SeqNo(300),
        entries: 200,
        tombstones: 3,
        longest: 5_000,
        expiry: Some(Expiry { entries: 2, first: UnixMillis(70), last: UnixMillis(1 << 41) }),
    }
}

#[test]
fn store() {
    block_on(async {
        let storage = SimStorage::new(0);
        Store { ready: true, ..Store::new(OWNER.store_id, 3) }.save(&storage).await.unwrap();
        check("STORE", &storage.bytes(FileName::Store), STORE);
    });
}

#[test]
fn version_edit() {
    let edit = VersionEdit {
        next_file: Some(FileNumber(300)),
        flushed: Some(SeqNo(299)),
        add_wals: vec![(FileNumber(7), WalMeta { bytes: 1 << 20, end: KnownEnd::Exactly(8704) })],
        durable_wals: vec![(FileNumber(7), 8704)],
        remove_wals: vec![FileNumber(6)],
        keep_wals: vec![(FileNumber(5), 1 << 20)],
        clean_wal: Some(FileNumber(7)),
        add_ssts: vec![(1, Rc::new(meta()))],
        remove_ssts: vec![(0, FileNumber(8))],
        add_damage: vec![Rc::new(Damage {
            level: 1,
            file: FileNumber(4),
            last: SeqNo(70),
            ranges: vec![KeyRange { from: b"b".as_slice().into(), to: b"bb\0".as_slice().into() }],
        })],
        remove_damage: vec![FileNumber(3)],
    };
    let mut payload = Vec::new();
    edit.encode(&mut payload);
    check("version edits", &payload, EDIT);
}

#[test]
fn manifest_and_current() {
    block_on(async {
        let storage = SimStorage::new(0);
        let state = State { next_file: FileNumber(4), ..State::default() };
        let mut manifest = Manifest::create(storage.clone(), OWNER, state, 1 << 20).await.unwrap();
        let add_ssts = vec![(0, Rc::new(meta()))];
        manifest.append(&VersionEdit { add_ssts, ..VersionEdit::default() }).await.unwrap();
        check("CURRENT", &storage.bytes(FileName::Current), CURRENT);
        let bytes = storage.bytes(FileName::Manifest(FileNumber(4)));
        check("a mark of a manifest", &bytes[..4096], MANIFEST_MARK);
        check("the records of a manifest", &bytes[FIRST_RECORD as usize..], MANIFEST);
    });
}

#[test]
fn wal() {
    block_on(async {
        let storage = SimStorage::new(0);
        let wal = Wal::create(&storage, OWNER, FileNumber(7), Sizes::fixed(1 << 15)).await.unwrap();
        let mut group = wal.begin_group(AlignedBuf::with_capacity(0), SeqNo(41));
        group.add(b"key", EntryKind::VALUE, b"value");
        group.add(b"soon", EntryKind::value(Some(UnixMillis(1 << 41))), b"value");
        group.add(b"gone", EntryKind::TOMBSTONE, b"");
        wal.reserve(&group);
        wal.append(group).await.unwrap();
        wal.sync().await.unwrap();
        let mut group = wal.begin_group(AlignedBuf::with_capacity(0), SeqNo(44));
        group.add(b"k", EntryKind::VALUE, &[7; 600]);
        wal.reserve(&group);
        wal.append(group).await.unwrap();
        wal.file().mark().await.unwrap();
        let bytes = storage.bytes(FileName::Wal(FileNumber(7)));
        check("the newest mark of a WAL", &bytes[..4096], MARK);
        check("the first group of a WAL", &bytes[FIRST_RECORD as usize..][..512], GROUP);
        check("a WAL", &bytes, WAL);
    });
}

#[test]
fn sst() {
    block_on(async {
        let storage = SimStorage::new(0);
        let identity = OWNER.identity(FileKind::Sst, FileNumber(9));
        let mut builder = SstBuilder::create(&storage, identity).await.unwrap();
        for n in 0..5_000_u64 {
            let key = format!("key-{:08}", n * 7);
            let kind = match n % 10 {
                3 => EntryKind::TOMBSTONE,
                4 => EntryKind::value(Some(UnixMillis((1 << 41) + n))),
                _ => EntryKind::VALUE,
            };
            // Values of even numbers compress, values of odd numbers do not.
            let value: Vec<u8> =
                (0..n % 90).map(|i| if n % 2 == 0 { 1 } else { (n * i * i) as u8 }).collect();
            let value = if kind == EntryKind::TOMBSTONE { &[] } else { &value[..] };
            assert!(builder.add(&Entry { key: key.as_bytes(), seqno: SeqNo(n + 1), kind, value }));
            builder.write_full().await.unwrap();
        }
        let meta = builder.finish().await.unwrap();
        let bytes = storage.bytes(FileName::Sst(FileNumber(9)));
        assert_eq!(meta.bytes, bytes.len() as u64);
        check("the first block of an SST", &bytes[..4096], BLOCK);
        check("the footer of an SST", &bytes[bytes.len() - 4096..], FOOTER);
        check("an SST", &bytes, SST);
    });
}

#[test]
fn filters() {
    let hashes: Vec<u64> = (0..5_u64).map(|n| ringkeep::key::filter_hash(&n.to_le_bytes())).collect();
    check("filters", &filter::build(&hashes), FILTER);
}

const STORE: &str = "52474b31a5a9bbc0c80f0000000000000000000000000000000000000000000000000000000000000000000000000000000001010000000004000000efcdab8967452301030002d62a00d52a01d52a02 crc 32ae50a5 of 4096";
const EDIT: &str = "01ac0202ab020307808040804401080780440406090580804005010980a00105ac02c8010388270246808080808040056170706c65047065617206000807070a010446010162036262000b03 crc 063c3571 of 76";
const CURRENT: &str = "52474b318c9db9e7c80f000000000000efcdab8967452301000000000000000000000000000000000000000000000000020002010000000004 crc 43ca17e8 of 4096";
const MARK: &str = "52474b31dce46d521900000000000000efcdab89674523010700000000000000000000000000000000000000000000000200040100000000020000000000000000220000000000000080 crc 61a5cfa3 of 4096";
const MANIFEST_MARK: &str = "52474b3186aaf1a21900000000000000efcdab8967452301040000000000000000000000000000000000000000000000020003010000000002000000000000000022000000000000000010 crc 49a03562 of 4096";
const MANIFEST: &str = "52474b31c86914490400000000000000efcdab8967452301040000000000000000200000000000000020000000000000020003010000000001050200000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000 crc 8bd65846 of 1040384";
const GROUP: &str = "52474b3102ee5fa73800000000000000efcdab8967452301070000000000000000200000000000000020000000000000020004010000000029000000000000000000000000000000000000000103056b657976616c7565118080808080400405736f6f6e76616c7565000400676f6e65 crc 687a50a1 of 512";
const WAL: &str = "52474b31dce46d521900000000000000efcdab8967452301070000000000000000000000000000000000000000000000020004010000000002000000000000000022000000000000008000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000 crc a3e1f10d of 32768";
const BLOCK: &str = "b9ff067303000000dc210000583f000001010000a3000c0101006b65792d300100f02d0b0101020137000a02010302313401010a0200040032310b0111848080808040050438010101010a0201060533350005142d500a02010706343201010200f6030b010108073900071c3f70affc000c0109085e0020 crc d7cb98b4 of 4096";
const FOOTER: &str = "52474b3134adf761c80f000000000000efcdab8967452301090000000000000000400400000000000000000000000000020005010000000042014301 crc 59d1f87d of 4096";
const SST: &str = "b9ff067303000000dc210000583f000001010000a3000c0101006b65792d300100f02d0b0101020137000a02010302313401010a0200040032310b0111848080808040050438010101010a0201060533350005142d500a02010706343201010200f6030b010108073900071c3f70affc000c0109085e0020 crc 96e5491b of 282624";
const FILTER: &str = "073ab2123b1ec062ab crc 8ec687f5 of 9";
