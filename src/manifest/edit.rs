//! Version edits: one change of what a shard consists of. Pure; any bytes decode to an edit or an error.
//!
//! A payload is a list of fields, each a tag byte and its content. An edit with an unknown tag is refused, because an
//! edit that is only half understood is worse than none:
//!
//! ```text
//!   1 next file   varint                        5 add SST     u8 level, description (see `SstMeta::encode`)
//!   2 flushed     varint SeqNo                  6 remove SST  u8 level, varint number
//!   3 add WAL     varint number, bytes, end,    7 clean WAL   varint number
//!                 u8 1 if end is exact, else 0  8 durable WAL varint number, end
//!   4 remove WAL  varint number                 9 keep WAL    varint number, bytes
//!  10 add damage  u8 level, see `Damage::encode`
//!  11 end damage  varint number of the file
//! ```

use std::rc::Rc;

use super::damage::Damage;
use super::{LEVELS, SharedMeta};
use crate::codec::{Reader, put_varint};
use crate::error::CorruptionReason;
use crate::key::{FileNumber, SeqNo};
use crate::record::replay::KnownEnd;
use crate::sst::SstMeta;

/// What the manifest knows of a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalMeta {
    /// The least length of the file: it may have grown since.
    pub bytes: u64,
    /// Where its groups end.
    pub end: KnownEnd,
}

/// One change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionEdit {
    /// Above every file number in use.
    pub next_file: Option<FileNumber>,
    /// Every write up to this one is in an SST.
    pub flushed: Option<SeqNo>,
    /// WALs that belong to the shard from now on.
    pub add_wals: Vec<(FileNumber, WalMeta)>,
    /// Offsets up to which WALs of the shard are durable (W4).
    pub durable_wals: Vec<(FileNumber, u64)>,
    /// WALs that are not needed any more, for recovery or as kept WALs.
    pub remove_wals: Vec<FileNumber>,
    /// WALs that recovery does not need any more, and that are kept all the same; with their least lengths.
    pub keep_wals: Vec<(FileNumber, u64)>,
    /// The WAL that a clean stop left empty. It counts only in the last edit of a manifest.
    pub clean_wal: Option<FileNumber>,
    /// SSTs that belong to the shard from now on, with their levels.
    pub add_ssts: Vec<(usize, SharedMeta)>,
    /// SSTs that are not needed any more, with their levels.
    pub remove_ssts: Vec<(usize, FileNumber)>,
    /// Key ranges that are in quarantine from now on.
    pub add_damage: Vec<Rc<Damage>>,
    /// Files whose key ranges are not in quarantine any more.
    pub remove_damage: Vec<FileNumber>,
}

