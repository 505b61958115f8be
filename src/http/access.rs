//! Who may do what: by the host that a request names, the token that it carries, and where its client is. Pure.
//!
//! Without tokens everyone who can connect may do everything, so then the server listens only where it is told that
//! everyone is trusted. A page of a web site can connect wherever its reader's browser can. It is kept out by the host
//! that the browser names, and by what the browser says of the page ([`super::head::Head::foreign`]).
//!
//! The time that the check of a token takes tells nothing of the tokens but their number and their lengths.

use std::ops::RangeInclusive;

use subtle::ConstantTimeEq;

use super::head::{Head, Method};
use super::{Refusal, Status};
use crate::config::ShutdownMode;

/// Most tokens of a file.
const TOKENS_MAX: usize = 256;
/// Lengths of a name, and of a secret.
const NAME_BYTES: RangeInclusive<usize> = 1..=64;
const SECRET_BYTES: RangeInclusive<usize> = 16..=256;

/// What the holder of a token may do. Each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Get values.
    Read,
    /// Set and delete them as well.
    Write,
    /// Stop the server, back it up and compact it as well.
    Admin,
}

impl Role {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// A token.
#[derive(Clone, PartialEq, Eq)]
struct Token {
    name: Box<str>,
    role: Role,
    secret: Box<[u8]>,
}

/// The tokens of a file. Only their names are ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens(Vec<Token>);

impl Tokens {
    /// Reads the text of a token file: a line `NAME ROLE SECRET` for each token, empty lines, and lines that begin with `#`.
    ///
    /// # Errors
    /// A sentence with the number of the line, and without the secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens: Vec<Token> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<_> = line.split_ascii_whitespace().collect();
            if words.first().is_none_or(|first| first.starts_with('#')) {
                continue;
            }
            let token = token(&words).map_err(|wrong| format!("line {number}: {wrong}"))?;
            if tokens.iter().any(|other| other.name == token.name || other.secret == token.secret) {
                return Err(format!("line {number}: an earlier line has the same name or the same secret"));
            }
            tokens.push(token);
            if TOKENS_MAX < tokens.len() {
                return Err(format!("line {number}: there are more than {TOKENS_MAX} tokens"));
            }
        }
        if tokens.is_empty() {
            return Err("there is no token".into());
        }
        Ok(Self(tokens))
    }

    /// The token with this secret. Every token is compared with it, in constant time.
    fn find(&self, secret: &[u8]) -> Option<&Token> {
        self.0.iter().fold(
            None,
            |found, token| if bool::from(token.secret.ct_eq(secret)) { Some(token) } else { found },
        )
    }

    fn named(&self, name: &str) -> Option<&Token> {
        self.0.iter().find(|token| *token.name == *name)
    }

    /// What is different in `after`, in words, by the names of the tokens.
    pub fn changes(&self, after: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for Token { name, role, secret } in &after.0 {
            match self.named(name) {
                None => changes.push(format!("{name}: new, {}", role.name())),
                Some(before) => {
                    if before.role != *role {
                        changes.push(format!("{name}: {} → {}", before.role.name(), role.name()));
                    }
                    if before.secret != *secret {
                        changes.push(format!("{name}: another secret"));
                    }
                }
            }
        }
        let gone = self.0.iter().filter(|token| after.named(&token.name).is_none());
        changes.extend(gone.map(|token| format!("{}: no longer valid", token.name)));
        changes
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|token| &*token.name).collect();
        f.write_str(&names.join(" "))
    }
}

fn token(words: &[&str]) -> Result<Token, String> {
    let &[name, role, secret] = words else {
        return Err("expected NAME ROLE SECRET".into());
    };
    let is_secret = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    let role = Role::ALL.into_iter().find(|known| known.name() == role);
    let role = role.ok_or("the role must be `read`, `write` or `admin`")?;
    if !NAME_BYTES.contains(&name.len()) {
        return Err(format!("the name has more than {} bytes", NAME_BYTES.end()));
    }
    if !SECRET_BYTES.contains(&secret.len()) || !secret.bytes().all(is_secret) {
        return Err(format!(
            "the secret must have {} to {} letters, digits, or characters of `-._~+/=`",
            SECRET_BYTES.start(),
            SECRET_BYTES.end()
        ));
    }
    Ok(Token { name: name.into(), role, secret: secret.as_bytes().into() })
}

