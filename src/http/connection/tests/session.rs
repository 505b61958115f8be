//! A client and a store in memory, and a connection between them. Nothing runs by itself: a test sends bytes, ends operations
//! in the order that it wants, and looks at what the client has received. Futures are polled by hand, so no waker is kept.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::config::ShutdownMode;
use crate::error::Result as EngineResult;
use crate::http::access::Policy;
use crate::http::authority::LastAddress;
use crate::http::connection::serve;
use crate::http::part::Part;
use crate::http::peers::{Peers, Rules, Times};
use crate::http::stream::Stream;
use crate::http::{Control, Controlled, Handler, Probe, Reply, Response};
use crate::key::{Key, KeyHash, SeqNo, ShardId, UnixMillis};
use crate::memory::{Memory, Pool};
use crate::op::{Op, Outcome, ToBytes};
use crate::random::Random;

/// Longest value, unless a test says otherwise.
pub(super) const VALUE_BYTES_MAX: usize = 1 << 20;
/// Memory of large requests, unless a test says otherwise.
pub(super) const REQUEST_BYTES_MAX: usize = 8 << 20;

/// The client's end of a connection.
#[derive(Clone, Default)]
pub(super) struct Client(pub(super) Rc<ClientState>);

#[derive(Default)]
pub(super) struct ClientState {
    /// On its way to the server. A read takes bytes of one piece.
    pub(super) sent: RefCell<VecDeque<Vec<u8>>>,
    pub(super) received: RefCell<Vec<u8>>,
    /// The client receives nothing, so that writes wait.
    pub(super) is_stuck: Cell<bool>,
    /// The client sends no more.
    pub(super) has_ended: Cell<bool>,
    /// The server reads no more.
    pub(super) is_closed_for_reading: Cell<bool>,
    /// The server writes no more.
    pub(super) is_closed: Cell<bool>,
    /// Capacity of the buffer of the last read.
    pub(super) buffer_bytes: Cell<usize>,
}

impl Client {
    async fn take(&self, bytes: &[u8]) {
        poll_fn(|_| if self.0.is_stuck.get() { Poll::Pending } else { Poll::Ready(()) }).await;
        self.0.received.borrow_mut().extend_from_slice(bytes);
    }
}

impl Stream for Client {
    async fn read(&self, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        self.0.buffer_bytes.set(buffer.capacity());
        let count = poll_fn(|_| {
            let mut sent = self.0.sent.borrow_mut();
            let Some(piece) = sent.front_mut() else {
                return if self.0.has_ended.get() { Poll::Ready(0) } else { Poll::Pending };
            };
            let count = piece.len().min(buffer.capacity() - buffer.len());
            buffer.extend(piece.drain(..count));
            if piece.is_empty() {
                sent.pop_front();
            }
            Poll::Ready(count)
        });
        (Ok(count.await), buffer)
    }

    async fn write_all(&self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        self.take(&buffer).await;
        (Ok(()), buffer)
    }

    async fn write_bytes(&self, bytes: Bytes) -> io::Result<()> {
        self.take(&bytes).await;
        Ok(())
    }

    async fn finish(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }

    fn is_established(&self) -> bool {
        true
    }

    fn address(&self) -> Option<std::net::IpAddr> {
        None
    }

    fn is_local(&self) -> bool {
        true
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.has_ended.set(self.0.has_ended.get() || how != Shutdown::Write);
        self.0.is_closed_for_reading.set(self.0.has_ended.get());
        self.0.is_closed.set(self.0.is_closed.get() || how != Shutdown::Read);
        Ok(())
    }
}

/// A store in memory. A get of a key in `memory` is lent its value. Any other operation is under way until the test ends it.
#[derive(Default)]
pub(super) struct Store {
    memory: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Gets find these values when they end.
    disk: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    pub(super) under_way: RefCell<Vec<Rc<UnderWay>>>,
    /// There is no room for writes: each of them waits, as a barrier.
    pub(super) is_full: Cell<bool>,
    /// Every call of the handler, in order, except those that ask for the time.
    calls: RefCell<Vec<String>>,
    /// The time in milliseconds, as tests set it.
    pub(super) clock: Cell<u64>,
    /// Sends the lines of the stop to the client that has asked for it.
    pub(super) stop: RefCell<Option<UnboundedSender<String>>>,
}

pub(super) struct UnderWay {
    op: Op<Bytes>,
    pub(super) result: Cell<Option<EngineResult<Outcome<Bytes>>>>,
}

pub(super) struct Later(Rc<UnderWay>);

impl Future for Later {
    type Output = EngineResult<Outcome<Bytes>>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.result.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Handler for Store {
    type Pending = Later;

    fn now(&self) -> UnixMillis {
        UnixMillis(self.clock.get())
    }

    fn clock(&self) -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        *START + Duration::from_millis(self.clock.get())
    }

    fn prefetch(&self, keys: impl Iterator<Item = Key<()>>, sets: bool) {
        let count = keys.count();
        self.calls.borrow_mut().push(format!("prefetch {count} {}", if sets { "sets" } else { "others" }));
    }

