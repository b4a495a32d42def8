//! `Scheduler`: owns all state, hands events to those who know what they mean, keeps the effects.
//!
//! The parts: `lifecycle` (a job up to its execution), `ending` (how attempts and jobs end),
//! `remake` (lost outputs), `placement` (who runs where), `watchdog`, `status` (questions), `invariants`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::aside::Aside;
use crate::config::Config;
use crate::event::{Effect, Event};
use crate::execution::{Attempt, Execution};
use crate::fleet::Fleet;
use crate::ids::{AttemptId, BuildId, JobRef, Time};
use crate::job::{Build, Job, JobAt, State};
use crate::keys::Keys;
use crate::numbered::Numbered;
use crate::planted::Planted;
use crate::queue::{Due, Owner, Queue};
use crate::slab::Slab;
use crate::steps::step;
use crate::watchdog::Watchdog;

/// Effects that were taken leave at most room for this many behind.
const KEPT_EFFECTS: usize = 4096;

/// Attempts with neighbouring numbers that are kept together.
const ATTEMPTS_A_PAGE: usize = 16;

/// The scheduler. See the crate's documentation.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) now: Time,
    pub(crate) builds: Slab<Build>,
    pub(crate) build_slots: BTreeMap<BuildId, u32>,
    pub(crate) fleet: Fleet,
    pub(crate) queue: Queue,
    pub(crate) aside: Aside,
    pub(crate) executions: Slab<Execution>,
    pub(crate) by_key: Keys,
    pub(crate) attempts: Numbered<Attempt, ATTEMPTS_A_PAGE>,
    /// Executions that avoid workers, by when they stop doing so.
    pub(crate) elsewhere: BTreeSet<(Time, u32)>,
    pub(crate) last_attempt: u64,
    pub(crate) last_seq: u64,
    /// Slots of builds that have look-ups to send, in turn. A slot may have been given to
    /// another build since; then its turn comes early.
    pub(crate) round: VecDeque<u32>,
    /// Look-ups the driver has not answered.
    pub(crate) lookups_out: u32,
    /// Jobs by state.
    pub(crate) counts: [usize; State::COUNT],
    /// Workers (slots) with more room than when the queue was last looked at.
    pub(crate) freed: BTreeSet<u32>,
    /// Builds (slots) that may have ended.
    pub(crate) touched: BTreeSet<u32>,
    pub(crate) watchdog: Watchdog,
    effects: VecDeque<Effect>,
    #[cfg(any(test, feature = "sim"))]
    planted: Option<Planted>,
}

impl Scheduler {
    /// A scheduler that knows no workers and no builds.
    pub fn new(config: Config) -> Self {
        let queue = Queue::new(config.max_exact_shapes, config.ageing_ms);
        Self {
            config,
            now: Time::default(),
            builds: Slab::default(),
            build_slots: BTreeMap::new(),
            fleet: Fleet::default(),
            queue,
            aside: Aside::default(),
            executions: Slab::default(),
            by_key: Keys::default(),
            attempts: Numbered::default(),
            elsewhere: BTreeSet::new(),
            last_attempt: 0,
            last_seq: 0,
            round: VecDeque::new(),
            lookups_out: 0,
            counts: [0; State::COUNT],
            freed: BTreeSet::new(),
            touched: BTreeSet::new(),
            watchdog: Watchdog::default(),
            effects: VecDeque::new(),
            #[cfg(any(test, feature = "sim"))]
            planted: None,
        }
    }

    /// Plants a bug, before anything else happens.
    #[cfg(any(test, feature = "sim"))]
    pub fn plant(&mut self, bug: Planted) {
        self.planted = Some(bug);
    }

    /// Whether a bug is planted.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn has_planted(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    /// No bug is planted.
    #[cfg(not(any(test, feature = "sim")))]
    #[expect(clippy::unused_self, reason = "with the feature `sim` it looks")]
    pub(crate) const fn has_planted(&self, _: Planted) -> bool {
        false
    }

    /// As [`new`](Self::new), with attempts numbered from this one: above those of an earlier scheduler that may
    /// be reattached.
    pub fn with_attempts_from(config: Config, first: AttemptId) -> Self {
        Self { last_attempt: first.0.saturating_sub(1), ..Self::new(config) }
    }

