//! A result stands until something that its commands looked at changes, whatever else was declared.

use std::os::unix::fs::PermissionsExt as _;

use distbuild_tests::project::{shell, shell_with};
use distbuild_tests::{Farm, Project};
use serde_json::json;

/// Builds, and says how many jobs ran and how many earlier runs stood for one.
fn ran_and_stood(farm: &Farm, project: &Project) -> (u64, u64) {
    let build = farm.build(&project.graph()).succeed();
    (build.jobs("executed"), build.jobs("cut_off"))
}

const RAN: (u64, u64) = (1, 0);
const STOOD: (u64, u64) = (0, 1);

/// A job that declares a whole tree and does this in it; it has run once.
fn after_one_run(command: &str) -> (Farm, Project) {
    let farm = Farm::start(1);
    let command = format!("cd tree; {command}; date +%N > {{{{OUTPUT_DIR}}}}/when");
    let project = Project::with_jobs(json!([shell_with("job", &["tree"], &[], &command)]));
    project.file("tree/read", "read");
    project.file("tree/unread", "unread");
    project.file("tree/sub/inner", "inner");
    project.file_with_mode("tree/tool", "#!/bin/sh\n", 0o755);
    std::os::unix::fs::symlink("read", project.join("tree/link")).unwrap();
    assert_eq!(ran_and_stood(&farm, &project), RAN);
    (farm, project)
}

#[test]
fn a_file_that_no_command_looked_at_may_change_come_and_go() {
    let (farm, project) = after_one_run("cat read");
    let first = std::fs::read(project.out("job").join("when")).unwrap();
    project.file("tree/unread", "changed");
    assert_eq!(ran_and_stood(&farm, &project), STOOD);
    project.file("tree/new", "nobody looks for it");
    project.file("tree/sub/new", "nor for this");
    assert_eq!(ran_and_stood(&farm, &project), STOOD);
    std::fs::remove_file(project.join("tree/unread")).unwrap();
    std::fs::remove_dir_all(project.join("tree/sub")).unwrap();
    assert_eq!(ran_and_stood(&farm, &project), STOOD);
    assert_eq!(std::fs::read(project.out("job").join("when")).unwrap(), first);
    let again = farm.build(&project.graph()).succeed();
    assert_eq!(again.jobs("cached"), 1, "from now on it is found by its own key");
}

#[test]
fn a_result_that_stood_for_another_stays_when_its_own_action_runs_again() {
    let (farm, project) = after_one_run("cat read");
    let when = || std::fs::read(project.out("job").join("when")).unwrap();
    let first = when();
    project.file("tree/unread", "changed");
    assert_eq!(ran_and_stood(&farm, &project), STOOD);
    project.file("tree/unread", "unread");
    farm.build(&project.graph()).args(["--no-cache"]).succeed();
    assert_ne!(when(), first, "the command tells the time");
    project.file("tree/unread", "changed");
    assert_eq!(farm.build(&project.graph()).succeed().jobs("cached"), 1);
    assert_eq!(when(), first);
}

#[test]
fn a_file_that_was_read_is_looked_at_again_and_an_older_run_stands_when_it_is_back() {
    let (farm, project) = after_one_run("cat read");
    project.file("tree/read", "other");
    assert_eq!(ran_and_stood(&farm, &project), RAN);
    project.file("tree/read", "read");
    project.file("tree/unread", "changed");
    assert_eq!(ran_and_stood(&farm, &project), STOOD);
}

#[test]
fn what_a_command_only_asked_about_counts_as_looked_at() {
    let (farm, project) = after_one_run("test -x tool; test -e none; test -d sub; readlink link");
    project.file("tree/read", "changed, and only the link's name was read");
    assert_eq!(ran_and_stood(&farm, &project), STOOD);
    project.file("tree/none", "was looked for in vain");
    assert_eq!(ran_and_stood(&farm, &project), RAN);
    let plain = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(project.join("tree/tool"), plain).unwrap();
    assert_eq!(ran_and_stood(&farm, &project), RAN);
    std::fs::remove_file(project.join("tree/link")).unwrap();
    std::os::unix::fs::symlink("tool", project.join("tree/link")).unwrap();
    assert_eq!(ran_and_stood(&farm, &project), RAN);
    std::fs::remove_dir_all(project.join("tree/sub")).unwrap();
    project.file("tree/sub", "a file now");
    assert_eq!(ran_and_stood(&farm, &project), RAN);
}