impl VersionEdit {
    /// Appends all fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let level_byte = |level: usize| u8::try_from(level).expect("levels are few");
        if let Some(number) = self.next_file {
            out.push(1);
            put_varint(out, number.0);
        }
        if let Some(seqno) = self.flushed {
            out.push(2);
            put_varint(out, seqno.0);
        }
        for (number, wal) in &self.add_wals {
            out.push(3);
            put_varint(out, number.0);
            put_varint(out, wal.bytes);
            put_varint(out, wal.end.durable());
            out.push(u8::from(matches!(wal.end, KnownEnd::Exactly(_))));
        }
        for (number, end) in &self.durable_wals {
            out.push(8);
            put_varint(out, number.0);
            put_varint(out, *end);
        }
        for number in &self.remove_wals {
            out.push(4);
            put_varint(out, number.0);
        }
        for (number, bytes) in &self.keep_wals {
            out.push(9);
            put_varint(out, number.0);
            put_varint(out, *bytes);
        }
        for (level, meta) in &self.add_ssts {
            out.extend_from_slice(&[5, level_byte(*level)]);
            meta.encode(out);
        }
        for (level, number) in &self.remove_ssts {
            out.extend_from_slice(&[6, level_byte(*level)]);
            put_varint(out, number.0);
        }
        if let Some(number) = self.clean_wal {
            out.push(7);
            put_varint(out, number.0);
        }
        for damage in &self.add_damage {
            out.extend_from_slice(&[10, level_byte(damage.level)]);
            damage.encode(out);
        }
        for number in &self.remove_damage {
            out.push(11);
            put_varint(out, number.0);
        }
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(payload: &[u8]) -> Result<Self, CorruptionReason> {
        let mut reader = Reader::new(payload);
        let mut edit = Self::default();
        while !reader.is_empty() {
            match reader.u8()? {
                1 => edit.next_file = Some(FileNumber(reader.varint()?)),
                2 => edit.flushed = Some(SeqNo(reader.varint()?)),
                3 => {
                    let number = FileNumber(reader.varint()?);
                    let bytes = reader.varint()?;
                    let end = reader.varint()?;
                    let end = match reader.u8()? {
                        0 => KnownEnd::AtLeast(end),
                        1 => KnownEnd::Exactly(end),
                        _ => {
                            return Err(CorruptionReason::Damaged(
                                "the end of a WAL is neither exact nor open",
                            ));
                        }
                    };
                    edit.add_wals.push((number, WalMeta { bytes, end }));
                }
                4 => edit.remove_wals.push(FileNumber(reader.varint()?)),
                5 => edit.add_ssts.push((level(&mut reader)?, Rc::new(SstMeta::decode(&mut reader)?))),
                6 => edit.remove_ssts.push((level(&mut reader)?, FileNumber(reader.varint()?))),
                7 => edit.clean_wal = Some(FileNumber(reader.varint()?)),
                8 => edit.durable_wals.push((FileNumber(reader.varint()?), reader.varint()?)),
                9 => edit.keep_wals.push((FileNumber(reader.varint()?), reader.varint()?)),
                10 => {
                    let level = level(&mut reader)?;
                    edit.add_damage.push(Rc::new(Damage::decode(level, &mut reader)?));
                }
                11 => edit.remove_damage.push(FileNumber(reader.varint()?)),
                0 => return Err(CorruptionReason::Damaged("a field of the version edit has no tag")),
                found => {
                    let what = "version edit field";
                    return Err(CorruptionReason::LaterVersion { what, found, known: 11 });
                }
            }
        }
        Ok(edit)
    }
}

fn level(reader: &mut Reader<'_>) -> Result<usize, CorruptionReason> {
    let level = usize::from(reader.u8()?);
    if level < LEVELS { Ok(level) } else { Err(CorruptionReason::Damaged("the level is out of range")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::damage::KeyRange;
    use super::*;

    #[test]
    fn an_edit_round_trips_and_any_cut_is_an_error_or_a_shorter_edit() {
        let edit = VersionEdit {
            next_file: Some(FileNumber(300)),
            flushed: Some(SeqNo(1 << 40)),
            add_wals: vec![
                (FileNumber(7), WalMeta { bytes: 1 << 26, end: KnownEnd::default() }),
                (FileNumber(8), WalMeta { bytes: 1 << 26, end: KnownEnd::Exactly(8192) }),
            ],
            durable_wals: vec![(FileNumber(7), 12_288)],
            remove_wals: vec![FileNumber(6)],
            keep_wals: vec![(FileNumber(5), 1 << 20)],
            clean_wal: Some(FileNumber(7)),
            add_ssts: vec![(0, Rc::new(super::super::version::tests::meta(9, "a", "k", 10)))],
            remove_ssts: vec![(6, FileNumber(2))],
            add_damage: vec![Rc::new(Damage {
                level: 2,
                file: FileNumber(4),
                last: SeqNo(70),
                ranges: vec![
                    KeyRange { from: b"a".as_slice().into(), to: b"c".as_slice().into() },
                    KeyRange { from: b"c".as_slice().into(), to: b"cc".as_slice().into() },
                ],
            })],
            remove_damage: vec![FileNumber(3)],
        };
        let mut payload = Vec::new();
        edit.encode(&mut payload);
        assert_eq!(VersionEdit::decode(&payload), Ok(edit.clone()));
        let later = VersionEdit::decode(&[payload.as_slice(), &[12, 1]].concat());
        let what = "version edit field";
        assert_eq!(later, Err(CorruptionReason::LaterVersion { what, found: 12, known: 11 }));
        for length in 0..payload.len() {
            assert_ne!(VersionEdit::decode(&payload[..length]), Ok(edit.clone()));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(payload in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = VersionEdit::decode(&payload);
        }
    }
}
