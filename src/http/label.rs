//! What a request asks for, for those who count requests. Pure.

/// The endpoint of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(u8);

impl Label {
    /// The names of all labels.
    pub const NAMES: [&str; 14] = [
        "unknown",
        "set",
        "get",
        "del",
        "shutdown",
        "livez",
        "readyz",
        "metrics",
        "stats",
        "backup",
        "backup/part",
        "compact",
        "openapi.yaml",
        "options",
    ];

    /// The request was refused before its path was looked at, or has none that is known.
    pub const UNKNOWN: Self = Self(0);
    pub(super) const SET: Self = Self(1);
    pub(super) const GET: Self = Self(2);
    pub(super) const DELETE: Self = Self(3);
    pub(super) const SHUTDOWN: Self = Self(4);
    pub(super) const LIVEZ: Self = Self(5);
    pub(super) const READYZ: Self = Self(6);
    pub(super) const METRICS: Self = Self(7);
    pub(super) const STATS: Self = Self(8);
    pub(super) const BACKUP: Self = Self(9);
    pub(super) const PART: Self = Self(10);
    pub(super) const COMPACT: Self = Self(11);
    pub(super) const OPENAPI: Self = Self(12);
    pub(super) const OPTIONS: Self = Self(13);

    /// The place of its name in [`Self::NAMES`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }
}
