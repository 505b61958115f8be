//! Checks every byte of a sorted file, and everything that one part of the file says about another part.
//!
//! Owns: what has to be true inside one file. Changes nothing.
//!
//! Every page belongs to a frame that verifies, or to the footer. The keys of data blocks only grow. The index block of
//! a partition lists exactly its data blocks, under keys that separate them. The filter of a partition contains all
//! keys of the partition (T2). The top index lists exactly the partitions. The properties block and the description in
//! the manifest agree with the entries.

use std::rc::Rc;

use super::block::{Block, BlockKind, Cursor, seek};
use super::reader::Sst;
use super::window::Frames;
use super::{BlockHandle, SstMeta, filter};
use crate::codec::Reader;
use crate::error::{CorruptionReason, Error, Result};
use crate::key::{Entry, filter_hash};
use crate::storage::File;

/// One entry that an index has to list: its handles, and the first and last key of the blocks that these handles lead
/// to.
struct Listed {
    handles: Vec<BlockHandle>,
    first: Vec<u8>,
    last: Vec<u8>,
}

/// What has been seen of the file so far.
struct Walk<V> {
    visit: V,
    found: SstMeta,
    last_key: Vec<u8>,
    /// Data blocks of the partition, and the hashes of their keys.
    blocks: Vec<Listed>,
    hashes: Vec<u64>,
    /// The index block of the partition, once it was seen.
    index: Option<BlockHandle>,
    partitions: Vec<Listed>,
    /// A damaged block was skipped, so the blocks that list or filter it cannot be checked.
    gap: bool,
}

