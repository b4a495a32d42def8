//! Errors of graphs and of usage, as a user sees them.

use std::process::Command;

use distbuild_tests::binary::distbuild;
use distbuild_tests::daemon::Daemon;
use distbuild_tests::project::{shell, shell_with};
use distbuild_tests::{Build, Farm, Project};
use serde_json::{Value, json};

/// What `distbuild check` says about these jobs; it has to refuse them.
fn refused(jobs: Value) -> String {
    let project = Project::with_jobs(jobs);
    project.file("file", "x");
    let _ = std::os::unix::fs::symlink("/etc", project.join("outside"));
    let output = Command::new(distbuild()).arg("check").arg(project.graph()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_cycle_is_printed() {
    let text = refused(json!([
        shell_with("a", &[], &["b"], "true"),
        shell_with("b", &[], &["a"], "true"),
    ]));
    assert_says(&text, &["a", "b", "->"]);
}

#[test]
fn a_dependency_that_does_not_exist_is_named_with_the_nearest_match() {
    let text =
        refused(json!([shell("library", "true"), shell_with("a", &[], &["libary"], "true")]));
    assert_says(&text, &["\"a\"", "libary", "library"]);
}

#[test]
fn duplicate_names_and_duplicate_ids_are_named() {
    assert_says(&refused(json!([shell("same", "true"), shell("same", "false")])), &["same"]);
    let with_id = |name| {
        let mut job = shell(name, "true");
        job["id"] = json!("f374b81d81f641c8c3d5d5468081ef83b2c7dae9");
        job
    };
    let text = refused(json!([with_id("x"), with_id("y")]));
    assert_says(&text, &["job \"y\": duplicate id, job \"x\" declares it too"]);
}

#[test]
fn inputs_that_do_not_exist_or_leave_the_root_are_named() {
    assert_says(
        &refused(json!([shell_with("a", &["fiel"], &[], "true")])),
        &["\"a\"", "fiel", "file"],
    );
    assert_says(&refused(json!([shell_with("a", &["*.none"], &[], "true")])), &["\"a\"", "*.none"]);
    assert_says(&refused(json!([shell_with("a", &["../x"], &[], "true")])), &["\"a\"", "../x"]);
    assert_says(
        &refused(json!([shell_with("a", &["/etc/passwd"], &[], "true")])),
        &["/etc/passwd"],
    );
    let text = refused(json!([shell_with("a", &["outside/passwd"], &[], "true")]));
    assert_says(&text, &["outside/passwd", "symlink"]);
}

#[test]
fn commands_of_both_kinds_of_none_or_without_a_program_are_refused() {
    let both = json!([{ "name": "a", "cmds": [{ "exec": ["x"], "cat_template": "y", "cat_output": "z" }] }]);
    assert_says(&refused(both), &["\"a\""]);
    assert_says(&refused(json!([{ "name": "a", "cmds": [{}] }])), &["\"a\""]);
    assert_says(&refused(json!([{ "name": "a", "cmds": [{ "exec": [] }] }])), &["\"a\""]);
}

#[test]
fn odd_names_are_refused() {
    for name in [".", "..", "", "nul\0byte"] {
        refused(json!([shell(name, "true")]));
    }
}

#[test]
fn unknown_variables_and_unlisted_dependencies_name_job_command_and_token() {
    let text = refused(json!([shell("a", "echo {{OUTPUT_DIRR}}")]));
    assert_says(&text, &["\"a\"", "{{OUTPUT_DIRR}}", "OUTPUT_DIR"]);
    let text = refused(json!([shell("b", "true"), shell("a", "ls {{DEP:b}}")]));
    assert_says(&text, &["\"a\"", "{{DEP:b}}"]);
}

#[test]
fn unknown_fields_and_outputs_outside_are_refused() {
    let mut job = shell("a", "true");
    job["inptus"] = json!([]);
    assert_says(&refused(json!([job])), &["inptus", "inputs"]);
    let text = refused(json!([{
        "name": "a",
        "cmds": [{ "cat_template": "x", "cat_output": "{{OUTPUT_DIR}}/../x" }]
    }]));
    assert_says(&text, &["\"a\"", "OUTPUT_DIR"]);
}

#[test]
fn the_first_hundred_errors_are_listed_with_the_count_of_all() {
    let jobs: Vec<_> =
        (0..250).map(|n| shell_with(&format!("job {n}"), &[], &["gone"], "true")).collect();
    let text = refused(json!(jobs));
    assert_says(&text, &["250", "\"job 0\"", "\"job 99\""]);
    assert!(!text.contains("\"job 100\""), "{text}");
}

#[test]
fn a_platform_that_no_known_pool_offers_ends_with_code_four_and_near_matches() {
    let farm = Farm::start(1);
    let mut job = shell("a", "true");
    job["platform"] = json!({ "os": "plan9" });
    let project = Project::with_jobs(json!([job]));
    let build = farm.build(&project.graph()).run();
    assert_eq!(build.code, 4, "{}", build.stderr);
    assert_says(&build.stderr, &["\"a\"", "os=plan9", "linux"]);
}

#[test]
fn a_program_that_does_not_exist_fails_its_job_with_127_and_says_so() {
    let farm = Farm::start(1);
    let project =
        Project::with_jobs(json!([{ "name": "a", "cmds": [{ "exec": ["no-such-program"] }] }]));
    let build = farm.build(&project.graph()).run();
    assert_eq!(build.code, 1);
    assert_eq!(build.attempts("a")[0]["exit_code"], 127);
    assert_says(&build.stderr, &["no-such-program"]);
}

#[test]
fn a_header_that_was_not_declared_is_hinted_at() {
    let farm = Farm::start(1);
    let complaint = "echo 'src/a.c:1:10: fatal error: b.h: No such file or directory' >&2";
    let job = shell_with("a", &["src/a.c"], &[], &format!("{complaint}; exit 1"));
    let project = Project::with_jobs(json!([job]));
    project.file("src/a.c", "");
    project.file("src/b.h", "");
    let build = farm.build(&project.graph()).run();
    assert_eq!(build.code, 1);
    let hints = build.stderr.lines().filter(|line| line.contains("hint: \"src/b.h\""));
    assert_eq!(hints.count(), 1, "{}", build.stderr);
}

#[test]
fn reports_that_cannot_be_written_are_refused_before_anything_runs() {
    let project = Project::with_jobs(json!([shell("a", "true")]));
    for flag in ["--summary", "--events"] {
        let report = project.join("none/report");
        let mut command = Command::new(distbuild());
        command.arg("build").arg(project.graph()).arg(flag).arg(&report);
        command.arg("--state").arg(project.join("cache"));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_says(&text, &[&report.display().to_string(), "No such file"]);
        assert!(!project.join("cache").exists(), "nothing has been started");
    }
}

#[test]
fn a_state_directory_has_one_coordinator_until_that_is_gone_however_it_went() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let coordinator = || {
        let mut command = Command::new(distbuild());
        command.args(["coordinator", "--insecure", "--listen", "127.0.0.1:0", "--http", "off"]);
        command.arg("--state").arg(&state);
        command
    };
    let mut first = Daemon::start(coordinator());
    let second = coordinator().output().unwrap();
    assert_eq!(second.status.code(), Some(3));
    let text = String::from_utf8(second.stderr).unwrap();
    assert_says(&text, &[&state.display().to_string(), "another coordinator", "--state"]);
    first.kill();
    Daemon::start(coordinator());
}

#[test]
fn a_coordinator_that_is_not_there_is_an_infrastructure_error() {
    let project = Project::with_jobs(json!([shell("a", "true")]));
    let build = Build::of(&project.graph()).on("127.0.0.1:1").run();
    assert_eq!(build.code, 3, "{}", build.stderr);
    assert_says(&build.stderr, &["127.0.0.1:1"]);
}

#[test]
fn plaintext_has_to_be_asked_for_and_stays_on_this_machine() {
    let project = Project::with_jobs(json!([shell("a", "true")]));
    let build = |args: &[&str]| Build::of(&project.graph()).args(args).run();
    let refused = build(&["--coordinator", "127.0.0.1:1"]);
    assert_eq!(refused.code, 2);
    assert_says(&refused.stderr, &["--insecure"]);
    let refused = build(&["--coordinator", "192.0.2.1:1", "--insecure"]);
    assert_eq!(refused.code, 2);
    assert_says(&refused.stderr, &["--insecure-network"]);
}
