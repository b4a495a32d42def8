//! Writing a stored tree into a directory, and nothing else than the whole tree.
//!
//! The tree is built beside its destination under a temporary name and then takes its place in one
//! step; what was there before is removed afterwards. Files share their blocks with the store where
//! the file system can do that and are copied otherwise: what the user does to them does not
//! reach the store. Modes are 0644 and 0755 whatever the umask; symbolic links stand as they are.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use distbuild_proto::{Child, Digest, Directory, FileNode};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::symlinkat;

use crate::disk::DiskStore;
use crate::error::StoreError;
use crate::store_id::StoreId;
use crate::tree_check::LeaseTreeError;
use crate::writer::share_blocks;

/// Directories below each other in one tree; each costs a descriptor while it is walked.
pub const MAX_TREE_DEPTH: usize = 256;

/// Why a tree could not be written into a directory. Nothing has changed there then.
#[derive(Debug, thiserror::Error)]
pub enum MaterializeError {
    /// The store does not hold all of the tree, or failed.
    #[error(transparent)]
    Tree(#[from] LeaseTreeError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The destination has no name of its own, or is neither a directory nor a symbolic link.
    #[error("{} cannot be replaced by a directory", .0.display())]
    Destination(PathBuf),
    /// Too many directories below each other.
    #[error("the tree is deeper than {MAX_TREE_DEPTH} directories at {}", .0.display())]
    TooDeep(PathBuf),
    /// The operating system refused.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

/// Writes the tree below `root` to `destination`, in place of the directory or symbolic link that may
/// be there; the link's target is left alone. The parent directory must exist.
///
/// # Errors
/// The tree is not complete, the disk is full or fails; the destination is as it was then.
pub fn materialize(
    store: &DiskStore,
    root: &Digest,
    destination: &Path,
) -> Result<(), MaterializeError> {
    let _lease = store.lease_tree(root)?;
    let destination = resolve(destination)?;
    let building = Building::beside(&destination)?;
    let failed = |source: Errno| io_error("make", &building.path, source);
    mkdirat(AT_FDCWD, &building.path, Mode::S_IRWXU).map_err(failed)?;
    let folder = open_folder(AT_FDCWD, building.path.as_os_str()).map_err(failed)?;
    Walk { store, path: destination.clone(), depth: 0 }.write(root, folder.as_fd())?;
    drop(folder);
    building.take_the_place_of(&destination)
}

/// The destination below its real parent. What stands under its own name is never followed: a
/// symbolic link is replaced and its target left alone.
fn resolve(destination: &Path) -> Result<PathBuf, MaterializeError> {
    let unusable = || MaterializeError::Destination(destination.to_owned());
    let name = destination.file_name().ok_or_else(unusable)?;
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = fs::canonicalize(parent).map_err(|source| io_error("resolve", parent, source))?;
    let resolved = parent.join(name);
    match fs::symlink_metadata(&resolved) {
        Ok(found) if found.is_dir() || found.is_symlink() => Ok(resolved),
        Ok(_) => Err(unusable()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(resolved),
        Err(source) => Err(io_error("look at", destination, source)),
    }
}

/// A directory under a temporary name; whatever is under that name goes when this is dropped.
struct Building {
    path: PathBuf,
}

impl Building {
    fn beside(destination: &Path) -> Result<Self, MaterializeError> {
        let unusable = || MaterializeError::Destination(destination.to_owned());
        let parent = destination.parent().ok_or_else(unusable)?;
        // Not longer than a name may be, whatever the destination is called.
        let name = format!(".distbuild-{}", StoreId::random()?);
        Ok(Self { path: parent.join(name) })
    }

    fn take_the_place_of(self, destination: &Path) -> Result<(), MaterializeError> {
        let rename = |flags| renameat2(AT_FDCWD, &self.path, AT_FDCWD, destination, flags);
        // Whether something is there may change at any time; then it is the other call.
        for _ in 0..8 {
            match rename(RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => return Ok(()),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(io_error("rename to", destination, errno)),
            }
            match rename(RenameFlags::RENAME_EXCHANGE) {
                // What was there before is removed with `self`.
                Ok(()) => return Ok(()),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(io_error("replace", destination, errno)),
            }
        }
        Err(io_error("replace", destination, Errno::EBUSY))
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "failed to remove a directory");
            }
            _ => {}
        }
    }
}

/// Where in the tree we are.
struct Walk<'a> {
    store: &'a DiskStore,
    /// For errors: where it will be.
    path: PathBuf,
    depth: usize,
}

impl Walk<'_> {
    /// Writes one directory and what is below it.
    fn write(&mut self, digest: &Digest, folder: BorrowedFd<'_>) -> Result<(), MaterializeError> {
        if self.depth > MAX_TREE_DEPTH {
            return Err(MaterializeError::TooDeep(self.path.clone()));
        }
        let blob = self.store.read(digest)?;
        let directory = Directory::decode(digest.function(), &blob)
            .map_err(|source| StoreError::NotDirectory { digest: *digest, source })?;
        for child in directory.children() {
            self.path.push(child.name().as_os_str());
            match child {
                Child::File(node) => self.write_file(node, folder)?,
                Child::Symlink(node) => {
                    symlinkat(OsStr::from_bytes(&node.target), folder, node.name.as_os_str())
                        .map_err(|source| self.failed("make the link", source))?;
                }
                Child::Directory(node) => {
                    let name = node.name.as_os_str();
                    let made = mkdirat(folder, name, Mode::S_IRWXU)
                        .and_then(|()| open_folder(folder, name))
                        .map_err(|source| self.failed("make", source))?;
                    self.depth += 1;
                    self.write(&node.digest, made.as_fd())?;
                    self.depth -= 1;
                }
            }
            self.path.pop();
        }
        fchmod(folder, Mode::from_bits_truncate(0o755))
            .map_err(|source| self.failed("set the mode of", source))
    }

    fn write_file(&self, node: &FileNode, folder: BorrowedFd<'_>) -> Result<(), MaterializeError> {
        let mut from = self.store.open_bytes(&node.digest)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mut to = openat(folder, node.name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(File::from)
            .map_err(|source| self.failed("make", source))?;
        if !share_blocks(&from, &to) {
            let copied =
                io::copy(&mut from, &mut to).map_err(|source| self.failed("write", source))?;
            if copied != node.digest.size_bytes() {
                return Err(StoreError::Damaged(node.digest).into());
            }
        }
        let mode = if node.executable { 0o755 } else { 0o644 };
        to.set_permissions(Permissions::from_mode(mode))
            .map_err(|source| self.failed("set the mode of", source))
    }

    fn failed(&self, operation: &'static str, source: impl Into<io::Error>) -> MaterializeError {
        io_error(operation, &self.path, source)
    }
}

fn open_folder(at: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn io_error(
    operation: &'static str,
    path: &Path,
    source: impl Into<io::Error>,
) -> MaterializeError {
    MaterializeError::Io { operation, path: path.to_owned(), source: source.into() }
}
