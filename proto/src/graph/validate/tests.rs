//! What validation says, word for word, and what a valid graph is like.

use std::sync::Arc;

use crate::graph::{Fault, Graph, GraphErrors, RawGraph};

const ID: &str = "f374b81d81f641c8c3d5d5468081ef83b2c7dae9";

fn graph(jobs: &str) -> Result<Graph, GraphErrors> {
    Graph::from_json(format!(r#"{{"version": 1, "jobs": [{jobs}]}}"#).as_bytes())
}

/// The text of the errors of these jobs.
fn errors(jobs: &str) -> String {
    graph(jobs).unwrap_err().to_string()
}

/// The text of the errors of a job `x` with this command.
fn command_errors(command: &str) -> String {
    errors(&format!(
        r#"{{"name": "lib"}}, {{"name": "other"}}, {{"name": "x", "deps": ["lib"], "cmds": [{command}]}}"#
    ))
}

/// The text of the errors of a job `x` with these fields.
fn field_errors(fields: &str) -> String {
    errors(&format!(r#"{{"name": "x", {fields}}}"#))
}

#[test]
fn a_cycle_is_printed() {
    let jobs = r#"{"name": "a", "deps": ["b"]}, {"name": "b", "deps": ["a"]}"#;
    assert_eq!(errors(jobs), r#"job "a": depends on itself: a -> b -> a"#);
    assert_eq!(errors(r#"{"name": "a", "deps": ["a"]}"#), r#"job "a": depends on itself: a -> a"#);
    let ring: Vec<_> =
        (0..20).map(|n| format!(r#"{{"name": "{n}", "deps": ["{}"]}}"#, (n + 1) % 20)).collect();
    assert_eq!(
        errors(&ring.join(",")),
        "job \"0\": depends on itself: 0 -> 1 -> 2 -> 3 -> 4 -> 5 -> 6 -> 7 -> 8 -> 9 -> 10 -> 11 \
         -> 12 -> 13 -> 14 -> 15 -> … 4 more … -> 0"
    );
}

#[test]
fn a_name_stands_once_and_is_a_directorys_name() {
    assert_eq!(
        errors(r#"{"name": "a"}, {"name": "a"}"#),
        r#"job "a": duplicate name, job number 1 has it too"#
    );
    assert_eq!(errors("{}"), "job number 1: its name is missing or empty");
    assert_eq!(errors(r#"{"name": ""}"#), "job number 1: its name is missing or empty");
    assert_eq!(errors(r#"{"name": "."}"#), r#"job ".": its name cannot be "." or "..""#);
    assert_eq!(errors(r#"{"name": ".."}"#), r#"job "..": its name cannot be "." or "..""#);
    assert_eq!(errors(r#"{"name": "a\u0000"}"#), r#"job "a\0": its name holds a NUL"#);
    let long = format!("{}/", "n".repeat(253));
    assert_eq!(
        errors(&format!(r#"{{"name": "{long}"}}"#)),
        format!(
            "job {long:?}: its name has 256 bytes with \"/\" written as \"%2F\", a directory's has \
             at most 255"
        )
    );
    assert_eq!(
        errors(r#"{"name": "a/b"}, {"name": "a%2Fb"}"#),
        r#"job "a%2Fb": its outputs would replace those of job "a/b": "/" is written as "%2F""#
    );
    assert!(graph(r#"{"name": "a%2Fb"}, {"name": "a"}"#).is_ok());
}

#[test]
fn an_id_is_well_formed_and_stands_once() {
    assert_eq!(
        field_errors(r#""id": "F3""#),
        r#"job "x": id "F3" is not 40 lower-case hexadecimal digits"#
    );
    assert_eq!(
        errors(&format!(r#"{{"name": "a", "id": "{ID}"}}, {{"name": "b", "id": "{ID}"}}"#)),
        r#"job "b": duplicate id, job "a" declares it too"#
    );
    assert_eq!(
        errors(&format!(r#"{{"name": "a", "id": "{ID}"}}, {{"name": "{ID}"}}"#)),
        format!(r#"job "{ID}": its name is the id of job "a""#)
    );
}

#[test]
fn a_dependency_exists() {
    assert_eq!(
        errors(r#"{"name": "lib"}, {"name": "x", "deps": ["lbi"]}"#),
        r#"job "x": dependency "lbi" does not exist; did you mean "lib"?"#
    );
    assert_eq!(
        errors(r#"{"name": "lib"}, {"name": "x", "deps": ["nothing"]}"#),
        r#"job "x": dependency "nothing" does not exist"#
    );
}

#[test]
fn an_input_stays_below_the_source_root() {
    assert_eq!(
        field_errors(r#""inputs": ["../a"]"#),
        r#"job "x": input "../a" leaves the source root: it holds "..""#
    );
    assert_eq!(
        field_errors(r#""inputs": ["/etc/passwd"]"#),
        r#"job "x": input "/etc/passwd" leaves the source root: it is absolute"#
    );
    assert_eq!(
        field_errors(r#""inputs": [""]"#),
        r#"job "x": input "" is empty; the source root itself is ".""#
    );
    assert_eq!(
        field_errors(r#""inputs": ["a["]"#),
        r#"job "x": input "a[" is not a glob: unclosed character class; missing ']'"#
    );
}

#[test]
fn what_only_a_disk_or_a_fleet_knows_has_its_texts_too() {
    let name: Arc<str> = "x".into();
    let text = |fault: Fault| {
        let mut errors = GraphErrors::new();
        errors.push_job(0, &name, fault);
        errors.to_string()
    };
    let missing = |glob| Fault::InputMissing {
        input: "src/a.c".into(),
        glob,
        suggestion: Some("src/b.c".into()),
    };
    assert_eq!(
        text(missing(false)),
        r#"job "x": input "src/a.c" does not exist; did you mean "src/b.c"?"#
    );
    assert_eq!(
        text(missing(true)),
        r#"job "x": input "src/a.c" matches nothing; did you mean "src/b.c"?"#
    );
    assert_eq!(
        text(Fault::InputThroughSymlink { input: "a/b".into(), link: "a".into() }),
        r#"job "x": input "a/b" leaves the source root through the symlink "a""#
    );
    assert_eq!(
        text(Fault::NoPool { selector: "os=linxu".into(), suggestion: Some("os=linux".into()) }),
        r#"job "x": no known worker pool offers os=linxu; did you mean "os=linux"?"#
    );
}

#[test]
fn a_command_is_of_one_kind() {
    let both = "is both exec and cat; fill exec, environ and working_directory, or cat_template and \
                cat_output";
    let prefix = r#"job "x": cmds[0]: "#;
    assert_eq!(
        command_errors(r#"{"exec": ["a"], "cat_output": "{{OUTPUT_DIR}}/a"}"#),
        format!("{prefix}{both}")
    );
    assert_eq!(
        command_errors(r#"{"cat_output": "{{OUTPUT_DIR}}/a", "environ": ["A=1"]}"#),
        format!("{prefix}{both}")
    );
    assert_eq!(
        command_errors("{}"),
        format!("{prefix}is neither exec nor cat; fill exec, or cat_template and cat_output")
    );
    assert_eq!(
        command_errors(r#"{"cat_template": "text"}"#),
        format!("{prefix}has a cat_template but no cat_output")
    );
    for argv in [r#"{"exec": []}"#, r#"{"exec": [""]}"#, r#"{"environ": ["A=1"]}"#] {
        assert_eq!(command_errors(argv), format!("{prefix}its argv is empty"), "{argv}");
    }
}

#[test]
fn empty_fields_of_the_other_kind_do_not_count() {
    for command in [
        r#"{"exec": ["true"], "environ": null, "cat_template": "", "cat_output": ""}"#,
        r#"{"exec": null, "working_directory": "", "cat_output": "{{OUTPUT_DIR}}/empty"}"#,
        r#"{"exec": [], "environ": [], "cat_template": "a", "cat_output": "{{OUTPUT_DIR}}/a"}"#,
    ] {
        graph(&format!(r#"{{"name": "x", "cmds": [{command}]}}"#)).unwrap();
    }
}

#[test]
fn an_unknown_variable_names_its_token() {
    assert_eq!(
        command_errors(r#"{"exec": ["a", "{{OUTPUT_DRI}}"]}"#),
        r#"job "x": cmds[0]: unknown variable {{OUTPUT_DRI}}; did you mean {{OUTPUT_DIR}}?"#
    );
    assert_eq!(
        command_errors(r#"{"exec": ["true"]}, {"exec": ["a"], "environ": ["A={{DEPS:lib}}"]}"#),
        r#"job "x": cmds[1]: unknown variable {{DEPS:lib}}; did you mean {{DEP:…}}?"#
    );
    assert_eq!(
        command_errors(r#"{"exec": ["{{VERSION}}"]}"#),
        r#"job "x": cmds[0]: unknown variable {{VERSION}}; for the text itself write {{LITERAL:VERSION}}"#
    );
    assert_eq!(
        field_errors(r#""env": ["A={{HOME}}"]"#),
        r#"job "x": unknown variable {{HOME}}; for the text itself write {{LITERAL:HOME}}"#
    );
}

#[test]
fn the_output_of_a_job_that_is_not_listed_cannot_be_named() {
    assert_eq!(
        command_errors(r#"{"exec": ["cat", "{{DEP:lbi}}"]}"#),
        r#"job "x": cmds[0]: {{DEP:lbi}} is not listed in deps; did you mean {{DEP:lib}}?"#
    );
    assert_eq!(
        command_errors(r#"{"exec": ["cat", "{{DEP:other}}"]}"#),
        r#"job "x": cmds[0]: {{DEP:other}} is not listed in deps; add it there"#
    );
    assert_eq!(
        command_errors(r#"{"exec": ["cat", "{{DEP:nothing}}"]}"#),
        r#"job "x": cmds[0]: {{DEP:nothing}} is not listed in deps"#
    );
}

#[test]
fn an_output_path_stays_below_the_output_directory() {
    for output in [
        "{{OUTPUT_DIR}}/../a",
        "{{OUTPUT_DIR}}",
        "{{OUTPUT_DIR}}/a/..",
        "{{OUTPUT_DIR}}/a/",
        "{{OUTPUT_DIR}}a",
        "{{SOURCE_DIR}}/a",
        "a",
        "/etc/passwd",
    ] {
        assert_eq!(
            command_errors(&format!(r#"{{"cat_output": "{output}"}}"#)),
            format!(
                r#"job "x": cmds[0]: output path "{output}" does not lie below {{{{OUTPUT_DIR}}}}"#
            )
        );
    }
    assert_eq!(
        command_errors(r#"{"exec": ["cc", "-o", "{{OUTPUT_DIR}}/a/../../b"]}"#),
        r#"job "x": cmds[0]: output path "{{OUTPUT_DIR}}/a/../../b" does not lie below {{OUTPUT_DIR}}"#
    );
    graph(
        r#"{"name": "x", "cmds": [
            {"cat_output": "{{OUTPUT_DIR}}/a/../..b"},
            {"exec": ["cc", "-ffile-prefix-map={{OUTPUT_DIR}}/..=.", "{{OUTPUT_DIR}}/a/.."]}]}"#,
    )
    .unwrap();
}

#[test]
fn an_environment_entry_has_a_plain_name() {
    assert_eq!(
        command_errors(r#"{"exec": ["a"], "environ": ["FOO"]}"#),
        r#"job "x": cmds[0]: environment entry "FOO" has no "=""#
    );
    assert_eq!(
        field_errors(r#""env": ["=1"]"#),
        r#"job "x": environment entry "=1" has no plain name before its "=""#
    );
    assert!(
        field_errors(r#""env": {"A=B": "1"}"#)
            .ends_with(r#"job "x": environment entry "A=B" has no plain name before its "=""#)
    );
}

#[test]
fn a_nul_is_refused_where_the_system_would_refuse_it() {
    assert_eq!(
        command_errors(r#"{"exec": ["a\u0000"]}"#),
        r#"job "x": cmds[0]: an argument holds a NUL"#
    );
    assert_eq!(field_errors(r#""salt": "\u0000""#), r#"job "x": the salt holds a NUL"#);
    graph(
        r#"{"name": "x",
            "cmds": [{"cat_template": "a\u0000b", "cat_output": "{{OUTPUT_DIR}}/a"}]}"#,
    )
    .unwrap();
}

#[test]
fn limits_are_within_reason() {
    assert_eq!(
        field_errors(r#""timeout_ms": 0"#),
        r#"job "x": timeout_ms must lie between 1 and 2592000000 (30 days), not 0"#
    );
    assert_eq!(
        field_errors(r#""resources": {"cores": 5000}"#),
        r#"job "x": resources.cores must lie between 0.001 and 4096, not 5000"#
    );
    assert_eq!(
        field_errors(r#""resources": {"cores": -0.5}"#),
        r#"job "x": resources.cores must lie between 0.001 and 4096, not -0.5"#
    );
    assert_eq!(
        field_errors(r#""resources": {"memory_bytes": 2000000000000000}"#),
        "job \"x\": resources.memory_bytes must be at most 1125899906842624 (1 PiB), not \
         2000000000000000"
    );
    assert_eq!(
        field_errors(r#""platform": {"": "linux"}"#),
        r#"job "x": platform property "" has no name or stands twice"#
    );
}

#[test]
fn all_errors_are_counted_and_the_first_hundred_listed() {
    let text = errors(r#"{"name": "."}, {"name": "x", "deps": ["y"], "timeout_ms": 0}"#);
    assert_eq!(
        text,
        "3 errors in the graph\n  \
         job \".\": its name cannot be \".\" or \"..\"\n  \
         job \"x\": dependency \"y\" does not exist\n  \
         job \"x\": timeout_ms must lie between 1 and 2592000000 (30 days), not 0"
            .replace(
                "dependency \"y\" does not exist",
                "dependency \"y\" does not exist; did you mean \".\"?"
            )
    );
    let many: Vec<_> = (0..250).map(|n| format!(r#"{{"name": "{n}", "timeout_ms": 0}}"#)).collect();
    let errors = graph(&many.join(",")).unwrap_err();
    assert_eq!((errors.total(), errors.listed().len()), (250, 100));
    assert!(errors.to_string().starts_with("250 errors in the graph, the first 100 are\n  job"));
}

#[test]
fn jobs_stand_in_topological_order_and_remember_the_file() {
    let graph = graph(&format!(
        r#"{{"name": "link", "deps": ["b", "{ID}", "b"]}}, {{"name": "b", "deps": ["a"]}},
           {{"name": "a", "id": "{ID}"}}"#
    ))
    .unwrap();
    let names: Vec<_> = graph.jobs().iter().map(|job| job.name()).collect();
    assert_eq!(names, ["a", "b", "link"]);
    for (index, job) in graph.iter() {
        assert!(job.deps().iter().all(|dep| *dep < index));
        assert_eq!(graph.file_order()[job.number()], index);
        assert_eq!(graph.find(job.name()), Some(index));
    }
    let link = graph.job(graph.find("link").unwrap());
    let deps: Vec<_> = link.deps().iter().map(|dep| graph.job(*dep).name()).collect();
    assert_eq!(deps, ["b", "a"]);
    assert_eq!(graph.find(ID), graph.find("a"));
    assert_eq!(graph.nearest_name("lnik"), Some("link"));
}

#[test]
fn a_job_with_many_dependencies_finds_each_of_them() {
    let mut jobs: Vec<_> = (0..40).map(|n| format!(r#"{{"name": "j{n}"}}"#)).collect();
    let deps: Vec<_> = (0..40).map(|n| format!(r#""j{n}""#)).collect();
    let words: Vec<_> = (0..40).map(|n| format!(r#""{{{{DEP:j{n}}}}}""#)).collect();
    jobs.push(format!(
        r#"{{"name": "link", "deps": [{}], "cmds": [{{"exec": ["ld", {}]}}]}}"#,
        deps.join(","),
        words.join(",")
    ));
    let graph = graph(&jobs.join(",")).unwrap();
    let steps = graph.jobs()[40].steps();
    let crate::action::Step::Exec(step) = &steps[0] else { panic!("{steps:?}") };
    for (n, word) in step.argv()[1..].iter().enumerate() {
        assert_eq!(*word, format!("/distbuild/dep/{n}"));
    }
}

#[test]
fn a_chain_of_a_hundred_thousand_jobs_is_no_deeper_than_one() {
    let jobs: Vec<_> = (0..100_000)
        .map(|n| format!(r#"{{"name": "{n}", "deps": ["{}"]}}"#, (n + 1).min(99_999)))
        .collect();
    let errors = graph(&jobs.join(",")).unwrap_err();
    assert_eq!(errors.to_string(), r#"job "99999": depends on itself: 99999 -> 99999"#);
}

#[test]
fn a_graph_that_went_over_the_wire_is_the_same_graph() {
    let text = format!(
        r#"{{"version": 1, "salt": "g", "jobs": [
            {{"name": "link", "deps": ["a", "b"], "salt": "s", "env": {{"Z": "1", "A": "2"}},
              "cmds": [{{"exec": ["ld", "{{{{DEP:a}}}}/a.o"], "environ": ["B=2"],
                         "working_directory": "sub"}},
                       {{"cat_template": "{{{{LITERAL:X}}}}", "cat_output": "{{{{OUTPUT_DIR}}}}/n"}}],
              "platform": {{"os": "linux"}}, "timeout_ms": 5,
              "resources": {{"cores": 0.5, "memory_bytes": 7}}, "network": true, "cache": false}},
            {{"name": "a", "id": "{ID}", "inputs": ["src/**", "."]}}, {{"name": "b"}}]}}"#
    );
    let graph = Graph::from_json(text.as_bytes()).unwrap();
    let mut raw = RawGraph::new(graph.salt());
    for index in graph.file_order() {
        raw.push(graph.to_wire(*index));
    }
    let again = Graph::validate(raw).unwrap();
    assert_eq!(format!("{:?}", again.jobs()), format!("{:?}", graph.jobs()));
    let link = again.job(again.find("link").unwrap());
    assert_eq!((link.resources().milli_cores, link.network(), link.cache()), (500, true, false));
}
