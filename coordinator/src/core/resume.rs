//! Going on where an earlier coordinator was killed: builds whose clients come back, worker sessions that go on,
//! and attempts that run meanwhile.
//!
//! ```text
//! start ─▶ workers come back with what they run ─▶ submissions are taken ─▶ jobs claim what runs
//! ```
//!
//! The order matters: before the workers are back nobody knows which results are whole, nor what runs. What they
//! bring is in [`super::reattach`].
//!
//! A client says what it has heard of its build. Of the rest it is told: events go on where it stands, and a job
//! counts once, whether its end was heard before or is told now.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use distbuild_proto::wire;
use distbuild_proto::wire::build_event::Body;
use distbuild_sched::{AttemptId, BuildId, How, JobRef, Outcome};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::attempts::Ended;
use super::builds::Build;
use super::{Core, Shared};
use crate::event_log::{EventLog, Reader};
use crate::locator::Session as SessionId;
use crate::state::{AttemptEnd, KnownSession, StateError};

/// Attempt numbers of one coordinator's life.
const ATTEMPTS_PER_START: u64 = 1 << 32;

/// What an earlier coordinator left behind.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    pub(super) start: u64,
    pub(super) sessions: Vec<KnownSession>,
    pub(super) builds: Vec<String>,
}

impl Earlier {
    /// Reads it, if this coordinator has the state for itself.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(crate) async fn load(shared: &Shared) -> Result<Self, StateError> {
        if !shared.durable {
            return Ok(Self::default());
        }
        let state = &shared.state;
        let (start, sessions) = (state.count_start().await?, state.sessions().await?);
        Ok(Self { start, sessions, builds: state.running_builds().await? })
    }

    /// The first attempt of this coordinator; those of earlier ones are below.
    pub(super) fn first_attempt(&self) -> AttemptId {
        AttemptId(self.start.saturating_mul(ATTEMPTS_PER_START) + 1)
    }

    /// The highest number of a session that may come back.
    pub(super) fn last_session(&self) -> u32 {
        self.sessions.iter().map(|session| session.id).max().unwrap_or(0)
    }
}

/// What is awaited, and what came back and is not claimed yet.
#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) first_attempt: AttemptId,
    sessions: BTreeMap<u32, KnownSession>,
    sessions_until: Instant,
    /// Builds whose clients may come back, and until when.
    pub(super) builds: BTreeMap<String, Instant>,
    waiting: Vec<oneshot::Sender<()>>,
    pub(super) unclaimed: BTreeMap<AttemptId, Unclaimed>,
    pub(super) by_key: BTreeSet<(Bytes, AttemptId)>,
    pub(super) unclaimed_until: Instant,
    /// On their way to a job through the scheduler.
    pub(super) claimed: BTreeMap<AttemptId, Unclaimed>,
    pub(super) parked: Vec<(wire::LocateRequest, mpsc::Sender<wire::Located>)>,
    /// Logs of builds that have ended, until their clients have taken in all of it.
    ended: BTreeMap<String, (Bytes, EventLog, Instant)>,
}

/// An attempt that a worker brought.
#[derive(Debug)]
pub(super) struct Unclaimed {
    pub(super) session: SessionId,
    pub(super) origin: wire::AttemptOrigin,
    /// Its end, if that has come already.
    pub(super) report: Option<wire::AttemptEnded>,
    /// It was cancelled.
    pub(super) dropped: bool,
}

/// What is known of a build that goes on. Jobs by position.
#[derive(Debug, Default)]
pub(crate) struct Resumed {
    /// The last event that the client has taken in.
    pub(crate) seq: u64,
    /// Jobs whose end it has heard.
    pub(crate) told: BTreeMap<u32, wire::Outcome>,
    /// How last attempts ended.
    pub(crate) ends: BTreeMap<u32, AttemptEnd>,
    /// The newest attempts that it has heard of, of jobs whose end it has not.
    pub(crate) attempts: BTreeMap<u32, wire::HeardAttempt>,
}

/// A client's new stream to a build that this coordinator runs.
#[derive(Debug)]
pub(crate) struct Attached {
    /// None if the build has ended.
    pub(crate) build: Option<BuildId>,
    pub(crate) events: EventLog,
    pub(crate) reader: Reader,
}

