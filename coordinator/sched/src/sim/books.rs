//! The books: plain records of what was asked, answered and promised, and what every effect is held
//! against.

use std::collections::{BTreeMap, BTreeSet};

use super::driver::{Attempt, LEASE_MS};
use super::fault::Fault;
use super::host::{Down, LONGEST_RUN_MS};
use super::users::Wanted;
use super::world::{Happening, World};
use crate::{
    AttemptId, BuildId, Config, How, JobRef, Outcome, Resources, Time, WaitReason, WorkerId,
};

/// The longest time that a job waits while some worker that is not suspected of being broken has room
/// for it: for its inputs' worker, for one where it did not go wrong, and for a worker that is emptied
/// for somebody else, whose last attempt may be one of which nothing is heard until its lease ends.
pub(super) fn free_wait_ms(config: &Config) -> u64 {
    config.locality_wait_ms + config.retry_elsewhere_ms + LEASE_MS + 2 * LONGEST_RUN_MS
}

/// The longest time in the rush in which a user's queue of equal requests starts nothing, beside so many
/// other queues: it ages, and then each that has aged longer takes its turn.
pub(super) fn lane_wait_ms(config: &Config, lanes: u64) -> u64 {
    let turn_ms = config.reserve_after_ms + LONGEST_RUN_MS;
    config.ageing_ms + config.locality_wait_ms + (lanes + 1) * turn_ms
}

/// Attempts of one job: of each time it is made, those that count, that lost their inputs, that were
/// rejected.
fn most_attempts(config: &Config) -> u32 {
    let once = config.max_attempts + config.max_lost_inputs + config.max_rejections + 3;
    u32::from(once) * (u32::from(config.max_remakes) + 1)
}

/// User, class, selector and request of jobs that queue behind each other.
pub(super) type Lane = (u32, u8, u32, Resources);

#[derive(Debug)]
pub(super) struct Books {
    pub(super) user: u32,
    pub(super) class: u8,
    pub(super) jobs: Vec<JobBook>,
    pub(super) cancelled: bool,
}

#[derive(Debug)]
pub(super) struct JobBook {
    pub(super) wanted: Wanted,
    pub(super) is_joinable: bool,
    /// Of its action, as it was answered last.
    pub(super) key: Option<u64>,
    ended: Option<Outcome>,
    /// Its outputs.
    pub(super) present: Option<u64>,
    /// What its last look-up found.
    pub(super) hit: Option<u64>,
    number: u32,
    workers_lost: u32,
    /// Delivered, or given up.
    pub(super) is_settled: bool,
}

impl JobBook {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self {
            is_joinable: wanted.is_joinable,
            wanted,
            key: None,
            ended: None,
            present: None,
            hit: None,
            number: 0,
            workers_lost: 0,
            is_settled: false,
        }
    }
}

/// A job that was told to run and has not been assigned.
#[derive(Debug)]
pub(super) struct Waiting {
    since: Time,
    /// Since when some worker has had room for it.
    free_since: Option<Time>,
    resources: Resources,
    is_retried: bool,
}

