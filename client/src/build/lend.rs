//! Lending: the client's sources, as the coordinator orders them.
//!
//! Only what the build declares is lent, and only in the state in which it was hashed: a file that
//! has changed is told to whoever wanted it and to the session, which ends the build.

use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::chunks::{ChunkBatcher, error_chunk};
use distbuild_cas::ingest::{LendError, Snapshot};
use distbuild_cas::lending::{self, Lends};
use distbuild_cas::serving::WAITING_MESSAGES;
use distbuild_proto::Digest;
use distbuild_proto::transport::{BULK_MESSAGE_BYTES, MAX_MESSAGE_BYTES};
use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::wire::lend_request::Body;
use distbuild_proto::wire::{self, BlobChunk};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::traffic::Traffic;

/// Deliveries by calls of their own at once; further orders wait.
const DELIVERIES: usize = 16;
/// Blobs in one upload call.
const UPLOAD_BLOBS: usize = 1024;
/// How often a broken stream of orders is opened again before the build is given up.
const REOPENINGS: u32 = 5;
/// Pause before the first of them; it doubles.
const REOPEN: Duration = Duration::from_millis(100);

/// Lends the sources of one build.
#[derive(Clone, Debug)]
pub(crate) struct Lender {
    blobs: BlobsClient<Channel>,
    snapshot: Arc<Snapshot>,
    traffic: Arc<Traffic>,
    build: wire::BuildLender,
    /// What keeps the build from succeeding.
    troubles: mpsc::Sender<String>,
}

impl Lender {
    pub(crate) fn new(
        channel: Channel,
        snapshot: Arc<Snapshot>,
        traffic: Arc<Traffic>,
        build: wire::BuildLender,
        troubles: mpsc::Sender<String>,
    ) -> Self {
        let blobs = BlobsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { blobs, snapshot, traffic, build, troubles }
    }

    /// Answers orders until it is dropped, or until the coordinator gives none any more.
    pub(crate) async fn lend(self) {
        let deliveries = Arc::new(Semaphore::new(DELIVERIES));
        let mut pause = REOPEN;
        let mut reopenings = 0;
        loop {
            let lender = Body::Build(self.build.clone());
            let lending =
                lending::lend(self.blobs.clone(), lender, self.clone(), deliveries.clone());
            let error = match lending.await {
                // The build is over, or was before lending began.
                Ok(()) => return,
                Err(error) if error.code() == Code::PermissionDenied => {
                    tracing::debug!(%error, "the build takes nothing any more");
                    return;
                }
                Err(error) => error,
            };
            reopenings += 1;
            if reopenings > REOPENINGS {
                let text = format!("sources can no longer be lent: {}", error.message());
                let _ = self.troubles.send(text).await;
                return;
            }
            tracing::debug!(%error, "the stream of orders broke");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Sends every declared file to the coordinator's own store.
    pub(crate) async fn upload(self) {
        let all: Vec<Digest> = self.snapshot.files().keys().copied().collect();
        for digests in all.chunks(UPLOAD_BLOBS) {
            if let Err(error) = self.upload_some(digests.to_vec()).await {
                let text = format!("failed to upload the sources: {}", error.message());
                let _ = self.troubles.send(text).await;
                return;
            }
        }
    }

    async fn upload_some(&self, digests: Vec<Digest>) -> Result<(), Status> {
        let (out, messages) = mpsc::channel(WAITING_MESSAGES);
        let first = wire::UploadRequest {
            digests: digests.iter().map(|digest| (*digest).into()).collect(),
            chunks: Vec::new(),
            build: Some(self.build.clone()),
        };
        // The channel is new and has room.
        let _ = out.try_send(first);
        let lender = self.clone();
        tokio::task::spawn_blocking(move || {
            lender.send_all(&digests, |chunks| {
                let message = wire::UploadRequest { chunks, ..wire::UploadRequest::default() };
                out.blocking_send(message).is_ok()
            });
        });
        self.blobs.clone().upload(ReceiverStream::new(messages)).await.map(drop)
    }

    fn send_one(
        &self,
        index: u32,
        digest: &Digest,
        batcher: &mut ChunkBatcher,
        send: &mut impl FnMut(Vec<BlobChunk>) -> bool,
    ) -> Result<bool, LendError> {
        if let Some(directory) = self.snapshot.directories().get(digest) {
            self.traffic.count_sent(directory.len());
            let data = directory.clone();
            let chunk = BlobChunk { index, data, last: true, ..BlobChunk::default() };
            return Ok(batcher.push(chunk).is_none_or(send));
        }
        let mut reader = self.snapshot.open_verified(digest)?;
        let mut left = digest.size_bytes();
        loop {
            let data = reader.next_piece(BULK_MESSAGE_BYTES)?.unwrap_or_default();
            left = left.saturating_sub(data.len() as u64);
            self.traffic.count_sent(data.len());
            let chunk = BlobChunk { index, data, last: left == 0, ..BlobChunk::default() };
            if batcher.push(chunk).is_some_and(|chunks| !send(chunks)) {
                return Ok(false);
            }
            if left == 0 {
                return Ok(true);
            }
        }
    }

    /// A file that is not what it was, or cannot be read, spoils the build.
    fn report(&self, error: &LendError) {
        if !matches!(error, LendError::NotDeclared(_)) {
            // One trouble is enough to end the build, and the channel has room for one.
            let _ = self.troubles.try_send(error.to_string());
        }
    }
}

impl Lends for Lender {
    fn send_all(&self, digests: &[Digest], mut send: impl FnMut(Vec<BlobChunk>) -> bool) {
        let mut batcher = ChunkBatcher::default();
        for (index, digest) in digests.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let sent = match self.send_one(index, digest, &mut batcher, &mut send) {
                Ok(sent) => sent,
                Err(error) => {
                    self.report(&error);
                    let not_found = matches!(error, LendError::NotDeclared(_));
                    let chunk = error_chunk(index, error.to_string(), not_found);
                    batcher.push(chunk).is_none_or(&mut send)
                }
            };
            if !sent {
                return;
            }
        }
        if let Some(chunks) = batcher.finish() {
            send(chunks);
        }
    }
}
