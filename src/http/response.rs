//! Replies: statuses, the table from error kinds to statuses, and the bytes on the wire. Pure.

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Refusal;
use crate::error::{Error, ErrorKind};

/// Every status that we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of RFC 9110")]
pub enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    PayloadTooLarge,
    UriTooLong,
    ExpectationFailed,
    HeadersTooLarge,
    InternalServerError,
    NotImplemented,
    ServiceUnavailable,
    VersionNotSupported,
    InsufficientStorage,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "HTTP/1.1 200 OK\r\n",
            Self::BadRequest => "HTTP/1.1 400 Bad Request\r\n",
            Self::NotFound => "HTTP/1.1 404 Not Found\r\n",
            Self::MethodNotAllowed => "HTTP/1.1 405 Method Not Allowed\r\n",
            Self::PayloadTooLarge => "HTTP/1.1 413 Content Too Large\r\n",
            Self::UriTooLong => "HTTP/1.1 414 URI Too Long\r\n",
            Self::ExpectationFailed => "HTTP/1.1 417 Expectation Failed\r\n",
            Self::HeadersTooLarge => "HTTP/1.1 431 Request Header Fields Too Large\r\n",
            Self::InternalServerError => "HTTP/1.1 500 Internal Server Error\r\n",
            Self::NotImplemented => "HTTP/1.1 501 Not Implemented\r\n",
            Self::ServiceUnavailable => "HTTP/1.1 503 Service Unavailable\r\n",
            Self::VersionNotSupported => "HTTP/1.1 505 HTTP Version Not Supported\r\n",
            Self::InsufficientStorage => "HTTP/1.1 507 Insufficient Storage\r\n",
        }
    }

    /// The number.
    pub fn code(self) -> u16 {
        let digits = &self.line()["HTTP/1.1 ".len()..];
        digits.bytes().take(3).fold(0, |code, digit| code * 10 + u16::from(digit - b'0'))
    }
}

/// What a reply carries.
#[derive(Debug)]
pub enum Body {
    /// A sentence; a newline is put behind it.
    Text(&'static str),
    /// The bytes of a value.
    Value(Bytes),
    /// Lines, sent as they come; the connection is closed behind the last.
    Lines(UnboundedReceiver<String>),
}

/// A reply.
#[derive(Debug)]
pub struct Response {
    /// Its status.
    pub status: Status,
    /// Its body.
    pub body: Body,
    allow: Option<&'static str>,
    retry_after: bool,
}

impl Response {
    /// 200 and a sentence.
    pub const OK: Self = Self::text(Status::Ok, "OK");
    /// 404 for a key that is not there.
    pub const KEY_NOT_FOUND: Self = Self::text(Status::NotFound, "key not found");

    /// A status and a sentence, without its newline.
    pub const fn text(status: Status, text: &'static str) -> Self {
        Self { status, body: Body::Text(text), allow: None, retry_after: false }
    }

    /// 200 and a value.
    pub fn value(value: Bytes) -> Self {
        Self { status: Status::Ok, body: Body::Value(value), allow: None, retry_after: false }
    }

    /// 200 and lines as they come.
    pub fn lines(lines: UnboundedReceiver<String>) -> Self {
        Self { status: Status::Ok, body: Body::Lines(lines), allow: None, retry_after: false }
    }

    /// What a client is told of an error. The log has the details; the client gets what it can act on.
    pub fn error(error: &Error) -> Self {
        let (status, text) = match error.kind() {
            ErrorKind::InvalidRequest => (Status::BadRequest, "the request is not valid"),
            ErrorKind::TooLarge => (Status::PayloadTooLarge, "the value is longer than the server allows"),
            ErrorKind::Overloaded => {
                (Status::ServiceUnavailable, "the server cannot keep up; try again later")
            }
            ErrorKind::ShuttingDown => (Status::ServiceUnavailable, "the server is stopping"),
            ErrorKind::DiskFull => {
                (Status::InsufficientStorage, "the disk is full; writes work again once there is space")
            }
            ErrorKind::Corruption => (
                Status::InternalServerError,
                "corruption: stored bytes fail their checksum; the server's log names the file",
            ),
            ErrorKind::Poisoned => (
                Status::InternalServerError,
                "the write-ahead log could not be written; whether this write will survive is not known",
            ),
            ErrorKind::Io
            | ErrorKind::Configuration
            | ErrorKind::Locked
            | ErrorKind::AddressInUse
            | ErrorKind::CannotCreate
            | ErrorKind::Permission => (
                Status::InternalServerError,
                "the operating system refused an operation; see the server's log",
            ),
        };
        let retry_after = status == Status::ServiceUnavailable;
        Self { status, body: Body::Text(text), allow: None, retry_after }
    }

