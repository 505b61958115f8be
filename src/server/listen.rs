//! Where the server listens: TCP addresses, Unix sockets, and sockets that systemd hands over.
//!
//! A TCP address has one socket for each thread. The sockets share the address by SO_REUSEPORT, which would also hide
//! another server of the same user on the port. So the address is first bound by a socket without SO_REUSEPORT, which fails
//! if any other socket is bound there. Only then that socket allows the others of this process to join it. It does not allow
//! SO_REUSEADDR, by which another server could bind the address before this one listens; [`crate::shard::listener`] allows
//! it again once the socket listens, for the restart that finds connections of this server in TIME_WAIT.
//!
//! A Unix socket or an inherited socket belongs to the first thread, which hands its connections over to the others. The
//! file of a Unix socket outlives a process that was killed. A file at which nobody listens any more is replaced.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use listenfd::ListenFd;

use crate::config::{Config, Listen};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Parts;
use crate::shard::listener::{BACKLOG, Bound};

/// A killed predecessor holds its sockets until its ring is freed. The address is tried this often before it counts as
/// taken.
const TRIES: u32 = 40;
const REST: Duration = Duration::from_millis(50);

/// Sockets of the server, which do not listen yet, except those that were inherited.
pub(super) struct Sockets {
    /// The places, as clients are told.
    pub(super) places: Vec<Listen>,
    /// The sockets of each thread.
    pub(super) by_thread: Vec<Vec<Bound>>,
    /// Files that are removed at the end.
    pub(super) files: Vec<SocketFile>,
}

/// The file of a Unix socket. It is removed when dropped, unless another server has replaced it.
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

/// Device, inode, and when the socket was bound: an inode may be used again.
type Identity = (u64, u64, i64, i64);

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.into(), identity: identity(path)? })
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    path.symlink_metadata().map(|found| (found.dev(), found.ino(), found.mtime(), found.mtime_nsec()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "cannot remove the socket {}", self.path.display());
        }
    }
}

/// Binds the sockets of `threads` threads, and takes over those that were inherited. Waits up to two seconds for a place
/// that is taken.
///
/// # Errors
/// `AddressInUse`; `Configuration` if the places are open to everyone, or a path is that of another file; `Permission`; `Io`.
pub(super) async fn bind(config: &Config, threads: usize) -> Result<Sockets> {
    for listen in &config.listen {
        check_exposure(config, listen)?;
    }
    let mut sockets = Sockets {
        places: Vec::new(),
        by_thread: (0..threads).map(|_| Vec::new()).collect(),
        files: Vec::new(),
    };
    for socket in inherited()? {
        let mut place = place_of(&socket).map_err(|error| Error::io("look at an inherited socket", error))?;
        if let Listen::Tcp(address) = place
            && config.tls.is_some()
        {
            place = Listen::Tls(address);
        }
        check_exposure(config, &place)?;
        sockets.by_thread[0].push(Bound { socket, encrypted: matches!(place, Listen::Tls(_)) });
        sockets.places.push(place);
    }
    for listen in &config.listen {
        let attempt = |error| Error::io(format!("listen on {listen}"), error);
        if let Listen::Unix(path) = listen
            && path.symlink_metadata().is_ok_and(|found| !found.file_type().is_socket())
        {
            let message = format!(
                "cannot listen on {listen}: what is there is no socket: remove it, or choose another path"
            );
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        let mut tried = 1;
        let first = loop {
            match reserve(listen) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tried < TRIES => {
                    tried += 1;
                    tokio::time::sleep(REST).await;
                }
                reserved => break reserved.map_err(attempt)?,
            }
        };
        let bound = first.local_addr().map_err(attempt)?.as_socket();
        let place = match (listen, bound) {
            (Listen::Tcp(_), Some(address)) => Listen::Tcp(address),
            (Listen::Tls(_), Some(address)) => Listen::Tls(address),
            _ => listen.clone(),
        };
        let encrypted = matches!(place, Listen::Tls(_));
        match &place {
            Listen::Tcp(address) | Listen::Tls(address) => {
                for others in &mut sockets.by_thread[1..] {
                    others.push(Bound { socket: join(*address).map_err(attempt)?, encrypted });
                }
            }
            Listen::Unix(path) => {
                sockets.files.push(SocketFile::of(path).map_err(attempt)?);
                set_access(path, config).map_err(attempt)?;
                // Another server takes a socket that does not listen for one that was left behind. Until this server
                // accepts, connections wait.
                first.listen(BACKLOG).map_err(attempt)?;
            }
        }
        sockets.by_thread[0].push(Bound { socket: first, encrypted });
        sockets.places.push(place);
    }
    if sockets.places.is_empty() {
        return Err(Error::new(ErrorKind::Configuration, "there is no place to listen at"));
    }
    Ok(sockets)
}

