//! The mount: ours from `mount(2)` to `umount2(2)`; fuser only gets the descriptor.
//!
//! The process that serves a mount must not look into it, not even with `stat`: it would wait for
//! itself. What is to be known of the mount is read from `/proc/self/mountinfo`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as sys_mount, umount2};
use nix::unistd::{Pid, getegid, geteuid, getpid};

use crate::namespace::{self, NamespaceError, Privilege};

const DEVICE: &str = "/dev/fuse";
/// The type shown in mount tables; the kernel knows it as FUSE with a subtype.
const FS_TYPE: &str = "fuse.distbuild";
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
    let device: OwnedFd = open_device()?.into();
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
        device.as_raw_fd(),
        geteuid(),
        getegid(),
    );
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    sys_mount(Some("distbuild"), &path, Some(FS_TYPE), flags, Some(options.as_str()))
        .map_err(|source| MountError::Mount { path: path.clone(), source })?;
    Ok(MountedFuse { device, point: MountPoint { path, mounted_by: getpid() } })
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
        match find(path)? {
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

impl MountPoint {
    /// Raises read-ahead, which only root outside of user namespaces can; elsewhere 128 KiB remain.
    pub(crate) fn raise_read_ahead(&self) {
        let raised = find(&self.path).map(|found| {
            let device = found.map(|found| found.device).unwrap_or_default();
            fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB.to_string())
        });
        if let Err(error) | Ok(Err(error)) = raised.map_err(io::Error::other) {
            tracing::info!(%error, "read-ahead stays at the kernel's default");
        }
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if getpid() != self.mounted_by {
            return;
        }
        // Detached, it leaves the tree at once and ends when its last user does.
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            tracing::warn!(mount.path = %self.path.display(), %error, "failed to unmount");
        }
    }
}

struct Found {
    device: String,
    fs_type: Vec<u8>,
}

/// The topmost mount at a place.
fn find(path: &Path) -> Result<Option<Found>, MountError> {
    let table = fs::read("/proc/self/mountinfo").map_err(MountError::Table)?;
    Ok(find_in(&table, path))
}

fn find_in(table: &[u8], path: &Path) -> Option<Found> {
    let wanted = escape(path.as_os_str().as_bytes());
    table.split(|byte| *byte == b'\n').filter_map(|line| parse(line, &wanted)).next_back()
}

/// A line is `36 35 98:0 /root /point options [optional]… - type source super-options`.
fn parse(line: &[u8], wanted: &[u8]) -> Option<Found> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    if fields.nth(1)? != wanted {
        return None;
    }
    let mut fields = fields.skip_while(|field| *field != b"-");
    let fs_type = fields.nth(1)?.to_vec();
    Some(Found { device: String::from_utf8(device.to_vec()).ok()?, fs_type })
}

/// Paths stand in the table with blanks, line ends and backslashes in octal.
fn escape(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                escaped.extend_from_slice(format!("\\{byte:03o}").as_bytes());
            }
            _ => escaped.push(*byte),
        }
    }
    escaped
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
    #[error("failed to find the mount point {}", path.display())]
    Point {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_at_a_place_is_found_by_its_escaped_path() {
        let table = b"22 1 0:20 / /a\\040b rw shared:1 - tmpfs none rw\n\
            23 1 0:21 / /a\\040b ro - fuse.distbuild distbuild ro\n\
            24 1 0:22 / /other rw - proc proc rw\n";
        let found = find_in(table, Path::new("/a b")).unwrap();
        assert_eq!(found.device, "0:21");
        assert_eq!(found.fs_type, b"fuse.distbuild");
        assert!(find_in(table, Path::new("/a")).is_none());
    }
}
