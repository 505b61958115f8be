//! What all fuzz targets share: the decoders, and the watch over what they allocate.

pub mod decoders;

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Runs a decoder and looks at the most that it held.
///
/// # Panics
/// If it was more than 16 times the input, and `fixed` for what has a size of its own.
pub fn run(decoder: fn(&[u8]), fixed: usize, data: &[u8]) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    decoder(data);
    let most = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(most <= 16 * data.len() + fixed, "{most} bytes for an input of {}", data.len());
}

/// The copies that the harness makes, and the small things of a decoder.
pub const SMALL: usize = 2 << 10;
/// A frame is at least a page and unpacks to 16 pages at most, and the keys of these may grow to as much, in a vector that
/// doubles.
pub const FRAME: usize = 200 << 10;
/// A file of 64 KiB and a record, as the plan, on the simulated disk and in the window of its replay.
pub const FILE: usize = 1 << 20;
/// The map of all slots, as it grows.
pub const SLOTS: usize = 128 << 10;
