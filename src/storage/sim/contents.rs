//! The bytes of a file in memory, in blocks that copies of the file share.

use std::rc::Rc;

use super::super::BLOCK_BYTES;

/// The bytes of a file, in blocks that copies share until one of them writes; `None` is a block of zeros.
#[derive(Clone, Default)]
pub(super) struct Contents {
    pub(super) length: usize,
    pub(super) blocks: Vec<Option<Rc<[u8; BLOCK_BYTES]>>>,
}

pub(super) const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

impl Contents {
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.length = self.length.max(offset + bytes.len());
        self.blocks.resize(self.length.div_ceil(BLOCK_BYTES), None);
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let within = at % BLOCK_BYTES;
            let (part, later) = rest.split_at(rest.len().min(BLOCK_BYTES - within));
            let block = &mut self.blocks[at / BLOCK_BYTES];
            let zeros = *part == ZEROS[..part.len()];
            if zeros && part.len() == BLOCK_BYTES {
                *block = None;
            } else if !zeros || block.is_some() {
                let block = block.get_or_insert_with(|| Rc::new(ZEROS));
                Rc::make_mut(block)[within..within + part.len()].copy_from_slice(part);
            }
            (at, rest) = (at + part.len(), later);
        }
    }

    /// Copies the bytes from `offset` on, a block boundary, as far as there are any. Returns their count.
    pub(super) fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let count = self.length.saturating_sub(offset).min(out.len());
        let blocks = self.blocks.get(offset / BLOCK_BYTES..).unwrap_or_default();
        for (part, block) in out[..count].chunks_mut(BLOCK_BYTES).zip(blocks) {
            match block {
                Some(block) => part.copy_from_slice(&block[..part.len()]),
                None => part.fill(0),
            }
        }
        count
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        self.read(0, &mut bytes);
        bytes
    }
}

impl From<&[u8]> for Contents {
    fn from(bytes: &[u8]) -> Self {
        let mut contents = Self::default();
        contents.write(0, bytes);
        contents
    }
}
