//! The build graph: what a user wrote, checked once and valid for ever after.
//!
//! Text or messages are read into a [`RawGraph`], in which anything may be wrong, and
//! [`Graph::validate`] turns that into a [`Graph`], in which nothing is: jobs stand in topological
//! order, so a graph is acyclic by construction, every dependency is an index smaller than the job's
//! own, every template holds known variables only. All errors are collected, not just the first.
//!
//! What needs a disk (do the inputs exist?) or a fleet (can a worker run this?) is checked by those who
//! have one; they report it with the same [`GraphErrors`]. Nothing here reads a file or a clock.

mod error;
mod id;
mod job;
mod needs;
mod pattern;
mod raw;
mod suggest;
mod template;
mod text;
mod topo;
mod validate;

use std::collections::HashMap;
use std::sync::Arc;

pub use error::{Fault, GraphError, GraphErrors, JobLabel, Position};
pub use id::{ActionKey, CommandKey, JobId, JobKey, Record};
pub use job::Job;
pub use needs::{Platform, Resources};
pub use pattern::{InputPattern, PatternError};
pub use raw::RawGraph;
pub use suggest::nearest;
pub use template::{DEP_DIR, OUTPUT_DIR, SOURCE_DIR, Template, TemplateError};
pub use text::Text;

use crate::wire;

/// Version of the graph format.
pub const VERSION: u64 = 1;

/// Place of a job in a [`Graph`]: topological order, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobIndex(u32);

impl JobIndex {
    /// The place as a number.
    pub fn get(self) -> usize {
        self.0 as usize
    }
}

/// A valid graph. Memory is linear in the length of its text.
#[derive(Clone, Debug)]
pub struct Graph {
    salt: Arc<str>,
    jobs: Vec<Job>,
    /// Where the job that stands at this position of the file is.
    file_order: Vec<JobIndex>,
    by_name: HashMap<Arc<str>, JobIndex>,
    by_id: HashMap<JobId, JobIndex>,
}

impl Graph {
    /// Parses and validates a graph file.
    ///
    /// # Errors
    /// All that is wrong with it; text that is no JSON, or of the wrong type, ends the reading.
    pub fn from_json(text: &[u8]) -> Result<Self, GraphErrors> {
        Self::validate(RawGraph::from_json(text)?)
    }

    /// Validates a graph that was read before.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn validate(raw: RawGraph) -> Result<Self, GraphErrors> {
        validate::validate(raw)
    }

    /// The salt of the whole graph; empty if it has none.
    pub fn salt(&self) -> &str {
        &self.salt
    }

    /// The jobs, each after all of its dependencies.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// The jobs with their indexes, each after all of its dependencies.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (JobIndex, &Job)> {
        self.jobs.iter().enumerate().map(|(index, job)| (JobIndex(index as u32), job))
    }

    /// The job at an index of this graph.
    ///
    /// # Panics
    /// If the index is that of another, longer graph.
    pub fn job(&self, index: JobIndex) -> &Job {
        &self.jobs[index.get()]
    }

    /// Where the jobs are that stand at the positions of the file or submission, in that order.
    pub fn file_order(&self) -> &[JobIndex] {
        &self.file_order
    }

    /// The job with this declared id, or else with this name.
    pub fn find(&self, id_or_name: &str) -> Option<JobIndex> {
        let by_id = || self.by_id.get(&id_or_name.parse().ok()?).copied();
        by_id().or_else(|| self.by_name.get(id_or_name).copied())
    }

    /// The name of a job that is nearest to one that does not exist.
    pub fn nearest_name(&self, name: &str) -> Option<&str> {
        nearest(name, self.file_order.iter().map(|index| self.job(*index).name()))
    }

    /// The message of a job; dependencies are called by id or name. A graph read from the messages
    /// of all jobs, in any order, has the same records.
    pub fn to_wire(&self, index: JobIndex) -> wire::Job {
        let job = self.job(index);
        let dep = |dep: &JobIndex| {
            let dep = self.job(*dep);
            dep.declared_id().map_or_else(|| dep.name().to_owned(), |id| id.to_string())
        };
        job.to_wire(job.deps().iter().map(dep).collect())
    }
}
