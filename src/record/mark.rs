//! Marks: how far a file of records is durable, and how far it may have been written. Pure.
//!
//! The records alone cannot show where a file of them should end: if the last of them are zeroed, what is left looks
//! like a shorter file. So each file of records begins with two slots of one block, and a *mark* in the first sector of
//! a slot says how far the file was durable when the mark was written. A mark is one record (see [`crate::record`]) at
//! the offset of its slot; the rest of the block is zero. Its payload, integers little-endian:
//!
//! ```text
//!   0  u64 number       counts the marks of the file; even numbers are in slot 0, odd numbers in slot 1
//!   8  u64 durable      every byte of the file below this offset was synced
//!  16  u64 limit        no record reaches beyond this offset
//!  24  u8  used before  1 if bytes of an earlier use of the file may lie after the records, else 0
//! ```
//!
//! E1  When a mark is written, a sync that covers every record below its `durable` has already returned. So every mark
//!     that was ever written is true, and the newest mark that verifies says the most.
//! E2  No record is written beyond an offset before a mark whose `limit` reaches that far was synced. So replay reads
//!     nothing beyond the limit of the newest mark.
//! E3  Marks alternate between the slots, and a slot is written only after the mark in the other slot was synced. So a
//!     torn mark leaves the mark before it. A bad slot is reported. The limit in force may have been in that slot, so
//!     the whole file is searched. A file with two bad slots is refused.
//! E4  Both slots are written and synced before anything names the file, whether the file is new or recycled. So a slot
//!     of zeros was not torn but zeroed, and the file is refused.
//!
//! E1 to E4 do not notice when a whole file is replaced by an older copy of itself. For that, the owner of the file has
//! to know from elsewhere how far the file was durable ([`KnownEnd`](super::replay::KnownEnd)).

use super::{Flaw, RecordBuilder, decode};
use crate::codec::Reader;
use crate::error::CorruptionReason;
use crate::identity::Identity;
use crate::storage::{AlignedBuf, BLOCK_BYTES};

/// Slots of a file, each one block.
pub const SLOTS: u64 = 2;

/// How far a file of records is durable, and how far its records may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Counts the marks of the file.
    pub number: u64,
    /// Bytes of the file that are durable.
    pub durable: u64,
    /// Bytes of the file that records may take.
    pub limit: u64,
    /// Whether bytes of an earlier use of the file may lie after the records.
    pub used_before: bool,
}

impl Mark {
    /// Where in the file the mark belongs.
    pub fn offset(self) -> u64 {
        self.number % SLOTS * BLOCK_BYTES as u64
    }

    /// The block to write at [`Self::offset`].
    pub fn encode(self, identity: Identity) -> AlignedBuf {
        let mut record = RecordBuilder::new(AlignedBuf::with_capacity(BLOCK_BYTES), self.offset());
        for number in [self.number, self.durable, self.limit] {
            record.extend_from_slice(&number.to_le_bytes());
        }
        record.extend_from_slice(&[u8::from(self.used_before)]);
        record.finish(&[], identity, 0, 0).0
    }

    /// Reads the mark in the block of slot `slot`.
    ///
    /// # Errors
    /// Why the slot holds no mark.
    pub fn decode(block: &[u8], identity: Identity, slot: u64) -> Result<Self, CorruptionReason> {
        let record = match decode(block, identity, slot * BLOCK_BYTES as u64) {
            Ok(record) => record,
            Err(Flaw::Absent(reason) | Flaw::Damaged { reason, .. } | Flaw::LaterVersion(reason)) => {
                return Err(reason);
            }
            Err(Flaw::Incomplete { .. }) => {
                return Err(CorruptionReason::Damaged("the file is shorter than its marks"));
            }
        };
        let rest = block.get(record.bytes..BLOCK_BYTES).unwrap_or_default();
        if block.len() < BLOCK_BYTES || rest.iter().any(|byte| *byte != 0) {
            return Err(CorruptionReason::Damaged("the block of the mark holds more than the mark"));
        }
        let mut reader = Reader::new(record.payload);
        let (number, durable, limit) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let used_before = reader.u8()? != 0;
        if number % SLOTS != slot || limit < durable || !reader.is_empty() {
            return Err(CorruptionReason::Damaged("the mark contradicts itself"));
        }
        Ok(Self { number, durable, limit, used_before })
    }

    /// Reads both slots from `front`, the beginning of the file. Returns the newest mark, and what is wrong with the
    /// other slot if that slot is bad (E3).
    ///
    /// # Errors
    /// If a slot is of a later version, that version. If both slots are bad, what is wrong with the first.
    pub fn newest(
        front: &[u8],
        identity: Identity,
    ) -> Result<(Self, Option<CorruptionReason>), CorruptionReason> {
        let slot = |slot: u64| {
            let at = crate::codec::to_usize(slot) * BLOCK_BYTES;
            let block = front.get(at..front.len().min(at + BLOCK_BYTES)).unwrap_or_default();
            Self::decode(block, identity, slot)
        };
        match (slot(0), slot(1)) {
            (Ok(one), Ok(two)) => Ok((if one.number < two.number { two } else { one }, None)),
            (Err(later @ CorruptionReason::LaterVersion { .. }), _)
            | (_, Err(later @ CorruptionReason::LaterVersion { .. })) => Err(later),
            (Ok(mark), Err(reason)) | (Err(reason), Ok(mark)) => Ok((mark, Some(reason))),
            (Err(reason), Err(_)) => Err(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::IDENTITY;

    const MARK: Mark = Mark { number: 7, durable: 8_192, limit: 1 << 20, used_before: true };

    fn front(marks: [Mark; 2]) -> Vec<u8> {
        marks.map(|mark| mark.encode(IDENTITY).to_vec()).concat()
    }

    #[test]
    fn a_mark_round_trips_and_every_flipped_bit_of_its_block_is_seen() {
        let block = MARK.encode(IDENTITY);
        assert_eq!((MARK.offset(), block.len()), (4_096, BLOCK_BYTES));
        assert_eq!(Mark::decode(&block, IDENTITY, 1), Ok(MARK));
        assert!(Mark::decode(&block, IDENTITY, 0).is_err(), "a mark in the other slot is misplaced");
        for bit in 0..BLOCK_BYTES * 8 {
            let mut flipped = block.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Mark::decode(&flipped, IDENTITY, 1).is_err(), "bit {bit}");
        }
        for length in 0..BLOCK_BYTES {
            assert!(Mark::decode(&block[..length], IDENTITY, 1).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn e3_the_newest_mark_counts_and_one_bad_slot_leaves_the_other() {
        let older = Mark { number: 6, durable: 8_192, limit: 16_384, used_before: true };
        let newest = |front: &[u8]| Mark::newest(front, IDENTITY);
        assert_eq!(newest(&front([older, MARK])), Ok((MARK, None)));
        let newer = Mark { number: 8, durable: 12_288, ..MARK };
        assert_eq!(newest(&front([newer, MARK])), Ok((newer, None)));
        for (bad, left) in [(0, MARK), (1, older)] {
            let mut bytes = front([older, MARK]);
            bytes[bad * BLOCK_BYTES + 60] ^= 1;
            let (mark, reason) = newest(&bytes).unwrap();
            assert!(mark == left && reason.is_some());
        }
        let mut bytes = front([older, MARK]);
        (bytes[60], bytes[BLOCK_BYTES + 60]) = (1, 1);
        assert!(newest(&bytes).is_err() && newest(&[]).is_err() && newest(&bytes[..5_000]).is_err());
    }
}
