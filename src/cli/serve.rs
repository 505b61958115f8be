//! `ringkeep serve`: flags → [`Config`] → server.

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use crate::config::{Config, SHARDS_MAX, SyncMode};
use crate::error::{ErrorKind, Result};
use crate::{host, server};

/// Flags of the server.
#[derive(Debug, Args)]
#[command(after_help = "Sizes are written as in 64MiB or 1.5GB, durations as in 100ms or 5m.")]
pub(super) struct Serve {
    /// Address and port to listen on; port 0 takes a free port
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,
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
    /// How long a stop waits for requests in flight
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
}

/// The address that a user gives, as a host and a port or as the server prints it.
pub(super) fn address(text: &str) -> std::result::Result<SocketAddr, String> {
    let address = text.strip_prefix("http://").map_or(text, |rest| rest.trim_end_matches('/'));
    if let Some(port) = address.strip_prefix(':') {
        return Err(format!(
            "the host is missing: 127.0.0.1:{port} is for clients on this host, 0.0.0.0:{port} for all"
        ));
    }
    let mut addresses = address
        .to_socket_addrs()
        .map_err(|error| format!("{error}; expected a host and a port, as in 127.0.0.1:8080"))?;
    addresses.next().ok_or_else(|| "the host name has no address".into())
}

fn no_port(port: &str) -> std::result::Result<String, String> {
    Err(format!("the port is a part of the address: --listen 127.0.0.1:{port}"))
}

impl Serve {
    pub(super) fn run(self) -> Result<()> {
        let bytes = |size: ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        let config = Config {
            listen: self.listen,
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
            drain_timeout: self.drain_timeout,
        };
        let shown = config.data_dir.display().to_string();
        let result = server::run(config, |address| {
            let mut output = std::io::stdout().lock();
            // A closed standard output does not stop the server.
            let _ = writeln!(output, "listening on http://{address}").and_then(|()| output.flush());
        });
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Corruption) {
            tracing::error!(
                "nothing was changed: `ringkeep check {shown}` lists every case of damage; put back what is missing, or \
                 restore a backup"
            );
        }
        result
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
        for (text, hint) in [(":80", "0.0.0.0:80"), ("80", "as in 127.0.0.1:8080"), ("127.0.0.1", "a port")] {
            let error = address(text).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }
}
