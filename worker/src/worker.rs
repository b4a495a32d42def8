//! Starting and ending a worker.

use std::sync::Arc;

use distbuild_cas::{DiskStore, Filler};
use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::{Address, wire};
use tokio::sync::watch;
use tokio::time::{Duration, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::{Agent, Equipment};
use crate::channels::{Coordinator, Peers};
use crate::config::WorkerConfig;
use crate::error::WorkerError;
use crate::fetch::InputSource;
use crate::fs_client::FsClient;
use crate::helper_process::{self, HelperProcess, StartedHelper};
use crate::inputs::InputsByView;
use crate::large::UnderWay;
use crate::lend::lend;
use crate::outbox::Outbox;
use crate::run_dir::{ExclusiveLock, RunDir};
use crate::sandbox::Spawner;
use crate::sandbox::fingerprint::Toolchain;
use crate::session::{Identity, PROTOCOL, SessionLoop};
use crate::toolchain::{self, TOOLCHAIN};
use crate::wants::Wants;

/// The property that says where actions see an input root that they may change. A worker that cannot give them
/// one does not have it.
const INPUT_ROOT: &str = "input-root";
/// How often evicted blobs are reported.
const EVICTION_REPORTS: Duration = Duration::from_secs(1);
/// Blobs in one report.
const EVICTED_PER_MESSAGE: usize = 4096;

/// How long a helper's last words are waited for, once it is known to be gone.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Starts workers.
#[derive(Debug)]
pub struct Worker;

/// A worker that serves. When it is dropped, its jobs are killed and its processes end; use
/// [`shutdown`](Self::shutdown) to wait for that.
#[derive(Debug)]
pub struct RunningWorker {
    agent: Arc<Agent>,
    helper: HelperProcess,
    notes: Vec<String>,
    peer_address: Option<Address>,
    tasks: TaskTracker,
    stop: Stop,
    limits: crate::config::Limits,
    _exclusive: Option<ExclusiveLock>,
}

/// Ends tasks when dropped: first the sessions, then the connections to the helpers.
#[derive(Debug)]
struct Stop {
    session: CancellationToken,
    helpers: CancellationToken,
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.session.cancel();
        self.helpers.cancel();
    }
}

impl Worker {
    /// Starts a worker: its directories, store, helper processes and peers' service, then its session.
    /// Returns when the coordinator has welcomed it; while there is no coordinator, it keeps dialling. May
    /// be dropped meanwhile, which undoes everything.
    ///
    /// # Errors
    /// What keeps this host from running a worker. A coordinator that is not there is no error.
    pub async fn start(mut config: WorkerConfig) -> Result<RunningWorker, WorkerError> {
        config.make_absolute()?;
        let exclusive = config.exclusive.then(|| ExclusiveLock::take(&config.state)).transpose()?;
        let coordinator = Coordinator::new(&config)?;
        let stop = Stop { session: CancellationToken::new(), helpers: CancellationToken::new() };
        let host = Host::start(&config, stop.helpers.clone()).await?;
        let peer_address = match &config.peer_listen {
            Some(listen) => {
                let stop = stop.session.clone();
                let store = host.equipment.store.clone();
                Some(crate::peers::serve(&config, listen, store, stop).await?)
            }
            None => None,
        };
        let (outbox, queued) = Outbox::new();
        let (identity, session) = watch::channel(None);
        let under_way = UnderWay::default();
        let source = InputSource {
            coordinator: coordinator.clone(),
            peers: Peers::new(&config),
            session: session.clone(),
            outbox: outbox.clone(),
            under_way: under_way.clone(),
            silence: config.limits.silence,
            stop: stop.helpers.clone(),
        };
        let store = host.equipment.store.clone();
        let filler = Filler::new(store, source, config.limits.filler.clone());
        let wants = Wants {
            store: host.equipment.store.clone(),
            filler: filler.clone(),
            fs: host.equipment.fs.clone(),
            inputs: host.equipment.inputs.clone(),
            under_way,
            deadline: config.limits.blob_deadline,
        };
        let store = host.equipment.store.clone();
        let name = host.toolchain_name.clone();
        let mut hello = hello(&config, &store, name, peer_address.as_ref(), &host.notes);
        if host.equipment.spawner.no_input_roots().is_none() {
            let at = config.input_root_at.path().to_owned();
            hello.properties.entry(INPUT_ROOT.to_owned()).or_insert(at);
        }
        let (toolchain_name, toolchain) = watch::channel(host.toolchain_name);
        let agent = Arc::new(Agent::new(&config, host.equipment, outbox, filler));
        let tasks = TaskTracker::new();
        let until = |token: &CancellationToken| token.clone();
        let (helpers, sessions) = (until(&stop.helpers), until(&stop.session));
        tasks.spawn(async move {
            helpers.run_until_cancelled(wants.run(host.wanted)).await;
        });
        let lending = lend(coordinator.clone(), store, session.clone(), config.limits.max_serving);
        tasks.spawn(async move { sessions.run_until_cancelled(lending).await });
        let (reporting, sessions) = (report_evictions(agent.clone()), until(&stop.session));
        tasks.spawn(async move { sessions.run_until_cancelled(reporting).await });
        let session_loop = SessionLoop {
            coordinator,
            agent: agent.clone(),
            hello,
            toolchain,
            queued,
            identity,
            limits: config.limits.clone(),
            stop: stop.session.clone(),
        };
        tasks.spawn(session_loop.run());
        if let Some(found) = host.toolchain {
            let watching = toolchain::watch(found, config.limits.toolchain_check, toolchain_name);
            let sessions = until(&stop.session);
            tasks.spawn(async move { sessions.run_until_cancelled(watching).await });
        }
        let indexing = index_later(agent.store.clone(), config.limits.scan_after);
        let sessions = until(&stop.session);
        tasks.spawn(async move { sessions.run_until_cancelled(indexing).await });
        tasks.close();
        let worker = RunningWorker {
            agent,
            helper: host.helper,
            notes: host.notes,
            peer_address,
            tasks,
            stop,
            limits: config.limits,
            _exclusive: exclusive,
        };
        worker.welcomed(session).await?;
        Ok(worker)
    }
}

