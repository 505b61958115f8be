//! Replays a WAL: every group that was acknowledged, and perhaps some groups that were about to be.

use std::ops::ControlFlow;

use super::decode_group;
use crate::error::{CorruptionReason, Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Owner};
use crate::key::{Entry, FileNumber, SeqNo};
use crate::record::file::FIRST_RECORD;
use crate::record::mark::Mark;
use crate::record::replay::{End, Extent, KnownEnd, newest_mark, replay as replay_records};
use crate::storage::{Access, File, Storage, open_file};

/// Which WAL to replay.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Its number.
    pub number: FileNumber,
    /// Its length.
    pub file_bytes: u64,
    /// What the manifest knows of the end of the WAL.
    pub known_end: KnownEnd,
}

impl Source {
    fn extent(self, owner: Owner, label: &str) -> Extent<'_> {
        let Self { number, file_bytes, known_end } = self;
        Extent { label, identity: owner.identity(FileKind::Wal, number), file_bytes, known_end }
    }
}

/// Gives every write to `visit`, in order. `next` is the SeqNo that the first write must have; it is advanced (W1). After
/// each group, `make_room` is awaited: what was visited may take too much memory by then.
/// What was replayed is synced before the return, so that it may be shown to readers (P2). Returns the open file as
/// well.
///
/// # Errors
/// `Corruption` with file and offset; `Configuration` if a later version wrote the WAL; `Poisoned` if the sync failed;
/// `Io`.
///
/// Cancel safety: not safe.
pub async fn replay<S: Storage>(
    storage: &S,
    owner: Owner,
    source: Source,
    next: &mut SeqNo,
    visit: impl FnMut(Entry<'_>),
    make_room: impl AsyncFnMut() -> Result<()>,
) -> Result<(S::File, End)> {
    let (file, end) = read_with(storage, owner, source, next, visit, make_room).await?;
    let label = storage.label(FileName::Wal(source.number));
    file.sync().await.map_err(|error| {
        Error::io(format!("sync {label} after its replay"), error).with_kind(ErrorKind::Poisoned) // P6
    })?;
    Ok((file, end))
}

/// As [`replay`], but only reads: the writes that `visit` gets may not be durable.
///
/// # Errors
/// As [`replay`].
///
/// Cancel safety: not safe.
pub async fn read<S: Storage>(
    storage: &S,
    owner: Owner,
    source: Source,
    next: &mut SeqNo,
    visit: impl FnMut(Entry<'_>),
) -> Result<(S::File, End)> {
    read_with(storage, owner, source, next, visit, async || Ok(())).await
}

async fn read_with<S: Storage>(
    storage: &S,
    owner: Owner,
    source: Source,
    next: &mut SeqNo,
    mut visit: impl FnMut(Entry<'_>),
    mut make_room: impl AsyncFnMut() -> Result<()>,
) -> Result<(S::File, End)> {
    let label = storage.label(FileName::Wal(source.number));
    groups(storage, owner, source, async |offset, payload| {
        // Writes below `expected` are not visited, because a memtable takes only growing SeqNos. After an error the
        // caller drops what `visit` got, so W2 holds.
        let expected = *next;
        let mut in_order = true;
        let (first, count) = decode_group(payload, |entry| {
            in_order = in_order && expected <= entry.seqno;
            if in_order {
                visit(entry);
            }
        })
        .map_err(|reason| Error::undecodable(&label, offset, reason))?;
        if first != expected {
            return Err(Error::corruption(
                &label,
                offset,
                format_args!(
                    "the group starts with write {}, but write {} must come next: writes are missing",
                    first.0, expected.0
                ),
            ));
        }
        *next = SeqNo(first.0 + u64::from(count));
        make_room().await
    })
    .await
}

/// Gives the offset and the payload (see [`decode_group`]) of every group to `visit`, in order. Returns the open file as
/// well.
///
/// # Errors
/// As [`read`], and those of `visit`.
///
/// Cancel safety: not safe.
pub async fn groups<S: Storage>(
    storage: &S,
    owner: Owner,
    source: Source,
    mut visit: impl AsyncFnMut(u64, &[u8]) -> Result<()>,
) -> Result<(S::File, End)> {
    let name = FileName::Wal(source.number);
    let label = storage.label(name);
    let file = open_file(storage, name, Access::Read).await?;
    let extent = source.extent(owner, &label);
    let end = replay_records(storage, &file, extent, async |offset, payload| {
        visit(offset, payload).await?;
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    Ok((file, end))
}

/// The newest mark of a WAL, whatever state its groups are in.
///
/// # Errors
/// As [`read`], as far as marks are concerned.
///
/// Cancel safety: not safe.
pub async fn mark<S: Storage>(storage: &S, owner: Owner, source: Source) -> Result<Mark> {
    let name = FileName::Wal(source.number);
    let label = storage.label(name);
    let file = open_file(storage, name, Access::Read).await?;
    let extent = source.extent(owner, &label);
    newest_mark(storage, &file, extent).await
}

/// The SeqNo of the first write of a WAL; `None` if the WAL holds no group, or if its creation did not finish.
///
/// # Errors
/// `Corruption` if a mark says that the WAL holds a group, and the group does not verify; `Configuration` if a later
/// version wrote the WAL; `Io`.
///
/// Cancel safety: not safe.
pub async fn first_write<S: Storage>(
    storage: &S,
    owner: Owner,
    number: FileNumber,
    file_bytes: u64,
) -> Result<Option<SeqNo>> {
    let name = FileName::Wal(number);
    let label = storage.label(name);
    let file = open_file(storage, name, Access::Read).await?;
    let identity = owner.identity(FileKind::Wal, number);
    let extent = Extent { label: &label, identity, file_bytes, known_end: KnownEnd::default() };
    let mut found = None;
    let result = replay_records(storage, &file, extent, async |offset, payload| {
        let undecodable = |reason: CorruptionReason| Error::undecodable(&label, offset, reason);
        found = Some(decode_group(payload, |_| {}).map_err(undecodable)?.0);
        Ok(ControlFlow::Break(()))
    })
    .await;
    match result {
        Err(error) if error.kind() == ErrorKind::Corruption => {
            match newest_mark(storage, &file, extent).await {
                Ok(mark) if FIRST_RECORD < mark.durable => Err(error),
                // A file whose creation did not finish has no marks.
                _ => Ok(None),
            }
        }
        result => result.map(|_| found),
    }
}
