//! What may change while the server runs: `server` reads it at the start and on SIGHUP, and every thread follows it.

use std::sync::Arc;
use std::time::Duration;

use crate::config::AccessLog;
use crate::http::access::Policy;
use crate::http::peers::Times;
use crate::tls::Settings;

/// What an operator may change while the server runs.
pub struct Live {
    /// Who may do what.
    pub policy: Arc<Policy>,
    /// The certificate, if there is one.
    pub tls: Option<Settings>,
    /// How long connections may take.
    pub times: Times,
    /// How long a stop waits for requests in flight.
    pub drain_timeout: Duration,
    /// How long a stop serves on although it is not ready any more.
    pub shutdown_delay: Duration,
    /// Most connections of all threads together.
    pub connections_max: usize,
    /// Most connections of one address.
    pub connections_per_address_max: Option<usize>,
    /// Which requests are logged.
    pub access_log: AccessLog,
}
