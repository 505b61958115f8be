//! Every limit and setting, checked once at start.
//!
//! Owns: what a user may choose ([`Config`]), what follows from that for one shard ([`DbConfig`]), and the fixed limits
//! with the relations between them.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::key::KeyHash;

/// Alignment of offsets, lengths and memory of every transfer: enough for O_DIRECT on every device that we know.
pub const BLOCK_BYTES: usize = 4096;
/// The unit that a device writes as a whole or not at all.
pub const SECTOR_BYTES: usize = 512;
/// Longest key.
pub const KEY_BYTES_MAX: usize = 16_384;
/// Longest value that `--max-value-size` may allow. While a value is written, two copies of it are in memory (one that the
/// request and the memtable share, and the commit group), and blocks carry 32-bit lengths.
pub const VALUE_BYTES_LIMIT: usize = 256 << 20;
/// Smallest `--memtable-size`: a few pages, so that one short entry does not fill the memtable.
pub const MEMTABLE_BYTES_MIN: usize = 1 << 20;
/// Largest `--memtable-size`.
pub const MEMTABLE_BYTES_LIMIT: usize = 4 << 30;
/// Bounds of the times that clients have, and the longest `--drain-timeout` and `--shutdown-delay`.
pub const CLIENT_TIME_MIN: Duration = Duration::from_secs(1);
/// See [`CLIENT_TIME_MIN`].
pub const CLIENT_TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Shortest `--flush-interval` and `--compaction-interval`.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Smallest cache of one shard, whatever `--cache-size` says: enough for the blocks that one lookup reads.
pub const CACHE_BYTES_MIN: usize = 256 << 10;
/// Most shards of a store: three digits in a directory name, and far fewer than slots.
pub const SHARDS_MAX: u16 = 999;
/// A commit group is closed at this size (a single larger write makes a larger group). At 1 GB/s such a group is
/// written in a millisecond.
pub const GROUP_BYTES_MAX: usize = 1 << 20;
/// Values from this length on are shared by memtable and commit group instead of being copied twice, and the one copy that
/// is left is made in slices. Copying two shorter values and their checksums take less than 100 µs.
pub const LARGE_VALUE_BYTES: usize = 64 << 10;
/// Large values are copied and checked in slices of this length. In memory that was not used before, a slice takes some
/// 150 µs, most of it for page faults.
pub const SLICE_BYTES: usize = 256 << 10;
/// First length of a WAL. On disk, an empty shard takes the space of its WAL and its manifest. In each WAL, a start
/// reads the records and up to six times this length after them.
pub const WAL_STEP_BYTES: u64 = 1 << 20;
/// Length of a manifest whose snapshot is small: room for some thousands of edits.
pub const MANIFEST_BYTES: u64 = 1 << 20;
/// What a write adds to its value in a WAL record: the key, the lengths, and the framing of a group of one write.
pub const WRITE_OVERHEAD_BYTES_MAX: usize = KEY_BYTES_MAX + 512;

const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize, "the memtable keeps key lengths in 16 bits");
const _: () = assert!(VALUE_BYTES_LIMIT < u32::MAX as usize / 2, "records and blocks carry 32-bit lengths");

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// After its group was synced (P1). A power cut takes nothing that was acknowledged.
    Always,
    /// After its group was written; a sync follows at this interval. A power cut may take the writes of one interval.
    Interval(Duration),
    /// After its group was written. The WAL still syncs itself every few MiB, so that a start knows where to stop
    /// reading.
    Never,
}

impl std::str::FromStr for SyncMode {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => match text.parse::<humantime::Duration>() {
                Ok(interval) if Duration::from_millis(1) <= *interval => Ok(Self::Interval(*interval)),
                _ => Err("expected `always`, `never` or an interval of at least 1ms, as in `100ms`".into()),
            },
        }
    }
}

impl std::fmt::Display for SyncMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Interval(interval) => write!(f, "{}", humantime::format_duration(*interval)),
            Self::Never => f.write_str("never"),
        }
    }
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address. Port 0 takes a free port. `[::]` includes IPv4.
    Tcp(SocketAddr),
    /// The same, encrypted.
    Tls(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Listen {
    /// Whether two sockets cannot both be bound here. Port 0 is another port each time.
    fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one) | Self::Tls(one), Self::Tcp(other) | Self::Tls(other)) => {
                one == other && one.port() != 0
            }
            _ => self == other,
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Tls(address) => write!(f, "https://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Files for encrypted connections, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the server, and those that lead to its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of the certificates that clients need. Without them, clients need none.
    pub client_ca: Option<PathBuf>,
}

/// Who may stop the server by a request. With a token file, everyone needs a token of the role `admin` as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ShutdownMode {
    /// Clients on the same host: by a loopback address or a Unix socket.
    Local,
    /// Clients with a token of the role `admin`.
    Token,
    /// Everyone who can connect.
    Any,
    /// Nobody.
    Off,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What an operator has to do something about.
    Error,
    /// What may become a failure.
    Warn,
    /// What the server does.
    Info,
    /// What its parts do, such as compactions.
    Debug,
    /// Everything.
    Trace,
}

