//! `Plan`: which jobs of a graph are built, and what they are called from then on.
//!
//! A job's number in a build is its place in the plan: the jobs that are requested and all that they
//! need, in the order of the file. The coordinator calls jobs by these numbers.

use std::path::Path;

use distbuild_proto::graph::{Graph, Job, JobIndex};

use crate::exit::Failure;

/// The jobs of a build.
#[derive(Debug)]
pub(crate) struct Plan {
    graph: Graph,
    jobs: Vec<Planned>,
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    index: JobIndex,
    requested: bool,
}

/// Reads and validates a graph file.
///
/// # Errors
/// It cannot be read, or everything that is wrong with it.
pub(crate) fn load(path: &Path) -> Result<Graph, Failure> {
    let text = std::fs::read(path)
        .map_err(|error| Failure::usage(format!("failed to read {path:?}: {error}")))?;
    Graph::from_json(&text)
        .map_err(|errors| Failure::usage(format!("{}: {errors}", path.display())))
}

impl Plan {
    /// The plan for the jobs of these names or ids; for all jobs if there are none.
    ///
    /// # Errors
    /// A name that no job has.
    pub(crate) fn new(graph: Graph, names: &[String]) -> Result<Self, Failure> {
        let mut requested = vec![names.is_empty(); graph.jobs().len()];
        for name in names {
            match graph.find(name) {
                Some(index) => requested[index.get()] = true,
                None => return Err(no_such_job(&graph, name)),
            }
        }
        // Dependencies stand before the jobs that need them.
        let mut needed = requested.clone();
        for (index, job) in graph.jobs().iter().enumerate().rev() {
            if needed[index] {
                job.deps().iter().for_each(|dep| needed[dep.get()] = true);
            }
        }
        let in_file = graph.file_order().iter().copied();
        let jobs = in_file
            .filter(|index| needed[index.get()])
            .map(|index| Planned { index, requested: requested[index.get()] })
            .collect();
        Ok(Self { graph, jobs })
    }

    /// The graph that the jobs are of.
    pub(crate) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// How many jobs are built.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// The jobs in the order of their numbers.
    pub(crate) fn jobs(&self) -> impl ExactSizeIterator<Item = &Job> + Clone {
        self.jobs.iter().map(|planned| self.graph.job(planned.index))
    }

    /// The places in the graph, in the order of the jobs' numbers.
    pub(crate) fn indexes(&self) -> impl ExactSizeIterator<Item = JobIndex> {
        self.jobs.iter().map(|planned| planned.index)
    }

    /// The job of this number, if there is one.
    pub(crate) fn job(&self, number: u32) -> Option<&Job> {
        self.jobs.get(number as usize).map(|planned| self.graph.job(planned.index))
    }

    /// The name of the job of this number; empty if there is no such job.
    pub(crate) fn name(&self, number: u32) -> &str {
        self.job(number).map_or("", Job::name)
    }

    /// Whether the outputs of this job are wanted.
    pub(crate) fn is_requested(&self, number: u32) -> bool {
        self.jobs.get(number as usize).is_some_and(|planned| planned.requested)
    }
}

fn no_such_job(graph: &Graph, name: &str) -> Failure {
    let near = graph.nearest_name(name).map(|near| format!("; did you mean {near:?}?"));
    Failure::usage(format!("the graph has no job {name:?}{}", near.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> Graph {
        let job = |name: &str, deps: &[&str]| serde_json::json!({ "name": name, "deps": deps, "cmds": [{ "exec": ["/bin/true"] }] });
        let jobs =
            [job("link", &["cc a", "cc b"]), job("cc a", &[]), job("doc", &[]), job("cc b", &[])];
        let file = serde_json::json!({ "version": 1, "jobs": jobs });
        Graph::from_json(file.to_string().as_bytes()).unwrap()
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.jobs().map(Job::name).collect()
    }

    #[test]
    fn without_names_all_jobs_are_requested_in_the_order_of_the_file() {
        let plan = Plan::new(graph(), &[]).unwrap();
        assert_eq!(names(&plan), ["link", "cc a", "doc", "cc b"]);
        assert!((0..4).all(|number| plan.is_requested(number)));
    }

    #[test]
    fn a_requested_job_brings_what_it_needs_and_nothing_else() {
        let plan = Plan::new(graph(), &["link".to_owned()]).unwrap();
        assert_eq!(names(&plan), ["link", "cc a", "cc b"]);
        let requested: Vec<bool> = (0..3).map(|number| plan.is_requested(number)).collect();
        assert_eq!(requested, [true, false, false]);
    }

    #[test]
    fn an_unknown_name_suggests_the_nearest() {
        let failure = Plan::new(graph(), &["cc c".to_owned()]).unwrap_err();
        assert!(failure.to_string().contains("did you mean \"cc a\"?"), "{failure}");
    }
}
