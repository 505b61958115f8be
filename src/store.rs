//! `STORE`: the file that makes a data directory one store. It holds the id of the store, its number of shards, and the
//! slots of each shard.
//!
//! Owns: the file, and the steps of its creation.
//!
//! ```text
//!   u32 format version  u64 store id  u16 shards  u8 state: 1 creating, 2 ready
//!   runs, to 16,384 slots in all: varint slots, varint shard
//! ```
//!
//! The file is one record of one block (see `crate::record`), replaced as a whole. Creation:
//!
//! 1. `STORE` is written with state `creating`;  2. the shards are created;  3. `STORE` is written with `ready`.
//!
//! A crash between 1 and 3 leaves `creating`: nothing was acknowledged, and the shards are created again. Once `STORE`
//! says `ready`, every shard must be there: a missing shard is damage, never a reason to create the shard anew. A
//! directory that has shards and no `STORE` has lost the file, and is refused.
//!
//! # Versions
//!
//! The format version in `STORE` stands for every format in the data directory. This is the policy:
//!
//! - Every change of any format takes the next number. In all stores with the same number, bytes on disk mean the same.
//! - A program opens exactly the numbers that it knows; today it knows one. Every other number is refused with status
//!   78, and the message names both. `STORE` is read before any other file, so nothing is touched.
//! - An upgrade to a program that knows the number of the store is a restart. For a program with another number, the
//!   data has to be read from the old server and written to a new store of the new server. Version 0.2.0 fixes the
//!   number: later versions will open the stores of 0.2.0.
//! - A downgrade is refused in the same way, by the number.
//! - A file or record whose checksum matches and that uses something unknown (a record format, a field of a version
//!   edit, a kind of entry or block) comes from a program that broke this policy. It is refused with status 78 as well.
//!   It is never taken for a torn write: that would discard the WAL.
//!
//! Numbers so far:
//!
//! 1. The first.
//! 2. WALs grow, and have marks. A commit group has space for a position in an external log.
//! 3. Entries may expire. The slot of a key comes from its hash tag.
//! 4. The manifest knows the longest entry and the damaged key ranges of each sorted file.

use crate::codec::{Reader, put_varint};
use crate::error::{CorruptionReason, Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Identity};
use crate::key::{FileNumber, SLOT_COUNT, ShardId};
use crate::record::{decode_single, encode_single};
use crate::storage::{BLOCK_BYTES, Storage, read_file, write_file_atomically};

/// The format of everything under the data directory.
pub const FORMAT_VERSION: u32 = 4;
/// The identity of `STORE` itself. It names no store, because the id of the store is in the file.
const IDENTITY: Identity =
    Identity { store_id: 0, shard: ShardId(0), kind: FileKind::Store, file: FileNumber(0) };

/// A store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Its id, drawn at random; every file carries it.
    pub id: u64,
    /// The shard of each slot.
    pub slots: Vec<ShardId>,
    /// Its shards.
    pub shards: u16,
    /// Whether the shards have all been created.
    pub ready: bool,
}

impl Store {
    /// A new store, whose slots are spread evenly.
    pub fn new(id: u64, shards: u16) -> Self {
        let shard = |slot: usize| {
            let shard = slot * usize::from(shards) / SLOT_COUNT;
            ShardId(u16::try_from(shard).expect("below the number of shards"))
        };
        Self { id, shards, slots: (0..SLOT_COUNT).map(shard).collect(), ready: false }
    }

