//! The watchdog: says when a job stays queued although a worker has room for it.
//!
//! Between two events that never is so; if it is, the scheduler has lost a wake-up. While something is
//! queued, the watchdog looks once in `stall_after`, as careful as a decision for every distinct request
//! in the queue. What it finds twice in a row it reports, and has the whole queue decided on anew, so
//! that the mistake costs a wait and not a build.

use crate::event::Effect;
use crate::ids::{JobRef, Time};
use crate::scheduler::Scheduler;

/// A job that was queued although a worker had room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// The job.
    pub job: JobRef,
    /// When the watchdog saw it first.
    pub since: Time,
}

#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    /// When it looks next; `None` while nothing is queued.
    next: Option<Time>,
    /// What it saw last time.
    seen: Option<Stall>,
    /// What it has reported.
    pub(crate) stalls: u64,
}

impl Watchdog {
    pub(crate) fn next_timer(&self) -> Option<Time> {
        self.next
    }
}

impl Scheduler {
    /// Looks, if it is time to.
    pub(crate) fn watch(&mut self) {
        if self.queue.len == 0 {
            (self.watchdog.next, self.watchdog.seen) = (None, None);
            return;
        }
        let again = self.now.plus_ms(self.config.stall_after_ms.max(1));
        if *self.watchdog.next.get_or_insert(again) > self.now {
            return;
        }
        self.watchdog.next = Some(again);
        let Some(job) = self.stalled() else {
            self.watchdog.seen = None;
            return;
        };
        let Some(seen) = self.watchdog.seen.take().filter(|seen| seen.job == job) else {
            self.watchdog.seen = Some(Stall { job, since: self.now });
            return;
        };
        self.watchdog.stalls += 1;
        self.emit(Effect::Stalled(seen));
        for shape in self.queue.closed().collect::<Vec<_>>() {
            self.queue.set_open(shape, true);
        }
        self.dispatch();
    }

    /// A queued job for which a worker has room that is not kept for another. Costs as much as one
    /// decision for every distinct request in the queue.
    pub fn stalled(&mut self) -> Option<JobRef> {
        let heads: Vec<u32> =
            self.queue.shapes.iter().filter_map(|(shape, _)| self.queue.head(shape)).collect();
        let stalled = heads.into_iter().find(|id| {
            let need = self.executions[*id].need();
            self.fleet.roomiest(need).is_some()
        })?;
        Some(self.job_ref(self.executions[stalled].leader))
    }
}
