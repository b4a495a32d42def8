//! Between domain types and the few wire messages that every component uses.

use bytes::Bytes;

use crate::digest::{Digest, DigestError, DigestFunction};
use crate::wire;

impl From<Digest> for wire::Digest {
    fn from(digest: Digest) -> Self {
        Self {
            function: digest.function() as i32,
            hash: Bytes::copy_from_slice(digest.hash()),
            size_bytes: digest.size_bytes(),
        }
    }
}

impl TryFrom<&wire::Digest> for Digest {
    type Error = DigestError;

    fn try_from(digest: &wire::Digest) -> Result<Self, DigestError> {
        let function = DigestFunction::from_number(digest.function)?;
        Self::new(function, &digest.hash, digest.size_bytes)
    }
}

impl TryFrom<Option<wire::Digest>> for Digest {
    type Error = DigestError;

    fn try_from(digest: Option<wire::Digest>) -> Result<Self, DigestError> {
        Self::try_from(&digest.ok_or(DigestError::Missing)?)
    }
}

/// Parses a list of digests.
pub fn digests(list: &[wire::Digest]) -> Result<Vec<Digest>, DigestError> {
    list.iter().map(Digest::try_from).collect()
}
