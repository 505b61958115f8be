//! The one error type of ringkeep.
//!
//! Owns: what went wrong, in one sentence (what was attempted, on which file, at which offset), and the kind, which
//! tells the caller how to react. The HTTP status of each kind is chosen in `http/response.rs`, in one exhaustive
//! match.
//!
//! `Error` is one word wide. It is `Clone`, because one failed sync answers every write of a commit group, and `Send`,
//! because a reply may travel to another thread.

use std::fmt;
use std::io;
use std::sync::Arc;

/// A result with the [`Error`] of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller should do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong; the same request will fail again.
    InvalidRequest,
    /// The key or the value is over its limit.
    TooLarge,
    /// The shard cannot keep up; the same request will work later.
    Overloaded,
    /// The disk is full; writes work again once there is space, without a restart.
    DiskFull,
    /// The server is stopping. Another attempt must go to its successor.
    ShuttingDown,
    /// Bytes on disk are not what was written; an operator has to look.
    Corruption,
    /// The operating system refused an operation.
    Io,
    /// An earlier write or sync of the WAL or the manifest failed: the shard takes no more writes and the
    /// process ends, because what is on disk is no longer certain (P6).
    Poisoned,
    /// The configuration, or the system that the server runs on, does not allow a start.
    Configuration,
    /// Another process holds the data directory.
    Locked,
    /// Another process listens on the address.
    AddressInUse,
    /// The data directory cannot be created.
    CannotCreate,
    /// The operating system denies access.
    Permission,
}

impl ErrorKind {
    /// The exit status of a process that ends because of this kind. The numbers follow `sysexits.h` of BSD.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Corruption => 65,
            Self::AddressInUse => 69,
            Self::CannotCreate => 73,
            Self::Poisoned => 74,
            Self::Locked => 75,
            Self::Permission => 77,
            Self::Configuration => 78,
            Self::InvalidRequest
            | Self::TooLarge
            | Self::Overloaded
            | Self::DiskFull
            | Self::ShuttingDown
            | Self::Io => 1,
        }
    }
}

/// An error: a kind to act on and a sentence to read.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
    /// The device cannot return these bytes.
    unreadable: bool,
}

/// Whether the system refused an operation because it lacks space.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether the device cannot return a part of what it stores, while the rest of the device works. Linux reports EIO.
/// For a medium error it may report ENODATA, EILSEQ or EREMOTEIO instead, depending on the cause (`blk_errors` in its
/// block layer).
pub fn is_unreadable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::ENODATA | libc::EILSEQ | libc::EREMOTEIO))
}

impl Error {
    /// An error whose message says everything.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: None, unreadable: false }))
    }

    /// A refusal of the operating system. `attempt` names the operation and its object, for example
    /// `write 4096 bytes at offset 8192 of shard-000/000007.wal`. A full disk and an address in use get kinds of their own.
    pub fn io(attempt: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            _ if is_full(&source) => ErrorKind::DiskFull,
            io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            io::ErrorKind::AddrInUse => ErrorKind::AddressInUse,
            _ => ErrorKind::Io,
        };
        Self(Arc::new(Inner { kind, message: attempt.into(), source: Some(source), unreadable: false }))
    }

    /// A read that the operating system refused.
    pub fn read(attempt: impl Into<String>, source: io::Error) -> Self {
        let (kind, unreadable) = (ErrorKind::Io, is_unreadable(&source));
        if !unreadable {
            return Self::io(attempt, source);
        }
        Self(Arc::new(Inner { kind, message: attempt.into(), source: Some(source), unreadable }))
    }

    /// A thread that the system refused to start.
    pub fn thread(attempt: &str, source: io::Error) -> Self {
        let refused = source.kind() == io::ErrorKind::WouldBlock;
        let hint = if refused {
            "; the limit on tasks is too low (ulimit -u, TasksMax= in a systemd unit)"
        } else {
            ""
        };
        Self::new(ErrorKind::Configuration, format!("cannot {attempt}: {source}{hint}"))
    }

    /// Bytes of `file` at `offset` that are not what was written.
    pub fn corruption(file: &str, offset: u64, reason: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Corruption, format!("{file} is damaged at offset {offset}: {reason}"))
    }

    /// Bytes of `file` at `offset` that a decoder refused: damage, or bytes that a later version wrote. Bytes of a
    /// later version are an error of the kind `Configuration`.
    pub fn undecodable(file: &str, offset: u64, reason: CorruptionReason) -> Self {
        match reason {
            CorruptionReason::Damaged(_) => Self::corruption(file, offset, reason),
            CorruptionReason::LaterVersion { .. } => {
                let message =
                    format!("cannot read {file} at offset {offset}: {reason}; use the version that wrote it");
                Self::new(ErrorKind::Configuration, message)
            }
        }
    }

    /// The same error with another kind, for a caller that knows more about its meaning.
    #[must_use]
    pub fn with_kind(&self, kind: ErrorKind) -> Self {
        let source = self.0.source.as_ref().map(clone_io);
        Self(Arc::new(Inner { kind, message: self.0.message.clone(), source, unreadable: self.0.unreadable }))
    }

    /// Whether bytes on disk are not what was written, or cannot be read. Nothing but these bytes is affected.
    pub fn is_damage(&self) -> bool {
        self.0.kind == ErrorKind::Corruption || self.0.unreadable
    }

    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

/// A copy of `error`. `io::Error` is not `Clone`, so the copy is made from its code, or from its kind and text.
pub fn clone_io(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.source {
            None => f.write_str(&self.0.message),
            Some(source) => {
                write!(f, "cannot {}: {source}", self.0.message)?;
                if source.raw_os_error() == Some(libc::ECANCELED) {
                    // Nothing here cancels an operation.
                    f.write_str(
                        "; the kernel could not start a worker: raise the limit on tasks (ulimit -u, TasksMax= in a \
                         systemd unit)",
                    )?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

/// Why a decoder refused some bytes. Pure code returns it; the I/O layer adds file and offset
/// ([`Error::undecodable`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CorruptionReason {
    /// The bytes are not what was written.
    Damaged(&'static str),
    /// The checksum matches, but the bytes use something that a later version of ringkeep has introduced.
    LaterVersion {
        /// What has a version, for example `record format`.
        what: &'static str,
        /// The version, or the code, that was found.
        found: u8,
        /// The highest version that this program knows.
        known: u8,
    },
}

impl fmt::Display for CorruptionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(reason) => f.write_str(reason),
            Self::LaterVersion { what, found, known } => write!(
                f,
                "{what} {found} is of a later version of ringkeep, but this program knows {what} {known} at most"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_its_own_kind_and_the_sentence_names_the_attempt() {
        let error = Error::io(
            "write 4096 bytes at offset 0 of 000001.sst",
            io::Error::from_raw_os_error(libc::ENOSPC),
        );
        assert_eq!(error.kind(), ErrorKind::DiskFull);
        assert_eq!(
            error.to_string(),
            "cannot write 4096 bytes at offset 0 of 000001.sst: No space left on device (os error 28)"
        );
        let fatal = error.with_kind(ErrorKind::Poisoned);
        assert_eq!(fatal.kind().exit_status(), 74);
        assert!(fatal.to_string().contains("os error 28"), "the cause is kept");
    }
}
