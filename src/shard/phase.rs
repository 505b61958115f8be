//! What the server announces to its threads, and what they tell the server.

use super::handler::StopLines;
use crate::db::Recovered;
use crate::error::Error;

/// Where the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Engines are being opened.
    Opening,
    /// Requests are served.
    Running,
    /// Requests in flight are answered; no others are.
    Draining,
    /// What still waits for its client is cut off.
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
    /// Its engines cannot be opened, or it cannot run at all.
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
