//! Bazel builds a C++ project on the farm: `cargo test -p distbuild-tests --test bazel -- --test-threads=1`.
//!
//! It needs `bazel` (Debian: `bazel-bootstrap`, 4.2.3) and no network. The project is `examples/bazel`, its own `.bazelrc`
//! is the only configuration, and nothing may run on this side: what Bazel cannot run remotely fails. How many actions ran in which
//! way is what Bazel itself counts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use distbuild_tests::bazel::Ended;
use distbuild_tests::{Bazel, Farm, example, wait};

/// What the project consists of: compiles, links, archives, generated files and tests.
const LEAST_ACTIONS: usize = 100;

/// Where the coordinator of the README listens.
const README_ADDRESS: &str = "127.0.0.1:8980";

#[test]
fn everything_runs_on_the_farm_then_comes_from_its_cache_and_is_what_a_local_build_makes() {
    let bazel = Bazel::new(example::bazel(), &[]);
    bazel.succeed("build", &["--spawn_strategy=local", "--jobs=2", "//..."]);
    let local = bazel.outputs();
    bazel.succeed("clean", &[] as &[&str]);

    let farm = Farm::start(2);
    let cold = bazel.succeed("test", &on(&farm, &["//..."]));
    assert_all(&cold, "remote");
    assert_tests_pass(&cold);
    assert_same(&bazel.outputs(), &local);

    bazel.succeed("clean", &[] as &[&str]);
    let cached = bazel.succeed("build", &on(&farm, &["//..."]));
    assert_all(&cached, "remote cache hit");
    let tested = bazel.succeed("test", &on(&farm, &["//..."]));
    assert_all_of(&tested, "remote cache hit", 1);
    assert_same(&bazel.outputs(), &local);
}

#[test]
fn with_minimal_downloads_outputs_stay_on_the_farm_until_they_are_asked_for() {
    let (farm, bazel) = (Farm::start(2), Bazel::new(example::bazel(), &[]));
    let minimal = on(&farm, &["--remote_download_minimal", "//..."]);
    for way in ["remote", "remote cache hit"] {
        let build = bazel.succeed("test", &minimal);
        assert_all(&build, way);
        assert_tests_pass(&build);
        for output in ["apps/total", "apps/answer.txt", "apps/pages/1/page-1.txt"] {
            assert!(!bazel.output(output).exists(), "{output} was downloaded");
        }
        bazel.succeed("clean", &[] as &[&str]);
    }
    bazel.succeed("build", &on(&farm, &["--remote_download_toplevel", "//apps:answer"]));
    assert_eq!(std::fs::read_to_string(bazel.output("apps/answer.txt")).unwrap(), "4824\n");
    assert!(!bazel.output("apps/total").exists(), "what made it was not asked for");
}

#[test]
fn a_client_whose_digest_function_is_sha1_is_served_as_well() {
    let (farm, bazel) = (Farm::start(2), Bazel::new(example::bazel(), &["--digest_function=SHA1"]));
    for way in ["remote", "remote cache hit"] {
        // This Bazel takes the one function that it is told for the only one; the instance says which.
        let build = bazel.succeed("test", &on(&farm, &["--remote_instance_name=sha1", "//..."]));
        assert_all(&build, way);
        assert_tests_pass(&build);
        assert_eq!(std::fs::read_to_string(bazel.output("apps/answer.txt")).unwrap(), "4824\n");
        bazel.succeed("clean", &[] as &[&str]);
    }
}

#[test]
fn a_worker_that_is_killed_in_the_middle_of_a_build_is_made_up_for() {
    let (mut farm, bazel) = (Farm::start(2), Bazel::new(example::bazel(), &[]));
    let mut build = bazel.start("test", &on(&farm, &["//..."]));
    wait::until("both workers to run something", || {
        let connected = farm.connected();
        let busy = connected.iter().all(|worker| worker["running_jobs"].as_u64() > Some(0));
        (busy && connected.len() == 2).then_some(())
    });
    farm.kill_worker(1);
    assert!(build.runs(), "the build was over before the worker was killed");
    let build = build.finish();
    assert_eq!(build.code, 0, "{}", build.text);
    assert_all(&build, "remote");
    assert_tests_pass(&build);
    assert_eq!(farm.connected().len(), 1);

    // What only the killed worker had run was durable before it was announced.
    bazel.succeed("clean", &[] as &[&str]);
    assert_all(&bazel.succeed("test", &on(&farm, &["//..."])), "remote cache hit");
    assert_eq!(std::fs::read_to_string(bazel.output("apps/answer.txt")).unwrap(), "4824\n");
}

#[test]
fn the_lines_of_the_readme_work_as_they_stand_there() {
    let (farm, bazel) = (Farm::start(1), Bazel::new(example::bazel(), &[]));
    let readme = include_str!("../../../README.md");
    let after = readme.split_once("in `.bazelrc`:\n\n```\n").expect("it has the lines").1;
    let lines = after.split_once("```").expect("the lines end").0;
    assert!(lines.contains(README_ADDRESS), "{lines}");
    bazel.project().file(".bazelrc", lines.replace(README_ADDRESS, &farm.address()));
    let build = bazel.succeed("build", &["//apps:answer"]);
    assert_all_of(&build, "remote", 20);
    assert_eq!(std::fs::read_to_string(bazel.output("apps/answer.txt")).unwrap(), "4824\n");
}

/// Arguments of a command that runs on a farm and nowhere else.
fn on(farm: &Farm, args: &[&str]) -> Vec<String> {
    let address = format!("--remote_executor=grpc://{}", farm.address());
    let own = ["--config=farm", &address].into_iter();
    own.chain(args.iter().copied()).map(String::from).collect()
}

/// All actions of the project ran in one way; only what Bazel does in its own process is beside it.
fn assert_all(build: &Ended, way: &str) {
    assert_all_of(build, way, LEAST_ACTIONS);
}

fn assert_all_of(build: &Ended, way: &str, least: usize) {
    let mut processes = build.processes();
    processes.remove("internal");
    let count = processes.remove(way).unwrap_or(0);
    assert!(
        count >= least && processes.is_empty(),
        "{way}: {count}, {processes:?}: {}",
        build.text
    );
}

fn assert_tests_pass(build: &Ended) {
    assert!(build.text.contains("13 tests pass"), "{}", build.text);
}

/// Names what differs: whole outputs say nothing.
fn assert_same(seen: &BTreeMap<PathBuf, Vec<u8>>, expected: &BTreeMap<PathBuf, Vec<u8>>) {
    let names = seen.keys().chain(expected.keys());
    let differ: Vec<_> = names.filter(|name| seen.get(*name) != expected.get(*name)).collect();
    assert!(differ.is_empty(), "these differ from a local build: {differ:#?}");
    assert!(seen.len() >= LEAST_ACTIONS, "outputs were compared: {}", seen.len());
}
