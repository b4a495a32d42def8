//! One `Read` call: the blobs of a request, from whoever serves them into the store.
//!
//! What has arrived is told message by message, so that nobody waits for the end of a call for a blob
//! that came in its first message. What arrived before a call broke is kept.

use std::time::Duration;

use distbuild_cas::DiskStore;
use distbuild_cas::chunks::{Arrival, ChunkReceiver, ProtocolError};
use distbuild_proto::wire::BlobChunk;
use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::wire::read_request::Place;
use distbuild_proto::{Digest, wire};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// What a call brings.
#[derive(Debug)]
pub(crate) enum Progress {
    /// These blobs have come, or will not.
    Arrived(Vec<Arrival>),
    /// The call has ended before these, by their place in the request.
    Broke { left: Vec<usize>, why: String },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Reading {
    call: Call,
    /// None after the end.
    receiver: Option<ChunkReceiver>,
    /// Why nothing more is read.
    broken: Option<String>,
    silence: Duration,
}

#[derive(Debug)]
enum Call {
    Asking(BlobsClient<Channel>, wire::ReadRequest),
    Answered(Streaming<wire::ReadResponse>),
}

impl Reading {
    /// A call that begins with the first [`next`](Self::next).
    pub(crate) fn new(
        client: BlobsClient<Channel>,
        digests: Vec<Digest>,
        place: Option<Place>,
        store: DiskStore,
        silence: Duration,
    ) -> Self {
        let wanted = digests.iter().map(|digest| (*digest).into()).collect();
        let call = Call::Asking(client, wire::ReadRequest { digests: wanted, place });
        let receiver = Some(ChunkReceiver::new(store, digests));
        Self { call, receiver, broken: None, silence }
    }

    /// What came next; none after the end.
    pub(crate) async fn next(&mut self) -> Option<Progress> {
        let mut receiver = self.receiver.take()?;
        let message = match self.broken.take() {
            Some(why) => Err(why),
            None => self.message().await,
        };
        let chunks = match message {
            Ok(chunks) => chunks,
            Err(why) => {
                let left = receiver.finish();
                return (!left.is_empty()).then_some(Progress::Broke { left, why });
            }
        };
        // Hashing and writing are work for a thread that may block.
        let taken = tokio::task::spawn_blocking(move || {
            let mut arrived = Vec::with_capacity(chunks.len());
            let taken = chunks.iter().try_for_each(|chunk| {
                arrived.extend(receiver.take(chunk)?);
                Ok::<_, ProtocolError>(())
            });
            (receiver, arrived, taken)
        });
        // Blobs that a panic took with it have no answer, and that is an answer.
        let (receiver, arrived, taken) = taken.await.ok()?;
        self.receiver = Some(receiver);
        self.broken = taken.err().map(|error| error.to_string());
        Some(Progress::Arrived(arrived))
    }

    /// The next message, or why there is none.
    async fn message(&mut self) -> Result<Vec<BlobChunk>, String> {
        if let Call::Asking(client, request) = &mut self.call {
            let request = std::mem::take(request);
            let answered = timeout(self.silence, client.read(request)).await;
            let answered = answered.map_err(|_| silent(self.silence))?;
            self.call = Call::Answered(answered.map_err(|status| text(&status))?.into_inner());
        }
        let Call::Answered(responses) = &mut self.call else { return Err(ended()) };
        let response = timeout(self.silence, responses.message()).await;
        let response = response.map_err(|_| silent(self.silence))?.map_err(|status| text(&status));
        Ok(response?.ok_or_else(ended)?.chunks)
    }
}

fn ended() -> String {
    "the transfer ended early".to_owned()
}

fn text(status: &Status) -> String {
    format!("the transfer failed: {}", status.message())
}

fn silent(silence: Duration) -> String {
    format!("nothing came for {} s", silence.as_secs())
}
