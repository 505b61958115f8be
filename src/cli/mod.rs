//! The command line: one file per command, each thin over the library.

mod values;
mod line;
mod log;
mod definition;
mod file;
mod settings;
mod serve;
mod config;
mod bench;
mod backup;
mod check;
mod dump;
mod entry;
mod health;
mod inspect;
mod load;
mod manual;
mod owner;
mod redis;
mod remote;
mod repair;
mod reshard;
mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use self::definition::Layer;
use self::log::{Log, LogFlags};
use self::serve::Serve;
use self::settings::Settings;
use crate::error::{Error, Result};
use crate::key::UnixMillis;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("RINGKEEP_COMMIT"), ")");

/// A durable key-value server: HTTP outside, io_uring inside. A 200 to a write means that the write is on disk.
#[derive(Debug, Parser)]
#[command(name = "ringkeep", version = VERSION, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    _serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve requests (the default if no command is given)
    ///
    /// What each exit status means is in the manual page: ringkeep man serve
    Serve(Box<Serve>),
    /// Show, check or write the settings of the server
    #[command(subcommand)]
    Config(config::Config),
    /// Load a running server, measure it, and check every answer
    ///
    /// The workloads run one after the other over the same keys, and every answer is compared with what was written.
    /// The first workload must be a fill, unless --filled is given. Example: ringkeep bench fill-unique,ycsb-a,read
    ///
    /// Exit status 1: an acknowledged write is missing, an answer is wrong, or a workload could not be finished.
    Bench(Box<bench::Bench>),
    /// Read a store from end to end and list what is damaged; change nothing
    ///
    /// No server may have the store open. Each case of damage and each file that could not be read takes a line on
    /// standard output.
    ///
    /// Exit status 0: nothing is damaged; notes may say what a crash has left at the end of a file. 65: something is
    /// damaged. 75: a server has the store open. 78: there is no store, or a later version of ringkeep wrote a part of
    /// it. 1: some files could not be read; everything that could be read is sound.
    Check(check::Check),
    /// Copy the store of a running server
    ///
    /// The copy holds every write that was acknowledged before the command began; of later writes, each shard holds a prefix.
    /// The server goes on meanwhile. Files are hard-linked where the data directory can be reached and is on the same file
    /// system, otherwise fetched from the server. Each new file is read back and verified. A later backup into the same
    /// directory copies only what is new; one that was interrupted goes on. With - the backup goes to standard output, as a tar
    /// archive.
    ///
    /// The server needs a token of the role admin, if it has tokens. Example: ringkeep backup /backup/monday
    ///
    /// Exit status 0: the backup is complete. 65: it is complete, but keys of the store are lost to damage; or it is not
    /// complete, because a file does not verify and --damaged is not given. The message says which. 73: the directory holds
    /// something else. 75: another process has the directory. 77: the token does not have the role, or permission denied.
    /// 78: the directory is a backup of another store. 1: anything else; run the command again to go on.
    Backup(backup::Backup),
    /// Make a data directory from a backup
    ///
    /// Every file is copied and verified. A restore that was interrupted goes on when it is run again; a server refuses the
    /// directory until the restore is complete. With - the backup comes from standard input, as a tar archive.
    ///
    /// Example: ringkeep restore /backup/monday /var/lib/ringkeep
    ///
    /// Exit status 0: the data directory is complete. 65: the backup is damaged; the data directory is complete nevertheless
    /// if the message says so. 73: the directory is not empty, or cannot be created. 74: a manifest could
    /// not be written. 75: another process has one of the directories. 77: permission denied. 78: there is no complete
    /// backup, or a later version of ringkeep made it. 1: anything else, such as a full disk. After 1 and 74, run the command
    /// again to go on.
    Restore(backup::Restore),
    /// Write the keys and values of a store as lines of JSON
    ///
    /// The store is a backup, or a data directory that no server has open; a backup of a running server is made by `ringkeep
    /// backup`. Keys come in byte order, each on a line: {"key":"k","value":"v"}. Bytes that are not UTF-8 come as key64 and
    /// value64 in base64, and expires is a Unix time in seconds. The directory may be read-only.
    ///
    /// Example: ringkeep dump /backup/monday --output monday.jsonl
    ///
    /// Exit status 0: every value is written. 65: the store is damaged. 75: a server has the store open. 77: permission
    /// denied. 78: there is no store, a later version of ringkeep wrote a part of it, or --resume finds lines of another
    /// store. 1: anything else, such as an output that cannot be written; --resume goes on.
    Dump(dump::Dump),
    /// Set the keys of a file, or the strings of a Redis server, in a running server
    ///
    /// Lines are those that `ringkeep dump` writes. A key that is there already is overwritten, or deleted if its entry has
    /// expired. A server that is overloaded is asked again for a minute. With --resume, a load that was interrupted goes on.
    ///
    /// --from-redis takes the strings of Redis, Valkey and servers like them, with their time to live, and lists the keys of
    /// other types. It reads by SCAN: keys that change meanwhile are taken as they were before or after.
    ///
    /// The server needs a token of the role write, if it has tokens. Examples: ringkeep load monday.jsonl;
    /// ringkeep load --from-redis 127.0.0.1:6379
    ///
    /// Exit status 0: everything is loaded, and durable. 1: a line is wrong or was refused, keys of Redis were not taken, or
    /// the input, the server or Redis failed; the message says which. 77: the token does not have the role, or a file may not be
    /// read. 78: a file with a token or a certificate cannot be used, or https is used without --tls-ca.
    Load(load::Load),
    /// Give a store another number of shards
    ///
    /// No server may have the store open. The new store is built beside the old one, then the two directories change places in
    /// one step, and the old one is removed; so the disk needs room for both. A crash leaves the old store or the new one. The
    /// new store has an id of its own: its backups need a directory of their own.
    ///
    /// Example: ringkeep reshard /var/lib/ringkeep --shards 16
    ///
    /// Exit status 0: done. 65: the store is damaged. 73: another directory is in the way, is not empty, or cannot be created.
    /// 74: a manifest of the new store could not be written. 75: a server has the store open. 77: permission denied. 78: there
    /// is no store, a later version of ringkeep wrote a part of it, it has this number of shards, or its directory cannot be
    /// replaced. 1: anything else, such as a full disk; the message says so if the new store is complete.
    Reshard(reshard::Reshard),
    /// Show the figures of a running server as a table
    ///
    /// Keys and live bytes are estimates: older versions of a key count until they are merged away. The server needs a token
    /// of the role read, if it has tokens. Example: ringkeep stats --url unix:/run/ringkeep/socket
    ///
    /// Exit status 0: done. 77: the server needs a token, or a different one. 78: an address, a certificate or a token file cannot be
    /// used. 1: the server cannot be reached, or does not answer.
    Stats(stats::Stats),
    /// Make a running server reclaim the space of what was deleted or overwritten, or has expired
    ///
    /// The server does so by itself over time. This command has it merge everything that was written before into one level, and
    /// waits for the end. Reads and writes go on meanwhile; the disk needs room for a few more files. The server needs a token
    /// of the role admin, if it has tokens.
    ///
    /// Exit status: as for stats; 1 also if the server could not end the work.
    Compact(stats::Compact),
    /// Show what a store consists of, also if it does not start; change nothing
    ///
    /// Shows, for each shard, its manifest, its sorted files by level with their key ranges and SeqNos, its logs with their
    /// groups and where they end, and files that are missing or left over. What is damaged is said in its place, and
    /// everything else is shown. Of sorted files only the description is read: `ringkeep check` reads every byte.
    ///
    /// No server may have the store open. The directory may be read-only. Keys are shown with percent escapes, as --key and
    /// the queries of a server take them.
    ///
    /// Exit status 0: everything that was asked for is shown. 65: something is damaged, and the rest is shown. 75: a server
    /// has the store open. 78: there is no store or no such file, or a later version of ringkeep wrote a part of it. 1: some
    /// files could not be read.
    Inspect(inspect::Inspect),
    /// Give up what is damaged in sorted files, and keep everything else
    ///
    /// No server may have the store open. Each damaged file is replaced by a file with every entry that verifies. For
    /// each of them a line on standard output says among which keys entries were given up, and how many; of what a server
    /// had found before, its log has the number. Keys are shown with percent escapes, as the --key of inspect takes them.
    /// Sound shards are left as they are. After a repair, a read of such a key may find an older value, or none: restore a
    /// backup if that must not happen. If a file is missing, put it back before anything is given up.
    ///
    /// Exit status 0: no sorted file is damaged any more. 65: a log or a manifest is damaged, which this command does not
    /// repair, and nothing was changed; with --dry-run also: something would be given up. 75: a server has the store open.
    /// 78: there is no store, or a later version of ringkeep wrote a part of it. 1: anything else, such as a full disk.
    Repair(repair::Repair),
    /// Ask a running server whether it is ready, and print its answer
    ///
    /// For scripts, and for the HEALTHCHECK of a container, which may have no curl. It needs no token.
    ///
    /// Exit status 0: the server is ready; the answer may be `degraded`, with the files that are damaged. 1: the server is
    /// not ready, and the answer says why; or it does not answer within 5 seconds. 78: a file with a certificate cannot be
    /// used, or https is used without --tls-ca.
    Health(health::Health),
    /// Print a script that completes commands and flags in a shell
    Completions(manual::Completions),
    /// Print the manual page of a command
    Man(manual::Manual),
}

