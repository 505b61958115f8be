//! Merges the inputs of a compaction into new files, in slices.
//!
//! Owns: what is kept, where an output ends, and the slices. Knows nothing of the manifest: the caller swaps
//! inputs for outputs.
//!
//! X1  Of each key the newest entry stays; a tombstone goes where no deeper level may hold its key.
//! X2  Between two pauses at most a slice of work is done, so that requests on this thread wait no longer.
//! X3  After an error no output is left behind, unless removing fails too; then the next open removes it.

use super::picker::{Compaction, Limits};
use crate::error::Result;
use crate::file_name::FileName;
use crate::key::{FileNumber, ValueKind};
use crate::manifest::Version;
use crate::merge::Merge;
use crate::sst::SstMeta;
use crate::sst::builder::SstBuilder;
use crate::sst::run::{OpenSst, Run};
use crate::storage::Storage;

/// What an entry costs beside its bytes when it is flushed or merged: comparing, hashing, encoding.
pub const ENTRY_COST_BYTES: usize = 64;

/// What the executor needs of its surroundings.
#[expect(async_fn_in_trait, reason = "all futures of this crate stay on their thread")]
pub trait Environment: OpenSst<File = <Self::Storage as Storage>::File> {
    /// Where files are.
    type Storage: Storage;
    /// The storage of the shard.
    fn storage(&self) -> &Self::Storage;
    /// The identity of a new file.
    fn new_file(&self) -> crate::record::Identity;
    /// Accounts for `bytes` of work; pauses when a slice is used up (X2).
    ///
    /// # Errors
    /// `ShuttingDown` if the work is to end here.
    async fn spend(&self, bytes: usize) -> Result<()>;
}

/// Merges. The outputs are synced; the directory is not.
///
/// # Errors
/// Any; no output is left behind (X3).
pub async fn execute<E: Environment>(
    environment: &E,
    compaction: &Compaction,
    version: &Version,
    limits: &Limits,
) -> Result<Vec<SstMeta>> {
    let mut created = Vec::new();
    let result = merge(environment, compaction, version, limits, &mut created).await;
    if result.is_err() {
        for number in created {
            // X3: nothing names the file; if it cannot be removed now, the next open does it.
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
    created: &mut Vec<FileNumber>,
) -> Result<Vec<SstMeta>> {
    let mut runs = Vec::new();
    for input in &compaction.inputs {
        runs.push(Run::new(environment, vec![input.clone()]));
    }
    runs.push(Run::new(environment, compaction.overlapping.clone()));
    let mut merge = Merge::new(runs).await?;
    let mut outputs = Vec::new();
    let mut builder: Option<SstBuilder<_>> = None;
    while let Some(entry) = merge.next().await? {
        environment.spend(entry.key.len() + entry.value.len() + ENTRY_COST_BYTES).await?;
        if entry.kind == ValueKind::Tombstone && !version.may_hold_below(compaction.target(), entry.key) {
            continue; // X1
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
        output.add(&entry).await?;
    }
    if let Some(last) = builder {
        outputs.push(last.finish().await?);
    }
    Ok(outputs)
}
