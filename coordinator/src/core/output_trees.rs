//! Directories of dependencies' outputs that are not at hand when records are compared: those of trees too large
//! to travel with a result, and all of them after a restart. They are read from the workers that hold the outputs.
//!
//! Of a tree all directories are read, level by level, within limits. Whatever goes wrong, the records that would
//! have needed them say nothing: that costs a run, never a wrong result.

use std::collections::HashSet;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use distbuild_proto::{Digest, Directory, wire};

use crate::directories::KnownDirectories;
use crate::locator::Session as SessionId;
use crate::relay::{Lender, Relay, RelayError};

/// Bytes of directories that are read for one comparison.
const MAX_BYTES: u64 = 16 << 20;
/// Directories in one order.
const ORDERED_AT_ONCE: usize = 1024;
/// How long a job waits for them.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why directories could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no worker that is connected holds the outputs")]
    NoLender,
    #[error("the directories of the outputs take more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("they took longer than {} s", DEADLINE.as_secs())]
    Late,
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("directory {0} did not arrive whole")]
    Broken(Digest),
}

/// Reads the directory and all below it from the first worker that has them.
pub(super) async fn fetch(
    relay: &Relay,
    known: &KnownDirectories,
    lenders: &[SessionId],
    root: Digest,
) -> Result<(), FetchError> {
    let fetched = async {
        let mut last = FetchError::NoLender;
        for lender in lenders {
            match fetch_from(relay, known, &Lender::Worker(*lender), root).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    tokio::time::timeout(DEADLINE, fetched).await.unwrap_or(Err(FetchError::Late))
}

async fn fetch_from(
    relay: &Relay,
    known: &KnownDirectories,
    lender: &Lender,
    root: Digest,
) -> Result<(), FetchError> {
    let (mut seen, mut level, mut bytes) = (HashSet::from([root]), vec![root], 0);
    while !level.is_empty() {
        let mut below = Vec::new();
        for digests in level.chunks(ORDERED_AT_ONCE) {
            bytes += digests.iter().map(Digest::size_bytes).sum::<u64>();
            if bytes > MAX_BYTES {
                return Err(FetchError::TooLarge);
            }
            for (digest, blob) in digests.iter().zip(order(relay, lender, digests).await?) {
                let directory = Directory::decode(digest.function(), &blob);
                let directory = directory.map_err(|_| FetchError::Broken(*digest))?;
                let children = directory.directories().iter().map(|child| child.digest);
                below
                    .extend(children.filter(|child| child.size_bytes() > 0 && seen.insert(*child)));
                known.add(digest.function(), &[blob]);
            }
        }
        level = below;
    }
    Ok(())
}

/// These blobs, whole and verified.
async fn order(
    relay: &Relay,
    lender: &Lender,
    digests: &[Digest],
) -> Result<Vec<Bytes>, FetchError> {
    let mut blobs = vec![BytesMut::new(); digests.len()];
    let mut transfer = relay.order(lender, digests).await?;
    while let Some(chunks) = transfer.next().await? {
        for wire::BlobChunk { index, data, .. } in chunks {
            let at = index as usize;
            let (Some(blob), Some(digest)) = (blobs.get_mut(at), digests.get(at)) else { continue };
            if (blob.len() + data.len()) as u64 > digest.size_bytes() {
                return Err(FetchError::Broken(*digest));
            }
            blob.extend_from_slice(&data);
        }
    }
    let whole = blobs.into_iter().zip(digests).map(|(blob, digest)| {
        let is_whole = digest.function().digest(&blob) == *digest;
        if is_whole { Ok(blob.freeze()) } else { Err(FetchError::Broken(*digest)) }
    });
    whole.collect()
}
