//! A line of the log: an event of `tracing` → text, text for journald, or JSON. Pure, except for the time.
//!
//! Whatever a message or a field holds, an event takes one line, and no control character of it reaches a terminal.

use std::fmt::{self, Debug, Write};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// `2026-01-31T12:00:00.000000Z  WARN message field=value`
    Text { colours: bool },
    /// `<4> WARN message field=value`: journald knows the time, and takes the number for the priority (`sd-daemon(3)`).
    Journal,
    /// `{"timestamp":"…","level":"WARN","message":"…","field":1}`
    Json,
}

/// What an event says.
#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Said {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

impl Style {
    /// A whole line, without fields.
    pub(super) fn line(self, level: Level, message: &str) -> String {
        let mut line = String::new();
        let said = Said { message: message.into(), fields: Vec::new() };
        // Only memory is written to.
        let _ = self.write(&mut Writer::new(&mut line), level, &said);
        line
    }

    fn write(self, line: &mut Writer<'_>, level: Level, said: &Said) -> fmt::Result {
        match self {
            Self::Json => {
                line.write_str("{\"timestamp\":\"")?;
                SystemTime.format_time(line)?;
                write!(line, "\",\"level\":\"{level}\",\"message\":{}", json(&said.message.as_str().into()))?;
                for (name, value) in &said.fields {
                    write!(line, ",{}:{}", json(&(*name).into()), json(value))?;
                }
                return line.write_str("}\n");
            }
            Self::Journal => write!(line, "<{}>{level:>5} ", priority(level))?,
            Self::Text { colours } => {
                SystemTime.format_time(line)?;
                if colours {
                    write!(line, " \x1b[{}m{level:>5}\x1b[0m ", colour(level))?;
                } else {
                    write!(line, " {level:>5} ")?;
                }
            }
        }
        line.write_str(&escaped(&said.message))?;
        for (name, value) in &said.fields {
            match value {
                Value::String(text) => write!(line, " {name}={}", word(text))?,
                value => write!(line, " {name}={value}")?,
            }
        }
        line.write_char('\n')
    }
}

impl<S, N> FormatEvent<S, N> for Style
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        self.write(&mut writer, *event.metadata().level(), &said)
    }
}

/// The number of a level for journald.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The number of a colour for a terminal.
fn colour(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

/// The text without control characters, and without other characters that show nothing or change the order of what they
/// stand in.
pub(super) fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if matches!(char, '"' | '\'' | '\\') { line.push(char) } else { line.extend(char.escape_debug()) }
    }
    line
}

/// A text as a field: in quotation marks, unless it is a plain word.
fn word(text: &str) -> String {
    let is_plain = |char: char| !char.is_whitespace() && !matches!(char, '"' | '\\' | '=');
    let line = escaped(text);
    if !text.is_empty() && line == text && text.chars().all(is_plain) { line } else { format!("{text:?}") }
}

/// A value as JSON. Its strings have no control characters: JSON itself would allow some of them.
fn json(value: &Value) -> String {
    let mut text = String::new();
    for char in value.to_string().chars() {
        if char.is_control() {
            let _ = write!(text, "\\u{:04x}", u32::from(char)); // to memory
        } else {
            text.push(char);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\n<0>b\r\x1b[31mc\x07\x7f\u{9b}\u{202e}d\"e\\";

    fn written(style: Style) -> String {
        let said = Said {
            message: EVIL.into(),
            fields: vec![("text", EVIL.into()), ("path", "/a/b".into()), ("count", 3.into())],
        };
        let mut line = String::new();
        style.write(&mut Writer::new(&mut line), Level::WARN, &said).unwrap();
        line
    }

    #[test]
    fn an_event_is_one_line_without_control_characters_in_every_form() {
        for style in [Style::Text { colours: false }, Style::Journal, Style::Json] {
            let line = written(style);
            let line = line.strip_suffix('\n').unwrap();
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }

    #[test]
    fn text_has_the_time_and_journald_gets_a_priority_instead() {
        let said = r#"WARN a\n<0>b\r\u{1b}[31mc\u{7}\u{7f}\u{9b}\u{202e}d"e\ "#;
        let fields = r#"text="a\n<0>b\r\u{1b}[31mc\u{7}\u{7f}\u{9b}\u{202e}d\"e\\" path=/a/b count=3"#;
        assert_eq!(written(Style::Journal), format!("<4> {said}{fields}\n"));
        let text = written(Style::Text { colours: false });
        let (time, rest) = text.split_at("2026-01-31T12:00:00.000000Z".len());
        assert!(time.ends_with('Z') && humantime::parse_rfc3339(time).is_ok(), "{time}");
        assert_eq!(rest, format!("  {said}{fields}\n"));
    }

    #[test]
    fn json_is_an_object_with_the_time_the_level_the_message_and_the_fields() {
        let line: Value = serde_json::from_str(&written(Style::Json)).unwrap();
        assert!(humantime::parse_rfc3339(line["timestamp"].as_str().unwrap()).is_ok());
        assert_eq!((line["level"].as_str(), line["message"].as_str()), (Some("WARN"), Some(EVIL)));
        assert_eq!((line["text"].as_str(), line["count"].as_u64()), (Some(EVIL), Some(3)));
    }
}
