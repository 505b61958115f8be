//! The cost of each pure part, one at a time. Each bench asserts its result: a fast wrong answer is no answer.
//!
//! Usage: `cargo bench --bench micro [PART OF A NAME]`. Pin it to a processor (`taskset -c 1`), and look only at
//! differences between two builds on one machine.

#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]

mod common;

use std::cell::Cell;
use std::future::Future;
use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{KEY_BYTES, MEMTABLE_ENTRIES, VALUE_BYTES, key, shuffled_key, value};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringkeep::codec::crc32;
use ringkeep::config::ShutdownMode;
use ringkeep::http::access::Policy;
use ringkeep::http::authority::LastAddress;
use ringkeep::http::head::{HeadEnd, parse};
use ringkeep::http::response::{Heads, Wire};
use ringkeep::http::route::Route;
use ringkeep::identity::{FileKind, Identity};
use ringkeep::key::{Entry, EntryKind, FileNumber, Key, KeyHash, SeqNo, ShardId, filter_hash};
use ringkeep::memtable::Memtable;
use ringkeep::memtable::order::{MemtableSource, Wants};
use ringkeep::op::{Op, Outcome};
use ringkeep::record::{decode, record_bytes, seal};
use ringkeep::shard::mailbox::{Mailbox, connect};
use ringkeep::shard::router::ThreadId;
use ringkeep::source::merge::Merge;
use ringkeep::source::newest::Newest;
use ringkeep::source::{Source, Step};
use ringkeep::sst::block::{BlockBuilder, BlockKind, Frame, put_frame, seek};
use ringkeep::sst::filter;
use ringkeep::storage::AlignedBuf;

const KEY_HASH: KeyHash = KeyHash::with_seed(1);
const IDENTITY: Identity =
    Identity { store_id: 7, shard: ShardId(0), kind: FileKind::Wal, file: FileNumber(3) };

fn entry<'a>(key: &'a [u8], value: &'a [u8], seqno: u64) -> Entry<'a> {
    Entry { key, seqno: SeqNo(seqno), kind: EntryKind::VALUE, value }
}

fn record(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    for writes in [1, 64] {
        let payload_bytes = writes * (KEY_BYTES + VALUE_BYTES + 4);
        let mut bytes = vec![5; record_bytes(payload_bytes)];
        let sealed = seal(&mut bytes, payload_bytes, IDENTITY, 8192, 9, 4096, crc32);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("seal/{writes}_writes"), |bencher| {
            bencher.iter(|| {
                let crc = seal(black_box(&mut bytes), payload_bytes, IDENTITY, 8192, 9, 4096, crc32);
                assert_eq!(crc, sealed);
            });
        });
        group.bench_function(format!("decode/{writes}_writes"), |bencher| {
            bencher.iter(|| {
                let record = decode(black_box(&bytes), IDENTITY, 8192).expect("the record is sound");
                assert_eq!((record.payload.len(), record.chain), (payload_bytes, 9));
            });
        });
    }
}

