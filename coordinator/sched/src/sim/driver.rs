//! The driver: what the coordinator does about sessions, results and look-ups.

use std::collections::BTreeSet;

use super::books::asked;
use super::fault::Fault;
use super::host::{Down, Up};
use super::world::{Happening, World};
use crate::{
    ActionKey, Answer, AttemptEnd, AttemptId, Blame, Event, JobRef, Resources, StoreId, Time,
    WorkerId,
};

/// Silence on a connection after which its session ends.
pub(super) const LEASE_MS: u64 = 3_000;
/// How long a worker whose connection broke may take to come back.
const RECONNECT_MS: u64 = 2_000;

#[derive(Debug)]
pub(super) struct Session {
    pub(super) host: u32,
    pub(super) connection: Option<u64>,
    closed_at: Time,
    backlog: Vec<Down>,
    pub(super) draining: bool,
    /// Infrastructure errors for which it may be to blame, since it last ran something.
    pub(super) errors_in_row: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) job: JobRef,
    pub(super) key: Option<u64>,
    pub(super) session: WorkerId,
    pub(super) resources: Resources,
    pub(super) cancelled: bool,
}

impl World<'_> {
    pub(super) fn up(&mut self, host: u32, connection: u64, message: Up) -> Result<(), String> {
        if self.broken.contains(&connection) && !matches!(message, Up::Closed) {
            return Ok(());
        }
        let current = self.by_host.get(&host).copied();
        let heard = current.filter(|id| self.sessions[id].connection == Some(connection));
        match message {
            Up::Hello { resume, known } => self.hello(host, connection, resume, &known),
            Up::Closed => {
                let Some(id) = heard else { return Ok(()) };
                if let Some(session) = self.sessions.get_mut(&id) {
                    (session.connection, session.closed_at) = (None, self.now);
                }
                let idle = !self.attempts.values().any(|attempt| attempt.session == id);
                if self.sessions[&id].draining && idle {
                    return self.end_session(id, false);
                }
                self.plan(RECONNECT_MS, Happening::Lease { session: id, connection: None });
                Ok(())
            }
            Up::Started(attempt) => match heard {
                Some(_) => self.tell(Event::AttemptStarted { attempt }),
                None => Ok(()),
            },
            Up::Drain => {
                let Some(session) = heard.and_then(|id| self.sessions.get_mut(&id)) else {
                    return Ok(());
                };
                session.draining = true;
                let worker = heard.unwrap_or(WorkerId(0));
                self.tell(Event::WorkerDrained { worker })
            }
            Up::Ended { session, attempt, end, content } => {
                if heard.is_some() && heard == session {
                    return self.result(host, connection, attempt, end, content);
                }
                // From an older connection or from an older session.
                match session == current && session.is_some() {
                    true => self.count(Fault::Reordered),
                    false => self.count(Fault::ResultAfterLease),
                }
                if heard.is_some() {
                    self.send_down(host, connection, Down::Acknowledge(attempt));
                }
                self.tell_stale(attempt, end)
            }
        }
    }

    /// A careless driver: what it does not know (any more), the scheduler must not know either.
    fn tell_stale(&mut self, attempt: AttemptId, end: AttemptEnd) -> Result<(), String> {
        match self.attempts.contains_key(&attempt) {
            true => Ok(()),
            false => self.tell(Event::AttemptEnded { attempt, end }),
        }
    }

    fn hello(
        &mut self,
        host: u32,
        connection: u64,
        resume: Option<WorkerId>,
        known: &BTreeSet<AttemptId>,
    ) -> Result<(), String> {
        let current = self.by_host.get(&host).copied();
        let Some(id) = resume.filter(|resume| current == Some(*resume)) else {
            if resume.is_some() {
                self.count(Fault::CutPastLease);
            }
            if let Some(older) = current {
                if self.sessions[&older].connection.is_some() {
                    self.count(Fault::Superseded);
                }
                self.end_session(older, true)?;
                // Late news of the older one say nothing about the newer one.
                self.begin_session(host, connection)?;
                self.tell(Event::WorkerDrained { worker: older })?;
                return self.tell(Event::WorkerLeft { worker: older, lost: true });
            }
            return self.begin_session(host, connection);
        };
        self.count(Fault::CutWithinLease);
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        session.connection = Some(connection);
        let backlog = std::mem::take(&mut session.backlog);
        self.send_down(host, connection, Down::Welcome { session: id, resumed: true });
        let mine = self.attempts.iter().filter(|(_, attempt)| attempt.session == id);
        let mut unknown: BTreeSet<AttemptId> = mine.map(|(attempt, _)| *attempt).collect();
        for message in backlog {
            if let Down::Assign { attempt, .. } = message {
                unknown.remove(&attempt);
            }
            self.send_down(host, connection, message);
        }
        for attempt in known {
            unknown.remove(attempt);
            if self.attempts.get(attempt).is_some_and(|attempt| attempt.cancelled) {
                self.send_down(host, connection, Down::Cancel(*attempt));
            }
        }
        for attempt in unknown {
            self.count(Fault::AssignmentLost);
            self.conclude(attempt, AttemptEnd::Rejected, 0)?;
        }
        Ok(())
    }

    fn begin_session(&mut self, host: u32, connection: u64) -> Result<(), String> {
        let worker = WorkerId(self.report.steps as u32);
        let session = Session {
            host,
            connection: Some(connection),
            closed_at: self.now,
            backlog: Vec::new(),
            draining: false,
            errors_in_row: 0,
        };
        self.sessions.insert(worker, session);
        self.by_host.insert(host, worker);
        self.send_down(host, connection, Down::Welcome { session: worker, resumed: false });
        let state = &self.hosts[host as usize];
        self.tell(Event::WorkerJoined {
            worker,
            store: StoreId(host),
            properties: asked(state.platform + 1),
            capacity: state.capacity,
            draining: false,
        })
    }

    pub(super) fn lease(&mut self, id: WorkerId, connection: Option<u64>) -> Result<(), String> {
        let Some(session) = self.sessions.get(&id) else { return Ok(()) };
        let away = session.closed_at.plus_ms(RECONNECT_MS) <= self.now;
        if session.connection == connection && (connection.is_some() || away) {
            return self.end_session(id, true);
        }
        Ok(())
    }

    /// First nothing new goes there, then its outputs are lost, then its attempts are over.
    pub(super) fn end_session(&mut self, id: WorkerId, lost: bool) -> Result<(), String> {
        let Some(session) = self.sessions.remove(&id) else { return Ok(()) };
        self.by_host.remove(&session.host);
        if let Some(connection) = session.connection {
            self.send_down(session.host, connection, Down::Closed);
        }
        self.tell(Event::WorkerDrained { worker: id })?;
        let mut gone = Vec::new();
        self.holders.retain(|content, hosts| {
            if hosts.remove(&session.host) && hosts.is_empty() {
                gone.push(*content);
            }
            !hosts.is_empty()
        });
        for content in gone {
            self.content_gone(content)?;
        }
        let mut over = Vec::new();
        self.attempts.retain(|_, attempt| {
            let ends = attempt.session == id;
            if ends {
                over.push(*attempt);
            }
            !ends
        });
        for attempt in &over {
            self.worker_lost_under(attempt.job, lost && !attempt.cancelled)?;
        }
        self.tell(Event::WorkerLeft { worker: id, lost })?;
        for attempt in over {
            self.waits_again(attempt.job, attempt.resources, attempt.cancelled);
        }
        Ok(())
    }

    /// A result from the live session.
    fn result(
        &mut self,
        host: u32,
        connection: u64,
        attempt: AttemptId,
        end: AttemptEnd,
        content: u64,
    ) -> Result<(), String> {
        if self.attempts.contains_key(&attempt) {
            self.conclude(attempt, end, content)?;
        } else {
            self.count(Fault::Duplicated);
            self.tell_stale(attempt, end)?;
        }
        // Its session may have ended through what followed.
        if self
            .by_host
            .get(&host)
            .is_some_and(|id| self.sessions[id].connection == Some(connection))
        {
            self.send_down(host, connection, Down::Acknowledge(attempt));
        }
        Ok(())
    }

    fn conclude(&mut self, id: AttemptId, end: AttemptEnd, content: u64) -> Result<(), String> {
        if let Some(dep) = self.lost_deps.remove(&id)
            && let Some(gone) = self.builds.get(&dep.build)
            && let Some(content) = gone.jobs[dep.index as usize].present
        {
            self.holders.remove(&content);
            self.content_gone(content)?;
        }
        let Some(attempt) = self.attempts.remove(&id) else { return Ok(()) };
        let mut resources = attempt.resources;
        if let Some(session) = self.sessions.get_mut(&attempt.session) {
            session.errors_in_row = match end {
                AttemptEnd::Infra { blame: Blame::Worker | Blame::Unknown, lost_inputs: false } => {
                    session.errors_in_row + 1
                }
                AttemptEnd::Infra { .. } | AttemptEnd::Cancelled | AttemptEnd::Rejected => {
                    session.errors_in_row
                }
                _ => 0,
            };
            if end == AttemptEnd::Succeeded {
                self.succeeded.insert(id, content);
                self.holders.entry(content).or_default().insert(session.host);
                if let Some(key) = attempt.key {
                    self.cache.insert(key, content);
                }
            }
        }
        if end == AttemptEnd::OutOfMemory {
            resources.memory_bytes *= 2;
        }
        self.tell(Event::AttemptEnded { attempt: id, end })?;
        self.waits_again(attempt.job, resources, attempt.cancelled);
        Ok(())
    }

    pub(super) fn send_to(&mut self, id: WorkerId, message: Down) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let host = session.host;
        match session.connection {
            Some(connection) => self.send_down(host, connection, message),
            None => session.backlog.push(message),
        }
    }

    pub(super) fn cancel_attempt(&mut self, id: AttemptId) -> Result<(), String> {
        let attempt = self.attempts.get_mut(&id);
        let attempt = attempt.ok_or_else(|| format!("{id:?} is cancelled but does not run"))?;
        attempt.cancelled = true;
        let session = attempt.session;
        self.send_to(session, Down::Cancel(id));
        Ok(())
    }

    /// The action of a job is known: it follows from its work and from what its dependencies made.
    pub(super) fn look_up(&mut self, job: JobRef) -> Result<(), String> {
        let key = self.key_of(job)?;
        let late = self.answers_from.ms_since(self.now);
        let in_ms = late + self.random.between(0, 5);
        self.plan(in_ms, Happening::Answer { job, key });
        Ok(())
    }

    pub(super) fn answer(&mut self, job: JobRef, key: u64) -> Result<(), String> {
        let Some(books) = self.builds.get_mut(&job.build) else { return Ok(()) };
        let book = &mut books.jobs[job.index as usize];
        book.key = book.is_joinable.then_some(key);
        let found = self.cache.get(&key).copied().filter(|_| book.is_joinable);
        let on = |host: &u32, content: u64| self.hosts[*host as usize].disk.contains(&content);
        if let Some(content) = found {
            let hosts: BTreeSet<u32> =
                self.by_host.keys().copied().filter(|host| on(host, content)).collect();
            if !hosts.is_empty() {
                book.hit = Some(content);
                let holders = hosts.iter().map(|host| StoreId(*host)).collect();
                self.holders.insert(content, hosts);
                return self.tell(Event::LookedUp { job, answer: Answer::Hit { holders } });
            }
        }
        let key = book.key.map(|key| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&key.to_le_bytes());
            ActionKey(bytes)
        });
        self.begins_to_wait(job);
        self.tell(Event::LookedUp { job, answer: Answer::Miss { key } })
    }
}
