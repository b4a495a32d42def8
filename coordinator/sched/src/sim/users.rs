//! Users: what they submit and cancel, and what they get.

use super::books::{Books, JobBook};
use super::world::{GIB, World};
use crate::{
    BuildId, Event, Graph, JobRef, JobSpec, JobState, Resources, SelectorId, StoreId, UserId,
};

const SMALL: Resources = Resources::new(1000, GIB);
const REQUESTS: [Resources; 4] =
    [SMALL, Resources::new(500, GIB / 2), Resources::new(2000, 3 * GIB), Resources::new(4000, GIB)];

/// A job as a user writes it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) deps: Vec<u32>,
    pub(super) requested: bool,
    pub(super) selector: u32,
    pub(super) request: Resources,
    /// Equal works over equal inputs are equal actions.
    pub(super) work: u64,
    pub(super) is_joinable: bool,
    /// Each run makes other outputs.
    pub(super) varies: bool,
    /// It kills its worker.
    pub(super) is_poison: bool,
    pub(super) is_cached: bool,
}

impl World<'_> {
    fn plain(&mut self, selector: u32) -> Wanted {
        self.last_work += 1;
        Wanted {
            deps: Vec::new(),
            requested: true,
            selector,
            request: SMALL,
            work: self.last_work,
            is_joinable: true,
            varies: false,
            is_poison: false,
            is_cached: false,
        }
    }

    fn any_jobs(&mut self) -> Vec<Wanted> {
        let count = self.random.between(4, 20) as u32;
        let mut jobs = Vec::new();
        for index in 0..count {
            // No job asks for more than its platform has.
            let selector = self.random.below(3);
            let mut job = self.plain(selector);
            for _ in 0..self.random.below(4).min(index) {
                job.deps.push(index - 1 - self.random.below(index.min(8)));
            }
            job.requested = index + 1 == count || self.random.percent(20);
            job.request = match (self.random.below(12), selector) {
                (10, _) => REQUESTS[1],
                (11, 0 | 1) => REQUESTS[2 + self.random.below(2) as usize],
                _ => SMALL,
            };
            job.is_joinable = self.random.percent(85);
            job.varies = self.random.percent(15);
            job.is_cached = self.random.percent(8);
            jobs.push(job);
        }
        jobs
    }

    pub(super) fn submit_any(&mut self) -> Result<(), String> {
        let jobs = self.any_jobs();
        let user = self.random.below(3);
        self.submit(jobs, user, user as u8)
    }

    /// Equal jobs in two builds of two users, in a row.
    pub(super) fn submit_twins(&mut self) -> Result<(), String> {
        let jobs = self.any_jobs();
        self.submit(jobs.clone(), 1, 1)?;
        self.submit(jobs, 0, 0)
    }

    pub(super) fn submit_poison(&mut self) -> Result<(), String> {
        let mut job = self.plain(0);
        (job.is_poison, job.request) = (true, REQUESTS[1]);
        self.submit(vec![job], 0, 0)
    }

    pub(super) fn submit_for(&mut self, platform: u32) -> Result<(), String> {
        let job = self.plain(platform + 1);
        self.submit(vec![job], 1, 0)
    }

    /// Independent jobs of the best class, for anywhere.
    pub(super) fn submit_crowd(&mut self, count: usize) -> Result<(), String> {
        let jobs = (0..count).map(|_| self.plain(0)).collect();
        self.submit(jobs, 0, 0)
    }

    /// A few jobs of a worse class.
    pub(super) fn submit_patient(&mut self) -> Result<(), String> {
        let jobs = vec![self.plain(1), self.plain(2)];
        self.submit(jobs, 2, 2)
    }

    fn submit(&mut self, jobs: Vec<Wanted>, user: u32, class: u8) -> Result<(), String> {
        self.last_build += 1;
        let build = BuildId(self.last_build);
        let mut graph = Graph::new();
        for job in &jobs {
            let holders = vec![StoreId(self.random.below(self.hosts.len() as u32))];
            let spec = JobSpec {
                resources: job.request,
                selector: SelectorId(job.selector),
                requested: job.requested,
                state: if job.is_cached { JobState::Cached { holders } } else { JobState::Unknown },
            };
            graph.push(&job.deps, spec).map_err(|error| error.to_string())?;
        }
        let jobs = jobs.into_iter().map(JobBook::new).collect();
        self.builds.insert(build, Books { user, class, jobs, cancelled: false });
        let keep_going = self.random.percent(60);
        let user = UserId(user);
        self.tell(Event::Submitted { build, user, class, keep_going, graph: Box::new(graph) })
    }

    pub(super) fn cancel(&mut self, build: BuildId) -> Result<(), String> {
        if let Some(books) = self.builds.get_mut(&build) {
            books.cancelled = true;
        }
        self.tell(Event::Cancelled { build })
    }

    pub(super) fn deliver(&mut self, job: JobRef) -> Result<(), String> {
        let Some(books) = self.builds.get_mut(&job.build) else { return Ok(()) };
        let book = &mut books.jobs[job.index as usize];
        if book.present.is_none() || std::mem::replace(&mut book.is_settled, true) {
            return Ok(());
        }
        self.tell(Event::Delivered { job })
    }
}
