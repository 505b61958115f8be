//! The sockets of a thread: where connections come from, and how a connection moves to another thread.
//!
//! Another transport would go here. Everything above this module sees only sockets, each of which is an
//! [`http::stream::Stream`], and [`Handed`] connections on their way between two threads.
//!
//! [`http::stream::Stream`]: crate::http::stream::Stream

use std::io;
use std::net::Shutdown;

use tokio_uring::net::{TcpListener, TcpStream};

use crate::error::{Error, ErrorKind, Result};
use crate::host::descriptor;

/// Most connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// A connection on the ring of this thread.
pub(super) type Socket = TcpStream;

/// A connection on its way to another thread.
pub struct Handed(std::net::TcpStream);

/// A socket that accepts connections.
pub(super) struct Listener(TcpListener);

impl Listener {
    /// Begins to listen on a socket that is bound.
    ///
    /// # Errors
    /// `AddressInUse`; `Io`.
    pub(super) fn new(socket: socket2::Socket) -> Result<Self> {
        socket.listen(BACKLOG).map_err(|error| {
            let taken = error.kind() == io::ErrorKind::AddrInUse;
            let error = Error::io("listen", error);
            if taken { error.with_kind(ErrorKind::AddressInUse) } else { error }
        })?;
        // The socket listens now, so nobody else can bind the address. Its connections may be in TIME_WAIT later, and then
        // must not keep the next server away.
        socket.set_reuse_address(true).map_err(|error| Error::io("set SO_REUSEADDR", error))?;
        Ok(Self(TcpListener::from_std(socket.into())))
    }

    /// Waits for the next connection.
    ///
    /// Cancel safety: not safe; a connection that was accepted meanwhile would be lost.
    pub(super) async fn accept(&self) -> io::Result<Socket> {
        let (socket, _) = self.0.accept().await?;
        // A write must not wait until the client has acknowledged the write before it.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        Ok(socket)
    }

    /// Ends an accept in flight: it returns with an error.
    pub(super) fn stop(&self) {
        if let Err(error) = socket2::SockRef::from(&descriptor(&self.0)).shutdown(Shutdown::Both) {
            tracing::warn!(%error, "cannot shut down the listener");
        }
    }
}

impl Handed {
    /// A second descriptor of the connection. The first one closes with `socket`.
    pub(super) fn from_socket(socket: &Socket) -> io::Result<Self> {
        Ok(Self(descriptor(socket).try_clone_to_owned()?.into()))
    }

    /// The connection, on the ring of the calling thread.
    pub(super) fn into_socket(self) -> Socket {
        TcpStream::from_std(self.0)
    }
}
