//! `ringkeep serve`: settings → [`Config`] → server.
//!
//! [`Serve`] is the only definition of what can be set: its flags, their help, their defaults and their bounds.
//! [`super::settings`] makes the environment and the configuration file speak the same language.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use super::Start;
use super::definition::Layer;
use super::log::{Log, LogFlags};
use super::settings::{InForce, Settings};
use super::values::{Place, any_size, duration, group, host_name, no_port, number, octal, place, size};
use crate::config::{
    AccessLog, CLIENT_TIME_MAX, CLIENT_TIME_MIN, Config, INTERVAL_MIN, Listen, LogLevel,
    MEMTABLE_BYTES_LIMIT, MEMTABLE_BYTES_MIN, SHARDS_MAX, ShutdownMode, SyncMode, TlsFiles,
    VALUE_BYTES_LIMIT,
};
use crate::error::{Error, ErrorKind, Result};
use crate::{host, server};

const NETWORK: &str = "Network";
const ACCESS: &str = "Access";
const STORE: &str = "Store";
const MEMORY: &str = "Memory";
const LIMITS: &str = "Limits";

/// A time that a client has.
fn client_time() -> impl Fn(&str) -> std::result::Result<Duration, String> + Clone {
    duration(CLIENT_TIME_MIN..=CLIENT_TIME_MAX)
}

