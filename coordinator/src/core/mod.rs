//! The driver: one task that owns the scheduler and everything it decides about.
//!
//! Services and timers send [`Message`]s; the core turns them into events of the pure scheduler,
//! performs the scheduler's effects, and appends to the builds' event logs. It never waits: what takes
//! time (the database, a worker's answer) comes back as a message. Nothing here is shared or locked.

mod attempts;
mod builds;
mod effects;
mod executions;
mod explain;
mod locate;
mod lookups;
mod observed;
mod output_trees;
mod prefetch;
mod reattach;
mod resume;
mod sessions;
mod status;
#[cfg(test)]
mod tests;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use distbuild_proto::{Digest, wire};
use distbuild_sched as sched;
use distbuild_sched::{AttemptId, BuildId, JobRef, Scheduler, StoreId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub(crate) use builds::{Accepted, ClientReport, NotTaken, Submission};
pub(crate) use executions::{Execution, Refused};
pub(crate) use locate::Waiter;
pub(crate) use lookups::Claim;
pub(crate) use prefetch::Foreseen;
pub(crate) use resume::{Attached, Earlier, Resumed};
pub(crate) use sessions::{Joined, secret};
pub(crate) use work::{GraphWork, Work};

use crate::config::Limits;
use crate::directories::KnownDirectories;
use crate::event_log::Reader;
use crate::locator::{Locator, Session};
use crate::metadata::Metadata;
use crate::pools::{Pools, Properties, Selected};
use crate::relay::Relay;
use crate::state::{CachedResult, State};

/// Messages that wait for the core.
const WAITING_MESSAGES: usize = 8192;
/// Messages handled before the scheduler's effects are performed.
const MESSAGES_PER_ROUND: usize = 256;
/// Effects performed before messages are handled again: one build of a million jobs does not keep the
/// others waiting.
const EFFECTS_PER_ROUND: usize = 4096;

/// What the core is told.
pub(crate) enum Message {
    /// Resolve selectors to pools; answered once some pool is known.
    Select { selectors: Vec<Properties>, reply: oneshot::Sender<Vec<Selected>> },
    /// Which stores hold what these results claim? One list of stores a claim.
    CheckClaims {
        build_id: String,
        claims: Vec<Claim>,
        reply: oneshot::Sender<Vec<Option<Vec<StoreId>>>>,
    },
    /// Are the workers back that were connected before the start, or have they had the time?
    Recovered { reply: oneshot::Sender<()> },
    /// May a client submit this build again, to go on with it?
    MayResume { build_id: String, reply: oneshot::Sender<bool> },
    /// A client's next stream to a build that this coordinator runs.
    Attach { resume: wire::ResumeBuild, reply: oneshot::Sender<Option<Attached>> },
    /// A client's stream has ended: it was closed, or it broke.
    ClientGone { build: BuildId, reader: Reader, closed: bool },
    /// Run a build.
    Submit { submission: Box<Submission>, reply: oneshot::Sender<Result<Accepted, NotTaken>> },
    /// Run one action.
    Execute { execution: Box<Execution>, reply: oneshot::Sender<Result<Accepted, Refused>> },
    /// Nothing of this execution is needed any more.
    LetGo { build: BuildId },
    /// A submission came to nothing: workers unpin what they confirmed for it.
    Abandoned { build_id: String },
    /// A client says something about its build.
    Report { build: BuildId, report: ClientReport },
    /// A worker says hello.
    Join {
        hello: Box<wire::WorkerHello>,
        outbox: mpsc::Sender<wire::ToWorker>,
        reply: oneshot::Sender<Joined>,
    },
    /// A worker says anything else. `connection` tells a broken stream's late messages apart.
    FromWorker { session: Session, connection: u64, body: Box<wire::from_worker::Body> },
    /// A worker's stream has ended.
    Disconnected { session: Session, connection: u64 },
    /// Where are these blobs?
    Locate { request: wire::LocateRequest, reply: mpsc::Sender<wire::Located> },
    /// Which sessions hold an output tree?
    Holders { tree: Digest, reply: oneshot::Sender<Vec<Session>> },
    /// Which sessions are on these stores?
    SessionsOf { stores: Vec<String>, reply: oneshot::Sender<Vec<Session>> },
    /// Does this secret belong to this lender?
    MayLend { request: wire::LendRequest, reply: oneshot::Sender<bool> },
    /// The answer of the database to a batch of look-ups by action.
    LookedUp { answers: Vec<(JobRef, Option<CachedResult>)> },
    /// For jobs that neither key finds: the runs that were compared, and the one that stands for it.
    Observed {
        answers: Vec<observed::Observed>,
        /// Of these, a directory is not at hand.
        unsettled: Vec<(observed::Question, Digest)>,
    },
    /// What was not at hand was fetched, or cannot be.
    AskAgain { question: Box<observed::Question> },
    /// What attempts will read, as far as it is known.
    Foreseen { predictions: Vec<Foreseen> },
    /// Successful attempts are recorded, or could not be.
    Recorded { attempts: Vec<AttemptId>, error: Option<String> },
    /// What is going on?
    Status { reply: oneshot::Sender<wire::StatusResponse> },
    /// Who is connected?
    Workers { reply: oneshot::Sender<Vec<wire::WorkerInfo>> },
    /// Cancel by public id; answers whether there is such a build.
    Cancel { build_id: String, reply: oneshot::Sender<bool> },
    /// End everything; answered when the builds have ended. What can go on after the next start is left to that.
    Shutdown { reply: oneshot::Sender<()> },
}

/// A handle to the core; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    messages: mpsc::Sender<Message>,
}

