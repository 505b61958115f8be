//! The commands of docs/operate.md, in their order.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::folder;

/// Stands for `openssl` where there is none: random text, and a certificate that was made before.
const SHIM: &str = r#"#!/bin/sh
case $1 in
rand) od -An -N24 -tx1 /dev/urandom | tr -d ' \n' ;;
req) for word; do case $last in -keyout) cp "$CERTIFICATES/key.pem" "$word" ;; -out) cp "$CERTIFICATES/cert.pem" "$word" ;; esac; last=$word; done ;;
esac
"#;

#[test]
fn every_command_of_the_operators_page_works() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operate.md");
    let page = fs::read_to_string(page).unwrap();
    let mut script = String::from("set -eu -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n");
    let mut blocks = 0;
    for block in page.split("```sh\n").skip(1) {
        let commands = block.split("```").next().unwrap();
        let _ = writeln!(script, "{commands}"); // a string takes everything
        blocks += 1;
    }
    assert!(10 < blocks, "{blocks} blocks");
    let (folder, _) = folder();
    let root = folder.path();
    // The same places below a directory of the test, and a free port.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for place in ["/etc/ringkeep", "/var/lib/ringkeep", "/run/ringkeep", "/backup"] {
        script = script.replace(&format!(" {place}"), &format!(" {}{place}", root.display()));
        for before in ["\"", "unix:"] {
            script =
                script.replace(&format!("{before}{place}"), &format!("{before}{}{place}", root.display()));
        }
    }
    script = script.replace("8443", &port.to_string());
    for place in ["backup", "bin", "certificates"] {
        fs::create_dir(root.join(place)).unwrap();
    }
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ringkeep"), root.join("bin/ringkeep")).unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(root.join("certificates/cert.pem"), made.cert.pem()).unwrap();
    fs::write(root.join("certificates/key.pem"), made.signing_key.serialize_pem()).unwrap();
    let path = std::env::var("PATH").unwrap();
    if Command::new("openssl").arg("version").output().is_err() {
        fs::write(root.join("bin/openssl"), SHIM).unwrap();
        fs::set_permissions(root.join("bin/openssl"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let run = Command::new("bash")
        .args(["-c", &script])
        .env("PATH", format!("{}:{path}", root.join("bin").display()))
        .env("CERTIFICATES", root.join("certificates"))
        .output()
        .unwrap();
    let (said, log) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{}\n{said}\n{log}\n{script}", run.status);
    for expected in [
        "configuration is valid",
        "OK\nhello",
        "keys estimate",
        "ringkeep_build_info{",
        "compacted: ",
        "/backup/copy: sound;",
        "ringkeep-restored: data directory of store",
        "ringkeep-from-tar: data directory of store",
        "3 shards, 1 key; its backups",
        "1 loaded, 0 expired, 0 not taken",
    ] {
        assert!(said.contains(expected), "`{expected}` is not in\n{said}\n{log}");
    }
    assert!(log.contains("max-connections"), "{log}");
}
