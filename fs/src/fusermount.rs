//! Mounting as an ordinary user where the user's shell sees it: `fusermount3`, the setuid helper of
//! libfuse.
//!
//! The helper opens the device, mounts, and passes the descriptor over the socket that
//! `_FUSE_COMMFD` names. That is its standard input here, which needs no descriptor to be kept open
//! across `exec`.

use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Its name since FUSE 3.
const HELPER: &str = "fusermount3";
/// The variable that names the socket.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";
/// How long it may take; it does little more than two system calls.
const DEADLINE: Duration = Duration::from_secs(10);
/// As much of what it complains about as is worth showing.
const COMPLAINT_BYTES: u64 = 4096;

/// Mounts at a directory of the user's own; gives the device.
pub(crate) fn mount(path: &Path, options: &str) -> Result<OwnedFd, FusermountError> {
    let (ours, theirs) = UnixStream::pair().map_err(FusermountError::Start)?;
    ours.set_read_timeout(Some(DEADLINE)).map_err(FusermountError::Start)?;
    let mut command = Command::new(HELPER);
    command.args(["-o", options, "--"]).arg(path);
    command.env(SOCKET_VARIABLE, "0").stdin(OwnedFd::from(theirs));
    let result = run(command, || receive(&ours))?;
    result.map_err(|errno| FusermountError::NoDevice { path: path.to_owned(), errno })
}

/// Unmounts, also what is still in use.
pub(crate) fn unmount(path: &Path) -> Result<(), FusermountError> {
    let mut command = Command::new(HELPER);
    command.args(["-u", "-z", "--"]).arg(path).stdin(Stdio::null());
    run(command, || Ok(()))?.map_err(|errno| FusermountError::Start(errno.into()))
}

/// Starts the helper and does `meanwhile` while it runs.
fn run<T>(
    mut command: Command,
    meanwhile: impl FnOnce() -> Result<T, Errno>,
) -> Result<Result<T, Errno>, FusermountError> {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FusermountError::NotInstalled,
        _ => FusermountError::Start(source),
    })?;
    // With it goes our copy of the other end of the socket: whoever reads from it sees its end.
    drop(command);
    let result = meanwhile();
    if matches!(result, Err(Errno::EAGAIN)) {
        // Out of time. It may have ended meanwhile, which is as good.
        let _ = child.kill();
    }
    let mut complaint = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What cannot be read cannot be shown.
        let _ = stderr.take(COMPLAINT_BYTES).read_to_string(&mut complaint);
    }
    let status = child.wait().map_err(FusermountError::Start)?;
    if status.success() {
        return Ok(result);
    }
    let complaint = complaint.trim();
    let message = if complaint.is_empty() { status.to_string() } else { complaint.to_owned() };
    Err(FusermountError::Refused(message))
}

#[expect(unsafe_code, reason = "a descriptor that arrives in a message has no owner yet")]
fn receive(socket: &UnixStream) -> Result<OwnedFd, Errno> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([i32; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let device = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows it;
    // there is room for one only.
    device.map(|device| unsafe { OwnedFd::from_raw_fd(device) }).ok_or(Errno::EPROTO)
}

/// Why the helper does not mount or unmount.
#[derive(Debug, thiserror::Error)]
pub enum FusermountError {
    /// It is not there.
    #[error(
        "{HELPER} is not installed: an ordinary user mounts with it (on Debian and Ubuntu it is in \
         the package fuse3; root needs none)"
    )]
    NotInstalled,
    /// It cannot be started or waited for.
    #[error("failed to run {HELPER}")]
    Start(#[source] io::Error),
    /// It says no.
    #[error("{HELPER} refused: {0}")]
    Refused(String),
    /// It succeeded and yet gave nothing to serve.
    #[error("{HELPER} passed no device for {}: {errno}", path.display())]
    NoDevice {
        /// The mount point.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
}