/// The core has ended.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub(crate) struct Stopped;

impl Handle {
    /// Tells the core; waits while its queue is full.
    pub(crate) async fn tell(&self, message: Message) -> Result<(), Stopped> {
        self.messages.send(message).await.map_err(|_| Stopped)
    }

    /// Asks the core.
    pub(crate) async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.tell(message(reply)).await?;
        answer.await.map_err(|_| Stopped)
    }
}

/// What the core shares with the services.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) state: State,
    pub(crate) relay: Relay,
    pub(crate) metadata: Metadata,
    pub(crate) directories: KnownDirectories,
    pub(crate) store: distbuild_cas::DiskStore,
    pub(crate) limits: Arc<Limits>,
    /// The state is this coordinator's alone: who is started after it goes on where it ends.
    pub(crate) durable: bool,
}

/// Who holds an output tree, and which finished jobs of running builds rely on it.
#[derive(Debug, Default)]
struct TreeEntry {
    stores: BTreeSet<StoreId>,
    jobs: BTreeSet<JobRef>,
}

struct Core {
    shared: Shared,
    handle: mpsc::WeakSender<Message>,
    started: Instant,
    scheduler: Scheduler,
    pools: Pools,
    selectors: BTreeMap<Properties, sched::SelectorId>,
    users: BTreeMap<String, sched::UserId>,
    last_user: u32,
    builds: BTreeMap<BuildId, builds::Build>,
    executions: executions::Executions,
    last_build: u64,
    sessions: sessions::Sessions,
    attempts: BTreeMap<AttemptId, attempts::Attempt>,
    /// Reports of attempts that ended in this round, until the effects that name them are done.
    ended: BTreeMap<AttemptId, attempts::Ended>,
    trees: HashMap<Digest, TreeEntry>,
    locator: Locator<Waiter>,
    checks: lookups::Checks,
    /// Jobs to be looked up by action, gathered in one round.
    lookups: Vec<(JobRef, [u8; 32])>,
    /// Attempts that were assigned in one round, with the keys of their commands.
    unforeseen: Vec<(AttemptId, [u8; 32])>,
    /// Successful attempts to be recorded, gathered in one round.
    records: attempts::Records,
    /// How it was decided what runs, gathered in one round.
    explanations: Vec<wire::Explanation>,
    /// Effects that nothing waits for: others are performed before them.
    unhurried: VecDeque<sched::Effect>,
    /// Builds that have ended and are being forgotten.
    forgotten: VecDeque<builds::Forgotten>,
    /// What the watchdog reported last, for people.
    last_stall: String,
    /// Some draining worker may have become idle, or needed by nobody.
    look_at_drained: bool,
    waiting_selects: Vec<(Instant, Vec<Properties>, oneshot::Sender<Vec<Selected>>)>,
    last_sweep: Instant,
    recovery: resume::Recovery,
    shutdown: Option<oneshot::Sender<()>>,
}

