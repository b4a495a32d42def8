//! Attempts that run on while one scheduler takes the place of another.

use super::rig::{GIB, Rig, at, job, key};
use crate::{
    ActionKey, Answer, AttemptEnd, AttemptId, Effect, Event, How, Outcome, Resources, WorkerId,
};

const OLD: AttemptId = AttemptId(7);

/// Worker 1 of two cores runs an attempt of one core that nobody has claimed.
fn reattached() -> Rig {
    let mut rig = Rig::new();
    rig.join(1, 2);
    let resources = Resources::new(1000, GIB);
    rig.tell(Event::Reattached { attempt: OLD, worker: WorkerId(1), resources });
    rig
}

fn running(byte: u8) -> Answer {
    Answer::Running { key: Some(ActionKey([byte; 32])), attempt: OLD }
}

#[test]
fn an_attempt_that_nobody_has_claimed_takes_its_resources_until_it_ends() {
    let mut rig = reattached();
    rig.submit(1, &[(&[], job(2))]);
    rig.miss();
    assert_eq!(rig.assigned(), []);
    rig.end(OLD, AttemptEnd::Cancelled);
    assert_eq!(rig.runs(at(1, 0)).0, 1);
}

#[test]
fn a_job_that_claims_a_running_attempt_is_not_assigned_and_ends_with_it() {
    let mut rig = reattached();
    rig.submit(1, &[(&[], job(1))]);
    rig.answer(at(1, 0), running(1));
    let adopted = rig.take(|effect| match effect {
        Effect::Adopted { attempt, job } => Some((*attempt, *job)),
        _ => None,
    });
    assert_eq!(adopted, [(OLD, at(1, 0))]);
    assert_eq!(rig.assigned(), []);
    rig.succeed(OLD);
    assert_eq!(rig.hows(), [(0, How::Executed { attempt: OLD })]);
}

#[test]
fn an_equal_job_joins_a_claimed_attempt() {
    let mut rig = reattached();
    rig.submit(1, &[(&[], job(1))]);
    rig.answer(at(1, 0), running(1));
    rig.submit(2, &[(&[], job(1))]);
    rig.answer(at(2, 0), key(1));
    assert_eq!(rig.assigned(), []);
    rig.succeed(OLD);
    assert_eq!(
        rig.hows(),
        [(0, How::Executed { attempt: OLD }), (0, How::Joined { attempt: OLD })]
    );
}

#[test]
fn an_attempt_is_cancelled_when_an_equal_job_runs_elsewhere() {
    let mut rig = reattached();
    rig.submit(1, &[(&[], job(1))]);
    rig.answer(at(1, 0), key(1));
    let (_, attempt) = rig.runs(at(1, 0));
    rig.submit(2, &[(&[], job(1))]);
    rig.answer(at(2, 0), running(1));
    assert_eq!(rig.cancellations(), [OLD]);
    rig.succeed(attempt);
    assert_eq!(rig.hows(), [(0, How::Executed { attempt }), (0, How::Joined { attempt })]);
}

#[test]
fn a_claimed_attempt_that_goes_wrong_is_made_up_for() {
    let mut rig = reattached();
    rig.submit(1, &[(&[], job(1))]);
    rig.answer(at(1, 0), running(1));
    rig.leave(1, true);
    rig.join(2, 1);
    let (worker, attempt) = rig.runs(at(1, 0));
    assert!(worker == 2 && attempt != OLD);
}

#[test]
fn a_job_that_is_known_to_have_failed_is_not_run_and_what_needs_it_is_skipped() {
    let mut rig = Rig::new();
    rig.join(1, 2);
    rig.submit(1, &[(&[], job(1)), (&[0], job(1))]);
    let outcome = Outcome::Failed { attempt: OLD };
    rig.answer(at(1, 0), Answer::Dead { outcome });
    assert_eq!(rig.assigned(), []);
    let skipped = Outcome::Skipped { dependency: 0 };
    assert_eq!(rig.outcomes(), [(at(1, 0), outcome), (at(1, 1), skipped)]);
}
