//! A connection: the bytes to and from a client, over TCP or a Unix socket, and its way to another thread.
//!
//! Everything above sees only an [`http::stream::Stream`]. Sockets go through the ring as files do, so one loop drives
//! both. Through `tokio_uring::net` a request and its reply took 8.6 µs (7.6 to 10.1), through `tokio::net` 8.2 µs (7.6 to
//! 8.5), the client's part included (`cargo bench --bench designs -- sockets`, on the machine of BENCHMARKS.md). The
//! difference is no reason for a second loop.
//!
//! [`http::stream::Stream`]: crate::http::stream::Stream

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use socket2::SockRef;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

use crate::host::descriptor;
use crate::http::stream::Stream;

/// A connection on the ring of this thread.
pub(super) struct Socket {
    /// Of any family: the operations on the ring are the same.
    stream: TcpStream,
    is_local: bool,
}

/// A connection on its way to another thread.
pub struct Handed {
    socket: OwnedFd,
    is_local: bool,
}

impl Socket {
    /// A connection that was just accepted.
    pub(super) fn new(socket: OwnedFd) -> Self {
        let options = SockRef::from(&socket);
        let is_local = match options.peer_addr() {
            Ok(peer) => peer.as_socket().is_none_or(|peer| peer.ip().to_canonical().is_loopback()),
            Err(_) => false, // the client has left already
        };
        if options.domain().is_ok_and(|domain| domain != socket2::Domain::UNIX)
            // A write must not wait until the client has acknowledged the write before it.
            && let Err(error) = options.set_tcp_nodelay(true)
        {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        Self { stream: TcpStream::from_std(socket.into()), is_local }
    }
}

impl Handed {
    /// A second descriptor of the connection. The first one closes with `socket`.
    pub(super) fn from_socket(socket: &Socket) -> io::Result<Self> {
        Ok(Self { socket: descriptor(&socket.stream).try_clone_to_owned()?, is_local: socket.is_local })
    }

    /// The connection, on the ring of the calling thread.
    pub(super) fn into_socket(self) -> Socket {
        Socket { stream: TcpStream::from_std(self.socket.into()), is_local: self.is_local }
    }
}

impl Stream for Socket {
    async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let filled = buffer.len();
        let (result, slice) = self.stream.read(buffer.slice(filled..)).await;
        (result, slice.into_inner())
    }

    async fn write_all(&self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        self.stream.write_all(buffer).await
    }

    async fn write_bytes(&self, bytes: Bytes) -> io::Result<()> {
        self.stream.write_all(bytes).await.0
    }

    fn is_local(&self) -> bool {
        self.is_local
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }
}
