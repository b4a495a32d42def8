//! The watchdog: it finds a lost wake-up, and nothing where there is none.

use super::rig::{Rig, at, job};
use crate::{Config, Planted, Stall, Time, WaitReason};

const STALL_AFTER_MS: u64 = 10_000;

/// Two jobs, one worker with room for one of them; the first has just ended.
fn a_worker_became_free(mut rig: Rig) -> Rig {
    rig.join(1, 1);
    rig.submit(1, &[(&[], job(1)), (&[], job(1))]);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.pass(500);
    rig.succeed(attempt);
    rig
}

#[test]
fn a_lost_wake_up_is_reported_once_and_put_right_within_twice_the_bound() {
    let mut rig = a_worker_became_free(Rig::planted(Planted::LostWakeUp));
    assert_eq!(rig.assigned(), []);
    assert_eq!(rig.scheduler.stalled(), Some(at(1, 1)));
    rig.pass(STALL_AFTER_MS);
    assert_eq!(rig.stalls(), []);
    rig.pass(STALL_AFTER_MS);
    let since = Time(STALL_AFTER_MS);
    assert_eq!(rig.stalls(), [Stall { job: at(1, 1), since }]);
    rig.runs(at(1, 1));
    assert_eq!(rig.scheduler.stats().stalls, 1);
    rig.pass(10 * STALL_AFTER_MS);
    assert_eq!(rig.stalls(), []);
}

#[test]
fn a_worker_that_becomes_free_stalls_nothing() {
    let mut rig = a_worker_became_free(Rig::new());
    rig.runs(at(1, 1));
    rig.pass(10 * STALL_AFTER_MS);
    assert_eq!((rig.stalls(), rig.scheduler.stats().stalls), (vec![], 0));
}

#[test]
fn what_waits_for_busy_workers_or_for_none_is_not_stalled() {
    let config = Config { queue_timeout_ms: 100 * STALL_AFTER_MS, ..Config::default() };
    let mut rig = Rig::with(config);
    rig.join(1, 2);
    rig.submit(1, &[(&[], job(1)), (&[], job(2)), (&[], job(8))]);
    rig.miss();
    rig.runs(at(1, 0));
    rig.pass(10 * STALL_AFTER_MS);
    assert_eq!(rig.stalls(), []);
    assert!(matches!(rig.scheduler.why_waiting(at(1, 2)), Some(WaitReason::NoWorker { .. })));
}

#[test]
fn the_watchdog_sleeps_while_nothing_is_queued() {
    let mut rig = Rig::new();
    rig.join(1, 2);
    rig.submit(1, &[(&[], job(1)), (&[], job(1))]);
    rig.miss();
    assert_eq!(rig.assigned().len(), 2);
    assert_eq!(rig.scheduler.poll_timeout(), None);
}
