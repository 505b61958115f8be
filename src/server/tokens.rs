//! The token file: read at start, and again on SIGHUP.
//!
//! A file that cannot be read or has a mistake ends a start. On SIGHUP it changes nothing, and the log says why. The file is
//! read through std, by the main thread, which serves no request.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tokio::sync::watch;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::http::access::{Policy, Tokens};

/// Longest token file.
const FILE_BYTES_MAX: u64 = 128 << 10;

/// Who may do what, and the file that says so.
pub(super) struct Access {
    file: Option<PathBuf>,
    policy: watch::Sender<Arc<Policy>>,
}

impl Access {
    /// Reads the token file, if there is one.
    ///
    /// # Errors
    /// `Configuration`, with the path.
    pub(super) fn open(config: &Config) -> Result<Self> {
        let tokens = config.token_file.as_deref().map(read).transpose()?;
        if let Some(tokens) = &tokens {
            tracing::info!(?tokens, "requests need a token");
        }
        let policy = Policy { tokens, hosts: config.allowed_hosts.clone(), shutdown: config.shutdown };
        Ok(Self { file: config.token_file.clone(), policy: watch::Sender::new(Arc::new(policy)) })
    }

    /// The rules, now and after each change.
    pub(super) fn follow(&self) -> watch::Receiver<Arc<Policy>> {
        self.policy.subscribe()
    }

    /// Reads the file again whenever the signal comes. Never returns.
    pub(super) async fn run(self, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            let Some(file) = &self.file else { continue };
            match read(file) {
                Ok(tokens) => {
                    tracing::info!(?tokens, "read the token file again");
                    let policy = (**self.policy.borrow()).clone();
                    self.policy.send_replace(Arc::new(Policy { tokens: Some(tokens), ..policy }));
                }
                Err(error) => tracing::error!(%error, "the tokens stay as they were"),
            }
        }
    }
}

/// Reads a token file that only its owner, and perhaps a group, can read.
fn read(path: &Path) -> Result<Tokens> {
    let wrong = |why: String| {
        let message = format!("the token file {}: {why}", path.display());
        Error::new(ErrorKind::Configuration, message)
    };
    let mut file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mode = file.metadata().map_err(|error| wrong(error.to_string()))?.permissions().mode();
    if mode & 0o027 != 0 {
        return Err(wrong(format!(
            "its mode {:o} lets others read or change it; use chmod 600",
            mode & 0o777
        )));
    }
    let mut text = String::new();
    let read = file.by_ref().take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    if FILE_BYTES_MAX < read.map_err(|error| wrong(error.to_string()))? as u64 {
        return Err(wrong(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Tokens::parse(&text).map_err(wrong)
}