    fn begin<B: ToBytes>(
        &self,
        op: Op<B>,
        now: UnixMillis,
        probe: Option<Probe>,
        lend: impl FnOnce(Outcome<&[u8]>) -> bool,
    ) -> Reply<Self::Pending> {
        assert_eq!(now, self.now());
        self.calls.borrow_mut().push(shown(op.as_ref()));
        if let Some(probe) = probe {
            // The operation on `k7` seems to wait for seven seconds, so the replies show whose probe each one got.
            let number = std::str::from_utf8(&op.key().bytes()[1..]).ok().and_then(|text| text.parse().ok());
            probe.begin(ShardId(0), self.clock() + Duration::from_secs(number.unwrap_or_default()));
        }
        if let Op::Get { key } = op.as_ref()
            && let Some(value) = self.memory.borrow().get(key.bytes())
        {
            let found = Outcome::Value { value: value.as_slice(), seqno: SeqNo(1), expires: None };
            if lend(found) {
                return Reply::Lent;
            }
            self.calls.borrow_mut().push("copy".into());
            return Reply::Known(Ok(found.to_owned()));
        }
        let under_way = Rc::new(UnderWay { op: op.to_owned(), result: Cell::new(None) });
        self.under_way.borrow_mut().push(under_way.clone());
        if self.is_full.get() && op.writes() {
            Reply::Barrier(Later(under_way))
        } else {
            Reply::Later(Later(under_way))
        }
    }

    fn fetch(&self, _: Part) -> Self::Pending {
        unreachable!("no session asks for a part of a file")
    }

    fn control(&self, control: Control) -> Controlled {
        self.calls.borrow_mut().push(format!("{control:?}"));
        if control != Control::Shutdown {
            return Controlled::Now(Response::OK);
        }
        let (sender, lines) = unbounded_channel();
        self.stop.replace(Some(sender));
        Controlled::Now(Response::lines(lines))
    }
}

/// An operation as tests name it: `get k`, `set k=v` or `delete k`.
fn shown(op: Op<&[u8]>) -> String {
    let key = String::from_utf8_lossy(op.key().bytes());
    match op {
        Op::Get { .. } => format!("get {key}"),
        Op::Set { value, .. } => format!("set {key}={}", String::from_utf8_lossy(value)),
        Op::Delete { .. } => format!("delete {key}"),
    }
}

impl Store {
    pub(super) fn remember(&self, key: &str, value: impl AsRef<[u8]>) {
        self.memory.borrow_mut().insert(key.into(), value.as_ref().into());
    }

    pub(super) fn put_on_disk(&self, key: &str, value: impl AsRef<[u8]>) {
        self.disk.borrow_mut().insert(key.into(), value.as_ref().into());
    }

    /// The calls since this was last asked.
    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.take()
    }

    /// The operations under way, in the order in which they began.
    pub(super) fn under_way(&self) -> Vec<String> {
        self.under_way.borrow().iter().map(|under_way| shown(under_way.op.as_ref())).collect()
    }

    /// Ends the operation under way at `index`.
    pub(super) fn end(&self, index: usize) {
        let under_way = self.under_way.borrow_mut().remove(index);
        let key = under_way.op.key().bytes();
        let written = Outcome::Written { seqno: SeqNo(1) };
        let outcome = match &under_way.op {
            Op::Get { .. } => self.disk.borrow().get(key).map_or(Outcome::Missing, |value| Outcome::Value {
                value: value.clone().into(),
                seqno: SeqNo(1),
                expires: None,
            }),
            Op::Set { value, .. } => {
                self.memory.borrow_mut().insert(key.into(), value.to_vec());
                written
            }
            Op::Delete { .. } => self.memory.borrow_mut().remove(key).map_or(Outcome::Missing, |_| written),
        };
        under_way.result.set(Some(Ok(outcome)));
    }
}

/// A connection that is served.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) store: Rc<Store>,
    pub(super) peers: Rc<Peers<Client>>,
    pub(super) serving: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// A thread without connections, of a server with these names.
pub(super) fn peers(hosts: &[&str], value_bytes_max: usize, request_bytes_max: usize) -> Peers<Client> {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    let policy = Policy { tokens: None, hosts, shutdown: ShutdownMode::Local };
    let rules = Rules {
        policy: Arc::new(policy),
        value_bytes_max,
        key_hash: KeyHash::with_seed(1),
        address: LastAddress::default(),
    };
    let memory = Memory { requests: Pool::new(request_bytes_max), ..Memory::ample() };

    let times = Times {
        idle: Duration::from_secs(75),
        head: Duration::from_secs(10),
        body: Duration::from_secs(5),
        handshake: Duration::from_secs(10),
        reply: Duration::from_secs(60),
    };
    Peers::new(rules, times, memory, Instant::now(), "Thu, 01 Jan 1970 00:00:00 GMT")
}

impl Session {
    pub(super) fn new() -> Self {
        Self::with_limits(VALUE_BYTES_MAX, REQUEST_BYTES_MAX)
    }

