//! One connection under load: one task writes requests, another reads replies.
//!
//! Owns: the socket, the requests under way, and the judgement of each reply.
//!
//! ```text
//!   writer: room in the pipeline, and (open loop) a request due ──► requests ──► one write
//!   reader: one read ──► replies ──► judged, counted ──► room ──► writer
//! ```
//!
//! There are two tasks so that large requests and large replies cannot wait for each other. Both end by themselves: a
//! read is never dropped in flight, because the ring would still fill its buffer. To make a read end, the socket is
//! shut down.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

use super::data::Key;
use super::ledger::{Before, Fault, Seen, Write};
use super::session::{PATIENCE, Session};
use super::tally::{Answer, Tally};
use super::wire::{self, Head};
use super::workload::{Operation, Stream, Verb};
use crate::error::{Error, ErrorKind, Result};

/// The writer adds no more requests to a write once it has this many bytes; the last request may exceed them.
const OUTPUT_BYTES: usize = 256 << 10;
/// Space for one read, or for the whole reply that is awaited if that needs more.
const INPUT_BYTES: usize = 64 << 10;
/// A connection without other requests that sends a request this long after it was due was held up by the load tool.
const LATE: Duration = Duration::from_millis(1);
/// A value too short to hold its version is compared with this many versions at most. If more are possible, a value
/// that matches none of them is accepted.
const SHORT_VERSIONS_MAX: usize = 1000;
/// Requests that are given up are counted in this many steps at most: a day of overload may leave too many to count one
/// by one.
const GIVEN_UP_STEPS: u64 = 1000;
/// A refusal is a short sentence. No body may be longer than this, unless a value may.
const BODY_BYTES_MIN: usize = 64 << 10;

/// A connection and its requests under way.
pub struct Connection {
    stream: TcpStream,
    run: Arc<Session>,
    /// The number of this connection among all connections of the run.
    index: u64,
    tally: Rc<RefCell<Tally>>,
    state: RefCell<State>,
    /// Tells the writer that it may have something to do.
    room: Notify,
    /// Whether the writer has ended.
    written: Cell<bool>,
    last_answer: Cell<Instant>,
}

struct State {
    operations: Stream,
    /// The requests in the order in which they were sent, which is the order of the replies.
    under_way: VecDeque<Request>,
    /// Requests sent so far.
    sent: u64,
    /// When the last reply came. If nothing is under way, the connection has been idle since then.
    idle_since: Instant,
    /// Since when the server has refused every request of a fill.
    refused_since: Option<Instant>,
    value: Vec<u8>,
}

struct Request {
    operation: Operation,
    /// When the request was sent or, in an open loop, due.
    from: Instant,
    known: Known,
    /// Length of the value that the request carries.
    value_bytes: usize,
}

/// What the ledger knew of the key when the request began.
enum Known {
    Nothing,
    Read(Before),
    Write(Write),
}

/// What the writer does next.
enum Next {
    Write,
    Wait,
    End,
}

impl Connection {
    /// A connection on a socket that is already open.
    pub fn new(stream: TcpStream, run: Arc<Session>, index: u64, tally: Rc<RefCell<Tally>>) -> Rc<Self> {
        let operations = run.stream(index);
        let under_way = VecDeque::with_capacity(run.plan.pipeline);
        Rc::new(Self {
            stream,
            index,
            tally,
            state: RefCell::new(State {
                operations,
                under_way,
                sent: 0,
                idle_since: run.start(),
                refused_since: None,
                value: Vec::new(),
            }),
            room: Notify::new(),
            written: Cell::new(false),
            last_answer: Cell::new(run.start()),
            run,
        })
    }

    /// Tells the writer that it may have something to do.
    pub fn wake(&self) {
        self.room.notify_one();
    }

    /// How long requests have been under way without any answer.
    pub fn silence(&self, now: Instant) -> Duration {
        match self.state.borrow().under_way.front() {
            Some(request) => now.saturating_duration_since(self.last_answer.get().max(request.from)),
            None => Duration::ZERO,
        }
    }

