//! The access record: what one view's processes looked at.
//!
//! Each name that was looked up stands once, with what it was; each directory that was listed stands
//! once. Paths are inside the view's root and sorted by their bytes. The record says nothing about
//! which process looked, when, or how often: the kernel asks for each name once and remembers.

use bytes::Bytes;
use distbuild_proto::{Digest, RelPath};
use serde::{Deserialize, Serialize};

use crate::codec;

/// What a view's processes looked up and listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRecord {
    looked_up: Vec<LookedUp>,
    listed: Vec<RelPath>,
    complete: bool,
}

/// One name that was looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookedUp {
    /// Where it is, inside the view's root.
    #[serde(with = "codec::path")]
    pub path: RelPath,
    /// What it was.
    pub observed: Observed,
}

/// What a name was when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observed {
    /// A regular file.
    File {
        /// Its contents.
        #[serde(with = "codec::digest")]
        digest: Digest,
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to, as it stands.
        #[serde(with = "codec::bytes")]
        target: Bytes,
    },
    /// A directory; looking it up does not look at what is in it.
    Directory,
    /// Nothing of this name.
    Absent,
}

#[derive(Serialize)]
struct Encoding<'a> {
    version: u8,
    complete: bool,
    looked_up: &'a [LookedUp],
    #[serde(with = "codec::paths")]
    listed: &'a [RelPath],
}

#[derive(Deserialize)]
struct Decoded {
    #[serde(rename = "version")]
    _version: u8,
    complete: bool,
    looked_up: Vec<LookedUp>,
    #[serde(with = "codec::paths")]
    listed: Vec<RelPath>,
}

/// The first byte of an encoded record.
const VERSION: u8 = 1;

impl AccessRecord {
    /// Sorts what was seen. `complete` is false if something was seen that does not stand here.
    pub fn new(mut looked_up: Vec<LookedUp>, mut listed: Vec<RelPath>, complete: bool) -> Self {
        looked_up.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        listed.sort_unstable();
        Self { looked_up, listed, complete }
    }

    /// Every name that was looked up, in the order of the paths' bytes.
    pub fn looked_up(&self) -> &[LookedUp] {
        &self.looked_up
    }

    /// Every directory that was listed, in the order of their bytes; the root is the empty path.
    pub fn listed(&self) -> &[RelPath] {
        &self.listed
    }

    /// Whether everything that was looked at stands here. If not, the record may be used to guess
    /// (prefetch) but not to conclude (a cache hit).
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The files among the names: path, digest, executable.
    pub fn looked_up_files(&self) -> impl Iterator<Item = (&RelPath, Digest, bool)> {
        self.looked_up.iter().filter_map(|entry| match entry.observed {
            Observed::File { digest, executable } => Some((&entry.path, digest, executable)),
            Observed::Symlink { .. } | Observed::Directory | Observed::Absent => None,
        })
    }

    /// What the name at this path was; `None` if it was not looked up.
    pub fn get(&self, path: &RelPath) -> Option<&Observed> {
        let at = self.looked_up.binary_search_by(|entry| entry.path.cmp(path)).ok()?;
        Some(&self.looked_up[at].observed)
    }

    /// The record as bytes.
    ///
    /// # Errors
    /// None that a record of this type can cause; the encoder's are passed on.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        Ok(postcard::to_stdvec(&Encoding {
            version: VERSION,
            complete: self.complete,
            looked_up: &self.looked_up,
            listed: &self.listed,
        })?)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// Another version, bytes that are no record, or paths out of order.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match bytes.first() {
            Some(&VERSION) => {}
            version => return Err(RecordError::Version(version.copied())),
        }
        let encoded: Decoded = postcard::from_bytes(bytes)?;
        let sorted = encoded.looked_up.is_sorted_by(|a, b| a.path < b.path)
            && encoded.listed.is_sorted_by(|a, b| a < b);
        if !sorted {
            return Err(RecordError::Unsorted);
        }
        Ok(Self {
            looked_up: encoded.looked_up,
            listed: encoded.listed,
            complete: encoded.complete,
        })
    }
}

/// Why bytes are no access record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Written by another version of this program, or empty.
    #[error("access record of version {0:?}, only {VERSION} is known")]
    Version(Option<u8>),
    /// Paths that are not sorted or stand twice.
    #[error("the paths of an access record are not sorted")]
    Unsorted,
    /// Not the encoding of a record.
    #[error("not an access record: {0}")]
    Encoding(#[from] postcard::Error),
}

#[cfg(test)]
mod tests {
    use distbuild_proto::DigestFunction;

    use super::*;

    fn at(path: &[u8], observed: Observed) -> LookedUp {
        LookedUp { path: RelPath::new(path).unwrap(), observed }
    }

    fn sample() -> AccessRecord {
        let digest = DigestFunction::Sha1.digest(b"x");
        AccessRecord::new(
            vec![
                at(b"src/\xff", Observed::File { digest, executable: true }),
                at(b"src", Observed::Directory),
                at(b"link", Observed::Symlink { target: Bytes::from_static(b"../a b") }),
                at(b"src/none.h", Observed::Absent),
            ],
            vec![RelPath::new(b"src").unwrap(), RelPath::root()],
            true,
        )
    }

    #[test]
    fn an_encoded_record_decodes_to_itself() {
        let record = sample();
        assert_eq!(AccessRecord::decode(&record.encode().unwrap()).unwrap(), record);
        assert_eq!(record.looked_up_files().count(), 1);
        let path = RelPath::new(b"src/none.h").unwrap();
        assert_eq!(record.get(&path), Some(&Observed::Absent));
    }

    #[test]
    fn every_shortened_record_is_refused() {
        let bytes = sample().encode().unwrap();
        for len in 0..bytes.len() {
            assert!(AccessRecord::decode(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_record_of_another_version_is_refused() {
        let mut bytes = sample().encode().unwrap();
        bytes[0] = 2;
        assert!(matches!(AccessRecord::decode(&bytes), Err(RecordError::Version(Some(2)))));
    }

    #[test]
    fn a_record_with_unsorted_paths_is_refused() {
        let mut record = sample();
        record.looked_up.reverse();
        let bytes = record.encode().unwrap();
        assert!(matches!(AccessRecord::decode(&bytes), Err(RecordError::Unsorted)));
    }
}
