//! Whom new files belong to.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Gives everything below `path` to the owner of `like`: an administrator may do the work for the user of the server.
pub(super) fn own_like(like: &Path, path: &Path) -> Result<()> {
    let give = || -> std::io::Result<()> {
        let owner = std::fs::metadata(like)?;
        let mut left = vec![path.to_owned()];
        while let Some(path) = left.pop() {
            let found = std::fs::symlink_metadata(&path)?;
            if (found.uid(), found.gid()) != (owner.uid(), owner.gid()) {
                std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))?;
            }
            if found.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    left.push(entry?.path());
                }
            }
        }
        Ok(())
    };
    give().map_err(|error| {
        Error::io(format!("give the files of {} to the owner of {}", path.display(), like.display()), error)
    })
}
