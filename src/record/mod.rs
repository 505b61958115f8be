//! Checksummed record framing, shared by every file except the blocks of an SST. Pure; [`mod@file`] and [`mod@replay`]
//! do the I/O.
//!
//! Owns: the frame, by which a stale, misplaced or foreign record is told from a damaged one (P5), and the rule that
//! tells rot from a torn write (R2).
//!
//! A record starts at a sector and takes whole sectors. Integers are little-endian:
//!
//! ```text
//!  0 u32 magic       "RGK1"
//!  4 u32 crc         CRC-32 of everything after this field: header, payload, padding
//!  8 u32 length      bytes of the payload
//! 12 u32 chain       crc of the record before this one in the file; 0 in the first
//! 16 u64 store       id of the store, drawn at random when it was created
//! 24 u64 file        number of the file (old records in a recycled file carry its old number)
//! 32 u64 offset      where in the file this record starts (a misdirected write lies somewhere else)
//! 40 u64 durable     bytes of the file that were synced when this record was written
//! 48 u16 shard
//! 50 u8  kind        which kind of file, see `FileKind`
//! 51 u8  version     of this format: 1
//! 52 u32 zero
//! 56     payload, then zeros up to the next sector
//! ```
//!
//! Every version of the format keeps the fields up to `version` where they are, and the checksum over everything after
//! `crc`. So a record of a later version verifies and is refused by name. It is never taken for a torn write.
//!
//! R1  No sector holds bytes of two records. So a torn append cannot hurt the records before it, even though it
//!     rewrites the 4 KiB block that they end in, with their bytes at its front (S2, S3).
//! R2  A record that does not verify is damaged if a mark, the owner of the file, or a later record that verifies says
//!     that the file was durable beyond it. Without such a witness it is the torn end of the file.

pub mod file;
pub mod mark;
pub mod replay;

use crc32fast::Hasher;

use crate::codec::{Reader, align_up, crc32};
use crate::error::CorruptionReason;
use crate::identity::Identity;
use crate::storage::{AlignedBuf, BLOCK_BYTES, SECTOR_BYTES};

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 56;
const MAGIC: [u8; 4] = *b"RGK1";
const VERSION: u8 = 1;
const CRC_FROM: usize = 8;

/// A record that verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// What the owner of the file wrote.
    pub payload: &'a [u8],
    /// Its checksum: the `chain` of the next record.
    pub crc: u32,
    /// Checksum of the record before it.
    pub chain: u32,
    /// Bytes of the file that were durable when it was written.
    pub durable: u64,
    /// Bytes it takes, whole sectors.
    pub bytes: usize,
}

/// Why there is no valid record at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Zeros, or bytes that were never a record of this file at this offset: another store, shard, kind, file or
    /// offset.
    Absent(CorruptionReason),
    /// The header is that of a record of this file, but the record does not verify.
    Damaged {
        /// What is wrong.
        reason: CorruptionReason,
        /// The length that the header claims, in whole sectors. It may be wrong.
        bytes: usize,
    },
    /// The slice ends before the record does.
    Incomplete {
        /// Length that the slice must have before more can be said.
        bytes: usize,
    },
    /// The checksum matches, but this program does not know the version of the format.
    LaterVersion(CorruptionReason),
}

/// Bytes that a record with a payload of `payload_bytes` takes in the file.
pub const fn record_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(SECTOR_BYTES)
}

