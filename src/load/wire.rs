//! The wire as a client sees it: requests out, replies in. Pure.

use super::data::{Key, Keys};
use crate::error::{Error, ErrorKind, Result};
use crate::tls::client::ALERT;

/// Fields that a reply may have; the server sends four.
const FIELDS_MAX: usize = 32;
/// A head that has not ended within this many bytes is refused.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Appends `GET /get`.
pub fn put_get(out: &mut Vec<u8>, keys: &Keys, key: Key) {
    put_line(out, b"GET /get?key=", keys, key);
    out.extend_from_slice(b"\r\n");
}

/// Appends `DELETE /del`.
pub fn put_delete(out: &mut Vec<u8>, keys: &Keys, key: Key) {
    put_line(out, b"DELETE /del?key=", keys, key);
    out.extend_from_slice(b"\r\n");
}

/// Appends `POST /set`, with the value in the body.
pub fn put_set(out: &mut Vec<u8>, keys: &Keys, key: Key, value: &[u8]) {
    put_line(out, b"POST /set?key=", keys, key);
    out.extend_from_slice(format!("content-length: {}\r\n\r\n", value.len()).as_bytes());
    out.extend_from_slice(value);
}

fn put_line(out: &mut Vec<u8>, start: &[u8], keys: &Keys, key: Key) {
    out.extend_from_slice(start);
    keys.put(out, key);
    out.extend_from_slice(b" HTTP/1.1\r\nhost: localhost\r\n");
}

/// A reply whose head has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its status.
    pub status: u16,
    /// Length of the head.
    pub bytes: usize,
    /// Length of the body after the head.
    pub body_bytes: usize,
    /// Whether the server closes the connection after this reply.
    pub closes: bool,
}

/// Parses the head of the reply at the start of `input`; `None` if the head has not arrived in full.
///
/// # Errors
/// The bytes are not an HTTP reply, or the reply does not state its length.
pub fn parse(input: &[u8]) -> Result<Option<Head>> {
    let refused = |what: String| Error::new(ErrorKind::Io, format!("the server's reply {what}"));
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut reply = httparse::Response::new(&mut fields);
    let bytes = match reply.parse(input) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if input.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(refused("has a head that does not end".into())),
        Err(_) if input.starts_with(ALERT) => {
            return Err(refused(
                "is an alert of TLS: choose an address of the server that is not encrypted".into(),
            ));
        }
        Err(error) => return Err(refused(format!("is not HTTP: {error}"))),
    };
    let (mut body_bytes, mut closes) = (None, false);
    for field in reply.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            body_bytes = str::from_utf8(field.value).ok().and_then(|value| value.parse().ok());
        }
        closes |= field.name.eq_ignore_ascii_case("connection") && field.value.eq_ignore_ascii_case(b"close");
    }
    match (reply.code, body_bytes) {
        (Some(status), Some(body_bytes)) => Ok(Some(Head { status, bytes, body_bytes, closes })),
        _ => Err(refused("has no valid content-length".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::data::Size;

    #[test]
    fn requests_are_what_the_readme_says() {
        let keys = Keys::new(Size::Fixed(4), 100).unwrap();
        let key = Key { number: 21, missing: false };
        let written = |put: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            put(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(&|out| put_get(out, &keys, key)),
            "GET /get?key=0042 HTTP/1.1\r\nhost: localhost\r\n\r\n"
        );
        assert_eq!(
            written(&|out| put_delete(out, &keys, Key { missing: true, ..key })),
            "DELETE /del?key=0043 HTTP/1.1\r\nhost: localhost\r\n\r\n"
        );
        assert_eq!(
            written(&|out| put_set(out, &keys, key, b"v w")),
            "POST /set?key=0042 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nv w"
        );
    }

    #[test]
    fn replies_are_found_at_any_cut_and_nonsense_is_refused() {
        let reply =
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 14\r\nConnection: Close\r\n\r\nkey not found\n";
        let head = Head { status: 404, bytes: reply.len() - 14, body_bytes: 14, closes: true };
        for cut in 0..reply.len() {
            let expected = (head.bytes <= cut).then_some(head);
            assert_eq!(parse(&reply[..cut]).unwrap(), expected, "{cut}");
        }
        for nonsense in
            ["SMTP ready\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"]
        {
            assert!(parse(nonsense.as_bytes()).is_err(), "{nonsense}");
        }
        let encrypted = parse(&[0x15, 3, 3, 0, 2, 2, 10]).unwrap_err().to_string();
        assert!(encrypted.contains("is an alert of TLS"), "{encrypted}");
        assert!(parse(&[b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'a'; HEAD_BYTES_MAX]].concat()).is_err());
    }
}
