//! What a client asks of a store ([`Op`]), and what comes of the request ([`Outcome`]). HTTP, the messages between
//! threads and the engine all use these two types. Pure.
//!
//! Both are generic over the memory of their bytes. An operation that a connection has parsed borrows from its input
//! (`Op<&[u8]>`); an operation that waits, or travels to another thread, owns its bytes (`Op<Bytes>`). In the same way an
//! outcome may borrow a value from a memtable or own it.
//!
//! A new verb starts here: add its variant, and the compiler names every place that has to know it.

use bytes::Bytes;

use crate::key::{Key, SeqNo, UnixMillis};

/// An operation on one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<B> {
    /// Look up the value of a key.
    Get {
        /// The key.
        key: Key<B>,
    },
    /// Set a key to a value.
    Set {
        /// The key.
        key: Key<B>,
        /// The value.
        value: B,
        /// When the value expires.
        expires: Option<UnixMillis>,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: Key<B>,
    },
}

impl<B: AsRef<[u8]>> Op<B> {
    /// The key that the operation is about.
    pub fn key(&self) -> &Key<B> {
        match self {
            Self::Get { key } | Self::Set { key, .. } | Self::Delete { key } => key,
        }
    }

    /// Whether the operation may change the key.
    pub fn writes(&self) -> bool {
        match self {
            Self::Get { .. } => false,
            Self::Set { .. } | Self::Delete { .. } => true,
        }
    }

    /// Bytes of the value that the operation carries.
    pub fn value_bytes(&self) -> usize {
        match self {
            Self::Set { value, .. } => value.as_ref().len(),
            Self::Get { .. } | Self::Delete { .. } => 0,
        }
    }

    /// The same operation, borrowed.
    pub fn as_ref(&self) -> Op<&[u8]> {
        match self {
            Self::Get { key } => Op::Get { key: key.as_ref() },
            Self::Set { key, value, expires } => {
                Op::Set { key: key.as_ref(), value: value.as_ref(), expires: *expires }
            }
            Self::Delete { key } => Op::Delete { key: key.as_ref() },
        }
    }
}

/// Bytes that can be owned: at the price of a copy, or for nothing if they are owned already.
pub trait ToBytes: AsRef<[u8]> {
    /// The bytes, owned.
    fn to_bytes(&self) -> Bytes;
}

impl ToBytes for &[u8] {
    fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl ToBytes for Bytes {
    fn to_bytes(&self) -> Bytes {
        self.clone()
    }
}

impl<B> Op<B> {
    /// The same operation on other bytes.
    pub fn map<C>(&self, mut of: impl FnMut(&B) -> C) -> Op<C> {
        match self {
            Self::Get { key } => Op::Get { key: key.map(of) },
            Self::Set { key, value, expires } => {
                Op::Set { key: key.map(&mut of), value: of(value), expires: *expires }
            }
            Self::Delete { key } => Op::Delete { key: key.map(of) },
        }
    }
}

impl<B: ToBytes> Op<B> {
    /// The operation, owning its bytes.
    pub fn to_owned(&self) -> Op<Bytes> {
        self.map(B::to_bytes)
    }
}

/// What became of an operation that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<B> {
    /// The write is done, and durable.
    Written {
        /// The SeqNo of the write.
        seqno: SeqNo,
    },
    /// The key has this value.
    Value {
        /// The value.
        value: B,
        /// The SeqNo of the write that set it.
        seqno: SeqNo,
        /// When the value expires.
        expires: Option<UnixMillis>,
    },
    /// The key is absent, and its absence is durable.
    Missing,
}

impl<B: AsRef<[u8]>> Outcome<B> {
    /// Bytes of the value, if there is one.
    pub fn value_bytes(&self) -> usize {
        match self {
            Self::Value { value, .. } => value.as_ref().len(),
            Self::Written { .. } | Self::Missing => 0,
        }
    }
}

impl Outcome<&[u8]> {
    /// A copy that owns its bytes.
    pub fn to_owned(self) -> Outcome<Bytes> {
        match self {
            Self::Written { seqno } => Outcome::Written { seqno },
            Self::Value { value, seqno, expires } => {
                Outcome::Value { value: Bytes::copy_from_slice(value), seqno, expires }
            }
            Self::Missing => Outcome::Missing,
        }
    }
}
