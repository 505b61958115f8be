//! Replies: statuses, the reply to each outcome and each kind of error, and the bytes on the wire. Pure.
//!
//! The outcomes of operations are by far the most frequent replies. Their heads differ only in the length of a value, so
//! they are kept ready ([`Heads`]) and copied; any other reply is put together field by field ([`Heads::put_reply`]).

use std::borrow::Cow;
use std::ops::Range;

use tokio::sync::mpsc::UnboundedReceiver;

use super::Refusal;
use super::label::Label;
use super::range::ByteRange;
use crate::error::{Error, ErrorKind};
use crate::op::Outcome;

/// Every status that the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of RFC 9110")]
pub enum Status {
    Ok,
    PartialContent,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    PayloadTooLarge,
    UriTooLong,
    RangeNotSatisfiable,
    ExpectationFailed,
    MisdirectedRequest,
    HeadersTooLarge,
    InternalServerError,
    NotImplemented,
    ServiceUnavailable,
    VersionNotSupported,
    InsufficientStorage,
}

impl Status {
    /// All of them, in the order of the numbers.
    pub const ALL: [Self; 19] = [
        Self::Ok,
        Self::PartialContent,
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::PayloadTooLarge,
        Self::UriTooLong,
        Self::RangeNotSatisfiable,
        Self::ExpectationFailed,
        Self::MisdirectedRequest,
        Self::HeadersTooLarge,
        Self::InternalServerError,
        Self::NotImplemented,
        Self::ServiceUnavailable,
        Self::VersionNotSupported,
        Self::InsufficientStorage,
    ];

    fn line(self) -> &'static str {
        match self {
            Self::Ok => "HTTP/1.1 200 OK\r\n",
            Self::PartialContent => "HTTP/1.1 206 Partial Content\r\n",
            Self::BadRequest => "HTTP/1.1 400 Bad Request\r\n",
            Self::Unauthorized => "HTTP/1.1 401 Unauthorized\r\n",
            Self::Forbidden => "HTTP/1.1 403 Forbidden\r\n",
            Self::NotFound => "HTTP/1.1 404 Not Found\r\n",
            Self::MethodNotAllowed => "HTTP/1.1 405 Method Not Allowed\r\n",
            Self::RequestTimeout => "HTTP/1.1 408 Request Timeout\r\n",
            Self::PayloadTooLarge => "HTTP/1.1 413 Content Too Large\r\n",
            Self::UriTooLong => "HTTP/1.1 414 URI Too Long\r\n",
            Self::RangeNotSatisfiable => "HTTP/1.1 416 Range Not Satisfiable\r\n",
            Self::ExpectationFailed => "HTTP/1.1 417 Expectation Failed\r\n",
            Self::MisdirectedRequest => "HTTP/1.1 421 Misdirected Request\r\n",
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

/// What a reply carries, if it is not the outcome of an operation.
#[derive(Debug)]
pub enum Body {
    /// A sentence; a newline follows it.
    Text(Cow<'static, str>),
    /// Lines, sent as they come; the connection is closed after the last.
    Lines(UnboundedReceiver<String>),
}

impl Body {
    /// Its length, as far as it is known.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len() + 1,
            Self::Lines(_) => 0,
        }
    }
}

/// A reply that is not the outcome of an operation.
#[derive(Debug)]
pub struct Response {
    /// Its status.
    pub status: Status,
    /// Its body.
    pub body: Body,
    /// What the body is.
    content_type: &'static str,
    /// A header field of its own, and its value.
    field: Option<(&'static str, &'static str)>,
}

/// When to try again, in seconds: what is overloaded now may not be so then.
const RETRY_AFTER: (&str, &str) = ("retry-after", "1");

impl Response {
    /// 200 and a sentence.
    pub const OK: Self = Self::text(Status::Ok, "OK");

    /// 200 and the description of the API.
    pub const OPENAPI: Self =
        Self::document(Status::Ok, "application/yaml", include_str!("openapi.yaml").trim_ascii_end());

    /// 200 and metrics in the text format of Prometheus, without the last line feed.
    pub fn metrics(text: String) -> Self {
        let body = Body::Text(Cow::Owned(text));
        Self { body, content_type: "text/plain; version=0.0.4; charset=utf-8", ..Self::OK }
    }

    /// 200 and a JSON document, without its line feed.
    pub fn json(text: String) -> Self {
        Self { body: Body::Text(Cow::Owned(text)), content_type: "application/json", ..Self::OK }
    }

