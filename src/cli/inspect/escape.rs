//! Keys on a terminal: percent escapes, which `--key` and the queries of the HTTP API read as well.

use super::Key;

/// The characters that stand for themselves. `+` does not: in a query it is a space.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$'()*,/:;@{}[]|".contains(&byte)
}

/// The whole key.
pub(super) fn escaped(key: &[u8]) -> String {
    let mut text = String::new();
    for &byte in key {
        match is_plain(byte) {
            true => text.push(char::from(byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// The front of the key, with its length if that is not all of it.
pub(super) fn shortened(key: &[u8]) -> String {
    const BYTES_MAX: usize = 40;
    match key.get(..BYTES_MAX) {
        Some(front) if front.len() < key.len() => format!("{}… ({} bytes)", escaped(front), key.len()),
        _ => escaped(key),
    }
}

fn digit(digit: char) -> Option<u8> {
    digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Reads a key with percent escapes. Other characters stand for their UTF-8 bytes, `+` and spaces included.
pub(super) fn key(text: &str) -> Result<Key, String> {
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
    Key::new(bytes)
}

/// Reads a key in hexadecimal digits.
pub(super) fn hexadecimal(text: &str) -> Result<Key, String> {
    let digits: Option<Vec<u8>> = text.chars().map(digit).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2));
    let digits = digits.ok_or("expected two hexadecimal digits for each byte")?;
    Key::new(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_can_be_shown_and_given_back() {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(key(&escaped(&bytes)).unwrap().0, bytes);
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hexadecimal(&digits).unwrap().0, bytes);
        assert_eq!(key("a+b c%2525ä").unwrap().0, "a+b c%25ä".as_bytes());
        assert_eq!(escaped(b"a+b&c=%\"\0"), "a%2Bb%26c%3D%25%22%00");
        assert!(escaped("ä".as_bytes()).is_ascii());
        for text in ["", "%", "%0", "%0g", "%ä", "a%"] {
            assert!(key(text).is_err(), "{text}");
        }
        for text in ["", "0", "0g", "012"] {
            assert!(hexadecimal(text).is_err(), "{text}");
        }
        assert_eq!(shortened(&[b'a'; 40]), "a".repeat(40));
        assert_eq!(shortened(&[b'a'; 41]), format!("{}… (41 bytes)", "a".repeat(40)));
    }
}
