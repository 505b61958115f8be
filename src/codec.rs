//! Little-endian integers, varints and checksums over byte slices. Pure; every read is bounds-checked.
//!
//! Integers on disk are little-endian. A varint is LEB128: seven bits per byte, low bits first, the high bit set on all
//! bytes except the last; at most ten bytes.

use crate::error::CorruptionReason;

/// Bytes of the longest varint.
pub const VARINT_BYTES_MAX: usize = 10;

/// Appends `value` as a varint.
pub fn put_varint(out: &mut Vec<u8>, value: u64) {
    let mut buffer = [0; VARINT_BYTES_MAX];
    out.extend_from_slice(varint(value, &mut buffer));
}

/// Encodes `value` into `buffer` and returns the bytes that it took.
pub fn varint(mut value: u64, buffer: &mut [u8; VARINT_BYTES_MAX]) -> &[u8] {
    let mut count = 0;
    for slot in buffer.iter_mut() {
        count += 1;
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            *slot = low;
            break;
        }
        *slot = low | 0x80;
    }
    &buffer[..count]
}

/// Appends the length of `bytes` as a varint, then `bytes`.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// CRC-32 (IEEE) of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// `value` as a `usize`. The crate supports 64-bit targets only, so nothing is lost.
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted at compile time below")]
pub const fn to_usize(value: u64) -> usize {
    value as usize
}
const _: () = assert!(usize::BITS == 64);

/// `value` rounded up to a multiple of `align`, a power of two.
pub const fn align_up(value: u64, align: u64) -> u64 {
    (value + align - 1) & !(align - 1)
}

/// From this length on, `memchr` finds a byte with fewer instructions than a loop does. Most keys are shorter.
const LONG_BYTES: usize = 32;

/// Where `byte` is in `bytes`.
#[inline]
pub fn find(byte: u8, bytes: &[u8]) -> Option<usize> {
    if bytes.len() < LONG_BYTES {
        bytes.iter().position(|other| *other == byte)
    } else {
        memchr::memchr(byte, bytes)
    }
}

/// Where the first of two bytes is in `bytes`.
#[inline]
pub fn find_either(one: u8, other: u8, bytes: &[u8]) -> Option<usize> {
    if bytes.len() < LONG_BYTES {
        bytes.iter().position(|byte| [one, other].contains(byte))
    } else {
        memchr::memchr2(one, other, bytes)
    }
}

/// Reads fields from the front of a slice.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader over all of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether all bytes have been read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `count` bytes.
    #[inline]
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], CorruptionReason> {
        let (head, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(CorruptionReason::Damaged("a field runs past the end"))?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], CorruptionReason> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(CorruptionReason::Damaged("a field runs past the end"))?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, CorruptionReason> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Result<u16, CorruptionReason> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Result<u32, CorruptionReason> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Result<u64, CorruptionReason> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The next varint.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, CorruptionReason> {
        // A lookup reads dozens of lengths in a block, and most of them are under 128.
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, CorruptionReason> {
        let mut value = 0_u64;
        for index in 0..VARINT_BYTES_MAX {
            let byte = self.u8()?;
            if index == VARINT_BYTES_MAX - 1 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(CorruptionReason::Damaged("a varint is over 64 bits"))
    }

    /// The next varint, as a length in memory.
    #[inline]
    pub fn length(&mut self) -> Result<usize, CorruptionReason> {
        self.varint().map(to_usize)
    }

    /// The next length, as a varint, and then that many bytes.
    pub fn length_and_bytes(&mut self) -> Result<&'a [u8], CorruptionReason> {
        let length = self.length()?;
        self.bytes(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_found_in_short_and_in_long_bytes() {
        for length in 0..2 * LONG_BYTES {
            for at in 0..=length {
                let mut bytes = vec![b'.'; length];
                bytes[at..].fill(b'a');
                if let Some(last) = bytes[at..].last_mut() {
                    *last = b'b';
                }
                let (one, other) = ((at + 1 < length).then_some(at), (at < length).then(|| length - 1));
                assert_eq!((find(b'a', &bytes), find(b'b', &bytes)), (one, other));
                assert_eq!(find_either(b'b', b'a', &bytes), one.or(other));
            }
        }
    }

    #[test]
    fn varints_round_trip_at_every_length() {
        for shift in 0..64 {
            for value in [1_u64 << shift, (1_u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                let mut reader = Reader::new(&out);
                assert_eq!(reader.varint(), Ok(value));
                assert!(reader.is_empty());
                out.pop();
                assert!(Reader::new(&out).varint().is_err(), "a cut varint is refused");
            }
        }
        assert!(Reader::new(&[0xff; 11]).varint().is_err());
        assert!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).varint().is_err());
    }

    #[test]
    fn reads_past_the_end_are_errors() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert!(reader.u32().is_err());
        assert_eq!(reader.u16(), Ok(0x0201));
        assert!(reader.bytes(2).is_err());
        assert!(Reader::new(&[200, 1, 0]).length_and_bytes().is_err());
    }
}