/// The rules of a server.
#[derive(Debug, Clone)]
pub struct Policy {
    /// If there are none, no request needs one.
    pub tokens: Option<Tokens>,
    /// Names of the server besides its addresses and `localhost`.
    pub hosts: Vec<String>,
    /// Who may stop the server.
    pub shutdown: ShutdownMode,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// A role.
    Role(Role),
    /// To stop the server.
    Shutdown,
}

/// What the client of a request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// By its token; `Admin` if no tokens are needed.
    role: Option<Role>,
    /// The role is that of a token.
    pub(super) by_token: bool,
    /// The request has a token, but not one of ours.
    wrong_token: bool,
    /// Why a request to stop the server is refused, whatever its token.
    shutdown: Result<(), Refusal>,
}

impl Policy {
    /// What the client of a request may do. `request` holds the bytes of the request, and `head` is its head. `is_local`
    /// says whether the client is on this host.
    ///
    /// # Errors
    /// 421 for a host that is not known.
    pub fn admit(&self, head: &Head, request: &[u8], is_local: bool) -> Result<Grant, Refusal> {
        let (role, wrong_token) = match &self.tokens {
            None => (Some(Role::Admin), false),
            Some(tokens) => {
                let field = head.authorization.clone().map(|range| &request[range]);
                let role =
                    field.and_then(secret).and_then(|secret| tokens.find(secret)).map(|token| token.role);
                (role, field.is_some() && role.is_none())
            }
        };
        let by_token = self.tokens.is_some() && role.is_some();
        if let Some(name) = head.host_name.clone()
            && !by_token
            && !self.knows(&request[name])
        {
            return Err(UNKNOWN_HOST); // H6
        }
        let shutdown = match self.shutdown {
            ShutdownMode::Off => Err(SHUTDOWN_OFF),
            ShutdownMode::Local if !is_local => Err(SHUTDOWN_LOCAL),
            // Without TLS or loopback, browsers say nothing of the page whose image this may be. A POST has an `Origin`.
            ShutdownMode::Any if !is_local && self.tokens.is_none() && head.method == Method::Get => {
                Err(SHUTDOWN_POST)
            }
            ShutdownMode::Local | ShutdownMode::Token | ShutdownMode::Any => Ok(()),
        };
        Ok(Grant { role, by_token, wrong_token, shutdown })
    }

    /// The name of the token that a request carries, if it is one of ours.
    pub(super) fn token_name(&self, head: &Head, request: &[u8]) -> Option<&str> {
        let tokens = self.tokens.as_ref()?;
        let field = &request[head.authorization.clone()?];
        tokens.find(secret(field)?).map(|token| &*token.name)
    }

    /// Whether a request may be for the host of this name.
    ///
    /// A page has a name of the public DNS, so a name that cannot be one is no danger: a host of the local network, or a
    /// container.
    fn knows(&self, name: &[u8]) -> bool {
        let name = name.strip_suffix(b".").unwrap_or(name);
        !may_be_public(name) || self.hosts.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name))
    }
}

impl Grant {
    /// Everything that does not depend on where the client is.
    pub const ALL: Self =
        Self { role: Some(Role::Admin), by_token: false, wrong_token: false, shutdown: Ok(()) };

    /// Checks what a request needs.
    ///
    /// # Errors
    /// 401 or 403, with a sentence.
    pub fn check(&self, need: Need) -> Result<(), Refusal> {
        let role = match need {
            Need::Nothing => return Ok(()),
            Need::Role(role) => role,
            Need::Shutdown => {
                self.shutdown?;
                Role::Admin
            }
        };
        match self.role {
            Some(own) if role <= own => Ok(()), // H7
            Some(_) if role == Role::Admin => Err(NO_ADMIN),
            Some(_) => Err(NO_WRITER),
            None if self.wrong_token => Err(WRONG_TOKEN),
            None => Err(NO_TOKEN),
        }
    }
}

/// Whether a name may be in the public DNS: its last label is a top-level domain, which has letters only, or is encoded, and
/// has no addresses of its own.
fn may_be_public(name: &[u8]) -> bool {
    let Some(dot) = memchr::memrchr(b'.', name) else { return false };
    let last = &name[dot + 1..];
    let is_encoded = last.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"xn--"));
    is_encoded || last.iter().all(u8::is_ascii_alphabetic)
}

