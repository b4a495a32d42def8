//! `check_invariants`: recomputes from scratch everything that is kept incrementally. For tests
//! and simulation; it walks over all jobs and workers.

use std::collections::BTreeSet;

use crate::execution::Stage;
use crate::job::{Build, JobAt, NONE, State};
use crate::resources::Resources;
use crate::scheduler::Scheduler;

type Check = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(what()) }
}

impl Scheduler {
    /// Whether all is consistent between two events; the text names the first violation.
    pub fn check_invariants(&mut self) -> Result<(), String> {
        self.fleet.check()?;
        self.check_workers()?;
        self.check_builds()?;
        self.check_executions()?;
        self.check_queue()?;
        let stalled = self.stalled();
        ensure(stalled.is_none(), || format!("{stalled:?} is queued although there is room"))
    }

    fn check_workers(&self) -> Check {
        let mut attempts = 0;
        for (slot, worker) in self.fleet.workers.iter() {
            let mut used = Resources::default();
            for id in &worker.attempts {
                let attempt = self.attempts.get(id.0).filter(|attempt| attempt.worker == slot);
                let attempt = attempt.ok_or_else(|| format!("{id:?} is not on {:?}", worker.id))?;
                used = used.plus(attempt.resources);
                attempts += 1;
            }
            ensure(worker.capacity.minus(used) == Some(worker.free), || {
                format!(
                    "{:?} uses {used} of {} but has {} free",
                    worker.id, worker.capacity, worker.free
                )
            })?;
            if let Some(shape) = worker.reserved_for {
                let reserved = self.queue.shapes.get(shape).and_then(|shape| shape.reserved);
                ensure(reserved == Some(slot), || format!("{:?} is kept for no shape", worker.id))?;
            }
            for (_, id) in &worker.line {
                let stands = self.aside.workers(*id).is_some_and(|workers| workers.contains(&slot));
                ensure(stands, || {
                    format!("execution {id} does not know its line at {:?}", worker.id)
                })?;
            }
        }
        ensure(attempts == self.attempts.len(), || "an attempt is on no worker".to_owned())
    }

    fn check_builds(&self) -> Check {
        let mut counts = [0; State::COUNT];
        let mut lookups_out = 0;
        for (slot, build) in self.builds.iter() {
            let (mut unended, mut awaited, mut asked) = (0, 0, 0);
            for index in 0..build.jobs.len() as u32 {
                let job = &build.jobs[index as usize];
                counts[job.state as usize] += 1;
                unended += u32::from(!job.ended);
                awaited += u32::from(job.awaited);
                asked += u32::from(job.asked);
                self.check_job(build, JobAt { build: slot, index })?;
            }
            lookups_out += asked;
            let kept = (build.unended, build.awaited, build.lookups_out);
            ensure((unended, awaited, asked) == kept, || {
                format!("{:?} counts {kept:?}, is {:?}", build.id, (unended, awaited, asked))
            })?;
            ensure(unended + awaited > 0, || format!("{:?} is over but not ended", build.id))?;
            ensure(self.build_slots.get(&build.id) == Some(&slot), || {
                format!("{:?} has no slot", build.id)
            })?;
        }
        ensure(counts == self.counts, || format!("{counts:?} jobs counted as {:?}", self.counts))?;
        ensure(lookups_out == self.lookups_out, || "look-ups are miscounted".to_owned())
    }

