//! Retries away from the workers where it went wrong, and workers that only go wrong.

use super::rig::{BROKEN, Rig, at, job};
use crate::{AttemptEnd, AttemptId, Config, Event, JobSpec, WaitReason, WorkerId};

/// Worker 1 is busy with job 0 of build 1; job 0 of build 2 went wrong on worker 2, which is free.
fn gone_wrong_on_two() -> (Rig, AttemptId) {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], job(1))]);
    rig.miss();
    let (_, busy) = rig.runs(at(1, 0));
    rig.join(2, 1);
    rig.submit(2, &[(&[], job(1))]);
    rig.miss();
    let (worker, attempt) = rig.runs(at(2, 0));
    assert_eq!(worker, 2);
    rig.end(attempt, BROKEN);
    (rig, busy)
}

#[test]
fn a_retry_waits_for_a_busy_worker_while_the_one_that_failed_is_free() {
    let (mut rig, busy) = gone_wrong_on_two();
    assert_eq!(rig.scheduler.why_waiting(at(2, 0)), Some(WaitReason::Placement));
    rig.pass(59_000);
    assert_eq!(rig.assigned(), []);
    rig.succeed(busy);
    assert_eq!(rig.runs(at(2, 0)).0, 1);
}

#[test]
fn a_retry_takes_a_worker_that_failed_after_the_bounded_wait() {
    let (mut rig, _) = gone_wrong_on_two();
    rig.pass(59_999);
    assert_eq!(rig.assigned(), []);
    rig.pass(1);
    assert_eq!(rig.runs(at(2, 0)).0, 2);
}

#[test]
fn a_retry_stops_waiting_when_the_last_untried_worker_goes() {
    let (mut rig, _) = gone_wrong_on_two();
    rig.tell(Event::WorkerDrained { worker: WorkerId(1) });
    assert_eq!(rig.runs(at(2, 0)).0, 2);
}

#[test]
fn a_retry_does_not_wait_for_workers_that_are_too_small() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.join(2, 4);
    rig.submit(1, &[(&[], job(2))]);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.end(attempt, BROKEN);
    assert_eq!(rig.runs(at(1, 0)).0, 2);
}

#[test]
fn a_waiting_retry_goes_to_a_worker_that_joins() {
    let (mut rig, _) = gone_wrong_on_two();
    rig.join(3, 1);
    assert_eq!(rig.runs(at(2, 0)).0, 3);
}

#[test]
fn a_worker_that_reconnects_is_still_avoided() {
    let (mut rig, busy) = gone_wrong_on_two();
    rig.leave(2, false);
    rig.join_as(3, 2, 1, &[]);
    assert_eq!(rig.assigned(), []);
    rig.succeed(busy);
    assert_eq!(rig.runs(at(2, 0)).0, 1);
}

#[test]
fn a_waiting_retry_does_not_hold_up_other_jobs() {
    let (mut rig, _) = gone_wrong_on_two();
    rig.submit(3, &[(&[], job(1))]);
    rig.miss();
    assert_eq!(rig.runs(at(3, 0)).0, 2);
}

#[test]
fn one_worker_that_fails_at_once_fails_no_job_while_another_is_busy() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.join(2, 4);
    let jobs: Vec<(&[u32], JobSpec)> = vec![(&[], job(1)); 20];
    rig.submit(1, &jobs);
    rig.miss();
    let mut healthy = None;
    for _ in 0..200 {
        for (_, worker, attempt) in rig.assigned() {
            match worker {
                1 => healthy = Some(attempt),
                _ => rig.end(attempt, BROKEN),
            }
        }
        rig.pass(100);
        if let Some(attempt) = healthy.take() {
            rig.succeed(attempt);
        }
    }
    assert_eq!(rig.hows().len(), 20);
}

/// Worker 1 with four cores has gone wrong three times in a row; nothing runs.
fn suspect() -> Rig {
    let mut rig = Rig::new();
    rig.join(1, 4);
    rig.submit(1, &[(&[], job(1))]);
    rig.miss();
    for errors in 0..3 {
        assert_eq!(rig.scheduler.stats().suspect_workers, 0, "after {errors}");
        let (_, attempt) = rig.runs(at(1, 0));
        rig.end(attempt, BROKEN);
    }
    assert_eq!(rig.scheduler.stats().suspect_workers, 1);
    rig.submit(2, &[(&[], job(1)), (&[], job(1)), (&[], job(1))]);
    rig.miss();
    rig
}

#[test]
fn a_suspect_worker_runs_one_attempt_at_a_time_until_one_shows_that_it_can() {
    let mut rig = suspect();
    let (_, attempt) = rig.runs(at(2, 0));
    rig.end(attempt, AttemptEnd::Rejected);
    let (_, attempt) = rig.runs(at(2, 0));
    rig.end(attempt, AttemptEnd::Failed);
    assert_eq!(rig.assigned().len(), 2);
    assert_eq!(rig.scheduler.stats().suspect_workers, 0);
}

#[test]
fn a_suspect_worker_gets_only_what_has_no_room_elsewhere() {
    let mut rig = suspect();
    let (_, attempt) = rig.runs(at(2, 0));
    rig.join(2, 1);
    assert_eq!(rig.runs(at(2, 1)).0, 2);
    rig.tell(Event::Cancelled { build: crate::BuildId(2) });
    rig.end(attempt, AttemptEnd::Cancelled);
    rig.join(3, 1);
    rig.submit(3, &[(&[], job(1)), (&[], job(1))]);
    rig.miss();
    let workers: Vec<u32> = rig.assigned().iter().map(|(_, worker, _)| *worker).collect();
    assert_eq!(workers, [3, 1]);
}

#[test]
fn a_success_between_errors_keeps_a_worker_out_of_suspicion() {
    let mut rig = Rig::with(Config { suspect_after: 2, ..Config::default() });
    rig.join(1, 1);
    for build in 1..5 {
        rig.submit(build, &[(&[], job(1))]);
        rig.miss();
        let (_, attempt) = rig.runs(at(build, 0));
        rig.end(attempt, BROKEN);
        let (_, attempt) = rig.runs(at(build, 0));
        rig.succeed(attempt);
        assert_eq!(rig.scheduler.stats().suspect_workers, 0);
    }
}

#[test]
fn a_suspect_worker_that_leaves_is_not_counted_any_more() {
    let mut rig = suspect();
    rig.leave(1, true);
    assert_eq!(rig.scheduler.stats().suspect_workers, 0);
}
