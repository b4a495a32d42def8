//! Bytes from those that nobody dials: clients, and workers seen from the coordinator.
//!
//! A lender keeps a `Lend` stream open. A reader opens a transfer; the lender gets an order on its
//! stream and answers with one `Deliver` call of its own, so that every transfer has its own flow
//! control and a slow reader holds up nobody else. At most [`BUFFERED_MESSAGES`] messages of a
//! transfer are in memory; every wait has a deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use distbuild_proto::{Digest, wire};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

/// Messages of one transfer in memory, each of about `transport::BULK_MESSAGE_BYTES`.
const BUFFERED_MESSAGES: usize = 4;
/// Orders that wait on one lender's stream.
const WAITING_ORDERS: usize = 256;
/// How long a lender may take to begin, and how long it may pause.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);
/// How long a reader waits for a lender that is about to open its stream: it does so after it has
/// joined, and again after a broken connection.
const ARRIVAL: Duration = Duration::from_secs(5);

/// Who lends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lender {
    /// The client of the build with this id.
    Build(String),
    /// The worker of this session.
    Worker(u64),
}

/// The table of lenders and of transfers under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relay {
    state: Arc<Mutex<State>>,
    arrived: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    lenders: BTreeMap<Lender, mpsc::Sender<wire::LendOrder>>,
    transfers: BTreeMap<u64, mpsc::Sender<Vec<wire::BlobChunk>>>,
    last_transfer: u64,
}

/// A reader's end of a transfer.
#[derive(Debug)]
pub(crate) struct Transfer {
    id: u64,
    chunks: mpsc::Receiver<Vec<wire::BlobChunk>>,
    relay: Relay,
}

impl Relay {
    /// Registers a lender; its orders come out of the receiver. A second stream of the same lender
    /// takes the place of the first.
    pub(crate) fn lend(&self, lender: Lender) -> mpsc::Receiver<wire::LendOrder> {
        let (orders, receiver) = mpsc::channel(WAITING_ORDERS);
        self.state.lock().lenders.insert(lender, orders);
        self.arrived.notify_waiters();
        receiver
    }

    /// Forgets a lender whose build or session has ended.
    pub(crate) fn forget(&self, lender: &Lender) {
        self.state.lock().lenders.remove(lender);
    }

    /// Ends all streams of lenders: nothing is ordered any more.
    pub(crate) fn close(&self) {
        self.state.lock().lenders.clear();
    }

    /// Orders blobs from a lender.
    ///
    /// # Errors
    /// The lender is not connected, or does not take the order in time.
    pub(crate) async fn order(
        &self,
        lender: &Lender,
        digests: &[Digest],
    ) -> Result<Transfer, RelayError> {
        let orders = tokio::time::timeout(ARRIVAL, self.lender(lender))
            .await
            .map_err(|_| RelayError::NotConnected)?;
        let (sender, chunks) = mpsc::channel(BUFFERED_MESSAGES);
        let transfer = {
            let mut state = self.state.lock();
            state.last_transfer += 1;
            let id = state.last_transfer;
            state.transfers.insert(id, sender);
            Transfer { id, chunks, relay: self.clone() }
        };
        let digests = digests.iter().map(|digest| (*digest).into()).collect();
        let order = wire::LendOrder { transfer: transfer.id, digests };
        match tokio::time::timeout(SILENCE, orders.send(order)).await {
            Ok(Ok(())) => Ok(transfer),
            Ok(Err(_)) => {
                self.forget_closed(lender);
                Err(RelayError::NotConnected)
            }
            Err(_) => Err(RelayError::Silent),
        }
    }

    /// Waits until a lender has a stream open.
    async fn lender(&self, lender: &Lender) -> mpsc::Sender<wire::LendOrder> {
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            let known = self.state.lock().lenders.get(lender).cloned();
            if let Some(orders) = known.filter(|orders| !orders.is_closed()) {
                return orders;
            }
            arrived.await;
        }
    }

    fn forget_closed(&self, lender: &Lender) {
        let mut state = self.state.lock();
        if state.lenders.get(lender).is_some_and(mpsc::Sender::is_closed) {
            state.lenders.remove(lender);
        }
    }

    /// The lender's end of a transfer, once: where `Deliver` puts what comes. None if the reader has
    /// given up.
    pub(crate) fn deliver(&self, transfer: u64) -> Option<mpsc::Sender<Vec<wire::BlobChunk>>> {
        self.state.lock().transfers.remove(&transfer)
    }
}

impl Transfer {
    /// The next pieces; none at the end.
    ///
    /// # Errors
    /// Nothing came for [`SILENCE`].
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<wire::BlobChunk>>, RelayError> {
        tokio::time::timeout(SILENCE, self.chunks.recv()).await.map_err(|_| RelayError::Silent)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.relay.state.lock().transfers.remove(&self.id);
    }
}

/// Why a lender's bytes do not come.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// It has no `Lend` stream open.
    #[error("the lender is not connected")]
    NotConnected,
    /// It is connected and says nothing.
    #[error("the lender was silent for {} s", SILENCE.as_secs())]
    Silent,
}

#[cfg(test)]
mod tests {
    use super::*;
    use distbuild_proto::DigestFunction;

    fn digest() -> Digest {
        DigestFunction::Blake3.digest(b"x")
    }

    #[tokio::test]
    async fn an_order_reaches_the_lender_and_its_bytes_the_reader() {
        let relay = Relay::default();
        let lender = Lender::Worker(1);
        let mut orders = relay.lend(lender.clone());
        let mut transfer = relay.order(&lender, &[digest()]).await.unwrap();
        let order = orders.recv().await.unwrap();
        let sender = relay.deliver(order.transfer).unwrap();
        sender.send(vec![wire::BlobChunk::default()]).await.unwrap();
        drop(sender);
        assert_eq!(transfer.next().await.unwrap().unwrap().len(), 1);
        assert!(transfer.next().await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lender_that_is_about_to_come_is_waited_for() {
        let relay = Relay::default();
        let lender = Lender::Worker(1);
        let digests = [digest()];
        let order = relay.order(&lender, &digests);
        let arrival = async {
            tokio::time::sleep(ARRIVAL / 2).await;
            relay.lend(lender.clone()).recv().await
        };
        let (transfer, order) = tokio::join!(order, arrival);
        assert_eq!(order.unwrap().transfer, transfer.unwrap().id);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lender_that_does_not_come_is_an_error() {
        let relay = Relay::default();
        let error = relay.order(&Lender::Worker(1), &[digest()]).await.unwrap_err();
        assert!(matches!(error, RelayError::NotConnected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_lender_is_given_up_and_its_late_answer_refused() {
        let relay = Relay::default();
        let lender = Lender::Worker(1);
        let mut orders = relay.lend(lender.clone());
        let mut transfer = relay.order(&lender, &[digest()]).await.unwrap();
        let order = orders.recv().await.unwrap();
        assert!(matches!(transfer.next().await.unwrap_err(), RelayError::Silent));
        drop(transfer);
        assert!(relay.deliver(order.transfer).is_none());
    }
}
