//! Designs compared with their rivals. These benches decided between them, and can be repeated on another machine. The
//! modules quote their results.
//!
//! | question | bench |
//! | --- | --- |
//! | memtable: hash index and sorting at the flush, or an ordered map? | [`memtables`] |
//! | lookups of pipelined requests: one by one, or prefetched together? | [`lookups`] |
//! | filter: Bloom, or a binary fuse? | [`filters`] |
//! | how large is a data block? | [`block_sizes`] |
//! | commit: write and fdatasync, or a write with O_DSYNC? | [`commits`] |
//! | sockets: `tokio_uring::net`, or `tokio::net`? | [`sockets`] |
//!
//! Usage: `cargo bench --bench designs [PART OF A NAME]`. The commits are measured on the device of `target`; set
//! `RINGKEEP_BENCH_DIR` to a folder on another device to measure that device.

#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]

mod common;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Bound;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{MEMTABLE_ENTRIES, key, shuffled_key, value};
use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_skiplist::SkipMap;
use ringkeep::identity::{FileKind, Identity};
use ringkeep::key::{Entry, EntryKind, FileNumber, Key, KeyHash, SeqNo, ShardId, filter_hash};
use ringkeep::memtable::Memtable;
use ringkeep::memtable::order::{MemtableSource, Wants};
use ringkeep::random::hash;
use ringkeep::source::{Source, Step};
use ringkeep::sst::block::{BlockBuilder, BlockKind, Frame, put_frame, seek};
use ringkeep::sst::filter;
use ringkeep::storage::{AlignedBuf, BLOCK_BYTES};
use xorf::{BinaryFuse8, BinaryFuse16, Filter};

const KEY_HASH: KeyHash = KeyHash::with_seed(1);

/// A memtable, or a design that could replace it.
trait Ordered {
    fn empty() -> Self;
    fn insert(&mut self, key: &[u8], seqno: u64, value: &[u8]);
    fn contains(&self, key: &[u8]) -> bool;
    /// Visits each key and value in order, as a flush does. Returns the sum of what `look` saw.
    fn walk(&self) -> usize;
}

/// Touches an entry at both ends: the last byte of the key and the first byte of the value.
fn look(key: &[u8], value: &[u8]) -> usize {
    usize::from(key[key.len() - 1]) + usize::from(value[0])
}

impl Ordered for Rc<Memtable> {
    fn empty() -> Self {
        Self::new(Memtable::new(KEY_HASH))
    }

    fn insert(&mut self, key: &[u8], seqno: u64, value: &[u8]) {
        Memtable::insert(self, Key::new(key, KEY_HASH), SeqNo(seqno), EntryKind::VALUE, value);
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.get(KEY_HASH.of(key), key, SeqNo(u64::MAX), |_| ()).is_some()
    }

    fn walk(&self) -> usize {
        let mut source = MemtableSource::new(self.clone(), SeqNo(u64::MAX), Wants::SortedRuns);
        let mut sum = 0;
        loop {
            match source.step().expect("memory does not fail") {
                Step::Entry => sum += source.read(|entry| look(entry.key, entry.value)),
                Step::Need => futures_executor::block_on(source.supply()).expect("memory does not fail"),
                Step::Pause => {}
                Step::End => return sum,
            }
        }
    }
}

/// A key and its SeqNo, the newest first.
type VersionedKey = (Box<[u8]>, Reverse<u64>);

fn newest(key: &[u8]) -> VersionedKey {
    (key.into(), Reverse(u64::MAX))
}

impl Ordered for BTreeMap<VersionedKey, Box<[u8]>> {
    fn empty() -> Self {
        Self::new()
    }

    fn insert(&mut self, key: &[u8], seqno: u64, value: &[u8]) {
        self.insert((key.into(), Reverse(seqno)), value.into());
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.range(newest(key)..).next().is_some_and(|((found, _), _)| **found == *key)
    }

    fn walk(&self) -> usize {
        self.iter().map(|((key, _), value)| look(key, value)).sum()
    }
}

impl Ordered for SkipMap<VersionedKey, Box<[u8]>> {
    fn empty() -> Self {
        Self::new()
    }

    fn insert(&mut self, key: &[u8], seqno: u64, value: &[u8]) {
        SkipMap::insert(self, (key.into(), Reverse(seqno)), value.into());
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.lower_bound(Bound::Included(&newest(key))).is_some_and(|found| *found.key().0 == *key)
    }

