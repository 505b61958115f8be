//! The history of one key: every version of it in any file.

use std::rc::Rc;

use super::{Place, Shard};
use crate::error::{Error, Result};
use crate::file_name::FileName;
use crate::key::{EntryKind, SeqNo, filter_hash};
use crate::manifest::damage::Damage;
use crate::sst::reader::{LookupStep, PointLookup, Sst};
use crate::storage::{File, Storage};
use crate::wal::decode_group;
use crate::wal::reader;

/// What a write has left of a key in one file. Until the WAL goes, a write that was flushed is in two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The write.
    pub seqno: SeqNo,
    /// What it did.
    pub kind: EntryKind,
    /// Length of the value.
    pub value_bytes: u64,
    /// The file.
    pub file: FileName,
    /// Where in the file the commit group or the block begins.
    pub offset: u64,
    /// Where the file belongs, if it is a sorted file.
    pub place: Option<Place>,
}

/// What is known of a key.
#[derive(Debug, Default)]
pub struct History {
    /// Its versions, the newest first.
    pub versions: Vec<Version>,
    /// Damage that may have taken a version.
    pub quarantine: Vec<Rc<Damage>>,
    /// Files that could not be searched, or not to their end.
    pub errors: Vec<Error>,
}

impl<S: Storage> Shard<S> {
    /// Searches all WALs and sorted files for `key`.
    pub async fn history(&self, key: &[u8]) -> History {
        let mut history = History::default();
        for (&name, &bytes) in &self.files {
            let outcome = match name {
                FileName::Wal(number) => {
                    let source = self.source(number, bytes);
                    let label = self.label(name);
                    let versions = &mut history.versions;
                    let read = reader::groups(&self.storage, self.owner, source, async |offset, payload| {
                        let visit = |entry: crate::key::Entry<'_>| {
                            if entry.key == key {
                                let (seqno, kind) = (entry.seqno, entry.kind);
                                let value_bytes = entry.value.len() as u64;
                                versions.push(Version {
                                    seqno,
                                    kind,
                                    value_bytes,
                                    file: name,
                                    offset,
                                    place: None,
                                });
                            }
                        };
                        let decoded = decode_group(payload, visit);
                        decoded.map(|_| ()).map_err(|reason| Error::undecodable(&label, offset, reason))
                    });
                    read.await.map(|_| None)
                }
                FileName::Sst(number) => {
                    let (place, named) = self.place(number);
                    let (report, sst) = self.sst(number, place, named).await;
                    match (report.meta, sst) {
                        (Ok(meta), _) if !meta.covers(key) => Ok(None),
                        (_, Some(sst)) => look_up(&sst, key).await.map(|found| {
                            found.map(|version| Version { file: name, place: Some(place), ..version })
                        }),
                        (Err(error), None) => Err(error),
                        (Ok(_), None) => Err(report.error.unwrap_or_else(|| self.wrong_length(name))),
                    }
                }
                _ => Ok(None),
            };
            match outcome {
                Ok(version) => history.versions.extend(version),
                Err(_) if self.is_idle(name) => {}
                Err(error) => history.errors.push(error),
            }
        }
        let metas = |number| self.state.version.files().find(|meta| meta.number == number);
        for (name, error) in self.missing.iter().filter(|(name, _)| !self.files.contains_key(name)) {
            let may_hold = match *name {
                FileName::Sst(number) => metas(number).is_none_or(|meta| meta.covers(key)),
                _ => true,
            };
            history.errors.extend(may_hold.then(|| error.clone()));
        }
        history.versions.sort_by_key(|version| std::cmp::Reverse(version.seqno));
        let damage = self.state.version.damage().iter().filter(|damage| damage.contains(key));
        history.quarantine = damage.cloned().collect();
        history
    }

    /// Whether reads never come to the file: it is left over, or another file has replaced it.
    fn is_idle(&self, name: FileName) -> bool {
        let named = match name {
            FileName::Sst(number) => matches!(self.place(number).0, Place::Level(_)),
            _ => self.state.names(name),
        };
        self.is_certain() && !named
    }

    fn wrong_length(&self, name: FileName) -> Error {
        let found = self.missing.iter().find(|(missing, _)| *missing == name);
        let error = found.map(|(_, error)| error.clone());
        error.unwrap_or_else(|| Error::corruption(&self.label(name), 0, "it cannot be searched"))
    }
}

/// The version of `key` in a sorted file.
async fn look_up<F: File>(sst: &Sst<F>, key: &[u8]) -> Result<Option<Version>> {
    let mut lookup = PointLookup::new(sst, filter_hash(key));
    loop {
        let handle = lookup.wanted();
        let block = sst.unpack(handle, sst.read_frame(handle, async || {}).await?)?;
        match lookup.step(key, &block).map_err(|reason| sst.corruption(handle, reason))? {
            LookupStep::More => {}
            LookupStep::Absent => return Ok(None),
            LookupStep::Found { kind, seqno, value } => {
                let file = FileName::Sst(sst.number());
                let value_bytes = value.len() as u64;
                return Ok(Some(Version {
                    seqno,
                    kind,
                    value_bytes,
                    file,
                    offset: handle.offset,
                    place: None,
                }));
            }
        }
    }
}