fn memtable(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memtable");
    group.sample_size(10).throughput(Throughput::Elements(MEMTABLE_ENTRIES));
    let keys: Vec<Vec<u8>> = (0..MEMTABLE_ENTRIES).map(shuffled_key).collect();
    // Looked up in an order other than that of the entries in memory.
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    let value = value(1);
    let fill = || {
        let memtable = Memtable::new(KEY_HASH);
        for (number, key) in keys.iter().enumerate() {
            memtable.insert(Key::new(key, KEY_HASH), SeqNo(number as u64 + 1), EntryKind::VALUE, &value);
        }
        memtable
    };
    group.bench_function("insert", |bencher| {
        bencher.iter_with_large_drop(|| {
            let memtable = fill();
            assert_eq!(memtable.entries(), MEMTABLE_ENTRIES);
            memtable
        });
    });
    let full = Rc::new(fill());
    group.bench_function("get", |bencher| {
        bencher.iter(|| {
            for key in &sorted {
                assert_eq!(
                    full.get(KEY_HASH.of(key), key, SeqNo(u64::MAX), |entry| entry.value.len()),
                    Some(VALUE_BYTES)
                );
            }
        });
    });
    group.bench_function("get_missing", |bencher| {
        bencher.iter(|| {
            for key in &sorted {
                assert!(full.get(KEY_HASH.of(&key[1..]), &key[1..], SeqNo(u64::MAX), |_| ()).is_none());
            }
        });
    });
    group.bench_function("in_order", |bencher| {
        // A memtable is sorted only once, so each iteration takes a new one.
        bencher.iter_batched_ref(
            || Rc::new(fill()),
            |full| {
                let all = SeqNo(u64::MAX);
                let mut expected = sorted.iter();
                walk(MemtableSource::new(full.clone(), all, Wants::SortedRuns), |entry| {
                    assert_eq!(Some(entry.key), expected.next().map(Vec::as_slice));
                });
                assert_eq!(expected.next(), None);
            },
            BatchSize::PerIteration,
        );
    });
}

/// The keys of a data block, and its builder. With 60 entries the block fills a page after compression.
fn block_of(count: u64) -> (Vec<Vec<u8>>, BlockBuilder) {
    let keys: Vec<Vec<u8>> = (0..count).map(|number| key(number * 7)).collect();
    let mut builder = BlockBuilder::default();
    for (number, key) in keys.iter().enumerate() {
        builder.add(&entry(key, &value(number as u64), number as u64 + 1));
    }
    (keys, builder)
}

fn block(criterion: &mut Criterion) {
    const COUNT: u64 = 60;
    let identity = Identity { kind: FileKind::Sst, ..IDENTITY };
    let mut group = criterion.benchmark_group("block");
    let values: Vec<Vec<u8>> = (0..COUNT).map(value).collect();
    let (keys, mut builder) = block_of(COUNT);
    let payload = builder.finish().to_vec();
    group.throughput(Throughput::Elements(COUNT));
    group.bench_function("build", |bencher| {
        bencher.iter(|| {
            let mut builder = BlockBuilder::default();
            for ((number, key), value) in keys.iter().enumerate().zip(&values) {
                builder.add(&entry(key, value, number as u64 + 1));
            }
            assert_eq!(builder.finish(), payload);
        });
    });
    group.bench_function("seek", |bencher| {
        bencher.iter(|| {
            for key in &keys {
                let found = seek(black_box(&payload), key).expect("the block is sound");
                assert!(found.is_some_and(|located| located.exact));
            }
        });
    });
    group.throughput(Throughput::Bytes(payload.len() as u64));
    let mut frame = AlignedBuf::with_capacity(1 << 16);
    put_frame(&mut frame, BlockKind::Data, &payload, identity, 4096);
    group.bench_function("frame", |bencher| {
        bencher.iter(|| {
            frame.truncate(0);
            let (handle, stored) = put_frame(&mut frame, BlockKind::Data, &payload, identity, 4096);
            assert!(stored < payload.len() && handle.bytes as usize == frame.len());
        });
    });
    group.bench_function("unframe", |bencher| {
        bencher.iter_batched(
            || AlignedBuf::from(&frame[..]),
            |frame| {
                let block =
                    Frame::verify(frame, identity, 4096).and_then(Frame::unpack).expect("the frame is sound");
                assert_eq!(block.payload[..], payload[..]);
            },
            BatchSize::SmallInput,
        );
    });
}

