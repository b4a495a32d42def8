//! The scheduler's effects, performed: look-ups, assignments, and what clients are told.

use std::collections::VecDeque;
use std::sync::Arc;

use distbuild_proto::wire::build_event::Body;
use distbuild_proto::{Digest, wire};
use distbuild_sched as sched;
use distbuild_sched::{Effect, How, JobRef, Outcome, StoreId};

use super::builds::{Build, Stopped, output_root};
use super::lookups::{CheckReply, Claim};
use super::work::{Prepared, Unprepared};
use super::{Core, EFFECTS_PER_ROUND};
use crate::event_log::unix_ms;
use crate::state::{CachedResult, Recorded};

impl Core {
    /// Performs effects, up to a bound; true if it was reached.
    pub(super) fn pump(&mut self) -> bool {
        for _ in 0..EFFECTS_PER_ROUND {
            let Some(effect) = self.next_effect() else { break };
            match effect {
                Effect::LookUp { job } => self.look_up(job),
                Effect::Assign { attempt, number, job, worker, resources } => {
                    self.assign(attempt, number, job, worker, resources);
                }
                Effect::Adopted { attempt, job } => self.adopted(attempt, job),
                Effect::CancelAttempt { attempt } => self.cancel_attempt(attempt),
                Effect::JobEnded { job, outcome } => self.job_ended(job, outcome),
                Effect::Remade { job, how } => self.remade(job, how),
                Effect::RemakeFailed { job, outcome } => self.remake_failed(job, outcome),
                Effect::BuildEnded { build } => self.finish_build(build),
                Effect::Stalled(stall) => self.stalled(stall),
            }
        }
        self.send_lookups();
        self.send_predictions();
        self.send_records();
        self.send_explanations();
        self.scheduler.has_effects() || !self.unhurried.is_empty()
    }

    /// The next effect to be performed. A build may begin with the ends of a million jobs that are
    /// cached or not needed: what other builds wait for goes before them.
    fn next_effect(&mut self) -> Option<Effect> {
        while let Some(effect) = self.scheduler.poll_effect() {
            let unhurried = match &effect {
                Effect::JobEnded { outcome: Outcome::Succeeded { how }, .. } => {
                    matches!(how, How::Cached | How::Unneeded)
                }
                // It comes after the ends of its jobs.
                Effect::BuildEnded { .. } => !self.unhurried.is_empty(),
                _ => false,
            };
            if !unhurried {
                return Some(effect);
            }
            self.unhurried.push_back(effect);
        }
        // What is left names no attempt.
        self.ended.clear();
        let effect = self.unhurried.pop_front();
        if self.unhurried.is_empty() {
            self.unhurried = VecDeque::new();
        }
        effect
    }

    /// The dependencies of a job are done: its action is known and may have been run before.
    fn look_up(&mut self, job: JobRef) {
        let now_ms = self.now_ms();
        if let Some(outcome) = self.known_death(job) {
            let answer = sched::Answer::Dead { outcome };
            return self
                .scheduler
                .handle(sched::Time(now_ms), sched::Event::LookedUp { job, answer });
        }
        let Some(build) = self.builds.get_mut(&job.build) else {
            return;
        };
        let prepared = match prepare(build, job) {
            Ok(prepared) => prepared,
            Err(Unprepared::NoOutputs(dep)) => {
                tracing::error!(job.index, dep, "a dependency has no outputs");
                return self.outputs_lost_then_miss(job, dep);
            }
            Err(Unprepared::Tree(error)) => {
                tracing::error!(%error, job.index, "failed to make an input root");
                let cancelled = sched::Event::Cancelled { build: job.build };
                return self.scheduler.handle(sched::Time(now_ms), cancelled);
            }
        };
        build.events.append(Body::JobQueued(wire::JobQueued { job: build.client_number(job) }));
        let cacheable = build.work.is_cacheable(job.index as usize);
        let look = cacheable && !build.header.no_cache;
        let key = prepared.key;
        let record = build.job_mut(job);
        record.queued_ms = now_ms;
        record.prepared = Some(prepared);
        if look {
            self.lookups.push((job, key));
        } else {
            self.explain(job, wire::Decision::NotLookedUp, Default::default());
            self.answer_miss(job);
        }
    }

    /// A dependency is done and yet its outputs are not known: makes it again.
    fn outputs_lost_then_miss(&mut self, job: JobRef, dep: u32) {
        self.outputs_lost(vec![JobRef { build: job.build, index: dep }]);
        self.answer_miss(job);
    }

