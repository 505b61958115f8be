//! ringkeep: a durable key-value server for Linux. One binary, one thread per core, io_uring for every byte that
//! moves at run time, an LSM tree per shard, HTTP/1.1 outside. A 200 to a write means that the write is on stable storage.
//! The README says what users can rely on; this page is for readers of the code.
//!
//! # Threads
//!
//! ```text
//!  client ──► any thread (SO_REUSEPORT)         shard = slot map[xxh3(hash tag) mod 16,384]
//!             │ bytes → operation (pure)        a shard belongs to one thread for life
//!             ├─ own shard ────────────► Db     Cell and RefCell, no locks, no atomics
//!             └─ other ──► message ────► Db     bounded ring per pair of threads, one wake-up per turn
//!             ◄─ replies in request order
//!  per shard: commit (one sync in flight, the next group forms meanwhile) · flush · prepare a WAL · compact · remove
//!  main thread: ring probed, directory locked, signals, phases of the stop, exit status
//! ```
//!
//! # The life of a set
//!
//! [`http::connection`] parses every complete request of one read and hands their operations ([`op::Op`]) to
//! [`shard::handler`], which finds the shard by the slot of the key. The engine ([`db`]) gives the write the next SeqNo and
//! puts it into the forming commit group and into the memtable, where no reader sees it yet. The connection gets a ticket.
//! The commit task takes the group as soon as the group before it is durable, writes it with one O_DIRECT write, syncs,
//! makes its SeqNos visible and answers all tickets ([`db::commit`]). The connection writes the replies, in order.
//!
//! # The life of a get
//!
//! Active memtable, frozen memtables, cached values, L0 from the newest file, then one file per level: [`db::read`] says
//! why the first entry found is the right one. In a file: top index → filter → index → data block, each from the cache or
//! by one O_DIRECT read. A get that memory can answer needs no task and no copy of the value: the engine lends the
//! value to the connection. When several gets arrive together, what memory holds of their keys is fetched together,
//! before the first get is answered ([`hash_index`]).
//!
//! # Order
//!
//! Sets pay nothing for order, because memtables are sorted only on demand. Flush, compaction, scans and `ringkeep
//! check` read in key order. They read memtables and sorted files through one kind of state machine, a
//! [`source::Source`].
//!
//! # Invariants
//!
//! Each module numbers its own invariants (`W1`, `D3`, …), under a letter that no other module uses. Asserts quote them, and
//! each has a test that begins with its label. The invariants of the whole are the guarantees of the README:
//!
//! - **P1** A write is acknowledged only after its group was written in full and synced ([`db::commit`]).
//! - **P2** Reads see only durable writes (D1).
//! - **P3** Per key, operations are linearizable: one thread owns the key.
//! - **P4** A crash leaves every acknowledged write and a prefix of the others ([`wal`], W1 to W3).
//! - **P5** Every byte on disk is under a checksum that covers its store, shard, file and offset ([`record`], [`sst`]).
//! - **P6** A failed write or sync of WAL or manifest is final (D4; [`manifest`], V3).
//! - **P7** File sync → directory sync → manifest edit → release of the files that it replaces ([`manifest`]).
//! - **P8** Everything has a bound, checked before memory is taken ([`config`]).
//! - **P9** No request waits for background work without limit ([`db::pressure`]).
//!
//! `db` spawns nothing, reads no clock and knows no runtime; `http` knows no engine. Pure modules (`record` except
//! `record::file` and `record::replay`, `hash_index`, `memtable`, `source`, `sst::block`, `sst::filter`,
//! `manifest::version`, `compaction::picker`, `db::pressure`, `http` except `connection`, `followed`, `peers` and
//! `stream`) do no I/O. So a seeded test can drive production code on a simulated disk ([`storage::sim`]).
//!
//! # Code map, in reading order
//!
//! Each layer uses only the ones above it in this list; `tests/tidy.rs` keeps that true.
//!
//! | layer | modules |
//! | --- | --- |
//! | words that everything shares | [`error`], [`random`], [`codec`], [`escape`], [`key`], [`op`], [`config`], [`file_name`], [`identity`], [`arena`], [`hash_index`], [`memory`], [`host`], [`one_shot`], [`tally`], [`tls`] |
//! | files, the ring, entries in order | [`storage`], [`ring`], [`source`] |
//! | bytes with a meaning | [`memtable`], [`record`] |
//! | files with a meaning | [`sst`], [`wal`] |
//! | what a shard and a store consist of | [`cache`], [`compaction`], [`manifest`], [`presence`], [`store`], [`data_dir`] |
//! | the engine of a shard | [`db`]; and [`check`], [`inspect`] and [`backup`], which read the same files from outside |
//! | clients of the server, which share only the first two layers with it | [`load`], [`client`] |
//! | the wire, which uses the first layer only | [`http`] |
//! | threads, the process, the command line | [`shard`], [`server`], [`cli`] |

pub mod error;
pub mod random;
pub mod codec;
pub mod escape;
pub mod key;
pub mod op;
pub mod config;
pub mod file_name;
pub mod identity;
pub mod arena;
pub mod hash_index;
pub mod memory;
pub mod host;
pub mod one_shot;
pub mod tally;
pub mod tls;
pub mod storage;
pub mod ring;
pub mod source;
pub mod memtable;
pub mod record;
pub mod sst;
pub mod wal;
pub mod cache;
pub mod compaction;
pub mod manifest;
pub mod presence;
pub mod store;
pub mod data_dir;
pub mod db;
pub mod check;
pub mod backup;
pub mod inspect;
pub mod load;
pub mod client;
pub mod http;
pub mod shard;
pub mod server;
pub mod cli;
