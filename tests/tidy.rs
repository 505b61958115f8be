//! The rules of the source tree that are worth a test: layers, banned names, headers and lengths.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by layer. A module may use modules of lower layers, and its own folder.
const LAYERS: &[&[&str]] = &[
    &["error", "random", "codec", "key", "op", "config", "file_name", "arena", "hash_index", "host"],
    &["storage", "source"],
    &["memtable", "record"],
    &["sst", "wal"],
    &["cache", "compaction", "manifest", "store", "data_dir"],
    &["db", "check", "load"],
    &["shard"],
    &["server"],
    &["cli"],
];

/// Files that may be longer than 800 lines, with the reason in their header.
const LONG_FILES: &[&str] = &[];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file of the library: its path below `src`, and its text without the tests.
fn library() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    assert!(30 < found.len());
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
        (name, code)
    };
    found.into_iter().map(read).collect()
}

fn module(name: &str) -> &str {
    name.split('/').next().unwrap().trim_end_matches(".rs")
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn modules_use_lower_layers_only() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    for (name, text) in library() {
        let user = module(&name);
        if ["lib", "main"].contains(&user) {
            continue;
        }
        for line in code_lines(&text) {
            for used in line
                .split("crate::")
                .skip(1)
                .map(|rest| rest.split([':', ';', ',', ' ', '{']).next().unwrap())
            {
                if used == user || used.is_empty() {
                    continue;
                }
                let allowed = match (layer(user), layer(used)) {
                    // `http` stands apart: it uses the lowest layer, and the layers from `shard` on use it.
                    (None, Some(used)) => user == "http" && used == 0,
                    (Some(user), None) => used == "http" && 6 <= user,
                    (Some(user), Some(used)) => {
                        used < user || (used == user && user == 4) || (used == user && user == 0)
                    }
                    (None, None) => false,
                };
                assert!(allowed, "src/{name}: {user} may not use {used}");
            }
        }
    }
}

#[test]
fn what_is_banned_stays_where_it_is_allowed() {
    for (banned, allowed) in [
        ("tokio_uring::fs", &["storage/uring.rs", "storage/at.rs"][..]),
        (
            "use tokio_uring",
            &[
                "storage/uring.rs",
                "storage/buffer.rs",
                "storage/at.rs",
                "http/stream.rs",
                "shard/listener.rs",
                "load/connection.rs",
                "load/run.rs",
            ],
        ),
        ("unsafe ", &["storage/buffer.rs", "storage/at.rs", "host.rs"]),
        ("SystemTime::now", &["shard/thread.rs", "shard/handler.rs", "cli/bench.rs"]),
        (
            "Instant::now",
            &[
                "storage/uring.rs",
                "server/mod.rs",
                "shard/accept.rs",
                "shard/thread.rs",
                "shard/handler.rs",
                "load/connection.rs",
                "load/run.rs",
            ],
        ),
        ("yield_now", &[]),
        (".unwrap()", &[]),
        ("todo!", &[]),
        ("dbg!", &[]),
    ] {
        for (name, text) in library() {
            let used = code_lines(&text).any(|line| line.contains(banned));
            assert!(!used || allowed.contains(&name.as_str()), "src/{name} uses `{banned}`");
        }
    }
}

#[test]
fn every_file_says_what_it_owns_and_stays_readable() {
    for (name, text) in library() {
        assert!(text.starts_with("//!"), "src/{name} does not begin with its purpose (//!)");
        assert!(text.lines().count() <= 800 || LONG_FILES.contains(&name.as_str()), "src/{name} is too long");
    }
}