/// Carries out what the command line asks for.
pub fn run() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let mut leaf = &matches;
    while let Some((_, inner)) = leaf.subcommand() {
        leaf = inner;
    }
    match cli.command {
        None | Some(Command::Serve(_)) => carry_out(leaf, Start::serve),
        Some(Command::Config(command)) => command.run(leaf),
        Some(Command::Bench(bench)) => carry_out(leaf, |_: Start<LogFlags>| bench.run()),
        Some(Command::Check(check)) => carry_out(leaf, |_: Start<LogFlags>| check.run()),
        Some(Command::Backup(backup)) => carry_out(leaf, |_: Start<LogFlags>| backup.run()),
        Some(Command::Restore(restore)) => carry_out(leaf, |_: Start<LogFlags>| restore.run()),
        Some(Command::Dump(dump)) => carry_out(leaf, |_: Start<LogFlags>| dump.run()),
        Some(Command::Load(load)) => carry_out(leaf, |_: Start<LogFlags>| load.run()),
        Some(Command::Reshard(reshard)) => carry_out(leaf, |_: Start<LogFlags>| reshard.run()),
        Some(Command::Stats(stats)) => carry_out(leaf, |_: Start<LogFlags>| stats.run()),
        Some(Command::Compact(compact)) => carry_out(leaf, |_: Start<LogFlags>| compact.run()),
        Some(Command::Inspect(inspect)) => carry_out(leaf, |_: Start<LogFlags>| inspect.run()),
        Some(Command::Repair(repair)) => carry_out(leaf, |_: Start<LogFlags>| repair.run()),
        Some(Command::Health(health)) => carry_out(leaf, |_: Start<LogFlags>| health.run()),
        Some(Command::Completions(completions)) => carry_out(leaf, |_: Start<LogFlags>| completions.run()),
        Some(Command::Man(manual)) => carry_out(leaf, |_: Start<LogFlags>| manual.run()),
    }
}

