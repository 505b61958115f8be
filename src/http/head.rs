//! Request line and headers: where they end, and what they say about the body. Pure.
//!
//! `httparse` reads the fields. It accepts bare line feeds, which RFC 9112 does not allow; they are refused here. So is
//! everything that leaves the length of the body ambiguous: that is how requests are smuggled past a proxy.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::authority::{Authority, LastAddress};
use super::range::ByteRange;
use super::{HEADERS_BYTES_MAX, HEADERS_MAX, Refusal, Status, TARGET_BYTES_MAX, decimal};

/// Bytes of a request line in addition to its target: the longest method, two spaces, the version.
const LINE_OVERHEAD_BYTES: usize = 64;

/// Methods that at least one path accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Read, without the body.
    Head,
    /// Write.
    Post,
    /// Write.
    Put,
    /// Delete.
    Delete,
    /// Ask which methods there are.
    Options,
    /// Any other.
    Other,
}

/// How the body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// By `Content-Length`.
    Length(u64),
    /// By `Transfer-Encoding: chunked`.
    Chunked,
}

/// A valid head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// Where path and query are in the bytes of the request. A target in absolute form may have no path.
    pub target: Range<usize>,
    /// Where the name of the host is that the request is for. `None` for an address and for `localhost`, and if an HTTP/1.0
    /// request names no host.
    pub host_name: Option<Range<usize>>,
    /// Where the value of the `Authorization` field is.
    pub authorization: Option<Range<usize>>,
    /// Whether the request is HTTP/1.0.
    pub old: bool,
    /// How the body is framed.
    pub framing: Framing,
    /// The part of the value that a GET asks for.
    pub range: Option<ByteRange>,
    /// Whether the connection stays open afterwards.
    pub keep_alive: bool,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// A browser says that it sends the request for a page of another site, or before its user has asked for it.
    pub foreign: bool,
    /// Bytes of the head.
    pub bytes: usize,
}

/// Finds the end of a head that arrives piece by piece, looking at each byte once.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadEnd {
    /// Bytes looked at.
    scanned: usize,
    /// Where the current line begins.
    line: usize,
    /// Where the request line ends; 0 until that is known.
    first_line_end: usize,
}

impl HeadEnd {
    /// The length of the head at the front of `bytes`, or `None` if its end has not arrived. Call it again with the same
    /// bytes, followed by what arrives next.
    ///
    /// # Errors
    /// 400 for a line that does not end in CR LF, 414 and 431 for what is too long.
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(at) = memchr::memchr(b'\n', bytes.get(self.scanned..).unwrap_or_default()) {
            let at = self.scanned + at;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(Refusal::bad("a line of the request head does not end in CR LF"));
            }
            self.scanned = at + 1;
            let empty = self.line + 1 == at;
            self.line = at + 1;
            if self.first_line_end == 0 {
                if empty {
                    continue; // empty lines before a request are ignored (RFC 9112, 2.2)
                }
                self.first_line_end = at + 1;
            } else if empty {
                self.check_length(at + 1)?;
                return Ok(Some(at + 1));
            }
        }
        self.scanned = bytes.len();
        self.check_length(bytes.len())?;
        Ok(None)
    }

    fn check_length(&self, bytes: usize) -> Result<(), Refusal> {
        if self.first_line_end == 0 {
            if TARGET_BYTES_MAX + LINE_OVERHEAD_BYTES < bytes {
                return Err(TARGET_TOO_LONG);
            }
        } else if HEADERS_BYTES_MAX < bytes - self.first_line_end {
            return Err(HEADERS_TOO_LONG);
        }
        Ok(())
    }
}

/// Whether a head, which need not be complete or valid, begins like a HEAD request: then its refusal has no content.
pub fn asks_for_head(bytes: &[u8]) -> bool {
    bytes[empty_lines(bytes)..].starts_with(b"HEAD ")
}

/// Bytes of the empty lines before a request.
fn empty_lines(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count()
}

const TARGET_TOO_LONG: Refusal =
    Refusal::new(Status::UriTooLong, "the request target is longer than 131072 bytes");
const HEADERS_TOO_LONG: Refusal =
    Refusal::new(Status::HeadersTooLarge, "the request headers are longer than 16384 bytes or more than 64");

