//! The simulated driver: an agenda of what happens when, and books to hold effects against.

use std::collections::{BTreeMap, BTreeSet};

use super::{Options, Random, Report};
use crate::{
    ActionKey, Answer, AttemptEnd, AttemptId, Blame, BuildId, Config, Effect, Event, Graph, How,
    JobRef, JobSpec, JobState, Outcome, Resources, Scheduler, SelectorId, StoreId, Time, UserId,
    WorkerId,
};

#[derive(Debug)]
enum Happening {
    Tell(Event),
    /// Ends an attempt, unless it is over.
    End(AttemptId, AttemptEnd),
    Vanish(u32),
    Return(u32),
    Submit(u64),
}

#[derive(Debug)]
struct Host {
    session: Option<WorkerId>,
    platform: &'static str,
    capacity: Resources,
    free: Resources,
    draining: bool,
}

#[derive(Debug)]
struct Run {
    host: u32,
    resources: Resources,
}

#[derive(Debug, Default)]
struct Books {
    deps: Vec<Vec<u32>>,
    requested: Vec<bool>,
    selectors: Vec<SelectorId>,
    ended: Vec<Option<Outcome>>,
    present: Vec<bool>,
    numbers: Vec<u32>,
    settled: BTreeSet<u32>,
}

const GIB: u64 = 1 << 30;
const PLATFORMS: [&str; 2] = ["amd64", "arm64"];
const REQUESTS: [Resources; 4] = [
    Resources::new(1000, GIB / 2),
    Resources::new(500, GIB / 4),
    Resources::new(2000, 3 * GIB),
    Resources::new(8000, 4 * GIB),
];

pub(super) struct World {
    options: Options,
    random: Random,
    scheduler: Scheduler,
    now: Time,
    agenda: BTreeMap<(Time, u64), Happening>,
    entries: u64,
    hosts: Vec<Host>,
    sessions: u32,
    runs: BTreeMap<AttemptId, Run>,
    builds: BTreeMap<BuildId, Books>,
    unended: u32,
    report: Report,
}

impl World {
    pub(super) fn new(options: Options, config: Config) -> Self {
        let mut world = Self {
            random: Random::new(options.seed),
            scheduler: Scheduler::new(config),
            now: Time(0),
            agenda: BTreeMap::new(),
            entries: 0,
            hosts: Vec::new(),
            sessions: 0,
            runs: BTreeMap::new(),
            builds: BTreeMap::new(),
            unended: options.builds,
            report: Report { trace: 0xcbf2_9ce4_8422_2325, ..Report::default() },
            options,
        };
        for (id, platform) in ["", PLATFORMS[0], PLATFORMS[1]].into_iter().enumerate() {
            let properties = properties(platform);
            world.plan(
                0,
                Happening::Tell(Event::SelectorDefined {
                    selector: SelectorId(id as u32),
                    properties,
                }),
            );
        }
        for host in 0..world.options.workers {
            let cores = [16_000, 8_000, 8_000, 12_000][host as usize % 4];
            let capacity = Resources::new(cores, 8 * GIB);
            let platform = PLATFORMS[host as usize % 2];
            world.hosts.push(Host {
                session: None,
                platform,
                capacity,
                free: capacity,
                draining: false,
            });
            world.plan(u64::from(host), Happening::Return(host));
        }
        for build in 0..world.options.builds {
            world.plan(u64::from(build) * 100, Happening::Submit(u64::from(build)));
        }
        world
    }

    fn plan(&mut self, in_ms: u64, happening: Happening) {
        self.entries += 1;
        self.agenda.insert((self.now.plus_ms(in_ms), self.entries), happening);
    }

    pub(super) fn run(mut self) -> Result<Report, String> {
        let seed = self.options.seed;
        self.run_to_end().map_err(|what| format!("seed {seed}, at {} ms: {what}", self.now.0))?;
        self.report.took_ms = self.now.0;
        Ok(self.report)
    }

