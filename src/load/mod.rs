//! The load tool: drives a running server over HTTP, measures it, and checks every answer while it does.
//!
//! Owns: workloads, pacing, latencies, and the knowledge of what each key may hold. Knows nothing of the server but
//! its wire: requests and replies are written and parsed here once more, so that one mistake cannot hide another.
//!
//! ```text
//!   main thread: plan, progress, merge, report
//!   load threads: one ring each ─► connections: writer task ── requests ──► server
//!                                               reader task ◄── replies ─── server ──► ledger, tally
//! ```
//!
//! Closed loop: a connection has as many requests under way as its pipeline is deep, and the next one follows the
//! reply. Open loop (`--rate`): request k is due at `start + k / rate`, whatever the server does meanwhile, and its
//! latency is counted from that moment, not from when it could be sent; else a server that stalls is asked less
//! while it stalls, and its percentiles look fine (coordinated omission; Tene, "How NOT to measure latency", 2013;
//! wrk2 counts the same way).
//!
//! - **B1** A value follows from key number and version ([`data`]); every byte of every value is compared.
//! - **B2** A read that begins after a write was acknowledged sees that write or a later one ([`ledger`]).
//! - **B3** A request is counted once: answered, refused, or (open loop) due and never sent.
//! - **B4** Answers are counted from the end of the warm-up on, latencies of requests that began, or were due, then.
//!
//! Not looked at: whether requests pipelined on one connection see each other, the order between keys, and, of an
//! earlier run (`--filled`), which of its versions is there; nor, if they are shorter than 8 bytes, their bytes.

pub mod data;
pub mod choose;
pub mod workload;
pub mod ledger;
pub mod wire;
pub mod tally;
pub mod connection;
pub mod run;
pub mod facts;
pub mod report;
