//! How attempts, jobs and builds end: one classification of every end, the failure policy,
//! cancellation.

use crate::event::{AttemptEnd, Blame, Effect, How, InfraReason, Outcome};
use crate::execution::{Execution, Stage};
use crate::ids::{AttemptId, StoreId};
use crate::job::{Build, JobAt, NONE, State};
use crate::planted::Planted;
use crate::resources::Resources;
use crate::scheduler::Scheduler;

/// An attempt that has ended while its execution is wanted.
pub(crate) struct Ended {
    pub(crate) execution: u32,
    pub(crate) attempt: AttemptId,
    pub(crate) store: StoreId,
    /// The worker vanished.
    pub(crate) worker_lost: bool,
}

impl Scheduler {
    pub(crate) fn attempt_ended(&mut self, id: AttemptId, end: AttemptEnd) {
        let Some(attempt) = self.attempts.remove(id.0) else {
            return;
        };
        if attempt.execution.is_none() && self.has_planted(Planted::KeptRoom) {
            return;
        }
        self.fleet.give(attempt.worker, id, attempt.resources);
        self.fleet.judge(attempt.worker, end, self.config.suspect_after);
        if !self.has_planted(Planted::LostWakeUp) {
            self.freed.insert(attempt.worker);
        }
        let Some(execution) = attempt.execution else {
            return;
        };
        let owner = self.owner(self.executions[execution].leader);
        self.queue.learn(owner, self.now.ms_since(attempt.assigned_at));
        let worker = &self.fleet.workers[attempt.worker];
        let ended = Ended { execution, attempt: id, store: worker.store, worker_lost: false };
        self.ended(ended, end);
    }

    /// The one place that says what every end means.
    pub(crate) fn ended(&mut self, ended: Ended, end: AttemptEnd) {
        let Ended { execution: id, attempt, .. } = ended;
        let execution = &mut self.executions[id];
        execution.stage = Stage::Loose;
        match end {
            AttemptEnd::Succeeded => self.succeeded(ended),
            AttemptEnd::Failed => self.fail_execution(id, Outcome::Failed { attempt }),
            AttemptEnd::TimedOut => self.fail_execution(id, Outcome::TimedOut { attempt }),
            AttemptEnd::OutOfMemory => self.out_of_memory(id),
            AttemptEnd::Infra { lost_inputs: true, .. } => {
                let tries = &mut execution.tries;
                tries.inputs_lost = tries.inputs_lost.saturating_add(1);
                if tries.inputs_lost > self.config.max_lost_inputs {
                    self.fail_infra(id, InfraReason::InputsLost);
                } else {
                    self.retry(id);
                }
            }
            AttemptEnd::Infra { blame, .. } => self.infra(ended, blame),
            AttemptEnd::Cancelled => self.infra(ended, Blame::Unknown),
            AttemptEnd::Rejected => {
                execution.went_wrong(ended.store);
                let tries = &mut execution.tries;
                tries.rejected = tries.rejected.saturating_add(1);
                if tries.rejected > self.config.max_rejections {
                    self.fail_infra(id, InfraReason::Rejected);
                } else {
                    self.retry(id);
                }
            }
        }
    }

    fn succeeded(&mut self, ended: Ended) {
        let attempt = ended.attempt;
        let Some(execution) = self.dissolve(ended.execution) else {
            return;
        };
        for at in execution.jobs() {
            let how = match at == execution.leader {
                true => How::Executed { attempt },
                false => How::Joined { attempt },
            };
            if at == execution.leader || !self.has_planted(Planted::JoinedForgotten) {
                self.present(at, &[ended.store], how);
            }
        }
    }

    fn infra(&mut self, ended: Ended, blame: Blame) {
        let id = ended.execution;
        if ended.worker_lost && self.has_planted(Planted::PoisonUnbounded) {
            return self.retry(id);
        }
        let execution = &mut self.executions[id];
        let tries = &mut execution.tries;
        tries.counted = tries.counted.saturating_add(1);
        if ended.worker_lost {
            tries.workers_lost = tries.workers_lost.saturating_add(1);
        }
        let (attempts, workers) = (tries.counted, tries.workers_lost);
        if blame != Blame::Inputs {
            execution.went_wrong(ended.store);
        }
        if ended.worker_lost && workers >= self.config.quarantine_after {
            self.fail_infra(id, InfraReason::Quarantined { workers });
        } else if attempts >= self.config.max_attempts {
            self.fail_infra(id, InfraReason::AttemptsExhausted { attempts, blame });
        } else {
            self.retry(id);
        }
    }

    fn out_of_memory(&mut self, id: u32) {
        let execution = &mut self.executions[id];
        execution.tries.counted = execution.tries.counted.saturating_add(1);
        let Resources { milli_cores, memory_bytes } = execution.resources;
        let mut doubled = execution.need();
        doubled.resources = Resources::new(milli_cores, memory_bytes.saturating_mul(2));
        let tries = execution.tries;
        let last = tries.more_memory || tries.counted >= self.config.max_attempts;
        if last || self.fleet.why_not(doubled).is_some() {
            self.fail_infra(id, InfraReason::OutOfMemory { memory_bytes });
            return;
        }
        let execution = &mut self.executions[id];
        execution.tries.more_memory = true;
        execution.resources = doubled.resources;
        self.retry(id);
    }

