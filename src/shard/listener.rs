//! A socket that accepts connections, of any family.

use std::io;
use std::rc::Rc;

use super::socket::Socket;
use crate::error::{Error, Result};
use crate::one_shot;
use crate::tls::Settings;

/// Most connections that the kernel queues until they are accepted.
pub const BACKLOG: i32 = 1024;

/// A socket that is bound, and whether its connections are encrypted.
pub struct Bound {
    /// The socket.
    pub socket: socket2::Socket,
    /// Connections speak TLS.
    pub encrypted: bool,
}

/// A socket that accepts connections.
pub(super) struct Listener {
    socket: Rc<socket2::Socket>,
    encrypted: bool,
    /// Whether the socket was non-blocking. Other owners of an inherited socket see its flags, too.
    was_nonblocking: bool,
}

impl Listener {
    /// Begins to listen on a socket that is bound. A socket that already listens goes on.
    ///
    /// # Errors
    /// `AddressInUse`; `Io`.
    pub(super) fn new(bound: Bound) -> Result<Self> {
        let Bound { socket, encrypted } = bound;
        socket.listen(BACKLOG).map_err(|error| Error::io("listen", error))?;
        // The socket listens now, so nobody else can bind the address. Its connections may be in TIME_WAIT later, and then
        // must not keep the next server away.
        socket.set_reuse_address(true).map_err(|error| Error::io("set SO_REUSEADDR", error))?;
        // An inherited socket may be non-blocking. Then an accept on the ring would return at once.
        let attempt = |error| Error::io("make a socket blocking", error);
        let was_nonblocking = socket.nonblocking().map_err(attempt)?;
        socket.set_nonblocking(false).map_err(attempt)?;
        Ok(Self { socket: Rc::new(socket), encrypted, was_nonblocking })
    }

    /// Waits for the next connection. `tls` gives the settings for one that is encrypted.
    ///
    /// Cancel safety: not safe; a connection that was accepted meanwhile would be lost.
    pub(super) async fn accept(&self, tls: impl FnOnce() -> Option<Settings>) -> io::Result<Socket> {
        let socket = one_shot::accept(self.socket.clone()).await?;
        if !self.encrypted {
            return Socket::new(socket, None);
        }
        let settings = tls().ok_or_else(|| io::Error::other("there is no TLS certificate"))?;
        Socket::new(socket, Some(&settings))
    }

    /// Ends an accept in flight: it returns with an error. An inherited socket stays as it is for its other owners.
    pub(super) async fn stop(&self) {
        if let Err(error) = one_shot::cancel(self.socket.clone()).await {
            tracing::warn!(%error, "cannot stop accepting connections");
        }
        if self.was_nonblocking
            && let Err(error) = self.socket.set_nonblocking(true)
        {
            tracing::warn!(%error, "cannot make an inherited socket non-blocking again");
        }
    }
}
