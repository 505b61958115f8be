//! One connection: reads, frames, hands commands to the handler, and writes replies in request order.
//!
//! Owns: the buffers of a connection, and its end. Knows nothing of what a command does.
//!
//! ```text
//!   Idle ──bytes──► Reading ──request complete──► Working ──reply known──► Writing ──► Idle
//! ```
//!
//! All complete requests of one read are begun before the first reply is awaited, so the writes among them join
//! one commit group. Reads are never dropped in flight (the ring would still fill their buffer): whoever wants a
//! connection to end calls `shutdown(2)` on its socket ([`Peers`] does, for time-outs and for a stop), and the
//! read or write returns.
//!
//! Sockets go through the ring as files do, so one loop drives both. Through `tokio_uring::net` a request and its reply
//! took 8.6 µs (7.6 to 10.1), through `tokio::net` 8.2 µs (7.6 to 8.5), the client's part of it included
//! (`cargo bench --bench designs -- sockets`, on the machine of BENCHMARKS.md): no reason for a second loop.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

use super::ahead::KeysAhead;
use super::body::{BODY_TOO_LONG, Chunked};
use super::head::{Framing, Head, HeadEnd, parse};
use super::response::{Body, Response, Wire, put_head, put_line_chunk};
use super::route::{Route, Touches};
use super::{Handler, PIPELINE_MAX, Refusal, Reply, Status};
use crate::codec::to_usize;

/// The buffer of an idle connection.
const IDLE_BUFFER_BYTES: usize = 4 << 10;
/// Values up to this size are copied behind their head; larger ones are written from where they are.
const COPY_BYTES_MAX: usize = 32 << 10;
/// Replies are written when this much of them is ready, even if more follow.
const OUTPUT_BYTES: usize = 64 << 10;
/// Output buffers that are kept for the next connection that needs one: 4 MiB at most.
const SPARE_OUTPUTS: usize = 64;
/// Replies that wait for their turn hold so much, and one value more (H5).
const HELD_BYTES_MAX: usize = 1 << 20;
/// How long a value on its way is taken to be at first; then as the ones before it were, but not less than the least.
const EXPECTED_BYTES_FIRST: usize = 64 << 10;
const EXPECTED_BYTES_MIN: usize = 4 << 10;
/// After a refusal at most this much of what the client still sends is read and dropped, so that the refusal
/// reaches it before the reset does.
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Buffers up to this size are every connection's own; what is above counts against the budget of all.
const FREE_BUFFER_BYTES: usize = 64 << 10;

/// How long a connection may stay in a state without progress.
const IDLE_TIME: Duration = Duration::from_secs(75);
const READING_TIME: Duration = Duration::from_secs(30);
const WRITING_TIME: Duration = Duration::from_secs(60);
const LINGER_TIME: Duration = Duration::from_secs(2);
/// Each byte of a request or of a large reply buys its client this much more time: 64 KiB a second are asked for in
/// the long run.
const TIME_PER_BYTE: Duration = Duration::from_nanos(15_259);
/// Parts that a large value is written in; each one shows progress.
const PART_BYTES: usize = 256 << 10;

/// What all connections of a thread share.
pub struct Peers {
    open: RefCell<BTreeMap<u64, Rc<Peer>>>,
    next_id: Cell<u64>,
    /// The `Date` header, renewed every second.
    date: RefCell<Rc<str>>,
    now: Cell<Instant>,
    draining: Cell<bool>,
    /// Nothing waits for a client any more.
    aborting: Cell<bool>,
    /// Bytes that large request buffers may still take, all connections together (P8).
    budget: Cell<usize>,
    value_bytes_max: usize,
    keys_ahead: KeysAhead,
    /// Output buffers that no connection uses at the moment: idle ones hold none.
    spare_outputs: RefCell<Vec<Vec<u8>>>,
    /// Connections that watch the stop.
    watchers: Cell<usize>,
    watcher_came: Notify,
}

