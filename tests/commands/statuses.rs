//! The exit statuses that the help of a command names, each reproduced, except 74: a manifest that cannot be written takes
//! a disk that fails.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::common::certificates::secret_file;
use crate::common::command::{path, run, succeeds, text};
use crate::common::{SMALL, Server, contents, folder};

const READER: &str = "reader-secret-0123";

/// A command, and the statuses with which it has ended.
struct Tried {
    command: &'static str,
    found: BTreeSet<i32>,
}

impl Tried {
    fn new(command: &'static str) -> Self {
        Self { command, found: BTreeSet::new() }
    }

    /// Runs the command, and expects this status, and these words in what it prints.
    fn expect(&mut self, arguments: &[&str], status: i32, words: &str) -> Output {
        let output = run(&[&[self.command], arguments].concat());
        let (found, said) = (output.status.code(), text(&output));
        assert!(found == Some(status) && said.contains(words), "{} {arguments:?}: {said}", self.command);
        self.found.insert(status);
        output
    }

    /// Expects that the command is denied a directory that only root may look into. Nothing is denied to root.
    fn expect_denial(&mut self, directory: &Path, arguments: &[&str]) {
        if rustix::process::geteuid().is_root() {
            self.found.insert(77);
            return;
        }
        fs::set_permissions(directory, Permissions::from_mode(0o000)).unwrap();
        self.expect(arguments, 77, path(directory));
        fs::set_permissions(directory, Permissions::from_mode(0o700)).unwrap();
    }

    /// Expects that the help names what was found, and `others`.
    fn expect_documented(mut self, others: &[i32]) {
        let help = succeeds(run(&[self.command, "--help"]));
        let statuses = help.split("Exit status").nth(1).expect("the help has statuses");
        let statuses = statuses.split("\n\n").next().unwrap().split_whitespace();
        let named = statuses.filter_map(|word| word.strip_suffix(':')?.parse().ok());
        self.found.extend(others);
        assert_eq!(named.collect::<BTreeSet<i32>>(), self.found, "{}: {help}", self.command);
    }
}

/// Starts a server with some values.
fn filled(data: &Path) -> Server {
    let server = Server::start(data, &[SMALL, &["--shards", "1"]].concat());
    let mut client = server.client();
    for number in 0..500 {
        let target = format!("/set?key=k{number}&value={}", format!("{number}-").repeat(30));
        assert_eq!(client.request("POST", &target).status, 200);
    }
    server
}

/// Makes a store that no server has open.
fn at_rest(data: &Path) {
    let server = filled(data);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
}

/// Makes a store with a damaged sorted file.
fn damaged(data: &Path) {
    at_rest(data);
    damage(data);
}

/// Changes a byte of a sorted file.
fn damage(data: &Path) {
    let is_sst = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sst");
    let (file, mut bytes) = contents(data).into_iter().find(|(path, _)| is_sst(path)).unwrap();
    bytes[100] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// Makes a directory that looks like a restore that has not finished, and that has a file in the place of a shard.
fn in_the_way(at: &Path) {
    fs::create_dir(at).unwrap();
    fs::write(at.join("BACKUP"), "restore").unwrap();
    fs::write(at.join("shard-000"), "").unwrap();
}

#[test]
fn every_status_of_restore_is_documented() {
    let (folder, data) = folder();
    let to = |name: &str| folder.path().join(name);
    let server = filled(&data);
    let (url, backup) = (format!("http://{}", server.address), to("backup"));
    succeeds(run(&["backup", "--copy", "--url", &url, path(&backup)]));
    let mut restore = Tried::new("restore");
    restore.expect(&[path(&backup), path(&to("new"))], 0, "data directory of store");
    restore.expect(&[path(&backup), path(&data)], 75, "in use");
    restore.expect(&[path(&backup), path(folder.path())], 73, "not empty");
    restore.expect(&[path(&backup), "/proc/nowhere"], 73, "/proc/nowhere");
    restore.expect(&[path(&to("nothing")), path(&to("b"))], 78, "nothing");
    fs::write(to("archive"), "").unwrap();
    restore.expect(&[path(&to("archive")), path(&to("b"))], 78, "ringkeep restore - ");
    in_the_way(&to("odd"));
    restore.expect(&[path(&backup), path(&to("odd"))], 1, "shard-000");
    restore.expect_denial(&backup, &[path(&backup), path(&to("c"))]);
    damage(&backup);
    restore.expect(&[path(&backup), path(&to("d"))], 65, "is damaged");
    restore.expect_documented(&[74]);
}

#[test]
fn every_status_of_dump_is_documented() {
    let (folder, data) = folder();
    let to = |name: &str| folder.path().join(name);
    at_rest(&data);
    let mut dump = Tried::new("dump");
    let output = dump.expect(&[path(&data)], 0, "\"key\":\"k499\"");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 500);
    dump.expect(&[path(&data), "--output", path(&to("nowhere/lines"))], 1, "nowhere/lines");
    dump.expect(&[path(&data), "--output", "/dev/full"], 1, "/dev/full");
    dump.expect(&[path(&to("nothing"))], 78, "nothing");
    fs::write(to("lines.part"), "{\"key\":\"a\",\"value\":\"of another store\"}\n").unwrap();
    dump.expect(&[path(&data), "--output", path(&to("lines")), "--resume"], 78, "lines.part");
    let server = Server::start(&data, SMALL);
    dump.expect(&[path(&data)], 75, "in use");
    server.kill();
    dump.expect_denial(&data, &[path(&data)]);
    damaged(&to("damaged"));
    dump.expect(&[path(&to("damaged"))], 65, "damaged");
    dump.expect_documented(&[]);
}

