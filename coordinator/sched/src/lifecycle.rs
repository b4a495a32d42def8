//! A job from submission to its execution: what is needed, what is ready, look-ups, joining.

use crate::event::{Answer, Effect, How, Outcome};
use crate::execution::{Execution, Stage};
use crate::ids::{ActionKey, StoreId};
use crate::job::{Build, JobAt, NONE, State, Tries};
use crate::planted::Planted;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Only what requested jobs need is run: one pass from the last job to the first finds it,
    /// since a job comes after its dependencies.
    pub(crate) fn submitted(&mut self, mut build: Build) {
        let count = build.jobs.len() as u32;
        let mut needed = vec![false; count as usize];
        for index in (0..count).rev() {
            let job = &build.jobs[index as usize];
            if job.state == State::Absent && (job.requested || needed[index as usize]) {
                needed[index as usize] = true;
                for &dep in build.deps(index) {
                    needed[dep as usize] = true;
                }
            }
        }
        for index in 0..count {
            if needed[index as usize] && build.jobs[index as usize].state == State::Absent {
                let missing = build.missing_deps(index);
                let job = &mut build.jobs[index as usize];
                (job.state, job.deps_left) = (State::Waiting, missing);
            }
        }
        for job in &build.jobs {
            self.counts[job.state as usize] += 1;
        }
        let id = build.id;
        let slot = self.builds.insert(build);
        self.build_slots.insert(id, slot);
        self.touched.insert(slot);
        for index in 0..count {
            let at = JobAt { build: slot, index };
            let job = self.job(at);
            let how = match job.state {
                State::Waiting if job.deps_left == 0 => {
                    self.ready(at);
                    continue;
                }
                State::Waiting => continue,
                State::Present => How::Cached,
                _ => How::Unneeded,
            };
            self.end(at, Outcome::Succeeded { how });
        }
    }

    /// All dependencies of a job exist: it is to be looked up.
    pub(crate) fn ready(&mut self, at: JobAt) {
        self.set_state(at, State::LookUpQueued);
        if !self.job(at).asked {
            self.queue_lookup(at);
        }
    }

    fn queue_lookup(&mut self, at: JobAt) {
        let build = &mut self.builds[at.build];
        build.lookups.push_back(at.index);
        if !std::mem::replace(&mut build.in_round, true) {
            self.round.push_back(at.build);
        }
    }

    /// Asks for look-ups, one build after the other, up to the limit.
    pub(crate) fn send_lookups(&mut self) {
        while self.lookups_out < self.config.max_lookups
            && let Some(slot) = self.round.pop_front()
        {
            let Some(build) = self.builds.get(slot) else {
                continue;
            };
            if build.lookups.is_empty() {
                self.builds[slot].in_round = false;
                continue;
            }
            self.round.push_back(slot);
            let Some(index) = self.builds[slot].lookups.pop_front() else {
                continue;
            };
            let at = JobAt { build: slot, index };
            if self.job(at).state != State::LookUpQueued || self.job(at).asked {
                continue;
            }
            self.job_mut(at).asked = true;
            self.set_state(at, State::LookingUp);
            self.builds[slot].lookups_out += 1;
            self.lookups_out += 1;
            let job = self.job_ref(at);
            self.emit(Effect::LookUp { job });
        }
    }

    pub(crate) fn looked_up(&mut self, at: JobAt, answer: Answer) {
        if !std::mem::replace(&mut self.job_mut(at).asked, false) {
            return;
        }
        self.builds[at.build].lookups_out -= 1;
        self.lookups_out -= 1;
        match (self.job(at).state, answer) {
            (State::LookingUp, Answer::Hit { holders }) => self.present(at, &holders, How::CutOff),
            (State::LookingUp, Answer::Miss { key }) => self.execute(at, key),
            (State::LookingUp, Answer::Running { key, attempt }) => self.adopt(at, key, attempt),
            (State::LookingUp, Answer::Dead { outcome }) => self.fail(at, outcome),
            // The answer was about inputs that have been made again since.
            (State::LookUpQueued, _) => self.queue_lookup(at),
            _ => {}
        }
    }

    /// Makes a job part of an execution: of an equal one, if there is one.
    pub(crate) fn execute(&mut self, at: JobAt, key: Option<ActionKey>) {
        self.set_state(at, State::Executing);
        let equal = key.and_then(|key| self.execution_of(&key));
        let joins =
            |id: &u32| !(self.has_planted(Planted::RunsTwice) && self.executions[*id].is_running());
        if let Some(id) = equal.filter(joins) {
            let job = self.job_mut(at);
            job.execution = id;
            let workers_lost = job.tries.workers_lost;
            let tries = &mut self.executions[id].tries;
            tries.workers_lost = tries.workers_lost.max(workers_lost);
            self.executions[id].join(at);
            let leader = self.executions[id].leader;
            if self.owner(at).class < self.owner(leader).class && self.unqueue(id) {
                self.executions[id].lead(at);
                self.adopt_need(id);
                self.enqueue(id);
            }
            return;
        }
        let id = self.new_execution(at, key);
        self.enqueue(id);
    }

    /// Makes an execution for a job; the caller puts it somewhere.
    pub(crate) fn new_execution(&mut self, at: JobAt, key: Option<ActionKey>) -> u32 {
        self.last_seq += 1;
        let (need, tries) = (self.builds[at.build].need(at.index), self.job(at).tries);
        let execution = Execution::new(key, at, need, self.last_seq, self.now, tries);
        let id = self.executions.insert(execution);
        self.job_mut(at).execution = id;
        if let Some(key) = key {
            self.by_key.insert(&key, id);
        }
        id
    }

    /// The execution that has a key.
    pub(crate) fn execution_of(&self, key: &ActionKey) -> Option<u32> {
        self.by_key.find(key, |id| self.executions[id].key.as_ref() == Some(key))
    }

    /// Gives an execution the request of its leader, but no less memory, if it has run out of it.
    fn adopt_need(&mut self, id: u32) {
        let leader = self.executions[id].leader;
        let need = self.builds[leader.build].need(leader.index);
        self.executions[id].adopt(need);
    }

    pub(crate) fn enqueue(&mut self, id: u32) {
        let execution = &self.executions[id];
        let owner = self.owner(execution.leader);
        let lane = self.queue.push(self.now, id, execution.seq, owner, execution.need());
        self.executions[id].stage = Stage::Queued { lane };
    }

    /// Takes an execution from where it waits; false if it does not wait.
    pub(crate) fn unqueue(&mut self, id: u32) -> bool {
        match self.executions[id].stage {
            Stage::Queued { lane } => self.queue.remove(lane, self.executions[id].seq),
            Stage::Aside => self.take_from_aside(id),
            Stage::Loose | Stage::Running { .. } => return false,
        }
        self.executions[id].stage = Stage::Loose;
        true
    }

    /// Takes a job out of its execution, which goes on for the others or is cancelled. The caller
    /// gives the job its new state.
    pub(crate) fn detach(&mut self, at: JobAt) {
        let id = std::mem::replace(&mut self.job_mut(at).execution, NONE);
        let Some(execution) = self.executions.get(id) else {
            return;
        };
        let led = execution.leader == at;
        self.job_mut(at).tries = execution.tries;
        if !self.executions[id].part(at) {
            self.drop_execution(id);
        } else if led {
            let waited = self.unqueue(id);
            self.adopt_need(id);
            if waited {
                self.enqueue(id);
            }
        }
    }

    fn drop_execution(&mut self, id: u32) {
        if let Stage::Running { attempt } = self.executions[id].stage {
            // It is not known if its worker has just left.
            if let Some(running) = self.attempts.get_mut(attempt.0) {
                running.execution = None;
                self.emit(Effect::CancelAttempt { attempt });
            }
        }
        self.unqueue(id);
        self.remove_execution(id);
    }

    pub(crate) fn remove_execution(&mut self, id: u32) -> Option<Execution> {
        let execution = self.executions.remove(id)?;
        if let Some(until) = execution.avoids_until() {
            self.elsewhere.remove(&(until, id));
        }
        if let Some(key) = &execution.key {
            self.by_key.remove(key, id);
        }
        Some(execution)
    }

    /// A job's outputs exist: it ends, if it has not before, and may make others ready.
    pub(crate) fn present(&mut self, at: JobAt, holders: &[StoreId], how: How) {
        self.set_state(at, State::Present);
        self.builds[at.build].set_holders(at.index, holders);
        let job = self.job_mut(at);
        job.tries = Tries { workers_lost: job.tries.workers_lost, ..Tries::default() };
        if job.ended {
            let job = self.job_ref(at);
            self.emit(Effect::Remade { job, how });
        } else {
            self.end(at, Outcome::Succeeded { how });
        }
        for position in self.builds[at.build].user_span(at.index) {
            let user = JobAt { build: at.build, index: self.builds[at.build].user_at(position) };
            if self.job(user).state == State::Waiting {
                let job = self.job_mut(user);
                job.deps_left -= 1;
                if job.deps_left == 0 {
                    self.ready(user);
                }
            }
        }
    }
}