    fn walk(&self) -> usize {
        self.iter().map(|entry| look(&entry.key().0, entry.value())).sum()
    }
}

/// Inserts, lookups, and a walk in key order, in a memtable of 64 MiB that was filled in random order.
fn memtables(criterion: &mut Criterion) {
    let keys: Vec<Vec<u8>> = (0..MEMTABLE_ENTRIES).map(shuffled_key).collect();
    let mut group = criterion.benchmark_group("memtables");
    group.sample_size(10).throughput(Throughput::Elements(MEMTABLE_ENTRIES));
    memtable::<Rc<Memtable>>(&mut group, "hash_index", &keys);
    memtable::<BTreeMap<_, _>>(&mut group, "btree", &keys);
    memtable::<SkipMap<_, _>>(&mut group, "skip_list", &keys);
}

fn memtable<T: Ordered>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, keys: &[Vec<u8>]) {
    let value = value(1);
    let fill = || {
        let mut map = T::empty();
        for (key, seqno) in keys.iter().zip(1..) {
            map.insert(key, seqno, &value);
        }
        map
    };
    group.bench_function(format!("insert/{name}"), |bencher| {
        bencher.iter_with_large_drop(|| {
            let map = fill();
            assert!(map.contains(&keys[0]));
            map
        });
    });
    let map = fill();
    // Neither in the order of the inserts nor in key order, so each lookup goes where no lookup has been before.
    let mut asked = keys.to_vec();
    asked.sort_by_key(|key| filter_hash(key));
    group.bench_function(format!("get/{name}"), |bencher| {
        bencher.iter(|| assert!(asked.iter().all(|key| map.contains(key))));
    });
    let seen = keys.iter().map(|key| look(key, &value)).sum::<usize>();
    group.bench_function(format!("walk/{name}"), |bencher| {
        bencher.iter(|| assert_eq!(map.walk(), seen));
    });
}

/// Lookups of a batch of keys, as pipelined requests bring them: one after the other, or after a prefetch of all of
/// them.
fn lookups(criterion: &mut Criterion) {
    const ENTRIES: u64 = 1_000_000;
    const BATCH: usize = 16;
    let memtable = Memtable::new(KEY_HASH);
    let value = value(1);
    for number in 0..ENTRIES {
        let key = key(number);
        memtable.insert(Key::new(&key[..], KEY_HASH), SeqNo(number + 1), EntryKind::VALUE, &value);
    }
    let batches: Vec<Vec<(u64, Vec<u8>)>> = (0..ENTRIES / BATCH as u64)
        .map(|batch| {
            let keys = (0..BATCH as u64).map(|index| key(hash(batch, index) % ENTRIES));
            keys.map(|key| (KEY_HASH.of(&key), key)).collect()
        })
        .collect();
    let mut group = criterion.benchmark_group("lookups");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, prefetches) in [("one_by_one", false), ("prefetched", true)] {
        let mut batches = batches.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let batch = batches.next().expect("the batches repeat for ever");
                if prefetches {
                    let mut hashes = [0; BATCH];
                    hashes.iter_mut().zip(batch).for_each(|(to, (hash, _))| *to = *hash);
                    memtable.prefetch(&hashes, true);
                }
                for (hash, key) in batch {
                    assert!(memtable.get(*hash, key, SeqNo(u64::MAX), |_| ()).is_some());
                }
            });
        });
    }
}

