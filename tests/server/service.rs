//! Under a service manager: what it is told, and whether systemd understands the unit files of `deploy`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::halt::Halted;
use crate::common::{PATIENCE, SMALL, Server, folder};

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    variable: String,
}

impl Manager {
    /// A manager whose socket is at `path`.
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        Self { socket, variable: format!("NOTIFY_SOCKET={}", path.display()) }
    }

    /// Starts a server that has a watchdog.
    fn start(&self, data: &Path, watchdog: &str) -> Server {
        Server::start_by(&["env", &self.variable, watchdog], data, SMALL)
    }

    /// The next message; `None` if none comes within `time`.
    fn next_within(&self, time: Duration) -> Option<String> {
        let mut buffer = [0; 1024];
        self.socket.set_read_timeout(Some(time)).unwrap();
        match self.socket.recv(&mut buffer) {
            Ok(count) => Some(String::from_utf8_lossy(&buffer[..count]).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn next(&self) -> String {
        self.next_within(PATIENCE).expect("a message comes")
    }
}

#[test]
fn the_service_manager_is_told_of_the_start_of_every_turn_and_of_the_stop() {
    let (folder, data) = folder();
    let manager = Manager::new(&folder.path().join("notify"));
    let server = manager.start(&data, "WATCHDOG_USEC=300000");
    let ready = manager.next();
    assert!(ready.starts_with(&format!("READY=1\nSTATUS=serving http://{}", server.address)), "{ready}");
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1\n");
    }
    server.signal("-TERM");
    let stopping =
        std::iter::repeat_with(|| manager.next()).find(|message| message != "WATCHDOG=1\n").unwrap();
    assert!(stopping.starts_with("STOPPING=1\nSTATUS="), "{stopping}");
    assert!(server.wait().success());
}

#[test]
fn a_thread_that_hangs_is_never_fed_for_and_feeding_goes_on_with_the_thread() {
    let (folder, data) = folder();
    let manager = Manager::new(&folder.path().join("notify"));
    let server = manager.start(&data, "WATCHDOG_USEC=150000");
    assert!(manager.next().starts_with("READY=1\n"));
    assert_eq!(manager.next(), "WATCHDOG=1\n");
    let halted = match Halted::new(&server, "ringkeep-1") {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            println!("skipped: this system does not allow ptrace");
            return;
        }
        halted => halted.unwrap(),
    };
    // Messages that are in the socket already, and one more: the thread may have answered just before it was halted.
    while manager.next_within(Duration::from_millis(1)).is_some() {}
    manager.next_within(Duration::from_millis(600));
    // The absence of a message takes time to be seen: this is nine periods of the watchdog.
    assert_eq!(manager.next_within(Duration::from_millis(1_350)), None);
    drop(halted);
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1\n");
    }
    assert_eq!(server.client().request("GET", "/livez").status, 200);
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
