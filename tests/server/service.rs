//! Under a service manager: what it is told, and whether systemd understands the unit files of `deploy`.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{PATIENCE, SMALL, Server, folder};

#[test]
fn the_service_manager_is_told_of_the_start_of_every_turn_and_of_the_stop() {
    let (folder, data) = folder();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut buffer = [0; 1024];
        let count = socket.recv(&mut buffer).expect("a message comes");
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    let notify = format!("NOTIFY_SOCKET={}", path.display());
    let server = Server::start_by(&["env", &notify, "WATCHDOG_USEC=300000"], &data, SMALL);
    let ready = next();
    assert!(ready.starts_with(&format!("READY=1\nSTATUS=serving http://{}", server.address)), "{ready}");
    for _ in 0..3 {
        assert_eq!(next(), "WATCHDOG=1\n");
    }
    server.signal("-TERM");
    let stopping = std::iter::repeat_with(next).find(|message| message != "WATCHDOG=1\n").unwrap();
    assert!(stopping.starts_with("STOPPING=1\nSTATUS="), "{stopping}");
    assert!(server.wait().success());
}

#[test]
fn systemd_understands_the_units_and_they_are_confined() {
    let analyze = |arguments: &[&str], file: &Path| {
        let output = Command::new("systemd-analyze").args(arguments).arg(file).stdin(Stdio::null()).output();
        output.ok().map(|output| {
            (
                output.status.success(),
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            )
        })
    };
    let (folder, _) = folder();
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let copy = |name: &str| {
        let text = fs::read_to_string(deploy.join(name)).unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text.replace("/usr/bin/ringkeep", env!("CARGO_BIN_EXE_ringkeep"))).unwrap();
        path
    };
    let (service, socket) = (copy("ringkeep.service"), copy("ringkeep.socket"));
    let Some((_, version)) = analyze(&["--version"], Path::new("")) else {
        println!("skipped: systemd-analyze is not installed");
        return;
    };
    for unit in [&service, &socket] {
        let (sound, said) = analyze(&["verify", "--man=no"], unit).unwrap();
        assert!(sound && !said.contains("Unknown"), "{version}\n{said}");
    }
    // A score of 20 is 2.0.
    let (confined, said) = analyze(&["security", "--offline=true", "--threshold=20"], &service).unwrap();
    assert!(confined, "{said}");
}
