//! Connections to the coordinator and to peers.
//!
//! Control and bytes have connections of their own. All dial when they are first used and again after a
//! failure. Connections to peers are kept up to a limit, least recently used go first; a peer that failed
//! or served wrong bytes is avoided for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distbuild_proto::Address;
use distbuild_proto::transport::{MAX_MESSAGE_BYTES, endpoint};
use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::wire::workers_client::WorkersClient;
use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::config::WorkerConfig;
use crate::error::WorkerError;

/// The coordinator, for control and for bytes.
#[derive(Clone, Debug)]
pub(crate) struct Coordinator {
    control: Channel,
    bytes: Channel,
}

impl Coordinator {
    /// Dials nobody yet.
    ///
    /// # Errors
    /// An address of another machine although plaintext must stay here, or one that makes no URI.
    pub(crate) fn new(config: &WorkerConfig) -> Result<Self, WorkerError> {
        let address = &config.coordinator;
        if !(config.insecure_network || address.is_local()) {
            return Err(WorkerError::Insecure(address.clone()));
        }
        let endpoint = endpoint(address)
            .map_err(|source| WorkerError::Address { address: address.clone(), source })?;
        Ok(Self { control: endpoint.connect_lazy(), bytes: endpoint.connect_lazy() })
    }

    /// Sessions.
    pub(crate) fn workers(&self) -> WorkersClient<Channel> {
        workers_client(self.control.clone())
    }

    /// Where blobs are. The answers may carry contents, so they travel with the bytes.
    pub(crate) fn locating(&self) -> WorkersClient<Channel> {
        workers_client(self.bytes.clone())
    }

    /// Bytes.
    pub(crate) fn blobs(&self) -> BlobsClient<Channel> {
        blobs_client(self.bytes.clone())
    }
}

fn workers_client(channel: Channel) -> WorkersClient<Channel> {
    WorkersClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn blobs_client(channel: Channel) -> BlobsClient<Channel> {
    BlobsClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Connections to peers. Clones are one table.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    table: Arc<Mutex<HashMap<String, Peer>>>,
    max_peers: usize,
    avoid: Duration,
    insecure_network: bool,
}

#[derive(Debug)]
struct Peer {
    channel: Option<Channel>,
    last_used: Instant,
    avoid_until: Option<Instant>,
}

impl Peers {
    pub(crate) fn new(config: &WorkerConfig) -> Self {
        Self {
            table: Arc::default(),
            max_peers: config.limits.max_peers.max(1),
            avoid: config.limits.avoid_peer,
            insecure_network: config.insecure_network,
        }
    }

    /// A connection to the peer at `address`; none if it cannot or should not be asked now.
    pub(crate) fn blobs(&self, address: &str, now: Instant) -> Option<BlobsClient<Channel>> {
        let mut table = self.table.lock();
        if !table.contains_key(address) {
            make_room(&mut table, self.max_peers);
        }
        let peer = table.entry(address.to_owned()).or_insert_with(|| Peer {
            channel: self.dial(address),
            last_used: now,
            avoid_until: None,
        });
        peer.last_used = now;
        if peer.avoid_until.is_some_and(|until| now < until) {
            return None;
        }
        peer.channel.clone().map(blobs_client)
    }

    /// The peer failed, or served wrong bytes: it is not asked for a while.
    pub(crate) fn avoid(&self, address: &str, now: Instant) {
        if let Some(peer) = self.table.lock().get_mut(address) {
            peer.avoid_until = Some(now + self.avoid);
        }
    }

    fn dial(&self, address: &str) -> Option<Channel> {
        let parsed: Address = address
            .parse()
            .inspect_err(|error| tracing::warn!(%error, "a peer has no usable address"))
            .ok()?;
        if !(self.insecure_network || parsed.is_local()) {
            tracing::warn!(peer.address = address, "plaintext to other machines is not allowed");
            return None;
        }
        endpoint(&parsed).ok().map(|endpoint| endpoint.connect_lazy())
    }
}

fn make_room(table: &mut HashMap<String, Peer>, limit: usize) {
    while table.len() >= limit {
        let oldest = table.iter().min_by_key(|(_, peer)| peer.last_used);
        let Some(oldest) = oldest.map(|(address, _)| address.clone()) else { return };
        table.remove(&oldest);
    }
}
