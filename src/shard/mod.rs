//! Threads and their shards: each thread has a ring, a listener, connections, and the engines of its shards.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`thread`] | the life of a thread, from the opening of its shards to their close |
//! | [`listener`] | where connections come from, and the place for other transports |
//! | [`accept`] | accepts connections and spreads them over the threads |
//! | [`handler`] | carries out operations, here or on another thread |
//! | [`mailbox`], [`router`] | messages between threads, and which thread has a key |
//! | [`live`] | what may change while the server runs |
//! | [`phase`] | what the server announces to its threads, and what they tell it |
//! | [`background`] | the background work of an engine |
//! | [`inquiry`] | questions between threads that are not operations |
//! | [`metrics`], `stats` | the pages of figures, for Prometheus and for people |
//! | [`lending`] | files on loan to backups |
//! | [`space`] | what threads know of the space on the disk |
//!
//! Threads share nothing but messages, a phase to follow, and a few counters. A task that owns a read, a write or an accept
//! is never dropped: it is told to end, and awaited.

pub mod accept;
pub mod addresses;
pub mod background;
pub mod commits;
pub mod handler;
pub mod health;
pub mod inquiry;
pub mod lending;
pub mod listener;
pub mod live;
pub mod mailbox;
pub mod metrics;
pub mod phase;
pub mod router;
mod socket;
pub mod space;
mod stats;
pub mod thread;

use crate::db::Db;
use crate::storage::uring::UringStorage;

/// The engine on the ring.
pub type Engine = Db<UringStorage>;
