//! The answer as one JSON object. Keys are in percent escapes, and SeqNos and offsets are numbers.

use serde_json::{Value, json};

use super::{Part, ShardView, View};
use crate::error::{Error, ErrorKind};
use crate::escape::escaped;
use crate::file_name::FileName;
use crate::inspect::{Group, History, Place, Role, Shard, SstReport, SstSurvey, WalReport};
use crate::key::ValueKind;
use crate::record::mark::Mark;
use crate::record::replay::End;
use crate::sst::SstMeta;
use crate::storage::Storage;
use crate::store::FORMAT_VERSION;

pub(super) fn render(view: &View<'_>) -> String {
    let of_kind = |wanted: fn(ErrorKind) -> bool| {
        let errors = view.errors().into_iter().filter(|error| wanted(error.kind()));
        errors.map(ToString::to_string).collect::<Vec<_>>()
    };
    let store = match &view.inspection.store {
        Ok(store) => json!({
            "format": FORMAT_VERSION,
            "id": format!("{:016x}", store.id),
            "shards": store.shards,
            "ready": store.ready,
        }),
        Err(error) => json!({ "error": error.to_string(), "id": format!("{:016x}", view.inspection.id) }),
    };
    let files = &view.inspection.files;
    let object = json!({
        "data_dir": view.data_dir,
        "store": store,
        "files": files.iter().map(|(name, bytes)| file(*name, *bytes)).collect::<Value>(),
        "key": view.key.map(escaped),
        "shards": view.shards.iter().map(|found| shard(found, view)).collect::<Value>(),
        "damage": of_kind(|kind| kind == ErrorKind::Corruption),
        "later_version": of_kind(|kind| kind == ErrorKind::Configuration),
        "unread": of_kind(|kind| ![ErrorKind::Corruption, ErrorKind::Configuration].contains(&kind)),
    });
    format!("{object:#}\n")
}

fn file(name: FileName, bytes: u64) -> Value {
    json!({ "file": name.to_string(), "bytes": bytes })
}

fn error_of<T>(result: &crate::error::Result<T>) -> Option<String> {
    result.as_ref().err().map(Error::to_string)
}

fn shard(found: &ShardView<'_>, view: &View<'_>) -> Value {
    let number = found.shard.0;
    let shard = match found.read {
        Ok(shard) => shard,
        Err(error) => return json!({ "shard": number, "error": error.to_string() }),
    };
    let mut object = state(shard);
    object["shard"] = json!(number);
    match &found.part {
        None => {}
        Some(Part::Whole { wals, ssts }) => {
            let levels = shard.state.version.levels().map(|(level, _)| {
                let files = ssts.iter().filter(|sst| sst.place == Place::Level(level));
                json!({ "level": level, "files": files.map(sst).collect::<Value>() })
            });
            object["levels"] = levels.collect();
            let others = ssts.iter().filter(|sst| !matches!(sst.place, Place::Level(_)));
            object["other_sorted_files"] = others.map(sst).collect();
            object["wals"] = wals.iter().map(|report| wal(report, view.groups)).collect();
        }
        Some(Part::History(found)) => object["history"] = history(found),
        Some(Part::Wal(report)) => object["wals"] = json!([wal(report, view.groups)]),
        Some(Part::Sst(found)) => object["sorted_file"] = survey(found, view.blocks),
    }
    object
}

fn state<S: Storage>(shard: &Shard<S>) -> Value {
    let state = &shard.state;
    let manifest = shard.manifest.as_ref().map(|manifest| {
        json!({
            "file": FileName::Manifest(manifest.number).to_string(),
            "bytes": manifest.bytes,
            "assumed": manifest.assumed,
            "edits": manifest.edits,
            "end": manifest.end.as_ref().ok().map(end),
            "error": error_of(&manifest.end),
        })
    });
    let quarantine = state.version.damage().iter().map(|damage| {
        let ranges = damage.ranges.iter();
        json!({
            "file": FileName::Sst(damage.file).to_string(),
            "level": damage.level,
            "last": damage.last.0,
            "ranges": ranges.map(|range| json!({ "from": escaped(&range.from), "to": escaped(&range.to) })).collect::<Value>(),
        })
    });
    let missing = shard.missing.iter();
    let current = shard.current.as_ref().ok().copied().flatten();
    json!({
        "directory": shard.directory(),
        "current": { "manifest": current.map(|number| FileName::Manifest(number).to_string()), "error": error_of(&shard.current) },
        "manifest": manifest,
        "flushed": state.flushed.0,
        "next_file": state.next_file.0,
        "clean_wal": state.clean_wal.map(|number| FileName::Wal(number).to_string()),
        "quarantine": quarantine.collect::<Value>(),
        "missing": missing.map(|(name, error)| json!({ "file": name.to_string(), "error": error.to_string() })).collect::<Value>(),
        "left_over": shard.left_over().map(|(name, bytes)| file(name, bytes)).collect::<Value>(),
        "errors": shard.unnamed.iter().map(ToString::to_string).collect::<Value>(),
    })
}

