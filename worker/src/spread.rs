//! Directories that come and go by the hundred a second, spread over the disk.
//!
//! ext4 gives an inode number to nobody for five seconds after its file was deleted, and finds one for a new file
//! by looking at the numbers of its block group one by one. A directory puts what is made in it into its own group.
//! So a place in which 400 actions a second make and delete a few directories each makes every new file of that
//! group wait behind thousands of numbers: a quarter of all CPU when that was seen (docs/BENCHMARKS.md).
//!
//! Here such places are several directories that the file system is asked to put into different groups (attribute `T` of
//! chattr(1)). Elsewhere than on ext4 they are just directories.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Directories among which the places are spread.
const GROUPS: u64 = 16;
/// So many in a row are in the same one, so that little work stays in few groups: the first use of a group
/// may have to read the disk.
const IN_A_ROW: u64 = 64;
/// "Directories in here have nothing to do with each other", of linux/fs.h.
const FS_TOPDIR_FL: libc::c_int = 0x0002_0000;

nix::ioctl_read_bad!(get_flags, libc::FS_IOC_GETFLAGS, libc::c_int);
nix::ioctl_write_ptr_bad!(set_flags, libc::FS_IOC_SETFLAGS, libc::c_int);

/// Asks the file system to put the directories that are made in this one far from each other. Whether it can
/// makes no difference but speed.
pub(crate) fn spread_below(directory: &Path) {
    // A file system that knows nothing of this, or a user who may not ask.
    if let Err(errno) = set_topdir(directory) {
        tracing::debug!(path = %directory.display(), %errno, "directories are not spread");
    }
}

#[expect(unsafe_code, reason = "the attributes of a directory have no safe interface")]
fn set_topdir(directory: &Path) -> Result<(), Errno> {
    let opened = File::open(directory);
    let opened = opened.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let mut flags: libc::c_int = 0;
    // SAFETY: the kernel writes one int, which outlives the call.
    unsafe { get_flags(opened.as_raw_fd(), &raw mut flags) }?;
    let flags = flags | FS_TOPDIR_FL;
    // SAFETY: the kernel reads one int.
    unsafe { set_flags(opened.as_raw_fd(), &raw const flags) }.map(drop)
}

/// Where the directory of this number is, below that of all.
pub(crate) fn place(directory: &Path, number: u64) -> PathBuf {
    let group = number / IN_A_ROW % GROUPS;
    directory.join(group.to_string()).join(number.to_string())
}

/// Makes a directory, and if need be the one that it is in: a [`place`] may be the first of its group.
///
/// # Errors
/// The file system's; also if it exists.
pub(crate) fn make(place: &Path, mode: u32) -> io::Result<()> {
    let make = || DirBuilder::new().mode(mode).create(place);
    match (make(), place.parent()) {
        (Err(error), Some(group)) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(group)?;
            make()
        }
        (made, _) => made,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_few_are_together_and_many_are_spread() {
        let groups = |count: u64| -> BTreeSet<PathBuf> {
            (0..count)
                .map(|number| place(Path::new("/a"), number))
                .map(|at| at.parent().unwrap().into())
                .collect()
        };
        assert_eq!(groups(IN_A_ROW).len(), 1);
        assert_eq!(groups(IN_A_ROW * GROUPS * 2).len(), GROUPS as usize);
    }

    #[test]
    fn a_place_is_made_once_and_with_its_mode() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        spread_below(directory.path());
        let at = place(directory.path(), 4711);
        make(&at, 0o711).unwrap();
        assert_eq!(std::fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o711);
        assert_eq!(make(&at, 0o711).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
