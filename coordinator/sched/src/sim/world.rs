//! The world: time, an agenda of what happens when, and the three parts of a run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::books::{Books, Waiting};
use super::driver::{Attempt, Session};
use super::host::{Down, Host, Up};
use super::{Fault, LAST_STEPS, Options, Random, Report};
use crate::{
    AttemptEnd, AttemptId, BuildId, Effect, Event, JobRef, Resources, Scheduler, SelectorId, Time,
    WorkerId,
};

/// Rounds of the storm, each with one fault, before every kind must have been seen.
const MAX_ROUNDS: u32 = 2_000;
/// Builds at a time in the storm.
const MAX_BUILDS: usize = 6;
/// Until the last fault is over.
const SETTLES_MS: u64 = 9_000;
/// How long the rush lasts.
const RUSH_MS: u64 = 12_000;
/// Jobs of the rush that are kept waiting.
const CROWD: usize = 25;
/// How long everything may take to end when nothing new comes.
const ENDS_WITHIN_MS: u64 = 120_000;

pub(super) const GIB: u64 = 1 << 30;

/// What happens at some time.
#[derive(Debug)]
pub(super) enum Happening {
    Up {
        host: u32,
        connection: u64,
        message: Up,
    },
    Down {
        host: u32,
        connection: u64,
        message: Down,
    },
    /// A worker dials, if it is still the same process.
    Dial {
        host: u32,
        life: u32,
    },
    Finish {
        host: u32,
        life: u32,
        attempt: AttemptId,
    },
    Poisoned {
        host: u32,
        attempt: AttemptId,
    },
    Leave {
        host: u32,
        life: u32,
    },
    /// A session ends if it still has this connection (or none, for long enough).
    Lease {
        session: WorkerId,
        connection: Option<u64>,
    },
    /// A session ends: its worker seems silent after a jump of the clock.
    Expire {
        session: WorkerId,
    },
    Answer {
        job: JobRef,
        key: u64,
    },
    Deliver {
        job: JobRef,
    },
}

pub(super) struct World<'a> {
    pub(super) options: Options,
    pub(super) random: Random,
    pub(super) scheduler: Scheduler,
    pub(super) now: Time,
    pub(super) report: Report,
    agenda: BTreeMap<(Time, u64), Happening>,
    entries: u64,
    journal: Option<&'a mut VecDeque<String>>,
    // The network and the workers.
    pub(super) hosts: Vec<Host>,
    pub(super) connections: u64,
    /// Connections of which nothing arrives any more but that they broke.
    pub(super) broken: BTreeSet<u64>,
    // The coordinator.
    pub(super) sessions: BTreeMap<WorkerId, Session>,
    pub(super) by_host: BTreeMap<u32, WorkerId>,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    /// What accepted attempts have made.
    pub(super) succeeded: BTreeMap<AttemptId, u64>,
    /// Contents by key.
    pub(super) cache: BTreeMap<u64, u64>,
    /// Hosts with live sessions, by content.
    pub(super) holders: BTreeMap<u64, BTreeSet<u32>>,
    // The users, and what is known of their jobs.
    pub(super) builds: BTreeMap<BuildId, Books>,
    pub(super) last_build: u64,
    pub(super) last_work: u64,
    pub(super) waiting: BTreeMap<JobRef, Waiting>,
    pub(super) lane_starts: BTreeMap<super::books::Lane, Time>,
    pub(super) waits_checked_at: Time,
    pub(super) rush_since: Option<Time>,
    // The faults.
    pub(super) storming: bool,
    pub(super) forced: VecDeque<(Fault, AttemptEnd)>,
    pub(super) lost_deps: BTreeMap<AttemptId, JobRef>,
    pub(super) peers_cut_until: Time,
    pub(super) emptied_until: Time,
    pub(super) answers_from: Time,
    pub(super) jumped_ms: u64,
}