/// Reads a whole head, as [`HeadEnd`] found it. `address` is what an earlier head has named.
///
/// # Errors
/// The status and sentence of the refusal.
pub fn parse(bytes: &[u8], address: &LastAddress) -> Result<Head, Refusal> {
    // Most requests have a few fields. The other elements are never read, so they stay uninitialised.
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(MALFORMED),
        Err(httparse::Error::TooManyHeaders) => return Err(HEADERS_TOO_LONG),
        Err(httparse::Error::Version) => return parse_other_version(bytes, address),
        Err(_) => return Err(MALFORMED),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(MALFORMED);
    };
    if TARGET_BYTES_MAX < target.len() {
        return Err(TARGET_TOO_LONG);
    }
    if memchr::memchr(b'#', target.as_bytes()).is_some() {
        return Err(Refusal::bad("the request target has a `#`; within a key or a value it is written %23"));
    }
    let old = version == 0;
    let mut fields = Fields::of(request.headers)?;
    if fields.hosts != 1 && !(old && fields.hosts == 0) {
        return Err(Refusal::bad("the request needs exactly one Host header"));
    }
    let mut host_name = name_of(address.parse(fields.host), fields.host, old)?;
    let target = match split_absolute(target.as_bytes()) {
        // The host of the target replaces the field, which has to be valid all the same (RFC 9112, 3.2.2).
        Some((host, target)) => {
            host_name = name_of(Authority::parse(host), host, old)?;
            fields.host = host;
            target
        }
        None => target.as_bytes(),
    };
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        _ => Method::Other,
    };
    if fields.partial && method == Method::Put {
        return Err(Refusal::bad("a value is set as a whole: the request must not have a Content-Range"));
    }
    // The parts lie within the bytes. Their ranges remain when the borrow ends.
    let range = |part: &[u8]| {
        if part.is_empty() {
            return 0..0;
        }
        let start = part.as_ptr().addr() - bytes.as_ptr().addr();
        start..start + part.len()
    };
    let framing = fields.framing(old)?;
    Ok(Head {
        method,
        target: range(target),
        host_name: host_name.map(range),
        authorization: fields.authorization.map(range),
        old,
        framing,
        // No reply has a validator that `If-Range` could name, so its condition never holds.
        range: fields.range.filter(|_| method == Method::Get && !old && !fields.if_range),
        keep_alive: if old { fields.keep_alive && !fields.close } else { !fields.close },
        expects_continue: fields.expects_continue && !old,
        foreign: fields.prefetched
            || fields
                .foreign
                .unwrap_or_else(|| fields.origin.is_some_and(|origin| !is_origin_of(origin, fields.host))),
        bytes: bytes.len(),
    })
}

const MALFORMED: Refusal = Refusal::bad("the request head is malformed");

/// Reads a head whose version is none that `httparse` knows. A higher minor version is read like HTTP/1.1 (RFC 9110, 2.5).
fn parse_other_version(bytes: &[u8], address: &LastAddress) -> Result<Head, Refusal> {
    let begin = empty_lines(bytes);
    let end = begin + memchr::memchr(b'\r', &bytes[begin..]).ok_or(MALFORMED)?;
    let mut words = bytes[begin..end].split(|byte| *byte == b' ');
    let (Some(_), Some(_), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(MALFORMED);
    };
    match version {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => {
            let mut known = bytes.to_vec();
            known[end - 1] = b'1';
            parse(&known, address)
        }
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(Refusal::new(
            Status::VersionNotSupported,
            "the only supported versions are HTTP/1.1 and HTTP/1.0",
        )),
        _ => Err(MALFORMED),
    }
}

/// The host of a target in absolute form, and what follows it. `None` for any other target.
fn split_absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    if target.first() == Some(&b'/') {
        return None; // nearly every target
    }
    let rest = [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    Some(rest.split_at(memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len())))
}

/// The name in a host, if it is one.
fn name_of<'a>(
    authority: Option<Authority<'a>>,
    host: &[u8],
    old: bool,
) -> Result<Option<&'a [u8]>, Refusal> {
    match authority {
        Some(Authority::Known) => Ok(None),
        Some(Authority::Name(name)) => Ok(Some(name)),
        None if old && host.is_empty() => Ok(None),
        None => Err(Refusal::bad("the host that the request names is malformed")),
    }
}

/// The value of the field `name` of a head that [`parse`] has read. Meant for fields that few requests are asked for.
fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (found, value) = line.split_at(memchr::memchr(b':', line)?);
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| value[1..].trim_ascii())
    })
}

/// Whether a browser has sent this head. Every browser says in which languages its user would like to read. Commands do not
/// do so unless they are told to, and programs like any language.
pub fn is_of_browser(head: &[u8]) -> bool {
    field(head, "accept-language").is_some_and(|languages| languages != b"*")
        || ["sec-fetch-site", "origin", "referer"].iter().any(|name| field(head, name).is_some())
}

/// Whether a browser has sent this head because its user has followed a link, to show the reply as a page of its own.
pub fn is_followed_link(head: &[u8]) -> bool {
    let says = |name, value: &[u8]| field(head, name) == Some(value);
    says("sec-fetch-mode", b"navigate")
        && says("sec-fetch-dest", b"document")
        && says("sec-fetch-user", b"?1")
        && ["sec-purpose", "purpose", "x-moz"].iter().all(|name| field(head, name).is_none())
}

