//! Attempts: one execution of one job on one worker, from assignment to recorded result.

use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::wire::build_event::Body;
use distbuild_proto::wire::to_worker;
use distbuild_proto::{Digest, wire};
use distbuild_sched as sched;
use distbuild_sched::{AttemptId, JobRef};

use super::builds::{Build, number, output_root};
use super::prefetch::fitted;
use super::{Core, Message};
use crate::event_log::unix_ms;
use crate::locator::Session as SessionId;
use crate::state::{AttemptEnd as KeptEnd, JobLink, Looked, Recorded};

/// An attempt under way.
pub(super) struct Attempt {
    pub(super) job: JobRef,
    number: u32,
    pub(super) session: SessionId,
    worker: String,
    queued_ms: u64,
    /// What the client may send ahead for it.
    pub(super) client_bytes: u64,
    /// The worker's report, while the result is being recorded.
    report: Option<wire::AttemptEnded>,
    cancelled: bool,
}

/// Successful attempts on their way to the database.
#[derive(Default)]
pub(super) struct Records {
    attempts: Vec<AttemptId>,
    results: Vec<Recorded>,
    links: Vec<JobLink>,
    looked: Vec<Looked>,
    ends: Vec<KeptEnd>,
}

/// How an attempt ended, for the effects that name it.
#[derive(Clone)]
pub(super) struct Ended {
    pub(super) result: Option<Arc<wire::JobResult>>,
    pub(super) reason: String,
    /// The output tree, if it is small.
    pub(super) directories: Vec<Bytes>,
}

impl Attempt {
    /// An attempt that a worker brought from before the start.
    pub(super) fn adopted(job: JobRef, number: u32, session: SessionId, worker: String) -> Self {
        Self {
            job,
            number,
            session,
            worker,
            queued_ms: 0,
            client_bytes: 0,
            report: None,
            cancelled: false,
        }
    }

    /// For the client.
    fn finished(&self, build: &Build, report: &wire::AttemptEnded) -> wire::AttemptFinished {
        let timings = report.result.as_ref().and_then(|result| result.timings).unwrap_or_default();
        wire::AttemptFinished {
            job: build.client_number(self.job),
            number: self.number,
            worker: self.worker.clone(),
            outcome: attempt_outcome(report.end()).into(),
            exit_code: report.result.as_ref().map_or(0, |result| result.exit_code),
            reason: report.reason.clone(),
            timings: Some(wire::Timings { queued_ms: self.queued_ms, ..timings }),
            files_opened: report.files_opened,
            prefetched: report.prefetched,
        }
    }
}

