//! Compares the files that the manifest names with the files in the directory.
//!
//! Owns: which files are missing, which are left over, and which leftovers would be a loss. Removes nothing.

use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::Owner;
use crate::manifest::State;
use crate::storage::{Files, Storage, list_files};
use crate::wal::reader::first_write;

/// Every file that the manifest names and that is missing, too short, or, if it is an SST, too long; with an error for
/// each.
pub fn missing<S: Storage>(storage: &S, state: &State, files: &Files) -> Vec<(FileName, Error)> {
    let wals = state.all_wals().map(|(number, bytes)| (FileName::Wal(number), bytes));
    let ssts = state.version.files().map(|file| (FileName::Sst(file.number), file.bytes));
    let error = |(name, expected): (FileName, u64)| {
        let may_grow = matches!(name, FileName::Wal(_));
        let label = storage.label(name);
        let error = match files.get(&name) {
            None => {
                let message =
                    format!("{label} is missing, but the manifest names it: put it back if it was moved");
                Some(Error::new(ErrorKind::Corruption, message))
            }
            Some(found) if *found < expected || (expected < *found && !may_grow) => {
                let message = format_args!("the file has {found} bytes, but the manifest says {expected}");
                Some(Error::corruption(&label, (*found).min(expected), message))
            }
            Some(_) => None,
        };
        error.map(|error| (name, error))
    };
    wals.chain(ssts).filter_map(error).collect()
}

/// An error for every WAL that the manifest does not name and that holds writes found in no other file: the edit that
/// named the WAL was lost.
///
/// WALs are named in the order of their numbers, and the newest is not released before a newer one is named. An
/// exception is the spare WAL of a clean stop, which nothing was ever written to. So a WAL below the newest named one
/// was itself named, and released. Whatever it holds was flushed, or was written late by a killed process, after a
/// recovery had fixed the end before it.
///
/// # Errors
/// `Corruption` if such a WAL is damaged; `Configuration` if a later version wrote it; `Io`.
pub async fn unnamed<S: Storage>(
    storage: &S,
    owner: Owner,
    state: &State,
    files: &Files,
) -> Result<Vec<Error>> {
    let mut errors = Vec::new();
    let newest = state.all_wals().map(|(number, _)| number).max();
    for (&name, &bytes) in files {
        if let FileName::Wal(number) = name
            && newest < Some(number)
            && let Some(first) = first_write(storage, owner, number, bytes).await?
            && state.flushed < first
        {
            let message = format!(
                "{} holds write {} and later ones, but the manifest does not name it: its last edit is lost",
                storage.label(name),
                first.0
            );
            errors.push(Error::new(ErrorKind::Corruption, message));
        }
    }
    Ok(errors)
}

/// An error if the directory of a shard that was never in use holds data. In that case `STORE` is wrong.
///
/// # Errors
/// `Corruption` if a WAL there is damaged; `Configuration` if a later version wrote it; `Io`.
pub async fn unexpected_data<S: Storage>(storage: &S, owner: Owner) -> Result<Option<Error>> {
    for (name, bytes) in list_files(storage)? {
        let holds_data = match name {
            FileName::Sst(_) => true,
            FileName::Wal(number) => first_write(storage, owner, number, bytes).await?.is_some(),
            _ => false,
        };
        if holds_data {
            let message = format!(
                "{} holds data, but {} says that the store was never in use: it is damaged, or an old copy",
                storage.label(name),
                FileName::Store
            );
            return Ok(Some(Error::new(ErrorKind::Corruption, message)));
        }
    }
    Ok(None)
}
