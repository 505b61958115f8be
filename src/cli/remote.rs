//! The arguments by which a command finds a running server.

use std::path::PathBuf;

use clap::Args;

use crate::client::{Client, DEFAULT_URL, Patience, Url};
use crate::error::Result;
use crate::tls::client::Settings;

/// A running server, for a command that needs no token.
#[derive(Debug, Args)]
pub(super) struct Remote {
    /// The server: http://HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL)]
    url: Url,
    #[command(flatten)]
    trust: Trust,
}

/// A running server, for commands that need a token.
#[derive(Debug, Args)]
pub(super) struct Server {
    /// The server: http://HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "URL", default_value = DEFAULT_URL)]
    url: Url,
    /// File with the token, if the server asks for one: its secret, or a line NAME ROLE SECRET
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    trust: Trust,
}

/// How an encrypted server is known, and how it knows this client.
#[derive(Debug, Args)]
struct Trust {
    /// What to trust, in PEM: the certificate of the server itself, or of the authority that has signed it; https needs it
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_ca: Option<PathBuf>,
    /// Certificate of this client, in PEM, for a server that asks for one
    #[arg(long, value_name = "FILE", help_heading = "TLS", requires_all = ["tls_ca", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// Key of this client's certificate, in PEM
    #[arg(long, value_name = "FILE", help_heading = "TLS", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl Remote {
    /// A client of the server.
    pub(super) fn client(&self, patience: Patience) -> Result<Client> {
        self.trust.client(&self.url, patience)
    }
}

impl Server {
    /// A client of the server.
    pub(super) fn client(&self, patience: Patience) -> Result<Client> {
        let client = self.trust.client(&self.url, patience)?;
        match &self.token_file {
            Some(path) => client.with_token_file(path),
            None => Ok(client),
        }
    }
}

impl Trust {
    fn client(&self, url: &Url, patience: Patience) -> Result<Client> {
        let identity = self.tls_cert.as_deref().zip(self.tls_key.as_deref());
        let tls = self.tls_ca.as_deref().map(|trusted| Settings::read(trusted, identity)).transpose()?;
        Client::new(url.clone(), tls, patience)
    }
}
