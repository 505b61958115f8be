//! The token file and the TLS certificate: read at start, and again on SIGHUP.
//!
//! A file that cannot be read or has a mistake ends a start. On SIGHUP it changes nothing, and the log says why. Connections
//! that are open keep their certificate; their next request needs a token of the new file. The files are read through std,
//! by the main thread, which serves no request.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::sync::watch;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::http::access::{Policy, Tokens};
use crate::shard::thread::Security;
use crate::tls::Settings;

/// Longest token file.
const FILE_BYTES_MAX: u64 = 128 << 10;

/// Who may do what and how connections are encrypted, and the files that say so.
pub(super) struct Access {
    config: Arc<Config>,
    security: watch::Sender<Arc<Security>>,
}

impl Access {
    /// Reads the files that there are.
    ///
    /// # Errors
    /// `Configuration`, with the path.
    pub(super) fn open(config: &Arc<Config>) -> Result<Self> {
        let security = read(config)?;
        if let Some(tokens) = &security.policy.tokens {
            tracing::info!(?tokens, "requests need a token");
        }
        Ok(Self { config: config.clone(), security: watch::Sender::new(Arc::new(security)) })
    }

    /// The rules, now and after each change.
    pub(super) fn follow(&self) -> watch::Receiver<Arc<Security>> {
        self.security.subscribe()
    }

    /// Reads the files again whenever the signal comes. Never returns.
    pub(super) async fn run(self, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            match read(&self.config) {
                Ok(security) => {
                    let tokens = &security.policy.tokens;
                    let certificate = security.tls.is_some();
                    tracing::info!(?tokens, certificate, "read the token file and the TLS certificate again");
                    self.security.send_replace(Arc::new(security));
                }
                Err(error) => tracing::error!(%error, "tokens and TLS certificate stay as they were"),
            }
        }
    }
}

fn read(config: &Config) -> Result<Security> {
    let tokens = config.token_file.as_deref().map(read_tokens).transpose()?;
    let policy = Policy { tokens, hosts: config.allowed_hosts.clone(), shutdown: config.shutdown };
    let tls = config.tls.as_ref().map(|files| {
        open_secret("TLS key", &files.key)?;
        Settings::read(&files.certificate, &files.key, files.client_ca.as_deref())
    });
    Ok(Security { policy: Arc::new(policy), tls: tls.transpose()? })
}

fn wrong(what: &str, path: &Path, why: impl Display) -> Error {
    Error::new(ErrorKind::Configuration, format!("the {what} {}: {why}", path.display()))
}

/// Opens a file with a secret, which only its owner, and perhaps a group, may read.
fn open_secret(what: &str, path: &Path) -> Result<File> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.permissions().mode(), file)));
    let (mode, file) = opened.map_err(|error| wrong(what, path, error))?;
    if mode & 0o027 != 0 {
        let why = format!("its mode {:o} lets others read or change it; use chmod 600", mode & 0o777);
        return Err(wrong(what, path, why));
    }
    Ok(file)
}

fn read_tokens(path: &Path) -> Result<Tokens> {
    let what = "token file";
    let mut text = String::new();
    let read = open_secret(what, path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    if FILE_BYTES_MAX < read.map_err(|error| wrong(what, path, error))? as u64 {
        return Err(wrong(what, path, format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Tokens::parse(&text).map_err(|why| wrong(what, path, why))
}
