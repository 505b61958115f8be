//! The commands other than `serve`, with the real binary. One test binary, because each takes seconds to link.

#[path = "../common/mod.rs"]
mod common;

mod backup;
mod client;
mod config;
mod inspect;
mod log;
mod manual;
mod moving;
mod operate;
mod statuses;
