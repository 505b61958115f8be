//! The byte stream to a client, whatever carries it. A connection is generic over [`Stream`], so another transport
//! needs one implementation and no change of the protocol.

use std::io;
use std::net::{IpAddr, Shutdown};

use bytes::Bytes;

/// A stream of bytes in both directions.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait Stream {
    /// Appends what has arrived to `buffer`, up to its capacity. Returns the number of bytes read; 0 at the end of the
    /// stream.
    ///
    /// # Errors
    /// `InvalidData` if the bytes are encrypted, and the client does not keep to the protocol.
    ///
    /// Cancel safety: not safe; the kernel may still fill the buffer.
    async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>);

    /// Writes all of `buffer`, and gives it back.
    ///
    /// Cancel safety: not safe.
    async fn write_all(&self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>);

    /// Writes all of `bytes`.
    ///
    /// Cancel safety: not safe.
    async fn write_bytes(&self, bytes: Bytes) -> io::Result<()>;

    /// Says that no more will be written.
    ///
    /// Cancel safety: not safe.
    async fn finish(&self);

    /// Whether requests can be read. Before that, client and server still agree on how to encrypt them.
    fn is_established(&self) -> bool;

    /// The address of the client; `None` if it has none, as over a Unix socket.
    fn address(&self) -> Option<IpAddr>;

    /// Whether the client is on this host.
    fn is_local(&self) -> bool;

    /// Ends one direction or both. A read or write in flight returns.
    ///
    /// # Errors
    /// If the client has left already.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
}
