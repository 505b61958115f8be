//! Memory that O_DIRECT accepts: bytes aligned to [`BLOCK_BYTES`].
//!
//! Owns: the buffer type and its contract with the ring.

use std::ops::{Deref, DerefMut};

use aligned_vec::{AVec, ConstAlign};
use tokio_uring::buf::{IoBuf, IoBufMut};

use super::BLOCK_BYTES;

/// A growable byte buffer, aligned to [`BLOCK_BYTES`]. All of its `len` bytes are always initialised.
pub struct AlignedBuf(AVec<u8, ConstAlign<BLOCK_BYTES>>);

impl AlignedBuf {
    /// An empty buffer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(AVec::with_capacity(BLOCK_BYTES, capacity))
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::with_capacity(len);
        buffer.resize(len);
        buffer
    }

    /// Makes room for `bytes` more bytes, and no more than that.
    pub fn reserve(&mut self, bytes: usize) {
        self.0.reserve_exact(bytes);
    }

    /// Sets the length; new bytes are zero.
    pub fn resize(&mut self, len: usize) {
        self.0.resize(len, 0);
    }

    /// Drops the bytes after `len`.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// Appends bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Appends zeros up to the next multiple of `align`, a power of two.
    pub fn pad_to(&mut self, align: usize) {
        self.resize((self.len() + align - 1) & !(align - 1));
    }

    /// Bytes of memory held.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for AlignedBuf {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::with_capacity(bytes.len());
        buffer.extend_from_slice(bytes);
        buffer
    }
}

// SAFETY: the pointer is that of a heap allocation, which does not move when the `AlignedBuf` moves, and nothing can
// grow or free it meanwhile: the in-flight operation owns the value until its completion is reaped.
// `bytes_init == bytes_total == len`, all initialised.
#[expect(unsafe_code, reason = "tokio-uring asks for this promise from every buffer type")]
unsafe impl IoBuf for AlignedBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.0.len()
    }
    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: as above, and `stable_mut_ptr` needs `&mut self`, so no other reference exists while the kernel
// writes. `set_init` has nothing to record: every byte up to `len` was initialised before the operation.
#[expect(unsafe_code, reason = "tokio-uring asks for this promise from every buffer type")]
unsafe impl IoBufMut for AlignedBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
    unsafe fn set_init(&mut self, pos: usize) {
        debug_assert!(pos <= self.0.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_and_initialised_while_it_grows() {
        let mut buffer = AlignedBuf::with_capacity(10);
        for len in [1, 5_000, 100_000] {
            buffer.resize(len);
            assert_eq!(buffer.as_ptr().align_offset(BLOCK_BYTES), 0);
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
        buffer.truncate(513);
        buffer.pad_to(512);
        assert_eq!(buffer.len(), 1024);
    }
}
