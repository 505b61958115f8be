//! The bytes that a client has sent. Requests are parsed from them one after the other. Pure.
//!
//! A request that is complete becomes a [`Parsed`], which names ranges of the input. The ranges hold until the input is
//! compacted, which happens only before the next read. So everything that has arrived can be parsed before the first
//! operation begins.

use std::ops::Range;

use bytes::Bytes;

use super::body::BODY_TOO_LONG;
use super::followed::{Followed, shown};
use super::head::{Framing, Head, HeadEnd, Method, asks_for_head, parse};
use super::label::Label;
use super::peers::{Choice, Rules};
use super::response::Wire;
use super::route::{Route, Timing};
use super::{IDLE_BUFFER_BYTES, LONG_BODY_BYTES, Refusal};
use crate::codec::to_usize;

/// The input of a connection.
pub(super) struct Input {
    bytes: Vec<u8>,
    /// Bytes before this are parsed.
    start: usize,
    head_end: HeadEnd,
}

/// A request whose head and body have arrived.
pub(super) struct Parsed {
    pub(super) route: Route,
    pub(super) wire: Wire,
    /// Where the request begins.
    pub(super) at: usize,
    /// Where the body is.
    pub(super) body: Range<usize>,
}

/// A request whose head has arrived and whose body still has to be read.
pub(super) struct Begun {
    pub(super) route: Route,
    pub(super) wire: Wire,
    pub(super) head: Head,
}

/// What the front of the input is.
pub(super) enum Front {
    /// A complete request.
    Complete(Parsed),
    /// A request whose body has not arrived, is long, or is chunked. It is not taken from the input.
    Body(Begun),
    /// Bytes that are refused. If the connection stays open, they are taken from the input.
    Refused(Refusal, Wire),
    /// Not a whole head.
    Incomplete,
}

