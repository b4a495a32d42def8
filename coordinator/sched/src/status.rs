//! Questions about the state: numbers, and why a job waits.

use crate::event::NoWorkerReason;
use crate::execution::Stage;
use crate::ids::{AttemptId, JobRef, Time, WorkerId};
use crate::job::State;
use crate::resources::Resources;
use crate::scheduler::Scheduler;

/// Numbers to show; all are kept up to date and cost nothing to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Builds that have not ended.
    pub builds: usize,
    /// Jobs that wait for dependencies.
    pub waiting: usize,
    /// Jobs that are, or will be, looked up.
    pub looking_up: usize,
    /// Jobs in queued or running executions.
    pub executing: usize,
    /// Executions that wait for a worker, including those that wait for a certain one.
    pub queued: usize,
    /// Attempts on workers, including cancelled ones that have not ended.
    pub running: usize,
    /// Workers online, draining ones too.
    pub workers: usize,
    /// Workers kept free for a request that does not fit elsewhere.
    pub reserved_workers: usize,
    /// Workers that only failed lately, and run one attempt at a time until one does not.
    pub suspect_workers: usize,
    /// Jobs that the watchdog has found queued although a worker had room for them, so far.
    pub stalls: u64,
    /// Free on all workers that take jobs.
    pub free: Resources,
}

/// What a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// For so many edges to dependencies without outputs.
    Dependencies {
        /// How many.
        left: u32,
    },
    /// For the look-up of its action.
    LookUp,
    /// No online worker could ever take it.
    NoWorker {
        /// Why none could.
        reason: NoWorkerReason,
        /// When the job ends, if that stays so.
        until: Time,
    },
    /// Workers that could take it are busy.
    Busy,
    /// A worker is being emptied for it.
    Reserved {
        /// Which.
        worker: WorkerId,
    },
    /// A moment for the worker that holds its inputs, or for one where it has not gone wrong.
    Placement,
    /// It runs: for its end.
    Running {
        /// The attempt.
        attempt: AttemptId,
        /// The worker has confirmed.
        started: bool,
    },
}

impl Scheduler {
    /// Numbers to show.
    pub fn stats(&self) -> Stats {
        let count = |state: State| self.counts[state as usize];
        Stats {
            builds: self.builds.len(),
            waiting: count(State::Waiting),
            looking_up: count(State::LookUpQueued) + count(State::LookingUp),
            executing: count(State::Executing),
            queued: self.queue_len(),
            running: self.attempts.len(),
            workers: self.fleet.workers.len(),
            reserved_workers: self.fleet.reserved as usize,
            suspect_workers: self.fleet.suspects as usize,
            stalls: self.watchdog.stalls,
            free: self.fleet.free,
        }
    }

    /// Executions that wait for a worker.
    pub fn queue_len(&self) -> usize {
        self.queue.len + self.aside.len()
    }

    /// What a job waits for; `None` if it has ended or is not known.
    pub fn why_waiting(&self, job: JobRef) -> Option<WaitReason> {
        let job = self.job(self.at(job)?);
        match job.state {
            State::Absent | State::Present | State::Dead => None,
            State::Waiting => Some(WaitReason::Dependencies { left: job.deps_left }),
            State::LookUpQueued | State::LookingUp => Some(WaitReason::LookUp),
            State::Executing => {
                let execution = self.executions.get(job.execution)?;
                match execution.stage {
                    Stage::Queued { lane } => Some(self.why_queued(job.execution, lane)),
                    Stage::Running { attempt } => {
                        let started = self.attempts.get(attempt.0)?.started;
                        Some(WaitReason::Running { attempt, started })
                    }
                    Stage::Aside | Stage::Loose => Some(WaitReason::Placement),
                }
            }
        }
    }

    fn why_queued(&self, id: u32, lane: u32) -> WaitReason {
        let execution = &self.executions[id];
        let shape = &self.queue.shapes[self.queue.shape_of(lane)];
        if let Some(reason) = self.fleet.why_not(execution.need()) {
            let since = shape.hopeless_since.unwrap_or(self.now).max(execution.ready_at);
            let until = since.plus_ms(self.config.queue_timeout_ms);
            return WaitReason::NoWorker { reason, until };
        }
        match shape.reserved {
            Some(slot) => WaitReason::Reserved { worker: self.fleet.workers[slot].id },
            None if execution.avoids_until().is_some() => WaitReason::Placement,
            None => WaitReason::Busy,
        }
    }
}
