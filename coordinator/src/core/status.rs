//! What is going on, and why what waits does.

use std::collections::HashSet;

use distbuild_proto::wire;
use distbuild_proto::wire::build_event::Body;
use distbuild_sched as sched;
use distbuild_sched::{BuildId, JobRef};

use super::Core;
use super::builds::{Build, JobRecord, number};

impl Core {
    pub(super) fn status(&self) -> wire::StatusResponse {
        let stats = self.scheduler.stats();
        let summary = |build: &Build| build.summary(wire::Outcome::Unspecified, false);
        wire::StatusResponse {
            queued_jobs: stats.queued as u64,
            running_jobs: stats.running as u64,
            waiting_jobs: stats.waiting as u64,
            workers: u32::try_from(self.sessions.len()).unwrap_or(u32::MAX),
            builds: self.builds.values().filter(|build| build.is_listed()).map(summary).collect(),
            stalls: stats.stalls,
            last_stall: self.last_stall.clone(),
        }
    }

    /// Tells clients why a build that runs nothing waits.
    pub(super) fn report_waiting(&mut self) {
        let running: HashSet<BuildId> =
            self.attempts.values().map(|attempt| attempt.job.build).collect();
        let ids: Vec<BuildId> = self.builds.keys().copied().collect();
        for id in ids {
            let Some(build) = self.builds.get_mut(&id) else { continue };
            let prepared = |job: &JobRecord| job.prepared.is_some();
            let first = || build.jobs.iter().position(prepared).map(number);
            let Some(index) = (!running.contains(&id)).then(first).flatten() else {
                build.last_waiting = None;
                continue;
            };
            let job = JobRef { build: id, index };
            let waits = self.scheduler.why_waiting(job);
            let Some(reason) = waits.and_then(|reason| self.waiting_text(job, reason)) else {
                continue;
            };
            let Some(build) = self.builds.get_mut(&id) else { continue };
            if build.last_waiting.as_ref() != Some(&reason) {
                let job = build.client_number(job);
                build.last_waiting = Some(reason.clone());
                build.events.append(Body::JobWaiting(wire::JobWaiting { job, reason }));
            }
        }
    }

    /// The scheduler's watchdog has found a job that was queued although a worker had room for it.
    pub(super) fn stalled(&mut self, stall: sched::Stall) {
        let sched::Stall { job, since } = stall;
        let Some(build) = self.builds.get(&job.build) else { return };
        let job_name = build.work.name(job.index as usize);
        let waited_ms = self.now().ms_since(since);
        tracing::warn!(
            build.id = build.public_id,
            job.name = job_name,
            waited_ms,
            "capacity is free and the queue is not empty: the scheduler has lost a wake-up, which \
             is put right now"
        );
        let seconds = waited_ms / 1000;
        self.last_stall = format!(
            "job {job_name:?} of build {} was queued for {seconds} s although a worker had room for it",
            build.public_id
        );
    }

    /// Why a job waits, for people; none if it is about to go on.
    fn waiting_text(&self, job: JobRef, reason: sched::WaitReason) -> Option<String> {
        match reason {
            sched::WaitReason::NoWorker { reason, .. } => Some(self.no_worker_text(job, reason)),
            sched::WaitReason::Busy => Some("all workers that could run it are busy".to_owned()),
            sched::WaitReason::Reserved { .. } => {
                Some("a worker is being emptied to make room for it".to_owned())
            }
            sched::WaitReason::Dependencies { .. }
            | sched::WaitReason::LookUp
            | sched::WaitReason::Placement
            | sched::WaitReason::Running { .. } => None,
        }
    }
}