    /// The payload of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = FORMAT_VERSION.to_le_bytes().to_vec();
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.shards.to_le_bytes());
        out.push(if self.ready { 2 } else { 1 });
        for run in self.slots.chunk_by(|a, b| a == b) {
            put_varint(&mut out, run.len() as u64);
            put_varint(&mut out, u64::from(run[0].0));
        }
        out
    }

    /// Reads the payload of the file.
    ///
    /// # Errors
    /// Why the payload is not a store.
    pub fn decode(payload: &[u8]) -> Result<Self, CorruptionReason> {
        let mut reader = Reader::new(payload);
        reader.u32()?;
        let id = reader.u64()?;
        let shards = reader.u16()?;
        let ready = match reader.u8()? {
            1 => false,
            2 => true,
            _ => {
                return Err(CorruptionReason::Damaged(
                    "the state of the store is neither creating nor ready",
                ));
            }
        };
        let wrong = CorruptionReason::Damaged("the slot map does not cover every slot once");
        let mut slots = Vec::new();
        while slots.len() < SLOT_COUNT {
            let count = reader.length()?;
            let shard = u16::try_from(reader.varint()?).ok().filter(|shard| *shard < shards).ok_or(wrong)?;
            if count == 0 || SLOT_COUNT - slots.len() < count {
                return Err(wrong);
            }
            slots.resize(slots.len() + count, ShardId(shard));
        }
        Ok(Self { id, slots, shards, ready })
    }

    /// Reads `STORE`; `None` if there is no such file.
    ///
    /// # Errors
    /// `Corruption` if the file does not verify, `Configuration` if another version wrote it, `Io`.
    pub async fn load<S: Storage>(storage: &S) -> Result<Option<Self>> {
        let files = storage.list().map_err(|error| Error::io("list the data directory", error))?;
        if !files.iter().any(|(name, _)| *name == FileName::Store) {
            return Ok(None);
        }
        let bytes = read_file(storage, FileName::Store, 2 * BLOCK_BYTES).await?;
        let label = storage.label(FileName::Store);
        let corruption = |reason| Error::undecodable(&label, 0, reason);
        let payload = decode_single(&bytes, IDENTITY, 0).map_err(corruption)?;
        Self::of_payload(payload, &label).map(Some)
    }

    /// Reads the payload of the file, after its version. `label` names the file in messages.
    ///
    /// # Errors
    /// `Configuration` if another version wrote it; `Corruption`.
    pub fn of_payload(payload: &[u8], label: &str) -> Result<Self> {
        let corruption = |reason| Error::undecodable(label, 0, reason);
        let version = Reader::new(payload).u32().map_err(corruption)?;
        if version != FORMAT_VERSION {
            let message = format!(
                "{label} says that the store has format {version}, but this program opens format {FORMAT_VERSION} \
                 only: use the version of ringkeep that wrote it, or move the data to a new store"
            );
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        Self::decode(payload).map_err(corruption)
    }

    /// Writes `STORE`, as a whole.
    ///
    /// # Errors
    /// As [`write_file_atomically`].
    pub async fn save<S: Storage>(&self, storage: &S) -> Result<()> {
        let bytes = encode_single(&self.encode(), IDENTITY, 0);
        write_file_atomically(storage, FileName::StoreTemporary, FileName::Store, bytes).await
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::storage::sim::{Fate, SimStorage};

    #[test]
    fn a_store_round_trips_and_a_crash_leaves_the_old_or_the_new_one() {
        block_on(async {
            for shards in [1, 2, 3, 16, 999] {
                let storage = SimStorage::new(u64::from(shards));
                assert_eq!(Store::load(&storage).await.unwrap(), None);
                let mut store = Store::new(42, shards);
                store.save(&storage).await.unwrap();
                let creating = store.clone();
                store.ready = true;
                store.save(&storage).await.unwrap();
                assert_eq!(Store::load(&storage.crash(Fate::Lost)).await.unwrap(), Some(store.clone()));
                assert_ne!(creating, store);
                let least = (0..shards)
                    .map(|shard| store.slots.iter().filter(|slot| slot.0 == shard).count())
                    .min()
                    .unwrap();
                assert!(SLOT_COUNT / usize::from(shards) <= least + 1, "slots are spread evenly");
            }
        });
    }

    #[test]
    fn a_crash_at_any_operation_leaves_no_store_the_old_or_the_new_one() {
        let storage = SimStorage::new(1);
        storage.record();
        let creating = Store::new(42, 2);
        let ready = Store { ready: true, ..creating.clone() };
        block_on(async {
            creating.save(&storage).await.unwrap();
            ready.save(&storage).await.unwrap();
        });
        let mut found = Vec::new();
        for snapshot in storage.take_snapshots() {
            for fate in [Fate::Lost, Fate::Kept, Fate::Killed, Fate::Random, Fate::Random, Fate::Random] {
                found.push(block_on(Store::load(&snapshot.crash(fate))).unwrap());
            }
        }
        assert!(found.contains(&None) && found.contains(&Some(creating.clone())));
        let known = [None, Some(creating), Some(ready)];
        assert!(found.iter().all(|store| known.contains(store)));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        block_on(async {
            let storage = SimStorage::new(1);
            Store::new(42, 2).save(&storage).await.unwrap();
            for bit in 0..BLOCK_BYTES as u64 * 8 {
                storage.corrupt(FileName::Store, bit / 8, 1 << (bit % 8));
                let error = Store::load(&storage).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
                storage.corrupt(FileName::Store, bit / 8, 1 << (bit % 8));
            }
        });
    }
}
