//! A client for the commands that talk to a running server: one request over one connection, blocking.
//!
//! Owns: where a server is ([`Url`]), the token, the time that an exchange may take, and the framing of a reply. The body
//! of a reply is read as it arrives, so its length does not matter. The load tool has a client of its own, which pipelines
//! requests on a ring.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::ToSocketAddrs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::{Error, ErrorKind, Result};
use crate::tls::client::{ALERT, Settings, speaks_no_tls};

/// Where a server is if nothing else is said.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// A head that has not ended within this many bytes is refused.
const HEAD_BYTES_MAX: u64 = 16 << 10;
/// Fields that a reply may have.
const FIELDS_MAX: usize = 64;
/// Longest line before a chunk.
const LINE_BYTES_MAX: u64 = 1 << 10;
/// Longest token file, and longest body that counts as the reason of a refusal.
const TEXT_BYTES_MAX: u64 = 4 << 10;
const SPEAKS_TLS: &str = "the server speaks TLS";

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Url {
    /// `http://HOST:PORT`; without a port it is 80.
    Http(Host),
    /// `https://HOST:PORT`; without a port it is 443.
    Https(Host),
    /// `unix:PATH`: a socket in the file system.
    Unix(PathBuf),
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A name or an address, without the brackets of an IPv6 address.
    pub name: String,
    /// The port.
    pub port: u16,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let place = |rest: &str, port| Host::parse(rest.strip_suffix('/').unwrap_or(rest), port);
        let url = if let Some(path) = text.strip_prefix("unix:") {
            (!path.is_empty()).then(|| Self::Unix(path.into()))
        } else if let Some(rest) = text.strip_prefix("https://") {
            place(rest, 443).map(Self::Https)
        } else {
            text.strip_prefix("http://").and_then(|rest| place(rest, 80)).map(Self::Http)
        };
        url.ok_or_else(|| "expected http://HOST:PORT, https://HOST:PORT or unix:PATH".into())
    }
}