impl<'a> World<'a> {
    pub(super) fn new(options: Options, journal: Option<&'a mut VecDeque<String>>) -> Self {
        let mut scheduler = Scheduler::new(options.config.clone());
        if let Some(bug) = options.planted {
            scheduler.plant(bug);
        }
        let mut random = Random::new(options.seed);
        let hosts = random.between(4, 7);
        let host = |number: u64| {
            let cores = [4, 2, 3, 2][number as usize % 4];
            Host::new(number as u32 % 2, Resources::new(cores * 1000, 8 * GIB))
        };
        Self {
            hosts: (0..hosts).map(host).collect(),
            options,
            random,
            scheduler,
            now: Time(0),
            report: Report { trace: 0xcbf2_9ce4_8422_2325, ..Report::default() },
            agenda: BTreeMap::new(),
            entries: 0,
            journal,
            connections: 0,
            broken: BTreeSet::new(),
            sessions: BTreeMap::new(),
            by_host: BTreeMap::new(),
            attempts: BTreeMap::new(),
            succeeded: BTreeMap::new(),
            cache: BTreeMap::new(),
            holders: BTreeMap::new(),
            builds: BTreeMap::new(),
            last_build: 0,
            last_work: 0,
            waiting: BTreeMap::new(),
            lane_starts: BTreeMap::new(),
            waits_checked_at: Time(0),
            rush_since: None,
            storming: false,
            forced: VecDeque::new(),
            lost_deps: BTreeMap::new(),
            peers_cut_until: Time(0),
            emptied_until: Time(0),
            answers_from: Time(0),
            jumped_ms: 0,
        }
    }

    pub(super) fn plan(&mut self, in_ms: u64, happening: Happening) {
        self.entries += 1;
        self.agenda.insert((self.now.plus_ms(in_ms), self.entries), happening);
    }

