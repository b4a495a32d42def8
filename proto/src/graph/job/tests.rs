//! What a job is lowered into, and what its record is made of.

use super::*;
use crate::graph::{Graph, JobKey, RawGraph};

const ID: &str = "f374b81d81f641c8c3d5d5468081ef83b2c7dae9";

/// A graph with the job `lib` and a job `x` of these fields, which depends on it.
fn graph(salt: &str, fields: &str) -> Graph {
    let text = format!(
        r#"{{"version": 1, "salt": "{salt}",
            "jobs": [{{"name": "lib", "id": "{ID}"}}, {{"name": "x", "deps": ["lib"], {fields}}}]}}"#
    );
    Graph::from_json(text.as_bytes()).unwrap()
}

fn record(fields: &str) -> Record {
    salted_record("", fields)
}

fn salted_record(salt: &str, fields: &str) -> Record {
    let source = DigestFunction::Blake3.digest(b"source");
    graph(salt, fields).jobs()[1].record(DigestFunction::Blake3, Some(&source))
}

const COMPILE: &str = r#""cmds": [
    {"exec": ["cc", "-I{{DEP:lib}}", "{{SOURCE_DIR}}/a.c", "-o", "{{OUTPUT_DIR}}/a.o"],
     "environ": ["PATH=/usr/bin"]},
    {"cat_template": "built {{LITERAL:X}}\n", "cat_output": "{{OUTPUT_DIR}}/./b/../note"}]"#;

fn words(words: &[Bytes]) -> Vec<&str> {
    words.iter().map(|word| std::str::from_utf8(word).unwrap()).collect()
}

