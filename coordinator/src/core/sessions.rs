//! Worker sessions: who is connected, who may come back, and what was last heard of them.
//!
//! A session outlives its connection for a while: a worker that dials again in time goes on with
//! what it runs. After that the session has ended, its attempts are lost, and a late worker starts a
//! new one. One store has one session: the newer ends the older.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use distbuild_proto::wire;
use distbuild_proto::wire::{from_worker, to_worker};
use distbuild_sched as sched;
use distbuild_sched::{AttemptId, StoreId, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Core;
use crate::locator::Session as SessionId;
use crate::pools::Properties;
use crate::relay::Lender;
use crate::state::KnownSession;

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    by_store: BTreeMap<StoreId, SessionId>,
    store_ids: HashMap<String, StoreId>,
    last_id: u32,
    last_connection: u64,
    /// Those that have not been told of all ends that are recorded.
    unacknowledged: BTreeSet<SessionId>,
}

/// One worker.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) worker: WorkerId,
    pub(super) store: StoreId,
    pub(super) store_name: String,
    pub(super) name: String,
    pub(super) peer_address: String,
    secret: Bytes,
    properties: Properties,
    capacity: sched::Resources,
    notes: Vec<String>,
    connection: u64,
    outbox: Option<mpsc::Sender<wire::ToWorker>>,
    /// Attempts whose end is recorded; the next message says so.
    acknowledged: Vec<u64>,
    /// For a worker that is not connected just now.
    backlog: VecDeque<wire::ToWorker>,
    last_heard: Instant,
    pub(super) running: BTreeSet<AttemptId>,
    pub(super) draining: bool,
    /// A draining worker that was told that it may leave.
    dismissed: bool,
}

/// The answer to a hello.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) session: SessionId,
    pub(crate) connection: u64,
    /// To be written down before the worker is welcomed.
    pub(crate) record: Option<KnownSession>,
}

impl Sessions {
    /// None yet; they are numbered from the one after this.
    pub(super) fn after(last_id: u32) -> Self {
        Self { last_id, ..Self::default() }
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&Session> {
        self.by_id.get(&session)
    }

    pub(super) fn get_mut(&mut self, session: SessionId) -> Option<&mut Session> {
        self.by_id.get_mut(&session)
    }

    /// The session of a scheduler's worker: they are numbered alike.
    pub(super) fn of_worker(&self, worker: WorkerId) -> Option<(SessionId, &Session)> {
        let id = u64::from(worker.0);
        self.by_id.get(&id).map(|session| (id, session))
    }

    /// The live session on a store.
    pub(super) fn of_store(&self, store: StoreId) -> Option<(SessionId, &Session)> {
        let id = *self.by_store.get(&store)?;
        self.by_id.get(&id).map(|session| (id, session))
    }

    /// The sessions that peers know under these addresses.
    pub(super) fn by_address(&self, addresses: &[String]) -> Vec<SessionId> {
        let named = |(_, session): &(&SessionId, &Session)| {
            !session.peer_address.is_empty() && addresses.contains(&session.peer_address)
        };
        self.by_id.iter().filter(named).map(|(id, _)| *id).collect()
    }

    /// The number of a store.
    pub(super) fn store_id(&mut self, name: &str) -> StoreId {
        if let Some(id) = self.store_ids.get(name) {
            return *id;
        }
        let id = StoreId(u32::try_from(self.store_ids.len()).unwrap_or(u32::MAX));
        self.store_ids.insert(name.to_owned(), id);
        id
    }

    /// The live sessions on stores with these names, each once.
    pub(super) fn on_stores(&self, names: &[String]) -> Vec<SessionId> {
        let of_name = |name: &String| self.by_store.get(self.store_ids.get(name)?).copied();
        let sessions: BTreeSet<_> = names.iter().filter_map(of_name).collect();
        sessions.into_iter().collect()
    }

    /// Of the workers that offer these properties, the one that comes nearest to having so much.
    pub(super) fn nearest_to(
        &self,
        asked: sched::Resources,
        properties: &Properties,
    ) -> Option<(&str, sched::Resources)> {
        let offers = |session: &&Session| {
            properties.iter().all(|(name, value)| session.properties.get(name) == Some(value))
        };
        let enough = |has: sched::Resources| {
            (has.milli_cores.min(asked.milli_cores), has.memory_bytes.min(asked.memory_bytes))
        };
        let nearest = self.by_id.values().filter(offers).max_by_key(|it| enough(it.capacity));
        nearest.map(|session| (session.name.as_str(), session.capacity))
    }

    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.by_id.keys().copied().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn secret(&self, session: SessionId) -> Option<&Bytes> {
        self.by_id.get(&session).map(|session| &session.secret)
    }

    pub(super) fn infos(&self) -> Vec<wire::WorkerInfo> {
        let info = |session: &Session| wire::WorkerInfo {
            name: session.name.clone(),
            properties: session.properties.clone().into_iter().collect(),
            milli_cores: session.capacity.milli_cores,
            memory_bytes: session.capacity.memory_bytes,
            running_jobs: u32::try_from(session.running.len()).unwrap_or(u32::MAX),
            peer_address: session.peer_address.clone(),
            draining: session.draining,
            store_id: session.store_name.clone(),
            notes: session.notes.clone(),
        };
        self.by_id.values().map(info).collect()
    }
}

impl Session {
    /// Sends now, or keeps for the reconnect. False: the worker does not keep up.
    fn send(&mut self, body: Option<to_worker::Body>, max_backlog: usize) -> bool {
        let acknowledged = std::mem::take(&mut self.acknowledged);
        let message = wire::ToWorker { body, acknowledged };
        let message = match &self.outbox {
            Some(outbox) => match outbox.try_send(message) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Full(_)) => return false,
                Err(mpsc::error::TrySendError::Closed(message)) => message,
            },
            None => message,
        };
        self.backlog.push_back(message);
        self.backlog.len() <= max_backlog
    }
}

