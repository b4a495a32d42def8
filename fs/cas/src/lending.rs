//! The lender's side of a `Lend` stream: orders are answered on the stream that they came on if the
//! coordinator has set memory aside for them, and by a `Deliver` call otherwise.
//!
//! Who lends (a client, a worker) says what it has by [`Lends`]. Every order has a deadline, and the number of
//! orders under way is bounded; further ones wait in their stream. Small orders never wait for large ones.

use std::sync::Arc;
use std::time::Duration;

use distbuild_proto::wire::blobs_client::BlobsClient;
use distbuild_proto::wire::lend_request::Body;
use distbuild_proto::wire::{self, BlobChunk};
use distbuild_proto::{Digest, convert};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::serving::WAITING_MESSAGES;

/// Orders under way at once, of both kinds.
const ORDERS: usize = 256;
/// Of them, those that are answered on the stream at once: they share its window.
const SHARED_DELIVERIES: usize = 4;
/// A delivery may take this long, and longer by its bytes at [`SLOWEST_BYTES_PER_SECOND`].
const DELIVERY: Duration = Duration::from_secs(60);
const SLOWEST_BYTES_PER_SECOND: u64 = 64 << 10;

/// What somebody has to lend.
pub trait Lends: Clone + Send + 'static {
    /// Sends blobs one after the other, numbered by their place, until `send` answers that nobody listens any
    /// more. A blob that cannot be had is a piece that says why. Blocks.
    fn send_all(&self, digests: &[Digest], send: impl FnMut(Vec<BlobChunk>) -> bool);
}

/// Opens a stream as `lender` and answers orders until the coordinator ends it. Deliveries that have a call of
/// their own share the permits of `calls`.
///
/// # Errors
/// The stream breaks, or the coordinator does not want it.
pub async fn lend(
    mut blobs: BlobsClient<Channel>,
    lender: Body,
    lends: impl Lends,
    calls: Arc<Semaphore>,
) -> Result<(), Status> {
    let (out, messages) = mpsc::channel(WAITING_MESSAGES);
    // The channel is new and has room.
    let _ = out.try_send(wire::LendRequest { body: Some(lender) });
    let mut orders = blobs.lend(ReceiverStream::new(messages)).await?.into_inner();
    let shared = Arc::new(Semaphore::new(SHARED_DELIVERIES));
    // Ends with this stream: the transfers of a broken one are lost anyway.
    let mut under_way = JoinSet::new();
    while let Some(order) = orders.message().await? {
        while under_way.try_join_next().is_some() {}
        if under_way.len() >= ORDERS {
            under_way.join_next().await;
        }
        let (blobs, lends, out) = (blobs.clone(), lends.clone(), out.clone());
        let permits = if order.own_call { calls.clone() } else { shared.clone() };
        under_way.spawn(async move {
            let Ok(_permit) = permits.acquire().await else { return };
            if let Err(error) = answer(order, blobs, lends, out).await {
                tracing::debug!(%error, "a delivery was not wanted to its end");
            }
        });
    }
    Ok(())
}

async fn answer(
    order: wire::LendOrder,
    mut blobs: BlobsClient<Channel>,
    lends: impl Lends,
    out: mpsc::Sender<wire::LendRequest>,
) -> Result<(), Status> {
    let digests = convert::digests(&order.digests)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let bytes: u64 = digests.iter().map(Digest::size_bytes).sum();
    let deadline = DELIVERY + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND);
    let transfer = order.transfer;
    let delivered = if order.own_call {
        let (out, messages) = mpsc::channel(WAITING_MESSAGES);
        tokio::task::spawn_blocking(move || {
            lends.send_all(&digests, |chunks| {
                out.blocking_send(wire::DeliverRequest { transfer, chunks }).is_ok()
            });
        });
        let call = blobs.deliver(ReceiverStream::new(messages));
        tokio::time::timeout(deadline, call).await.map(|delivered| delivered.map(drop))
    } else {
        let sending = tokio::task::spawn_blocking(move || {
            send_on_stream(
                transfer,
                |send| lends.send_all(&digests, send),
                |message| out.blocking_send(message).is_ok(),
            );
        });
        let failed = |error: tokio::task::JoinError| Status::new(Code::Internal, error.to_string());
        tokio::time::timeout(deadline, sending).await.map(|sent| sent.map_err(failed))
    };
    delivered.unwrap_or_else(|_| Err(Status::deadline_exceeded("the delivery took too long")))
}

/// Sends what `fill` gives as deliveries, of which the last one says that it is.
fn send_on_stream(
    transfer: u64,
    fill: impl FnOnce(&mut dyn FnMut(Vec<BlobChunk>) -> bool),
    mut send: impl FnMut(wire::LendRequest) -> bool,
) {
    let mut deliver = |chunks, last| {
        let delivery = wire::Delivery { transfer, chunks, last };
        send(wire::LendRequest { body: Some(Body::Delivery(delivery)) })
    };
    let mut held_back: Option<Vec<BlobChunk>> = None;
    fill(&mut |chunks| {
        let before = held_back.replace(chunks);
        before.is_none_or(|chunks| deliver(chunks, false))
    });
    // If nobody listens any more, this says it to nobody.
    deliver(held_back.unwrap_or_default(), true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_delivery_says_that_it_is_and_there_is_always_one() {
        for messages in 0..4 {
            let mut sent = Vec::new();
            let fill = |send: &mut dyn FnMut(Vec<BlobChunk>) -> bool| {
                (0..messages).for_each(|_| assert!(send(vec![BlobChunk::default()])));
            };
            send_on_stream(7, fill, |message| {
                let Some(Body::Delivery(delivery)) = message.body else { panic!("{message:?}") };
                assert_eq!(delivery.transfer, 7);
                sent.push((delivery.chunks.len(), delivery.last));
                true
            });
            let chunks: usize = sent.iter().map(|(chunks, _)| chunks).sum();
            assert_eq!(chunks, messages);
            assert_eq!(sent.len(), messages.max(1));
            assert_eq!(sent.iter().position(|(_, last)| *last), Some(sent.len() - 1));
        }
    }
}
