//! One connection under load: a task that writes requests, and one that reads replies.
//!
//! Owns: the socket, the requests under way, and the judgement of each reply. Knows nothing of other connections.
//!
//! ```text
//!   writer: room in the pipeline, and (open loop) a request due ──► requests ──► one write
//!   reader: one read ──► replies ──► judged, counted ──► room ──► writer
//! ```
//!
//! Two tasks, so that large requests and large replies cannot wait for each other. Both end by themselves: a read
//! is never dropped in flight (the ring would still fill its buffer); whoever wants it to end shuts the socket down.

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
use super::run::{PATIENCE, Run};
use super::tally::{Answer, Tally};
use super::wire::{self, Head};
use super::workload::{Operation, Stream, Verb};
use crate::error::{Error, ErrorKind, Result};

/// A write carries so many bytes, or one request more.
const OUTPUT_BYTES: usize = 256 << 10;
/// A read has room for so many, or for the reply that it waits for.
const INPUT_BYTES: usize = 64 << 10;
/// A request sent so long after it was due, by a connection without others, was held up by the load itself.
const LATE: Duration = Duration::from_millis(1);
/// Versions that a value too short to say its own is compared with; if more are possible, it is believed.
const SHORT_VERSIONS_MAX: usize = 1000;
/// What is given up is counted in so many steps at most: a day of overload may leave more than can be counted singly.
const GIVEN_UP_STEPS: u64 = 1000;
/// A refusal is a short sentence; no body may be longer, unless a value may.
const BODY_BYTES_MIN: usize = 64 << 10;

/// A connection and its requests under way.
pub struct Connection {
    stream: TcpStream,
    run: Arc<Run>,
    /// Its number among all connections of the run.
    index: u64,
    tally: Rc<RefCell<Tally>>,
    state: RefCell<State>,
    /// The writer may find something to do.
    room: Notify,
    /// The writer has ended.
    written: Cell<bool>,
    last_answer: Cell<Instant>,
}

struct State {
    operations: Stream,
    /// In the order in which they were sent, which is that of the replies.
    under_way: VecDeque<Request>,
    /// Requests sent so far.
    sent: u64,
    /// When the last request under way was answered.
    idle_since: Instant,
    /// Since when every answer to a fill was a refusal.
    refused_since: Option<Instant>,
    value: Vec<u8>,
}

struct Request {
    operation: Operation,
    /// When it was sent or, in an open loop, due.
    from: Instant,
    known: Known,
    /// Length of the value that it carries.
    value_bytes: usize,
}

/// What the ledger said when the request began.
enum Known {
    Nothing,
    Read(Before),
    Write(Write),
}

/// What the writer is to do.
enum Next {
    Write,
    Wait,
    End,
}

