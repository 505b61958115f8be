//! The answer for people: a line for each part, and what is wrong with a part below it.

use std::fmt::{Display, Write};

use bytesize::ByteSize;

use super::{Part, ShardView, View};
use crate::cli::{counted, moment};
use crate::error::{Error, ErrorKind};
use crate::escape::{escaped, shortened};
use crate::file_name::{FileName, shard_directory};
use crate::inspect::{History, Place, Role, Shard, SstReport, SstSurvey, WalReport};
use crate::key::{EntryKind, ValueKind};
use crate::record::replay::End;
use crate::sst::SstMeta;
use crate::storage::Storage;
use crate::store::FORMAT_VERSION;

/// Lines of text.
struct Page(String);

impl Page {
    fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.0, "{line}"); // a string takes everything
    }

    /// What does not verify in a file that reads never come to.
    fn note(&mut self, error: &Error) {
        self.line(format_args!("    note: {error}"));
    }

    /// What is wrong with the part whose line comes before.
    fn error(&mut self, error: &Error) {
        let what = match error.kind() {
            ErrorKind::Corruption => "damage",
            ErrorKind::Configuration => "later version",
            _ => "unread",
        };
        self.line(format_args!("    {what}: {error}"));
    }
}

pub(super) fn render(view: &View<'_>) -> String {
    let mut page = Page(String::new());
    match &view.inspection.store {
        Ok(store) => {
            let shards = counted(store.shards.into(), "shard");
            let ready = if store.ready { "" } else { ", whose creation did not finish" };
            page.line(format_args!(
                "{}: store {:016x} of format {FORMAT_VERSION}, {shards}{ready}",
                view.data_dir, store.id
            ));
        }
        Err(error) => {
            page.line(format_args!("{}: store {:016x}", view.data_dir, view.inspection.id));
            page.error(error);
        }
    }
    let files = view.inspection.files.iter().map(|(name, bytes)| format!("{name} {}", ByteSize(*bytes)));
    page.line(format_args!("  {}", files.collect::<Vec<_>>().join(", ")));
    for found in &view.shards {
        if view.key.is_some() && found.read.is_ok() && found.part.is_none() {
            continue; // the key belongs to another shard
        }
        shard(&mut page, found, view);
    }
    page.0
}

fn shard(page: &mut Page, found: &ShardView<'_>, view: &View<'_>) {
    page.line("");
    let shard = match found.read {
        Ok(shard) => shard,
        Err(error) => {
            page.line(shard_directory(found.shard));
            return page.error(error);
        }
    };
    let bytes: u64 = shard.files.values().sum();
    let count = counted(shard.files.len() as u64, "file");
    page.line(format_args!("{}: {count}, {}", shard_directory(found.shard), ByteSize(bytes)));
    if !matches!(found.part, Some(Part::Whole { .. })) {
        shard.errors().for_each(|error| page.error(error));
    }
    match &found.part {
        None => {}
        Some(Part::Whole { wals, ssts }) => {
            manifest(page, shard);
            levels(page, shard, ssts);
            for report in wals {
                wal(page, report, view.groups);
            }
            others(page, shard, ssts);
        }
        Some(Part::History(found)) => history(page, shard, found, view.key.unwrap_or_default()),
        Some(Part::Wal(report)) => wal(page, report, view.groups),
        Some(Part::Sst(found)) => survey(page, found, view.blocks),
    }
}

fn manifest<S: Storage>(page: &mut Page, shard: &Shard<S>) {
    match &shard.current {
        Ok(Some(number)) => page.line(format_args!("  CURRENT names {}", FileName::Manifest(*number))),
        Ok(None) => page.line("  no CURRENT: the shard was never in use"),
        Err(error) => {
            page.line("  CURRENT");
            page.error(error);
        }
    }
    let Some(manifest) = &shard.manifest else { return };
    let name = FileName::Manifest(manifest.number);
    let (edits, bytes) = (counted(manifest.edits, "edit"), ByteSize(manifest.bytes));
    let assumed = if manifest.assumed { ", the newest that is there" } else { "" };
    let end = manifest.end.as_ref().map_or(String::new(), ending);
    page.line(format_args!("  {name}: {bytes}, {edits}{end}{assumed}"));
    if let Err(error) = &manifest.end {
        page.error(error);
        page.line("    what follows is the state before it");
    }
    let state = &shard.state;
    let clean = state.clean_wal.map_or(String::new(), |number| {
        format!("; the last stop was clean, and left {}", FileName::Wal(number))
    });
    page.line(format_args!(
        "  flushed up to SeqNo {}; the next file is {}{clean}",
        state.flushed.0, state.next_file.0
    ));
    for damage in state.version.damage() {
        let label = shard.label(FileName::Sst(damage.file));
        page.line(format_args!("  quarantine, L{}: {}", damage.level, damage.describe(&label, None)));
    }
}

