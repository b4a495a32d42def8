//! Bytes from those that nobody dials: clients, and workers seen from the coordinator.
//!
//! A lender keeps a `Lend` stream open. A reader opens a transfer; the lender gets an order on its
//! stream. A small order is answered on the same stream: memory for all of it is set aside before it is given,
//! at most [`SHARED_BYTES`] a lender, so what arrives never waits for a reader and no delivery holds up
//! another. Any other order, and a small one when that memory is in use, is answered by one `Deliver` call,
//! which has its own flow control and [`BUFFERED_MESSAGES`] in memory. Every wait has a deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use distbuild_proto::transport::BULK_MESSAGE_BYTES;
use distbuild_proto::{Digest, wire};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

/// Messages of one transfer in memory, each of about `transport::BULK_MESSAGE_BYTES`.
const BUFFERED_MESSAGES: usize = 4;
/// An order of at most so many bytes is answered on the lender's stream.
pub(crate) const SHARED_ORDER_BYTES: u64 = 1 << 20;
/// What one lender may have been asked for on its stream, or have sent and not been read, in bytes.
const SHARED_BYTES: usize = 16 << 20;
/// What a blob counts for in that beside its contents, in bytes.
const BLOB_OVERHEAD_BYTES: u64 = 128;
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
    lenders: BTreeMap<Lender, Line>,
    transfers: BTreeMap<u64, Sink>,
    last_transfer: u64,
    last_stream: u64,
}

/// A lender's stream.
#[derive(Clone, Debug)]
struct Line {
    stream: u64,
    orders: mpsc::Sender<wire::LendOrder>,
    /// A permit a byte.
    memory: Arc<Semaphore>,
}

/// Where the bytes of a transfer go.
#[derive(Debug)]
enum Sink {
    /// Into a call's channel, which the call takes.
    Call(mpsc::Sender<Vec<wire::BlobChunk>>),
    /// From this stream; there is room for so many bytes and for every piece of every blob.
    Stream { stream: u64, room_bytes: u64, sender: mpsc::Sender<Vec<wire::BlobChunk>> },
}

/// A lender's orders, and what it answers on their stream.
#[derive(Debug)]
pub(crate) struct Lending {
    stream: u64,
    relay: Relay,
    orders: Option<mpsc::Receiver<wire::LendOrder>>,
}

/// A reader's end of a transfer.
#[derive(Debug)]
pub(crate) struct Transfer {
    id: u64,
    chunks: mpsc::Receiver<Vec<wire::BlobChunk>>,
    relay: Relay,
    /// Memory on the lender's stream.
    memory: Option<OwnedSemaphorePermit>,
}

impl Relay {
    /// Registers a lender. A second stream of the same lender takes the place of the first.
    pub(crate) fn lend(&self, lender: Lender) -> Lending {
        let (orders, receiver) = mpsc::channel(WAITING_ORDERS);
        let mut state = self.state.lock();
        state.last_stream += 1;
        let stream = state.last_stream;
        let memory = Arc::new(Semaphore::new(SHARED_BYTES));
        state.lenders.insert(lender, Line { stream, orders, memory });
        drop(state);
        self.arrived.notify_waiters();
        Lending { stream, relay: self.clone(), orders: Some(receiver) }
    }

    /// Whether a lender has a stream open.
    pub(crate) fn is_connected(&self, lender: &Lender) -> bool {
        self.state.lock().lenders.get(lender).is_some_and(|line| !line.orders.is_closed())
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
        let line = tokio::time::timeout(ARRIVAL, self.lender(lender))
            .await
            .map_err(|_| RelayError::NotConnected)?;
        let transfer = self.open(&line, digests);
        let own_call = transfer.memory.is_none();
        let digests = digests.iter().map(|digest| (*digest).into()).collect();
        let order = wire::LendOrder { transfer: transfer.id, digests, own_call };
        match tokio::time::timeout(SILENCE, line.orders.send(order)).await {
            Ok(Ok(())) => Ok(transfer),
            Ok(Err(_)) => {
                self.forget_closed(lender);
                Err(RelayError::NotConnected)
            }
            Err(_) => Err(RelayError::Silent),
        }
    }

    /// What a blob counts for in an order, in bytes.
    pub(crate) fn cost_bytes(digest: &Digest) -> u64 {
        digest.size_bytes().saturating_add(BLOB_OVERHEAD_BYTES)
    }

