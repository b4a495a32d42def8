//! Builds from submission to the end: run, cached, cut off, joined, refused.

use distbuild_proto::wire;
use distbuild_proto::wire::Outcome;
use distbuild_proto::wire::build_event::Body as Event;
use distbuild_proto::wire::build_request::Body as Ask;
use distbuild_proto::wire::to_worker::Body as ToWorker;

use crate::fake::{FakeBuild, FakeWorker, Farm, header, job, soon};

#[tokio::test]
async fn a_job_runs_after_its_dependency_with_its_outputs_as_input() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("b", &["a"]), job("a", &[])]).await;
    let first = worker.assigned().await;
    assert_eq!(first.job_name, "a");
    let root = worker.succeed(&first, "one").await;
    let second = worker.assigned().await;
    assert_eq!(second.job_name, "b");
    assert_eq!(second.deps[0].root, Some(root.into()));
    assert!(second.deps[0].local);
    worker.succeed(&second, "two").await;
    let finished = build.finish().await;
    assert_eq!(finished.outcomes(), [Outcome::Executed; 2]);
    let stdout = finished.jobs[&0].result.as_ref().unwrap().stdout.as_ref().unwrap();
    assert_eq!(&stdout.inline[..], b"made two\n");
}

#[tokio::test]
async fn an_end_is_acknowledged_with_the_next_assignment_or_alone() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[]), job("b", &[])]).await;
    let first = worker.assigned().await;
    worker.succeed(&first, "one").await;
    let answer = worker.message().await;
    let Some(ToWorker::Assign(second)) = answer.body else { panic!("{answer:?}") };
    assert_eq!(answer.acknowledged, [first.attempt]);
    worker.succeed(&second, "two").await;
    assert_eq!(worker.message().await.acknowledged, [second.attempt]);
    assert_eq!(build.finish().await.outcomes(), [Outcome::Executed; 2]);
}

#[tokio::test]
async fn an_equal_build_is_cached_also_after_a_restart_and_only_if_the_worker_confirms() {
    let mut farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    let assign = worker.assigned().await;
    worker.succeed(&assign, "one").await;
    build.finish().await;
    farm.restart().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    for (confirmed, outcome) in [(true, Outcome::Cached), (false, Outcome::Executed)] {
        let answer = async {
            worker.confirm(confirmed).await;
            if !confirmed {
                // Looked up once more by its action, and not whole there either.
                worker.confirm(false).await;
                let assign = worker.assigned().await;
                worker.succeed(&assign, "one").await;
            }
        };
        let (mut build, ()) = tokio::join!(FakeBuild::run(&farm, vec![job("a", &[])]), answer);
        let finished = build.finish().await;
        assert_eq!(finished.outcomes(), [outcome]);
        let stdout = finished.jobs[&0].result.as_ref().unwrap().stdout.as_ref().unwrap();
        assert_eq!(&stdout.inline[..], b"made one\n");
    }
}

#[tokio::test]
async fn a_dependent_of_unchanged_outputs_is_cut_off() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[]), job("b", &["a"])]).await;
    for contents in ["same", "two"] {
        let assign = worker.assigned().await;
        worker.succeed(&assign, contents).await;
    }
    build.finish().await;
    let mut changed = job("a", &[]);
    changed.job.as_mut().unwrap().env = vec!["X=1".into()];
    let mut build = FakeBuild::run(&farm, vec![changed, job("b", &["a"])]).await;
    let assign = worker.assigned().await;
    assert_eq!(assign.job_name, "a");
    worker.succeed(&assign, "same").await;
    worker.confirm(true).await;
    assert_eq!(build.finish().await.outcomes(), [Outcome::Executed, Outcome::CutOff]);
}

#[tokio::test]
async fn equal_jobs_of_two_builds_run_once() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut one = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    let assign = worker.assigned().await;
    let mut two = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    two.wait(|event| matches!(event, Event::JobQueued(_)).then_some(())).await;
    // The look-up of the second build is answered before this status is.
    let mut client = wire::builds_client::BuildsClient::new(farm.channel().await);
    let running = async {
        loop {
            let status = client.status(wire::StatusRequest {}).await.unwrap().into_inner();
            if status.builds.len() == 2 {
                return;
            }
        }
    };
    soon("both builds", running).await;
    worker.succeed(&assign, "one").await;
    assert_eq!(one.finish().await.outcomes(), [Outcome::Executed]);
    // Either joined while it ran, or found in the cache right after.
    let second = async {
        worker.confirm(true).await;
    };
    let (finished, ()) = tokio::join!(two.finish(), second);
    assert_eq!(finished.attempts.len(), 0);
    assert!(matches!(finished.outcomes()[..], [Outcome::Cached | Outcome::CutOff]));
}

#[tokio::test]
async fn a_failed_job_is_not_cached_and_its_dependents_are_skipped() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    for _ in 0..2 {
        let mut build = FakeBuild::run(&farm, vec![job("a", &[]), job("b", &["a"])]).await;
        let assign = worker.assigned().await;
        worker.fail(&assign, 7).await;
        let finished = build.finish().await;
        assert_eq!(finished.outcomes(), [Outcome::Failed, Outcome::Skipped]);
        assert_eq!(finished.jobs[&0].result.as_ref().unwrap().exit_code, 7);
        assert_eq!(finished.jobs[&1].reason, "its dependency \"a\" did not succeed");
        assert_eq!(finished.build.unwrap().outcome(), Outcome::Failed);
    }
}