    pub(super) fn with_limits(value_bytes_max: usize, request_bytes_max: usize) -> Self {
        Self::beside(Rc::new(peers(&["x"], value_bytes_max, request_bytes_max)))
    }

    /// One more connection of the same thread, with a store of its own.
    pub(super) fn beside(peers: Rc<Peers<Client>>) -> Self {
        let (client, store) = (Client::default(), Rc::new(Store::default()));
        let serving = {
            let (client, store, peers) = (client.clone(), store.clone(), peers.clone());
            Box::pin(async move { serve(client, &*store, &peers).await })
        };
        Self { client, store, peers, serving: Some(serving) }
    }

    /// Lets the server do what it can, and returns the bytes that the client has received.
    pub(super) fn go_on(&mut self) -> Vec<u8> {
        if let Some(serving) = &mut self.serving
            && serving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        {
            self.serving = None;
        }
        self.client.0.received.take()
    }

    /// Sends at least one byte, all bytes in one piece. Returns the replies.
    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) -> Vec<String> {
        self.client.0.sent.borrow_mut().push_back(bytes.as_ref().to_vec());
        replies(&self.go_on())
    }

    /// Ends the oldest operation under way that is called `operation`. Returns the replies.
    pub(super) fn end(&mut self, operation: &str) -> Vec<String> {
        let index = self.store.under_way().iter().position(|shown| shown == operation);
        self.store.end(index.expect("the operation is under way"));
        replies(&self.go_on())
    }

    /// Ends all operations under way, the oldest first, and those that begin meanwhile. Returns the replies.
    pub(super) fn end_all(&mut self) -> Vec<String> {
        let mut received = Vec::new();
        while !self.store.under_way().is_empty() {
            self.store.end(0);
            received.extend(self.go_on());
        }
        replies(&received)
    }

    /// Sends `bytes` in pieces, and meanwhile ends operations in a random order, until nothing is left of either. `each` sees the
    /// replies so far after each step. Returns all of them.
    pub(super) fn exchange(
        &mut self,
        random: &mut Random,
        bytes: &str,
        piece_bytes_max: u64,
        each: impl Fn(&[String]),
    ) -> Vec<String> {
        let (mut found, mut rest) = (Vec::new(), bytes.as_bytes());
        while !rest.is_empty() || !self.store.under_way().is_empty() {
            let under_way = self.store.under_way().len();
            if under_way == 0 || (!rest.is_empty() && random.below(4) == 0) {
                let piece_bytes = (1 + random.below(piece_bytes_max) as usize).min(rest.len());
                let (piece, later) = rest.split_at(piece_bytes);
                found.extend(self.send(piece));
                rest = later;
            } else {
                self.store.end(random.below(under_way as u64) as usize);
                found.extend(replies(&self.go_on()));
            }
            each(&found);
        }
        found
    }

    /// Whether the client has sent bytes that the server has not read.
    pub(super) fn has_unread(&self) -> bool {
        !self.client.0.sent.borrow().is_empty()
    }

    /// Checks that the server has closed the connection after its last reply, and that it forgets the connection once
    /// the client has left as well.
    pub(super) fn assert_closes(mut self) {
        assert!(self.client.0.is_closed.get(), "the connection is open");
        self.client.0.has_ended.set(true);
        self.go_on();
        assert!(self.serving.is_none(), "the connection is still served");
    }
}

/// Replies as tests name them: status and body, and what the head says of the connection.
pub(super) fn replies(mut received: &[u8]) -> Vec<String> {
    let mut replies = Vec::new();
    while !received.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Response::new(&mut fields);
        let head_bytes = head.parse(received).unwrap().unwrap();
        let field = |name| head.headers.iter().find(|field| field.name == name).map(|field| field.value);
        let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
        let length = field("content-length").map_or(0, |length| text(length).parse().unwrap());
        let (body, rest) = received[head_bytes..].split_at(length);
        let connection = field("connection").map_or(String::new(), |value| format!(", {}", text(value)));
        let timing = field("server-timing").map_or(String::new(), |value| {
            let value = text(value);
            let queue = value.split(", ").find_map(|part| part.strip_prefix("queue;dur="));
            let seconds = queue.map(|millis| format!(" {:.0}", millis.parse::<f64>().unwrap() / 1e3));
            format!(", timed{}", seconds.unwrap_or_default())
        });
        let reply = format!("{} {}{connection}{timing}", head.code.unwrap(), text(body));
        replies.push(reply.trim_end().to_owned());
        received = rest;
    }
    replies
}

pub(super) fn get(key: &str) -> String {
    format!("GET /get?key={key} HTTP/1.1\r\nHost: x\r\n\r\n")
}

pub(super) fn set(key: &str, value: &str) -> String {
    let length = value.len();
    format!("POST /set?key={key} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{value}")
}

pub(super) fn delete(key: &str) -> String {
    format!("DELETE /del?key={key} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// The head of a set whose body of `length` bytes follows.
pub(super) fn head_of_set(key: &str, length: usize, fields: &str) -> String {
    format!("POST /set?key={key} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{fields}\r\n")
}
