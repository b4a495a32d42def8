//! Coordinators that are killed, stopped or cut off while builds run: the builds go on, nothing is told twice,
//! nothing that had finished runs again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use distbuild_tests::build::{Finished, Running};
use distbuild_tests::project::{shell, shell_with};
use distbuild_tests::{Build, Conditions, Farm, Project, SlowLink, example, wait};
use serde_json::{Value, json};

/// The events are numbered from 1 without a gap or a double, each job finished once, and each attempt that began
/// ended once.
#[track_caller]
fn assert_told_once(build: &Finished) {
    let seqs: Vec<_> = build.events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    let last = seqs.len() as u64;
    assert_eq!(seqs, (1..=last).collect::<Vec<_>>(), "{}", build.stderr);
    let mut counts: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for event in &build.events {
        let kind = event["type"].as_str().unwrap();
        if ["job_finished", "attempt_started", "attempt_finished"].contains(&kind) {
            let key = (kind.to_owned(), event["job"].to_string(), event["number"].to_string());
            *counts.entry(key).or_default() += 1;
        }
    }
    let doubles: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubles.is_empty(), "{doubles:?}");
    let of = |kind: &str| counts.keys().filter(|(it, _, _)| it == kind).count();
    assert_eq!(of("attempt_started"), of("attempt_finished"), "{:#?}", build.events);
}

/// Whether some process has this argument.
fn is_running(argument: &str) -> bool {
    let has = |path: std::path::PathBuf| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|it| it == argument.as_bytes())
    };
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| has(entry.path()))
}

/// Each of these jobs was executed, in one attempt.
#[track_caller]
fn assert_ran_once(build: &Finished, jobs: impl IntoIterator<Item = String>) {
    for job in jobs {
        let attempts = build.attempts(&job);
        let results: Vec<&Value> = attempts.iter().map(|attempt| &attempt["result"]).collect();
        assert_eq!(results, ["succeeded"], "{job}: {}\n{}", build.summary, build.stderr);
    }
}

/// A build of one job, `a`, which runs for another two seconds.
fn build_whose_job_runs(farm: &Farm) -> (Project, Running) {
    let project =
        Project::with_jobs(json!([shell("a", "echo up; sleep 2; echo a > {{OUTPUT_DIR}}/f")]));
    let running = farm.build(&project.graph()).start();
    running.wait_event("output", |_| true);
    (project, running)
}

/// Lets an instant come for a fault that has nothing to do with what happens then. What a test expects holds
/// at every instant, also if this one comes early or late.
fn any_instant(ms: u64) {
    std::thread::park_timeout(Duration::from_millis(ms));
}

#[test]
fn a_build_goes_on_after_its_coordinator_was_killed_and_runs_nothing_twice() {
    let mut farm = Farm::start(2);
    let project = Project::with_jobs(json!([
        shell("first", "echo first > {{OUTPUT_DIR}}/f"),
        shell_with(
            "long",
            &["late"],
            &["first"],
            // Reads a source that nobody has fetched before the coordinator is gone.
            "echo up; sleep 2; cat {{DEP:first}}/f /distbuild/src/late > {{OUTPUT_DIR}}/f"
        ),
        shell_with("last", &[], &["long"], "cat {{DEP:long}}/f > {{OUTPUT_DIR}}/f"),
    ]));
    project.file("late", "late\n");
    let running = farm.build(&project.graph()).start();
    running.wait_event("output", |event| event["job"] == "long");
    farm.kill_coordinator();
    farm.start_coordinator_again();
    let build = running.finish();
    assert_eq!(build.code, 0, "{}", build.stderr);
    assert_eq!(build.jobs("executed"), 3, "{}", build.summary);
    assert_ran_once(&build, ["first", "long", "last"].map(str::to_owned));
    assert_told_once(&build);
    assert_eq!(project.output("last", "f"), "first\nlate\n");
    let again = farm.build(&project.graph()).succeed();
    assert_eq!(again.jobs("cached"), 3);
}

