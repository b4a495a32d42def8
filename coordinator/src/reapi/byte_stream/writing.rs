//! Blobs on their way from a client.
//!
//! Most uploads are small and come in one piece: they are written at once, and what is written has no name before it is
//! whole. Others are [`uploads`](super::uploads).

use bazel_remote_apis::google::bytestream::WriteRequest;
use distbuild_cas::{DiskStore, StoreError};
use tokio::task::{JoinHandle, spawn_blocking};
use tonic::{Status, Streaming};

use super::incoming::{End, Incoming, PIECE_BYTES};
use super::uploads::Upload;
use super::{ByteStreamService, Compressor, WriteName};
use crate::reapi::{cas, compression, status};

/// How many bytes come before it is seen whether somebody else has brought the blob meanwhile.
const LOOK_BYTES: u64 = 4 << 20;

impl ByteStreamService {
    /// Takes a blob; gives the committed size.
    pub(super) async fn write_blob(
        &self,
        messages: Streaming<WriteRequest>,
    ) -> Result<i64, Status> {
        let mut incoming = Incoming::begin(messages).await?;
        let name = incoming.name.clone();
        if name.digest.size_bytes() > self.max_blob_bytes {
            return Err(cas::too_large(&name.digest, self.max_blob_bytes));
        }
        if self.store.contains(&name.digest) {
            return Ok(already_here(&name));
        }
        let first = incoming.piece().await?;
        let is_small = name.digest.size_bytes() <= PIECE_BYTES as u64;
        if first.end == End::Finished && incoming.first_offset == 0 && is_small {
            let store = self.store.clone();
            let inserted = spawn_blocking(move || insert(&store, &name, first.data)).await;
            inserted.map_err(|error| status::of_thread(&error))??;
        } else {
            let upload = self.uploads.begin(name.clone(), incoming.first_offset).await?;
            let mut writing = Writing::Idle(upload);
            let (mut piece, mut look_at) = (first, LOOK_BYTES);
            loop {
                let end = piece.end;
                writing = writing.write(piece.data).await?;
                match end {
                    End::More => {}
                    End::Finished => break,
                    End::Broken => {
                        let committed = writing.settle().await?.1;
                        return Ok(i64::try_from(committed).unwrap_or(i64::MAX));
                    }
                }
                if incoming.received_bytes >= look_at {
                    look_at = incoming.received_bytes + LOOK_BYTES;
                    if self.store.contains(&name.digest) {
                        return Ok(already_here(&name));
                    }
                }
                piece = incoming.piece().await?;
            }
            let (upload, _) = writing.settle().await?;
            let finished = spawn_blocking(move || upload.finish()).await;
            finished.map_err(|error| status::of_thread(&error))??;
        }
        if incoming.continues() {
            return Err(status::invalid("a message after the one with finish_write"));
        }
        // Of compressed blobs the bytes that came: clients compare with what they sent.
        let committed = incoming.first_offset.saturating_add(incoming.received_bytes);
        Ok(i64::try_from(committed).unwrap_or(i64::MAX))
    }
}

/// What a client is told whose blob was there before it had sent all of it.
fn already_here(name: &WriteName) -> i64 {
    match name.compressor {
        Compressor::Identity => i64::try_from(name.digest.size_bytes()).unwrap_or(i64::MAX),
        Compressor::Zstd => -1,
    }
}

fn insert(store: &DiskStore, name: &WriteName, data: Vec<u8>) -> Result<(), Status> {
    let digest = &name.digest;
    let data = match name.compressor {
        Compressor::Identity => data,
        Compressor::Zstd => compression::decompress(&data, digest.size_bytes() as usize)
            .map_err(|error| status::invalid(format!("{digest}: {error}")))?,
    };
    if data.len() as u64 > digest.size_bytes() {
        return Err(status::of_store(&StoreError::TooLong { expected: *digest }));
    }
    store.insert(digest, &data, false).map_err(|error| status::of_store(&error))
}

/// An upload, and the piece that is being written while the next one comes.
enum Writing {
    Idle(Upload),
    Busy(JoinHandle<Result<(Upload, u64), Status>>),
}

impl Writing {
    /// Waits for the piece before, and begins with this one.
    async fn write(self, data: Vec<u8>) -> Result<Self, Status> {
        let upload = match self {
            Self::Idle(upload) => upload,
            busy @ Self::Busy(_) => busy.settle().await?.0,
        };
        Ok(Self::Busy(spawn_blocking(move || {
            let committed = upload.write(&data)?;
            Ok((upload, committed))
        })))
    }

    /// Waits until all is written; gives how many bytes of the blob are here.
    async fn settle(self) -> Result<(Upload, u64), Status> {
        match self {
            Self::Idle(upload) => Ok((upload, 0)),
            Self::Busy(writing) => writing.await.map_err(|error| status::of_thread(&error))?,
        }
    }
}