    fn run_to_end(&mut self) -> Result<(), String> {
        while self.unended > 0 {
            let planned = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let timeout = self.scheduler.poll_timeout();
            let next = planned.into_iter().chain(timeout).min();
            self.now =
                next.ok_or("nothing is left to happen, but builds have not ended")?.max(self.now);
            if planned.is_some_and(|at| at <= self.now) {
                if let Some((_, happening)) = self.agenda.pop_first() {
                    self.happen(happening)?;
                }
            } else {
                self.tell(Event::Tick)?;
            }
            if self.now > Time(24 * 3600 * 1000) {
                return Err("a day has passed and builds have not ended".to_owned());
            }
        }
        Ok(())
    }

    fn tell(&mut self, event: Event) -> Result<(), String> {
        self.report.events += 1;
        self.scheduler.handle(self.now, event);
        if self.options.check {
            self.scheduler.check_invariants()?;
        }
        while let Some(effect) = self.scheduler.poll_effect() {
            for byte in format!("{effect:?}").bytes() {
                self.report.trace =
                    (self.report.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            self.obey(effect)?;
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Tell(Event::OutputsLost { job }) => {
                if let Some(books) = self.builds.get_mut(&job.build) {
                    books.present[job.index as usize] = false;
                }
                self.tell(Event::OutputsLost { job })
            }
            Happening::Tell(Event::Delivered { job }) => {
                if let Some(books) = self.builds.get_mut(&job.build) {
                    if !books.present[job.index as usize] {
                        return Ok(());
                    }
                    books.settled.insert(job.index);
                }
                self.tell(Event::Delivered { job })
            }
            Happening::Tell(event) => self.tell(event),
            Happening::End(attempt, end) => {
                let Some(run) = self.runs.remove(&attempt) else {
                    return Ok(());
                };
                let host = &mut self.hosts[run.host as usize];
                host.free = host.free.plus(run.resources);
                self.tell(Event::AttemptEnded { attempt, end })
            }
            Happening::Vanish(host) => self.vanish(host),
            Happening::Return(host) => self.return_host(host),
            Happening::Submit(build) => self.submit(BuildId(build)),
        }
    }

    fn return_host(&mut self, index: u32) -> Result<(), String> {
        self.sessions += 1;
        let worker = WorkerId(self.sessions);
        let host = &mut self.hosts[index as usize];
        (host.session, host.free, host.draining) = (Some(worker), host.capacity, false);
        let event = Event::WorkerJoined {
            worker,
            store: StoreId(index),
            properties: properties(host.platform),
            capacity: host.capacity,
            draining: false,
        };
        self.plan(1000, Happening::Vanish(index));
        self.tell(event)
    }

    fn vanish(&mut self, index: u32) -> Result<(), String> {
        let Some(worker) = self.hosts[index as usize].session else {
            return Ok(());
        };
        if !self.random.percent(self.options.vanish_percent) {
            self.plan(1000, Happening::Vanish(index));
            return Ok(());
        }
        if self.random.percent(30) && !self.hosts[index as usize].draining {
            self.hosts[index as usize].draining = true;
            self.plan(1000, Happening::Vanish(index));
            return self.tell(Event::WorkerDrained { worker });
        }
        self.hosts[index as usize].session = None;
        self.runs.retain(|_, run| run.host != index);
        let back_in = u64::from(self.random.below(1000));
        self.plan(back_in, Happening::Return(index));
        let lost = self.random.percent(50);
        self.tell(Event::WorkerLeft { worker, lost })
    }

    fn submit(&mut self, build: BuildId) -> Result<(), String> {
        let mut graph = Graph::new();
        let mut books = Books::default();
        let jobs = self.options.jobs;
        for index in 0..jobs {
            let mut deps = Vec::new();
            for _ in 0..self.random.below(4).min(index) {
                deps.push(index - 1 - self.random.below(index.min(30)));
            }
            let requested = index + 1 == jobs || self.random.percent(20);
            let selector = SelectorId(self.random.below(3));
            let cached = self.random.percent(10);
            let holders = vec![StoreId(self.random.below(self.options.workers.max(1)))];
            let spec = JobSpec {
                resources: REQUESTS[self.random.below(20).saturating_sub(16) as usize],
                selector,
                requested,
                state: if cached { JobState::Cached { holders } } else { JobState::Unknown },
            };
            graph.push(&deps, spec).map_err(|error| error.to_string())?;
            books.deps.push(deps);
            books.requested.push(requested);
            books.selectors.push(selector);
        }
        let count = jobs as usize;
        (books.ended, books.present, books.numbers) =
            (vec![None; count], vec![false; count], vec![0; count]);
        self.builds.insert(build, books);
        if self.random.percent(self.options.cancel_percent) {
            let after = u64::from(self.random.below(3000));
            self.plan(after, Happening::Tell(Event::Cancelled { build }));
        }
        let user = UserId(self.random.below(3));
        let (class, keep_going) = (self.random.below(3) as u8, self.random.percent(50));
        self.tell(Event::Submitted { build, user, class, keep_going, graph: Box::new(graph) })
    }

    fn obey(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::LookUp { job } => {
                let answer = self.answer();
                let after = u64::from(self.random.below(5));
                self.plan(after, Happening::Tell(Event::LookedUp { job, answer }));
                Ok(())
            }
            Effect::Assign { attempt, number, job, worker, resources } => {
                self.assign(attempt, number, job, worker, resources)
            }
            Effect::CancelAttempt { attempt } => {
                self.plan(1, Happening::End(attempt, AttemptEnd::Cancelled));
                Ok(())
            }
            Effect::JobEnded { job, outcome } => self.job_ended(job, outcome),
            Effect::Remade { job, how: _ } => {
                self.report.remade += 1;
                self.made(job);
                Ok(())
            }
            Effect::RemakeFailed { job, outcome: _ } => {
                let books = self.builds.get_mut(&job.build).ok_or("a forgotten build is remade")?;
                books.settled.insert(job.index);
                Ok(())
            }
            Effect::BuildEnded { build } => self.build_ended(build),
            Effect::Stalled(stall) => Err(format!("the watchdog reports {stall:?}")),
            Effect::Adopted { .. } => Err("no attempt was reattached".to_owned()),
        }
    }

    fn answer(&mut self) -> Answer {
        if self.random.percent(10) {
            return Answer::Hit { holders: vec![StoreId(self.random.below(self.options.workers))] };
        }
        // Few keys, so that jobs meet.
        let key = self.random.below(self.options.jobs * 4).to_le_bytes();
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&key);
        Answer::Miss { key: self.random.percent(70).then_some(ActionKey(bytes)) }
    }