#[test]
fn jobs_that_end_while_the_coordinator_is_away_count_once() {
    let mut farm = Farm::start(2);
    let project = Project::with_jobs(json!([
        shell("good", "echo up; sleep 1.0625; echo good > {{OUTPUT_DIR}}/f"),
        shell("bad", "echo up; sleep 1.0625; echo broken >&2; exit 7"),
        shell_with("after", &[], &["bad"], "true"),
    ]));
    let running = farm.build(&project.graph()).args(["--keep-going"]).start();
    running.wait_event("output", |event| event["job"] == "good");
    running.wait_event("output", |event| event["job"] == "bad");
    farm.kill_coordinator();
    wait::until("the jobs to end", || (!is_running("1.0625")).then_some(()));
    farm.start_coordinator_again();
    let build = running.finish();
    assert_eq!(build.code, 1, "{}", build.stderr);
    assert_eq!((build.jobs("executed"), build.jobs("failed"), build.jobs("skipped")), (1, 1, 1));
    assert_ran_once(&build, ["good".to_owned()]);
    let bad = build.attempts("bad");
    assert_eq!(bad.len(), 1, "{}", build.summary);
    assert_eq!(bad[0]["exit_code"], 7);
    assert!(build.stderr.contains("broken"), "{}", build.stderr);
    assert_told_once(&build);
}

#[test]
fn a_coordinator_may_be_killed_at_any_instant_and_twice() {
    let mut farm = Farm::start(2);
    let script = |n: u32| format!("sleep 0.{}; echo {n} > {{{{OUTPUT_DIR}}}}/f; echo {n}", n % 4);
    for kill_after in [0_usize, 1, 3, 6, 9] {
        let name = |n: u32| format!("job {kill_after} {n}");
        let mut jobs: Vec<Value> = (0..8).map(|n| shell(&name(n), &script(n))).collect();
        let deps: Vec<String> = (0..8).map(name).collect();
        let deps: Vec<&str> = deps.iter().map(String::as_str).collect();
        for n in 8..12 {
            let mut job = shell_with(&name(n), &[], &deps, &script(n));
            job["cache"] = json!(n % 2 == 0);
            jobs.push(job);
        }
        let project = Project::with_jobs(json!(jobs));
        let running = farm.build(&project.graph()).args(["--no-cache"]).start();
        running.wait_event("build_started", |_| true);
        for kill_after in [kill_after, kill_after + 2] {
            running.wait_finished(kill_after);
            farm.kill_coordinator();
            farm.start_coordinator_again();
        }
        let build = running.finish();
        assert_eq!(build.code, 0, "{kill_after}: {}", build.stderr);
        assert_eq!(build.jobs("executed"), 12, "{kill_after}: {}", build.summary);
        assert_ran_once(&build, (0..12).map(name));
        assert_told_once(&build);
    }
}

#[test]
fn a_coordinator_may_be_killed_again_and_again() {
    let mut farm = Farm::start(3);
    let name = |n: usize| format!("job {n}");
    // Layers of ten: all of the one before are needed.
    let jobs = (0..60).map(|n| {
        let layer: usize = n / 10 * 10;
        let deps: Vec<String> = (layer.saturating_sub(10)..layer).map(name).collect();
        let deps: Vec<&str> = deps.iter().map(String::as_str).collect();
        let source = format!("source {n}");
        let script =
            format!("sleep 0.{}; cat '/distbuild/src/{source}' > {{{{OUTPUT_DIR}}}}/f", n % 3);
        shell_with(&name(n), &[&source], &deps, &script)
    });
    let project = Project::with_jobs(jobs.collect());
    (0..60).for_each(|n| project.file(format!("source {n}"), format!("{n}\n")));
    let running = farm.build(&project.graph()).args(["--no-cache"]).start();
    running.wait_event("build_started", |_| true);
    for n in 0..12_u64 {
        any_instant(40 + n * n * 37 % 411);
        farm.kill_coordinator();
        farm.start_coordinator_again();
    }
    let build = running.finish();
    assert_eq!(build.code, 0, "{}", build.stderr);
    assert_eq!(build.jobs("executed"), 60, "{}", build.summary);
    for job in (0..60).map(name) {
        let attempts = build.attempts(&job);
        let (last, lost) = attempts.split_last().unwrap();
        assert_eq!(last["result"], "succeeded", "{job}: {}", build.summary);
        // The assignment of such an attempt died with a coordinator, on its way to the worker.
        assert!(lost.iter().all(|it| it["result"] == "infra_error"), "{job}: {}", build.summary);
    }
    assert_told_once(&build);
}

#[test]
fn a_coordinator_may_be_killed_while_a_build_is_submitted() {
    let mut farm = Farm::start(1);
    for ms in [5, 20, 40, 80, 160] {
        let name = format!("job {ms}");
        let script = format!("sleep 0.1; echo {ms} > {{{{OUTPUT_DIR}}}}/f");
        let project = Project::with_jobs(json!([shell(&name, &script)]));
        let running = farm.build(&project.graph()).start();
        any_instant(ms);
        farm.kill_coordinator();
        farm.start_coordinator_again();
        let build = running.finish();
        assert_eq!(build.code, 0, "{ms}: {}", build.stderr);
        assert_ran_once(&build, [name]);
        assert_told_once(&build);
    }
}