/// Build time, probe time, size and error rate of the filter of a partition of 4,000 keys.
fn filters(criterion: &mut Criterion) {
    const COUNT: u64 = 4000;
    let hashes: Vec<u64> = (0..COUNT).map(|number| filter_hash(&key(number))).collect();
    let absent: Vec<u64> = (COUNT..101 * COUNT).map(|number| filter_hash(&key(number))).collect();
    let mut group = criterion.benchmark_group("filters");
    group.throughput(Throughput::Elements(COUNT));
    group.bench_function("build/bloom", |bencher| {
        bencher.iter(|| assert!(!filter::build(black_box(&hashes)).is_empty()));
    });
    group.bench_function("build/binary_fuse_8", |bencher| {
        bencher.iter(|| assert!(BinaryFuse8::try_from(black_box(&hashes)).is_ok()));
    });
    group.bench_function("build/binary_fuse_16", |bencher| {
        bencher.iter(|| assert!(BinaryFuse16::try_from(black_box(&hashes)).is_ok()));
    });
    let bloom = filter::build(&hashes);
    let fuse_8 = BinaryFuse8::try_from(&hashes).expect("the hashes are distinct");
    let fuse_16 = BinaryFuse16::try_from(&hashes).expect("the hashes are distinct");
    let report = |name: &str, bytes: usize, wrong: usize| {
        let share = wrong as f64 / absent.len() as f64;
        println!(
            "{name}: {:.1} bits per key, {:.3} % of absent keys pass",
            bytes as f64 * 8.0 / COUNT as f64,
            share * 100.0
        );
        assert!(share < 0.02);
    };
    let passes = |hash: &u64| filter::may_contain(&bloom, *hash) == Ok(true);
    report("bloom", bloom.len(), absent.iter().filter(|hash| passes(hash)).count());
    report(
        "binary_fuse_8",
        fuse_8.fingerprints.len(),
        absent.iter().filter(|hash| fuse_8.contains(hash)).count(),
    );
    report(
        "binary_fuse_16",
        2 * fuse_16.fingerprints.len(),
        absent.iter().filter(|hash| fuse_16.contains(hash)).count(),
    );
    let absent = &absent[..COUNT as usize];
    group.bench_function("probe_absent/bloom", |bencher| {
        bencher.iter(|| assert!(absent.iter().filter(|hash| passes(hash)).count() < 100));
    });
    group.bench_function("probe_absent/binary_fuse_8", |bencher| {
        bencher.iter(|| assert!(absent.iter().filter(|hash| fuse_8.contains(hash)).count() < 100));
    });
    group.bench_function("probe_present/bloom", |bencher| {
        bencher.iter(|| assert!(hashes.iter().all(passes)));
    });
    group.bench_function("probe_present/binary_fuse_8", |bencher| {
        bencher.iter(|| assert!(hashes.iter().all(|hash| fuse_8.contains(hash))));
    });
}

/// What a lookup pays for a block that was read (checksum, decompression, search), by pages of the stored block.
fn block_sizes(criterion: &mut Criterion) {
    const IDENTITY: Identity =
        Identity { store_id: 7, shard: ShardId(0), kind: FileKind::Sst, file: FileNumber(3) };
    let mut group = criterion.benchmark_group("block_sizes");
    for pages in [1, 2, 4, 8] {
        let mut builder = BlockBuilder::default();
        let mut keys = Vec::new();
        while builder.bytes() < pages * BLOCK_BYTES * 3 / 2 {
            let key = key(keys.len() as u64 * 7);
            let (value, seqno) = (value(keys.len() as u64), SeqNo(keys.len() as u64 + 1));
            builder.add(&Entry { key: &key, seqno, kind: EntryKind::VALUE, value: &value });
            keys.push(key);
        }
        let mut frame = AlignedBuf::with_capacity(1 << 16);
        put_frame(&mut frame, BlockKind::Data, builder.finish(), IDENTITY, 4096);
        println!("wanted {pages} pages: {} entries in {} bytes", keys.len(), frame.len());
        let mut next = 0;
        group.bench_function(format!("read_and_seek/{pages}_pages"), |bencher| {
            bencher.iter_batched(
                || AlignedBuf::from(&frame[..]),
                |frame| {
                    let block = Frame::verify(frame, IDENTITY, 4096)
                        .and_then(Frame::unpack)
                        .expect("the frame is sound");
                    next = (next + 1) % keys.len();
                    let found = seek(&block.payload, &keys[next]).expect("the block is sound");
                    assert!(found.is_some_and(|located| located.exact));
                },
                BatchSize::SmallInput,
            );
        });
    }
}