/// A connection, as the others see it.
struct Peer {
    stream: TcpStream,
    phase: Cell<Phase>,
    since: Cell<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No byte of a request has come.
    Idle,
    /// A request has begun, and is not complete.
    Reading,
    /// A request is under way.
    Working,
    /// A reply is being written.
    Writing,
    /// The stop is being watched.
    Watching,
    /// The last reply is written; what still comes is dropped.
    Lingering,
}

impl Peers {
    /// No connections yet. `request_bytes_max` bounds the memory of large requests of all of them.
    pub fn new(value_bytes_max: usize, request_bytes_max: usize, now: Instant, date: &str) -> Self {
        Self {
            open: RefCell::new(BTreeMap::new()),
            next_id: Cell::new(0),
            date: RefCell::new(date.into()),
            now: Cell::new(now),
            draining: Cell::new(false),
            aborting: Cell::new(false),
            budget: Cell::new(request_bytes_max),
            value_bytes_max,
            keys_ahead: KeysAhead::default(),
            spare_outputs: RefCell::new(Vec::new()),
            watchers: Cell::new(0),
            watcher_came: Notify::new(),
        }
    }

    /// An empty buffer for replies.
    fn take_output(&self) -> Vec<u8> {
        self.spare_outputs.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes an empty buffer back, for the next connection that has something to say.
    fn give_output(&self, output: Vec<u8>) {
        let mut spare = self.spare_outputs.borrow_mut();
        if spare.len() < SPARE_OUTPUTS && (1..=OUTPUT_BYTES).contains(&output.capacity()) {
            spare.push(output);
        }
    }

    /// Connections that are open only to watch the stop.
    pub fn watchers(&self) -> usize {
        self.watchers.get()
    }

    /// Waits until another connection watches the stop. Cancel safety: safe.
    pub async fn watcher_came(&self) {
        self.watcher_came.notified().await;
    }

    /// Called about once a second: renews the date, and ends connections that made no progress for too long.
    pub fn tick(&self, now: Instant, date: &str) {
        self.now.set(now);
        if **self.date.borrow() != *date {
            self.date.replace(date.into());
        }
        for peer in self.open.borrow().values() {
            let limit = match peer.phase.get() {
                Phase::Idle => IDLE_TIME,
                Phase::Reading => READING_TIME,
                Phase::Writing => WRITING_TIME,
                Phase::Lingering => LINGER_TIME,
                // The engine answers every request; a client that waits for one is not to blame.
                Phase::Working | Phase::Watching => continue,
            };
            if limit < now.saturating_duration_since(peer.since.get()) {
                end(peer, Shutdown::Both);
            }
        }
    }

    /// Lets requests in flight finish, and closes every connection behind its last reply.
    pub fn drain(&self) {
        self.draining.set(true);
        for peer in self.open.borrow().values() {
            match peer.phase.get() {
                // What has come all the same is still read, and answered.
                Phase::Idle => end(peer, Shutdown::Read),
                Phase::Lingering => end(peer, Shutdown::Both),
                Phase::Reading | Phase::Working | Phase::Writing | Phase::Watching => {}
            }
        }
    }

    /// Ends every connection, whatever it does.
    pub fn cut_off(&self) {
        for peer in self.open.borrow().values() {
            end(peer, Shutdown::Both);
        }
    }

    /// Ends every connection that waits for its client.
    pub fn abort(&self) {
        self.draining.set(true);
        self.aborting.set(true);
        for peer in self.open.borrow().values() {
            if !matches!(peer.phase.get(), Phase::Working | Phase::Watching) {
                end(peer, Shutdown::Both);
            }
        }
    }
}

fn end(peer: &Peer, how: Shutdown) {
    // It fails only on a socket that the client has already left: then the read returns anyway.
    let _ = peer.stream.shutdown(how);
}

/// Serves a connection to its end.
///
/// Cancel safety: not safe; a read or write is in flight nearly always.
pub async fn serve<H: Handler>(stream: TcpStream, handler: &H, peers: &Peers) {
    let id = peers.next_id.get();
    peers.next_id.set(id + 1);
    let peer = Rc::new(Peer { stream, phase: Cell::new(Phase::Idle), since: Cell::new(peers.now.get()) });
    peers.open.borrow_mut().insert(id, peer.clone());
    let mut connection = Connection {
        peer,
        peers,
        handler,
        input: Vec::with_capacity(IDLE_BUFFER_BYTES),
        start: 0,
        head_end: HeadEnd::default(),
        output: Vec::new(),
        reserved: 0,
        held: 0,
        expected: EXPECTED_BYTES_FIRST,
        has_read: false,
    };
    connection.run().await;
    connection.release_budget();
    peers.open.borrow_mut().remove(&id);
}

/// The client is gone, or must go.
struct Gone;

/// A request that is under way.
struct Begun<P> {
    reply: Reply<P>,
    wire: RequestWire,
}

/// What the reply has to know of its request.
#[derive(Clone, Copy)]
struct RequestWire {
    old: bool,
    keep_alive: bool,
    head_only: bool,
}

impl RequestWire {
    /// Nothing is known of a request that could not be read.
    const UNKNOWN: Self = Self { old: false, keep_alive: false, head_only: false };
}

struct Connection<'a, H: Handler> {
    peer: Rc<Peer>,
    peers: &'a Peers,
    handler: &'a H,
    /// Bytes read; those before `start` are used up.
    input: Vec<u8>,
    start: usize,
    head_end: HeadEnd,
    output: Vec<u8>,
    /// Bytes taken from the budget.
    reserved: usize,
    /// Bytes that replies under way hold, or are expected to.
    held: usize,
    /// How long the next value may be: as long as the last ones were.
    expected: usize,
    /// Whether anything has come.
    has_read: bool,
}