/// Starts the core. It ends when the last handle is gone, or after [`Message::Shutdown`].
///
/// # Errors
/// The known pools cannot be read.
pub(crate) async fn start(
    shared: Shared,
) -> Result<(Handle, tokio::task::JoinHandle<()>), crate::StateError> {
    let mut pools = Pools::default();
    for pool in shared.state.pools().await? {
        let properties = pool
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        pools.see(properties.collect());
    }
    let (messages, receiver) = mpsc::channel(WAITING_MESSAGES);
    let earlier = Earlier::load(&shared).await?;
    let core = Core::new(shared, pools, earlier, messages.downgrade());
    let task = tokio::spawn(core.run(receiver));
    Ok((Handle { messages }, task))
}

impl Core {
    fn new(
        shared: Shared,
        pools: Pools,
        earlier: Earlier,
        handle: mpsc::WeakSender<Message>,
    ) -> Self {
        let limits = &shared.limits;
        let scheduler = limits.scheduler.clone();
        let scheduler = Scheduler::with_attempts_from(scheduler, earlier.first_attempt());
        let sessions = sessions::Sessions::after(earlier.last_session());
        let grant_ms = u64::try_from(limits.grant.as_millis()).unwrap_or(u64::MAX);
        Self {
            handle,
            started: Instant::now(),
            scheduler,
            pools,
            selectors: BTreeMap::new(),
            users: BTreeMap::new(),
            last_user: 0,
            builds: BTreeMap::new(),
            executions: executions::Executions::default(),
            last_build: 0,
            sessions,
            attempts: BTreeMap::new(),
            ended: BTreeMap::new(),
            trees: HashMap::new(),
            locator: Locator::new(limits.max_located, grant_ms),
            checks: lookups::Checks::default(),
            lookups: Vec::new(),
            unforeseen: Vec::new(),
            records: attempts::Records::default(),
            explanations: Vec::new(),
            unhurried: VecDeque::new(),
            forgotten: VecDeque::new(),
            last_stall: String::new(),
            look_at_drained: false,
            waiting_selects: Vec::new(),
            last_sweep: Instant::now(),
            recovery: resume::Recovery::new(earlier, limits.recovery, limits.client_reconnect),
            shutdown: None,
            shared,
        }
    }

    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut busy = false;
        loop {
            if busy {
                tokio::task::yield_now().await;
            } else {
                let deadline = self.next_deadline();
                tokio::select! {
                    message = messages.recv() => {
                        let Some(message) = message else { return };
                        self.handle_message(message);
                    }
                    () = tokio::time::sleep_until(deadline) => {}
                }
            }
            for _ in 1..MESSAGES_PER_ROUND {
                let Ok(message) = messages.try_recv() else { break };
                self.handle_message(message);
            }
            busy = self.round();
            if self.builds.is_empty()
                && let Some(reply) = self.shutdown.take()
            {
                let _ = reply.send(());
                return;
            }
        }
    }

    /// What follows from the messages that were handled, up to a bound. True: there is more to do.
    fn round(&mut self) -> bool {
        self.sweep();
        let effects_left = self.pump();
        self.send_acknowledgements();
        let forgetting = self.forget_some();
        if std::mem::take(&mut self.look_at_drained) {
            self.dismiss_drained();
        }
        effects_left || forgetting
    }

    fn now(&self) -> sched::Time {
        sched::Time(self.now_ms())
    }

    /// Milliseconds since the core started, by a clock that never jumps.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn at(&self, ms: u64) -> Instant {
        self.started + std::time::Duration::from_millis(ms)
    }

    fn next_deadline(&self) -> Instant {
        let second = self.last_sweep + std::time::Duration::from_secs(1);
        let scheduler = self.scheduler.poll_timeout().map(|time| self.at(time.0));
        let locator = self.locator.next_expiry().map(|ms| self.at(ms));
        [scheduler, locator].into_iter().flatten().fold(second, Instant::min)
    }

    /// What time alone brings about.
    fn sweep(&mut self) {
        let now = self.now();
        if self.scheduler.poll_timeout().is_some_and(|time| time <= now) {
            self.scheduler.handle(now, sched::Event::Tick);
        }
        let granted = self.locator.expire(now.0);
        self.answer_located(granted);
        if self.last_sweep.elapsed() >= std::time::Duration::from_secs(1) {
            self.last_sweep = Instant::now();
            self.end_stale_sessions();
            self.expire_checks();
            self.expire_recovery();
            self.expire_selects();
            self.report_waiting();
            self.look_at_drained = true;
        }
    }

    fn handle_message(&mut self, message: Message) {
        match message {
            Message::Select { selectors, reply } => self.select(selectors, reply),
            Message::CheckClaims { build_id, claims, reply } => {
                self.check_claims(&build_id, claims, lookups::CheckReply::Submission(reply));
            }
            Message::Submit { submission, reply } => {
                let _ = reply.send(self.submit(*submission));
            }
            Message::Execute { execution, reply } => {
                let _ = reply.send(self.execute(*execution));
            }
            Message::Recovered { reply } => self.await_recovery(reply),
            Message::MayResume { build_id, reply } => {
                let _ = reply.send(self.may_resume(&build_id));
            }
            Message::Attach { resume, reply } => {
                let _ = reply.send(self.attach(&resume));
            }
            Message::ClientGone { build, reader, closed } => {
                self.client_gone(build, reader, closed);
            }
            Message::LetGo { build } => self.let_go(build),
            Message::Abandoned { build_id } => self.release(&build_id),
            Message::Report { build, report } => self.client_report(build, report),
            Message::Join { hello, outbox, reply } => self.join(*hello, outbox, reply),
            Message::FromWorker { session, connection, body } => {
                self.worker_says(session, connection, *body);
            }
            Message::Disconnected { session, connection } => {
                self.disconnected(session, connection);
            }
            Message::Locate { request, reply } => self.locate(&request, &reply),
            Message::Holders { tree, reply } => {
                let _ = reply.send(self.sessions_with(&tree));
            }
            Message::SessionsOf { stores, reply } => {
                let _ = reply.send(self.sessions.on_stores(&stores));
            }
            Message::MayLend { request, reply } => {
                let _ = reply.send(self.may_lend(&request));
            }
            Message::LookedUp { answers } => self.looked_up(answers),
            Message::Observed { answers, unsettled } => {
                self.observed(answers);
                for (question, directory) in unsettled {
                    self.fetch_for(question, directory);
                }
            }
            Message::AskAgain { question } => self.ask_records(vec![*question]),
            Message::Foreseen { predictions } => self.foreseen(predictions),
            Message::Recorded { attempts, error } => {
                for attempt in attempts {
                    self.recorded(attempt, error.as_deref());
                }
            }
            Message::Status { reply } => {
                let _ = reply.send(self.status());
            }
            Message::Workers { reply } => {
                let _ = reply.send(self.sessions.infos());
            }
            Message::Cancel { build_id, reply } => {
                let found = self.build_by_name(&build_id);
                if let Some(build) = found {
                    self.client_report(build, ClientReport::Cancel);
                }
                let _ = reply.send(found.is_some());
            }
            Message::Shutdown { reply } => {
                self.shutdown = Some(reply);
                let builds: Vec<_> = self.builds.keys().copied().collect();
                for build in builds {
                    self.leave(build);
                }
            }
        }
    }

    fn select(&mut self, selectors: Vec<Properties>, reply: oneshot::Sender<Vec<Selected>>) {
        let selected: Vec<_> =
            selectors.iter().map(|selector| self.pools.select(selector)).collect();
        if selected.contains(&Selected::NoneKnown) {
            let deadline = Instant::now() + self.shared.limits.first_worker;
            self.waiting_selects.push((deadline, selectors, reply));
        } else {
            let _ = reply.send(selected);
        }
    }

    /// A pool has become known: those who waited for the first one go on.
    fn retry_selects(&mut self) {
        for (_, selectors, reply) in std::mem::take(&mut self.waiting_selects) {
            self.select(selectors, reply);
        }
    }

    fn expire_selects(&mut self) {
        let now = Instant::now();
        for (deadline, selectors, reply) in std::mem::take(&mut self.waiting_selects) {
            if reply.is_closed() {
                continue;
            }
            if deadline <= now {
                let _ = reply.send(selectors.iter().map(|_| Selected::NoneKnown).collect());
            } else {
                self.waiting_selects.push((deadline, selectors, reply));
            }
        }
    }

    /// Runs work whose outcome is a message to this core.
    fn spawn_message(&self, work: impl Future<Output = Message> + Send + 'static) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let message = work.await;
            if let Some(handle) = handle.upgrade() {
                let _ = handle.send(message).await;
            }
        });
    }
}
