//! `Aside`: executions that had their turn in the queue and wait a moment for certain workers.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Time;

#[derive(Debug)]
struct Entry {
    until: Time,
    /// Slots of the workers whose lines it stands in.
    workers: Vec<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Aside {
    entries: BTreeMap<u32, Entry>,
    due: BTreeSet<(Time, u32)>,
}

impl Aside {
    pub(crate) fn insert(&mut self, execution: u32, until: Time, workers: Vec<u32>) {
        self.due.insert((until, execution));
        self.entries.insert(execution, Entry { until, workers });
    }

    /// Takes an execution out; returns the workers in whose lines it stood.
    pub(crate) fn remove(&mut self, execution: u32) -> Vec<u32> {
        let Some(entry) = self.entries.remove(&execution) else {
            return Vec::new();
        };
        self.due.remove(&(entry.until, execution));
        entry.workers
    }

    /// Notes that a worker is gone; true if the execution has no other to wait for.
    pub(crate) fn forget_worker(&mut self, execution: u32, worker: u32) -> bool {
        let Some(entry) = self.entries.get_mut(&execution) else {
            return false;
        };
        entry.workers.retain(|other| *other != worker);
        entry.workers.is_empty()
    }

    pub(crate) fn workers(&self, execution: u32) -> Option<&[u32]> {
        self.entries.get(&execution).map(|entry| &entry.workers[..])
    }

    pub(crate) fn next_timer(&self) -> Option<Time> {
        self.due.first().map(|(until, _)| *until)
    }

    /// An execution that has waited long enough; it stays until removed.
    pub(crate) fn due(&self, now: Time) -> Option<u32> {
        self.due.first().filter(|(until, _)| *until <= now).map(|(_, execution)| *execution)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