impl Core {
    /// Sends a job to a worker.
    pub(super) fn assign(
        &mut self,
        id: AttemptId,
        number: u32,
        job: JobRef,
        worker: sched::WorkerId,
        resources: sched::Resources,
    ) {
        let now_ms = self.now_ms();
        let Some((session, entry)) = self.sessions.of_worker(worker) else {
            return;
        };
        let (worker_name, store) = (entry.name.clone(), entry.store);
        let Some(build) = self.builds.get(&job.build) else {
            return;
        };
        let Some(prepared) = build.job(job).prepared.clone() else {
            tracing::error!(job.index, "a job is assigned before its action is known");
            let end = sched::AttemptEnd::Infra { blame: sched::Blame::Worker, lost_inputs: false };
            return self
                .scheduler
                .handle(sched::Time(now_ms), sched::Event::AttemptEnded { attempt: id, end });
        };
        let number = number + build.earlier_attempts(job);
        let index = job.index as usize;
        let roots: Vec<Option<Digest>> =
            build.work.deps(index).iter().map(|dep| build.jobs[dep.get()].output_root).collect();
        let deps = roots.into_iter().map(|root| self.tree_hint(root, session, store)).collect();
        let build = &self.builds[&job.build];
        let mut action = prepared.action.to_wire();
        action.resources = Some(wire::Resources {
            milli_cores: resources.milli_cores,
            memory_bytes: resources.memory_bytes,
        });
        if action.timeout_ms == 0 {
            let default = self.shared.limits.job_timeout.as_millis();
            action.timeout_ms = u64::try_from(default).unwrap_or(u64::MAX);
        }
        let assign = wire::Assign {
            attempt: id.0,
            job_name: build.work.name(index).to_owned(),
            action: Some(action),
            directories: prepared.directories.clone(),
            deps,
            digest_function: build.function as i32,
            build_ids: vec![build.public_id.clone()],
            unrecorded: !build.is_observed(job),
            origin: Some(wire::AttemptOrigin {
                build_id: build.public_id.clone(),
                job: build.client_number(job),
                number,
                action_key: Bytes::copy_from_slice(&prepared.key),
                shared: build.work.is_cacheable(index),
            }),
        };
        let queued_ms = now_ms.saturating_sub(build.job(job).queued_ms);
        build.events.append(Body::AttemptStarted(wire::AttemptStarted {
            job: build.client_number(job),
            number,
            worker: worker_name.clone(),
        }));
        let attempt = Attempt {
            job,
            number,
            session,
            worker: worker_name,
            queued_ms,
            client_bytes: 0,
            report: None,
            cancelled: false,
        };
        if build.is_observed(job) {
            self.unforeseen.push((id, *prepared.action.command_key().as_bytes()));
        }
        self.attempts.insert(id, attempt);
        if let Some(build) = self.builds.get_mut(&job.build)
            && !build.is_listed()
        {
            build.ran_on.insert(session);
        }
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.running.insert(id);
        }
        self.send_to(session, to_worker::Body::Assign(assign));
    }

    /// Who holds a dependency's outputs.
    fn tree_hint(
        &self,
        root: Option<Digest>,
        session: SessionId,
        store: sched::StoreId,
    ) -> wire::TreeHint {
        let Some(root) = root else {
            return wire::TreeHint::default();
        };
        let local = self.trees.get(&root).is_some_and(|entry| entry.stores.contains(&store));
        let addresses = self
            .sessions_with(&root)
            .into_iter()
            .filter(|holder| *holder != session)
            .filter_map(|holder| self.sessions.get(holder))
            .map(|holder| holder.peer_address.clone())
            .filter(|address| !address.is_empty())
            .take(4)
            .collect();
        wire::TreeHint { root: Some(root.into()), peer_addresses: addresses, local }
    }

    pub(super) fn cancel_attempt(&mut self, attempt: AttemptId) {
        if let Some(entry) = self.attempts.get_mut(&attempt) {
            entry.cancelled = true;
            self.repeat_cancellation(attempt);
        } else {
            self.drop_unclaimed(attempt);
        }
    }

    /// Tells the worker of a cancelled attempt, perhaps again: the first time may have been lost with
    /// a connection.
    pub(super) fn repeat_cancellation(&mut self, attempt: AttemptId) {
        let cancelled = self.attempts.get(&attempt).filter(|attempt| attempt.cancelled);
        if let Some(session) = cancelled.map(|attempt| attempt.session) {
            let cancel = wire::CancelAttempt { attempt: attempt.0 };
            self.send_to(session, to_worker::Body::CancelAttempt(cancel));
        } else if self.recovery.is_dropped(attempt) {
            self.drop_unclaimed(attempt);
        }
    }

    /// An assignment never reached its worker: the connection broke under it.
    pub(super) fn assignment_lost(&mut self, id: AttemptId) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        if attempt.report.is_none() {
            attempt.report = Some(wire::AttemptEnded {
                attempt: id.0,
                end: wire::AttemptEnd::AttemptRejected.into(),
                reason: "the assignment was lost with the worker's connection".to_owned(),
                ..Default::default()
            });
            self.conclude(id);
        }
    }

    pub(super) fn attempt_begun(&mut self, session: SessionId, begun: &wire::AttemptBegun) {
        let attempt = AttemptId(begun.attempt);
        if self.attempts.get(&attempt).is_some_and(|known| known.session == session) {
            self.scheduler.handle(self.now(), sched::Event::AttemptStarted { attempt });
        }
    }

    pub(super) fn attempt_output(&mut self, session: SessionId, output: wire::AttemptOutput) {
        let Some(attempt) = self.attempts.get(&AttemptId(output.attempt)) else {
            return;
        };
        if attempt.session != session {
            return;
        }
        let Some(build) = self.builds.get(&attempt.job.build) else {
            return;
        };
        build.events.append(Body::Output(wire::OutputPiece {
            job: build.client_number(attempt.job),
            attempt: attempt.number,
            stderr: output.stderr,
            data: output.data,
        }));
    }

    /// A worker reports the end of an attempt. One that is not known (any more) is acknowledged, so
    /// that the worker forgets it: its lease was lost, the job has gone elsewhere.
    pub(super) fn attempt_ended(&mut self, session: SessionId, ended: wire::AttemptEnded) {
        let id = AttemptId(ended.attempt);
        let known = self.attempts.get_mut(&id).filter(|attempt| attempt.session == session);
        let Some(attempt) = known else {
            if !self.unclaimed_ended(session, &ended) {
                self.acknowledge(session, id);
            }
            return;
        };
        if attempt.report.is_some() {
            return;
        }
        let job = attempt.job;
        let succeeded = ended.end() == wire::AttemptEnd::AttemptSucceeded;
        attempt.report = Some(ended);
        let recorded = succeeded && self.record_success(id, job);
        let kept = self.record_end(id, job, recorded);
        if !(recorded || kept) {
            self.conclude(id);
        }
    }

    /// Writes down how the last attempt of a job ended, if the build may have to go on after a restart. `recorded`:
    /// its result is written as that of the action.
    fn record_end(&mut self, id: AttemptId, job: JobRef, recorded: bool) -> bool {
        let Some(build) = self.builds.get(&job.build) else {
            return false;
        };
        if !(self.shared.durable && build.header.resumable) {
            return false;
        }
        let Some(attempt) = self.attempts.get(&id) else {
            return false;
        };
        let (Some(report), Some(prepared)) = (&attempt.report, &build.job(job).prepared) else {
            return false;
        };
        let is_last = matches!(
            scheduler_end(report),
            sched::AttemptEnd::Succeeded | sched::AttemptEnd::Failed | sched::AttemptEnd::TimedOut
        );
        if !is_last {
            return false;
        }
        let holder = self.sessions.get(attempt.session).map(|entry| entry.store_name.clone());
        self.records.ends.push(KeptEnd {
            build_id: build.public_id.clone(),
            finished: attempt.finished(build, report),
            action_key: prepared.key,
            result: report.result.clone().filter(|_| !recorded),
            holders: holder.into_iter().collect(),
        });
        if !recorded {
            self.records.attempts.push(id);
        }
        true
    }

    /// Writes a successful result down, durable before anybody hears of it. False: it is none to be
    /// kept.
    fn record_success(&mut self, id: AttemptId, job: JobRef) -> bool {
        let Some(attempt) = self.attempts.get(&id) else {
            return false;
        };
        let Some(report) = &attempt.report else {
            return false;
        };
        let Some(result) = report.result.clone() else {
            return false;
        };
        let Some(build) = self.builds.get(&job.build) else {
            return false;
        };
        let Some(prepared) = &build.job(job).prepared else {
            return false;
        };
        let Some(session) = self.sessions.get(attempt.session) else {
            return false;
        };
        let index = job.index as usize;
        if !build.work.is_remembered(index) {
            return false;
        }
        let recorded = Recorded {
            action_key: prepared.key,
            result,
            holders: vec![session.store_name.clone()],
        };
        let is_looked = build.is_observed(job) && !report.access_record.is_empty();
        let looked = is_looked.then(|| Looked {
            command: *prepared.action.command_key().as_bytes(),
            action: prepared.key,
            input_root: prepared.action.input_root,
            declared_id: prepared.action.declared_id.map(|id| *id.as_bytes()),
            complete: false,
            record: report.access_record.clone(),
        });
        if !build.work.is_cacheable(index) {
            if let Some(looked) = looked {
                self.remember(looked);
            }
            return false;
        }
        let link = self.job_link(job, prepared.key, prepared.action.input_root);
        self.records.attempts.push(id);
        self.records.results.push(recorded);
        self.records.links.extend(link);
        self.records.looked.extend(looked);
        true
    }

    /// Sends the results that one round has gathered to the database.
    pub(super) fn send_records(&mut self) {
        let Records { attempts, results, links, looked, ends } = std::mem::take(&mut self.records);
        if attempts.is_empty() {
            return;
        }
        let state = self.shared.state.clone();
        self.spawn_message(async move {
            let looked = fitted(looked).await;
            let written = state.record_all(results, links, looked, ends, unix_ms()).await;
            Message::Recorded { attempts, error: written.err().map(|error| error.to_string()) }
        });
    }

    /// Ties a job to its action in the cache.
    pub(super) fn job_link(
        &self,
        job: JobRef,
        action_key: [u8; 32],
        input_root: Digest,
    ) -> Option<JobLink> {
        self.builds.get(&job.build)?.work.link(job.index as usize, action_key, input_root)
    }

    pub(super) fn recorded(&mut self, attempt: AttemptId, error: Option<&str>) {
        if let Some(error) = error {
            tracing::error!(%error, attempt = attempt.0, "failed to record a result");
            if let Some(report) =
                self.attempts.get_mut(&attempt).and_then(|attempt| attempt.report.as_mut())
            {
                report.end = wire::AttemptEnd::AttemptInfraError.into();
                report.reason = format!("the coordinator could not record the result: {error}");
            }
        }
        self.conclude(attempt);
    }

    /// The attempt is over: the scheduler and the client hear of it, the worker may forget it.
    fn conclude(&mut self, id: AttemptId) {
        let Some(mut attempt) = self.attempts.remove(&id) else {
            return;
        };
        let Some(report) = attempt.report.take() else { return };
        let session = self.sessions.get_mut(attempt.session);
        let store = session.map(|session| {
            session.running.remove(&id);
            self.look_at_drained |= session.draining;
            session.store
        });
        self.acknowledge(attempt.session, id);
        let end = scheduler_end(&report);
        let result = report.result.clone().map(Arc::new);
        let keeps = end == sched::AttemptEnd::Succeeded
            || self.builds.get(&attempt.job.build).is_some_and(Build::keeps_outputs_of_failures);
        if keeps
            && let Some(store) = store
            && let Some(root) = result.as_deref().and_then(output_root)
        {
            self.trees.entry(root).or_default().stores.insert(store);
            self.shared.directories.add(root.function(), &report.output_directories);
        }
        for dep in &report.lost_deps {
            self.dep_lost(attempt.job, *dep as usize);
        }
        self.count(&attempt.job, &report, attempt.client_bytes);
        self.append_attempt_finished(&attempt, &report);
        self.ended.insert(
            id,
            Ended { result, reason: report.reason, directories: report.output_directories },
        );
        self.scheduler.handle(self.now(), sched::Event::AttemptEnded { attempt: id, end });
    }

    /// A worker could not get at a dependency's outputs: they are gone if nobody else has them.
    fn dep_lost(&mut self, job: JobRef, dep: usize) {
        let Some(build) = self.builds.get(&job.build) else {
            return;
        };
        let Some(dep) = build.work.deps(job.index as usize).get(dep).copied() else {
            return;
        };
        let dep = JobRef { build: job.build, index: number(dep.get()) };
        if let Some(root) = self.builds[&job.build].job(dep).output_root
            && let Some(entry) = self.trees.get_mut(&root)
        {
            entry.stores.clear();
        }
        self.outputs_lost(vec![dep]);
    }

    fn count(&mut self, job: &JobRef, report: &wire::AttemptEnded, client_bytes: u64) {
        let Some(build) = self.builds.get_mut(&job.build) else {
            return;
        };
        if let Ok(opened) = distbuild_proto::convert::digests(&report.opened) {
            for digest in opened {
                if build.opened.insert(digest) {
                    build.bytes.opened += digest.size_bytes();
                }
            }
        }
        let total = build.bytes.prefetched.get_or_insert_default();
        let prefetched = report.prefetched.unwrap_or_default();
        total.hit += prefetched.hit;
        total.late += prefetched.late;
        total.wasted += prefetched.wasted;
        let from_client = report.prefetched_from_client.unwrap_or_default();
        build.sent_ahead.settle(client_bytes, from_client);
        build.bytes.from_peers += report.bytes_from_peers;
        build.bytes.from_backing_store += report.bytes_from_backing_store;
    }

    fn append_attempt_finished(&self, attempt: &Attempt, report: &wire::AttemptEnded) {
        let Some(build) = self.builds.get(&attempt.job.build) else {
            return;
        };
        build.events.append(Body::AttemptFinished(attempt.finished(build, report)));
    }

    /// The worker of an attempt is gone; the scheduler hears of that from `WorkerLeft`.
    pub(super) fn attempt_vanished(&mut self, id: AttemptId, worker: &str) {
        let Some(attempt) = self.attempts.remove(&id) else {
            return;
        };
        let report = wire::AttemptEnded {
            end: wire::AttemptEnd::AttemptInfraError.into(),
            reason: format!("worker {worker} was lost"),
            ..Default::default()
        };
        self.count(&attempt.job, &report, attempt.client_bytes);
        self.append_attempt_finished(&attempt, &report);
        self.ended
            .insert(id, Ended { result: None, reason: report.reason, directories: Vec::new() });
    }
}

