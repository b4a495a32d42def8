//! The server's side of a `Read` call: what is checked, and the stream on which blobs go out.
//!
//! Whoever serves blobs (workers to peers, the coordinator to all) answers through this. At most
//! [`WAITING_MESSAGES`] are in memory for one reader, and one that has gone away ends the sending.

use std::pin::Pin;

use distbuild_proto::transport::BULK_MESSAGE_BYTES;
use distbuild_proto::wire::{self, BlobChunk};
use distbuild_proto::{Digest, convert};
use futures_core::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::chunks::{ChunkBatcher, error_chunk, send_blob};
use crate::{DiskStore, StoreError};

/// Blobs in one request.
pub const MAX_BLOBS: usize = 16_384;
/// Messages on the way to one reader, each of about `transport::BULK_MESSAGE_BYTES`.
pub const WAITING_MESSAGES: usize = 4;

/// What goes back to the reader.
pub type ReadStream = Pin<Box<dyn Stream<Item = Result<wire::ReadResponse, Status>> + Send>>;

/// The reader has gone away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reader has gone away")]
pub struct Gone;

/// Where the answer of one `Read` call goes.
#[derive(Clone, Debug)]
pub struct Reader {
    out: mpsc::Sender<Result<wire::ReadResponse, Status>>,
}

/// Checks a request; gives the blobs it asks for and both ends of the answer.
///
/// # Errors
/// More than [`MAX_BLOBS`], or a malformed digest.
pub fn accept(request: &wire::ReadRequest) -> Result<(Vec<Digest>, Reader, ReadStream), Status> {
    let blobs = request.digests.len();
    if blobs > MAX_BLOBS {
        let text = format!("{blobs} blobs in one request, allowed are {MAX_BLOBS}");
        return Err(Status::invalid_argument(text));
    }
    let digests = convert::digests(&request.digests)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let (out, responses) = mpsc::channel(WAITING_MESSAGES);
    Ok((digests, Reader { out }, Box::pin(ReceiverStream::new(responses))))
}

impl Reader {
    /// Sends a message; waits for room.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn send(&self, chunks: Vec<BlobChunk>) -> Result<(), Gone> {
        self.out.send(Ok(wire::ReadResponse { chunks })).await.map_err(|_| Gone)
    }

    /// Sends stored blobs under the numbers by which the reader knows them. Blocks on the disk and on the
    /// reader.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn send_stored(
        &self,
        store: &DiskStore,
        blobs: impl IntoIterator<Item = (u32, Digest)>,
    ) -> Result<(), Gone> {
        let send = |chunks| self.out.blocking_send(Ok(wire::ReadResponse { chunks })).is_ok();
        send_stored(store, blobs, send)
    }
}

/// Sends stored blobs one after the other, small ones together; `send` answers whether the other side still
/// listens. A blob that cannot be had is a piece that says why. Blocks.
///
/// # Errors
/// [`Gone`].
pub fn send_stored(
    store: &DiskStore,
    blobs: impl IntoIterator<Item = (u32, Digest)>,
    mut send: impl FnMut(Vec<BlobChunk>) -> bool,
) -> Result<(), Gone> {
    let mut batcher = ChunkBatcher::default();
    for (index, digest) in blobs {
        let sent = match digest.size_bytes() <= BULK_MESSAGE_BYTES as u64 {
            true => store.read(&digest).map(|data| {
                let chunk = BlobChunk { index, data, last: true, ..BlobChunk::default() };
                batcher.push(chunk).is_none_or(&mut send)
            }),
            false => send_large(store, index, &digest, &mut batcher, &mut send),
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

fn send_large(
    store: &DiskStore,
    index: u32,
    digest: &Digest,
    batcher: &mut ChunkBatcher,
    send: impl FnMut(Vec<BlobChunk>) -> bool,
) -> Result<bool, StoreError> {
    // Not evicted between the look and the last byte.
    let _lease = store.lease(&[*digest]);
    let file = store.open_bytes(digest)?;
    Ok(send_blob(index, file, digest.size_bytes(), batcher, send)?)
}
