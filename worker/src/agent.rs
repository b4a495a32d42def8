//! The agent: takes what the coordinator says and keeps the table of running attempts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use distbuild_cas::{DiskStore, Filler};
use distbuild_proto::wire;
use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::wire::to_worker;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempt;
use crate::config::{Limits, WorkerConfig};
use crate::directories::Directories;
use crate::fetch::InputSource;
use crate::fs_client::FsClient;
use crate::inputs::InputsByView;
use crate::large_files::LargeFiles;
use crate::outbox::{Epoch, Outbox};
use crate::prefetch::Prefetcher;
use crate::report::Trouble;
use crate::run_dir::RunDir;
use crate::sandbox::{RootAt, Spawner};
use crate::trees::Pins;

/// Everything that attempts share.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) limits: Limits,
    pub(crate) store: DiskStore,
    pub(crate) fs: FsClient,
    pub(crate) spawner: Spawner,
    pub(crate) run: Arc<RunDir>,
    pub(crate) inputs: InputsByView,
    pub(crate) pins: Arc<Pins>,
    pub(crate) large_files: LargeFiles,
    pub(crate) directories: Directories,
    /// Where actions see an input root that they may change.
    pub(crate) input_root_at: RootAt,
    /// None if nothing is fetched before it is needed.
    pub(crate) prefetcher: Option<Prefetcher>,
    outbox: Outbox,
    running: Mutex<HashMap<u64, Running>>,
    /// What running attempts and those with an end that was not acknowledged are for.
    held: Mutex<BTreeMap<u64, wire::HeldAttempt>>,
    /// An attempt has left the table, or an end was acknowledged.
    settled: Notify,
    draining: AtomicBool,
    /// The coordinator has said that nobody needs this worker, or has lost it.
    dismissed: AtomicBool,
    tasks: TaskTracker,
}

/// What a worker works with on its host.
#[derive(Debug)]
pub(crate) struct Equipment {
    pub(crate) store: DiskStore,
    pub(crate) fs: FsClient,
    pub(crate) spawner: Spawner,
    pub(crate) run: Arc<RunDir>,
    pub(crate) inputs: InputsByView,
}

/// An attempt that runs.
#[derive(Debug)]
struct Running {
    epoch: Epoch,
    cancel: CancellationToken,
    begun: bool,
    /// Takes what its commands will read, once.
    foreseen: Option<oneshot::Sender<wire::Prefetch>>,
}