/// How the records of a file end.
fn ending(end: &End) -> String {
    let mut text = format!(", ends at offset {}, witnessed up to {}", end.offset, end.witnessed);
    if let Some(reason) = end.torn_reason {
        let bytes = counted(end.torn_bytes, "byte");
        let _ = write!(text, "; the torn end of a crash, or later damage, takes {bytes} there ({reason})");
    }
    if let Some(reason) = end.bad_slot {
        let _ = write!(text, "; one of the two marks is bad ({reason})");
    }
    if let Some(error) = &end.unread {
        let _ = write!(text, "; {error}");
    }
    text
}

fn levels<S: Storage>(page: &mut Page, shard: &Shard<S>, ssts: &[SstReport]) {
    for (level, metas) in shard.state.version.levels().filter(|(_, metas)| !metas.is_empty()) {
        let sum = |field: fn(&SstMeta) -> u64| metas.iter().map(|meta| field(meta)).sum::<u64>();
        page.line(format_args!(
            "  L{level}: {}, {}, {}, {}",
            counted(metas.len() as u64, "file"),
            ByteSize(sum(|meta| meta.bytes)),
            counted(sum(|meta| meta.entries), "entry"),
            of_them(sum(|meta| meta.tombstones))
        ));
        for report in ssts.iter().filter(|report| report.place == Place::Level(level)) {
            sst(page, report);
            let missing = shard.missing.iter().filter(|(name, _)| *name == FileName::Sst(report.number));
            missing.for_each(|(_, error)| page.error(error));
        }
    }
}

fn sst(page: &mut Page, report: &SstReport) {
    let name = FileName::Sst(report.number);
    match &report.meta {
        Ok(meta) => {
            let absent = if report.bytes.is_none() { ", not there" } else { "" };
            page.line(format_args!("    {name}: {}{absent}", describe(meta)));
        }
        Err(_) => {
            let bytes = ByteSize(report.bytes.unwrap_or_default());
            page.line(format_args!("    {name}: {bytes}"));
        }
    }
    match &report.error {
        Some(error) if report.damage().is_none() => page.note(error),
        error => error.iter().for_each(|error| page.error(error)),
    }
}

fn describe(meta: &SstMeta) -> String {
    let mut text = format!(
        "{}, {}, {}, SeqNo {} to {}, keys {} to {}",
        ByteSize(meta.bytes),
        counted(meta.entries, "entry"),
        of_them(meta.tombstones),
        meta.first.0,
        meta.last.0,
        shortened(&meta.smallest),
        shortened(&meta.largest)
    );
    if let Some(expiry) = &meta.expiry {
        let (first, last) = (moment(expiry.first), moment(expiry.last));
        let _ = write!(text, ", expiry of {} from {first} to {last}", counted(expiry.entries, "entry"));
    }
    text
}

fn of_them(tombstones: u64) -> String {
    format!("{} of them", counted(tombstones, "delete"))
}

fn wal(page: &mut Page, report: &WalReport, with_groups: bool) {
    let role = match report.role {
        Role::Needed => "read by the next start",
        Role::Kept => "kept, its writes are in sorted files",
        Role::Unnamed => "not named by the manifest",
    };
    let range = report.range().map_or(String::new(), |(first, last)| {
        let bytes: u64 = report.groups.iter().map(|group| group.bytes).sum();
        format!(
            " of {}, SeqNo {} to {}, {}",
            counted(report.writes(), "write"),
            first.0,
            last.0,
            ByteSize(bytes)
        )
    });
    let groups = counted(report.groups.len() as u64, "group");
    let end = report.end.as_ref().map_or(String::new(), ending);
    let name = FileName::Wal(report.number);
    page.line(format_args!("  {name}: {}, {role}; {groups}{range}{end}", ByteSize(report.bytes)));
    if let Ok(mark) = &report.mark {
        page.line(format_args!(
            "    mark {}: durable up to offset {}, nothing beyond offset {}",
            mark.number, mark.durable, mark.limit
        ));
    }
    match report.role {
        Role::Unnamed => report.errors().for_each(|error| page.note(error)),
        _ => report.errors().for_each(|error| page.error(error)),
    }
    for group in report.groups.iter().filter(|_| with_groups) {
        page.line(format_args!(
            "    group at offset {}: SeqNo {} to {}, {}",
            group.offset,
            group.first.0,
            group.last.0,
            counted(group.bytes, "byte")
        ));
    }
}

