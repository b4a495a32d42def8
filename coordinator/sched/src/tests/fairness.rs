//! Who comes first, and that everybody comes.

use super::rig::{GIB, Rig, at, job};
use crate::{AttemptId, Config, JobRef, JobSpec, Resources, WaitReason};

fn flood(count: usize) -> Vec<(&'static [u32], JobSpec)> {
    vec![(&[], job(1)); count]
}

/// Ends the one running attempt `count` times, `ms` apart; the jobs started meanwhile.
fn serve(rig: &mut Rig, attempt: &mut AttemptId, count: usize, ms: u64) -> Vec<JobRef> {
    let mut started = Vec::new();
    for _ in 0..count {
        rig.pass(ms);
        rig.succeed(*attempt);
        let assigned = rig.assigned();
        *attempt = assigned[0].2;
        started.push(assigned[0].0);
    }
    started
}

#[test]
fn a_better_class_comes_first() {
    let mut rig = Rig::new();
    rig.submit_as(1, 1, 3, true, &flood(1));
    rig.submit_as(2, 1, 1, true, &flood(1));
    rig.miss();
    rig.join(1, 1);
    let (_, attempt) = rig.runs(at(2, 0));
    rig.succeed(attempt);
    rig.runs(at(1, 0));
}

#[test]
fn users_of_a_class_share_whatever_the_length_of_their_queues() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit_as(1, 1, 0, true, &flood(50));
    rig.miss();
    let (_, mut attempt) = rig.runs(at(1, 0));
    rig.submit_as(2, 2, 0, true, &flood(10));
    rig.miss();
    let started = serve(&mut rig, &mut attempt, 12, 10);
    let second = started.iter().filter(|job| job.build.0 == 2).count();
    assert!((5..=7).contains(&second), "{started:?}");
}

#[test]
fn a_user_of_long_jobs_starts_fewer_of_them() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit_as(1, 1, 0, true, &flood(100));
    rig.submit_as(2, 2, 0, true, &flood(100));
    rig.miss();
    let mut running = rig.assigned()[0];
    let mut busy = [0, 0];
    for _ in 0..100 {
        let user = (running.0.build.0 - 1) as usize;
        let ms = [10, 100][user];
        busy[user] += ms;
        rig.pass(ms);
        rig.succeed(running.2);
        running = rig.assigned()[0];
    }
    let ratio = f64::from(busy[0] as u32) / f64::from(busy[1] as u32);
    assert!((0.5..2.0).contains(&ratio), "{busy:?} ms");
}

#[test]
fn a_users_jobs_run_in_the_order_they_came() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit_as(1, 1, 0, true, &flood(5));
    rig.miss();
    let (_, mut attempt) = rig.runs(at(1, 0));
    let started = serve(&mut rig, &mut attempt, 4, 10);
    assert_eq!(started, (1..5).map(|index| at(1, index)).collect::<Vec<_>>());
}

#[test]
fn a_low_class_starts_something_within_the_ageing_time_however_much_else_comes() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit_as(1, 1, 0, true, &flood(100));
    rig.miss();
    let (_, mut attempt) = rig.runs(at(1, 0));
    rig.submit_as(2, 2, 200, true, &flood(2));
    rig.miss();
    let started = serve(&mut rig, &mut attempt, 31, 1000);
    assert_eq!(started.iter().filter(|job| job.build.0 == 2).count(), 1, "{started:?}");
    let started = serve(&mut rig, &mut attempt, 31, 1000);
    assert_eq!(started.iter().filter(|job| job.build.0 == 2).count(), 1, "{started:?}");
}

#[test]
fn a_worker_is_kept_free_for_a_big_job_that_small_ones_overtake() {
    let mut rig = Rig::new();
    rig.join(1, 2);
    rig.submit(1, &[(&[], job(1)), (&[], job(1)), (&[], job(2))]);
    rig.submit_as(2, 2, 0, true, &flood(100));
    rig.miss();
    let mut running: Vec<AttemptId> = rig.assigned().iter().map(|(.., attempt)| *attempt).collect();
    let mut reserved = false;
    for _ in 0..14 {
        rig.pass(1000);
        reserved |=
            matches!(rig.scheduler.why_waiting(at(1, 2)), Some(WaitReason::Reserved { .. }));
        rig.succeed(running.remove(0));
        for (started, _, attempt) in rig.assigned() {
            if started == at(1, 2) {
                assert!(reserved && rig.now <= 13_000, "at {} ms", rig.now);
                return;
            }
            running.push(attempt);
        }
    }
    panic!("the big job starved");
}

#[test]
fn a_big_job_of_a_low_class_starts_within_the_documented_bound() {
    let mut rig = Rig::new();
    rig.join(1, 2);
    rig.submit_as(1, 1, 0, true, &flood(200));
    rig.submit_as(2, 2, 200, true, &[(&[], job(2))]);
    rig.miss();
    let mut running: Vec<AttemptId> = rig.assigned().iter().map(|(.., attempt)| *attempt).collect();
    // Ageing, the time until it is reserved, and two runs of 2 s.
    while rig.now <= 30_000 + 10_000 + 4_000 {
        rig.pass(1000);
        rig.succeed(running.remove(0));
        for (started, _, attempt) in rig.assigned() {
            if started == at(2, 0) {
                assert!(rig.now >= 30_000, "a better class comes first until then");
                return;
            }
            running.push(attempt);
        }
    }
    panic!("the big job starved");
}

#[test]
fn a_reserved_worker_is_given_back_when_the_big_job_goes() {
    let mut rig = Rig::new();
    rig.join(1, 2);
    rig.submit(1, &[(&[], job(1)), (&[], job(1))]);
    rig.miss();
    let mut running: Vec<AttemptId> = rig.assigned().iter().map(|(.., attempt)| *attempt).collect();
    rig.submit(2, &[(&[], job(2))]);
    rig.miss();
    rig.submit_as(3, 2, 0, true, &flood(100));
    rig.miss();
    while rig.scheduler.stats().reserved_workers == 0 {
        rig.pass(1000);
        if rig.scheduler.stats().reserved_workers == 0 {
            rig.succeed(running.remove(0));
        }
        running.extend(rig.assigned().iter().map(|(.., attempt)| *attempt));
        assert!(rig.now < 20_000);
    }
    rig.succeed(running.remove(0));
    assert_eq!(rig.assigned(), [], "half of the worker is kept free");
    rig.tell(crate::Event::Cancelled { build: crate::BuildId(2) });
    assert_eq!(rig.assigned().len(), 1);
    assert_eq!(rig.scheduler.stats().reserved_workers, 0);
}

#[test]
fn a_queue_of_very_many_different_requests_still_drains() {
    let config = Config { max_exact_shapes: 4, ..Config::default() };
    let mut rig = Rig::with(config);
    let jobs: Vec<(&[u32], JobSpec)> = (1..60u64)
        .map(|n| {
            (&[][..], JobSpec { resources: Resources::new(n as u32 * 30, n * GIB / 8), ..job(1) })
        })
        .collect();
    rig.submit(1, &jobs);
    rig.miss();
    rig.join(1, 2);
    rig.run_all();
    assert_eq!(rig.hows().len(), 59);
}
