//! `ringkeep serve`: flags → [`Config`] → server.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use crate::config::{Config, Listen, SHARDS_MAX, ShutdownMode, SyncMode, TlsFiles};
use crate::error::{Error, ErrorKind, Result};
use crate::{host, server};

/// Flags of the server.
#[derive(Debug, Args)]
#[command(after_help = "Sizes are written as in 64MiB or 1.5GB, durations as in 100ms or 5m.")]
pub(super) struct Serve {
    /// Where to listen: ADDR:PORT, :PORT for all addresses, or unix:PATH; may be given several times; with a certificate,
    /// addresses are encrypted unless they begin with http://; port 0 takes a free port [default: 127.0.0.1:8080, unless
    /// systemd hands sockets over]
    #[arg(long, value_name = "PLACE", value_parser = place)]
    listen: Vec<Place>,
    /// Certificate of the server and those that lead to its authority, in PEM; read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, in PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Authorities of the certificates that clients have to present, in PEM [default: clients need none]
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// File with a line NAME ROLE SECRET for each token; ROLE is read, write or admin; read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Serve everyone who can connect, from other hosts as well, without a token
    #[arg(long, conflicts_with = "token_file")]
    insecure: bool,
    /// Public names of the server, without scheme and port; its addresses, localhost and names without a dot are always
    /// known
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = host_name)]
    allowed_hosts: Vec<String>,
    /// Who may stop the server by /shutdown; with tokens everyone needs the role admin as well
    #[arg(long, value_name = "WHO", value_enum, default_value = "local")]
    shutdown: ShutdownMode,
    /// Permissions of Unix sockets, in octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = octal)]
    socket_mode: u32,
    /// Group of Unix sockets, by name or number
    #[arg(long, value_name = "GROUP", value_parser = group)]
    socket_group: Option<u32>,
    /// Not a flag, but many look for it
    #[arg(long, hide = true, value_parser = no_port)]
    port: Option<String>,
    /// Data directory; created if it does not exist
    #[arg(long, value_name = "DIR", default_value = "./ringkeep-data")]
    data_dir: PathBuf,
    /// Number of shards of a new store; an existing store keeps its number [default: number of threads]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(SHARDS_MAX)))]
    shards: Option<u16>,
    /// Number of threads; as many as processors are pinned, one to each [default: the processors that may be used]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(SHARDS_MAX)))]
    threads: Option<u16>,
    /// When a write is acknowledged. `always`: after its sync; a DURATION, the time between syncs, or `never`: before
    /// its sync
    #[arg(long, value_name = "always|DURATION|never", default_value = "always")]
    sync: SyncMode,
    /// Memory of the whole process; everything below has its part in it [default: half of the memory that may be used]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// New writes that a shard keeps in memory before it flushes them to a file; fewer if --memory is small
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    memtable_size: ByteSize,
    /// Memory for cached values and blocks, of all shards together [default: what other parts of --memory leave]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<ByteSize>,
    /// Longest time before new writes are flushed
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    flush_interval: Duration,
    /// Longest time before a shard checks whether to compact
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    compaction_interval: Duration,
    /// Longest value that is accepted
    #[arg(long, value_name = "SIZE", default_value = "16MiB")]
    max_value_size: ByteSize,
    /// Most connections at a time; a low limit on open files may allow fewer
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_connections: usize,
    /// Most connections of one address at a time; of IPv6, of one /64 [default: no bound of its own]
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    max_connections_per_address: Option<usize>,
    /// How long a connection may be idle
    #[arg(long, value_name = "DURATION", default_value = "75s", value_parser = humantime::parse_duration)]
    idle_timeout: Duration,
    /// How long the head of a request may take
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    head_timeout: Duration,
    /// How long the body of a request may make no progress; each KiB gives a second more
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    body_timeout: Duration,
    /// How long a client may take to agree with the server on how to encrypt
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    handshake_timeout: Duration,
    /// How long a client may receive nothing of a reply; each KiB gives a second more
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    reply_timeout: Duration,
    /// How long a stop waits for requests in flight
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
}

