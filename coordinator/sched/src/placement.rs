//! Who runs where: locality with a bounded wait, retries elsewhere, reservations, and workers that
//! come and go.
//!
//! A retry avoids the workers where it went wrong: its request is then another one, for which only
//! the others have room, so it waits in the queue like everything else, and what could use those
//! workers overtakes it. It stops doing so after `retry_elsewhere`, or as soon as none of the others
//! that are online could ever take it.

use crate::ending::Ended;
use crate::event::{AttemptEnd, Blame, Effect, Outcome};
use crate::execution::{Attempt, Stage};
use crate::ids::{AttemptId, SelectorId, StoreId, Time, WorkerId};
use crate::planted::Planted;
use crate::queue::{Due, Rank};
use crate::scheduler::Scheduler;

/// Dependencies that are asked for their holders; a job with more goes where most of these are.
const LOCALITY_SAMPLE: usize = 1024;

/// Workers that are equally good for locality; more make no difference.
const MAX_PREFERRED: usize = 4;

/// Where the next execution goes.
enum Place {
    At(u32),
    /// It waits a moment for these workers.
    Aside {
        until: Time,
        workers: Vec<u32>,
    },
    /// Of the workers that it does not avoid none could ever take it: it shall avoid none.
    Anywhere,
    NoRoom,
}

impl Scheduler {
    /// Assigns until nothing that is queued has room.
    pub(crate) fn dispatch(&mut self) {
        loop {
            self.release_reserved();
            if let Some(slot) = self.freed.pop_first() {
                self.offer(slot);
                continue;
            }
            let Some((rank, shape, id)) = self.queue.next() else {
                return;
            };
            match self.place(id) {
                Place::At(slot) => {
                    self.assign(id, slot);
                    self.note_overtaken(rank, slot);
                }
                Place::Aside { until, workers } => self.put_aside(id, until, workers),
                Place::Anywhere => self.go_anywhere(id),
                Place::NoRoom => {
                    self.queue.set_open(shape, false);
                    self.review(shape);
                }
            }
        }
    }

    /// Uses new room on a worker: for what it is kept free for, for what waits in its line; the
    /// rest is for the queue.
    fn offer(&mut self, slot: u32) {
        let Some(worker) = self.fleet.workers.get(slot) else {
            return;
        };
        if worker.draining {
            return;
        }
        if let Some(shape) = worker.reserved_for {
            let free = worker.free;
            if let Some(id) = self.queue.head(shape)
                && !worker.on_probe()
                && self.executions[id].resources.fits(free)
            {
                self.assign(id, slot);
            }
            return;
        }
        let line: Vec<u32> = worker.line.iter().map(|(_, id)| *id).collect();
        for id in line {
            if self.fleet.has_room(slot, self.executions[id].need()) {
                self.assign(id, slot);
            }
        }
        let has_room = |shape: &u32| {
            let head = self.queue.head(*shape);
            head.is_some_and(|id| self.fleet.has_room(slot, self.executions[id].need()))
        };
        let reopened: Vec<u32> = self.queue.closed().filter(has_room).collect();
        for shape in reopened {
            self.queue.set_open(shape, true);
        }
    }

    fn place(&mut self, id: u32) -> Place {
        let execution = &self.executions[id];
        let (need, ready_at) = (execution.need(), execution.ready_at);
        let Some(roomiest) = self.fleet.roomiest(need) else {
            return if self.avoids_in_vain(id) { Place::Anywhere } else { Place::NoRoom };
        };
        let mut preferred = self.preferred(id);
        if let Some(slot) = preferred.iter().find(|slot| self.fleet.has_room(**slot, need)) {
            return Place::At(*slot);
        }
        preferred.retain(|slot| self.fleet.workers[*slot].line.len() < self.config.locality_line);
        let until = ready_at.plus_ms(self.config.locality_wait_ms);
        if until <= self.now || preferred.is_empty() {
            return Place::At(roomiest);
        }
        Place::Aside { until, workers: preferred }
    }

    /// Lets an execution that is not queued avoid the workers where it went wrong.
    pub(crate) fn avoid_tried(&mut self, id: u32) {
        let until = self.now.plus_ms(self.config.retry_elsewhere_ms);
        if until > self.now && self.executions[id].avoid_until(until) {
            self.elsewhere.insert((until, id));
        }
    }

    /// Lets an execution that is not queued run on any worker.
    pub(crate) fn stop_avoiding(&mut self, id: u32) {
        if let Some(until) = self.executions[id].stop_avoiding() {
            self.elsewhere.remove(&(until, id));
        }
    }

    /// Lets a waiting execution run on any worker.
    pub(crate) fn go_anywhere(&mut self, id: u32) {
        let waited = self.unqueue(id);
        self.stop_avoiding(id);
        if waited {
            self.enqueue(id);
        }
    }

