//! The rules of the source tree that are worth a test: layers, banned names, headers and lengths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules by layer. A module may use modules of lower layers, and its own folder. The modules of the first layer may
/// use each other, and so may those of the fifth layer.
const LAYERS: &[&[&str]] = &[
    &[
        "error",
        "random",
        "codec",
        "escape",
        "key",
        "op",
        "config",
        "file_name",
        "identity",
        "arena",
        "hash_index",
        "host",
        "memory",
        "one_shot",
        "tally",
        "tls",
    ],
    &["storage", "ring", "source"],
    &["memtable", "record"],
    &["sst", "wal"],
    &["cache", "compaction", "manifest", "presence", "store", "data_dir"],
    &["db", "check", "inspect", "backup", "load", "client"],
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

/// Every source file of the library: its path below `src`, and its text without the tests. The tests of a long module are
/// in `tests.rs` of its folder, and the helpers of these tests in the folder `tests`.
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
    let is_test = |name: &str| name.split('/').any(|part| ["tests", "tests.rs"].contains(&part));
    found.into_iter().map(read).filter(|(name, _)| !is_test(name)).collect()
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
        ("tokio_uring::fs", &["storage/uring.rs", "one_shot.rs"][..]),
        (
            "use tokio_uring",
            &[
                "storage/uring.rs",
                "storage/buffer.rs",
                "one_shot.rs",
                "shard/socket.rs",
                "load/connection.rs",
                "load/run.rs",
            ],
        ),
        ("unsafe ", &["storage/buffer.rs", "one_shot.rs", "host.rs"]),
        ("SystemTime::now", &["shard/thread.rs", "shard/handler.rs", "cli/bench.rs"]),
        (
            "Instant::now",
            &[
                "storage/device.rs",
                "server/mod.rs",
                "server/signals.rs",
                "server/space.rs",
                "shard/background.rs",
                "shard/accept.rs",
                "shard/thread.rs",
                "shard/handler.rs",
                "load/connection.rs",
                "load/run.rs",
                "backup/pace.rs",
                "load/session.rs",
                "client.rs",
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

/// The names of the modules that a source file uses from its own folder, except `mod.rs`.
fn siblings_used(name: &str, text: &str, siblings: &BTreeSet<String>) -> BTreeSet<String> {
    let (folder, file) = name.rsplit_once('/').unwrap();
    let prefixes = ["super::".to_owned(), format!("crate::{}::", folder.replace('/', "::"))];
    let code: String = code_lines(text).collect::<Vec<_>>().join("\n");
    let mut used = BTreeSet::new();
    for prefix in prefixes {
        for rest in code.split(&prefix).skip(1) {
            let path = rest.split([';', ' ', '(', '<', '>', ')']).next().unwrap();
            // `super::{a::B, c}` names several modules.
            let names = if rest.starts_with('{') { rest.split('}').next().unwrap() } else { path };
            used.extend(names.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned));
        }
    }
    used.retain(|used| siblings.contains(used) && *used != file.trim_end_matches(".rs"));
    used
}

/// Whether a path leads from `from` back to `from`. `path` then holds the modules on the way.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>, from: &str, path: &mut Vec<String>) -> bool {
    let last = path.last().map_or(from, String::as_str).to_owned();
    for next in uses.get(&last).into_iter().flatten() {
        if next == from {
            return true;
        }
        if !path.contains(next) {
            path.push(next.clone());
            if circle(uses, from, path) {
                return true;
            }
            path.pop();
        }
    }
    false
}

#[test]
fn files_of_a_folder_do_not_use_each_other_in_a_circle() {
    let sources = library();
    let mut folders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, _) in &sources {
        if let Some((folder, file)) = name.rsplit_once('/')
            && file != "mod.rs"
        {
            folders.entry(folder.into()).or_default().insert(file.trim_end_matches(".rs").into());
        }
    }
    assert!(8 < folders.len());
    for (folder, siblings) in folders {
        let mut uses = BTreeMap::new();
        for (name, text) in &sources {
            if let Some(file) = name.strip_prefix(&format!("{folder}/"))
                && siblings.contains(file.trim_end_matches(".rs"))
            {
                uses.insert(file.trim_end_matches(".rs").to_owned(), siblings_used(name, text, &siblings));
            }
        }
        for sibling in &siblings {
            let mut path = Vec::new();
            assert!(
                !circle(&uses, sibling, &mut path),
                "src/{folder}: {sibling} → {} → {sibling}",
                path.join(" → ")
            );
        }
    }
}

