//! The log: lines on standard error, written by a thread of their own.
//!
//! Owns: which levels are logged (`RINGKEEP_LOG`), and what happens when nobody reads the log.
//!
//! The threads of the server never wait for the reader of the log. Lines go through a queue of [`QUEUE_LINES`]. When the
//! queue is full, lines are dropped, and the first line that fits again is preceded by their number.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;

use crate::error::{Error, ErrorKind, Result};

/// Lines that wait for the reader of the log; a line has some hundred bytes.
const QUEUE_LINES: usize = 4096;

/// The log of the process. When it is dropped, the lines in the queue are written, but a reader that does not read is
/// waited for no longer than about a second.
#[must_use]
pub struct Log {
    _worker: WorkerGuard,
}

impl Log {
    /// Starts the log at the level that `RINGKEEP_LOG` names, or else at `info`.
    ///
    /// # Errors
    /// `Configuration` if there is no such level, or no thread can be started.
    pub fn start() -> Result<Self> {
        let level = level(std::env::var_os("RINGKEEP_LOG").as_deref())?;
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
        let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        tracing_subscriber::fmt()
            .with_writer(Lines { queue, dropped, told: AtomicUsize::new(0) })
            .with_max_level(level)
            .with_ansi(colours)
            .with_target(false)
            .log_internal_errors(false)
            .init();
        Ok(Self { _worker: worker })
    }

    /// Reports why the process fails, whatever the level of the log.
    pub fn failure(&self, error: &Error) {
        if tracing::enabled!(Level::ERROR) {
            tracing::error!("{error}");
        } else {
            eprintln!("ringkeep: {error}");
        }
    }
}

/// The level that `RINGKEEP_LOG` names.
fn level(setting: Option<&OsStr>) -> Result<LevelFilter> {
    let Some(setting) = setting.filter(|setting| !setting.is_empty()) else { return Ok(LevelFilter::INFO) };
    match setting.to_ascii_lowercase().to_str() {
        Some("off") => Ok(LevelFilter::OFF),
        Some("error") => Ok(LevelFilter::ERROR),
        Some("warn") => Ok(LevelFilter::WARN),
        Some("info") => Ok(LevelFilter::INFO),
        Some("debug") => Ok(LevelFilter::DEBUG),
        Some("trace") => Ok(LevelFilter::TRACE),
        _ => {
            let message =
                format!("RINGKEEP_LOG is {setting:?}, but it must be off, error, warn, info, debug or trace");
            Err(Error::new(ErrorKind::Configuration, message))
        }
    }
}

/// Puts lines into the queue.
struct Lines {
    queue: NonBlocking,
    dropped: ErrorCounter,
    /// Dropped lines that the log has told of.
    told: AtomicUsize,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = NonBlocking;

    fn make_writer(&'a self) -> NonBlocking {
        let mut queue = self.queue.clone();
        let dropped = self.dropped.dropped_lines();
        let untold = dropped - self.told.load(Ordering::Relaxed).min(dropped);
        if 0 < untold {
            // This line may be dropped, too; then the next one tells.
            let line = format!("{untold} lines of the log were dropped, because nobody read it\n");
            let _ = queue.write_all(line.as_bytes());
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

    #[test]
    fn a_level_is_one_of_six_words() {
        assert_eq!(level(None).unwrap(), LevelFilter::INFO);
        assert_eq!(level(Some(OsStr::new("warn"))).unwrap(), LevelFilter::WARN);
        assert_eq!(level(Some(OsStr::new(""))).unwrap(), LevelFilter::INFO);
        assert_eq!(level(Some(OsStr::new("Info"))).unwrap(), LevelFilter::INFO);
        for wrong in ["0", "warning", "verbose", "ringkeep=debug", "INFO "] {
            let error = level(Some(OsStr::new(wrong))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(error.to_string().contains("debug or trace"), "{error}");
        }
    }

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
        let log = Lines { queue, dropped, told: AtomicUsize::new(0) };
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
                && let Some(number) =
                    line.strip_suffix(" lines of the log were dropped, because nobody read it\n")
            {
                break number.parse::<usize>().unwrap();
            }
        };
        assert!(missed <= told, "{told} of {missed}");
        drop(worker);
    }
}
