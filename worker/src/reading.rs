//! One `Read` call: the blobs of a request, from whoever serves them into the store.

use std::time::Duration;

use distbuild_cas::DiskStore;
use distbuild_cas::chunks::{ChunkReceiver, ProtocolError, ReceiveError};
use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::wire::read_request::Place;
use distbuild_proto::{Digest, wire};
use tonic::transport::Channel;

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Reading {
    /// For each blob, in order.
    pub(crate) results: Vec<Result<(), ReceiveError>>,
    /// Why blobs are incomplete.
    pub(crate) broken: String,
}

impl Reading {
    /// A call that brought nothing.
    pub(crate) fn none(blobs: usize, why: impl Into<String>) -> Self {
        let results = (0..blobs).map(|_| Err(ReceiveError::Incomplete)).collect();
        Self { results, broken: why.into() }
    }
}

/// Reads blobs into a store. What arrived before the call broke is kept.
pub(crate) async fn read(
    mut client: BlobsClient<Channel>,
    digests: Vec<Digest>,
    place: Option<Place>,
    store: DiskStore,
    silence: Duration,
) -> Reading {
    let wanted = digests.iter().map(|digest| (*digest).into()).collect();
    let request = wire::ReadRequest { digests: wanted, place };
    let mut responses = match tokio::time::timeout(silence, client.read(request)).await {
        Ok(Ok(responses)) => responses.into_inner(),
        Ok(Err(status)) => return Reading::none(digests.len(), text(&status)),
        Err(_) => return Reading::none(digests.len(), silent(silence)),
    };
    let blobs = digests.len();
    let mut receiver = ChunkReceiver::new(store, digests);
    let broken = loop {
        let chunks = match tokio::time::timeout(silence, responses.message()).await {
            Ok(Ok(Some(response))) => response.chunks,
            Ok(Ok(None)) => break "the transfer ended early".to_owned(),
            Ok(Err(status)) => break text(&status),
            Err(_) => break silent(silence),
        };
        // Hashing and writing are work for a thread that may block.
        let taken = tokio::task::spawn_blocking(move || {
            let taken = chunks.iter().try_for_each(|chunk| receiver.take(chunk));
            (receiver, taken)
        });
        let taken: (ChunkReceiver, Result<(), ProtocolError>) = match taken.await {
            Ok(taken) => taken,
            Err(error) => return Reading::none(blobs, error.to_string()),
        };
        receiver = taken.0;
        if let Err(error) = taken.1 {
            break error.to_string();
        }
    };
    Reading { results: receiver.finish(), broken }
}

fn text(status: &tonic::Status) -> String {
    format!("the transfer failed: {}", status.message())
}

fn silent(silence: Duration) -> String {
    format!("nothing came for {} s", silence.as_secs())
}
