//! Directories in the form in which they are compared: decoded, kept while they are used, within a limit.
//!
//! They come from the sources of running builds ([`Metadata`]) and from small output trees that workers sent with
//! their results.

use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::{Digest, DigestFunction, Directory};
use lru::LruCache;
use parking_lot::Mutex;

use crate::metadata::Metadata;

/// Encoded size of the directories that are kept; decoded they take about three times as much.
const MAX_BYTES: usize = 64 << 20;

/// The table; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct KnownDirectories {
    sources: Metadata,
    decoded: Arc<Mutex<Decoded>>,
}

#[derive(Debug)]
struct Decoded {
    entries: LruCache<Digest, (Arc<Directory>, usize)>,
    bytes: usize,
}

impl KnownDirectories {
    /// None but those of sources.
    pub(crate) fn new(sources: Metadata) -> Self {
        let decoded = Decoded { entries: LruCache::unbounded(), bytes: 0 };
        Self { sources, decoded: Arc::new(Mutex::new(decoded)) }
    }

    /// The directory, if it is at hand.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Arc<Directory>> {
        if let Some((directory, _)) = self.decoded.lock().entries.get(digest) {
            return Some(directory.clone());
        }
        self.keep(*digest, &self.sources.get(digest)?)
    }

    /// The directories of an output tree that a worker sent along.
    pub(crate) fn add(&self, function: DigestFunction, blobs: &[Bytes]) {
        for blob in blobs {
            self.keep(function.digest(blob), blob);
        }
    }

    fn keep(&self, digest: Digest, blob: &Bytes) -> Option<Arc<Directory>> {
        let directory = Arc::new(Directory::decode(digest.function(), blob).ok()?);
        let mut decoded = self.decoded.lock();
        decoded.add(digest, directory.clone(), blob.len());
        Some(directory)
    }
}

impl Decoded {
    fn add(&mut self, digest: Digest, directory: Arc<Directory>, bytes: usize) {
        self.bytes += bytes;
        if let Some((_, before)) = self.entries.put(digest, (directory, bytes)) {
            self.bytes -= before;
        }
        while self.bytes > MAX_BYTES {
            let Some((_, (_, freed))) = self.entries.pop_lru() else { return };
            self.bytes -= freed;
        }
    }
}

#[cfg(test)]
mod tests {
    use distbuild_proto::{DirectoryNode, Name, SymlinkNode};

    use super::*;

    #[test]
    fn a_directory_of_a_running_builds_sources_is_at_hand_and_no_other() {
        let metadata = Metadata::new(1 << 20);
        let known = KnownDirectories::new(metadata.clone());
        let node = DirectoryNode {
            name: Name::new(b"d").unwrap(),
            digest: DigestFunction::Blake3.digest(b""),
        };
        let directory = Directory::new(Vec::new(), vec![node], Vec::new()).unwrap();
        let (digest, blob) = directory.encode_with_digest(DigestFunction::Blake3);
        assert!(known.get(&digest).is_none());
        let mut build = metadata.build(DigestFunction::Blake3);
        build.add(blob).unwrap();
        assert_eq!(*known.get(&digest).unwrap(), directory);
    }

    #[test]
    fn a_directory_of_a_small_output_tree_is_at_hand_by_the_digest_that_it_has() {
        let known = KnownDirectories::new(Metadata::new(1 << 20));
        let link = SymlinkNode { name: Name::new(b"l").unwrap(), target: Bytes::from_static(b"t") };
        let directory = Directory::new(Vec::new(), Vec::new(), vec![link]).unwrap();
        let (digest, blob) = directory.encode_with_digest(DigestFunction::Blake3);
        known.add(DigestFunction::Blake3, &[Bytes::from_static(b"no directory"), blob]);
        assert_eq!(*known.get(&digest).unwrap(), directory);
    }

    #[test]
    fn the_directories_used_last_are_kept_within_the_limit() {
        let mut decoded = Decoded { entries: LruCache::unbounded(), bytes: 0 };
        let digest = |n: u8| DigestFunction::Blake3.digest(&[n]);
        for n in 0..4 {
            decoded.add(digest(n), Arc::default(), MAX_BYTES / 3);
        }
        assert!(!decoded.entries.contains(&digest(0)) && decoded.entries.contains(&digest(3)));
        assert!(decoded.bytes <= MAX_BYTES);
        decoded.add(digest(3), Arc::default(), 1);
        assert_eq!(decoded.bytes, 2 * (MAX_BYTES / 3) + 1);
    }
}
