//! The host that a request is for: the `Host` field, or the authority of a target in absolute form. Pure.
//!
//! A page of another site reaches a server on a private address by a name that its owner lets point there (DNS
//! rebinding). The browser then sends that name. So names have to be known, while an IP address proves that no name was
//! looked up.

use std::cell::RefCell;
use std::net::Ipv6Addr;

use super::decimal;

/// The longest address with its port; a longer one is read again each time.
const ADDRESS_BYTES_MAX: usize = 64;

/// What kind of host a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority<'a> {
    /// An IP address, or `localhost`.
    Known,
    /// Another name.
    Name(&'a [u8]),
}

impl<'a> Authority<'a> {
    /// Reads `host[:port]` (RFC 3986, 3.2.2 and 3.2.3). `None` if it is malformed, or has no host. User information before
    /// the host is malformed, too.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        if let Some(rest) = text.strip_prefix(b"[") {
            let end = memchr::memchr(b']', rest)?;
            let address = std::str::from_utf8(&rest[..end]).ok()?;
            let is_address = address.parse::<Ipv6Addr>().is_ok();
            return (is_address && is_port(&rest[end + 1..])).then_some(Self::Known);
        }
        let colon = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
        let (host, port) = text.split_at(colon);
        if host.is_empty() || !is_port(port) {
            return None;
        }
        if is_ipv4(host) || host.eq_ignore_ascii_case(b"localhost") {
            return Some(Self::Known);
        }
        is_name(host).then_some(Self::Name(host))
    }
}

/// The last host, with its port, that was found to be an address. Nearly all requests to a server name the same host.
#[derive(Debug, Clone, Default)]
pub struct LastAddress(RefCell<Vec<u8>>);

impl LastAddress {
    /// As [`Authority::parse`].
    pub fn parse<'a>(&self, text: &'a [u8]) -> Option<Authority<'a>> {
        if !text.is_empty() && *self.0.borrow() == text {
            return Some(Authority::Known);
        }
        let authority = Authority::parse(text);
        if authority == Some(Authority::Known) && text.len() <= ADDRESS_BYTES_MAX {
            let mut last = self.0.borrow_mut();
            last.clear();
            last.extend_from_slice(text);
        }
        authority
    }
}

/// Four numbers of a byte each, without zeros before them. Every request comes here, and `Ipv4Addr` takes text only.
fn is_ipv4(host: &[u8]) -> bool {
    let is_number = |part: &[u8]| {
        part.len() <= 3
            && (part.len() == 1 || part.first() != Some(&b'0'))
            && decimal(part).is_some_and(|number| number <= u64::from(u8::MAX))
    };
    let mut parts = host.split(|byte| *byte == b'.');
    (0..4).all(|_| parts.next().is_some_and(is_number)) && parts.next().is_none()
}

/// Nothing, or a colon and a port, which may be empty.
fn is_port(text: &[u8]) -> bool {
    match text.split_first() {
        None => true,
        Some((b':', b"")) => true,
        Some((b':', digits)) => decimal(digits).is_some_and(|port| port <= u64::from(u16::MAX)),
        Some(_) => false,
    }
}

/// Unreserved characters, escapes, and sub-delimiters.
fn is_name(mut host: &[u8]) -> bool {
    while let Some((byte, rest)) = host.split_first() {
        host = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => rest,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => rest,
            b'%' => match rest {
                [high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
                _ => return false,
            },
            _ => return false,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_localhost_are_known_names_are_named_and_the_rest_is_malformed() {
        for text in [
            "localhost",
            "LocalHost:8080",
            "localhost:",
            "127.0.0.1",
            "10.1.2.3:65535",
            "[::1]",
            "[::1]:80",
            "[2001:db8::1.2.3.4]",
        ] {
            assert_eq!(Authority::parse(text.as_bytes()), Some(Authority::Known), "{text}");
        }
        for (text, name) in [
            ("evil.example:8080", "evil.example"),
            ("localhost.", "localhost."),
            ("localhost.evil.example", "localhost.evil.example"),
            ("127.0.0.1.evil.example", "127.0.0.1.evil.example"),
            ("127.1", "127.1"),
            ("127.0.0.01", "127.0.0.01"),
            ("127.0.0.256", "127.0.0.256"),
            ("127.0.0.1.", "127.0.0.1."),
            ("1.2.3.4.5", "1.2.3.4.5"),
            ("1..2.3", "1..2.3"),
            (".1.2.3", ".1.2.3"),
            ("0127.0.0.1", "0127.0.0.1"),
            ("0x7f000001", "0x7f000001"),
            ("2130706433", "2130706433"),
            ("a.b-c_d~e", "a.b-c_d~e"),
            ("a%41", "a%41"),
        ] {
            let expected = Some(Authority::Name(name.as_bytes()));
            assert_eq!(Authority::parse(text.as_bytes()), expected, "{text}");
            let last = LastAddress::default();
            for text in ["127.0.0.1:80", text, "127.0.0.1:80", ""] {
                assert_eq!(last.parse(text.as_bytes()), Authority::parse(text.as_bytes()), "{text}");
                assert_eq!(last.0.borrow()[..], b"127.0.0.1:80"[..]);
            }
        }
        for text in [
            "",
            ":80",
            "a b",
            "a\tb",
            "a<b>",
            "a/b",
            "a\\b",
            "a#b",
            "a?b",
            "user@localhost",
            "http://localhost",
            "localhost:1:2",
            "localhost:+1",
            "localhost:65536",
            "localhost:99999999999999999999",
            "localhost, evil",
            "[::1",
            "::1",
            "[::1]x",
            "[::1%25eth0]",
            "[127.0.0.1]",
            "a%4",
            "a%zz",
            "l\u{f6}calhost",
        ] {
            assert_eq!(Authority::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
