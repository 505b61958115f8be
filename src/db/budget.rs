//! The memory that values and blocks take on their way to readers.
//!
//! Z1  Values and blocks over 64 KiB that readers or the block cache hold take at most
//!     `DbConfig::large_reads_bytes_max`. A read beyond that is refused; it never waits for memory that other readers
//!     hold.
//! Z2  A check reads blocks only to see whether a key is there. Checks read blocks over 64 KiB a few at a time, and do
//!     not cache them. A check holds one permit at a time: if it kept the permit of one block while it waited for the
//!     next, four checks could wait for each other.
//!
//! Smaller reads are not counted: their number is bounded by the requests under way.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::DbConfig;
use crate::error::{Error, ErrorKind, Result};

/// Reads up to this size are not counted.
pub(super) const SMALL_READ_BYTES: usize = 64 << 10;
/// The number of checks that may hold a large block at the same time.
const LARGE_CHECKS: usize = 4;

/// A permit to hold memory. Dropping it gives the memory back to the budget.
pub(super) type Permit = OwnedSemaphorePermit;

pub(super) struct ReadBudget {
    /// In KiB (Z1).
    large_reads: Arc<Semaphore>,
    /// What is left of `large_reads` when the cache is full of large blocks, in KiB.
    beside_cache_kibibytes: usize,
    /// (Z2)
    large_checks: Arc<Semaphore>,
}

impl ReadBudget {
    pub(super) fn new(config: &DbConfig) -> Self {
        let all = config.large_reads_bytes_max();
        Self {
            large_reads: Arc::new(Semaphore::new(all / 1024)),
            beside_cache_kibibytes: (all - config.cache_bytes) / 1024,
            large_checks: Arc::new(Semaphore::new(LARGE_CHECKS)),
        }
    }

    /// A permit to hold `bytes` for a reader; `None` if none is needed.
    ///
    /// # Errors
    /// `Overloaded`.
    pub(super) fn for_reader(&self, bytes: usize) -> Result<Option<Permit>> {
        if bytes <= SMALL_READ_BYTES {
            return Ok(None);
        }
        // A value may be larger than the whole budget, if it was written with another `--max-value-size`. Such a value
        // is read when no other large value is on its way.
        let kibibytes = bytes.div_ceil(1024).min(self.beside_cache_kibibytes);
        let kibibytes = u32::try_from(kibibytes).expect("values are under 4 TiB");
        match self.large_reads.clone().try_acquire_many_owned(kibibytes) {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => Err(Error::new(ErrorKind::Overloaded, "too many large values are being read")),
        }
    }

    /// Waits for a permit to read a block of `bytes` to see whether a key is there; `None` if none is needed.
    pub(super) async fn for_check(&self, bytes: usize) -> Option<Permit> {
        if bytes <= SMALL_READ_BYTES {
            return None;
        }
        self.large_checks.clone().acquire_owned().await.ok() // the semaphore is never closed
    }

    /// A copy of a value that is in memory, counted like a read.
    ///
    /// # Errors
    /// `Overloaded`.
    pub(super) fn copy(&self, value: &[u8]) -> Result<Bytes> {
        Ok(match self.for_reader(value.len())? {
            None => Bytes::copy_from_slice(value),
            Some(permit) => Bytes::from_owner(HeldValue { value: value.to_vec(), _permit: permit }),
        })
    }
}

/// A value on its way to a reader, and the permit to hold it.
struct HeldValue {
    value: Vec<u8>,
    _permit: Permit,
}

impl AsRef<[u8]> for HeldValue {
    fn as_ref(&self) -> &[u8] {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use futures_executor::block_on;

    use super::*;
    use crate::config::tests::SMALL;
    use crate::db::tests::step;

    #[test]
    fn z1_large_values_of_readers_take_no_more_than_the_budget_and_small_ones_are_free() {
        let budget = ReadBudget::new(&SMALL);
        let value = vec![7; 1 << 20];
        let mut held = Vec::new();
        let refused = (0..1000).find_map(|_| budget.copy(&value).map(|copy| held.push(copy)).err());
        let refused = refused.expect("1,000 MiB are beyond the budget");
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        assert_eq!(held.len() * value.len(), SMALL.large_reads_bytes_max());
        assert!(budget.for_reader(SMALL_READ_BYTES).unwrap().is_none(), "small reads need no permit");
        // A slice of a value holds all of it.
        let slice = held.pop().unwrap().slice(..1);
        assert!(budget.copy(&value).is_err());
        drop(slice);
        drop(budget.copy(&value).unwrap());
        // A value larger than the budget is read when no other is on its way.
        held.clear();
        assert!(budget.for_reader(1 << 30).unwrap().is_some());
    }

    #[test]
    fn z2_a_few_checks_read_large_blocks_at_a_time_and_the_others_wait() {
        let budget = ReadBudget::new(&SMALL);
        block_on(async {
            let mut held = Vec::new();
            for _ in 0..LARGE_CHECKS {
                held.push(budget.for_check(1 << 20).await.unwrap());
            }
            assert!(budget.for_check(SMALL_READ_BYTES).await.is_none(), "small blocks need no permit");
            let mut next = Box::pin(budget.for_check(1 << 20));
            assert!(step(&mut next).is_none());
            held.pop();
            assert!(next.await.is_some());
        });
    }
}
