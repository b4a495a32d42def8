//! Attempts that workers ran before this coordinator was started: until a job claims one, or nobody does in time.
//!
//! An attempt that a worker brought is for nobody until the job that it is for, or one with an equal action, is
//! looked up. Its end may come before that and waits, not acknowledged, and so does what the worker asks about its
//! inputs. One that nobody claims is cancelled.

use bytes::Bytes;
use distbuild_proto::wire;
use distbuild_proto::wire::build_event::Body;
use distbuild_proto::wire::to_worker;
use distbuild_sched as sched;
use distbuild_sched::{AttemptId, JobRef};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Core;
use super::attempts::Attempt;
use super::resume::{Unclaimed, lost};
use crate::locator::Session as SessionId;

/// Requests for places that wait with attempts that nobody has claimed; beyond, they are answered at once.
const MAX_PARKED: usize = 4096;

impl Core {
    /// Takes over the attempts that a worker brings from before the start.
    pub(super) fn reattach(&mut self, session: SessionId, held: Vec<wire::HeldAttempt>) {
        let Some(worker) = self.sessions.get(session).map(|entry| entry.worker) else {
            return;
        };
        let now = self.now();
        for held in held {
            let (attempt, Some(origin)) = (AttemptId(held.attempt), held.origin) else { continue };
            if attempt >= self.recovery.first_attempt {
                continue;
            }
            let asked = held.resources.unwrap_or_default();
            let resources = sched::Resources::new(asked.milli_cores, asked.memory_bytes);
            self.scheduler.handle(now, sched::Event::Reattached { attempt, worker, resources });
            let goes_on = self.recovery.unclaimed_until > Instant::now()
                && (self.recovery.builds.contains_key(&origin.build_id)
                    || self.build_by_name(&origin.build_id).is_some());
            self.recovery.by_key.insert((origin.action_key.clone(), attempt));
            let unclaimed = Unclaimed { session, origin, report: None, dropped: false };
            self.recovery.unclaimed.insert(attempt, unclaimed);
            if !goes_on {
                self.drop_unclaimed(attempt);
            }
        }
    }

    /// The attempt that runs what a job is to run, if there is one; the job claims it.
    pub(super) fn claim(&mut self, job: JobRef, joinable: bool) -> Option<AttemptId> {
        if self.recovery.unclaimed.is_empty() {
            return None;
        }
        let build = self.builds.get(&job.build)?;
        let key = Bytes::copy_from_slice(&build.job(job).prepared.as_ref()?.key);
        let (name, client_number) = (&build.public_id, build.client_number(job));
        let equal = self.recovery.by_key.range((key.clone(), AttemptId(0))..);
        let equal = equal.take_while(|(other, _)| *other == key).map(|(_, id)| *id);
        let mut found = None;
        for id in equal {
            let Some(it) = self.recovery.unclaimed.get(&id).filter(|it| !it.dropped) else {
                continue;
            };
            let own = it.origin.build_id == *name && it.origin.job == client_number;
            if own {
                found = Some(id);
                break;
            }
            if joinable && it.origin.shared && found.is_none() {
                found = Some(id);
            }
        }
        let id = found?;
        let claimed = self.recovery.remove(id)?;
        self.recovery.claimed.insert(id, claimed);
        Some(id)
    }

