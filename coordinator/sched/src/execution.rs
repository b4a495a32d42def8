//! Executions and attempts: what is queued or running, for one job or for several equal ones.

use std::collections::BTreeSet;

use crate::graph::Need;
use crate::ids::{ActionKey, AttemptId, SelectorId, StoreId, Time};
use crate::job::{JobAt, Tries};
use crate::resources::Resources;
use crate::tried::Tried;

/// One piece of work for one or more jobs with equal keys.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) key: Option<ActionKey>,
    /// The job whose user, class and request count.
    pub(crate) leader: JobAt,
    selector: SelectorId,
    /// The leader's, with more memory after it ran out of it.
    pub(crate) resources: Resources,
    /// Place in the order of arrival.
    pub(crate) seq: u64,
    pub(crate) ready_at: Time,
    pub(crate) stage: Stage,
    pub(crate) tries: Tries,
    /// What most executions have nothing of.
    more: Option<Box<More>>,
}

#[derive(Debug, Default)]
struct More {
    /// Other jobs that get the same outcome.
    joined: BTreeSet<JobAt>,
    /// Where attempts went wrong.
    tried: Tried,
    /// Until when it avoids these workers; `None`: it avoids none.
    elsewhere_until: Option<Time>,
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
            selector: need.selector,
            resources: need.resources,
            seq,
            ready_at: now,
            stage: Stage::Loose,
            tries,
            more: None,
        }
    }

    /// What it asks for now.
    pub(crate) fn need(&self) -> Need {
        let (selector, resources) = (self.selector, self.resources);
        let avoids = |more: &&More| more.elsewhere_until.is_some();
        let avoid = self.more.as_deref().filter(avoids).map(|more| more.tried.sorted());
        Need { selector, resources, avoid: avoid.unwrap_or_default() }
    }

    /// Makes the request of its leader its own; more memory, if it had run out of it, stays.
    pub(crate) fn adopt(&mut self, need: Need) {
        let memory_bytes = self.resources.memory_bytes;
        (self.selector, self.resources) = (need.selector, need.resources);
        if self.tries.more_memory {
            self.resources.memory_bytes = self.resources.memory_bytes.max(memory_bytes);
        }
    }

    /// Remembers where an attempt went wrong.
    pub(crate) fn went_wrong(&mut self, store: StoreId) {
        self.more.get_or_insert_default().tried.add(store);
    }

    /// Avoids the workers where it went wrong; false if there are none.
    pub(crate) fn avoid_until(&mut self, until: Time) -> bool {
        let more = self.more.as_mut().filter(|more| !more.tried.is_empty());
        more.map(|more| more.elsewhere_until = Some(until)).is_some()
    }

    /// Avoids none; returns until when it would have.
    pub(crate) fn stop_avoiding(&mut self) -> Option<Time> {
        self.more.as_mut()?.elsewhere_until.take()
    }

    /// Until when it avoids workers.
    pub(crate) fn avoids_until(&self) -> Option<Time> {
        self.more.as_ref()?.elsewhere_until
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running { .. })
    }

    pub(crate) fn join(&mut self, job: JobAt) {
        self.more.get_or_insert_default().joined.insert(job);
    }

    /// Makes `job`, which has joined, the leader.
    pub(crate) fn lead(&mut self, job: JobAt) {
        if let Some(more) = &mut self.more
            && more.joined.remove(&job)
        {
            more.joined.insert(std::mem::replace(&mut self.leader, job));
        }
    }

    /// Takes a job away; `false` if it was the only one (and still is there).
    pub(crate) fn part(&mut self, job: JobAt) -> bool {
        let joined = self.more.as_mut().map(|more| &mut more.joined);
        if job != self.leader {
            return joined.is_some_and(|joined| joined.remove(&job));
        }
        let next = joined.and_then(BTreeSet::pop_first);
        self.leader = next.unwrap_or(self.leader);
        next.is_some()
    }

    /// The leader, then the others.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = JobAt> {
        let joined = self.more.iter().flat_map(|more| &more.joined);
        std::iter::once(self.leader).chain(joined.copied())
    }
}

/// One try of an execution on a worker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attempt {
    /// `None`: cancelled, its end is awaited.
    pub(crate) execution: Option<u32>,
    /// Slot of the worker.
    pub(crate) worker: u32,
    pub(crate) resources: Resources,
    pub(crate) assigned_at: Time,
    pub(crate) started: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_execution_stays_small() {
        assert!(size_of::<Execution>() <= 112, "{} bytes", size_of::<Execution>());
    }
}
