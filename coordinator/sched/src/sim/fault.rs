//! Every kind of fault, and how each is brought about.

use super::host::{Away, Up};
use super::world::{Happening, World};
use crate::{AttemptEnd, AttemptId, Blame, Event, JobRef};

/// A kind of fault. A run counts those that happened, not those that were planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A worker is killed and comes back with its disk.
    Killed,
    /// A worker is killed and comes back without its disk.
    DiskLost,
    /// A killed worker is back before anybody noticed that it was away.
    Superseded,
    /// A connection breaks and is made again while the session lives.
    CutWithinLease,
    /// A connection breaks for longer than the session lives.
    CutPastLease,
    /// A connection goes silent without breaking, until the lease ends the session.
    Silence,
    /// Messages of a worker take a second and more.
    Delayed,
    /// A result arrives again, because its acknowledgement was lost.
    Duplicated,
    /// A message arrives after one that was sent later, on a newer connection.
    Reordered,
    /// A result arrives from a session that is over.
    ResultAfterLease,
    /// An assignment is lost with its connection.
    AssignmentLost,
    /// Every copy of outputs that somebody needs is gone.
    OutputsLost,
    /// Lost outputs are made again.
    Remade,
    /// A worker evicts outputs that somebody needs.
    Evicted,
    /// An attempt fails because the worker's disk is full.
    DiskFull,
    /// An attempt fails because no peer can be reached.
    PeersCut,
    /// An attempt finds its inputs gone.
    InputsLost,
    /// A job kills its worker.
    Poison,
    /// A build is cancelled.
    BuildCancelled,
    /// A job joins an equal one of another build.
    Joined,
    /// A worker drains, finishes and leaves.
    Drained,
    /// The clock jumps, by less or by more than the lease.
    ClockJump,
    /// The database takes seconds to answer.
    LateAnswer,
    /// A command fails.
    CommandFailed,
    /// A job's time limit passes.
    TimedOut,
    /// A job is killed for want of memory.
    OutOfMemory,
    /// A worker rejects an attempt.
    Rejected,
    /// A worker drops an attempt that nobody cancelled.
    Dropped,
    /// A job ends because all workers of its platform were away for the queue time-out.
    NoWorker,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 29] = [
        Self::Killed,
        Self::DiskLost,
        Self::Superseded,
        Self::CutWithinLease,
        Self::CutPastLease,
        Self::Silence,
        Self::Delayed,
        Self::Duplicated,
        Self::Reordered,
        Self::ResultAfterLease,
        Self::AssignmentLost,
        Self::OutputsLost,
        Self::Remade,
        Self::Evicted,
        Self::DiskFull,
        Self::PeersCut,
        Self::InputsLost,
        Self::Poison,
        Self::BuildCancelled,
        Self::Joined,
        Self::Drained,
        Self::ClockJump,
        Self::LateAnswer,
        Self::CommandFailed,
        Self::TimedOut,
        Self::OutOfMemory,
        Self::Rejected,
        Self::Dropped,
        Self::NoWorker,
    ];
}

/// How long a worker is away whose session shall live.
const SHORT_MS: (u32, u32) = (20, 1_000);
/// How long one is away whose session shall not live.
const LONG_MS: (u32, u32) = (3_500, 5_000);