/// Fills in the header of `record`, which consists of space for the header, then `payload_bytes` of payload, then
/// zeros, and is [`record_bytes`] long. `checksum` is given what follows the field of the checksum: it is [`crc32`],
/// unless a part of the checksum is known already. Returns the checksum.
pub fn seal(
    record: &mut [u8],
    payload_bytes: usize,
    identity: Identity,
    offset: u64,
    chain: u32,
    durable: u64,
    checksum: impl FnOnce(&[u8]) -> u32,
) -> u32 {
    assert_eq!(record.len(), record_bytes(payload_bytes)); // R1
    assert!(offset.is_multiple_of(SECTOR_BYTES as u64) && durable <= offset); // R1, R2
    let length = u32::try_from(payload_bytes).expect("a record is under 4 GiB");
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&length.to_le_bytes());
    header.extend_from_slice(&chain.to_le_bytes());
    header.extend_from_slice(&identity.store_id.to_le_bytes());
    header.extend_from_slice(&identity.file.0.to_le_bytes());
    header.extend_from_slice(&offset.to_le_bytes());
    header.extend_from_slice(&durable.to_le_bytes());
    header.extend_from_slice(&identity.shard.0.to_le_bytes());
    header.extend_from_slice(&[identity.kind as u8, VERSION]);
    header.extend_from_slice(&[0; 4]);
    record[..HEADER_BYTES].copy_from_slice(&header);
    let crc = checksum(&record[CRC_FROM..]);
    record[4..CRC_FROM].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Reads the record at the start of `bytes`, which lie at `offset` of the file.
pub fn decode(bytes: &[u8], identity: Identity, offset: u64) -> Result<Record<'_>, Flaw> {
    let absent = |reason| Flaw::Absent(CorruptionReason::Damaged(reason));
    let cut = |_| Flaw::Incomplete { bytes: SECTOR_BYTES };
    let mut reader = Reader::new(bytes);
    if reader.bytes(MAGIC.len()).map_err(cut)? != MAGIC {
        return Err(absent("no record begins here"));
    }
    let crc = reader.u32().map_err(cut)?;
    let payload_bytes = reader.u32().map_err(cut)? as usize;
    let chain = reader.u32().map_err(cut)?;
    if reader.u64().map_err(cut)? != identity.store_id {
        return Err(absent("the record belongs to another store"));
    }
    if reader.u64().map_err(cut)? != identity.file.0 {
        return Err(absent("the record belongs to another file"));
    }
    if reader.u64().map_err(cut)? != offset {
        return Err(absent("the record belongs to another offset"));
    }
    let durable = reader.u64().map_err(cut)?;
    if reader.u16().map_err(cut)? != identity.shard.0 {
        return Err(absent("the record belongs to another shard"));
    }
    if reader.u8().map_err(cut)? != identity.kind as u8 {
        return Err(absent("the record belongs to another kind of file"));
    }
    let version = reader.u8().map_err(cut)?;
    let record_bytes = record_bytes(payload_bytes);
    let damaged = |reason| Flaw::Damaged { reason: CorruptionReason::Damaged(reason), bytes: record_bytes };
    let Some(record) = bytes.get(..record_bytes) else {
        return Err(Flaw::Incomplete { bytes: record_bytes });
    };
    if crc32(&record[CRC_FROM..]) != crc {
        return Err(damaged("the checksum of the record does not match"));
    }
    if VERSION < version {
        let reason = CorruptionReason::LaterVersion { what: "record format", found: version, known: VERSION };
        return Err(Flaw::LaterVersion(reason));
    }
    if version != VERSION {
        return Err(damaged("no version of ringkeep writes records of this version"));
    }
    if offset < durable {
        return Err(damaged("the record claims to be durable before it was written"));
    }
    let payload = &record[HEADER_BYTES..HEADER_BYTES + payload_bytes];
    Ok(Record { payload, crc, chain, durable, bytes: record_bytes })
}

/// A record being built in the buffer that will be written. O_DIRECT writes whole blocks, so the buffer begins with the
/// bytes that already fill the first part of the record's 4 KiB block.
pub struct RecordBuilder {
    buffer: AlignedBuf,
    offset: u64,
    /// The part of the payload whose checksum is known: where it begins, and its checksum so far.
    hashed: Option<(usize, Hasher)>,
}

