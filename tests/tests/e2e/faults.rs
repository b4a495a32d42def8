//! Workers that die, outputs that die with them.

use distbuild_tests::project::{shell, shell_with};
use distbuild_tests::{Farm, Project, wait};
use nix::sys::signal::Signal;
use serde_json::json;

#[test]
fn a_worker_killed_while_it_runs_a_job_and_holds_the_only_copy_of_an_output_is_made_up_for() {
    let mut farm = Farm::start(3);
    let project = Project::with_jobs(json!([
        shell("first", "echo first > {{OUTPUT_DIR}}/f"),
        // Runs where its input is, and long enough to be killed.
        shell_with(
            "long",
            &["gate"],
            &["first"],
            "cat {{DEP:first}}/f > {{OUTPUT_DIR}}/f; echo up; \
                    test -e /distbuild/src/gate && sleep 2"
        ),
        shell_with(
            "last",
            &[],
            &["first", "long"],
            "cat {{DEP:first}}/f {{DEP:long}}/f > {{OUTPUT_DIR}}/f"
        ),
    ]));
    project.file("gate", "");
    let running = farm.build(&project.graph()).args(["--job", "last"]).start();
    let first = running.wait_event("attempt_finished", |event| event["job"] == "first");
    let long = running.wait_event("output", |event| event["job"] == "long");
    let holder = first["worker"].as_str().unwrap().to_owned();
    let started = running
        .events()
        .into_iter()
        .find(|event| event["type"] == "attempt_started" && event["job"] == "long")
        .unwrap();
    assert_eq!(started["worker"], holder.as_str(), "it runs where its input is: {long}");
    farm.kill_worker(holder[1..].parse().unwrap());
    let build = running.finish();
    assert_eq!(build.code, 0, "{}", build.stderr);
    assert_eq!(project.output("last", "f"), "first\nfirst\n");
    let attempts = build.attempts("long");
    assert!(attempts.len() >= 2, "what was retried is in the summary: {}", build.summary);
    assert_eq!(attempts[0]["result"], "infra_error");
    assert!(
        build.attempts("first").len() >= 2,
        "the lost output was made again: {}",
        build.summary
    );
    assert_eq!(attempts.last().unwrap()["result"], "succeeded");
}

#[test]
fn an_output_whose_only_copy_died_is_made_again_when_it_is_requested() {
    let mut farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell("a", "echo a > {{OUTPUT_DIR}}/f")]));
    farm.build(&project.graph()).succeed();
    farm.kill_worker(0);
    std::fs::remove_dir_all(farm.worker_state(0)).unwrap();
    std::fs::remove_dir_all(project.join("distbuild-out")).unwrap();
    farm.add_worker(1, &[]);
    let build = farm.build(&project.graph()).succeed();
    assert_eq!(build.jobs("executed"), 1);
    assert_eq!(project.output("a", "f"), "a\n");
}

#[test]
fn a_worker_that_is_told_to_stop_finishes_what_it_runs() {
    let mut farm = Farm::start(1);
    let project =
        Project::with_jobs(json!([shell("a", "echo up; sleep 1; echo a > {{OUTPUT_DIR}}/f")]));
    let running = farm.build(&project.graph()).start();
    running.wait_event("output", |_| true);
    farm.workers[0].as_ref().unwrap().signal(Signal::SIGTERM);
    wait::until("the drain to be known", || {
        farm.connected().first().is_none_or(|worker| worker["draining"] == true).then_some(())
    });
    let status = farm.workers[0].as_mut().unwrap().wait();
    assert!(status.success(), "{status:?}");
    let build = running.finish();
    // The job ran to its end; its outputs went with the worker's farewell only if nobody had them yet.
    assert_eq!(build.attempts("a")[0]["result"], "succeeded", "{}", build.summary);
}

#[test]
fn a_worker_stopped_for_a_moment_loses_no_result() {
    let farm = Farm::start(1);
    let project =
        Project::with_jobs(json!([shell("a", "echo up; sleep 1; echo a > {{OUTPUT_DIR}}/f")]));
    let running = farm.build(&project.graph()).start();
    running.wait_event("output", |_| true);
    let worker = farm.workers[0].as_ref().unwrap();
    worker.signal(Signal::SIGSTOP);
    wait::until("the worker to stand still", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
        status.contains("T (stopped)").then_some(())
    });
    worker.signal(Signal::SIGCONT);
    let build = running.finish();
    assert_eq!(build.code, 0, "{}", build.stderr);
    assert_eq!(build.attempts("a").len(), 1);
    assert_eq!(project.output("a", "f"), "a\n");
}

#[test]
fn two_toolchains_never_meet_in_one_build_and_another_one_is_a_miss() {
    let mut farm = Farm::without_workers();
    farm.add_worker(0, &["--property", "toolchain=old"]);
    farm.wait_for_workers(1);
    let jobs: Vec<_> = (0..6).map(|n| shell(&format!("job {n}"), &format!("echo {n}"))).collect();
    let project = Project::with_jobs(json!(jobs));
    assert_eq!(farm.build(&project.graph()).succeed().jobs("executed"), 6);
    farm.add_worker(1, &["--property", "toolchain=new"]);
    farm.wait_for_workers(2);
    for _ in 0..2 {
        let build = farm.build(&project.graph()).args(["--no-cache"]).succeed();
        let workers: std::collections::BTreeSet<_> = (0..6)
            .map(|n| build.attempts(&format!("job {n}"))[0]["worker"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(workers.len(), 1, "two toolchains in one build: {workers:?}");
    }
    farm.kill_worker(0);
    farm.wait_for_workers(1);
    let build = farm.build(&project.graph()).args(["--no-cache"]).succeed();
    assert_eq!(build.attempts("job 0")[0]["worker"], "w1");
    assert_eq!(farm.build(&project.graph()).succeed().jobs("cached"), 6);
}