    /// The job has to run.
    pub(super) fn answer_miss(&mut self, job: JobRef) {
        let Some(build) = self.builds.get(&job.build) else {
            return;
        };
        let joinable = build.work.is_cacheable(job.index as usize);
        let key = build.job(job).prepared.as_ref().filter(|_| joinable);
        let key = key.map(|prepared| sched::ActionKey(prepared.key));
        let answer = match self.claim(job, joinable) {
            Some(attempt) => sched::Answer::Running { key, attempt },
            None => sched::Answer::Miss { key },
        };
        self.scheduler.handle(self.now(), sched::Event::LookedUp { job, answer });
    }

    /// The job has run before and its outputs are whole. `stood`: the run was that of another action, of which
    /// all holds that it looked at.
    pub(super) fn answer_hit(
        &mut self,
        job: JobRef,
        cached: CachedResult,
        holders: Vec<StoreId>,
        stood: bool,
    ) {
        let Some(build) = self.builds.get_mut(&job.build) else {
            return;
        };
        let prepared = build.job(job).prepared.clone();
        let root = output_root(&cached.result);
        let record = build.job_mut(job);
        record.output_root = root;
        record.stood = stood;
        record.result = Some(Arc::new(cached.result.clone()));
        self.rely_on(root, job);
        if let Some(prepared) = prepared
            && let Some(link) = self.job_link(job, prepared.key, prepared.action.input_root)
        {
            // A copy, since that action may be run again with another result.
            let copy = stood.then(|| Recorded {
                action_key: prepared.key,
                result: cached.result,
                holders: cached.holders,
            });
            let state = self.shared.state.clone();
            tokio::spawn(async move {
                if let Err(error) = state.record(copy, vec![link], unix_ms()).await {
                    tracing::warn!(%error, "failed to tie a job to its cached action");
                }
            });
        }
        let answer = sched::Answer::Hit { holders };
        self.scheduler.handle(self.now(), sched::Event::LookedUp { job, answer });
    }

    fn rely_on(&mut self, root: Option<Digest>, job: JobRef) {
        if let Some(root) = root {
            self.trees.entry(root).or_default().jobs.insert(job);
        }
    }

    fn job_ended(&mut self, job: JobRef, outcome: Outcome) {
        self.take_result(job, outcome);
        let (wire_outcome, reason, dependency) = self.describe(job, outcome);
        if self.ended_before(job, outcome, wire_outcome, &reason) {
            return self.deliver_nothing(job, outcome);
        }
        let Some(build) = self.builds.get_mut(&job.build) else {
            return;
        };
        build.finished(wire_outcome);
        let record = build.job(job);
        let shows_result = !matches!(
            outcome,
            Outcome::Skipped { .. } | Outcome::Cancelled | Outcome::NoWorker { .. }
        );
        let result = record.result.as_deref().filter(|_| shows_result).cloned();
        let stood = record.stood && matches!(outcome, Outcome::Succeeded { how: How::CutOff });
        let stood_on = result.as_ref().filter(|_| stood);
        let stood_action_key = stood_on.map(|result| result.action_key.clone()).unwrap_or_default();
        let is_requested = build.header.wants_outputs && build.requested[job.index as usize];
        let output_directories = attempt_of(outcome)
            .filter(|_| is_requested)
            .and_then(|attempt| self.ended.get(&attempt))
            .map(|ended| ended.directories.clone())
            .unwrap_or_default();
        // These ends may come late, when the job is already being made again.
        let was_prepared =
            !matches!(outcome, Outcome::Succeeded { how: How::Cached | How::Unneeded });
        if was_prepared {
            build.job_mut(job).prepared = None;
        }
        build.events.append(Body::JobFinished(wire::JobFinished {
            job: build.client_number(job),
            outcome: wire_outcome.into(),
            result,
            reason,
            dependency,
            joined: matches!(outcome, Outcome::Succeeded { how: How::Joined { .. } }),
            output_directories,
            stood_action_key,
        }));
        self.deliver_nothing(job, outcome);
    }

