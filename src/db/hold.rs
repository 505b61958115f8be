//! The memory that values take on their way to readers.
//!
//! A value over 4 KiB that is on its way to a reader is on the account of requests, and so is the block that it is read in.
//! The read takes its permit first (Z1). If there is none, it waits, and after a while it is refused (Z2). A shorter value
//! is copied, so that it does not keep its block.
//!
//! A check reads blocks only to see whether a key is there. For a block over 64 KiB it takes a permit as well, from a pool
//! of its own, one block at a time, and gives one back before it takes the next. It is never refused: the tombstone that it
//! belongs to is already on its way. It holds nothing that other checks wait for, so it never waits for long.
//!
//! Blocks in the cache are on the account of the cache. A reader that takes a value from a cached block needs a permit all
//! the same: the block may leave the cache before the reader has let go of it.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Permit, Pool};

/// A check reads longer blocks with a permit.
pub(super) const LARGE_CHECK_BYTES: usize = 64 << 10;
/// Longer values are held with a permit.
pub const SMALL_VALUE_BYTES: usize = 4 << 10;

/// Waits for a permit for a reader.
///
/// # Errors
/// `Overloaded` after a wait that was too long.
pub(super) async fn for_reader(pool: &Pool, bytes: usize) -> Result<Permit> {
    let refused = || Error::new(ErrorKind::Overloaded, "too many large values are being read");
    pool.take(bytes).await.ok_or_else(refused)
}

/// Waits for a permit for a check, for as long as it takes.
pub(super) async fn for_check(pool: &Pool, bytes: usize) -> Permit {
    loop {
        if let Some(permit) = pool.take(bytes).await {
            return permit;
        }
    }
}

/// A value that gives its permit back when it is dropped.
pub(super) fn hold(value: Bytes, permit: Permit) -> Bytes {
    Bytes::from_owner(Held { value, _permit: permit })
}

struct Held {
    value: Bytes,
    _permit: Permit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.value
    }
}
