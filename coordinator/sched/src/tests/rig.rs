//! A scheduler with its invariants checked after every event, and short ways to say things.

use std::collections::BTreeMap;

use crate::{
    ActionKey, Answer, AttemptEnd, AttemptId, Blame, BuildId, Config, Effect, Event, Graph, How,
    JobRef, JobSpec, JobState, Outcome, Planted, Resources, Scheduler, SelectorId, Stall, StoreId,
    Time, UserId, WorkerId,
};

pub(super) const GIB: u64 = 1 << 30;

/// Any worker.
pub(super) const ANY: SelectorId = SelectorId(0);
/// Workers with `arch=arm64`.
pub(super) const ARM: SelectorId = SelectorId(1);

pub(super) const LOST_INPUTS: AttemptEnd =
    AttemptEnd::Infra { blame: Blame::Inputs, lost_inputs: true };
pub(super) const BROKEN: AttemptEnd =
    AttemptEnd::Infra { blame: Blame::Worker, lost_inputs: false };

pub(super) struct Rig {
    pub(super) scheduler: Scheduler,
    pub(super) now: u64,
    /// Whether the invariants are checked; not if a bug is planted.
    checks: bool,
    /// Effects not yet asked about.
    effects: Vec<Effect>,
}

/// A job that asks for these cores, a GiB and any worker, is requested and not cached.
pub(super) fn job(cores: u32) -> JobSpec {
    JobSpec {
        resources: Resources::new(cores * 1000, GIB),
        selector: ANY,
        requested: true,
        state: JobState::Unknown,
    }
}

pub(super) fn cached(holders: &[u32]) -> JobSpec {
    let holders = holders.iter().map(|store| StoreId(*store)).collect();
    JobSpec { state: JobState::Cached { holders }, ..job(1) }
}

pub(super) fn inner(spec: JobSpec) -> JobSpec {
    JobSpec { requested: false, ..spec }
}

pub(super) fn at(build: u64, index: u32) -> JobRef {
    JobRef { build: BuildId(build), index }
}