    /// 200 with this sentence.
    pub fn ok(text: String) -> Self {
        Self { body: Body::Text(Cow::Owned(text)), ..Self::OK }
    }

    /// A status and a sentence, without its newline.
    pub const fn text(status: Status, text: &'static str) -> Self {
        Self::document(status, "text/plain; charset=utf-8", text)
    }

    const fn document(status: Status, content_type: &'static str, text: &'static str) -> Self {
        Self { status, body: Body::Text(Cow::Borrowed(text)), content_type, field: None }
    }

    /// 200 and lines as they come.
    pub fn lines(lines: UnboundedReceiver<String>) -> Self {
        Self { body: Body::Lines(lines), ..Self::OK }
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
        let field = (status == Status::ServiceUnavailable).then_some(RETRY_AFTER);
        Self { field, ..Self::text(status, text) }
    }

    /// The answer to a request that never reached the handler.
    pub fn refusal(refusal: &Refusal) -> Self {
        let retry_after = (refusal.status == Status::ServiceUnavailable).then_some(RETRY_AFTER);
        Self { field: refusal.field.or(retry_after), ..Self::text(refusal.status, refusal.message) }
    }

    /// 200 and the methods that there are, for OPTIONS.
    pub fn allow(methods: &'static str) -> Self {
        Self { field: Some(("allow", methods)), ..Self::OK }
    }

    /// 503 and a sentence, with `Retry-After`.
    pub fn unavailable(text: &'static str) -> Self {
        Self { field: Some(RETRY_AFTER), ..Self::text(Status::ServiceUnavailable, text) }
    }
}

/// What a reply depends on in its request.
#[derive(Debug, Clone, Copy)]
pub struct Wire {
    /// The request was HTTP/1.0.
    pub old: bool,
    /// The connection stays open.
    pub keep_alive: bool,
    /// The request was HEAD.
    pub head_only: bool,
    /// The part of the value that was asked for.
    pub range: Option<ByteRange>,
    /// What was asked for.
    pub endpoint: Label,
    /// The request is followed to its reply.
    pub followed: bool,
}

impl Wire {
    /// For a request that was not read: nothing is known of the request, and the connection closes.
    pub const UNKNOWN: Self = Self {
        old: false,
        keep_alive: false,
        head_only: false,
        range: None,
        endpoint: Label::UNKNOWN,
        followed: false,
    };

    /// The status of the reply to an outcome.
    #[inline]
    pub fn status_of<B: AsRef<[u8]>>(self, outcome: &Outcome<B>) -> Status {
        match (outcome, self.range) {
            (Outcome::Missing, _) => Status::NotFound,
            (Outcome::Value { value, .. }, Some(range)) => match range.of(value.as_ref().len()) {
                Some(_) => Status::PartialContent,
                None => Status::RangeNotSatisfiable,
            },
            (Outcome::Value { .. } | Outcome::Written { .. }, _) => Status::Ok,
        }
    }

    /// Bytes of the body of the reply to an outcome.
    pub fn bytes_of<B: AsRef<[u8]>>(self, outcome: &Outcome<B>) -> usize {
        match (outcome, self.range) {
            (Outcome::Missing, _) => MISSING.len() + 1,
            (Outcome::Written { .. }, _) => WRITTEN.len() + 1,
            (Outcome::Value { value, .. }, None) => value.as_ref().len(),
            (Outcome::Value { value, .. }, Some(range)) => {
                range.of(value.as_ref().len()).map_or(0, |part| part.len())
            }
        }
    }

    /// The header that says what becomes of the connection, and the end of the head.
    fn end_of_head(self) -> &'static [u8] {
        match (self.keep_alive, self.old) {
            (false, _) => b"\r\nconnection: close\r\n\r\n",
            (true, true) => b"\r\nconnection: keep-alive\r\n\r\n",
            (true, false) => b"\r\n\r\n",
        }
    }
}

/// The heads of the most frequent replies, ready to be copied.
#[derive(Debug)]
pub struct Heads {
    date: String,
    /// Ends before the length of the value.
    value: Vec<u8>,
    /// Includes the length of the text.
    written: Vec<u8>,
    /// Includes the length of the text.
    missing: Vec<u8>,
}

/// A browser must not take stored bytes for a page.
const VALUE_FIELDS: &[u8] =
    b"\r\ncontent-type: application/octet-stream\r\nx-content-type-options: nosniff\r\ncontent-length: ";
const WRITTEN: &str = "OK";
const MISSING: &str = "key not found";
/// Tells the causes of a status apart.
pub(super) const ERROR_FIELD: &str = "ringkeep-error";