#[tokio::test]
async fn an_uncached_job_runs_each_time_and_its_dependent_is_found_by_its_action() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let jobs = || {
        let mut uncached = job("a", &[]);
        uncached.job.as_mut().unwrap().cache = Some(false);
        vec![uncached, job("b", &["a"])]
    };
    let mut build = FakeBuild::run(&farm, jobs()).await;
    for contents in ["same", "two"] {
        let assign = worker.assigned().await;
        worker.succeed(&assign, contents).await;
    }
    build.finish().await;
    let mut build = FakeBuild::run(&farm, jobs()).await;
    let assign = worker.assigned().await;
    worker.succeed(&assign, "same").await;
    worker.confirm(true).await;
    assert_eq!(build.finish().await.outcomes(), [Outcome::Executed, Outcome::CutOff]);
}

#[tokio::test]
async fn an_invalid_graph_is_an_error_of_the_call() {
    let farm = Farm::start().await;
    let _worker = FakeWorker::join(&farm, "w").await;
    let error = FakeBuild::submit(&farm, header(), vec![], vec![job("a", &["missing"])]).await;
    let error = error.err().unwrap();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("missing"), "{}", error.message());
}

#[tokio::test]
async fn a_time_limit_beyond_what_the_coordinator_allows_is_refused() {
    let farm = Farm::start().await;
    let _worker = FakeWorker::join(&farm, "w").await;
    let mut long = job("long", &[]);
    long.job.as_mut().unwrap().timeout_ms = 2 * 24 * 3600 * 1000;
    let error = FakeBuild::submit(&farm, header(), vec![], vec![long]).await.err().unwrap();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().starts_with("job \"long\": timeout_ms is over 86400000 ms"), "{error}");
}

#[tokio::test]
async fn a_platform_that_no_known_pool_offers_is_refused_with_near_matches() {
    let farm = Farm::start().await;
    let _worker = FakeWorker::join(&farm, "w").await;
    let mut impossible = job("a", &[]);
    let property = wire::PlatformProperty { name: "os".to_owned(), value: "plan9".to_owned() };
    impossible.job.as_mut().unwrap().platform = vec![property];
    let error = FakeBuild::submit(&farm, header(), vec![], vec![impossible]).await.err().unwrap();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(error.message().contains("no worker has os=plan9"), "{}", error.message());
    assert!(error.message().contains("known values of os: linux"), "{}", error.message());
}

#[tokio::test]
async fn a_build_waits_for_the_first_worker_that_ever_comes() {
    let farm = Farm::start().await;
    let build = FakeBuild::run(&farm, vec![job("a", &[])]);
    let worker = async {
        let mut worker = FakeWorker::join(&farm, "w").await;
        let assign = worker.assigned().await;
        worker.succeed(&assign, "one").await;
        worker
    };
    let (mut build, _worker) = tokio::join!(build, worker);
    assert_eq!(build.finish().await.outcomes(), [Outcome::Executed]);
}

#[tokio::test]
async fn a_cancelled_build_cancels_its_attempts() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[]), job("b", &["a"])]).await;
    let assign = worker.assigned().await;
    build.ask(Ask::Cancel(wire::CancelBuild {})).await;
    match worker.next().await {
        ToWorker::CancelAttempt(cancel) => assert_eq!(cancel.attempt, assign.attempt),
        other => panic!("{other:?}"),
    }
    worker.end(&assign, wire::AttemptEnd::AttemptCancelled, None).await;
    let finished = build.finish().await;
    assert_eq!(finished.outcomes(), [Outcome::Cancelled; 2]);
    assert_eq!(finished.build.unwrap().outcome(), Outcome::Cancelled);
}

#[tokio::test]
async fn a_coordinator_that_shuts_down_ends_builds_as_infrastructure_errors_and_does_not_dally() {
    let mut farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let mut build = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    let assign = worker.assigned().await;
    let coordinator = farm.coordinator.take().unwrap();
    let begun = std::time::Instant::now();
    let rest = async {
        assert!(matches!(worker.next().await, ToWorker::CancelAttempt(_)));
        worker.end(&assign, wire::AttemptEnd::AttemptCancelled, None).await;
        build.finish().await
    };
    let ((), finished) = tokio::join!(coordinator.shutdown(), rest);
    assert_eq!(finished.outcomes(), [Outcome::Cancelled]);
    assert_eq!(finished.jobs[&0].reason, "the coordinator is shutting down");
    assert_eq!(finished.build.unwrap().outcome(), Outcome::InfraError);
    // Far below the limits of a clean shutdown, all of which would have to pass otherwise.
    assert!(begun.elapsed() < std::time::Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_build() {
    let farm = Farm::start().await;
    let mut worker = FakeWorker::join(&farm, "w").await;
    let build = FakeBuild::run(&farm, vec![job("a", &[])]).await;
    worker.assigned().await;
    drop(build);
    assert!(matches!(worker.next().await, ToWorker::CancelAttempt(_)));
}
