//! SIGHUP: the settings, the tokens and the certificate are read again.
//!
//! Owns: which settings may change while the server runs ([`LIVE`]), and what is said of it. All changes are made, or none:
//! if anything that was read is wrong, the server goes on as it was, and the log has one line that says why.
//!
//! What runs is checked, not what was read: a file that gives up the tokens and, with a restart, would no longer listen on a
//! public address is refused as long as the server listens there.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::sync::watch;

use super::access::{read, warn};
use super::listen::check_exposure;
use crate::config::{Config, Listen, LogLevel};
use crate::error::{Error, ErrorKind, Result};
use crate::shard::live::Live;

/// What a user has chosen.
pub struct Settings {
    /// What the server does.
    pub config: Config,
    /// Every setting by its name, with its value as people see it.
    pub shown: BTreeMap<String, String>,
}

/// Who has started the server, and decides how it is to be.
pub trait Operator {
    /// Requests can be answered from now on, at these places.
    fn announce(&self, places: &[Listen]);

    /// Reads the settings again.
    ///
    /// # Errors
    /// `Configuration`, with the place of the mistake; `Permission`.
    fn read_settings(&self) -> Result<Settings>;

    /// Changes what is logged.
    fn set_log_level(&self, level: LogLevel);
}

/// A setting, and how the second configuration changes the first one.
type Change = (&'static str, fn(&mut Config, &Config));

/// The settings that may change while the server runs. What is not here needs a restart: sockets are bound, and memory is
/// divided, once.
const LIVE: &[Change] = &[
    ("log", |to, from| to.log = from.log),
    ("access-log", |to, from| to.access_log = from.access_log),
    ("token-file", |to, from| to.token_file.clone_from(&from.token_file)),
    ("insecure", |to, from| to.insecure = from.insecure),
    ("allowed-hosts", |to, from| to.allowed_hosts.clone_from(&from.allowed_hosts)),
    ("shutdown", |to, from| to.shutdown = from.shutdown),
    ("tls-cert", change_tls),
    ("tls-key", change_tls),
    ("tls-client-ca", change_tls),
    ("max-connections", |to, from| to.connections_max = from.connections_max),
    ("max-connections-per-address", |to, from| {
        to.connections_per_address_max = from.connections_per_address_max;
    }),
    ("idle-timeout", |to, from| to.idle_timeout = from.idle_timeout),
    ("head-timeout", |to, from| to.head_timeout = from.head_timeout),
    ("body-timeout", |to, from| to.body_timeout = from.body_timeout),
    ("handshake-timeout", |to, from| to.handshake_timeout = from.handshake_timeout),
    ("reply-timeout", |to, from| to.reply_timeout = from.reply_timeout),
    ("drain-timeout", |to, from| to.drain_timeout = from.drain_timeout),
    ("shutdown-delay", |to, from| to.shutdown_delay = from.shutdown_delay),
];

/// Sockets are encrypted or not from their beginning.
fn change_tls(to: &mut Config, from: &Config) {
    if to.tls.is_some() && from.tls.is_some() {
        to.tls.clone_from(&from.tls);
    }
}

/// The settings of a running server.
pub(super) struct Reload {
    operator: Rc<dyn Operator>,
    config: Config,
    shown: BTreeMap<String, String>,
    /// Where the server listens.
    places: Vec<Listen>,
    /// Memory and descriptors are divided among so many connections.
    connections_max: usize,
    live: watch::Sender<Arc<Live>>,
}

impl Reload {
    /// The settings as they are at the start: `config` has what the host allows of `settings`.
    pub(super) fn new(
        operator: Rc<dyn Operator>,
        config: &Config,
        shown: BTreeMap<String, String>,
        places: &[Listen],
        live: Live,
    ) -> Self {
        let live = Live { connections_max: config.connections_max, ..live };
        Self {
            operator,
            config: config.clone(),
            shown,
            places: places.to_vec(),
            connections_max: config.connections_max,
            live: watch::Sender::new(Arc::new(live)),
        }
    }

    /// What may change, now and after each change.
    pub(super) fn follow(&self) -> watch::Receiver<Arc<Live>> {
        self.live.subscribe()
    }

    /// Reads everything again whenever the signal comes. Never returns.
    pub(super) async fn run(mut self, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            if let Err(error) = self.read_again() {
                tracing::error!("SIGHUP: {error}; nothing was changed");
            }
        }
    }

    fn read_again(&mut self) -> Result<()> {
        let Settings { config: found, shown } = self.operator.read_settings()?;
        found.validate()?;
        let mut next = self.config.clone();
        for (_, change) in LIVE {
            change(&mut next, &found);
        }
        next.connections_max = next.connections_max.min(self.connections_max);
        for place in &self.places {
            check_exposure(&next, place)?;
        }
        self.check_guards(&next)?;
        next.validate()?;
        let live = read(&next)?;
        self.operator.set_log_level(next.log);
        self.tell(&live, &found, shown);
        self.config = next;
        self.live.send_replace(Arc::new(live));
        Ok(())
    }

    /// Refuses to let everyone in because a file has become shorter: an editor may just be writing it.
    fn check_guards(&self, next: &Config) -> Result<()> {
        let asks = |config: &Config| {
            let client_ca = config.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
            [("token-file", config.token_file.is_some()), ("tls-client-ca", client_ca)]
        };
        for ((name, before), (_, after)) in asks(&self.config).into_iter().zip(asks(next)) {
            if before && !after && !next.insecure {
                let message = format!(
                    "there is no {name} any more, so everyone who can connect could do everything; if that is meant, set \
                     insecure, or restart the server"
                );
                return Err(Error::new(ErrorKind::Configuration, message));
            }
        }
        Ok(())
    }

    /// Logs what has changed, and what would.
    fn tell(&mut self, live: &Live, found: &Config, shown: BTreeMap<String, String>) {
        let tokens = live.policy.tokens.as_ref().map(ToString::to_string);
        let certificate = live.tls.is_some();
        tracing::info!(tokens, certificate, "SIGHUP: settings, tokens and certificate were read again");
        warn(live);
        if let (Some(before), Some(after)) = (&self.live.borrow().policy.tokens, &live.policy.tokens) {
            before.changes(after).iter().for_each(|change| tracing::info!("token {change}"));
        }
        let mut needing_restart = Vec::new();
        for (name, value) in shown {
            let before = self.shown.get(&name);
            if before == Some(&value) {
                continue;
            }
            let switches_tls = name.starts_with("tls-") && self.config.tls.is_some() != found.tls.is_some();
            if name == "shards" {
                tracing::warn!("shards: the setting is for new stores only");
                continue;
            }
            if !LIVE.iter().any(|(live, _)| *live == name) || switches_tls {
                needing_restart.push(name);
                continue;
            }
            let before = before.map_or("none", String::as_str);
            let most = self.connections_max;
            if name == "max-connections" && most < found.connections_max {
                tracing::warn!(
                    "{name}: {before} → {most}; {value} takes a restart, which divides the memory anew"
                );
                self.shown.insert(name, most.to_string());
            } else {
                tracing::info!("{name}: {before} → {value}");
                self.shown.insert(name, value);
            }
        }
        if !needing_restart.is_empty() {
            tracing::warn!("changed, but in force only after a restart: {}", needing_restart.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::TlsFiles;
    use crate::config::tests::config;

    #[test]
    fn a_limit_changes_at_once_and_what_was_divided_or_bound_does_not() {
        let mut running = config();
        let found = Config {
            connections_max: 5,
            head_timeout: Duration::from_secs(3),
            memory_bytes: 1,
            value_bytes_max: 1,
            tls: Some(TlsFiles { certificate: "c".into(), key: "k".into(), client_ca: None }),
            ..config()
        };
        for (_, change) in LIVE {
            change(&mut running, &found);
        }
        assert_eq!((running.connections_max, running.head_timeout.as_secs()), (5, 3));
        assert_eq!(running.memory_bytes, config().memory_bytes);
        assert_eq!(running.value_bytes_max, config().value_bytes_max);
        assert_eq!(running.tls, None, "its sockets are not encrypted");
    }
}
