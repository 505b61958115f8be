//! Takes damaged blocks out of the way, so that each costs no more than its own keys.
//!
//! A block that does not verify, or that the device cannot read, is met by a lookup or by a compaction. The file is then
//! read whole. Everything that verifies goes to a new file in the same level. If an entry is missing, the key range around
//! it goes into quarantine (see [`crate::manifest::damage`]): lookups of these keys get an error, never an older version.
//! Newer writes of these keys are found above it. Compaction goes around the range, and everything else is served.
//!
//! One edit puts the new file and the damage in the place of the old file. Before it, a crash leaves the old file in force,
//! and the damage is found again. After it, the old file stays on disk, named by the damage, until it is repaired. If
//! nothing is missing, for example because the damage was in an index, the old file is removed like any other.

use std::rc::Rc;

use super::{Db, Work};
use crate::codec::to_usize;
use crate::config::SLICE_BYTES;
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::FileName;
use crate::identity::{FileKind, Owner};
use crate::key::FileNumber;
use crate::manifest::damage::{Damage, KeyRange, successor};
use crate::manifest::{SharedMeta, VersionEdit, load_in_use};
use crate::sst::SstMeta;
use crate::sst::builder::{SstBuilder, memory_bytes};
use crate::sst::reader::Sst;
use crate::sst::salvage::{Gap, Salvage};
use crate::sst::verify::verify;
use crate::storage::{Files, Storage, list_files};

/// A damaged file that was taken out of the way.
struct Replaced {
    label: String,
    /// Entries that a new file has.
    entries: u64,
    /// Entries that no file has any more.
    lost: u64,
    /// Which keys that concerns, if any entry is lost.
    damage: Option<Damage>,
}

impl<S: Storage> Db<S> {
    /// The names of files that have lost entries.
    pub fn damaged_files(&self) -> Vec<String> {
        let label = |damage: &Rc<Damage>| self.0.storage.label(FileName::Sst(damage.file));
        self.version().damage().iter().map(label).collect()
    }

    /// A line for each file that is known to have lost entries.
    pub fn damages_known(&self) -> Vec<String> {
        self.version().damage().iter().map(|damage| self.describe(damage, None)).collect()
    }

    fn describe(&self, damage: &Damage, entries: Option<u64>) -> String {
        damage.describe(&self.0.storage.label(FileName::Sst(damage.file)), entries)
    }

    /// The error of a lookup that has come to damage.
    pub(super) fn lost(&self, damage: &Damage) -> Error {
        let label = self.0.storage.label(FileName::Sst(damage.file));
        let message = format!(
            "the key may have been in a damaged block of {label}: set it again, restore a backup, or give it up with `ringkeep repair`"
        );
        Error::new(ErrorKind::Corruption, message)
    }

    /// Takes note that reading a file has failed. If the error means damage, the file will be looked at.
    pub(super) fn suspect(&self, number: FileNumber, error: Error) -> Error {
        if error.is_damage() {
            self.look_again_at(number);
        }
        error
    }

    /// Has a file looked at, because somebody who has read it found that it does not verify. A file that is sound stays as it
    /// is.
    pub fn look_again_at(&self, number: FileNumber) {
        self.0.counts.damaged_reads.add(1);
        self.0.tree.suspect(number);
        self.0.catalog.look_again();
    }

    /// Reads a file whole, and takes damaged blocks out of the way.
    pub(super) async fn look_at(&self, number: FileNumber) -> Result<()> {
        match self.replace_damaged(number, Length::Right).await? {
            None => {}
            Some(Replaced { label, entries, damage: None, .. }) => {
                tracing::warn!(file = label, entries, "a damaged file was written anew; nothing was lost");
            }
            Some(Replaced { label, entries, lost, damage: Some(damage) }) => tracing::error!(
                file = label,
                level = damage.level,
                salvaged = entries,
                lost,
                key_ranges = damage.ranges.len(),
                first_range = %damage.ranges[0],
                "a damaged file has lost entries: reads and deletes of keys in these ranges get 500 until the keys are set \
                 again, a backup is restored, or `ringkeep repair` gives them up"
            ),
        }
        Ok(())
    }

