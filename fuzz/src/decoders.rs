//! Every decoder of bytes from disk and network, each as a function over any bytes. A decoder must not panic and must
//! not loop, and what it accepts must be consistent. `tests/engine/decoders.rs` runs the decoders over the corpus, cargo-fuzz
//! over new inputs.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use futures_executor::block_on;
use ringkeep::codec::{Reader, crc32};
use ringkeep::config::ShutdownMode;
use ringkeep::error::ErrorKind;
use ringkeep::file_name::FileName;
use ringkeep::http::access::{Grant, Need, Policy, Tokens};
use ringkeep::http::authority::LastAddress;
use ringkeep::http::body::Chunked;
use ringkeep::http::head::{Framing, HeadEnd, parse};
use ringkeep::http::query;
use ringkeep::http::route::Route;
use ringkeep::identity::{FileKind, Identity};
use ringkeep::key::{FileNumber, KeyHash, ShardId};
use ringkeep::manifest::{State, VersionEdit};
use ringkeep::record::file::FIRST_RECORD;
use ringkeep::record::mark::Mark;
use ringkeep::record::replay::{End, Extent, KnownEnd, replay};
use ringkeep::record::{HEADER_BYTES, decode, decode_single, record_bytes, seal};
use ringkeep::sst::block::{Cursor, FRAME_BYTES, Frame, frame_crc, seek};
use ringkeep::sst::{BlockHandle, SstMeta, filter};
use ringkeep::storage::sim::SimStorage;
use ringkeep::storage::{Access, AlignedBuf, BLOCK_BYTES, SECTOR_BYTES, Storage};
use ringkeep::store::Store;
use ringkeep::tls::{Session, Settings};
use ringkeep::wal::decode_group;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

const IDENTITY: Identity =
    Identity { store_id: 1, shard: ShardId(2), kind: FileKind::Wal, file: FileNumber(3) };