    fn assign(
        &mut self,
        attempt: AttemptId,
        number: u32,
        job: JobRef,
        worker: WorkerId,
        resources: Resources,
    ) -> Result<(), String> {
        self.report.attempts += 1;
        let books = self.builds.get_mut(&job.build).ok_or("a forgotten build is run")?;
        let index = job.index as usize;
        if let Some(dep) = books.deps[index].iter().find(|dep| !books.present[**dep as usize]) {
            return Err(format!("{job:?} runs without the outputs of {dep}"));
        }
        if number <= books.numbers[index] {
            return Err(format!("{job:?} has attempt {number} after {}", books.numbers[index]));
        }
        books.numbers[index] = number;
        let selector = books.selectors[index];
        let host = self.hosts.iter_mut().position(|host| host.session == Some(worker));
        let host =
            host.ok_or_else(|| format!("{job:?} runs on {worker:?}, which is not online"))?;
        let Host { platform, free, draining, .. } = &mut self.hosts[host];
        let asked = ["", PLATFORMS[0], PLATFORMS[1]][selector.0 as usize];
        if *draining || !(asked.is_empty() || asked == *platform) {
            return Err(format!("{job:?} runs on {worker:?}, which does not take it"));
        }
        *free = free.minus(resources).ok_or_else(|| format!("{worker:?} is over-committed"))?;
        self.runs.insert(attempt, Run { host: host as u32, resources });
        self.plan(1, Happening::Tell(Event::AttemptStarted { attempt }));
        let end = self.draw_end(job);
        let runs_ms = 2 + u64::from(self.random.below(400));
        self.plan(runs_ms, Happening::End(attempt, end));
        Ok(())
    }

