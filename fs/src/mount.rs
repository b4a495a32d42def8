//! The mount: ours from `mount(2)` to `umount2(2)`; fuser only gets the descriptor.
//!
//! A worker's mount lies in a namespace of its own and is open to all users; an inspection mount lies
//! where the user's shell sees it and is open to that user alone.
//!
//! The process that serves a mount must not look into it, not even with `stat`: it would wait for
//! itself. What is to be known of the mount is read from `/proc/self/mountinfo`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as sys_mount, umount2};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Pid, getegid, geteuid, getpid};

use crate::fusermount::{self, FusermountError};
use crate::mount_table::find;
use crate::namespace::{self, NamespaceError, Privilege};

const DEVICE: &str = "/dev/fuse";
/// The type shown in mount tables; the kernel knows it as FUSE with a subtype.
const FS_TYPE: &str = "fuse.distbuild";
/// Where the mount says that it comes from.
const FS_NAME: &str = "distbuild";
/// How often a mount may lie on the same place when stale ones are cleaned up.
const STALE_LIMIT: usize = 32;
/// Read-ahead of sequential readers. Beyond 1 MiB it gains nothing: no request is larger.
const READ_AHEAD_KIB: u32 = 1024;

/// A mounted FUSE file system that nobody serves yet.
///
/// Dropped by the process that mounted it, it is unmounted; a forked child that drops its copy only
/// closes the descriptor, which it must do: the mount ends when the last copy is closed.
#[derive(Debug)]
pub struct MountedFuse {
    pub(crate) device: OwnedFd,
    pub(crate) point: MountPoint,
}

/// The place of a mount, which it leaves when dropped by the process that mounted it.
#[derive(Debug)]
pub(crate) struct MountPoint {
    path: PathBuf,
    mounted_by: Pid,
    /// Whether the setuid helper mounted it, who then has to unmount it as well.
    by_helper: bool,
    /// Tells it from what others mount there.
    device: Option<String>,
}

impl MountedFuse {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point.path
    }
}

/// Enters a namespace of one's own and mounts there; see [`namespace::enter`] and [`mount`].
///
/// # Errors
/// No namespace, no device, or no mount.
pub fn mount_in_namespace(path: &Path) -> Result<(MountedFuse, Privilege), MountError> {
    let privilege = namespace::enter()?;
    // After that: the kernel wants the device opened in the user namespace of the mount.
    Ok((mount(path)?, privilege))
}

/// Mounts at an existing directory: read-only, for all users, without setuid and devices. Stale mounts
/// of ours that lie there are taken away first.
///
/// # Errors
/// No `/dev/fuse`, or the mount is refused.
pub fn mount(path: &Path) -> Result<MountedFuse, MountError> {
    let path =
        absolute(path).map_err(|source| MountError::Point { path: path.to_owned(), source })?;
    clean_stale(&path)?;
    mount_here(path, "allow_other,default_permissions")
}

/// Mounts at an existing empty directory in the mount namespace that the caller is in: read-only, for
/// this user alone. Root mounts itself, an ordinary user through `fusermount3`. A mount on the
/// directory whose server was killed is taken away first.
///
/// # Errors
/// The directory is missing, none, or not empty; no `/dev/fuse` or no helper; the mount is refused.
pub fn mount_for_owner(path: &Path) -> Result<MountedFuse, MountError> {
    let failed = |source| MountError::Point { path: path.to_owned(), source };
    detach_dead(path)?;
    let path = fs::canonicalize(path).map_err(failed)?;
    let mut entries = fs::read_dir(&path).map_err(failed)?;
    if entries.next().is_some() {
        return Err(MountError::NotEmpty(path));
    }
    if geteuid().is_root() {
        return mount_here(path, "default_permissions");
    }
    let options = "ro,nosuid,nodev,noatime,default_permissions,fsname=distbuild,subtype=distbuild";
    let device = fusermount::mount(&path, options)?;
    Ok(MountedFuse { device, point: MountPoint::new(path, true) })
}

fn mount_here(path: PathBuf, access: &str) -> Result<MountedFuse, MountError> {
    let device: OwnedFd = open_device()?.into();
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},{access}",
        device.as_raw_fd(),
        geteuid(),
        getegid(),
    );
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    sys_mount(Some(FS_NAME), &path, Some(FS_TYPE), flags, Some(options.as_str()))
        .map_err(|source| MountError::Mount { path: path.clone(), source })?;
    Ok(MountedFuse { device, point: MountPoint::new(path, false) })
}

/// The place as the mount table has it. Only the parent is looked at: a stale mount may lie on the place.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok(fs::canonicalize(parent)?.join(name))
}

