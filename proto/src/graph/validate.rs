//! From a [`RawGraph`] to a [`Graph`]: every check that needs neither disk nor workers.
//!
//! Three passes, each linear: names and ids here, each job by itself in [`job`], topological order
//! here again. Until the last, jobs are known by their position in the file.

mod command;
mod job;

use std::collections::HashMap;
use std::sync::Arc;

use super::error::{Fault, GraphError, GraphErrors, JobLabel};
use super::id::JobId;
use super::raw::{RawGraph, RawJob};
use super::{Graph, Job, JobIndex, topo};

/// Longest name of a directory in bytes (`NAME_MAX`).
const MAX_NAME_BYTES: usize = 255;

/// Validates a whole graph.
pub(super) fn validate(raw: RawGraph) -> Result<Graph, GraphErrors> {
    let RawGraph { salt, jobs: raw_jobs, mut errors, .. } = raw;
    let about_file = |fault| GraphError { position: None, job: None, command: None, fault };
    if u32::try_from(raw_jobs.len()).is_err() {
        errors.push(about_file(Fault::TooManyJobs(raw_jobs.len())));
        return Err(errors);
    }
    if salt.contains('\0') {
        errors.push(about_file(Fault::SaltNul));
    }
    let names = Names::of(&raw_jobs, &mut errors);
    let jobs = job::check_all(raw_jobs, &salt, &names, &mut errors);
    let order = order(&jobs, &names, &mut errors);
    errors.unless_empty(())?;
    Ok(sorted(salt, jobs, names, &order))
}

/// Who is called what, by position in the file.
struct Names {
    list: Vec<Arc<str>>,
    by_name: HashMap<Arc<str>, JobIndex>,
    by_id: HashMap<JobId, JobIndex>,
}

impl Names {
    fn of(jobs: &[RawJob], errors: &mut GraphErrors) -> Self {
        let list: Vec<_> = jobs.iter().map(|job| Arc::clone(&job.name)).collect();
        let by_name = HashMap::with_capacity(jobs.len());
        let mut names = Self { list, by_name, by_id: HashMap::new() };
        for (number, job) in jobs.iter().enumerate() {
            names.add_name(number, errors);
            if let Some(id) = &job.id {
                names.add_id(number, id, errors);
            }
        }
        names.check_collisions(errors);
        names
    }

    fn add_name(&mut self, number: usize, errors: &mut GraphErrors) {
        let name = Arc::clone(&self.list[number]);
        let slashes = name.bytes().filter(|byte| *byte == b'/').count();
        let bytes = name.len() + 2 * slashes;
        let mut fault = |fault| errors.push_job(number, &name, fault);
        match &*name {
            "" => return fault(Fault::NameMissing),
            "." | ".." => fault(Fault::NameDots),
            _ if name.contains('\0') => fault(Fault::NameNul),
            _ if bytes > MAX_NAME_BYTES => fault(Fault::NameTooLong(bytes)),
            _ => {}
        }
        match self.by_name.get(&name) {
            Some(first) => fault(Fault::DuplicateName(first.get())),
            None => {
                self.by_name.insert(Arc::clone(&name), JobIndex(number as u32));
            }
        }
    }

    fn add_id(&mut self, number: usize, id: &str, errors: &mut GraphErrors) {
        let name = &self.list[number];
        let Ok(parsed) = id.parse::<JobId>() else {
            return errors.push_job(number, name, Fault::MalformedId(id.to_owned()));
        };
        match self.by_id.get(&parsed) {
            Some(first) => errors.push_job(number, name, Fault::DuplicateId(self.label(*first))),
            None => {
                self.by_id.insert(parsed, JobIndex(number as u32));
            }
        }
    }

    /// Names that mean another job's id, or another job's directory once `/` is written as `%2F`.
    fn check_collisions(&self, errors: &mut GraphErrors) {
        let mut escaped: HashMap<String, usize> = HashMap::new();
        for (number, name) in self.list.iter().enumerate() {
            let named = (name.len() == 2 * JobId::LEN).then(|| name.parse().ok()).flatten();
            if let Some(owner) = named.and_then(|id: JobId| self.by_id.get(&id))
                && owner.get() != number
            {
                errors.push_job(number, name, Fault::NameIsId(self.label(*owner)));
            }
            if !name.contains("%2F") {
                continue;
            }
            let plain = name.replace("%2F", "/");
            let other = self.by_name.get(plain.as_str()).map(|other| other.get());
            let other = other.or_else(|| escaped.insert(plain, number));
            if let Some(other) = other.filter(|other| self.list[*other] != *name) {
                let label = self.label(JobIndex(other as u32));
                errors.push_job(number, name, Fault::NameCollides(label));
            }
        }
    }

    /// The job with this declared id, or else with this name.
    fn resolve(&self, id_or_name: &str) -> Option<JobIndex> {
        let by_id = (id_or_name.len() == 2 * JobId::LEN && !self.by_id.is_empty())
            .then(|| id_or_name.parse().ok())
            .flatten()
            .and_then(|id: JobId| self.by_id.get(&id));
        by_id.or_else(|| self.by_name.get(id_or_name)).copied()
    }

    fn label(&self, job: JobIndex) -> JobLabel {
        JobLabel { number: job.get(), name: Arc::clone(&self.list[job.get()]) }
    }
}

/// Positions in the file, dependencies first; reports cycles.
fn order(jobs: &[Job], names: &Names, errors: &mut GraphErrors) -> Vec<u32> {
    let dep = |job: u32, at: usize| jobs[job as usize].deps.get(at).map(|dep| dep.0);
    let order = topo::order(jobs.len(), dep, GraphErrors::LISTED);
    errors.count(order.cycle_count - order.cycles.len());
    for cycle in order.cycles {
        let members = cycle.nodes.iter().map(|node| Arc::clone(&names.list[*node as usize]));
        let fault = Fault::Cycle { names: members.collect(), length: cycle.length };
        let first = cycle.nodes.first().map_or(0, |node| *node as usize);
        errors.push_job(first, &names.list[first], fault);
    }
    order.nodes
}

/// Puts the jobs into topological order and lets every index mean that.
fn sorted(salt: Arc<str>, mut jobs: Vec<Job>, names: Names, order: &[u32]) -> Graph {
    let mut rank = vec![JobIndex(0); order.len()];
    for (place, number) in order.iter().enumerate() {
        rank[*number as usize] = JobIndex(place as u32);
    }
    for dep in jobs.iter_mut().flat_map(|job| job.deps.iter_mut()) {
        *dep = rank[dep.get()];
    }
    let Names { mut by_name, mut by_id, .. } = names;
    for index in by_name.values_mut().chain(by_id.values_mut()) {
        *index = rank[index.get()];
    }
    // Follows the permutation in place: a second vector of jobs would double the memory.
    let mut target = rank.clone();
    for at in 0..jobs.len() {
        while target[at].get() != at {
            let to = target[at].get();
            jobs.swap(at, to);
            target.swap(at, to);
        }
    }
    Graph { salt, jobs, file_order: rank, by_name, by_id }
}

#[cfg(test)]
mod tests;