/// The header fields that change how a request is read.
#[derive(Default)]
struct Fields<'a> {
    hosts: usize,
    host: &'a [u8],
    authorization: Option<&'a [u8]>,
    range: Option<ByteRange>,
    if_range: bool,
    origin: Option<&'a [u8]>,
    /// What the browser says of the page.
    foreign: Option<bool>,
    prefetched: bool,
    length: Option<u64>,
    transfer_encodings: usize,
    transfer_encoding: &'a [u8],
    /// There is a `Content-Range`.
    partial: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl<'a> Fields<'a> {
    fn of(headers: &[httparse::Header<'a>]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            let value = header.value.trim_ascii();
            if is("host") {
                fields.hosts += 1;
                fields.host = value;
            } else if is("content-length") {
                if fields.length.is_some() {
                    return Err(Refusal::bad("the length of the request body is ambiguous"));
                }
                fields.length =
                    Some(decimal(value).ok_or(Refusal::bad("the Content-Length is not a number"))?);
            } else if is("transfer-encoding") {
                fields.transfer_encodings += 1;
                fields.transfer_encoding = value;
            } else if is("connection") {
                for token in value.split(|byte| *byte == b',') {
                    let token = token.trim_ascii();
                    fields.close |= token.eq_ignore_ascii_case(b"close");
                    fields.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if is("expect") {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::new(
                        Status::ExpectationFailed,
                        "the only supported expectation is 100-continue",
                    ));
                }
                fields.expects_continue = true;
            } else if is("authorization") {
                if fields.authorization.replace(value).is_some() {
                    return Err(Refusal::bad("the request has two Authorization headers"));
                }
            } else if is("range") {
                fields.range = ByteRange::parse(value);
            } else if is("if-range") {
                fields.if_range = true;
            } else if is("content-range") {
                fields.partial = true;
            } else if is("origin") {
                fields.origin = Some(value);
            } else if is("sec-fetch-site") {
                // `none`: the user has typed the address.
                fields.foreign = Some(!matches!(value, b"same-origin" | b"none"));
            } else if is("sec-purpose") || is("purpose") || is("x-moz") {
                fields.prefetched |= value.starts_with(b"prefetch");
            }
        }
        Ok(fields)
    }

    fn framing(&self, old: bool) -> Result<Framing, Refusal> {
        let is_chunked = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
        let last = || self.transfer_encoding.rsplit(|byte| *byte == b',').next().unwrap_or_default();
        match (self.transfer_encodings, self.length) {
            (0, None) => Ok(Framing::Empty),
            (0, Some(length)) => Ok(Framing::Length(length)),
            (1, None) if !old && is_chunked(self.transfer_encoding) => Ok(Framing::Chunked),
            // Without `chunked` at its end, the body has no length (RFC 9112, 6.3).
            (1, None) if !old && is_chunked(last()) => {
                Err(Refusal::new(Status::NotImplemented, "the only supported transfer encoding is chunked"))
            }
            _ => Err(Refusal::bad("the length of the request body is ambiguous")),
        }
    }
}

