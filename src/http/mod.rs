//! HTTP/1.1: bytes in, operations to a handler, replies out in request order.
//!
//! Owns: the wire format, its limits, and connections. The server gives it a [`Handler`] for the operations and a
//! [`stream::Stream`] for the bytes. Everything except [`connection`], `followed`, [`peers`] and [`stream`] is a pure
//! function over bytes.
//!
//! ```text
//!   stream ──► input: head ──► route ──► body ──► Op ──► Handler ──► Outcome ──► response ──► stream
//!              (framing, strict)  (path, query, escapes)                    (request order)
//! ```
//!
//! H1  Bytes that are not certainly a request are refused with a status, and the connection is closed: the bytes
//!     after them could be read in two ways.
//! H2  Nothing is allocated for a length that a client declared; memory follows the bytes that arrived.
//! H3  Replies leave in the order of their requests, and at most `PIPELINE_MAX` requests of a connection are
//!     under way.
//! H4  A request sees what an earlier request of its connection did to the same key, pipelined or not.
//! H5  Replies that wait for their turn hold about 1 MiB, and less when memory is short. Values that are still on their
//!     way count with a length that is estimated from earlier values. So the server soon stops reading from a client that
//!     does not read.
//! H6  A request for a name that a web site can have gets 421, unless the name is allowed or the token is valid.
//! H7  If there are tokens, everything except `/livez`, `/readyz` and `OPTIONS` needs one whose role suffices.

pub mod access;
pub mod authority;
pub mod body;
pub mod connection;
mod followed;
pub mod head;
mod input;
pub mod label;
mod output;
pub mod part;
pub mod peers;
pub mod probe;
pub mod query;
pub mod range;
pub mod response;
pub mod route;
mod sampler;
pub mod stream;
mod timing;

use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

use bytes::Bytes;

pub use probe::Probe;
pub use response::{Response, Status};
pub use route::Control;

use self::part::Part;
use crate::error::Result as EngineResult;
use crate::key::{Key, UnixMillis};
use crate::op::{Op, Outcome, ToBytes};

/// Longest request target: a value may travel in the query.
pub const TARGET_BYTES_MAX: usize = 128 << 10;
/// Longest header block.
pub const HEADERS_BYTES_MAX: usize = 16 << 10;
/// Most header fields.
pub const HEADERS_MAX: usize = 64;
/// Most requests of one connection that are under way together.
pub const PIPELINE_MAX: usize = 64;

/// A request with a longer body is begun alone, with the bytes that were read, without a copy.
const LONG_BODY_BYTES: usize = 64 << 10;
/// The input buffer of an idle connection.
const IDLE_BUFFER_BYTES: usize = 4 << 10;

/// How an operation begins.
pub enum Reply<P> {
    /// The outcome was lent to the caller.
    Lent,
    /// The outcome is known.
    Known(EngineResult<Outcome<Bytes>>),
    /// The outcome is not known yet. Later requests of the connection may begin meanwhile.
    Later(P),
    /// The outcome is not known yet, and no later request of the connection may begin before it is.
    Barrier(P),
}

/// A response on its way.
pub type LaterResponse = Pin<Box<dyn Future<Output = Response>>>;

/// The answer to a request that is not an operation.
pub enum Controlled {
    /// It is known.
    Now(Response),
    /// It is not known yet.
    Later(LaterResponse),
}

/// Carries out requests.
pub trait Handler {
    /// An outcome on its way. Dropping it abandons the outcome, not the operation.
    type Pending: Future<Output = EngineResult<Outcome<Bytes>>> + Unpin;

    /// The time at which the operations that begin now take place.
    fn now(&self) -> UnixMillis;

    /// A clock that measures how long operations take.
    fn clock(&self) -> Instant;

    /// Announces operations on these keys. The handler may fetch what memory holds of up to `PIPELINE_MAX` of the keys
    /// into the processor's caches, all together. `sets` says that each operation only sets its key, so that no older
    /// value is looked up. A prefetch changes only how long [`Self::begin`] takes.
    fn prefetch(&self, keys: impl Iterator<Item = Key<()>>, sets: bool);

    /// Begins an operation. An outcome that is known at once may be offered to `lend`, with a borrowed value. `lend` returns
    /// whether it has taken the outcome. If there is a `probe`, the handler notes in it when the operation begins and ends.
    fn begin<B: ToBytes>(
        &self,
        op: Op<B>,
        now: UnixMillis,
        probe: Option<Probe>,
        lend: impl FnOnce(Outcome<&[u8]>) -> bool,
    ) -> Reply<Self::Pending>;

    /// Fetches a part of a file that is lent, like a value.
    fn fetch(&self, part: Part) -> Self::Pending;

    /// Answers any other request.
    fn control(&self, control: Control) -> Controlled;
}

/// A number of digits only: `str::parse` would accept a sign. `None` for anything else, and for what 64 bits do not hold.
fn decimal(digits: &[u8]) -> Option<u64> {
    let (first, rest) = digits.split_first()?;
    let digit = |byte: &u8| byte.checked_sub(b'0').filter(|digit| *digit < 10).map(u64::from);
    rest.iter().try_fold(digit(first)?, |number, byte| number.checked_mul(10)?.checked_add(digit(byte)?))
}

/// A request that is refused before it reaches the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: Status,
    /// A plain sentence, without the newline.
    pub message: &'static str,
    /// A header field of its own, in lower case, and its value.
    pub field: Option<(&'static str, &'static str)>,
}

impl Refusal {
    /// A refusal.
    pub const fn new(status: Status, message: &'static str) -> Self {
        Self { status, message, field: None }
    }

    /// The same with a header field.
    #[must_use]
    pub const fn with_field(self, name: &'static str, value: &'static str) -> Self {
        Self { field: Some((name, value)), ..self }
    }

    const fn bad(message: &'static str) -> Self {
        Self::new(Status::BadRequest, message)
    }
}
