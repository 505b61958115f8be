//! Query parameters and percent-decoding. Pure.
//!
//! Decoding is strict and happens once. Two hexadecimal digits must follow a `%`, and `+` is a space, as in HTML forms. The
//! crate percent-encoding is not used, because it keeps bad escapes as they are: two clients could then write different
//! keys with the same bytes.

use std::borrow::Cow;

use super::Refusal;
use crate::codec::{find, find_either};

/// Splits a query at `&` and `=`, names and values still encoded.
///
/// # Errors
/// 400 for a part without `=`.
pub fn parameters(query: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), Refusal>> {
    let parts = (!query.is_empty()).then(|| query.split(|byte| *byte == b'&'));
    parts.into_iter().flatten().map(|part| {
        let at = find(b'=', part)
            .ok_or(Refusal::bad("a query parameter has no `=`; an `&` within a value is written %26"))?;
        Ok((&part[..at], &part[at + 1..]))
    })
}

/// Decodes the escapes of a name or a value.
///
/// # Errors
/// 400 for a bad escape.
pub fn decode(text: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    let Some(first) = find_either(b'%', b'+', text) else { return Ok(Cow::Borrowed(text)) };
    let wrong = Refusal::bad("a `%` in the query is not followed by two hexadecimal digits");
    let mut decoded = text[..first].to_vec();
    let mut rest = &text[first..];
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let [high, low, behind @ ..] = rest else { return Err(wrong) };
                rest = behind;
                let digit =
                    |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                match (digit(*high), digit(*low)) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(wrong),
                }
            }
            _ => byte,
        });
    }
    Ok(Cow::Owned(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_behind_a_percent_sign_is_a_byte_or_a_refusal() {
        for high in 0..=u8::MAX {
            for low in 0..=u8::MAX {
                let text = [b'a', b'%', high, low, b'b'];
                let hex = std::str::from_utf8(&text[2..4])
                    .ok()
                    .filter(|pair| pair.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .and_then(|pair| u8::from_str_radix(pair, 16).ok());
                assert_eq!(decode(&text).ok().map(Cow::into_owned), hex.map(|byte| vec![b'a', byte, b'b']));
            }
        }
        assert!(decode(b"%").is_err() && decode(b"%a").is_err() && decode(b"a%2").is_err());
        assert_eq!(&*decode(b"val%20smile+%2B%00").unwrap(), b"val smile +\0");
        assert_eq!(&*decode(b"%2520").unwrap(), b"%20", "decoded once");
        assert!(matches!(decode(b"plain"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn parameters_are_split_and_one_without_a_value_is_refused() {
        let all = |query: &'static str| parameters(query.as_bytes()).collect::<Result<Vec<_>, _>>();
        assert_eq!(all("").unwrap(), []);
        assert_eq!(all("a=1&b=&=c=d").unwrap(), [(&b"a"[..], &b"1"[..]), (b"b", b""), (b"", b"c=d")]);
        assert!(all("a").is_err() && all("a=1&").is_err());
    }
}
