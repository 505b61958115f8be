//! What a shard caches of its sorted files: blocks, and values by key. Each cache has a budget of bytes.
//!
//! A cached block saves a read from the disk; index and filter blocks are cached like data blocks. A cached value also
//! saves the walk through four blocks. Both caches belong to one shard, so they need no lock.

pub mod blocks;
pub mod values;
