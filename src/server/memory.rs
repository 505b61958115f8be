//! Watches the memory: the clock of those who wait for it, and its return to the system.

use std::time::Duration;

use crate::host::give_back_free_memory;
use crate::memory::Memory;

/// The clock of [`crate::memory`].
const TICK: Duration = Duration::from_secs(1);
/// Memory goes back to the system when the parts that come and go hold this much less than at their height, and at most
/// once in this many ticks.
const FREED_BYTES_MIN: usize = 8 << 20;
const REST_TICKS: u32 = 5;

/// Ticks for ever. When much memory has become free, gives it back to the system.
pub(super) async fn watch(memory: Memory) {
    let (mut height, mut rest) = (0, 0);
    loop {
        tokio::time::sleep(TICK).await;
        memory.tick();
        let now = memory.buffers.taken()
            + memory.requests.taken()
            + memory.merges.taken()
            + memory.memtables.used();
        height = height.max(now);
        rest += 1;
        if REST_TICKS <= rest && FREED_BYTES_MIN <= height - now {
            give_back_free_memory();
            (height, rest) = (now, 0);
        }
    }
}
