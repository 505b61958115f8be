//! Opens, renames and unlinks files below a directory that is held open, on the ring.
//!
//! tokio-uring's own functions resolve paths from the working directory. Here every operation starts at the descriptor
//! of a directory. Whatever happens to the path, the operation reaches the directory that was opened, and no other.
//!
//! The three operations are submitted through tokio-uring's [`UnsubmittedOneshot`]. Each operation owns the directory
//! and the names that its submission entry points to, until its completion was seen: tokio-uring keeps the data of an
//! operation even if the future was dropped.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::rc::Rc;

use io_uring::{cqueue, opcode, squeue, types};
use tokio_uring::fs::File;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// What an operation in flight needs: the directory, and its one or two names.
struct Target {
    _directory: Rc<File>,
    _names: [CString; 2],
}

/// Turns a completion into a result.
struct Completed;

impl OneshotOutputTransform for Completed {
    type Output = io::Result<i32>;
    type StoredData = Target;

    fn transform_oneshot_output(self, _target: Target, completion: cqueue::Entry) -> io::Result<i32> {
        match completion.result() {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            result => Ok(result),
        }
    }
}

/// Submits the entry that `entry` makes from the directory and from pointers to the names. The operation owns both.
async fn submit(
    directory: &Rc<File>,
    names: [&str; 2],
    entry: impl FnOnce(types::Fd, [*const libc::c_char; 2]) -> squeue::Entry,
) -> io::Result<i32> {
    let [one, two] = names.map(CString::new);
    let names = [one?, two?];
    // The bytes of a `CString` are on the heap, and stay there when the `CString` moves.
    let entry = entry(types::Fd(directory.as_raw_fd()), [names[0].as_ptr(), names[1].as_ptr()]);
    let target = Target { _directory: directory.clone(), _names: names };
    UnsubmittedOneshot::new(target, Completed, entry).submit().await
}

/// Opens `name` with `flags`. A file that is created gets `mode`.
///
/// Cancel safety: the file may still be opened, and its descriptor is then lost.
pub(super) async fn open(
    directory: &Rc<File>,
    name: &str,
    flags: i32,
    mode: libc::mode_t,
) -> io::Result<File> {
    let descriptor = submit(directory, [name, ""], |directory, [name, _]| {
        opcode::OpenAt::new(directory, name).flags(flags | libc::O_CLOEXEC).mode(mode).build()
    })
    .await?;
    // SAFETY: the kernel has just opened the descriptor for this operation, and nobody else knows it. So the file
    // becomes its only owner, and closes it once.
    #[expect(unsafe_code, reason = "a completion carries the new descriptor as a number")]
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Renames `from` to `to`, replacing a file that has this name.
///
/// Cancel safety: the rename may still happen.
pub(super) async fn rename(directory: &Rc<File>, from: &str, to: &str) -> io::Result<()> {
    let renamed = submit(directory, [from, to], |directory, [from, to]| {
        opcode::RenameAt::new(directory, from, directory, to).build()
    });
    renamed.await.map(|_| ())
}

/// Removes the name of a file.
///
/// Cancel safety: the removal may still happen.
pub(super) async fn unlink(directory: &Rc<File>, name: &str) -> io::Result<()> {
    let unlinked =
        submit(directory, [name, ""], |directory, [name, _]| opcode::UnlinkAt::new(directory, name).build());
    unlinked.await.map(|_| ())
}
