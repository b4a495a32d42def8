//! Why the file system does not do what the kernel asks, and which error number says so.

use fuser::Errno;

use crate::contents::WantError;
use crate::inode::ViewId;

/// Why a request of the kernel is answered with an error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AccessError {
    /// No such inode: the kernel holds a number that was given back.
    #[error("inode {0} is not known")]
    UnknownInode(u64),
    /// The view that a directory belongs to was dropped.
    #[error("view {0} was dropped")]
    ViewDropped(ViewId),
    /// Everything that looked this up is being ended.
    #[error("the views that looked this up are being ended")]
    ViewFailed,
    /// A name that no directory can hold.
    #[error("a name is too long or not a name")]
    BadName,
    /// Not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A directory where a file is asked for.
    #[error("is a directory")]
    IsADirectory,
    /// Not a symbolic link.
    #[error("not a symbolic link")]
    NotASymlink,
    /// The contents did not come.
    #[error("contents are not at hand: {0}")]
    Contents(#[from] WantError),
}

impl AccessError {
    /// The number that the kernel hands to the process.
    pub fn errno(&self) -> Errno {
        match self {
            Self::UnknownInode(_) | Self::ViewDropped(_) => Errno::ESTALE,
            Self::ViewFailed | Self::Contents(_) => Errno::EIO,
            Self::BadName => Errno::ENAMETOOLONG,
            Self::NotADirectory => Errno::ENOTDIR,
            Self::IsADirectory => Errno::EISDIR,
            Self::NotASymlink => Errno::EINVAL,
        }
    }
}