    /// As [`Self::look_at`], for a file of this length. `None` if the file stays.
    async fn replace_damaged(&self, number: FileNumber, length: Length) -> Result<Option<Replaced>> {
        let inner = &*self.0;
        let version = self.version();
        let found = version.levels().find_map(|(level, files)| {
            files.iter().find(|file| file.number == number).map(|file| (level, file.clone()))
        });
        let Some((level, meta)) = found else { return Ok(None) }; // it was compacted meanwhile
        let longest = to_usize(meta.longest);
        let _permit = self.memory_for_merge(longest + memory_bytes(longest)).await?;
        // A file that seems to be sound and fails again is written anew: it may be in a bad place of the device.
        if length == Length::Right
            && is_sound(&inner.storage, inner.owner, &meta).await?
            && inner.tree.clear(number)
        {
            return Ok(None);
        }
        let (salvaged, lost) = match length {
            Length::None => (None, vec![Gap::ALL]),
            Length::Right | Length::Wrong => self.salvage(&meta).await?,
        };
        let damage = Damage { level, file: number, last: meta.last, ranges: ranges(&meta, lost) };
        let damage = (!damage.ranges.is_empty()).then_some(damage);
        let edit = VersionEdit {
            remove_ssts: vec![(level, number)],
            add_ssts: salvaged.iter().map(|meta| (level, Rc::new(meta.clone()))).collect(),
            add_damage: damage.iter().cloned().map(Rc::new).collect(),
            ..VersionEdit::default()
        };
        self.replace_files(edit, salvaged.iter()).await?;
        let entries = salvaged.map_or(0, |meta| meta.entries);
        let label = inner.storage.label(FileName::Sst(number));
        Ok(Some(Replaced { label, entries, lost: meta.entries - entries, damage }))
    }

    /// Looks at every file, takes damage out of the way, and gives up what is in quarantine: older entries of these keys may
    /// be found again. Appends a line to `lines` for each file that was damaged.
    ///
    /// # Errors
    /// `Poisoned` ends the process (P6). After any other error, which is the first one, some files were left alone, and the
    /// repair can be tried again.
    ///
    /// Cancel safety: not safe.
    pub async fn repair(&self, lines: &mut Vec<String>) -> Result<()> {
        let inner = &*self.0;
        let metas: Vec<SharedMeta> = self.version().files().cloned().collect();
        let files = list_files(&inner.storage)?;
        lines.extend(self.damages_known());
        let mut failed = None;
        for meta in metas {
            match self.replace_damaged(meta.number, Length::of(&meta, &files)).await {
                Err(error) if error.kind() == ErrorKind::Poisoned => return Err(error),
                Err(error) => {
                    failed.get_or_insert(error);
                }
                Ok(Some(Replaced { label, damage: None, .. })) => {
                    lines.push(format!("{label}: written anew; every entry was there"));
                }
                Ok(Some(Replaced { lost, damage: Some(damage), .. })) => {
                    lines.push(self.describe(&damage, Some(lost)));
                }
                Ok(None) => {}
            }
        }
        let files: Vec<FileNumber> = self.version().damage().iter().map(|damage| damage.file).collect();
        self.edit(VersionEdit { remove_damage: files.clone(), ..VersionEdit::default() }).await?;
        for number in files {
            let _ = inner.storage.remove(FileName::Sst(number)).await; // otherwise the next start removes it
        }
        while self.remove_next().await.is_some() {}
        failed.map_or(Ok(()), Err)
    }

