//! Builds: what a client has submitted, what has become of it, and what its client says.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::wire::build_event::Body;
use distbuild_proto::{Digest, DigestFunction, wire};
use distbuild_sched as sched;
use distbuild_sched::{BuildId, JobRef, StoreId};
use tokio::time::Instant;

use super::prefetch::Ledger;
use super::work::{Prepared, Work};
use super::{Core, Resumed};
use crate::event_log::{EventLog, Reader, unix_ms};
use crate::locator::Session as SessionId;
use crate::metadata::BuildMetadata;
use crate::pools::Properties;
use crate::relay::Lender;
use crate::state::CachedResult;

/// Jobs of an ended build that are forgotten before messages are handled again.
const JOBS_FORGOTTEN_PER_ROUND: usize = 8192;

/// Users that are told apart; beyond, all that are known are forgotten.
const MAX_USERS: usize = 10_000;

/// A validated build, ready to run: whatever takes long with many jobs is done. All lists go by the
/// position of a job in the graph.
pub(crate) struct Submission {
    pub(crate) build_id: String,
    pub(crate) secret: Bytes,
    pub(crate) header: wire::BuildHeader,
    pub(crate) function: DigestFunction,
    pub(crate) work: Work,
    /// The build as the scheduler sees it; a selector is the position of a pool.
    pub(crate) plan: Box<sched::Graph>,
    pub(crate) requested: Vec<bool>,
    /// Public job ids, 20 bytes each, in the order of the submission.
    pub(crate) id_bytes: Bytes,
    /// What the cache has, checked to be whole.
    pub(crate) cached: Vec<Option<(CachedResult, Vec<StoreId>)>>,
    /// The distinct pools of this build, and which one each job runs in.
    pub(crate) pools: Vec<Properties>,
    pub(crate) pool_of: Vec<u32>,
    pub(crate) metadata: BuildMetadata,
    /// Every source file that some job declares.
    pub(crate) declared: HashSet<Digest>,
    /// It went on before this coordinator was started.
    pub(crate) resumed: Option<Box<Resumed>>,
}

/// Why a build does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    /// As it says.
    #[error("the coordinator is shutting down")]
    ShuttingDown,
    /// As it says.
    #[error("{max_builds} builds are running, the limit; try again later")]
    Full {
        /// [`crate::Limits::max_builds`].
        max_builds: usize,
    },
    /// Its client has submitted it before, and may attach to it.
    #[error("the build goes on already")]
    GoesOn,
}

/// What the client gets back.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) build: BuildId,
    pub(crate) events: EventLog,
}

/// What a client says about its running build; jobs by their place in the submission.
#[derive(Clone, Debug)]
pub(crate) enum ClientReport {
    /// The outputs of these jobs have arrived.
    Delivered(Vec<u32>),
    /// Nobody would give the outputs of a job.
    OutputsMissing(u32),
    /// Stop: nobody wants it any more.
    Cancel,
    /// Stop: the coordinator is shutting down.
    ShutDown,
}

/// A running build.
pub(super) struct Build {
    pub(super) public_id: String,
    pub(super) secret: Bytes,
    pub(super) header: wire::BuildHeader,
    pub(super) function: DigestFunction,
    pub(super) work: Work,
    pub(super) requested: Vec<bool>,
    pools: Vec<Properties>,
    pool_of: Vec<u32>,
    pub(super) declared: HashSet<Digest>,
    _metadata: BuildMetadata,
    pub(super) jobs: Vec<JobRecord>,
    pub(super) events: EventLog,
    pub(super) opened: HashSet<Digest>,
    pub(super) bytes: wire::ByteCounts,
    /// By the client.
    pub(super) sent_ahead: Ledger,
    started_ms: u64,
    finished_jobs: u64,
    pub(super) stopped: Option<Stopped>,
    /// How many jobs ended in each way.
    outcomes: BTreeMap<wire::Outcome, u64>,
    pub(super) last_waiting: Option<String>,
    /// The workers that were told to run an execution.
    pub(super) ran_on: BTreeSet<SessionId>,
    /// The edge needs the execution no more.
    pub(super) let_go: bool,
    /// It went on before this coordinator was started.
    pub(super) resumed: Option<Box<Resumed>>,
    /// Of some jobs, by position: attempts that the scheduler does not know of.
    pub(super) earlier: BTreeMap<u32, u32>,
    /// The client's stream.
    pub(super) reader: Reader,
    /// Since when it is broken.
    pub(super) client_lost: Option<Instant>,
}