    fn avoids_in_vain(&self, id: u32) -> bool {
        let need = self.executions[id].need();
        !need.avoid.is_empty() && !self.fleet.could_elsewhere(need)
    }

    /// The workers that hold the outputs of most of a job's dependencies and could take it.
    fn preferred(&self, id: u32) -> Vec<u32> {
        let execution = &self.executions[id];
        let (leader, need) = (execution.leader, execution.need());
        let build = &self.builds[leader.build];
        let deps = build.deps(leader.index).iter().take(LOCALITY_SAMPLE);
        let mut stores: Vec<StoreId> = deps.flat_map(|dep| build.holders(*dep)).copied().collect();
        stores.sort_unstable();
        let (mut most, mut best) = (0, Vec::new());
        for equal in stores.chunk_by(|a, b| a == b) {
            let slot = self.fleet.slot_of_store(equal[0]);
            let Some(slot) = slot.filter(|slot| self.fleet.trusts_with(*slot, need)) else {
                continue;
            };
            if equal.len() > most {
                most = equal.len();
                best.clear();
            }
            if equal.len() == most && best.len() < MAX_PREFERRED {
                best.push(slot);
            }
        }
        best
    }

    fn assign(&mut self, id: u32, slot: u32) {
        let execution = &self.executions[id];
        let (leader, resources) = (execution.leader, execution.resources);
        match execution.stage {
            Stage::Queued { lane } => {
                self.queue.start(self.now, lane, execution.seq, resources.milli_cores);
            }
            _ => {
                self.take_from_aside(id);
                self.queue.start_aside(self.owner(leader), resources.milli_cores);
            }
        }
        self.stop_avoiding(id);
        self.last_attempt += 1;
        let attempt = AttemptId(self.last_attempt);
        let execution = &mut self.executions[id];
        execution.stage = Stage::Running { attempt };
        let job = self.job_mut(leader);
        job.attempts = job.attempts.saturating_add(1);
        let number = u32::from(job.attempts);
        self.fleet.take(slot, attempt, resources);
        let running = Attempt {
            execution: Some(id),
            worker: slot,
            resources,
            assigned_at: self.now,
            started: false,
        };
        self.attempts.insert(attempt.0, running);
        let (job, worker) = (self.job_ref(leader), self.fleet.workers[slot].id);
        self.emit(Effect::Assign { attempt, number, job, worker, resources });
        self.release_reserved();
    }

    fn release_reserved(&mut self) {
        while let Some(slot) = self.queue.take_released() {
            self.fleet.reserve(slot, None);
            self.freed.insert(slot);
        }
    }

    fn put_aside(&mut self, id: u32, until: Time, workers: Vec<u32>) {
        self.unqueue(id);
        let seq = self.executions[id].seq;
        for &slot in &workers {
            self.fleet.workers[slot].line.insert((seq, id));
        }
        self.aside.insert(id, until, workers);
        self.executions[id].stage = Stage::Aside;
    }

    pub(crate) fn take_from_aside(&mut self, id: u32) {
        let seq = self.executions[id].seq;
        for slot in self.aside.remove(id) {
            self.fleet.workers[slot].line.remove(&(seq, id));
        }
        self.executions[id].stage = Stage::Loose;
    }

    /// Notes for every shape before `rank` that a worker which could take it was used otherwise.
    fn note_overtaken(&mut self, rank: Rank, slot: u32) {
        let overtaken = |shape: &u32| {
            let head = self.queue.head(*shape);
            self.queue.is_before(*shape, rank)
                && head.is_some_and(|id| self.fleet.could_take(slot, self.executions[id].need()))
        };
        let shapes: Vec<u32> = self.queue.closed().filter(overtaken).collect();
        for shape in shapes {
            self.queue.overtaken(self.now, shape, self.config.reserve_after_ms);
        }
    }

    /// Keeps a worker free for a shape that was overtaken for too long: the one with most free
    /// cores of those that could take it. This is the only walk over workers; it happens at most
    /// once a shape and `reserve_after`.
    pub(crate) fn reserve_for(&mut self, shape: u32) {
        let Some(head) = self.queue.head(shape) else {
            return;
        };
        let overtaken = self.queue.overtaken_since(shape).is_some();
        let reserved = self.queue.shapes[shape].reserved.is_some();
        if !overtaken || reserved || self.queue.avoids_variously(shape) {
            return;
        }
        let need = self.executions[head].need();
        let workers = self.fleet.workers.len() as u32;
        let most = (workers / self.config.reserve_one_in.max(1)).max(1);
        let candidate = |slot: &u32| {
            self.fleet.workers[*slot].reserved_for.is_none() && self.fleet.could_take(*slot, need)
        };
        let freest = |slot: &u32| {
            let worker = &self.fleet.workers[*slot];
            (!worker.suspect, worker.free)
        };
        let chosen = self.fleet.matching(need.selector).filter(candidate).max_by_key(freest);
        match chosen.filter(|_| self.fleet.reserved < most) {
            Some(slot) => {
                self.queue.shapes[shape].reserved = Some(slot);
                self.fleet.reserve(slot, Some(shape));
                self.freed.insert(slot);
            }
            None => {
                let again = self.now.plus_ms(self.config.reserve_after_ms.max(1));
                self.queue.look_again(Due::Reserve(shape), again);
            }
        }
    }

