//! The access log: one line for each request that was chosen, when its reply is ready.
//!
//! One request of so many is chosen ([`Peers::chooses`]), by a counter of its thread: neither a clock nor anything that
//! threads share decides. A line has the beginning of the key, and never a value, a query or a token: of the request, only
//! its method, its path and its key are kept.

use std::collections::VecDeque;
use std::time::Instant;

use super::head::{Framing, Head, Method};
use super::peers::{Peer, Peers};
use super::response::{Status, Wire};
use super::stream::Stream;
use super::{Handler, Refusal};

/// What a line has of a path or of a key at most, in bytes.
const SHOWN_BYTES_MAX: usize = 64;

/// A request that was chosen.
struct Entry {
    method: &'static str,
    path: String,
    key: Option<String>,
    bytes: usize,
    begun: Option<Instant>,
}

/// The requests of a connection that were chosen and are not answered yet, in order.
#[derive(Default)]
pub(super) struct Chosen(VecDeque<Entry>);

impl Chosen {
    /// Adds a request, whose bytes are in `request`. What is no request has neither method nor path.
    pub(super) fn add(&mut self, head: &Result<Head, Refusal>, request: &[u8]) {
        let (method, path, bytes) = match head {
            Ok(head) => {
                let target = &request[head.target.clone()];
                let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
                let body = match head.framing {
                    Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
                    Framing::Empty | Framing::Chunked => 0,
                };
                (name(head.method), shown(path), head.bytes.saturating_add(body))
            }
            Err(_) => ("", String::new(), 0),
        };
        self.0.push_back(Entry { method, path, key: None, bytes, begun: None });
    }

    /// The key of the request that was added last.
    pub(super) fn name_key(&mut self, key: Option<String>) {
        if let Some(entry) = self.0.back_mut() {
            entry.key = key;
        }
    }

    /// The request that was added last begins now.
    pub(super) fn begin(&mut self, now: Instant) {
        if let Some(entry) = self.0.back_mut() {
            entry.begun = Some(now);
        }
    }

    /// The length of a chunked body, which is known once it has arrived.
    pub(super) fn add_chunks(&mut self, wire: Wire, head: &Head, bytes: usize) {
        if wire.logged
            && head.framing == Framing::Chunked
            && let Some(entry) = self.0.back_mut()
        {
            entry.bytes = entry.bytes.saturating_add(bytes);
        }
    }

    /// Counts a reply, and logs it if its request was chosen. `bytes` tells the length of its body.
    #[inline]
    pub(super) fn replied<S: Stream, H: Handler>(
        &mut self,
        (peers, peer, handler): (&Peers<S>, &Peer<S>, &H),
        wire: Wire,
        status: Status,
        bytes: impl FnOnce() -> usize,
    ) {
        peers.count(wire, status);
        if wire.logged {
            self.log(&peer.stream, handler.clock(), wire, status, bytes());
        }
    }

    #[cold]
    fn log(&mut self, stream: &impl Stream, now: Instant, wire: Wire, status: Status, bytes: usize) {
        let Some(entry) = self.0.pop_front() else { return };
        let client =
            stream.address().map_or_else(|| "unix".into(), |address| address.to_canonical().to_string());
        let took = entry.begun.map(|begun| now.duration_since(begun).as_micros());
        tracing::info!(
            client,
            method = entry.method,
            path = entry.path,
            endpoint = wire.endpoint.name(),
            key = entry.key,
            status = status.code(),
            bytes_in = entry.bytes,
            bytes_out = if wire.head_only { 0 } else { bytes },
            microseconds = took.map(|took| u64::try_from(took).unwrap_or(u64::MAX)),
            "request"
        );
    }
}

fn name(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Options => "OPTIONS",
        Method::Other => "other",
    }
}

/// The beginning of some bytes, as text. The log escapes what must not reach a terminal.
pub(super) fn shown(bytes: &[u8]) -> String {
    match bytes.split_at_checked(SHOWN_BYTES_MAX) {
        Some((front, rest)) if !rest.is_empty() => format!("{}…", String::from_utf8_lossy(front)),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}