impl Recovery {
    pub(super) fn new(earlier: Earlier, recovery: Duration, client_reconnect: Duration) -> Self {
        let now = Instant::now();
        let (sessions_until, until) = (now + recovery, now + recovery + client_reconnect);
        Self {
            first_attempt: earlier.first_attempt(),
            sessions: earlier.sessions.into_iter().map(|known| (known.id, known)).collect(),
            sessions_until,
            builds: earlier.builds.into_iter().map(|id| (id, until)).collect(),
            waiting: Vec::new(),
            unclaimed: BTreeMap::new(),
            by_key: BTreeSet::new(),
            unclaimed_until: until,
            claimed: BTreeMap::new(),
            parked: Vec::new(),
            ended: BTreeMap::new(),
        }
    }

    /// The awaited session that a worker says it continues.
    pub(super) fn take_session(&mut self, hello: &wire::WorkerHello) -> Option<KnownSession> {
        let id = u32::try_from(hello.resume_session).ok()?;
        let known = self.sessions.get(&id)?;
        let same = known.secret == hello.resume_secret && known.store_name == hello.store_id;
        same.then(|| self.sessions.remove(&id)).flatten()
    }

    /// A worker begins anew on this store.
    pub(super) fn forget_store(&mut self, store_name: &str) {
        self.sessions.retain(|_, known| known.store_name != store_name);
    }

    /// Whether a worker brought this attempt and it was cancelled.
    pub(super) fn is_dropped(&self, id: AttemptId) -> bool {
        self.unclaimed.get(&id).is_some_and(|unclaimed| unclaimed.dropped)
    }

    pub(super) fn remove(&mut self, id: AttemptId) -> Option<Unclaimed> {
        let unclaimed = self.unclaimed.remove(&id)?;
        self.by_key.remove(&(unclaimed.origin.action_key.clone(), id));
        Some(unclaimed)
    }
}

impl Resumed {
    /// The newest attempt of a job so far.
    pub(super) fn newest_attempt(&self, index: u32) -> u32 {
        let heard = self.attempts.get(&index).map_or(0, |attempt| attempt.number);
        let ended = self.ends.get(&index).map_or(0, |end| end.finished.number);
        heard.max(ended)
    }

    /// A successful run of this job in this build, whose end the client has yet to hear.
    pub(super) fn succeeded(&self, index: u32) -> bool {
        let executed = |end: &AttemptEnd| end.finished.outcome() == wire::Outcome::Executed;
        self.ends.get(&index).is_some_and(executed)
    }
}

impl Core {
    /// Answers once the workers that were connected before the start are back, or have had the time.
    pub(super) fn await_recovery(&mut self, reply: oneshot::Sender<()>) {
        self.recovery.waiting.push(reply);
        self.end_recovery();
    }

    /// Lets submissions go on, if nothing is waited for any more.
    pub(super) fn end_recovery(&mut self) {
        let recovery = &mut self.recovery;
        if recovery.sessions_until <= Instant::now() {
            for (id, known) in std::mem::take(&mut recovery.sessions) {
                tracing::warn!(
                    session = id,
                    store = known.store_name,
                    "a worker did not come back"
                );
                self.forget_session(id);
            }
        }
        if self.recovery.sessions.is_empty() {
            for reply in std::mem::take(&mut self.recovery.waiting) {
                let _ = reply.send(());
            }
        }
    }

    pub(super) fn forget_session(&self, id: u32) {
        if !self.shared.durable {
            return;
        }
        let state = self.shared.state.clone();
        tokio::spawn(async move {
            if let Err(error) = state.forget_session(id).await {
                tracing::warn!(%error, "failed to write down that a session has ended");
            }
        });
    }

    /// Forgets what nobody has come back for.
    pub(super) fn expire_recovery(&mut self) {
        self.end_recovery();
        let now = Instant::now();
        if self.recovery.unclaimed_until <= now {
            let unclaimed: Vec<_> = self.recovery.unclaimed.iter().collect();
            let ids: Vec<_> =
                unclaimed.iter().filter(|(_, it)| !it.dropped).map(|(id, _)| **id).collect();
            ids.into_iter().for_each(|id| self.drop_unclaimed(id));
            for (request, reply) in std::mem::take(&mut self.recovery.parked) {
                self.locate(&request, &reply);
            }
        }
        let expired = |(_, until): &(&String, &Instant)| **until <= now;
        let expired: Vec<_> =
            self.recovery.builds.iter().filter(expired).map(|(id, _)| id.clone()).collect();
        for id in expired {
            tracing::warn!(build = id, "the client of a build did not come back");
            self.recovery.builds.remove(&id);
            self.release(&id);
            let state = self.shared.state.clone();
            tokio::spawn(async move {
                if let Err(error) = state.give_build_up(id).await {
                    tracing::warn!(%error, "failed to give a build up");
                }
            });
        }
        let patience = self.shared.limits.client_reconnect;
        let lost = |build: &Build| build.client_lost.is_some_and(|at| at + patience <= now);
        let lost: Vec<_> =
            self.builds.iter().filter(|(_, build)| lost(build)).map(|(id, _)| *id).collect();
        for id in lost {
            self.client_report(id, super::ClientReport::Cancel);
        }
        let heard =
            |(_, log, until): &(Bytes, EventLog, Instant)| log.is_heard_out() || *until <= now;
        let heard: Vec<_> = self
            .recovery
            .ended
            .iter()
            .filter(|(_, it)| heard(it))
            .map(|(id, _)| id.clone())
            .collect();
        for id in heard {
            self.recovery.ended.remove(&id);
            self.forget_build(id);
        }
    }

