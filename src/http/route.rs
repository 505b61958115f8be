//! Path, method and query → operation. Pure.
//!
//! The raw bytes of the path must be one of ours: nothing is decoded or normalised, so a proxy that filters paths and this
//! server never disagree. A request is routed once, when its head is complete ([`Route::of`]). A route borrows nothing: it
//! holds ranges of the request, and decoded copies where the query has escapes. So the input may grow, and move, while the
//! body arrives; then [`Route::op`] puts the operation together.

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};

use super::access::{Grant, Need, Role};
use super::head::{Framing, Head, Method, is_followed_link, is_of_browser};
use super::label::Label;
use super::part::{Part, PartQuery};
use super::query::{decode, parameters};
use super::response::ERROR_FIELD;
use super::{Refusal, Status, decimal};
use crate::config::KEY_BYTES_MAX;
use crate::key::{Key, KeyHash, UnixMillis};
use crate::op::Op;

/// A request that is not an operation on keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Stop the server.
    Shutdown,
    /// Is the process alive?
    Livez,
    /// Are requests served?
    Readyz,
    /// How much of everything?
    Metrics,
    /// How is the server, for people?
    Stats,
    /// Lend the files of a backup for as long as the connection lasts.
    Backup,
    /// Give back the space of what was deleted, overwritten, or has expired.
    Compact,
    /// What requests are there?
    Openapi,
    /// Which methods are there? These.
    Options(Methods),
}

/// The methods that a path takes, besides `OPTIONS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Methods {
    /// Those of all paths together.
    All,
    /// GET and HEAD.
    Read,
    /// GET.
    Fetch,
    /// POST and PUT.
    Set,
    /// DELETE and POST.
    Delete,
    /// GET and POST.
    Stop,
    /// POST.
    Act,
}

impl Methods {
    fn take(self, method: Method) -> bool {
        let methods: &[Method] = match self {
            Self::All => &[Method::Get, Method::Head, Method::Post, Method::Put, Method::Delete],
            Self::Read => &[Method::Get, Method::Head],
            Self::Fetch => &[Method::Get],
            Self::Set => &[Method::Post, Method::Put],
            Self::Delete => &[Method::Delete, Method::Post],
            Self::Stop => &[Method::Get, Method::Post],
            Self::Act => &[Method::Post],
        };
        methods.contains(&method)
    }

    /// The value of the `Allow` header.
    pub fn allow(self) -> &'static str {
        match self {
            Self::All => "GET, HEAD, POST, PUT, DELETE, OPTIONS",
            Self::Read => "GET, HEAD, OPTIONS",
            Self::Fetch => "GET, OPTIONS",
            Self::Set => "POST, PUT, OPTIONS",
            Self::Delete => "DELETE, POST, OPTIONS",
            Self::Stop => "GET, POST, OPTIONS",
            Self::Act => "POST, OPTIONS",
        }
    }
}

/// A request whose head is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    endpoint: Endpoint,
    key: Option<Key<Text>>,
    value: Option<Text>,
    expires: Option<UnixMillis>,
    /// It is rare, and in a box it keeps other routes short.
    part: Option<Box<Part>>,
}

/// Bytes that a request gives in its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// These bytes of the request, as they are.
    In(Range<usize>),
    /// Decoded bytes.
    Decoded(Box<[u8]>),
}

