//! Every name that ringkeep puts on disk, built and parsed in one module. Pure.
//!
//! ```text
//! DATA/STORE  DATA/RESERVE  DATA/shard-000/{CURRENT, MANIFEST-000004, 000007.wal, 000009.sst}
//! ```

use std::fmt;

use crate::key::{FileNumber, ShardId};

/// The name of a file of the store, relative to its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileName {
    /// Identity of the store and its slot map, in the data directory.
    Store,
    /// `STORE` while it is being written.
    StoreTemporary,
    /// Space for the work that makes room on a full disk, in the data directory. It holds no data.
    Reserve,
    /// Marks a backup, or a restore that has not finished, in its directory.
    Backup,
    /// Names the manifest in force, in a shard's directory.
    Current,
    /// `CURRENT` while it is being written.
    CurrentTemporary,
    /// A log of version edits.
    Manifest(FileNumber),
    /// A write-ahead log.
    Wal(FileNumber),
    /// A sorted file.
    Sst(FileNumber),
}

impl FileName {
    /// Reads a name as `Display` writes it; `None` for a name that is not ours.
    pub fn parse(name: &str) -> Option<Self> {
        let parsed = match name {
            "STORE" => Self::Store,
            "STORE.tmp" => Self::StoreTemporary,
            "RESERVE" => Self::Reserve,
            "BACKUP" => Self::Backup,
            "CURRENT" => Self::Current,
            "CURRENT.tmp" => Self::CurrentTemporary,
            _ => {
                if let Some(number) = name.strip_prefix("MANIFEST-") {
                    Self::Manifest(FileNumber(number.parse().ok()?))
                } else if let Some(number) = name.strip_suffix(".wal") {
                    Self::Wal(FileNumber(number.parse().ok()?))
                } else {
                    Self::Sst(FileNumber(name.strip_suffix(".sst")?.parse().ok()?))
                }
            }
        };
        // `+7.wal` and `7.wal` parse as numbers, but ringkeep never writes them.
        (parsed.to_string() == name).then_some(parsed)
    }

    /// The number in the name, if it has one.
    pub fn number(self) -> Option<FileNumber> {
        match self {
            Self::Manifest(number) | Self::Wal(number) | Self::Sst(number) => Some(number),
            Self::Store
            | Self::StoreTemporary
            | Self::Reserve
            | Self::Backup
            | Self::Current
            | Self::CurrentTemporary => None,
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str("STORE"),
            Self::StoreTemporary => f.write_str("STORE.tmp"),
            Self::Reserve => f.write_str("RESERVE"),
            Self::Backup => f.write_str("BACKUP"),
            Self::Current => f.write_str("CURRENT"),
            Self::CurrentTemporary => f.write_str("CURRENT.tmp"),
            Self::Manifest(number) => write!(f, "MANIFEST-{:06}", number.0),
            Self::Wal(number) => write!(f, "{:06}.wal", number.0),
            Self::Sst(number) => write!(f, "{:06}.sst", number.0),
        }
    }
}

/// The directory of a shard, relative to the data directory.
pub fn shard_directory(shard: ShardId) -> String {
    format!("shard-{:03}", shard.0)
}

/// Reads what [`shard_directory`] wrote; `None` for a name that is not ours.
pub fn parse_shard_directory(name: &str) -> Option<ShardId> {
    let shard = ShardId(name.strip_prefix("shard-")?.parse().ok()?);
    (shard_directory(shard) == name).then_some(shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_foreign_names_are_left_alone() {
        for name in [
            FileName::Store,
            FileName::StoreTemporary,
            FileName::Reserve,
            FileName::Backup,
            FileName::Current,
            FileName::CurrentTemporary,
            FileName::Manifest(FileNumber(4)),
            FileName::Wal(FileNumber(7)),
            FileName::Sst(FileNumber(1_234_567)),
        ] {
            assert_eq!(FileName::parse(&name.to_string()), Some(name));
        }
        for shard in [0, 7, 999, 1_000].map(ShardId) {
            assert_eq!(parse_shard_directory(&shard_directory(shard)), Some(shard));
        }
        for foreign in ["shard-7", "shard-+07", "shard-007.old", "shard-99999"] {
            assert_eq!(parse_shard_directory(foreign), None, "{foreign}");
        }
        for foreign in ["", "LOCK", "7.wal", "+00007.wal", "000007.wal~", "MANIFEST-", "core", "000007.SST"] {
            assert_eq!(FileName::parse(foreign), None, "{foreign}");
        }
    }
}
