//! Blocks of sorted files in memory, under a budget of bytes.
//!
//! Owns: which blocks stay. quick_cache decides which block is evicted, with ideas of CLOCK-Pro and S3-FIFO: a single
//! scan does not evict blocks that are read often. Index and filter blocks are cached like data blocks (T1). Each shard
//! has its own cache, so there is no lock.

use std::cell::RefCell;
use std::rc::Rc;

use quick_cache::unsync::Cache;
use quick_cache::{OptionsBuilder, Weighter};

use crate::key::FileNumber;
use crate::sst::block::Block;
use crate::tally::Count;

/// Bytes that an entry costs in addition to its block: key, slot, list links, the shared pointer.
const ENTRY_OVERHEAD_BYTES: usize = 128;

#[derive(Clone)]
struct ByBytes;

impl Weighter<(FileNumber, u64), Rc<Block>> for ByBytes {
    fn weight(&self, _key: &(FileNumber, u64), block: &Rc<Block>) -> u64 {
        (block.memory + ENTRY_OVERHEAD_BYTES) as u64
    }
}

/// A cache of blocks by file and offset.
pub struct BlockCache {
    blocks: RefCell<Cache<(FileNumber, u64), Rc<Block>, ByBytes>>,
    hits: Count,
    misses: Count,
}

impl BlockCache {
    /// An empty cache that holds at most `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(
                (bytes_max / (crate::storage::BLOCK_BYTES + ENTRY_OVERHEAD_BYTES)).max(16),
            )
            .weight_capacity(bytes_max as u64)
            .build()
            .expect("both capacities are given");
        let cache = Cache::with_options(
            options,
            ByBytes,
            quick_cache::DefaultHashBuilder::default(),
            quick_cache::unsync::DefaultLifecycle::default(),
        );
        Self { blocks: RefCell::new(cache), hits: Count::default(), misses: Count::default() }
    }

    /// The block at `offset` of `file`, if it is cached.
    pub fn get(&self, file: FileNumber, offset: u64) -> Option<Rc<Block>> {
        let block = self.blocks.borrow().get(&(file, offset)).cloned();
        if block.is_some() { &self.hits } else { &self.misses }.add(1);
        block
    }

    /// How often a block was found.
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// How often a block was not found.
    pub fn misses(&self) -> u64 {
        self.misses.get()
    }

    /// Caches a block, unless it is larger than the budget. Other blocks may be evicted.
    pub fn insert(&self, file: FileNumber, offset: u64, block: Rc<Block>) {
        self.blocks.borrow_mut().insert((file, offset), block);
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.blocks.borrow().weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sst::block::BlockKind;

    #[test]
    fn t1_the_budget_holds_and_blocks_come_back() {
        let cache = BlockCache::new(1 << 20);
        let block = |memory| Rc::new(Block { kind: BlockKind::Data, payload: vec![1; 10].into(), memory });
        for number in 0..10_000 {
            cache.insert(FileNumber(number), 0, block(4096));
            assert!(cache.bytes() <= 1 << 20);
            assert!(cache.get(FileNumber(number), 0).is_some());
        }
        cache.insert(FileNumber(1), 1, block(2 << 20));
        assert!(cache.get(FileNumber(1), 1).is_none(), "a block over the budget is not kept");
        assert!(200 < (0..10_000).filter(|n| cache.get(FileNumber(*n), 0).is_some()).count());
    }
}
