//! Messages between threads: a request to the thread that owns a key, and its result back.
//!
//! Owns: one bounded ring per ordered pair of threads, the messages that wait for room in a ring, and the requests that
//! wait for their results.
//!
//! ```text
//!   connection ──post──► outbox ──(once a turn)──► ring ──(one wake-up)──► owner's loop ──► engine
//!        ▲                                                                                   │
//!        └──── answered ◄── own loop ◄──(one wake-up)── ring ◄──(once a turn)── outbox ◄─────┘
//! ```
//!
//! Q1  Messages from one thread to another arrive in the order in which they were posted.
//! Q2  Posting never waits. A message that finds no room in the ring stays in the outbox. While the bytes of an outbox
//!     exceed a bound, requests are refused as overloaded. Results are never refused: each answers a request that was
//!     accepted.
//! Q3  The messages of one turn cost at most one wake-up per target. They leave together, after every task that was ready
//!     has run.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::Notify;

use super::router::ThreadId;
use crate::error::{Error, ErrorKind, Result};
use crate::http::Probe;
use crate::key::ShardId;
use crate::op::{Op, Outcome, ToBytes};

/// Messages that a ring holds. A turn of a busy thread posts fewer.
const RING_MESSAGES: usize = 1024;
/// How long to wait before looking again for room in a full ring.
const FULL_RING_REST: std::time::Duration = std::time::Duration::from_millis(1);
/// Bytes of messages in an outbox above which no request is posted.
const OUTBOX_BYTES_MAX: usize = 64 << 20;

/// A request on its way.
#[derive(Debug)]
pub struct Request {
    /// The shard of the key.
    pub shard: ShardId,
    /// What to do.
    pub op: Op<Bytes>,
    /// Measures the operation, if it is measured.
    pub probe: Option<Probe>,
    /// Where the result goes.
    pub sender: ThreadId,
    /// The number by which the sender finds the request again.
    pub token: u64,
}

enum Message {
    Request(Request),
    Result { token: u64, result: Result<Outcome<Bytes>> },
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Message>();
};

impl Message {
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Request(Request { op, .. }) => op.key().bytes().len() + op.value_bytes(),
                Self::Result { result: Ok(outcome), .. } => outcome.value_bytes(),
                Self::Result { result: Err(_), .. } => 0,
            }
    }
}

/// The ends of all rings of one thread, made before the threads start.
pub struct Ends {
    id: ThreadId,
    to: Vec<Option<rtrb::Producer<Message>>>,
    from: Vec<Option<rtrb::Consumer<Message>>>,
    wake: Vec<Arc<Notify>>,
}

/// Makes the rings between `threads` threads, and returns the ends of each thread.
pub fn connect(threads: usize) -> Vec<Ends> {
    let wake: Vec<_> = (0..threads).map(|_| Arc::new(Notify::new())).collect();
    let mut ends: Vec<_> = (0..threads)
        .map(|id| Ends {
            id: ThreadId(id),
            to: (0..threads).map(|_| None).collect(),
            from: (0..threads).map(|_| None).collect(),
            wake: wake.clone(),
        })
        .collect();
    for sender in 0..threads {
        for receiver in (0..threads).filter(|receiver| *receiver != sender) {
            let (producer, consumer) = rtrb::RingBuffer::new(RING_MESSAGES);
            ends[sender].to[receiver] = Some(producer);
            ends[receiver].from[sender] = Some(consumer);
        }
    }
    ends
}

/// The mailbox of a thread.
pub struct Mailbox {
    id: ThreadId,
    outboxes: RefCell<Vec<Outbox>>,
    inboxes: RefCell<Vec<Option<rtrb::Consumer<Message>>>>,
    wake: Vec<Arc<Notify>>,
    /// Signalled when a message is posted.
    posted: Notify,
    /// Where results that are awaited arrive, by token.
    waiting: RefCell<HashMap<u64, Rc<Arrival>>>,
    next_token: Cell<u64>,
}