pub(super) fn key(byte: u8) -> Answer {
    Answer::Miss { key: Some(ActionKey([byte; 32])) }
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(super) fn with(config: Config) -> Self {
        let (scheduler, effects) = (Scheduler::new(config), Vec::new());
        let mut rig = Self { scheduler, now: 0, checks: true, effects };
        rig.tell(Event::SelectorDefined { selector: ANY, properties: BTreeMap::new() });
        let properties = BTreeMap::from([("arch".to_owned(), "arm64".to_owned())]);
        rig.tell(Event::SelectorDefined { selector: ARM, properties });
        rig
    }

    /// A scheduler with a bug.
    pub(super) fn planted(bug: Planted) -> Self {
        let mut rig = Self::new();
        rig.scheduler.plant(bug);
        rig.checks = false;
        rig
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.scheduler.handle(Time(self.now), event);
        if self.checks {
            self.scheduler.check_invariants().unwrap();
        }
        while let Some(effect) = self.scheduler.poll_effect() {
            self.effects.push(effect);
        }
    }

    /// Lets time pass, with every time-out on the way.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(Time(at)) = self.scheduler.poll_timeout().filter(|at| at.0 <= end) {
            self.now = self.now.max(at);
            self.tell(Event::Tick);
        }
        self.now = end;
        self.tell(Event::Tick);
    }

    /// A worker with as many GiB as cores times 4; its store has its number.
    pub(super) fn join(&mut self, worker: u32, cores: u32) {
        self.join_as(worker, worker, cores, &[]);
    }

    pub(super) fn join_as(
        &mut self,
        worker: u32,
        store: u32,
        cores: u32,
        properties: &[(&str, &str)],
    ) {
        let pairs =
            properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.tell(Event::WorkerJoined {
            worker: WorkerId(worker),
            store: StoreId(store),
            properties: pairs.collect(),
            capacity: Resources::new(cores * 1000, u64::from(cores) * 4 * GIB),
            draining: false,
        });
    }

    pub(super) fn leave(&mut self, worker: u32, lost: bool) {
        self.tell(Event::WorkerLeft { worker: WorkerId(worker), lost });
    }

    pub(super) fn submit(&mut self, build: u64, jobs: &[(&[u32], JobSpec)]) {
        self.submit_as(build, 0, 0, true, jobs);
    }

    pub(super) fn submit_as(
        &mut self,
        build: u64,
        user: u32,
        class: u8,
        keep_going: bool,
        jobs: &[(&[u32], JobSpec)],
    ) {
        let mut graph = Graph::new();
        for (deps, spec) in jobs {
            graph.push(deps, spec.clone()).unwrap();
        }
        let (build, user) = (BuildId(build), UserId(user));
        self.tell(Event::Submitted { build, user, class, keep_going, graph: Box::new(graph) });
    }

    /// Takes the look-ups asked for.
    pub(super) fn lookups(&mut self) -> Vec<JobRef> {
        self.take(|effect| match effect {
            Effect::LookUp { job } => Some(*job),
            _ => None,
        })
    }

    pub(super) fn answer(&mut self, job: JobRef, answer: Answer) {
        self.tell(Event::LookedUp { job, answer });
    }

    /// Answers all look-ups with a miss that is never shared.
    pub(super) fn miss(&mut self) {
        for job in self.lookups() {
            self.answer(job, Answer::Miss { key: None });
        }
    }

    /// Takes the assignments: job, worker, attempt.
    pub(super) fn assigned(&mut self) -> Vec<(JobRef, u32, AttemptId)> {
        self.take(|effect| match effect {
            Effect::Assign { attempt, job, worker, .. } => Some((*job, worker.0, *attempt)),
            _ => None,
        })
    }

    /// Takes the one assignment there is, which must be of this job; gives worker and attempt.
    #[track_caller]
    pub(super) fn runs(&mut self, job: JobRef) -> (u32, AttemptId) {
        let assigned = self.assigned();
        match assigned[..] {
            [(assigned, worker, attempt)] if assigned == job => (worker, attempt),
            _ => panic!("expected {job:?} to be assigned, have {assigned:?}"),
        }
    }

    pub(super) fn end(&mut self, attempt: AttemptId, end: AttemptEnd) {
        self.tell(Event::AttemptEnded { attempt, end });
    }

    pub(super) fn succeed(&mut self, attempt: AttemptId) {
        self.end(attempt, AttemptEnd::Succeeded);
    }

    /// Runs what is looked up until nothing is left, always successfully.
    pub(super) fn run_all(&mut self) {
        loop {
            self.miss();
            let assigned = self.assigned();
            if assigned.is_empty() {
                return;
            }
            for (_, _, attempt) in assigned {
                self.succeed(attempt);
            }
        }
    }

    /// Takes the outcomes.
    pub(super) fn outcomes(&mut self) -> Vec<(JobRef, Outcome)> {
        self.take(|effect| match effect {
            Effect::JobEnded { job, outcome } => Some((*job, *outcome)),
            _ => None,
        })
    }

    /// Takes the outcomes of successful jobs.
    pub(super) fn hows(&mut self) -> Vec<(u32, How)> {
        let outcomes = self.outcomes().into_iter();
        let how = |(job, outcome): (JobRef, Outcome)| match outcome {
            Outcome::Succeeded { how } => Some((job.index, how)),
            _ => None,
        };
        outcomes.filter_map(how).collect()
    }

    pub(super) fn cancellations(&mut self) -> Vec<AttemptId> {
        self.take(|effect| match effect {
            Effect::CancelAttempt { attempt } => Some(*attempt),
            _ => None,
        })
    }

    pub(super) fn builds_ended(&mut self) -> Vec<u64> {
        self.take(|effect| match effect {
            Effect::BuildEnded { build } => Some(build.0),
            _ => None,
        })
    }

    /// Takes what the watchdog has reported.
    pub(super) fn stalls(&mut self) -> Vec<Stall> {
        self.take(|effect| match effect {
            Effect::Stalled(stall) => Some(*stall),
            _ => None,
        })
    }

    /// Takes what was made again: how, or why not.
    pub(super) fn remakes(&mut self) -> Vec<(u32, Option<Outcome>)> {
        self.take(|effect| match effect {
            Effect::Remade { job, .. } => Some((job.index, None)),
            Effect::RemakeFailed { job, outcome } => Some((job.index, Some(*outcome))),
            _ => None,
        })
    }

    pub(super) fn take<T>(&mut self, wanted: impl Fn(&Effect) -> Option<T>) -> Vec<T> {
        let taken = self.effects.iter().filter_map(&wanted).collect();
        self.effects.retain(|effect| wanted(effect).is_none());
        taken
    }
}
