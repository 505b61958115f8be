//! Where each setting comes from: a flag, the environment, the configuration file, a credential of systemd, or its default,
//! in this order.
//!
//! The flags of a command define its settings ([`super::serve::Serve`]). A variable or a line of the file becomes an argument
//! of the same command, so it has the same form, the same bounds and the same conflicts. It is parsed alone first, also if
//! a flag overrides it, and a mistake names the variable, or the file and the line.
//!
//! A setting that conflicts with one of a higher layer gives way, unless it protects the store ([`KEPT`]): then both are
//! named, and nothing starts.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};

use super::definition::{
    Given, Layer, PREFIX, arguments, check, definition, is_switch, known, parse, sentence, suggestion,
    variable_of, wrong,
};
use super::file;
use crate::error::{Error, ErrorKind, Result};

/// Settings that decide who may do what. They are never dropped silently.
const KEPT: &[&str] = &["token-file"];
/// What cargo sets for the programs that it runs.
const BUILD: &str = "RINGKEEP_COMMIT";
/// Files that systemd hands over (`LoadCredential=`), by setting.
const CREDENTIALS: &[(&str, &str)] =
    &[("token-file", "ringkeep-tokens"), ("tls-cert", "ringkeep-tls-cert"), ("tls-key", "ringkeep-tls-key")];

/// A setting in force, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InForce {
    pub(super) name: String,
    /// `None` if there is neither a value nor a default.
    pub(super) values: Option<Vec<String>>,
    /// What its help says of the default, if that is no value.
    meaning: Option<String>,
    pub(super) source: String,
}

impl InForce {
    /// The value in one line.
    pub(super) fn shown(&self) -> String {
        match (&self.values, &self.meaning) {
            (Some(values), _) => values.join(","),
            (None, Some(meaning)) => format!("({meaning})"),
            (None, None) => "none".into(),
        }
    }
}

/// The layers of a command.
pub(super) struct Settings {
    /// The flags, and nothing else.
    definition: Command,
    flags: Layer,
    variables: Layer,
    credentials: Layer,
    /// The configuration file.
    pub(super) file: Option<PathBuf>,
    /// Variables that begin like ours and are not.
    pub(super) unknown: Vec<String>,
}

impl Settings {
    /// Collects what the command line and the environment give.
    ///
    /// # Errors
    /// `Configuration` if a variable is wrong.
    pub(super) fn gather<T: Args>(
        matches: &ArgMatches,
        environment: Vec<(OsString, OsString)>,
    ) -> Result<Self> {
        let definition = definition::<T>();
        let flags = flags(&definition, matches);
        let directory = environment.iter().find(|(variable, _)| variable == "CREDENTIALS_DIRECTORY");
        let credentials = credentials(&definition, directory.map(|(_, path)| Path::new(path)))?;
        let (variables, unknown) = variables(&definition, environment)?;
        let config = [&flags, &variables].into_iter().find_map(|layer| layer.get("config"));
        let file = config.and_then(|given| given.values.first()).map(PathBuf::from);
        Ok(Self { definition, flags, variables, credentials, file, unknown })
    }

    /// Reads the file, and puts the layers together. Returns the settings, and those that are given, each with its source.
    ///
    /// # Errors
    /// `Configuration` if the file has a mistake, or settings exclude each other; `Permission`.
    pub(super) fn read<T: FromArgMatches>(&self) -> Result<(T, Layer)> {
        let file = match &self.file {
            Some(path) => file::read(path, &self.definition)?,
            None => Layer::new(),
        };
        let mut all = Layer::new();
        for layer in [&self.flags, &self.variables, &file, &self.credentials] {
            for (name, given) in layer {
                if !all.contains_key(name) && !self.gives_way(name, given, &all)? {
                    all.insert(name.clone(), given.clone());
                }
            }
        }
        let arguments = all.iter().flat_map(|(name, given)| arguments(&self.definition, name, given));
        let parsed = parse(&self.definition, arguments).and_then(|matches| T::from_arg_matches(&matches));
        let parsed = parsed.map_err(|error| Error::new(ErrorKind::Configuration, sentence(&error)))?;
        Ok((parsed, all))
    }

    /// Whether a setting of a higher layer excludes this one, so that it does not count.
    ///
    /// # Errors
    /// `Configuration` if it must not be left out.
    fn gives_way(&self, name: &str, given: &Given, higher: &Layer) -> Result<bool> {
        let excludes = |one: &str, other: &str| {
            let find = |wanted: &str| known(&self.definition).find(|(name, _)| *name == wanted);
            let conflicts = |arg| self.definition.get_arg_conflicts_with(arg);
            find(one).is_some_and(|(_, arg)| {
                conflicts(arg).iter().any(|conflict| conflict.get_long() == Some(other))
            })
        };
        let rival = higher.iter().find(|(other, rival)| {
            !given.values.is_empty()
                && !rival.values.is_empty()
                && (excludes(name, other) || excludes(other, name))
        });
        let Some((other, rival)) = rival else { return Ok(false) };
        if !KEPT.contains(&name) && kind(&rival.source) != kind(&given.source) {
            return Ok(true);
        }
        let message = format!(
            "{other} ({}) and {name} ({}) exclude each other: take one of them out",
            rival.source, given.source
        );
        Err(Error::new(ErrorKind::Configuration, message))
    }

