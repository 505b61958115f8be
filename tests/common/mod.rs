//! A server process under test, and a client that sends and receives bytes. For tests on simulated storage: a shard to
//! build scenarios from ([`sim`]), lives that end by crashes ([`lives`]), and a world that has to agree with a sorted
//! map ([`world`]).
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this module")]

pub mod campaign;
pub mod cases;
pub mod certificates;
pub mod command;
pub mod halt;
pub mod journal;
pub mod lives;
pub mod sim;
pub mod world;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A number from the environment, for runs longer than those of `cargo test`.
pub fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() { default } else { text.parse().unwrap_or_else(|_| panic!("{name} is not a number")) }
}

/// A line of the reliability table: what was tried, how often, and with which result.
#[derive(Debug, Clone, Default)]
pub struct Row {
    pub name: &'static str,
    pub runs: u64,
    pub acknowledged: u64,
    pub lost: u64,
    pub wrong: u64,
    /// Cases of damage that were noticed: refused or reported.
    pub detected: u64,
    pub seconds: Duration,
}

impl Row {
    /// Prints the line, and appends it to the file that `RINGKEEP_REPORT` names.
    ///
    /// # Panics
    /// If anything was lost or wrong.
    pub fn report(self) {
        let Self { name, runs, acknowledged, lost, wrong, detected, seconds } = self;
        let seconds = seconds.as_secs_f64();
        let line = format!("{name}\t{runs}\t{acknowledged}\t{lost}\t{wrong}\t{detected}\t{seconds:.0}\n");
        print!("{line}");
        if let Some(path) = std::env::var_os("RINGKEEP_REPORT") {
            let file = std::fs::File::options().create(true).append(true).open(path);
            file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
        }
        assert_eq!((lost, wrong), (0, 0), "{name}");
    }
}

/// No answer of the server takes this long. Without this limit, a server that hangs would hang the tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. It is killed when the test ends.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    /// Starts the real binary on a free port and waits until it prints its address.
    pub fn start(data_dir: &Path, flags: &[&str]) -> Self {
        Self::announced(spawn(data_dir, flags))
    }

    /// Starts a server that writes its log to a file.
    pub fn start_logged(data_dir: &Path, flags: &[&str], log: &Path) -> Self {
        Self::announced(spawn_with(&[], data_dir, flags, std::fs::File::create(log).unwrap().into(), 1))
    }

    /// Starts a server in a memory cgroup.
    pub fn start_confined(data_dir: &Path, flags: &[&str], cgroup: &Path) -> Self {
        let enter = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        let wrapper = ["sh", "-c", enter, cgroup.to_str().unwrap()];
        Self::announced(spawn_with(&wrapper, data_dir, flags, Stdio::inherit(), 1))
    }

    /// Starts a server with a limit on open files.
    pub fn start_limited(data_dir: &Path, flags: &[&str], open_files: u32) -> Self {
        let limited = format!("ulimit -n {open_files} && exec \"$0\" \"$@\"");
        Self::announced(spawn_with(&["sh", "-c", &limited], data_dir, flags, Stdio::inherit(), 1))
    }

    /// Starts a server by another program, which gets the command line of the server as its arguments.
    pub fn start_by(wrapper: &[&str], data_dir: &Path, flags: &[&str]) -> Self {
        Self::announced(spawn_with(wrapper, data_dir, flags, Stdio::inherit(), 1))
    }

    /// Starts a server that listens at several places, and returns them as it prints them.
    pub fn start_at(data_dir: &Path, flags: &[&str], count: usize) -> (Self, Vec<String>) {
        let (child, lines) = spawn_with(&[], data_dir, flags, Stdio::inherit(), count);
        let places: Vec<_> =
            lines.lines().filter_map(|line| line.strip_prefix("listening on ")).map(str::to_owned).collect();
        assert_eq!(places.len(), count, "{lines:?}");
        let address = |place: &String| place.split_once("://").and_then(|(_, rest)| rest.parse().ok());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = places.iter().find_map(address).unwrap_or(any);
        (Self { child, address }, places)
    }

    fn announced((mut child, line): (Child, String)) -> Self {
        let Some(address) = line.trim().strip_prefix("listening on http://") else {
            let status = child.wait().unwrap();
            panic!("the server did not start: {line:?}, {status}");
        };
        let address = address.parse().unwrap();
        Self { child, address }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: &str) {
        let signal = match signal {
            "-TERM" => rustix::process::Signal::TERM,
            "-INT" => rustix::process::Signal::INT,
            "-STOP" => rustix::process::Signal::STOP,
            "-CONT" => rustix::process::Signal::CONT,
            other => panic!("{other} is not a signal of these tests"),
        };
        self.raw_signal(signal);
    }

    pub fn raw_signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Lowers a limit of the running server.
    pub fn limit(&self, resource: rustix::process::Resource, most: u64) {
        let limit = rustix::process::Rlimit { current: Some(most), maximum: Some(most) };
        rustix::process::prlimit(Some(self.pid()), resource, limit).unwrap();
    }

    /// Waits until the server ends, for `PATIENCE` at most.
    pub fn wait(mut self) -> ExitStatus {
        let begin = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // the server may have ended already
        let _ = self.child.wait();
    }
}

