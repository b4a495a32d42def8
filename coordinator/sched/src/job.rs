//! The tables of one build: a small record a job, and the edges in both directions, all in flat
//! arrays that go when the build ends.

use std::collections::VecDeque;
use std::ops::Range;

use crate::graph::{Graph, Need};
use crate::ids::{BuildId, JobRef, StoreId, UserId};

/// Index that stands for "none".
pub(crate) const NONE: u32 = u32::MAX;

/// Holders of one job's outputs that are remembered; more do not change where a job goes.
const MAX_HOLDERS: usize = 8;

/// A job inside the scheduler: the build's slot and the position in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JobAt {
    pub(crate) build: u32,
    pub(crate) index: u32,
}

/// What is being done about a job's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// They do not exist and nobody makes them.
    Absent,
    /// Some dependency is not `Present`.
    Waiting,
    /// All dependencies are, and the look-up waits for its turn, or for the answer to an older one.
    LookUpQueued,
    /// The driver has been asked.
    LookingUp,
    /// Part of an execution, queued or running.
    Executing,
    /// They exist.
    Present,
    /// They never will.
    Dead,
}

impl State {
    pub(crate) const COUNT: usize = 7;
}

/// Which stores hold a job's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Unknown,
    One(StoreId),
    /// Index into the build's lists.
    Many(u32),
}

impl Holder {
    pub(crate) fn of(stores: &[StoreId], lists: &mut Vec<Box<[StoreId]>>) -> Self {
        match stores {
            [] => Self::Unknown,
            [store] => Self::One(*store),
            _ => {
                let mut list = stores.to_vec();
                list.sort_unstable();
                list.dedup();
                list.truncate(MAX_HOLDERS);
                lists.push(list.into());
                Self::Many((lists.len() - 1) as u32)
            }
        }
    }
}

/// What has gone wrong so far with a piece of work. Counters stick at their greatest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tries {
    /// Attempts that ended badly and count.
    pub(crate) counted: u8,
    /// Workers that vanished.
    pub(crate) workers_lost: u8,
    /// Attempts that lost their inputs.
    pub(crate) inputs_lost: u8,
    /// Attempts that were rejected.
    pub(crate) rejected: u8,
    /// Memory was doubled.
    pub(crate) more_memory: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) state: State,
    pub(crate) requested: bool,
    /// `JobEnded` has been emitted.
    pub(crate) ended: bool,
    /// Requested, succeeded, and neither delivered nor given up.
    pub(crate) awaited: bool,
    /// Attempts assigned in its name.
    pub(crate) attempts: u16,
    /// Times the outputs were made again.
    pub(crate) remakes: u8,
    /// The driver owes an answer; it may be one that is no longer wanted.
    pub(crate) asked: bool,
    /// Index into the build's needs.
    pub(crate) need: u32,
    /// While `Waiting`: dependencies that are not `Present`.
    pub(crate) deps_left: u32,
    /// While `Executing`: the execution.
    pub(crate) execution: u32,
    pub(crate) holder: Holder,
    pub(crate) tries: Tries,
}