    /// Before everything else that is due.
    pub(super) fn plan_first(&mut self, happening: Happening) {
        self.entries += 1;
        self.agenda.insert((Time(0), self.entries), happening);
    }

    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(journal) = &mut self.journal {
            if journal.len() == LAST_STEPS {
                journal.pop_front();
            }
            journal.push_back(format!("{:>7} ms  {}", self.now.0, text()));
        }
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        for selector in 0..3 {
            let properties = super::books::asked(selector);
            self.tell(Event::SelectorDefined { selector: SelectorId(selector), properties })?;
        }
        for host in 0..self.hosts.len() as u32 {
            self.connect(host);
        }
        self.pass(50)?;
        if self.options.faults {
            self.storm()?;
        }
        self.rush()?;
        let until = self.now.plus_ms(ENDS_WITHIN_MS);
        while !self.builds.is_empty() || !self.attempts.is_empty() {
            if self.now >= until {
                let builds: Vec<_> = self.builds.keys().collect();
                return Err(format!(
                    "{builds:?} have not ended {ENDS_WITHIN_MS} ms after the rest"
                ));
            }
            self.pass(100)?;
        }
        self.report.took_ms = self.now.0;
        self.check_rest()
    }

    fn storm(&mut self) -> Result<(), String> {
        self.storming = true;
        let mut next: Vec<Fault> = Vec::new();
        for round in 0.. {
            if next.is_empty() {
                let missing = |fault: &Fault| !self.report.faults.contains_key(fault);
                next = Fault::ALL.into_iter().filter(missing).collect();
                if next.is_empty() {
                    if self.report.steps >= self.options.steps {
                        break;
                    }
                    next = Fault::ALL.to_vec();
                } else if round > MAX_ROUNDS {
                    return Err(format!("{next:?} could not be injected"));
                }
            }
            if self.builds.len() < MAX_BUILDS {
                self.submit_any()?;
            }
            let at = self.random.below(next.len() as u32) as usize;
            self.inject(next.swap_remove(at))?;
            let calm_ms = self.random.between(50, 400);
            self.pass(calm_ms)?;
        }
        self.storming = false;
        self.forced.clear();
        (self.peers_cut_until, self.answers_from) = (self.now, self.now);
        for host in &mut self.hosts {
            (host.full_until, host.delay_ms) = (self.now, 0);
            (host.cut_on_acknowledgement, host.cut_on_assignment) = (false, false);
        }
        self.pass(SETTLES_MS)
    }

    /// One user of the best class keeps everything busy, while others want a little.
    fn rush(&mut self) -> Result<(), String> {
        self.note(|| "the rush begins".to_owned());
        self.rush_since = Some(self.awake());
        let until = self.now.plus_ms(RUSH_MS);
        self.submit_crowd(CROWD)?;
        self.pass(20)?;
        self.submit_patient()?;
        while self.now < until {
            let waits = self.scheduler.stats().queued;
            if waits < CROWD {
                self.submit_crowd(CROWD)?;
            }
            self.pass(50)?;
        }
        self.rush_since = None;
        Ok(())
    }

    /// Lets time pass, with all that happens.
    fn pass(&mut self, ms: u64) -> Result<(), String> {
        let until = self.now.plus_ms(ms);
        loop {
            let planned = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let timeout = self.scheduler.poll_timeout();
            let next = planned.into_iter().chain(timeout).min();
            let Some(next) = next.filter(|next| *next <= until.max(self.now)) else { break };
            self.now = self.now.max(next);
            if planned.is_some_and(|at| at <= self.now) {
                if let Some((_, happening)) = self.agenda.pop_first() {
                    self.happen(happening)?;
                }
            } else {
                self.tell(Event::Tick)?;
            }
        }
        self.now = self.now.max(until);
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Up { host, connection, message } => self.up(host, connection, message),
            Happening::Down { host, connection, message } => self.down(host, connection, message),
            Happening::Dial { host, life } => {
                self.dial(host, life);
                Ok(())
            }
            Happening::Finish { host, life, attempt } => {
                self.finish_in_life(host, life, attempt);
                Ok(())
            }
            Happening::Poisoned { host, attempt } => {
                self.poisoned(host, attempt);
                Ok(())
            }
            Happening::Leave { host, life } => {
                self.leave_some_time(host, life);
                Ok(())
            }
            Happening::Lease { session, connection } => self.lease(session, connection),
            Happening::Expire { session } => self.end_session(session, true),
            Happening::Answer { job, key } => self.answer(job, key),
            Happening::Deliver { job } => self.deliver(job),
        }
    }

    /// One step.
    pub(super) fn tell(&mut self, event: Event) -> Result<(), String> {
        self.report.steps += 1;
        self.note(|| match &event {
            Event::Submitted { build, user, class, graph, .. } => {
                format!("{build:?} of {user:?}, class {class}, {} jobs", graph.len())
            }
            event => format!("{event:?}"),
        });
        self.scheduler.handle(self.now, event);
        if self.options.check {
            self.scheduler.check_invariants()?;
        }
        while let Some(effect) = self.scheduler.poll_effect() {
            let text = format!("{effect:?}");
            for byte in text.bytes().chain(self.now.0.to_le_bytes()) {
                self.report.trace =
                    (self.report.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            self.note(|| format!("  {text}"));
            self.obey(effect)?;
        }
        self.check_books()
    }

    fn obey(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::LookUp { job } => self.look_up(job),
            Effect::Assign { attempt, number, job, worker, resources } => {
                self.assign(attempt, number, job, worker, resources)
            }
            Effect::CancelAttempt { attempt } => self.cancel_attempt(attempt),
            Effect::JobEnded { job, outcome } => self.job_ended(job, outcome),
            Effect::Remade { job, how } => {
                self.count(Fault::Remade);
                self.made(job, how)
            }
            Effect::RemakeFailed { job, .. } => self.remake_failed(job),
            Effect::BuildEnded { build } => self.build_ended(build),
            Effect::Stalled(stall) => Err(format!("the watchdog reports {stall:?}")),
            Effect::Adopted { .. } => Err("no attempt was reattached".to_owned()),
        }
    }
}