/// Refuses a place where clients of other hosts can connect, unless they need a token or are trusted.
///
/// # Errors
/// `Configuration`.
pub(super) fn check_exposure(config: &Config, listen: &Listen) -> Result<()> {
    let (address, known) = match listen {
        Listen::Tcp(address) => (address, false),
        Listen::Tls(address) => (address, config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())),
        Listen::Unix(_) => return Ok(()),
    };
    if known || address.ip().to_canonical().is_loopback() || config.token_file.is_some() || config.insecure {
        return Ok(());
    }
    let message = format!(
        "every client that reaches {address} could read, write and delete everything: give a --token-file, or \
         --insecure if all of them are trusted"
    );
    Err(Error::new(ErrorKind::Configuration, message))
}

/// The sockets that systemd has handed over (`LISTEN_FDS`).
fn inherited() -> Result<Vec<socket2::Socket>> {
    let mut given = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..given.len() {
        let tcp = given.take_tcp_listener(index).map(|found| found.map(OwnedFd::from));
        let socket = tcp.or_else(|_| given.take_unix_listener(index).map(|found| found.map(OwnedFd::from)));
        let socket = socket.map_err(|error| {
            let message = format!("inherited socket {index} is neither a TCP nor a Unix listener: {error}");
            Error::new(ErrorKind::Configuration, message)
        })?;
        sockets.extend(socket.map(socket2::Socket::from));
    }
    Ok(sockets)
}

fn place_of(socket: &socket2::Socket) -> io::Result<Listen> {
    let address = socket.local_addr()?;
    Ok(match address.as_socket() {
        Some(address) => Listen::Tcp(address),
        None => Listen::Unix(address.as_pathname().unwrap_or(Path::new("")).into()),
    })
}

/// The least and the greatest size of a receive buffer. A segment has up to 64 KiB on loopback. A window of less than two
/// segments closes again and again, and opens only when the client probes it, after seconds.
const RECEIVE_BYTES_MIN: usize = 128 << 10;
const RECEIVE_BYTES_MAX: usize = 512 << 10;
/// A socket takes this many bytes that are not sent yet. Without this bound, a client that does not read keeps up to 4 MiB
/// of a send buffer. A small send buffer would bound them as well, but slows readers down: with 32 KiB, 16 MiB took 9 s
/// instead of 13 ms over loopback.
const UNSENT_BYTES_MIN: usize = 32 << 10;
const UNSENT_BYTES_MAX: usize = 128 << 10;

/// Bounds the buffers that the kernel holds for a TCP connection. The receive buffers of all connections together take up
/// to half as much as the budget of the process, or 128 KiB each. Connections inherit the bounds. (The buffers of a Unix
/// socket do not grow.)
///
/// # Errors
/// `Io`.
pub(super) fn bound_buffers(sockets: &Sockets, parts: &Parts, connections_max: usize) -> Result<()> {
    let each = parts.total / connections_max / 2;
    let bytes = each.clamp(RECEIVE_BYTES_MIN, RECEIVE_BYTES_MAX);
    let unsent = each.clamp(UNSENT_BYTES_MIN, UNSENT_BYTES_MAX);
    let unsent = u32::try_from(unsent).expect("it is bounded above");
    for Bound { socket, .. } in sockets.by_thread.iter().flatten() {
        if matches!(place_of(socket), Ok(Listen::Unix(_))) {
            continue;
        }
        socket
            .set_recv_buffer_size(bytes) // the kernel doubles it, because it counts its own overhead
            .and_then(|()| socket.set_tcp_notsent_lowat(unsent))
            .map_err(|error| Error::io("bound the buffers of a socket", error))?;
    }
    Ok(())
}