    /// A transfer on the lender's stream, if it is small and there is memory for it, or else by a call.
    fn open(&self, line: &Line, digests: &[Digest]) -> Transfer {
        let bytes: u64 = digests.iter().map(Self::cost_bytes).sum();
        let permits = u32::try_from(bytes).ok().filter(|_| bytes <= SHARED_ORDER_BYTES);
        let memory =
            permits.and_then(|permits| line.memory.clone().try_acquire_many_owned(permits).ok());
        let messages = match memory {
            // Each blob may come by itself, in pieces, and the end too.
            Some(_) => digests.len() + 1 + bytes as usize / BULK_MESSAGE_BYTES,
            None => BUFFERED_MESSAGES,
        };
        let (sender, chunks) = mpsc::channel(messages);
        let sink = match memory {
            Some(_) => Sink::Stream { stream: line.stream, room_bytes: bytes, sender },
            None => Sink::Call(sender),
        };
        let mut state = self.state.lock();
        state.last_transfer += 1;
        let id = state.last_transfer;
        state.transfers.insert(id, sink);
        Transfer { id, chunks, relay: self.clone(), memory }
    }

    /// Waits until a lender has a stream open.
    async fn lender(&self, lender: &Lender) -> Line {
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            let known = self.state.lock().lenders.get(lender).cloned();
            if let Some(line) = known.filter(|line| !line.orders.is_closed()) {
                return line;
            }
            arrived.await;
        }
    }

    fn forget_closed(&self, lender: &Lender) {
        let mut state = self.state.lock();
        if state.lenders.get(lender).is_some_and(|line| line.orders.is_closed()) {
            state.lenders.remove(lender);
        }
    }

    /// The lender's end of a transfer, once: where `Deliver` puts what comes. None if the reader has
    /// given up.
    pub(crate) fn deliver(&self, transfer: u64) -> Option<mpsc::Sender<Vec<wire::BlobChunk>>> {
        let mut state = self.state.lock();
        if !matches!(state.transfers.get(&transfer)?, Sink::Call(_)) {
            return None;
        }
        match state.transfers.remove(&transfer)? {
            Sink::Call(sender) | Sink::Stream { sender, .. } => Some(sender),
        }
    }
}

impl Lending {
    /// What is ordered; once.
    pub(crate) fn orders(&mut self) -> Option<mpsc::Receiver<wire::LendOrder>> {
        self.orders.take()
    }

    /// Passes on what came on this stream; never waits. Who sends more than was ordered, or to a transfer
    /// that is not its own, is not listened to; a reader that has gone away needs nothing.
    pub(crate) fn delivered(&self, delivery: wire::Delivery) {
        let mut state = self.relay.state.lock();
        let Some(Sink::Stream { stream, room_bytes, sender }) =
            state.transfers.get_mut(&delivery.transfer)
        else {
            return;
        };
        if *stream != self.stream {
            return;
        }
        let bytes = |chunk: &wire::BlobChunk| chunk.data.len() as u64;
        let bytes: u64 = delivery.chunks.iter().map(bytes).sum();
        let fits = bytes <= *room_bytes;
        *room_bytes = room_bytes.saturating_sub(bytes);
        let passed =
            fits && (delivery.chunks.is_empty() || sender.try_send(delivery.chunks).is_ok());
        if delivery.last || !passed {
            state.transfers.remove(&delivery.transfer);
        }
    }
}