    fn check_job(&self, build: &Build, at: JobAt) -> Check {
        let job = self.job(at);
        let wrong =
            |what: &str| format!("{:?} is {:?}: {what}", build.job_ref(at.index), job.state);
        let missing = build.missing_deps(at.index);
        ensure((job.execution != NONE) == (job.state == State::Executing), || {
            wrong("executions belong to executing jobs")
        })?;
        match job.state {
            State::Absent | State::Present | State::Dead => {
                ensure(job.ended, || wrong("nothing is done about it"))
            }
            State::Waiting => ensure(missing > 0 && missing == job.deps_left, || {
                wrong(&format!("{missing} dependencies are missing, {} counted", job.deps_left))
            }),
            State::LookUpQueued => ensure(missing == 0 && (job.asked || build.in_round), || {
                wrong("it is never looked up")
            }),
            State::LookingUp => ensure(missing == 0 && job.asked, || wrong("nobody was asked")),
            State::Executing => {
                let execution = self.executions.get(job.execution);
                let execution = execution.ok_or_else(|| wrong("it has no execution"))?;
                ensure(missing == 0 || execution.is_running(), || wrong("its inputs are missing"))?;
                ensure(execution.jobs().any(|job| job == at), || {
                    wrong("it is not part of its execution")
                })
            }
        }
    }

    fn check_executions(&self) -> Check {
        let mut aside = 0;
        let mut keys = 0;
        let mut avoiding = 0;
        let mut members = 0;
        for (id, execution) in self.executions.iter() {
            for at in execution.jobs() {
                members += 1;
                ensure(self.job(at).execution == id, || {
                    format!("execution {id} holds a stranger")
                })?;
            }
            match execution.stage {
                Stage::Loose => return Err(format!("execution {id} is nowhere")),
                Stage::Queued { .. } => {}
                Stage::Aside => {
                    aside += 1;
                    let workers = self.aside.workers(id);
                    let workers = workers.ok_or_else(|| format!("execution {id} is not aside"))?;
                    for slot in workers {
                        let line = &self.fleet.workers[*slot].line;
                        ensure(line.contains(&(execution.seq, id)), || {
                            format!("execution {id} left a line")
                        })?;
                    }
                }
                Stage::Running { attempt } => {
                    let owner = self.attempts.get(attempt.0).and_then(|attempt| attempt.execution);
                    ensure(owner == Some(id), || format!("execution {id} has lost {attempt:?}"))?;
                }
            }
            let avoids =
                execution.avoids_until().map(|until| self.elsewhere.contains(&(until, id)));
            let waits = !execution.is_running() && !execution.need().avoid.is_empty();
            ensure(avoids.unwrap_or(true) && avoids.is_some() == waits, || {
                format!("execution {id} avoids workers for good, or while it runs")
            })?;
            avoiding += usize::from(waits);
            if let Some(key) = &execution.key {
                keys += 1;
                ensure(self.execution_of(key) == Some(id), || format!("{key:?} runs twice"))?;
            }
        }
        ensure(avoiding == self.elsewhere.len(), || {
            "what avoids workers is no execution".to_owned()
        })?;
        ensure(keys == self.by_key.len(), || "a key has no execution".to_owned())?;
        ensure(aside == self.aside.len(), || "something aside is no execution".to_owned())?;
        ensure(members == self.counts[State::Executing as usize], || {
            "jobs and executions do not agree".to_owned()
        })?;
        let mut running = self.attempts.iter().filter_map(|(_, attempt)| attempt.execution);
        ensure(running.all(|id| self.executions.get(id).is_some()), || {
            "an attempt has no execution and was not cancelled".to_owned()
        })
    }

    fn check_queue(&self) -> Check {
        let mut seen = BTreeSet::new();
        for (lane, seq, id) in self.queue.iter() {
            let execution = self.executions.get(id);
            let execution = execution.ok_or_else(|| format!("lane {lane} holds no execution"))?;
            let placed = (execution.stage, execution.seq) == (Stage::Queued { lane }, seq);
            ensure(placed && seen.insert(id), || format!("execution {id} is in a wrong queue"))?;
        }
        let queued = |(_, execution): &(u32, &crate::execution::Execution)| {
            matches!(execution.stage, Stage::Queued { .. })
        };
        let queued = self.executions.iter().filter(queued).count();
        ensure(seen.len() == queued && queued == self.queue.len, || {
            format!("{queued} executions queued, {} found, {} counted", seen.len(), self.queue.len)
        })?;
        ensure(self.queue.next().is_none() && self.freed.is_empty(), || {
            "a decision was left open".to_owned()
        })
    }
}