fn bloom(criterion: &mut Criterion) {
    const COUNT: u64 = 4000;
    let mut group = criterion.benchmark_group("filter");
    group.throughput(Throughput::Elements(COUNT));
    let hashes: Vec<u64> = (0..COUNT).map(|number| filter_hash(&key(number))).collect();
    let absent: Vec<u64> = (COUNT..2 * COUNT).map(|number| filter_hash(&key(number))).collect();
    let built = filter::build(&hashes);
    group.bench_function("build", |bencher| {
        bencher.iter(|| assert_eq!(filter::build(black_box(&hashes)), built));
    });
    group.bench_function("probe_present", |bencher| {
        bencher.iter(|| {
            for hash in &hashes {
                assert_eq!(filter::may_contain(&built, *hash), Ok(true));
            }
        });
    });
    group.bench_function("probe_absent", |bencher| {
        bencher.iter(|| {
            let taken = absent.iter().filter(|hash| filter::may_contain(&built, **hash) == Ok(true)).count();
            assert!(taken < 100, "{taken} of {COUNT}");
        });
    });
}

/// A sorted run in memory.
struct Run<'a> {
    keys: &'a [Vec<u8>],
    value: &'a [u8],
    next: usize,
}

impl Source for Run<'_> {
    fn seek(&mut self, key: &[u8]) {
        self.next = self.keys.partition_point(|found| **found < *key);
    }

    fn step(&mut self) -> ringkeep::error::Result<Step> {
        self.next += 1;
        Ok(if self.next <= self.keys.len() { Step::Entry } else { Step::End })
    }

    fn read<R>(&self, read: impl FnOnce(Entry<'_>) -> R) -> R {
        read(entry(&self.keys[self.next - 1], self.value, 1))
    }

    async fn supply(&mut self) -> ringkeep::error::Result<()> {
        Ok(())
    }
}