    fn draw_end(&mut self, job: JobRef) -> AttemptEnd {
        if self.random.percent(self.options.fail_percent) {
            return [AttemptEnd::Failed, AttemptEnd::TimedOut][self.random.below(2) as usize];
        }
        if !self.random.percent(self.options.trouble_percent) {
            return AttemptEnd::Succeeded;
        }
        let blame = [Blame::Worker, Blame::Inputs, Blame::Unknown][self.random.below(3) as usize];
        match self.random.below(5) {
            0 => AttemptEnd::OutOfMemory,
            1 => AttemptEnd::Rejected,
            2 => AttemptEnd::Cancelled,
            3 => {
                let deps = self.builds.get(&job.build).map(|books| &books.deps[job.index as usize]);
                if let Some(&index) = deps.and_then(|deps| deps.first()) {
                    let job = JobRef { build: job.build, index };
                    self.plan(1, Happening::Tell(Event::OutputsLost { job }));
                }
                AttemptEnd::Infra { blame, lost_inputs: true }
            }
            _ => AttemptEnd::Infra { blame, lost_inputs: false },
        }
    }

    fn job_ended(&mut self, job: JobRef, outcome: Outcome) -> Result<(), String> {
        let books = self.builds.get_mut(&job.build).ok_or("a job of a forgotten build ends")?;
        if let Some(before) = books.ended[job.index as usize].replace(outcome) {
            return Err(format!("{job:?} ends twice: {before:?}, {outcome:?}"));
        }
        *self.report.outcomes.entry(kind(outcome)).or_default() += 1;
        match outcome {
            Outcome::Succeeded { how: How::Unneeded } => {}
            Outcome::Succeeded { .. } => self.made(job),
            _ => {
                books.settled.insert(job.index);
            }
        }
        Ok(())
    }

    /// Outputs exist: they are delivered if wanted, or lost before that.
    fn made(&mut self, job: JobRef) {
        let Some(books) = self.builds.get_mut(&job.build) else {
            return;
        };
        books.present[job.index as usize] = true;
        let requested = books.requested[job.index as usize];
        let after = 1 + u64::from(self.random.below(50));
        if self.random.percent(self.options.loss_percent) {
            self.plan(after, Happening::Tell(Event::OutputsLost { job }));
        }
        if requested {
            self.plan(after + 1, Happening::Tell(Event::Delivered { job }));
        }
    }

    fn build_ended(&mut self, build: BuildId) -> Result<(), String> {
        let books = self.builds.remove(&build).ok_or("a build ends twice")?;
        if let Some(index) = books.ended.iter().position(Option::is_none) {
            return Err(format!("{build:?} ends before its job {index}"));
        }
        let cancelled = books.ended.contains(&Some(Outcome::Cancelled));
        let open = (0..books.ended.len() as u32)
            .find(|index| books.requested[*index as usize] && !books.settled.contains(index));
        match open {
            // Whether it was cancelled before or after its last job ended is not in the books.
            Some(index) if !cancelled && self.options.cancel_percent == 0 => {
                return Err(format!("{build:?} ends before its job {index} is delivered"));
            }
            _ => {}
        }
        self.unended -= 1;
        Ok(())
    }
}

fn properties(platform: &str) -> BTreeMap<String, String> {
    let pair = |value: &str| ("arch".to_owned(), value.to_owned());
    (!platform.is_empty()).then(|| pair(platform)).into_iter().collect()
}

fn kind(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded { how: How::Executed { .. } } => "executed",
        Outcome::Succeeded { how: How::Joined { .. } } => "joined",
        Outcome::Succeeded { how: How::Cached } => "cached",
        Outcome::Succeeded { how: How::CutOff } => "cut off",
        Outcome::Succeeded { how: How::Unneeded } => "unneeded",
        Outcome::Failed { .. } => "failed",
        Outcome::TimedOut { .. } => "timed out",
        Outcome::InfraError { .. } => "infrastructure error",
        Outcome::Skipped { .. } => "skipped",
        Outcome::Cancelled => "cancelled",
        Outcome::NoWorker { .. } => "no worker",
    }
}
