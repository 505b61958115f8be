//! Files are taken away from a running server: its directory, its log, its manifest. The process ends with status 74,
//! acknowledges nothing after that, and does not touch the files that are now at the path.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Client, SMALL, Server, contents, folder};

/// A server whose log the test reads when the server has ended.
struct Watched {
    server: Server,
    log: PathBuf,
}

impl Watched {
    fn start(data: &Path) -> Self {
        let log = data.with_extension("log");
        Self { server: Server::start_logged(data, SMALL, &log), log }
    }

    /// Waits for the end, and checks the status and that the log names what was taken away.
    fn ends_with_74(self, what: &str, words: &str) {
        let status = self.server.wait();
        let log = fs::read_to_string(&self.log).unwrap();
        assert_eq!(status.code(), Some(74), "{what}: {log}");
        assert!(log.contains(words) && log.contains("start again"), "{what}: {log}");
    }
}

fn set(client: &mut Client, key: &str) {
    assert_eq!(client.request("POST", &format!("/set?key={key}&value=1")).status, 200);
}

/// The file of a shard whose name `matches`.
fn find(data: &Path, matches: impl Fn(&str) -> bool) -> PathBuf {
    let paths = fs::read_dir(data.join("shard-000")).unwrap().map(|entry| entry.unwrap().path());
    let found = paths.into_iter().find(|path| matches(path.file_name().unwrap().to_str().unwrap()));
    found.expect("the file is there")
}

#[test]
fn a_directory_that_was_removed_or_moved_ends_the_server_and_the_next_one_is_not_touched() {
    for moved in [false, true] {
        let (folder, data) = folder();
        let old = Watched::start(&data);
        set(&mut old.server.client(), "a");
        if moved {
            fs::rename(&data, folder.path().join("moved")).unwrap();
        } else {
            fs::remove_dir_all(&data).unwrap();
        }
        // Meanwhile another store was made at this path, and its server was stopped cleanly.
        fs::create_dir(folder.path().join("other")).unwrap();
        let other = folder.path().join("other/data");
        let server = Server::start(&other, SMALL);
        set(&mut server.client(), "b");
        server.signal("-TERM");
        assert_eq!(server.wait().code(), Some(0));
        fs::rename(&other, &data).unwrap();
        let before = contents(&data);
        let words = format!("the directory {} was moved, removed or replaced", data.display());
        old.ends_with_74(&format!("moved: {moved}"), &words);
        assert!(before == contents(&data), "the store that is now at the path is not touched");
        let server = Server::start(&data, SMALL);
        assert_eq!(server.client().request("GET", "/get?key=b").status, 200);
    }
}

#[test]
fn a_log_or_manifest_or_shard_that_was_removed_moved_or_replaced_ends_the_server() {
    type Take = fn(&Path);
    let takes: [(&str, Take); 6] = [
        ("the log is removed", |data| fs::remove_file(find(data, |name| name.ends_with(".wal"))).unwrap()),
        ("the log is moved", |data| {
            let path = find(data, |name| name.ends_with(".wal"));
            fs::rename(&path, path.with_extension("old")).unwrap();
        }),
        ("the log is replaced by its copy", |data| {
            replace_by_copy(&find(data, |name| name.ends_with(".wal")))
        }),
        ("the manifest is removed", |data| {
            fs::remove_file(find(data, |name| name.starts_with("MANIFEST"))).unwrap();
        }),
        ("the manifest is replaced by its copy", |data| {
            replace_by_copy(&find(data, |name| name.starts_with("MANIFEST")));
        }),
        ("the shard is moved", |data| {
            fs::rename(data.join("shard-000"), data.join("shard-000.old")).unwrap();
        }),
    ];
    for (what, take) in takes {
        let (_folder, data) = folder();
        let server = Watched::start(&data);
        set(&mut server.server.client(), "a");
        take(&data);
        server.ends_with_74(what, "this process was using it");
    }
}

/// Replaces a file as `rsync` and many editors do: the bytes are the same, but it is another file.
fn replace_by_copy(path: &Path) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    fs::rename(&copy, path).unwrap();
}

#[test]
fn p1_nothing_is_acknowledged_in_a_log_that_was_removed_or_cut() {
    for cut in [false, true] {
        let (_folder, data) = folder();
        let server = Watched::start(&data);
        // Keys of both shards.
        let mut client = server.server.client();
        (0..20).for_each(|key| set(&mut client, &format!("k{key}")));
        for shard in ["shard-000", "shard-001"] {
            for entry in fs::read_dir(data.join(shard)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|end| end == "wal") {
                    if cut {
                        fs::File::options().write(true).open(&path).unwrap().set_len(16 << 10).unwrap();
                    } else {
                        fs::remove_file(&path).unwrap();
                    }
                }
            }
        }
        for key in 0..20 {
            client.send(format!("POST /set?key=k{key}&value=2 HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            match client.try_reply(false) {
                Some(reply) => assert_eq!(reply.status, 500, "cut: {cut}: {}", reply.text()),
                None => break, // the server has ended
            }
        }
        server.ends_with_74(&format!("cut: {cut}"), if cut { "was cut to" } else { "removed or replaced" });
    }
}

#[test]
fn a_stop_does_not_hide_that_the_directory_was_moved() {
    let (folder, data) = folder();
    let server = Watched::start(&data);
    set(&mut server.server.client(), "a");
    fs::rename(&data, folder.path().join("moved")).unwrap();
    server.server.signal("-TERM");
    server.ends_with_74("a stop", "moved, removed or replaced");
}

#[test]
fn p1_a_backup_restored_over_a_running_server_ends_it() {
    let (folder, data) = folder();
    let server = Server::start(&data, SMALL);
    set(&mut server.client(), "old");
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    let backup: Vec<_> = contents(&data).into_iter().collect();

    let server = Watched::start(&data);
    set(&mut server.server.client(), "new");
    // Files that are not in the backup are removed; every other file is written elsewhere, and then renamed to its
    // path.
    for path in contents(&data).into_keys() {
        if !backup.iter().any(|(kept, _)| *kept == path) {
            fs::remove_file(path).unwrap();
        }
    }
    for (path, bytes) in &backup {
        let temporary = folder.path().join("restored");
        fs::write(&temporary, bytes).unwrap();
        fs::rename(&temporary, path).unwrap();
    }
    server.ends_with_74("a restored backup", "this process was using it");
    let restored: Vec<_> = contents(&data).into_iter().collect();
    assert!(restored == backup, "the restored files are not touched");
    let server = Server::start(&data, SMALL);
    assert_eq!(server.client().request("GET", "/get?key=old").status, 200);
    assert_eq!(server.client().request("GET", "/get?key=new").status, 404);
}