impl Agent {
    pub(crate) fn new(
        config: &WorkerConfig,
        equipment: Equipment,
        outbox: Outbox,
        filler: Filler<InputSource>,
    ) -> Self {
        let Equipment { store, fs, spawner, run, inputs } = equipment;
        let limits = config.limits.clone();
        let prefetcher = Prefetcher::new(filler.clone(), limits.prefetch_bytes);
        Self {
            name: config.name.clone(),
            directories: Directories::new(filler, limits.blob_deadline),
            input_root_at: config.input_root_at,
            limits,
            store,
            fs,
            spawner,
            run,
            inputs,
            pins: Arc::default(),
            large_files: LargeFiles::new(&config.store.root),
            prefetcher: config.prefetch.then_some(prefetcher),
            outbox,
            running: Mutex::default(),
            held: Mutex::default(),
            settled: Notify::new(),
            draining: AtomicBool::new(false),
            dismissed: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        }
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Takes a message. Never waits: what takes time becomes a task.
    pub(crate) fn handle(self: Arc<Self>, body: to_worker::Body) {
        match body {
            to_worker::Body::Assign(assign) => self.assign(assign),
            to_worker::Body::CancelAttempt(cancel) => self.cancel(cancel.attempt),
            to_worker::Body::CheckTrees(request) => self.check_trees(request),
            to_worker::Body::ReleaseBuild(release) => {
                let agent = self.clone();
                self.tasks.spawn_blocking(move || agent.pins.release(&release.build_id));
            }
            to_worker::Body::Dismiss(_) => {
                self.dismissed.store(true, Ordering::Relaxed);
                self.settled.notify_waiters();
            }
            to_worker::Body::Prefetch(prefetch) => self.foresee(prefetch),
            to_worker::Body::Welcome(_) | to_worker::Body::Heartbeat(_) => {}
        }
    }

    /// The coordinator has recorded how these ended.
    pub(crate) fn acknowledged(&self, attempts: &[u64]) {
        attempts.iter().for_each(|attempt| self.outbox.acknowledge(*attempt));
        if !attempts.is_empty() {
            let mut held = self.held.lock();
            attempts.iter().for_each(|attempt| drop(held.remove(attempt)));
            self.settled.notify_waiters();
        }
    }

    fn assign(self: Arc<Self>, assign: wire::Assign) {
        let (attempt, epoch) = (assign.attempt, self.outbox.epoch());
        let cancel = CancellationToken::new();
        let (foresee, foreseen) = oneshot::channel();
        let refused = {
            let mut running = self.running.lock();
            if self.fs.is_lost() || self.spawner.is_lost() {
                Some("a helper process of the worker is gone")
            } else if self.is_draining() {
                Some("the worker is draining")
            } else if running.len() >= self.limits.max_attempts {
                Some("the worker runs as many attempts as it may")
            } else {
                let cancel = cancel.clone();
                let entry = Running { epoch, cancel, begun: false, foreseen: Some(foresee) };
                running.insert(attempt, entry);
                None
            }
        };
        if refused.is_none()
            && let Some(origin) = &assign.origin
        {
            let origin = Some(origin.clone());
            let resources = assign.action.as_ref().and_then(|action| action.resources);
            let held = wire::HeldAttempt { attempt, origin, resources };
            self.held.lock().insert(attempt, held);
        }
        let agent = self.clone();
        self.tasks.spawn(async move {
            let ended = match refused {
                Some(reason) => wire::AttemptEnded {
                    attempt,
                    end: wire::AttemptEnd::AttemptRejected.into(),
                    reason: reason.to_owned(),
                    ..Default::default()
                },
                None => Attempt::new(agent.clone(), epoch, cancel).run(assign, foreseen).await,
            };
            agent.outbox.send_end(epoch, ended).await;
            if refused.is_none() {
                agent.remove(attempt, epoch);
            }
        });
    }

    /// An attempt that has ended meanwhile needs it no more.
    fn foresee(&self, prefetch: wire::Prefetch) {
        let mut running = self.running.lock();
        let attempt = running.get_mut(&prefetch.attempt);
        if let Some(foreseen) = attempt.and_then(|attempt| attempt.foreseen.take()) {
            let _ = foreseen.send(prefetch);
        }
    }

    fn cancel(self: Arc<Self>, attempt: u64) {
        if let Some(running) = self.running.lock().get(&attempt) {
            return running.cancel.cancel();
        }
        // Its end is on the way, or its assignment was lost with a connection: then nobody else would
        // answer.
        if !self.outbox.has_ended(attempt) {
            let (agent, epoch) = (self.clone(), self.outbox.epoch());
            let ended = Trouble::Cancelled.into_ended(attempt);
            self.tasks.spawn(async move { agent.outbox.send_end(epoch, ended).await });
        }
    }

    fn remove(&self, attempt: u64, epoch: Epoch) {
        let mut running = self.running.lock();
        // A later session may have given the number again.
        if running.get(&attempt).is_some_and(|running| running.epoch == epoch) {
            running.remove(&attempt);
        }
        drop(running);
        self.settled.notify_waiters();
    }

    /// The attempt's commands run.
    pub(crate) async fn begun(&self, attempt: u64, epoch: Epoch) {
        if let Some(running) = self.running.lock().get_mut(&attempt) {
            running.begun = true;
        }
        self.outbox.send(epoch, Body::AttemptBegun(wire::AttemptBegun { attempt })).await;
    }

    /// The attempts whose commands run.
    pub(crate) fn begun_attempts(&self) -> Vec<u64> {
        let running = self.running.lock();
        running.iter().filter(|(_, running)| running.begun).map(|(attempt, _)| *attempt).collect()
    }

    fn check_trees(self: Arc<Self>, request: wire::CheckTrees) {
        let (agent, epoch) = (self.clone(), self.outbox.epoch());
        self.tasks.spawn(async move {
            let number = request.request;
            let (store, pins) = (agent.store.clone(), agent.pins.clone());
            let checked = tokio::task::spawn_blocking(move || pins.check(&store, &request));
            // Without an answer the coordinator counts the trees as missing.
            if let Ok(complete) = checked.await {
                let complete = complete.into();
                let checked = wire::TreesChecked { request: number, complete };
                agent.outbox.send(epoch, Body::TreesChecked(checked)).await;
            }
        });
    }

    /// The attempts that run, and those whose end was not acknowledged yet.
    pub(crate) fn known_attempts(&self) -> Vec<u64> {
        let mut known: Vec<u64> = self.running.lock().keys().copied().collect();
        known.extend(self.outbox.unacknowledged().iter().map(|ended| ended.attempt));
        known
    }

    /// The same, with what they are for.
    pub(crate) fn held_attempts(&self) -> Vec<wire::HeldAttempt> {
        self.held.lock().values().cloned().collect()
    }

    /// The session has ended for good: nothing of it goes on.
    pub(crate) fn abandon(&self) {
        self.dismissed.store(true, Ordering::Relaxed);
        self.held.lock().clear();
        self.outbox.begin_epoch();
        self.cancel_all();
        self.pins.release_all();
        self.settled.notify_waiters();
    }

    /// Kills whatever runs.
    pub(crate) fn cancel_all(&self) {
        self.running.lock().values().for_each(|running| running.cancel.cancel());
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes nothing new; returns when nothing runs, every result is acknowledged, and the coordinator
    /// says that no running build relies on what only this worker holds, or `limits.drain` has passed
    /// since.
    pub(crate) async fn drain(&self) {
        {
            // Under the lock, so that no assignment slips in.
            let _running = self.running.lock();
            self.draining.store(true, Ordering::Relaxed);
            self.dismissed.store(false, Ordering::Relaxed);
        }
        self.outbox.send(self.outbox.epoch(), Body::Drain(wire::Drain {})).await;
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            if self.running.lock().is_empty() && self.outbox.is_settled() {
                break;
            }
            settled.await;
        }
        if tokio::time::timeout(self.limits.drain, self.dismissed()).await.is_err() {
            tracing::warn!("running builds still rely on outputs that only this worker holds");
        }
    }

    async fn dismissed(&self) {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            if self.dismissed.load(Ordering::Relaxed) {
                return;
            }
            settled.await;
        }
    }

    /// Waits for all tasks; for when everything has been cancelled.
    pub(crate) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