/// Binds a socket to a place that no other socket is bound to, and keeps other servers off it.
fn reserve(listen: &Listen) -> io::Result<socket2::Socket> {
    match listen {
        Listen::Tcp(address) | Listen::Tls(address) => reserve_address(*address),
        Listen::Unix(path) => reserve_path(path),
    }
}

fn socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.ip() == IpAddr::from([0_u16; 8]) {
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

fn reserve_address(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket(address)?;
    socket.set_reuse_address(true)?; // connections of a predecessor in TIME_WAIT do not count
    socket.bind(&address.into())?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(false)?;
    Ok(socket)
}

/// Binds a socket to an address that this process has reserved.
fn join(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn reserve_path(path: &Path) -> io::Result<socket2::Socket> {
    let address = socket2::SockAddr::unix(path)?;
    let new = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
    let socket = new()?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            let probe = new()?;
            probe.set_nonblocking(true)?; // a server that hangs must not hang this one
            let is_left = path.symlink_metadata()?.file_type().is_socket()
                && probe.connect(&address).is_err_and(is_refused);
            if !is_left {
                return Err(error);
            }
            std::fs::remove_file(path)?; // a process that was killed has left it
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    Ok(socket)
}

/// Sets who may connect to a Unix socket. Until then only its owner may: the umask says so.
fn set_access(path: &Path, config: &Config) -> io::Result<()> {
    std::os::unix::fs::lchown(path, None, config.socket_group)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(config.socket_mode))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn an_address_belongs_to_one_server_before_it_listens_and_after() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = reserve_address(any).unwrap();
        let address = first.local_addr().unwrap().as_socket().unwrap();
        let others: Vec<_> = (0..3).map(|_| join(address).unwrap()).collect();
        let taken = || reserve_address(address).unwrap_err().kind();
        assert_eq!(taken(), io::ErrorKind::AddrInUse, "it is bound");
        assert!(TcpListener::bind(address).is_err());
        for socket in others.iter().chain([&first]) {
            socket.listen(8).unwrap();
            socket.set_reuse_address(true).unwrap();
        }
        assert_eq!(taken(), io::ErrorKind::AddrInUse, "it listens");
        assert!(TcpListener::bind(address).is_err());
        // A connection that the server closes first stays in TIME_WAIT, and does not keep a successor away.
        let client = TcpStream::connect(address).unwrap();
        for socket in others.iter().chain([&first]) {
            socket.set_nonblocking(true).unwrap();
            drop(socket.accept());
        }
        drop(client);
        drop((first, others));
        let successor = reserve_address(address).unwrap();
        successor.listen(8).unwrap();
    }

    #[test]
    fn a_socket_that_a_dead_process_left_is_replaced_and_one_that_is_used_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = reserve_path(&path).unwrap();
        first.listen(8).unwrap();
        assert_eq!(reserve_path(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let file = SocketFile::of(&path).unwrap();
        std::fs::hard_link(&path, folder.path().join("link")).unwrap(); // so that its inode is not used again
        drop(first);
        let second = reserve_path(&path).unwrap();
        drop(file);
        assert!(path.exists(), "another server has replaced it");
        drop((SocketFile::of(&path).unwrap(), second));
        assert!(!path.exists());
        std::fs::write(&path, "a file of somebody").unwrap();
        assert_eq!(reserve_path(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
    }
}