/// Where a user wants to listen.
#[derive(Debug, Clone)]
struct Place {
    listen: Listen,
    /// The scheme was given.
    explicit: bool,
}

impl Place {
    /// With a certificate, addresses without a scheme are encrypted.
    fn resolve(self, has_certificate: bool) -> Listen {
        match self.listen {
            Listen::Tcp(address) if has_certificate && !self.explicit => Listen::Tls(address),
            listen => listen,
        }
    }
}

fn place(text: &str) -> std::result::Result<Place, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() {
            return Err("the path of the socket is missing".into());
        }
        return Ok(Place { listen: Listen::Unix(path.into()), explicit: false });
    }
    let (rest, encrypted, explicit) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (rest.trim_end_matches('/'), false, true),
        (None, Some(rest)) => (rest.trim_end_matches('/'), true, true),
        (None, None) => (text, false, false),
    };
    let address = match rest.strip_prefix(':') {
        Some(port) => {
            let port = port.parse().map_err(|_| "expected a port after the colon, as in :8080")?;
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
        }
        None => address(rest)?,
    };
    Ok(Place { listen: if encrypted { Listen::Tls(address) } else { Listen::Tcp(address) }, explicit })
}

/// The permissions of a file.
fn octal(text: &str) -> std::result::Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected permissions in octal, as in 660".into()),
    }
}

/// The number of a group.
fn group(text: &str) -> std::result::Result<u32, String> {
    match text.parse() {
        Ok(number) => Ok(number),
        Err(_) => {
            uzers::get_group_by_name(text).map(|group| group.gid()).ok_or("there is no such group".into())
        }
    }
}

/// The file of a flag. Without the flag, the file that systemd has made readable for this service under `name`, if there is
/// one (`LoadCredential=`).
fn or_credential(flag: Option<PathBuf>, name: &str) -> Result<Option<PathBuf>> {
    let (None, Some(directory)) = (&flag, std::env::var_os("CREDENTIALS_DIRECTORY")) else { return Ok(flag) };
    let path = Path::new(&directory).join(name);
    match path.try_exists() {
        Ok(exists) => Ok(exists.then_some(path)),
        Err(error) => {
            let message = format!("cannot look at the credential {}: {error}", path.display());
            Err(Error::new(ErrorKind::Configuration, message))
        }
    }
}

/// The address that a user gives, as a host and a port or as the server prints it.
pub(super) fn address(text: &str) -> std::result::Result<SocketAddr, String> {
    let address = text.strip_prefix("http://").map_or(text, |rest| rest.trim_end_matches('/'));
    let mut addresses = address
        .to_socket_addrs()
        .map_err(|error| format!("{error}; expected a host and a port, as in 127.0.0.1:8080"))?;
    addresses.next().ok_or_else(|| "the host name has no address".into())
}

/// A name as a `Host` may have it.
fn host_name(text: &str) -> std::result::Result<String, String> {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err("expected names without scheme, port and wildcards, as in kv.example.com".into())
    }
}

fn no_port(port: &str) -> std::result::Result<String, String> {
    Err(format!("the port is a part of the address: --listen 127.0.0.1:{port}"))
}

