//! The engine on simulated storage, except the long suites. One test binary, because each takes many seconds to build.

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod decoders;
mod expiry;
mod model;
mod order_on_disk;
mod quarantine;
mod retention;
mod scan;
