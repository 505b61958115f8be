//! `ringkeep completions` and `ringkeep man`: what shells and readers of manuals get, from the definition of the command line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Cli, VERSION, misused};
use crate::error::{Error, Result};

/// Exit statuses of the server and what they mean.
const STATUSES: &[(&str, &str)] = &[
    ("0", "A clean end."),
    ("1", "Another failure."),
    ("2", "A mistake on the command line."),
    ("65", "Something on disk is damaged; the message names it, and ringkeep check lists all of it."),
    ("69", "Another process listens on the address."),
    ("73", "The data directory cannot be created."),
    ("74", "A log or a manifest could not be written, or was taken away."),
    ("75", "Another process has the data directory."),
    ("77", "Permission denied."),
    (
        "78",
        "Wrong configuration, a store of another version, or io_uring refused: the message says why and what to do.",
    ),
];

/// Arguments of `ringkeep completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ringkeep completions bash > ~/.local/share/bash-completion/completions/ringkeep\n  \
                        ringkeep completions zsh > \"${fpath[1]}/_ringkeep\"\n  \
                        ringkeep completions fish > ~/.config/fish/completions/ringkeep.fish"
)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut shown(&Cli::command()), "ringkeep", &mut script);
        print(&script)
    }
}

/// A command as its help shows it: without the flags that are hidden, which `clap_complete` would offer.
fn shown(command: &Command) -> Command {
    // Names are leaked, because clap keeps references: the process ends after the script is printed.
    let name: &'static str = command.get_name().to_owned().leak();
    let arguments = command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned();
    let commands = command.get_subcommands().filter(|below| !below.is_hide_set()).map(shown);
    let mut copy = Command::new(name).args(arguments).subcommands(commands);
    if let Some(about) = command.get_about() {
        copy = copy.about(about.clone());
    }
    if command.get_version().is_some() { copy.version(VERSION) } else { copy }
}

/// Arguments of `ringkeep man`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ringkeep man check | man -l -\n  ringkeep man --dir /usr/local/share/man/man1"
)]
pub(super) struct Manual {
    /// The command whose page to print [default: the page of ringkeep itself]
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,
    /// Write the pages of all commands into this directory instead, which is created if it does not exist
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Manual {
    pub(super) fn run(self) -> Result<()> {
        let mut whole = Cli::command().disable_help_subcommand(true);
        whole.build(); // gives each command its whole name
        if let Some(dir) = &self.dir {
            let made = std::fs::create_dir_all(dir);
            made.map_err(|error| Error::io(format!("create {}", dir.display()), error))?;
            return write_pages(&whole, dir);
        }
        let mut command = &whole;
        for name in &self.command {
            command = command
                .find_subcommand(name)
                .unwrap_or_else(|| misused(&format!("there is no command {:?}", self.command.join(" "))));
        }
        print(&page(command))
    }
}

/// Writes the page of a command, and those of the commands below it.
fn write_pages(command: &Command, dir: &Path) -> Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page(command))
        .map_err(|error| Error::io(format!("write {}", path.display()), error))?;
    command.get_subcommands().try_for_each(|below| write_pages(below, dir))
}

/// A page in roff.
fn page(command: &Command) -> Vec<u8> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let man = Man::new(command.clone())
        .title(name.clone())
        .source(format!("ringkeep {}", env!("CARGO_PKG_VERSION")))
        .manual("ringkeep");
    let mut out = Vec::new();
    let rendered = man.render(&mut out).and_then(|()| ending(&name).to_writer(&mut out));
    rendered.expect("a vector takes everything");
    out
}

/// The sections that all pages have.
fn ending(name: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    if ["ringkeep", "ringkeep-serve"].contains(&name) {
        for (status, meaning) in STATUSES {
            roff.control("TP", []).text([bold(*status)]).text([roman(*meaning)]);
        }
    } else {
        roff.text([roman("0 after success, 2 for wrong usage. Other statuses are explained above.")]);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    roff.control("TP", []).text([bold("RINGKEEP_…")]);
    roff.text([roman(
        "Every flag of serve is a variable as well, as RINGKEEP_MEMORY for --memory. A flag takes precedence over its variable. \
         RINGKEEP_LOG and RINGKEEP_LOG_FORMAT are for every command.",
    )]);
    roff.control("SH", ["BUILD"]).text([roman(format!("ringkeep {VERSION}"))]);
    roff
}

/// A closed standard output does not change the exit status.
fn print(bytes: &[u8]) -> Result<()> {
    let mut output = io::stdout().lock();
    let _ = output.write_all(bytes).and_then(|()| output.flush());
    Ok(())
}