    /// Every setting with its value and its source. `computed` knows values that are not given and have no fixed default.
    pub(super) fn in_force(
        &self,
        given: &Layer,
        computed: impl Fn(&str) -> Option<Vec<String>>,
    ) -> Vec<InForce> {
        let shown = |values: &[OsString]| values.iter().map(|value| value.display().to_string()).collect();
        let found = known(&self.definition).map(|(name, arg)| {
            let (values, source) = match given.get(name) {
                Some(given) if is_switch(arg) => {
                    (Some(vec![(!given.values.is_empty()).to_string()]), given.source.clone())
                }
                Some(given) if !given.values.is_empty() => (Some(shown(&given.values)), given.source.clone()),
                given => {
                    let source = given.map_or_else(|| "default".into(), |given| given.source.clone());
                    let fixed: Vec<String> = arg
                        .get_default_values()
                        .iter()
                        .map(|value| value.to_string_lossy().into_owned())
                        .collect();
                    (if fixed.is_empty() { computed(name) } else { Some(fixed) }, source)
                }
            };
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let meaning = help.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
            InForce {
                name: name.to_owned(),
                values,
                meaning: meaning.map(|(meaning, _)| meaning.to_owned()),
                source,
            }
        });
        found.collect()
    }
}

/// What a source is, without the number of a line: two settings of one layer never override each other.
fn kind(source: &str) -> &str {
    match source {
        _ if source.starts_with("--") => "flag",
        _ if source.starts_with(PREFIX) => "variable",
        _ if source.starts_with("credential ") => "credential",
        _ => "file",
    }
}

/// What the command line gives.
fn flags(definition: &Command, matches: &ArgMatches) -> Layer {
    let given = known(definition).filter_map(|(name, arg)| {
        let id = arg.get_id().as_str();
        let is_given = matches.try_contains_id(id).unwrap_or(false)
            && matches.value_source(id) == Some(ValueSource::CommandLine);
        let values = matches.try_get_raw(id).ok().flatten().filter(|_| is_given)?;
        let values = values.map(OsStr::to_owned).collect();
        Some((name.to_owned(), Given { values, source: format!("--{name}") }))
    });
    given.collect()
}

/// What systemd hands over in `directory`.
fn credentials(definition: &Command, directory: Option<&Path>) -> Result<Layer> {
    let mut layer = Layer::new();
    for (name, credential) in CREDENTIALS {
        let (Some(directory), Some(_)) = (directory, known(definition).find(|(known, _)| known == name))
        else {
            continue;
        };
        let path = directory.join(credential);
        let exists = path.try_exists().map_err(|error| {
            let message = format!("cannot look at the credential {}: {error}", path.display());
            Error::new(ErrorKind::Configuration, message)
        })?;
        if exists {
            let source = format!("credential {credential}");
            layer.insert((*name).to_owned(), Given { values: vec![path.into()], source });
        }
    }
    Ok(layer)
}

/// What the environment gives, and the variables that begin like ours and are not. An empty variable gives nothing.
fn variables(definition: &Command, environment: Vec<(OsString, OsString)>) -> Result<(Layer, Vec<String>)> {
    let (mut layer, mut unknown) = (Layer::new(), Vec::new());
    for (variable, value) in environment {
        let Some(rest) = variable.to_str().and_then(|variable| variable.strip_prefix(PREFIX)) else {
            continue;
        };
        let name = rest.to_ascii_lowercase().replace('_', "-");
        let found = known(definition).find(|(known, _)| *known == name).filter(|_| {
            // Nothing but capitals.
            rest.bytes().all(|byte| !byte.is_ascii_lowercase() && byte != b'-')
        });
        let source = format!("{PREFIX}{rest}");
        match found {
            _ if value.is_empty() || source == BUILD => {}
            None if is_of_cluster(rest, &value) => {}
            None => unknown.push(match suggestion(definition, &name) {
                Some(name) => format!("{source} (is {} meant?)", variable_of(&name)),
                None => source,
            }),
            Some((name, arg)) => {
                let values = if is_switch(arg) {
                    match value.to_str() {
                        Some("true" | "1") => vec!["true".into()],
                        Some("false" | "0") => Vec::new(),
                        _ => return Err(wrong(&source, "expected true or false")),
                    }
                } else {
                    vec![value]
                };
                let given = Given { values, source };
                check(definition, name, &given)?;
                layer.insert(name.to_owned(), given);
            }
        }
    }
    unknown.sort();
    Ok((layer, unknown))
}

/// Whether Kubernetes sets this variable for a service that is called `ringkeep`, or begins like that. The prefix is gone.
fn is_of_cluster(rest: &str, value: &OsStr) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is_port = words.windows(3).any(|words| {
        words[0] == "PORT" && words[1].parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].contains(&words[2])
    });
    let is_service = words
        .windows(2)
        .any(|words| [["SERVICE", "HOST"], ["SERVICE", "PORT"]].contains(&[words[0], words[1]]));
    let is_link = rest.ends_with("PORT") && value.to_string_lossy().contains("://");
    is_port || is_service || is_link
}

#[cfg(test)]
mod tests;
