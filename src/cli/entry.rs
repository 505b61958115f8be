//! A key and its value as a line of JSON, as `ringkeep dump` writes and `ringkeep load` reads it. Pure.
//!
//! ```text
//!   {"key":"user:1","value":"text"}     {"key64":"/w==","value64":"AAE=","expires":1893456000}
//! ```
//!
//! `key64` and `value64` are for bytes that are not UTF-8 (base64 with padding, RFC 4648 section 4). `expires` is a Unix time in
//! seconds; fractions are rounded up.

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine};
use serde_json::Value;
use serde_json::error::Category;

/// A key, its value, and when it expires, in milliseconds of Unix time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) expires: Option<u64>,
}

/// Appends the line of an entry, with its line feed.
pub(super) fn put_line(out: &mut String, key: &[u8], value: &[u8], expires: Option<u64>) {
    out.push('{');
    put_bytes(out, "key", key);
    out.push(',');
    put_bytes(out, "value", value);
    if let Some(millis) = expires {
        out.push_str(&format!(",\"expires\":{}.{:03}", millis / 1000, millis % 1000));
    }
    out.push_str("}\n");
}

fn put_bytes(out: &mut String, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => out.push_str(&format!("\"{name}\":{}", Value::from(text))),
        Err(_) => out.push_str(&format!("\"{name}64\":\"{}\"", STANDARD.encode(bytes))),
    }
}

/// What is wrong with `text`, which is no base64.
fn why(text: &str, error: &DecodeError) -> String {
    match *error {
        DecodeError::InvalidByte(at, _) => {
            let (before, rest) = text.split_at_checked(at).unwrap_or((text, ""));
            let found = rest.chars().next().unwrap_or_default();
            let hint = if found == '=' { ", which may only stand at the end" } else { "" };
            format!("character {} is {found:?}{hint}", before.chars().count() + 1)
        }
        DecodeError::InvalidLastSymbol { .. } => {
            "it was cut, or not written by an encoder: its last character stands for no whole byte".into()
        }
        DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => {
            "its length is no multiple of four; = fills it up".into()
        }
    }
}

impl Entry {
    /// Whether the entry has expired at `now`, in milliseconds of Unix time.
    pub(super) fn has_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        const FORM: &str = r#"expected an object such as {"key":"k","value":"v"}"#;
        let parsed = serde_json::from_str(line).map_err(|error| match error.classify() {
            Category::Eof => format!("the JSON ends too early; {FORM}"),
            _ => format!("it cannot be read from column {} on ({error}); {FORM}", error.column()),
        })?;
        let Value::Object(fields) = parsed else { return Err(format!("it is no JSON object; {FORM}")) };
        let known = ["key", "key64", "value", "value64", "expires"];
        if let Some(unknown) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("it has an unknown field `{unknown}`"));
        }
        let bytes = |name: &str| -> Result<Vec<u8>, String> {
            let encoded = format!("{name}64");
            match (fields.get(name), fields.get(&encoded)) {
                (Some(Value::String(text)), None) => Ok(text.clone().into_bytes()),
                (None, Some(Value::String(text))) => STANDARD.decode(text).map_err(|error| {
                    format!("`{encoded}` is no base64 with padding (RFC 4648): {}", why(text, &error))
                }),
                (None, None) => Err(format!("it has neither `{name}` nor `{encoded}`")),
                (Some(_), Some(_)) => Err(format!("it has both `{name}` and `{encoded}`")),
                _ => Err(format!("the value of `{name}` or `{encoded}` is no string")),
            }
        };
        let expires = match fields.get("expires") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let seconds = value.as_f64().filter(|seconds| (0.0..1e12).contains(seconds));
                let seconds = seconds.ok_or("`expires` is not a Unix time in seconds, as in 1893456000")?;
                Some((seconds * 1e3).round() as u64)
            }
        };
        Ok(Self { key: bytes("key")?, value: bytes("value")?, expires })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_round_trips_as_one_line() {
        let all: Vec<u8> = (0..=255).collect();
        for (key, value, expires) in [
            (&b"k"[..], &b""[..], None),
            (b"line\nfeed \"quoted\" \\ \x00\x1b", "\u{1f510}".as_bytes(), Some(1_893_456_000_001)),
            (b"\xff", &all, Some(0)),
            (b"{\"key\":1}", b"null", Some(253_402_300_799_999)),
        ] {
            let mut line = String::new();
            put_line(&mut line, key, value, expires);
            assert!(line.ends_with("}\n") && line.matches('\n').count() == 1, "{line}");
            let entry = Entry { key: key.into(), value: value.into(), expires };
            assert_eq!(Entry::parse(line.trim_end()), Ok(entry), "{line}");
        }
    }

    #[test]
    fn a_line_that_could_be_read_in_two_ways_is_refused() {
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"key":"k"}"#,
            r#"{"key":"k","value":1}"#,
            r#"{"key":"k","key64":"aw==","value":""}"#,
            r#"{"key":"k","value":"v","ttl":1}"#,
            r#"{"key":"k","value64":"a"}"#,
            r#"{"key":"k","value":"v","expires":"soon"}"#,
            r#"{"key":"k","value":"v","expires":-1}"#,
            r#"{"key":"k","value":"v"} x"#,
        ] {
            assert!(Entry::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Entry::parse(r#"{"value":"v","key":"k","expires":null}"#).unwrap().expires, None);
    }
}
