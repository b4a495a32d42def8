//! The control stream: one session with the coordinator, over as many connections as it takes.
//!
//! The worker dials, says hello, and is welcomed. It then sends what the [`Outbox`] holds and a heartbeat
//! three times a lease, and hands what it hears to the [`Agent`]. When the connection breaks it dials again,
//! with pauses that grow and vary, and asks to resume. If the coordinator does not know the session any
//! more, or a lease has passed meanwhile, everything of that session is abandoned: its attempts have been
//! given to others. The worker itself ends a session when its toolchain has changed: it joins anew under the
//! new name, and nothing that was made under the old one is reported any more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distbuild_proto::wire;
use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::wire::to_worker;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::agent::Agent;
use crate::channels::Coordinator;
use crate::config::Limits;
use crate::outbox::Queued;
use crate::toolchain::TOOLCHAIN;

/// Version of the protocol that this worker speaks.
pub(crate) const PROTOCOL: u32 = 1;
/// Messages between the outbox and the connection.
const LINK_MESSAGES: usize = 64;
/// Heartbeats in a lease.
const HEARTBEATS_PER_LEASE: u32 = 3;
/// Shortest time between two heartbeats, whatever the lease.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(50);

/// How the coordinator knows this worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) session: u64,
    pub(crate) secret: Bytes,
}

/// Keeps a session going.
#[derive(Debug)]
pub(crate) struct SessionLoop {
    pub(crate) coordinator: Coordinator,
    pub(crate) agent: Arc<Agent>,
    /// Without anything to resume.
    pub(crate) hello: wire::WorkerHello,
    /// The present name of the toolchain.
    pub(crate) toolchain: watch::Receiver<String>,
    pub(crate) queued: mpsc::Receiver<Queued>,
    pub(crate) identity: watch::Sender<Option<Identity>>,
    pub(crate) limits: Limits,
    pub(crate) stop: CancellationToken,
}

/// A connection over which the worker was welcomed.
struct Link {
    sender: mpsc::Sender<wire::FromWorker>,
    incoming: Streaming<wire::ToWorker>,
    lease: Duration,
}

/// Pauses between dials: each up to twice as long as the one before, and of random length.
#[derive(Debug)]
struct Backoff {
    next: Duration,
    max: Duration,
}