impl Heads {
    /// Heads with this date.
    pub fn new(date: &str) -> Self {
        let head = |response: Response| {
            let mut head = Vec::new();
            put_fields(&mut head, date, &response, false);
            head
        };
        let mut value = Vec::new();
        put_status_and_date(&mut value, Status::Ok, date);
        value.extend_from_slice(VALUE_FIELDS);
        Self {
            date: date.into(),
            value,
            written: head(Response::text(Status::Ok, WRITTEN)),
            missing: head(Response {
                field: Some((ERROR_FIELD, "key-not-found")),
                ..Response::text(Status::NotFound, MISSING)
            }),
        }
    }

    /// The date.
    pub fn date(&self) -> &str {
        &self.date
    }

    /// Appends the reply to an outcome. If the outcome is a value, appends only the head, and returns which part of the value
    /// follows it.
    #[inline]
    pub fn put_outcome_head<B: AsRef<[u8]>>(
        &self,
        out: &mut Vec<u8>,
        outcome: &Outcome<B>,
        wire: Wire,
    ) -> Range<usize> {
        let (head, text) = match outcome {
            Outcome::Value { value, .. } => {
                let bytes = value.as_ref().len();
                if let Some(range) = wire.range {
                    return self.put_partial_head(out, range.of(bytes), bytes, wire);
                }
                out.extend_from_slice(&self.value);
                put_decimal(out, bytes);
                out.extend_from_slice(wire.end_of_head());
                return 0..if wire.head_only { 0 } else { bytes };
            }
            Outcome::Written { .. } => (&self.written, WRITTEN),
            Outcome::Missing => (&self.missing, MISSING),
        };
        out.extend_from_slice(head);
        out.extend_from_slice(wire.end_of_head());
        if !wire.head_only {
            out.extend_from_slice(text.as_bytes());
            out.push(b'\n');
        }
        0..0
    }

    /// Appends the head of a reply with a part of a value of `bytes` bytes, or with none if the part lies outside. Returns the
    /// part.
    fn put_partial_head(
        &self,
        out: &mut Vec<u8>,
        part: Option<Range<usize>>,
        bytes: usize,
        wire: Wire,
    ) -> Range<usize> {
        let status = if part.is_some() { Status::PartialContent } else { Status::RangeNotSatisfiable };
        put_status_and_date(out, status, &self.date);
        let of = match &part {
            Some(part) => format!("{}-{}", part.start, part.end - 1),
            None => "*".into(),
        };
        let part = part.unwrap_or(0..0);
        out.extend_from_slice(VALUE_FIELDS);
        put_decimal(out, part.len());
        out.extend_from_slice(format!("\r\ncontent-range: bytes {of}/{bytes}").as_bytes());
        out.extend_from_slice(wire.end_of_head());
        part
    }

    /// Appends the reply to an outcome whose value is short.
    #[inline]
    pub fn put_outcome<B: AsRef<[u8]>>(&self, out: &mut Vec<u8>, outcome: &Outcome<B>, wire: Wire) {
        let part = self.put_outcome_head(out, outcome, wire);
        if let Outcome::Value { value, .. } = outcome {
            out.extend_from_slice(&value.as_ref()[part]);
        }
    }

    /// Appends a reply. If the reply is sent in lines, appends only the head.
    pub fn put_reply(&self, out: &mut Vec<u8>, response: &Response, wire: Wire) {
        put_fields(out, &self.date, response, wire.old);
        out.extend_from_slice(wire.end_of_head());
        if let Body::Text(text) = &response.body
            && !wire.head_only
        {
            out.extend_from_slice(text.as_bytes());
            out.push(b'\n');
        }
    }
}

fn put_status_and_date(out: &mut Vec<u8>, status: Status, date: &str) {
    out.extend_from_slice(status.line().as_bytes());
    out.extend_from_slice(b"date: ");
    out.extend_from_slice(date.as_bytes());
}

