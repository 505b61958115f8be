//! `ringkeep health`: asks a running server whether it is ready.

use std::io::Write;
use std::time::Duration;

use clap::Args;

use super::remote::Remote;
use crate::client::{Patience, Request};
use crate::error::{Error, ErrorKind, Result};

/// A server that is ready answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer: it has a line for each damaged file.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Arguments of `ringkeep health`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ringkeep health\n  ringkeep health --url unix:/run/ringkeep/socket\n  \
                        ringkeep health --url https://localhost:8443 --tls-ca /etc/ringkeep/cert.pem")]
pub(super) struct Health {
    #[command(flatten)]
    remote: Remote,
}

impl Health {
    pub(super) fn run(self) -> Result<()> {
        let client = self.remote.client(Patience::InAll(PATIENCE))?;
        let reply = client.send(Request::get("/readyz"))?;
        let status = reply.status;
        let answer = reply.text(ANSWER_BYTES_MAX)?;
        // A closed standard output does not change the exit status.
        let _ = writeln!(std::io::stdout(), "{}", answer.trim_end());
        if status == 200 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, format!("{} is not ready: it answers {status}", client.url())))
    }
}
