//! How attempts, jobs and builds end badly.

use super::rig::{BROKEN, GIB, Rig, at, inner, job, key};
use crate::{
    AttemptEnd, Blame, BuildId, Config, Effect, Event, InfraReason, JobSpec, NoWorkerReason,
    Outcome, Resources,
};

fn infra(reason: InfraReason) -> Outcome {
    Outcome::InfraError { reason }
}

/// One worker for every attempt, so that a retry always finds another.
fn one_job(workers: u32) -> Rig {
    let mut rig = Rig::new();
    (1..=workers).for_each(|worker| rig.join(worker, 4));
    rig.submit(1, &[(&[], job(1))]);
    rig.miss();
    rig
}

#[test]
fn a_failed_command_is_never_retried() {
    for end in [AttemptEnd::Failed, AttemptEnd::TimedOut] {
        let mut rig = one_job(2);
        let (_, attempt) = rig.runs(at(1, 0));
        rig.end(attempt, end);
        let outcome = match end {
            AttemptEnd::Failed => Outcome::Failed { attempt },
            _ => Outcome::TimedOut { attempt },
        };
        assert_eq!(rig.outcomes(), [(at(1, 0), outcome)]);
        assert_eq!((rig.assigned(), rig.builds_ended()), (vec![], vec![1]));
    }
}

#[test]
fn an_infrastructure_error_is_retried_on_another_worker_within_the_bound() {
    let mut rig = one_job(3);
    let mut last = 0;
    for _ in 0..3 {
        let (worker, attempt) = rig.runs(at(1, 0));
        assert_ne!(worker, last);
        last = worker;
        rig.end(attempt, BROKEN);
    }
    let reason = InfraReason::AttemptsExhausted { attempts: 3, blame: Blame::Worker };
    assert_eq!(rig.outcomes(), [(at(1, 0), infra(reason))]);
}

#[test]
fn a_retry_takes_the_same_worker_at_once_if_there_is_no_other() {
    let mut rig = one_job(1);
    let (_, attempt) = rig.runs(at(1, 0));
    rig.end(attempt, BROKEN);
    rig.runs(at(1, 0));
}

#[test]
fn attempts_of_a_job_are_numbered_from_one() {
    let mut rig = one_job(2);
    let (_, attempt) = rig.runs(at(1, 0));
    rig.tell(Event::AttemptStarted { attempt });
    rig.scheduler.handle(crate::Time(5), Event::AttemptEnded { attempt, end: BROKEN });
    let assign = rig.scheduler.poll_effect();
    assert!(matches!(assign, Some(Effect::Assign { number: 2, .. })), "{assign:?}");
}

#[test]
fn out_of_memory_is_retried_once_with_twice_as_much() {
    let mut rig = one_job(1);
    let (_, attempt) = rig.runs(at(1, 0));
    rig.end(attempt, AttemptEnd::OutOfMemory);
    let (_, attempt) = rig.runs(at(1, 0));
    assert_eq!(rig.scheduler.stats().free, Resources::new(3000, 14 * GIB));
    rig.end(attempt, AttemptEnd::OutOfMemory);
    let reason = InfraReason::OutOfMemory { memory_bytes: 2 * GIB };
    assert_eq!(rig.outcomes(), [(at(1, 0), infra(reason))]);
}

#[test]
fn out_of_memory_ends_a_job_at_once_if_no_worker_has_more() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], JobSpec { resources: Resources::new(1000, 3 * GIB), ..job(1) })]);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.end(attempt, AttemptEnd::OutOfMemory);
    let reason = InfraReason::OutOfMemory { memory_bytes: 3 * GIB };
    assert_eq!(rig.outcomes(), [(at(1, 0), infra(reason))]);
}

#[test]
fn a_rejection_does_not_count_but_is_bounded() {
    let mut rig = one_job(2);
    for _ in 0..9 {
        let (_, attempt) = rig.runs(at(1, 0));
        rig.end(attempt, AttemptEnd::Rejected);
    }
    assert_eq!(rig.outcomes(), [(at(1, 0), infra(InfraReason::Rejected))]);
}

#[test]
fn the_jobs_of_a_lost_worker_run_elsewhere() {
    let mut rig = one_job(2);
    let (first, attempt) = rig.runs(at(1, 0));
    rig.leave(first, true);
    let (second, _) = rig.runs(at(1, 0));
    assert_ne!(first, second);
    rig.end(attempt, AttemptEnd::Succeeded);
    assert_eq!(rig.outcomes(), [], "a report of an attempt that is over changes nothing");
}

#[test]
fn a_job_under_which_two_workers_vanished_is_quarantined() {
    let mut rig = one_job(3);
    for _ in 0..2 {
        let (worker, _) = rig.runs(at(1, 0));
        rig.leave(worker, true);
    }
    let reason = InfraReason::Quarantined { workers: 2 };
    assert_eq!(rig.outcomes(), [(at(1, 0), infra(reason))]);
}