struct Outbox {
    messages: VecDeque<Message>,
    bytes: usize,
    ring: Option<rtrb::Producer<Message>>,
}

/// Where a result arrives.
#[derive(Default)]
struct Arrival {
    result: Cell<Option<Result<Outcome<Bytes>>>>,
    waker: Cell<Option<Waker>>,
}

/// The result of a request, on its way.
pub struct Awaited(Rc<Arrival>);

impl Future for Awaited {
    type Output = Result<Outcome<Bytes>>;

    /// Cancel safety: the request is carried out whether or not anyone waits for its result.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                self.0.waker.set(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Mailbox {
    /// The mailbox over the ends of this thread.
    pub fn new(ends: Ends) -> Self {
        let outboxes =
            ends.to.into_iter().map(|ring| Outbox { messages: VecDeque::new(), bytes: 0, ring }).collect();
        Self {
            id: ends.id,
            outboxes: RefCell::new(outboxes),
            inboxes: RefCell::new(ends.from),
            wake: ends.wake,
            posted: Notify::new(),
            waiting: RefCell::default(),
            next_token: Cell::new(0),
        }
    }

    /// Asks another thread. Never waits (Q2).
    ///
    /// # Errors
    /// `Overloaded` if too many bytes already wait for that thread.
    pub fn ask<B: ToBytes>(
        &self,
        to: ThreadId,
        shard: ShardId,
        op: Op<B>,
        probe: Option<Probe>,
    ) -> Result<Awaited> {
        if OUTBOX_BYTES_MAX < self.outboxes.borrow()[to.0].bytes {
            return Err(Error::new(ErrorKind::Overloaded, "too many requests wait for another thread"));
        }
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        let arrival = Rc::new(Arrival::default());
        self.waiting.borrow_mut().insert(token, arrival.clone());
        let op = op.to_owned();
        self.post(to, Message::Request(Request { shard, op, probe, sender: self.id, token }));
        Ok(Awaited(arrival))
    }

    /// Sends the result of a request back.
    pub fn answer(&self, to: ThreadId, token: u64, result: Result<Outcome<Bytes>>) {
        self.post(to, Message::Result { token, result });
    }

    fn post(&self, to: ThreadId, message: Message) {
        let outbox = &mut self.outboxes.borrow_mut()[to.0];
        outbox.bytes += message.bytes();
        outbox.messages.push_back(message);
        self.posted.notify_one();
    }

    /// Sends what was posted. Never returns. It runs once a turn: tasks run in the order in which they were woken, so
    /// every task that was ready when the first message was posted has run before (Q3).
    ///
    /// Cancel safety: safe.
    pub async fn send(&self) {
        loop {
            let posted = self.posted.notified();
            if self.flush() {
                posted.await;
            } else {
                // Nothing signals that a full ring has room again. A full ring is rare, so looking again a moment later
                // is good enough.
                let _ = tokio::time::timeout(FULL_RING_REST, posted).await;
            }
        }
    }

    /// Sends what there is room for. `false` if something is left.
    fn flush(&self) -> bool {
        let mut all = true;
        for (to, outbox) in self.outboxes.borrow_mut().iter_mut().enumerate() {
            let Some(ring) = &mut outbox.ring else { continue };
            let mut sent = false;
            while !ring.is_full() {
                let Some(message) = outbox.messages.pop_front() else { break };
                outbox.bytes -= message.bytes();
                sent = true;
                if ring.push(message).is_err() {
                    unreachable!("there was room, and this thread is the only one to fill it");
                }
            }
            if sent {
                self.wake[to].notify_one();
            }
            all &= outbox.messages.is_empty();
        }
        all
    }

    /// Takes in messages: requests go to `carry_out`, results to the futures that wait for them. Never returns.
    ///
    /// Cancel safety: safe.
    pub async fn receive(&self, mut carry_out: impl FnMut(Vec<Request>)) {
        loop {
            let mut requests = Vec::new();
            for ring in self.inboxes.borrow_mut().iter_mut().flatten() {
                // Only what is there now: a busy sender must not keep this loop from the other rings.
                for _ in 0..ring.slots() {
                    match ring.pop() {
                        Ok(Message::Request(request)) => requests.push(request),
                        Ok(Message::Result { token, result }) => self.answered(token, result),
                        Err(_) => break,
                    }
                }
            }
            if !requests.is_empty() {
                carry_out(requests);
            }
            self.wake[self.id.0].notified().await;
        }
    }

