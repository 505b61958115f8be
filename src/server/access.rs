//! The token file and the TLS certificate: read at start, and again on SIGHUP ([`super::reload`]).
//!
//! Connections that are open keep their certificate; their next request needs a token of the new file. The files are read
//! through std, by the main thread, which serves no request.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::host::open_regular;
use crate::http::access::{Policy, Tokens};
use crate::http::peers::Times;
use crate::shard::live::Live;
use crate::tls::Settings;

/// Longest token file.
const FILE_BYTES_MAX: u64 = 128 << 10;

/// What an operator may change while the server runs, as `config` and the files that it names say.
///
/// # Errors
/// `Configuration`, with the path; `Permission`.
pub(super) fn read(config: &Config) -> Result<Live> {
    let tokens = config.token_file.as_deref().map(read_tokens).transpose()?;
    let policy = Policy { tokens, hosts: config.allowed_hosts.clone(), shutdown: config.shutdown };
    let tls = config.tls.as_ref().map(|files| {
        open_secret("TLS key", &files.key)?;
        Settings::read(&files.certificate, &files.key, files.client_ca.as_deref())
    });
    Ok(Live {
        policy: Arc::new(policy),
        tls: tls.transpose()?,
        times: Times {
            idle: config.idle_timeout,
            head: config.head_timeout,
            body: config.body_timeout,
            handshake: config.handshake_timeout,
            reply: config.reply_timeout,
        },
        drain_timeout: config.drain_timeout,
        shutdown_delay: config.shutdown_delay,
        connections_max: config.connections_max,
        connections_per_address_max: config.connections_per_address_max,
        access_log: config.access_log,
    })
}

/// Warns of what was read, where clients will not be content with it.
pub(super) fn warn(live: &Live) {
    if let Some(why) = live.tls.as_ref().and_then(Settings::is_not_valid_now) {
        tracing::warn!("clients will refuse the TLS certificate: {why}");
    }
}

fn wrong(what: &str, path: &Path, why: impl Display) -> Error {
    Error::new(ErrorKind::Configuration, format!("the {what} {}: {why}", path.display()))
}

/// Opens a file with a secret, which only its owner, and perhaps a group, may read.
fn open_secret(what: &str, path: &Path) -> Result<File> {
    let opened = open_regular(path).and_then(|file| Ok((file.metadata()?.permissions().mode(), file)));
    let (mode, file) = opened.map_err(|error| {
        let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let error = wrong(what, path, error);
        if denied { error.with_kind(ErrorKind::Permission) } else { error }
    })?;
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
