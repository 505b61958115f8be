//! The HTTP cases of `tests/http_cases.json`: bytes, and what a server has to make of them.
//!
//! The file has one case a line. `bytes` is a list of texts, each with how often it comes; their characters are bytes, and
//! `@@` stands for letters of the run, so that keys of several runs differ. `replies` lists the statuses that each reply may
//! have, and `or` other lists. `closes` says whether the server must close the connection; if it is null, either is right.
//! With `ends` the client closes its side after the last byte, and with `waits` the server has to wait for more bytes.
//! `stored` is a key and the value that it must have afterwards, or null. The store holds `a` = `b`, and `mb`, a mebibyte.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of this module")]

use serde_json::Value;

/// Another request, to see whether the server is still in step. Its reply closes the connection.
pub const PROBE: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Cases that are longer are sent whole only.
pub const SHORT_BYTES: usize = 900;

pub struct Case {
    json: Value,
}

/// A reply, as far as the cases look at it.
pub struct Reply {
    pub status: u64,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

/// All cases of the file.
pub fn cases() -> Vec<Case> {
    let json: Value = serde_json::from_str(include_str!("../http_cases.json")).unwrap();
    json.as_array().unwrap().iter().map(|json| Case { json: json.clone() }).collect()
}

impl Case {
    pub fn name(&self) -> String {
        format!("{} [{}]", self.json["name"].as_str().unwrap(), self.json["rule"].as_str().unwrap())
    }

    pub fn bytes(&self, letters: &str) -> Vec<u8> {
        let parts = self.json["bytes"].as_array().unwrap().iter();
        let mut bytes = Vec::new();
        for part in parts {
            let text = part[0].as_str().unwrap().replace("@@", letters);
            let text: Vec<u8> = text.chars().map(|byte| u8::try_from(u32::from(byte)).unwrap()).collect();
            bytes.extend(text.repeat(usize::try_from(part[1].as_u64().unwrap()).unwrap()));
        }
        bytes
    }

    pub fn closes(&self) -> Option<bool> {
        self.json["closes"].as_bool()
    }

    fn says(&self, what: &str) -> bool {
        self.json[what] == true
    }

    /// Whether the client closes its side after the last byte.
    pub fn ends(&self) -> bool {
        self.says("ends")
    }

    /// Whether the server has to wait for more bytes.
    pub fn waits(&self) -> bool {
        self.says("waits")
    }

    /// Whether a probe after the case gets a reply, or may get one.
    pub fn may_be_probed(&self) -> bool {
        !self.ends() && !self.waits() && (self.closes() != Some(true) || self.json["or"].is_array())
    }

    /// Whether the case may stop the server, if the server is wrong.
    pub fn asks_for_stop(&self) -> bool {
        self.json["stops"] == false
    }

    /// A key, and the value that it must have.
    pub fn stored(&self, letters: &str) -> Option<(String, Option<Vec<u8>>)> {
        let stored = self.json["stored"].as_array()?;
        let text = |value: &Value| value.as_str().map(|text| text.replace("@@", letters));
        let latin = |text: String| text.chars().map(|byte| u32::from(byte) as u8).collect();
        Some((text(&stored[0]).unwrap(), text(&stored[1]).map(latin)))
    }

    fn texts(&self, what: &str) -> Vec<&str> {
        let list = self.json[what].as_array();
        list.into_iter().flatten().map(|text| text.as_str().unwrap()).collect()
    }

    fn lists(&self) -> Vec<&Value> {
        std::iter::once(&self.json["replies"])
            .chain(self.json["or"].as_array().into_iter().flatten())
            .collect()
    }

    /// How many replies there have to be before `waits` is true.
    pub fn replies_before_wait(&self) -> usize {
        self.json["replies"].as_array().unwrap().len()
    }

