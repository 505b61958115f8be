//! A connection: the bytes to and from a client, over TCP, TLS or a Unix socket, and its way to another thread.
//!
//! Everything above sees only an [`http::stream::Stream`]. Sockets go through the ring as files do, so one loop drives
//! both. Through `tokio_uring::net` a request and its reply took 8.6 µs (7.6 to 10.1), through `tokio::net` 8.2 µs (7.6 to
//! 8.5), the client's part included (`cargo bench --bench designs -- sockets`, on the machine of BENCHMARKS.md). The
//! difference is no reason for a second loop.
//!
//! [`http::stream::Stream`]: crate::http::stream::Stream

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::fd::OwnedFd;

use bytes::Bytes;
use socket2::SockRef;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

use super::addresses::{Addresses, Counted};
use crate::host::descriptor;
use crate::http::stream::Stream;
use crate::tls::{Failed, Session, Settings};

/// A connection on the ring of this thread.
pub(super) struct Socket {
    /// Of any family: the operations on the ring are the same.
    stream: TcpStream,
    client: Client,
}

/// What is known of a client.
struct Client {
    /// Its address; `None` for a Unix socket.
    address: Option<IpAddr>,
    is_local: bool,
    tls: Option<Box<Tls>>,
    /// Its place among the connections of its address.
    counted: Option<Counted>,
}

/// The TLS of a connection.
struct Tls {
    session: RefCell<Session>,
    /// Plaintext for which a read had no room.
    plain: RefCell<Vec<u8>>,
}

impl Tls {
    fn new(settings: &Settings) -> io::Result<Self> {
        let session = Session::new(settings).map_err(|failed| failure(&failed))?;
        Ok(Self { session: RefCell::new(session), plain: RefCell::default() })
    }

    /// Moves plaintext into `buffer`, as far as it has room. Returns how much.
    fn deliver(&self, buffer: &mut Vec<u8>) -> usize {
        let mut plain = self.plain.borrow_mut();
        let count = plain.len().min(buffer.capacity() - buffer.len());
        buffer.extend(plain.drain(..count));
        if plain.is_empty() {
            *plain = Vec::new(); // an idle connection keeps no buffer
        }
        count
    }
}

fn failure(failed: &Failed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, failed.to_string())
}

/// What is read from the socket at a time. The kernel copies it while this thread waits: 100 µs.
const READ_BYTES_MAX: usize = 256 << 10;
/// What is read from the socket at a time, if it is encrypted.
const ENCRYPTED_BYTES_MIN: usize = 4 << 10;
const ENCRYPTED_BYTES_MAX: usize = 20 << 10;
/// What is encrypted at a time: two records, in less than 100 µs at 1 GB/s.
const ENCRYPT_BYTES: usize = 32 << 10;

/// A connection on its way to another thread.
pub struct Handed {
    socket: OwnedFd,
    client: Client,
}

