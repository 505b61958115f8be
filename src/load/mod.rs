//! The load tool: drives a running server over HTTP, measures it, and checks every answer meanwhile.
//!
//! Owns: workloads, pacing, latencies, and the knowledge of what each key may hold. It shares no code with the server's
//! side of the wire: requests and replies are written and parsed here a second time, so that a mistake in one cannot
//! hide a mistake in the other.
//!
//! ```text
//!   main thread: plan, progress, merge, report
//!   load threads: one ring each ─► connections: writer task ── requests ──► server
//!                                               reader task ◄── replies ─── server ──► ledger, tally
//! ```
//!
//! Closed loop: a connection has as many requests under way as its pipeline is deep, and each reply is followed by the
//! next request. Open loop (`--rate`): request k is due at `start + k / rate`, whatever the server does. Its latency
//! counts from that moment, not from when it could be sent. Otherwise a server that stalls would receive fewer requests
//! while it stalls, and its percentiles would look fine (coordinated omission; Tene, "How NOT to measure latency",
//! 2013; wrk2 counts the same way).
//!
//! - **B1** A value follows from key number and version ([`data`]); every byte of every value is compared.
//! - **B2** A read that begins after a write was acknowledged sees that write or a later one ([`ledger`]).
//! - **B3** A request is counted once: as answered, as refused, or (open loop) as due and never sent.
//! - **B4** Answers count from the end of the warm-up on; latencies count if their request began, or was due, after it.
//!
//! Not checked: whether requests pipelined on one connection see each other; the order between keys; which version of
//! an earlier run (`--filled`) a key holds; and the bytes of such a value, if it is shorter than 8 bytes.

pub mod data;
pub mod choose;
pub mod workload;
pub mod ledger;
pub mod wire;
pub mod tally;
pub mod connection;
pub mod session;
pub mod run;
pub mod facts;
pub mod report;
