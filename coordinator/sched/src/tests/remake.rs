//! Outputs that are lost.

use super::rig::{LOST_INPUTS, Rig, at, cached, inner, job};
use crate::{Answer, AttemptEnd, Event, InfraReason, Outcome};

fn lose(rig: &mut Rig, index: u32) {
    rig.tell(Event::OutputsLost { job: at(1, index) });
}

/// Job 0 is done; job 1, which needs it, is looked up.
fn one_done() -> Rig {
    let mut rig = Rig::new();
    rig.join(1, 4);
    rig.submit(1, &[(&[], inner(job(1))), (&[0], job(1))]);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.succeed(attempt);
    rig.outcomes();
    rig
}

#[test]
fn a_job_whose_outputs_are_lost_runs_again_and_its_dependent_waits() {
    let mut rig = one_done();
    assert_eq!(rig.lookups(), [at(1, 1)]);
    lose(&mut rig, 0);
    assert_eq!(rig.lookups(), [at(1, 0)]);
    rig.answer(at(1, 1), Answer::Hit { holders: vec![] });
    assert_eq!(rig.outcomes(), [], "the answer was about lost inputs");
    rig.answer(at(1, 0), Answer::Miss { key: None });
    let (_, attempt) = rig.runs(at(1, 0));
    rig.succeed(attempt);
    assert_eq!(rig.remakes(), [(0, None)]);
    assert_eq!(rig.outcomes(), [], "it has ended before");
    assert_eq!(rig.lookups(), [at(1, 1)]);
}

#[test]
fn a_job_is_asked_about_again_only_after_the_answer_to_the_first_question() {
    let mut rig = one_done();
    assert_eq!(rig.lookups(), [at(1, 1)]);
    lose(&mut rig, 0);
    rig.run_all();
    assert_eq!(rig.remakes(), [(0, None)]);
    assert_eq!(rig.lookups(), []);
    rig.answer(at(1, 1), Answer::Hit { holders: vec![] });
    assert_eq!((rig.lookups(), rig.outcomes()), (vec![at(1, 1)], vec![]));
}

#[test]
fn a_queued_dependent_waits_again_and_a_running_one_goes_on() {
    let mut rig = Rig::new();
    rig.join(1, 1);
    rig.submit(1, &[(&[], inner(job(1))), (&[0], job(1)), (&[0], job(1))]);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.succeed(attempt);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 1));
    lose(&mut rig, 0);
    rig.miss();
    rig.succeed(attempt);
    let (_, attempt) = rig.runs(at(1, 0));
    rig.succeed(attempt);
    rig.miss();
    rig.runs(at(1, 2));
}

#[test]
fn an_attempt_that_lost_its_inputs_waits_for_them_and_does_not_count() {
    let mut rig = one_done();
    for _ in 0..3 {
        rig.miss();
        let (_, attempt) = rig.runs(at(1, 1));
        lose(&mut rig, 0);
        rig.miss();
        let (_, remake) = rig.runs(at(1, 0));
        rig.end(attempt, LOST_INPUTS);
        assert_eq!(rig.assigned(), []);
        rig.succeed(remake);
    }
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 1));
    rig.end(attempt, LOST_INPUTS);
    let reason = InfraReason::InputsLost;
    assert_eq!(rig.outcomes(), [(at(1, 1), Outcome::InfraError { reason })]);
}

#[test]
fn remakes_are_bounded_and_then_dependents_are_skipped() {
    let mut rig = one_done();
    for _ in 0..3 {
        lose(&mut rig, 0);
        rig.lookups();
        rig.answer(at(1, 1), Answer::Miss { key: None });
        rig.answer(at(1, 0), Answer::Hit { holders: vec![] });
    }
    rig.remakes();
    lose(&mut rig, 0);
    let reason = InfraReason::OutputsLost;
    assert_eq!(rig.remakes(), [(0, Some(Outcome::InfraError { reason }))]);
    assert_eq!(rig.outcomes(), [(at(1, 1), Outcome::Skipped { dependency: 0 })]);
    assert_eq!(rig.builds_ended(), [1]);
}

#[test]
fn a_lost_cached_output_is_made_by_lineage() {
    let mut rig = Rig::new();
    rig.join(1, 4);
    rig.submit(1, &[(&[], inner(job(1))), (&[0], inner(job(1))), (&[1], cached(&[9]))]);
    rig.outcomes();
    lose(&mut rig, 2);
    rig.run_all();
    assert_eq!(rig.remakes(), [(0, None), (1, None), (2, None)]);
    assert_eq!(rig.outcomes(), []);
    rig.tell(Event::Delivered { job: at(1, 2) });
    assert_eq!(rig.builds_ended(), [1]);
}

#[test]
fn a_failed_remake_of_a_requested_output_gives_it_up() {
    let mut rig = Rig::new();
    rig.join(1, 4);
    rig.submit(1, &[(&[], job(1))]);
    rig.run_all();
    lose(&mut rig, 0);
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 0));
    rig.end(attempt, AttemptEnd::Failed);
    assert_eq!(rig.remakes(), [(0, Some(Outcome::Failed { attempt }))]);
    assert_eq!(rig.builds_ended(), [1]);
}

#[test]
fn a_remake_nobody_needs_any_more_is_cancelled_with_the_end_of_the_build() {
    let mut rig = one_done();
    rig.miss();
    let (_, attempt) = rig.runs(at(1, 1));
    lose(&mut rig, 0);
    rig.miss();
    let (_, remake) = rig.runs(at(1, 0));
    rig.succeed(attempt);
    rig.tell(Event::Delivered { job: at(1, 1) });
    assert_eq!((rig.builds_ended(), rig.cancellations()), (vec![1], vec![remake]));
}
