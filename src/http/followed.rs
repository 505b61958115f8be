//! Requests that are followed from their first byte to their reply: for the access log, for a `Server-Timing` field, and as
//! samples for the page that names the slowest.
//!
//! One request of so many is chosen ([`Peers::chooses`]), by counters of its thread: neither a clock nor anything that
//! threads share decides. A line of the log has the beginning of the key and the name of the token, and never a value, a
//! query or the secret of a token: of the request, only its method, its path, its key and that name are kept.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::access::Policy;
use super::head::{Framing, Head, Method};
use super::peers::{Choice, Peer, Peers, TIMED};
use super::probe::{Measured, Probe, Split};
use super::response::{Status, Wire};
use super::stream::Stream;
use super::{Handler, Refusal};

/// What a line has of a path or of a key at most, in bytes.
const SHOWN_BYTES_MAX: usize = 64;

/// A request that is followed.
struct Entry {
    /// What the log shows of it, if it is logged.
    line: Option<Line>,
    /// Whether its reply has a `Server-Timing` field.
    is_shown: bool,
    bytes: usize,
    /// When its head had arrived, later by the time that its client took for its body.
    arrived: Option<Instant>,
    probe: Option<Probe>,
}

struct Line {
    method: &'static str,
    path: String,
    key: Option<String>,
    /// The name of its token.
    token: Option<String>,
}

/// The requests of a connection that are followed and not answered yet, in order.
#[derive(Default)]
pub(super) struct Followed {
    entries: VecDeque<Entry>,
    /// How many of them have begun.
    begun: usize,
}

impl Followed {
    /// Adds a request, whose bytes are in `request`. What is no request has neither method nor path.
    #[cold]
    pub(super) fn add(
        &mut self,
        choice: Choice,
        head: &Result<Head, Refusal>,
        request: &[u8],
        policy: &Policy,
    ) {
        let line = (choice == Choice::Log).then(|| match head {
            Ok(head) => {
                let target = &request[head.target.clone()];
                let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
                let token = policy.token_name(head, request).map(str::to_owned);
                Line { method: name(head.method), path: shown(path), key: None, token }
            }
            Err(_) => Line { method: "", path: String::new(), key: None, token: None },
        });
        let bytes = head.as_ref().map_or(0, length);
        self.entries.push_back(Entry { line, is_shown: false, bytes, arrived: None, probe: None });
    }

    /// The reply to a request has a `Server-Timing` field. The request is new, or was added last.
    #[cold]
    pub(super) fn show(&mut self, is_new: bool, head: &Head) {
        if is_new {
            self.entries.push_back(Entry {
                line: None,
                is_shown: true,
                bytes: length(head),
                arrived: None,
                probe: None,
            });
        } else if let Some(entry) = self.entries.back_mut() {
            entry.is_shown = true;
        }
    }

    /// The key of the request that was added last.
    pub(super) fn name_key(&mut self, key: impl FnOnce() -> Option<String>) {
        if let Some(line) = self.entries.back_mut().and_then(|entry| entry.line.as_mut()) {
            line.key = key();
        }
    }

    /// Whether no request is followed.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The head of the request that was added last has arrived.
    #[cold]
    pub(super) fn arrive(&mut self, handler: &impl Handler) {
        if let Some(entry) = self.entries.back_mut() {
            entry.arrived = Some(handler.clock());
        }
    }

    /// Leaves a time out of what the request that was added last takes.
    pub(super) fn leave_out(&mut self, time: Duration) {
        if let Some(arrived) = self.entries.back_mut().and_then(|entry| entry.arrived.as_mut()) {
            *arrived += time;
        }
    }

    /// The length of a chunked body, which is known once it has arrived.
    pub(super) fn add_chunks(&mut self, wire: Wire, head: &Head, bytes: usize) {
        if wire.followed
            && head.framing == Framing::Chunked
            && let Some(entry) = self.entries.back_mut()
        {
            entry.bytes = entry.bytes.saturating_add(bytes);
        }
    }

    /// The next request begins. Returns what goes along with its operation.
    #[inline]
    pub(super) fn begin(&mut self, wire: Wire) -> Option<Probe> {
        if wire.followed { self.begin_next() } else { None }
    }

    #[cold]
    fn begin_next(&mut self) -> Option<Probe> {
        let entry = self.entries.get_mut(self.begun)?;
        self.begun += 1;
        entry.probe = entry.arrived.map(Probe::new);
        entry.probe.clone()
    }

    /// Counts a reply, and ends what is followed of its request. `bytes` tells the length of its body. Returns the value of
    /// its `Server-Timing` field, if it has one.
    #[inline]
    pub(super) fn replied<S: Stream, H: Handler>(
        &mut self,
        (peers, peer, handler): (&Peers<S>, &Peer<S>, &H),
        wire: Wire,
        status: Status,
        bytes: impl FnOnce() -> usize,
    ) -> Option<String> {
        peers.count(wire, status);
        if wire.followed { self.end((peers, peer, handler), wire, status, bytes()) } else { None }
    }

    #[cold]
    fn end<S: Stream, H: Handler>(
        &mut self,
        (peers, peer, handler): (&Peers<S>, &Peer<S>, &H),
        wire: Wire,
        status: Status,
        bytes: usize,
    ) -> Option<String> {
        let entry = self.entries.pop_front()?;
        self.begun = self.begun.saturating_sub(1); // what is refused has not begun
        if self.entries.is_empty() {
            self.entries = VecDeque::new(); // an idle connection holds no memory for them
        }
        let probe = entry.probe.or_else(|| entry.arrived.map(Probe::new)); // what is refused has none
        let split = probe.map(|probe| probe.split(handler.clock()));
        let bytes_out = if wire.head_only { 0 } else { bytes };
        if let Some(line) = entry.line {
            line.log(&peer.stream, (wire, status), (entry.bytes, bytes_out), split);
        }
        let split = split?;
        if TIMED.contains(&wire.endpoint) {
            let what = (wire.endpoint.name(), status);
            peers.measured(Measured::new(what, (entry.bytes, bytes_out), handler.now(), split));
        }
        entry.is_shown.then(|| split.field())
    }
}

impl Line {
    fn log(
        self,
        stream: &impl Stream,
        (wire, status): (Wire, Status),
        (bytes_in, bytes_out): (usize, usize),
        split: Option<Split>,
    ) {
        let client =
            stream.address().map_or_else(|| "unix".into(), |address| address.to_canonical().to_string());
        let took = split.map(|split| split.total.as_micros());
        tracing::info!(
            client,
            token = self.token,
            method = self.method,
            path = self.path,
            endpoint = wire.endpoint.name(),
            key = self.key,
            status = status.code(),
            bytes_in,
            bytes_out,
            microseconds = took.map(|took| u64::try_from(took).unwrap_or(u64::MAX)),
            "request"
        );
    }
}

/// Bytes of a request, as far as its head tells.
fn length(head: &Head) -> usize {
    match head.framing {
        Framing::Length(length) => head.bytes.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)),
        Framing::Empty | Framing::Chunked => head.bytes,
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
