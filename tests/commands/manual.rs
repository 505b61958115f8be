//! `ringkeep completions` and `ringkeep man`: every command and flag is in them.

use std::process::Command;

use crate::common::command::{path, run};

fn text(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands, as `--help` lists them.
fn commands() -> Vec<String> {
    let help = text(&["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<_> = list
        .lines()
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect();
    assert!(names.contains(&"inspect".into()) && names.contains(&"help".into()), "{names:?}");
    names.into_iter().filter(|name| name != "help").collect()
}

#[test]
fn every_command_has_a_page_with_its_flags_and_the_exit_statuses() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    assert_eq!(text(&["man", "--dir", path(&pages)]), "", "the directory is created");
    let read = |name: &str| std::fs::read_to_string(pages.join(name)).unwrap();
    for command in commands() {
        let page = read(&format!("ringkeep-{command}.1"));
        assert_eq!(page, text(&["man", &command]));
        assert!(page.contains(&format!("ringkeep {command}")) && page.contains("EXIT STATUS"), "{page}");
        for flag in text(&[&command, "--help"]).split_whitespace().filter(|word| word.starts_with("--")) {
            let flag = flag.trim_end_matches(|c: char| !c.is_ascii_lowercase()).replace('-', "\\-");
            assert!(page.contains(&flag), "{command}: {flag}");
        }
    }
    // A status may mean something else for a command than for the server.
    let has_table = |name: &str| read(name).contains("Another process listens on the address.");
    assert!(has_table("ringkeep.1") && has_table("ringkeep-serve.1") && !has_table("ringkeep-backup.1"));
    let page = read("ringkeep.1");
    assert_eq!(page, text(&["man"]));
    assert!(page.contains("ringkeep\\-inspect(1)") && page.contains("memtable\\-size"), "{page}");
    assert_eq!(run(&["man", "nothing"]).status.code(), Some(2));
    // man itself finds nothing to complain about, where it is installed.
    if let Ok(output) = Command::new("man").args(["--warnings", "-l"]).arg(pages.join("ringkeep.1")).output()
    {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains("warning"), "{said}");
    }
}

#[test]
fn every_shell_gets_a_script_that_knows_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&["completions", shell]);
        for command in commands() {
            assert!(script.contains(&command), "{shell}: {command}");
        }
        assert!(script.contains("memtable-size"), "{shell}");
        // The help does not show it: it only says what is meant instead.
        assert!(
            !script.contains("--port") && !script.contains("-l port") && !script.contains("port="),
            "{shell}"
        );
    }
    // bash accepts its script, and completes with it.
    let complete = "eval \"$(\"$0\" completions bash)\"; COMP_WORDS=(ringkeep insp); COMP_CWORD=1; \
                    _ringkeep ringkeep insp ringkeep; echo \"${COMPREPLY[*]}\"";
    let output =
        Command::new("bash").args(["-c", complete, env!("CARGO_BIN_EXE_ringkeep")]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "inspect\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(run(&["completions", "nothing"]).status.code(), Some(2));
}
