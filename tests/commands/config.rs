//! Settings from a file and the environment: `ringkeep config`, exit statuses, and SIGHUP.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::common::{PATIENCE, SMALL, Server, folder};
use rustix::process::Signal;

/// Runs the binary to its end, with an environment of its own. Returns its status, and what it says on standard output and
/// standard error.
fn run(variables: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringkeep"));
    let output = command.env_clear().envs(variables.iter().copied()).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn file(folder: &Path, text: &str) -> String {
    let path = folder.join("ringkeep.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The line of `config show` for one setting, word by word.
fn line_of(shown: &str, name: &str) -> Vec<String> {
    let line = shown.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn show_names_the_source_of_each_value() {
    let (folder, _) = folder();
    let path =
        file(folder.path(), "# mine\nmemory = \"300MiB\"\nlisten = [\"127.0.0.1:0\", \"127.0.0.2:0\"]\n");
    let variables = [("RINGKEEP_THREADS", "1"), ("RINGKEEP_CONFIG", &path)];
    let (status, shown, said) = run(&variables, &["config", "show", "--sync", "never"]);
    assert_eq!((status, &*said), (Some(0), ""));
    for (name, value, source) in [
        ("memory", "300MiB", &*format!("{path}:2")),
        ("listen", "127.0.0.1:0,127.0.0.2:0", &format!("{path}:3")),
        ("threads", "1", "RINGKEEP_THREADS"),
        ("sync", "never", "--sync"),
        ("max-connections", "10000", "default"),
    ] {
        assert_eq!(line_of(&shown, name), [name, value, source]);
    }
    assert_eq!(line_of(&shown, "token-file").join(" "), "token-file (requests need no token) default");
    let (_, shown, _) = run(&variables, &["config", "show", "--json", "--insecure"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let of = |name: &str| {
        let all = shown.as_array().unwrap();
        all.iter().find(|setting| setting["name"] == name).unwrap().clone()
    };
    assert_eq!(of("listen")["value"], serde_json::json!(["127.0.0.1:0", "127.0.0.2:0"]));
    assert_eq!(
        (of("insecure")["value"].as_bool(), of("insecure")["source"].as_str()),
        (Some(true), Some("--insecure"))
    );
    assert!(of("token-file")["value"].is_null());
}

#[test]
fn check_says_what_a_start_would_say_and_touches_nothing() {
    let (folder, data) = folder();
    let data = data.to_str().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "a admin 0123456789abcdef\n").unwrap();
    let tokens = tokens.to_str().unwrap();
    let at_mode = |mode| fs::set_permissions(tokens, fs::Permissions::from_mode(mode)).unwrap();
    at_mode(0o600);
    let check = |text: &str, flags: &[&str]| {
        let path = file(folder.path(), text);
        let flags = [&["config", "check", "--data-dir", data, "--config", &path], flags].concat();
        let (status, shown, said) = run(&[], &flags);
        assert!(!Path::new(data).exists(), "nothing is created");
        assert_eq!(shown.starts_with("configuration is valid: "), status == Some(0), "{shown}{said}");
        (status, said)
    };
    let (status, said) = check(&format!("token-file = \"{tokens}\"\nlisten = \":0\"\n"), &[]);
    assert_eq!((status, &*said), (Some(0), ""));
    for (text, flags, expected, hint) in [
        ("memory = \"1KiB\"", &[][..], 78, "--memory 1.0 KiB is too small"),
        ("listen = [\":0\"]", &[], 78, "--token-file"),
        ("listen = [\"127.0.0.1:80\", \"127.0.0.1:80\"]", &[], 78, "twice"),
        ("\nmemroy = 1", &[], 78, "ringkeep.toml:2: there is no setting `memroy`; is `memory` meant?"),
        ("", &["--token-file", "/nowhere/tokens"], 78, "/nowhere/tokens"),
        ("", &["--tls-cert", tokens, "--tls-key", tokens], 78, "certificate"),
        ("", &["--memtable-size", "1KiB"], 2, "expected 1.0 MiB to 4.0 GiB"),
        ("", &["--max-connections", "0"], 2, "--max-connections"),
        ("memtable-size = \"1KiB\"", &[], 78, "expected 1.0 MiB to 4.0 GiB"),
        ("idle-timeout = \"0s\"", &[], 78, "expected 1s to 1day"),
    ] {
        let (status, said) = check(text, flags);
        assert!(status == Some(expected) && said.contains(hint), "{text} {flags:?}: {status:?} {said}");
    }
    at_mode(0o644);
    assert_eq!(check("", &["--token-file", tokens]).0, Some(78));
    if !rustix::process::geteuid().is_root() {
        at_mode(0o000);
        assert_eq!(check("", &["--token-file", tokens]).0, Some(77));
    }
    let (status, said) = check("insecure = true\nshutdown = \"any\"\nmemory = \"1000TiB\"", &[]);
    assert_eq!(status, Some(0));
    for word in ["--insecure", "--shutdown any", "--memory"] {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn a_server_is_set_up_by_file_and_environment_alone() {
    let (folder, data) = folder();
    let text = format!("data-dir = \"{}\"\nlisten = [\"127.0.0.1:0\"]\nmax-value-size = 5\n", data.display());
    let path = file(folder.path(), &text);
    let config = format!("RINGKEEP_CONFIG={path}");
    let log = folder.path().join("log");
    // Flags of the tests come first; `env -i` takes away what `common` has set.
    let script = format!("exec \"$0\" 2>{}", log.display());
    let wrapper = ["env", "-i", &config, "RINGKEEP_THREADS=1", "RINGKEEP_MEMROY=1", "sh", "-c", &script];
    let server = Server::start_by(&wrapper, &data, &[]);
    assert_eq!(server.client().request("POST", "/set?key=k&value=12345").status, 200);
    assert_eq!(server.client().request("POST", "/set?key=k&value=123456").status, 413);
    assert!(data.join("shard-000").exists() && !data.join("shard-001").exists());
    server.signal("-TERM");
    assert!(server.wait().success());
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.contains("RINGKEEP_MEMROY (is RINGKEEP_MEMORY meant?) in the environment is not a setting"),
        "{log}"
    );
    assert!(log.contains("SIGTERM: the server stops"), "{log}");
}

#[test]
fn sighup_applies_what_can_change_and_names_what_cannot() {
    let (folder, data) = folder();
    let path = file(folder.path(), "max-connections = 100\nlog = \"info\"\n");
    let log = data.with_extension("log");
    let flags = [SMALL, &["--config", &path, "--head-timeout", "20s"]].concat();
    let script = format!("unset RINGKEEP_LOG; exec \"$0\" \"$@\" 2>{}", log.display());
    let server = Server::start_by(&["sh", "-c", &script], &data, &flags);
    let logged = || fs::read_to_string(&log).unwrap();
    let reload = |text: &str, awaited: &str| {
        fs::write(&path, text).unwrap();
        server.raw_signal(Signal::HUP);
        let begin = Instant::now();
        while !logged().contains(awaited) {
            assert!(begin.elapsed() < PATIENCE, "{awaited}\n{}", logged());
        }
    };
    let open = server.client();
    reload("max-connections = 1\nlog = \"warn\"\nidle-timeout = \"x\"\n", "ringkeep.toml:3");
    assert!(logged().contains("nothing was changed"));
    assert!(!logged().contains("max-connections:"), "{}", logged());
    assert_eq!(server.client().request("GET", "/livez").status, 200);

    // A flag takes precedence over the file, so the time for a head stays.
    let text = "max-connections = 1\nmemory = \"1GiB\"\nhead-timeout = \"1s\"\ndata-dir = \"/other\"\nlog = \"debug\"\n\
        shutdown = \"off\"\n";
    reload(text, "only after a restart: ");
    let said = logged();
    assert!(said.contains("max-connections: 100 → 1\n"), "{said}");
    assert!(said.contains("log: info → debug\n") && said.contains("shutdown: local → off\n"), "{said}");
    assert!(said.contains("only after a restart: memory\n"), "{said}");
    assert!(!said.contains("head-timeout:") && !said.contains("Some("), "{said}");
    let begin = Instant::now();
    while server.client().reply().status != 503 {
        assert!(begin.elapsed() < PATIENCE, "the limit does not change");
    }
    drop(open);
    let begin = Instant::now();
    let refused = loop {
        let reply = server.client().request("GET", "/shutdown");
        if reply.status != 503 {
            break reply.status;
        }
        assert!(begin.elapsed() < PATIENCE, "the place stays taken");
    };
    assert_eq!(refused, 403);
    server.signal("-TERM");
    assert!(server.wait().success());
}

#[test]
fn sighup_does_not_give_up_tokens_and_is_not_blocked_by_a_pipe() {
    for places in [&["--listen", "127.0.0.1:0", "--listen", "0.0.0.0:0"][..], &["--listen", "127.0.0.1:0"]] {
        tokens_stay(places);
    }
}

fn tokens_stay(places: &[&str]) {
    let (folder, data) = folder();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "a admin 0123456789abcdef\n").unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let path = file(folder.path(), &format!("token-file = \"{}\"\n", tokens.display()));
    let log = data.with_extension("log");
    let flags = [SMALL, &["--config", &path], places].concat();
    let server = Server::start_logged(&data, &flags, &log);
    fs::write(&path, "").unwrap();
    server.raw_signal(Signal::HUP);
    let begin = Instant::now();
    while !fs::read_to_string(&log).unwrap().contains("nothing was changed") {
        assert!(begin.elapsed() < PATIENCE, "the server does not refuse");
    }
    assert_eq!(server.client().request("GET", "/get?key=k").status, 401);
    fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    server.raw_signal(Signal::HUP);
    while !fs::read_to_string(&log).unwrap().contains("no regular file") {
        assert!(begin.elapsed() < PATIENCE, "the server waits for the pipe");
    }
    assert_eq!(server.client().request("GET", "/get?key=k").status, 401);
}
