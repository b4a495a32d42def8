//! Where jobs go.

use super::rig::{ARM, Rig, at, cached, inner, job};
use crate::{BuildId, Event, JobSpec, WaitReason};

#[test]
fn without_holders_the_least_loaded_worker_is_chosen_and_then_the_lowest_id() {
    let mut rig = Rig::new();
    rig.join(1, 2);
    rig.join(2, 4);
    rig.join(3, 4);
    rig.submit(1, &[(&[], job(1)), (&[], job(1)), (&[], job(1))]);
    rig.miss();
    let workers: Vec<u32> = rig.assigned().iter().map(|(_, worker, _)| *worker).collect();
    assert_eq!(workers, [2, 3, 2]);
}

#[test]
fn a_job_goes_only_where_its_selector_matches() {
    let mut rig = Rig::new();
    rig.join(1, 16);
    rig.join_as(2, 2, 1, &[("arch", "arm64"), ("os", "linux")]);
    rig.submit(1, &[(&[], JobSpec { selector: ARM, ..job(1) })]);
    rig.miss();
    assert_eq!(rig.runs(at(1, 0)).0, 2);
}

#[test]
fn a_job_whose_dependency_is_held_by_a_worker_goes_there() {
    let mut rig = Rig::new();
    rig.join(1, 8);
    rig.join(2, 2);
    rig.submit(1, &[(&[], inner(cached(&[2]))), (&[0], job(1))]);
    rig.miss();
    assert_eq!(rig.runs(at(1, 1)).0, 2);
}

#[test]
fn the_worker_that_ran_most_dependencies_is_preferred() {
    let mut rig = Rig::new();
    rig.join(1, 8);
    rig.join(2, 2);
    let deps = [inner(cached(&[1])), inner(cached(&[2, 3])), inner(cached(&[2]))];
    let [a, b, c] = deps.map(|spec| (&[][..], spec));
    rig.submit(1, &[a, b, c, (&[0, 1, 2], job(1))]);
    rig.miss();
    assert_eq!(rig.runs(at(1, 3)).0, 2);
}

/// Worker 1 is busy with job 0 of build 1 and holds what job 1 of build 2 needs; worker 2 is free.
fn waiting_for_locality() -> (Rig, crate::AttemptId) {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], job(1))]);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.join(2, 1);
    rig.submit(2, &[(&[], inner(cached(&[1]))), (&[0], job(1))]);
    rig.miss();
    assert_eq!(rig.assigned(), []);
    assert_eq!(rig.scheduler.why_waiting(at(2, 1)), Some(WaitReason::Placement));
    (rig, attempt)
}

#[test]
fn after_the_bounded_wait_a_job_goes_anywhere() {
    let (mut rig, _) = waiting_for_locality();
    rig.pass(199);
    assert_eq!(rig.assigned(), []);
    rig.pass(1);
    assert_eq!(rig.runs(at(2, 1)).0, 2);
}

#[test]
fn a_job_that_waits_for_a_worker_gets_it_when_it_is_free() {
    let (mut rig, attempt) = waiting_for_locality();
    rig.pass(100);
    rig.succeed(attempt);
    assert_eq!(rig.runs(at(2, 1)).0, 1);
}

#[test]
fn a_job_does_not_wait_for_a_worker_that_left() {
    let (mut rig, _) = waiting_for_locality();
    rig.tell(Event::Cancelled { build: BuildId(1) });
    rig.leave(1, true);
    assert_eq!(rig.runs(at(2, 1)).0, 2);
}

#[test]
fn a_cancelled_wait_takes_no_job() {
    let (mut rig, attempt) = waiting_for_locality();
    rig.tell(Event::Cancelled { build: BuildId(2) });
    rig.submit(3, &[(&[], job(1)), (&[], job(1))]);
    rig.miss();
    assert_eq!(rig.runs(at(3, 0)).0, 2);
    rig.succeed(attempt);
    assert_eq!(rig.runs(at(3, 1)).0, 1);
    rig.pass(1000);
    assert_eq!(rig.assigned(), []);
}

#[test]
fn a_job_with_two_dependencies_on_one_worker_does_not_deadlock() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], inner(job(1))), (&[], inner(job(1))), (&[0, 1], job(1))]);
    rig.run_all();
    assert_eq!(rig.hows().len(), 3);
}

#[test]
fn the_line_for_one_worker_is_bounded() {
    let mut rig = Rig::with(crate::Config { locality_line: 2, ..crate::Config::default() });
    rig.join(1, 1);
    rig.submit(1, &[(&[], job(1))]);
    rig.miss();
    rig.assigned();
    rig.join(2, 8);
    let mut jobs: Vec<(&[u32], JobSpec)> = vec![(&[], inner(cached(&[1])))];
    jobs.extend(std::iter::repeat_n((&[0][..], job(1)), 5));
    rig.submit(2, &jobs);
    rig.miss();
    assert_eq!(rig.assigned().len(), 3);
    rig.pass(200);
    assert_eq!(rig.assigned().len(), 2);
}

#[test]
fn a_worker_that_reconnects_still_holds_its_outputs() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], inner(job(1))), (&[0], job(1))]);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.succeed(attempt);
    rig.leave(1, true);
    rig.join(2, 16);
    rig.join_as(3, 1, 1, &[]);
    rig.miss();
    assert_eq!(rig.runs(at(1, 1)).0, 3);
}
