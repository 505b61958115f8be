//! The bytes of keys and values. Both follow from numbers, so that every answer can be checked. Pure.
//!
//! ```text
//!   key    2 × number in decimal, zero-padded to the least size; then letters that follow from the number.
//!          A key that is never written has 2 × number + 1: it sorts between two keys that are written.
//!   value  version (8 bytes, if the value is that long; XORed with a hash of the key number, so that values have no
//!          bytes in common), then random bytes that follow from key number and version, then the same bytes
//!          repeated to the end of the value: this part compresses
//! ```
//!
//! Sorted keys look like those of any other store: neighbours share the leading digits of their numbers.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;

use crate::random::{Random, hash};

/// How long keys or values are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// All have the same length.
    Fixed(usize),
    /// Every length between the two, both included, is equally likely.
    Uniform(usize, usize),
    /// Every doubling between the two is equally likely: many short, few long.
    Logarithmic(usize, usize),
}

/// The greatest size that can be asked for: longer than anything that the server accepts.
const SIZE_MAX: usize = 1 << 30;

impl Size {
    /// The least length.
    pub fn min(&self) -> usize {
        match *self {
            Self::Fixed(bytes) | Self::Uniform(bytes, _) | Self::Logarithmic(bytes, _) => bytes,
        }
    }

    /// The greatest length.
    pub fn max(&self) -> usize {
        match *self {
            Self::Fixed(bytes) | Self::Uniform(_, bytes) | Self::Logarithmic(_, bytes) => bytes,
        }
    }

    /// The length that follows from a random number.
    pub fn of(&self, number: u64) -> usize {
        let mut random = Random::new(number);
        match *self {
            Self::Fixed(bytes) => bytes,
            Self::Uniform(least, most) => least + random.below((most - least) as u64 + 1) as usize,
            Self::Logarithmic(least, most) => {
                // Shifted by one, so that 0 bytes is a possible length.
                let ratio = (most + 2) as f64 / (least + 1) as f64;
                let bytes = ((least + 1) as f64 * ratio.powf(random.next_share())) as usize;
                (bytes - 1).clamp(least, most)
            }
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = |text: &str| {
            let size = text
                .parse::<ByteSize>()
                .map_err(|_| format!("`{text}` is not a size; expected one such as 100 or 64KiB"))?;
            let bytes = usize::try_from(size.as_u64()).ok().filter(|bytes| *bytes <= SIZE_MAX);
            bytes.ok_or_else(|| format!("`{text}` is over 1 GiB"))
        };
        let (logarithmic, range) = match text.strip_prefix("log:") {
            Some(range) => (true, range),
            None => (false, text),
        };
        match range.split_once("..") {
            None if logarithmic => Err("expected a range after `log:`, as in log:16..1MiB".into()),
            None => Ok(Self::Fixed(bytes(range)?)),
            Some((least, most)) => {
                let (least, most) = (bytes(least)?, bytes(most)?);
                if most < least {
                    return Err(format!("`{range}` ends before it begins"));
                }
                Ok(if logarithmic { Self::Logarithmic(least, most) } else { Self::Uniform(least, most) })
            }
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(bytes) => write!(f, "{bytes}"),
            Self::Uniform(least, most) => write!(f, "{least}..{most}"),
            Self::Logarithmic(least, most) => write!(f, "log:{least}..{most}"),
        }
    }
}

/// A key, identified by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The number of the key, from 0.
    pub number: u64,
    /// Whether this is the neighbour of that key instead, which is never written.
    pub missing: bool,
}

/// Generates the bytes of keys.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    size: Size,
}

