//! Path, method and query → command. Pure.
//!
//! The raw bytes of the path must be one of ours: nothing is decoded or normalised, so that a proxy that filters
//! paths and we never disagree. Parameters are checked before the body is read ([`Route::of`]), the rest with
//! the body ([`Route::command`]).

use std::borrow::Cow;

use super::head::{Framing, Head, Method};
use super::query::{decode, parameters};
use super::{Refusal, Status};
use crate::config::KEY_BYTES_MAX;
use crate::key::slot;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// Set a key.
    Set {
        /// The key.
        key: Cow<'a, [u8]>,
        /// Its value.
        value: Cow<'a, [u8]>,
    },
    /// Get a key.
    Get {
        /// The key.
        key: Cow<'a, [u8]>,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: Cow<'a, [u8]>,
    },
    /// Stop the server.
    Shutdown,
    /// Is the process alive?
    Livez,
    /// Are requests served?
    Readyz,
}

/// Which slot of keys a request looks at or changes. Two keys may share one; then a request waits in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touches {
    /// It reads a key of this slot.
    Reads(usize),
    /// It writes one. Writes reach the shard of their key in order, so they need not wait for each other.
    Writes(usize),
    /// It has no key.
    Nothing,
}

/// A request whose head is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route<'a> {
    endpoint: Endpoint,
    key: Cow<'a, [u8]>,
    value: Option<Cow<'a, [u8]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Set,
    Get,
    Delete,
    Shutdown,
    Livez,
    Readyz,
}

impl Endpoint {
    fn of(path: &[u8]) -> Option<Self> {
        Some(match path {
            b"/set" => Self::Set,
            b"/get" => Self::Get,
            b"/del" => Self::Delete,
            b"/shutdown" => Self::Shutdown,
            b"/livez" => Self::Livez,
            b"/readyz" => Self::Readyz,
            _ => return None,
        })
    }

    /// The methods it takes, and how the `Allow` header says so.
    fn methods(self) -> (&'static [Method], &'static str) {
        match self {
            Self::Set => (&[Method::Post, Method::Put], "POST, PUT"),
            Self::Get | Self::Livez | Self::Readyz => (&[Method::Get, Method::Head], "GET, HEAD"),
            Self::Delete => (&[Method::Delete, Method::Post], "DELETE, POST"),
            Self::Shutdown => (&[Method::Get, Method::Post], "GET, POST"),
        }
    }
}

impl<'a> Route<'a> {
    /// Checks everything but the body.
    ///
    /// # Errors
    /// 404, 405, 400 or 414 with their sentence.
    pub fn of(head: &Head, target: &'a [u8]) -> Result<Self, Refusal> {
        let target = without_authority(target);
        let (path, query) = match memchr::memchr(b'?', target) {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (target, &[][..]),
        };
        let endpoint = Endpoint::of(path).ok_or(Refusal::new(
            Status::NotFound,
            "there is no such path; the paths are /set, /get, /del, /shutdown, /livez and /readyz",
        ))?;
        let (methods, allow) = endpoint.methods();
        if !methods.contains(&head.method) {
            let message = "the path does not take this method; see the Allow header";
            return Err(Refusal { status: Status::MethodNotAllowed, message, allow: Some(allow) });
        }
        let (mut key, mut value) = (None, None);
        for parameter in parameters(query) {
            let (name, encoded) = parameter?;
            let slot = match (endpoint, name) {
                (Endpoint::Set | Endpoint::Get | Endpoint::Delete, b"key") => &mut key,
                (Endpoint::Set, b"value") => &mut value,
                _ => return Err(Refusal::bad("the path does not take this query parameter")),
            };
            if slot.replace(decode(encoded)?).is_some() {
                return Err(Refusal::bad("a query parameter is given twice"));
            }
        }
        let needs_key = matches!(endpoint, Endpoint::Set | Endpoint::Get | Endpoint::Delete);
        let key = match key {
            Some(key) if key.is_empty() => return Err(Refusal::bad("the key is empty")),
            Some(key) if KEY_BYTES_MAX < key.len() => {
                return Err(Refusal::new(Status::UriTooLong, "the key is longer than 16384 bytes"));
            }
            Some(key) => key,
            None if needs_key => return Err(Refusal::bad("the query parameter `key` is missing")),
            None => Cow::Borrowed(&[][..]),
        };
        if endpoint == Endpoint::Set && value.is_none() && head.framing == Framing::Empty {
            return Err(Refusal::bad("a value is missing: give the query parameter `value`, or a body"));
        }
        Ok(Self { endpoint, key, value })
    }

    /// What the request looks at or changes.
    pub fn touches(&self) -> Touches {
        match self.endpoint {
            Endpoint::Get => Touches::Reads(slot(&self.key)),
            Endpoint::Set | Endpoint::Delete => Touches::Writes(slot(&self.key)),
            Endpoint::Shutdown | Endpoint::Livez | Endpoint::Readyz => Touches::Nothing,
        }
    }