    fn forget_build(&self, id: String) {
        if !self.shared.durable {
            return;
        }
        let state = self.shared.state.clone();
        tokio::spawn(async move {
            if let Err(error) = state.forget_build(id).await {
                tracing::warn!(%error, "failed to forget a build");
            }
        });
    }

    /// Whether a client may go on with this build by submitting it again.
    pub(super) fn may_resume(&mut self, build_id: &str) -> bool {
        let patience = self.shared.limits.client_reconnect;
        let until = self.recovery.builds.get_mut(build_id);
        until.map(|until| *until = (*until).max(Instant::now() + patience)).is_some()
    }

    /// A build that ran before goes on: it is awaited no more.
    pub(super) fn resumes(&mut self, build_id: &str) {
        self.recovery.builds.remove(build_id);
    }

    /// Keeps the log of a build that has ended for a client that may still have to hear of it.
    pub(super) fn keep_log(&mut self, build: &Build) {
        if build.header.resumable {
            let until = Instant::now() + self.shared.limits.client_reconnect;
            let kept = (build.secret.clone(), build.events.clone(), until);
            self.recovery.ended.insert(build.public_id.clone(), kept);
        }
    }

    /// A client's stream to its build broke, and here is the next one.
    pub(super) fn attach(&mut self, resume: &wire::ResumeBuild) -> Option<Attached> {
        if let Some((secret, events, _)) = self.recovery.ended.get(&resume.build_id) {
            let reader = (*secret == resume.secret).then(|| events.attach(resume.seq)).flatten()?;
            return Some(Attached { build: None, events: events.clone(), reader });
        }
        let id = self.build_by_name(&resume.build_id)?;
        let build = self.builds.get_mut(&id).filter(|build| build.secret == resume.secret)?;
        let reader = build.events.attach(resume.seq)?;
        (build.client_lost, build.reader) = (None, reader);
        tracing::info!(build = build.public_id, "the client came back");
        Some(Attached { build: Some(id), events: build.events.clone(), reader })
    }

    /// A client's stream has ended: it closed it, or it broke.
    pub(super) fn client_gone(&mut self, id: BuildId, reader: Reader, closed: bool) {
        let Some(build) = self.builds.get_mut(&id) else {
            return;
        };
        if build.reader != reader {
            return;
        }
        if closed || !build.header.resumable {
            self.client_report(id, super::ClientReport::Cancel);
        } else {
            build.client_lost = Some(Instant::now());
            tracing::info!(build = build.public_id, "the connection of a client broke");
        }
    }

    /// Tells the client of a build that goes on what became of attempts while it could not hear.
    pub(super) fn tell_missed(&mut self, build: &mut Build) {
        let Some(resumed) = &mut build.resumed else { return };
        let of_build = |(_, it): &(&AttemptId, &Unclaimed)| {
            !it.dropped && it.origin.build_id == build.public_id
        };
        let brought = self.recovery.unclaimed.iter().filter(of_build);
        let mut brought: BTreeMap<(u32, u32), AttemptId> =
            brought.map(|(id, it)| ((it.origin.job, it.origin.number), *id)).collect();
        // The end of these was written down, and their workers did not hear of it.
        let ended: Vec<_> = resumed
            .ends
            .values()
            .filter_map(|end| brought.remove(&(end.finished.job, end.finished.number)))
            .collect();
        let mut told_of = BTreeMap::new();
        for (index, heard) in &mut resumed.attempts {
            told_of.insert(*index, heard.number);
            if !heard.running || brought.contains_key(&(heard.job, heard.number)) {
                continue;
            }
            heard.running = false;
            let end = resumed.ends.get(index).filter(|end| end.finished.number == heard.number);
            let finished = end.map_or_else(|| lost(heard), |end| end.finished.clone());
            build.events.append(Body::AttemptFinished(finished));
        }
        for (index, end) in &resumed.ends {
            let heard = told_of.get(index).copied().unwrap_or(0);
            if heard >= end.finished.number || resumed.told.contains_key(index) {
                continue;
            }
            let finished = &end.finished;
            build.events.append(Body::AttemptStarted(wire::AttemptStarted {
                job: finished.job,
                number: finished.number,
                worker: finished.worker.clone(),
            }));
            build.events.append(Body::AttemptFinished(finished.clone()));
        }
        ended.into_iter().for_each(|id| self.drop_unclaimed(id));
    }