impl Connection {
    /// A connection whose socket is open.
    pub fn new(stream: TcpStream, run: Arc<Run>, index: u64, tally: Rc<RefCell<Tally>>) -> Rc<Self> {
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

    /// The writer may find something to do.
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
        // It fails only on a socket that the server has already left: then the read returns anyway.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Whether all its requests are sent.
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

    /// Puts the requests that may go now into `output`.
    fn build(&self, output: &mut Vec<u8>) -> Next {
        let now = Instant::now();
        let state = &mut *self.state.borrow_mut();
        let pace = self.run.pace();
        let over = self.run.is_over(now);
        if state.operations.is_over() {
            // A read under way may be followed by an update, and a write of a fill by itself.
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
            // What was due before the end still goes, as far as there is room.
            let due = pace.due(self.index, self.run.end(now)).saturating_sub(state.sent);
            room = room.min(usize::try_from(due).unwrap_or(usize::MAX));
        } else if over {
            room = 0;
        }
        let first = state.under_way.len();
        while 0 < room && output.len() < OUTPUT_BYTES {
            let Some(operation) = state.operations.next() else {
                self.wake(); // to see that there are no more
                break;
            };
            let from = pace.map_or(now, |pace| pace.time(self.index, state.sent));
            if idle && state.idle_since <= from && LATE < now.saturating_duration_since(from) {
                self.tally.borrow_mut().sent_late(from);
            }
            state.value.clear();
            let Some(known) = self.put(output, operation, &mut state.value) else {
                let message = "a key was written 4,294,967,295 times; what it holds is no longer known";
                self.run.fail(Error::new(ErrorKind::Configuration, message));
                break;
            };
            state.under_way.push_back(Request { operation, from, known, value_bytes: state.value.len() });
            state.sent += 1;
            room -= 1;
        }
        if pace.is_none() {
            // What it takes to make values is not the server's time.
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

    /// Appends a request to `output`; `None`, and nothing, if its key has no version left.
    fn put(&self, output: &mut Vec<u8>, operation: Operation, value: &mut Vec<u8>) -> Option<Known> {
        let Run { plan, ledger, .. } = &*self.run;
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

    /// Counts what was due and is not sent (B3).
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
        // Bytes of the reply at the front, as far as they are known.
        let mut wanted = 1;
        loop {
            let now = Instant::now();
            let (mut used, mut answered) = (0, 0);
            while wanted <= input.len() - used {
                let Some(head) = wire::parse(&input[used..])? else { break };
                if self.run.plan.values.size().max().max(BODY_BYTES_MIN) < head.body_bytes {
                    let message = format!("a reply has {} bytes, which nobody has written", head.body_bytes);
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
                    false => Err(Error::new(ErrorKind::Io, "the server answered what nobody asked")),
                };
            }
            input.reserve(INPUT_BYTES.max(wanted).saturating_sub(input.len()));
            let filled = input.len();
            let (result, slice) = self.stream.read(input.slice(filled..)).await;
            input = slice.into_inner();
            match result {
                Ok(0) | Err(_) if self.written.get() && self.idle() => return Ok(()), // its own end
                Ok(0) => {
                    return Err(Error::new(ErrorKind::Io, "the server closed a connection that was in use"));
                }
                Ok(_) => {}
                Err(error) => return Err(Error::io("read a reply", error)),
            }
        }
    }

    /// Judges the reply to the oldest request; `false` if it is a refusal.
    fn settle(&self, head: Head, body: &[u8], now: Instant, scratch: &mut Vec<u8>) -> Result<bool> {
        let state = &mut *self.state.borrow_mut();
        let tally = &mut *self.tally.borrow_mut();
        let unexpected = || answer(head, body, "");
        let fills = self.run.workload.fills();
        // A full disk does not end by asking again: with it, a fill ends.
        let refused = head.status == 503 || (head.status == 507 && !fills);
        // A request with any other answer stays under way: unanswered.
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
                state.operations.set_later(key.number); // what comes after a fill relies on every key
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

    /// What a read shows; `None` if it is no value of the key (B1).
    fn seen(
        &self,
        missing: bool,
        body: &[u8],
        key: Key,
        before: Before,
        scratch: &mut Vec<u8>,
    ) -> Option<Seen> {
        let Run { plan, ledger, .. } = &*self.run;
        if missing {
            return Some(Seen::Missing);
        }
        // What was there before a run that knows nothing of it may have any bytes.
        let other = (!before.is_known()).then_some(Seen::Earlier);
        if let Some(claimed) = plan.values.version(body, key.number) {
            return match plan.values.matches(body, key.number, claimed, scratch) {
                true => plan.seen(claimed),
                false => other,
            };
        }
        // Too short to say its version: the latest that it can be or, unseen, one of an earlier run.
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

/// An answer that ends the run, and what the server does `besides`.
fn answer(head: Head, body: &[u8], besides: &str) -> Error {
    let sentence = String::from_utf8_lossy(body);
    let message = format!("the server answered {}: {}{besides}", head.status, sentence.trim_end());
    Error::new(ErrorKind::Io, message)
}