    /// Takes in what happened at `now`. Time does not run backwards: an earlier `now` counts as
    /// the latest one seen.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::WorkerJoined { worker, store, properties, capacity, draining } => {
                if let Some(slot) = self.fleet.join(worker, store, properties, capacity, draining) {
                    self.freed.insert(slot);
                    self.review_closed();
                }
            }
            Event::WorkerLeft { worker, lost } => self.worker_left(worker, lost),
            Event::WorkerDrained { worker } => self.worker_drained(worker),
            Event::SelectorDefined { selector, properties } => {
                self.fleet.define(selector, properties);
                self.reopen_selector(selector);
                self.review_closed();
            }
            Event::Submitted { build, user, class, keep_going, graph } => {
                if !self.build_slots.contains_key(&build) {
                    self.submitted(Build::new(build, user, class, keep_going, *graph));
                }
            }
            Event::Cancelled { build } => {
                if let Some(&slot) = self.build_slots.get(&build) {
                    self.cancelled(slot);
                }
            }
            Event::LookedUp { job, answer } => {
                if let Some(at) = self.at(job) {
                    self.looked_up(at, answer);
                }
            }
            Event::Reattached { attempt, worker, resources } => {
                self.reattached(attempt, worker, resources);
            }
            Event::AttemptStarted { attempt } => {
                if let Some(attempt) = self.attempts.get_mut(attempt.0) {
                    attempt.started = true;
                }
            }
            Event::AttemptEnded { attempt, end } => self.attempt_ended(attempt, end),
            Event::OutputsLost { job } => {
                if let Some(at) = self.at(job) {
                    self.outputs_lost(at);
                }
            }
            Event::Delivered { job } => {
                if let Some(at) = self.at(job) {
                    self.give_up(at);
                }
            }
            Event::Tick => {}
        }
        self.run_timers();
        self.finish_builds();
        self.send_lookups();
        self.dispatch();
        self.watch();
    }

    /// The next thing to do, in order. `None`: nothing until the next event or time-out.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.effects.pop_front();
        if effect.is_none() && self.effects.capacity() > KEPT_EFFECTS {
            self.effects = VecDeque::new();
        }
        effect
    }

    /// Whether there is something to do.
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// When to call `handle` with `Event::Tick` if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        let elsewhere = self.elsewhere.first().map(|(until, _)| *until);
        let watchdog = self.watchdog.next_timer();
        let timers = [self.queue.next_timer(), self.aside.next_timer(), elsewhere, watchdog];
        timers.into_iter().flatten().min()
    }

    fn run_timers(&mut self) {
        while let Some(&(until, execution)) = self.elsewhere.first()
            && until <= self.now
        {
            self.go_anywhere(execution);
        }
        while let Some(execution) = self.aside.due(self.now) {
            self.take_from_aside(execution);
            self.enqueue(execution);
        }
        let ages = !self.has_planted(Planted::NoAgeing);
        while let Some(due) = self.queue.pop_due(self.now, ages) {
            match due {
                Due::Reserve(shape) => self.reserve_for(shape),
                Due::Expire(shape) => self.expire(shape),
                Due::Starve(_) => {}
            }
        }
    }

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(crate) fn at(&self, job: JobRef) -> Option<JobAt> {
        let build = *self.build_slots.get(&job.build)?;
        let index = job.index;
        ((index as usize) < self.builds[build].jobs.len()).then_some(JobAt { build, index })
    }

    pub(crate) fn job(&self, at: JobAt) -> &Job {
        step();
        &self.builds[at.build].jobs[at.index as usize]
    }

    pub(crate) fn job_mut(&mut self, at: JobAt) -> &mut Job {
        step();
        &mut self.builds[at.build].jobs[at.index as usize]
    }

    pub(crate) fn job_ref(&self, at: JobAt) -> JobRef {
        self.builds[at.build].job_ref(at.index)
    }

    pub(crate) fn owner(&self, at: JobAt) -> Owner {
        let build = &self.builds[at.build];
        Owner { class: build.class, user: build.user }
    }

    pub(crate) fn set_state(&mut self, at: JobAt, state: State) {
        let before = std::mem::replace(&mut self.job_mut(at).state, state);
        self.counts[before as usize] -= 1;
        self.counts[state as usize] += 1;
    }
}
