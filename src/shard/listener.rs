//! A socket that accepts connections, of any family.

use std::io;
use std::rc::Rc;

use super::socket::Socket;
use crate::error::{Error, ErrorKind, Result};
use crate::one_shot;

/// Most connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// A socket that accepts connections.
pub(super) struct Listener(Rc<socket2::Socket>);

impl Listener {
    /// Begins to listen on a socket that is bound. A socket that already listens goes on.
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
        // An inherited socket may be non-blocking. Then an accept on the ring would return at once.
        socket.set_nonblocking(false).map_err(|error| Error::io("make a socket blocking", error))?;
        Ok(Self(Rc::new(socket)))
    }

    /// Waits for the next connection.
    ///
    /// Cancel safety: not safe; a connection that was accepted meanwhile would be lost.
    pub(super) async fn accept(&self) -> io::Result<Socket> {
        one_shot::accept(self.0.clone()).await.map(Socket::new)
    }

    /// Ends an accept in flight: it returns with an error. An inherited socket stays as it is for its other owners.
    pub(super) async fn stop(&self) {
        if let Err(error) = one_shot::cancel(self.0.clone()).await {
            tracing::warn!(%error, "cannot stop accepting connections");
        }
    }
}
