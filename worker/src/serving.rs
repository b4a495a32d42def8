//! Stored blobs as a stream of messages: what peers read and what is delivered through the coordinator.

use distbuild_cas::chunks::{ChunkBatcher, error_chunk, send_blob};
use distbuild_cas::{DiskStore, StoreError};
use distbuild_proto::Digest;
use distbuild_proto::wire::BlobChunk;

/// Blobs in one request.
pub(crate) const MAX_BLOBS: usize = 16_384;
/// Messages on the way to one reader, each of about `transport::BULK_MESSAGE_BYTES`.
pub(crate) const WAITING_MESSAGES: usize = 4;

/// The reader has gone away.
pub(crate) struct Gone;

/// Sends blobs one after the other; `send` answers whether the reader still listens. Blocks on the disk and
/// on the reader.
pub(crate) fn send_stored(
    store: &DiskStore,
    digests: &[Digest],
    mut send: impl FnMut(Vec<BlobChunk>) -> bool,
) -> Result<(), Gone> {
    let mut batcher = ChunkBatcher::default();
    for (index, digest) in (0_u32..).zip(digests) {
        // Not evicted between the look and the last byte.
        let _lease = store.lease(&[*digest]);
        let sent = match store.open_bytes(digest) {
            Ok(file) => send_blob(index, file, digest.size_bytes(), &mut batcher, &mut send)
                .map_err(StoreError::from),
            Err(error) => Err(error),
        };
        let failed = match sent {
            Ok(true) => None,
            Ok(false) => return Err(Gone),
            Err(error) => {
                if !error.is_missing() {
                    tracing::warn!(blob.digest = %digest, %error, "failed to serve a blob");
                }
                batcher.push(error_chunk(index, error.to_string(), error.is_missing()))
            }
        };
        if let Some(message) = failed
            && !send(message)
        {
            return Err(Gone);
        }
    }
    let rest = batcher.finish();
    if rest.is_none_or(send) { Ok(()) } else { Err(Gone) }
}
