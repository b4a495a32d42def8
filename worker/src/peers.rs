//! The worker's own `Blobs` service: peers read what its store holds, and nothing else.
//!
//! A peer must be one that the coordinator sent; who may connect is decided below, by the transport.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::DiskStore;
use distbuild_cas::serving::{self, ReadStream};
use distbuild_proto::transport::{Listener, MAX_MESSAGE_BYTES, server};
use distbuild_proto::wire::blobs_server::{Blobs, BlobsServer};
use distbuild_proto::{Address, wire};
use futures::Stream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::config::WorkerConfig;
use crate::error::WorkerError;
use crate::large;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone, Debug)]
struct PeerBlobs {
    store: DiskStore,
    streams: Arc<Semaphore>,
}

/// Listens for peers until `stop` is cancelled. Gives the address where they reach it.
///
/// # Errors
/// The address is taken, does not exist or would show plaintext to other machines.
pub(crate) async fn serve(
    config: &WorkerConfig,
    listen: &Address,
    store: DiskStore,
    stop: CancellationToken,
) -> Result<Address, WorkerError> {
    if !(config.insecure_network || listen.is_local()) {
        return Err(WorkerError::Insecure(listen.clone()));
    }
    let listener = Listener::bind(listen)
        .await
        .map_err(|source| WorkerError::Listen { address: listen.clone(), source })?;
    let address = reachable(listener.address(), &config.coordinator);
    serve_peers(listener, store, config.limits.max_serving, config.limits.silence, stop);
    Ok(address)
}

/// Serves what a store holds, at most `max_streams` readers at once, until `stop` is cancelled: small blobs
/// over gRPC, large ones in pieces. A reader that is silent for `silence` is left. Runs on a tokio runtime.
pub fn serve_peers(
    listener: Listener,
    store: DiskStore,
    max_streams: usize,
    silence: Duration,
    stop: CancellationToken,
) {
    let streams = Arc::new(Semaphore::new(max_streams));
    let (connections, pieces) = large::sort(listener, stop.clone());
    tokio::spawn(large::serve(pieces, store.clone(), streams.clone(), silence));
    let service = PeerBlobs { store, streams };
    let service = BlobsServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
    tokio::spawn(async move {
        let serving = server()
            .add_service(service)
            .serve_with_incoming_shutdown(connections, stop.cancelled());
        // A graceful end waits for readers; they are cut off with the worker instead.
        let served = tokio::select! {
            served = serving => served,
            () = stop.cancelled() => Ok(()),
        };
        if let Err(error) = served {
            tracing::error!(%error, "failed to serve peers");
        }
    });
}

/// Listening on all addresses, a peer is told the one that leads to the coordinator.
fn reachable(listening: &Address, coordinator: &Address) -> Address {
    let Address::Tcp { host, port } = listening else { return listening.clone() };
    let all = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    let Address::Tcp { host: theirs, port: their_port } = coordinator else {
        let host = if all { "127.0.0.1".to_owned() } else { host.clone() };
        return Address::Tcp { host, port: *port };
    };
    if !all {
        return listening.clone();
    }
    // Nothing is sent: connecting a datagram socket only picks a route.
    let local = std::net::UdpSocket::bind((host.as_str(), 0))
        .and_then(|socket| {
            socket.connect((theirs.as_str(), *their_port))?;
            socket.local_addr()
        })
        .map(|address| address.ip().to_string());
    match local {
        Ok(host) => Address::Tcp { host, port: *port },
        Err(error) => {
            tracing::warn!(%error, "failed to find the address under which peers reach this worker");
            listening.clone()
        }
    }
}

#[tonic::async_trait]
impl Blobs for PeerBlobs {
    type ReadStream = ReadStream;
    type LendStream = BoxStream<wire::LendOrder>;

    async fn read(
        &self,
        request: Request<wire::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let (digests, reader, answer) = serving::accept(request.get_ref())?;
        // Refused rather than made to wait: there are other places to read from.
        let permit = self.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Status::resource_exhausted("too many streams"))?;
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            // A reader that has gone away needs nothing more.
            let _ = reader.send_stored(&store, (0..).zip(digests));
            drop(permit);
        });
        Ok(Response::new(answer))
    }

    async fn lend(
        &self,
        _: Request<Streaming<wire::LendRequest>>,
    ) -> Result<Response<Self::LendStream>, Status> {
        Err(Status::unimplemented("workers are only read from"))
    }

    async fn deliver(
        &self,
        _: Request<Streaming<wire::DeliverRequest>>,
    ) -> Result<Response<wire::DeliverResponse>, Status> {
        Err(Status::unimplemented("workers are only read from"))
    }

    async fn upload(
        &self,
        _: Request<Streaming<wire::UploadRequest>>,
    ) -> Result<Response<wire::UploadResponse>, Status> {
        Err(Status::unimplemented("workers are only read from"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_told_an_address_that_they_can_dial() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        let told = |listen: &str, coordinator: &str| {
            reachable(&address(listen), &address(coordinator)).to_string()
        };
        assert_eq!(told("0.0.0.0:7000", "127.0.0.1:8980"), "127.0.0.1:7000");
        assert_eq!(told("0.0.0.0:7000", "unix:/c"), "127.0.0.1:7000");
        assert_eq!(told("10.0.0.7:7000", "10.0.0.1:8980"), "10.0.0.7:7000");
        assert_eq!(told("unix:/p", "10.0.0.1:8980"), "unix:/p");
    }
}
