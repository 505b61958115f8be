//! The log: lines on standard error, written by a thread of their own.
//!
//! Owns: which levels are logged (`--log`), in which form (`--log-format`), and what happens when nobody reads the log.
//!
//! The threads of the server never wait for the reader of the log. Lines go through a queue of [`QUEUE_LINES`]. When the
//! queue is full, lines are dropped, and the first line that fits again is preceded by their number.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{Args, ValueEnum};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use super::counted;
use super::line::{Style, escaped};
use crate::config::LogLevel;
use crate::error::{Error, Result};

/// Lines that wait for the reader of the log; a line has some hundred bytes.
const QUEUE_LINES: usize = 4096;

/// The heading of the flags in the help.
pub(super) const HEADING: &str = "Log";

/// Flags of every command that logs.
#[derive(Debug, Args)]
pub(super) struct LogFlags {
    /// What is logged, on standard error: messages of this level and of those before it
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "info", ignore_case = true, global = true, help_heading = HEADING)]
    log: LogLevel,
    /// How lines are written. `text`: with the time; `json`: one object per line; `auto`: text, which leaves the time to
    /// journald if that reads the log
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "auto", global = true, help_heading = HEADING)]
    log_format: LogFormat,
}

/// How lines are written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Auto,
    Text,
    Json,
}

impl AsRef<Self> for LogFlags {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl LogFlags {
    pub(super) fn level(&self) -> LogLevel {
        self.log
    }
}

/// The log of the process. When it is dropped, the lines in the queue are written, but a reader that does not read is
/// waited for no longer than about a second.
#[must_use]
pub(super) struct Log {
    _worker: WorkerGuard,
    level: reload::Handle<LevelFilter, Registry>,
}

impl Log {
    /// Starts the log.
    ///
    /// # Errors
    /// `Configuration` if no thread can be started.
    pub(super) fn start(flags: &LogFlags) -> Result<Self> {
        // The library panics where this fails.
        std::thread::Builder::new()
            .spawn(|| {})
            .map_err(|error| Error::thread("start the thread of the log", error))?;
        let (queue, worker) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUE_LINES)
            .thread_name("log")
            .finish(io::stderr());
        let dropped = queue.error_counter();
        let style = style(flags.log_format);
        let lines = Lines { queue, dropped, told: AtomicUsize::new(0), style };
        let (filter, level) = reload::Layer::new(filter(flags.log));
        let format = tracing_subscriber::fmt::layer()
            .event_format(style)
            .with_writer(lines)
            .log_internal_errors(false);
        tracing_subscriber::registry().with(filter).with(format).init();
        Ok(Self { _worker: worker, level })
    }

    /// Changes what is logged from now on.
    pub(super) fn set_level(&self, level: LogLevel) {
        let _ = self.level.reload(filter(level)); // fails only when there is no log any more
    }

    /// Reports why the process fails, whatever the level of the log.
    pub(super) fn failure(&self, error: &Error) {
        if tracing::enabled!(Level::ERROR) {
            tracing::error!("{error}");
        } else {
            failure(error);
        }
    }
}

/// Reports why the process fails, before there is a log.
pub(super) fn failure(error: &Error) {
    eprintln!("ringkeep: {}", escaped(&error.to_string()));
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

fn style(format: LogFormat) -> Style {
    match format {
        LogFormat::Json => Style::Json,
        LogFormat::Auto if is_read_by_journald() => Style::Journal,
        LogFormat::Auto | LogFormat::Text => {
            let colours =
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
            Style::Text { colours }
        }
    }
}

/// Whether standard error is the stream that journald reads, which `JOURNAL_STREAM` names by device and inode
/// (`systemd.exec(5)`). A child of a service inherits the variable, but perhaps not the stream.
fn is_read_by_journald() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|found| format!("{}:{}", found.st_dev, found.st_ino) == named)
}

/// Puts lines into the queue.
struct Lines {
    queue: NonBlocking,
    dropped: ErrorCounter,
    /// Dropped lines that the log has told of.
    told: AtomicUsize,
    style: Style,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = NonBlocking;

    fn make_writer(&'a self) -> NonBlocking {
        let mut queue = self.queue.clone();
        let dropped = self.dropped.dropped_lines();
        let untold = dropped - self.told.load(Ordering::Relaxed).min(dropped);
        if 0 < untold {
            // This line may be dropped, too; then the next one tells.
            let lines = counted(untold as u64, "line");
            let message = format!("nobody read the log: {lines} dropped");
            let _ = queue.write_all(self.style.line(Level::WARN, &message).as_bytes());
            if self.dropped.dropped_lines() == dropped {
                self.told.fetch_add(untold, Ordering::Relaxed);
            }
        }
        queue
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A reader that takes a line only when it is told to.
    struct Stuck {
        go_on: mpsc::Receiver<()>,
        read: mpsc::Sender<String>,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.go_on.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            let _ = self.read.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_stops_nobody_and_is_told_how_many_lines_it_missed() {
        let ((allow, go_on), (read, lines)) = (mpsc::channel(), mpsc::channel());
        let (queue, worker) =
            NonBlockingBuilder::default().lossy(true).buffered_lines_limit(10).finish(Stuck { go_on, read });
        let dropped = queue.error_counter();
        let log = Lines { queue, dropped, told: AtomicUsize::new(0), style: Style::Journal };
        for number in 0..100 {
            log.make_writer().write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        let missed = log.dropped.dropped_lines();
        assert!(80 < missed, "{missed}");
        (0..10_000).for_each(|_| allow.send(()).unwrap());
        // The lines that fitted come first; the next one that fits is preceded by the number of the others.
        let told = loop {
            log.make_writer().write_all(b"after\n").unwrap();
            if let Ok(line) = lines.recv()
                && let Some(number) = line
                    .strip_prefix("<4> WARN nobody read the log: ")
                    .and_then(|line| line.strip_suffix(" lines dropped\n"))
            {
                break number.parse::<usize>().unwrap();
            }
        };
        assert!(missed <= told, "{told} of {missed}");
        drop(worker);
    }
}