impl Text {
    fn bytes<'a>(&'a self, request: &'a [u8]) -> &'a [u8] {
        match self {
            Self::In(range) => &request[range.clone()],
            Self::Decoded(bytes) => bytes,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Set,
    Get,
    Delete,
    /// A part of a file that is lent.
    Part,
    Control(Control),
}

impl Endpoint {
    fn of(path: &[u8]) -> Option<Self> {
        Some(match path {
            b"/set" => Self::Set,
            b"/get" => Self::Get,
            b"/del" => Self::Delete,
            b"/shutdown" => Self::Control(Control::Shutdown),
            b"/livez" => Self::Control(Control::Livez),
            b"/readyz" => Self::Control(Control::Readyz),
            b"/metrics" => Self::Control(Control::Metrics),
            b"/stats" => Self::Control(Control::Stats),
            b"/backup" => Self::Control(Control::Backup),
            b"/backup/part" => Self::Part,
            b"/compact" => Self::Control(Control::Compact),
            b"/openapi.yaml" => Self::Control(Control::Openapi),
            _ => return None,
        })
    }

    fn methods(self) -> Methods {
        match self {
            Self::Set => Methods::Set,
            Self::Get
            | Self::Control(
                Control::Livez
                | Control::Readyz
                | Control::Metrics
                | Control::Stats
                | Control::Openapi
                | Control::Options(_),
            ) => Methods::Read,
            Self::Part | Self::Control(Control::Backup) => Methods::Fetch,
            Self::Control(Control::Compact) => Methods::Act,
            Self::Delete => Methods::Delete,
            Self::Control(Control::Shutdown) => Methods::Stop,
        }
    }

    /// The methods that `OPTIONS` asks for: of a path, or of the whole server, which load balancers name `*` or `/`.
    fn methods_of(target: &[u8]) -> Option<Methods> {
        let path = target.split(|byte| *byte == b'?').next().unwrap_or(target);
        match path {
            b"*" | b"/" | b"" => Some(Methods::All),
            _ => Self::of(path).map(Self::methods),
        }
    }

    /// What is said of a query parameter that the path does not take.
    fn parameters(self) -> &'static str {
        match self {
            Self::Set => {
                "/set takes the query parameters `key`, `value`, `expires` and `timing`, and no other"
            }
            Self::Get | Self::Delete => {
                "the path takes the query parameters `key` and `timing`, and no other"
            }
            Self::Part | Self::Control(_) => "the path takes the query parameter `timing`, and no other",
        }
    }

    fn need(self) -> Need {
        match self {
            Self::Get | Self::Control(Control::Metrics | Control::Stats | Control::Openapi) => {
                Need::Role(Role::Read)
            }
            Self::Part | Self::Control(Control::Backup | Control::Compact) => Need::Role(Role::Admin),
            Self::Set | Self::Delete => Need::Role(Role::Write),
            Self::Control(Control::Shutdown) => Need::Shutdown,
            Self::Control(Control::Livez | Control::Readyz | Control::Options(_)) => Need::Nothing,
        }
    }

    fn label(self) -> Label {
        match self {
            Self::Set => Label::SET,
            Self::Get => Label::GET,
            Self::Delete => Label::DELETE,
            Self::Control(Control::Shutdown) => Label::SHUTDOWN,
            Self::Control(Control::Livez) => Label::LIVEZ,
            Self::Control(Control::Readyz) => Label::READYZ,
            Self::Control(Control::Metrics) => Label::METRICS,
            Self::Control(Control::Stats) => Label::STATS,
            Self::Control(Control::Backup) => Label::BACKUP,
            Self::Part => Label::PART,
            Self::Control(Control::Compact) => Label::COMPACT,
            Self::Control(Control::Openapi) => Label::OPENAPI,
            Self::Control(Control::Options(_)) => Label::OPTIONS,
        }
    }

    fn changes_something(self) -> bool {
        matches!(self, Self::Set | Self::Delete | Self::Control(Control::Shutdown | Control::Compact))
    }

    /// Refuses what a page of another site may not ask for.
    fn keep_pages_out(self, head: &Head, head_bytes: &[u8], grant: &Grant) -> Result<(), Refusal> {
        if head.foreign && self.need() != Need::Nothing {
            if self.changes_something() {
                return Err(FOREIGN);
            }
            // Even without the reply, a page learns whether there is one, and how long it is. It cannot add a token.
            if !grant.by_token && !is_followed_link(head_bytes) {
                return Err(FOREIGN_READ);
            }
        }
        let stops = self == Endpoint::Control(Control::Shutdown);
        if stops && head.method == Method::Get && is_of_browser(head_bytes) {
            return Err(STOP_BY_BROWSER);
        }
        Ok(())
    }

    fn has_key(self) -> bool {
        !matches!(self, Self::Part | Self::Control(_))
    }
}

/// Whether the reply to a request says where the time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timing {
    /// It does not.
    #[default]
    Untold,
    /// It does.
    Told,
}

impl Timing {
    /// Reads the query parameter.
    fn ask(&mut self, value: &[u8]) -> Result<(), Refusal> {
        match (value, std::mem::replace(self, Self::Told)) {
            (b"1", Self::Untold) => Ok(()),
            (b"1", Self::Told) => Err(TWICE),
            _ => Err(Refusal::bad("`timing` takes the value 1, and no other")),
        }
    }
}