#[test]
fn workers_that_said_goodbye_do_not_count_for_quarantine() {
    let mut rig = one_job(3);
    for _ in 0..2 {
        let (worker, _) = rig.runs(at(1, 0));
        rig.leave(worker, false);
    }
    rig.runs(at(1, 0));
}

#[test]
fn a_drained_worker_finishes_its_job_and_gets_no_other() {
    let mut rig = one_job(1);
    let (worker, attempt) = rig.runs(at(1, 0));
    rig.tell(Event::WorkerDrained { worker: crate::WorkerId(worker) });
    rig.submit(2, &[(&[], job(1))]);
    rig.miss();
    rig.succeed(attempt);
    assert_eq!((rig.assigned(), rig.hows().len()), (vec![], 1));
    rig.pass(600_000);
    let reason = NoWorkerReason::NoMatch;
    assert_eq!(rig.outcomes(), [(at(2, 0), Outcome::NoWorker { reason })]);
}

#[test]
fn the_first_failure_skips_dependents_and_cancels_the_rest() {
    let mut rig = Rig::new();
    rig.join(1, 2);
    let jobs: &[(&[u32], JobSpec)] =
        &[(&[], job(1)), (&[], job(1)), (&[], job(1)), (&[0], job(1)), (&[3], job(1))];
    rig.submit_as(1, 0, 0, false, jobs);
    rig.miss();
    let running = rig.assigned();
    rig.end(running[0].2, AttemptEnd::Failed);
    let attempt = running[0].2;
    let skipped = Outcome::Skipped { dependency: 0 };
    let expected = [
        (at(1, 0), Outcome::Failed { attempt }),
        (at(1, 3), skipped),
        (at(1, 4), skipped),
        (at(1, 1), Outcome::Cancelled),
        (at(1, 2), Outcome::Cancelled),
    ];
    assert_eq!(rig.outcomes(), expected);
    assert_eq!(rig.cancellations(), [running[1].2]);
    assert_eq!(rig.builds_ended(), [1]);
    assert_eq!(rig.scheduler.stats().free.milli_cores, 1000, "held until the attempt ends");
    rig.end(running[1].2, AttemptEnd::Cancelled);
    assert_eq!(rig.scheduler.stats().free.milli_cores, 2000);
}

#[test]
fn with_keep_going_only_dependents_are_skipped() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], inner(job(1))), (&[0], job(1)), (&[], job(1))]);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.end(attempt, AttemptEnd::Failed);
    let ended = rig.outcomes();
    assert_eq!(ended[1], (at(1, 1), Outcome::Skipped { dependency: 0 }));
    rig.runs(at(1, 2));
}

#[test]
fn a_failure_ends_every_job_that_joined() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    for build in [1, 2] {
        rig.submit_as(build, 0, 0, false, &[(&[], job(1)), (&[], job(1))]);
    }
    for (build, index) in [(1, 0), (1, 1), (2, 0)] {
        rig.answer(at(build, index), key(7));
    }
    let (_, attempt) = rig.runs(at(1, 0));
    rig.end(attempt, AttemptEnd::Failed);
    let failed = Outcome::Failed { attempt };
    let expected = [
        (at(1, 0), failed),
        (at(1, 1), failed),
        (at(2, 0), failed),
        (at(2, 1), Outcome::Cancelled),
    ];
    assert_eq!(rig.outcomes(), expected);
}

#[test]
fn cancelling_a_build_ends_all_of_it_and_gives_up_its_outputs() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], job(1)), (&[], job(1)), (&[], job(1)), (&[2], job(1))]);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.succeed(attempt);
    let (_, attempt) = rig.runs(at(1, 1));
    rig.outcomes();
    rig.tell(Event::Cancelled { build: BuildId(1) });
    let ended: Vec<_> = (1..4).map(|index| (at(1, index), Outcome::Cancelled)).collect();
    assert_eq!(rig.outcomes(), ended);
    assert_eq!((rig.cancellations(), rig.builds_ended()), (vec![attempt], vec![1]));
}

#[test]
fn a_late_answer_for_a_cancelled_build_changes_nothing() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], job(1))]);
    rig.tell(Event::Cancelled { build: BuildId(1) });
    rig.answer(at(1, 0), key(1));
    assert_eq!(rig.assigned(), []);
}

#[test]
fn what_a_worker_ran_that_left_is_over_and_is_not_cancelled() {
    let config = Config { quarantine_after: 1, ..Config::default() };
    let mut rig = Rig::with(config);
    rig.join(1, 2);
    // Two jobs of a build that stops at a failure; the first to be over stops it.
    rig.submit_as(1, 0, 0, false, &[(&[], job(1)), (&[], job(1))]);
    rig.miss();
    assert_eq!(rig.assigned().len(), 2);
    rig.leave(1, true);
    assert_eq!((rig.cancellations(), rig.builds_ended()), (vec![], vec![1]));
    let outcomes: Vec<_> = rig.outcomes().into_iter().map(|(_, outcome)| outcome).collect();
    assert_eq!(outcomes, [infra(InfraReason::Quarantined { workers: 1 }), Outcome::Cancelled]);
}
