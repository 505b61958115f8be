//! Lives of a shard on simulated storage: random writes and reads beside random background work, until a clean stop, a
//! failure or a crash. One store lives several lives.
//!
//! A [`Ledger`] remembers which writes were sent in each life, and how many of them the shard has promised to keep.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use ringkeep::config::DbConfig;
use ringkeep::db::Db;
use ringkeep::error::{ErrorKind, Result};
use ringkeep::manifest::load;
use ringkeep::random::Random;
use ringkeep::storage::sim::SimStorage;

use super::sim::{NOW, OWNER};

/// Few keys, so that most writes replace a value.
pub const KEYS: usize = 12;

/// Rounds of a life that ends by a clean stop.
const ROUNDS: usize = 8;

/// The settings of a store, and how long its values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scene {
    pub config: DbConfig,
    /// Bytes of a value after its number. The number chooses one of these lengths.
    pub value_bytes: [usize; 4],
    /// How many lives a store has.
    pub lives: u64,
}

impl Scene {
    /// The value that is made of a number.
    pub fn value(&self, number: u32) -> Vec<u8> {
        let mut value = number.to_le_bytes().to_vec();
        value.resize(4 + self.value_bytes[number as usize % 4], number.to_le_bytes()[0]);
        value
    }

    /// The number that a value was made of.
    ///
    /// # Panics
    /// If the bytes are no value.
    pub fn number(&self, bytes: &[u8]) -> u32 {
        let number = u32::from_le_bytes(*bytes.first_chunk().expect("a value begins with its number"));
        assert_eq!(bytes, self.value(number), "wrong bytes");
        number
    }
}

/// The key with this index. Keys are short or long, and some keys are prefixes of others.
pub fn key(index: usize) -> Vec<u8> {
    vec![b'k'; 1 + index % 3 * 40].into_iter().chain([b'a' + index.to_le_bytes()[0]]).collect()
}

/// For each key, the number that its value was made of; `None` if the key is absent.
pub type Content = [Option<u32>; KEYS];

/// What readers of the shard see.
pub async fn content(db: &Db<SimStorage>, scene: Scene) -> Result<Content> {
    let mut content = Content::default();
    for (index, slot) in content.iter_mut().enumerate() {
        *slot = db.get(&key(index), NOW).await?.map(|bytes| scene.number(&bytes));
    }
    Ok(content)
}

/// The writes that were sent, in the order of their SeqNos, and how far they were committed.
#[derive(Clone)]
pub struct Ledger {
    pub scene: Scene,
    /// The index of a key, and the number that its value was made of; `None` for a delete.
    pub sent: Vec<(usize, Option<u32>)>,
    /// How many of the first writes were committed. If every group is synced, these writes were acknowledged as well.
    committed: usize,
    /// How many of the first writes are durable.
    pub acknowledged: usize,
}

impl Ledger {
    pub fn new(scene: Scene) -> Self {
        Self { scene, sent: Vec::new(), committed: 0, acknowledged: 0 }
    }

    /// The content after the first `count` writes.
    fn content(&self, count: usize) -> Content {
        let mut content = Content::default();
        for (key, value) in &self.sent[..count] {
            content[*key] = *value;
        }
        content
    }

    /// Records that the first `count` writes are committed. Groups are committed in order.
    fn commit(&mut self, count: usize) {
        self.committed = self.committed.max(count);
        if self.scene.config.sync_every_group {
            self.acknowledge(count);
        }
    }

    /// Records that the first `count` writes are durable.
    fn acknowledge(&mut self, count: usize) {
        self.acknowledged = self.acknowledged.max(count);
    }

    /// How many of the first writes make the content that was found: the smallest number from `least` on; `None` if no
    /// number does.
    pub fn prefix(&self, found: &Content, least: usize) -> Option<usize> {
        let mut content = self.content(least);
        (least..=self.sent.len()).find(|count| {
            if least < *count {
                let (key, value) = self.sent[count - 1];
                content[key] = value;
            }
            content == *found
        })
    }

    /// Records that a new process shows this content, which has to stay (P2). The other writes that were sent before
    /// never happened.
    fn begin_life(&mut self, shown: &Content) {
        let count = self.prefix(shown, self.acknowledged);
        let count = count.unwrap_or_else(|| panic!("found {shown:?} after the open"));
        self.sent.truncate(count);
        (self.committed, self.acknowledged) = (count, count);
    }
}

/// Ignores errors that leave the shard usable, as the background tasks of a server do.
fn tolerate<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::Poisoned => Err(error),
        _ => Ok(()),
    }
}

/// One life of the store in `storage`: until the clean stop, or until the first error that ends a process.
pub async fn live(storage: &SimStorage, seed: u64, ledger: &RefCell<Ledger>) -> Result<()> {
    let scene = ledger.borrow().scene;
    let db = match load(storage, OWNER).await? {
        None => Db::create(storage.clone(), OWNER, scene.config).await?,
        Some(_) => Db::open(storage.clone(), OWNER, scene.config).await?.0,
    };
    if let Ok(shown) = content(&db, scene).await {
        ledger.borrow_mut().begin_life(&shown);
    }
    let over = Cell::new(false);
    let rounds = async {
        let mut random = Random::new(seed);
        let mut result = Ok(());
        for _ in 0..ROUNDS {
            result = round(&db, ledger, &mut random).await;
            if result.is_err() {
                break;
            }
        }
        over.set(true);
        result
    };
    let (commits, rounds) = tokio::join!(commit_until(&db, &over), rounds);
    commits.and(rounds)?;
    tolerate(db.close(|_| {}).await)
}