/// Letters that need no escape in a URL.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl Keys {
    /// Generates keys with numbers below `count`.
    ///
    /// # Errors
    /// The least size that has enough digits for them, if `size` has not.
    pub fn new(size: Size, count: u64) -> Result<Self, usize> {
        let greatest = (2 * count).saturating_sub(1);
        let digits = greatest.max(1).ilog10() as usize + 1;
        if size.min() < digits { Err(digits) } else { Ok(Self { size }) }
    }

    /// Appends the bytes of `key`. No two keys have the same bytes.
    pub fn put(&self, out: &mut Vec<u8>, key: Key) {
        let start = out.len();
        let digits = self.size.min();
        out.resize(start + digits, b'0');
        let mut rest = 2 * key.number + u64::from(key.missing);
        for digit in out[start..].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let own = hash(KEY_SEED, key.number);
        let mut random = Random::new(own);
        for _ in digits..self.size.of(own) {
            out.push(LETTERS[random.next_u64() as usize % LETTERS.len()]);
        }
    }
}

/// Generates the bytes of values.
#[derive(Debug, Clone, Copy)]
pub struct Values {
    size: Size,
    compressible: f64,
}

/// The number that the length and the bytes of a value follow from.
fn own(number: u64, version: u64) -> u64 {
    hash(hash(VALUE_SEED, number), version)
}

/// The number with which the versions of a key are XORed.
fn mask(number: u64) -> u64 {
    hash(VERSION_SEED, number)
}

const KEY_SEED: u64 = 1;
const VALUE_SEED: u64 = 2;
const VERSION_SEED: u64 = 3;

/// Length of the version with which a value begins, if the value is long enough.
const VERSION_BYTES: usize = 8;
/// At least this many bytes of each unit are not repeated from before, even if all of a value is to compress.
const FRESH_BYTES_MIN: usize = 2 * VERSION_BYTES;
/// Repeated bytes lie at most this far back, within the window of every compressor.
const UNIT_BYTES: usize = 4096;

impl Values {
    /// Values of which the share `compressible`, between 0 and 1, repeats earlier bytes.
    pub fn new(size: Size, compressible: f64) -> Self {
        Self { size, compressible: compressible.clamp(0.0, 1.0) }
    }

    /// The least and the greatest length of a value.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Appends the value that a version of a key has.
    pub fn put(&self, out: &mut Vec<u8>, number: u64, version: u64) {
        let own = own(number, version);
        let mut random = Random::new(own);
        let start = out.len();
        let end = start + self.size.of(own);
        if start + VERSION_BYTES <= end {
            out.extend_from_slice(&(version ^ mask(number)).to_le_bytes());
        }
        for unit in (start..end).step_by(UNIT_BYTES) {
            let unit_end = end.min(unit + UNIT_BYTES);
            let random_bytes = ((1.0 - self.compressible) * (unit_end - unit) as f64).ceil() as usize;
            let fresh_end = unit_end.min(unit + random_bytes.max(FRESH_BYTES_MIN));
            while out.len() < fresh_end {
                out.extend_from_slice(&random.next_u64().to_le_bytes());
            }
            out.truncate(fresh_end);
            while out.len() < unit_end {
                let more = (out.len() - unit).min(unit_end - out.len());
                out.extend_from_within(unit..unit + more);
            }
        }
    }

    /// The version that a value of key `number` claims; `None` if the value is too short to hold one.
    pub fn version(&self, value: &[u8], number: u64) -> Option<u64> {
        Some(u64::from_le_bytes(*value.first_chunk()?) ^ mask(number))
    }

