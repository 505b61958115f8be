//! What all fuzz targets share: the decoders, and a check of the memory that they allocate.

pub mod decoders;

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Runs a decoder and checks the most memory that it held at a time.
///
/// # Panics
/// If the decoder held more than 16 times the input plus `fixed`, which is for memory that does not depend on the
/// input.
pub fn run(decoder: fn(&[u8]), fixed: usize, data: &[u8]) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    decoder(data);
    let most = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(most <= 16 * data.len() + fixed, "{most} bytes for an input of {}", data.len());
}

/// The copies that the harness makes, and the small allocations of a decoder.
pub const SMALL: usize = 2 << 10;
/// A frame takes at least a page and unpacks to 16 pages at most. The keys of its entries may grow to as much, in a
/// vector that doubles.
pub const FRAME: usize = 200 << 10;
/// A file of 64 KiB and a record: in the plan, on the simulated disk, and in the window of its replay.
pub const FILE: usize = 1 << 20;
/// A handshake on both sides, and the certificates of the first one.
pub const HANDSHAKE: usize = 1 << 20;
/// The map of all slots, while it grows.
pub const SLOTS: usize = 128 << 10;