    fn answered(&self, token: u64, result: Result<Outcome<Bytes>>) {
        // If the connection is gone, nobody takes the result, and it is dropped with its arrival.
        if let Some(arrival) = self.waiting.borrow_mut().remove(&token) {
            arrival.result.set(Some(result));
            if let Some(waker) = arrival.waker.take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, KeyHash, SeqNo};

    fn echo(key: &[u8]) -> Outcome<Bytes> {
        Outcome::Value { value: Bytes::copy_from_slice(key), seqno: SeqNo(1), expires: None }
    }

    #[test]
    fn q1_messages_arrive_in_order_and_none_is_lost_when_rings_are_full() {
        let threads: Vec<_> = connect(2)
            .into_iter()
            .map(|ends| {
                std::thread::spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    runtime.block_on(tokio::task::LocalSet::new().run_until(converse(ends)));
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    /// Thread 0 asks far more than a ring holds; thread 1 checks the order and answers with the key.
    async fn converse(ends: Ends) {
        const COUNT: u32 = 10 * RING_MESSAGES as u32;
        let mailbox = Rc::new(Mailbox::new(ends));
        let done = Rc::new(Notify::new());
        let expected = Rc::new(Cell::new(0_u32));
        let (answerer, finished) = (mailbox.clone(), done.clone());
        let carry_out = move |requests: Vec<Request>| {
            for request in requests {
                assert_eq!(request.op.key().bytes(), expected.get().to_le_bytes());
                expected.set(expected.get() + 1);
                answerer.answer(request.sender, request.token, Ok(echo(request.op.key().bytes())));
            }
            if expected.get() == COUNT {
                finished.notify_one();
            }
        };
        let sender = mailbox.clone();
        let sending = tokio::task::spawn_local(async move { sender.send().await });
        let receiver = mailbox.clone();
        let receiving = tokio::task::spawn_local(async move { receiver.receive(carry_out).await });
        if mailbox.id == ThreadId(0) {
            let ask = |n: u32| {
                let key = n.to_le_bytes();
                let op = Op::Get { key: Key::new(&key[..], KeyHash::with_seed(1)) };
                mailbox.ask(ThreadId(1), ShardId(1), op, None).map(|awaited| (key, awaited))
            };
            let asked: Vec<_> = (0..COUNT).map(|n| ask(n).unwrap()).collect();
            for (key, awaited) in asked {
                assert_eq!(awaited.await.unwrap(), echo(&key));
            }
        } else {
            done.notified().await;
            // The last answers leave with the next turn of the sender.
            while mailbox.outboxes.borrow().iter().any(|outbox| !outbox.messages.is_empty()) {
                tokio::task::yield_now().await;
            }
        }
        sending.abort();
        receiving.abort();
    }

    /// Two mailboxes of one thread, so that the test decides what happens when.
    fn pair() -> [Mailbox; 2] {
        let mut ends = connect(2).into_iter().map(Mailbox::new);
        [ends.next().unwrap(), ends.next().unwrap()]
    }

    fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Op<&'a [u8]> {
        Op::Set { key: Key::new(key, KeyHash::with_seed(1)), value, expires: None }
    }

    /// Messages that have arrived from thread `from`, and that nobody has taken in.
    fn arrived(mailbox: &Mailbox, from: ThreadId) -> usize {
        mailbox.inboxes.borrow()[from.0].as_ref().unwrap().slots()
    }

    fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Takes in what has arrived. Returns the requests.
    fn take_in(mailbox: &Mailbox) -> Vec<Request> {
        let mut requests = Vec::new();
        {
            let mut receiving = std::pin::pin!(mailbox.receive(|more| requests.extend(more)));
            assert!(poll_once(&mut receiving).is_pending());
        }
        requests
    }

    #[test]
    fn q2_what_finds_no_room_waits_up_to_a_bound_and_then_requests_are_refused() {
        let [asker, answerer] = pair();
        let value = vec![0; OUTBOX_BYTES_MAX / 4];
        let ask =
            |mailbox: &Mailbox| mailbox.ask(ThreadId(1 - mailbox.id.0), ShardId(0), set(b"k", &value), None);
        let mut awaited = ask(&asker).unwrap();
        assert!(asker.flush());
        let [request] = &take_in(&answerer)[..] else { panic!("one request was sent") };

        // No thread takes in messages. Both post as much as they may.
        let count = |mailbox: &Mailbox| (0..10).take_while(|_| ask(mailbox).is_ok()).count();
        assert_eq!([count(&asker), count(&answerer)], [4, 4], "the fourth passes the bound");
        for mailbox in [&asker, &answerer] {
            assert_eq!(ask(mailbox).err().unwrap().kind(), ErrorKind::Overloaded);
        }
        // A result is sent all the same.
        answerer.answer(request.sender, request.token, Ok(echo(b"k")));
        assert!(answerer.flush());
        assert_eq!(take_in(&asker).len(), 4);
        let Poll::Ready(Ok(result)) = poll_once(&mut awaited) else { panic!("the result has not arrived") };
        assert_eq!(result, echo(b"k"));
        // Once the messages have left, there is room for others.
        assert!(asker.flush());
        assert_eq!(count(&asker), 4);
    }

    #[test]
    fn q2_more_messages_than_a_ring_holds_are_posted_without_a_wait() {
        let [asker, answerer] = pair();
        for key in 0..2 * RING_MESSAGES {
            asker.ask(ThreadId(1), ShardId(0), set(&key.to_le_bytes(), b""), None).unwrap();
        }
        assert!(!asker.flush(), "the ring is full");
        assert_eq!(take_in(&answerer).len(), RING_MESSAGES);
        assert!(asker.flush());
        let rest = take_in(&answerer);
        let expected = (RING_MESSAGES..2 * RING_MESSAGES).map(|key| key.to_le_bytes());
        assert!(rest.iter().map(|request| request.op.key().bytes().to_vec()).eq(expected.map(Vec::from)));
    }

    #[test]
    fn q3_the_messages_of_a_turn_leave_together_and_wake_their_target_once() {
        let mut mailboxes = connect(3).into_iter().map(|ends| Rc::new(Mailbox::new(ends)));
        let [sender, one, other] = [(); 3].map(|()| mailboxes.next().unwrap());
        let woken = Rc::new(Cell::new([0, 0]));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let turns = tokio::task::LocalSet::new();
        for (index, mailbox) in [one.clone(), other.clone()].into_iter().enumerate() {
            let woken = woken.clone();
            turns.spawn_local(async move {
                loop {
                    mailbox.wake[mailbox.id.0].notified().await;
                    let mut counts = woken.get();
                    counts[index] += 1;
                    woken.set(counts);
                }
            });
        }
        let sending = sender.clone();
        turns.spawn_local(async move { sending.send().await });
        turns.block_on(&runtime, async {
            // Every task has begun to wait.
            tokio::task::yield_now().await;
            let tasks: Vec<_> = (0..10_u32)
                .map(|task| {
                    let (sender, one) = (sender.clone(), one.clone());
                    tokio::task::spawn_local(async move {
                        for to in [1, 2, 1] {
                            drop(
                                sender
                                    .ask(ThreadId(to), ShardId(0), set(&task.to_le_bytes(), b""), None)
                                    .unwrap(),
                            );
                        }
                        assert_eq!(
                            arrived(&one, ThreadId(0)),
                            0,
                            "task {task}: a message left before its turn ended"
                        );
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
        assert_eq!([&one, &other].map(|mailbox| arrived(mailbox, ThreadId(0))), [20, 10]);
        assert_eq!(woken.get(), [1, 1]);
    }
}
