//! One connection: parses requests, begins their operations, and writes replies in request order.
//!
//! A turn of a connection has four steps, so that the writes among its requests join one commit group, and the lookups
//! among them wait for memory together:
//!
//! ```text
//!   parse everything that has arrived ──► prefetch the keys ──► begin all operations ──► write the replies in order
//!
//!   Idle ──bytes──► Reading ──request complete──► Working ──reply known──► Writing ──► Idle
//!                                                    └──(/shutdown)──► Watching ──► Lingering ──► closed
//! ```
//!
//! A reply that is known at once goes straight to the output if no earlier request is under way. After the last reply
//! of a connection, what its client still sends is read and dropped for a while (Lingering), so that the reply is not
//! lost to a reset.

use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use super::body::Chunked;
use super::followed::Followed;
use super::head::{Framing, Head};
use super::input::{Begun, Front, Input, Parsed};
use super::output::{OWN_BYTES, Output};
use super::peers::{Peer, Peers, Phase};
use super::response::{Body, Response, Wire, put_line_chunk};
use super::route::Route;
use super::stream::Stream;
use super::timing::Timing;
use super::{
    Controlled, Handler, IDLE_BUFFER_BYTES, LONG_BODY_BYTES, LaterResponse, PIPELINE_MAX, Probe, Refusal,
    Reply, Status,
};
use crate::codec::to_usize;
use crate::error::Result as EngineResult;
use crate::key::{Slot, UnixMillis};
use crate::memory::Permit;
use crate::op::{Op, Outcome, ToBytes};

/// What the input takes of the memory for buffers at most: the longest head, and its copy, fit.
const SHORT_INPUT_BYTES: usize = 10 * LONG_BODY_BYTES;
/// A large value is written in parts of this size. Each part counts as progress.
const PART_BYTES: usize = 256 << 10;

const NO_MEMORY: Refusal =
    Refusal::new(Status::ServiceUnavailable, "too many large requests are under way; try again later");

const LATE: Refusal = Refusal::new(Status::RequestTimeout, "the rest of the request did not come in time");

/// Serves a connection to its end.
///
/// Cancel safety: not safe; a read or write is almost always in flight.
pub async fn serve<S: Stream, H: Handler>(stream: S, handler: &H, peers: &Peers<S>) {
    let (id, peer) = peers.add(stream);
    let mut connection = Connection {
        peer,
        peers,
        handler,
        input: Input::new(),
        output: Output::new(),
        buffer: None,
        reserved: None,
        body: None,
        reading: Phase::Reading,
        has_read: false,
        followed: Followed::default(),
    };
    connection.run().await;
    peers.remove(id);
}

/// Answers a connection that is not served: 503 with a sentence, whatever the client sends.
///
/// Cancel safety: as [`serve`].
pub async fn refuse<S: Stream>(stream: S, peers: &Peers<S>, why: &'static str) {
    let (id, peer) = peers.add(stream);
    peers.enter(&peer, Phase::Writing);
    if peer.stream.write_all(peers.refusal(why)).await.0.is_ok() {
        linger(&peer, peers).await;
    }
    peers.remove(id);
}

/// Closes for writing, then reads and drops what the client still sends, so that the last reply is not lost to a reset.
/// [`Peers::tick`] ends this after a while.
async fn linger<S: Stream>(peer: &Peer<S>, peers: &Peers<S>) {
    peers.enter(peer, Phase::Writing);
    peer.stream.finish().await;
    peers.enter(peer, Phase::Lingering);
    if peers.is_draining() {
        // Waiting is not worth it: only a client that keeps sending would see a reset.
        peer.end(Shutdown::Read);
    }
    let mut buffer = Vec::with_capacity(IDLE_BUFFER_BYTES);
    loop {
        buffer.clear();
        let (result, back) = peer.stream.read(buffer).await;
        buffer = back;
        if matches!(result, Ok(0) | Err(_)) {
            return;
        }
    }
}

/// The client is gone, or must go.
struct Gone;

/// Whether a connection stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    Close,
}

/// A request whose reply is not in the output yet.
struct Pending<P> {
    answer: Answer<P>,
    wire: Wire,
}

