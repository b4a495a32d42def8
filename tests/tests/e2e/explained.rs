//! What is told about reuse: `explain`, the report on inputs, and which run stood for a job.

use std::path::Path;
use std::process::Command;

use distbuild_tests::binary::distbuild;
use distbuild_tests::project::shell_with;
use distbuild_tests::{Build, Farm, Project};
use serde_json::{Value, json};

/// `make` reads one of three files, `use` one of the two outputs of `make`.
fn project() -> Project {
    let make =
        "cat tree/sub/read > {{OUTPUT_DIR}}/used; : > {{OUTPUT_DIR}}/ignored; test ! -e tree/none";
    let project = Project::with_jobs(json!([
        shell_with("make", &["tree"], &[], make),
        shell_with("use", &["tree"], &["make"], "cat {{DEP:make}}/used > {{OUTPUT_DIR}}/copy"),
    ]));
    project.file("tree/sub/read", "read");
    project.file("tree/sub/unread.txt", "unread");
    project.file("tree/docs/manual", "unread");
    project
}

fn explained(farm: &Farm, args: &[&str]) -> String {
    let output = farm.ask(&[&["explain"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn report(farm: &Farm, project: &Project) -> Value {
    let path = project.join("report.json");
    farm.build(&project.graph()).args([Path::new("--report"), &path]).succeed();
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_job_that_ran_is_explained_by_the_path_that_changed() {
    let (farm, project) = (Farm::start(1), project());
    let first = farm.build(&project.graph()).succeed();
    let text = explained(&farm, &["make"]);
    assert!(text.contains("no earlier run of its commands is known"), "{text}");
    project.file("tree/sub/read", "changed");
    let second = farm.build(&project.graph()).succeed();
    let text = explained(&farm, &["make"]);
    assert!(text.contains("tree/sub/read has other contents"), "{text}");
    let text = explained(&farm, &["use"]);
    assert!(text.contains("used of \"make\" has other contents"), "{text}");
    project.file("tree/none", "looked for in vain until now");
    farm.build(&project.graph()).run();
    let text = explained(&farm, &["make"]);
    assert_eq!(text.matches("tree/none exists now").count(), 2, "of either run: {text}");
    let id =
        |build: &distbuild_tests::Finished| build.summary["build_id"].as_str().unwrap().to_owned();
    let text = explained(&farm, &["make", "--build", &id(&first)]);
    assert!(text.contains("no earlier run"), "{text}");
    let json: Value =
        serde_json::from_str(&explained(&farm, &["make", "--json", "--build", &id(&second)]))
            .unwrap();
    assert_eq!(json["decision"], "not_found");
    assert_eq!(json["compared"][0]["change"]["path"], "src/tree/sub/read");
}

#[test]
fn the_run_that_stood_for_a_job_is_named_in_summary_events_and_explanation() {
    let (farm, project) = (Farm::start(1), project());
    let action = |build: &distbuild_tests::Finished| {
        let of_job = |event: &&Value| event["type"] == "job_finished" && event["job"] == "make";
        build.events.iter().find(of_job).unwrap()["action"].as_str().unwrap().to_owned()
    };
    let first = farm.build(&project.graph()).succeed();
    let ran = action(&first);
    assert_eq!(first.summary["stood"], json!([]));
    project.file("tree/docs/manual", "changed");
    let second = farm.build(&project.graph()).succeed();
    assert_eq!(second.jobs("cut_off"), 2);
    let stood = second.summary["stood"].as_array().unwrap();
    let of = |name: &str| stood.iter().find(|line| line["job"] == name).unwrap()["action"].clone();
    assert_eq!(of("make"), ran);
    let ended = second
        .events
        .iter()
        .find(|event| event["type"] == "job_finished" && event["job"] == "make");
    assert_eq!(ended.unwrap()["stood"], ran);
    let json: Value = serde_json::from_str(&explained(&farm, &["make", "--json"])).unwrap();
    assert_eq!(json["decision"], "found_by_observed_inputs");
    assert_eq!((&json["reused"], &json["compared"][0]["change"]), (&json!(ran), &Value::Null));
    farm.build(&project.graph()).succeed();
    let text = explained(&farm, &["make"]);
    assert!(text.contains("cached: nothing that it declares has changed"), "{text}");
}

#[test]
fn what_is_declared_and_never_looked_at_is_reported_with_narrower_inputs() {
    let (farm, project) = (Farm::start(1), project());
    let report = report(&farm, &project);
    let job = |name: &str| {
        let jobs = report["jobs"].as_array().unwrap();
        jobs.iter().find(|job| job["job"] == name).unwrap().clone()
    };
    let make = job("make");
    assert_eq!(make["record"], "complete");
    assert_eq!(make["declared"]["files"], 3);
    assert_eq!(make["looked_at"]["files"], 1);
    assert_eq!(make["never_looked_at"], json!(["tree/docs/", "tree/sub/unread.txt"]));
    assert_eq!(make["suggested_inputs"], json!(["tree/sub/read"]));
    let user = job("use");
    assert_eq!(user["never_looked_at"], json!(["tree/"]));
    assert_eq!((&user["suggested_inputs"], &user["unused_deps"]), (&json!([]), &json!([])));
}

#[test]
fn suggested_inputs_are_enough_for_the_job() {
    let (farm, project) = (Farm::start(1), project());
    let report = report(&farm, &project);
    let mut graph: Value =
        serde_json::from_slice(&std::fs::read(project.graph()).unwrap()).unwrap();
    for (job, reported) in
        graph["jobs"].as_array_mut().unwrap().iter_mut().zip(report["jobs"].as_array().unwrap())
    {
        assert_eq!(job["name"], reported["job"]);
        job["inputs"] = reported["suggested_inputs"].clone();
    }
    project.jobs(graph["jobs"].clone());
    farm.build(&project.graph()).args(["--no-cache"]).succeed();
    assert_eq!(project.output("use", "copy"), "read");
}

#[test]
fn without_observed_inputs_nothing_is_recorded_compared_or_reused() {
    let (farm, project) = (Farm::start(1), project());
    let off = || farm.build(&project.graph()).args(["--observed-inputs", "off"]).succeed();
    assert_eq!(off().jobs("executed"), 2);
    project.file("tree/docs/manual", "changed");
    assert_eq!(farm.build(&project.graph()).succeed().jobs("executed"), 2, "nothing was recorded");
    project.file("tree/docs/manual", "changed again");
    assert_eq!(off().jobs("executed"), 2, "nothing is compared");
    let text = explained(&farm, &["make"]);
    assert!(text.contains("was not compared"), "{text}");
    project.file("tree/docs/manual", "and again");
    assert_eq!(farm.build(&project.graph()).succeed().jobs("cut_off"), 2);
}

#[test]
fn embedded_builds_are_explained_from_their_state_without_anything_running() {
    let project = project();
    let state = tempfile::tempdir().unwrap();
    let build = || Build::of(&project.graph()).args([Path::new("--state"), state.path()]).succeed();
    build();
    project.file("tree/sub/read", "changed");
    build();
    let explain = |job: &str| {
        let mut command = Command::new(distbuild());
        command.args(["explain", job, "--state"]).arg(state.path());
        command.output().unwrap()
    };
    let text = String::from_utf8(explain("make").stdout).unwrap();
    assert!(text.contains("tree/sub/read has other contents"), "{text}");
    let unknown = explain("no such job");
    assert_eq!(unknown.status.code(), Some(2));
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(text.contains("\"no such job\""), "{text}");
}
