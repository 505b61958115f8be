//! What the host offers: processors, memory, descriptors. Most is asked once at start, through std and rustix.
//!
//! Owns: the limits that the process really has (affinity, cgroup), and the settings that only the C library offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// The processors that this process may use, in order; at least one.
pub fn processors() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return vec![0] };
    let allowed: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect();
    if allowed.is_empty() { vec![0] } else { allowed }
}

/// How many threads are worthwhile: a cgroup may allow less processor time than there are allowed processors.
pub fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Processor time that all threads of the process have used so far.
pub fn processor_time() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.try_into().unwrap_or_default()
}

/// Keeps the calling thread on one processor.
///
/// # Errors
/// `Io`, if the processor is no longer available.
pub fn pin(processor: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|error| Error::io(format!("pin a thread to processor {processor}"), error.into()))
}

/// Bytes of memory that the process may use: the least of the machine's memory and the limits of its cgroups.
pub fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let total = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    group_memory_bytes(&groups, Path::new("/sys/fs/cgroup")).map_or(total, |limit| limit.min(total))
}

/// The lowest memory limit of the cgroups that `groups` lists, in the form of `/proc/self/cgroup`: lines
/// `id:controllers:path`. Limits of parent groups count, too. `root` is where cgroup file systems are mounted; version 1
/// has a directory for each controller there.
fn group_memory_bytes(groups: &str, root: &Path) -> Option<u64> {
    let limit = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        // In a container the path may be that of the host; then the limit is in the root.
        Path::new(path.trim_start_matches('/'))
            .ancestors()
            .filter_map(|group| std::fs::read_to_string(root.join(group).join(file)).ok())
            .filter_map(|limit| limit.trim().parse().ok()) // `max` is no limit
            .min()
    };
    groups.lines().filter_map(limit).min()
}

/// Raises the limit on open files as far as the system allows, and returns the limit.
pub fn raise_open_files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // If the kernel refuses, the old limit stays in force.
    let effective = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    effective.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// A random number of the kernel. It needs no file: a static program may have no `/dev`.
///
/// # Errors
/// If the kernel gives none.
pub fn random_number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes)) // so few bytes are never given in part
}

/// Opens a file for reading, if it is a regular file: to open a pipe could take for ever.
///
/// # Errors
/// Those of the system, and `InvalidInput` for anything but a regular file.
pub fn open_regular(path: &Path) -> io::Result<std::fs::File> {
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
}

/// What the system counts of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Process {
    /// Memory that is resident.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub open_files: u64,
    /// Threads of the kernel that carry out operations of rings which would block.
    pub io_workers: u64,
}

/// Looks at this process. Reads some files of `/proc`, and so takes some 100 µs: not for a thread that serves.
pub fn process() -> Process {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    Process {
        resident_bytes: pages.unwrap_or_default() * rustix::param::page_size() as u64,
        // The directory that is being read has a descriptor as well.
        open_files: (std::fs::read_dir("/proc/self/fd").into_iter().flatten().count() as u64)
            .saturating_sub(1),
        io_workers: names.filter(|name| name.starts_with("iou-wrk")).count() as u64,
    }
}

/// The longest file that the system lets this process write; `None` if there is no limit.
pub fn file_size_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Fsize).current
}

/// Whether the system lets this process use a ring that it has. A seccomp profile may allow `io_uring_setup` and deny
/// `io_uring_enter`; every operation would then wait for ever.
#[expect(unsafe_code, reason = "the call has no safe form")]
pub fn try_to_enter_a_ring() -> io::Result<()> {
    // SAFETY: no descriptor has the number -1, so the call ends before it looks at anything else. It gets no pointer.
    unsafe {
        libc::syscall(libc::SYS_io_uring_enter, -1, 0, 0, 0, std::ptr::null::<libc::c_void>(), 0);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EBADF) => Ok(()),
        error => Err(error),
    }
}

/// Buffers of at least this size go back to the system when they are freed.
const LARGE_BUFFER_BYTES: i32 = 1 << 20;

/// Keeps the allocator from hoarding large buffers. By default, glibc raises the size from which it returns buffers to
/// the system, up to 32 MiB, and the holes between kept buffers add up. With values of 8 MiB, written and read one at a
/// time, the process took up to 283 MiB by default, and takes 126 MiB with this setting.
#[expect(unsafe_code, reason = "glibc offers the setting to C only")]
pub fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: any pair of numbers is allowed; the library refuses a setting that it does not know, without effect.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BUFFER_BYTES);
    }
}

/// Gives memory that was freed back to the system. Without this, pages stay resident that lie between blocks in use. The
/// walk over free blocks holds up other threads that allocate: some milliseconds for each GiB.
#[expect(unsafe_code, reason = "glibc offers this to C only")]
pub fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether the process ignores a signal. The program that has started it may have asked for that.
pub fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    let bit = u32::try_from(signal - 1).ok().and_then(|bit| mask.checked_shr(bit));
    bit.is_some_and(|mask| mask & 1 == 1)
}

/// Ends the process by a signal, even if the signal has a handler. The parent process sees which signal it was.
#[expect(unsafe_code, reason = "neither std nor rustix sets the action of a signal")]
pub fn end_by(signal: i32) -> ! {
    // SAFETY: the default action of a signal runs no code of this process.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
    std::process::abort() // the signal does not end a process by default
}

/// The descriptor of a socket, for calls that tokio-uring's own types do not offer.
#[expect(unsafe_code, reason = "tokio-uring's sockets offer their descriptor as a number only")]
pub fn descriptor<T: AsRawFd>(socket: &T) -> BorrowedFd<'_> {
    // SAFETY: `socket` owns the descriptor and closes it when dropped. The result borrows `socket`, so it does not
    // outlive the descriptor.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_a_processor_and_memory() {
        assert!(!processors().is_empty() && 0 < parallelism());
        assert!(1 << 20 < memory_bytes());
    }

    #[test]
    fn the_lowest_limit_of_a_cgroup_and_its_parents_counts_in_both_versions() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| group_memory_bytes(groups, root);
        for nonsense in ["", "nonsense", "0::", "3:cpu:/a", "4:memory:/absent", "0::/absent"] {
            assert_eq!(limit(nonsense), None, "{nonsense}");
        }
        // Version 2: one tree, and `max` for no limit.
        write("memory.max", "max\n");
        write("pod/memory.max", "268435456\n");
        write("pod/app/memory.max", "max\n");
        assert_eq!(limit("0::/\n"), None);
        assert_eq!(limit("0::/pod/app\n"), Some(256 << 20), "the limit of a parent");
        write("pod/app/memory.max", "134217728\n");
        assert_eq!(limit("0::/pod/app\n"), Some(128 << 20));
        // Version 1: a tree for each controller, and a number near 2^63 for no limit.
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/docker/memory.limit_in_bytes", "536870912\n");
        let groups = "12:cpu,cpuacct:/docker\n11:memory:/docker\n10:pids:/docker\n";
        assert_eq!(limit(groups), Some(512 << 20));
        assert_eq!(limit("11:hugetlb,memory:/docker/unknown\n"), Some(512 << 20));
        // In a container, the path of the host does not exist, and the root is the limit of the container.
        write("memory/memory.limit_in_bytes", "1073741824\n");
        assert_eq!(limit("11:memory:/system.slice/docker-0.scope\n"), Some(1 << 30));
        // Both at once: the lower one.
        assert_eq!(limit("11:memory:/docker\n0::/pod\n"), Some(256 << 20));
    }
}