/// Commits group after group while the next ones form, up to the last write.
async fn commit_until(db: &Db<SimStorage>, over: &Cell<bool>) -> Result<()> {
    while !over.get() || db.has_uncommitted() {
        if db.has_uncommitted() {
            db.commit_next().await?;
        } else {
            db.pause().await;
        }
    }
    Ok(())
}

/// Two writers, a reader, syncs and a random choice of background work, all at the same time. In some rounds there is no
/// background work, and writes go on with several WALs waiting for their flush.
async fn round(db: &Db<SimStorage>, ledger: &RefCell<Ledger>, random: &mut Random) -> Result<()> {
    db.request_flush();
    let (spare, flush, compact) = (random.below(4) != 0, random.below(3) != 0, random.below(2) == 0);
    let (mark, note, remove) = (random.below(3) == 0, random.below(4) == 0, random.below(2) == 0);
    if random.below(3) == 0 {
        db.request_mark();
    }
    let rest = random.below(4) == 0;
    db.set_disk_full(random.below(8) == 0);
    let wals = async {
        tolerate(db.grow_wal().await)?;
        if spare {
            tolerate(db.prepare_spare().await)?;
        }
        if flush {
            tolerate(db.flush_next().await)?;
        }
        if mark {
            tolerate(db.mark().await)?;
        }
        if note {
            tolerate(db.note_end().await)?;
        }
        if rest {
            db.rest();
            tolerate(db.flush_next().await)?;
            tolerate(db.shorten_wals().await)?;
        }
        tolerate(db.check_names().await)
    };
    let syncs = async {
        let committed = ledger.borrow().committed;
        tolerate(db.sync().await)?;
        ledger.borrow_mut().acknowledge(committed);
        Ok(())
    };
    let compaction = async {
        if compact {
            tolerate(db.compact_next(NOW).await)?;
        }
        if remove {
            while db.remove_next().await.is_some() {}
        }
        Ok(())
    };
    let mut seed = || Random::new(random.next_u64());
    let (a, b, c, d, e, f) = tokio::join!(
        write(db, ledger, seed()),
        write(db, ledger, seed()),
        read(db, ledger, seed()),
        wals,
        compaction,
        syncs
    );
    a.and(b).and(c).and(d).and(e).and(f)
}

/// Sends some batches of writes, and waits for the answers of each.
async fn write(db: &Db<SimStorage>, ledger: &RefCell<Ledger>, mut random: Random) -> Result<()> {
    for _ in 0..=random.below(4) {
        // The writers run at different speeds, so that a group forms while the group before it is synced.
        for _ in 0..random.below(4) {
            db.pause().await;
        }
        // So the next group may begin a new WAL while the group before it is still being written to the old WAL.
        if random.below(6) == 0 {
            db.request_flush();
        }
        let mut tickets = Vec::new();
        for _ in 0..=random.below(3) {
            let index = random.below(KEYS as u64) as usize;
            let number = (random.below(4) != 0).then(|| random.next_u64() as u32);
            let scene = ledger.borrow().scene;
            let result = match number {
                Some(number) => db.set(&key(index), &scene.value(number)),
                None => db.delete(&key(index), NOW).map(|(ticket, _)| ticket),
            };
            match result {
                Ok(ticket) => {
                    let mut ledger = ledger.borrow_mut();
                    ledger.sent.push((index, number));
                    tickets.push((ticket, ledger.sent.len()));
                }
                Err(error) => {
                    tolerate::<()>(Err(error))?;
                    // The WAL may be too short.
                    tolerate(db.grow_wal().await)?;
                }
            }
        }
        for (ticket, count) in tickets {
            ticket.await?;
            ledger.borrow_mut().commit(count);
        }
    }
    Ok(())
}

/// Reads now and then. A write that a reader has seen must stay, as if it had been acknowledged (P2). If not every
/// group is synced, a write that was read is only known to have been sent.
async fn read(db: &Db<SimStorage>, ledger: &RefCell<Ledger>, mut random: Random) -> Result<()> {
    for _ in 0..random.below(12) {
        let index = random.below(KEYS as u64) as usize;
        // A read may fail when operations of the disk fail, but it must not be wrong.
        if let Ok(Some(bytes)) = db.get(&key(index), NOW).await {
            let mut ledger = ledger.borrow_mut();
            let number = ledger.scene.number(&bytes);
            let seen = ledger.sent.iter().rposition(|write| *write == (index, Some(number)));
            let count = seen.expect("what is read was sent") + 1;
            ledger.commit(count);
        }
        db.pause().await;
    }
    Ok(())
}

/// Runs `future`, and shows `visit` the disk as it was before each operation, with the number of writes that were
/// acknowledged for certain at that moment. Stops where `visit` breaks.
pub fn watch<F: Future, B>(
    storage: &SimStorage,
    ledger: &RefCell<Ledger>,
    future: F,
    mut visit: impl FnMut(&SimStorage, usize) -> ControlFlow<B>,
) -> ControlFlow<B, F::Output> {
    let mut future = pin!(future);
    storage.record();
    for _ in 0..1_000_000 {
        let acknowledged = ledger.borrow().acknowledged;
        let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        for snapshot in storage.take_snapshots() {
            visit(&snapshot, acknowledged)?;
        }
        if let Poll::Ready(output) = polled {
            return ControlFlow::Continue(output);
        }
    }
    panic!("the workload hangs")
}
