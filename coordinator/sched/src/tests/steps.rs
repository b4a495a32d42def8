//! Work is counted, not timed: what one event costs hardly depends on the number of jobs and workers.

use std::collections::{BTreeMap, VecDeque};

use super::rig::{ANY, GIB};
use crate::sim::Random;
use crate::steps::steps;
use crate::{
    ActionKey, Answer, AttemptEnd, BuildId, Config, Effect, Event, Graph, JobSpec, JobState,
    Resources, Scheduler, StoreId, Time, UserId, WorkerId,
};

/// Steps of the events that a running build consists of: look-ups, ends of attempts, deliveries.
#[derive(Debug, Default)]
struct Cost {
    events: u64,
    steps: u64,
    /// Of the one event that cost most.
    most: u64,
}

impl Cost {
    fn per_event(&self) -> f64 {
        self.steps as f64 / self.events as f64
    }
}

struct Driver {
    scheduler: Scheduler,
    running: VecDeque<crate::AttemptId>,
    told: VecDeque<Event>,
    keys: u64,
    now: u64,
}

impl Driver {
    fn new(workers: u32) -> Self {
        let mut scheduler = Scheduler::new(Config::default());
        let properties = BTreeMap::new();
        scheduler.handle(Time(0), Event::SelectorDefined { selector: ANY, properties });
        for worker in 0..workers {
            let event = Event::WorkerJoined {
                worker: WorkerId(worker),
                store: StoreId(worker),
                properties: BTreeMap::new(),
                capacity: Resources::new(4000, 16 * GIB),
                draining: false,
            };
            scheduler.handle(Time(0), event);
        }
        Self { scheduler, running: VecDeque::new(), told: VecDeque::new(), keys: 0, now: 0 }
    }

    /// Takes the effects; true if the build has ended.
    fn take_effects(&mut self) -> bool {
        let mut over = false;
        while let Some(effect) = self.scheduler.poll_effect() {
            match effect {
                Effect::LookUp { job } => {
                    self.keys += 1;
                    let mut key = [0; 32];
                    let spread = self.keys.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    key[..8].copy_from_slice(&spread.to_le_bytes());
                    let answer = Answer::Miss { key: Some(ActionKey(key)) };
                    self.told.push_back(Event::LookedUp { job, answer });
                }
                Effect::Assign { attempt, .. } => self.running.push_back(attempt),
                Effect::JobEnded { job, .. } => self.told.push_back(Event::Delivered { job }),
                Effect::BuildEnded { .. } => over = true,
                _ => {}
            }
        }
        over
    }

    fn next_event(&mut self) -> Event {
        if let Some(event) = self.told.pop_front() {
            return event;
        }
        if let Some(attempt) = self.running.pop_front() {
            return Event::AttemptEnded { attempt, end: AttemptEnd::Succeeded };
        }
        let at = self.scheduler.poll_timeout().expect("something to wait for");
        self.now = self.now.max(at.0);
        Event::Tick
    }

    /// Runs a build to its end. Forgetting it costs as much as it has jobs, and is not counted.
    fn run(mut self, graph: Graph) -> Cost {
        let (build, user) = (BuildId(1), UserId(1));
        let graph = Box::new(graph);
        let submitted = Event::Submitted { build, user, class: 1, keep_going: true, graph };
        self.scheduler.handle(Time(0), submitted);
        let mut cost = Cost::default();
        while !self.take_effects() {
            if cost.events.is_multiple_of(16) {
                self.now += 1;
            }
            let event = self.next_event();
            let before = steps();
            self.scheduler.handle(Time(self.now), event);
            let took = steps() - before;
            if self.scheduler.stats().builds > 0 {
                cost.events += 1;
                cost.steps += took;
                cost.most = cost.most.max(took);
            }
        }
        cost
    }
}

/// Jobs of two sizes with up to `most_deps` dependencies among the fifty before, so that none has
/// many dependents.
fn graph(jobs: u32, most_deps: u32) -> Graph {
    let mut graph = Graph::new();
    let mut random = Random::new(1);
    for index in 0..jobs {
        let count = random.below(most_deps + 1).min(index);
        let deps: Vec<u32> = (0..count).map(|_| index - 1 - random.below(index.min(50))).collect();
        let spec = JobSpec {
            resources: Resources::new(1000 * (1 + index % 2), GIB),
            selector: ANY,
            requested: true,
            state: JobState::Unknown,
        };
        graph.push(&deps, spec).unwrap();
    }
    graph
}

#[test]
fn an_event_costs_about_the_same_with_thirty_times_the_jobs() {
    for deps in [0, 3] {
        let few = Driver::new(100).run(graph(1_000, deps));
        let many = Driver::new(100).run(graph(30_000, deps));
        let ratio = many.per_event() / few.per_event();
        assert!(ratio < 1.5, "{deps} deps: {few:?}, {many:?}: times {ratio}");
        // With dependencies one event may be the end of the wait for locality for many jobs.
        if deps == 0 {
            assert!(many.most < 2 * few.most, "{few:?}, {many:?}");
        }
    }
}

#[test]
fn an_event_costs_a_few_steps_more_with_a_thousand_times_the_workers() {
    for deps in [0, 3] {
        let few = Driver::new(4).run(graph(20_000, deps));
        let many = Driver::new(4_000).run(graph(20_000, deps));
        let more = many.per_event() - few.per_event();
        assert!(more < 10.0 * 10.0, "{deps} deps: {few:?}, {many:?}: {more} more");
        if deps == 0 {
            assert!(many.most < few.most + 300, "{few:?}, {many:?}");
        }
    }
}