impl Input {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(IDLE_BUFFER_BYTES), start: 0, head_end: HeadEnd::default() }
    }

    /// Parses the request at the front, of a client that is on this host or not. If `chooses` says so, or the
    /// request asks for it, it is added to those that are `followed`.
    pub(super) fn parse(
        &mut self,
        rules: &Rules,
        is_local: bool,
        (chooses, followed): (impl FnOnce() -> Option<Choice>, &mut Followed),
    ) -> Front {
        let rest = &self.bytes[self.start..];
        let head = match self.head_end.find(rest) {
            Ok(None) => return Front::Incomplete,
            Ok(Some(bytes)) => parse(&rest[..bytes], &rules.address),
            Err(refusal) => Err(refusal),
        };
        let choice = chooses();
        if let Some(choice) = choice {
            followed.add(choice, &head, rest, &rules.policy);
        }
        let is_followed = choice.is_some();
        let head = match head {
            Ok(head) => head,
            Err(refusal) => {
                let head_only = asks_for_head(rest);
                let wire = Wire { head_only, followed: is_followed, ..Wire::UNKNOWN };
                return Front::Refused(refusal, wire); // H1
            }
        };
        let wire = Wire {
            old: head.old,
            keep_alive: head.keep_alive,
            head_only: head.method == Method::Head,
            range: head.range,
            endpoint: Label::UNKNOWN,
            followed: is_followed,
        };
        let body_bytes = match head.framing {
            Framing::Empty => 0,
            Framing::Length(length) => length,
            Framing::Chunked => u64::MAX,
        };
        // After a refusal the connection goes on only if no body follows: a body could be taken for a request (H1).
        let refused = |wire: Wire| Wire { keep_alive: wire.keep_alive && body_bytes == 0, ..wire };
        let grant = rules.policy.admit(&head, rest, is_local);
        let (route, timing) = match grant.and_then(|grant| Route::of(&head, rest, &grant, rules.key_hash)) {
            Ok(routed) => routed,
            Err(refusal) => {
                let endpoint = Route::label_of(&rest[head.target.clone()]);
                self.consume(head.bytes);
                return Front::Refused(refusal, refused(Wire { endpoint, ..wire }));
            }
        };
        let wire = Wire { endpoint: route.label(), followed: is_followed || timing == Timing::Told, ..wire };
        if timing == Timing::Told {
            followed.show(!is_followed, &head);
        }
        if is_followed {
            followed.name_key(|| route.with_key(rest, shown));
        }
        if head.framing != Framing::Chunked && (rules.value_bytes_max as u64) < body_bytes {
            return Front::Refused(BODY_TOO_LONG, refused(wire));
        }
        if (LONG_BODY_BYTES as u64) < body_bytes || ((rest.len() - head.bytes) as u64) < body_bytes {
            return Front::Body(Begun { route, wire, head });
        }
        let at = self.start;
        let body = at + head.bytes..at + head.bytes + to_usize(body_bytes);
        self.consume(head.bytes + body.len());
        Front::Complete(Parsed { route, wire, at, body })
    }

    /// The bytes from `at` on.
    pub(super) fn from(&self, at: usize) -> &[u8] {
        &self.bytes[at..]
    }

    /// The bytes in `range`.
    pub(super) fn range(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Where the unparsed bytes begin.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// The number of unparsed bytes.
    pub(super) fn unparsed(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Marks `bytes` at the front as parsed.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        self.head_end = HeadEnd::default();
    }

    /// Removes bytes in the middle that are not needed any more.
    pub(super) fn remove(&mut self, range: Range<usize>) {
        self.bytes.drain(range);
    }

    /// Takes `bytes` at the front out of the input, without a copy, and without memory that was meant for more. What follows
    /// them is copied.
    pub(super) fn take_front(&mut self, bytes: usize) -> Bytes {
        let end = self.start + bytes;
        let mut rest = Vec::with_capacity((self.bytes.len() - end).max(IDLE_BUFFER_BYTES));
        rest.extend_from_slice(&self.bytes[end..]);
        let mut taken = std::mem::replace(&mut self.bytes, rest);
        taken.truncate(end);
        if bytes / 8 < self.start {
            taken.drain(..self.start); // a value may keep this memory for long
            self.start = 0;
        }
        taken.shrink_to_fit();
        let front = Bytes::from(taken).slice(self.start..);
        self.start = 0;
        self.head_end = HeadEnd::default();
        front
    }

    /// By how much the buffer grows for the next read. It doubles: memory follows the bytes that arrived (H2). But it
    /// does not grow beyond `wanted` bytes that are not parsed.
    fn growth(&self, wanted: usize) -> usize {
        let unparsed = self.unparsed();
        if IDLE_BUFFER_BYTES / 4 <= self.bytes.capacity() - unparsed {
            return 0;
        }
        unparsed.max(IDLE_BUFFER_BYTES).min(wanted.saturating_sub(unparsed).max(IDLE_BUFFER_BYTES / 4))
    }

    /// Bytes of memory that the input takes after the next [`Self::lend_for_read`].
    pub(super) fn capacity_for_read(&self, wanted: usize) -> usize {
        match self.growth(wanted) {
            0 => self.bytes.capacity(),
            growth => self.unparsed() + growth,
        }
    }

    /// Drops what is parsed, makes room for the next read, and hands out the buffer for it. The caller expects `wanted`
    /// bytes that are not parsed. Ranges of parsed requests become invalid.
    pub(super) fn lend_for_read(&mut self, wanted: usize) -> Vec<u8> {
        let growth = self.growth(wanted);
        self.bytes.drain(..self.start);
        self.start = 0;
        if self.bytes.is_empty() && IDLE_BUFFER_BYTES < self.bytes.capacity() {
            self.bytes.shrink_to(IDLE_BUFFER_BYTES);
        }
        if 0 < growth {
            self.bytes.reserve_exact(growth);
        }
        std::mem::take(&mut self.bytes)
    }

    /// Takes the buffer back, with what was read.
    pub(super) fn give_back(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }
}
