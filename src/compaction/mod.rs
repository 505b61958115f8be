//! Compaction: keeps the number of files that a read looks at small, and removes entries that nobody can read.
//!
//! Owns: which files to merge ([`picker`], pure), and merging them ([`executor`]).
//!
//! 1. The picker looks at a [`crate::manifest::Version`]: the level that is furthest over its size is next.
//! 2. A file that overlaps nothing in the level below moves down by an edit alone.
//! 3. Otherwise the executor merges the inputs, of each key the newest entry first, in slices; the caller's other work
//!    goes on.
//! 4. The outputs are synced, then the caller syncs their names and swaps inputs for outputs in one edit (P7).
//!
//! A crash or an error before the edit leaves the inputs in force, and outputs that nothing names.

pub mod executor;
pub mod picker;

pub use executor::execute;
pub use picker::{Compaction, Effort, L0_FILES, Limits, Stuck, debt_bytes, debt_bytes_to_come, pick};
