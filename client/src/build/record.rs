//! `Record`: what is known of a build so far, event by event.
//!
//! It holds counts and attempts, never bytes, and decides nothing: the session reads it, the display
//! shows it, the summary is made of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::wire::build_event::Body;
use distbuild_proto::wire::{self, Outcome};

use super::plan::Plan;
use crate::exit::Exit;

/// A build as far as it has come.
#[derive(Debug)]
pub(crate) struct Record {
    plan: Arc<Plan>,
    /// Empty until the build has started.
    pub(crate) build_id: String,
    ids: Vec<String>,
    outcomes: BTreeMap<i32, u64>,
    outcome_of: HashMap<u32, i32>,
    /// Output trees of jobs that have succeeded.
    outputs: HashMap<u32, wire::Digest>,
    finished: usize,
    /// Attempts that run, by job and number: on which worker.
    running: BTreeMap<(u32, u32), String>,
    /// Attempts that have ended, in the order of their ends.
    pub(crate) attempts: Vec<Attempt>,
    /// Of jobs that have succeeded: the key of the action that was run, now or earlier.
    pub(crate) runs: BTreeMap<u32, Bytes>,
    /// Jobs for which the run of another action stood, of which all holds that it looked at: its key.
    pub(crate) stood: BTreeMap<u32, Bytes>,
    /// What the coordinator counted; known at the end.
    pub(crate) bytes: wire::ByteCounts,
    /// How the coordinator says that it ended.
    pub(crate) ended: Option<Outcome>,
}

/// One execution of a job.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) job: u32,
    pub(crate) worker: String,
    pub(crate) number: u32,
    pub(crate) outcome: Outcome,
    pub(crate) exit_code: i32,
    pub(crate) timings: wire::Timings,
    pub(crate) files_opened: u32,
    pub(crate) prefetched: wire::PrefetchBytes,
}

