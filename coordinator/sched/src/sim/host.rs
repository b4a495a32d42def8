//! Hosts: what a worker does, and the connection that it does it over.

use std::collections::{BTreeMap, BTreeSet};

use super::driver::LEASE_MS;
use super::fault::Fault;
use super::world::{Happening, World};
use crate::{AttemptEnd, AttemptId, JobRef, Resources, Time, WorkerId};

/// The longest run of an attempt.
pub(super) const LONGEST_RUN_MS: u64 = 400;

#[derive(Debug)]
pub(super) struct Host {
    pub(super) platform: u32,
    pub(super) capacity: Resources,
    pub(super) connection: Option<u64>,
    pub(super) session: Option<WorkerId>,
    pub(super) runs: BTreeMap<AttemptId, Run>,
    /// Not acknowledged.
    results: BTreeMap<AttemptId, (AttemptEnd, u64)>,
    /// Contents.
    pub(super) disk: BTreeSet<u64>,
    pub(super) full_until: Time,
    pub(super) draining: bool,
    /// What messages of this connection take beyond the usual.
    pub(super) delay_ms: u64,
    pub(super) cut_on_acknowledgement: bool,
    pub(super) cut_on_assignment: bool,
    /// When the latest message arrives, up and down: a connection keeps the order.
    arrivals: [Time; 2],
    /// Changes with every life of the process.
    pub(super) life: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) job: JobRef,
    resources: Resources,
    content: u64,
}

/// How a connection is lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Away {
    pub(super) ms: u64,
    /// The coordinator sees it break.
    pub(super) noticed: bool,
    /// What was on its way to the coordinator is lost.
    pub(super) loses: bool,
}

/// To the coordinator.
#[derive(Clone, Debug)]
pub(super) enum Up {
    Hello {
        resume: Option<WorkerId>,
        known: BTreeSet<AttemptId>,
    },
    Started(AttemptId),
    Ended {
        session: Option<WorkerId>,
        attempt: AttemptId,
        end: AttemptEnd,
        content: u64,
    },
    Drain,
    /// The connection has broken.
    Closed,
}

/// To a worker.
#[derive(Clone, Debug)]
pub(super) enum Down {
    Welcome {
        session: WorkerId,
        resumed: bool,
    },
    Assign {
        attempt: AttemptId,
        job: JobRef,
        resources: Resources,
        content: u64,
        poison: bool,
    },
    Cancel(AttemptId),
    Acknowledge(AttemptId),
    /// The session is over: the coordinator has closed the connection.
    Closed,
}

impl Host {
    pub(super) fn new(platform: u32, capacity: Resources) -> Self {
        Self {
            platform,
            capacity,
            connection: None,
            session: None,
            runs: BTreeMap::new(),
            results: BTreeMap::new(),
            disk: BTreeSet::new(),
            full_until: Time(0),
            draining: false,
            delay_ms: 0,
            cut_on_acknowledgement: false,
            cut_on_assignment: false,
            arrivals: [Time(0); 2],
            life: 0,
        }
    }

    fn free(&self) -> Option<Resources> {
        self.runs.values().try_fold(self.capacity, |free, run| free.minus(run.resources))
    }
}