impl Route {
    /// Checks everything except the body. Returns also whether the reply says where the time went. `request` holds the bytes
    /// of the request, `head` is its head, and `grant` is what its client may do.
    ///
    /// # Errors
    /// 401, 403, 404, 405, 400 or 414, with a sentence.
    pub fn of(
        head: &Head,
        request: &[u8],
        grant: &Grant,
        key_hash: KeyHash,
    ) -> Result<(Self, Timing), Refusal> {
        let target = &request[head.target.clone()];
        if head.method == Method::Options
            && let Some(methods) = Endpoint::methods_of(target)
        {
            return Ok((Self::new(Endpoint::Control(Control::Options(methods))), Timing::Untold));
        }
        // In most targets, it comes after a few bytes.
        let (path, query) = match target.iter().position(|byte| *byte == b'?') {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (target, &[][..]),
        };
        let endpoint = Endpoint::of(path);
        grant.check(endpoint.map_or(Need::Role(Role::Read), Endpoint::need))?;
        let endpoint = endpoint.ok_or(UNKNOWN_PATH)?;
        endpoint.keep_pages_out(head, &request[..head.bytes], grant)?;
        let methods = endpoint.methods();
        if !methods.take(head.method) {
            let message = "the path does not take this method; see the Allow header";
            return Err(Refusal::new(Status::MethodNotAllowed, message).with_field("allow", methods.allow()));
        }
        if endpoint == Endpoint::Part {
            return Self::part(query);
        }
        let (mut key, mut value, mut expires) = (None, None, None);
        let mut timing = Timing::default();
        for parameter in parameters(query) {
            let (name, encoded) = parameter?;
            let place = match (endpoint, name) {
                (Endpoint::Set | Endpoint::Get | Endpoint::Delete, b"key") => &mut key,
                (Endpoint::Set, b"value") => &mut value,
                (Endpoint::Set, b"expires") => &mut expires,
                (_, b"timing") => {
                    timing.ask(encoded)?;
                    continue;
                }
                _ => return Err(Refusal::bad(endpoint.parameters())),
            };
            if place.replace(decode(encoded)?).is_some() {
                return Err(TWICE);
            }
        }
        // The query lies within the request. Its range remains when the borrow ends.
        let text = |bytes: Cow<'_, [u8]>| match bytes {
            Cow::Borrowed(bytes) => {
                let start = bytes.as_ptr().addr() - request.as_ptr().addr();
                Text::In(start..start + bytes.len())
            }
            Cow::Owned(bytes) => Text::Decoded(bytes.into_boxed_slice()),
        };
        let key = match key {
            Some(key) if key.is_empty() => return Err(Refusal::bad("the key is empty")),
            Some(key) if KEY_BYTES_MAX < key.len() => return Err(KEY_TOO_LONG),
            Some(key) => {
                let hashed = Key::new(&*key, key_hash).map(|_| ());
                Some(hashed.map(|()| text(key)))
            }
            None if endpoint.has_key() => return Err(Refusal::bad("the query parameter `key` is missing")),
            None => None,
        };
        if endpoint == Endpoint::Set && value.is_none() && head.framing == Framing::Empty {
            return Err(Refusal::bad("a value is missing: give the query parameter `value`, or a body"));
        }
        let expires = expires.map(|text| expiry(&text)).transpose()?;
        Ok((Self { key, value: value.map(text), expires, ..Self::new(endpoint) }, timing))
    }

    /// A part of a file, by its own parameters.
    #[cold]
    fn part(query: &[u8]) -> Result<(Self, Timing), Refusal> {
        let (mut part, mut timing) = (PartQuery::default(), Timing::default());
        for parameter in parameters(query) {
            match parameter? {
                (b"timing", value) => timing.ask(value)?,
                (name, value) => part.add(name, value)?,
            }
        }
        let part = Some(Box::new(part.finish()?));
        Ok((Self { part, ..Self::new(Endpoint::Part) }, timing))
    }

    fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, key: None, value: None, expires: None, part: None }
    }

    /// What `of` makes of the key, if the request has one.
    pub(super) fn with_key<R>(&self, request: &[u8], of: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.key.as_ref().map(|key| of(key.map(|text| text.bytes(request)).bytes()))
    }

    /// What the request asks for.
    pub fn label(&self) -> Label {
        self.endpoint.label()
    }

    /// The label of a request with this target, whether or not it is valid.
    pub fn label_of(target: &[u8]) -> Label {
        let path = target.split(|byte| *byte == b'?').next().unwrap_or(target);
        Endpoint::of(path).map_or(Label::UNKNOWN, Endpoint::label)
    }

    /// Whether the reply ends its connection: it is sent for as long as somebody listens.
    pub fn is_last(&self) -> bool {
        matches!(self.endpoint, Endpoint::Control(Control::Shutdown | Control::Backup))
    }

    /// Whether the request is an operation on a key.
    pub fn is_operation(&self) -> bool {
        self.endpoint.has_key()
    }

    /// The part of a file that the request asks for, if it does.
    pub fn part_of_file(&self) -> Option<Part> {
        self.part.as_deref().copied()
    }

    /// What the request asks of the server, if that is neither an operation nor a part of a file.
    pub fn control(&self) -> Option<Control> {
        match self.endpoint {
            Endpoint::Control(control) => Some(control),
            Endpoint::Set | Endpoint::Get | Endpoint::Delete | Endpoint::Part => None,
        }
    }

    /// The hashes of the key, if the request is an operation.
    pub fn key(&self) -> Option<Key<()>> {
        self.key.as_ref().map(|key| key.map(|_| ()))
    }

    /// Whether the request reads its key and changes nothing.
    pub fn only_reads(&self) -> bool {
        self.endpoint == Endpoint::Get
    }

    /// Whether the request sets its key, whatever value the key had.
    pub fn only_sets(&self) -> bool {
        self.endpoint == Endpoint::Set
    }

    /// The operation, now that the body has arrived. `request` holds the bytes of the request, as in [`Self::of`].
    ///
    /// # Errors
    /// 400 if there are two values.
    ///
    /// # Panics
    /// If the request is not an operation (see [`Self::is_operation`]).
    pub fn op<'a>(&'a self, request: &'a [u8], body: &'a [u8]) -> Result<Op<&'a [u8]>, Refusal> {
        let key = self.key.as_ref().expect("an operation has a key");
        let key = key.map(|text| text.bytes(request));
        Ok(match self.endpoint {
            Endpoint::Set => {
                let value = match &self.value {
                    Some(_) if !body.is_empty() => {
                        return Err(Refusal::bad(
                            "there are two values: the query parameter `value`, and a body",
                        ));
                    }
                    Some(value) => value.bytes(request),
                    None => body,
                };
                Op::Set { key, value, expires: self.expires }
            }
            // A get and a delete have no use for a body: it was read, and is dropped.
            Endpoint::Get => Op::Get { key },
            Endpoint::Delete => Op::Delete { key },
            Endpoint::Part | Endpoint::Control(_) => unreachable!("it has no key"),
        })
    }
}