fn scheduler_end(report: &wire::AttemptEnded) -> sched::AttemptEnd {
    use sched::{AttemptEnd as End, Blame};
    match report.end() {
        wire::AttemptEnd::AttemptSucceeded if report.result.is_some() => End::Succeeded,
        wire::AttemptEnd::AttemptFailed => End::Failed,
        wire::AttemptEnd::AttemptTimedOut => End::TimedOut,
        wire::AttemptEnd::AttemptCancelled => End::Cancelled,
        wire::AttemptEnd::AttemptOutOfMemory => End::OutOfMemory,
        wire::AttemptEnd::AttemptRejected => End::Rejected,
        wire::AttemptEnd::AttemptLostInputs => {
            End::Infra { blame: Blame::Inputs, lost_inputs: !report.lost_deps.is_empty() }
        }
        wire::AttemptEnd::AttemptInfraError
        | wire::AttemptEnd::AttemptSucceeded
        | wire::AttemptEnd::Unspecified => End::Infra { blame: Blame::Worker, lost_inputs: false },
    }
}

fn attempt_outcome(end: wire::AttemptEnd) -> wire::Outcome {
    match end {
        wire::AttemptEnd::AttemptSucceeded => wire::Outcome::Executed,
        wire::AttemptEnd::AttemptFailed => wire::Outcome::Failed,
        wire::AttemptEnd::AttemptTimedOut => wire::Outcome::TimedOut,
        wire::AttemptEnd::AttemptCancelled => wire::Outcome::Cancelled,
        wire::AttemptEnd::AttemptInfraError
        | wire::AttemptEnd::AttemptLostInputs
        | wire::AttemptEnd::AttemptOutOfMemory
        | wire::AttemptEnd::AttemptRejected
        | wire::AttemptEnd::Unspecified => wire::Outcome::InfraError,
    }
}
