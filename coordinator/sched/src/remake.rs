//! Lost outputs: a finished job runs again, and what waits for it waits again.

use crate::event::{InfraReason, Outcome};
use crate::job::{JobAt, State};
use crate::planted::Planted;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Every copy of a job's outputs is gone.
    pub(crate) fn outputs_lost(&mut self, at: JobAt) {
        if self.job(at).state != State::Present {
            return;
        }
        if self.builds[at.build].stopped {
            self.die(at, Outcome::Cancelled);
            return;
        }
        self.recall_users(at);
        if self.job(at).remakes >= self.config.max_remakes {
            let reason = InfraReason::OutputsLost;
            self.fail(at, Outcome::InfraError { reason });
            return;
        }
        self.job_mut(at).remakes += 1;
        self.demand(at);
    }

    /// What is not yet running waits for the job again.
    fn recall_users(&mut self, at: JobAt) {
        self.set_state(at, State::Absent);
        self.builds[at.build].set_holders(at.index, &[]);
        for position in self.builds[at.build].user_span(at.index) {
            let user = JobAt { build: at.build, index: self.builds[at.build].user_at(position) };
            let job = self.job(user);
            match job.state {
                State::Waiting => {
                    self.job_mut(user).deps_left += 1;
                    continue;
                }
                State::LookUpQueued | State::LookingUp => {}
                State::Executing if self.has_planted(Planted::StaleInputs) => continue,
                State::Executing if !self.executions[job.execution].is_running() => {
                    self.detach(user);
                }
                _ => continue,
            }
            self.set_state(user, State::Waiting);
            self.job_mut(user).deps_left = 1;
        }
    }

    /// Sees to it that a job's outputs, which are absent, come to exist: by lineage, as far back as
    /// outputs are absent. Fails the job if some never will.
    pub(crate) fn demand(&mut self, at: JobAt) {
        let build = at.build;
        let mut wanted = vec![at.index];
        while let Some(index) = wanted.pop() {
            let at = JobAt { build, index };
            if self.job(at).state != State::Absent {
                continue;
            }
            let mut missing = 0;
            let mut dead = None;
            let before = wanted.len();
            for &dep in self.builds[build].deps(index) {
                match self.builds[build].jobs[dep as usize].state {
                    State::Present => continue,
                    State::Dead => dead = Some(dep),
                    State::Absent => wanted.push(dep),
                    _ => {}
                }
                missing += 1;
            }
            self.set_state(at, State::Waiting);
            self.job_mut(at).deps_left = missing;
            if let Some(dependency) = dead {
                wanted.truncate(before);
                self.fail(at, Outcome::Skipped { dependency });
            } else if self.builds[build].stopped {
                self.fail(at, Outcome::Cancelled);
            } else if missing == 0 {
                self.ready(at);
            }
        }
    }
}
