//! Which part of which file a backup asks for. Pure.
//!
//! ```text
//!   /backup/part?backup=ID&shard=N&file=N&offset=BYTES&bytes=BYTES[&suspect=1]
//! ```
//!
//! A client whose copy of a file does not verify says so by `suspect`: then the server looks at the file itself.

use super::{Refusal, decimal};
use crate::config::BLOCK_BYTES;
use crate::key::{FileNumber, ShardId};

/// The longest part.
pub const PART_BYTES_MAX: u64 = 1 << 20;

/// A part of a file that is lent to a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The number of the backup.
    pub backup: u64,
    /// The number of the file.
    pub file: FileNumber,
    /// The shard of the file.
    pub shard: ShardId,
    /// The client has found that the file does not verify.
    pub is_suspect: bool,
    first_block: u32,
    blocks: u16,
}

impl Part {
    /// Where the part begins: a multiple of the block size.
    pub fn offset(self) -> u64 {
        u64::from(self.first_block) * BLOCK_BYTES as u64
    }

    /// Its length: a multiple of the block size.
    pub fn bytes(self) -> usize {
        usize::from(self.blocks) * BLOCK_BYTES
    }
}

const NAMES: [&[u8]; 5] = [b"backup", b"shard", b"file", b"offset", b"bytes"];

/// The parameters of a request for a part, as far as they are read.
#[derive(Default)]
pub(super) struct PartQuery {
    numbers: [Option<u64>; NAMES.len()],
    is_suspect: bool,
}

impl PartQuery {
    /// Adds a parameter.
    ///
    /// # Errors
    /// 400 if it is unknown, repeated or no number.
    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        if name == b"suspect" && value == b"1" && !self.is_suspect {
            self.is_suspect = true;
            return Ok(());
        }
        let place = NAMES.iter().position(|known| *known == name).ok_or(Refusal::bad(UNKNOWN))?;
        let number = decimal(value).ok_or(Refusal::bad(NO_NUMBER))?;
        match self.numbers[place].replace(number) {
            None => Ok(()),
            Some(_) => Err(Refusal::bad("a query parameter is given twice")),
        }
    }

    /// The part.
    ///
    /// # Errors
    /// 400 if a parameter is missing or out of range.
    pub(super) fn finish(self) -> Result<Part, Refusal> {
        let [Some(backup), Some(shard), Some(file), Some(offset), Some(bytes)] = self.numbers else {
            return Err(Refusal::bad(MISSING));
        };
        let blocks =
            |bytes: u64| bytes.is_multiple_of(BLOCK_BYTES as u64).then(|| bytes / BLOCK_BYTES as u64);
        let shard = u16::try_from(shard).ok();
        let first_block = blocks(offset).and_then(|blocks| u32::try_from(blocks).ok());
        let blocks = blocks(bytes)
            .filter(|_| (1..=PART_BYTES_MAX).contains(&bytes))
            .and_then(|blocks| u16::try_from(blocks).ok());
        match (shard, first_block, blocks) {
            (Some(shard), Some(first_block), Some(blocks)) => {
                let (file, shard) = (FileNumber(file), ShardId(shard));
                Ok(Part { backup, file, shard, is_suspect: self.is_suspect, first_block, blocks })
            }
            _ => Err(Refusal::bad(OUT_OF_RANGE)),
        }
    }
}

const UNKNOWN: &str = "the path takes the query parameters `backup`, `shard`, `file`, `offset`, `bytes`, `suspect=1` and `timing`";
const MISSING: &str = "the query parameters `backup`, `shard`, `file`, `offset` and `bytes` are all needed";
const NO_NUMBER: &str = "a query parameter is not a decimal number";
const OUT_OF_RANGE: &str = "a query parameter is out of range: `offset` and `bytes` are multiples of 4096, and `bytes` is 1 MiB at most";

#[cfg(test)]
mod tests {
    use super::super::query::parameters;
    use super::*;

    #[test]
    fn a_part_is_read_from_its_query_and_anything_else_is_refused() {
        let of = |query: &'static str| {
            let mut part = PartQuery::default();
            for parameter in parameters(query.as_bytes()) {
                let (name, value) = parameter?;
                part.add(name, value)?;
            }
            part.finish()
        };
        let part = of("backup=18446744073709551615&shard=998&file=7&offset=8192&bytes=1048576").unwrap();
        assert_eq!((part.backup, part.shard, part.file), (u64::MAX, ShardId(998), FileNumber(7)));
        assert_eq!((part.offset(), part.bytes(), part.is_suspect), (8192, 1 << 20, false));
        assert!(of("backup=1&shard=0&suspect=1&file=7&offset=0&bytes=4096").unwrap().is_suspect);
        assert_eq!(
            of("bytes=4096&offset=17592186040320&file=1&shard=0&backup=1").unwrap().offset(),
            17_592_186_040_320
        );
        for wrong in [
            "",
            "backup=1&shard=0&file=7&offset=0",
            "backup=1&shard=0&file=7&offset=0&bytes=4096&key=k",
            "backup=1&shard=0&file=7&offset=0&bytes=4096&bytes=4096",
            "backup=1&shard=0&file=7&offset=0&bytes=4096&suspect=0",
            "backup=1&shard=0&file=7&offset=0&bytes=4096&suspect=1&suspect=1",
            "backup=1&shard=0&file=7&offset=1&bytes=4096",
            "backup=1&shard=0&file=7&offset=0&bytes=4097",
            "backup=1&shard=0&file=7&offset=0&bytes=0",
            "backup=1&shard=0&file=7&offset=0&bytes=1052672",
            "backup=1&shard=65536&file=7&offset=0&bytes=4096",
            "backup=1&shard=0&file=7&offset=17592186044416&bytes=4096",
            "backup=1&shard=0&file=+7&offset=0&bytes=4096",
            "backup=18446744073709551616&shard=0&file=7&offset=0&bytes=4096",
        ] {
            assert_eq!(of(wrong).map_err(|refusal| refusal.status.code()), Err(400), "{wrong}");
        }
    }
}