impl<H: Handler> Connection<'_, H> {
    async fn run(&mut self) {
        // Requests under way, and the slots of the keys that they write (H4).
        let (mut begun, mut written) = (Vec::new(), Vec::new());
        loop {
            match self.turn(&mut begun, &mut written).await {
                Ok(true) => {}
                Ok(false) => return self.linger().await,
                Err(Gone) => return,
            }
        }
    }

    /// Begins every complete request in the input, answers them, and reads on. `false` if the connection is to
    /// be closed.
    async fn turn(
        &mut self,
        begun: &mut Vec<Begun<H::Pending>>,
        written: &mut Vec<usize>,
    ) -> Result<bool, Gone> {
        self.handler.prefetch(self.peers.keys_ahead.of(&self.input[self.start..]));
        loop {
            let keep_alive = match self.next_request(begun, written).await? {
                Next::Begun { keep_alive } => {
                    if PIPELINE_MAX <= begun.len() || HELD_BYTES_MAX <= self.held {
                        self.settle(begun, written).await?; // H3, H5
                    }
                    keep_alive
                }
                Next::Refused(refusal, wire) => {
                    self.settle(begun, written).await?;
                    self.put(Response::refusal(&refusal), wire).await?;
                    wire.keep_alive
                }
                Next::Incomplete => break,
            };
            if !keep_alive {
                self.settle(begun, written).await?;
                self.flush().await?;
                return Ok(false);
            }
        }
        self.settle(begun, written).await?;
        self.flush().await?;
        if self.peers.draining.get() && self.has_read && self.start == self.input.len() {
            return Ok(false);
        }
        if !self.input.is_empty() && !self.reserve_for(0) {
            self.put(Response::refusal(&OVER_BUDGET), RequestWire::UNKNOWN).await?;
            self.flush().await?;
            return Ok(false);
        }
        self.read().await?;
        Ok(true)
    }

    /// Takes the next complete request from the input and begins it. A request whose body has not arrived is
    /// waited for, once all before it are answered.
    async fn next_request(
        &mut self,
        begun: &mut Vec<Begun<H::Pending>>,
        written: &mut Vec<usize>,
    ) -> Result<Next, Gone> {
        let head = match self.head_end.find(&self.input[self.start..]) {
            Ok(None) => return Ok(Next::Incomplete),
            Ok(Some(bytes)) => parse(&self.input[self.start..self.start + bytes]),
            Err(refusal) => Err(refusal),
        };
        let head = match head {
            Ok(head) => head,
            Err(refusal) => return Ok(Next::Refused(refusal, RequestWire::UNKNOWN)), // H1
        };
        let wire = RequestWire {
            old: head.old,
            keep_alive: head.keep_alive && !self.peers.draining.get(),
            head_only: head.method == super::head::Method::Head,
        };
        // A refused request without a body leaves the connection in step; one with a body does not (H1).
        let refused_wire =
            RequestWire { keep_alive: wire.keep_alive && head.framing == Framing::Empty, ..wire };
        let route = match Route::of(&head, &self.input[self.target(&head)]) {
            Ok(route) => route,
            Err(refusal) => {
                self.consume(head.bytes);
                return Ok(Next::Refused(refusal, refused_wire));
            }
        };
        let touches = route.touches();
        let waits = matches!(touches, Touches::Reads(slot) if written.contains(&slot)); // H4
        let mut used = head.bytes;
        let result = if head.framing == Framing::Empty && !waits {
            route.command(&[]).map(|command| self.handler.handle(command))
        } else {
            let body = match self.body(&head, waits, begun, written).await? {
                Ok(body) => body,
                Err(refusal) => return Ok(Next::Refused(refusal, refused_wire)),
            };
            let bytes = match &body {
                Arrived::Input(length) => {
                    used += length;
                    let at = self.start + head.bytes;
                    &self.input[at..at + length]
                }
                Arrived::Unpacked(chunked, trailing) => {
                    used += trailing;
                    chunked.body()
                }
            };
            // Reading has moved the bytes; the route is what it was.
            Route::of(&head, &self.input[self.target(&head)])
                .and_then(|route| route.command(bytes))
                .map(|command| self.handler.handle(command))
        };
        self.consume(used);
        let reply = match result {
            Ok(reply) => reply,
            Err(refusal) => return Ok(Next::Refused(refusal, wire)),
        };
        if let Touches::Writes(slot) = touches {
            written.push(slot);
        }
        let barrier = matches!(reply, Reply::Barrier(_));
        // Behind the request to stop nothing is served.
        let last = matches!(&reply, Reply::Now(Response { body: Body::Lines(_), .. }));
        let keep_alive = wire.keep_alive && !last;
        self.held += match (&reply, touches) {
            (Reply::Now(Response { body: Body::Value(value), .. }), _) => value.len(),
            (Reply::Later(_), Touches::Reads(_)) => self.expected,
            _ => 0,
        };
        begun.push(Begun { reply, wire });
        if barrier {
            self.settle(begun, written).await?;
        }
        Ok(Next::Begun { keep_alive })
    }

    /// Reads the body of the request at the front of the input. Requests before it are answered first, unless the
    /// body is here already and nothing `waits` for them.
    async fn body(
        &mut self,
        head: &Head,
        waits: bool,
        begun: &mut Vec<Begun<H::Pending>>,
        written: &mut Vec<usize>,
    ) -> Result<Result<Arrived, Refusal>, Gone> {
        if waits {
            self.settle(begun, written).await?;
        }
        match head.framing {
            Framing::Empty => Ok(Ok(Arrived::Input(0))),
            Framing::Length(length) if (self.peers.value_bytes_max as u64) < length => Ok(Err(BODY_TOO_LONG)),
            Framing::Length(length) => {
                let wanted = head.bytes + to_usize(length);
                if self.input.len() - self.start < wanted {
                    self.settle(begun, written).await?;
                    self.go_ahead(head).await?;
                }
                while self.input.len() - self.start < wanted {
                    if !self.reserve_for(0) {
                        return Ok(Err(OVER_BUDGET));
                    }
                    self.read().await?;
                }
                Ok(Ok(Arrived::Input(to_usize(length))))
            }
            Framing::Chunked => {
                let mut chunked = Chunked::default();
                let mut asked = false;
                loop {
                    let from = self.start + head.bytes;
                    let taken = match chunked.take(&self.input[from..], self.peers.value_bytes_max) {
                        Ok(taken) => taken,
                        Err(refusal) => return Ok(Err(refusal)),
                    };
                    if chunked.is_done() {
                        return Ok(Ok(Arrived::Unpacked(chunked, taken)));
                    }
                    // What was unpacked is not kept twice.
                    self.input.drain(from..from + taken);
                    if !std::mem::replace(&mut asked, true) {
                        self.settle(begun, written).await?;
                        self.go_ahead(head).await?;
                    }
                    if !self.reserve_for(chunked.body().len()) {
                        return Ok(Err(OVER_BUDGET));
                    }
                    self.read().await?;
                }
            }
        }
    }

    fn target(&self, head: &Head) -> std::ops::Range<usize> {
        self.start + head.target.start..self.start + head.target.end
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        self.head_end = HeadEnd::default();
        if self.start == self.input.len() {
            self.input.clear();
            self.start = 0;
        }
    }

    /// Tells a client that waits for it to send its body.
    async fn go_ahead(&mut self, head: &Head) -> Result<(), Gone> {
        if head.expects_continue {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.flush().await
    }

    /// Awaits every request that is under way and puts the replies in order (H3); nothing is unanswered then.
    async fn settle(
        &mut self,
        begun: &mut Vec<Begun<H::Pending>>,
        written: &mut Vec<usize>,
    ) -> Result<(), Gone> {
        written.clear();
        self.held = 0;
        for Begun { reply, wire } in begun.drain(..) {
            let response = match reply {
                Reply::Now(response) => response,
                Reply::Later(pending) | Reply::Barrier(pending) => {
                    self.phase(Phase::Working);
                    pending.await
                }
            };
            self.put(response, wire).await?;
        }
        Ok(())
    }

    /// Puts a reply behind those that wait to be written.
    async fn put(&mut self, response: Response, wire: RequestWire) -> Result<(), Gone> {
        if self.output.capacity() == 0 {
            self.output = self.peers.take_output();
        }
        let keep_alive = wire.keep_alive && !matches!(response.body, Body::Lines(_));
        let date = self.peers.date.borrow().clone();
        let RequestWire { old, head_only, .. } = wire;
        put_head(&mut self.output, &response, Wire { date: &date, old, keep_alive, head_only });
        if let Body::Value(value) = &response.body {
            self.expected = value.len().max(self.expected / 2).max(EXPECTED_BYTES_MIN);
        }
        match response.body {
            _ if head_only => {}
            Body::Text(text) => {
                self.output.extend_from_slice(text.as_bytes());
                self.output.push(b'\n');
            }
            Body::Value(ref value) if value.len() <= COPY_BYTES_MAX => self.output.extend_from_slice(value),
            Body::Value(ref value) => {
                self.flush().await?;
                self.phase(Phase::Writing);
                for at in (0..value.len()).step_by(PART_BYTES) {
                    let part = value.slice(at..value.len().min(at + PART_BYTES));
                    let bytes = part.len();
                    self.peer.stream.write_all(part).await.0.map_err(|_| Gone)?;
                    self.progress(bytes);
                }
            }
            Body::Lines(mut lines) => {
                self.peers.watchers.set(self.peers.watchers.get() + 1);
                self.peers.watcher_came.notify_one();
                let mut here = self.flush().await;
                self.phase(Phase::Watching);
                while let Some(line) = lines.recv().await {
                    put_line_chunk(&mut self.output, &line, old);
                    // The stop goes on even if nobody watches any more.
                    here = if here.is_ok() { self.flush().await } else { here };
                    self.phase(Phase::Watching);
                }
                self.peers.watchers.set(self.peers.watchers.get() - 1);
                here?;
                if !old {
                    self.output.extend_from_slice(b"0\r\n\r\n");
                }
            }
        }
        if OUTPUT_BYTES <= self.output.len() {
            self.flush().await?;
        }
        Ok(())
    }

    /// Writes the replies that wait.
    async fn flush(&mut self) -> Result<(), Gone> {
        if self.output.is_empty() {
            return Ok(());
        }
        self.phase(Phase::Writing);
        let output = std::mem::take(&mut self.output);
        let length = output.len();
        let (result, buffer) = self.peer.stream.write_all(output.slice(..length)).await;
        result.map_err(|_| Gone)?;
        self.output = buffer.into_inner();
        self.output.clear();
        Ok(())
    }

    /// Reads more input behind what there is.
    async fn read(&mut self) -> Result<(), Gone> {
        if 0 < self.start {
            self.input.drain(..self.start);
            self.start = 0;
        }
        let idle = self.input.is_empty();
        if idle {
            self.release_budget();
            if IDLE_BUFFER_BYTES < self.input.capacity() {
                self.input.shrink_to(IDLE_BUFFER_BYTES);
            }
            self.peers.give_output(std::mem::take(&mut self.output));
        }
        if self.input.capacity() - self.input.len() < IDLE_BUFFER_BYTES / 4 {
            // Doubled: memory follows the bytes that arrived (H2).
            self.input.reserve(self.input.len().max(IDLE_BUFFER_BYTES));
        }
        if idle {
            self.phase(Phase::Idle);
        } else if self.peer.phase.get() != Phase::Reading {
            self.phase(Phase::Reading);
        }
        let input = std::mem::take(&mut self.input);
        let filled = input.len();
        let (result, slice) = self.peer.stream.read(input.slice(filled..)).await;
        self.input = slice.into_inner();
        match result {
            Ok(0) | Err(_) => Err(Gone),
            Ok(count) => {
                self.has_read = true;
                if idle {
                    self.phase(Phase::Reading);
                }
                self.progress(count);
                Ok(())
            }
        }
    }

    /// Gives the client time for `bytes` that it has sent or taken. Its time is counted from the first byte, so that
    /// one now and then does not hold a connection, and what it holds, for ever.
    fn progress(&self, bytes: usize) {
        let more = TIME_PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.peer.since.set((self.peer.since.get() + more).min(self.peers.now.get()));
    }

    fn phase(&mut self, phase: Phase) {
        self.peer.phase.set(phase);
        self.peer.since.set(self.peers.now.get());
        if self.peers.aborting.get() && !matches!(phase, Phase::Working | Phase::Watching) {
            end(&self.peer, Shutdown::Both);
        } else if phase == Phase::Idle && self.peers.draining.get() {
            end(&self.peer, Shutdown::Read);
        }
    }

    /// Takes from the budget what the input, and `more` beside it, is going to hold. `false` if it is used up.
    fn reserve_for(&mut self, more: usize) -> bool {
        let held = self.input.capacity() + more;
        // It may double with the next read.
        let wanted = if held <= FREE_BUFFER_BYTES { 0 } else { 2 * held };
        let Some(missing) = wanted.checked_sub(self.reserved) else { return true };
        let Some(left) = self.peers.budget.get().checked_sub(missing) else { return false };
        self.peers.budget.set(left);
        self.reserved = wanted;
        true
    }

    fn release_budget(&mut self) {
        self.peers.budget.set(self.peers.budget.get() + std::mem::take(&mut self.reserved));
    }

    /// Closes for writing, then reads and drops for a while, so that the last reply is not lost to a reset.
    async fn linger(&mut self) {
        end(&self.peer, Shutdown::Write);
        self.phase(Phase::Lingering);
        if self.peers.draining.get() {
            // Nothing is worth waiting for: only a client that sends on would see a reset.
            end(&self.peer, Shutdown::Read);
        }
        let mut dropped = 0;
        while dropped < LINGER_BYTES_MAX {
            let mut buffer = std::mem::take(&mut self.input);
            buffer.clear();
            buffer.reserve(IDLE_BUFFER_BYTES);
            let (result, buffer) = self.peer.stream.read(buffer).await;
            self.input = buffer;
            match result {
                Ok(0) | Err(_) => return,
                Ok(count) => dropped += count,
            }
        }
    }
}

const OVER_BUDGET: Refusal =
    Refusal::new(Status::ServiceUnavailable, "too many large requests are under way; try again later");

/// A body that is complete.
enum Arrived {
    /// So many bytes of input behind the head.
    Input(usize),
    /// Unpacked; and so many bytes of input behind the head belong to it still.
    Unpacked(Chunked, usize),
}

/// What became of the input.
enum Next {
    /// A request was begun.
    Begun { keep_alive: bool },
    /// A request was refused.
    Refused(Refusal, RequestWire),
    /// The next request is not complete.
    Incomplete,
}