    /// Whether `value` is the value that a version of a key has. `scratch` is working memory.
    pub fn matches(&self, value: &[u8], number: u64, version: u64, scratch: &mut Vec<u8>) -> bool {
        if value.len() != self.size.of(own(number, version)) {
            return false;
        }
        scratch.clear();
        self.put(scratch, number, version);
        value == scratch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_trip_and_stay_within_their_bounds() {
        for text in ["100", "16..1000", "log:16..1048576"] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.to_string(), text);
            let lengths: Vec<usize> = (0..10_000).map(|number| size.of(number)).collect();
            let (least, most) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
            assert!(size.min() <= *least && *most <= size.max(), "{text}: {least} to {most}");
            assert!(*least < 2 * size.min() && size.max() < 2 * *most, "{text}: {least} to {most}");
        }
        assert!((0..1000).any(|number| Size::Logarithmic(0, 1000).of(number) == 0));
        assert_eq!("0..1KiB".parse::<Size>().unwrap(), Size::Uniform(0, 1024));
        let mut lengths: Vec<usize> =
            (0..9999).map(|number| Size::Logarithmic(1, 1 << 20).of(number)).collect();
        lengths.sort_unstable();
        assert!((500..2000).contains(&lengths[5000]), "half are below the square root of the greatest");
        for text in ["", "x", "5..3", "log:5", "1..", "-1", "0..2GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn keys_are_distinct_ordered_by_number_and_of_the_size_asked_for() {
        for size in [Size::Fixed(16), Size::Uniform(5, 60)] {
            let keys = Keys::new(size, 10_000).unwrap();
            let mut found = Vec::new();
            for number in 0..10_000 {
                for missing in [false, true] {
                    let mut key = Vec::new();
                    keys.put(&mut key, Key { number, missing });
                    assert!((size.min()..=size.max()).contains(&key.len()));
                    found.push(key);
                }
            }
            assert!(found.is_sorted_by(|one, next| one < next));
        }
        assert_eq!(Keys::new(Size::Fixed(4), 10_000).unwrap_err(), 5);
        assert!(Keys::new(Size::Fixed(4), 5_000).is_ok());
    }

    #[test]
    fn b1_a_value_follows_from_key_and_version_and_each_of_its_bytes_is_compared() {
        let mut scratch = Vec::new();
        for (size, step) in [(1, 1), (7, 1), (8, 1), (100, 1), (5_000, 41)] {
            for compressible in [0.0, 0.5, 1.0] {
                let values = Values::new(Size::Fixed(size), compressible);
                let (mut value, mut again) = (Vec::new(), Vec::new());
                values.put(&mut value, 5, 9);
                values.put(&mut again, 5, 9);
                assert_eq!(value, again);
                for at in (0..size).step_by(step).chain([size - 1]) {
                    let mut damaged = value.clone();
                    damaged[at] ^= 1 << (at % 8);
                    assert!(!values.matches(&damaged, 5, 9, &mut scratch), "byte {at} of {size}");
                }
                let longer = [&value[..], b"x"].concat();
                for other in [&value[1..], &value[..size - 1], &longer, b""] {
                    assert!(!values.matches(other, 5, 9, &mut scratch), "{} bytes of {size}", other.len());
                }
            }
        }
    }

    #[test]
    fn values_say_their_version_and_match_no_other() {
        let mut scratch = Vec::new();
        for size in [0, 1, 7, 8, 9, 100, 4096, 4097, 9000] {
            for compressible in [0.0, 0.5, 1.0] {
                let values = Values::new(Size::Fixed(size), compressible);
                let mut value = Vec::new();
                values.put(&mut value, 5, 9);
                assert_eq!(value.len(), size);
                assert!(values.matches(&value, 5, 9, &mut scratch));
                if VERSION_BYTES <= size {
                    assert_eq!(values.version(&value, 5), Some(9));
                    assert!(!values.matches(&value, 5, 10, &mut scratch));
                    let mut damaged = value.clone();
                    *damaged.last_mut().unwrap() ^= 1;
                    assert!(!values.matches(&damaged, 5, 9, &mut scratch));
                }
                if VERSION_BYTES < size {
                    let mut other = Vec::new();
                    values.put(&mut other, 6, 9);
                    assert!(!values.matches(&other, 5, 9, &mut scratch));
                }
            }
        }
        for size in [10_000, 1_000_000] {
            let mut value = Vec::new();
            Values::new(Size::Fixed(size), 0.5).put(&mut value, 1, 1);
            let packed = lz4_flex::block::compress(&value).len();
            assert!((size * 49 / 100..size * 54 / 100).contains(&packed), "half of it compresses: {packed}");
        }
        let mut block = Vec::new();
        (0..40).for_each(|number| Values::new(Size::Fixed(100), 0.5).put(&mut block, number, 1));
        let packed = lz4_flex::block::compress(&block).len();
        assert!((2000..2300).contains(&packed), "half of short values compresses, too: {packed}");
    }
}