    /// Queues an execution again; jobs whose inputs are gone wait for them instead.
    fn retry(&mut self, id: u32) {
        let execution = &mut self.executions[id];
        execution.ready_at = self.now;
        self.avoid_tried(id);
        let execution = &self.executions[id];
        let jobs: Vec<JobAt> = execution.jobs().collect();
        let lacking: Vec<JobAt> = jobs
            .into_iter()
            .filter(|at| self.builds[at.build].missing_deps(at.index) > 0)
            .collect();
        for &at in &lacking {
            self.detach(at);
            self.set_state(at, State::Absent);
        }
        if self.executions.get(id).is_some_and(|execution| execution.stage == Stage::Loose) {
            self.enqueue(id);
        }
        for at in lacking {
            self.demand(at);
        }
    }

    /// Takes an execution apart; its jobs are left for the caller.
    fn dissolve(&mut self, id: u32) -> Option<Execution> {
        let execution = self.remove_execution(id)?;
        for at in execution.jobs() {
            let job = self.job_mut(at);
            (job.execution, job.tries) = (NONE, execution.tries);
        }
        Some(execution)
    }

    fn fail_infra(&mut self, id: u32, reason: InfraReason) {
        self.fail_execution(id, Outcome::InfraError { reason });
    }

    /// All jobs of an execution end so; only then does any of them stop its build.
    pub(crate) fn fail_execution(&mut self, id: u32, outcome: Outcome) {
        let Some(execution) = self.dissolve(id) else {
            return;
        };
        for at in execution.jobs() {
            self.die(at, outcome);
        }
        for at in execution.jobs() {
            self.spread_failure(at, at.index);
        }
    }

    /// A job that is in no execution fails.
    pub(crate) fn fail(&mut self, at: JobAt, outcome: Outcome) {
        self.die(at, outcome);
        let cause = match outcome {
            Outcome::Skipped { dependency } => dependency,
            _ => at.index,
        };
        self.spread_failure(at, cause);
    }

    /// Notes that a job has no outputs and never will.
    pub(crate) fn die(&mut self, at: JobAt, outcome: Outcome) {
        self.set_state(at, State::Dead);
        if self.job(at).ended {
            self.give_up(at);
            let job = self.job_ref(at);
            self.emit(Effect::RemakeFailed { job, outcome });
        } else {
            self.end(at, outcome);
        }
    }

    /// Skips what waits for a dead job, directly or not, because of `cause`; then stops the build, if that is its way.
    fn spread_failure(&mut self, at: JobAt, cause: u32) {
        let build = at.build;
        let mut dead = vec![at.index];
        while let Some(index) = dead.pop() {
            for position in self.builds[build].user_span(index) {
                let user = JobAt { build, index: self.builds[build].user_at(position) };
                if self.job(user).state == State::Waiting {
                    self.die(user, Outcome::Skipped { dependency: cause });
                    dead.push(user.index);
                }
            }
        }
        if !self.builds[build].keep_going && !self.builds[build].stopped {
            self.stop(build);
        }
    }

    /// Ends everything of a build that is not over.
    fn stop(&mut self, build: u32) {
        self.builds[build].stopped = true;
        for index in 0..self.builds[build].jobs.len() as u32 {
            let at = JobAt { build, index };
            if self.abandon(at) {
                self.die(at, Outcome::Cancelled);
            }
        }
    }

    /// Stops what is being done about a job; false if nothing is.
    fn abandon(&mut self, at: JobAt) -> bool {
        match self.job(at).state {
            State::Absent | State::Present | State::Dead => return false,
            State::Executing => self.detach(at),
            State::Waiting | State::LookUpQueued | State::LookingUp => {}
        }
        true
    }

    pub(crate) fn cancelled(&mut self, build: u32) {
        self.stop(build);
        for index in 0..self.builds[build].jobs.len() as u32 {
            self.give_up(JobAt { build, index });
        }
    }

    /// Emits the one `JobEnded` of a job.
    pub(crate) fn end(&mut self, at: JobAt, outcome: Outcome) {
        let build = &mut self.builds[at.build];
        let job = &mut build.jobs[at.index as usize];
        job.ended = true;
        build.unended -= 1;
        if job.requested && matches!(outcome, Outcome::Succeeded { .. }) {
            job.awaited = true;
            build.awaited += 1;
        }
        self.touched.insert(at.build);
        let job = self.job_ref(at);
        self.emit(Effect::JobEnded { job, outcome });
    }

    /// Nobody waits for a job's outputs at the client any more: they are there, or never will be.
    pub(crate) fn give_up(&mut self, at: JobAt) {
        if std::mem::replace(&mut self.job_mut(at).awaited, false) {
            self.builds[at.build].awaited -= 1;
            self.touched.insert(at.build);
        }
    }

    /// Forgets the builds that are over. Outputs still being made again are for nobody.
    pub(crate) fn finish_builds(&mut self) {
        while let Some(slot) = self.touched.pop_first() {
            let over = |build: &Build| build.unended == 0 && build.awaited == 0;
            if !self.builds.get(slot).is_some_and(over) {
                continue;
            }
            for index in 0..self.builds[slot].jobs.len() as u32 {
                let at = JobAt { build: slot, index };
                if self.abandon(at) {
                    self.set_state(at, State::Dead);
                }
            }
            if let Some(build) = self.builds.remove(slot) {
                for job in &build.jobs {
                    self.counts[job.state as usize] -= 1;
                }
                self.lookups_out -= build.lookups_out;
                self.build_slots.remove(&build.id);
                self.emit(Effect::BuildEnded { build: build.id });
            }
        }
    }
}
