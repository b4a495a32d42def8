//! What the reading of a graph file says, word for word.

use crate::graph::{Graph, GraphErrors};

fn errors(text: &str) -> String {
    Graph::from_json(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn an_unknown_field_names_its_job_and_place() {
    assert_eq!(
        errors("{\"version\": 1, \"jobs\": [\n  {\"inptus\": [\"a\"],\n   \"name\": \"x\"}]}"),
        "line 2, column 4: job \"x\": unknown field \"inptus\"; did you mean \"inputs\"?"
    );
    assert_eq!(
        errors(r#"{"version": 1, "jobs": [{"name": "x", "cmds": [{"exec": ["a"], "shell": 1}]}]}"#),
        "line 1, column 64: job \"x\": cmds[0]: unknown field \"shell\""
    );
    assert_eq!(
        errors(r#"{"version": 1, "job": [], "jobs": []}"#),
        "line 1, column 16: unknown field \"job\"; did you mean \"jobs\"?"
    );
    assert_eq!(
        errors(r#"{"version": 1, "jobs": [{"name": "x", "resources": {"core": 1}}]}"#),
        "line 1, column 53: job \"x\": unknown field \"core\"; did you mean \"cores\"?"
    );
}

#[test]
fn a_field_that_stands_twice_is_an_error() {
    assert_eq!(
        errors("{\"version\": 1,\n\"jobs\": [{\"name\": \"x\", \"name\": \"y\"}]}"),
        "line 2, column 24: job \"x\": the field \"name\" stands twice"
    );
    assert_eq!(
        errors(r#"{"version": 1, "jobs": [{"name": "x", "platform": {"os": "a", "os": "b"}}]}"#),
        "line 1, column 72: job \"x\": field \"platform\": the field \"os\" stands twice"
    );
}

#[test]
fn a_value_of_the_wrong_type_names_its_job_and_field() {
    assert_eq!(
        errors("{\"version\": 1, \"jobs\": [\n{\"name\": \"x\", \"timeout_ms\": \"1s\"}]}"),
        "line 2, column 32: job \"x\": field \"timeout_ms\": invalid type: string \"1s\", \
         expected u64"
    );
    assert_eq!(
        errors(r#"{"version": 1, "jobs": [{"name": "x"}, 7]}"#),
        "line 1, column 40: job number 2: field \"jobs\": invalid type: integer `7`, expected a \
         job (an object)"
    );
}

#[test]
fn text_that_is_no_json_says_where() {
    assert_eq!(
        errors("{\"version\": 1,\n \"jobs\": [}"),
        "line 2, column 11: job number 1: expected value"
    );
    assert_eq!(errors(r#"{"version": 1, "jobs": []} x"#), "line 1, column 28: trailing characters");
    assert_eq!(errors(""), "line 1, column 0: EOF while parsing a value");
    assert!(errors(&"[".repeat(100_000)).contains("invalid type"));
}

#[test]
fn the_version_must_be_one() {
    assert_eq!(
        errors(r#"{"version": 2, "jobs": []}"#),
        "version 2 of the graph format is not known, only version 1 is"
    );
    assert_eq!(
        errors("{}"),
        "2 errors in the graph\n  the field \"version\" is missing\n  \
         the field \"jobs\" is missing"
    );
}

#[test]
fn faults_of_the_reading_and_of_the_validation_come_together() {
    let text = r#"{"version": 1, "jobs": [{"name": ".", "a": 1, "b": 2}]}"#;
    assert_eq!(Graph::from_json(text.as_bytes()).unwrap_err().total(), 3);
    let many =
        format!(r#"{{"version": 1, "jobs": [{{{}"name": "x"}}]}}"#, r#""é": 1,"#.repeat(500));
    let errors = Graph::from_json(many.as_bytes()).unwrap_err();
    assert_eq!((errors.total(), errors.listed().len()), (500, GraphErrors::LISTED));
}

#[test]
fn null_counts_as_absent() {
    let graph = Graph::from_json(
        br#"{"version": 1, "salt": null, "jobs": [{"name": "x", "id": null, "inputs": null,
            "deps": null, "cmds": null, "platform": null, "timeout_ms": null,
            "resources": null, "env": null, "network": null, "cache": null, "salt": null}]}"#,
    )
    .unwrap();
    assert!(graph.jobs()[0].cache() && !graph.jobs()[0].network());
}

#[test]
fn an_environment_is_a_list_or_an_object() {
    let environ = |env: &str| {
        let text = format!(
            r#"{{"version": 1, "jobs": [{{"name": "x", "env": {env}, "cmds": [{{"exec": ["a"]}}]}}]}}"#
        );
        Graph::from_json(text.as_bytes()).unwrap().jobs()[0].steps()
    };
    assert_eq!(environ(r#"["B=1", "A=x=y"]"#), environ(r#"{"A": "x=y", "B": "1"}"#));
    assert_eq!(environ(r#"["A=1", "A=2"]"#), environ(r#"{"A": "2"}"#));
}
