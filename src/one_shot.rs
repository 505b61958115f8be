//! Operations on the ring that tokio-uring does not offer: files below a directory that is held open, and connections of
//! any listening socket.
//!
//! tokio-uring's own functions resolve paths from the working directory. Here every operation starts at the descriptor
//! of a directory. Whatever happens to the path, the operation reaches the directory that was opened, and no other. Its
//! listeners accept only connections of the family for which they were made, and a Unix listener cannot be inherited.
//!
//! All operations are submitted through tokio-uring's [`UnsubmittedOneshot`]. Each operation owns what its submission
//! entry points to, until its completion was seen: tokio-uring keeps the data of an operation even if the future was
//! dropped.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{cqueue, opcode, squeue, types};
use socket2::Socket;
use tokio_uring::fs::File;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// Turns a completion into a result. `D` is what the operation needs while it is in flight.
struct Completed<D>(PhantomData<D>);

impl<D> OneshotOutputTransform for Completed<D> {
    type Output = io::Result<i32>;
    type StoredData = D;

    fn transform_oneshot_output(self, _data: D, completion: cqueue::Entry) -> io::Result<i32> {
        match completion.result() {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            result => Ok(result),
        }
    }
}

async fn submit<D: Unpin + 'static>(data: D, entry: squeue::Entry) -> io::Result<i32> {
    UnsubmittedOneshot::new(data, Completed(PhantomData), entry).submit().await
}

/// The descriptor that an operation has made.
///
/// # Safety
/// `number` is the result of an operation that opens a descriptor, and nobody else has seen it.
#[expect(unsafe_code, reason = "a completion carries the new descriptor as a number")]
unsafe fn owned(number: i32) -> OwnedFd {
    // SAFETY: the caller is the only one that knows the descriptor. So the result becomes its only owner, and closes it
    // once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Submits the entry that `entry` makes from the directory and from pointers to the names. The operation owns both.
async fn submit_at(
    directory: &Rc<File>,
    names: [&str; 2],
    entry: impl FnOnce(types::Fd, [*const libc::c_char; 2]) -> squeue::Entry,
) -> io::Result<i32> {
    let [one, two] = names.map(CString::new);
    let names = [one?, two?];
    // The bytes of a `CString` are on the heap, and stay there when the `CString` moves.
    let entry = entry(types::Fd(directory.as_raw_fd()), [names[0].as_ptr(), names[1].as_ptr()]);
    submit((directory.clone(), names), entry).await
}

/// Waits for the next connection of a listening socket of any family.
///
/// Cancel safety: not safe; a connection that was accepted meanwhile would be lost.
#[expect(unsafe_code, reason = "a completion carries the new descriptor as a number")]
pub async fn accept(listener: Rc<Socket>) -> io::Result<OwnedFd> {
    let fd = types::Fd(listener.as_raw_fd());
    let entry = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(libc::O_CLOEXEC);
    let number = submit(listener, entry.build()).await?;
    // SAFETY: the kernel has just opened the descriptor for this operation, and nobody else knows it.
    Ok(unsafe { owned(number) })
}

/// Ends every operation on a socket that is in flight on the ring of this thread: it returns with an error.
///
/// Cancel safety: the operations may still end.
pub async fn cancel(socket: Rc<Socket>) -> io::Result<()> {
    let all = types::CancelBuilder::fd(types::Fd(socket.as_raw_fd())).all();
    match submit(socket, opcode::AsyncCancel2::new(all).build()).await {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()), // nothing was in flight
        cancelled => cancelled.map(|_| ()),
    }
}

/// Opens `name` with `flags`. A file that is created gets `mode`.
///
/// Cancel safety: the file may still be opened, and its descriptor is then lost.
pub async fn open(directory: &Rc<File>, name: &str, flags: i32, mode: libc::mode_t) -> io::Result<File> {
    let number = submit_at(directory, [name, ""], |directory, [name, _]| {
        opcode::OpenAt::new(directory, name).flags(flags | libc::O_CLOEXEC).mode(mode).build()
    })
    .await?;
    // SAFETY: the kernel has just opened the descriptor for this operation, and nobody else knows it.
    #[expect(unsafe_code, reason = "a completion carries the new descriptor as a number")]
    let descriptor = unsafe { owned(number) };
    Ok(File::from_std(descriptor.into()))
}

/// Renames `from` to `to`, replacing a file that has this name.
///
/// Cancel safety: the rename may still happen.
pub async fn rename(directory: &Rc<File>, from: &str, to: &str) -> io::Result<()> {
    let renamed = submit_at(directory, [from, to], |directory, [from, to]| {
        opcode::RenameAt::new(directory, from, directory, to).build()
    });
    renamed.await.map(|_| ())
}

/// Removes the name of a file.
///
/// Cancel safety: the removal may still happen.
pub async fn unlink(directory: &Rc<File>, name: &str) -> io::Result<()> {
    let unlinked = submit_at(directory, [name, ""], |directory, [name, _]| {
        opcode::UnlinkAt::new(directory, name).build()
    });
    unlinked.await.map(|_| ())
}