/// A decoder and its name, which is also the name of its fuzz target and of its corpus.
pub type Decoder = (&'static str, fn(&[u8]));

/// All decoders.
pub const DECODERS: [Decoder; 12] = [
    ("record", record),
    ("record_file", record_file),
    ("wal_group", wal_group),
    ("version_edit", version_edit),
    ("store", store),
    ("sst_block", sst_block),
    ("sst_frame", sst_frame),
    ("sst_parts", sst_parts),
    ("http_request", http_request),
    ("http_chunked", http_chunked),
    ("http_query", http_query),
    ("tls", tls),
];

/// A record, as it is and with a checksum that fits.
pub fn record(data: &[u8]) {
    let _ = decode(data, IDENTITY, 0);
    let _ = decode_single(data, IDENTITY, 0);
    if data.len() <= 8 {
        return;
    }
    let mut fitting = data.to_vec();
    let crc = ringkeep::codec::crc32(&fitting[8..]);
    fitting[4..8].copy_from_slice(&crc.to_le_bytes());
    if let Ok(record) = decode(&fitting, IDENTITY, 0) {
        assert!(record.bytes <= data.len() && record.payload.len() < record.bytes);
        assert_eq!(record.durable, 0, "nothing is durable before the first byte");
    }
}

/// Replays a file of records. The input is a plan of the file: records that follow each other or do not, what each
/// record says was durable, the bytes between them, and what is known of the end. The plan tells how the replay must
/// end.
pub fn record_file(data: &[u8]) {
    let mut plan = Reader::new(data);
    let extent = plan.u16().unwrap_or(0);
    let Records { mut file, ends, mut witness, mut torn } = Records::lay_out(&mut plan);
    let mut wanted = *ends.last().expect("the list begins with the end of the marks");
    let sectors = u64::from(extent % 0x4000) * SECTOR_BYTES as u64;
    let limit = file.len() as u64;
    let (durable, known_end) = match extent {
        0..0x2000 => (FIRST_RECORD, KnownEnd::default()),
        0x2000..0x4000 => (sectors.min(limit), KnownEnd::default()),
        0x4000..0x8000 => (FIRST_RECORD, KnownEnd::AtLeast(sectors)),
        0x8000..0xc000 => (FIRST_RECORD, KnownEnd::Exactly(ends[usize::from(extent) % ends.len()])),
        _ => (FIRST_RECORD, KnownEnd::Exactly(sectors)), // seldom the end of a record; else it is only known durable
    };
    // At most one of the slots is bad.
    let bad = u64::from(extent / 2 % 3);
    let used_before = extent & 1 == 1;
    for number in 0..2 {
        let mark = Mark { number, durable, limit, used_before };
        let slot = &mut file[mark.offset() as usize..][..BLOCK_BYTES];
        slot.copy_from_slice(&mark.encode(IDENTITY));
        slot[HEADER_BYTES] ^= u8::from(number == bad);
    }
    match known_end {
        KnownEnd::Exactly(end) if ends.contains(&end) => (wanted, witness, torn) = (end, 0, Some(0)),
        known => witness = witness.max(durable).max(known.durable()),
    }
    let (end, visited) = replayed(&file, known_end, &ends);
    assert_eq!(visited, ends.iter().filter(|end| **end < wanted).count());
    match end {
        Ok(end) => {
            assert!(witness <= wanted);
            assert_eq!((end.offset, end.mark.used_before), (wanted, used_before));
            assert_eq!(end.bad_slot.is_some(), bad < 2);
            assert!(end.torn_bytes == torn.unwrap_or(end.torn_bytes), "{end:?}, not {torn:?}");
            assert_eq!(end.torn_reason.is_some(), 0 < end.torn_bytes);
        }
        Err(error) => assert!(error.kind() == ErrorKind::Corruption && wanted < witness, "{error}"),
    }
}

/// A file of records as a plan lays it out, its marks left zero.
struct Records {
    file: Vec<u8>,
    /// Where the records that follow each other end.
    ends: Vec<u64>,
    /// The greatest offset that a record after them says was durable.
    witness: u64,
    /// The bytes torn off after these records: none, a whole record that does not follow, or bytes that may claim to be
    /// anything (`None`).
    torn: Option<u64>,
}

impl Records {
    fn lay_out(plan: &mut Reader<'_>) -> Self {
        let mut file = vec![0; FIRST_RECORD as usize];
        let (mut ends, mut unbroken, mut witness, mut torn) = (vec![FIRST_RECORD], true, 0, Some(0));
        let mut chain = 0;
        while file.len() < 64 << 10
            && let (Ok(what), Ok(length), Ok(durable)) = (plan.u8(), plan.u16(), plan.u16())
        {
            let (at, offset) = (file.len(), file.len() as u64);
            if what >= 0xf0 {
                let bytes = plan.bytes(usize::from(length) % 600).unwrap_or_default();
                file.extend_from_slice(bytes);
                file.resize((at + bytes.len().max(1)).next_multiple_of(SECTOR_BYTES), 0);
                if unbroken {
                    (unbroken, torn) = (false, None);
                }
                continue;
            }
            let payload_bytes = usize::from(length) % 9_000;
            if unbroken && what >= 0xe0 {
                (unbroken, torn) = (false, Some(record_bytes(payload_bytes) as u64));
            }
            file.resize(at + record_bytes(payload_bytes), 0);
            file[at + HEADER_BYTES..][..payload_bytes].fill(what);
            let durable = (u64::from(durable) * SECTOR_BYTES as u64).min(offset);
            let follows = if unbroken { chain } else { !chain };
            chain = seal(&mut file[at..], payload_bytes, IDENTITY, offset, follows, durable, crc32);
            if unbroken {
                ends.push(file.len() as u64);
            } else if offset > *ends.last().expect("the list begins with the end of the marks") {
                witness = witness.max(durable);
            }
        }
        file.resize(file.len().next_multiple_of(BLOCK_BYTES), 0);
        Self { file, ends, witness, torn }
    }
}

/// Replays a file. Returns how that ended, and how many records were visited, which begin at `starts`.
fn replayed(file: &[u8], known_end: KnownEnd, starts: &[u64]) -> (ringkeep::error::Result<End>, usize) {
    const NAME: FileName = FileName::Wal(FileNumber(3));
    let found = block_on(async {
        let storage = SimStorage::new(0);
        storage.create(NAME).await?;
        storage.overwrite(NAME, file);
        let opened = storage.open(NAME, Access::Read).await?;
        let mut visited = 0;
        let visit = async |offset, _: &[u8]| {
            assert_eq!(offset, starts[visited], "records are visited in order");
            visited += 1;
            Ok(ControlFlow::Continue(()))
        };
        let file_bytes = file.len() as u64;
        let extent = Extent { label: "a file", identity: IDENTITY, file_bytes, known_end };
        let end = replay(&storage, &opened, extent, visit).await;
        Ok::<_, std::io::Error>((end, visited))
    });
    found.expect("the storage does not fail")
}

/// A commit group.
pub fn wal_group(data: &[u8]) {
    let mut seen = Vec::new();
    if let Ok((first, count)) = decode_group(data, |entry| seen.push(entry.seqno.0)) {
        assert_eq!(seen.len(), count as usize);
        assert!(seen.iter().zip(0..).all(|(seqno, index)| *seqno == first.0 + index));
    }
}

/// Version edits, one after the other, each preceded by its length.
pub fn version_edit(data: &[u8]) {
    let mut reader = Reader::new(data);
    let mut state = State::default();
    while let Ok(payload) = reader.length_and_bytes() {
        let Ok(edit) = VersionEdit::decode(payload) else { return };
        let mut again = Vec::new();
        edit.encode(&mut again);
        assert_eq!(VersionEdit::decode(&again), Ok(edit.clone()));
        let Ok(next) = state.apply(&edit) else { return };
        state = next;
        for level in 1..ringkeep::manifest::LEVELS {
            assert!(state.version.level(level).windows(2).all(|pair| pair[0].largest < pair[1].smallest));
        }
    }
}

/// The payload of `STORE`.
pub fn store(data: &[u8]) {
    if let Ok(store) = Store::decode(data) {
        assert!(store.slots.iter().all(|shard| shard.0 < store.shards));
        assert_eq!(store.slots.len(), ringkeep::key::SLOT_COUNT);
    }
}

/// The payload of a data or index block: walks it, and seeks keys that it holds and a key that it may not hold.
pub fn sst_block(data: &[u8]) {
    walk(&bytes::Bytes::copy_from_slice(data));
}

fn walk(payload: &bytes::Bytes) {
    let _ = seek(payload, b"a key");
    let mut cursor = Cursor::new(payload.clone());
    if cursor.seek(b"a key").is_ok() {
        let _ = cursor.advance();
    }
    let mut cursor = Cursor::new(payload.clone());
    let mut walked = 0;
    while let Ok(true) = cursor.advance() {
        let entry = cursor.entry().expect("the cursor has advanced");
        if walked < 64 {
            let _ = seek(payload, entry.key);
            let mut reader = Reader::new(entry.value);
            let _ = BlockHandle::decode(&mut reader);
        }
        walked += 1;
        assert!(walked <= payload.len(), "every entry takes at least one byte");
    }
}

/// A frame with a checksum that fits: decodes its lengths and its compressed payload.
pub fn sst_frame(data: &[u8]) {
    let mut frame = AlignedBuf::from(data);
    frame.pad_to(BLOCK_BYTES);
    if frame.len() < FRAME_BYTES {
        return;
    }
    let pages = u32::try_from(frame.len() / BLOCK_BYTES).expect("inputs are small");
    frame[4..8].copy_from_slice(&pages.to_le_bytes());
    let crc = frame_crc(IDENTITY, 0, &frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
    let length = frame.len();
    if let Ok(block) = Frame::verify(frame, IDENTITY, 0).and_then(Frame::unpack) {
        assert!(block.payload.len() <= 16 * length);
        walk(&block.payload);
    }
}

/// Other parts of a sorted file (a filter, the properties, handles), and file names.
pub fn sst_parts(data: &[u8]) {
    for hash in [0, u64::MAX, 0x1234_5678_9abc_def0] {
        let _ = filter::may_contain(data, hash);
    }
    if let Ok(meta) = SstMeta::decode(&mut Reader::new(data)) {
        let mut again = Vec::new();
        meta.encode(&mut again);
        assert_eq!(SstMeta::decode(&mut Reader::new(&again)), Ok(meta));
    }
    if let Ok(handle) = BlockHandle::decode(&mut Reader::new(data)) {
        assert!(handle.offset.checked_add(u64::from(handle.bytes)).is_some());
    }
    if let Ok(name) = std::str::from_utf8(data)
        && let Some(parsed) = FileName::parse(name)
    {
        assert_eq!(parsed.to_string(), name);
    }
}

/// Requests on one connection, as the connection takes them from its input. It must not matter where the bytes are
/// split into reads.
pub fn http_request(data: &[u8]) {
    let mut rest = data;
    for _ in 0..16 {
        let whole = HeadEnd::default().find(rest);
        let mut by_parts = HeadEnd::default();
        let parts = [rest.len() / 3, rest.len() / 2, rest.len()];
        let found = parts.iter().find_map(|end| match by_parts.find(&rest[..*end]) {
            Ok(None) => None,
            other => Some(other),
        });
        match (&whole, &found) {
            (Ok(Some(whole)), Some(Ok(Some(found)))) => assert_eq!(whole, found),
            (Ok(None), None) | (Err(_), Some(Err(_))) => {}
            other => panic!("a head that arrives in parts is understood differently: {other:?}"),
        }
        let Ok(Some(bytes)) = whole else { return };
        let Ok(head) = parse(&rest[..bytes], &LastAddress::default()) else { return };
        assert!(head.bytes == bytes && head.target.end <= bytes);
        let body = match head.framing {
            Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX).min(rest.len() - bytes),
            Framing::Empty | Framing::Chunked => 0,
        };
        for part in [&head.host_name, &head.authorization].into_iter().flatten() {
            assert!(part.end <= bytes);
        }
        let tokens = Tokens::parse("fuzz write 0123456789abcdef").expect("the file is valid");
        let policy = Policy { tokens: Some(tokens), hosts: Vec::new(), shutdown: ShutdownMode::Local };
        let _ = policy.admit(&head, rest, false).and_then(|grant| grant.check(Need::Shutdown));
        if let Ok((route, _)) = Route::of(&head, rest, &Grant::ALL, KeyHash::with_seed(1))
            && route.is_operation()
            && let Ok(op) = route.op(rest, &rest[bytes..bytes + body])
        {
            assert!(!op.key().bytes().is_empty() && route.only_reads() != op.writes());
            assert_eq!(route.key().map(|key| key.slot()), Some(op.key().slot()));
        }
        rest = &rest[bytes + body..];
    }
}

/// A chunked body, taken at once and byte by byte.
pub fn http_chunked(data: &[u8]) {
    const MAX: usize = 1 << 16;
    let mut whole = Chunked::default();
    let mut bytewise = Chunked::default();
    let at_once = whole.take(data, MAX);
    let mut from = 0;
    let mut one_by_one = Ok(());
    for end in 1..=data.len() {
        match bytewise.take(&data[from..end], MAX) {
            Ok(taken) => from += taken,
            Err(refusal) => {
                one_by_one = Err(refusal);
                break;
            }
        }
        if bytewise.is_done() {
            break;
        }
    }
    assert!(whole.body().len() <= data.len());
    if let (Ok(taken), Ok(())) = (&at_once, &one_by_one) {
        assert_eq!((whole.is_done(), whole.body()), (bytewise.is_done(), bytewise.body()));
        assert!(!whole.is_done() || *taken == from);
    }
    assert!(!(whole.is_done() && one_by_one.is_err()), "a body that arrives byte by byte means the same");
}

/// A query and its escapes.
pub fn http_query(data: &[u8]) {
    for (name, value) in query::parameters(data).flatten() {
        assert!(name.len() + value.len() < data.len());
    }
    if let Ok(decoded) = query::decode(data) {
        let escaped: String = decoded.iter().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(query::decode(escaped.as_bytes()).expect("the escapes are valid"), decoded);
    }
}

/// A server with a certificate, and a client that trusts it.
fn tls_pair() -> &'static (Settings, Arc<ClientConfig>) {
    static PAIR: OnceLock<(Settings, Arc<ClientConfig>)> = OnceLock::new();
    PAIR.get_or_init(|| {
        let folder = tempfile::tempdir().expect("there is room for two small files");
        let key = rcgen::KeyPair::generate().expect("there is randomness");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("the name is valid");
        let pem = params.self_signed(&key).expect("the key is valid").pem();
        let (certificate, key_file) = (folder.path().join("certificate"), folder.path().join("key"));
        std::fs::write(&certificate, &pem).expect("the folder is ours");
        std::fs::write(&key_file, key.serialize_pem()).expect("the folder is ours");
        let settings = Settings::read(&certificate, &key_file, None).expect("they fit");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is PEM")).expect("it is valid");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().expect("the provider has them");
        (settings, Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    })
}

/// What a session makes of bytes that come in pieces: whether it has failed, the plaintext, and what it sends.
fn fed(session: &mut Session, bytes: &[u8], piece: usize) -> (bool, Vec<u8>, Vec<u8>) {
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    let failed = bytes.chunks(piece).any(|piece| session.feed(piece, &mut plain, &mut out).is_err());
    (failed, plain, out)
}

/// Bytes to a server that speaks TLS, at once and in pieces whose length the first byte says: instead of a handshake, as
/// encrypted data after one, and as noise after that.
pub fn tls(data: &[u8]) {
    let Some((piece, data)) = data.split_first() else { return };
    let piece = 1 + usize::from(*piece);
    let (settings, config) = tls_pair();
    let session = || Session::new(settings).expect("there is randomness");
    let (failed, plain, _) = fed(&mut session(), data, usize::MAX);
    let (failed_too, plain_too, _) = fed(&mut session(), data, piece);
    assert_eq!((failed, plain), (failed_too, plain_too));

    let name = ServerName::try_from("localhost").expect("the name is valid");
    let mut client = ClientConnection::new(config.clone(), name).expect("there is randomness");
    let mut session = session();
    let mut send = |client: &mut ClientConnection| {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("memory takes everything");
        }
        let (failed, plain, out) = fed(&mut session, &bytes, piece);
        assert!(!failed, "what a client sends is valid, wherever it is cut");
        let mut rest = &out[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory gives everything");
            client.process_new_packets().expect("what the server sends is valid");
        }
        plain
    };
    while client.is_handshaking() {
        assert!(send(&mut client).is_empty());
    }
    client.writer().write_all(data).expect("memory takes everything");
    assert_eq!(send(&mut client), data);
    let _ = fed(&mut session, data, piece);
}
