//! The byte stream to a client, whatever carries it. A connection is generic over [`Stream`], so another transport
//! needs one implementation and no change of the protocol.
//!
//! Sockets go through the ring as files do, so one loop drives both. Through `tokio_uring::net` a request and its reply
//! took 8.6 µs (7.6 to 10.1), through `tokio::net` 8.2 µs (7.6 to 8.5), the client's part included (`cargo bench --bench
//! designs -- sockets`, on the machine of BENCHMARKS.md). The difference is no reason for a second loop.

use std::io;
use std::net::Shutdown;

use bytes::Bytes;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

/// A stream of bytes in both directions.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait Stream {
    /// Appends what has arrived to `buffer`, up to its capacity. Returns the number of bytes read; 0 at the end of the
    /// stream.
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

    /// Ends one direction or both. A read or write in flight returns.
    ///
    /// # Errors
    /// If the client has left already.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
}

impl Stream for TcpStream {
    async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let filled = buffer.len();
        let (result, slice) = TcpStream::read(self, buffer.slice(filled..)).await;
        (result, slice.into_inner())
    }

    async fn write_all(&self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        TcpStream::write_all(self, buffer).await
    }

    async fn write_bytes(&self, bytes: Bytes) -> io::Result<()> {
        TcpStream::write_all(self, bytes).await.0
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        TcpStream::shutdown(self, how)
    }
}