#[test]
fn a_listed_directory_counts_by_its_names_and_kinds() {
    let (farm, project) = after_one_run("ls sub > /dev/null");
    project.file("tree/sub/inner", "other contents, same name");
    assert_eq!(ran_and_stood(&farm, &project), STOOD);
    project.file("tree/sub/another", "");
    assert_eq!(ran_and_stood(&farm, &project), RAN);
    std::fs::remove_file(project.join("tree/sub/inner")).unwrap();
    std::fs::create_dir(project.join("tree/sub/inner")).unwrap();
    assert_eq!(ran_and_stood(&farm, &project), RAN);
}

#[test]
fn a_file_behind_a_link_a_descriptor_or_two_dots_counts_as_looked_at() {
    for command in [
        "cat link",
        "cat sub/../read",
        "cat /distbuild/src/tree/read",
        "cd sub; cat ../read",
        "exec 5< read; cat <&5; cat /proc/self/fd/5",
        "python3 -c 'import os, mmap; fd = os.open(\"read\", os.O_RDONLY, dir_fd=os.open(\".\", os.O_PATH)); \
         mmap.mmap(fd, 0, prot=mmap.PROT_READ)[:]'",
    ] {
        let (farm, project) = after_one_run(command);
        project.file("tree/unread", "changed");
        assert_eq!(ran_and_stood(&farm, &project), STOOD, "{command}");
        project.file("tree/read", "changed");
        assert_eq!(ran_and_stood(&farm, &project), RAN, "{command}");
    }
}

#[test]
fn a_program_among_the_inputs_counts_when_it_is_run() {
    let (farm, project) = after_one_run("./tool");
    project.file("tree/unread", "changed");
    assert_eq!(ran_and_stood(&farm, &project), STOOD);
    project.file_with_mode("tree/tool", "#!/bin/sh\nexit 0\n", 0o755);
    assert_eq!(ran_and_stood(&farm, &project), RAN);
}

#[test]
fn a_second_look_from_memory_is_a_look_of_the_run_that_takes_it() {
    let (farm, project) = after_one_run("cat unread");
    // Another command reads the same contents, which the kernel has in memory by now.
    let graph = json!({ "version": 1, "jobs": [
        shell_with("other", &["tree"], &[], "cat tree/unread tree/read; date +%N > {{OUTPUT_DIR}}/when"),
    ]});
    let graph_path = project.join("other.json");
    std::fs::write(&graph_path, graph.to_string()).unwrap();
    assert_eq!(farm.build(&graph_path).succeed().jobs("executed"), 1);
    project.file("tree/sub/inner", "changed");
    assert_eq!(farm.build(&graph_path).succeed().jobs("cut_off"), 1);
    project.file("tree/unread", "changed");
    assert_eq!(farm.build(&graph_path).succeed().jobs("executed"), 1);
}

#[test]
fn an_output_of_a_dependency_is_looked_at_by_its_path() {
    let farm = Farm::start(1);
    let make = "cp tree/read {{OUTPUT_DIR}}/used; cp tree/unread {{OUTPUT_DIR}}/ignored";
    let project = Project::with_jobs(json!([
        shell_with("make", &["tree"], &[], make),
        shell_with("use", &[], &["make"], "cat {{DEP:make}}/used; date +%N > {{OUTPUT_DIR}}/when"),
        shell("alone", "true"),
    ]));
    project.file("tree/read", "read");
    project.file("tree/unread", "unread");
    assert_eq!(ran_and_stood(&farm, &project), (3, 0));
    project.file("tree/sub/new", "nobody looks for it");
    assert_eq!(ran_and_stood(&farm, &project), (0, 2));
    project.file("tree/unread", "changed");
    assert_eq!(ran_and_stood(&farm, &project), (1, 1), "only what makes it runs");
    project.file("tree/read", "changed");
    assert_eq!(ran_and_stood(&farm, &project), (2, 0));
}

