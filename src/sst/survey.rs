//! Lists the blocks of a sorted file, damaged or not.

use std::rc::Rc;

use super::BlockHandle;
use super::block::{BlockKind, Cursor};
use super::reader::Sst;
use super::window::Frames;
use crate::error::{CorruptionReason, Result};
use crate::storage::File;

/// A block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// Where it is; the length is that on disk.
    pub handle: BlockHandle,
    /// What it holds.
    pub kind: BlockKind,
    /// Length of its payload once unpacked.
    pub raw_bytes: u64,
    /// Entries of a data block, or of an index.
    pub entries: u64,
    /// The first key of a data block.
    pub first_key: Option<Vec<u8>>,
}

/// Reads all of a file, and gives every block to `visit` in file order. A damaged block, or a run of them, is an error in
/// its place.
pub async fn survey<F: File>(sst: Rc<Sst<F>>, mut visit: impl FnMut(Result<Surveyed>)) {
    let mut frames = Frames::new(sst.clone());
    while let Some(found) = frames.next_or_damage().await {
        visit(found.and_then(|(handle, block)| {
            let mut surveyed = Surveyed {
                handle,
                kind: block.kind,
                raw_bytes: block.payload.len() as u64,
                entries: 0,
                first_key: None,
            };
            count(&mut surveyed, Cursor::new(block.payload))
                .map_err(|reason| sst.corruption(handle, reason))?;
            Ok(surveyed)
        }));
    }
}

fn count(surveyed: &mut Surveyed, mut cursor: Cursor) -> Result<(), CorruptionReason> {
    if !matches!(surveyed.kind, BlockKind::Data | BlockKind::Index | BlockKind::Top) {
        return Ok(());
    }
    while cursor.advance()? {
        if surveyed.entries == 0 && surveyed.kind == BlockKind::Data {
            surveyed.first_key = cursor.entry().map(|entry| entry.key.to_vec());
        }
        surveyed.entries += 1;
    }
    Ok(())
}
