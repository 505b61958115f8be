//! HTTP/1.1 outside: bytes in, commands to a handler, replies out in request order.
//!
//! Owns: the wire format, its limits, and one connection. Knows nothing of shards or the engine: whoever serves
//! gives it a [`Handler`]. Everything but [`connection`] is a pure function over bytes.
//!
//! ```text
//!   socket ──► head ──► body ──► route ──► Command ──► Handler ──► Response ──► socket
//!              (framing, strict)  (path, query, escapes)            (request order)
//! ```
//!
//! H1  Bytes that are not certainly a request are refused with a status and the connection is closed: what
//!     follows could be read in two ways.
//! H2  Nothing is allocated for a length that a client declared; memory follows the bytes that arrived.
//! H3  Replies leave in the order of their requests, and at most `PIPELINE_MAX` requests of a connection are
//!     under way.
//! H4  A request sees what an earlier request of its connection did to the same key, pipelined or not.
//! H5  Replies that wait for their turn hold about a MiB, as far as the values before them tell: a client that does
//!     not read is soon not read from either.

pub mod ahead;
pub mod body;
pub mod connection;
pub mod head;
pub mod query;
pub mod response;
pub mod route;

use std::future::Future;

pub use response::{Response, Status};
pub use route::Command;

/// Longest request target: a value may travel in the query.
pub const TARGET_BYTES_MAX: usize = 128 << 10;
/// Longest header block.
pub const HEADERS_BYTES_MAX: usize = 16 << 10;
/// Most header fields.
pub const HEADERS_MAX: usize = 64;
/// Most requests of one connection that are under way together.
pub const PIPELINE_MAX: usize = 64;

/// What a request comes to.
pub enum Reply<P> {
    /// The answer is known.
    Now(Response),
    /// The answer will be known. Later requests may go ahead meanwhile.
    Later(P),
    /// The answer will be known, and nothing of this connection may go ahead of it.
    Barrier(P),
}

/// Whoever carries out commands.
pub trait Handler {
    /// An answer on its way. Dropping it abandons the answer, not the command.
    type Pending: Future<Output = Response> + Unpin;

    /// These keys are going to be read, as far as one can guess: what memory holds of the first `PIPELINE_MAX` of them
    /// may be brought near the processor, all together. Changes nothing but how long [`Self::handle`] takes.
    fn prefetch<'a>(&self, keys: impl Iterator<Item = &'a [u8]>);

    /// Begins a command.
    fn handle(&self, command: Command<'_>) -> Reply<Self::Pending>;
}

/// A request that is refused before it reaches the handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: Status,
    /// A plain sentence, without the newline.
    pub message: &'static str,
    /// The methods that the path allows, with status 405.
    pub allow: Option<&'static str>,
}

impl Refusal {
    /// A refusal.
    pub const fn new(status: Status, message: &'static str) -> Self {
        Self { status, message, allow: None }
    }

    const fn bad(message: &'static str) -> Self {
        Self::new(Status::BadRequest, message)
    }
}
