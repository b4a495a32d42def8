//! Large files, which the kernel reads from the worker's store by itself where it can.

use distbuild_tests::project::{shell, shell_with};
use distbuild_tests::{Farm, Project};
use serde_json::json;

/// Makes a file of 17 MB.
const MAKE: &str = "seq 1 2400000 | head -c 17000000 > {{OUTPUT_DIR}}/large";

/// The number of the device that a job saw for each name.
fn devices(project: &Project, job: &str) -> Vec<String> {
    let text = project.output(job, "devices");
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_dependency_with_a_large_file_comes_through_passthrough_and_the_others_do_not() {
    let farm = Farm::start(1);
    let look = "cd {{DEP:large}}\n\
        stat -c %d . large .. {{DEP:small}} {{SOURCE_DIR}} > {{OUTPUT_DIR}}/devices\n\
        tail -c 1000000 large | cksum > {{OUTPUT_DIR}}/end\n\
        tail -c 1000000 {{DEP:copy}}/copied | cksum > {{OUTPUT_DIR}}/copied\n\
        pwd > {{OUTPUT_DIR}}/place; cd ../..; ls dep > {{OUTPUT_DIR}}/names";
    let project = Project::with_jobs(json!([
        shell("large", MAKE),
        shell("small", "echo small > {{OUTPUT_DIR}}/f"),
        shell_with("copy", &[], &["large"], "cp {{DEP:large}}/large {{OUTPUT_DIR}}/copied"),
        shell_with("look", &[], &["small", "large", "copy"], look),
    ]));
    farm.build(&project.graph()).succeed();
    let devices = devices(&project, "look");
    let [dir, file, above, small, source] = &devices[..] else { panic!("{devices:?}") };
    assert_eq!(dir, file);
    assert_ne!(dir, above, "the dependency with the large file is on a mount of its own");
    assert_eq!([above, small], [source, source]);
    assert_eq!(project.output("look", "end"), project.output("look", "copied"));
    assert_eq!(project.output("look", "place"), "/distbuild/dep/1\n");
    assert_eq!(project.output("look", "names"), "0\n1\n2\n");
}

#[test]
fn a_large_source_comes_through_passthrough_once_it_is_at_hand() {
    let farm = Farm::start(1);
    let look = "cksum < large > {{OUTPUT_DIR}}/sum; ls none 2> /dev/null || true\n\
        stat -c %d large {{DEP:dep}} > {{OUTPUT_DIR}}/devices";
    let project = Project::with_jobs(json!([
        shell("dep", "true"),
        shell_with("first", &["large"], &["dep"], look),
        // Another command, or the first run would stand for it.
        shell_with("second", &["large"], &["dep", "first"], &format!("{look}; true")),
    ]));
    project.file("large", b"0123456789abcdef".repeat(1 << 20));
    farm.build(&project.graph()).succeed();
    let (first, second) = (devices(&project, "first"), devices(&project, "second"));
    assert_eq!(first[0], first[1], "a file that is still to come is streamed");
    assert_ne!(second[0], second[1]);
    assert_eq!(project.output("first", "sum"), project.output("second", "sum"));
}

#[test]
fn a_large_program_is_run_by_several_jobs_at_once() {
    let farm = Farm::start(1);
    let pad = "cp /bin/cat {{OUTPUT_DIR}}/cat; truncate -s 20000000 {{OUTPUT_DIR}}/cat\n\
        chmod 755 {{OUTPUT_DIR}}/cat";
    let mut jobs = vec![shell("tool", pad)];
    for number in 0..4 {
        let run = format!("echo {number} | {{{{DEP:tool}}}}/cat > {{{{OUTPUT_DIR}}}}/f");
        jobs.push(shell_with(&format!("run {number}"), &[], &["tool"], &run));
    }
    let project = Project::with_jobs(json!(jobs));
    farm.build(&project.graph()).succeed();
    for number in 0..4 {
        assert_eq!(project.output(&format!("run {number}"), "f"), format!("{number}\n"));
    }
}