/// Whether `origin`, as browsers send it, is a page that this server has sent under the name `host`.
fn is_origin_of(origin: &[u8], host: &[u8]) -> bool {
    let schemes: [(&[u8], &[u8]); 2] = [(b"http://", b":80"), (b"https://", b":443")];
    schemes.iter().any(|(scheme, port)| {
        let without = |name: &'_ [u8]| name.strip_suffix(*port).unwrap_or(name).to_ascii_lowercase();
        origin.strip_prefix(*scheme).is_some_and(|name| without(name) == without(host))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_browsers_say_is_found_in_a_head() {
        let head =
            |fields: &str| format!("GET /sec-fetch-mode: HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes();
        let curl = head("User-Agent: curl/8.0\r\nAccept: */*\r\n");
        assert!(!is_of_browser(&curl) && !is_followed_link(&curl));
        assert!(!is_of_browser(&head("Accept-Language: *\r\nSec-Fetch-Mode: cors\r\n")), "fetch of Node");
        for fields in ["ACCEPT-language:de\r\n", "A: b\r\nsec-fetch-site: none\r\n", "Referer:\r\n"] {
            assert!(is_of_browser(&head(fields)), "{fields}");
        }
        let (mode, user) = ("Sec-Fetch-Mode: navigate\r\n", "Sec-Fetch-User: ?1\r\n");
        let link = format!("{mode}{user}Sec-Fetch-Dest:  document \r\n");
        assert!(is_followed_link(&head(&link)));
        for fields in [
            format!("{mode}Sec-Fetch-Dest: document\r\n"),
            format!("{user}Sec-Fetch-Dest: document\r\n"),
            format!("{mode}{user}Sec-Fetch-Dest: iframe\r\n"),
            format!("{link}Sec-Purpose: prefetch;prerender\r\n"),
        ] {
            assert!(!is_followed_link(&head(&fields)), "{fields}");
        }
    }

    fn read(text: &str) -> Result<Head, Refusal> {
        let mut end = HeadEnd::default();
        let whole = end.find(text.as_bytes())?.expect("the head is complete");
        parse(&text.as_bytes()[..whole], &LastAddress::default())
    }

    fn status(text: &str) -> u16 {
        read(text).expect_err(text).status.code()
    }

    #[test]
    fn a_plain_request_is_understood() {
        let text = "\r\nPOST /set?key=k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nvalue";
        let head = read(text).unwrap();
        assert_eq!(&text[head.target.clone()], "/set?key=k");
        assert_eq!((head.method, head.framing), (Method::Post, Framing::Length(5)));
        assert!(head.keep_alive && head.expects_continue && !head.old);
        assert_eq!(&text[head.bytes..], "value");
        assert!(!read("GET / HTTP/1.1\r\nHost: x\r\nConnection: a, close\r\n\r\n").unwrap().keep_alive);
        let old = read("GET / HTTP/1.0\r\n\r\n").unwrap();
        assert!(old.old && !old.keep_alive);
        assert!(read("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap().keep_alive);
    }

    #[test]
    fn what_a_browser_sends_for_another_site_is_known() {
        for (fields, foreign) in [
            ("", false),
            ("Origin: http://x:1\r\n", false),
            ("Origin: https://X:1\r\n", false),
            // Behind a proxy the name may be another one; the browser knows better.
            ("Origin: http://public.example\r\nSec-Fetch-Site: same-origin\r\n", false),
            ("Sec-Fetch-Site: same-origin\r\n", false),
            ("Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n", false),
            ("Sec-Fetch-Site: cross-site\r\n", true),
            ("sec-fetch-site: same-site\r\n", true),
            ("Origin: http://evil.example\r\n", true),
            ("Origin: http://x:2\r\n", true),
            ("Origin: null\r\n", true),
            ("Sec-Purpose: prefetch;prerender\r\n", true),
            ("Purpose: prefetch\r\n", true),
        ] {
            let head = read(&format!("GET / HTTP/1.1\r\nHost: x:1\r\n{fields}\r\n")).unwrap();
            assert_eq!(head.foreign, foreign, "{fields:?}");
        }
    }

    #[test]
    fn the_end_is_found_at_the_same_place_however_the_bytes_arrive() {
        let text = b"GET /get?key=k HTTP/1.1\r\nHost: x\r\n\r\nGET /";
        let mut end = HeadEnd::default();
        for length in 0..text.len() {
            let found = end.find(&text[..length]).unwrap();
            assert_eq!(found, (36 <= length).then_some(36), "{length}");
            if found.is_some() {
                break;
            }
        }
    }

    #[test]
    fn h1_what_can_be_read_in_two_ways_is_refused() {
        for head in [
            "GET / HTTP/1.1\nHost: x\r\n\r\n",
            "\n",
            "GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /\r\n\r\n",
            "\u{16}\u{3}\u{1}\r\n\r\n",
        ] {
            assert_eq!(status(head), 400, "{head:?}");
        }
        for length in ["", "+5", "-1", "0x5", "5,5", "5 5", "18446744073709551616"] {
            assert_eq!(
                status(&format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")),
                400
            );
        }
        for (coding, expected) in [("gzip, chunked", 501), ("gzip", 400), ("chunked, identity", 400)] {
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n");
            assert_eq!(status(&head), expected, "{coding}");
        }
        assert_eq!(status("GET / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n"), 417);
        assert_eq!(status("GET / HTTP/2.0\r\nHost: x\r\n\r\n"), 505);
    }

    #[test]
    fn p8_what_is_too_long_is_refused_before_it_has_arrived() {
        let find =
            |text: &str| HeadEnd::default().find(text.as_bytes()).map_err(|refusal| refusal.status.code());
        assert_eq!(find(&"G".repeat(TARGET_BYTES_MAX)), Ok(None));
        assert_eq!(find(&"G".repeat(TARGET_BYTES_MAX + 100)), Err(414));
        let head = "GET / HTTP/1.1\r\nHost: x\r\n";
        assert_eq!(find(&format!("{head}A: {}", "b".repeat(HEADERS_BYTES_MAX))), Err(431));
        assert_eq!(status(&format!("{head}{}\r\n", "A: b\r\n".repeat(64))), 431);
        assert!(read(&format!("{head}{}\r\n", "A: b\r\n".repeat(63))).is_ok());
        let target = "a".repeat(TARGET_BYTES_MAX);
        assert!(read(&format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", &target[1..])).is_ok());
        assert_eq!(status(&format!("GET /{target} HTTP/1.1\r\nHost: x\r\n\r\n")), 414);
    }
}