fn mark(mark: &Mark) -> Value {
    json!({
        "number": mark.number,
        "durable": mark.durable,
        "limit": mark.limit,
        "used_before": mark.used_before,
    })
}

fn end(end: &End) -> Value {
    json!({
        "offset": end.offset,
        "witnessed": end.witnessed,
        "mark": mark(&end.mark),
        "bad_mark": end.bad_slot.map(|reason| reason.to_string()),
        "torn_bytes": end.torn_bytes,
        "torn_reason": end.torn_reason.map(|reason| reason.to_string()),
        "unread": end.unread.as_ref().map(ToString::to_string),
    })
}

fn wal(report: &WalReport, with_groups: bool) -> Value {
    let role = match report.role {
        Role::Needed => "needed",
        Role::Kept => "kept",
        Role::Unnamed => "unnamed",
    };
    let group = |group: &Group| json!({ "offset": group.offset, "bytes": group.bytes, "first": group.first.0, "last": group.last.0 });
    let (first, last) = report.range().unzip();
    let mut object = json!({
        "file": FileName::Wal(report.number).to_string(),
        "bytes": report.bytes,
        "role": role,
        "mark": report.mark.as_ref().ok().map(mark),
        "group_count": report.groups.len(),
        "group_bytes": report.groups.iter().map(|group| group.bytes).sum::<u64>(),
        "writes": report.writes(),
        "first": first.map(|seqno| seqno.0),
        "last": last.map(|seqno| seqno.0),
        "end": report.end.as_ref().ok().map(end),
        "errors": report.errors().map(ToString::to_string).collect::<Value>(),
    });
    if with_groups {
        object["groups"] = report.groups.iter().map(group).collect();
    }
    object
}

/// Where a file belongs, and its level if it has one.
fn place(place: Option<Place>) -> (&'static str, Option<usize>) {
    match place {
        None => ("wal", None),
        Some(Place::Level(level)) => ("level", Some(level)),
        Some(Place::Quarantine) => ("quarantine", None),
        Some(Place::Unnamed) => ("unnamed", None),
    }
}

fn meta(meta: &SstMeta) -> Value {
    json!({
        "bytes": meta.bytes,
        "smallest": escaped(&meta.smallest),
        "largest": escaped(&meta.largest),
        "first": meta.first.0,
        "last": meta.last.0,
        "entries": meta.entries,
        "tombstones": meta.tombstones,
        "longest": meta.longest,
        "expiry": meta.expiry.map(|expiry| json!({
            "entries": expiry.entries,
            "first_unix_ms": expiry.first.0,
            "last_unix_ms": expiry.last.0,
        })),
    })
}

fn sst(report: &SstReport) -> Value {
    let (place, level) = place(Some(report.place));
    json!({
        "file": FileName::Sst(report.number).to_string(),
        "place": place,
        "level": level,
        "bytes_on_disk": report.bytes,
        "properties": report.meta.as_ref().ok().map(|found| meta(found)),
        "error": report.error.as_ref().map(ToString::to_string),
    })
}

fn survey(found: &SstSurvey, with_blocks: bool) -> Value {
    let mut object = sst(&found.report);
    let totals = found.totals().into_iter().map(|(kind, total)| {
        json!({
            "kind": format!("{kind:?}").to_lowercase(),
            "blocks": total.blocks,
            "bytes_on_disk": total.bytes,
            "raw_bytes": total.raw_bytes,
            "entries": total.entries,
        })
    });
    object["totals"] = totals.collect();
    let damage = found.blocks.iter().filter_map(|block| block.as_ref().err());
    object["damaged_blocks"] = damage.map(ToString::to_string).collect();
    if with_blocks {
        let blocks = found.blocks.iter().map(|block| match block {
            Ok(block) => json!({
                "offset": block.handle.offset,
                "bytes_on_disk": block.handle.bytes,
                "kind": format!("{:?}", block.kind).to_lowercase(),
                "raw_bytes": block.raw_bytes,
                "entries": block.entries,
                "first_key": block.first_key.as_deref().map(escaped),
            }),
            Err(error) => json!({ "error": error.to_string() }),
        });
        object["blocks"] = blocks.collect();
    }
    object
}

fn history(found: &History) -> Value {
    let versions = found.versions.iter().map(|version| {
        let (place, level) = place(version.place);
        json!({
            "seqno": version.seqno.0,
            "what": if version.kind.value == ValueKind::Tombstone { "delete" } else { "set" },
            "expires_unix_ms": version.kind.expires.map(|at| at.0),
            "value_bytes": version.value_bytes,
            "file": version.file.to_string(),
            "offset": version.offset,
            "place": place,
            "level": level,
        })
    });
    json!({
        "versions": versions.collect::<Value>(),
        "quarantine": found.quarantine.iter().map(|damage| FileName::Sst(damage.file).to_string()).collect::<Value>(),
        "errors": found.errors.iter().map(ToString::to_string).collect::<Value>(),
    })
}