enum Answer<P> {
    /// It is known, and waits for its turn.
    Known(EngineResult<Outcome<Bytes>>),
    /// As `Known`, for a request that is not an operation.
    Response(Response),
    /// The same, under way.
    LaterResponse(LaterResponse),
    /// It is under way.
    Later(P),
}

/// The requests of a turn.
struct Turn<P> {
    /// Complete, and not begun.
    parsed: Vec<Parsed>,
    /// Begun, in order.
    pending: Vec<Pending<P>>,
    /// The slots of keys that begun requests write (H4). Two keys may share a slot; then a read waits needlessly.
    written: Vec<Slot>,
    /// The time at which operations begin. It is taken anew whenever the turn has waited.
    now: Option<UnixMillis>,
    timing: Timing,
}

/// The body of a request, complete.
enum RequestBody {
    /// These bytes of the input.
    Input(Range<usize>),
    /// Unpacked; `input_bytes` of the input still belong to it.
    Unpacked { chunked: Chunked, input_bytes: usize },
}

impl RequestBody {
    fn bytes<'a>(&'a self, input: &'a Input) -> &'a [u8] {
        match self {
            Self::Input(range) => input.range(range.clone()),
            Self::Unpacked { chunked, .. } => chunked.body(),
        }
    }

    fn input_bytes(&self) -> usize {
        match self {
            Self::Input(range) => range.len(),
            Self::Unpacked { input_bytes, .. } => *input_bytes,
        }
    }
}

/// Why the parsing of a turn has stopped.
enum Stop {
    /// As many requests are parsed as may be under way.
    Full,
    /// The last request asks to close the connection.
    Last,
    /// The next request has a body that has to be read.
    Body(Box<Begun>),
    /// The next bytes are refused.
    Refused(Refusal, Wire),
    /// Nothing complete is left.
    Incomplete,
}

struct Connection<'a, S, H> {
    peer: Rc<Peer<S>>,
    peers: &'a Peers<S>,
    handler: &'a H,
    input: Input,
    output: Output,
    /// Memory for the input, and for its copy in a commit group: while the input is short, and beyond that. Requests may
    /// wait for values while the connection holds the first, but not while it holds the second.
    buffer: Option<Permit>,
    reserved: Option<Permit>,
    /// The permit to use the memory that is set aside for one body.
    body: Option<Permit>,
    /// What is being read.
    reading: Phase,
    /// Whether anything has arrived.
    has_read: bool,
    followed: Followed,
}

