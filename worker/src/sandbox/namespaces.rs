//! Namespaces and mounts: the system calls, each with an error that says what it was for.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Gid, Pid, Uid};

use super::error::{AtStep, SandboxError};

/// No type, source or data: what most mount calls leave out.
const NONE: Option<&str> = None;

// From linux/mount.h; the libc crate does not have them for every target.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What may be done through a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading and executing.
    ReadOnly,
    /// Reading and executing; device nodes work.
    ReadOnlyDevices,
    /// Everything but device nodes and setuid programs.
    Writable,
    /// Everything but setuid programs.
    WritableDevices,
}

impl Access {
    /// The rights that it takes away, as `MOUNT_ATTR_*`.
    fn attributes(self) -> u64 {
        MOUNT_ATTR_NOSUID
            | match self {
                Self::ReadOnly => MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
                Self::ReadOnlyDevices => MOUNT_ATTR_RDONLY,
                Self::Writable => MOUNT_ATTR_NODEV,
                Self::WritableDevices => 0,
            }
    }

    /// The same as `MS_*`.
    fn flags(self) -> MsFlags {
        MsFlags::MS_NOSUID
            | match self {
                Self::ReadOnly => MsFlags::MS_RDONLY | MsFlags::MS_NODEV,
                Self::ReadOnlyDevices => MsFlags::MS_RDONLY,
                Self::Writable => MsFlags::MS_NODEV,
                Self::WritableDevices => MsFlags::empty(),
            }
    }
}

/// Moves this process into a mount namespace of its own, so that what it mounts is seen by itself
/// and its children only and goes away with them. An ordinary user enters a user namespace first,
/// in which it is user 0 and no other user exists; as root that is left out.
///
/// # Errors
/// A process with threads cannot enter a user namespace; some hosts forbid ordinary users to.
pub fn enter_private_namespaces() -> Result<(), SandboxError> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    if !uid.is_root() {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
            .at(|| "enter a user namespace".to_owned())?;
        // The kernel asks for this order: who cannot give up groups may map its own.
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("0 {uid} 1")),
            ("gid_map", format!("0 {gid} 1")),
        ] {
            std::fs::write(format!("/proc/self/{file}"), text)
                .at(|| format!("write the user namespace's {file}"))?;
        }
        return make_private();
    }
    new_mount_namespace()
}

/// Enters a copy of this mount namespace that shares no later mount with it, in either direction.
pub(super) fn new_mount_namespace() -> Result<(), SandboxError> {
    unshare(CloneFlags::CLONE_NEWNS).at(|| "enter a mount namespace".to_owned())?;
    make_private()
}

fn make_private() -> Result<(), SandboxError> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .at(|| "make all mounts private".to_owned())
}

/// The network that a job is in.
#[derive(Debug)]
pub(super) enum JobNetwork<'a> {
    /// A new one, with nothing but a loopback device.
    New,
    /// An existing one.
    Of(&'a OwnedFd),
    /// That of the spawner.
    Inherited,
}

/// Enters the namespaces of a job, all but that of process ids, into which it was cloned. Mounts
/// are private already: the parent's are.
pub(super) fn enter_job_namespaces(network: &JobNetwork<'_>) -> Result<(), SandboxError> {
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if matches!(network, JobNetwork::New) {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).at(|| "enter the job's namespaces".to_owned())?;
    match network {
        JobNetwork::New => loopback_up(),
        JobNetwork::Of(namespace) => {
            setns(namespace, CloneFlags::CLONE_NEWNET).at(|| "enter the job's network".to_owned())
        }
        JobNetwork::Inherited => Ok(()),
    }
}

/// A child that is process 1 of its PID namespace.
#[derive(Debug)]
pub(super) struct Init {
    /// Its id here.
    pub(super) pid: Pid,
    /// Readable once it has ended, and with it everything else in its PID namespace.
    pub(super) pidfd: OwnedFd,
}