fn open_device() -> Result<File, MountError> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MountError::NoDevice,
        io::ErrorKind::PermissionDenied => {
            let mode = fs::metadata(DEVICE).map_or(0, |meta| meta.permissions().mode() & 0o777);
            MountError::DeviceForbidden { mode }
        }
        _ => MountError::Device(source),
    })
}

/// Takes away mounts of ours whose server was killed: they answer ENOTCONN to everything new.
fn clean_stale(path: &Path) -> Result<(), MountError> {
    for _ in 0..STALE_LIMIT {
        match find(path).map_err(MountError::Table)? {
            Some(found) if found.fs_type == FS_TYPE.as_bytes() => {
                tracing::info!(mount.path = %path.display(), "a stale mount is taken away");
                umount2(path, MntFlags::MNT_DETACH)
                    .map_err(|source| MountError::Unmount { path: path.to_owned(), source })?;
            }
            _ => return Ok(()),
        }
    }
    Err(MountError::Unmount { path: path.to_owned(), source: Errno::EBUSY })
}

/// Takes away mounts at a place that answer nothing any more because their server was killed; others
/// stay. To be asked, the server must be asked: what the kernel remembers outlives it.
fn detach_dead(path: &Path) -> Result<(), MountError> {
    let failed = |source| MountError::Unmount { path: path.to_owned(), source };
    for _ in 0..STALE_LIMIT {
        match statvfs(path) {
            Err(Errno::ENOTCONN) => {
                tracing::info!(mount.path = %path.display(), "a dead mount is taken away");
                if geteuid().is_root() {
                    umount2(path, MntFlags::MNT_DETACH).map_err(failed)?;
                } else {
                    fusermount::unmount(path)?;
                }
            }
            _ => return Ok(()),
        }
    }
    Err(failed(Errno::EBUSY))
}

impl MountPoint {
    fn new(path: PathBuf, by_helper: bool) -> Self {
        let device = find(&path).ok().flatten().map(|found| found.device);
        Self { path, mounted_by: getpid(), by_helper, device }
    }

    /// Whether the mount lies on top at its place, and not that of somebody else.
    fn is_there(&self) -> bool {
        find(&self.path).is_ok_and(|found| found.map(|found| found.device) == self.device)
    }

    fn unmount(&self) -> Result<(), MountError> {
        if self.by_helper {
            return Ok(fusermount::unmount(&self.path)?);
        }
        // Detached, it leaves the tree at once and ends when its last user does.
        umount2(&self.path, MntFlags::MNT_DETACH)
            .map_err(|source| MountError::Unmount { path: self.path.clone(), source })
    }

    /// Raises read-ahead, which only root outside of user namespaces can; elsewhere 128 KiB remain.
    pub(crate) fn raise_read_ahead(&self) {
        let device = self.device.as_deref().unwrap_or_default();
        let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
        if let Err(error) = fs::write(path, READ_AHEAD_KIB.to_string()) {
            tracing::info!(%error, "read-ahead stays at the kernel's default");
        }
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if getpid() != self.mounted_by {
            return;
        }
        if !self.is_there() {
            tracing::info!(mount.path = %self.path.display(), "unmounted already");
        } else if let Err(error) = self.unmount() {
            tracing::warn!(mount.path = %self.path.display(), %error, "failed to unmount");
        }
    }
}

/// Why nothing is mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No namespace to mount in.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The kernel has no FUSE, or this container hides it.
    #[error(
        "{DEVICE} does not exist (load the kernel module fuse, or give the container the device)"
    )]
    NoDevice,
    /// The device may not be opened.
    #[error("{DEVICE} may not be opened by this user (its mode is {mode:o}, 666 is usual)")]
    DeviceForbidden {
        /// Permission bits of the device.
        mode: u32,
    },
    /// The device cannot be opened.
    #[error("failed to open {DEVICE}")]
    Device(#[source] io::Error),
    /// There is no directory to mount at.
    #[error("failed to use the mount point {}", path.display())]
    Point {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something where the mount would hide it.
    #[error("the mount point {} is not an empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// The helper that mounts for ordinary users cannot do it.
    #[error(transparent)]
    Fusermount(#[from] FusermountError),
    /// The kernel refuses to mount.
    #[error("failed to mount at {}", path.display())]
    Mount {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// An earlier mount cannot be taken away.
    #[error("failed to take away the mount at {}", path.display())]
    Unmount {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The mount table cannot be read.
    #[error("failed to read /proc/self/mountinfo")]
    Table(#[source] io::Error),
}
