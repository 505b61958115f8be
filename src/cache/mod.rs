//! What a shard keeps in memory of its sorted files, under a budget of bytes each: blocks, and values by key.
//!
//! A block that is cached saves a read from the disk; index and filter blocks are cached like data blocks. A value that is
//! cached saves the walk through four blocks as well. Both caches belong to one shard, so they need no lock.

pub mod blocks;
pub mod values;