/// The properties that a selector asks for; those of platform `n` are those of selector `n + 1`.
pub(super) fn asked(selector: u32) -> BTreeMap<String, String> {
    let arch = ["", "amd64", "arm64"][selector as usize];
    let pair = (!arch.is_empty()).then(|| ("arch".to_owned(), arch.to_owned()));
    pair.into_iter().collect()
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// A bijection of two numbers that looks random enough for names.
fn mixed(a: u64, b: u64) -> u64 {
    (a ^ b.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) ^ b
}

impl World<'_> {
    fn book(&self, job: JobRef) -> Result<&JobBook, String> {
        let books = self.builds.get(&job.build);
        let books = books.ok_or_else(|| format!("{job:?} is of no build, or of one that ended"))?;
        Ok(&books.jobs[job.index as usize])
    }

    fn book_mut(&mut self, job: JobRef) -> Result<&mut JobBook, String> {
        let books = self.builds.get_mut(&job.build);
        let books = books.ok_or_else(|| format!("{job:?} is of no build, or of one that ended"))?;
        Ok(&mut books.jobs[job.index as usize])
    }

    pub(super) fn key_of(&self, job: JobRef) -> Result<u64, String> {
        let book = self.book(job)?;
        let mut key = book.wanted.work;
        for &index in &book.wanted.deps {
            let dep = self.book(JobRef { index, ..job })?.present;
            key = mixed(key, dep.ok_or_else(|| format!("{job:?} lacks the outputs of {index}"))?);
        }
        Ok(key)
    }

    /// A dependency whose outputs are not on a host.
    pub(super) fn remote_inputs(&self, host: u32, job: JobRef) -> Option<JobRef> {
        let book = self.book(job).ok()?;
        let mut deps = book.wanted.deps.iter().map(|index| JobRef { index: *index, ..job });
        deps.find(|dep| {
            let content = self.book(*dep).ok().and_then(|book| book.present);
            content.is_some_and(|content| !self.hosts[host as usize].disk.contains(&content))
        })
    }

    pub(super) fn assign(
        &mut self,
        attempt: AttemptId,
        number: u32,
        job: JobRef,
        worker: WorkerId,
        resources: Resources,
    ) -> Result<(), String> {
        self.report.attempts += 1;
        let book = self.book(job)?;
        let key = book.key;
        for (other, Attempt { job: its, key: its_key, cancelled, .. }) in &self.attempts {
            let equal = *its == job || (key.is_some() && *its_key == key);
            ensure(*cancelled || !equal, || {
                format!("{job:?} runs twice: {attempt:?} beside {other:?}")
            })?;
        }
        let made = self.key_of(job)?;
        ensure(number > book.number && number <= most_attempts(&self.options.config), || {
            format!("{job:?} has attempt {number} after {}", book.number)
        })?;
        let session = self.sessions.get(&worker);
        let session = session.ok_or_else(|| format!("{job:?} runs on {worker:?}: not online"))?;
        let host = &self.hosts[session.host as usize];
        let selector = book.wanted.selector;
        let fits = selector == 0 || selector == host.platform + 1;
        ensure(fits && !session.draining, || format!("{worker:?} does not take {job:?}"))?;
        let free = self.free_on(worker, host.capacity);
        ensure(free.is_some_and(|free| resources.fits(free)), || {
            format!("{worker:?} is over-committed with {job:?}")
        })?;
        let content = if book.wanted.varies { mixed(made, attempt.0) } else { mixed(made, 0) };
        let poison = book.wanted.is_poison;
        self.book_mut(job)?.number = number;
        if let Some(lane) = self.lane_of(job) {
            self.lane_starts.insert(lane, self.awake());
        }
        self.waiting.remove(&job);
        let entry = Attempt { job, key, session: worker, resources, cancelled: false };
        self.attempts.insert(attempt, entry);
        self.send_to(worker, Down::Assign { attempt, job, resources, content, poison });
        Ok(())
    }

    fn free_on(&self, worker: WorkerId, capacity: Resources) -> Option<Resources> {
        let mine = self.attempts.values().filter(|attempt| attempt.session == worker);
        mine.map(|attempt| attempt.resources).try_fold(capacity, Resources::minus)
    }

    pub(super) fn worker_lost_under(&mut self, job: JobRef, counts: bool) -> Result<(), String> {
        let most = u32::from(self.options.config.quarantine_after);
        let Ok(book) = self.book_mut(job) else { return Ok(()) };
        book.workers_lost += u32::from(counts);
        let lost = book.workers_lost;
        ensure(lost <= most, || format!("{lost} workers vanished under {job:?}"))
    }

    pub(super) fn job_ended(&mut self, job: JobRef, outcome: Outcome) -> Result<(), String> {
        self.waiting.remove(&job);
        let book = self.book_mut(job)?;
        if let Some(before) = book.ended.replace(outcome) {
            return Err(format!("{job:?} ends twice: {before:?}, {outcome:?}"));
        }
        *self.report.outcomes.entry(kind(outcome)).or_default() += 1;
        match outcome {
            Outcome::Succeeded { how: How::Unneeded } => Ok(()),
            Outcome::Succeeded { how } => {
                if matches!(how, How::Joined { .. }) {
                    self.count(Fault::Joined);
                }
                self.made(job, how)
            }
            Outcome::NoWorker { .. } => {
                self.count(Fault::NoWorker);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Outputs exist.
    pub(super) fn made(&mut self, job: JobRef, how: How) -> Result<(), String> {
        self.waiting.remove(&job);
        let book = self.book(job)?;
        let content = match how {
            How::Executed { attempt } | How::Joined { attempt } => self.succeeded.get(&attempt),
            How::CutOff => book.hit.as_ref(),
            How::Cached | How::Unneeded => Some(&book.wanted.work),
        };
        let content = *content.ok_or_else(|| format!("{job:?}: {how:?} made nothing"))?;
        let in_ms = self.random.between(1, 60);
        let book = self.book_mut(job)?;
        book.present = Some(content);
        if book.wanted.requested && !book.is_settled {
            self.plan(in_ms, Happening::Deliver { job });
        }
        Ok(())
    }

    pub(super) fn remake_failed(&mut self, job: JobRef) -> Result<(), String> {
        self.waiting.remove(&job);
        let book = self.book_mut(job)?;
        ensure(book.ended.is_some(), || format!("{job:?} is made again before it has ended"))?;
        book.is_settled = true;
        Ok(())
    }

    pub(super) fn build_ended(&mut self, build: BuildId) -> Result<(), String> {
        let books = self.builds.remove(&build);
        let books = books.ok_or_else(|| format!("{build:?} ends twice"))?;
        self.waiting.retain(|job, _| job.build != build);
        for (index, book) in books.jobs.iter().enumerate() {
            let ended = book.ended.is_some();
            ensure(ended, || format!("{build:?} ends before its job {index}"))?;
            let succeeded = matches!(book.ended, Some(Outcome::Succeeded { .. }));
            let open = succeeded && book.wanted.requested && !book.is_settled;
            ensure(books.cancelled || !open, || {
                format!("{build:?} ends before its job {index} is delivered or given up")
            })?;
        }
        Ok(())
    }

    pub(super) fn begins_to_wait(&mut self, job: JobRef) {
        self.waiting.remove(&job);
        let Ok(book) = self.book(job) else { return };
        let (key, resources) = (book.key, book.wanted.request);
        // One that joins an equal one waits with it.
        let equal = |other: JobRef| key.is_some() && self.book(other).is_ok_and(|b| b.key == key);
        let joins = self.waiting.keys().any(|other| equal(*other))
            || self.attempts.values().any(|attempt| key.is_some() && attempt.key == key);
        if !joins {
            let entry =
                Waiting { since: self.awake(), free_since: None, resources, is_retried: false };
            self.waiting.insert(job, entry);
        }
    }

    /// An attempt is over: its job may wait for another one.
    pub(super) fn waits_again(&mut self, job: JobRef, resources: Resources, cancelled: bool) {
        let assigned = self.attempts.values().any(|attempt| attempt.job == job);
        let done = self.book(job).map_or(true, |book| book.present.is_some());
        if !(cancelled || assigned || done) {
            let entry =
                Waiting { since: self.awake(), free_since: None, resources, is_retried: true };
            self.waiting.insert(job, entry);
        }
    }

    /// The outputs of a job are gone: what needs them and does not run waits for them.
    pub(super) fn recalled(&mut self, job: JobRef) {
        let Some(books) = self.builds.get(&job.build) else { return };
        let needs = |other: &JobRef| {
            let of = |other: &JobRef| &books.jobs[other.index as usize].wanted;
            other.build == job.build && of(other).deps.contains(&job.index)
        };
        let users: Vec<JobRef> = self.waiting.keys().copied().filter(needs).collect();
        for user in users {
            self.waiting.remove(&user);
        }
    }

    /// Time without the jumps of the clock, in which nobody could do anything.
    pub(super) fn awake(&self) -> Time {
        Time(self.now.0 - self.jumped_ms)
    }

    fn lane_of(&self, job: JobRef) -> Option<Lane> {
        let books = self.builds.get(&job.build)?;
        let wanted = &books.jobs[job.index as usize].wanted;
        Some((books.user, books.class, wanted.selector, wanted.request))
    }

    /// Whether the scheduler says that a job waits for a worker: the books do not see what becomes
    /// of an execution that several jobs share.
    fn is_queued(&self, job: JobRef) -> bool {
        let waits = self.scheduler.why_waiting(job);
        let elsewhere = [None, Some(WaitReason::LookUp)].contains(&waits)
            || matches!(waits, Some(WaitReason::Dependencies { .. } | WaitReason::Running { .. }));
        !elsewhere
    }

    pub(super) fn check_books(&mut self) -> Result<(), String> {
        let running = self.scheduler.stats().running;
        ensure(running == self.attempts.len(), || {
            format!("{running} attempts are known to the scheduler, {}", self.attempts.len())
        })?;
        let ownerless =
            self.attempts.iter().find(|(_, it)| !self.sessions.contains_key(&it.session));
        // While a session ends, its attempts are about to.
        ensure(
            ownerless.is_none_or(|(_, it)| !self.by_host.values().any(|id| *id == it.session)),
            || format!("{ownerless:?} has no session"),
        )?;
        if self.waits_checked_at != self.now {
            self.waits_checked_at = self.now;
            self.check_waits()?;
        }
        Ok(())
    }

    fn check_waits(&mut self) -> Result<(), String> {
        // Hosts that could take something, with what they have free.
        let mut rooms: Vec<(u32, Resources)> = Vec::new();
        // Those that could if they ran nothing else.
        let mut able: Vec<(u32, Resources)> = Vec::new();
        for (id, session) in &self.sessions {
            let runs = self.attempts.values().any(|attempt| attempt.session == *id);
            let suspect = session.errors_in_row >= self.options.config.suspect_after;
            let host = &self.hosts[session.host as usize];
            if !session.draining {
                able.push((host.platform, host.capacity));
            }
            if session.draining || (suspect && runs) {
                continue;
            }
            let free = self.free_on(*id, host.capacity).unwrap_or_default();
            rooms.push((host.platform, free));
        }
        let mut late = Vec::new();
        let (now, config) = (self.awake(), &self.options.config);
        let mut lanes: BTreeSet<(Option<JobRef>, Option<Lane>)> = BTreeSet::new();
        for (job, waiting) in &self.waiting {
            let retried = waiting.is_retried.then_some(*job);
            lanes.insert((retried, self.lane_of(*job)));
        }
        let lane_bound_ms = lane_wait_ms(config, lanes.len() as u64);
        let free_bound_ms = free_wait_ms(config);
        for (job, waiting) in &mut self.waiting {
            let Some(books) = self.builds.get(&job.build) else { continue };
            let wanted = &books.jobs[job.index as usize].wanted;
            let fits = |(platform, free): &(u32, Resources)| {
                let matches = wanted.selector == 0 || wanted.selector == platform + 1;
                matches && waiting.resources.fits(*free)
            };
            if !able.iter().any(fits) {
                waiting.since = now;
            }
            let since = match rooms.iter().any(fits) {
                true => *waiting.free_since.get_or_insert(now),
                false => {
                    waiting.free_since = None;
                    now
                }
            };
            let waited_ms = now.ms_since(since);
            if waited_ms > free_bound_ms {
                late.push((*job, format!("{waited_ms} ms while a worker had room for it")));
            }
            let lane = (books.user, books.class, wanted.selector, wanted.request);
            let Some(rush) = self.rush_since.filter(|_| !waiting.is_retried) else { continue };
            let served = self.lane_starts.get(&lane).copied().unwrap_or_default();
            let waited_ms = now.ms_since(waiting.since.max(served).max(rush));
            if waited_ms > lane_bound_ms {
                late.push((*job, format!("{waited_ms} ms although its queue has aged")));
            }
        }
        for (job, what) in late {
            ensure(!self.is_queued(job), || format!("{job:?} starves: it waits {what}"))?;
            self.waiting.remove(&job);
        }
        Ok(())
    }

    /// When everything has ended, nothing is left.
    pub(super) fn check_rest(&self) -> Result<(), String> {
        let stats = self.scheduler.stats();
        let left = (stats.builds, stats.queued, stats.running, stats.executing, stats.waiting);
        ensure(left == (0, 0, 0, 0, 0), || format!("something is left: {stats:?}"))?;
        let open = self.sessions.values().filter(|session| !session.draining);
        let all = open.fold(Resources::default(), |sum, session| {
            sum.plus(self.hosts[session.host as usize].capacity)
        });
        ensure(stats.free == all, || format!("{} are free of {all}", stats.free))
    }
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
