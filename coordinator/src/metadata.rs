//! The directories of the source trees of running builds, in memory, shared by all builds.
//!
//! Clients send them with the graph; workers read them as they descend. They are counted by build
//! and bounded, and go when the last build that brought them ends.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::{Digest, DigestFunction, Directory, TreeError};
use parking_lot::RwLock;

/// The table; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    shared: Arc<RwLock<Table>>,
}

#[derive(Debug)]
struct Table {
    blobs: HashMap<Digest, (Bytes, u32)>,
    bytes: u64,
    max_bytes: u64,
}

/// The directories of one build; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct BuildMetadata {
    table: Metadata,
    function: DigestFunction,
    held: Vec<Digest>,
}

impl Metadata {
    /// At most `max_bytes` of directories over all builds.
    pub(crate) fn new(max_bytes: u64) -> Self {
        let table = Table { blobs: HashMap::new(), bytes: 0, max_bytes };
        Self { shared: Arc::new(RwLock::new(table)) }
    }

    /// The encoded directory.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.shared.read().blobs.get(digest).map(|(blob, _)| blob.clone())
    }

    /// Begins to collect the directories of a build.
    pub(crate) fn build(&self, function: DigestFunction) -> BuildMetadata {
        BuildMetadata { table: self.clone(), function, held: Vec::new() }
    }
}

impl BuildMetadata {
    /// Adds an encoded directory under the digest that it really has, and gives back both forms.
    ///
    /// # Errors
    /// The bytes are no canonical directory, or there is no room left.
    pub(crate) fn add(&mut self, blob: Bytes) -> Result<(Digest, Directory), MetadataError> {
        let directory = Directory::decode(self.function, &blob)?;
        let digest = self.function.digest(&blob);
        let mut table = self.table.shared.write();
        if let Some((_, count)) = table.blobs.get_mut(&digest) {
            *count += 1;
        } else {
            let size = blob.len() as u64;
            if table.bytes + size > table.max_bytes {
                return Err(MetadataError::Full { max_bytes: table.max_bytes });
            }
            table.bytes += size;
            table.blobs.insert(digest, (blob, 1));
        }
        self.held.push(digest);
        Ok((digest, directory))
    }

    /// Whether a directory of this digest is at hand.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.table.shared.read().blobs.contains_key(digest)
    }
}

impl Drop for BuildMetadata {
    fn drop(&mut self) {
        let mut table = self.table.shared.write();
        for digest in &self.held {
            if let Some((blob, count)) = table.blobs.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    let size = blob.len() as u64;
                    table.blobs.remove(digest);
                    table.bytes -= size;
                }
            }
        }
    }
}

/// Why a directory is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetadataError {
    /// Not canonical.
    #[error("a source directory is malformed: {0}")]
    Malformed(#[from] TreeError),
    /// Too many directories over all running builds.
    #[error(
        "the directories of all running builds would exceed {max_bytes} bytes; \
         declare narrower inputs, or raise the coordinator's limit"
    )]
    Full {
        /// The limit.
        max_bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_live_as_long_as_the_last_build_that_brought_them() {
        let metadata = Metadata::new(1 << 20);
        let mut one = metadata.build(DigestFunction::Blake3);
        let mut two = metadata.build(DigestFunction::Blake3);
        let (digest, _) = one.add(Bytes::new()).unwrap();
        two.add(Bytes::new()).unwrap();
        drop(one);
        assert!(metadata.get(&digest).is_some());
        drop(two);
        assert!(metadata.get(&digest).is_none());
    }

    #[test]
    fn a_malformed_directory_is_refused() {
        let mut build = Metadata::new(1 << 20).build(DigestFunction::Blake3);
        assert!(build.add(Bytes::from_static(b"\xff\xff")).is_err());
    }
}