impl<S: Stream, H: Handler> Connection<'_, S, H> {
    async fn run(&mut self) {
        let mut turn = Turn {
            parsed: Vec::new(),
            pending: Vec::new(),
            written: Vec::new(),
            now: None,
            timing: Timing::Idle,
        };
        loop {
            match self.turn(&mut turn).await {
                Ok(Then::GoOn) => {}
                Ok(Then::Close) => return self.linger().await,
                Err(Gone) => return self.peer.stream.finish().await,
            }
        }
    }

    /// Serves every complete request in the input, then reads more.
    async fn turn(&mut self, turn: &mut Turn<H::Pending>) -> Result<Then, Gone> {
        loop {
            let stop = self.parse(turn);
            let mut then = self.begin_all(turn).await?;
            match stop {
                _ if then == Then::Close => {}
                Stop::Full => continue,
                Stop::Last => then = Then::Close,
                // Boxed, so that an idle connection has no room for it.
                Stop::Body(begun) => then = Box::pin(self.serve_with_body(*begun, turn)).await?,
                Stop::Refused(refusal, wire) => then = self.refuse(&refusal, wire, turn).await?,
                Stop::Incomplete => break,
            }
            if then == Then::Close {
                self.settle(turn).await?;
                self.flush().await?;
                turn.timing.end(self.peers, self.handler);
                return Ok(Then::Close);
            }
        }
        self.settle(turn).await?;
        self.flush().await?;
        turn.timing.end(self.peers, self.handler);
        if self.peers.is_draining() && self.has_read && self.input.unparsed() == 0 {
            return Ok(Then::Close);
        }
        if self.input.unparsed() != 0 && !self.reserve(0, usize::MAX).await {
            self.refuse(&NO_MEMORY, Wire::UNKNOWN, turn).await?;
            self.flush().await?;
            return Ok(Then::Close);
        }
        self.read(usize::MAX).await?;
        Ok(Then::GoOn)
    }

    /// Parses complete requests, until no more may be under way.
    fn parse(&mut self, turn: &mut Turn<H::Pending>) -> Stop {
        turn.parsed.clear();
        let rules = self.peers.rules();
        while turn.parsed.len() < PIPELINE_MAX {
            let followed = (|| self.peers.chooses(), &mut self.followed);
            match self.input.parse(&rules, self.peer.stream.is_local(), followed) {
                Front::Complete(mut parsed) => {
                    parsed.wire = self.begins(parsed.wire);
                    let last = !parsed.wire.keep_alive;
                    turn.parsed.push(parsed);
                    if last {
                        return Stop::Last;
                    }
                }
                Front::Body(mut begun) => {
                    begun.wire = self.begins(begun.wire);
                    return Stop::Body(Box::new(begun));
                }
                Front::Refused(refusal, wire) => return Stop::Refused(refusal, self.begins(wire)),
                Front::Incomplete => return Stop::Incomplete,
            }
        }
        Stop::Full
    }

    /// The request begins. While the server drains, every reply is the last of its connection.
    #[inline]
    fn begins(&mut self, wire: Wire) -> Wire {
        if wire.followed {
            self.followed.arrive(self.handler);
        }
        Wire { keep_alive: wire.keep_alive && !self.peers.is_draining(), ..wire }
    }

    /// Begins every parsed request.
    async fn begin_all(&mut self, turn: &mut Turn<H::Pending>) -> Result<Then, Gone> {
        if turn.parsed.is_empty() {
            return Ok(Then::GoOn);
        }
        if 1 < turn.parsed.len() {
            for sets in [false, true] {
                let keys = turn.parsed.iter().filter(|parsed| parsed.route.only_sets() == sets);
                self.handler.prefetch(keys.filter_map(|parsed| parsed.route.key()), sets);
            }
        }
        let mut parsed = std::mem::take(&mut turn.parsed);
        let mut then = Then::GoOn;
        // By reference: a move of each request would cost more.
        for Parsed { route, wire, at, body } in &parsed {
            let body = RequestBody::Input(body.clone());
            then = self.begin(route, *wire, (*at, &body), turn).await?;
            if then == Then::Close {
                break;
            }
        }
        parsed.clear();
        turn.parsed = parsed;
        Ok(then)
    }

    /// Begins a request that starts at `at` in the input. What is rare is boxed: an idle connection has no room for it.
    async fn begin(
        &mut self,
        route: &Route,
        wire: Wire,
        (at, body): (usize, &RequestBody),
        turn: &mut Turn<H::Pending>,
    ) -> Result<Then, Gone> {
        let probe = self.followed.begin(wire);
        if !route.is_operation() {
            let control = route.control().map(|control| self.handler.control(control));
            let answer = match (control, route.part_of_file()) {
                (Some(Controlled::Now(response)), _) => Answer::Response(response),
                (Some(Controlled::Later(response)), _) => Answer::LaterResponse(response),
                (None, Some(part)) => Answer::Later(self.handler.fetch(part)),
                (None, None) => unreachable!("it is none of an operation, a part and a control"),
            };
            let wire = Wire { keep_alive: wire.keep_alive && !route.is_last(), ..wire };
            let is_long = matches!(answer, Answer::Later(_));
            turn.pending.push(Pending { answer, wire });
            if is_long || PIPELINE_MAX <= turn.pending.len() {
                Box::pin(self.settle(turn)).await?; // H3, H5
            }
            return Ok(if route.is_last() { Then::Close } else { Then::GoOn });
        }
        if self.reads_a_written_slot(route, turn) {
            Box::pin(self.settle(turn)).await?; // H4
        }
        let Self { input, output, handler, peers, .. } = self;
        let op = match route.op(input.from(at), body.bytes(input)) {
            Ok(op) => op,
            Err(refusal) => return Box::pin(self.refuse(&refusal, wire, turn)).await,
        };
        let answer = start(*handler, op, turn, (output, wire, probe), peers);
        self.follow(answer, route, wire, turn).await
    }

    /// Begins the request at the front of the input, whose body is long. The bytes that were read become its own, so no
    /// copy of them is made on their way to another thread, or while the request waits for room.
    async fn begin_long(
        &mut self,
        route: &Route,
        wire: Wire,
        head: &Head,
        body: RequestBody,
        turn: &mut Turn<H::Pending>,
    ) -> Result<Then, Gone> {
        if self.reads_a_written_slot(route, turn) {
            Box::pin(self.settle(turn)).await?; // H4
        }
        let request = self.input.take_front(head.bytes + body.input_bytes());
        let body = match body {
            RequestBody::Input(_) => request.slice(head.bytes..),
            RequestBody::Unpacked { chunked, .. } => Bytes::from(chunked.into_body()),
        };
        let op = match route.op(&request, &body) {
            Ok(op) if route.only_sets() => op.map(|part| part_of(&[&request, &body], part)),
            Ok(op) => op.to_owned(), // it needs nothing of the body
            Err(refusal) => {
                drop((request, body));
                self.give_back();
                return Box::pin(self.refuse(&refusal, wire, turn)).await;
            }
        };
        drop((request, body));
        if !route.only_sets() {
            self.give_back(); // nobody must wait for a value and hold what others need for theirs
        }
        let probe = self.followed.begin(wire);
        let answer = start(self.handler, op, turn, (&mut self.output, wire, probe), self.peers);
        self.follow(answer, route, wire, turn).await
    }

    fn reads_a_written_slot(&self, route: &Route, turn: &Turn<H::Pending>) -> bool {
        route.only_reads() && route.key().is_some_and(|key| turn.written.contains(&key.slot()))
    }

    /// Takes note of a request that has begun, and waits if no more may be under way.
    async fn follow(
        &mut self,
        begun: Option<(Answer<H::Pending>, bool)>,
        route: &Route,
        wire: Wire,
        turn: &mut Turn<H::Pending>,
    ) -> Result<Then, Gone> {
        let Some((answer, barrier)) = begun else {
            if self.output.is_full(&self.peers.memory.buffers) {
                turn.now = None;
                self.flush().await?;
            }
            return Ok(Then::GoOn);
        };
        // It was not lent although it is the next reply. The replies to the requests behind it need not wait for it.
        let is_next = wire.followed && turn.pending.is_empty() && matches!(answer, Answer::Known(_));
        let held = match &answer {
            Answer::Known(Ok(outcome)) => Some(outcome.value_bytes()),
            Answer::Later(_) if route.only_reads() => None,
            _ => Some(0),
        };
        let full = self.output.hold(held, &self.peers.memory);
        turn.pending.push(Pending { answer, wire });
        if !route.only_reads() {
            turn.written.extend(route.key().map(|key| key.slot()));
        }
        if barrier || full || is_next || PIPELINE_MAX <= turn.pending.len() {
            Box::pin(self.settle(turn)).await?; // H3, H5
        }
        Ok(Then::GoOn)
    }

    /// Refuses a request, after the replies to the requests before it.
    async fn refuse(
        &mut self,
        refusal: &Refusal,
        wire: Wire,
        turn: &mut Turn<H::Pending>,
    ) -> Result<Then, Gone> {
        self.settle(turn).await?;
        self.put(Response::refusal(refusal), wire).await?;
        Ok(if wire.keep_alive { Then::GoOn } else { Then::Close })
    }

    /// Reads the body of the request at the front of the input, and begins the request.
    async fn serve_with_body(&mut self, begun: Begun, turn: &mut Turn<H::Pending>) -> Result<Then, Gone> {
        let Begun { route, wire, head } = begun;
        self.reading = Phase::ReadingBody;
        let read = self.read_body(&head, turn).await?;
        self.reading = Phase::Reading;
        let body = match read {
            Ok(body) => body,
            // What is left of the body could be taken for a request (H1).
            Err(refusal) => return self.refuse(&refusal, Wire { keep_alive: false, ..wire }, turn).await,
        };
        self.followed.add_chunks(wire, &head, body.bytes(&self.input).len());
        let then = if LONG_BODY_BYTES < body.bytes(&self.input).len() && route.is_operation() {
            self.begin_long(&route, wire, &head, body, turn).await?
        } else {
            let at = self.input.start();
            self.input.consume(head.bytes + body.input_bytes());
            self.begin(&route, wire, (at, &body), turn).await?
        };
        if self.reserved.is_some() || self.body.is_some() {
            // They cover one body. Later requests must not wait for memory that this connection holds.
            self.settle(turn).await?;
            (self.reserved, self.body) = (None, None);
        }
        Ok(if wire.keep_alive { then } else { Then::Close })
    }

    /// Reads the rest of a body. Earlier requests are answered first. A client that waits for `100 Continue` gets it.
    async fn read_body(
        &mut self,
        head: &Head,
        turn: &mut Turn<H::Pending>,
    ) -> Result<Result<RequestBody, Refusal>, Gone> {
        let Framing::Length(length) = head.framing else { return self.read_chunks(head, turn).await };
        let length = to_usize(length); // parsing has refused what is longer than a value
        if self.input.unparsed() < head.bytes + length {
            self.settle(turn).await?;
            self.go_ahead(head).await?;
            turn.timing.end(self.peers, self.handler); // what follows is the time of the client
        }
        while self.input.unparsed() < head.bytes + length {
            if !self.reserve(0, head.bytes + length).await {
                return Ok(Err(NO_MEMORY));
            }
            self.read(head.bytes + length).await?;
        }
        let from = self.input.start() + head.bytes;
        Ok(Ok(RequestBody::Input(from..from + length)))
    }

    async fn read_chunks(
        &mut self,
        head: &Head,
        turn: &mut Turn<H::Pending>,
    ) -> Result<Result<RequestBody, Refusal>, Gone> {
        let mut chunked = Chunked::default();
        let mut asked = false;
        let value_bytes_max = self.peers.rules().value_bytes_max;
        loop {
            let from = self.input.start() + head.bytes;
            let taken = match chunked.take(self.input.from(from), value_bytes_max) {
                Ok(taken) => taken,
                Err(refusal) => return Ok(Err(refusal)),
            };
            if chunked.is_done() {
                return Ok(Ok(RequestBody::Unpacked { chunked, input_bytes: taken }));
            }
            self.input.remove(from..from + taken); // what was unpacked is not kept twice
            if !std::mem::replace(&mut asked, true) {
                self.settle(turn).await?;
                self.go_ahead(head).await?;
                turn.timing.end(self.peers, self.handler); // as for a body with a length
            }
            if !self.reserve(2 * chunked.body().len(), usize::MAX).await {
                return Ok(Err(NO_MEMORY));
            }
            self.read(usize::MAX).await?;
        }
    }

    /// Tells a client that waits for `100 Continue` to send its body.
    async fn go_ahead(&mut self, head: &Head) -> Result<(), Gone> {
        if head.expects_continue {
            self.output.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.flush().await
    }

    /// Awaits every request that is under way and puts the replies into the output, in order (H3).
    async fn settle(&mut self, turn: &mut Turn<H::Pending>) -> Result<(), Gone> {
        turn.written.clear();
        turn.now = None;
        self.output.holds_nothing();
        for Pending { answer, wire } in turn.pending.drain(..) {
            let result = match answer {
                Answer::Known(result) => result,
                Answer::Response(response) => {
                    self.put(response, wire).await?;
                    continue;
                }
                Answer::LaterResponse(response) => {
                    self.enter(Phase::Working);
                    let response = response.await;
                    self.put(response, wire).await?;
                    continue;
                }
                Answer::Later(pending) => {
                    self.enter(Phase::Working);
                    pending.await
                }
            };
            match result {
                Ok(outcome) => self.put_outcome(outcome, wire).await?,
                Err(error) => self.put(Response::error(&error), wire).await?,
            }
        }
        Ok(())
    }

    /// Puts the reply to an outcome into the output. A large value is written without a copy.
    async fn put_outcome(&mut self, outcome: Outcome<Bytes>, wire: Wire) -> Result<(), Gone> {
        self.output.begin(self.peers);
        let heads = self.peers.heads();
        self.output.expect_after(&outcome);
        let by = (self.peers, &*self.peer, self.handler);
        let timing = self.followed.replied(by, wire, wire.status_of(&outcome), || wire.bytes_of(&outcome));
        let at = self.output.bytes.len();
        let bytes = outcome.value_bytes();
        if bytes <= OWN_BYTES || wire.head_only {
            heads.put_outcome(&mut self.output.bytes, &outcome, wire);
            self.output.add_timing(at, timing);
            return self.flush_if_full().await;
        }
        let asked = heads.put_outcome_head(&mut self.output.bytes, &outcome, wire);
        self.output.add_timing(at, timing);
        self.peer.hold(true);
        self.flush().await?;
        self.enter(Phase::Writing);
        let Outcome::Value { value, .. } = outcome else { return Ok(()) };
        let value = value.slice(asked);
        for at in (0..value.len()).step_by(PART_BYTES) {
            let part = value.slice(at..value.len().min(at + PART_BYTES));
            let bytes = part.len();
            self.peer.stream.write_bytes(part).await.map_err(|_| Gone)?;
            self.peers.progress(&self.peer, bytes);
        }
        self.peer.hold(self.buffer.is_some() || self.output.holds_shared_memory());
        Ok(())
    }

    /// Puts a reply into the output. Lines are written as they come.
    async fn put(&mut self, response: Response, wire: Wire) -> Result<(), Gone> {
        self.output.begin(self.peers);
        let by = (self.peers, &*self.peer, self.handler);
        let timing = self.followed.replied(by, wire, response.status, || response.body.bytes());
        let at = self.output.bytes.len();
        self.peers.heads().put_reply(&mut self.output.bytes, &response, wire);
        self.output.add_timing(at, timing);
        let Body::Lines(mut lines) = response.body else { return self.flush_if_full().await };
        self.peers.add_watcher();
        let mut here = self.flush().await;
        self.enter(Phase::Watching);
        while here.is_ok()
            && let Some(line) = lines.recv().await
        {
            put_line_chunk(&mut self.output.bytes, &line, wire.old);
            here = self.flush().await;
            self.enter(Phase::Watching);
        }
        self.peers.remove_watcher();
        here?;
        if !wire.old {
            self.output.bytes.extend_from_slice(b"0\r\n\r\n");
        }
        Ok(())
    }

    async fn flush_if_full(&mut self) -> Result<(), Gone> {
        if self.output.is_full(&self.peers.memory.buffers) { self.flush().await } else { Ok(()) }
    }

    /// Writes the replies that wait.
    async fn flush(&mut self) -> Result<(), Gone> {
        if self.output.bytes.is_empty() {
            return Ok(());
        }
        self.enter(Phase::Writing);
        self.peer.hold(self.peer.holds() || self.output.holds_shared_memory());
        let (result, output) = self.peer.stream.write_all(std::mem::take(&mut self.output.bytes)).await;
        result.map_err(|_| Gone)?;
        self.output.bytes = output;
        self.output.bytes.clear();
        Ok(())
    }

    /// Reads more input, towards `wanted` bytes that are not parsed.
    async fn read(&mut self, wanted: usize) -> Result<(), Gone> {
        let idle = self.input.unparsed() == 0;
        if idle {
            self.give_back();
            self.output.rest(self.peers);
            self.enter(Phase::Idle);
        } else if self.peer.phase() != self.reading {
            self.enter(self.reading);
        }
        // What a client takes for its body is no time of the request.
        let is_timed = !idle && self.reading == Phase::ReadingBody && !self.followed.is_empty();
        let begin = is_timed.then(|| self.handler.clock());
        let (result, buffer) = self.peer.stream.read(self.input.lend_for_read(wanted)).await;
        self.input.give_back(buffer);
        if let Some(begin) = begin {
            self.followed.leave_out(self.handler.clock().saturating_duration_since(begin));
        }
        match result {
            Ok(0) if !idle && self.peer.is_late() => {
                let followed = !self.followed.is_empty();
                self.put(Response::refusal(&LATE), Wire { followed, ..Wire::UNKNOWN }).await?;
                self.flush().await?;
                self.input = Input::new();
                self.give_back();
                // Nothing can be read any more, so the client gets a moment for its reply. If it sends on, the end of the
                // connection is a reset.
                linger(&self.peer, self.peers).await;
                for _ in 0..2 {
                    self.peers.ticked().await;
                }
                Err(Gone)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.peers.count_end("tls"); // the client does not keep to the protocol, or has no valid certificate
                Err(Gone)
            }
            Ok(0) | Err(_) => Err(Gone),
            Ok(count) => {
                self.has_read = true;
                if idle {
                    self.enter(self.reading);
                }
                self.peers.progress(&self.peer, count);
                Ok(())
            }
        }
    }

    fn enter(&self, phase: Phase) {
        self.peers.enter(&self.peer, phase);
    }

    /// Takes memory for the input as it will be after the next read, and `beside` bytes. `wanted` is as in [`Self::read`].
    /// If there is none, waits for it, or for the turn of this body. `false` after a wait that was too long.
    async fn reserve(&mut self, beside: usize, wanted: usize) -> bool {
        let bytes = 2 * self.input.capacity_for_read(wanted) + beside;
        if bytes <= 2 * OWN_BYTES || self.body.is_some() {
            return true;
        }
        let memory = &self.peers.memory;
        let (pool, place) = if bytes <= SHORT_INPUT_BYTES {
            (&memory.buffers, &mut self.buffer)
        } else {
            (&memory.requests, &mut self.reserved)
        };
        if place.as_ref().is_some_and(|held| pool.suffices(held, bytes)) {
            return true;
        }
        let missing = bytes - place.as_ref().map_or(0, Permit::bytes);
        let mut more = pool.try_take(missing);
        if more.is_none() {
            self.peers.enter(&self.peer, Phase::Working); // the client is not to blame for the wait
            tokio::select! {
                biased;
                turn = memory.body.take(1) => self.body = turn,
                taken = pool.take(missing) => more = taken,
                () = self.peers.drains() => {}
            }
            self.peers.enter(&self.peer, self.reading);
        }
        let has_room = more.is_some() || self.body.is_some();
        match (more, place) {
            (Some(more), Some(held)) => held.merge(more),
            (more, place) => *place = place.take().or(more),
        }
        if self.body.is_some() {
            (self.buffer, self.reserved) = (None, None); // what is set aside is enough for the whole body
        }
        self.peer.hold(true);
        has_room
    }

    fn give_back(&mut self) {
        (self.buffer, self.reserved, self.body) = (None, None, None);
        self.peer.hold(false);
    }

    /// Gives up what the connection holds, and lingers.
    async fn linger(&mut self) {
        // What the client has sent is not needed any more. Other connections may use the memory.
        self.input = Input::new();
        self.give_back();
        self.output.rest(self.peers);
        linger(&self.peer, self.peers).await;
    }
}