    /// The answer to a request that never reached the handler.
    pub fn refusal(refusal: &Refusal) -> Self {
        let retry_after = refusal.status == Status::ServiceUnavailable;
        Self { allow: refusal.allow, retry_after, ..Self::text(refusal.status, refusal.message) }
    }

    /// 503 and a sentence, to be tried again.
    pub fn unavailable(text: &'static str) -> Self {
        Self { retry_after: true, ..Self::text(Status::ServiceUnavailable, text) }
    }
}

/// What the head of a reply depends on beside the reply.
#[derive(Debug, Clone, Copy)]
pub struct Wire<'a> {
    /// The value of the `Date` header.
    pub date: &'a str,
    /// The request was HTTP/1.0.
    pub old: bool,
    /// The connection stays open.
    pub keep_alive: bool,
    /// The request was HEAD.
    pub head_only: bool,
}

/// Appends the head of a reply.
pub fn put_head(out: &mut Vec<u8>, response: &Response, wire: Wire<'_>) {
    out.extend_from_slice(response.status.line().as_bytes());
    out.extend_from_slice(b"date: ");
    out.extend_from_slice(wire.date.as_bytes());
    match &response.body {
        Body::Text(text) => {
            out.extend_from_slice(b"\r\ncontent-type: text/plain; charset=utf-8");
            put_length(out, text.len() + 1);
        }
        Body::Value(value) => {
            // A browser must not take stored bytes for a page.
            out.extend_from_slice(
                b"\r\ncontent-type: application/octet-stream\r\nx-content-type-options: nosniff",
            );
            put_length(out, value.len());
        }
        Body::Lines(_) => {
            out.extend_from_slice(b"\r\ncontent-type: text/plain; charset=utf-8");
            if !wire.old {
                out.extend_from_slice(b"\r\ntransfer-encoding: chunked");
            }
        }
    }
    if let Some(allow) = response.allow {
        out.extend_from_slice(b"\r\nallow: ");
        out.extend_from_slice(allow.as_bytes());
    }
    if response.retry_after {
        out.extend_from_slice(b"\r\nretry-after: 1");
    }
    if !wire.keep_alive {
        out.extend_from_slice(b"\r\nconnection: close");
    } else if wire.old {
        out.extend_from_slice(b"\r\nconnection: keep-alive");
    }
    out.extend_from_slice(b"\r\n\r\n");
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (length % 10) as u8;
        length /= 10;
        if length == 0 {
            break;
        }
    }
    out.extend_from_slice(b"\r\ncontent-length: ");
    out.extend_from_slice(&digits[at..]);
}

/// Appends a chunk with one line.
pub fn put_line_chunk(out: &mut Vec<u8>, line: &str, old: bool) {
    if old {
        out.extend_from_slice(line.as_bytes());
    } else {
        out.extend_from_slice(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIRE: Wire<'_> =
        Wire { date: "Thu, 01 Jan 1970 00:00:00 GMT", old: false, keep_alive: true, head_only: false };

    fn head(response: &Response, wire: Wire<'_>) -> String {
        let mut out = Vec::new();
        put_head(&mut out, response, wire);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn heads_say_length_and_fate_of_the_connection() {
        let value = Response::value(Bytes::from_static(b"twelve bytes"));
        assert_eq!(
            head(&value, WIRE),
            "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-type: application/octet-stream\r\n\
             x-content-type-options: nosniff\r\ncontent-length: 12\r\n\r\n"
        );
        assert!(
            head(&Response::OK, Wire { keep_alive: false, ..WIRE }).contains("\r\nconnection: close\r\n")
        );
        assert!(head(&Response::OK, Wire { old: true, ..WIRE }).contains("\r\nconnection: keep-alive\r\n"));
        assert!(head(&Response::OK, WIRE).contains("\r\ncontent-length: 3\r\n"));
        let mut length = Vec::new();
        put_length(&mut length, 0);
        put_length(&mut length, 1_234_567_890);
        assert_eq!(length, b"\r\ncontent-length: 0\r\ncontent-length: 1234567890");
    }

    #[test]
    fn every_kind_of_error_has_its_status() {
        let status = |kind| Response::error(&Error::new(kind, "why")).status.code();
        assert_eq!(
            [ErrorKind::TooLarge, ErrorKind::Overloaded, ErrorKind::DiskFull, ErrorKind::Corruption]
                .map(status),
            [413, 503, 507, 500]
        );
        let overloaded = Response::error(&Error::new(ErrorKind::Overloaded, "why"));
        assert!(head(&overloaded, WIRE).contains("\r\nretry-after: 1\r\n"));
    }
}