/// Reads the whole file, which the manifest describes as `meta`. Every entry of an undamaged block goes to `visit`,
/// which may refuse it. `progress` is told how many bytes have been read. Returns what is damaged or cannot be read, in
/// file order.
pub async fn verify<F: File>(
    sst: Rc<Sst<F>>,
    meta: &SstMeta,
    visit: impl FnMut(&Entry<'_>) -> Result<(), CorruptionReason>,
    mut progress: impl FnMut(u64),
) -> Vec<Error> {
    let mut damage = Vec::new();
    let mut walk = Walk {
        visit,
        found: SstMeta { bytes: meta.bytes, ..SstMeta::new(meta.number) },
        last_key: Vec::new(),
        blocks: Vec::new(),
        hashes: Vec::new(),
        index: None,
        partitions: Vec::new(),
        gap: false,
    };
    let mut frames = Frames::new(sst.clone());
    while let Some(found) = frames.next_or_damage().await {
        match found {
            Ok((handle, block)) => {
                progress(u64::from(handle.bytes));
                if let Err(reason) = walk.block(&sst, handle, &block) {
                    damage.push(sst.corruption(handle, reason));
                }
            }
            Err(error) => {
                damage.push(error);
                walk.gap = true;
                // The damaged block may be the one that lists or filters these.
                walk.blocks.clear();
                walk.hashes.clear();
                walk.index = None;
            }
        }
    }
    walk.found.largest = walk.last_key.as_slice().into();
    if !walk.gap && walk.found != *meta {
        let reason = CorruptionReason::Damaged("the entries are not what the manifest says");
        damage.push(sst.corruption(BlockHandle::default(), reason));
    }
    match sst.properties().await {
        Ok(properties) if properties == *meta => {}
        Ok(_) => {
            let reason = CorruptionReason::Damaged("the properties are not what the manifest says");
            damage.push(sst.corruption(sst.properties, reason));
        }
        // A block that does not verify was reported above.
        Err(error) => {
            if damage.is_empty() {
                damage.push(error);
            }
        }
    }
    damage
}

impl<V: FnMut(&Entry<'_>) -> Result<(), CorruptionReason>> Walk<V> {
    fn block<F: File>(
        &mut self,
        sst: &Sst<F>,
        handle: BlockHandle,
        block: &Block,
    ) -> Result<(), CorruptionReason> {
        match block.kind {
            BlockKind::Data => self.data(handle, block),
            BlockKind::Index => {
                let blocks = std::mem::take(&mut self.blocks);
                self.index = Some(handle);
                let gap = self.gap;
                let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
                    return if gap {
                        Ok(())
                    } else {
                        Err(CorruptionReason::Damaged("the partition has no data block"))
                    };
                };
                let (first, last) = (first.first.clone(), last.last.clone());
                self.partitions.push(Listed { handles: vec![handle], first, last });
                if gap { Ok(()) } else { lists(block, &blocks) }
            }
            BlockKind::Filter => {
                let hashes = std::mem::take(&mut self.hashes);
                if self.index.take().is_none() && !self.gap {
                    return Err(CorruptionReason::Damaged("the filter has no index block before it"));
                }
                if let Some(partition) = self.partitions.last_mut() {
                    partition.handles.push(handle);
                }
                for hash in hashes {
                    if !filter::may_contain(&block.payload, hash)? {
                        return Err(CorruptionReason::Damaged(
                            "the filter does not contain a key of its partition",
                        ));
                    }
                }
                Ok(())
            }
            BlockKind::Top => {
                if handle != sst.top || !(self.blocks.is_empty() || self.gap) {
                    return Err(CorruptionReason::Damaged("the top index is not where it should be"));
                }
                if self.gap { Ok(()) } else { lists(block, &self.partitions) }
            }
            BlockKind::Properties if handle == sst.properties => Ok(()),
            BlockKind::Properties => {
                Err(CorruptionReason::Damaged("the properties are not where the footer says"))
            }
        }
    }

    fn data(&mut self, handle: BlockHandle, block: &Block) -> Result<(), CorruptionReason> {
        let mut cursor = Cursor::new(block.payload.clone());
        let mut first = None;
        while cursor.advance()? {
            let Some(entry) = cursor.entry() else { break };
            if 0 < self.found.entries && *entry.key <= *self.last_key {
                return Err(CorruptionReason::Damaged("the keys are not in order"));
            }
            match seek(&block.payload, entry.key)? {
                Some(located)
                    if located.exact && located.seqno == entry.seqno && located.kind == entry.kind => {}
                _ => {
                    return Err(CorruptionReason::Damaged(
                        "the restart points do not lead to a key of the block",
                    ));
                }
            }
            first.get_or_insert_with(|| entry.key.to_vec());
            self.last_key.clear();
            self.last_key.extend_from_slice(entry.key);
            self.hashes.push(filter_hash(entry.key));
            self.found.count(&entry);
            (self.visit)(&entry)?;
        }
        let first = first.ok_or(CorruptionReason::Damaged("the data block is empty"))?;
        self.blocks.push(Listed { handles: vec![handle], first, last: self.last_key.clone() });
        Ok(())
    }
}

/// Checks that an index lists exactly these blocks, under keys that separate them.
fn lists(index: &Block, blocks: &[Listed]) -> Result<(), CorruptionReason> {
    let mut cursor = Cursor::new(index.payload.clone());
    let mut blocks = blocks.iter().peekable();
    while cursor.advance()? {
        let Some(entry) = cursor.entry() else { break };
        let listed =
            blocks.next().ok_or(CorruptionReason::Damaged("the index lists more blocks than there are"))?;
        let mut reader = Reader::new(entry.value);
        for handle in &listed.handles {
            if BlockHandle::decode(&mut reader)? != *handle {
                return Err(CorruptionReason::Damaged("an entry of the index does not point to its block"));
            }
        }
        let behind = blocks.peek().is_none_or(|next| *entry.key < *next.first);
        if *entry.key < *listed.last || !behind {
            return Err(CorruptionReason::Damaged(
                "a key of the index does not separate its block from the next",
            ));
        }
    }
    match blocks.next() {
        None => Ok(()),
        Some(_) => Err(CorruptionReason::Damaged("the index does not list all blocks")),
    }
}
