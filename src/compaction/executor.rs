//! Merges the inputs of a compaction into new files, in slices.
//!
//! Owns: which entries are kept, where an output ends, and the slices. The caller swaps inputs for outputs in the
//! manifest.
//!
//! X1  Of each key the newest entry stays. A tombstone is dropped if no deeper level may hold its key.
//! X2  Between two pauses at most a slice of work is done, so that requests on this thread wait no longer than that.
//! X3  After an error no output is left over, unless its removal fails, too; then the next open removes it.
//! X4  An entry that has expired becomes a tombstone with the same SeqNo, and X1 decides the rest. So it goes on hiding
//!     older entries of its key for as long as there may be any. If the wall clock is set back afterwards, the key may
//!     stay lost, but an older value never comes back.

use super::picker::{Compaction, Limits};
use crate::error::Result;
use crate::file_name::FileName;
use crate::key::{Entry, EntryKind, FileNumber, SeqNo, UnixMillis, ValueKind};
use crate::manifest::{SharedMeta, Version};
use crate::source::merge::Merge;
use crate::source::newest::Newest;
use crate::source::{Source, Step};
use crate::sst::SstMeta;
use crate::sst::builder::SstBuilder;
use crate::sst::run::{OpenSst, Run};
use crate::sst::window::ReadAhead;
use crate::storage::Storage;

/// What an entry costs in addition to its bytes when it is flushed or merged: comparing, hashing, encoding.
pub const ENTRY_COST_BYTES: usize = 64;

/// What the executor needs from its caller.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait Environment: OpenSst<File = <Self::Storage as Storage>::File> {
    /// The type of the storage.
    type Storage: Storage;
    /// The storage of the shard.
    fn storage(&self) -> &Self::Storage;
    /// The identity of a new file.
    fn new_file(&self) -> crate::record::Identity;
    /// Accounts for `bytes` of work, and pauses when a slice is used up (X2).
    ///
    /// # Errors
    /// `ShuttingDown` if the work has to end here, or the failure that ended the shard.
    async fn spend(&self, bytes: usize) -> Result<()>;
}

/// Runs a compaction. Entries that have expired at `now` become tombstones. The outputs are synced, their names are
/// not.
///
/// # Errors
/// Any. No output is left over (X3).
pub async fn execute<E: Environment>(
    environment: &E,
    compaction: &Compaction,
    version: &Version,
    limits: &Limits,
    now: UnixMillis,
) -> Result<Vec<SstMeta>> {
    let mut created = Vec::new();
    let result = merge(environment, compaction, version, limits, now, &mut created).await;
    if result.is_err() {
        for number in created {
            // X3: nothing names the file. If it cannot be removed now, the next open removes it.
            let _ = environment.storage().remove(FileName::Sst(number)).await;
        }
    }
    result
}

async fn merge<E: Environment>(
    environment: &E,
    compaction: &Compaction,
    version: &Version,
    limits: &Limits,
    now: UnixMillis,
    created: &mut Vec<FileNumber>,
) -> Result<Vec<SstMeta>> {
    let run = |files: &[SharedMeta]| Run::new(environment, files.iter().cloned(), ReadAhead::Full);
    let mut runs: Vec<_> = compaction.inputs.iter().map(|input| run(std::slice::from_ref(input))).collect();
    runs.push(run(&compaction.overlapping));
    let mut source = Newest::new(Merge::new(runs), SeqNo(u64::MAX)); // X1
    let mut outputs = Vec::new();
    let mut builder: Option<SstBuilder<_>> = None;
    loop {
        match source.step()? {
            Step::Entry => {}
            Step::End => break,
            Step::Need => {
                source.supply().await?;
                continue;
            }
        }
        let (bytes, stays) = source.read(|entry| {
            let tombstone = what_stays(entry, now).kind.value == ValueKind::Tombstone;
            let stays = !tombstone || version.may_hold_below(compaction.target(), entry.key); // X1
            (entry.key.len() + entry.value.len(), stays)
        });
        environment.spend(bytes + ENTRY_COST_BYTES).await?;
        if !stays {
            continue;
        }
        if builder.as_ref().is_some_and(|builder| limits.sst_bytes <= builder.bytes())
            && let Some(full) = builder.take()
        {
            outputs.push(full.finish().await?);
        }
        let output = match &mut builder {
            Some(output) => output,
            None => {
                let identity = environment.new_file();
                created.push(identity.file);
                builder.insert(SstBuilder::create(environment.storage(), identity).await?)
            }
        };
        source.read(|entry| output.add(&what_stays(entry, now)));
        output.write_full().await?;
    }
    if let Some(last) = builder {
        outputs.push(last.finish().await?);
    }
    Ok(outputs)
}

/// The entry, or the tombstone that takes its place once it has expired (X4).
fn what_stays(entry: Entry<'_>, now: UnixMillis) -> Entry<'_> {
    if entry.kind.has_expired_at(now) {
        Entry { kind: EntryKind::TOMBSTONE, value: b"", ..entry }
    } else {
        entry
    }
}