    /// A client that wants no outputs has all that it wants of a job that succeeded.
    fn deliver_nothing(&mut self, job: JobRef, outcome: Outcome) {
        let Some(build) = self.builds.get(&job.build) else {
            return;
        };
        let undelivered = !build.header.wants_outputs && build.requested[job.index as usize];
        if undelivered && matches!(outcome, Outcome::Succeeded { .. }) {
            self.scheduler.handle(self.now(), sched::Event::Delivered { job });
        }
    }

    /// Keeps the result of the attempt that ended a job; a job that joined another's attempt pins
    /// the outputs and ties its own key to the action.
    fn take_result(&mut self, job: JobRef, outcome: Outcome) {
        let Some(attempt) = attempt_of(outcome) else { return };
        let Some(result) = self.ended.get(&attempt).and_then(|ended| ended.result.clone()) else {
            return;
        };
        let root = output_root(&result);
        let Some(build) = self.builds.get_mut(&job.build) else {
            return;
        };
        let public_id = build.public_id.clone();
        let keeps_outputs_of_failures = build.keeps_outputs_of_failures();
        let record = build.job_mut(job);
        record.result = Some(result.clone());
        if !matches!(outcome, Outcome::Succeeded { .. }) && !keeps_outputs_of_failures {
            return;
        }
        record.output_root = root;
        let prepared = record.prepared.clone();
        self.rely_on(root, job);
        if let (Outcome::Succeeded { how: How::Joined { .. } }, Some(root), Some(prepared)) =
            (outcome, root, prepared)
        {
            let holders = self.store_names(&root);
            let cached = CachedResult { result: (*result).clone(), holders };
            self.check_claims(&public_id, vec![Claim::of(&cached)], CheckReply::Jobs(Vec::new()));
            let link = self.job_link(job, prepared.key, prepared.action.input_root);
            let state = self.shared.state.clone();
            tokio::spawn(async move {
                let links = link.into_iter().collect();
                if let Err(error) = state.record(None, links, unix_ms()).await {
                    tracing::warn!(%error, "failed to tie a joined job to its action");
                }
            });
        }
    }

    fn store_names(&self, root: &Digest) -> Vec<String> {
        self.sessions_with(root)
            .into_iter()
            .filter_map(|session| self.sessions.get(session))
            .map(|session| session.store_name.clone())
            .collect()
    }

    fn remade(&mut self, job: JobRef, how: How) {
        let before = self.builds.get(&job.build).and_then(|build| build.job(job).output_root);
        self.take_result(job, Outcome::Succeeded { how });
        let Some(build) = self.builds.get_mut(&job.build) else {
            return;
        };
        build.job_mut(job).prepared = None;
        let after = build.job(job).output_root;
        let reason = if before == after {
            "the outputs were lost and made again".to_owned()
        } else {
            "the outputs were lost and made again, with other contents: the job is not \
             deterministic"
                .to_owned()
        };
        let outcome = match how {
            How::Cached | How::CutOff | How::Unneeded => wire::Outcome::CutOff,
            How::Executed { .. } | How::Joined { .. } => wire::Outcome::Executed,
        };
        build.events.append(Body::OutputsRemade(wire::OutputsRemade {
            job: build.client_number(job),
            outcome: outcome.into(),
            result: build.job(job).result.as_deref().cloned(),
            reason,
        }));
    }

    fn remake_failed(&mut self, job: JobRef, outcome: Outcome) {
        let (wire_outcome, reason, _) = self.describe(job, outcome);
        let Some(build) = self.builds.get_mut(&job.build) else {
            return;
        };
        build.finished(wire::Outcome::InfraError);
        build.events.append(Body::OutputsRemade(wire::OutputsRemade {
            job: build.client_number(job),
            outcome: wire_outcome.into(),
            result: None,
            reason: format!("the outputs were lost and could not be made again: {reason}"),
        }));
    }