/// What a command begins with.
struct Start<T> {
    /// The settings in force.
    chosen: T,
    /// Those that are given.
    given: Layer,
    /// Where they come from.
    settings: Settings,
    log: std::rc::Rc<Log>,
}

/// Reads the settings of a command, starts its log, carries it out, and reports its failure. `leaf` is what the command line
/// gives.
fn carry_out<T: Args + AsRef<LogFlags>>(
    leaf: &ArgMatches,
    run: impl FnOnce(Start<T>) -> Result<()>,
) -> ExitCode {
    let begin = || -> Result<Start<T>> {
        let settings = Settings::gather::<T>(leaf, std::env::vars_os().collect())?;
        let (chosen, given) = settings.read::<T>()?;
        let log = std::rc::Rc::new(Log::start(chosen.as_ref())?);
        Ok(Start { chosen, given, settings, log })
    };
    match begin() {
        Err(error) => failed(&error, log::failure),
        Ok(start) => {
            let log = start.log.clone(); // until the failure is reported
            run(start).map_or_else(|error| failed(&error, |error| log.failure(error)), |()| ExitCode::SUCCESS)
        }
    }
}

/// Ends the process as clap does after wrong usage, with status 2.
fn misused(why: &str) -> ! {
    Cli::command().error(clap::error::ErrorKind::ValueValidation, why).exit()
}

fn failed(error: &Error, report: impl FnOnce(&Error)) -> ExitCode {
    report(error);
    ExitCode::from(error.kind().exit_status())
}

/// A Unix time, as the log writes it.
fn moment(at: UnixMillis) -> String {
    match SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at.0)) {
        // The year 9999 is the last that the format has.
        Some(time) if at.0 < 253_402_300_800_000 => humantime::format_rfc3339_millis(time).to_string(),
        _ => format!("{} ms after 1970", at.0),
    }
}

/// What a command keeps beside a file or a directory: the same name, and more.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A number of things: `1 file`, `2 files`, `2 entries`.
fn counted(count: u64, what: &str) -> String {
    match (count, what.strip_suffix("ry")) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{count} {stem}ries"),
        (_, None) => format!("{count} {what}s"),
    }
}

/// Applies a template to a progress bar. The bar is drawn only if standard error is a terminal.
fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar, // the plain bar shows the same numbers
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_thing_is_no_plural() {
        for (count, what, text) in [
            (1, "file", "1 file"),
            (0, "file", "0 files"),
            (2, "damaged file", "2 damaged files"),
            (1, "entry", "1 entry"),
            (2, "entry", "2 entries"),
            (2, "key", "2 keys"),
        ] {
            assert_eq!(counted(count, what), text);
        }
    }
}