impl RunningWorker {
    async fn welcomed(
        &self,
        mut session: watch::Receiver<Option<Identity>>,
    ) -> Result<(), WorkerError> {
        tokio::select! {
            welcomed = session.wait_for(Option::is_some) => {
                welcomed.map(drop).map_err(|_| WorkerError::Stopped)
            }
            words = self.failed() => Err(WorkerError::HelperEnded(words)),
        }
    }

    /// Returns when one of the two helper processes has ended without being told to, with its last words: the
    /// worker can run nothing any more, refuses what it is assigned, and should be shut down.
    pub async fn failed(&self) -> String {
        let gone = tokio::select! {
            () = self.agent.fs.lost() => "the file system's process is gone",
            () = self.agent.spawner.lost() => "the spawner is gone",
        };
        // Whoever was killed says nothing, and while the other one lives, the words have no end.
        match tokio::time::timeout(LAST_WORDS, self.helper.ended()).await {
            Ok(words) if !words.is_empty() => words,
            _ => gone.to_owned(),
        }
    }

    /// Asks for no new work; returns when what runs has ended and the coordinator has every result. Without a
    /// coordinator that takes until the session's lease has passed.
    pub async fn drain(&self) {
        self.agent.drain().await;
    }

    /// Kills what runs, ends the session and the helper processes, and removes the directories of this run.
    pub async fn shutdown(self) {
        let Self { agent, helper, tasks, stop, limits, .. } = self;
        agent.cancel_all();
        // Nothing that ends from here on is reported: the coordinator learns that the worker has gone.
        agent.outbox().begin_epoch();
        if tokio::time::timeout(limits.kill, agent.finished()).await.is_err() {
            tracing::warn!("attempts do not end and are left to the end of the helper process");
        }
        drop(stop);
        if tokio::time::timeout(limits.helper_end, tasks.wait()).await.is_err() {
            tracing::warn!("tasks of the worker do not end");
        }
        let store = agent.store.clone();
        let remembered = tokio::task::spawn_blocking(move || store.remember_trees()).await;
        if let Ok(Err(error)) = remembered {
            tracing::warn!(%error, "which trees are complete is not remembered");
        }
        // With the last handle of the agent the spawner's socket closes.
        drop(agent);
        helper.end(limits.helper_end).await;
    }

    /// The store.
    pub fn store(&self) -> DiskStore {
        self.agent.store.clone()
    }

    /// Where this worker listens for peers, if it does; a port 0 has become a real one.
    pub fn peer_address(&self) -> Option<&Address> {
        self.peer_address.as_ref()
    }

