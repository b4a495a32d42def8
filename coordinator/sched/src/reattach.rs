//! Attempts of an earlier scheduler: what workers went on running while its successor was started.
//!
//! They come with their workers, before the builds that they belong to. Until a job claims one it only takes
//! its resources, so that nothing else gets them; who drives the scheduler cancels what nobody claims in time.

use crate::event::Effect;
use crate::execution::{Attempt, Stage};
use crate::ids::{ActionKey, AttemptId, WorkerId};
use crate::job::{JobAt, State};
use crate::resources::Resources;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// A worker runs this.
    pub(crate) fn reattached(&mut self, id: AttemptId, worker: WorkerId, resources: Resources) {
        let Some(slot) = self.fleet.slot(worker) else {
            return;
        };
        if self.attempts.get(id.0).is_some() {
            return;
        }
        // A worker that offers less than before is full.
        let free = self.fleet.workers[slot].free;
        let resources = Resources::new(
            resources.milli_cores.min(free.milli_cores),
            resources.memory_bytes.min(free.memory_bytes),
        );
        self.fleet.take(slot, id, resources);
        let attempt = Attempt {
            execution: None,
            worker: slot,
            resources,
            assigned_at: self.now,
            started: false,
        };
        self.attempts.insert(id.0, attempt);
    }

    /// A job runs in an attempt that was reattached; if that cannot be, the attempt is cancelled and the job is
    /// executed like any other.
    pub(crate) fn adopt(&mut self, at: JobAt, key: Option<ActionKey>, id: AttemptId) {
        let known = self.attempts.get(id.0).filter(|attempt| attempt.execution.is_none()).copied();
        let equal = key.is_some_and(|key| self.execution_of(&key).is_some());
        let Some(attempt) = known.filter(|_| !equal) else {
            if known.is_some() {
                self.emit(Effect::CancelAttempt { attempt: id });
            }
            return self.execute(at, key);
        };
        self.set_state(at, State::Executing);
        let execution = self.new_execution(at, key);
        self.executions[execution].stage = Stage::Running { attempt: id };
        self.executions[execution].resources = attempt.resources;
        if let Some(attempt) = self.attempts.get_mut(id.0) {
            attempt.execution = Some(execution);
        }
        self.queue.start_aside(self.owner(at), attempt.resources.milli_cores);
        let job = self.job_ref(at);
        self.emit(Effect::Adopted { attempt: id, job });
    }
}