fn others<S: Storage>(page: &mut Page, shard: &Shard<S>, ssts: &[SstReport]) {
    for (name, error) in shard.missing.iter().filter(|(name, _)| !matches!(name, FileName::Sst(_))) {
        page.line(format_args!("  {name}"));
        page.error(error);
    }
    for error in &shard.unnamed {
        page.error(error);
    }
    let certain = shard.is_certain();
    for (place, title) in [
        (Place::Quarantine, "kept until they are repaired"),
        (
            Place::Unnamed,
            if certain { "left over" } else { "not named by what could be read of the manifest" },
        ),
    ] {
        let files: Vec<_> = ssts.iter().filter(|report| report.place == place).collect();
        if !files.is_empty() {
            page.line(format_args!("  sorted files, {title}: {}", files.len()));
        }
        files.into_iter().for_each(|report| sst(page, report));
    }
    for (name, bytes) in shard.left_over() {
        page.line(format_args!("  {name}: {}, left over", ByteSize(bytes)));
    }
}

fn survey(page: &mut Page, found: &SstSurvey, with_blocks: bool) {
    let place = place(Some(found.report.place));
    page.line(format_args!("  {place}:"));
    sst(page, &found.report);
    for (kind, total) in found.totals() {
        let kind = format!("{kind:?}").to_lowercase();
        let ratio = total.raw_bytes as f64 / total.bytes.max(1) as f64;
        let entries = match total.entries {
            0 => String::new(),
            count => format!(", {}", counted(count, "entry")),
        };
        page.line(format_args!(
            "    {kind}: {}, {} on disk, {} unpacked (ratio {ratio:.2}){entries}",
            counted(total.blocks as u64, "block"),
            ByteSize(total.bytes),
            ByteSize(total.raw_bytes)
        ));
    }
    for block in &found.blocks {
        match block {
            Err(error) => page.error(error),
            Ok(block) if with_blocks => {
                let kind = format!("{:?}", block.kind).to_lowercase();
                let key = block
                    .first_key
                    .as_ref()
                    .map_or(String::new(), |key| format!(", from {}", shortened(key)));
                page.line(format_args!(
                    "    {kind} at offset {}: {} on disk, {} unpacked, {}{key}",
                    block.handle.offset,
                    counted(block.handle.bytes as u64, "byte"),
                    block.raw_bytes,
                    counted(block.entries, "entry")
                ));
            }
            Ok(_) => {}
        }
    }
}

fn place(place: Option<Place>) -> String {
    match place {
        None => "log".into(),
        Some(Place::Level(level)) => format!("L{level}"),
        Some(Place::Quarantine) => "in quarantine".into(),
        Some(Place::Unnamed) => "not named by the manifest".into(),
    }
}

fn what(kind: EntryKind, value_bytes: u64) -> String {
    let expires = kind.expires.map_or(String::new(), |at| format!(", expires {}", moment(at)));
    match kind.value {
        ValueKind::Tombstone => "delete".into(),
        ValueKind::Value => format!("set to {}{expires}", counted(value_bytes, "byte")),
    }
}

fn history<S: Storage>(page: &mut Page, shard: &Shard<S>, found: &History, key: &[u8]) {
    let count = counted(found.versions.len() as u64, "version");
    let bytes = counted(key.len() as u64, "byte");
    page.line(format_args!("  key {} ({bytes}): {count}", escaped(key)));
    for version in &found.versions {
        page.line(format_args!(
            "    SeqNo {}: {}, in {} at offset {} ({})",
            version.seqno.0,
            what(version.kind, version.value_bytes),
            version.file,
            version.offset,
            place(version.place)
        ));
    }
    for damage in &found.quarantine {
        let (label, last) = (shard.label(FileName::Sst(damage.file)), damage.last.0);
        page.line(format_args!(
            "    a version up to SeqNo {last} may be lost in L{}: it is among the keys that {label} has lost",
            damage.level
        ));
    }
    found.errors.iter().for_each(|error| page.error(error));
}