impl Record {
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        Self {
            plan,
            build_id: String::new(),
            ids: Vec::new(),
            outcomes: BTreeMap::new(),
            outcome_of: HashMap::new(),
            outputs: HashMap::new(),
            finished: 0,
            running: BTreeMap::new(),
            attempts: Vec::new(),
            runs: BTreeMap::new(),
            stood: BTreeMap::new(),
            bytes: wire::ByteCounts::default(),
            ended: None,
        }
    }

    /// Takes in an event.
    pub(crate) fn apply(&mut self, body: &Body) {
        match body {
            Body::BuildStarted(started) => {
                self.build_id.clone_from(&started.build_id);
                let hex = distbuild_proto::digest::to_hex;
                self.ids = started.job_ids.chunks(20).map(hex).collect();
            }
            Body::AttemptStarted(started) => {
                self.running.insert((started.job, started.number), started.worker.clone());
            }
            Body::AttemptFinished(finished) => self.attempt_finished(finished),
            Body::JobFinished(finished) => {
                self.finished += 1;
                self.set_outcome(finished.job, finished.outcome);
                if let Some(result) = &finished.result
                    && succeeded(finished.outcome())
                {
                    self.runs.insert(finished.job, result.action_key.clone());
                    self.made(finished.job, result);
                }
                if !finished.stood_action_key.is_empty() {
                    self.stood.insert(finished.job, finished.stood_action_key.clone());
                }
            }
            Body::OutputsRemade(wire::OutputsRemade {
                job, outcome, result: Some(result), ..
            }) if Outcome::try_from(*outcome).is_ok_and(succeeded) => {
                self.made(*job, result);
            }
            Body::OutputsRemade(remade) if !succeeded(remade.outcome()) => {
                self.set_outcome(remade.job, Outcome::InfraError.into());
            }
            Body::BuildFinished(finished) => {
                self.ended = Some(finished.outcome());
                self.bytes = finished.bytes.unwrap_or_default();
            }
            Body::OutputsRemade(_) | Body::JobQueued(_) | Body::JobWaiting(_) | Body::Output(_) => {
            }
        }
    }

    fn made(&mut self, job: u32, result: &wire::JobResult) {
        if let Some(root) = &result.output_root {
            self.outputs.insert(job, root.clone());
        }
    }

    /// What is known of jobs that have finished, and of the newest attempts of those that run or may.
    pub(crate) fn heard(&self) -> wire::HeardBatch {
        let finished = self.outcome_of.iter().map(|(job, outcome)| wire::HeardJob {
            job: *job,
            outcome: *outcome,
            output_root: self.outputs.get(job).cloned(),
            action_key: self.runs.get(job).cloned().unwrap_or_default(),
        });
        let mut newest: BTreeMap<u32, wire::HeardAttempt> = BTreeMap::new();
        let ended = self.attempts.iter().map(|it| (it.job, it.number, &it.worker, false));
        let running =
            self.running.iter().map(|((job, number), worker)| (*job, *number, worker, true));
        for (job, number, worker, running) in ended.chain(running) {
            let known = newest.get(&job).map_or(0, |attempt| attempt.number);
            // A job that has finished may be run again, if its outputs were lost.
            let counts = running || !self.outcome_of.contains_key(&job);
            if number >= known && counts {
                let worker = worker.clone();
                newest.insert(job, wire::HeardAttempt { job, number, worker, running });
            }
        }
        let attempts = newest.into_values().collect();
        wire::HeardBatch { finished: finished.collect(), attempts }
    }

    /// A job counts once: under the way in which it ended last.
    fn set_outcome(&mut self, job: u32, outcome: i32) {
        *self.outcomes.entry(outcome).or_default() += 1;
        if let Some(before) = self.outcome_of.insert(job, outcome)
            && let Some(count) = self.outcomes.get_mut(&before)
        {
            *count -= 1;
            if *count == 0 {
                self.outcomes.remove(&before);
            }
        }
    }

    fn attempt_finished(&mut self, finished: &wire::AttemptFinished) {
        self.running.remove(&(finished.job, finished.number));
        self.attempts.push(Attempt {
            job: finished.job,
            worker: finished.worker.clone(),
            number: finished.number,
            outcome: finished.outcome(),
            exit_code: finished.exit_code,
            timings: finished.timings.unwrap_or_default(),
            files_opened: finished.files_opened,
            prefetched: finished.prefetched.unwrap_or_default(),
        });
    }

    /// The jobs of this build.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The public id of a job; empty until the build has started.
    pub(crate) fn id(&self, job: u32) -> &str {
        self.ids.get(job as usize).map_or("", String::as_str)
    }

    /// How many jobs have ended.
    pub(crate) fn finished(&self) -> usize {
        self.finished
    }

    /// How many jobs ended in this way.
    pub(crate) fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome.into()).copied().unwrap_or(0)
    }

    /// How many jobs ended in each way that occurred, in words.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let known = |(outcome, count): (&i32, &u64)| {
            Some((word(Outcome::try_from(*outcome).ok()?), *count))
        };
        self.outcomes.iter().filter_map(known)
    }

    /// The attempts that run now: the job, and on which worker.
    pub(crate) fn running(&self) -> impl ExactSizeIterator<Item = (u32, &str)> {
        self.running.iter().map(|((job, _), worker)| (*job, worker.as_str()))
    }

    /// Accounts for what will not be heard of any more: jobs that have not ended get `outcome`, and
    /// so do their attempts.
    pub(crate) fn close(&mut self, outcome: Outcome) {
        for ((job, number), worker) in std::mem::take(&mut self.running) {
            self.attempts.push(Attempt {
                job,
                worker,
                number,
                outcome,
                exit_code: 0,
                timings: wire::Timings::default(),
                files_opened: 0,
                prefetched: wire::PrefetchBytes::default(),
            });
        }
        let left = self.plan.len().saturating_sub(self.finished);
        if left > 0 {
            *self.outcomes.entry(outcome.into()).or_default() += left as u64;
            self.finished += left;
        }
    }

    /// The exit codes that the jobs' ends ask for.
    pub(crate) fn exits(&self) -> impl Iterator<Item = Exit> {
        let coded = [
            (Outcome::Failed, Exit::JOB_FAILED),
            (Outcome::TimedOut, Exit::JOB_FAILED),
            (Outcome::NoWorker, Exit::NO_WORKER),
            (Outcome::InfraError, Exit::INFRASTRUCTURE),
        ];
        coded.into_iter().filter(|(outcome, _)| self.count(*outcome) > 0).map(|(_, exit)| exit)
    }
}

/// Whether a job that ended so has outputs.
pub(crate) fn succeeded(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Executed | Outcome::Cached | Outcome::CutOff)
}

/// An outcome in the words of the summary and the events.
pub(crate) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "unknown",
        Outcome::Executed => "executed",
        Outcome::Cached => "cached",
        Outcome::CutOff => "cut_off",
        Outcome::Failed => "failed",
        Outcome::TimedOut => "timed_out",
        Outcome::InfraError => "infra_error",
        Outcome::Skipped => "skipped",
        Outcome::Cancelled => "cancelled",
        Outcome::NoWorker => "no_worker",
    }
}

/// An outcome of a build or an attempt, where success is one word.
pub(crate) fn result_word(outcome: Outcome) -> &'static str {
    if succeeded(outcome) { "succeeded" } else { word(outcome) }
}