#[test]
fn every_status_of_load_is_documented_and_what_is_wrong_with_a_line_is_said() {
    let (folder, data) = folder();
    let to = |name: &str| folder.path().join(name);
    let tokens = to("tokens");
    secret_file(&tokens, &format!("reader read {READER}\nwriter write writer-secret-0123\n"));
    let server = Server::start(&data, &[SMALL, &["--token-file", path(&tokens)]].concat());
    secret_file(&to("reader"), READER);
    secret_file(&to("writer"), "writer-secret-0123");
    let (url, lines, reader, writer) =
        (format!("http://{}", server.address), to("lines"), to("reader"), to("writer"));
    let (lines, reader, writer) = (path(&lines), path(&reader), path(&writer));
    let mut load = Tried::new("load");
    for (line, words) in [
        (&b"{\"key\":\"k\""[..], "lines:1: the JSON ends too early"),
        (
            b"key,value",
            "lines:1: it cannot be read from column 1 on (expected value at line 1 column 1); expected an object such as {",
        ),
        (b"[1]", "lines:1: it is no JSON object; expected"),
        (
            b"{\"key\":\"k\",\"value64\":\"a-b=\"}",
            "`value64` is no base64 with padding (RFC 4648): character 2 is '-'",
        ),
        (b"{\"key\":\"k\",\"value64\":\"YQ\"}", "its length is no multiple of four"),
        (b"{\"key\":\"\xff\",\"value\":\"v\"}", "byte 9 of the line is not of UTF-8"),
    ] {
        fs::write(lines, line).unwrap();
        load.expect(&[lines, "--url", &url, "--token-file", writer], 1, words);
    }
    fs::write(lines, "{\"key\":\"k\",\"value\":\"v\"}\n").unwrap();
    load.expect(&[lines, "--url", &url, "--token-file", writer], 0, "1 loaded");
    load.expect(&[lines, "--url", &url, "--token-file", reader], 77, "403");
    load.expect(&[lines, "--url", &url, "--token-file", path(&to("nothing"))], 78, "nothing");
    load.expect(&[lines, "--url", "https://127.0.0.1:1"], 78, "--tls-ca");
    load.expect(&[lines, "--url", "http://127.0.0.1:1"], 1, "does the server run");
    load.expect(&[path(&to("nothing")), "--url", &url, "--token-file", writer], 1, "nothing");
    load.expect_documented(&[]);
}

#[test]
fn every_status_of_reshard_is_documented() {
    let (folder, data) = folder();
    let to = |name: &str| folder.path().join(name);
    at_rest(&data);
    let mut reshard = Tried::new("reshard");
    reshard.expect(&[path(&data), "--shards", "1"], 78, "has 1 shard already");
    reshard.expect(&[path(&to("nothing")), "--shards", "2"], 78, "nothing");
    reshard.expect(&[path(&data), "--shards", "2", "--to", path(folder.path())], 73, "not empty");
    in_the_way(&to("odd"));
    reshard.expect(&[path(&data), "--shards", "2", "--to", path(&to("odd"))], 1, "shard-000");
    reshard.expect_denial(&data, &[path(&data), "--shards", "2", "--to", path(&to("new"))]);
    reshard.expect(&[path(&data), "--shards", "2"], 0, "2 shards, 500 keys");
    let server = Server::start(&data, SMALL);
    reshard.expect(&[path(&data), "--shards", "3"], 75, "in use");
    server.kill();
    damaged(&to("damaged"));
    reshard.expect(&[path(&to("damaged")), "--shards", "2"], 65, "damaged");
    assert!(!to("damaged.reshard").exists(), "what was built of the new store takes no room");
    reshard.expect_documented(&[74]);
}

#[test]
fn a_value_that_is_none_says_what_is_expected() {
    for (words, expected) in [
        (&["serve", "--memory", "lots"][..], "expected a size, as in 64MiB or 1.5GB"),
        (&["serve", "--cache-size", "5XB"], "expected a size, as in 64MiB or 1.5GB"),
        (&["serve", "--threads", "x"], "expected a whole number from 1 to 999"),
        (&["serve", "--max-connections", "1.5"], "expected a whole number of at least 1, and"),
        (&["serve", "--drain-timeout", "5"], "expected a duration, as in 100ms or 5m"),
        (&["backup", "b", "--rate", "fast"], "expected a size, as in 64MiB or 1.5GB"),
        (&["load", "--connections", "0"], "expected a whole number from 1 to 256"),
        (&["load", "--from-redis", "localhost"], "expected a host and a port, as in 127.0.0.1:6379"),
        (&["dump", "d", "--rate", "0"], "expected a whole number of at least 1, and"),
        (&["reshard", "d", "--shards", "-"], "expected a whole number from 1 to 999"),
        (&["inspect", "d", "--shard", "x"], "expected a whole number from 0 to 998"),
        (&["bench", "read", "--duration", "10"], "expected a duration, as in 100ms or 5m"),
        (&["bench", "read", "--value-size", "x"], "expected one such as 100 or 64KiB"),
        (&["bench", "read", "--seed", "x"], "expected a whole number of at least 0, and"),
    ] {
        let output = run(words);
        let said = text(&output);
        assert!(output.status.code() == Some(2) && said.contains(expected), "{words:?}: {said}");
        assert!(said.contains(&format!("'{}'", words[words.len() - 1])), "{words:?}: {said}");
    }
    for (words, expected) in [
        (&["load", "--resume", "-"][..], "--resume needs a file"),
        (&["dump", "d", "--resume", "--output", "/dev/null"], "--resume needs a file"),
        (&["man", "nosuch"], "there is no command \"nosuch\""),
    ] {
        let output = run(words);
        let said = text(&output);
        assert!(output.status.code() == Some(2) && said.contains(expected), "{words:?}: {said}");
    }
}
