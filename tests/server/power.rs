//! Power cuts and full disks on the real kernel, on file systems that the tests make on loop devices.
//!
//! The cut is the shutdown ioctl of ext4 and XFS. Metadata that was not synced (names, lengths, extents) and pages of
//! the cache are gone at the next mount, and until then every write fails with EIO. So one call is both the power cut
//! and the failing disk. It cannot take back an O_DIRECT overwrite in place, which is how the WAL writes. The tests on
//! simulated storage (`tests/crash.rs`) check that such a write is synced before it is answered. An answer that arrives
//! after the call began proves nothing and is not counted. `scripts/power.sh` prepares what these tests need.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::journal::{Journals, Progress};
use crate::common::{Client, PATIENCE, Row, Server, setting, spawn};
use ringkeep::random::Random;

const FLAGS: &[&str] = &[
    "--memtable-size",
    "1MiB",
    "--max-value-size",
    "64KiB",
    "--cache-size",
    "1MiB",
    "--threads",
    "2",
    "--flush-interval",
    "300ms",
    "--compaction-interval",
    "100ms",
];
/// How many cuts a file system takes before a new one is made.
const CUTS: u64 = 20;

fn run(program: &str, args: &[&str]) {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system in a file, mounted.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes and mounts a file system, in the folder that the script has chosen.
    fn new(kind: &str, megabytes: u64) -> Self {
        let folder = std::env::var_os("RINGKEEP_POWER").expect("run scripts/power.sh");
        let folder = Path::new(&folder);
        let (image, mount) = (folder.join(format!("{kind}.img")), folder.join(kind));
        fs::create_dir_all(&mount).unwrap();
        let _ = fs::remove_file(&image); // an image that an earlier test left
        fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        run(&format!("mkfs.{kind}"), &["-q", image.to_str().unwrap()]);
        let disk = Self { image, mount };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", self.image.to_str().unwrap(), self.mount.to_str().unwrap()]);
    }

    /// The kernel may hold the files of a process for a moment after the process has ended, so this tries again.
    fn unmount(&self) {
        let begin = Instant::now();
        loop {
            let status = Command::new("umount").arg(&self.mount).stderr(Stdio::null()).status().unwrap();
            if status.success() {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{} stays busy", self.mount.display());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Prepares a power cut. To start a program at the moment of the cut would take longer than that moment lasts.
    fn arm(&self) -> Cut {
        let mut command = Command::new("xfs_io");
        command.args(["-x", self.mount.to_str().unwrap()]);
        Cut(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn data(&self) -> PathBuf {
        self.mount.join("data")
    }

    /// Fills every block that is free with a file at `path`.
    fn fill(&self, path: &Path) {
        let mut file = fs::File::create(path).unwrap();
        // Data may take less space once it is written back than was reserved for it, so this fills the disk several
        // times.
        for bytes in [1 << 20, 4096, 4096] {
            let block = vec![0; bytes];
            while file.write_all(&block).is_ok() {}
            file.sync_all().unwrap();
        }
    }

    /// The names of the files in the directories of the shards.
    fn names(&self) -> BTreeSet<String> {
        let read = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
        read(self.data())
            .flat_map(|shard| read(shard.path()))
            .map(|file| file.path().strip_prefix(self.data()).unwrap().to_string_lossy().into_owned())
            .collect()
    }
}

/// Flush requests that the device has completed.
fn flushes(disk: &Disk) -> u64 {
    let device = fs::metadata(&disk.mount).unwrap().dev();
    let numbers = [rustix::fs::major(device), rustix::fs::minor(device)].map(|number| number.to_string());
    let stats = fs::read_to_string("/proc/diskstats").unwrap();
    let fields = stats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = fields.into_iter().find(|fields| fields[..2] == numbers).expect("the device has a line");
    line[18].parse().unwrap()
}

/// The only test that sees whether a sync reaches the device. A lone client shares no group, so each of its answers
/// needs a flush.
#[test]
#[ignore = "needs root: scripts/power.sh"]
fn p1_every_answer_of_a_lone_client_is_flushed_by_the_device() {
    let begin = Instant::now();
    let mut acknowledged = 0;
    for kind in ["ext4", "xfs"] {
        let disk = Disk::new(kind, 320);
        let server = Server::start(&disk.data(), FLAGS);
        let mut client = server.client();
        for number in 0..20 {
            let before = flushes(&disk);
            for write in 0..25 {
                assert_eq!(client.request("POST", &format!("/set?key=k{write}&value={number}")).status, 200);
            }
            let count = flushes(&disk) - before;
            assert!(25 <= count, "{kind}: 25 answers and {count} flushes");
            acknowledged += 25;
        }
        server.kill();
        disk.unmount();
    }
    let name = "a device flush before every answer to a lone client";
    Row { name, runs: 40, acknowledged, seconds: begin.elapsed(), ..Row::default() }.report();
}

/// How many WALs the server has opened with O_DIRECT.
fn wals_opened_direct(server: &Server) -> usize {
    let process = PathBuf::from(format!("/proc/{}", server.id()));
    let is_direct = |file: &fs::DirEntry| {
        let wal =
            fs::read_link(file.path()).is_ok_and(|path| path.extension().is_some_and(|end| end == "wal"));
        let info = fs::read_to_string(process.join("fdinfo").join(file.file_name())).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t")).unwrap_or("0");
        wal && i32::from_str_radix(flags, 8).unwrap() & libc::O_DIRECT != 0
    };
    fs::read_dir(process.join("fd")).unwrap().flatten().filter(is_direct).count()
}

/// A prepared power cut that waits for its moment.
struct Cut(Child);

impl Cut {
    fn now(mut self) {
        let mut input = self.0.stdin.take().unwrap();
        input.write_all(b"shutdown\nquit\n").unwrap();
        drop(input);
        assert!(self.0.wait().unwrap().success(), "xfs_io cannot shut the file system down");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Otherwise a test that failed would leave the file system mounted.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).stderr(Stdio::null()).status();
    }
}

/// The moment at which the cut is aimed.
#[derive(Debug, Clone, Copy)]
enum Aim {
    /// The first acknowledgement by a new store.
    FirstAnswer,
    /// Any moment.
    Anywhere,
    /// A sorted file appears: a flush or a compaction.
    NewSst,
    /// A sorted file disappears: a compaction has just taken effect.
    OldSst,
    /// A WAL appears or is renamed: a rotation.
    NewWal,
    /// A start writes a fresh manifest and switches to it.
    Manifest,
}

const AIMS: [Aim; 6] = [Aim::Anywhere, Aim::NewSst, Aim::OldSst, Aim::NewWal, Aim::Manifest, Aim::Anywhere];

/// Waits for the moment. Returns `false` if it does not come.
fn wait_for(aim: Aim, disk: &Disk, progress: &Progress, random: &mut Random) -> bool {
    let begin = Instant::now();
    let acknowledged = || progress.acknowledged.load(Ordering::SeqCst);
    let appears = |extension: &str, after: &BTreeSet<String>, before: &BTreeSet<String>| {
        after.difference(before).any(|name| name.ends_with(extension))
    };
    let few = random.below(60);
    if !matches!(aim, Aim::FirstAnswer) {
        progress.wait_for(few);
    }
    let (mut before, mut hit) = (disk.names(), false);
    while begin.elapsed() < Duration::from_secs(3) {
        let after = disk.names();
        let now = match aim {
            Aim::FirstAnswer => 0 < acknowledged(),
            Aim::Anywhere | Aim::Manifest => few * 5 < acknowledged(),
            Aim::NewSst => appears(".sst", &after, &before),
            Aim::OldSst => appears(".sst", &before, &after),
            Aim::NewWal => appears(".wal", &after, &before),
        };
        if now {
            hit = true;
            break;
        }
        before = after;
    }
    // The steps that follow take from microseconds to milliseconds.
    let pause = [0, 20, 100, 500, 3_000][random.below(5) as usize];
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_micros(pause) {
        std::hint::spin_loop();
    }
    hit
}

/// Cuts the power while a server starts, when its fresh manifest appears.
fn cut_a_start(disk: &Disk, random: &mut Random) {
    let (before, cut) = (disk.names(), disk.arm());
    thread::scope(|scope| {
        let start = scope.spawn(|| {
            let (mut child, _) = spawn(&disk.data(), FLAGS);
            // The server may have started before the cut.
            let begin = Instant::now();
            while child.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_secs(2) {
                thread::sleep(Duration::from_millis(1));
            }
            let _ = child.kill(); // an idle server does not notice the cut
            child.wait().unwrap();
        });
        let wanted = ["MANIFEST", "CURRENT.tmp"][random.below(2) as usize];
        let begin = Instant::now();
        let appears = |after: &BTreeSet<String>| after.difference(&before).any(|name| name.contains(wanted));
        while !appears(&disk.names()) && begin.elapsed() < Duration::from_secs(2) {}
        let begin = Instant::now();
        let pause = Duration::from_micros(random.below(2_000));
        while begin.elapsed() < pause {
            std::hint::spin_loop();
        }
        cut.now();
        start.join().unwrap();
    });
    disk.unmount();
    disk.mount();
}

fn power_cuts(kind: &'static str, name: &'static str) {
    let begin = Instant::now();
    let (cuts, seed) = (setting("RINGKEEP_CUTS", 20), setting("RINGKEEP_SEED", 7));
    let random = &mut Random::new(seed);
    let (mut acknowledged, mut checked, mut ended_74, mut hits) = (0, 0, 0, 0);
    let mut cut = 0;
    while cut < cuts {
        let disk = Disk::new(kind, 320);
        let mut journals = Journals::new(6, seed ^ cut);
        for index in 0..CUTS.min(cuts - cut) {
            let aim = if index == 0 { Aim::FirstAnswer } else { AIMS[random.below(6) as usize] };
            let context = format!("{kind}, seed {seed}, cut {}, {aim:?}", cut + index);
            if matches!(aim, Aim::Manifest) {
                cut_a_start(&disk, random);
                let server = Server::start(&disk.data(), FLAGS);
                checked += journals.check(&mut server.client(), &context);
                continue;
            }
            let server = Server::start(&disk.data(), FLAGS);
            let address = server.address;
            let (mut status, armed) = (None, disk.arm());
            acknowledged += journals.write(address, |progress| {
                hits += u64::from(wait_for(aim, &disk, progress, random));
                progress.over.store(true, Ordering::SeqCst);
                armed.now();
                // Writes go on, so the ring's completions carry EIO to the WAL within a moment.
                let poke = thread::spawn(move || {
                    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return };
                    for n in 0..100 {
                        let request =
                            format!("POST /set?key=poke-{n}&value=x HTTP/1.1\r\nHost: localhost\r\n\r\n");
                        let _ = stream.write_all(request.as_bytes()); // the server is about to end
                    }
                    let _ = stream.read_to_end(&mut Vec::new()); // returns when the server has ended
                });
                status = Some(server.wait());
                poke.join().unwrap();
            });
            assert_eq!(status.and_then(|status| status.code()), Some(74), "{context}");
            ended_74 += 1;
            disk.unmount();
            disk.mount();
            let server = Server::start(&disk.data(), FLAGS);
            checked += journals.check(&mut server.client(), &context);
            // The server accepts writes again.
            assert_eq!(server.client().request("POST", "/set?key=alive&value=1").status, 200, "{context}");
        }
        disk.unmount();
        cut += CUTS.min(cuts - cut);
    }
    println!(
        "{hits} of {ended_74} aims were hit, and the server ended with 74 each time; {checked} keys were read after the cuts"
    );
    Row { name, runs: cuts, acknowledged, seconds: begin.elapsed(), ..Row::default() }.report();
}

#[test]
#[ignore = "needs root: scripts/power.sh"]
fn p1_p6_power_cuts_on_ext4() {
    power_cuts("ext4", "power cut under load, ext4");
}

#[test]
#[ignore = "needs root: scripts/power.sh"]
fn p1_p6_power_cuts_on_xfs() {
    power_cuts("xfs", "power cut under load, XFS");
}

/// Waits until `done`, which must happen.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sets new keys until the disk is full, and stays full for some seconds: flushes make a little room again and again.
fn fill(client: &mut Client, keys: &mut Vec<usize>, value: &[u8]) {
    let mut refused = 0;
    while refused < 30 {
        let key = keys.last().map_or(0, |last| last + 1);
        match client.post(&format!("/set?key=k{key}"), value).status {
            200 => {
                keys.push(key);
                refused = 0;
            }
            507 => {
                refused += 1;
                thread::sleep(Duration::from_millis(100));
            }
            status => assert_eq!(status, 503),
        }
    }
}

/// The store fills its own volume, nothing is a dead end, and the space comes back.
fn filled_by_the_store(kind: &str) {
    const VALUE_BYTES: usize = 100_000;
    let disk = Disk::new(kind, 400);
    let flags: &[&str] =
        &["--memtable-size", "8MiB", "--max-value-size", "1MiB", "--threads", "2", "--cache-size", "8MiB"];
    let mut random = Random::new(7);
    let value: Vec<u8> = (0..VALUE_BYTES).map(|_| random.next_u64() as u8).collect();
    let mut server = Server::start(&disk.data(), flags);
    let mut keys = Vec::new();
    let mut client = server.client();
    fill(&mut client, &mut keys, &value);
    assert!(1_500 < keys.len(), "only {} values fitted into 400 MiB", keys.len());
    for restart in ["-TERM", "-KILL", "none"] {
        assert_eq!(client.request("GET", "/readyz").text(), "disk full\n", "{restart}");
        assert_eq!(client.request("POST", "/set?key=new&value=v").status, 507, "{restart}");
        for key in &keys {
            let reply = client.request("GET", &format!("/get?key=k{key}"));
            assert!(reply.status == 200 && reply.body == value, "{restart}, key {key}: {}", reply.status);
        }
        let deleted = keys.pop().unwrap();
        assert_eq!(client.request("POST", &format!("/del?key=k{deleted}")).status, 200, "{restart}");
        match restart {
            "-TERM" => {
                server.signal("-TERM");
                assert_eq!(server.wait().code(), Some(0));
            }
            "-KILL" => server.kill(),
            _ => break,
        }
        server = Server::start(&disk.data(), flags);
        client = server.client();
        // A start may find some space: a WAL is shorter when it is new.
        fill(&mut client, &mut keys, &value);
    }
    for key in &keys {
        let mut status = 0;
        // A delete may wait for the log to grow.
        until("a delete is accepted", || {
            status = client.request("POST", &format!("/del?key=k{key}")).status;
            status != 503
        });
        assert_eq!(status, 200, "key {key}");
    }
    until("the server is ready", || client.request("GET", "/readyz").status == 200);
    for key in 0..1_000 {
        assert_eq!(client.post_patiently(&format!("/set?key=k{key}"), &value).status, 200, "key {key}");
    }
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
    run(env!("CARGO_BIN_EXE_ringkeep"), &["check", disk.data().to_str().unwrap()]);
    disk.unmount();
}

#[test]
#[ignore = "needs root: scripts/power.sh"]
fn a_store_that_fills_its_volume_can_be_read_and_emptied_on_ext4() {
    filled_by_the_store("ext4");
}

#[test]
#[ignore = "needs root: scripts/power.sh"]
fn a_store_that_fills_its_volume_can_be_read_and_emptied_on_xfs() {
    filled_by_the_store("xfs");
}

/// A start that finds no free space gives the reserve back, and serves reads and deletes.
fn starts_on_a_full_disk(disk: &Disk, ballast: &Path, journals: &mut Journals) {
    disk.fill(ballast);
    let server = Server::start(&disk.data(), FLAGS);
    let mut client = server.client();
    assert_eq!(client.request("GET", "/readyz").text(), "disk full\n");
    assert_eq!(client.request("POST", "/set?key=new&value=v").status, 507);
    journals.check(&mut client, "on a full disk");
    assert_eq!(client.request("POST", "/del?key=filler-1").status, 200);
    fs::remove_file(ballast).unwrap();
    until("the server is ready", || client.request("GET", "/readyz").status == 200);
    assert_eq!(client.request("POST", "/set?key=new&value=v").status, 200);
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
#[ignore = "needs root: scripts/power.sh"]
fn a_full_disk_refuses_writes_answers_reads_and_recovers_by_itself() {
    let begin = Instant::now();
    let rounds = setting("RINGKEEP_FULL_DISKS", 2);
    let mut acknowledged = 0;
    for round in 0..rounds {
        let disk = Disk::new("ext4", 64);
        let ballast = disk.mount.join("ballast");
        run("fallocate", &["-l", "30M", ballast.to_str().unwrap()]);
        let server = Server::start(&disk.data(), &[FLAGS, &["--shards", "2"]].concat());
        let mut journals = Journals::new(6, round);
        let (address, mut longest) = (server.address, Duration::ZERO);
        acknowledged += journals.write(address, |progress| {
            let wait = |what: &str, done: &dyn Fn() -> bool| {
                let begin = Instant::now();
                while !done() {
                    assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
                    thread::sleep(Duration::from_millis(1));
                }
                begin.elapsed()
            };
            let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::SeqCst);
            let mut filler = server.client();
            let mut key = 0;
            while load(&progress.disk_full) < 20 {
                // The clients overwrite their keys; the filler writes new keys.
                key += 1;
                filler.post(&format!("/set?key=filler-{key}"), &vec![key as u8; 60_000]);
            }
            let reads = load(&progress.reads);
            wait("reads go on", &|| reads + 500 < load(&progress.reads));
            fs::remove_file(&ballast).unwrap();
            let writes = load(&progress.acknowledged);
            longest = longest.max(wait("writes go on", &|| writes + 100 < load(&progress.acknowledged)));
            progress.stop.store(true, Ordering::SeqCst);
        });
        assert!(longest < Duration::from_secs(5), "writes resumed after {longest:?}");
        journals.check(&mut server.client(), "before the stop");
        server.signal("-TERM");
        assert_eq!(server.wait().code(), Some(0));
        let server = Server::start(&disk.data(), FLAGS);
        let mut client = server.client();
        journals.check(&mut client, "after the restart");
        until("the reserve is allocated", || client.request("GET", "/readyz").status == 200);
        server.signal("-TERM"); // a kill could leave part of an SST, and removing that part would make room
        assert_eq!(server.wait().code(), Some(0));

        starts_on_a_full_disk(&disk, &ballast, &mut journals);
        // If leftover files of a crash take the space, the start removes them. The start must not mistake a full disk
        // for a disk without O_DIRECT.
        fs::write(disk.data().join("shard-001/000999.sst"), vec![1; 8 << 20]).unwrap();
        disk.fill(&disk.data().join("shard-000/000999.sst"));
        let server = Server::start(&disk.data(), FLAGS);
        assert!(0 < wals_opened_direct(&server), "the WALs are written through the page cache");
        journals.check(&mut server.client(), "after a start on a full disk");
        server.kill();
        disk.unmount();
    }
    Row {
        name: "disk full, and space again",
        runs: rounds,
        acknowledged,
        seconds: begin.elapsed(),
        ..Row::default()
    }
    .report();
}