/// Random bytes that prove who somebody is.
pub(crate) fn secret() -> Bytes {
    Bytes::copy_from_slice(&rand::random::<[u8; 16]>())
}

impl Core {
    pub(super) fn send_to(&mut self, session: SessionId, body: to_worker::Body) {
        self.send(session, Some(body));
    }

    /// The worker may forget an attempt; it hears of that with the next message, or at the end of the round.
    pub(super) fn acknowledge(&mut self, session: SessionId, attempt: AttemptId) {
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.acknowledged.push(attempt.0);
            self.sessions.unacknowledged.insert(session);
        }
    }

    /// Sends what no other message of this round has taken along.
    pub(super) fn send_acknowledgements(&mut self) {
        for session in std::mem::take(&mut self.sessions.unacknowledged) {
            if self.sessions.get(session).is_some_and(|entry| !entry.acknowledged.is_empty()) {
                self.send(session, None);
            }
        }
    }

    fn send(&mut self, session: SessionId, body: Option<to_worker::Body>) {
        let max_backlog = self.shared.limits.max_worker_backlog;
        let Some(entry) = self.sessions.get_mut(session) else {
            return;
        };
        if !entry.send(body, max_backlog) {
            tracing::warn!(worker.name = entry.name, "worker does not keep up, session ends");
            self.end_session(session, true);
        }
    }

    pub(super) fn join(
        &mut self,
        mut hello: wire::WorkerHello,
        outbox: mpsc::Sender<wire::ToWorker>,
        reply: oneshot::Sender<Joined>,
    ) {
        self.sessions.last_connection += 1;
        let connection = self.sessions.last_connection;
        let resumable = self.sessions.get(hello.resume_session).is_some_and(|session| {
            hello.resume_session != 0
                && session.secret == hello.resume_secret
                && session.store_name == hello.store_id
        });
        let mut record = None;
        let session = if resumable {
            self.resume(&hello, connection, outbox);
            hello.resume_session
        } else if let Some(known) = self.recovery.take_session(&hello) {
            let held = std::mem::take(&mut hello.held_attempts);
            let session = self.begin_session(hello, connection, outbox, Some(known));
            self.reattach(session, held);
            self.end_recovery();
            session
        } else {
            let store_name = hello.store_id.clone();
            self.recovery.forget_store(&store_name);
            let session = self.begin_session(hello, connection, outbox, None);
            self.end_recovery();
            if self.shared.durable
                && let Some(entry) = self.sessions.get(session)
            {
                let (id, secret) = (entry.worker.0, entry.secret.clone());
                record = Some(KnownSession { store_name, id, secret });
            }
            session
        };
        let _ = reply.send(Joined { session, connection, record });
    }

    fn welcome(&self, session: SessionId, resumed: bool) -> to_worker::Body {
        let lease = self.shared.limits.lease;
        to_worker::Body::Welcome(wire::Welcome {
            session,
            lend_secret: self.sessions.secret(session).cloned().unwrap_or_default(),
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            resumed,
        })
    }

    fn resume(
        &mut self,
        hello: &wire::WorkerHello,
        connection: u64,
        outbox: mpsc::Sender<wire::ToWorker>,
    ) {
        let id = hello.resume_session;
        let welcome = self.welcome(id, true);
        let max_backlog = self.shared.limits.max_worker_backlog;
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.connection = connection;
        session.outbox = Some(outbox);
        session.last_heard = Instant::now();
        let mut sent = session.send(Some(welcome), max_backlog);
        let mut unknown: BTreeSet<AttemptId> = session.running.clone();
        for attempt in &hello.known_attempts {
            unknown.remove(&AttemptId(*attempt));
        }
        for message in std::mem::take(&mut session.backlog) {
            if let Some(to_worker::Body::Assign(assign)) = &message.body {
                unknown.remove(&AttemptId(assign.attempt));
            }
            session.acknowledged.extend(message.acknowledged);
            if let Some(body) = message.body {
                sent &= session.send(Some(body), max_backlog);
            }
        }
        tracing::info!(worker.name = session.name, session = id, "worker came back");
        self.sessions.unacknowledged.insert(id);
        if !sent {
            return self.end_session(id, true);
        }
        for attempt in unknown {
            self.assignment_lost(attempt);
        }
        for attempt in &hello.known_attempts {
            self.repeat_cancellation(AttemptId(*attempt));
        }
    }

    /// Lets draining workers go that nobody needs any more: they run nothing, and no running build
    /// relies on outputs that only they hold.
    pub(super) fn dismiss_drained(&mut self) {
        let draining = |(id, session): (&SessionId, &Session)| session.draining.then_some(*id);
        let draining: Vec<SessionId> = self.sessions.by_id.iter().filter_map(draining).collect();
        for id in draining {
            let Some(session) = self.sessions.get(id) else { continue };
            let idle = session.draining && !session.dismissed && session.running.is_empty();
            if !idle {
                continue;
            }
            let store = session.store;
            let needed = self.trees.values().any(|tree| {
                !tree.jobs.is_empty() && tree.stores.len() == 1 && tree.stores.contains(&store)
            });
            if !needed {
                if let Some(session) = self.sessions.get_mut(id) {
                    session.dismissed = true;
                }
                self.send_to(id, to_worker::Body::Dismiss(wire::Dismiss {}));
            }
        }
    }

    fn begin_session(
        &mut self,
        hello: wire::WorkerHello,
        connection: u64,
        outbox: mpsc::Sender<wire::ToWorker>,
        known: Option<KnownSession>,
    ) -> SessionId {
        let store = self.sessions.store_id(&hello.store_id);
        if let Some((older, _)) = self.sessions.of_store(store) {
            self.end_session(older, true);
        }
        let resumed = known.is_some();
        let (number, secret) = match known {
            Some(known) => (known.id, known.secret),
            None => {
                self.sessions.last_id += 1;
                (self.sessions.last_id, secret())
            }
        };
        let worker = WorkerId(number);
        let id = u64::from(worker.0);
        let properties: Properties = hello.properties.into_iter().collect();
        let capacity = sched::Resources::new(hello.milli_cores, hello.memory_bytes);
        let session = Session {
            worker,
            store,
            store_name: hello.store_id,
            name: hello.name,
            peer_address: hello.peer_address,
            secret,
            properties: properties.clone(),
            capacity,
            notes: hello.notes,
            connection,
            outbox: Some(outbox),
            acknowledged: Vec::new(),
            backlog: VecDeque::new(),
            last_heard: Instant::now(),
            running: BTreeSet::new(),
            draining: false,
            dismissed: false,
        };
        tracing::info!(worker.name = session.name, session = id, resumed, "worker joined");
        self.sessions.by_id.insert(id, session);
        self.sessions.by_store.insert(store, id);
        let welcome = self.welcome(id, resumed);
        self.send_to(id, welcome);
        self.learn_pool(&properties, i64::from(capacity.milli_cores));
        let joined =
            sched::Event::WorkerJoined { worker, store, properties, capacity, draining: false };
        self.scheduler.handle(self.now(), joined);
        id
    }

    fn learn_pool(&mut self, properties: &Properties, milli_cores: i64) {
        self.pools.see(properties.clone());
        self.pools.change_online(properties, milli_cores);
        self.retry_selects();
        let lines: Vec<_> =
            properties.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let state = self.shared.state.clone();
        tokio::spawn(async move {
            let now = crate::event_log::unix_ms();
            if let Err(error) = state.remember_pool(lines.join("\n"), now).await {
                tracing::warn!(%error, "failed to remember a worker pool");
            }
        });
    }

    pub(super) fn disconnected(&mut self, session: SessionId, connection: u64) {
        let Some(entry) = self.sessions.get_mut(session) else {
            return;
        };
        if entry.connection != connection {
            return;
        }
        tracing::info!(worker.name = entry.name, session, "worker's connection broke");
        entry.outbox = None;
        entry.last_heard = Instant::now();
        if entry.draining && entry.running.is_empty() {
            self.end_session(session, false);
        }
    }

    pub(super) fn end_stale_sessions(&mut self) {
        let limits = self.shared.limits.clone();
        for id in self.sessions.ids() {
            let Some(session) = self.sessions.get(id) else {
                continue;
            };
            let patience: Duration =
                if session.outbox.is_some() { limits.lease } else { limits.reconnect };
            if session.last_heard.elapsed() > patience {
                tracing::warn!(worker.name = session.name, session = id, "worker lost");
                self.end_session(id, true);
            }
        }
    }

    /// Ends a session: what ran there is lost, what only it held is gone.
    pub(super) fn end_session(&mut self, id: SessionId, lost: bool) {
        let Some(session) = self.sessions.by_id.remove(&id) else {
            return;
        };
        self.sessions.by_store.remove(&session.store);
        self.pools.change_online(&session.properties, -i64::from(session.capacity.milli_cores));
        self.shared.relay.forget(&Lender::Worker(id));
        self.forget_session(session.worker.0);
        for attempt in &session.running {
            self.attempt_vanished(*attempt, &session.name);
        }
        self.unclaimed_of_ended(id);
        // First nothing new goes there, then its outputs are lost, then its attempts are over: so
        // they find out that they have to wait for their inputs, and do not run elsewhere in vain.
        let (now, worker) = (self.now(), session.worker);
        self.scheduler.handle(now, sched::Event::WorkerDrained { worker });
        self.store_gone(session.store);
        self.scheduler.handle(now, sched::Event::WorkerLeft { worker, lost });
        let answers = self.locator.session_ended(self.now_ms(), id);
        self.answer_located(answers);
        self.checks_of_ended(id);
    }

    pub(super) fn worker_says(
        &mut self,
        session: SessionId,
        connection: u64,
        body: from_worker::Body,
    ) {
        let Some(entry) = self.sessions.get_mut(session) else {
            return;
        };
        if entry.connection != connection {
            return;
        }
        entry.last_heard = Instant::now();
        match body {
            from_worker::Body::Hello(_) => {}
            from_worker::Body::Heartbeat(_) => {
                self.send_to(session, to_worker::Body::Heartbeat(wire::Heartbeat {}));
            }
            from_worker::Body::Drain(_) => {
                entry.draining = true;
                entry.dismissed = false;
                self.look_at_drained = true;
                let worker = entry.worker;
                self.scheduler.handle(self.now(), sched::Event::WorkerDrained { worker });
            }
            from_worker::Body::AttemptBegun(begun) => self.attempt_begun(session, &begun),
            from_worker::Body::AttemptOutput(output) => self.attempt_output(session, output),
            from_worker::Body::AttemptEnded(ended) => self.attempt_ended(session, ended),
            from_worker::Body::TreesChecked(checked) => self.trees_checked(session, &checked),
            from_worker::Body::BlobsHeld(held) => self.blobs_held(session, &held),
            from_worker::Body::BlobsEvicted(evicted) => self.blobs_evicted(session, &evicted),
        }
    }
}