    /// What [`Self::repair`] would find in a shard that nobody has open. Changes nothing.
    ///
    /// # Errors
    /// `Corruption` if the manifest is damaged; `Configuration` if a later version wrote a file; `Io`.
    pub async fn damages(storage: &S, owner: Owner) -> Result<Vec<String>> {
        let state = load_in_use(storage, owner).await?.state;
        let describe =
            |damage: &Damage, entries| damage.describe(&storage.label(FileName::Sst(damage.file)), entries);
        let mut lines: Vec<_> = state.version.damage().iter().map(|damage| describe(damage, None)).collect();
        let files = list_files(storage)?;
        for (level, metas) in state.version.levels() {
            for meta in metas {
                let length = Length::of(meta, &files);
                if length == Length::None {
                    let ranges = ranges(meta, vec![Gap::ALL]);
                    let damage = Damage { level, file: meta.number, last: meta.last, ranges };
                    lines.push(describe(&damage, Some(meta.entries)));
                    continue;
                }
                if length == Length::Right && is_sound(storage, owner, meta).await? {
                    continue;
                }
                let identity = owner.identity(FileKind::Sst, meta.number);
                let sst = Rc::new(Sst::open_damaged(storage, identity, meta.bytes).await?);
                let label = sst.label().to_owned();
                let mut walk = Salvage::new(sst, meta.clone());
                while walk.advance().await? {}
                let entries = meta.entries.saturating_sub(walk.entries());
                let lost = walk.lost().map_err(|reason| Error::undecodable(&label, 0, reason))?;
                let ranges = ranges(meta, lost);
                lines.push(if ranges.is_empty() {
                    format!("{label}: damaged, but every entry is there")
                } else {
                    describe(&Damage { level, file: meta.number, last: meta.last, ranges }, Some(entries))
                });
            }
        }
        Ok(lines)
    }

    /// Writes everything that verifies to a new file. Returns its description, if it holds anything, and where entries are
    /// missing.
    async fn salvage(&self, meta: &SharedMeta) -> Result<(Option<SstMeta>, Vec<Gap>)> {
        let inner = &*self.0;
        let identity = inner.owner.identity(FileKind::Sst, meta.number);
        let sst = Rc::new(Sst::open_damaged(&inner.storage, identity, meta.bytes).await?);
        let label = sst.label().to_owned();
        let output = inner.owner.identity(FileKind::Sst, inner.catalog.new_file());
        let mut created = false;
        let result = async {
            let mut walk = Salvage::new(sst, meta.clone());
            let mut builder: Option<SstBuilder<S::File>> = None;
            while walk.advance().await? {
                let builder = match &mut builder {
                    Some(builder) => builder,
                    None => {
                        created = true;
                        builder.insert(SstBuilder::create(&inner.storage, output).await?)
                    }
                };
                let bytes = walk.read(|entry| entry.key.len() + entry.value.len().min(SLICE_BYTES));
                while !walk.read(|entry| builder.add(&entry)) {
                    self.slice(Work::Compaction, SLICE_BYTES).await;
                }
                builder.write_full().await?;
                self.slice(Work::Compaction, bytes).await;
            }
            if let Some(error) = walk.unreadable() {
                return Err(error); // not a block, but the device: it may come back
            }
            let lost = walk.lost().map_err(|reason| Error::undecodable(&label, 0, reason))?;
            let salvaged = match builder {
                Some(builder) => Some(builder.finish().await?),
                None => None,
            };
            Ok((salvaged, lost))
        }
        .await;
        if result.is_err() && created {
            let _ = inner.storage.remove(FileName::Sst(output.file)).await; // nothing names it
        }
        result
    }
}

/// How the length of a file compares with what the manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Right,
    Wrong,
    /// The file is gone.
    None,
}

impl Length {
    fn of(meta: &SstMeta, files: &Files) -> Self {
        match files.get(&FileName::Sst(meta.number)) {
            None => Self::None,
            Some(bytes) if *bytes == meta.bytes => Self::Right,
            Some(_) => Self::Wrong,
        }
    }
}

/// Whether every byte of a file is as it should be.
///
/// # Errors
/// Anything but damage.
async fn is_sound<S: Storage>(storage: &S, owner: Owner, meta: &SstMeta) -> Result<bool> {
    let identity = owner.identity(FileKind::Sst, meta.number);
    let Ok(sst) = Sst::open(storage, identity, meta.bytes).await else { return Ok(false) };
    let errors = verify(Rc::new(sst), meta, |_| Ok(()), |_| {}).await;
    match errors.iter().find(|error| !error.is_damage()) {
        Some(error) => Err(error.clone()),
        None => Ok(errors.is_empty()),
    }
}

/// The key ranges of gaps.
fn ranges(meta: &SstMeta, lost: Vec<Gap>) -> Vec<KeyRange> {
    let range = |gap: Gap| {
        let from = gap.after.map_or_else(|| meta.smallest.clone(), |key| successor(&key));
        let to = gap.before.map_or_else(|| successor(&meta.largest), Vec::into_boxed_slice);
        KeyRange { from, to }
    };
    lost.into_iter().map(range).filter(|range| range.from < range.to).collect()
}