    /// The command, now that the body is here.
    ///
    /// # Errors
    /// 400 if there are two values.
    pub fn command(self, body: &'a [u8]) -> Result<Command<'a>, Refusal> {
        let Self { endpoint, key, value } = self;
        Ok(match endpoint {
            Endpoint::Set => {
                let value = match value {
                    Some(_) if !body.is_empty() => {
                        return Err(Refusal::bad(
                            "there are two values: the query parameter `value`, and a body",
                        ));
                    }
                    Some(value) => value,
                    None => Cow::Borrowed(body),
                };
                Command::Set { key, value }
            }
            // A body that means nothing here was read and is dropped.
            Endpoint::Get => Command::Get { key },
            Endpoint::Delete => Command::Delete { key },
            Endpoint::Shutdown => Command::Shutdown,
            Endpoint::Livez => Command::Livez,
            Endpoint::Readyz => Command::Readyz,
        })
    }
}

/// The absolute form of a target (RFC 9112, 3.2.2), reduced to path and query.
fn without_authority(target: &[u8]) -> &[u8] {
    let Some(rest) = target.strip_prefix(b"http://") else { return target };
    memchr::memchr(b'/', rest).map_or(b"/", |at| &rest[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: Method, target: &str, body: Option<&str>) -> Result<String, u16> {
        let framing = body.map_or(Framing::Empty, |body| Framing::Length(body.len() as u64));
        let head = Head {
            method,
            target: 0..target.len(),
            old: false,
            framing,
            keep_alive: true,
            expects_continue: false,
            bytes: 0,
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Route::of(&head, target.as_bytes())
            .and_then(|route| route.command(body.unwrap_or("").as_bytes()))
            .map(|command| match command {
                Command::Set { key, value } => format!("set {}={}", text(&key), text(&value)),
                Command::Get { key } => format!("get {}", text(&key)),
                Command::Delete { key } => format!("delete {}", text(&key)),
                other => format!("{other:?}"),
            })
            .map_err(|refusal| refusal.status.code())
    }

    #[test]
    fn every_line_of_the_contract() {
        use Method::{Delete, Get, Head, Other, Post, Put};
        for (method, target, body, expected) in [
            (Post, "/set?key=k&value=v", None, Ok("set k=v")),
            (Put, "/set?value=val%20smile&key=h+i", None, Ok("set h i=val smile")),
            (Post, "/set?key=k&value=", None, Ok("set k=")),
            (Post, "/set?key=k", Some("body&=+%"), Ok("set k=body&=+%")),
            (Post, "/set?key=k", Some(""), Ok("set k=")),
            (Post, "/set?key=k&value=v", Some(""), Ok("set k=v")),
            (Post, "/set?key=k&value=v", Some("w"), Err(400)),
            (Post, "/set?key=k", None, Err(400)),
            (Post, "/set?value=v", None, Err(400)),
            (Post, "/set?key=&value=v", None, Err(400)),
            (Post, "/set?key=a&key=b&value=v", None, Err(400)),
            (Post, "/set?key=a&value=v&value=v", None, Err(400)),
            (Post, "/set?key=a&value=v&ttl=1", None, Err(400)),
            (Post, "/set?key=a&value=%zz", None, Err(400)),
            (Post, "/set?key", None, Err(400)),
            (Get, "/set?key=k&value=v", None, Err(405)),
            (Head, "/set?key=k&value=v", None, Err(405)),
            (Get, "/get?key=k", None, Ok("get k")),
            (Head, "/get?key=k", None, Ok("get k")),
            (Get, "/get?key=k", Some("ignored"), Ok("get k")),
            (Get, "/get?key=k&value=v", None, Err(400)),
            (Get, "/get", None, Err(400)),
            (Post, "/get?key=k", None, Err(405)),
            (Delete, "/del?key=k", None, Ok("delete k")),
            (Post, "/del?key=k", None, Ok("delete k")),
            (Get, "/del?key=k", None, Err(405)),
            (Get, "/shutdown", None, Ok("Shutdown")),
            (Post, "/shutdown", None, Ok("Shutdown")),
            (Head, "/shutdown", None, Err(405)),
            (Get, "/shutdown?now=1", None, Err(400)),
            (Get, "/livez", None, Ok("Livez")),
            (Head, "/readyz", None, Ok("Readyz")),
            (Other, "/readyz", None, Err(405)),
            (Get, "/", None, Err(404)),
            (Get, "//get?key=k", None, Err(404)),
            (Get, "/get/?key=k", None, Err(404)),
            (Get, "/%67et?key=k", None, Err(404)),
            (Get, "http://host:1/get?key=k", None, Ok("get k")),
            (Get, "http://host", None, Err(404)),
        ] {
            assert_eq!(route(method, target, body), expected.map(str::to_owned), "{method:?} {target}");
        }
        let key = "k".repeat(KEY_BYTES_MAX);
        assert!(route(Get, &format!("/get?key={key}"), None).is_ok());
        assert_eq!(route(Get, &format!("/get?key={key}k"), None), Err(414));
    }
}