/// Which requests are logged: one of so many, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessLog(Option<NonZeroU32>);

impl AccessLog {
    /// No request is logged.
    pub const OFF: Self = Self(None);

    /// One of so many requests is logged; `None` if none is.
    pub fn one_in(self) -> Option<NonZeroU32> {
        self.0
    }
}

impl std::str::FromStr for AccessLog {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "off" => Ok(Self::OFF),
            "all" => Ok(Self(Some(NonZeroU32::MIN))),
            _ => match text.strip_prefix("1/").map(str::parse::<NonZeroU32>) {
                Some(Ok(number)) => Ok(Self(Some(number))),
                _ => Err("expected `off`, `all`, or a share of the requests, as in `1/100`".into()),
            },
        }
    }
}

/// Everything that a user may choose.
#[derive(Debug, Clone)]
pub struct Config {
    /// What is logged.
    pub log: LogLevel,
    /// Which requests are logged.
    pub access_log: AccessLog,
    /// Where to listen. If this is empty, only inherited sockets are listened to.
    pub listen: Vec<Listen>,
    /// Serve everyone who can connect, from other hosts as well, without a token.
    pub insecure: bool,
    /// The file with the tokens. Without one, requests need none.
    pub token_file: Option<PathBuf>,
    /// Files for encrypted connections.
    pub tls: Option<TlsFiles>,
    /// Names of the server besides its addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Who may stop the server by a request.
    pub shutdown: ShutdownMode,
    /// Permissions of Unix sockets.
    pub socket_mode: u32,
    /// The group of Unix sockets, by its number.
    pub socket_group: Option<u32>,
    /// Where the data is.
    pub data_dir: PathBuf,
    /// Shards of a new store. An existing store keeps its number of shards.
    pub shards: Option<u16>,
    /// Threads; the default is the number of usable cores.
    pub threads: Option<u16>,
    /// When a write is acknowledged.
    pub sync: SyncMode,
    /// The memory of the process: see [`crate::memory`].
    pub memory_bytes: usize,
    /// Bytes of a memtable at most, per shard.
    pub memtable_bytes: usize,
    /// Bytes of all caches together: half for blocks, half for values. By default they follow from the memory.
    pub cache_bytes: Option<usize>,
    /// New writes go to sorted files at least this often.
    pub flush_interval: Duration,
    /// The server checks at least this often whether to compact.
    pub compaction_interval: Duration,
    /// Longest value.
    pub value_bytes_max: usize,
    /// Most connections at a time.
    pub connections_max: usize,
    /// Most connections of one address; `None` for no bound of its own.
    pub connections_per_address_max: Option<usize>,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long the head of a request may take.
    pub head_timeout: Duration,
    /// How long the body of a request may make no progress.
    pub body_timeout: Duration,
    /// How long client and server may take to agree on how to encrypt.
    pub handshake_timeout: Duration,
    /// How long a client may receive nothing of a reply.
    pub reply_timeout: Duration,
    /// How long a stop waits for requests in flight.
    pub drain_timeout: Duration,
    /// How long the server serves on after it has stopped being ready.
    pub shutdown_delay: Duration,
}

/// The settings of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DbConfig {
    /// When a write is acknowledged: after a sync if `true`, otherwise after the write alone.
    pub sync_every_group: bool,
    /// Bytes of a memtable.
    pub memtable_bytes: usize,
    /// Bytes of the caches of this shard: half for blocks, half for values.
    pub cache_bytes: usize,
    /// Longest value.
    pub value_bytes_max: usize,
    /// Values from this length on are not copied when they are written.
    pub large_value_bytes: usize,
    /// SST files kept open.
    pub open_files_max: usize,
    /// Greatest length of a WAL; at least `wal_bytes_for(0, value_bytes_max)`.
    pub wal_bytes: u64,
    /// First length of a WAL, and the unit of its growth and of its marks: see `record::file`.
    pub wal_step_bytes: u64,
    /// Length of a manifest whose snapshot is small.
    pub manifest_bytes: u64,
    /// The hash that finds keys in memory.
    pub key_hash: KeyHash,
}

impl DbConfig {
    /// Length of a WAL that holds `bytes` of writes and one more write of the greatest size, so that any write fits
    /// into an empty WAL.
    pub const fn wal_bytes_for(bytes: usize, value_bytes_max: usize) -> u64 {
        let bytes = bytes + value_bytes_max + WRITE_OVERHEAD_BYTES_MAX + 2 * BLOCK_BYTES;
        bytes.next_multiple_of(BLOCK_BYTES) as u64
    }

    /// Bytes of writes that may wait for the WAL. While a sync is in flight, the next groups form in this space. Beyond
    /// it, writes are refused until there is room (P8).
    pub fn queue_bytes_max(&self) -> usize {
        16 * GROUP_BYTES_MAX + self.value_bytes_max
    }
}

