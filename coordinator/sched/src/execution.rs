//! Executions and attempts: what is queued or running, for one job or for several equal ones.

use std::collections::BTreeSet;

use crate::graph::Need;
use crate::ids::{ActionKey, AttemptId, Time};
use crate::job::{JobAt, Tries};
use crate::resources::Resources;
use crate::tried::Tried;

/// One piece of work for one or more jobs with equal keys.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) key: Option<ActionKey>,
    /// The job whose user, class and request count.
    pub(crate) leader: JobAt,
    /// Other jobs that get the same outcome.
    joined: BTreeSet<JobAt>,
    /// Selector and resources, with more memory after it ran out of it, and whom it avoids now.
    pub(crate) need: Need,
    /// Place in the order of arrival.
    pub(crate) seq: u64,
    pub(crate) ready_at: Time,
    pub(crate) stage: Stage,
    pub(crate) tries: Tries,
    /// Where attempts went wrong.
    pub(crate) tried: Tried,
    /// Until when it avoids these workers; `None`: it avoids none.
    pub(crate) elsewhere_until: Option<Time>,
}

/// Where an execution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// About to be put somewhere; never between events.
    Loose,
    /// In this lane of the queue.
    Queued { lane: u32 },
    /// Waiting a moment for certain workers.
    Aside,
    /// On a worker.
    Running { attempt: AttemptId },
}

impl Execution {
    pub(crate) fn new(
        key: Option<ActionKey>,
        leader: JobAt,
        need: Need,
        seq: u64,
        now: Time,
        tries: Tries,
    ) -> Self {
        Self {
            key,
            leader,
            joined: BTreeSet::new(),
            need,
            seq,
            ready_at: now,
            stage: Stage::Loose,
            tries,
            tried: Tried::default(),
            elsewhere_until: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running { .. })
    }

    pub(crate) fn join(&mut self, job: JobAt) {
        self.joined.insert(job);
    }

    /// Makes `job`, which has joined, the leader.
    pub(crate) fn lead(&mut self, job: JobAt) {
        if self.joined.remove(&job) {
            self.joined.insert(std::mem::replace(&mut self.leader, job));
        }
    }

    /// Takes a job away; `false` if it was the only one (and still is there).
    pub(crate) fn part(&mut self, job: JobAt) -> bool {
        if job != self.leader {
            return self.joined.remove(&job);
        }
        let next = self.joined.pop_first();
        self.leader = next.unwrap_or(self.leader);
        next.is_some()
    }

    /// The leader, then the others.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = JobAt> {
        std::iter::once(self.leader).chain(self.joined.iter().copied())
    }
}

/// One try of an execution on a worker.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// `None`: cancelled, its end is awaited.
    pub(crate) execution: Option<u32>,
    /// Slot of the worker.
    pub(crate) worker: u32,
    pub(crate) resources: Resources,
    pub(crate) assigned_at: Time,
    pub(crate) started: bool,
}