impl RecordBuilder {
    /// An empty record at `offset` of its file. `buffer` is memory to reuse.
    pub fn new(mut buffer: AlignedBuf, offset: u64) -> Self {
        buffer.truncate(0);
        let mut builder = Self { buffer, offset, hashed: None };
        builder.buffer.resize(builder.front() + HEADER_BYTES);
        builder
    }

    /// Makes room for `bytes` more bytes of payload, and for the padding after them.
    pub fn reserve(&mut self, bytes: usize) {
        let end = (self.buffer.len() + bytes).next_multiple_of(BLOCK_BYTES);
        self.buffer.reserve(end - self.buffer.len());
    }

    /// Appends bytes to the payload.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if let Some((_, hasher)) = &mut self.hashed {
            hasher.update(bytes);
        }
    }

    /// From here on the checksum is computed while bytes are appended, so that the end of a long record takes no time.
    pub fn begin_checksum(&mut self) {
        self.hashed = Some((self.payload_bytes(), Hasher::new()));
    }

    /// Overwrites the payload with `bytes`, starting at `at`, before the part whose checksum is known.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        assert!(self.hashed.as_ref().is_none_or(|(from, _)| at + bytes.len() <= *from));
        let from = self.front() + HEADER_BYTES + at;
        self.buffer[from..from + bytes.len()].copy_from_slice(bytes);
    }

    /// The payload so far.
    pub fn payload(&self) -> &[u8] {
        &self.buffer[self.front() + HEADER_BYTES..]
    }

    /// Where the payload lies in the blocks that are written for the record.
    pub fn payload_range(&self) -> std::ops::Range<usize> {
        self.front() + HEADER_BYTES..self.buffer.len()
    }

    /// Where in the file the record starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the payload so far.
    pub fn payload_bytes(&self) -> usize {
        self.buffer.len() - self.front() - HEADER_BYTES
    }

    /// Where in the file the record would end if it were complete after `bytes` more bytes.
    pub fn end_with(&self, bytes: usize) -> u64 {
        self.offset + record_bytes(self.payload_bytes() + bytes) as u64
    }

    /// Where in the file the record would end if it were complete.
    pub fn end(&self) -> u64 {
        self.end_with(0)
    }

    fn front(&self) -> usize {
        crate::codec::to_usize(self.offset) % BLOCK_BYTES
    }

    /// Completes the record. `front` holds the bytes before the record in its first block. Returns the whole blocks to
    /// write, the offset to write them at, and the checksum.
    fn finish(
        mut self,
        front: &[u8],
        identity: Identity,
        chain: u32,
        durable: u64,
    ) -> (AlignedBuf, u64, u32) {
        let at = self.front();
        assert_eq!(front.len(), at); // R1
        let payload_bytes = self.payload_bytes();
        self.buffer.pad_to(SECTOR_BYTES);
        self.buffer[..at].copy_from_slice(front);
        let hashed = self.hashed.take();
        let checksum = |record: &[u8]| match hashed {
            None => crc32(record),
            Some((from, hasher)) => {
                let (from, end) = (HEADER_BYTES - CRC_FROM + from, HEADER_BYTES - CRC_FROM + payload_bytes);
                let mut whole = Hasher::new();
                whole.update(&record[..from]);
                whole.combine(&hasher);
                whole.update(&record[end..]);
                whole.finalize()
            }
        };
        let record = &mut self.buffer[at..];
        let crc = seal(record, payload_bytes, identity, self.offset, chain, durable, checksum);
        self.buffer.pad_to(BLOCK_BYTES);
        (self.buffer, self.offset - at as u64, crc)
    }
}

/// Encodes one record of whole blocks that is written once and stands alone: `CURRENT`, `STORE`, the footer of an SST.
pub fn encode_single(payload: &[u8], identity: Identity, offset: u64) -> AlignedBuf {
    let mut record = RecordBuilder::new(AlignedBuf::with_capacity(BLOCK_BYTES), offset);
    assert!(offset.is_multiple_of(BLOCK_BYTES as u64));
    record.extend_from_slice(payload);
    let padded = align_up((HEADER_BYTES + payload.len()) as u64, BLOCK_BYTES as u64);
    let padding = crate::codec::to_usize(padded) - HEADER_BYTES - payload.len();
    record.extend_from_slice(&vec![0; padding]); // so that the checksum covers the whole block
    record.finish(&[], identity, 0, 0).0
}