impl Socket {
    /// A connection that was just accepted, with TLS or without.
    ///
    /// # Errors
    /// If TLS has no randomness.
    pub(super) fn new(socket: OwnedFd, tls: Option<&Settings>) -> io::Result<Self> {
        let options = SockRef::from(&socket);
        let (address, is_local) = match options.peer_addr() {
            Ok(peer) => {
                let address = peer.as_socket().map(|peer| peer.ip());
                (address, address.is_none_or(|address| address.to_canonical().is_loopback()))
            }
            Err(_) => (None, false), // the client has left already
        };
        if options.domain().is_ok_and(|domain| domain != socket2::Domain::UNIX)
            // A write must not wait until the client has acknowledged the write before it.
            && let Err(error) = options.set_tcp_nodelay(true)
        {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let tls = tls.map(Tls::new).transpose()?.map(Box::new);
        let client = Client { address, is_local, tls, counted: None };
        Ok(Self { stream: TcpStream::from_std(socket.into()), client })
    }

    /// Counts the connection among those of its address. `Err` if there are too many.
    pub(super) fn count(&mut self, addresses: &Addresses) -> Result<(), ()> {
        self.client.counted = addresses.count(self.client.address)?;
        Ok(())
    }

    async fn read_encrypted(&self, tls: &Tls, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        loop {
            let count = tls.deliver(&mut buffer);
            if 0 < count || tls.session.borrow().has_ended() {
                return (Ok(count), buffer);
            }
            let room = buffer.capacity() - buffer.len();
            let encrypted = Vec::with_capacity(room.clamp(ENCRYPTED_BYTES_MIN, ENCRYPTED_BYTES_MAX));
            let (result, encrypted) = self.stream.read(encrypted).await;
            if !matches!(result, Ok(1..)) {
                // The end of the stream without a word is as good as any: requests say themselves where they end.
                return (result, buffer);
            }
            let mut out = Vec::new();
            let fed = tls.session.borrow_mut().feed(&encrypted, &mut tls.plain.borrow_mut(), &mut out);
            if !out.is_empty()
                && let (Err(error), _) = self.stream.write_all(out).await
            {
                return (Err(error), buffer);
            }
            if let Err(failed) = fed {
                tracing::debug!(%failed, "a TLS connection has failed");
                return (Err(failure(&failed)), buffer);
            }
        }
    }

    async fn close_encrypted(&self, tls: &Tls) {
        let mut out = Vec::new();
        if tls.session.borrow_mut().close(&mut out).is_ok() {
            let _ = self.stream.write_all(out).await; // the client has left already
        }
    }

    /// Encrypts and writes, in parts.
    async fn write_encrypted(&self, tls: &Tls, bytes: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        for part in bytes.chunks(ENCRYPT_BYTES) {
            out.clear();
            tls.session.borrow_mut().encrypt(part, &mut out).map_err(|failed| failure(&failed))?;
            let written;
            (written, out) = self.stream.write_all(out).await;
            written?;
        }
        Ok(())
    }
}

impl Handed {
    /// Takes a connection off the ring of the calling thread, by a second descriptor; the first one closes. `Err` gives the
    /// connection back, if there is no descriptor left.
    pub(super) fn from_socket(socket: Socket) -> Result<Self, Socket> {
        match descriptor(&socket.stream).try_clone_to_owned() {
            Ok(descriptor) => Ok(Self { socket: descriptor, client: socket.client }),
            Err(_) => Err(socket),
        }
    }

    /// The connection, on the ring of the calling thread.
    pub(super) fn into_socket(self) -> Socket {
        Socket { stream: TcpStream::from_std(self.socket.into()), client: self.client }
    }
}

impl Stream for Socket {
    async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        if let Some(tls) = &self.client.tls {
            return Box::pin(self.read_encrypted(tls, buffer)).await; // boxed: other connections stay small
        }
        let filled = buffer.len();
        let end = buffer.capacity().min(filled + READ_BYTES_MAX);
        let (result, slice) = self.stream.read(buffer.slice(filled..end)).await;
        (result, slice.into_inner())
    }

    async fn write_all(&self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        match &self.client.tls {
            Some(tls) => (Box::pin(self.write_encrypted(tls, &buffer)).await, buffer),
            None => self.stream.write_all(buffer).await,
        }
    }

    async fn write_bytes(&self, bytes: Bytes) -> io::Result<()> {
        match &self.client.tls {
            Some(tls) => Box::pin(self.write_encrypted(tls, &bytes)).await,
            None => self.stream.write_all(bytes).await.0,
        }
    }

    async fn finish(&self) {
        if let Some(tls) = &self.client.tls {
            Box::pin(self.close_encrypted(tls)).await;
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn is_established(&self) -> bool {
        self.client.tls.as_ref().is_none_or(|tls| tls.session.borrow().is_established())
    }

    fn address(&self) -> Option<IpAddr> {
        self.client.address
    }

    fn is_local(&self) -> bool {
        self.client.is_local
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }
}
