//! A part of a value: the `Range` field of a GET (RFC 9110, 14). Pure.
//!
//! One range of bytes is understood. Several ranges, other units and what is malformed are ignored, as the RFC allows: the
//! client gets the whole value.

use std::ops::Range;

use super::decimal;

/// One range, as a client asks for it. A position beyond 32 bits lies behind every value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// From the first byte to the last one, or to the end.
    From(u32, Option<u32>),
    /// As many bytes at the end.
    Last(u32),
}

impl ByteRange {
    /// Reads the value of the field. `None` if it is to be ignored.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (unit, range) = value.split_at_checked(b"bytes=".len())?;
        if !unit.eq_ignore_ascii_case(b"bytes=") {
            return None;
        }
        let dash = memchr::memchr(b'-', range)?;
        match (&range[..dash], &range[dash + 1..]) {
            (b"", b"") => None,
            (b"", last) => Some(Self::Last(number(last)?)),
            (first, b"") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The range in a value of `bytes` bytes. `None` if it lies outside.
    pub fn of(self, bytes: usize) -> Option<Range<usize>> {
        let clamp = |position: u32| usize::try_from(position).unwrap_or(usize::MAX).min(bytes);
        let range = match self {
            Self::From(first, last) => clamp(first)..last.map_or(bytes, |last| clamp(last.saturating_add(1))),
            Self::Last(count) => bytes - clamp(count)..bytes,
        };
        (!range.is_empty()).then_some(range)
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    decimal(digits).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_bytes_is_understood_and_everything_else_is_ignored() {
        for (text, expected) in [
            ("bytes=0-0", Some(Some(0..1))),
            ("bytes=0-9", Some(Some(0..10))),
            ("Bytes=2-", Some(Some(2..10))),
            ("bytes=9-100", Some(Some(9..10))),
            ("bytes=-3", Some(Some(7..10))),
            ("bytes=-100", Some(Some(0..10))),
            ("bytes=0-18446744073709551615", Some(Some(0..10))),
            ("bytes=10-", Some(None)),
            ("bytes=100-200", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=5-4", None),
            ("bytes=-", None),
            ("bytes=", None),
            ("bytes=a-b", None),
            ("bytes=+1-2", None),
            ("bytes=1-2,4-5", None),
            ("bytes=18446744073709551616-", None),
            ("lines=0-1", None),
            ("", None),
        ] {
            let found = ByteRange::parse(text.as_bytes()).map(|range| range.of(10));
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(ByteRange::From(0, None).of(0), None);
    }
}
