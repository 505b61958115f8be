//! Halts one thread of a server under test by ptrace, as if it hung. The other threads go on.
#![allow(unsafe_code, reason = "neither std nor rustix offers ptrace")]

use std::io;
use std::ptr::null_mut;

use super::Server;

/// A thread that is halted. It goes on when this value is dropped, which has to be on the thread that has halted it.
pub struct Halted(libc::pid_t);

impl Halted {
    /// Halts the thread `name` of the server.
    ///
    /// # Errors
    /// `PermissionDenied` if the system does not allow it.
    pub fn new(server: &Server, name: &str) -> io::Result<Self> {
        let thread = thread_of(server, name);
        ptrace(libc::PTRACE_SEIZE, thread)?;
        let halted = Self(thread);
        ptrace(libc::PTRACE_INTERRUPT, thread)?;
        let mut status = 0;
        // SAFETY: the kernel writes an int to `status`, which lives until the call returns.
        let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        if waited != thread {
            return Err(io::Error::last_os_error());
        }
        assert!(libc::WIFSTOPPED(status), "the thread {name} has ended: {status:#x}");
        Ok(halted)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        let _ = ptrace(libc::PTRACE_DETACH, self.0); // the server may have ended
    }
}

/// The number of the thread `name`.
fn thread_of(server: &Server, name: &str) -> libc::pid_t {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let is_it = |name_of: String| name_of.trim_end() == name;
    let task = tasks.find(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(is_it));
    let task = task.unwrap_or_else(|| panic!("the server has no thread {name}"));
    task.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// A request of ptrace that takes neither an address nor data.
fn ptrace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    let none = null_mut::<libc::c_void>();
    // SAFETY: the requests of this file neither read nor write memory of this process.
    match unsafe { libc::ptrace(request, thread, none, none) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