impl World<'_> {
    pub(super) fn count(&mut self, fault: Fault) {
        *self.report.faults.entry(fault).or_default() += 1;
        self.note(|| format!("fault: {fault:?}"));
    }

    /// Injects a fault if it can happen now. What must meet with something else is prepared, and
    /// counted when it happens.
    pub(super) fn inject(&mut self, fault: Fault) -> Result<(), String> {
        let up: Vec<u32> = self.hosts_where(|host| host.connection.is_some() && !host.draining);
        let busy: Vec<u32> =
            self.hosts_where(|host| host.connection.is_some() && !host.runs.is_empty());
        let (Some(any), busy) = (self.random.one(&up), self.random.one(&busy)) else {
            return Ok(());
        };
        let short_ms = self.random.between(SHORT_MS.0, SHORT_MS.1);
        let long_ms = self.random.between(LONG_MS.0, LONG_MS.1);
        let target = busy.unwrap_or(any);
        match fault {
            Fault::Killed | Fault::OutputsLost => {
                self.count(Fault::Killed);
                self.kill(target, short_ms, true);
            }
            Fault::DiskLost | Fault::Remade => {
                self.count(Fault::DiskLost);
                self.hosts[target as usize].disk.clear();
                self.kill(target, short_ms, true);
            }
            Fault::Superseded => self.kill(target, 5, false),
            Fault::CutWithinLease => {
                self.cut(target, Away { ms: short_ms, noticed: true, loses: true });
            }
            Fault::CutPastLease | Fault::ResultAfterLease => {
                self.cut(target, Away { ms: long_ms, noticed: true, loses: true });
            }
            Fault::Silence => {
                self.count(fault);
                self.cut(target, Away { ms: long_ms + 3_000, noticed: false, loses: true });
            }
            Fault::Delayed => {
                self.count(fault);
                self.hosts[target as usize].delay_ms = self.random.between(1_000, 2_500);
            }
            Fault::Duplicated => self.hosts[target as usize].cut_on_acknowledgement = true,
            Fault::AssignmentLost => self.hosts[any as usize].cut_on_assignment = true,
            Fault::Reordered => self.overtake(target)?,
            Fault::Evicted => self.evict()?,
            Fault::DiskFull => {
                self.hosts[target as usize].full_until = self.now.plus_ms(short_ms);
            }
            Fault::PeersCut | Fault::InputsLost => {
                self.peers_cut_until = self.now.plus_ms(short_ms)
            }
            Fault::Poison => self.submit_poison()?,
            Fault::BuildCancelled => {
                let builds: Vec<_> = self.builds.keys().copied().collect();
                if let Some(build) = self.random.one(&builds) {
                    self.count(fault);
                    self.cancel(build)?;
                }
            }
            Fault::Joined => self.submit_twins()?,
            Fault::Drained => {
                self.count(fault);
                self.hosts[target as usize].draining = true;
                self.send_up(target, Up::Drain);
                let life = self.hosts[target as usize].life;
                self.plan(500, Happening::Leave { host: target, life });
            }
            Fault::ClockJump => {
                self.count(fault);
                let jump_ms = if self.random.percent(50) { short_ms } else { 2 * long_ms };
                self.jump(jump_ms);
            }
            Fault::LateAnswer => {
                self.count(fault);
                self.answers_from = self.now.plus_ms(long_ms);
            }
            Fault::NoWorker => self.empty_a_platform()?,
            Fault::CommandFailed => self.forced.push_back((fault, AttemptEnd::Failed)),
            Fault::TimedOut => self.forced.push_back((fault, AttemptEnd::TimedOut)),
            Fault::OutOfMemory => self.forced.push_back((fault, AttemptEnd::OutOfMemory)),
            Fault::Rejected => self.forced.push_back((fault, AttemptEnd::Rejected)),
            Fault::Dropped => self.forced.push_back((fault, AttemptEnd::Cancelled)),
        }
        Ok(())
    }

    /// A result that is on its way when the connection breaks arrives after the same result on the
    /// next connection.
    fn overtake(&mut self, host: u32) -> Result<(), String> {
        let Some(attempt) = self.hosts[host as usize].runs.keys().next().copied() else {
            return Ok(());
        };
        self.hosts[host as usize].delay_ms = 1_500;
        self.finish(host, attempt);
        self.cut(host, Away { ms: 20, noticed: true, loses: false });
        Ok(())
    }

    /// Some output that is wanted disappears from all disks.
    fn evict(&mut self) -> Result<(), String> {
        let mut wanted: Vec<u64> = Vec::new();
        for books in self.builds.values() {
            wanted.extend(books.jobs.iter().filter_map(|job| job.present));
        }
        let Some(content) = self.random.one(&wanted) else { return Ok(()) };
        self.count(Fault::Evicted);
        for host in &mut self.hosts {
            host.disk.remove(&content);
        }
        self.holders.remove(&content);
        self.content_gone(content)
    }

    /// Every copy of a content is gone: jobs whose outputs it is have lost them.
    pub(super) fn content_gone(&mut self, content: u64) -> Result<(), String> {
        let mut lost: Vec<JobRef> = Vec::new();
        for (build, books) in &self.builds {
            let indices = 0..books.jobs.len() as u32;
            let is_lost = |index: &u32| books.jobs[*index as usize].present == Some(content);
            lost.extend(indices.filter(is_lost).map(|index| JobRef { build: *build, index }));
        }
        for job in lost {
            self.output_lost(job)?;
        }
        Ok(())
    }

    pub(super) fn output_lost(&mut self, job: JobRef) -> Result<(), String> {
        let Some(books) = self.builds.get_mut(&job.build) else { return Ok(()) };
        if books.jobs[job.index as usize].present.take().is_none() {
            return Ok(());
        }
        self.recalled(job);
        self.count(Fault::OutputsLost);
        self.tell(Event::OutputsLost { job })
    }

    /// All workers of a platform say goodbye for longer than the queue time-out, and something asks
    /// for them.
    fn empty_a_platform(&mut self) -> Result<(), String> {
        if self.now < self.emptied_until {
            return Ok(());
        }
        let platform = self.random.below(2);
        let away_ms = self.options.config.queue_timeout_ms + 3_000;
        for host in self.hosts_where(|host| host.platform == platform) {
            self.kill(host, away_ms, true);
        }
        self.emptied_until = self.now.plus_ms(away_ms);
        self.submit_for(platform)
    }

    /// The clock jumps while the coordinator stands still: what would have happened meanwhile
    /// happens then.
    fn jump(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.jumped_ms += ms;
        self.note(|| format!("the clock jumps by {ms} ms"));
        // Silence may have been noticed for as long: leases are looked at before messages.
        if ms > super::driver::LEASE_MS {
            let sessions: Vec<_> = self.sessions.keys().copied().collect();
            for session in sessions {
                self.plan_first(Happening::Expire { session });
            }
        }
    }

    /// How an attempt ends that its worker could run.
    pub(super) fn draw_end(&mut self, host: u32, job: JobRef, attempt: AttemptId) -> AttemptEnd {
        let now = self.now;
        if self.hosts[host as usize].full_until > now {
            self.count(Fault::DiskFull);
            return AttemptEnd::Infra { blame: Blame::Worker, lost_inputs: false };
        }
        let remote = self.remote_inputs(host, job);
        if self.peers_cut_until > now
            && let Some(dep) = remote
        {
            if self.random.percent(50) {
                self.count(Fault::PeersCut);
                return AttemptEnd::Infra { blame: Blame::Unknown, lost_inputs: false };
            }
            self.count(Fault::InputsLost);
            self.lost_deps.insert(attempt, dep);
            return AttemptEnd::Infra { blame: Blame::Inputs, lost_inputs: true };
        }
        if self.storming
            && let Some((fault, end)) = self.forced.pop_front()
        {
            self.count(fault);
            return end;
        }
        AttemptEnd::Succeeded
    }
}
