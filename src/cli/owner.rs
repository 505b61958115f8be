//! Whom new files belong to.

use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, fstat, openat};

use crate::error::{Error, Result};
use crate::file_name::parse_shard_directory;
use crate::storage::directory::Directory;

/// Gives the new data directory `to` to the owner of `like`, with the same mode: an administrator may do the work for the user
/// of the server. Everything is reached by descriptors, from the inside to the outside, so that the new owner cannot have other
/// files given away.
///
/// # Errors
/// `Io`.
pub(super) fn own_like(like: &Path, to: &Directory) -> Result<()> {
    let give = || -> std::io::Result<()> {
        let like = std::fs::File::open(like)?;
        let wanted = fstat(&like)?;
        let (user, group) = (Some(Uid::from_raw(wanted.st_uid)), Some(Gid::from_raw(wanted.st_gid)));
        let found = fstat(to.file())?;
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        for (name, _) in to.list()? {
            if parse_shard_directory(&name).is_none() {
                chownat(to.file(), &name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let shard = openat(to.file(), &name, flags, Mode::empty())?;
            for entry in rustix::fs::Dir::read_from(&shard)? {
                let entry = entry?;
                if ![c".", c".."].contains(&entry.file_name()) {
                    chownat(&shard, entry.file_name(), user, group, AtFlags::SYMLINK_NOFOLLOW)?;
                }
            }
            fchown(&shard, user, group)?;
        }
        if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino) {
            fchmod(to.file(), Mode::from_raw_mode(wanted.st_mode & 0o7777))?;
            fchown(to.file(), user, group)?;
        }
        Ok(())
    };
    give().map_err(|error| {
        Error::io(format!("give {} to the owner of {}", to.path().display(), like.display()), error)
    })
}