impl Job {
    pub(crate) fn new(need: u32, requested: bool, cached: Option<Holder>) -> Self {
        Self {
            state: match cached {
                Some(_) => State::Present,
                None => State::Absent,
            },
            requested,
            ended: false,
            awaited: false,
            attempts: 0,
            remakes: 0,
            asked: false,
            need,
            deps_left: 0,
            execution: NONE,
            holder: cached.unwrap_or(Holder::Unknown),
            tries: Tries::default(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) id: BuildId,
    pub(crate) user: UserId,
    pub(crate) class: u8,
    pub(crate) keep_going: bool,
    /// Nothing of it runs any more.
    pub(crate) stopped: bool,
    pub(crate) jobs: Vec<Job>,
    pub(crate) needs: Vec<Need>,
    holder_lists: Vec<Box<[StoreId]>>,
    dep_ends: Vec<u32>,
    deps: Vec<u32>,
    user_ends: Vec<u32>,
    users: Vec<u32>,
    /// Jobs that have not ended.
    pub(crate) unended: u32,
    /// Jobs that are `awaited`.
    pub(crate) awaited: u32,
    /// Jobs `LookUpQueued`, in order; entries whose job is in another state are void.
    pub(crate) lookups: VecDeque<u32>,
    /// Look-ups the driver has not answered.
    pub(crate) lookups_out: u32,
    /// Has a place in the round of builds with look-ups.
    pub(crate) in_round: bool,
}

impl Build {
    pub(crate) fn new(
        id: BuildId,
        user: UserId,
        class: u8,
        keep_going: bool,
        graph: Graph,
    ) -> Self {
        let (user_ends, users) = reversed(&graph.dep_ends, &graph.deps);
        Self {
            id,
            user,
            class,
            keep_going,
            stopped: false,
            unended: graph.jobs.len() as u32,
            jobs: shrunk(graph.jobs),
            needs: graph.needs,
            holder_lists: graph.holder_lists,
            dep_ends: shrunk(graph.dep_ends),
            deps: shrunk(graph.deps),
            user_ends,
            users,
            awaited: 0,
            lookups: VecDeque::new(),
            lookups_out: 0,
            in_round: false,
        }
    }

    pub(crate) fn job_ref(&self, index: u32) -> JobRef {
        JobRef { build: self.id, index }
    }

    pub(crate) fn deps(&self, index: u32) -> &[u32] {
        &self.deps[span(&self.dep_ends, index)]
    }

    /// Where the jobs that depend on `index` lie, for `user_at`: the borrow ends at once.
    pub(crate) fn user_span(&self, index: u32) -> Range<usize> {
        span(&self.user_ends, index)
    }

    pub(crate) fn user_at(&self, position: usize) -> u32 {
        self.users[position]
    }

    pub(crate) fn need(&self, index: u32) -> Need {
        self.needs[self.jobs[index as usize].need as usize]
    }

    pub(crate) fn holders(&self, index: u32) -> &[StoreId] {
        match &self.jobs[index as usize].holder {
            Holder::Unknown => &[],
            Holder::One(store) => std::slice::from_ref(store),
            Holder::Many(list) => &self.holder_lists[*list as usize],
        }
    }

    pub(crate) fn set_holders(&mut self, index: u32, stores: &[StoreId]) {
        self.jobs[index as usize].holder = Holder::of(stores, &mut self.holder_lists);
    }

    /// Dependencies whose outputs do not exist.
    pub(crate) fn missing_deps(&self, index: u32) -> u32 {
        let missing = |dep: &&u32| self.jobs[**dep as usize].state != State::Present;
        self.deps(index).iter().filter(missing).count() as u32
    }
}

fn span(ends: &[u32], index: u32) -> Range<usize> {
    let index = index as usize;
    let start = if index == 0 { 0 } else { ends[index - 1] };
    start as usize..ends[index] as usize
}

fn shrunk<T>(mut values: Vec<T>) -> Vec<T> {
    values.shrink_to_fit();
    values
}

/// The edges the other way round, by counting sort; in order of the dependents.
fn reversed(dep_ends: &[u32], deps: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut next = vec![0u32; dep_ends.len()];
    for &dep in deps {
        next[dep as usize] += 1;
    }
    let mut start = 0;
    for slot in &mut next {
        start += std::mem::replace(slot, start);
    }
    let mut users = vec![0u32; deps.len()];
    for index in 0..dep_ends.len() as u32 {
        for &dep in &deps[span(dep_ends, index)] {
            let slot = &mut next[dep as usize];
            users[*slot as usize] = index;
            *slot += 1;
        }
    }
    (next, users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_turn_round_into_ends_and_users() {
        // 1 -> 0, 2 -> 0 1, 3 -> 1
        let (ends, users) = reversed(&[0, 1, 3, 4], &[0, 0, 1, 1]);
        assert_eq!((ends, users), (vec![2, 4, 4, 4], vec![1, 2, 2, 3]));
    }

    #[test]
    fn a_record_of_a_job_stays_small() {
        assert!(size_of::<Job>() <= 40, "{} bytes", size_of::<Job>());
    }

    #[test]
    fn only_some_holders_are_remembered() {
        let mut lists = Vec::new();
        let stores: Vec<StoreId> = (0..100).map(StoreId).collect();
        assert_eq!(Holder::of(&stores, &mut lists), Holder::Many(0));
        assert_eq!(lists[0].len(), MAX_HOLDERS);
    }
}
