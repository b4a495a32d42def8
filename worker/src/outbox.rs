//! What the worker says to the coordinator, across broken connections.
//!
//! Messages wait in one bounded queue while there is no connection; whoever has more to say waits. They carry
//! the *epoch* they belong to: when a session ends for good, the epoch changes and everything of the earlier
//! one is dropped, since attempts may be numbered anew. An attempt's end is kept until the coordinator has
//! acknowledged it, and sent again after each reconnect. Live output is the only thing that is not kept: the
//! result holds all of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use distbuild_proto::wire;
use distbuild_proto::wire::from_worker::Body;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

/// Messages that wait for a connection.
const QUEUED_MESSAGES: usize = 1024;
/// How long a piece of live output waits for room: a job whose output nobody takes goes on, and has to end
/// before the reading of its output is given up.
const LIVE_WAIT: Duration = Duration::from_secs(1);

/// Where all parts of the worker put what they say. Clones are one queue.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    queue: mpsc::Sender<Queued>,
    epoch: Arc<watch::Sender<Epoch>>,
    connected: Arc<watch::Sender<bool>>,
    ended: Arc<Mutex<BTreeMap<u64, wire::AttemptEnded>>>,
}

/// Counts the sessions that did not continue an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch(u64);

/// A message and when it is good.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) epoch: Epoch,
    pub(crate) body: Body,
}

impl Outbox {
    /// An outbox without a connection, and what is put into it.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Queued>) {
        let (queue, queued) = mpsc::channel(QUEUED_MESSAGES);
        let outbox = Self {
            queue,
            epoch: Arc::new(watch::Sender::default()),
            connected: Arc::new(watch::Sender::new(false)),
            ended: Arc::default(),
        };
        (outbox, queued)
    }

    /// The epoch of the current session.
    pub(crate) fn epoch(&self) -> Epoch {
        *self.epoch.borrow()
    }

    /// Sends, waiting for room. A message of an earlier epoch is dropped.
    pub(crate) async fn send(&self, epoch: Epoch, body: Body) {
        let mut current = self.epoch.subscribe();
        tokio::select! {
            biased;
            // An error means that the worker has stopped.
            _ = current.wait_for(|current| *current != epoch) => {}
            _ = self.queue.send(Queued { epoch, body }) => {}
        }
    }

    /// Sends while there is a connection, waiting for room, but not for long; else it drops the message.
    pub(crate) async fn send_live(&self, epoch: Epoch, body: Body) {
        let mut connected = self.connected.subscribe();
        tokio::select! {
            biased;
            _ = connected.wait_for(|connected| !connected) => {}
            () = self.send(epoch, body) => {}
            () = tokio::time::sleep(LIVE_WAIT) => {}
        }
    }

    /// Sends the end of an attempt, again and again until it is acknowledged.
    pub(crate) async fn send_end(&self, epoch: Epoch, ended: wire::AttemptEnded) {
        {
            let mut kept = self.ended.lock();
            if self.epoch() != epoch {
                return;
            }
            kept.insert(ended.attempt, ended.clone());
        }
        self.send(epoch, Body::AttemptEnded(ended)).await;
    }

    /// The coordinator has recorded the end of an attempt.
    pub(crate) fn acknowledge(&self, attempt: u64) {
        self.ended.lock().remove(&attempt);
    }

    /// Whether the attempt has ended and that was not acknowledged yet.
    pub(crate) fn has_ended(&self, attempt: u64) -> bool {
        self.ended.lock().contains_key(&attempt)
    }

    /// Ends that were not acknowledged yet.
    pub(crate) fn unacknowledged(&self) -> Vec<wire::AttemptEnded> {
        self.ended.lock().values().cloned().collect()
    }

    /// Whether all ends were acknowledged.
    pub(crate) fn is_settled(&self) -> bool {
        self.ended.lock().is_empty()
    }

    /// The session has ended for good; gives the epoch of the next one.
    pub(crate) fn begin_epoch(&self) -> Epoch {
        let mut ended = self.ended.lock();
        ended.clear();
        self.epoch.send_modify(|epoch| epoch.0 += 1);
        self.epoch()
    }

    /// Returns when what is sent reaches the coordinator.
    pub(crate) async fn until_connected(&self) {
        let mut connected = self.connected.subscribe();
        // An error means that the worker has stopped.
        let _ = connected.wait_for(|connected| *connected).await;
    }

    /// Whether what is sent reaches the coordinator just now.
    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.send_replace(connected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(attempt: u64) -> wire::AttemptEnded {
        wire::AttemptEnded { attempt, ..Default::default() }
    }

    #[tokio::test]
    async fn an_end_is_kept_until_it_is_acknowledged() {
        let (outbox, mut queued) = Outbox::new();
        outbox.send_end(outbox.epoch(), ended(1)).await;
        outbox.send_end(outbox.epoch(), ended(2)).await;
        assert!(queued.recv().await.is_some());
        outbox.acknowledge(1);
        assert_eq!(outbox.unacknowledged(), [ended(2)]);
        outbox.acknowledge(2);
        assert!(outbox.is_settled());
    }

    #[tokio::test]
    async fn a_new_epoch_forgets_the_old_and_frees_who_waits() {
        let (outbox, _queued) = Outbox::new();
        let old = outbox.epoch();
        let heartbeat = || Body::Heartbeat(wire::Heartbeat {});
        for _ in 0..QUEUED_MESSAGES {
            outbox.send(old, heartbeat()).await;
        }
        outbox.ended.lock().insert(7, ended(7));
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.send(old, heartbeat()).await }
        });
        outbox.begin_epoch();
        waiting.await.unwrap();
        outbox.send_end(old, ended(8)).await;
        assert!(outbox.is_settled());
    }

    #[tokio::test]
    async fn live_output_is_dropped_without_a_connection() {
        let (outbox, mut queued) = Outbox::new();
        let body = || Body::AttemptOutput(wire::AttemptOutput::default());
        outbox.send_live(outbox.epoch(), body()).await;
        assert!(queued.try_recv().is_err());
        outbox.set_connected(true);
        outbox.send_live(outbox.epoch(), body()).await;
        assert!(queued.try_recv().is_ok());
    }
}