    /// What the host does not let this worker do.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// What a worker has of its host.
struct Host {
    equipment: Equipment,
    helper: HelperProcess,
    wanted: tokio::sync::mpsc::Receiver<crate::fs_client::Wanted>,
    toolchain_name: String,
    /// `None`: its name was given.
    toolchain: Option<Toolchain>,
    notes: Vec<String>,
}

impl Host {
    async fn start(config: &WorkerConfig, stop: CancellationToken) -> Result<Self, WorkerError> {
        let run = Arc::new(RunDir::make(&config.state)?);
        let store = DiskStore::open(config.store.clone())?;
        let spawner_config = helper_process::spawner_config(config, &run);
        let (started, toolchain_name, toolchain) = {
            let (config, run) = (config.clone(), run.clone());
            let given = config.properties.get(TOOLCHAIN).cloned();
            blocking(move || {
                let started = helper_process::start(&config, spawner_config.clone(), run)?;
                if let Some(given) = given {
                    return Ok((started, given, None));
                }
                let found = toolchain::find(spawner_config, &config.state)?;
                Ok((started, found.fingerprint().hex.clone(), Some(found)))
            })
            .await?
        };
        let StartedHelper { fs, spawner, process } = started;
        let patience = config.limits.helper_start;
        let connected = tokio::time::timeout(patience, FsClient::connect(fs, stop)).await;
        let Ok(Ok((fs, wanted))) = connected else {
            return Err(Self::not_serving(&process, spawner, config).await);
        };
        let spawner = blocking(move || Ok(Spawner::connect(spawner, patience)?)).await?;
        let equipment = Equipment { store, fs, spawner, run, inputs: InputsByView::default() };
        let mut notes = helper_process::notes(equipment.fs.no_passthrough());
        let reason = equipment.spawner.no_input_roots();
        notes.extend(reason.map(|reason| format!("no writable input roots: {reason}")));
        Ok(Self { equipment, helper: process, wanted, toolchain_name, toolchain, notes })
    }

    /// Why the helper does not serve.
    async fn not_serving(
        process: &HelperProcess,
        spawner: std::os::unix::net::UnixStream,
        config: &WorkerConfig,
    ) -> WorkerError {
        drop(spawner);
        process.end(config.limits.helper_end).await;
        WorkerError::HelperEnded(process.ended().await)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WorkerError> + Send + 'static,
) -> Result<T, WorkerError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(WorkerError::Stopped))
}

fn hello(
    config: &WorkerConfig,
    store: &DiskStore,
    toolchain: String,
    peer_address: Option<&Address>,
    notes: &[String],
) -> wire::WorkerHello {
    let mut properties = config.properties.clone();
    let dialled = peer_address.map(|listening| config.peer_advertise.as_ref().unwrap_or(listening));
    let own = [("os", "linux".to_owned()), ("arch", arch().to_owned()), (TOOLCHAIN, toolchain)];
    for (key, value) in own {
        properties.entry(key.to_owned()).or_insert(value);
    }
    wire::WorkerHello {
        protocol: PROTOCOL,
        name: config.name.clone(),
        store_id: store.id().to_string(),
        properties: properties.into_iter().collect(),
        milli_cores: config.milli_cores,
        memory_bytes: config.memory_bytes,
        peer_address: dialled.map(Address::to_string).unwrap_or_default(),
        notes: notes.to_vec(),
        ..Default::default()
    }
}

/// Fills the store's index in the background, once a worker that is needed for a moment only has gone:
/// the store serves without it.
async fn index_later(store: DiskStore, after: Duration) {
    tokio::time::sleep(after).await;
    if let Err(error) = store.spawn_scan() {
        tracing::warn!(%error, "failed to scan the store");
    }
}

/// As uname(1) calls it.
fn arch() -> &'static str {
    std::env::consts::ARCH
}

/// Tells the coordinator what it can no longer send others for.
async fn report_evictions(agent: Arc<Agent>) {
    let mut ticks = interval(EVICTION_REPORTS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let evicted = agent.store.drain_evicted();
        if evicted.lost > 0 {
            // Whoever is sent here in vain goes elsewhere.
            tracing::warn!(count = evicted.lost, "evictions could not all be reported");
        }
        for digests in evicted.digests.chunks(EVICTED_PER_MESSAGE) {
            let digests = digests.iter().map(|digest| (*digest).into()).collect();
            let body = Body::BlobsEvicted(wire::BlobsEvicted { digests });
            agent.outbox().send(agent.outbox().epoch(), body).await;
        }
    }
}