/// The labels of the invariants that module headers define, and the files that define them.
fn invariants() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, text) in library() {
        for line in text.lines().filter_map(|line| line.strip_prefix("//! ")) {
            let label = line.trim_start_matches("- **").split([' ', '*']).next().unwrap();
            let (letter, number) = label.split_at(label.len().min(1));
            let defines = line.starts_with("- **") || line[label.len()..].starts_with("  ");
            if defines
                && letter.chars().all(|letter| letter.is_ascii_uppercase())
                && !number.is_empty()
                && number.chars().all(|digit| digit.is_ascii_digit())
            {
                found.entry(label.into()).or_default().push(name.clone());
            }
        }
    }
    found
}

#[test]
fn each_letter_of_invariants_belongs_to_one_folder_and_numbers_have_no_gaps() {
    let mut letters: BTreeMap<char, BTreeMap<u32, Vec<String>>> = BTreeMap::new();
    for (label, files) in invariants() {
        let number = label[1..].parse().unwrap();
        letters.entry(label.chars().next().unwrap()).or_default().insert(number, files);
    }
    assert!(20 < letters.len());
    for (letter, numbers) in letters {
        assert!(numbers.keys().copied().eq(1..=numbers.len() as u32), "{letter}: {:?}", numbers.keys());
        let files: BTreeSet<&String> = numbers.values().flatten().collect();
        assert!(files.len() == 1 && numbers.values().all(|files| files.len() == 1), "{letter}: {files:?}");
    }
}

#[test]
fn every_invariant_has_a_test_that_begins_with_its_label() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    sources(&root.join("src"), &mut paths);
    sources(&root.join("tests"), &mut paths);
    let mut tested = BTreeSet::new();
    for path in paths {
        let text = fs::read_to_string(path).unwrap();
        for name in text.split("\nfn ").chain(text.split(" fn ")).skip(1) {
            let labels = name.split('_').take_while(|word| {
                let (letter, number) = word.split_at(word.len().min(1));
                letter.chars().all(|c| c.is_ascii_lowercase())
                    && !number.is_empty()
                    && number.chars().all(|c| c.is_ascii_digit())
            });
            tested.extend(labels.map(str::to_uppercase));
        }
    }
    let untested: Vec<String> = invariants().into_keys().filter(|label| !tested.contains(label)).collect();
    assert!(untested.is_empty(), "no test begins with the label of {untested:?}");
}

#[test]
fn functions_have_at_most_70_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz/src"] {
        sources(&root.join(folder), &mut paths);
    }
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let indent = &line[..line.len() - code.len()];
            let words: Vec<&str> = code.split(' ').collect();
            let begins = words.iter().position(|word| *word == "fn").is_some_and(|at| at <= 3);
            if !begins || code.starts_with("//") || code.ends_with(';') {
                continue;
            }
            // rustfmt closes a function in the column in which it began.
            let end = lines[index..].iter().position(|line| *line == format!("{indent}}}")).unwrap_or(0);
            let counts = |line: &&&str| !line.trim().is_empty() && !line.trim().starts_with("//");
            let count = lines[index..=index + end].iter().filter(counts).count();
            assert!(count <= 70 + 2, "{}: {} has {count} lines", path.display(), code);
        }
    }
}