impl Host {
    /// Reads `HOST`, `HOST:PORT` or `[IPV6]:PORT`.
    fn parse(text: &str, port: u16) -> Option<Self> {
        let (name, port_text) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map(|(name, rest)| (name, rest.strip_prefix(':')))?,
            None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
        };
        let is_address = text.starts_with('[');
        let in_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c) || (is_address && c == ':');
        let closed = !is_address || text.ends_with(']') || port_text.is_some();
        let port = port_text.map_or(Some(port), |port| port.parse().ok())?;
        (closed && !name.is_empty() && name.chars().all(in_name)).then(|| Self { name: name.into(), port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(host) => write!(f, "http://{host}"),
            Self::Https(host) => write!(f, "https://{host}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How long an exchange may take.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// All of it, from the connection to the last byte of the reply. (How long the lookup of a host name takes is for the
    /// system to say.)
    InAll(Duration),
    /// Each step that makes no progress.
    PerStep(Duration),
}

/// A server, and how to talk to it.
#[derive(Clone)]
pub struct Client {
    url: Url,
    tls: Option<Settings>,
    /// The value of `Authorization`.
    authorization: Option<String>,
    patience: Patience,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `GET`, `POST`, …
    pub method: &'a str,
    /// Path and query, percent-encoded.
    pub target: &'a str,
    /// The first byte that is wanted, and the last one if not all of them are.
    pub range: Option<(u64, Option<u64>)>,
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// A GET of the whole of `target`.
    pub fn get(target: &'a str) -> Self {
        Self { method: "GET", target, range: None, body: b"" }
    }
}

impl Client {
    /// A client of the server at `url`. `https` needs `tls`.
    ///
    /// # Errors
    /// `Configuration` if `url` is `https` and nothing says which certificates to trust.
    pub fn new(url: Url, tls: Option<Settings>, patience: Patience) -> Result<Self> {
        if matches!(url, Url::Https(_)) && tls.is_none() {
            let message = format!(
                "{url} needs to be told which certificates to trust: give the certificate of the server, or of the \
                 authority that has signed it, by --tls-ca"
            );
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        Ok(Self { url, tls, authorization: None, patience })
    }

    /// Sends the token of a file with every request. The file holds the secret, or a line `NAME ROLE SECRET` as the token
    /// file of a server; it has one token.
    ///
    /// # Errors
    /// `Configuration`, with the path, if the file cannot be read, lets others read it, or holds no token; `Permission`.
    pub fn with_token_file(mut self, path: &Path) -> Result<Self> {
        let wrong = |kind, why: String| Error::new(kind, format!("the token file {}: {why}", path.display()));
        let file = std::fs::File::open(path).map_err(|error| {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            let kind = if denied { ErrorKind::Permission } else { ErrorKind::Configuration };
            wrong(kind, error.to_string())
        })?;
        let secret = read_token(file).map_err(|why| wrong(ErrorKind::Configuration, why))?;
        self.authorization = Some(format!("Bearer {secret}"));
        Ok(self)
    }

    /// Where the server is.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Sends a request over a connection of its own, and returns the reply once its head has arrived, whatever its status.
    ///
    /// # Errors
    /// `Io` if the server cannot be reached, does not answer in time, or sends something that is not a reply.
    ///
    /// # Panics
    /// If the target does not begin with a slash, or has characters that need an escape.
    pub fn send(&self, request: Request<'_>) -> Result<Reply> {
        let target = request.target;
        assert!(target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic()), "{target:?}");
        let attempt = format!("{} {target} of {}", request.method, self.url);
        let failed = |error: io::Error| Error::new(ErrorKind::Io, format!("{attempt}: {}", self.why(&error)));
        let mut stream = BufReader::new(self.connect()?);
        let sent = stream.get_mut().write_all(&self.head(request, false));
        let sent = sent.and_then(|()| stream.get_mut().write_all(request.body));
        // A server that refuses a request answers before it has read all of it.
        let read = sent.and_then(|()| stream.get_mut().flush());
        let reply = Reply::read(stream, attempt.clone(), request.method == "HEAD");
        match (reply, read) {
            (Ok(reply), _) => Ok(reply),
            (Err(_), Err(error)) | (Err(error), Ok(())) => Err(failed(error)),
        }
    }

    /// Why the first exchange of a connection has failed. One cause is a URL whose scheme is not that of the port.
    fn why(&self, error: &io::Error) -> String {
        match &self.url {
            Url::Https(host) if speaks_no_tls(error) => {
                format!("what answers there does not speak TLS; if it speaks plain HTTP, use http://{host}")
            }
            Url::Http(host) if error.to_string() == SPEAKS_TLS => format!("{SPEAKS_TLS}: use https://{host}"),
            Url::Http(host) if error.kind() == io::ErrorKind::ConnectionReset => {
                format!("{error}; if the server speaks TLS, use https://{host}")
            }
            _ => error.to_string(),
        }
    }

    /// A connection that takes many requests.
    ///
    /// # Errors
    /// `Io` if the server cannot be reached.
    pub fn session(&self) -> Result<Session> {
        let stream = BufReader::new(self.connect()?);
        Ok(Session { client: self.clone(), stream, waiting: Vec::new(), has_answered: false })
    }

    fn connect(&self) -> Result<Box<dyn Stream>> {
        let socket = match &self.url {
            Url::Unix(path) => {
                SockAddr::unix(path).and_then(|address| connect_to(&address, Domain::UNIX, self.patience))
            }
            Url::Http(host) | Url::Https(host) => connect_to_host(host, self.patience),
        };
        let socket = socket.map_err(|error| {
            let refused = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound].contains(&error.kind());
            let hint = if refused { "; does the server run, and listen there?" } else { "" };
            Error::new(ErrorKind::Io, format!("cannot connect to {}: {error}{hint}", self.url))
        })?;
        match (&self.url, &self.tls) {
            (Url::Https(host), Some(tls)) => Ok(Box::new(tls.connect(&host.name, socket)?)),
            _ => Ok(Box::new(socket)),
        }
    }

    fn head(&self, request: Request<'_>, keep_alive: bool) -> Vec<u8> {
        let host = match &self.url {
            Url::Http(host) | Url::Https(host) => host.to_string(),
            Url::Unix(_) => "localhost".into(),
        };
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", request.method, request.target);
        if !keep_alive {
            head += "connection: close\r\n";
        }
        head += "user-agent: ringkeep/";
        head += concat!(env!("CARGO_PKG_VERSION"), "\r\n");
        if let Some(authorization) = &self.authorization {
            head += &format!("authorization: {authorization}\r\n");
        }
        if let Some((first, last)) = request.range {
            let last = last.map_or(String::new(), |last| last.to_string());
            head += &format!("range: bytes={first}-{last}\r\n");
        }
        if !request.body.is_empty() || request.method == "POST" || request.method == "PUT" {
            head += &format!("content-length: {}\r\n", request.body.len());
        }
        head += "\r\n";
        head.into_bytes()
    }
}

/// A connection that takes many requests, and answers them in order.
pub struct Session {
    client: Client,
    stream: BufReader<Box<dyn Stream>>,
    /// Requests that are not sent yet.
    waiting: Vec<u8>,
    has_answered: bool,
}

/// Longest body of a reply of a [`Session`].
const REPLY_BYTES_MAX: u64 = 64 << 10;

impl Session {
    /// Adds a request to those that [`Self::flush`] sends.
    pub fn add(&mut self, request: Request<'_>) {
        let head = self.client.head(request, true);
        self.waiting.extend_from_slice(&head);
        self.waiting.extend_from_slice(request.body);
    }

    /// Sends what was added. The replies to more than some hundred requests do not fit into the buffers of the kernel, so
    /// they have to be read before more is sent.
    ///
    /// # Errors
    /// `Io`.
    pub fn flush(&mut self) -> Result<()> {
        let sent = self.stream.get_mut().write_all(&self.waiting);
        self.waiting.clear();
        sent.map_err(|error| self.failed(&error))
    }

    /// The next reply: its status and its body.
    ///
    /// # Errors
    /// `Io` if the connection ends, or if the reply is too long or none.
    pub fn reply(&mut self) -> Result<(u16, Vec<u8>)> {
        let read = |stream: &mut BufReader<Box<dyn Stream>>| {
            let (status, fields) = head(stream)?;
            let length = field(&fields, "content-length").and_then(|length| length.parse().ok());
            let length: u64 = length.ok_or_else(|| strange("the reply has no length"))?;
            if REPLY_BYTES_MAX < length {
                return Err(strange("the reply is too long"));
            }
            let mut body = vec![0; usize::try_from(length).unwrap_or_default()];
            stream.read_exact(&mut body)?;
            Ok((status, body))
        };
        let reply = read(&mut self.stream).map_err(|error| self.failed(&error))?;
        self.has_answered = true;
        Ok(reply)
    }

    fn failed(&self, error: &io::Error) -> Error {
        let why = if self.has_answered { error.to_string() } else { self.client.why(error) };
        Error::new(ErrorKind::Io, format!("the connection to {}: {why}", self.client.url))
    }
}

/// The secret of the only token in a file.
fn read_token(file: std::fs::File) -> std::result::Result<String, String> {
    let mode = file.metadata().map_err(|error| error.to_string())?.permissions().mode();
    if mode & 0o027 != 0 {
        return Err(format!("its mode {:o} lets others read or change it; use chmod 600", mode & 0o777));
    }
    let mut text = String::new();
    let read = file.take(TEXT_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = lines.next().ok_or("there is no token in it")?;
    if lines.next().is_some() {
        return Err("there are several tokens in it; it should have one".into());
    }
    match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        [secret] | [_, _, secret] if secret.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(secret.into()),
        _ => Err("expected a secret, or NAME ROLE SECRET".into()),
    }
}

trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// A socket whose transfers end in time.
struct Timed {
    socket: Socket,
    /// When everything has to be over, or how long a step may take.
    end: std::result::Result<Instant, Duration>,
    patience: Duration,
}

fn connect_to_host(host: &Host, patience: Patience) -> io::Result<Timed> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host.name.as_str(), host.port).to_socket_addrs()? {
        match connect_to(&address.into(), Domain::for_address(address), patience) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn connect_to(address: &SockAddr, domain: Domain, patience: Patience) -> io::Result<Timed> {
    let (end, patience) = match patience {
        Patience::InAll(patience) => (Ok(Instant::now() + patience), patience),
        Patience::PerStep(patience) => (Err(patience), patience),
    };
    let stream = Timed { socket: Socket::new(domain, Type::STREAM, None)?, end, patience };
    if domain != Domain::UNIX {
        stream.socket.set_tcp_nodelay(true)?; // a body follows its head at once
    }
    // This limits how long the kernel waits for a place in the queue of a Unix socket, and for a TCP handshake.
    stream.socket.set_write_timeout(Some(patience))?;
    stream.socket.connect(address).map_err(|error| match error.raw_os_error() {
        Some(libc::EINPROGRESS) => stream.too_late(),
        _ => stream.explain(error),
    })?;
    Ok(stream)
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.end {
            Ok(end) => match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Err(self.too_late()),
                left => Ok(Some(left)),
            },
            Err(step) => Ok(Some(step)),
        }
    }

    fn too_late(&self) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, format!("there is no answer within {:?}", self.patience))
    }

    /// The kernel says EAGAIN when the time is over.
    fn explain(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::WouldBlock { self.too_late() } else { error }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(buffer).map_err(|error| self.explain(error))
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(buffer).map_err(|error| self.explain(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reply whose head has arrived.
pub struct Reply {
    /// Its status.
    pub status: u16,
    fields: Vec<(String, Vec<u8>)>,
    body: Body,
    attempt: String,
}

/// The body of a reply, as it arrives. A body that ends too early is an error, never a shorter body.
pub struct Body {
    stream: BufReader<Box<dyn Stream>>,
    left: Left,
}

/// What is left of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Bytes(u64),
    /// This many bytes of a chunk, or of the first chunk if none has begun.
    Chunks {
        bytes: u64,
        begun: bool,
    },
    UntilClosed,
}

fn strange(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Reply {
    fn read(mut stream: BufReader<Box<dyn Stream>>, attempt: String, head_only: bool) -> io::Result<Self> {
        let (status, fields) = loop {
            let (status, fields) = head(&mut stream)?;
            // 1xx comes before the reply.
            if 200 <= status {
                break (status, fields);
            }
        };
        let mut reply = Self { status, fields, body: Body { stream, left: Left::UntilClosed }, attempt };
        reply.body.left = if head_only || [204, 304].contains(&status) {
            Left::Bytes(0)
        } else if reply
            .field("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            Left::Chunks { bytes: 0, begun: false }
        } else if let Some(length) = reply.field("content-length") {
            Left::Bytes(length.parse().map_err(|_| strange("the length of the reply is not a number"))?)
        } else {
            Left::UntilClosed
        };
        Ok(reply)
    }

    /// The value of a field, if there is one and it is text. `name` is in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }

    /// The body, without its head.
    pub fn into_body(self) -> Body {
        self.body
    }

    /// The body, to be read to its end.
    pub fn body(&mut self) -> &mut Body {
        &mut self.body
    }

    /// All of the body, which must not be longer than `bytes_max`.
    ///
    /// # Errors
    /// `Io`.
    pub fn bytes(mut self, bytes_max: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = (&mut self.body).take(bytes_max.saturating_add(1)).read_to_end(&mut bytes);
        let read = read.and_then(|count| {
            if bytes_max < count as u64 { Err(strange("the reply is too long")) } else { Ok(()) }
        });
        read.map_err(|error| Error::new(ErrorKind::Io, format!("{}: {error}", self.attempt)))?;
        Ok(bytes)
    }

    /// All of the body as text, which must not be longer than `bytes_max`.
    ///
    /// # Errors
    /// `Io`.
    pub fn text(self, bytes_max: u64) -> Result<String> {
        let attempt = self.attempt.clone();
        String::from_utf8(self.bytes(bytes_max)?)
            .map_err(|_| Error::new(ErrorKind::Io, format!("{attempt}: the reply is not text")))
    }

    /// The reply itself, if its status is one of `expected`.
    ///
    /// # Errors
    /// The refusal of the server, in its words: `Permission` for 401 and 403, `Overloaded` for 503, `Io` for others.
    pub fn expect(self, expected: &[u16]) -> Result<Self> {
        let status = self.status;
        if expected.contains(&status) {
            return Ok(self);
        }
        let kind = match status {
            401 | 403 => ErrorKind::Permission,
            503 => ErrorKind::Overloaded,
            _ => ErrorKind::Io,
        };
        let attempt = self.attempt.clone();
        let reason = self.text(TEXT_BYTES_MAX).unwrap_or_default();
        let hint = match status {
            401 => " (here: --token-file)",
            _ => "",
        };
        Err(Error::new(kind, format!("{attempt}: the server answers {status} {}{hint}", reason.trim_end())))
    }
}

type Fields = Vec<(String, Vec<u8>)>;

/// The value of a field, if there is one and it is text.
fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let found = fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
    found.and_then(|(_, value)| std::str::from_utf8(value).ok())
}

/// Reads the head of a reply: its status and its fields.
fn head(stream: &mut impl BufRead) -> io::Result<(u16, Fields)> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let room = HEAD_BYTES_MAX - bytes.len() as u64;
        if room == 0 {
            return Err(strange("the head of the reply does not end"));
        }
        let read = stream.take(room).read_until(b'\n', &mut bytes)?;
        if bytes.starts_with(ALERT) {
            return Err(strange(SPEAKS_TLS));
        }
        if read == 0 && bytes.is_empty() {
            let how = "the server has closed the connection without an answer";
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, how));
        }
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the reply is cut"));
        }
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut reply = httparse::Response::new(&mut fields);
    let parsed = reply.parse(&bytes);
    if !parsed.is_ok_and(|parsed| parsed.is_complete()) {
        return Err(strange("what answers there does not speak HTTP/1"));
    }
    let own = |field: &httparse::Header<'_>| (field.name.to_owned(), field.value.to_vec());
    Ok((reply.code.unwrap_or_default(), reply.headers.iter().map(own).collect()))
}