    /// An outcome in the words of the protocol: what, why, and which dependency failed.
    fn describe(&self, job: JobRef, outcome: Outcome) -> (wire::Outcome, String, u32) {
        let reason_of = |attempt| {
            self.ended.get(&attempt).map_or_else(String::new, |ended| ended.reason.clone())
        };
        match outcome {
            Outcome::Succeeded { how } => {
                let resumed = self.builds.get(&job.build).and_then(|it| it.resumed.as_ref());
                let executed = resumed.is_some_and(|resumed| resumed.succeeded(job.index));
                let no_cache =
                    || self.builds.get(&job.build).is_some_and(|build| build.header.no_cache);
                let outcome = match how {
                    How::Executed { .. } => wire::Outcome::Executed,
                    // In this build, before the coordinator was started again.
                    How::Cached if executed => wire::Outcome::Executed,
                    // An equal job was executed meanwhile, this one was not: as good as cached,
                    // except to who asked for an execution and got one.
                    How::Joined { .. } if no_cache() => wire::Outcome::Executed,
                    How::Joined { .. } | How::Cached | How::Unneeded => wire::Outcome::Cached,
                    How::CutOff => wire::Outcome::CutOff,
                };
                (outcome, String::new(), 0)
            }
            Outcome::Failed { attempt } => (wire::Outcome::Failed, reason_of(attempt), 0),
            Outcome::TimedOut { attempt } => (wire::Outcome::TimedOut, reason_of(attempt), 0),
            Outcome::InfraError { reason } => {
                let mut text = infra_text(reason);
                if let Some(last) = self.ended.values().last()
                    && !last.reason.is_empty()
                {
                    text = format!("{text}; the last: {}", last.reason);
                }
                (wire::Outcome::InfraError, text, 0)
            }
            Outcome::Skipped { dependency } => {
                let build = self.builds.get(&job.build);
                let name = build.map_or_else(String::new, |build| {
                    build.work.name(dependency as usize).to_owned()
                });
                let number = build.map_or(0, |build| build.work.client_number(dependency as usize));
                (wire::Outcome::Skipped, format!("its dependency {name:?} did not succeed"), number)
            }
            Outcome::Cancelled => {
                let stopped = self.builds.get(&job.build).and_then(|build| build.stopped);
                // Without a reason of its own, the build stopped at a failure elsewhere in it.
                let text = stopped.map_or("another job failed", Stopped::text);
                (wire::Outcome::Cancelled, text.to_owned(), 0)
            }
            Outcome::NoWorker { reason } => {
                (wire::Outcome::NoWorker, self.no_worker_text(job, reason), 0)
            }
        }
    }

    /// Why no worker takes a job, for people.
    pub(super) fn no_worker_text(&self, job: JobRef, reason: sched::NoWorkerReason) -> String {
        let nobody = "no connected worker offers its platform properties";
        let (sched::NoWorkerReason::TooBig, Some(build)) = (reason, self.builds.get(&job.build))
        else {
            return nobody.to_owned();
        };
        let asked = build.work.resources(job.index as usize);
        let asked = sched::Resources::new(asked.milli_cores, asked.memory_bytes);
        let Some((name, largest)) = self.sessions.nearest_to(asked, build.pool(job)) else {
            return nobody.to_owned();
        };
        format!(
            "it asks for {}, and the largest worker that offers its platform properties, {name:?}, \
             has {}",
            amount(asked),
            amount(largest)
        )
    }
}

/// Resources for people.
fn amount(resources: sched::Resources) -> String {
    let cores = f64::from(resources.milli_cores) / 1000.0;
    format!("{cores} cores and {} MiB of memory", resources.memory_bytes >> 20)
}

/// The attempt that a job ended with.
fn attempt_of(outcome: Outcome) -> Option<sched::AttemptId> {
    match outcome {
        Outcome::Succeeded { how: How::Executed { attempt } | How::Joined { attempt } }
        | Outcome::Failed { attempt }
        | Outcome::TimedOut { attempt } => Some(attempt),
        _ => None,
    }
}

/// Lowers a job whose dependencies are done.
fn prepare(build: &Build, job: JobRef) -> Result<Arc<Prepared>, Unprepared> {
    let output_root = |dep: usize| build.jobs[dep].output_root;
    build.work.prepare(job.index as usize, build.function, build.toolchain(job), output_root)
}

fn infra_text(reason: sched::InfraReason) -> String {
    match reason {
        sched::InfraReason::AttemptsExhausted { attempts, .. } => {
            format!("{attempts} attempts went wrong, no more are made")
        }
        sched::InfraReason::Quarantined { workers } => {
            format!("{workers} workers were lost while they ran it, so it is not tried again")
        }
        sched::InfraReason::InputsLost => "its inputs were lost again and again".to_owned(),
        sched::InfraReason::Rejected => "too many workers rejected it".to_owned(),
        sched::InfraReason::OutputsLost => "its outputs were lost again and again".to_owned(),
        sched::InfraReason::OutOfMemory { memory_bytes } => {
            format!("it was killed for want of memory with {memory_bytes} bytes reserved")
        }
    }
}
