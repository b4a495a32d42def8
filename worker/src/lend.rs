//! Lending: what this worker holds, for those that cannot dial it. The coordinator orders over a stream that
//! the worker keeps open, and each order is answered by one delivery.

use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::DiskStore;
use distbuild_proto::wire::lend_request::Lender;
use distbuild_proto::{Digest, convert, wire};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::channels::Coordinator;
use crate::serving::{WAITING_MESSAGES, send_stored};
use crate::session::Identity;

/// Pause before a broken stream is opened again.
const REOPEN: Duration = Duration::from_millis(500);
/// A delivery may take this long, and longer by its bytes at [`SLOWEST_BYTES_PER_SECOND`].
const DELIVERY: Duration = Duration::from_secs(60);
const SLOWEST_BYTES_PER_SECOND: u64 = 256 << 10;

/// Lends for whichever session is current; never ends by itself.
pub(crate) async fn lend(
    coordinator: Coordinator,
    store: DiskStore,
    mut session: watch::Receiver<Option<Identity>>,
    max_deliveries: usize,
) {
    let deliveries = Arc::new(Semaphore::new(max_deliveries.max(1)));
    loop {
        let Some(identity) = session.borrow_and_update().clone() else {
            if session.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            result = serve_orders(&coordinator, &store, identity, &deliveries) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "the stream of orders broke");
                }
                tokio::time::sleep(REOPEN).await;
            }
            changed = session.changed() => if changed.is_err() { return },
        }
    }
}

async fn serve_orders(
    coordinator: &Coordinator,
    store: &DiskStore,
    identity: Identity,
    deliveries: &Arc<Semaphore>,
) -> Result<(), Status> {
    let lender = wire::WorkerLender { session: identity.session, secret: identity.secret };
    let request = wire::LendRequest { lender: Some(Lender::Worker(lender)) };
    let mut orders = coordinator.blobs().lend(request).await?.into_inner();
    // Ends with this stream: the transfers of a broken one are lost anyway.
    let mut under_way = JoinSet::new();
    while let Some(order) = orders.message().await? {
        while under_way.try_join_next().is_some() {}
        // Orders wait in the stream while as many are served as may be.
        let Ok(permit) = deliveries.clone().acquire_owned().await else { return Ok(()) };
        let (coordinator, store) = (coordinator.clone(), store.clone());
        under_way.spawn(async move {
            if let Err(error) = deliver(&coordinator, store, order).await {
                tracing::debug!(%error, "a delivery was not wanted to its end");
            }
            drop(permit);
        });
    }
    Ok(())
}

async fn deliver(
    coordinator: &Coordinator,
    store: DiskStore,
    order: wire::LendOrder,
) -> Result<(), Status> {
    let digests = convert::digests(&order.digests)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let bytes: u64 = digests.iter().map(Digest::size_bytes).sum();
    let deadline = DELIVERY + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND);
    let (out, messages) = mpsc::channel(WAITING_MESSAGES);
    let transfer = order.transfer;
    tokio::task::spawn_blocking(move || {
        let send = |chunks| out.blocking_send(wire::DeliverRequest { transfer, chunks }).is_ok();
        // The reader may have given up; the call tells.
        let _ = send_stored(&store, &digests, send);
    });
    let mut blobs = coordinator.blobs();
    let call = blobs.deliver(ReceiverStream::new(messages));
    match tokio::time::timeout(deadline, call).await {
        Ok(delivered) => delivered.map(drop),
        Err(_) => Err(Status::deadline_exceeded("the delivery took too long")),
    }
}