#[test]
fn a_job_is_lowered_into_steps_without_variables() {
    let graph = graph("", &format!(r#""env": ["LANG=C", "X={{{{OUTPUT_DIR}}}}"], {COMPILE}"#));
    let steps = graph.jobs()[1].steps();
    let [Step::Exec(exec), Step::Cat(cat)] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(
        words(exec.argv()),
        ["cc", "-I/distbuild/dep/0", "/distbuild/src/a.c", "-o", "/distbuild/out/a.o"]
    );
    assert_eq!(
        words(exec.environ()),
        [
            "HOME=/distbuild/home",
            "LANG=C",
            "PATH=/usr/bin",
            "SOURCE_DATE_EPOCH=315532800",
            "TMPDIR=/tmp",
            "TZ=UTC",
            "X=/distbuild/out",
        ]
    );
    assert_eq!(exec.working_directory(), "/distbuild/src");
    assert_eq!(
        (&cat.text()[..], &cat.output()[..]),
        (&b"built {{X}}\n"[..], &b"/distbuild/out/note"[..])
    );
}

#[test]
fn the_fixed_environment_is_sorted_and_complete_without_any_other() {
    let graph = graph("", r#""cmds": [{"exec": ["a"]}]"#);
    let steps = graph.jobs()[1].steps();
    let [Step::Exec(exec)] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(words(exec.environ()), FIXED_ENVIRONMENT);
    assert!(FIXED_ENVIRONMENT.is_sorted());
}

#[test]
fn a_relative_working_directory_starts_at_the_source_directory() {
    for (written, lowered) in [
        ("sub", "/distbuild/src/sub"),
        ("{{SOURCE_DIR}}", "/distbuild/src"),
        ("{{DEP:lib}}/x", "/distbuild/dep/0/x"),
    ] {
        let graph =
            graph("", &format!(r#""cmds": [{{"exec": ["a"], "working_directory": "{written}"}}]"#));
        let steps = graph.jobs()[1].steps();
        let [Step::Exec(exec)] = steps.as_slice() else { panic!("{steps:?}") };
        assert_eq!(exec.working_directory(), lowered);
    }
}

#[test]
fn a_lowered_job_passes_every_check_of_an_action() {
    let graph = graph("g", &format!(r#""salt": "s", "timeout_ms": 9, {COMPILE}"#));
    let root = DigestFunction::Blake3.digest(b"root");
    let action = graph.jobs()[1].lower(root, "toolchain");
    assert_eq!(Action::from_wire(action.to_wire()).unwrap(), action);
    assert_eq!(action.salt, "g\0s");
    assert_eq!(graph.jobs()[0].lower(root, "").declared_id, Some(ID.parse().unwrap()));
}

/// The ids come from a second program, written from the layout in module `id`.
#[test]
fn ids_and_keys_do_not_change_between_versions() {
    let function = DigestFunction::Sha256;
    let graph = graph("g", &format!(r#""platform": {{"os": "linux"}}, {COMPILE}"#));
    let record = graph.jobs()[1].record(function, Some(&function.digest(b"source")));
    let (dep_id, dep_key) = (ID.parse().unwrap(), JobKey::new([1; 32]));
    assert_eq!(
        JobId::of(&record, &[dep_id]).to_string(),
        "3bf4ccb671f0b729e946679f1ff5be683375b8fd"
    );
    assert_eq!(
        JobKey::of(&record, "toolchain", &[dep_key]).to_string(),
        "982a9c4a56293857786228ba634c7ac08a453d72759048269d4857d7aafd74f9"
    );
    let bare = format!(r#"{{"version": 1, "jobs": [{{"name": "x", "id": "{ID}"}}]}}"#);
    let bare = Graph::from_json(bare.as_bytes()).unwrap();
    let bare = bare.jobs()[0].record(function, None);
    assert_eq!(JobId::of(&bare, &[]).to_string(), "7e25aca87d2a3c0f0d03cc2b6feac308dbc12af2");
    assert_eq!(
        JobKey::of(&bare, "", &[]).to_string(),
        "66b8b3a7b88c7bae2a342f33c306245f7933ddcc225b787c30710eb48292247a"
    );
}

#[test]
fn equal_jobs_have_equal_records_however_they_are_written() {
    let plain = record(COMPILE);
    assert_eq!(record(&COMPILE.replace("DEP:lib", &format!("DEP:{ID}"))), plain);
    assert_eq!(record(&format!(r#""timeout_ms": 7, "cache": false, {COMPILE}"#)), plain);
    assert_eq!(record(&format!(r#""resources": {{"cores": 2}}, {COMPILE}"#)), plain);
    assert_eq!(record(&format!(r#""env": ["PATH=/nowhere"], {COMPILE}"#)), plain);
    let spelt = COMPILE.replace("{{SOURCE_DIR}}/a.c\"", "/distbuild/src/a.c\"");
    assert_eq!(record(&spelt), plain);
}

#[test]
fn whatever_decides_the_output_enters_the_record() {
    let mut records = vec![
        record(COMPILE),
        salted_record("g", COMPILE),
        record(&format!(r#""salt": "g", {COMPILE}"#)),
        record(&format!(r#""network": true, {COMPILE}"#)),
        record(&format!(r#""platform": {{"os": "linux"}}, {COMPILE}"#)),
        record(&format!(r#""env": {{"A": ""}}, {COMPILE}"#)),
        record(&format!(r#""id": "{}", {COMPILE}"#, "0".repeat(40))),
        record(&COMPILE.replace("a.c", "b.c")),
        record(r#""cmds": []"#),
        graph("", COMPILE).jobs()[1].record(DigestFunction::Blake3, None),
        graph("", COMPILE).jobs()[1].record(DigestFunction::Sha256, None),
    ];
    let count = records.len();
    records.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    records.dedup();
    assert_eq!(records.len(), count);
}

#[test]
fn dependencies_and_toolchain_enter_the_key() {
    let record = record(COMPILE);
    let (one, two) = (JobKey::new([1; 32]), JobKey::new([2; 32]));
    let mut keys = vec![
        JobKey::of(&record, "a", &[one]),
        JobKey::of(&record, "b", &[one]),
        JobKey::of(&record, "a", &[two]),
        JobKey::of(&record, "a", &[one, two]),
        JobKey::of(&record, "a", &[two, one]),
    ];
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 5);
}

#[test]
fn bytes_that_are_no_text_survive_in_a_message() {
    let mut raw = RawGraph::new("");
    raw.push(wire::Job {
        name: "x".into(),
        inputs: vec![Bytes::from_static(b"src/\xff")],
        cmds: vec![wire::Command {
            exec: vec![Bytes::from_static(b"cat"), Bytes::from_static(b"{{SOURCE_DIR}}/\xff")],
            ..wire::Command::default()
        }],
        ..wire::Job::default()
    });
    let graph = Graph::validate(raw).unwrap();
    let steps = graph.jobs()[0].steps();
    let [Step::Exec(exec)] = steps.as_slice() else { panic!("{steps:?}") };
    assert_eq!(exec.argv()[1], &b"/distbuild/src/\xff"[..]);
}

#[test]
fn paths_are_normalized_by_their_text() {
    assert_eq!(normalized(b"/a/./b//../c/"), b"/a/c");
    assert_eq!(normalized(b"/../.."), b"/");
}
