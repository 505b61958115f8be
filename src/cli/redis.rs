//! The strings of a Redis server, or of one that speaks its protocol (RESP 2).
//!
//! Written here, because a client crate would bring more than a dozen others for three commands.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::entry::Entry;

/// Keys of a page of SCAN, about.
const PAGE: usize = 512;
/// Longest bulk string that Redis has.
const STRING_BYTES_MAX: u64 = 512 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection.
pub(super) struct Redis {
    stream: BufReader<TcpStream>,
    cursor: Option<Vec<u8>>,
    now_millis: fn() -> u64,
}

/// A key of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    String(Entry),
    /// It is something else: `hash`, `list`, …
    Other(Vec<u8>, String),
}

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Text(String),
    Error(String),
    Number(i64),
    Bytes(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "`{text}`"),
            Self::Error(why) => write!(f, "an error: {why}"),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Bytes(_) => f.write_str("a string"),
            Self::Array(_) => f.write_str("an array"),
        }
    }
}

type Result<T> = std::result::Result<T, String>;

impl Redis {
    /// Connects, and chooses a database. `now_millis` is the wall clock.
    pub(super) fn connect(
        address: &str,
        password: Option<&str>,
        database: u32,
        now_millis: fn() -> u64,
    ) -> Result<Self> {
        let connect = || {
            let stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok::<_, std::io::Error>(stream)
        };
        let stream = connect().map_err(|error| format!("cannot connect to Redis at {address}: {error}"))?;
        let mut redis = Self { stream: BufReader::new(stream), cursor: Some(b"0".to_vec()), now_millis };
        if let Some(password) = password {
            redis.send(&[&[b"AUTH", password.as_bytes()]])?;
            redis.expect_ok("AUTH")?;
        }
        if database != 0 {
            redis.send(&[&[b"SELECT", database.to_string().as_bytes()]])?;
            redis.expect_ok("SELECT")?;
        }
        Ok(redis)
    }

    fn expect_ok(&mut self, what: &str) -> Result<()> {
        match self.reply(0)? {
            Reply::Text(text) if text == "OK" => Ok(()),
            other => Err(format!("Redis answers {what} with {other}")),
        }
    }

    /// The next keys, with their values; `None` at the end. A key may come twice, as SCAN says.
    pub(super) fn next(&mut self) -> Result<Option<Vec<Found>>> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        self.send(&[&[b"SCAN", &cursor, b"COUNT", PAGE.to_string().as_bytes()]])?;
        let (next, keys) = match self.reply(0)? {
            Reply::Array(parts) => match <[Reply; 2]>::try_from(parts) {
                Ok([Reply::Bytes(Some(next)), Reply::Array(keys)]) => (next, keys),
                _ => return Err("Redis answers SCAN with something else".into()),
            },
            Reply::Error(why) if why.starts_with("NOAUTH") => {
                return Err("Redis asks for a password: give it by --redis-password-file".into());
            }
            other => return Err(format!("Redis answers SCAN with {other}")),
        };
        let keys: Vec<_> =
            keys.into_iter().filter_map(|key| if let Reply::Bytes(key) = key { key } else { None }).collect();
        for key in &keys {
            self.send(&[&[b"TYPE", key], &[b"PTTL", key], &[b"GET", key]])?;
        }
        let mut found = Vec::new();
        for key in keys {
            let (kind, ttl, value) = (self.reply(0)?, self.reply(0)?, self.reply(0)?);
            match (kind, ttl, value) {
                (Reply::Text(kind), Reply::Number(ttl), Reply::Bytes(Some(value))) if kind == "string" => {
                    let expires = u64::try_from(ttl).ok().map(|ttl| (self.now_millis)() + ttl);
                    found.push(Found::String(Entry { key, value, expires }));
                }
                // It has gone meanwhile.
                (Reply::Text(kind), _, _) if kind == "none" || kind == "string" => {}
                (Reply::Text(kind), _, _) => found.push(Found::Other(key, kind)),
                (kind, _, _) => return Err(format!("Redis answers TYPE with {kind}")),
            }
        }
        if next != b"0" {
            self.cursor = Some(next);
        }
        Ok(Some(found))
    }

    fn send(&mut self, commands: &[&[&[u8]]]) -> Result<()> {
        let mut bytes = Vec::new();
        for words in commands {
            bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
            for word in *words {
                bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                bytes.extend_from_slice(word);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        self.stream
            .get_mut()
            .write_all(&bytes)
            .map_err(|error| format!("Redis cannot be written to: {error}"))
    }

    fn reply(&mut self, depth: u32) -> Result<Reply> {
        let failed = |error: std::io::Error| format!("Redis cannot be read: {error}");
        let mut line = Vec::new();
        (&mut self.stream).take(64 << 10).read_until(b'\n', &mut line).map_err(failed)?;
        let text = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok());
        let strange = || "what answers there does not speak the protocol of Redis".to_owned();
        let text = text.filter(|text| !text.is_empty() && depth < 4).ok_or_else(strange)?;
        let (kind, rest) = text.split_at_checked(1).ok_or_else(strange)?;
        let number = || rest.parse::<i64>().map_err(|_| strange());
        Ok(match kind {
            "+" => Reply::Text(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Number(number()?),
            "$" => match u64::try_from(number()?) {
                Err(_) => Reply::Bytes(None),
                Ok(length) if length <= STRING_BYTES_MAX => {
                    let mut bytes = Vec::new();
                    (&mut self.stream).take(length + 2).read_to_end(&mut bytes).map_err(failed)?;
                    if !bytes.ends_with(b"\r\n") || bytes.len() as u64 != length + 2 {
                        return Err(strange());
                    }
                    bytes.truncate(bytes.len() - 2);
                    Reply::Bytes(Some(bytes))
                }
                Ok(_) => return Err(strange()),
            },
            "*" => {
                let count = number()?.max(0);
                Reply::Array((0..count).map(|_| self.reply(depth + 1)).collect::<Result<_>>()?)
            }
            _ => return Err(strange()),
        })
    }
}