/// Reads when a value expires: a Unix time in seconds.
fn expiry(text: &[u8]) -> Result<UnixMillis, Refusal> {
    let seconds = decimal(text).filter(|seconds| EXPIRES_SECONDS.contains(seconds));
    let seconds = seconds.ok_or(Refusal::bad(
        "`expires` is not a Unix time in whole seconds, from the year 2001 to the year 9999; add a time to live to \
         the present time",
    ))?;
    Ok(UnixMillis(seconds * 1000))
}

/// From ten digits on, to the end of the year 9999. A smaller number is a time to live, given by mistake.
const EXPIRES_SECONDS: RangeInclusive<u64> = 1_000_000_000..=253_402_300_799;

const UNKNOWN_PATH: Refusal = Refusal::new(
    Status::NotFound,
    "there is no such path; /openapi.yaml describes those that there are: \
     /set, /get, /del, /shutdown, /livez, /readyz, /metrics, /stats, /backup and /compact",
)
.with_field(ERROR_FIELD, "unknown-path");
const FOREIGN: Refusal = Refusal::new(
    Status::Forbidden,
    "a page of another site may not change anything here, and a browser may not before its user asks for it",
);
const FOREIGN_READ: Refusal = Refusal::new(
    Status::Forbidden,
    "a page of another site may link to a value, but not load or prefetch it",
);
const STOP_BY_BROWSER: Refusal = Refusal::new(
    Status::Forbidden,
    "a browser may stop the server by POST only: a GET may be a link, an image or a redirect of any page",
);
const TWICE: Refusal = Refusal::bad("a query parameter is given twice");
const KEY_TOO_LONG: Refusal = Refusal::new(Status::UriTooLong, "the key is longer than 16384 bytes");

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: Method, target: &str, body: Option<&str>) -> Result<String, u16> {
        let framing = body.map_or(Framing::Empty, |body| Framing::Length(body.len() as u64));
        let head = Head {
            method,
            target: 0..target.len(),
            host_name: None,
            authorization: None,
            old: false,
            framing,
            range: None,
            keep_alive: true,
            expects_continue: false,
            foreign: false,
            bytes: 0,
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (route, _) = Route::of(&head, target.as_bytes(), &Grant::ALL, KeyHash::with_seed(1))
            .map_err(|refusal| refusal.status.code())?;
        if let Some(control) = route.control() {
            return Ok(match control {
                Control::Options(methods) => methods.allow().to_owned(),
                control => format!("{control:?}"),
            });
        }
        if let Some(part) = route.part_of_file() {
            return Ok(format!("part at {}", part.offset()));
        }
        route
            .op(target.as_bytes(), body.unwrap_or("").as_bytes())
            .map(|op| {
                let key = text(op.key().bytes());
                match op {
                    Op::Set { value, expires: None, .. } => format!("set {key}={}", text(value)),
                    Op::Set { value, expires: Some(at), .. } => {
                        format!("set {key}={} until {}", text(value), at.0)
                    }
                    Op::Get { .. } => format!("get {key}"),
                    Op::Delete { .. } => format!("delete {key}"),
                }
            })
            .map_err(|refusal| refusal.status.code())
    }

    #[test]
    fn every_path_has_its_name_as_its_label() {
        for name in &Label::NAMES[1..Label::NAMES.len() - 1] {
            let label = Route::label_of(format!("/{name}?key=k").as_bytes());
            assert_eq!(label.name(), *name);
        }
        assert_eq!(Route::label_of(b"/nowhere"), Label::UNKNOWN);
        assert_eq!(Endpoint::Control(Control::Options(Methods::All)).label().name(), "options");
    }

    #[test]
    fn a_part_of_a_file_has_parameters_of_its_own() {
        let target = "/backup/part?backup=1&shard=0&file=1&offset=4096&bytes=4096&timing=1";
        assert_eq!(route(Method::Get, target, None).as_deref(), Ok("part at 4096"));
        assert_eq!(route(Method::Head, target, None), Err(405));
        assert_eq!(route(Method::Get, &format!("{target}&key=k"), None), Err(400));
    }

    #[test]
    fn every_line_of_the_contract() {
        use Method::{Delete, Get, Head, Options, Other, Post, Put};
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
            (Post, "/set?key=a&value=v&expires=1700000000", None, Ok("set a=v until 1700000000000")),
            (Post, "/set?key=a&expires=1000000000", Some("b"), Ok("set a=b until 1000000000000")),
            (Post, "/set?key=a&expires=999999999", Some("b"), Err(400)),
            (Post, "/set?key=a&value=v&expires=1.5", None, Err(400)),
            (Post, "/set?key=a&value=v&expires=253402300800", None, Err(400)),
            (Post, "/set?key=a&value=v&expires=1&expires=1", None, Err(400)),
            (Get, "/get?key=k&expires=1", None, Err(400)),
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
            (Get, "/metrics", None, Ok("Metrics")),
            (Get, "/openapi.yaml", None, Ok("Openapi")),
            (Post, "/openapi.yaml", None, Err(405)),
            (Get, "/stats", None, Ok("Stats")),
            (Head, "/stats", None, Ok("Stats")),
            (Get, "/backup", None, Ok("Backup")),
            (Head, "/backup", None, Err(405)),
            (Get, "/backup?key=k", None, Err(400)),
            (Get, "/backup/part", None, Err(400)),
            (Post, "/compact", None, Ok("Compact")),
            (Get, "/compact", None, Err(405)),
            (Other, "/readyz", None, Err(405)),
            (Options, "*", None, Ok("GET, HEAD, POST, PUT, DELETE, OPTIONS")),
            (Options, "/", None, Ok("GET, HEAD, POST, PUT, DELETE, OPTIONS")),
            (Options, "/set?key=k", None, Ok("POST, PUT, OPTIONS")),
            (Options, "/nowhere", None, Err(404)),
            (Get, "*", None, Err(404)),
            (Get, "/", None, Err(404)),
            (Get, "//get?key=k", None, Err(404)),
            (Get, "/get/?key=k", None, Err(404)),
            (Get, "/%67et?key=k", None, Err(404)),
            (Options, "", None, Ok("GET, HEAD, POST, PUT, DELETE, OPTIONS")),
            (Get, "", None, Err(404)),
        ] {
            assert_eq!(route(method, target, body), expected.map(str::to_owned), "{method:?} {target}");
        }
        let key = "k".repeat(KEY_BYTES_MAX);
        assert!(route(Get, &format!("/get?key={key}"), None).is_ok());
        assert_eq!(route(Get, &format!("/get?key={key}k"), None), Err(414));
    }
}