/// With the stream end the transfers on it.
impl Drop for Lending {
    fn drop(&mut self) {
        let on_this =
            |sink: &Sink| matches!(sink, Sink::Stream { stream, .. } if *stream == self.stream);
        let mut state = self.relay.state.lock();
        state.transfers.retain(|_, sink| !on_this(sink));
        // Nobody is sent orders whose answers are not heard; that ends the other direction as well.
        state.lenders.retain(|_, line| line.stream != self.stream);
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

    /// Too large for the lender's stream.
    fn large() -> Digest {
        Digest::new(DigestFunction::Blake3, &[7; 32], SHARED_ORDER_BYTES).unwrap()
    }

    fn delivery(transfer: u64, bytes: usize, last: bool) -> wire::Delivery {
        let chunk = wire::BlobChunk { data: vec![0; bytes].into(), ..Default::default() };
        wire::Delivery { transfer, chunks: vec![chunk], last }
    }

    #[tokio::test]
    async fn a_small_order_is_answered_on_the_stream_that_it_came_on() {
        let relay = Relay::default();
        let (lender, other) = (Lender::Worker(1), relay.lend(Lender::Worker(2)));
        let mut lending = relay.lend(lender.clone());
        let mut orders = lending.orders().unwrap();
        let mut transfer = relay.order(&lender, &[digest()]).await.unwrap();
        let order = orders.recv().await.unwrap();
        assert!(!order.own_call);
        assert!(relay.deliver(order.transfer).is_none(), "no call may answer it");
        other.delivered(delivery(order.transfer, 1, true));
        lending.delivered(delivery(order.transfer, 1, true));
        assert_eq!(transfer.next().await.unwrap().unwrap().len(), 1);
        assert!(transfer.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn who_sends_more_than_was_ordered_is_cut_off() {
        let relay = Relay::default();
        let lender = Lender::Worker(1);
        let lending = relay.lend(lender.clone());
        let mut transfer = relay.order(&lender, &[digest()]).await.unwrap();
        lending.delivered(delivery(transfer.id, 2 + BLOB_OVERHEAD_BYTES as usize, false));
        lending.delivered(delivery(transfer.id, 1, true));
        assert!(transfer.next().await.unwrap().is_none());
        let mut transfer = relay.order(&lender, &[digest()]).await.unwrap();
        (0..3).for_each(|_| lending.delivered(delivery(transfer.id, 0, false)));
        assert!(transfer.next().await.unwrap().is_some());
        assert!(transfer.next().await.unwrap().is_some());
        assert!(transfer.next().await.unwrap().is_none(), "and so is who sends too many messages");
    }

    #[tokio::test]
    async fn a_blob_of_several_pieces_waits_whole_for_a_reader_that_is_slow() {
        let relay = Relay::default();
        let lender = Lender::Worker(1);
        let lending = relay.lend(lender.clone());
        let most = SHARED_ORDER_BYTES - BLOB_OVERHEAD_BYTES;
        let blob = Digest::new(DigestFunction::Blake3, &[7; 32], most).unwrap();
        let mut transfer = relay.order(&lender, &[blob]).await.unwrap();
        let mut left = most as usize;
        while left > 0 {
            let piece = left.min(BULK_MESSAGE_BYTES);
            left -= piece;
            lending.delivered(delivery(transfer.id, piece, false));
        }
        lending.delivered(wire::Delivery { transfer: transfer.id, chunks: vec![], last: true });
        let mut arrived = 0;
        while let Some(chunks) = transfer.next().await.unwrap() {
            arrived += chunks.iter().map(|chunk| chunk.data.len()).sum::<usize>();
        }
        assert_eq!(arrived as u64, most);
    }

    #[tokio::test]
    async fn a_broken_stream_ends_the_transfers_on_it() {
        let relay = Relay::default();
        let lender = Lender::Worker(1);
        let lending = relay.lend(lender.clone());
        let mut transfer = relay.order(&lender, &[digest()]).await.unwrap();
        drop(lending);
        assert!(transfer.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_finds_no_memory_on_the_stream_goes_by_a_call_and_nobody_waits() {
        let relay = Relay::default();
        let lender = Lender::Worker(1);
        let mut lending = relay.lend(lender.clone());
        let mut orders = lending.orders().unwrap();
        let half = Digest::new(DigestFunction::Blake3, &[7; 32], SHARED_ORDER_BYTES / 2).unwrap();
        let mut transfers = Vec::new();
        let mut own_calls = 0;
        while own_calls == 0 {
            transfers.push(relay.order(&lender, &[half]).await.unwrap());
            own_calls += usize::from(orders.recv().await.unwrap().own_call);
        }
        let on_the_stream = (transfers.len() - 1) as u64 * Relay::cost_bytes(&half);
        assert!(on_the_stream <= SHARED_BYTES as u64);
        assert!(on_the_stream + Relay::cost_bytes(&half) > SHARED_BYTES as u64);
        // Read, or given up: there is memory again.
        transfers.remove(0);
        drop(relay.order(&lender, &[half]).await.unwrap());
        assert!(!orders.recv().await.unwrap().own_call);
    }

    #[tokio::test]
    async fn an_order_reaches_the_lender_and_its_bytes_the_reader() {
        let relay = Relay::default();
        let lender = Lender::Worker(1);
        let mut lending = relay.lend(lender.clone());
        let mut orders = lending.orders().unwrap();
        let mut transfer = relay.order(&lender, &[large()]).await.unwrap();
        let order = orders.recv().await.unwrap();
        assert!(order.own_call);
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
            relay.lend(lender.clone()).orders().unwrap().recv().await
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
        let mut lending = relay.lend(lender.clone());
        let mut orders = lending.orders().unwrap();
        let mut transfer = relay.order(&lender, &[large()]).await.unwrap();
        let order = orders.recv().await.unwrap();
        assert!(matches!(transfer.next().await.unwrap_err(), RelayError::Silent));
        drop(transfer);
        assert!(relay.deliver(order.transfer).is_none());
    }
}