#[test]
fn a_coordinator_that_is_told_to_stop_leaves_its_builds_to_the_next_one() {
    let mut farm = Farm::start(1);
    let (_project, running) = build_whose_job_runs(&farm);
    farm.restart_coordinator();
    let build = running.finish();
    assert_eq!(build.code, 0, "{}", build.stderr);
    assert!(build.stderr.contains("shutting down"), "{}", build.stderr);
    assert_ran_once(&build, ["a".to_owned()]);
    assert_told_once(&build);
}

#[test]
fn a_worker_that_dies_with_the_coordinator_is_made_up_for() {
    let mut farm = Farm::start(2);
    let (_project, running) = build_whose_job_runs(&farm);
    let started = running.wait_event("attempt_started", |_| true);
    farm.kill_coordinator();
    farm.kill_worker(started["worker"].as_str().unwrap()[1..].parse().unwrap());
    farm.start_coordinator_again();
    let build = running.finish();
    assert_eq!(build.code, 0, "{}", build.stderr);
    let results: Vec<_> = build.attempts("a").iter().map(|it| it["result"].clone()).collect();
    assert_eq!(results, ["infra_error", "succeeded"], "{}", build.summary);
    assert_told_once(&build);
}

#[test]
fn a_client_and_a_worker_whose_connections_are_cut_go_on() {
    let mut farm = Farm::without_workers();
    let here = Conditions { round_trip: Duration::ZERO, bytes_per_second: None };
    let links = [SlowLink::to(&farm.address(), here), SlowLink::to(&farm.address(), here)];
    farm.add_worker_through(&links[0].address(), 0, &[]);
    farm.wait_for_workers(1);
    let project = Project::with_jobs(json!([
        shell_with(
            "a",
            &["late"],
            &[],
            "echo up; sleep 1; cat /distbuild/src/late > {{OUTPUT_DIR}}/f"
        ),
        shell_with("b", &[], &["a"], "echo up; sleep 1; cat {{DEP:a}}/f > {{OUTPUT_DIR}}/f"),
    ]));
    project.file("late", "late\n");
    let running = Build::of(&project.graph()).on(&links[1].address()).start();
    for job in ["a", "b"] {
        running.wait_event("output", |event| event["job"] == job);
        links.iter().for_each(SlowLink::cut);
    }
    let build = running.finish();
    assert_eq!(build.code, 0, "{}", build.stderr);
    assert!(build.stderr.contains("the build goes on"), "{}", build.stderr);
    assert_ran_once(&build, ["a", "b"].map(str::to_owned));
    assert_told_once(&build);
    assert_eq!(project.output("b", "f"), "late\n");
}

#[test]
fn a_coordinator_that_does_not_come_back_ends_the_build_as_an_infrastructure_error() {
    let mut farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell("a", "echo up; sleep 30")]));
    let running = farm.build(&project.graph()).args(["--reconnect", "1"]).start();
    running.wait_event("output", |_| true);
    farm.kill_coordinator();
    let build = running.finish();
    assert_eq!(build.code, 3, "{}", build.stderr);
    assert!(build.stderr.contains("did not come back within 1 s"), "{}", build.stderr);
}

#[test]
fn lua_is_built_while_its_coordinator_is_killed() {
    let mut farm = Farm::start(3);
    let project = example::lua();
    let running = farm.build(&project.graph()).start();
    running.wait_finished(10);
    farm.kill_coordinator();
    farm.start_coordinator_again();
    let back = Instant::now();
    let finished = |event: &&Value| event["type"] == "job_finished";
    let before = running.events().iter().filter(finished).count();
    running.wait_finished(before + 1);
    let delay = back.elapsed();
    let build = running.finish();
    assert_eq!(build.code, 0, "{}", build.stderr);
    assert_eq!((build.jobs("total"), build.jobs("executed")), (35, 35));
    let runs = build.summary["attempts"].as_array().unwrap().len();
    assert_eq!(runs, 35, "nothing ran twice: {}", build.summary);
    assert_told_once(&build);
    assert!(delay.as_secs() < 5, "{delay:?} until the first job finished after the restart");
}