/// The store that the record at the front of `bytes` belongs to, if the record verifies; for a reader that has lost the
/// file which names the store.
pub fn claimed_store(bytes: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(bytes);
    let is_record = reader.bytes(MAGIC.len()).ok()? == MAGIC;
    reader.u32().ok()?;
    let record = bytes.get(..record_bytes(reader.u32().ok()? as usize))?;
    reader.u32().ok()?;
    let store_id = reader.u64().ok()?;
    (is_record && verifies(record)).then_some(store_id)
}

/// Whether the checksum at the front of `bytes` covers the rest of them.
fn verifies(bytes: &[u8]) -> bool {
    let stored =
        bytes.get(4..CRC_FROM).map(|field| u32::from_le_bytes([field[0], field[1], field[2], field[3]]));
    stored.is_some_and(|stored| stored == crc32(&bytes[CRC_FROM..]))
}

/// Reads what [`encode_single`] wrote. Returns the payload with the zeros after it.
pub fn decode_single(bytes: &[u8], identity: Identity, offset: u64) -> Result<&[u8], CorruptionReason> {
    match decode(bytes, identity, offset) {
        Ok(record) if record.bytes == bytes.len() => Ok(record.payload),
        Ok(_) => Err(CorruptionReason::Damaged("the file is longer than its record")),
        // Only bytes that verify belong to another file, store or place. There is one record, so nothing is stale.
        Err(Flaw::Absent(_)) if !verifies(bytes) => {
            Err(CorruptionReason::Damaged("the checksum does not match"))
        }
        Err(Flaw::Absent(reason) | Flaw::Damaged { reason, .. } | Flaw::LaterVersion(reason)) => Err(reason),
        Err(Flaw::Incomplete { .. }) => Err(CorruptionReason::Damaged("the file is shorter than its record")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::FileKind;
    use crate::key::{FileNumber, ShardId};

    pub(crate) const IDENTITY: Identity =
        Identity { store_id: 0x1122, shard: ShardId(3), kind: FileKind::Wal, file: FileNumber(7) };

    fn record(payload: &[u8], offset: u64) -> Vec<u8> {
        let mut builder = RecordBuilder::new(AlignedBuf::with_capacity(0), offset);
        builder.extend_from_slice(payload);
        let front = vec![9; crate::codec::to_usize(offset) % BLOCK_BYTES];
        let (buffer, at, _) = builder.finish(&front, IDENTITY, 5, offset);
        assert!(buffer.starts_with(&front) && at.is_multiple_of(BLOCK_BYTES as u64));
        buffer[front.len()..].to_vec()
    }

    #[test]
    fn a_flipped_bit_in_a_single_record_is_damage_and_not_a_foreign_file() {
        let bytes = encode_single(b"payload", IDENTITY, 0);
        for at in [4, 16, 24, 32, 48, 50, 60] {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1;
            let reason = decode_single(&flipped, IDENTITY, 0).unwrap_err().to_string();
            assert!(reason.contains("checksum"), "byte {at}: {reason}");
        }
        assert_eq!((claimed_store(&bytes), claimed_store(&bytes[1..])), (Some(IDENTITY.store_id), None));
        let mut flipped = bytes.to_vec();
        flipped[16] ^= 1;
        assert_eq!((claimed_store(&flipped), claimed_store(&bytes[..600])), (None, None));
        let foreign = Identity { store_id: 1, ..IDENTITY };
        assert!(decode_single(&bytes, foreign, 0).unwrap_err().to_string().contains("another store"));
    }

    #[test]
    fn a_record_round_trips_and_every_flipped_bit_is_seen() {
        let offset = 4096 + 512;
        let bytes = record(b"payload", offset);
        let read = decode(&bytes, IDENTITY, offset).unwrap();
        assert_eq!((read.payload, read.chain, read.durable, read.bytes), (&b"payload"[..], 5, offset, 512));
        for bit in 0..512 * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped, IDENTITY, offset).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_checksum_that_was_computed_on_the_way_is_the_same() {
        for (payload, from) in [(10, 0), (1_000, 20), (4_030, 9), (5_000, 5_000), (9_000, 3)] {
            let payload: Vec<_> = (0..payload).map(|at| at as u8).collect();
            for offset in (0..8).map(|sector| 4096 + 512 * sector) {
                let mut builder = RecordBuilder::new(AlignedBuf::with_capacity(0), offset);
                builder.reserve(payload.len());
                let capacity = builder.buffer.capacity();
                builder.extend_from_slice(&payload[..from]);
                builder.begin_checksum();
                for part in payload[from..].chunks(700) {
                    builder.extend_from_slice(part);
                }
                let front = vec![9; crate::codec::to_usize(offset) % BLOCK_BYTES];
                let (bytes, ..) = builder.finish(&front, IDENTITY, 5, offset);
                assert_eq!(bytes.capacity(), capacity, "a long record is not copied again at its end");
                assert_eq!(bytes[front.len()..], record(&payload, offset));
            }
        }
    }

    #[test]
    fn a_record_of_a_later_version_is_told_from_a_damaged_one() {
        let mut bytes = record(b"payload", 4096)[..SECTOR_BYTES].to_vec();
        bytes[51] = VERSION + 1;
        assert!(
            matches!(decode(&bytes, IDENTITY, 4096), Err(Flaw::Damaged { .. })),
            "the checksum no longer matches"
        );
        let crc = crc32(&bytes[CRC_FROM..]);
        bytes[4..CRC_FROM].copy_from_slice(&crc.to_le_bytes());
        let reason = CorruptionReason::LaterVersion { what: "record format", found: 2, known: 1 };
        assert_eq!(decode(&bytes, IDENTITY, 4096), Err(Flaw::LaterVersion(reason)));
        let error = crate::error::Error::undecodable("w", 4096, reason);
        assert_eq!(error.kind().exit_status(), 78);
    }

    #[test]
    fn stale_foreign_and_misplaced_records_are_absent_and_a_cut_one_is_incomplete() {
        let bytes = record(&[1; 1000], 0);
        for identity in [
            Identity { store_id: 1, ..IDENTITY },
            Identity { shard: ShardId(4), ..IDENTITY },
            Identity { kind: FileKind::Manifest, ..IDENTITY },
            Identity { file: FileNumber(8), ..IDENTITY },
        ] {
            assert!(matches!(decode(&bytes, identity, 0), Err(Flaw::Absent(_))));
        }
        assert!(matches!(decode(&bytes, IDENTITY, 512), Err(Flaw::Absent(_))));
        assert!(matches!(decode(&[0; 512], IDENTITY, 0), Err(Flaw::Absent(_))));
        for length in 0..record_bytes(1000) {
            let flaw = decode(&bytes[..length], IDENTITY, 0);
            assert!(matches!(flaw, Err(Flaw::Incomplete { .. })), "{length}: {flaw:?}");
        }
    }

    #[test]
    fn a_single_record_covers_its_whole_block() {
        let bytes = encode_single(b"x", IDENTITY, 8192);
        assert_eq!(bytes.len(), BLOCK_BYTES);
        assert_eq!(decode_single(&bytes, IDENTITY, 8192).unwrap()[0], b'x');
        assert!(decode_single(&bytes[..512], IDENTITY, 8192).is_err());
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(&[0; 512]);
        assert!(decode_single(&longer, IDENTITY, 8192).is_err());
    }
}