fn walk(mut source: impl Source, mut visit: impl FnMut(Entry<'_>)) {
    loop {
        match source.step().expect("memory does not fail") {
            Step::Entry => source.read(&mut visit),
            Step::Need => futures_executor::block_on(source.supply()).expect("memory does not fail"),
            Step::Pause => {}
            Step::End => return,
        }
    }
}

fn merge(criterion: &mut Criterion) {
    const COUNT: u64 = 10_000;
    let mut group = criterion.benchmark_group("merge");
    group.throughput(Throughput::Elements(COUNT));
    let value = value(1);
    let sorted: Vec<Vec<u8>> = (0..COUNT).map(key).collect();
    for runs in [2, 8] {
        let keys: Vec<Vec<Vec<u8>>> =
            (0..runs).map(|run| (0..COUNT / runs).map(|number| key(number * runs + run)).collect()).collect();
        group.bench_function(format!("{runs}_sources"), |bencher| {
            bencher.iter(|| {
                let sources = keys.iter().map(|keys| Run { keys, value: &value, next: 0 }).collect();
                let mut expected = sorted.iter();
                walk(Newest::new(Merge::new(sources), SeqNo(u64::MAX)), |entry| {
                    assert_eq!(Some(entry.key), expected.next().map(Vec::as_slice));
                });
                assert_eq!(expected.next(), None);
            });
        });
    }
}

fn http(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("http");
    let get =
        b"GET /get?key=0000000000000042 HTTP/1.1\r\nhost: localhost\r\nuser-agent: x\r\naccept: */*\r\n\r\n";
    let set = [
        b"POST /set?key=0000000000000042 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
            .as_slice(),
        &[b'v'; VALUE_BYTES],
    ]
    .concat();
    let policy = Policy { tokens: None, hosts: Vec::new(), shutdown: ShutdownMode::Local };
    let address = LastAddress::default();
    let read = |input: &[u8], expected: &dyn Fn(Op<&[u8]>) -> bool| {
        let end = HeadEnd::default().find(input).expect("the head is small").expect("the head is complete");
        let head = parse(&input[..end], &address).expect("the head is valid");
        let grant = policy.admit(&head, input, true).expect("the host is known");
        let (route, _) = Route::of(&head, input, &grant, KEY_HASH).expect("the route is valid");
        assert!(expected(route.op(input, &input[end..]).expect("the operation is valid")));
    };
    group.bench_function("parse_get", |bencher| {
        bencher.iter(|| {
            read(black_box(get), &|op| matches!(op, Op::Get { key } if key.bytes().len() == KEY_BYTES));
        });
    });
    group.bench_function("parse_set", |bencher| {
        bencher.iter(|| {
            read(black_box(&set), &|op| matches!(op, Op::Set { value, .. } if value.len() == VALUE_BYTES));
        });
    });
    let wire = Wire { keep_alive: true, ..Wire::UNKNOWN };
    let heads = Heads::new("Sun, 06 Nov 1994 08:49:37 GMT");
    let outcome = Outcome::Value { value: [b'v'; VALUE_BYTES], seqno: SeqNo(1), expires: None };
    let mut out = Vec::with_capacity(1 << 10);
    group.bench_function("reply_head", |bencher| {
        bencher.iter(|| {
            out.clear();
            heads.put_outcome_head(&mut out, black_box(&outcome), wire);
            assert!(out.ends_with(b"content-length: 100\r\n\r\n"));
        });
    });
}

/// Messages that wait for their results at the same time on a busy thread.
const WINDOW: u64 = 64;

fn mailbox(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mailbox");
    group.sample_size(10).throughput(Throughput::Elements(1));
    for (name, window) in [("round_trip_alone", 1), ("round_trip_64_at_a_time", WINDOW)] {
        group.bench_function(name, |bencher| bencher.iter_custom(|count| round_trips(count, window)));
    }
}

/// Sends `count` messages to another thread and waits for their results, `window` at a time. Each thread has its own
/// ring, as in the server. One message goes ahead, so that both threads are ready when the time starts.
fn round_trips(count: u64, window: u64) -> Duration {
    let mut ends = connect(2);
    let (answering, asking) = (ends.pop().expect("two ends"), ends.pop().expect("two ends"));
    let answerer = std::thread::spawn(move || {
        on_ring(
            |mailbox| async move {
                let (answered, done) = (Cell::new(0), tokio::sync::Notify::new());
                let receive = mailbox.receive(|requests| {
                    for request in requests {
                        mailbox.answer(request.sender, request.token, Ok(Outcome::Missing));
                        answered.set(answered.get() + 1);
                    }
                    if answered.get() == count + 1 {
                        done.notify_one();
                    }
                });
                tokio::select! { () = receive => {}, () = done.notified() => {} }
                // The last answers are sent in the sender's next turn.
                let _ = tokio_uring::no_op().await;
            },
            answering,
        );
    });
    let (sender, receiver) = tokio::sync::oneshot::channel();
    on_ring(
        |mailbox| async move {
            let receive = mailbox.clone();
            let receiving = tokio_uring::spawn(async move { receive.receive(|_| {}).await });
            let ask = || {
                let op = Op::Get { key: Key::new(&b"0000000000000042"[..], KEY_HASH) };
                mailbox.ask(ThreadId(1), ShardId(1), op, None).expect("the mailbox has room")
            };
            ask().await.expect("the message was answered");
            let begin = Instant::now();
            let mut left = count;
            while 0 < left {
                let asked: Vec<_> = (0..window.min(left)).map(|_| ask()).collect();
                for answer in asked {
                    assert_eq!(answer.await.expect("the message was answered"), Outcome::Missing);
                    left -= 1;
                }
            }
            let _ = sender.send(begin.elapsed());
            receiving.abort();
        },
        asking,
    );
    answerer.join().expect("the answerer ends");
    receiver.blocking_recv().expect("the time was sent")
}

/// Runs a task with a mailbox, on a ring of the calling thread.
fn on_ring<F: Future<Output = ()> + 'static>(
    task: impl FnOnce(Rc<Mailbox>) -> F,
    ends: ringkeep::shard::mailbox::Ends,
) {
    let (_, runtime) = ringkeep::ring::probe().expect("this host has io_uring");
    runtime.block_on(async {
        let mailbox = Rc::new(Mailbox::new(ends));
        let sender = mailbox.clone();
        let sending = tokio_uring::spawn(async move { sender.send().await });
        task(mailbox).await;
        sending.abort();
    });
}

criterion_group!(benches, record, memtable, block, bloom, merge, http, mailbox);
criterion_main!(benches);
