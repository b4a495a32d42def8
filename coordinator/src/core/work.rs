//! What a build consists of: a client's graph, or one action that is lowered already.
//!
//! A graph is submitted by a native client, which knows its jobs by their numbers in the submission; its
//! results are looked up and recorded as native cache entries. A single action comes from the Remote Execution
//! API: nothing depends on it, its results are kept by the API's edge, and the core neither looks them up nor
//! records them.

use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::action::{Action, input_root};
use distbuild_proto::graph::{Graph, JobId, JobIndex, JobKey, Resources};
use distbuild_proto::{Digest, DigestFunction, TreeError};

use super::builds::number;
use crate::state::JobLink;

/// The jobs of a build, by position.
pub(crate) enum Work {
    /// A validated graph.
    Graph(Box<GraphWork>),
    /// One job.
    Action(ActionWork),
}

/// A client's graph; all lists go by the position of a job in it.
pub(crate) struct GraphWork {
    pub(crate) graph: Arc<Graph>,
    /// Where each job stood in the submission: the number that the client knows.
    pub(crate) submitted: Vec<u32>,
    /// The other way round.
    pub(crate) positions: Vec<u32>,
    pub(crate) source_roots: Vec<Option<Digest>>,
    /// The public id: declared, or computed.
    pub(crate) ids: Vec<JobId>,
    /// None for a job that may not be found by its key.
    pub(crate) keys: Vec<Option<JobKey>>,
}

/// An action that waits for nothing.
pub(crate) struct ActionWork {
    /// What people are told that it is.
    name: String,
    prepared: Arc<Prepared>,
}

/// A job lowered to its action.
pub(crate) struct Prepared {
    pub(crate) action: Action,
    pub(crate) key: [u8; 32],
    /// The small directories that make its input root.
    pub(crate) directories: Vec<Bytes>,
}

/// Why a job cannot be lowered.
#[derive(Debug)]
pub(super) enum Unprepared {
    /// The outputs of the dependency at this position of the graph are not known.
    NoOutputs(u32),
    /// The input root is no valid directory.
    Tree(TreeError),
}

impl ActionWork {
    /// The input root of `action` is in the coordinator's store.
    pub(crate) fn new(name: String, action: Action) -> Self {
        let key = *action.digest().as_bytes();
        let prepared = Arc::new(Prepared { action, key, directories: Vec::new() });
        Self { name, prepared }
    }
}

impl Work {
    /// For people.
    pub(super) fn name(&self, index: usize) -> &str {
        match self {
            Self::Graph(work) => work.graph.jobs()[index].name(),
            Self::Action(work) => &work.name,
        }
    }

    /// The jobs whose outputs are inputs of this one.
    pub(super) fn deps(&self, index: usize) -> &[JobIndex] {
        match self {
            Self::Graph(work) => work.graph.jobs()[index].deps(),
            Self::Action(_) => &[],
        }
    }

    /// Whether the core may look its result up, record it, and run it once for several builds.
    pub(super) fn is_cacheable(&self, index: usize) -> bool {
        match self {
            Self::Graph(work) => work.graph.jobs()[index].cache(),
            Self::Action(_) => false,
        }
    }

    /// What it asks a worker for.
    pub(super) fn resources(&self, index: usize) -> Resources {
        match self {
            Self::Graph(work) => work.graph.jobs()[index].resources(),
            Self::Action(work) => work.prepared.action.resources,
        }
    }

    /// Whether its commands have anything to look at.
    pub(super) fn has_inputs(&self, index: usize) -> bool {
        match self {
            Self::Graph(work) => {
                work.source_roots[index].is_some() || !work.graph.jobs()[index].deps().is_empty()
            }
            Self::Action(work) => work.prepared.action.input_root.size_bytes() > 0,
        }
    }

    /// The number by which the client knows a job.
    pub(super) fn client_number(&self, index: usize) -> u32 {
        match self {
            Self::Graph(work) => work.submitted[index],
            Self::Action(_) => number(index),
        }
    }

    /// The job that the client knows by this number.
    pub(super) fn position(&self, client_number: u32) -> Option<u32> {
        match self {
            Self::Graph(work) => work.positions.get(client_number as usize).copied(),
            Self::Action(_) => (client_number == 0).then_some(0),
        }
    }

    /// Whether what its commands looked at is remembered, to foresee what they will read.
    pub(super) fn is_remembered(&self, index: usize) -> bool {
        matches!(self, Self::Action(_)) || self.is_cacheable(index)
    }

    /// Ties a job to its action in the cache; none for work that the core keeps no results of.
    pub(super) fn link(
        &self,
        index: usize,
        action_key: [u8; 32],
        input_root: Digest,
    ) -> Option<JobLink> {
        let Self::Graph(work) = self else { return None };
        Some(JobLink {
            job_key: work.keys[index].map(|key| *key.as_bytes()),
            action_key,
            job_id: *work.ids[index].as_bytes(),
            name: work.graph.jobs()[index].name().to_owned(),
            input_root,
        })
    }

    /// Lowers a job whose dependencies are done; `output_root` knows their outputs.
    pub(super) fn prepare(
        &self,
        index: usize,
        function: DigestFunction,
        toolchain: &str,
        output_root: impl Fn(usize) -> Option<Digest>,
    ) -> Result<Arc<Prepared>, Unprepared> {
        let work = match self {
            Self::Graph(work) => work,
            Self::Action(work) => return Ok(work.prepared.clone()),
        };
        let spec = &work.graph.jobs()[index];
        let mut deps = Vec::with_capacity(spec.deps().len());
        for dep in spec.deps().iter().map(|dep| dep.get()) {
            deps.push(output_root(dep).ok_or(Unprepared::NoOutputs(number(dep)))?);
        }
        let (root, blobs) =
            input_root(work.source_roots[index], &deps, function).map_err(Unprepared::Tree)?;
        let action = spec.lower(root, toolchain);
        let key = *action.digest().as_bytes();
        let directories = blobs.into_iter().map(|(_, blob)| blob).collect();
        Ok(Arc::new(Prepared { action, key, directories }))
    }
}
