//! Workers that vanish, come back, and take outputs with them.

use std::time::Duration;

use distbuild_coordinator::Limits;
use distbuild_proto::wire;
use distbuild_proto::wire::Outcome;
use distbuild_proto::wire::build_event::Body as Event;
use distbuild_proto::wire::build_request::Body as Ask;

use crate::fake::{FakeBuild, FakeWorker, Farm, header, job};

#[tokio::test]
async fn the_job_of_a_lost_worker_runs_on_another_and_the_attempt_stays_visible() {
    let farm = Farm::start().await;
    let mut lost = FakeWorker::join(&farm, "lost").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    lost.assigned().await;
    drop(lost);
    let mut other = FakeWorker::join(&farm, "other").await;
    let assign = other.assigned().await;
    other.succeed(&assign, "one").await;
    let finished = build.finish().await;
    assert_eq!(finished.outcomes(), [Outcome::Executed]);
    let attempts: Vec<_> = finished
        .attempts
        .iter()
        .map(|attempt| (attempt.number, attempt.worker.as_str(), attempt.outcome()))
        .collect();
    assert_eq!(attempts, [(1, "lost", Outcome::InfraError), (2, "other", Outcome::Executed)]);
    assert_eq!(finished.attempts[0].reason, "worker lost was lost");
}

#[tokio::test]
async fn an_output_that_died_with_its_worker_is_made_again_for_the_dependent_that_needs_it() {
    let farm = Farm::start().await;
    let mut first = FakeWorker::join(&farm, "first").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[]), job("b", &["a"])]).await;
    let assign = first.assigned().await;
    first.succeed(&assign, "one").await;
    assert_eq!(first.assigned().await.job_name, "b");
    drop(first);
    let mut second = FakeWorker::join(&farm, "second").await;
    // What the cache says of `a` is asked again where its only holder was; it is gone.
    for name in ["a", "b"] {
        let assign = second.assigned().await;
        assert_eq!(assign.job_name, name);
        second.succeed(&assign, if name == "a" { "one" } else { "two" }).await;
    }
    let finished = build.finish().await;
    assert_eq!(finished.outcomes(), [Outcome::Executed; 2]);
    assert_eq!(finished.attempts.len(), 4);
}

#[tokio::test]
async fn outputs_that_the_client_cannot_fetch_are_made_again() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let wants = wire::BuildHeader { wants_outputs: true, ..header() };
    let mut build = FakeBuild::submit(&farm, wants, vec![], vec![job("a", &[])]).await.unwrap();
    let assign = worker.assigned().await;
    worker.succeed(&assign, "one").await;
    build.wait(|event| matches!(event, Event::JobFinished(_)).then_some(())).await;
    build.ask(Ask::OutputsMissing(wire::JobReport { job: 0 })).await;
    worker.confirm(false).await;
    let assign = worker.assigned().await;
    worker.succeed(&assign, "one").await;
    let remade = build
        .wait(|event| match event {
            Event::OutputsRemade(remade) => Some(remade),
            _ => None,
        })
        .await;
    assert_eq!(remade.outcome(), Outcome::Executed);
    build.ask(Ask::Delivered(wire::JobReports { jobs: vec![0] })).await;
    assert_eq!(build.finish().await.build.unwrap().outcome(), Outcome::Executed);
}

#[tokio::test]
async fn a_worker_whose_connection_broke_goes_on_with_what_it_runs() {
    let limits = Limits { reconnect: Duration::from_secs(60), ..Limits::default() };
    let farm = Farm::with(limits).await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    let assign = worker.assigned().await;
    let (session, secret) = (worker.session, worker.secret.clone());
    drop(worker);
    let hello = wire::WorkerHello {
        resume_session: session,
        resume_secret: secret,
        known_attempts: vec![assign.attempt],
        ..FakeWorker::hello("w")
    };
    let worker = FakeWorker::join_with(&farm, hello).await;
    assert_eq!(worker.session, session);
    worker.succeed(&assign, "one").await;
    let finished = build.finish().await;
    assert_eq!(finished.outcomes(), [Outcome::Executed]);
    assert_eq!(finished.attempts.len(), 1);
}

#[tokio::test]
async fn an_assignment_that_was_lost_with_a_connection_is_made_again() {
    let limits = Limits { reconnect: Duration::from_secs(60), ..Limits::default() };
    let farm = Farm::with(limits).await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    let lost = worker.assigned().await;
    let (session, secret) = (worker.session, worker.secret.clone());
    drop(worker);
    let hello = wire::WorkerHello {
        resume_session: session,
        resume_secret: secret,
        ..FakeWorker::hello("w")
    };
    let mut worker = FakeWorker::join_with(&farm, hello).await;
    let again = worker.assigned().await;
    assert_ne!(again.attempt, lost.attempt);
    worker.succeed(&again, "one").await;
    assert_eq!(build.finish().await.outcomes(), [Outcome::Executed]);
}

#[tokio::test]
async fn a_draining_worker_may_leave_when_no_build_relies_on_it_alone() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let wants = wire::BuildHeader { wants_outputs: true, ..header() };
    let mut build = FakeBuild::submit(&farm, wants, vec![], vec![job("a", &[])]).await.unwrap();
    let assign = worker.assigned().await;
    worker.succeed(&assign, "one").await;
    build.wait(|event| matches!(event, Event::JobFinished(_)).then_some(())).await;
    worker.send(wire::from_worker::Body::Drain(wire::Drain {})).await;
    // Once the coordinator has taken the drain, the outputs are delivered.
    let mut client = wire::builds_client::BuildsClient::new(farm.channel().await);
    loop {
        let listed = client.list_workers(wire::ListWorkersRequest {}).await.unwrap().into_inner();
        if listed.workers[0].draining {
            break;
        }
    }
    build.ask(Ask::Delivered(wire::JobReports { jobs: vec![0] })).await;
    assert!(build.finish().await.build.is_some());
    assert!(matches!(worker.next().await, wire::to_worker::Body::Dismiss(_)));
}

#[tokio::test]
async fn a_worker_that_starts_anew_on_its_store_ends_its_earlier_session() {
    let limits = Limits { reconnect: Duration::from_secs(60), ..Limits::default() };
    let farm = Farm::with(limits).await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    let stale = worker.assigned().await;
    let mut again = FakeWorker::join(&farm, "w").await;
    assert_ne!(again.session, worker.session);
    // The earlier session's late result is not taken.
    worker.succeed(&stale, "stale").await;
    let assign = again.assigned().await;
    assert_ne!(assign.attempt, stale.attempt);
    again.succeed(&assign, "one").await;
    let finished = build.finish().await;
    let stdout = finished.jobs[&0].result.as_ref().unwrap().stdout.as_ref().unwrap();
    assert_eq!(&stdout.inline[..], b"made one\n");
}

#[tokio::test]
async fn an_infrastructure_error_is_retried_within_a_bound_and_then_says_why() {
    let mut limits = Limits::default();
    limits.scheduler.retry_elsewhere_ms = 1;
    let farm = Farm::with(limits).await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    for _ in 0..3 {
        let assign = worker.assigned().await;
        worker.end(&assign, wire::AttemptEnd::AttemptInfraError, None).await;
    }
    let finished = build.finish().await;
    assert_eq!(finished.outcomes(), [Outcome::InfraError]);
    assert_eq!(finished.attempts.len(), 3);
    let reason = &finished.jobs[&0].reason;
    assert!(reason.starts_with("3 attempts went wrong"), "{reason}");
    assert!(reason.contains("AttemptInfraError"), "{reason}");
}
