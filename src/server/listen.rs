//! The address of the server, and one socket on it for each thread.

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;

use crate::error::{Error, ErrorKind, Result};

/// Binds `count` sockets, which do not listen yet. They need SO_REUSEPORT, which would hide another server on the port.
/// So the address is first bound without SO_REUSEPORT.
///
/// # Errors
/// `AddressInUse`; `Io`.
pub(super) fn bind(listen: SocketAddr, count: usize) -> Result<(SocketAddr, Vec<socket2::Socket>)> {
    let attempt = |error: io::Error| {
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        let error = Error::io(format!("listen on {listen}"), error);
        if taken { error.with_kind(ErrorKind::AddressInUse) } else { error }
    };
    let socket = |shared: bool, address: SocketAddr| {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(socket)
    };
    let alone = socket(false, listen).map_err(attempt)?;
    // While a server listens, another process can bind with SO_REUSEADDR, but cannot listen.
    alone.listen(1).map_err(attempt)?;
    let address = alone.local_addr().map_err(attempt)?.as_socket().unwrap_or(listen);
    drop(alone);
    // A server that recovers has bound its sockets and does not listen yet, so the check above does not see it.
    let name = format!("ringkeep-{address}");
    let reserved = std::os::unix::net::SocketAddr::from_abstract_name(name)
        .and_then(|name| std::os::unix::net::UnixListener::bind_addr(&name))
        .map_err(attempt)?;
    std::mem::forget(reserved); // held to the end of the process
    let sockets = (0..count).map(|_| socket(true, address)).collect::<io::Result<_>>().map_err(attempt)?;
    Ok((address, sockets))
}