/// Starts the binary. Returns the process, and the first line that it prints. The line is empty if the process ends
/// before it prints one.
pub fn spawn(data_dir: &Path, flags: &[&str]) -> (Child, String) {
    spawn_with(&[], data_dir, flags, Stdio::inherit(), 1)
}

/// As [`spawn`], with the first `count` lines.
fn spawn_with(
    wrapper: &[&str],
    data_dir: &Path,
    flags: &[&str],
    log: Stdio,
    count: usize,
) -> (Child, String) {
    let mut words = wrapper.iter().copied().chain([env!("CARGO_BIN_EXE_ringkeep")]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command.arg("--data-dir").arg(data_dir).args(flags);
    if !flags.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    if std::env::var_os("RINGKEEP_LOG").is_none() {
        command.env("RINGKEEP_LOG", "warn");
    }
    let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..count {
        output.read_line(&mut line).unwrap();
    }
    (child, line)
}

/// Flags that keep a server small: at its start the server allocates only a few MiB and fills them with zeros.
pub const SMALL: &[&str] =
    &["--memtable-size", "1MiB", "--max-value-size", "1MiB", "--cache-size", "4MiB", "--threads", "2"];

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// A connection that can send any bytes, and reads replies.
pub struct Client {
    pub stream: TcpStream,
    pending: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, pending: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Reads what has arrived. Returns whether the connection is still open; a silent server has not closed it.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 65_536];
        let count = match self.stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("the server has sent nothing for {PATIENCE:?}")
            }
            result => result.unwrap_or(0),
        };
        self.pending.extend_from_slice(&buffer[..count]);
        0 < count
    }

    /// Reads one reply; `None` if the connection ends before the reply is complete.
    pub fn try_reply(&mut self, head_only: bool) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.pending.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill() {
                return None;
            }
        };
        let head = String::from_utf8(self.pending[..end].to_vec()).unwrap();
        let status = head[9..12].parse().unwrap();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let length = if head_only { 0 } else { length };
        while self.pending.len() < end + length {
            if !self.fill() {
                return None;
            }
        }
        let body = self.pending[end..end + length].to_vec();
        self.pending.drain(..end + length);
        Some(Reply { status, head, body })
    }

    pub fn reply(&mut self) -> Reply {
        self.try_reply(false).expect("the connection ended before the reply")
    }

    /// Whether the server has closed the connection without sending anything more.
    pub fn is_closed(&mut self) -> bool {
        self.pending.is_empty() && !self.fill()
    }

    pub fn request(&mut self, method: &str, target: &str) -> Reply {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        self.try_reply(method == "HEAD").expect("the connection ended before the reply")
    }

    pub fn post(&mut self, target: &str, body: &[u8]) -> Reply {
        self.send(format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ));
        self.send(body).reply()
    }

    /// Posts until the server accepts the value. If a disk stalls for a long time, the server answers 503, which asks
    /// the client to try again.
    pub fn post_patiently(&mut self, target: &str, body: &[u8]) -> Reply {
        let begin = Instant::now();
        loop {
            let reply = self.post(target, body);
            if reply.status != 503 || PATIENCE < begin.elapsed() {
                return reply;
            }
        }
    }
}

/// A folder for a server's data, which is removed at the end of the test.
pub fn folder() -> (tempfile::TempDir, PathBuf) {
    // In the build directory, which is on a real file system: /tmp may be a tmpfs.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = folder.path().join("data");
    (folder, data)
}

/// Every file below a folder, with its bytes.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            match std::fs::read(&path) {
                Ok(bytes) => drop(found.insert(path, bytes)),
                // After a server was killed, the kernel may still end a removal that the server has asked for.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
    found
}

/// Percent-encodes every byte.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02x}")).collect()
}
