//! The server and the commands that look after its store, with the real binary. One test binary, because each takes many seconds to
//! build.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod http_api;
mod load;
mod metrics;
mod power;
mod process;
mod repair;
mod security;
mod service;
mod space;
mod taken_away;