/// A build that has ended, on its way out.
pub(super) struct Forgotten {
    id: BuildId,
    build: Build,
    next: usize,
}

impl Forgotten {
    pub(super) fn new(id: BuildId, build: Build) -> Self {
        Self { id, build, next: 0 }
    }
}

/// Why a build was ended before its jobs were done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    Cancelled,
    ShutDown,
}

impl Stopped {
    /// For people.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::ShutDown => "the coordinator is shutting down",
        }
    }
}

/// What the core keeps of a job.
#[derive(Default)]
pub(super) struct JobRecord {
    /// Its result: from the cache, or of the attempt that ended it.
    pub(super) result: Option<Arc<wire::JobResult>>,
    pub(super) output_root: Option<Digest>,
    /// The result is that of another action's run, of which all holds that it looked at.
    pub(super) stood: bool,
    /// Lowered, while it waits or runs.
    pub(super) prepared: Option<Arc<Prepared>>,
    pub(super) queued_ms: u64,
}

impl Build {
    /// The number by which the client knows a job.
    pub(super) fn client_number(&self, job: JobRef) -> u32 {
        self.work.client_number(job.index as usize)
    }

    /// Whether people see it among the builds.
    pub(super) fn is_listed(&self) -> bool {
        matches!(self.work, Work::Graph(_))
    }

    /// Whether outputs are wanted also of a job that did not succeed.
    pub(super) fn keeps_outputs_of_failures(&self) -> bool {
        matches!(self.work, Work::Action(_))
    }

    /// Whether a job's commands have anything to look at.
    pub(super) fn has_inputs(&self, job: JobRef) -> bool {
        self.work.has_inputs(job.index as usize)
    }

    /// Whether what a job's commands look at is recorded, and compared with earlier runs.
    pub(super) fn is_observed(&self, job: JobRef) -> bool {
        self.has_inputs(job) && !self.header.without_observed_inputs
    }

    pub(super) fn job(&self, job: JobRef) -> &JobRecord {
        &self.jobs[job.index as usize]
    }

    pub(super) fn job_mut(&mut self, job: JobRef) -> &mut JobRecord {
        &mut self.jobs[job.index as usize]
    }

    /// The properties of the workers that may run a job.
    pub(super) fn pool(&self, job: JobRef) -> &Properties {
        &self.pools[self.pool_of[job.index as usize] as usize]
    }

    /// The toolchain that a job runs with.
    pub(super) fn toolchain(&self, job: JobRef) -> &str {
        self.pool(job).get(crate::pools::TOOLCHAIN).map_or("", String::as_str)
    }

