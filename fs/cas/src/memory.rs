//! `BlobStore`, what every store can do, and `MemoryStore`, the strict fake of a disk.

use std::collections::HashMap;

use bytes::Bytes;
use distbuild_proto::Digest;
use parking_lot::Mutex;

use crate::disk::{DiskStore, is_empty_blob};
use crate::error::StoreError;

/// Bytes by digest. The empty blob is always there. Calls may take as long as a disk does.
pub trait BlobStore: Send + Sync {
    /// Whether the store holds the blob. "No" may be the answer for a blob that is there but cannot
    /// be reached; "yes" does not promise that it stays.
    fn contains(&self, digest: &Digest) -> bool;

    /// The whole blob, compared with its digest at least once since it came to this process.
    ///
    /// # Errors
    /// [`StoreError::is_missing`] tells whether fetching it is the remedy.
    fn read(&self, digest: &Digest) -> Result<Bytes, StoreError>;

    /// Stores a blob; fine if it is there already. It is visible whole or not at all.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] for other bytes than the digest says, [`StoreError::Full`].
    fn insert(&self, digest: &Digest, data: &[u8], executable: bool) -> Result<(), StoreError>;

    /// Which of these the store does not hold, in the order given.
    fn missing(&self, digests: &[Digest]) -> Vec<Digest> {
        digests.iter().filter(|digest| !self.contains(digest)).copied().collect()
    }
}

impl BlobStore for DiskStore {
    fn contains(&self, digest: &Digest) -> bool {
        Self::contains(self, digest)
    }

    fn read(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        Self::read(self, digest)
    }

    fn insert(&self, digest: &Digest, data: &[u8], executable: bool) -> Result<(), StoreError> {
        Self::insert(self, digest, data, executable)
    }
}

/// A store in memory that never evicts: for tests, and for small sets of directories.
#[derive(Debug, Default)]
pub struct MemoryStore {
    blobs: Mutex<HashMap<Digest, Bytes>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many blobs it holds, not counting the empty one.
    pub fn len(&self) -> usize {
        self.blobs.lock().len()
    }

    /// Whether it holds nothing but the empty blob.
    pub fn is_empty(&self) -> bool {
        self.blobs.lock().is_empty()
    }
}

impl BlobStore for MemoryStore {
    fn contains(&self, digest: &Digest) -> bool {
        is_empty_blob(digest) || self.blobs.lock().contains_key(digest)
    }

    fn read(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        if is_empty_blob(digest) {
            return Ok(Bytes::new());
        }
        self.blobs.lock().get(digest).cloned().ok_or(StoreError::Missing(*digest))
    }

    fn insert(&self, digest: &Digest, data: &[u8], _executable: bool) -> Result<(), StoreError> {
        let actual = digest.function().digest(data);
        if actual != *digest {
            return Err(StoreError::Mismatch { expected: *digest, actual });
        }
        if !is_empty_blob(digest) {
            self.blobs.lock().entry(*digest).or_insert_with(|| Bytes::copy_from_slice(data));
        }
        Ok(())
    }
}
