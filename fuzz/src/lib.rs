//! What all fuzz targets share: the decoders, and the watch over what they allocate.

pub mod decoders;

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Runs a decoder and looks at the most that it held.
///
/// # Panics
/// If it was more than 16 times the input, and some for what has a fixed size.
pub fn run(decoder: fn(&[u8]), data: &[u8]) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    decoder(data);
    let most = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(most <= 16 * data.len() + FIXED_BYTES, "{most} bytes for an input of {}", data.len());
}

/// The slot map, and the copies that the harness makes.
const FIXED_BYTES: usize = 128 << 10;
