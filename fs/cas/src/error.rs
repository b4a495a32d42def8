//! What can go wrong in a store, in terms of what the caller can do about it.
//!
//! A blob that is not there ([`StoreError::Missing`]) can be fetched; one that was there and is not
//! what its name says ([`StoreError::Damaged`]) has been put aside and can be fetched again; a full
//! store is back-pressure; anything else is the machine's fault.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use distbuild_proto::{Digest, TreeError};

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store does not hold this blob.
    #[error("the store does not hold {0}")]
    Missing(Digest),
    /// The store held a file under this name with other bytes. It is in the quarantine now and the
    /// blob counts as missing.
    #[error("the stored bytes of {0} were damaged and have been put aside")]
    Damaged(Digest),
    /// The bytes that were offered under a digest are not the bytes it names.
    #[error("bytes offered as {expected} are {actual}")]
    Mismatch {
        /// The digest they were offered under.
        expected: Digest,
        /// The digest they have.
        actual: Digest,
    },
    /// More bytes were offered than the digest names; the rest was not looked at.
    #[error("more than {} bytes were offered as {expected}", expected.size_bytes())]
    TooLong {
        /// The digest they were offered under.
        expected: Digest,
    },
    /// The blob is larger than what is read into memory at once.
    #[error("{digest} is larger than the {limit_bytes} bytes that are read into memory at once")]
    TooLarge {
        /// The blob that was asked for.
        digest: Digest,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// There is no room, and nothing that could be evicted makes any.
    #[error("the store is full: {0}")]
    Full(FullReason),
    /// A path that should be a regular file is something else.
    #[error("{} is not a regular file", .0.display())]
    NotRegular(PathBuf),
    /// A blob that should be a directory does not decode as one.
    #[error("{digest} is not a directory")]
    NotDirectory {
        /// The blob that was to be a directory.
        digest: Digest,
        /// What is wrong with it.
        source: TreeError,
    },
    /// The root of the store holds something that is not ours.
    #[error("{} does not look like a store: {reason}", path.display())]
    Foreign {
        /// The path that was looked at.
        path: PathBuf,
        /// What was found.
        reason: &'static str,
    },
    /// A thread panicked while it worked for this call.
    #[error("a worker thread of the store ended abnormally")]
    Thread,
    /// The operating system refused.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried: "open", "rename", …
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

/// What keeps a store from taking more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FullReason {
    /// The blob alone is larger than the store may be.
    #[error("the blob is larger than the whole store may be")]
    LargerThanStore,
    /// What is left is leased or being written.
    #[error("everything that is left in it is in use")]
    AllInUse,
    /// The file system has no room, or less than the reserve it must keep.
    #[error("the file system has no room left")]
    Disk,
}

impl StoreError {
    /// An error of the operating system; "no space" and "over quota" become [`StoreError::Full`].
    pub(crate) fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full(FullReason::Disk)
            }
            _ => Self::Io { operation, path: path.to_owned(), source },
        }
    }

    /// Gives an error that came without one a path.
    pub(crate) fn at(self, operation: &'static str, at: &Path) -> Self {
        match self {
            Self::Io { path, source, .. } if path.as_os_str().is_empty() => {
                Self::io(operation, at, source)
            }
            other => other,
        }
    }

    /// Whether the blob is simply not there (any more), so that fetching it is the remedy.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Damaged(_))
    }
}

/// A failed read or write of an open file; who knows the path adds it with `at`.
impl From<io::Error> for StoreError {
    fn from(source: io::Error) -> Self {
        Self::io("read or write", Path::new(""), source)
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Missing(_) | StoreError::Damaged(_) => io::ErrorKind::NotFound,
            StoreError::Full(_) => io::ErrorKind::StorageFull,
            StoreError::Io { source, .. } => source.kind(),
            StoreError::Thread => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Why a blob did not come. Cheap to clone: every waiter gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody who was asked has it.
    #[error("nobody who was asked has {0}")]
    NotFound(Digest),
    /// It did not come in time.
    #[error("{digest} did not arrive within {} ms", after.as_millis())]
    TimedOut {
        /// The blob.
        digest: Digest,
        /// How long it was waited for.
        after: Duration,
    },
    /// Too many blobs are wanted already.
    #[error("{0} blobs are waited for already")]
    Overloaded(usize),
    /// The call for it ended without an answer for it: a source that failed or was shut down.
    #[error("the fetch of {0} was abandoned")]
    Abandoned(Digest),
    /// The source says that it delivered, but the store does not have it.
    #[error("{0} was delivered but is not in the store")]
    NotDelivered(Digest),
    /// The near store could not take it.
    #[error("failed to store {digest}")]
    Store {
        /// The blob.
        digest: Digest,
        /// Why.
        source: Arc<StoreError>,
    },
    /// The source failed.
    #[error("failed to fetch {digest}")]
    Source {
        /// The blob.
        digest: Digest,
        /// Why.
        source: Arc<dyn Error + Send + Sync>,
    },
}