    /// How a job that is about to be looked up has ended already, without success.
    pub(super) fn known_death(&mut self, job: JobRef) -> Option<Outcome> {
        let resumed = self.builds.get(&job.build)?.resumed.as_ref()?;
        // For the effects of this answer alone.
        let attempt = AttemptId(u64::MAX - u64::from(job.index));
        if let Some(told) = resumed.told.get(&job.index) {
            return (!is_success(*told)).then_some(Outcome::Failed { attempt });
        }
        let end = resumed.ends.get(&job.index)?;
        let outcome = match end.finished.outcome() {
            wire::Outcome::Failed => Outcome::Failed { attempt },
            wire::Outcome::TimedOut => Outcome::TimedOut { attempt },
            _ => return None,
        };
        let ended = Ended {
            result: end.result.clone().map(Into::into),
            reason: end.finished.reason.clone(),
            directories: Vec::new(),
        };
        self.ended.insert(attempt, ended);
        Some(outcome)
    }

    /// The client has heard before how this job ended, which is not told again. False: it has not.
    pub(super) fn ended_before(
        &mut self,
        job: JobRef,
        outcome: Outcome,
        now: wire::Outcome,
        reason: &str,
    ) -> bool {
        let Some(build) = self.builds.get_mut(&job.build) else {
            return false;
        };
        let resumed = build.resumed.as_mut();
        let Some(told) = resumed.and_then(|resumed| resumed.told.remove(&job.index)) else {
            return false;
        };
        let same = matches!(
            outcome,
            Outcome::Succeeded { how: How::Cached | How::Unneeded } | Outcome::Cancelled
        );
        build.job_mut(job).prepared = None;
        if same || !is_success(told) {
            build.finished(told);
            return true;
        }
        // Its outputs were not whole any more.
        let succeeded = matches!(outcome, Outcome::Succeeded { .. });
        build.finished(if succeeded { told } else { wire::Outcome::InfraError });
        let result = build.job(job).result.as_deref().filter(|_| succeeded).cloned();
        let reason = match succeeded {
            true => "the outputs were lost and made again".to_owned(),
            false => format!("the outputs were lost and could not be made again: {reason}"),
        };
        build.events.append(Body::OutputsRemade(wire::OutputsRemade {
            job: build.client_number(job),
            outcome: now.into(),
            result,
            reason,
        }));
        true
    }
}

impl Build {
    /// Tells of attempts that the client believes to run and that nobody needed any more.
    pub(super) fn tell_unclaimed(&self) {
        let heard = self.resumed.iter().flat_map(|resumed| resumed.attempts.values());
        for heard in heard.filter(|heard| heard.running) {
            self.events.append(Body::AttemptFinished(lost(heard)));
        }
    }

    /// Attempts of a job before those that the scheduler knows of.
    pub(super) fn earlier_attempts(&self, job: JobRef) -> u32 {
        let known = self.earlier.get(&job.index).copied().unwrap_or(0);
        let resumed = self.resumed.as_ref();
        known.max(resumed.map_or(0, |resumed| resumed.newest_attempt(job.index)))
    }

    /// Whether the client believes that this attempt runs.
    pub(super) fn hears_of(&self, job: JobRef, number: u32) -> bool {
        let resumed = self.resumed.as_ref();
        let heard = resumed.and_then(|resumed| resumed.attempts.get(&job.index));
        heard.is_some_and(|heard| heard.running && heard.number == number)
    }
}

fn is_success(outcome: wire::Outcome) -> bool {
    matches!(outcome, wire::Outcome::Executed | wire::Outcome::Cached | wire::Outcome::CutOff)
}

/// The end of an attempt that ended unheard of.
pub(super) fn lost(heard: &wire::HeardAttempt) -> wire::AttemptFinished {
    wire::AttemptFinished {
        job: heard.job,
        number: heard.number,
        worker: heard.worker.clone(),
        outcome: wire::Outcome::InfraError.into(),
        reason: "it was lost when the coordinator was started again".to_owned(),
        ..Default::default()
    }
}
