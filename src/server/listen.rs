//! The address of the server, and one socket on it for each thread.
//!
//! The sockets share the address by SO_REUSEPORT, which would also hide another server of the same user on the port. So
//! the address is first bound by a socket without SO_REUSEPORT, which fails if any other socket is bound there. Only then
//! that socket allows the others of this process to join it. It does not allow SO_REUSEADDR, by which another server could
//! bind the address before this one listens; [`crate::shard::listener`] allows it again once the socket listens, for the
//! restart that finds connections of this server in TIME_WAIT.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::Parts;

/// A killed predecessor holds its sockets until its ring is freed. The address is tried this often before it counts as
/// taken.
const TRIES: u32 = 40;
const REST: Duration = Duration::from_millis(50);

/// Binds `count` sockets, which do not listen yet. Waits up to two seconds for an address that is taken.
///
/// # Errors
/// `AddressInUse`; `Permission`; `Io`.
pub(super) async fn bind(listen: SocketAddr, count: usize) -> Result<(SocketAddr, Vec<socket2::Socket>)> {
    let attempt = |error: io::Error| {
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        let error = Error::io(format!("listen on {listen}"), error);
        if taken { error.with_kind(ErrorKind::AddressInUse) } else { error }
    };
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
    let address = first.local_addr().map_err(attempt)?.as_socket().unwrap_or(listen);
    let mut sockets = vec![first];
    while sockets.len() < count {
        sockets.push(join(address).map_err(attempt)?);
    }
    Ok((address, sockets))
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

/// Bounds the buffers that the kernel holds for a connection. The receive buffers of all connections together take up to
/// half as much as the budget of the process, or 128 KiB each. Connections inherit the bounds.
///
/// # Errors
/// `Io`.
pub(super) fn bound_buffers(
    sockets: &[socket2::Socket],
    parts: &Parts,
    connections_max: usize,
) -> Result<()> {
    let each = parts.total / connections_max / 2;
    let bytes = each.clamp(RECEIVE_BYTES_MIN, RECEIVE_BYTES_MAX);
    let unsent = each.clamp(UNSENT_BYTES_MIN, UNSENT_BYTES_MAX);
    let unsent = u32::try_from(unsent).expect("it is bounded above");
    for socket in sockets {
        socket
            .set_recv_buffer_size(bytes) // the kernel doubles it, because it counts its own overhead
            .and_then(|()| socket.set_tcp_notsent_lowat(unsent))
            .map_err(|error| Error::io("bound the buffers of a socket", error))?;
    }
    Ok(())
}

fn socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)
}

/// Binds a socket to an address that no other socket is bound to, and keeps other servers off it.
fn reserve(address: SocketAddr) -> io::Result<socket2::Socket> {
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn an_address_belongs_to_one_server_before_it_listens_and_after() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = reserve(any).unwrap();
        let address = first.local_addr().unwrap().as_socket().unwrap();
        let others: Vec<_> = (0..3).map(|_| join(address).unwrap()).collect();
        let taken = || reserve(address).unwrap_err().kind();
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
        let successor = reserve(address).unwrap();
        successor.listen(8).unwrap();
    }
}
