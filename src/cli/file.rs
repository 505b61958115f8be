//! The configuration file: TOML, whose keys are the names of the flags.

use std::io::Read;
use std::path::Path;

use clap::{Arg, Command};
use toml::de::{DeTable, DeValue};

use super::definition::{Given, Layer, check, is_list, is_switch, known, suggestion, wrong};
use crate::error::{Error, ErrorKind, Result};
use crate::host::open_regular;

/// Longest file: each setting takes a line.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What the values of some settings look like, as their help says: a number stands for such a value.
const NUMBERS: &[&str] = &["N", "SIZE", "MODE", "GROUP"];

/// Reads a file.
///
/// # Errors
/// `Configuration`, with the line; `Permission`.
pub(super) fn read(path: &Path, definition: &Command) -> Result<Layer> {
    let attempt = |error| {
        let error = Error::io(format!("read the configuration file {}", path.display()), error);
        if error.kind() == ErrorKind::Permission { error } else { error.with_kind(ErrorKind::Configuration) }
    };
    let mut text = String::new();
    let read = open_regular(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    if FILE_BYTES_MAX < read.map_err(attempt)? as u64 {
        return Err(wrong(&path.display().to_string(), &format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    parse(&text, &path.display().to_string(), definition)
}

/// The settings in `text`, which is that of `file`.
pub(super) fn parse(text: &str, file: &str, definition: &Command) -> Result<Layer> {
    let place = |offset: usize| {
        let before = text.get(..offset).unwrap_or(text);
        format!("{file}:{}", 1 + before.matches('\n').count())
    };
    let table = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(text.len(), |span| span.start);
        wrong(&place(offset), &error.message().split_whitespace().collect::<Vec<_>>().join(" "))
    })?;
    let mut keys: Vec<_> = table.get_ref().iter().collect();
    keys.sort_by_key(|(key, _)| key.span().start); // so that the first mistake is the one that is named
    let mut layer = Layer::new();
    for (key, value) in keys {
        let (name, source) = (key.get_ref().as_ref(), place(key.span().start));
        // The path of the file cannot be in the file.
        let found = definition.get_arguments().find(|arg| arg.get_long() == Some(name) && name != "config");
        let Some(arg) = found else {
            let meant = suggestion(definition, name).map(|name| format!("; is `{name}` meant?"));
            let why = format!("there is no setting `{}`{}", name.escape_debug(), meant.unwrap_or_default());
            return Err(wrong(&source, &why));
        };
        let given = values(arg, value.get_ref()).map(|values| Given { values, source: source.clone() });
        let given = given.map_err(|expected| {
            wrong(&source, &format!("`{name}` is {}, but must be {expected}", value.get_ref().type_str()))
        })?;
        check(definition, name, &given)?;
        if known(definition).any(|(known, _)| known == name) {
            layer.insert(name.to_owned(), given);
        }
    }
    Ok(layer)
}

/// The values of a setting, or what they should have been.
fn values(arg: &Arg, value: &DeValue<'_>) -> std::result::Result<Vec<std::ffi::OsString>, &'static str> {
    let names_a = |kinds: &[&str]| {
        arg.get_value_names().is_some_and(|names| names.iter().any(|name| kinds.contains(&name.as_str())))
    };
    match value {
        DeValue::Boolean(on) if is_switch(arg) => Ok(if *on { vec!["true".into()] } else { Vec::new() }),
        _ if is_switch(arg) => Err("true or false"),
        DeValue::Array(elements) if is_list(arg) => {
            let element = |element: &toml::Spanned<DeValue<'_>>| match element.get_ref() {
                DeValue::String(text) => Ok(text.as_ref().into()),
                _ => Err("an array of strings"),
            };
            elements.iter().map(element).collect()
        }
        DeValue::String(text) => Ok(vec![text.as_ref().into()]),
        DeValue::Integer(number) if names_a(NUMBERS) && number.radix() == 10 => {
            Ok(vec![number.as_str().into()])
        }
        // 660 and 0o660 are the same permissions.
        DeValue::Integer(number) if names_a(&["MODE"]) && number.radix() == 8 => {
            Ok(vec![number.as_str().into()])
        }
        _ if is_list(arg) => Err("an array of strings"),
        _ if names_a(NUMBERS) => Err("a number or a string"),
        _ => Err("a string"),
    }
}
