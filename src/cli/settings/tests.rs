use clap::FromArgMatches as _;

use super::*;
use crate::cli::serve::Serve;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn gather(flags: &[&str], environment: Pairs) -> Result<Settings> {
    let words = std::iter::once("ringkeep").chain(flags.iter().copied());
    let matches = definition::<Serve>().try_get_matches_from(words).unwrap();
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Settings::gather::<Serve>(&matches, environment)
}

/// The value in force of one setting, and its source.
fn in_force(settings: &Settings, name: &str) -> (String, String) {
    let (_, given) = settings.read::<Serve>().unwrap();
    let all = settings.in_force(&given, |_| None);
    let found = all.into_iter().find(|setting| setting.name == name).unwrap();
    (found.shown(), found.source)
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ringkeep.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

fn refusal(flags: &[&str], environment: Pairs) -> String {
    let error = gather(flags, environment).and_then(|settings| settings.read::<Serve>().map(|_| ()));
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    error.to_string()
}

#[test]
fn a_flag_counts_more_than_a_variable_a_variable_more_than_the_file_and_the_file_more_than_a_default() {
    let (_folder, path) = file("\nmemory = \"1GiB\"\nthreads = 1\nlisten = [\"127.0.0.1:1\", \"unix:/s\"]\n");
    let variables = [("RINGKEEP_CONFIG", &*path), ("RINGKEEP_MEMORY", "2GiB"), ("RINGKEEP_THREADS", "2")];
    let settings = gather(&["--memory", "3GiB"], &variables).unwrap();
    let value = |name| in_force(&settings, name);
    assert_eq!(value("memory"), ("3GiB".into(), "--memory".into()));
    assert_eq!(value("threads"), ("2".into(), "RINGKEEP_THREADS".into()));
    assert_eq!(value("listen"), ("127.0.0.1:1,unix:/s".into(), format!("{path}:4")));
    assert_eq!(value("max-connections"), ("10000".into(), "default".into()));
    assert_eq!(value("shards"), ("(number of threads)".into(), "default".into()));
    assert_eq!(value("config"), (path.clone(), "RINGKEEP_CONFIG".into()));
    let (serve, _) = settings.read::<Serve>().unwrap();
    let config = serve.config().unwrap();
    assert_eq!((config.memory_bytes, config.threads, config.listen.len()), (3 << 30, Some(2), 2));
}

#[test]
fn a_mistake_names_the_variable_or_the_line_even_if_a_flag_overrides_the_setting() {
    for (variable, value, reason) in [
        ("RINGKEEP_MEMORY", "much", "RINGKEEP_MEMORY: invalid value 'much' for '--memory <SIZE>'"),
        ("RINGKEEP_THREADS", "0", "expected a whole number from 1 to 999"),
        ("RINGKEEP_MEMTABLE_SIZE", "1KiB", "expected 1.0 MiB to 4.0 GiB"),
        ("RINGKEEP_SHUTDOWN", "maybe", "[possible values: local, token, any, off]"),
        ("RINGKEEP_INSECURE", "yes", "RINGKEEP_INSECURE: expected true or false"),
    ] {
        let said = refusal(&["--memory", "1GiB", "--threads", "1"], &[(variable, value)]);
        assert!(said.starts_with(&format!("{variable}: ")) && said.contains(reason), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    for (text, line, reason) in [
        ("memory = \"much\"", 1, "invalid value 'much'"),
        ("\n\nmemroy = \"1GiB\"", 3, "there is no setting `memroy`; is `memory` meant?"),
        ("max_connections = 5", 1, "is `max-connections` meant?"),
        ("quux = 5", 1, "there is no setting `quux`"),
        ("config = \"/other\"", 1, "there is no setting `config`"),
        ("port = 80", 1, "--listen 127.0.0.1:80"),
        ("threads = 1\nthreads = 2", 2, "duplicate key"),
        ("threads = true", 1, "`threads` is boolean, but must be a number or a string"),
        ("data-dir = 5", 1, "`data-dir` is integer, but must be a string"),
        ("insecure = \"yes\"", 1, "`insecure` is string, but must be true or false"),
        ("threads = 1\nlisten = [1]", 2, "`listen` is array, but must be an array of strings"),
        ("data-dir = [\"a\"]", 1, "must be a string"),
        ("[memory]\nsize = 1", 1, "`memory` is table"),
        ("threads = ", 1, "toml:1: "),
        ("a = 1\nb", 2, "toml:2: "),
        ("threads = 5_0_0_0", 1, "expected a whole number from 1 to 999"),
    ] {
        let (_folder, path) = file(text);
        let said = refusal(&["--config", &path, "--memory", "1GiB"], &[]);
        assert!(said.starts_with(&format!("{path}:{line}: ")) && said.contains(reason), "{text:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert!(refusal(&["--config", "/nowhere/file"], &[]).contains("/nowhere/file"));
    assert!(refusal(&["--config", "/"], &[]).contains("configuration file /"));
}

#[test]
fn numbers_and_switches_may_be_written_as_toml_has_them() {
    let text = "memory = 1073741824\nsocket-mode = 0o660\ninsecure = true\nallowed-hosts = \"a.example\"\n\
        max-connections = \"7\"\n";
    let (_folder, path) = file(text);
    let (serve, _) = gather(&["--config", &path], &[]).unwrap().read::<Serve>().unwrap();
    let config = serve.config().unwrap();
    assert_eq!((config.memory_bytes, config.socket_mode, config.insecure), (1 << 30, 0o660, true));
    assert_eq!((config.allowed_hosts, config.connections_max), (vec!["a.example".to_owned()], 7));
}

#[test]
fn a_switch_can_be_turned_off_by_a_higher_layer_and_an_empty_variable_says_nothing() {
    let (_folder, path) = file("insecure = true\nthreads = 3\n");
    let settings =
        gather(&["--config", &path], &[("RINGKEEP_INSECURE", "false"), ("RINGKEEP_THREADS", "")]).unwrap();
    assert_eq!(in_force(&settings, "insecure"), ("false".into(), "RINGKEEP_INSECURE".into()));
    assert_eq!(in_force(&settings, "threads").0, "3");
}

#[test]
fn tokens_are_never_given_up_without_a_word() {
    let (_folder, path) = file("token-file = \"/tokens\"\n");
    let said = refusal(&["--config", &path, "--insecure"], &[]);
    assert!(said.contains("(--insecure)") && said.contains(&format!("({path}:1)")), "{said}");
    let said = refusal(&["--config", &path], &[("RINGKEEP_INSECURE", "1")]);
    assert!(said.contains("(RINGKEEP_INSECURE)"), "{said}");

    let credentials = tempfile::tempdir().unwrap();
    std::fs::write(credentials.path().join("ringkeep-tokens"), "").unwrap();
    let variables = [("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap())];
    assert!(refusal(&["--insecure"], &variables).contains("(credential ringkeep-tokens)"));
    let settings = gather(&[], &variables).unwrap();
    assert_eq!(in_force(&settings, "token-file").1, "credential ringkeep-tokens");
    let settings = gather(&["--token-file", "/other"], &variables).unwrap();
    assert_eq!(in_force(&settings, "token-file").0, "/other");

    // The other way round nothing is given up: who asks for tokens gets them.
    let (_folder, path) = file("insecure = true\n");
    let settings = gather(&["--config", &path, "--token-file", "/tokens"], &[]).unwrap();
    assert_eq!(in_force(&settings, "token-file"), ("/tokens".into(), "--token-file".into()));
    assert_eq!(in_force(&settings, "insecure"), ("false".into(), "default".into()));
    let (_folder, path) = file("insecure = true\ntoken-file = \"/tokens\"\n");
    assert!(refusal(&["--config", &path], &[]).contains("exclude each other"));
}

#[test]
fn a_variable_that_is_no_setting_is_told_unless_a_cluster_has_set_it() {
    let cluster = [
        ("RINGKEEP_PORT", "tcp://10.0.0.1:8080"),
        ("RINGKEEP_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("RINGKEEP_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("RINGKEEP_SERVICE_HOST", "10.0.0.1"),
        ("RINGKEEP_SERVICE_PORT", "8080"),
        ("RINGKEEP_SERVICE_PORT_HTTP", "8080"),
        ("RINGKEEP_HEADLESS_PORT_53_UDP_PROTO", "udp"),
        ("RINGKEEP_HEADLESS_SERVICE_HOST", "10.0.0.1"),
        ("RINGKEEPER_MEMORY", "1"),
        ("PATH", "/bin"),
    ];
    assert_eq!(gather(&[], &cluster).unwrap().unknown, Vec::<String>::new());
    let mine = [("RINGKEEP_MEMROY", "1GiB"), ("RINGKEEP_PORT", "8080"), ("RINGKEEP_memory", "1")];
    let unknown = gather(&[], &mine).unwrap().unknown;
    assert_eq!(unknown.len(), 3, "{unknown:?}");
    assert!(unknown.contains(&"RINGKEEP_MEMROY (is RINGKEEP_MEMORY meant?)".to_owned()), "{unknown:?}");
}

#[test]
fn every_setting_has_a_variable_and_a_key_that_lead_to_the_same_setting() {
    let definition = definition::<Serve>();
    let names: Vec<String> = known(&definition).map(|(name, _)| name.to_owned()).collect();
    assert!(25 < names.len());
    for (name, arg) in known(&definition) {
        let variable = variable_of(name);
        assert!(variable.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'), "{variable}");
        if let Some(default) = arg.get_default_values().first().filter(|_| !is_switch(arg)) {
            let settings = gather(&[], &[(&variable, default.to_str().unwrap())]).unwrap();
            let shown = in_force(&settings, name);
            assert_eq!(shown, (default.to_str().unwrap().into(), variable), "{name}");
        }
    }
    let matches = definition.try_get_matches_from(["ringkeep"]).unwrap();
    assert!(Serve::from_arg_matches(&matches).is_ok());
}