/// Commits of one block in place, in a file that was written before, as in the WAL.
fn commits(criterion: &mut Criterion) {
    let folder =
        std::env::var_os("RINGKEEP_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let path = folder.join("commits.tmp");
    let empty = AlignedBuf::zeroed(BLOCK_BYTES);
    let block = AlignedBuf::from(&[7; BLOCK_BYTES][..]);
    let open = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
        options.open(&path).expect("the folder can be written to")
    };
    let plain = open(libc::O_DIRECT);
    let synced = open(libc::O_DIRECT | libc::O_DSYNC);
    for offset in 0..1024 {
        plain.write_all_at(&empty, offset * BLOCK_BYTES as u64).expect("the device has room");
    }
    plain.sync_all().expect("the file can be synced");
    let mut group = criterion.benchmark_group("commits");
    let mut written = 0;
    let mut offset = || {
        written += 1;
        (written - 1) % 1024 * BLOCK_BYTES as u64
    };
    group.bench_function("write_then_fdatasync", |bencher| {
        bencher.iter(|| {
            plain.write_all_at(&block, offset()).expect("the block is written");
            plain.sync_data().expect("the block is synced");
        });
    });
    group.bench_function("write_with_o_dsync", |bencher| {
        bencher.iter(|| synced.write_all_at(&block, offset()).expect("the block is written and synced"));
    });
    group.finish();
    let bytes = std::fs::read(&path).expect("the file can be read");
    let (full, rest) = bytes.split_at(written.min(1024) as usize * BLOCK_BYTES);
    assert!(bytes.len() == 1024 * BLOCK_BYTES && full.iter().all(|&byte| byte == 7));
    assert!(rest.iter().all(|&byte| byte == 0));
    std::fs::remove_file(&path).expect("the file can be removed");
}

/// Requests on 64 connections, each answered with a short reply by one thread.
fn sockets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sockets");
    group.sample_size(10).throughput(Throughput::Elements(1));
    let uring = serve(|listener, ready| {
        let (_, runtime) = ringkeep::ring::probe().expect("this host has io_uring");
        runtime.block_on(async {
            let listener = tokio_uring::net::TcpListener::from_std(listener);
            ready();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection comes");
                stream.set_nodelay(true).expect("the stream is a TCP socket");
                tokio_uring::spawn(async move {
                    let mut buffer = vec![0; 4096];
                    loop {
                        let (result, back) = stream.read(buffer).await;
                        buffer = back;
                        if !matches!(result, Ok(1..)) || stream.write_all(REPLY).await.0.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
    let epoll = serve(|listener, ready| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("this host has epoll");
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            listener.set_nonblocking(true).expect("the listener is a socket");
            let listener = tokio::net::TcpListener::from_std(listener).expect("the socket listens");
            ready();
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection comes");
                stream.set_nodelay(true).expect("the stream is a TCP socket");
                tokio::task::spawn_local(async move {
                    let mut buffer = vec![0; 4096];
                    while matches!(stream.read(&mut buffer).await, Ok(1..)) {
                        if stream.write_all(REPLY).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
    for (name, server) in [("tokio_uring", uring), ("tokio", epoll)] {
        group.bench_function(name, |bencher| bencher.iter_custom(|count| ask(server, count)));
    }
}

const REQUEST: &[u8] = b"GET /get?key=0000000000000042 HTTP/1.1\r\nhost: localhost\r\n\r\n";
const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nOK\n";
const CONNECTIONS: usize = 64;

/// Starts a server on a thread that ends with the process.
fn serve(server: impl FnOnce(std::net::TcpListener, &dyn Fn()) + Send + 'static) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a port");
    let address = listener.local_addr().expect("the listener is bound");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || server(listener, &|| sender.send(()).expect("the bench waits")));
    receiver.recv().expect("the server starts");
    address
}

/// Sends one request on each connection, then reads one reply from each, until `count` requests have been answered.
fn ask(server: SocketAddr, count: u64) -> Duration {
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            let stream = TcpStream::connect(server).expect("the server listens");
            stream.set_nodelay(true).expect("the stream is a TCP socket");
            stream
        })
        .collect();
    let mut buffer = [0; REPLY.len()];
    let begin = Instant::now();
    let mut left = usize::try_from(count).expect("criterion asks for fewer requests");
    while 0 < left {
        let now = left.min(CONNECTIONS);
        for stream in &mut streams[..now] {
            stream.write_all(REQUEST).expect("the server reads");
        }
        for stream in &mut streams[..now] {
            stream.read_exact(&mut buffer).expect("the server replies");
            assert_eq!(buffer, REPLY);
        }
        left -= now;
    }
    begin.elapsed()
}

criterion_group!(benches, memtables, lookups, filters, block_sizes, commits, sockets);
criterion_main!(benches);