/// Appends the head of a reply, except the header that says what becomes of the connection.
fn put_fields(out: &mut Vec<u8>, date: &str, response: &Response, old: bool) {
    put_status_and_date(out, response.status, date);
    out.extend_from_slice(b"\r\ncontent-type: ");
    out.extend_from_slice(response.content_type.as_bytes());
    match &response.body {
        Body::Text(text) => {
            out.extend_from_slice(b"\r\ncontent-length: ");
            put_decimal(out, text.len() + 1);
        }
        Body::Lines(_) if old => {}
        Body::Lines(_) => out.extend_from_slice(b"\r\ntransfer-encoding: chunked"),
    }
    if let Some((name, value)) = response.field {
        for part in ["\r\n", name, ": ", value] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Adds a field to the head that begins at `at`, behind its status line.
pub(super) fn add_field(out: &mut Vec<u8>, at: usize, name: &str, value: &str) {
    if let Some(end) = memchr::memchr(b'\n', &out[at..]) {
        let behind = at + end + 1;
        out.splice(behind..behind, format!("{name}: {value}\r\n").into_bytes());
    }
}

fn put_decimal(out: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
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
    use crate::key::SeqNo;

    const WIRE: Wire = Wire { keep_alive: true, ..Wire::UNKNOWN };
    const DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

    fn outcome(outcome: &Outcome<&[u8]>, wire: Wire) -> String {
        let mut out = Vec::new();
        Heads::new(DATE).put_outcome(&mut out, outcome, wire);
        String::from_utf8(out).unwrap()
    }

    fn reply(response: &Response, wire: Wire) -> String {
        let mut out = Vec::new();
        Heads::new(DATE).put_reply(&mut out, response, wire);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_outcome_has_its_reply() {
        let value = Outcome::Value { value: &b"twelve bytes"[..], seqno: SeqNo(1), expires: None };
        let head = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
            content-type: application/octet-stream\r\nx-content-type-options: nosniff\r\ncontent-length: 12\r\n\r\n";
        assert_eq!(outcome(&value, WIRE), format!("{head}twelve bytes"));
        assert_eq!(outcome(&value, Wire { head_only: true, ..WIRE }), head);
        assert_eq!(
            outcome(&Outcome::Written { seqno: SeqNo(1) }, WIRE),
            "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
             content-type: text/plain; charset=utf-8\r\ncontent-length: 3\r\n\r\nOK\n"
        );
        let missing = outcome(&Outcome::Missing, WIRE);
        assert!(missing.starts_with("HTTP/1.1 404 Not Found\r\n"));
        assert!(
            missing.ends_with("content-length: 14\r\nringkeep-error: key-not-found\r\n\r\nkey not found\n")
        );
        assert!(
            outcome(&Outcome::Missing, Wire { head_only: true, ..WIRE })
                .ends_with("\r\nringkeep-error: key-not-found\r\n\r\n")
        );
    }

    #[test]
    fn the_description_of_the_api_has_every_path() {
        let text = reply(&Response::OPENAPI, WIRE);
        assert!(
            text.contains("\r\ncontent-type: application/yaml\r\n") && text.ends_with("pattern: '\\n$'\n")
        );
        for path in [
            "/set",
            "/get",
            "/del",
            "/shutdown",
            "/livez",
            "/readyz",
            "/metrics",
            "/stats",
            "/backup",
            "/backup/part",
            "/compact",
            "/openapi.yaml",
        ] {
            assert!(text.contains(&format!("\n  {path}:\n")), "{path}");
        }
    }

    #[test]
    fn heads_say_what_becomes_of_the_connection() {
        for (wire, expected) in [
            (Wire { keep_alive: false, ..WIRE }, "\r\nconnection: close\r\n\r\n"),
            (Wire { keep_alive: false, old: true, ..WIRE }, "\r\nconnection: close\r\n\r\n"),
            (Wire { old: true, ..WIRE }, "\r\nconnection: keep-alive\r\n\r\n"),
        ] {
            let value = Outcome::Value { value: &b""[..], seqno: SeqNo(1), expires: None };
            assert!(outcome(&value, wire).ends_with(expected));
            assert!(reply(&Response::OK, wire).contains(expected));
        }
        assert!(!reply(&Response::OK, WIRE).contains("connection:"));
    }

    #[test]
    fn a_field_is_added_to_the_last_head() {
        let mut out = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        let at = out.len();
        Heads::new(DATE).put_reply(&mut out, &Response::OK, WIRE);
        add_field(&mut out, at, "server-timing", "total;dur=1");
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with(
            "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nserver-timing: total;dur=1\r\ndate: Thu, 01 Jan"
        ));
    }

    #[test]
    fn lengths_are_decimal_numbers() {
        for number in [0, 7, 10, 1_234_567_890, usize::MAX] {
            let mut out = Vec::new();
            put_decimal(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }

    #[test]
    fn statuses_are_in_the_order_of_their_numbers() {
        assert!(Status::ALL.is_sorted_by_key(|status| status.code()));
        for (index, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, index);
        }
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
        assert!(reply(&overloaded, WIRE).contains("\r\nretry-after: 1\r\n"));
    }
}