impl World<'_> {
    pub(super) fn hosts_where(&self, is: impl Fn(&super::host::Host) -> bool) -> Vec<u32> {
        (0..self.hosts.len() as u32).filter(|host| is(&self.hosts[*host as usize])).collect()
    }

    fn arrival(&mut self, host: u32, direction: usize) -> u64 {
        let usual = self.random.between(0, 4);
        let now = self.now;
        let host = &mut self.hosts[host as usize];
        let at = now.plus_ms(usual + host.delay_ms).max(host.arrivals[direction]);
        host.arrivals[direction] = at;
        at.ms_since(now)
    }

    pub(super) fn send_up(&mut self, host: u32, message: Up) {
        if let Some(connection) = self.hosts[host as usize].connection {
            let in_ms = self.arrival(host, 0);
            self.plan(in_ms, Happening::Up { host, connection, message });
        }
    }

    pub(super) fn send_down(&mut self, host: u32, connection: u64, message: Down) {
        let state = &mut self.hosts[host as usize];
        let lost = match message {
            Down::Acknowledge(_) => std::mem::take(&mut state.cut_on_acknowledgement),
            Down::Assign { .. } => std::mem::take(&mut state.cut_on_assignment),
            Down::Welcome { .. } | Down::Cancel(_) | Down::Closed => false,
        };
        if lost && state.connection == Some(connection) {
            return self.cut(host, Away { ms: 20, noticed: true, loses: false });
        }
        let in_ms = self.arrival(host, 1);
        self.plan(in_ms, Happening::Down { host, connection, message });
    }

    /// The worker dials.
    pub(super) fn connect(&mut self, host: u32) {
        self.connections += 1;
        let state = &mut self.hosts[host as usize];
        state.connection = Some(self.connections);
        (state.delay_ms, state.arrivals) = (0, [self.now; 2]);
        let known = state.runs.keys().chain(state.results.keys()).copied().collect();
        let (resume, results) = (state.session, state.results.clone());
        self.send_up(host, Up::Hello { resume, known });
        if self.hosts[host as usize].draining {
            self.send_up(host, Up::Drain);
        }
        for (attempt, (end, content)) in results {
            self.send_up(host, Up::Ended { session: resume, attempt, end, content });
        }
    }

    /// The connection breaks; the worker dials again later.
    pub(super) fn cut(&mut self, host: u32, away: Away) {
        let Some(connection) = self.hosts[host as usize].connection else { return };
        self.note(|| format!("host {host} is cut off: {away:?}"));
        if away.noticed {
            self.send_up(host, Up::Closed);
        }
        if away.loses {
            self.broken.insert(connection);
        }
        let state = &mut self.hosts[host as usize];
        state.connection = None;
        if let Some(session) = state.session
            && !away.noticed
        {
            let connection = Some(connection);
            self.plan(LEASE_MS, Happening::Lease { session, connection });
        }
        let life = self.hosts[host as usize].life;
        self.plan(away.ms, Happening::Dial { host, life });
    }

    /// The process dies; another one starts later.
    pub(super) fn kill(&mut self, host: u32, back_in_ms: u64, noticed: bool) {
        self.cut(host, Away { ms: back_in_ms, noticed, loses: true });
        let state = &mut self.hosts[host as usize];
        state.life += 1;
        state.runs.clear();
        state.results.clear();
        (state.session, state.draining) = (None, false);
        (state.cut_on_acknowledgement, state.cut_on_assignment) = (false, false);
        let life = state.life;
        self.plan(back_in_ms, Happening::Dial { host, life });
    }

    pub(super) fn dial(&mut self, host: u32, life: u32) {
        let state = &self.hosts[host as usize];
        if state.life == life && state.connection.is_none() {
            self.connect(host);
        }
    }

    pub(super) fn down(&mut self, host: u32, connection: u64, message: Down) -> Result<(), String> {
        if self.hosts[host as usize].connection != Some(connection) {
            return Ok(());
        }
        match message {
            Down::Welcome { session, resumed } => {
                let state = &mut self.hosts[host as usize];
                if !resumed {
                    // What it ran for an earlier session nobody waits for.
                    state.runs.clear();
                    state.results.clear();
                    state.draining = false;
                }
                state.session = Some(session);
            }
            Down::Assign { attempt, job, resources, content, poison } => {
                let state = &mut self.hosts[host as usize];
                state.runs.insert(attempt, Run { job, resources, content });
                if state.free().is_none() {
                    return Err(format!("host {host} is over-committed with {attempt:?}"));
                }
                let life = state.life;
                self.send_up(host, Up::Started(attempt));
                if poison {
                    let in_ms = self.random.between(1, 20);
                    self.plan(in_ms, Happening::Poisoned { host, attempt });
                } else {
                    let runs_ms = self.random.between(2, LONGEST_RUN_MS as u32);
                    self.plan(runs_ms, Happening::Finish { host, life, attempt });
                }
            }
            Down::Cancel(attempt) => {
                if let Some(run) = self.hosts[host as usize].runs.remove(&attempt) {
                    self.report_end(host, attempt, AttemptEnd::Cancelled, run.content);
                }
            }
            Down::Closed => self.cut(host, Away { ms: 50, noticed: true, loses: true }),
            Down::Acknowledge(attempt) => {
                self.hosts[host as usize].results.remove(&attempt);
                self.leave_if_drained(host);
            }
        }
        Ok(())
    }

    pub(super) fn poisoned(&mut self, host: u32, attempt: AttemptId) {
        if self.hosts[host as usize].runs.contains_key(&attempt) {
            self.count(Fault::Poison);
            let back_in_ms = self.random.between(50, 500);
            self.kill(host, back_in_ms, true);
        }
    }

    pub(super) fn finish_in_life(&mut self, host: u32, life: u32, attempt: AttemptId) {
        if self.hosts[host as usize].life == life {
            self.finish(host, attempt);
        }
    }

    /// A run comes to its end.
    pub(super) fn finish(&mut self, host: u32, attempt: AttemptId) {
        let Some(run) = self.hosts[host as usize].runs.get(&attempt).copied() else { return };
        let end = self.draw_end(host, run.job, attempt);
        self.hosts[host as usize].runs.remove(&attempt);
        if end == AttemptEnd::Succeeded {
            self.hosts[host as usize].disk.insert(run.content);
        }
        self.report_end(host, attempt, end, run.content);
    }

    fn report_end(&mut self, host: u32, attempt: AttemptId, end: AttemptEnd, content: u64) {
        let state = &mut self.hosts[host as usize];
        state.results.insert(attempt, (end, content));
        let session = state.session;
        self.send_up(host, Up::Ended { session, attempt, end, content });
    }

    /// A draining worker looks now and then whether it may go.
    pub(super) fn leave_some_time(&mut self, host: u32, life: u32) {
        if self.hosts[host as usize].life == life && self.hosts[host as usize].draining {
            self.leave_if_drained(host);
            self.plan(500, Happening::Leave { host, life });
        }
    }

    /// A draining worker whose last result is acknowledged goes, and another takes its place.
    fn leave_if_drained(&mut self, host: u32) {
        let state = &self.hosts[host as usize];
        if state.draining && state.runs.is_empty() && state.results.is_empty() {
            self.kill(host, 300, true);
        }
    }
}
