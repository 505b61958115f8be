//! The ring of a thread: its size, its flags, and why the kernel may refuse it.
//!
//! Owns: the choice of flags, which the kernel's version decides, and one sentence for each refusal, with the fix.

use std::io;

use crate::error::{Error, ErrorKind, Result};
use crate::host::try_to_enter_a_ring;

/// Submission queue entries of a ring. A turn of the loop that starts fewer operations never waits for the kernel.
const RING_ENTRIES: u32 = 1024;
/// Completions that may be outstanding: several times the submissions, so that the kernel never has to buffer
/// completions.
const RING_COMPLETIONS: u32 = 4 * RING_ENTRIES;

/// The flags of a ring. With task work that interrupts no thread, and submissions from one thread only, requests took a
/// third less processor time when measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flags {
    /// COOP_TASKRUN, SINGLE_ISSUER, TASKRUN_FLAG: Linux 6.0.
    Cooperative,
    /// No flags, for older kernels.
    Plain,
}

impl Flags {
    /// A builder of runtimes with such a ring.
    pub fn builder(self) -> tokio_uring::Builder {
        let mut uring = tokio_uring::uring_builder();
        uring.setup_cqsize(RING_COMPLETIONS);
        if self == Self::Cooperative {
            uring.setup_coop_taskrun().setup_single_issuer().setup_taskrun_flag();
        }
        let mut builder = tokio_uring::builder();
        builder.entries(RING_ENTRIES).uring_builder(&uring);
        builder
    }
}

/// Builds a runtime for the calling thread, and so finds out whether the system allows a ring, and with which flags.
///
/// # Errors
/// `Configuration`, with the cause and the fix.
pub fn probe() -> Result<(Flags, tokio_uring::Runtime)> {
    let attempt = |flags: Flags| tokio_uring::Runtime::new(&flags.builder()).map(|runtime| (flags, runtime));
    try_to_enter_a_ring().map_err(|error| Error::new(ErrorKind::Configuration, verdict(&error)))?;
    attempt(Flags::Cooperative)
        .or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => attempt(Flags::Plain),
            _ => Err(error),
        })
        .map_err(|error| Error::new(ErrorKind::Configuration, verdict(&error)))
}

/// Why the kernel refuses a ring, and what to do about it.
fn verdict(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            match setting.trim() {
                level @ ("1" | "2") => format!(
                    "io_uring is disabled on this host: the sysctl kernel.io_uring_disabled is {level}; set it to 0 \
                     (sysctl -w kernel.io_uring_disabled=0)"
                ),
                _ => "io_uring is denied to this process (EPERM), most likely by the seccomp profile of its \
                      container: allow io_uring_setup, io_uring_enter and io_uring_register there (docker run \
                      --security-opt seccomp=PROFILE)"
                    .into(),
            }
        }
        Some(libc::ENOSYS) => "this kernel has no io_uring, or a seccomp profile hides it (ENOSYS): Linux 5.19 or \
                               later is needed, with io_uring_setup, io_uring_enter and io_uring_register allowed"
            .into(),
        Some(libc::EINVAL) => "this kernel refuses even a plain ring (EINVAL): Linux 5.19 or later is needed".into(),
        Some(libc::ENOMEM) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
            let show = |limit: Option<u64>| limit.map_or("unlimited".into(), |bytes| format!("{bytes} bytes"));
            format!(
                "there is no memory for a ring (ENOMEM); the limit on locked memory is {} (hard: {}): raise it \
                 (ulimit -l, LimitMEMLOCK= in a systemd unit)",
                show(limit.current),
                show(limit.maximum)
            )
        }
        _ => format!("the kernel refuses a ring: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_a_ring_has_a_cause_and_a_fix() {
        for (errno, words) in [
            (libc::EPERM, ["io_uring", "seccomp"]),
            (libc::ENOSYS, ["Linux 5.19", "seccomp"]),
            (libc::EINVAL, ["Linux 5.19", "ring"]),
            (libc::ENOMEM, ["LimitMEMLOCK", "bytes"]),
        ] {
            let verdict = verdict(&io::Error::from_raw_os_error(errno));
            assert!(words.iter().all(|word| verdict.contains(word)), "{verdict}");
        }
    }
}
