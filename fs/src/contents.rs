//! `Contents`: the seam between the file system and whoever brings blobs into the store.
//!
//! Unless told otherwise the file system opens blobs by path itself; it only asks that they be there.
//! What it asks for is answered once: the blob is in the store, whole and verified, or why it is not.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use distbuild_proto::Digest;
use serde::{Deserialize, Serialize};

use crate::blob;
use crate::inode::ViewId;
use crate::tree::Context;

/// Brings blobs into the store.
pub trait Contents: Send + Sync + 'static {
    /// Asks for a blob. `done` is called once, from any thread, maybe before this returns. It stays
    /// readable at least until the views of the context are dropped. Never blocks. A blob that is on its
    /// way is asked for again when further views come to wait for it.
    fn want(&self, want: Want, done: Done);

    /// Opens a blob that was brought; called on a thread that may block. What it gives has the right
    /// length and is verified. By itself, this is the blob's file in the store.
    ///
    /// # Errors
    /// The file is gone, cut short or unreadable.
    fn open(&self, store: &Path, key: &BlobKey) -> Result<File, WantError> {
        blob::open(store, key)
    }

    /// Which reads wait for a blob that arrives in parts, and was asked for with [`want`](Self::want).
    /// Never blocks. Whoever brings the blob may go by it or not.
    fn reads(&self, _key: &BlobKey, _reads: Reads) {}

    /// Tells that a blob could not be brought or read, so that processes of these views have seen, or
    /// may have seen, an input error. Not called for requests that were given up.
    fn read_failed(&self, digest: Digest, views: Vec<ViewId>, why: &WantError);
}

/// The reads that wait for parts of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reads {
    /// One more, of these bytes.
    Wait(Range<u64>),
    /// None any more.
    Done,
}

/// Takes the answer to a [`Want`]. [`WantError::GivenUp`] says that none of its views is there any more.
pub type Done = Box<dyn FnOnce(Result<(), WantError>) + Send>;

/// A blob that is needed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Which blob, and which of its files.
    pub key: BlobKey,
    /// For whom.
    pub context: Context,
}

/// A blob as the store holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlobKey {
    /// Its name.
    pub digest: Digest,
    /// What it is used as.
    pub kind: BlobKind,
}

/// What a blob is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BlobKind {
    /// An encoded `Directory`.
    Directory,
    /// The contents of a file.
    File {
        /// Whether the file in the store must have the executable bit.
        executable: bool,
    },
}

/// Why a blob is not at hand.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantError {
    /// Whoever was asked says so.
    #[error("{0}")]
    Refused(String),
    /// No answer within the limit.
    #[error("not fetched within {0} ms")]
    Deadline(u64),
    /// So many requests are under way that no more are taken.
    #[error("{0} requests for contents are under way")]
    Busy(usize),
    /// Nobody can be asked any more.
    #[error("the agent is gone")]
    Gone,
    /// Requests that serve nobody any more.
    #[error("given up with the views that asked")]
    GivenUp,
    /// The blob was there but could not be opened or read.
    #[error("failed to read the blob: {0}")]
    Read(String),
    /// The blob is not what its name says.
    #[error("the blob is damaged: {0}")]
    Damaged(String),
}

impl BlobKey {
    /// The file of this blob below a store: `<function>/<first 2 hex>/<other hex>-<size>`, with `.x`
    /// behind it for the executable variant.
    pub fn path(&self, store: &Path) -> PathBuf {
        let hex = self.digest.hex();
        let (fan, rest) = hex.split_at(2);
        let suffix = match self.kind {
            BlobKind::File { executable: true } => ".x",
            BlobKind::File { executable: false } | BlobKind::Directory => "",
        };
        let mut path = store.join(self.digest.function().name());
        path.push(fan);
        path.push(format!("{rest}-{}{suffix}", self.digest.size_bytes()));
        path
    }
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;

    use super::*;

    #[test]
    fn the_executable_variant_is_a_file_of_its_own() {
        let digest = DigestFunction::Sha1.digest(b"abc");
        let path = |kind| BlobKey { digest, kind }.path(Path::new("/store"));
        let plain = "/store/sha1/a9/993e364706816aba3e25717850c26c9cd0d89d-3";
        assert_eq!(path(BlobKind::File { executable: false }), Path::new(plain));
        assert_eq!(path(BlobKind::Directory), Path::new(plain));
        assert_eq!(path(BlobKind::File { executable: true }), PathBuf::from(format!("{plain}.x")));
    }
}
