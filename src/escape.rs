//! Bytes as text: keys with percent escapes, which `--key` and the queries of the HTTP API read as well, and hexadecimal
//! digits. Pure.

use std::fmt::Write;

/// The characters that stand for themselves. Every URL may have them in its query, and neither shells nor curl give them
/// another meaning: to curl, `{a}` is a list. In a query, `+` is a space.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~,/:@".contains(&byte)
}

/// The whole key.
pub fn escaped(key: &[u8]) -> String {
    let mut text = String::new();
    for &byte in key {
        match is_plain(byte) {
            true => text.push(char::from(byte)),
            false => {
                let _ = write!(text, "%{byte:02X}"); // a string takes everything
            }
        }
    }
    text
}

/// The front of the key, with its length if that is not all of it.
pub fn shortened(key: &[u8]) -> String {
    const BYTES_MAX: usize = 40;
    match key.get(..BYTES_MAX) {
        Some(front) if front.len() < key.len() => format!("{}… ({} bytes)", escaped(front), key.len()),
        _ => escaped(key),
    }
}

fn digit(digit: char) -> Option<u8> {
    digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Reads percent escapes. Other characters stand for their UTF-8 bytes, `+` and spaces included.
///
/// # Errors
/// What is wrong with the text, as a sentence.
pub fn unescaped(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let mut digits = rest[at + 1..].chars();
        let pair = (digits.next().and_then(digit), digits.next().and_then(digit));
        let (Some(high), Some(low)) = pair else {
            return Err("a % is not followed by two hexadecimal digits; a percent sign is written %25".into());
        };
        bytes.push(high << 4 | low);
        rest = digits.as_str();
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

/// Two hexadecimal digits for each byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a string takes everything
        text
    })
}

/// Reads hexadecimal digits, two for each byte. `None` if the text is anything else.
pub fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(digit).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_can_be_shown_and_given_back() {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(unescaped(&escaped(&bytes)).unwrap(), bytes);
        assert_eq!(hexadecimal(b"\0\x9a\xff"), "009aff");
        assert_eq!(from_hexadecimal(&hexadecimal(&bytes)).unwrap(), bytes);
        assert_eq!(unescaped("a+b c%2525ä").unwrap(), "a+b c%25ä".as_bytes());
        assert_eq!(escaped(b"{user:1}/a,b@c"), "%7Buser:1%7D/a,b@c");
        assert_eq!(escaped(b"a+b&c=%\"\0"), "a%2Bb%26c%3D%25%22%00");
        assert!(escaped("ä".as_bytes()).is_ascii());
        for text in ["%", "%0", "%0g", "%ä", "a%"] {
            assert!(unescaped(text).is_err(), "{text}");
        }
        for text in ["0", "0g", "012", "ää"] {
            assert!(from_hexadecimal(text).is_none(), "{text}");
        }
        assert_eq!(shortened(&[b'a'; 40]), "a".repeat(40));
        assert_eq!(shortened(&[b'a'; 41]), format!("{}… (41 bytes)", "a".repeat(40)));
    }
}
