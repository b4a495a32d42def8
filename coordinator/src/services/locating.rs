//! The answers of one `Locate` call: what the core says, and the contents of small blobs that a client lends.
//!
//! A worker that is granted a blob would come back for it at once. If it is small, the grant is redeemed here
//! instead: the blob is ordered from the client and travels in the answer. What cannot be had so is answered
//! by its lender, and the worker reads it from there.

use std::collections::BTreeMap;
use std::sync::Arc;

use distbuild_proto::transport::BULK_MESSAGE_BYTES;
use distbuild_proto::wire::located::Place;
use distbuild_proto::{Digest, wire};
use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

use crate::relay::{Lender, Relay, SHARED_ORDER_BYTES};

/// A blob of at most so many bytes travels in the answer: it fits a message.
const CONTENTS_BYTES: u64 = BULK_MESSAGE_BYTES as u64;
/// Blobs in one order.
const ORDER_BLOBS: usize = 512;
/// Orders of one call under way at once.
const ORDERS: usize = 4;
/// Messages on the way to one worker, each of about `transport::BULK_MESSAGE_BYTES`.
pub(super) const WAITING_MESSAGES: usize = 4;

/// One call; see the module.
#[derive(Clone, Debug)]
pub(super) struct Locating {
    pub(super) relay: Relay,
    /// What was asked for; none if malformed.
    pub(super) digests: Arc<[Option<Digest>]>,
    pub(super) out: mpsc::Sender<Result<wire::LocateResponse, Status>>,
}

/// Blobs that one client lends: which they are in the request, and in the store.
type Order = Vec<(u32, Digest)>;

impl Locating {
    /// Passes answers on until all are given or the worker has gone away.
    pub(super) async fn run(self, mut answers: mpsc::Receiver<wire::Located>) {
        let orders = Arc::new(Semaphore::new(ORDERS));
        let mut located = Vec::new();
        // What is known at once travels together; what has to be waited for follows.
        while answers.recv_many(&mut located, self.digests.len().max(1)).await > 0 {
            let (by_build, rest) = self.sort(located.drain(..));
            if !rest.is_empty() && self.send(rest).await.is_err() {
                return;
            }
            for (build, blobs) in by_build {
                for order in cut(blobs) {
                    let (locating, build, orders) = (self.clone(), build.clone(), orders.clone());
                    tokio::spawn(async move {
                        let redeem = async {
                            let _permit = orders.acquire().await;
                            locating.redeem(build, order).await;
                        };
                        tokio::select! {
                            () = redeem => {}
                            () = locating.out.closed() => {}
                        }
                    });
                }
            }
        }
    }

    /// Tells the small blobs of connected clients from the rest.
    fn sort(
        &self,
        located: impl Iterator<Item = wire::Located>,
    ) -> (BTreeMap<String, Order>, Vec<wire::Located>) {
        let mut by_build: BTreeMap<String, Order> = BTreeMap::new();
        let mut rest = Vec::new();
        for located in located {
            let digest = self.digests.get(located.index as usize).copied().flatten();
            match (&located.place, digest) {
                (Some(Place::LenderBuild(build)), Some(digest))
                    if digest.size_bytes() <= CONTENTS_BYTES
                        && (by_build.contains_key(build)
                            || self.relay.is_connected(&Lender::Build(build.clone()))) =>
                {
                    by_build.entry(build.clone()).or_default().push((located.index, digest));
                }
                _ => rest.push(located),
            }
        }
        (by_build, rest)
    }

    /// Fetches granted blobs from their client and sends them.
    async fn redeem(&self, build: String, order: Order) {
        let digests: Vec<_> = order.iter().map(|(_, digest)| *digest).collect();
        let mut left: Vec<bool> = vec![true; order.len()];
        if let Ok(mut transfer) = self.relay.order(&Lender::Build(build.clone()), &digests).await {
            while let Ok(Some(chunks)) = transfer.next().await {
                let whole = |chunk: wire::BlobChunk| {
                    let at = chunk.index as usize;
                    let (index, digest) = order.get(at)?;
                    let is_whole = chunk.last
                        && chunk.error.is_empty()
                        && chunk.data.len() as u64 == digest.size_bytes();
                    let place = Some(Place::Contents(chunk.data));
                    (is_whole && std::mem::take(&mut left[at]))
                        .then_some(wire::Located { index: *index, place })
                };
                let located: Vec<_> = chunks.into_iter().filter_map(whole).collect();
                if !located.is_empty() && self.send(located).await.is_err() {
                    return;
                }
            }
        }
        let lent = order.iter().zip(left).filter(|(_, left)| *left).map(|((index, _), _)| {
            wire::Located { index: *index, place: Some(Place::LenderBuild(build.clone())) }
        });
        let lent: Vec<_> = lent.collect();
        if !lent.is_empty() {
            // A worker that has gone away needs no answer.
            let _ = self.send(lent).await;
        }
    }

    async fn send(&self, located: Vec<wire::Located>) -> Result<(), ()> {
        self.out.send(Ok(wire::LocateResponse { located })).await.map_err(drop)
    }
}

/// Orders that each fit the lender's stream.
fn cut(blobs: Order) -> Vec<Order> {
    let mut orders: Vec<Order> = Vec::new();
    let mut bytes = 0;
    for blob in blobs {
        bytes += Relay::cost_bytes(&blob.1);
        match orders.last_mut() {
            Some(order) if bytes <= SHARED_ORDER_BYTES && order.len() < ORDER_BLOBS => {
                order.push(blob);
            }
            _ => {
                bytes = Relay::cost_bytes(&blob.1);
                orders.push(vec![blob]);
            }
        }
    }
    orders
}
