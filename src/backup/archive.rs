//! A backup as one stream, in the format of tar. Its entries are the files of the backup, each under its name in the
//! directory. `STORE` comes last, so an archive that was cut has none.

use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::OFlags;
use tar::{Archive, Builder, EntryType, Header};

use crate::data_dir::DataDir;
use crate::error::{Error, ErrorKind, Result};
use crate::file_name::{FileName, parse_shard_directory, shard_directory};
use crate::key::ShardId;
use crate::storage::directory::Directory;

/// Writes an archive.
pub struct Writer<W: Write>(Builder<W>);

impl<W: Write> Writer<W> {
    /// An archive that goes to `to`.
    pub fn new(to: W) -> Self {
        Self(Builder::new(to))
    }

    /// Appends a file of a shard, or of the data directory if `shard` is `None`.
    ///
    /// # Errors
    /// `Io`.
    pub fn append(&mut self, directory: &Directory, shard: Option<ShardId>, name: FileName) -> Result<()> {
        let path = match shard {
            Some(shard) => format!("{}/{name}", shard_directory(shard)),
            None => name.to_string(),
        };
        let appended = directory.open_file(&name.to_string(), OFlags::RDONLY).and_then(|file| {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o600);
            header.set_size(file.metadata()?.len());
            header.set_cksum();
            self.0.append_data(&mut header, &path, file)
        });
        appended.map_err(|error| Error::io(format!("write {path} to the archive"), error))
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(self) -> Result<()> {
        let ended = self.0.into_inner().and_then(|mut to| to.flush());
        ended.map_err(|error| Error::io("write the end of the archive", error))
    }
}

/// Writes the files of an archive to a directory, except its mark. Files that are there are replaced.
///
/// # Errors
/// `Corruption` if the archive has an entry that no backup has, or is cut; `Io`.
pub fn unpack(from: impl Read, to: &DataDir, mut progress: impl FnMut(u64)) -> Result<()> {
    let strange = |what: String| {
        Error::new(
            ErrorKind::Corruption,
            format!("this is not a backup, as a tar archive without compression: {what}"),
        )
    };
    let failed =
        |error: io::Error| Error::new(ErrorKind::Corruption, format!("the archive is damaged: {error}"));
    let mut is_complete = false;
    for entry in Archive::new(from).entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let path = entry.path().map_err(failed)?.into_owned();
        let (shard, name) =
            place(&path).ok_or_else(|| strange(format!("it has an entry {}", path.display())))?;
        if entry.header().entry_type() != EntryType::Regular {
            return Err(strange(format!("{} is no regular file", path.display())));
        }
        if name == FileName::Backup {
            continue;
        }
        let write = |directory: &Directory, entry: &mut dyn Read| {
            let name = name.to_string();
            match directory.remove_file(&name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {} // a file is replaced, not overwritten: it may have other names
            }
            let mut file = directory.open_file(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
            let bytes = io::copy(entry, &mut file)?;
            file.sync_all()?;
            directory.file().sync_all()?;
            Ok(bytes)
        };
        let written = match shard {
            None => write(to.directory(), &mut entry),
            Some(shard) => {
                let made = to.directory().create_child(&shard_directory(shard));
                made.and_then(|()| to.directory().file().sync_all())
                    .and_then(|()| to.directory().child(&shard_directory(shard)))
                    .and_then(|directory| write(&directory, &mut entry))
            }
        };
        progress(written.map_err(|error| Error::io(format!("unpack {}", path.display()), error))?);
        is_complete |= name == FileName::Store;
    }
    if is_complete { Ok(()) } else { Err(strange(format!("it ends without {}", FileName::Store))) }
}

/// Which file an entry is; `None` for a path that no backup has.
fn place(path: &Path) -> Option<(Option<ShardId>, FileName)> {
    let (directory, name) = match path.to_str()?.split_once('/') {
        Some((directory, name)) => (Some(directory), name),
        None => (None, path.to_str()?),
    };
    let name = FileName::parse(name)?;
    match directory {
        None => [FileName::Store, FileName::Backup].contains(&name).then_some((None, name)),
        Some(directory) => {
            let shard = parse_shard_directory(directory)?;
            let of_shard = matches!(name, FileName::Current | FileName::Manifest(_) | FileName::Sst(_));
            of_shard.then_some((Some(shard), name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_paths_of_a_backup_are_unpacked() {
        let of = |path: &str| place(Path::new(path));
        assert_eq!(of("STORE"), Some((None, FileName::Store)));
        assert_eq!(of("BACKUP"), Some((None, FileName::Backup)));
        assert_eq!(of("shard-012/CURRENT"), Some((Some(ShardId(12)), FileName::Current)));
        assert!(of("shard-000/000009.sst").is_some() && of("shard-998/MANIFEST-000004").is_some());
        for foreign in [
            "",
            "/STORE",
            "../STORE",
            "./STORE",
            "CURRENT",
            "RESERVE",
            "shard-000",
            "shard-0/CURRENT",
            "shard-000/../STORE",
            "shard-000/STORE",
            "shard-000/000009.wal",
            "shard-+01/CURRENT",
            "shard-000/a/000009.sst",
            "etc/passwd",
        ] {
            assert_eq!(of(foreign), None, "{foreign}");
        }
    }
}