    /// What is wrong with the bytes that the client has received, if anything is. `probed` says that a probe was sent, and
    /// `closed` that the server has closed the connection, the probe apart.
    pub fn verdict(&self, received: &[u8], sent: &[u8], probed: bool) -> Result<(), String> {
        let mut replies = replies(received, &heads(sent))?;
        let statuses = |replies: &[Reply]| replies.iter().map(|reply| reply.status).collect::<Vec<_>>();
        let all = statuses(&replies);
        let fits = |list: &&Value, found: &[Reply]| {
            let list = list.as_array().unwrap();
            let allowed =
                |(one, found): (&Value, &Reply)| one.as_array().unwrap().contains(&found.status.into());
            list.len() == found.len() && list.iter().zip(found).all(allowed)
        };
        let mut closed = !probed;
        if probed {
            let is_probe = replies.last().is_some_and(|last| last.status == 200 && last.body == b"OK\n");
            let others = &replies[..replies.len().saturating_sub(1)];
            if is_probe && self.lists().iter().any(|list| fits(list, others)) {
                replies.pop();
            } else {
                closed = true;
            }
        }
        if !self.lists().iter().any(|list| fits(list, &replies)) {
            return Err(format!("statuses {all:?}, the probe included: {probed}"));
        }
        let first_form = fits(&&self.json["replies"], &replies);
        if first_form && !self.waits() && self.closes().is_some_and(|closes| closes != closed) {
            return Err(format!("closed: {closed}"));
        }
        let is_last = |reply: &Reply| reply.get("connection").is_some_and(|value| value == "close");
        let before_last = &replies[..replies.len().saturating_sub(1)];
        if before_last.iter().any(is_last) {
            return Err("a reply follows one with `connection: close`".into());
        }
        if let Some(last) = replies.last()
            && 200 <= last.status
            && !self.waits()
            && !self.ends()
            && is_last(last) != closed
        {
            return Err(format!("closed: {closed}, which the last reply does not say"));
        }
        for reply in &replies {
            reply.check()?;
            if let Some(name) = self.texts("no_fields").into_iter().find(|name| reply.get(name).is_some()) {
                return Err(format!("there is a field {name}"));
            }
        }
        let missing = |name: &&str| replies.first().is_some_and(|first| first.get(name).is_none());
        match self.texts("fields").into_iter().find(missing) {
            Some(name) => Err(format!("there is no field {name}")),
            None => Ok(()),
        }
    }
}

impl Reply {
    fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|field| field.0 == name).map(|field| field.1.as_str())
    }

    /// What every reply has to have.
    fn check(&self) -> Result<(), String> {
        let needs = |name: &str| self.get(name).map(|_| ()).ok_or(format!("{} without {name}", self.status));
        match self.status {
            100..200 => return Ok(()),
            405 => needs("allow")?,
            503 => needs("retry-after")?,
            _ => {}
        }
        let date = self.get("date").ok_or("there is no date")?;
        httpdate::parse_http_date(date).map_err(|_| format!("the date is {date:?}"))?;
        if self.body.is_empty() { Ok(()) } else { needs("content-type") }
    }
}

/// For each request line in `sent`, whether the request is HEAD.
fn heads(sent: &[u8]) -> Vec<bool> {
    let is_line = |line: &&[u8]| {
        let method =
            line.iter().take_while(|byte| byte.is_ascii_alphabetic() || b"@-".contains(byte)).count();
        let version = memchr::memmem::rfind(line, b"HTTP/");
        let digit = version.and_then(|at| line.get(at + 5)).is_some_and(u8::is_ascii_digit);
        0 < method && line.get(method) == Some(&b' ') && digit
    };
    sent.split(|byte| *byte == b'\n').filter(is_line).map(|line| line.starts_with(b"HEAD ")).collect()
}

fn replies(mut received: &[u8], heads: &[bool]) -> Result<Vec<Reply>, String> {
    let mut replies: Vec<Reply> = Vec::new();
    let mut final_replies = 0;
    while !received.is_empty() {
        let shown = String::from_utf8_lossy(&received[..received.len().min(60)]).into_owned();
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(bytes)) = head.parse(received) else {
            return Err(format!("no reply: {shown:?}"));
        };
        let status = u64::from(head.code.unwrap_or(0));
        let fields = head.headers.iter().map(|field| {
            (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned())
        });
        let mut reply = Reply { status, fields: fields.collect(), body: Vec::new() };
        let length = reply.get("content-length").and_then(|length| length.parse::<usize>().ok());
        let is_head = 200 <= status && heads.get(final_replies) == Some(&true);
        final_replies += usize::from(200 <= status);
        let body = match length {
            _ if status < 200 || is_head => 0,
            Some(length) => length,
            None => received.len() - bytes, // to the end of the connection
        };
        let Some(content) = received[bytes..].get(..body) else {
            return Err(format!("cut short: {shown:?}"));
        };
        reply.body = content.into();
        received = &received[bytes + body..];
        replies.push(reply);
    }
    Ok(replies)
}