    /// The scheduler has given a claimed attempt to its job.
    pub(super) fn adopted(&mut self, id: AttemptId, job: JobRef) {
        let Some(Unclaimed { session, origin, report, .. }) = self.recovery.claimed.remove(&id)
        else {
            return;
        };
        let Some(worker) = self.sessions.get(session).map(|entry| entry.name.clone()) else {
            return;
        };
        let Some(build) = self.builds.get_mut(&job.build) else {
            return;
        };
        let client_number = build.client_number(job);
        let own = origin.build_id == build.public_id && origin.job == client_number;
        let before = build.earlier_attempts(job);
        let number = if own { origin.number } else { before + 1 };
        let heard = own && build.hears_of(job, number);
        build.earlier.insert(job.index, before.max(number));
        if heard && let Some(resumed) = &mut build.resumed {
            resumed.attempts.remove(&job.index);
        }
        if !heard {
            build.events.append(Body::AttemptStarted(wire::AttemptStarted {
                job: client_number,
                number,
                worker: worker.clone(),
            }));
        }
        self.attempts.insert(id, Attempt::adopted(job, number, session, worker));
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.running.insert(id);
        }
        if let Some(report) = report {
            self.attempt_ended(session, report);
        }
        let of_attempt = |(request, _): &mut (wire::LocateRequest, _)| request.attempt == id.0;
        let parked: Vec<_> = self.recovery.parked.extract_if(.., of_attempt).collect();
        parked.iter().for_each(|(request, reply)| self.locate(request, reply));
    }

    /// An attempt that no job has claimed, or whose claim came to nothing, is cancelled.
    pub(super) fn drop_unclaimed(&mut self, id: AttemptId) {
        if let Some(claimed) = self.recovery.claimed.remove(&id) {
            self.recovery.unclaimed.insert(id, claimed);
        }
        let Some(unclaimed) = self.recovery.unclaimed.get_mut(&id) else {
            return;
        };
        unclaimed.dropped = true;
        let (session, has_ended) = (unclaimed.session, unclaimed.report.is_some());
        if has_ended {
            self.end_unclaimed(id);
        } else {
            let cancel = wire::CancelAttempt { attempt: id.0 };
            self.send_to(session, to_worker::Body::CancelAttempt(cancel));
        }
    }

    /// A worker reports the end of an attempt that nobody has claimed; true if it is one.
    pub(super) fn unclaimed_ended(
        &mut self,
        session: SessionId,
        ended: &wire::AttemptEnded,
    ) -> bool {
        let id = AttemptId(ended.attempt);
        let recovery = &mut self.recovery;
        let brought = recovery.unclaimed.get_mut(&id).or(recovery.claimed.get_mut(&id));
        let Some(brought) = brought.filter(|it| it.session == session) else {
            return false;
        };
        brought.report = Some(ended.clone());
        if brought.dropped {
            self.end_unclaimed(id);
        }
        true
    }

    fn end_unclaimed(&mut self, id: AttemptId) {
        let Some(unclaimed) = self.recovery.remove(id) else { return };
        self.acknowledge(unclaimed.session, id);
        let end = sched::AttemptEnd::Cancelled;
        self.scheduler.handle(self.now(), sched::Event::AttemptEnded { attempt: id, end });
        self.close_heard(&unclaimed.origin);
    }

    /// A session has ended, and with it what it brought.
    pub(super) fn unclaimed_of_ended(&mut self, session: SessionId) {
        let of_session = |(_, it): &(&AttemptId, &Unclaimed)| it.session == session;
        let ids: Vec<_> =
            self.recovery.unclaimed.iter().filter(of_session).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(unclaimed) = self.recovery.remove(id) {
                self.close_heard(&unclaimed.origin);
            }
        }
    }

    /// The client was told that this attempt runs, and nothing comes of it.
    fn close_heard(&mut self, origin: &wire::AttemptOrigin) {
        let id = self.build_by_name(&origin.build_id);
        let Some(build) = id.and_then(|id| self.builds.get_mut(&id)) else {
            return;
        };
        let Some(index) = build.work.position(origin.job) else { return };
        let Some(resumed) = &mut build.resumed else { return };
        let heard = resumed.attempts.get_mut(&index);
        if let Some(heard) = heard.filter(|it| it.running && it.number == origin.number) {
            heard.running = false;
            build.events.append(Body::AttemptFinished(lost(heard)));
        }
    }

    /// Keeps a request about an attempt that nobody has claimed yet; false if it is not about one.
    pub(super) fn park(
        &mut self,
        request: &wire::LocateRequest,
        reply: &mpsc::Sender<wire::Located>,
    ) -> bool {
        let id = AttemptId(request.attempt);
        let waits = id < self.recovery.first_attempt
            && !self.attempts.contains_key(&id)
            && Instant::now() < self.recovery.unclaimed_until
            && self.recovery.parked.len() < MAX_PARKED;
        if waits {
            self.recovery.parked.push((request.clone(), reply.clone()));
        }
        waits
    }
}
