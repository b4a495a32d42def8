//! Events in any order, sensible or not: the invariants hold after each, nothing ends twice, and
//! once a driver behaves, everything ends.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::{
    ActionKey, Answer, AttemptEnd, AttemptId, Blame, BuildId, Config, Effect, Event, Graph, JobRef,
    JobSpec, JobState, Resources, Scheduler, SelectorId, StoreId, Time, UserId, WorkerId,
};

fn ends() -> impl Strategy<Value = AttemptEnd> {
    let infra = |lost_inputs| AttemptEnd::Infra { blame: Blame::Unknown, lost_inputs };
    prop_oneof![
        4 => Just(AttemptEnd::Succeeded),
        1 => Just(AttemptEnd::Failed),
        1 => Just(AttemptEnd::TimedOut),
        1 => Just(AttemptEnd::OutOfMemory),
        1 => Just(AttemptEnd::Cancelled),
        1 => Just(AttemptEnd::Rejected),
        1 => any::<bool>().prop_map(infra),
    ]
}

fn jobs() -> impl Strategy<Value = JobRef> {
    (0u64..4, 0u32..8).prop_map(|(build, index)| JobRef { build: BuildId(build), index })
}

fn graphs() -> impl Strategy<Value = Graph> {
    let job = (prop::collection::vec(any::<u32>(), 0..3), 1u32..5, 0u32..3, any::<bool>(), 0u32..5);
    prop::collection::vec(job, 0..8).prop_map(|jobs| {
        let mut graph = Graph::new();
        for (index, (deps, size, selector, requested, cached)) in jobs.into_iter().enumerate() {
            let deps: Vec<u32> = match index as u32 {
                0 => Vec::new(),
                count => deps.into_iter().map(|dep| dep % count).collect(),
            };
            let holders = vec![StoreId(1), StoreId(2)];
            let state = if cached == 0 { JobState::Cached { holders } } else { JobState::Unknown };
            let (resources, selector) =
                (Resources::new(size * 500, u64::from(size)), SelectorId(selector));
            graph.push(&deps, JobSpec { resources, selector, requested, state }).unwrap();
        }
        graph
    })
}

fn properties() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[ab]", "[xy]", 0..3)
}

fn events() -> impl Strategy<Value = Event> {
    let answers = prop_oneof![
        Just(Answer::Hit { holders: vec![StoreId(1)] }),
        (0u8..3).prop_map(|byte| Answer::Miss { key: Some(ActionKey([byte; 32])) }),
        Just(Answer::Miss { key: None }),
    ];
    prop_oneof![
        4 => (0u32..6, 0u32..4, properties(), 1u32..4, any::<bool>()).prop_map(
            |(worker, store, properties, size, draining)| Event::WorkerJoined {
                worker: WorkerId(worker),
                store: StoreId(store),
                properties,
                capacity: Resources::new(size * 1000, u64::from(size) * 2),
                draining,
            }
        ),
        2 => (0u32..6, any::<bool>())
            .prop_map(|(worker, lost)| Event::WorkerLeft { worker: WorkerId(worker), lost }),
        1 => (0u32..6).prop_map(|worker| Event::WorkerDrained { worker: WorkerId(worker) }),
        2 => (0u32..3, properties()).prop_map(|(selector, properties)| Event::SelectorDefined {
            selector: SelectorId(selector),
            properties,
        }),
        4 => (0u64..4, 0u32..2, 0u8..3, any::<bool>(), graphs()).prop_map(
            |(build, user, class, keep_going, graph)| Event::Submitted {
                build: BuildId(build),
                user: UserId(user),
                class,
                keep_going,
                graph: Box::new(graph),
            }
        ),
        1 => (0u64..4).prop_map(|build| Event::Cancelled { build: BuildId(build) }),
        16 => (jobs(), answers).prop_map(|(job, answer)| Event::LookedUp { job, answer }),
        4 => (1u64..30).prop_map(|attempt| Event::AttemptStarted { attempt: AttemptId(attempt) }),
        12 => (1u64..30, ends())
            .prop_map(|(attempt, end)| Event::AttemptEnded { attempt: AttemptId(attempt), end }),
        3 => jobs().prop_map(|job| Event::OutputsLost { job }),
        3 => jobs().prop_map(|job| Event::Delivered { job }),
        4 => Just(Event::Tick),
    ]
}

/// What an honest driver knows.
#[derive(Default)]
struct Driver {
    ended: BTreeSet<JobRef>,
    running: BTreeSet<AttemptId>,
    open: BTreeSet<BuildId>,
}

impl Driver {
    /// Writes an effect down; a build that has ended may be submitted anew.
    fn note(&mut self, effect: &Effect) {
        match effect {
            Effect::JobEnded { job, outcome } => {
                assert!(self.ended.insert(*job), "{job:?} ends twice: {outcome:?}");
            }
            Effect::Assign { attempt, .. } => assert!(self.running.insert(*attempt)),
            Effect::BuildEnded { build } => {
                assert!(self.open.remove(build), "{build:?} ends twice");
                self.ended.retain(|job| job.build != *build);
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_events_keep_the_invariants_and_then_everything_ends(
        events in prop::collection::vec((events(), 0u64..400), 1..150),
    ) {
        let config = Config { max_lookups: 4, max_exact_shapes: 3, reserve_after_ms: 500, ageing_ms: 900, retry_elsewhere_ms: 700, suspect_after: 2, ..Config::default() };
        let mut scheduler = Scheduler::new(config);
        let mut driver = Driver::default();
        let mut now = Time(0);
        for (event, ms) in events {
            now = now.plus_ms(ms);
            if let Event::Submitted { build, .. } = &event {
                driver.open.insert(*build);
            }
            scheduler.handle(now, event);
            prop_assert_eq!(scheduler.check_invariants(), Ok(()));
            while let Some(effect) = scheduler.poll_effect() {
                driver.note(&effect);
            }
        }
        for build in driver.open.clone() {
            scheduler.handle(now, Event::Cancelled { build });
            prop_assert_eq!(scheduler.check_invariants(), Ok(()));
        }
        while let Some(effect) = scheduler.poll_effect() {
            driver.note(&effect);
        }
        for &attempt in &driver.running {
            scheduler.handle(now, Event::AttemptEnded { attempt, end: AttemptEnd::Cancelled });
        }
        prop_assert!(driver.open.is_empty(), "{:?} have not ended", driver.open);
        let stats = scheduler.stats();
        prop_assert_eq!((stats.builds, stats.queued, stats.running, stats.executing), (0, 0, 0, 0));
        prop_assert_eq!(scheduler.poll_timeout(), None);
    }
}
