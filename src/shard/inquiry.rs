//! What threads ask each other besides operations on keys: figures, and files for backups. Rare, so each question has a
//! channel for its answer.
//!
//! At most one scrape is under way, and each backup asks one question at a time, so few questions wait at a thread.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::router::ThreadId;
use crate::db::{Recovered, Sample};
use crate::error::Result;
use crate::http::part::Part;
use crate::http::peers;
use crate::key::ShardId;
use crate::tally::Histogram;

/// What a thread tells of itself.
#[derive(Debug, Default)]
pub struct ThreadSample {
    pub(super) http: peers::Sample,
    pub(super) shards: Vec<Sample>,
    /// How long commit groups took, from the moment they were taken to the moment they were durable.
    pub(super) commits: Histogram,
    /// Backups that have files on loan.
    pub(super) backups: usize,
    /// What the opening of its shards has found, and how long it took.
    pub(super) recovered: Recovered,
    pub(super) opening: Duration,
}

/// The files of a shard that are lent to a backup.
pub struct LentShard {
    /// The shard.
    pub(super) shard: ShardId,
    /// Its line of the list.
    pub(super) line: String,
}

/// A question to a thread, and where its answer goes.
pub enum Question {
    /// Its figures.
    Sample(oneshot::Sender<ThreadSample>),
    /// Lend the files of its shards to the backup of this number.
    Lend(u64, oneshot::Sender<Result<Vec<LentShard>>>),
    /// A part of a file that is lent.
    Part(Part, oneshot::Sender<Result<Bytes>>),
    /// The backup of this number is over.
    Return(u64),
    /// Give back the space of what was deleted, overwritten, or has expired.
    Compact(oneshot::Sender<Result<()>>),
}

/// Asks threads. Clones share the channels.
#[derive(Clone)]
pub struct Inquirer(Arc<[mpsc::UnboundedSender<Question>]>);

impl Inquirer {
    /// Makes the channels of `threads` threads. Returns where each of them receives its questions.
    pub fn new(threads: usize) -> (Self, Vec<Questions>) {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..threads).map(|_| mpsc::unbounded_channel()).map(|(to, from)| (to, Questions(from))).unzip();
        (Self(senders.into()), receivers)
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.0.len()
    }

    /// Asks a thread. `None` if the thread has ended. Cancel safety: safe; the answer is dropped.
    pub(super) async fn ask<A>(
        &self,
        thread: ThreadId,
        question: impl FnOnce(oneshot::Sender<A>) -> Question,
    ) -> Option<A> {
        let (answer, answered) = oneshot::channel();
        self.0.get(thread.0)?.send(question(answer)).ok()?;
        answered.await.ok()
    }

    /// Asks all threads at once. Threads that have ended do not answer. Cancel safety: as [`Self::ask`].
    pub(super) async fn ask_all<A>(&self, question: impl Fn(oneshot::Sender<A>) -> Question) -> Vec<A> {
        let mut asked = Vec::new();
        for thread in self.0.iter() {
            let (answer, answered) = oneshot::channel();
            if thread.send(question(answer)).is_ok() {
                asked.push(answered);
            }
        }
        let mut answers = Vec::new();
        for answered in asked {
            answers.extend(answered.await.ok());
        }
        answers
    }

    /// Tells all threads something that they do not answer.
    pub(super) fn tell_all(&self, question: impl Fn() -> Question) {
        for thread in self.0.iter() {
            let _ = thread.send(question()); // a thread that has ended needs not know
        }
    }
}

/// Where a thread receives questions.
pub struct Questions(mpsc::UnboundedReceiver<Question>);

impl Questions {
    /// Hands every question to `answer`. Cancel safety: safe.
    pub(super) async fn each(mut self, answer: impl Fn(Question)) {
        while let Some(question) = self.0.recv().await {
            answer(question);
        }
    }
}