/// The secret in an `Authorization` field.
fn secret(field: &[u8]) -> Option<&[u8]> {
    let (scheme, secret) = field.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| secret.trim_ascii_start())
}

const UNKNOWN_HOST: Refusal = Refusal::new(
    Status::MisdirectedRequest,
    "the server does not know the host that the request names; --allowed-hosts makes it known",
);
const NO_TOKEN: Refusal =
    Refusal::new(Status::Unauthorized, "a token is needed: send the header `Authorization: Bearer SECRET`")
        .with_field("www-authenticate", "Bearer realm=\"ringkeep\"");
const WRONG_TOKEN: Refusal = Refusal::new(Status::Unauthorized, "the token is not valid")
    .with_field("www-authenticate", "Bearer realm=\"ringkeep\", error=\"invalid_token\"");
const NO_WRITER: Refusal =
    Refusal::new(Status::Forbidden, "the token has the role read; this needs write or admin");
const NO_ADMIN: Refusal = Refusal::new(Status::Forbidden, "this needs a token of the role admin");
const SHUTDOWN_OFF: Refusal =
    Refusal::new(Status::Forbidden, "the server is stopped by a signal, not by a request (--shutdown off)");
const SHUTDOWN_POST: Refusal = Refusal::new(
    Status::Forbidden,
    "a client on another host stops the server by POST, so that no web page can",
);
const SHUTDOWN_LOCAL: Refusal =
    Refusal::new(Status::Forbidden, "only a client on the same host may stop the server (--shutdown local)");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::authority::LastAddress;
    use crate::http::head::parse;

    #[test]
    fn changes_of_tokens_are_told_without_their_secrets() {
        let before = Tokens::parse(FILE).unwrap();
        assert_eq!(before.changes(&before), [""; 0]);
        let after =
            "reader admin 0123456789abcdef\nwriter write 0000111122223333\nnew read 4444555566667777\n";
        assert_eq!(
            before.changes(&Tokens::parse(after).unwrap()),
            ["reader: read → admin", "writer: another secret", "new: new, read", "boss: no longer valid"]
        );
    }

    const FILE: &str = "# for tests\n\nreader read 0123456789abcdef\n  writer\twrite  fedcba9876543210==\n\
        boss admin 0123456789-._~+/\n";

    fn policy(tokens: Option<&str>, shutdown: ShutdownMode) -> Policy {
        let tokens = tokens.map(|text| Tokens::parse(text).unwrap());
        Policy { tokens, hosts: vec!["db.example".into()], shutdown }
    }

    fn check(policy: &Policy, fields: &str, need: Need, is_local: bool) -> u16 {
        let request = format!("GET / HTTP/1.1\r\n{fields}\r\n");
        let head = parse(request.as_bytes(), &LastAddress::default()).unwrap();
        let admitted = policy.admit(&head, request.as_bytes(), is_local);
        admitted.and_then(|grant| grant.check(need)).map_or_else(|refusal| refusal.status.code(), |()| 200)
    }

    #[test]
    fn h6_a_host_is_an_address_localhost_or_an_allowed_name_unless_a_token_is_valid() {
        let open = policy(None, ShutdownMode::Local);
        let closed = policy(Some(FILE), ShutdownMode::Local);
        for (host, expected) in [
            ("localhost", 200),
            ("127.0.0.1:8080", 200),
            ("[::1]", 200),
            ("db.example:1", 200),
            ("DB.Example.", 200),
            ("ringkeep", 200),
            ("localhost.", 200),
            ("host_1.lan-2", 200),
            ("evil.example", 421),
            ("evil.example.", 421),
            ("evil.xn--p1ai", 421),
            ("ringkeep.local", 421),
            ("127.0.0.1.evil.example", 421),
            ("x.db.example", 421),
            ("db.example.evil", 421),
        ] {
            let fields = format!("Host: {host}\r\n");
            for need in [Need::Nothing, Need::Role(Role::Read), Need::Shutdown] {
                assert_eq!(check(&open, &fields, need, true), expected, "{host} {need:?}");
            }
            let with = |secret: &str| format!("{fields}Authorization: Bearer {secret}\r\n");
            let get = Need::Role(Role::Read);
            assert_eq!(check(&closed, &with("0123456789abcdef"), get, true), 200, "{host}");
            let refused = if expected == 200 { 401 } else { expected };
            assert_eq!(check(&closed, &with("0123456789abcdee"), get, true), refused, "{host}");
        }
    }

    #[test]
    fn h7_each_role_includes_those_before_it_and_a_probe_needs_none() {
        let policy = policy(Some(FILE), ShutdownMode::Local);
        let needs = [Need::Nothing, Need::Role(Role::Read), Need::Role(Role::Write), Need::Shutdown];
        for (authorization, expected) in [
            ("", [200, 401, 401, 401]),
            ("Authorization: Bearer 0123456789abcdef\r\n", [200, 200, 403, 403]),
            ("authorization: bearer  fedcba9876543210==\r\n", [200, 200, 200, 403]),
            ("Authorization: Bearer 0123456789-._~+/\r\n", [200; 4]),
            ("Authorization: Basic 0123456789-._~+/\r\n", [200, 401, 401, 401]),
            ("Authorization: Bearer 0123456789-._~+/x\r\n", [200, 401, 401, 401]),
            ("Authorization: Bearer\r\n", [200, 401, 401, 401]),
            ("Authorization: Bearer \r\n", [200, 401, 401, 401]),
        ] {
            let fields = format!("Host: localhost\r\n{authorization}");
            assert_eq!(needs.map(|need| check(&policy, &fields, need, true)), expected, "{authorization:?}");
        }
    }

    #[test]
    fn who_may_stop_the_server_depends_on_the_mode_the_place_and_the_token() {
        use ShutdownMode::{Any, Local, Off, Token};
        let boss = "Host: localhost\r\nAuthorization: Bearer 0123456789-._~+/\r\n";
        for (tokens, fields, mode, local, remote) in [
            (None, "Host: localhost\r\n", Local, 200, 403),
            (None, "Host: localhost\r\n", Any, 200, 403), // by GET
            (None, "Host: localhost\r\n", Off, 403, 403),
            (Some(FILE), "Host: localhost\r\n", Local, 401, 403),
            (Some(FILE), "Host: localhost\r\n", Any, 401, 401),
            (Some(FILE), boss, Local, 200, 403),
            (Some(FILE), boss, Token, 200, 200),
            (Some(FILE), boss, Any, 200, 200),
            (Some(FILE), boss, Off, 403, 403),
        ] {
            let policy = policy(tokens, mode);
            let found = [true, false].map(|is_local| check(&policy, fields, Need::Shutdown, is_local));
            assert_eq!(found, [local, remote], "{mode:?}, {} tokens", tokens.is_some());
        }
        let post = b"POST /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let admitted =
            policy(None, Any).admit(&parse(post, &LastAddress::default()).unwrap(), post, false).unwrap();
        assert_eq!(admitted.check(Need::Shutdown), Ok(()));
    }

    #[test]
    fn a_token_file_with_a_mistake_is_refused_and_no_message_has_a_secret() {
        let secret = "0123456789abcdef";
        for (text, hint) in [
            (String::new(), "no token"),
            ("# only this\n".into(), "no token"),
            (format!("a read\nb {secret}"), "line 1: expected"),
            (format!("a read {secret}\nb write {secret} x"), "line 2: expected"),
            (format!("a root {secret}"), "role"),
            ("a read 0123456789abcde".into(), "secret"),
            (format!("a read {secret},"), "secret"),
            (format!("a read {secret}\u{e9}"), "secret"),
            (format!("a read {secret}\nb read {secret}"), "line 2: an earlier"),
            (format!("a read {secret}\na read {secret}0"), "line 2: an earlier"),
            (format!("{} read {secret}", "n".repeat(65)), "name"),
            ((0..257).map(|n| format!("n{n} read {secret}{n}\n")).collect(), "line 257: there are more"),
        ] {
            let error = Tokens::parse(&text).unwrap_err();
            assert!(error.contains(hint) && !error.contains(secret), "{error}");
        }
        let tokens = Tokens::parse(FILE).unwrap();
        assert_eq!(format!("{tokens:?}"), "reader writer boss");
    }
}
