//! Blobs in pieces, as they travel: filling messages on one side, filling the store on the other.

use std::io::Read;

use bytes::Bytes;
use distbuild_proto::Digest;
use distbuild_proto::transport::BULK_MESSAGE_BYTES;
use distbuild_proto::wire::BlobChunk;

use crate::{BlobWriter, DiskStore, StoreError};

/// Fills messages up to [`BULK_MESSAGE_BYTES`] with pieces of blobs: many small blobs share one.
#[derive(Debug, Default)]
pub struct ChunkBatcher {
    chunks: Vec<BlobChunk>,
    bytes: usize,
}

/// What a piece costs beside its data, about.
const CHUNK_OVERHEAD_BYTES: usize = 16;

impl ChunkBatcher {
    /// Adds a piece; gives a full message back, if it became one.
    pub fn push(&mut self, chunk: BlobChunk) -> Option<Vec<BlobChunk>> {
        self.bytes += chunk.data.len() + chunk.error.len() + CHUNK_OVERHEAD_BYTES;
        self.chunks.push(chunk);
        (self.bytes >= BULK_MESSAGE_BYTES).then(|| self.take())
    }

    /// The last message, if something is left.
    pub fn finish(&mut self) -> Option<Vec<BlobChunk>> {
        (!self.chunks.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> Vec<BlobChunk> {
        self.bytes = 0;
        std::mem::take(&mut self.chunks)
    }
}

/// A piece that says that a blob cannot be had.
pub fn error_chunk(index: u32, error: String, not_found: bool) -> BlobChunk {
    BlobChunk { index, error, not_found, last: true, data: Bytes::new() }
}

/// Sends one blob of `size_bytes` from a reader through `send`, in pieces. `send` answers whether
/// the other side still listens. Blocks; for a thread that may.
///
/// # Errors
/// The reader fails or ends early.
pub fn send_blob(
    index: u32,
    mut reader: impl Read,
    size_bytes: u64,
    batcher: &mut ChunkBatcher,
    mut send: impl FnMut(Vec<BlobChunk>) -> bool,
) -> std::io::Result<bool> {
    let mut left = size_bytes;
    loop {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(BULK_MESSAGE_BYTES);
        let mut data = vec![0; len];
        reader.read_exact(&mut data)?;
        left -= len as u64;
        let chunk = BlobChunk { index, data: data.into(), last: left == 0, ..Default::default() };
        if let Some(message) = batcher.push(chunk)
            && !send(message)
        {
            return Ok(false);
        }
        if left == 0 {
            return Ok(true);
        }
    }
}

/// Receives the blobs of one request into a store; every byte is verified before a blob is visible.
#[derive(Debug)]
pub struct ChunkReceiver {
    store: DiskStore,
    digests: Vec<Digest>,
    /// Which blobs have arrived, or will not.
    settled: Vec<bool>,
    current: Option<(usize, BlobWriter)>,
}

/// What became of one blob.
#[derive(Debug)]
pub struct Arrival {
    /// Which of the digests that were asked for.
    pub index: usize,
    /// Whether the store has it.
    pub result: Result<(), ReceiveError>,
}

impl ChunkReceiver {
    /// Expects the blobs of these digests.
    pub fn new(store: DiskStore, digests: Vec<Digest>) -> Self {
        let settled = vec![false; digests.len()];
        Self { store, digests, settled, current: None }
    }

    /// Takes the next piece; tells what became of its blob if it was the last one of it. A blob that fails
    /// does not end the others. Blocks on the disk.
    ///
    /// # Errors
    /// The sender breaks the protocol; nothing more can be taken.
    pub fn take(&mut self, chunk: &BlobChunk) -> Result<Option<Arrival>, ProtocolError> {
        let index = chunk.index as usize;
        let digest = *self.digests.get(index).ok_or(ProtocolError::Index(chunk.index))?;
        if self.settled[index] {
            return Ok(None);
        }
        let goes_on = self.current.as_ref().is_some_and(|(current, _)| *current == index);
        let is_error = !chunk.error.is_empty() || chunk.not_found;
        if self.current.is_some() && !goes_on && !is_error {
            return Err(ProtocolError::Interleaved);
        }
        let result = if is_error {
            self.current = None;
            Err(match chunk.not_found {
                true => ReceiveError::NotFound,
                false => ReceiveError::Remote(chunk.error.clone()),
            })
        } else if chunk.last && !goes_on {
            self.store.insert(&digest, &chunk.data, false).map_err(ReceiveError::from)
        } else {
            match self.write(index, digest, chunk) {
                Ok(true) => Ok(()),
                Ok(false) => return Ok(None),
                Err(error) => {
                    self.current = None;
                    Err(error.into())
                }
            }
        };
        self.settled[index] = true;
        Ok(Some(Arrival { index, result }))
    }

    /// Writes a piece of a blob that comes in several; answers whether the blob is complete.
    fn write(
        &mut self,
        index: usize,
        digest: Digest,
        chunk: &BlobChunk,
    ) -> Result<bool, StoreError> {
        let mut writer = match self.current.take() {
            Some((_, writer)) => writer,
            None => self.store.writer(digest, false)?,
        };
        writer.write_chunk(&chunk.data)?;
        if chunk.last {
            writer.commit()?;
        } else {
            self.current = Some((index, writer));
        }
        Ok(chunk.last)
    }

    /// Those of which nothing became: the transfer ended before their last piece.
    pub fn finish(self) -> Vec<usize> {
        (0..self.settled.len()).filter(|index| !self.settled[*index]).collect()
    }
}

/// Why one blob did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The sender does not have it.
    #[error("not found")]
    NotFound,
    /// The sender failed to send it.
    #[error("{0}")]
    Remote(String),
    /// Those who have it serve as many readers as they may just now.
    #[error("its holders are busy")]
    Busy,
    /// The stream ended before it.
    #[error("the transfer ended early")]
    Incomplete,
    /// The store did not take it: wrong bytes, or a full disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A sender that breaks the protocol.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A piece of a blob that nobody asked for.
    #[error("the sender sent blob {0}, which was not asked for")]
    Index(u32),
    /// A piece of another blob before the last of this one.
    #[error("the sender began a blob before it had ended another")]
    Interleaved,
}