    pub(super) fn finished(&mut self, outcome: wire::Outcome) {
        self.finished_jobs += 1;
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    pub(super) fn summary(&self, outcome: wire::Outcome, finished: bool) -> wire::BuildSummary {
        wire::BuildSummary {
            build_id: self.public_id.clone(),
            user: self.header.user.clone(),
            title: self.header.title.clone(),
            started_ms: self.started_ms,
            total_jobs: self.jobs.len() as u64,
            finished_jobs: self.finished_jobs,
            outcome: outcome.into(),
            finished,
        }
    }

    /// The outcome of the whole, worst first: cancelled, infrastructure, no worker, failed.
    fn outcome(&self) -> wire::Outcome {
        match self.stopped {
            Some(Stopped::Cancelled) => return wire::Outcome::Cancelled,
            Some(Stopped::ShutDown) => return wire::Outcome::InfraError,
            None => {}
        }
        [
            wire::Outcome::InfraError,
            wire::Outcome::NoWorker,
            wire::Outcome::Failed,
            wire::Outcome::TimedOut,
        ]
        .into_iter()
        .find(|outcome| self.outcomes.contains_key(outcome))
        .unwrap_or(wire::Outcome::Executed)
    }
}

/// A position as the scheduler and the wire count.
pub(super) fn number(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

/// The digest in a result, if it has a valid one.
pub(super) fn output_root(result: &wire::JobResult) -> Option<Digest> {
    result.output_root.as_ref().and_then(|root| Digest::try_from(root).ok())
}

impl Core {
    pub(super) fn build_by_name(&self, public_id: &str) -> Option<BuildId> {
        let named = |(_, build): &(&BuildId, &Build)| build.public_id == public_id;
        self.builds.iter().find(named).map(|(id, _)| *id)
    }

    pub(super) fn submit(&mut self, submission: Submission) -> Result<Accepted, NotTaken> {
        if self.shutdown.is_some() {
            return Err(NotTaken::ShuttingDown);
        }
        let max_builds = self.shared.limits.max_builds;
        if self.builds.len() - self.executions.running() >= max_builds {
            return Err(NotTaken::Full { max_builds });
        }
        if self.build_by_name(&submission.build_id).is_some() {
            return Err(NotTaken::GoesOn);
        }
        Ok(self.begin(submission))
    }

    /// Hands a build to the scheduler.
    pub(super) fn begin(&mut self, mut submission: Submission) -> Accepted {
        self.last_build += 1;
        let id = BuildId(self.last_build);
        let selectors: Vec<_> = submission.pools.iter().map(|pool| self.selector(pool)).collect();
        let mut graph = std::mem::take(&mut submission.plan);
        graph.map_selectors(|pool| selectors[pool.0 as usize]);
        let id_bytes = submission.id_bytes.clone();
        let mut build = self.new_build(id, submission);
        let events = build.events.clone();
        let (public_id, lend_secret) = (build.public_id.clone(), build.secret.clone());
        let summary = build.summary(wire::Outcome::Unspecified, false);
        let resumed = build.resumed.as_ref();
        if resumed.is_none_or(|resumed| resumed.seq == 0) {
            events.append(Body::BuildStarted(wire::BuildStarted {
                build_id: public_id.clone(),
                lend_secret,
                job_ids: id_bytes.clone(),
            }));
        }
        if build.resumed.is_some() {
            tracing::info!(build = public_id, "a build goes on");
            self.tell_missed(&mut build);
            self.resumes(&public_id);
        }
        let user = build.header.user.clone();
        let class = u8::try_from(build.header.priority_class).unwrap_or(u8::MAX);
        let keep_going = build.header.keep_going;
        if build.is_listed() {
            self.write_build(summary, id_bytes);
        }
        self.builds.insert(id, build);
        let user = self.user(user);
        let submitted = sched::Event::Submitted { build: id, user, class, keep_going, graph };
        self.scheduler.handle(self.now(), submitted);
        Accepted { build: id, events }
    }

    fn new_build(&mut self, id: BuildId, submission: Submission) -> Build {
        let mut jobs = Vec::with_capacity(submission.cached.len());
        for (index, cached) in submission.cached.into_iter().enumerate() {
            let mut record = JobRecord::default();
            if let Some((cached, stores)) = cached {
                record.output_root = output_root(&cached.result);
                record.result = Some(Arc::new(cached.result));
                if let Some(root) = record.output_root {
                    let index = number(index);
                    let entry = self.trees.entry(root).or_default();
                    entry.stores.extend(stores);
                    entry.jobs.insert(JobRef { build: id, index });
                }
            }
            jobs.push(record);
        }
        let seq = submission.resumed.as_ref().map_or(0, |resumed| resumed.seq);
        let events = match submission.header.resumable {
            true => EventLog::resumable(seq, self.shared.limits.max_unheard_events),
            false => EventLog::default(),
        };
        Build {
            public_id: submission.build_id,
            secret: submission.secret,
            header: submission.header,
            function: submission.function,
            work: submission.work,
            requested: submission.requested,
            pools: submission.pools,
            pool_of: submission.pool_of,
            declared: submission.declared,
            _metadata: submission.metadata,
            jobs,
            events,
            opened: HashSet::new(),
            bytes: wire::ByteCounts::default(),
            sent_ahead: Ledger::default(),
            started_ms: unix_ms(),
            finished_jobs: 0,
            stopped: None,
            outcomes: BTreeMap::new(),
            last_waiting: None,
            ran_on: BTreeSet::new(),
            let_go: false,
            resumed: submission.resumed,
            earlier: BTreeMap::new(),
            reader: Reader::default(),
            client_lost: None,
        }
    }

    /// The scheduler's number of a user. Whoever was forgotten is a new one.
    fn user(&mut self, name: String) -> sched::UserId {
        if let Some(user) = self.users.get(&name) {
            return *user;
        }
        if self.users.len() >= MAX_USERS {
            self.users.clear();
        }
        self.last_user = self.last_user.wrapping_add(1);
        let user = sched::UserId(self.last_user);
        self.users.insert(name, user);
        user
    }

    fn selector(&mut self, pool: &Properties) -> sched::SelectorId {
        if let Some(selector) = self.selectors.get(pool) {
            return *selector;
        }
        let next = u32::try_from(self.selectors.len()).unwrap_or(u32::MAX);
        let selector = sched::SelectorId(next);
        self.selectors.insert(pool.clone(), selector);
        let defined = sched::Event::SelectorDefined { selector, properties: pool.clone() };
        self.scheduler.handle(self.now(), defined);
        selector
    }

    pub(super) fn client_report(&mut self, id: BuildId, report: ClientReport) {
        let now = self.now();
        let Some(build) = self.builds.get_mut(&id) else {
            return;
        };
        let position = |number: u32| build.work.position(number);
        match report {
            ClientReport::Cancel | ClientReport::ShutDown => {
                let shut_down = matches!(report, ClientReport::ShutDown);
                let why = if shut_down { Stopped::ShutDown } else { Stopped::Cancelled };
                build.stopped.get_or_insert(why);
                self.scheduler.handle(now, sched::Event::Cancelled { build: id });
            }
            ClientReport::Delivered(numbers) => {
                for index in numbers.into_iter().filter_map(position) {
                    let job = JobRef { build: id, index };
                    self.scheduler.handle(now, sched::Event::Delivered { job });
                }
            }
            ClientReport::OutputsMissing(number) => {
                let Some(index) = position(number) else {
                    return;
                };
                let job = JobRef { build: id, index };
                if let Some(root) = build.job(job).output_root
                    && let Some(entry) = self.trees.get_mut(&root)
                {
                    entry.stores.clear();
                }
                self.outputs_lost(vec![job]);
            }
        }
    }

    /// The coordinator is shutting down: a build that can go on after the next start is left as it is, any other
    /// ends.
    pub(super) fn leave(&mut self, id: BuildId) {
        let durable = self.shared.durable;
        let goes_on = |build: &&mut Build| durable && build.header.resumable;
        match self.builds.get_mut(&id).filter(goes_on) {
            Some(build) => {
                build.events.go_away();
                self.builds.remove(&id);
            }
            None => self.client_report(id, ClientReport::ShutDown),
        }
    }

    /// The output tree of a job's dependency, by its position among the dependencies.
    pub(super) fn dep_output(&self, job: JobRef, dep: usize) -> Option<Digest> {
        let build = self.builds.get(&job.build)?;
        let dep = *build.work.deps(job.index as usize).get(dep)?;
        build.jobs.get(dep.get())?.output_root
    }

    /// All jobs have ended and all outputs are delivered: says so and forgets the build.
    pub(super) fn finish_build(&mut self, id: BuildId) {
        let Some(build) = self.builds.remove(&id) else {
            return;
        };
        let outcome = build.outcome();
        build.tell_unclaimed();
        build.events.append(Body::BuildFinished(wire::BuildFinished {
            outcome: outcome.into(),
            bytes: Some(build.bytes),
        }));
        build.events.close();
        self.keep_log(&build);
        if matches!(build.work, Work::Action(_)) {
            return self.execution_ended(id, build);
        }
        self.write_build(build.summary(outcome, true), Bytes::new());
        self.shared.relay.forget(&Lender::Build(build.public_id.clone()));
        self.release(&build.public_id);
        self.forgotten.push_back(Forgotten::new(id, build));
    }

    /// Forgets which output trees ended builds relied on, up to a bound; true if there are more.
    pub(super) fn forget_some(&mut self) -> bool {
        let Some(Forgotten { id, build, next }) = self.forgotten.front_mut() else {
            return false;
        };
        let first = *next;
        *next = build.jobs.len().min(first + JOBS_FORGOTTEN_PER_ROUND);
        for index in first..*next {
            if let Some(root) = build.jobs[index].output_root
                && let Entry::Occupied(mut tree) = self.trees.entry(root)
            {
                tree.get_mut().jobs.remove(&JobRef { build: *id, index: number(index) });
                if tree.get().jobs.is_empty() {
                    tree.remove();
                }
            }
        }
        if *next == build.jobs.len() {
            let is_large = first > 0;
            let forgotten = self.forgotten.pop_front();
            if is_large {
                // A graph of a million jobs takes a while to be given back, too.
                tokio::task::spawn_blocking(move || drop(forgotten));
            }
            self.look_at_drained = true;
        }
        !self.forgotten.is_empty()
    }

    /// Workers may unpin what they kept for a build.
    pub(super) fn release(&mut self, build_id: &str) {
        for session in self.sessions.ids() {
            let release = wire::ReleaseBuild { build_id: build_id.to_owned() };
            self.send_to(session, wire::to_worker::Body::ReleaseBuild(release));
        }
    }

    fn write_build(&self, summary: wire::BuildSummary, job_ids: Bytes) {
        let state = self.shared.state.clone();
        tokio::spawn(async move {
            if let Err(error) = state.record_build(summary, job_ids).await {
                tracing::warn!(%error, "failed to write a build down");
            }
        });
    }
}
