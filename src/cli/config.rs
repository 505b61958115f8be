//! `ringkeep config`: which settings are in force and why, whether a start would accept them, and a file to begin with.

use std::io::Write;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Subcommand};
use serde_json::{Value, json};

use super::definition::{definition, is_list, is_switch, known};
use super::line::escaped;
use super::serve::{Serve, in_force};
use super::settings::InForce;
use super::{Start, carry_out};
use crate::error::{Error, Result};
use crate::server;

/// What to do with the settings of the server.
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Print every setting: its name, the value in force, and where the value comes from
    ///
    /// Takes the flags of `ringkeep serve`, reads the same environment and the same file, and starts nothing. The source
    /// is a flag, a variable, a line of the file, a credential of systemd, or `default`.
    Show(Box<Show>),
    /// Say whether a start would accept the settings; start nothing
    ///
    /// Takes the flags of `ringkeep serve`, reads the same environment and the same file, and also the token file and the
    /// certificate. Binds no address, and does not look at the data directory.
    ///
    /// Exit status 0: a start would accept them. 77: a file may not be read. 78: something is wrong; the message says
    /// what, and where.
    Check(Box<Serve>),
    /// Print a configuration file with every setting, its help and its default, all commented out
    Default,
}

/// Arguments of `ringkeep config show`.
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// Print an array of JSON objects with `name`, `value` and `source`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    _serve: Serve,
}

impl Config {
    pub(super) fn run(self, leaf: &ArgMatches) -> ExitCode {
        match self {
            Self::Show(show) => carry_out(leaf, |start: Start<Serve>| {
                let given = start.given;
                let settings = in_force(&start.settings, &given, &start.chosen.config()?);
                print(&if show.json { as_json(&settings) } else { as_text(&settings) })
            }),
            Self::Check(_) => carry_out(leaf, |start: Start<Serve>| {
                start.warn();
                server::check(&start.chosen.config()?)?;
                let from = start.settings.file.as_ref().map(|file| format!(": {}", file.display()));
                print(&format!(
                    "configuration is valid{}\n",
                    from.unwrap_or_else(|| ", without a file".into())
                ))
            }),
            Self::Default => {
                let printed = print(&default_file());
                if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
        }
    }
}

fn print(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    written.map_err(|error| Error::io("write to standard output", error))
}

fn as_text(settings: &[InForce]) -> String {
    let values: Vec<String> = settings.iter().map(|setting| escaped(&setting.shown())).collect();
    let name_width = settings.iter().map(|setting| setting.name.len()).max().unwrap_or(0);
    let value_width = values.iter().map(|value| value.chars().count()).filter(|width| *width <= 40).max();
    let value_width = value_width.unwrap_or(0);
    let line = |(setting, value): (&InForce, &String)| {
        let source = escaped(&setting.source);
        format!("{:name_width$}  {value:value_width$}  {source}\n", setting.name)
    };
    settings.iter().zip(&values).map(line).collect()
}

fn as_json(settings: &[InForce]) -> String {
    let definition = definition::<Serve>();
    let arg = |name: &str| known(&definition).find(|(known, _)| *known == name).map(|(_, arg)| arg);
    let value = |setting: &InForce| match (&setting.values, arg(&setting.name)) {
        (values, Some(arg)) if is_list(arg) => json!(values.clone().unwrap_or_default()),
        (Some(values), Some(arg)) if is_switch(arg) => json!(values.iter().any(|value| value == "true")),
        (Some(values), _) => values.first().map_or(Value::Null, |value| json!(value)),
        (None, _) => Value::Null,
    };
    let objects: Vec<Value> = settings
        .iter()
        .map(|setting| json!({ "name": setting.name, "value": value(setting), "source": setting.source }))
        .collect();
    format!("{:#}\n", Value::from(objects))
}

/// Columns of a comment.
const WIDTH: usize = 100;

/// A configuration file with every setting, commented out.
fn default_file() -> String {
    let definition = definition::<Serve>();
    let mut text = String::from(
        "# Settings of ringkeep: ringkeep --config FILE. All of them are commented out, and show their defaults, or\n\
         # examples where the default is none. Flags and variables of the environment take precedence over this file.\n\
         # `ringkeep config check --config FILE` says whether a start would accept it; SIGHUP reads it again.\n",
    );
    let mut heading = None;
    for (name, arg) in known(&definition).filter(|(name, _)| *name != "config") {
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            text.push_str(&format!("\n# --- {} ---\n", heading.unwrap_or_default()));
        }
        text.push('\n');
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let choices: Vec<String> =
            arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        let choices = if choices.is_empty() || is_switch(arg) {
            String::new()
        } else {
            format!(" [one of: {}]", choices.join(", "))
        };
        comment(&mut text, &format!("{help}{choices}"));
        text.push_str(&format!("#{name} = {}\n", example(name, arg)));
    }
    text
}

/// Adds a comment, broken into lines.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if WIDTH < line.chars().count() + 1 + word.chars().count() {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

/// The default as TOML, or an example if there is none.
fn example(name: &str, arg: &Arg) -> String {
    if is_switch(arg) {
        return "false".into();
    }
    if let Some(default) = arg.get_default_values().first().map(|value| value.to_string_lossy()) {
        let is_number = default.bytes().all(|byte| byte.is_ascii_digit()) && name != "socket-mode";
        return if is_number { default.into_owned() } else { Value::from(default).to_string() };
    }
    let form = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    match form {
        "N" => "4".into(),
        "SIZE" => "\"1GiB\"".into(),
        "PLACE" => "[\"127.0.0.1:8080\"]".into(),
        "NAME,…" => "[\"kv.example.com\"]".into(),
        "GROUP" => "\"root\"".into(),
        _ => format!("\"/etc/ringkeep/{name}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::definition::Layer;
    use crate::cli::file::parse;

    fn settings(text: &str) -> Layer {
        parse(text, "file", &definition::<Serve>()).unwrap()
    }

    #[test]
    fn the_default_file_sets_nothing_and_every_setting_in_it_can_be_used() {
        let text = default_file();
        assert_eq!(settings(&text), Layer::new());
        let is_setting = |line: &str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
        let lines: Vec<_> =
            text.lines().map(|line| if is_setting(line) { &line[1..] } else { line }).collect();
        let found = settings(&lines.join("\n"));
        let definition = definition::<Serve>();
        let all: Vec<_> = known(&definition).map(|(name, _)| name).filter(|name| *name != "config").collect();
        assert_eq!(found.len(), all.len(), "every setting is in the file");
        for name in all {
            let arg = known(&definition).find(|(known, _)| *known == name).unwrap().1;
            if let Some(fixed) = arg.get_default_values().first().filter(|_| !is_switch(arg)) {
                assert_eq!(found[name].values, [fixed.to_owned()], "{name}");
            }
        }
    }

    #[test]
    fn the_file_of_deploy_is_the_default_file() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ringkeep.toml");
        let shipped = std::fs::read_to_string(path).unwrap_or_default();
        assert!(shipped == default_file(), "run: ringkeep config default >deploy/ringkeep.toml");
    }
}
