//! From submission to success.

use super::rig::{ARM, Rig, at, cached, inner, job, key};
use crate::{Answer, BuildId, Event, How, JobSpec, Stats, StoreId, WaitReason};

#[test]
fn an_empty_build_ends_at_once() {
    let mut rig = Rig::new();
    rig.submit(1, &[]);
    assert_eq!(rig.builds_ended(), [1]);
}

#[test]
fn a_job_without_dependencies_is_looked_up_and_assigned_after_a_miss() {
    let mut rig = Rig::new();
    rig.join(1, 4);
    rig.submit(1, &[(&[], job(1))]);
    assert_eq!(rig.lookups(), [at(1, 0)]);
    rig.answer(at(1, 0), Answer::Miss { key: None });
    let (worker, attempt) = rig.runs(at(1, 0));
    assert_eq!(worker, 1);
    let started = false;
    let reason = rig.scheduler.why_waiting(at(1, 0));
    assert_eq!(reason, Some(WaitReason::Running { attempt, started }));
    rig.succeed(attempt);
    assert_eq!(rig.hows(), [(0, How::Executed { attempt })]);
}

#[test]
fn a_job_waits_for_all_its_dependencies() {
    let mut rig = Rig::new();
    rig.join(1, 4);
    rig.submit(1, &[(&[], job(1)), (&[], job(1)), (&[0, 1, 1], job(1))]);
    rig.miss();
    let assigned = rig.assigned();
    rig.succeed(assigned[0].2);
    assert_eq!(rig.lookups(), []);
    let left = rig.scheduler.why_waiting(at(1, 2));
    assert_eq!(left, Some(WaitReason::Dependencies { left: 2 }));
    rig.succeed(assigned[1].2);
    assert_eq!(rig.lookups(), [at(1, 2)]);
    assert_eq!(rig.scheduler.why_waiting(at(1, 2)), Some(WaitReason::LookUp));
}

#[test]
fn a_hit_ends_a_job_as_cut_off() {
    let mut rig = Rig::new();
    rig.submit(1, &[(&[], job(1))]);
    rig.answer(at(1, 0), Answer::Hit { holders: vec![StoreId(1)] });
    assert_eq!(rig.hows(), [(0, How::CutOff)]);
}

#[test]
fn a_cached_request_needs_nothing_below_it() {
    let mut rig = Rig::new();
    rig.submit(1, &[(&[], inner(job(1))), (&[0], inner(cached(&[]))), (&[1], cached(&[]))]);
    assert_eq!(rig.lookups(), []);
    assert_eq!(rig.hows(), [(0, How::Unneeded), (1, How::Cached), (2, How::Cached)]);
}

#[test]
fn only_what_is_reached_through_jobs_that_run_is_needed() {
    let mut rig = Rig::new();
    let jobs: &[(&[u32], JobSpec)] = &[
        (&[], inner(job(1))),
        (&[0], inner(cached(&[]))),
        (&[], inner(job(1))),
        (&[1, 2], job(1)),
    ];
    rig.submit(1, jobs);
    assert_eq!(rig.lookups(), [at(1, 2)]);
    assert_eq!(rig.hows(), [(0, How::Unneeded), (1, How::Cached)]);
}

#[test]
fn equal_actions_of_two_builds_run_once() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], job(1))]);
    rig.submit(2, &[(&[], job(1))]);
    rig.answer(at(1, 0), key(1));
    rig.answer(at(2, 0), key(1));
    let (_, attempt) = rig.runs(at(1, 0));
    rig.succeed(attempt);
    assert_eq!(rig.hows(), [(0, How::Executed { attempt }), (0, How::Joined { attempt })]);
}

#[test]
fn an_execution_goes_on_for_the_joined_job_when_the_first_build_is_cancelled() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], job(1))]);
    rig.submit(2, &[(&[], job(1))]);
    rig.answer(at(1, 0), key(1));
    rig.answer(at(2, 0), key(1));
    let (_, attempt) = rig.runs(at(1, 0));
    rig.tell(Event::Cancelled { build: BuildId(1) });
    assert_eq!(rig.cancellations(), []);
    assert_eq!(rig.builds_ended(), [1]);
    rig.outcomes();
    rig.succeed(attempt);
    assert_eq!(rig.hows(), [(0, How::Executed { attempt })]);
}

#[test]
fn a_queued_execution_moves_up_when_a_better_class_joins_it() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit_as(1, 1, 5, true, &[(&[], job(1)), (&[], job(1)), (&[], job(1))]);
    for index in 0..3 {
        rig.answer(at(1, index), key(index as u8));
    }
    let (_, attempt) = rig.runs(at(1, 0));
    rig.submit_as(2, 2, 0, true, &[(&[], job(1))]);
    rig.answer(at(2, 0), key(2));
    rig.succeed(attempt);
    rig.runs(at(2, 0));
}

#[test]
fn look_ups_are_bounded_and_builds_take_turns() {
    let mut rig = Rig::with(crate::Config { max_lookups: 2, ..crate::Config::default() });
    let jobs: Vec<(&[u32], JobSpec)> = vec![(&[], job(1)); 10];
    rig.submit(1, &jobs);
    rig.submit(2, &jobs[..1]);
    assert_eq!(rig.lookups(), [at(1, 0), at(1, 1)]);
    rig.answer(at(1, 0), key(0));
    rig.answer(at(1, 1), key(1));
    let next = rig.lookups();
    assert!(next.contains(&at(2, 0)), "{next:?}");
}

#[test]
fn a_build_ends_when_its_requested_outputs_are_delivered_and_leaves_nothing_behind() {
    let mut rig = Rig::new();
    rig.join(1, 4);
    rig.submit(1, &[(&[], inner(job(1))), (&[0], job(1))]);
    rig.run_all();
    assert_eq!(rig.builds_ended(), []);
    rig.tell(Event::Delivered { job: at(1, 1) });
    assert_eq!(rig.builds_ended(), [1]);
    let stats = rig.scheduler.stats();
    assert_eq!(stats, Stats { workers: 1, free: stats.free, ..Stats::default() });
}

#[test]
fn a_job_no_online_worker_matches_says_so_and_ends_after_the_queue_timeout() {
    let mut rig = Rig::new();
    rig.join(1, 4);
    rig.submit(1, &[(&[], JobSpec { selector: ARM, ..job(1) }), (&[], job(100))]);
    rig.miss();
    for (index, reason) in
        [crate::NoWorkerReason::NoMatch, crate::NoWorkerReason::TooBig].into_iter().enumerate()
    {
        let until = crate::Time(600_000);
        let why = rig.scheduler.why_waiting(at(1, index as u32));
        assert_eq!(why, Some(WaitReason::NoWorker { reason, until }));
    }
    rig.pass(599_999);
    assert_eq!(rig.outcomes(), []);
    rig.pass(1);
    let ended = rig.outcomes();
    assert_eq!(ended.len(), 2);
    assert!(matches!(ended[0].1, crate::Outcome::NoWorker { .. }), "{ended:?}");
}

#[test]
fn the_queue_timeout_starts_anew_after_a_worker_was_online() {
    let mut rig = Rig::new();
    rig.submit(1, &[(&[], job(2))]);
    rig.miss();
    rig.pass(500_000);
    rig.join(1, 2);
    let (_, attempt) = rig.runs(at(1, 0));
    rig.leave(1, true);
    rig.pass(599_999);
    assert_eq!(rig.outcomes(), []);
    rig.join(2, 2);
    assert_ne!(rig.runs(at(1, 0)).1, attempt);
}
