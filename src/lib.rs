//! draft
pub mod error;
pub mod codec;
pub mod key;
pub mod random;
pub mod config;
pub mod file_name;
pub mod storage;
pub mod record;
pub mod memtable;
pub mod merge;
pub mod wal;
pub mod sst;
pub mod manifest;
pub mod compaction;
pub mod db;