    /// Ends both tasks, whatever is under way.
    pub fn end(&self) {
        // The call fails only if the server has already closed the connection; then the read returns anyway.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Whether all requests of this connection have been sent.
    pub fn has_written(&self) -> bool {
        self.written.get()
    }

    fn idle(&self) -> bool {
        self.state.borrow().under_way.is_empty()
    }

    /// Writes requests until there are no more, or the run ends.
    pub async fn write(self: Rc<Self>) {
        let mut output = Vec::new();
        loop {
            match self.build(&mut output) {
                Next::Wait => self.room.notified().await,
                Next::End => break,
                Next::Write => {
                    let (result, back) = self.stream.write_all(output).await;
                    output = back;
                    output.clear();
                    if let Err(error) = result {
                        self.run.fail(Error::io("send a request", error));
                        self.end();
                        break;
                    }
                }
            }
        }
        self.written.set(true);
        if self.idle() {
            self.end();
        }
    }

    /// Appends the requests that may be sent now to `output`.
    fn build(&self, output: &mut Vec<u8>) -> Next {
        let now = Instant::now();
        let state = &mut *self.state.borrow_mut();
        let pace = self.run.pace();
        let over = self.run.is_over(now);
        if state.operations.is_over() {
            // A read under way may be followed by an update, and a refused write of a fill is sent again.
            let fills = self.run.workload.fills();
            let again = |request: &Request| fills || request.operation.verb == Verb::GetThenSet;
            let more = state.under_way.iter().any(again);
            return if more && !over { Next::Wait } else { Next::End };
        }
        let idle = state.under_way.is_empty();
        let mut room = self.run.plan.pipeline - state.under_way.len();
        if self.run.has_failed() {
            room = 0;
        } else if let Some(pace) = pace {
            // Requests that were due before the end are still sent, as far as the pipeline has room.
            let due = pace.due(self.index, self.run.end(now)).saturating_sub(state.sent);
            room = room.min(usize::try_from(due).unwrap_or(usize::MAX));
        } else if over {
            room = 0;
        }
        let first = state.under_way.len();
        while 0 < room && output.len() < OUTPUT_BYTES {
            let Some(operation) = state.operations.next() else {
                self.wake(); // the next call sees that the stream is over
                break;
            };
            let from = pace.map_or(now, |pace| pace.time(self.index, state.sent));
            if idle && state.idle_since <= from && LATE < now.saturating_duration_since(from) {
                self.tally.borrow_mut().sent_late(from);
            }
            state.value.clear();
            let Some(known) = self.put(output, operation, &mut state.value) else {
                let message =
                    "a key was written 4,294,967,295 times, the limit: use more keys or fewer operations";
                self.run.fail(Error::new(ErrorKind::Configuration, message));
                break;
            };
            state.under_way.push_back(Request { operation, from, known, value_bytes: state.value.len() });
            state.sent += 1;
            room -= 1;
        }
        if pace.is_none() {
            // The time that it takes to generate values is not the server's.
            let now = Instant::now();
            state.under_way.range_mut(first..).for_each(|request| request.from = now);
        }
        match output.is_empty() {
            false => Next::Write,
            true if over => {
                self.give_up(state, now);
                Next::End
            }
            true => Next::Wait,
        }
    }

    /// Appends a request to `output`. Returns `None`, and appends nothing, if the key has no version left.
    fn put(&self, output: &mut Vec<u8>, operation: Operation, value: &mut Vec<u8>) -> Option<Known> {
        let Session { plan, ledger, .. } = &*self.run;
        let Operation { verb, key } = operation;
        Some(match verb {
            Verb::Get | Verb::GetThenSet => {
                wire::put_get(output, &plan.keys, key);
                if key.missing { Known::Nothing } else { Known::Read(ledger.begin_read(key.number)) }
            }
            Verb::Set | Verb::Insert => {
                let write = ledger.begin_write(key.number, false)?;
                plan.values.put(value, key.number, plan.version(write.version));
                wire::put_set(output, &plan.keys, key, value);
                Known::Write(write)
            }
            Verb::Delete => {
                let write = ledger.begin_write(key.number, true)?;
                wire::put_delete(output, &plan.keys, key);
                Known::Write(write)
            }
        })
    }

    /// Counts the requests that were due and will not be sent (B3).
    fn give_up(&self, state: &State, now: Instant) {
        let Some(pace) = self.run.pace() else { return };
        let end = self.run.end(now);
        let tally = &mut *self.tally.borrow_mut();
        let first = state.sent.max(pace.due(self.index, tally.begin)); // B4
        let last = state.sent.saturating_add(state.operations.left()).min(pace.due(self.index, end));
        let step = last.saturating_sub(first).div_ceil(GIVEN_UP_STEPS).max(1);
        let mut index = first;
        while index < last {
            let count = step.min(last - index);
            tally.given_up(pace.time(self.index, index), end, count);
            index += count;
        }
    }

    /// Reads and judges replies until the writer has ended and nothing is under way.
    pub async fn read(self: Rc<Self>) {
        if let Err(error) = self.read_all().await {
            let unanswered = self.state.borrow().under_way.len();
            self.tally.borrow_mut().unanswered += unanswered as u64;
            self.run.fail(error);
            self.end();
            self.wake();
        }
    }

    async fn read_all(&self) -> Result<()> {
        let mut input = Vec::with_capacity(INPUT_BYTES);
        let mut scratch = Vec::new();
        // Bytes that the first reply in `input` needs at least, as far as is known.
        let mut wanted = 1;
        loop {
            let now = Instant::now();
            let (mut used, mut answered) = (0, 0);
            while wanted <= input.len() - used {
                let Some(head) = wire::parse(&input[used..])? else { break };
                if self.run.plan.values.size().max().max(BODY_BYTES_MIN) < head.body_bytes {
                    let message = format!(
                        "a reply has a body of {} bytes, more than any value written",
                        head.body_bytes
                    );
                    return Err(Error::new(ErrorKind::Io, message));
                }
                let whole = head.bytes + head.body_bytes;
                if input.len() - used < whole {
                    wanted = whole;
                    break;
                }
                let body = &input[used + head.bytes..used + whole];
                answered += u64::from(self.settle(head, body, now, &mut scratch)?);
                if head.closes {
                    return Err(answer(head, body, ", and closes the connection"));
                }
                used += whole;
                wanted = 1;
            }
            input.drain(..used);
            if 0 < used {
                self.run.answered(answered);
                self.last_answer.set(now);
                self.wake();
            }
            if self.written.get() && self.idle() {
                return match input.is_empty() {
                    true => Ok(()),
                    false => {
                        Err(Error::new(ErrorKind::Io, "the server sent a reply that belongs to no request"))
                    }
                };
            }
            input.reserve(INPUT_BYTES.max(wanted).saturating_sub(input.len()));
            let filled = input.len();
            let (result, slice) = self.stream.read(input.slice(filled..)).await;
            input = slice.into_inner();
            match result {
                Ok(0) | Err(_) if self.written.get() && self.idle() => return Ok(()), // ended by this side
                Ok(0) => {
                    return Err(Error::new(ErrorKind::Io, "the server closed a connection that was in use"));
                }
                Ok(_) => {}
                Err(error) => return Err(Error::io("read a reply", error)),
            }
        }
    }

    /// Judges the reply to the oldest request. Returns `false` if the server refused the request.
    fn settle(&self, head: Head, body: &[u8], now: Instant, scratch: &mut Vec<u8>) -> Result<bool> {
        let state = &mut *self.state.borrow_mut();
        let tally = &mut *self.tally.borrow_mut();
        let unexpected = || answer(head, body, "");
        let fills = self.run.workload.fills();
        // A full disk does not get emptier by asking again, so a 507 ends a fill.
        let refused = head.status == 503 || (head.status == 507 && !fills);
        // A request with any other answer stays under way and counts as unanswered.
        let expected = |request: &mut Request| {
            refused || head.status == 200 || (head.status == 404 && !request.operation.verb.writes_value())
        };
        let request = state.under_way.pop_front_if(expected).ok_or_else(unexpected)?;
        state.idle_since = now;
        let Request { operation: Operation { verb, key }, from, known, value_bytes } = request;
        let missing = head.status == 404;
        let fault = match known {
            _ if refused => None,
            Known::Nothing => (!missing).then_some(Fault::Wrong),
            Known::Read(before) => match self.seen(missing, body, key, before, scratch) {
                Some(seen) => self.run.ledger.end_read(key.number, before, seen),
                None => Some(Fault::Wrong),
            },
            Known::Write(write) if verb == Verb::Delete => {
                self.run.ledger.judge_delete(key.number, write, !missing)
            }
            Known::Write(_) => None,
        };
        if verb == Verb::Insert {
            state.operations.inserted();
        }
        if let Known::Write(write) = known {
            self.run.ledger.end_write(key.number, write, !refused);
        }
        if let Some(fault) = fault {
            tally.fault(fault, || {
                let mut name = Vec::new();
                self.run.plan.keys.put(&mut name, key);
                let name = String::from_utf8_lossy(&name);
                format!("{verb:?} of key {name}: status {} and {} bytes", head.status, body.len())
            });
        }
        if refused {
            tally.refused(now);
            if fills {
                let since = *state.refused_since.get_or_insert(now);
                if PATIENCE < now.saturating_duration_since(since) {
                    return Err(unexpected());
                }
                state.operations.set_later(key.number); // later workloads rely on every key of a fill
            }
            return Ok(false);
        }
        state.refused_since = None;
        let (place, value_bytes) = match verb {
            Verb::Get | Verb::GetThenSet => (0, if missing { 0 } else { body.len() }),
            Verb::Set | Verb::Insert => (1, value_bytes),
            Verb::Delete => (2, 0),
        };
        tally.answered(Answer { verb: place, from, now, missing, value_bytes });
        if verb == Verb::GetThenSet {
            state.operations.set_later(key.number);
        }
        Ok(true)
    }

    /// What a read shows; `None` if the body is not a value of the key (B1).
    fn seen(
        &self,
        missing: bool,
        body: &[u8],
        key: Key,
        before: Before,
        scratch: &mut Vec<u8>,
    ) -> Option<Seen> {
        let Session { plan, ledger, .. } = &*self.run;
        if missing {
            return Some(Seen::Missing);
        }
        // A key that this run knows nothing of may hold any bytes.
        let other = (!before.is_known()).then_some(Seen::Earlier);
        if let Some(claimed) = plan.values.version(body, key.number) {
            return match plan.values.matches(body, key.number, claimed, scratch) {
                true => plan.seen(claimed),
                false => other,
            };
        }
        // The value is too short to hold its version. Take the latest version of this run that has the same bytes. If
        // none has, take it for a value of an earlier run, which cannot be compared.
        let sent = ledger.sent(key.number);
        let found = (1..=sent)
            .rev()
            .take(SHORT_VERSIONS_MAX)
            .find(|&version| plan.values.matches(body, key.number, plan.version(version), scratch));
        match found {
            Some(version) => Some(Seen::AtMost(version)),
            None if body.len() < plan.values.size().min() => other,
            None if SHORT_VERSIONS_MAX <= (sent - before.floor()) as usize => Some(Seen::AtMost(sent)),
            None => (before.floor() == 0).then_some(Seen::Earlier),
        }
    }
}

/// The error for an answer that ends the run. `besides` is what else the server does.
fn answer(head: Head, body: &[u8], besides: &str) -> Error {
    let sentence = String::from_utf8_lossy(body);
    let message = format!("the server answered {}: {}{besides}", head.status, sentence.trim_end());
    Error::new(ErrorKind::Io, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::choose::Access;
    use crate::load::data::{Keys, Size, Values};
    use crate::load::ledger::Ledger;
    use crate::load::session::tests::begun_at;
    use crate::load::session::{Plan, Task};
    use crate::load::workload::{Keyspace, Workload};
    use crate::random::Random;

    const KEYS: u64 = 50;

    fn plan() -> Plan {
        Plan {
            server: ([127, 0, 0, 1], 1).into(),
            connections: 1,
            threads: 1,
            pipeline: 7,
            rate: None,
            warm_up: Duration::ZERO,
            duration: None,
            access: Access::Uniform,
            seed: 1,
            keys: Keys::new(Size::Fixed(4), KEYS).unwrap(),
            values: Values::new(Size::Fixed(20), 0.5),
            epoch: 1_000,
        }
    }

    /// A connection of a run that began at `start`. Nothing is sent: the test builds requests, and makes up the replies.
    fn with_connection(
        start: Instant,
        plan: &Plan,
        (name, limit): (&str, u64),
        index: u64,
        test: impl FnOnce(&Connection),
    ) {
        let task = Task {
            workload: Workload::named(name).unwrap(),
            ordinal: 0,
            limit,
            ledger: Arc::new(Ledger::new(KEYS, 0)),
            keyspace: Arc::new(Keyspace::new(KEYS, KEYS, 1)),
        };
        let run = Arc::new(begun_at(start, plan, task));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        tokio_uring::start(async {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let tally = Rc::new(RefCell::new(Tally::new(start)));
            test(&Connection::new(stream, run, index, tally));
        });
    }

    /// A reply to the oldest request under way.
    fn reply(connection: &Connection, status: u16, body: &[u8]) {
        let head = Head { status, bytes: 0, body_bytes: body.len(), closes: false };
        connection.settle(head, body, Instant::now(), &mut Vec::new()).unwrap();
    }

    /// Builds requests and replies to them at random, until there are no more. Returns how many replies there were.
    fn drive(connection: &Connection, random: &mut Random) -> u64 {
        let mut replies = 0;
        let mut reply_to_one = || {
            reply(connection, [200, 200, 503][random.below(3) as usize], b"");
            replies += 1;
        };
        loop {
            match connection.build(&mut Vec::new()) {
                Next::End => break,
                Next::Write if connection.run.pace().is_some() => {}
                Next::Write | Next::Wait => reply_to_one(),
            }
        }
        while !connection.idle() {
            reply_to_one();
        }
        replies
    }

    #[test]
    fn b1_a_reply_with_any_other_bytes_than_those_of_the_value_is_wrong() {
        let plan = Plan { values: Values::new(Size::Fixed(300), 0.5), ..plan() };
        with_connection(Instant::now(), &plan, ("read", 1), 0, |connection| {
            let key = Key { number: 7, missing: false };
            let get = |body: &[u8]| {
                let operation = Operation { verb: Verb::Get, key };
                let known = connection.put(&mut Vec::new(), operation, &mut Vec::new()).unwrap();
                let request = Request { operation, from: Instant::now(), known, value_bytes: 0 };
                connection.state.borrow_mut().under_way.push_back(request);
                reply(connection, 200, body);
                std::mem::take(&mut connection.tally.borrow_mut().wrong)
            };
            let write = connection.run.ledger.begin_write(key.number, false).unwrap();
            connection.run.ledger.end_write(key.number, write, true);
            let mut value = Vec::new();
            plan.values.put(&mut value, key.number, plan.version(write.version));
            assert_eq!(get(&value), 0);
            for at in 0..value.len() {
                let mut damaged = value.clone();
                damaged[at] ^= 0x10;
                assert_eq!(get(&damaged), 1, "byte {at}");
            }
            let mut of_another_key = Vec::new();
            plan.values.put(&mut of_another_key, 8, plan.version(write.version));
            assert_eq!(get(&of_another_key), 1);
            assert_eq!(get(&value[1..]), 1);
        });
    }

    #[test]
    fn b3_in_a_closed_loop_each_request_is_answered_or_refused() {
        for seed in 0..10 {
            let mut random = Random::new(seed);
            for name in ["overwrite", "fill-seq"] {
                with_connection(Instant::now(), &plan(), (name, KEYS), 0, |connection| {
                    let replies = drive(connection, &mut random);
                    let tally = connection.tally.borrow();
                    assert_eq!(tally.count() + tally.refused, replies, "seed {seed}, {name}");
                    assert!(tally.refused != 0 && tally.unsent.is_empty());
                    // A fill repeats what was refused.
                    let operations = if name == "fill-seq" { tally.count() } else { replies };
                    assert_eq!(operations, KEYS, "seed {seed}, {name}");
                });
            }
        }
    }

    #[test]
    fn b3_in_an_open_loop_each_request_that_was_due_is_answered_or_refused_or_never_sent() {
        for (seed, rate) in (0..10).flat_map(|seed| [(seed, 7.0), (seed, 100.0), (seed, 54_321.0)]) {
            let mut random = Random::new(seed);
            let plan =
                Plan { connections: 3, rate: Some(rate), duration: Some(Duration::from_secs(2)), ..plan() };
            // The run was over a second ago.
            let start = Instant::now() - Duration::from_secs(3);
            let mut counts = [0; 3];
            for index in 0..plan.connections {
                with_connection(start, &plan, ("overwrite", u64::MAX), index, |connection| {
                    let replies = drive(connection, &mut random);
                    let tally = connection.tally.borrow();
                    assert_eq!(tally.count() + tally.refused, replies, "seed {seed}, rate {rate}");
                    for (sum, count) in
                        counts.iter_mut().zip([tally.count(), tally.refused, tally.unsent.len()])
                    {
                        *sum += count;
                    }
                });
            }
            let due = (rate * 2.0) as u64;
            assert_eq!(counts.iter().sum::<u64>(), due, "seed {seed}, rate {rate}: {counts:?}");
            assert!(due < 50 || counts[2] != 0, "the pipelines are too short for all: {counts:?}");
        }
    }
}