impl Config {
    /// Checks the settings against each other. The bounds of a single one are checked where it is parsed.
    ///
    /// # Errors
    /// `Configuration`, with the settings.
    pub fn validate(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Configuration, message));
        if self.shutdown == ShutdownMode::Token && self.token_file.is_none() {
            return refuse("--shutdown token needs a --token-file".into());
        }
        if self.tls.is_none() && self.listen.iter().any(|listen| matches!(listen, Listen::Tls(_))) {
            return refuse("an address with https:// needs --tls-cert and --tls-key".into());
        }
        for (index, listen) in self.listen.iter().enumerate() {
            if self.listen[..index].iter().any(|earlier| earlier.is_same_place(listen)) {
                return refuse(format!("--listen names {listen} twice"));
            }
        }
        Ok(())
    }

    /// The settings of one of `shards` shards, of which all caches together have `cache_bytes`. Keys are hashed by
    /// `key_hash`.
    pub fn db(&self, shards: u16, cache_bytes: usize, open_files_max: usize, key_hash: KeyHash) -> DbConfig {
        DbConfig {
            sync_every_group: self.sync == SyncMode::Always,
            memtable_bytes: self.memtable_bytes,
            cache_bytes: (cache_bytes / usize::from(shards)).max(CACHE_BYTES_MIN),
            value_bytes_max: self.value_bytes_max,
            large_value_bytes: LARGE_VALUE_BYTES,
            open_files_max: (open_files_max / usize::from(shards)).max(16),
            wal_bytes: DbConfig::wal_bytes_for(self.memtable_bytes, self.value_bytes_max),
            wal_step_bytes: WAL_STEP_BYTES,
            manifest_bytes: MANIFEST_BYTES,
            key_hash,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The usual settings.
    pub(crate) fn config() -> Config {
        Config {
            log: LogLevel::Info,
            access_log: AccessLog::OFF,
            listen: vec![Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))],
            insecure: false,
            token_file: None,
            tls: None,
            allowed_hosts: Vec::new(),
            shutdown: ShutdownMode::Local,
            socket_mode: 0o600,
            socket_group: None,
            data_dir: PathBuf::new(),
            shards: None,
            threads: None,
            sync: SyncMode::Always,
            memory_bytes: 1 << 30,
            memtable_bytes: 64 << 20,
            cache_bytes: None,
            flush_interval: Duration::from_secs(300),
            compaction_interval: Duration::from_secs(60),
            value_bytes_max: 16 << 20,
            connections_max: 10_000,
            connections_per_address_max: None,
            idle_timeout: Duration::from_secs(75),
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
            shutdown_delay: Duration::ZERO,
        }
    }

    /// A small shard, for tests.
    pub(crate) const SMALL: DbConfig = DbConfig {
        sync_every_group: true,
        memtable_bytes: 1 << 20,
        cache_bytes: 1 << 20,
        value_bytes_max: 1 << 20,
        large_value_bytes: LARGE_VALUE_BYTES,
        open_files_max: 16,
        wal_bytes: DbConfig::wal_bytes_for(1 << 20, 1 << 20),
        wal_step_bytes: 1 << 18,
        manifest_bytes: 1 << 16,
        key_hash: KeyHash::with_seed(1),
    };

    #[test]
    fn the_share_of_logged_requests_is_off_all_or_one_in_so_many() {
        let one_in = |text: &str| text.parse::<AccessLog>().map(|found| found.one_in().map(NonZeroU32::get));
        assert_eq!(one_in("off"), Ok(None));
        assert_eq!(one_in("all"), Ok(Some(1)));
        assert_eq!(one_in("1/1"), Ok(Some(1)));
        assert_eq!(one_in("1/1000"), Ok(Some(1_000)));
        for text in ["", "1/0", "2/3", "1/", "1/-1", "10", "ON"] {
            assert!(one_in(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_place_is_named_once() {
        let with = |listen: &[Listen]| Config { listen: listen.to_vec(), ..config() }.validate();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (one, any) = (address("127.0.0.1:80"), address("127.0.0.1:0"));
        assert!(with(&[Listen::Tcp(one), Listen::Tcp(address("127.0.0.2:80"))]).is_ok());
        assert!(with(&[Listen::Tcp(any), Listen::Tcp(any)]).is_ok());
        let unix = Listen::Unix("/run/socket".into());
        for twice in [[Listen::Tcp(one), Listen::Tcp(one)], [unix.clone(), unix]] {
            let error = with(&twice).unwrap_err();
            assert!(error.to_string().contains("twice"), "{error}");
        }
    }

    #[test]
    fn sync_modes_round_trip_and_nonsense_is_refused() {
        for text in ["always", "never", "100ms", "2s"] {
            assert_eq!(text.parse::<SyncMode>().unwrap().to_string(), text);
        }
        for text in ["", "0ms", "sometimes", "-1s", "100"] {
            assert!(text.parse::<SyncMode>().is_err(), "{text}");
        }
    }
}
