//! What the server announces to its threads, and what they tell the server.

use super::handler::StopLines;
use crate::db::Recovered;
use crate::error::Error;

/// The phase of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Engines are being opened.
    Opening,
    /// Requests are served.
    Running,
    /// Requests are served, but the server does not count as ready any more: load balancers are to look elsewhere.
    Leaving,
    /// No connection is accepted any more. Requests in flight are answered.
    Draining,
    /// Connections that wait for their clients are cut off.
    Aborting,
    /// Engines are being closed.
    Syncing,
    /// Everything is durable.
    Closed,
}

/// What a thread tells the server.
pub enum Event {
    /// Its engines are open.
    Opened(Recovered),
    /// The thread has failed: it cannot run, or its engines cannot be opened or closed.
    Failed(Error),
    /// It accepts connections.
    Listening,
    /// A client asks for the stop.
    Stop(StopLines),
    /// No request is in flight.
    Drained,
    /// A step of the stop.
    Step(String),
    /// Its engines are closed.
    Closed,
    /// The WAL or the manifest is lost: the process has to end (P6).
    Fatal(Error),
}