impl SessionLoop {
    /// Dials until it is stopped.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.run_for_ever()).await;
    }

    async fn run_for_ever(&mut self) {
        let mut backoff = Backoff::new(self.limits.max_backoff);
        let mut alive_until: Option<Instant> = None;
        loop {
            if self.rename() {
                alive_until = None;
            }
            let dialled = match alive_until {
                Some(deadline) => tokio::time::timeout_at(deadline, self.dial()).await,
                None => Ok(self.dial().await),
            };
            match dialled {
                Ok(Ok(mut link)) => {
                    backoff = Backoff::new(self.limits.max_backoff);
                    let (heard, error) = self.serve(&mut link).await;
                    alive_until = Some(heard + link.lease);
                    tracing::warn!(%error, "the connection to the coordinator ended");
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the coordinator does not welcome this worker")
                }
                Err(_) => {}
            }
            if alive_until.is_some_and(|deadline| Instant::now() >= deadline) {
                tracing::warn!("the session's lease has passed without the coordinator");
                self.abandon();
                alive_until = None;
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Takes over the toolchain's present name. If that is another, the session has ended: jobs were to
    /// run with the toolchain that the coordinator knows of.
    fn rename(&mut self) -> bool {
        let now = self.toolchain.borrow().clone();
        let known = self.hello.properties.insert(TOOLCHAIN.to_owned(), now.clone());
        if known.as_ref() == Some(&now) {
            return false;
        }
        tracing::warn!(toolchain = now, "the toolchain has changed: joining anew");
        self.abandon();
        true
    }

    /// Returns when the toolchain's name is not the one that the coordinator was told.
    fn renamed(&self) -> impl Future<Output = ()> + use<> {
        let mut name = self.toolchain.clone();
        let known = self.hello.properties.get(TOOLCHAIN).cloned();
        async move {
            if name.wait_for(|name| Some(name) != known.as_ref()).await.is_err() {
                // Nobody looks at it: it keeps its name.
                std::future::pending().await
            }
        }
    }

    /// The earlier session has ended, and with it everything that it ran.
    fn abandon(&mut self) {
        self.agent.abandon();
        self.identity.send_replace(None);
    }

    async fn dial(&mut self) -> Result<Link, Status> {
        let mut hello = self.hello.clone();
        if let Some(identity) = self.identity.borrow().clone() {
            hello.resume_session = identity.session;
            hello.resume_secret = identity.secret;
            hello.known_attempts = self.agent.known_attempts();
            hello.held_attempts = self.agent.held_attempts();
        }
        let (sender, messages) = mpsc::channel(LINK_MESSAGES);
        let hello = wire::FromWorker { body: Some(Body::Hello(hello)) };
        // There is room: the channel is new.
        let _ = sender.try_send(hello);
        let late = |_| Status::deadline_exceeded("the coordinator did not welcome in time");
        let mut workers = self.coordinator.workers();
        let answer = workers.session(ReceiverStream::new(messages));
        let mut incoming = timeout(self.limits.welcome, answer).await.map_err(late)??.into_inner();
        let first = timeout(self.limits.welcome, incoming.message()).await.map_err(late)??;
        let Some(to_worker::Body::Welcome(welcome)) = first.and_then(|message| message.body) else {
            return Err(Status::unknown("a session begins with a welcome"));
        };
        let lease = Duration::from_millis(welcome.lease_ms.max(1));
        if !welcome.resumed {
            self.abandon();
        }
        tracing::info!(session = welcome.session, resumed = welcome.resumed, "welcomed");
        let identity = Identity { session: welcome.session, secret: welcome.lend_secret };
        self.identity.send_replace(Some(identity));
        Ok(Link { sender, incoming, lease })
    }

    /// Serves a connection until it breaks or the toolchain changes; says when the coordinator was last
    /// heard and what broke.
    async fn serve(&mut self, link: &mut Link) -> (Instant, Status) {
        let mut heard = Instant::now();
        let renamed = self.renamed();
        let error = tokio::select! {
            // First: from then on no result leaves.
            biased;
            () = renamed => Status::aborted("the toolchain has changed"),
            error = self.exchange(link, &mut heard) => error,
        };
        self.agent.outbox().set_connected(false);
        (heard, error)
    }

    /// Sends and hears until the connection breaks; notes when the coordinator was heard. May be dropped.
    async fn exchange(&mut self, link: &mut Link, heard: &mut Instant) -> Status {
        let outbox = self.agent.outbox().clone();
        if let Err(error) = self.say_again(link).await {
            return error;
        }
        outbox.set_connected(true);
        let beat = (link.lease / HEARTBEATS_PER_LEASE).max(SHORTEST_HEARTBEAT);
        let mut beats = interval(beat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                sent = pass_on(&mut self.queued, &link.sender, &outbox) => {
                    if let Err(error) = sent {
                        return error;
                    }
                }
                message = link.incoming.message() => match message {
                    Ok(Some(message)) => {
                        *heard = Instant::now();
                        self.agent.acknowledged(&message.acknowledged);
                        if let Some(body) = message.body {
                            self.agent.clone().handle(body);
                        }
                    }
                    Ok(None) => return Status::unavailable("the coordinator ended the stream"),
                    Err(error) => return error,
                },
                _ = beats.tick() => {
                    if heard.elapsed() > link.lease {
                        return Status::deadline_exceeded("the coordinator was silent for a lease");
                    }
                    // A full channel is a sign of life by itself.
                    let _ = link.sender.try_send(message(Body::Heartbeat(wire::Heartbeat {})));
                }
            }
        }
    }

    /// What may have been lost with the connection before.
    async fn say_again(&self, link: &Link) -> Result<(), Status> {
        let begun = self.agent.begun_attempts().into_iter();
        let begun = begun.map(|attempt| Body::AttemptBegun(wire::AttemptBegun { attempt }));
        let ended = self.agent.outbox().unacknowledged().into_iter().map(Body::AttemptEnded);
        let drain = self.agent.is_draining().then_some(Body::Drain(wire::Drain {}));
        for body in begun.chain(ended).chain(drain) {
            link.sender.send(message(body)).await.map_err(|_| broken())?;
        }
        Ok(())
    }
}

/// Moves one message from the outbox to the connection, when both are ready. May be dropped.
async fn pass_on(
    queued: &mut mpsc::Receiver<Queued>,
    link: &mpsc::Sender<wire::FromWorker>,
    outbox: &crate::outbox::Outbox,
) -> Result<(), Status> {
    let room = link.reserve().await.map_err(|_| broken())?;
    let Some(next) = queued.recv().await else { return Err(broken()) };
    if next.epoch == outbox.epoch() {
        room.send(message(next.body));
    }
    Ok(())
}

fn message(body: Body) -> wire::FromWorker {
    wire::FromWorker { body: Some(body) }
}

fn broken() -> Status {
    Status::unavailable("the connection is broken")
}

impl Backoff {
    fn new(max: Duration) -> Self {
        Self { next: max / 64, max }
    }

    fn pause(&mut self) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(self.max);
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let mut backoff = Backoff::new(Duration::from_millis(640));
        let pauses: Vec<_> = (0..10).map(|_| backoff.pause()).collect();
        assert!(pauses[0] <= Duration::from_millis(10));
        assert!(pauses[9] >= Duration::from_millis(320));
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(640)));
    }
}