/// Flags of the server.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Serve {
    /// File with settings, in TOML: data-dir = "/var/lib/ringkeep" is --data-dir [default: no file]. `ringkeep config
    /// default` prints one with every setting
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen: ADDR:PORT, :PORT for all addresses, or unix:PATH; may be given several times; with a certificate,
    /// addresses are encrypted unless they begin with http://; port 0 takes a free port [default: 127.0.0.1:8080, unless
    /// systemd hands sockets over]
    #[arg(long, value_name = "PLACE", value_delimiter = ',', value_parser = place, help_heading = NETWORK)]
    listen: Vec<Place>,
    /// Permissions of Unix sockets, in octal
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = octal, help_heading = NETWORK)]
    socket_mode: u32,
    /// Group of Unix sockets, by name or number [default: the group of the process]
    #[arg(long, value_name = "GROUP", value_parser = group, help_heading = NETWORK)]
    socket_group: Option<u32>,
    /// Certificate of the server and those that lead to its authority, in PEM; read again on SIGHUP [default: no TLS]
    #[arg(long, value_name = "FILE", help_heading = NETWORK)]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, in PEM
    #[arg(long, value_name = "FILE", help_heading = NETWORK)]
    tls_key: Option<PathBuf>,
    /// Authorities of the certificates that clients have to present, in PEM [default: clients need none]
    #[arg(long, value_name = "FILE", help_heading = NETWORK)]
    tls_client_ca: Option<PathBuf>,
    /// Not a flag, but many look for it
    #[arg(long, value_name = "N", hide = true, value_parser = no_port)]
    port: Option<String>,
    /// File with a line NAME ROLE SECRET for each token; ROLE is read, write or admin; read again on SIGHUP [default:
    /// requests need no token]
    #[arg(long, value_name = "FILE", help_heading = ACCESS)]
    token_file: Option<PathBuf>,
    /// Serve everyone who can connect, from other hosts as well, without a token
    #[arg(long, conflicts_with = "token_file", help_heading = ACCESS)]
    insecure: bool,
    /// Public names of the server, without scheme and port; its addresses, localhost and names without a dot are always
    /// known
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = host_name, help_heading = ACCESS)]
    allowed_hosts: Vec<String>,
    /// Who may stop the server by /shutdown; with tokens everyone needs the role admin as well
    #[arg(long, value_name = "WHO", value_enum, default_value = "local", help_heading = ACCESS)]
    shutdown: ShutdownMode,
    /// Data directory; created if it does not exist
    #[arg(long, value_name = "DIR", default_value = "./ringkeep-data", help_heading = STORE)]
    data_dir: PathBuf,
    /// Number of shards of a new store; an existing store keeps its number [default: number of threads]
    #[arg(long, value_name = "N", value_parser = number::<u16>(1..=u64::from(SHARDS_MAX)), help_heading = STORE)]
    shards: Option<u16>,
    /// Number of threads; as many as processors are pinned, one to each [default: the processors that may be used]
    #[arg(long, value_name = "N", value_parser = number::<u16>(1..=u64::from(SHARDS_MAX)), help_heading = STORE)]
    threads: Option<u16>,
    /// When a write is acknowledged. `always`: after its sync; a DURATION, the time between syncs, or `never`: before
    /// its sync
    #[arg(long, value_name = "always|DURATION|never", default_value = "always", help_heading = STORE)]
    sync: SyncMode,
    /// Longest time before new writes are flushed
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration(INTERVAL_MIN..=Duration::MAX), help_heading = STORE)]
    flush_interval: Duration,
    /// Longest time before a shard checks whether to compact
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration(INTERVAL_MIN..=Duration::MAX), help_heading = STORE)]
    compaction_interval: Duration,
    /// Memory of the whole process; the next two have their part in it [default: half of the memory that may be used]
    #[arg(long, value_name = "SIZE", value_parser = any_size, help_heading = MEMORY)]
    memory: Option<ByteSize>,
    /// New writes that a shard keeps in memory before it flushes them to a file; fewer if --memory is small
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size(MEMTABLE_BYTES_MIN..=MEMTABLE_BYTES_LIMIT), help_heading = MEMORY)]
    memtable_size: ByteSize,
    /// Memory for cached values and blocks, of all shards together [default: what other parts of --memory leave]
    #[arg(long, value_name = "SIZE", value_parser = any_size, help_heading = MEMORY)]
    cache_size: Option<ByteSize>,
    /// Longest value that is accepted
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size(1..=VALUE_BYTES_LIMIT), help_heading = LIMITS)]
    max_value_size: ByteSize,
    /// Most connections at a time; a low limit on open files, or little memory, may allow fewer
    #[arg(long, value_name = "N", default_value = "10000", value_parser = number::<usize>(1..=u64::MAX), help_heading = LIMITS)]
    max_connections: usize,
    /// Most connections of one address at a time; of IPv6, of one /64 [default: no bound of its own]
    #[arg(long, value_name = "N", value_parser = number::<usize>(1..=u64::MAX), help_heading = LIMITS)]
    max_connections_per_address: Option<usize>,
    /// How long a connection may be idle
    #[arg(long, value_name = "DURATION", default_value = "75s", value_parser = client_time(), help_heading = LIMITS)]
    idle_timeout: Duration,
    /// How long the head of a request may take
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = client_time(), help_heading = LIMITS)]
    head_timeout: Duration,
    /// How long the body of a request may make no progress; each KiB gives a second more
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = client_time(), help_heading = LIMITS)]
    body_timeout: Duration,
    /// How long the TLS handshake of a client may take
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = client_time(), help_heading = LIMITS)]
    handshake_timeout: Duration,
    /// How long a client may receive nothing of a reply; each KiB gives a second more
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = client_time(), help_heading = LIMITS)]
    reply_timeout: Duration,
    /// How long a stop waits for requests in flight
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration(Duration::ZERO..=CLIENT_TIME_MAX), help_heading = LIMITS)]
    drain_timeout: Duration,
    /// How long a stop serves on while /readyz already answers 503, so that load balancers look elsewhere first
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration(Duration::ZERO..=CLIENT_TIME_MAX), help_heading = LIMITS)]
    shutdown_delay: Duration,
    #[command(flatten)]
    log: LogFlags,
    /// Which requests are logged when they are answered: off, all, or 1/N, one of N. Keys are logged, values never
    #[arg(long, value_name = "off|all|1/N", default_value = "off", help_heading = super::log::HEADING)]
    access_log: AccessLog,
}

const AFTER_HELP: &str = "\
Sizes are written as in 64MiB or 1.5GB, durations as in 100ms or 5m.