    /// Finds out whether a closed shape has any online worker that could ever take its head, and
    /// opens it if its head avoids all of them.
    pub(crate) fn review(&mut self, shape: u32) {
        let Some(head) = self.queue.head(shape) else {
            return;
        };
        if self.avoids_in_vain(head) {
            return self.queue.set_open(shape, true);
        }
        let hopeless = self.fleet.why_not(self.executions[head].need()).is_some();
        let since = &mut self.queue.shapes[shape].hopeless_since;
        match (hopeless, *since) {
            (true, None) => {
                *since = Some(self.now);
                let again = self.now.plus_ms(self.config.queue_timeout_ms);
                self.queue.look_again(Due::Expire(shape), again);
            }
            (false, Some(_)) => *since = None,
            _ => {}
        }
    }

    pub(crate) fn review_closed(&mut self) {
        let shapes: Vec<u32> = self.queue.closed().collect();
        for shape in shapes {
            self.review(shape);
        }
    }

    /// Lets what asks for a selector be tried again after it has got a new meaning.
    pub(crate) fn reopen_selector(&mut self, selector: SelectorId) {
        let asks = |shape: &u32| {
            let head = self.queue.head(*shape);
            head.is_some_and(|id| self.executions[id].need().selector == selector)
        };
        let shapes: Vec<u32> = self.queue.closed().filter(asks).collect();
        for shape in shapes {
            self.queue.set_open(shape, true);
        }
    }

    /// Ends what has waited for the queue time-out while no online worker could ever take it.
    pub(crate) fn expire(&mut self, shape: u32) {
        loop {
            let Some(since) = self.queue.shapes.get(shape).and_then(|shape| shape.hopeless_since)
            else {
                return;
            };
            let mut next: Option<Time> = None;
            let mut expired = None;
            for id in self.queue.heads(shape) {
                let execution = &self.executions[id];
                let Some(reason) = self.fleet.why_not(execution.need()) else {
                    continue;
                };
                let waits_since = execution.ready_at.max(since);
                let at = waits_since.plus_ms(self.config.queue_timeout_ms);
                if at <= self.now {
                    expired = Some((id, reason));
                    break;
                }
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            if let Some((id, reason)) = expired {
                self.unqueue(id);
                self.fail_execution(id, Outcome::NoWorker { reason });
                continue;
            }
            if let Some(next) = next {
                self.queue.look_again(Due::Expire(shape), next);
            }
            return;
        }
    }

    pub(crate) fn worker_drained(&mut self, worker: WorkerId) {
        if let Some(slot) = self.fleet.slot(worker) {
            self.close_worker(slot);
            self.fleet.drain(slot);
            self.review_closed();
        }
    }

    pub(crate) fn worker_left(&mut self, worker: WorkerId, lost: bool) {
        let Some(slot) = self.fleet.slot(worker) else {
            return;
        };
        self.close_worker(slot);
        let Some(gone) = self.fleet.leave(slot) else {
            return;
        };
        self.freed.remove(&slot);
        let stays_known = self.has_planted(Planted::StaleEpoch);
        let mut over = Vec::new();
        for attempt in gone.attempts {
            let known = match stays_known {
                true => self.attempts.get(attempt.0).copied(),
                false => self.attempts.remove(attempt.0),
            };
            over.extend(known.and_then(|known| Some((attempt, known.execution?))));
        }
        for (attempt, execution) in over {
            // The end of an earlier one may have stopped its build.
            let stage = self.executions.get(execution).map(|execution| execution.stage);
            if stage == Some(Stage::Running { attempt }) {
                let ended = Ended { execution, attempt, store: gone.store, worker_lost: lost };
                let end = AttemptEnd::Infra { blame: Blame::Worker, lost_inputs: false };
                self.ended(ended, end);
            }
        }
        self.review_closed();
    }

    /// Nothing waits for this worker any more.
    fn close_worker(&mut self, slot: u32) {
        if let Some(shape) = self.fleet.workers[slot].reserved_for {
            self.queue.shapes[shape].reserved = None;
            self.fleet.reserve(slot, None);
            self.queue.look_again(Due::Reserve(shape), self.now);
        }
        let line = std::mem::take(&mut self.fleet.workers[slot].line);
        for (_, id) in line {
            if self.aside.forget_worker(id, slot) {
                self.take_from_aside(id);
                self.enqueue(id);
            }
        }
    }
}