/// Begins an operation. `None` if its reply is in the output already; otherwise the answer, and whether it is a barrier.
fn start<S: Stream, H: Handler, B: ToBytes>(
    handler: &H,
    op: Op<B>,
    turn: &mut Turn<H::Pending>,
    (output, wire, probe): (&mut Output, Wire, Option<Probe>),
    peers: &Peers<S>,
) -> Option<(Answer<H::Pending>, bool)> {
    turn.timing.note(wire.endpoint, peers, handler);
    let now = *turn.now.get_or_insert_with(|| handler.now());
    let next = turn.pending.is_empty();
    let mut kept = None;
    let reply =
        handler.begin(op, now, probe, |outcome| output.offer(outcome, (next, wire), peers, &mut kept));
    match reply {
        Reply::Lent => kept.map(|outcome| (Answer::Known(Ok(outcome)), false)),
        Reply::Known(result) => Some((Answer::Known(result), false)),
        Reply::Later(pending) => Some((Answer::Later(pending), false)),
        Reply::Barrier(pending) => Some((Answer::Later(pending), true)),
    }
}

/// A part of one of the `owners`, without a copy; or a copy, if it is a part of none, or if the part would keep much more
/// memory than it needs.
fn part_of(owners: &[&Bytes], part: &[u8]) -> Bytes {
    let range = part.as_ptr_range();
    let owner = owners.iter().find(|owner| {
        let all = owner.as_ptr_range();
        all.start <= range.start && range.end <= all.end && owner.len() <= part.len() + part.len() / 8
    });
    owner.map_or_else(|| Bytes::copy_from_slice(part), |owner| owner.slice_ref(part))
}

#[cfg(test)]
mod tests;