Every flag is also a variable of the environment and a key of the file: --max-connections is
RINGKEEP_MAX_CONNECTIONS and max-connections. A flag takes precedence over a variable, and a
variable over the file. `ringkeep config show` tells where each value comes from.";

impl AsRef<LogFlags> for Serve {
    fn as_ref(&self) -> &LogFlags {
        &self.log
    }
}

impl Serve {
    /// What the server is to do.
    ///
    /// # Errors
    /// `Configuration`.
    pub(super) fn config(self) -> Result<Config> {
        let bytes = |size: ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        let tls = match (self.tls_cert, self.tls_key, self.tls_client_ca) {
            (Some(certificate), Some(key), client_ca) => Some(TlsFiles { certificate, key, client_ca }),
            (None, None, None) => None,
            _ => {
                let message =
                    "TLS needs a certificate and its key: --tls-cert and --tls-key, or both as credentials";
                return Err(Error::new(ErrorKind::Configuration, message));
            }
        };
        let mut places = self.listen;
        if places.is_empty() && std::env::var_os("LISTEN_FDS").is_none() {
            let listen = Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 8080)));
            places.push(Place { listen, explicit: false });
        }
        Ok(Config {
            log: self.log.level(),
            access_log: self.access_log,
            listen: places.into_iter().map(|place| place.resolve(tls.is_some())).collect(),
            tls,
            insecure: self.insecure,
            token_file: self.token_file,
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
            shutdown_delay: self.shutdown_delay,
        })
    }
}

impl Start<Serve> {
    /// Warns of variables that may have been meant as settings.
    pub(super) fn warn(&self) {
        for variable in &self.settings.unknown {
            tracing::warn!("{variable} in the environment is not a setting");
        }
    }

    /// Runs the server.
    pub(super) fn serve(self) -> Result<()> {
        self.warn();
        let Self { chosen, given, settings, log } = self;
        let start = chosen_settings(&settings, chosen, &given)?;
        let shown = start.config.data_dir.display().to_string();
        let result = server::run(start, Rc::new(Terminal { settings, log }));
        result.map_err(|error| match error.kind() {
            ErrorKind::Corruption => {
                let advice = format!(
                    "nothing was changed; `ringkeep check {shown}` lists every case of damage. Restore a backup, or, if only \
                     sorted files (.sst) are damaged or lost, see what `ringkeep repair --dry-run {shown}` would give up"
                );
                Error::new(ErrorKind::Corruption, format!("{error}; {advice}"))
            }
            _ => error,
        })
    }
}

fn chosen_settings(settings: &Settings, chosen: Serve, given: &Layer) -> Result<server::Settings> {
    let config = chosen.config()?;
    let shown = in_force(settings, given, &config);
    let shown = shown.into_iter().map(|setting| {
        let value = setting.shown();
        (setting.name, value)
    });
    Ok(server::Settings { shown: shown.collect(), config })
}

/// Every setting, as people see it.
pub(super) fn in_force(settings: &Settings, given: &Layer, config: &Config) -> Vec<InForce> {
    settings.in_force(given, |name| match name {
        "listen" => Some(config.listen.iter().map(Listen::to_string).collect()),
        "memory" => Some(vec![ByteSize(config.memory_bytes as u64).to_string()]),
        "threads" => Some(vec![host::parallelism().min(host::processors().len()).to_string()]),
        _ => None,
    })
}

/// Where the server was started.
struct Terminal {
    settings: Settings,
    log: Rc<Log>,
}

impl server::Operator for Terminal {
    fn announce(&self, places: &[Listen]) {
        let mut output = std::io::stdout().lock();
        for place in places {
            // A closed standard output does not stop the server.
            let _ = writeln!(output, "listening on {place}");
        }
        let _ = output.flush();
    }

    fn read_settings(&self) -> Result<server::Settings> {
        let (chosen, given) = self.settings.read::<Serve>()?;
        chosen_settings(&self.settings, chosen, &given)
    }

    fn set_log_level(&self, level: LogLevel) {
        self.log.set_level(level);
    }
}
