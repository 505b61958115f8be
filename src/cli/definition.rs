//! What the settings of a command are, taken from its flags: names, forms, and whether a value is one that a flag may have.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind as UsageKind};
use clap::{Arg, ArgAction, ArgMatches, Args, Command};

use crate::error::{Error, ErrorKind, Result};

/// Variables begin with this.
pub(super) const PREFIX: &str = "RINGKEEP_";
/// A setting that is given, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    /// A switch that is off has none.
    pub(super) values: Vec<OsString>,
    /// As people know it: `--memory`, `RINGKEEP_MEMORY`, `/etc/ringkeep.toml:12`.
    pub(super) source: String,
}

/// What one layer gives, by the name of the setting.
pub(super) type Layer = BTreeMap<String, Given>;

/// A command whose arguments are the settings `T`.
pub(super) fn definition<T: Args>() -> Command {
    let command = Command::new("ringkeep").disable_help_flag(true).disable_version_flag(true);
    let mut command = T::augment_args(command);
    command.build();
    command
}

/// The settings that are not a name of something else.
pub(super) fn known(definition: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    definition.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(|arg| Some((arg.get_long()?, arg)))
}

pub(super) fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

pub(super) fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// The variable of a setting.
pub(super) fn variable_of(name: &str) -> String {
    format!("{PREFIX}{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// The setting that is probably meant.
pub(super) fn suggestion(definition: &Command, name: &str) -> Option<String> {
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
        return None;
    }
    let error = parse(definition, [OsString::from(format!("--{name}=1"))]).err()?;
    match (error.kind(), error.get(ContextKind::SuggestedArg)) {
        (UsageKind::UnknownArgument, Some(ContextValue::String(flag))) => {
            let meant = flag.trim_start_matches('-');
            known(definition).find(|(name, _)| *name == meant).map(|(name, _)| name.to_owned())
        }
        _ => None,
    }
}

/// Parses what one layer gives for one setting, alone.
///
/// # Errors
/// `Configuration`, with the source.
pub(super) fn check(definition: &Command, name: &str, given: &Given) -> Result<()> {
    match parse(definition, arguments(definition, name, given)) {
        Ok(_) => Ok(()),
        Err(error) => Err(wrong(&given.source, &sentence(&error))),
    }
}

pub(super) fn parse(
    definition: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> std::result::Result<ArgMatches, clap::Error> {
    let program = OsString::from("ringkeep");
    definition.clone().try_get_matches_from(std::iter::once(program).chain(arguments))
}

/// The arguments that give a setting.
pub(super) fn arguments(definition: &Command, name: &str, given: &Given) -> Vec<OsString> {
    let switch = definition.get_arguments().any(|arg| arg.get_long() == Some(name) && is_switch(arg));
    let argument = |value: &OsString| {
        let mut argument = OsString::from(format!("--{name}"));
        if !switch {
            argument.push("=");
            argument.push(value);
        }
        argument
    };
    given.values.iter().map(argument).collect()
}

/// The reason of an error of the command line, in one line.
pub(super) fn sentence(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let reason = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = reason.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

/// An error of the configuration, with its place.
pub(super) fn wrong(source: &str, why: &str) -> Error {
    Error::new(ErrorKind::Configuration, format!("{source}: {why}"))
}