impl Serve {
    fn config(self) -> Result<Config> {
        let bytes = |size: ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        let certificate = or_credential(self.tls_cert, "ringkeep-tls-cert")?;
        let key = or_credential(self.tls_key, "ringkeep-tls-key")?;
        let tls = match (certificate, key, self.tls_client_ca) {
            (Some(certificate), Some(key), client_ca) => Some(TlsFiles { certificate, key, client_ca }),
            (None, None, None) => None,
            _ => {
                let message =
                    "TLS needs a certificate and its key: --tls-cert and --tls-key, or both as credentials";
                return Err(Error::new(ErrorKind::Configuration, message));
            }
        };
        let token_file = or_credential(self.token_file, "ringkeep-tokens")?;
        let mut places = self.listen;
        if places.is_empty() && std::env::var_os("LISTEN_FDS").is_none() {
            let listen = Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 8080)));
            places.push(Place { listen, explicit: false });
        }
        Ok(Config {
            listen: places.into_iter().map(|place| place.resolve(tls.is_some())).collect(),
            tls,
            insecure: self.insecure,
            token_file,
            allowed_hosts: self.allowed_hosts,
            shutdown: self.shutdown,
            socket_mode: self.socket_mode,
            socket_group: self.socket_group,
            data_dir: self.data_dir,
            shards: self.shards,
            threads: self.threads,
            sync: self.sync,
            memtable_bytes: bytes(self.memtable_size),
            memory_bytes: self
                .memory
                .map_or_else(|| usize::try_from(host::memory_bytes() / 2).unwrap_or(usize::MAX), bytes),
            cache_bytes: self.cache_size.map(bytes),
            flush_interval: self.flush_interval,
            compaction_interval: self.compaction_interval,
            value_bytes_max: bytes(self.max_value_size),
            connections_max: self.max_connections,
            connections_per_address_max: self.max_connections_per_address,
            idle_timeout: self.idle_timeout,
            head_timeout: self.head_timeout,
            body_timeout: self.body_timeout,
            handshake_timeout: self.handshake_timeout,
            reply_timeout: self.reply_timeout,
            drain_timeout: self.drain_timeout,
        })
    }

    pub(super) fn run(self) -> Result<()> {
        let config = self.config()?;
        let usable = host::memory_bytes();
        if usable < config.memory_bytes as u64 {
            tracing::warn!(
                "--memory {} is more than the {} that the process may use",
                ByteSize(config.memory_bytes as u64),
                ByteSize(usable)
            );
        }
        let shown = config.data_dir.display().to_string();
        let result = server::run(config, |places| {
            let mut output = std::io::stdout().lock();
            for place in places {
                // A closed standard output does not stop the server.
                let _ = writeln!(output, "listening on {place}");
            }
            let _ = output.flush();
        });
        result.map_err(|error| match error.kind() {
            ErrorKind::Corruption => {
                let advice = format!(
                    "nothing was changed; `ringkeep check {shown}` lists every case of damage, and `ringkeep repair \
                     {shown}` gives up what is lost of sorted files"
                );
                Error::new(ErrorKind::Corruption, format!("{error}; {advice}"))
            }
            _ => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_as_the_server_prints_it_and_a_wrong_one_is_explained() {
        for text in ["127.0.0.1:80", "http://127.0.0.1:80", "http://127.0.0.1:80/"] {
            assert_eq!(address(text).unwrap(), SocketAddr::from(([127, 0, 0, 1], 80)));
        }
        assert!(address("[::1]:80").unwrap().is_ipv6());
        for (text, shown) in [
            (":80", "http://[::]:80"),
            ("http://:80", "http://[::]:80"),
            ("[::1]:80", "http://[::1]:80"),
            ("https://:80/", "https://[::]:80"),
            ("unix:/run/a b", "unix:/run/a b"),
        ] {
            assert_eq!(place(text).unwrap().resolve(false).to_string(), shown);
        }
        for (text, shown) in [
            ("127.0.0.1:80", "https://127.0.0.1:80"),
            ("http://127.0.0.1:80", "http://127.0.0.1:80"),
            ("unix:/run/a", "unix:/run/a"),
        ] {
            assert_eq!(place(text).unwrap().resolve(true).to_string(), shown, "with a certificate");
        }
        for (text, hint) in
            [("unix:", "path"), (":x", ":8080"), ("80", "as in 127.0.0.1:8080"), ("127.0.0.1", "a port")]
        {
            let error = place(text).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }
}