impl Body {
    /// Bytes that are still to come, if the reply says how many.
    pub fn bytes_left(&self) -> Option<u64> {
        match self.left {
            Left::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Reads up to the next chunk, and returns its length; 0 at the end of the body.
    fn next_chunk(&mut self, begun: bool) -> io::Result<u64> {
        if begun && !self.line()?.is_empty() {
            return Err(strange("a chunk of the reply does not end where it should"));
        }
        let line = self.line()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let bytes = u64::from_str_radix(digits, 16);
        let bytes = bytes.map_err(|_| strange("the length of a chunk of the reply is not a number"))?;
        // Fields may follow the last chunk.
        while bytes == 0 && !self.line()?.is_empty() {}
        Ok(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(LINE_BYTES_MAX).read_line(&mut line)?;
        let ended = line.strip_suffix("\r\n").ok_or_else(cut)?;
        Ok(ended.to_owned())
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection has ended before the reply")
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if let Left::Chunks { bytes: 0, begun } = self.left {
            self.left = match self.next_chunk(begun)? {
                0 => Left::Bytes(0),
                bytes => Left::Chunks { bytes, begun: true },
            };
        }
        let left = match &mut self.left {
            Left::Bytes(0) => return Ok(0),
            Left::Bytes(left) | Left::Chunks { bytes: left, .. } => left,
            Left::UntilClosed => return self.stream.read(buffer),
        };
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.stream.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(cut());
        }
        *left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_and_anything_else_is_refused() {
        for (text, shown) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://localhost/", "http://localhost:80"),
            ("https://kv.example", "https://kv.example:443"),
            ("https://[::1]:8443", "https://[::1]:8443"),
            ("http://[::1]", "http://[::1]:80"),
            ("unix:/run/a b/socket", "unix:/run/a b/socket"),
        ] {
            assert_eq!(text.parse::<Url>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "http://",
            "unix:",
            "127.0.0.1:8080",
            "ftp://a",
            "http://a:b",
            "http://a:70000",
            "http://::1",
            "http://[::1",
            "http://[::1]8080",
            "http://a b",
            "http://user@host",
            "http://a/path",
            "http://a\r\nx",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }

    /// A stream on which these bytes have arrived, and then its end.
    struct Arrived(io::Cursor<Vec<u8>>);

    impl Read for Arrived {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let few = buffer.len().min(3); // so that lines and chunks come in pieces
            self.0.read(&mut buffer[..few])
        }
    }

    impl Write for Arrived {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The status and the body of a reply.
    fn read(text: &str) -> std::result::Result<(u16, Vec<u8>), String> {
        let stream: Box<dyn Stream> = Box::new(Arrived(io::Cursor::new(text.into())));
        let reply =
            Reply::read(BufReader::new(stream), "GET /".into(), false).map_err(|error| error.to_string())?;
        let status = reply.status;
        reply.bytes(1000).map(|body| (status, body)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_body_has_its_length_its_chunks_or_the_end_of_the_connection_and_a_cut_one_is_an_error() {
        for (text, body) in [
            ("content-length: 5\r\n\r\nhellorest", &b"hello"[..]),
            ("transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nfield: x\r\n\r\n", b"hello"),
            ("connection: close\r\n\r\nhello", b"hello"),
            ("content-length: 0\r\n\r\n", b""),
        ] {
            let whole = format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n{text}");
            assert_eq!(read(&whole), Ok((200, body.to_vec())), "{text}");
            let framed = !text.starts_with("connection");
            for length in 0..whole.find("rest").unwrap_or(whole.len()) {
                let cut = read(&whole[..length]);
                assert!(
                    cut.is_err() || !framed && body.starts_with(&cut.clone().unwrap().1),
                    "{length}: {cut:?}"
                );
            }
        }
        for text in [
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let endless = read(&format!("HTTP/1.1 200 OK\r\n{}", "field: value\r\n".repeat(2000)));
        assert!(endless.unwrap_err().contains("does not end"));
    }

    #[test]
    fn a_token_comes_from_a_file_that_others_cannot_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let read = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read_token(std::fs::File::open(&path).unwrap())
        };
        assert_eq!(read("secret-0123456789\n", 0o600).unwrap(), "secret-0123456789");
        assert_eq!(read("# mine\n\nname admin secret-0123456789\n", 0o640).unwrap(), "secret-0123456789");
        for (text, mode, words) in [
            ("secret-0123456789", 0o644, "chmod 600"),
            ("", 0o600, "no token"),
            ("a read secret\nb read secret", 0o600, "several"),
            ("a secret", 0o600, "NAME ROLE SECRET"),
        ] {
            let why = read(text, mode).unwrap_err();
            assert!(why.contains(words) && !why.contains("secret-"), "{why}");
        }
    }
}