/// `make` gives what it finds in the tree and many files more, `use` reads one of the former and could read `other`.
fn with_outputs(more_files: usize) -> (Farm, Project) {
    let farm = Farm::start(1);
    let make = format!(
        "cp tree/read {{{{OUTPUT_DIR}}}}/used; cp tree/unread {{{{OUTPUT_DIR}}}}/ignored; \
         mkdir {{{{OUTPUT_DIR}}}}/more {{{{OUTPUT_DIR}}}}/more/sub; cd {{{{OUTPUT_DIR}}}}/more/sub; \
         seq -f 'a-name-that-takes-its-room-in-a-directory-%g' {more_files} | xargs -r touch; cp ../../used ."
    );
    let read = "cat {{DEP:make}}/used {{DEP:make}}/more/sub/used; date +%N > {{OUTPUT_DIR}}/when";
    let project = Project::with_jobs(json!([
        shell_with("make", &["tree"], &[], &make),
        shell_with("use", &["other"], &["make"], read),
    ]));
    project.file("tree/read", "read");
    project.file("tree/unread", "unread");
    project.file("other/file", "other");
    assert_eq!(ran_and_stood(&farm, &project), (2, 0));
    (farm, project)
}

#[test]
fn outputs_too_large_to_travel_with_a_result_are_compared_all_the_same() {
    let (farm, project) = with_outputs(3000);
    project.file("tree/unread", "changed");
    assert_eq!(ran_and_stood(&farm, &project), (1, 1), "only what makes it runs");
    project.file("tree/read", "changed");
    assert_eq!(ran_and_stood(&farm, &project), (2, 0));
}

#[test]
fn outputs_from_before_a_restart_are_compared_all_the_same() {
    let (mut farm, project) = with_outputs(1);
    project.file("tree/unread", "changed");
    assert_eq!(ran_and_stood(&farm, &project), (1, 1));
    farm.restart_coordinator();
    farm.wait_for_workers(1);
    project.file("other/file", "changed");
    let build = farm.build(&project.graph()).succeed();
    assert_eq!((build.jobs("cached"), build.jobs("cut_off")), (1, 1), "{}", build.summary);
}

#[test]
fn outputs_that_no_connected_worker_holds_are_made_again_and_not_guessed() {
    let (mut farm, project) = with_outputs(1);
    project.file("tree/unread", "changed");
    assert_eq!(ran_and_stood(&farm, &project), (1, 1));
    farm.kill_worker(0);
    std::fs::remove_dir_all(farm.worker_state(0)).unwrap();
    farm.restart_coordinator();
    farm.add_worker(0, &[]);
    farm.wait_for_workers(1);
    project.file("other/file", "changed");
    assert_eq!(ran_and_stood(&farm, &project), (2, 0));
}

#[test]
fn a_job_with_a_declared_id_is_not_answered_by_a_run_of_another_id() {
    let farm = Farm::start(1);
    let with_id = |id: &str| {
        let mut job = shell_with("job", &["tree"], &[], "cat tree/read");
        job["id"] = json!(id);
        json!({ "version": 1, "jobs": [job] }).to_string()
    };
    let project = Project::with_jobs(json!([]));
    project.file("tree/read", "read");
    project.file("tree/unread", "unread");
    let graph = project.graph();
    std::fs::write(&graph, with_id("1111111111111111111111111111111111111111")).unwrap();
    assert_eq!(ran_and_stood(&farm, &project), RAN);
    project.file("tree/unread", "changed");
    assert_eq!(ran_and_stood(&farm, &project), STOOD);
    std::fs::write(&graph, with_id("2222222222222222222222222222222222222222")).unwrap();
    assert_eq!(ran_and_stood(&farm, &project), RAN);
}
