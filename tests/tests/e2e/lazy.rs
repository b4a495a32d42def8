//! Contents move only when a command reads them, and leave the client once.

use distbuild_tests::project::shell_with;
use distbuild_tests::{Farm, Project};
use serde_json::json;

#[test]
fn a_source_file_that_no_command_opens_never_leaves_the_client() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([shell_with(
        "read",
        &["src"],
        &[],
        "cat src/used > {{OUTPUT_DIR}}/f"
    )]));
    project.file("src/used", "u".repeat(1000));
    project.file("src/unused", "n".repeat(100_000));
    let build = farm.build(&project.graph()).succeed();
    assert_eq!(build.bytes("declared"), 101_000);
    assert_eq!(build.bytes("opened"), 1000);
    assert_eq!(build.bytes("sent_by_client"), 1000);
}

#[test]
fn a_source_file_that_three_workers_open_leaves_the_client_once() {
    let mut farm = Farm::without_workers();
    for number in 0..3 {
        farm.add_worker(number, &["--property", &format!("seat={number}")]);
    }
    farm.wait_for_workers(3);
    let jobs: Vec<_> = (0..3)
        .map(|number| {
            let mut job = shell_with(&format!("read {number}"), &["shared"], &[], "cksum shared");
            job["platform"] = json!({ "seat": number.to_string() });
            job
        })
        .collect();
    let project = Project::with_jobs(json!(jobs));
    project.file("shared", "s".repeat(3_000_000));
    let build = farm.build(&project.graph()).succeed();
    for number in 0..3 {
        assert_eq!(build.attempts(&format!("read {number}"))[0]["worker"], format!("w{number}"));
    }
    assert_eq!(build.bytes("opened"), 3_000_000);
    assert_eq!(build.bytes("sent_by_client"), 3_000_000);
    assert_eq!(build.bytes("from_peers"), 6_000_000);
}

#[test]
fn a_worker_that_peers_cannot_dial_is_read_through_the_coordinator() {
    let mut farm = Farm::without_workers();
    for number in 0..2 {
        farm.add_worker(number, &["--property", &format!("seat={number}"), "--peer-listen", "off"]);
    }
    farm.wait_for_workers(2);
    let mut make = shell_with("make", &[], &[], "head -c 300000 /dev/zero > {{OUTPUT_DIR}}/f");
    make["platform"] = json!({ "seat": "0" });
    let mut read =
        shell_with("read", &[], &["make"], "wc -c < {{DEP:make}}/f > {{OUTPUT_DIR}}/size");
    read["platform"] = json!({ "seat": "1" });
    let project = Project::with_jobs(json!([make, read]));
    farm.build(&project.graph()).succeed();
    assert_eq!(project.output("read", "size").trim(), "300000");
}

#[test]
fn a_part_of_a_large_output_of_one_worker_is_read_on_another() {
    let mut farm = Farm::without_workers();
    for number in 0..2 {
        farm.add_worker(number, &["--property", &format!("seat={number}")]);
    }
    farm.wait_for_workers(2);
    let mut make = shell_with(
        "make",
        &[],
        &[],
        "yes 0123456789abcde | head -c 40000000 > {{OUTPUT_DIR}}/f; chmod +x {{OUTPUT_DIR}}/f",
    );
    make["platform"] = json!({ "seat": "0" });
    // From the end first, so that reading does not go the way of the fetch.
    let mut read = shell_with(
        "read",
        &[],
        &["make"],
        "tail -c 16 {{DEP:make}}/f > {{OUTPUT_DIR}}/end; \
         head -c 20000016 {{DEP:make}}/f | tail -c 16 > {{OUTPUT_DIR}}/middle; \
         cksum < {{DEP:make}}/f > {{OUTPUT_DIR}}/all; \
         yes 0123456789abcde | head -c 40000000 | cksum > {{OUTPUT_DIR}}/expected",
    );
    read["platform"] = json!({ "seat": "1" });
    let project = Project::with_jobs(json!([make, read]));
    let build = farm.build(&project.graph()).succeed();
    let file = |name| project.output("read", name);
    assert_eq!([file("end"), file("middle")], ["0123456789abcde\n"; 2]);
    assert_eq!(file("all"), file("expected"));
    assert_eq!(build.bytes("from_peers") / 1_000_000, 40);
}

#[test]
fn a_source_that_changes_during_the_build_is_an_infrastructure_error_that_names_it() {
    let farm = Farm::start(1);
    let project = Project::with_jobs(json!([
        shell_with("wait", &["go"], &[], "cat go; echo waiting; sleep 1"),
        shell_with("read", &["late"], &["wait"], "cat late"),
    ]));
    project.file("go", "x");
    project.file("late", "before");
    let running = farm.build(&project.graph()).start();
    running.wait_event("attempt_started", |_| true);
    project.file("late", "after!");
    let build = running.finish();
    assert_eq!(build.code, 3, "{}", build.stderr);
    assert!(build.stderr.contains("late"), "{}", build.stderr);
}