/// Forks process 1 of a new PID namespace; `None` in that process.
///
/// The caller is single-threaded, so that the child finds no lock held by a thread that it lacks.
#[expect(unsafe_code, reason = "no safe interface makes a process with namespaces and a pidfd")]
pub(super) fn clone_init() -> Result<Option<Init>, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all zeroes is a valid `clone_args`; zero fields ask for nothing.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_NEWPID | libc::CLONE_PIDFD) as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM and a stack this is a fork; the kernel writes one descriptor to
    // `pidfd`, which outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => {
            // SAFETY: the kernel has just opened it for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Init { pid: Pid::from_raw(pid as i32), pidfd }))
        }
    }
}

/// Mounts an empty tmpfs; `options` as mount(8) has them.
pub(super) fn mount_tmpfs(at: &Path, options: &str, access: Access) -> Result<(), SandboxError> {
    mount(Some("tmpfs"), at, Some("tmpfs"), access.flags(), Some(options))
        .at(|| format!("mount a tmpfs at {}", at.display()))
}

/// Mounts the `/proc` of this PID namespace.
pub(super) fn mount_proc(at: &Path) -> Result<(), SandboxError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), at, Some("proc"), flags, NONE).at(|| {
        "mount /proc (in a user namespace this needs a /proc that the host has not masked)"
            .to_owned()
    })
}

/// Makes the tree at `from`, with all that is mounted in it, appear at `to` as well.
pub(super) fn bind(from: &Path, to: &Path, access: Access) -> Result<(), SandboxError> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .at(|| format!("bind {} at {}", from.display(), to.display()))?;
    restrict(to, access, true)
}

/// Takes rights away from a mount, never gives any: a user namespace may not lift what the host's
/// mount forbids, and this call, unlike a remount, does not have to repeat it.
pub(super) fn restrict(at: &Path, access: Access, recursive: bool) -> Result<(), SandboxError> {
    let attr_set = access.attributes();
    let attr = MountAttr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    mount_setattr(at, &attr, recursive).at(|| format!("restrict the mount at {}", at.display()))
}

#[expect(unsafe_code, reason = "nix has no mount_setattr")]
fn mount_setattr(at: &Path, attr: &MountAttr, recursive: bool) -> Result<(), Errno> {
    let path = CString::new(at.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the kernel reads a C string and a struct of the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Makes the mount at `new_root` the root of this namespace; the old root appears at `put_old`, a
/// directory inside.
pub(super) fn pivot(new_root: &Path, put_old: &Path) -> Result<(), SandboxError> {
    nix::unistd::pivot_root(new_root, put_old)
        .and_then(|()| nix::unistd::chdir("/"))
        .at(|| format!("make {} the root", new_root.display()))
}

/// Makes the mount at `new_root` the root of this namespace and drops the old one with all mounts
/// below it.
pub(super) fn pivot_and_drop(new_root: &Path) -> Result<(), SandboxError> {
    let step = |what: &'static str| move || format!("{what} {}", new_root.display());
    nix::unistd::chdir(new_root).at(step("enter"))?;
    // Old and new root at one place: the old one ends up on top, and is taken off there.
    nix::unistd::pivot_root(".", ".").at(step("make the root"))?;
    umount2(".", MntFlags::MNT_DETACH).at(step("drop the root that was before"))?;
    nix::unistd::chdir("/").at(step("enter the root"))
}

/// Takes the tree at `path` out of this namespace, used or not.
pub(super) fn detach(path: &Path) -> Result<(), SandboxError> {
    umount2(path, MntFlags::MNT_DETACH).at(|| format!("unmount {}", path.display()))
}

/// Switches the loopback device of this network namespace on.
#[expect(unsafe_code, reason = "an ioctl")]
pub(super) fn loopback_up() -> Result<(), SandboxError> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .at(|| "open a socket in the job's network".to_owned())?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(result).map(drop).at(|| "switch the loopback device on".to_owned())
}
