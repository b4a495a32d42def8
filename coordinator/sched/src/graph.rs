//! `Graph`: the jobs of a build as the scheduler needs them, acyclic by construction.
//!
//! Dependencies lie in one flat array. A job may depend only on jobs pushed before it, so the order
//! of the jobs is a topological order. Equal requests are stored once.

use std::collections::BTreeMap;

use crate::ids::{SelectorId, StoreId};
use crate::job::{Holder, Job};
use crate::resources::Resources;
use crate::tried::Tried;

/// What a job asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Need {
    pub(crate) selector: SelectorId,
    pub(crate) resources: Resources,
    /// Workers that shall not run it (for now); none in a graph.
    pub(crate) avoid: Tried,
}

/// One job to be pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSpec {
    /// What it reserves on its worker.
    pub resources: Resources,
    /// Which workers can run it.
    pub selector: SelectorId,
    /// Its outputs are wanted by the client.
    pub requested: bool,
    /// What the cache says about it.
    pub state: JobState,
}

/// What the cache says about a job at submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Nothing: it runs if something requested needs it.
    Unknown,
    /// Its result is known and complete.
    Cached {
        /// Stores that hold the outputs.
        holders: Vec<StoreId>,
    },
}

/// The jobs of a build.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(crate) dep_ends: Vec<u32>,
    pub(crate) deps: Vec<u32>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) needs: Vec<Need>,
    pub(crate) holder_lists: Vec<Box<[StoreId]>>,
    need_ids: BTreeMap<Need, u32>,
}

/// Why a job cannot be part of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// It depends on itself or on a job that comes later.
    #[error("job {job} depends on job {dependency}, which does not come before it")]
    NotBefore {
        /// Position of the job.
        job: u32,
        /// The dependency.
        dependency: u32,
    },
    /// More than `u32::MAX - 1` jobs or dependencies.
    #[error("a graph holds at most {} jobs and dependencies", u32::MAX - 1)]
    TooLarge,
}

impl Graph {
    /// A graph without jobs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a job that needs the outputs of `deps` (positions of jobs pushed before); returns
    /// its position.
    pub fn push(&mut self, deps: &[u32], spec: JobSpec) -> Result<u32, GraphError> {
        let job = self.jobs.len() as u32;
        let most = u32::MAX as usize - 1;
        if self.jobs.len() >= most || self.deps.len() + deps.len() > most {
            return Err(GraphError::TooLarge);
        }
        if let Some(&dependency) = deps.iter().find(|&&dep| dep >= job) {
            return Err(GraphError::NotBefore { job, dependency });
        }
        let need =
            Need { selector: spec.selector, resources: spec.resources, avoid: Tried::default() };
        let next = self.needs.len() as u32;
        let need = *self.need_ids.entry(need).or_insert_with(|| {
            self.needs.push(need);
            next
        });
        self.deps.extend_from_slice(deps);
        self.dep_ends.push(self.deps.len() as u32);
        let cached = match spec.state {
            JobState::Unknown => None,
            JobState::Cached { holders } => Some(Holder::of(&holders, &mut self.holder_lists)),
        };
        self.jobs.push(Job::new(need, spec.requested, cached));
        Ok(job)
    }

    /// Gives every selector another number: who makes a graph need not know the driver's.
    pub fn map_selectors(&mut self, number: impl Fn(SelectorId) -> SelectorId) {
        self.need_ids.clear();
        for (id, need) in self.needs.iter_mut().enumerate() {
            need.selector = number(need.selector);
            self.need_ids.entry(*need).or_insert(id as u32);
        }
    }

    /// Number of jobs.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there are no jobs.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> JobSpec {
        JobSpec {
            resources: Resources::new(1000, 1),
            selector: SelectorId(0),
            requested: true,
            state: JobState::Unknown,
        }
    }

    #[test]
    fn a_job_depends_only_on_jobs_before_it() {
        let mut graph = Graph::new();
        assert_eq!(graph.push(&[], spec()), Ok(0));
        assert_eq!(graph.push(&[0], spec()), Ok(1));
        let error = GraphError::NotBefore { job: 2, dependency: 2 };
        assert_eq!(graph.push(&[0, 2], spec()), Err(error));
        assert_eq!((graph.len(), graph.deps.len()), (2, 1));
    }

    #[test]
    fn selectors_can_be_named_when_the_graph_is_made() {
        let mut graph = Graph::new();
        graph.push(&[], spec()).unwrap();
        graph.map_selectors(|SelectorId(number)| SelectorId(number + 7));
        let renamed = JobSpec { selector: SelectorId(7), ..spec() };
        graph.push(&[], renamed).unwrap();
        assert_eq!((graph.needs.len(), graph.needs[0].selector), (1, SelectorId(7)));
    }

    #[test]
    fn equal_requests_are_stored_once() {
        let mut graph = Graph::new();
        for _ in 0..10 {
            graph.push(&[], spec()).unwrap();
        }
        assert_eq!(graph.needs.len(), 1);
    }
}
