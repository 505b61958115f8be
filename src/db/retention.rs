//! How long a WAL is kept once its writes are all in sorted files.
//!
//! Recovery does not need such a WAL. A reader of the log may: a replica that lags behind, or a backup that follows the
//! log. The manifest names a WAL that is kept, so its loss is noticed, and no start removes it.
//!
//! I1  A WAL that a policy keeps has its name and its bytes until the policy releases it, over any number of restarts.

use crate::key::{FileNumber, SeqNo};

/// Decides which flushed WALs are kept.
pub trait Retention {
    /// Whether the WAL `number`, whose last write is `last`, is kept after its flush. For a WAL that was kept by an earlier
    /// process `last` is not known.
    fn keeps(&self, number: FileNumber, last: Option<SeqNo>) -> bool;
}

/// Keeps no WAL: each is used again, or removed, as soon as its writes are in a sorted file.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReleaseAfterFlush;

impl Retention for ReleaseAfterFlush {
    fn keeps(&self, _number: FileNumber, _last: Option<SeqNo>) -> bool {
        false
    }
}
