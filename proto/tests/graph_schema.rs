//! The published schema and the parser agree about what a single job can show.

use distbuild_proto::graph::Graph;
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../../docs/graph.schema.json");

fn validator() -> Result<jsonschema::Validator, Box<dyn std::error::Error>> {
    let schema: Value = serde_json::from_str(SCHEMA)?;
    if !jsonschema::draft202012::meta::is_valid(&schema) {
        return Err("the schema is no schema".into());
    }
    Ok(jsonschema::draft202012::new(&schema)?)
}

fn with_job(job: &Value) -> Value {
    json!({ "version": 1, "jobs": [{ "name": "lib" }, job] })
}

fn with_command(command: &Value) -> Value {
    with_job(&json!({ "name": "x", "deps": ["lib"], "cmds": [command] }))
}

/// Says what both think of a file.
fn verdicts(schema: &jsonschema::Validator, file: &Value) -> (bool, bool) {
    (schema.is_valid(file), Graph::from_json(file.to_string().as_bytes()).is_ok())
}

#[test]
fn both_accept_what_is_right() {
    let schema = validator().unwrap();
    let mut files = vec![
        json!({ "version": 1, "jobs": [] }),
        json!({ "version": 1, "salt": "gcc 14", "jobs": null }),
    ];
    let jobs = [
        json!({ "name": "x" }),
        json!({ "name": "x", "id": "f374b81d81f641c8c3d5d5468081ef83b2c7dae9" }),
        json!({ "name": "x", "id": "", "inputs": null, "deps": [], "cmds": null }),
        json!({ "name": "build gitlab.com/slon/x", "inputs": ["src/**", ".", "a..b", "[!a]?"] }),
        json!({ "name": "x", "env": ["A=1", "B="], "network": true, "cache": false }),
        json!({ "name": "x", "env": { "A": "a=b" }, "platform": { "os": "linux" } }),
        json!({ "name": "x", "timeout_ms": 1, "resources": { "cores": 0.5, "memory_bytes": 0 } }),
        json!({ "name": "x", "resources": null, "salt": "s" }),
    ];
    files.extend(jobs.iter().map(with_job));
    let commands = [
        json!({ "exec": ["cc", ""], "environ": ["PATH=/bin"], "working_directory": "sub" }),
        json!({ "exec": ["cat", "{{DEP:lib}}/a"], "cat_template": "", "cat_output": null }),
        json!({ "cat_template": "a\u{0}b", "cat_output": "{{OUTPUT_DIR}}/a" }),
        json!({ "exec": [], "environ": [], "cat_output": "{{OUTPUT_DIR}}/empty" }),
    ];
    files.extend(commands.iter().map(with_command));
    for file in files {
        assert_eq!(verdicts(&schema, &file), (true, true), "{file}");
    }
}

#[test]
fn both_refuse_what_is_wrong() {
    let schema = validator().unwrap();
    let mut files = vec![
        json!({}),
        json!([]),
        json!({ "version": 2, "jobs": [] }),
        json!({ "version": 1 }),
        json!({ "version": 1, "jobs": [], "job": [] }),
        json!({ "version": 1, "salt": "\u{0}", "jobs": [] }),
    ];
    let jobs = [
        json!({}),
        json!(null),
        json!({ "name": "" }),
        json!({ "name": ".." }),
        json!({ "name": "a\u{0}" }),
        json!({ "name": "n".repeat(256) }),
        json!({ "name": "x", "id": "F374B81D81F641C8C3D5D5468081EF83B2C7DAE9" }),
        json!({ "name": "x", "inputs": [""] }),
        json!({ "name": "x", "inputs": ["/etc"] }),
        json!({ "name": "x", "inputs": ["a/../b"] }),
        json!({ "name": "x", "inputs": ["a\nb/.."] }),
        json!({ "name": "x", "inputs": "src" }),
        json!({ "name": "x", "deps": [1] }),
        json!({ "name": "x", "env": ["A"] }),
        json!({ "name": "x", "env": ["=1"] }),
        json!({ "name": "x", "env": { "A": 1 } }),
        json!({ "name": "x", "env": { "A=B": "1" } }),
        json!({ "name": "x", "platform": { "": "linux" } }),
        json!({ "name": "x", "timeout_ms": 0 }),
        json!({ "name": "x", "timeout_ms": 2_592_000_001_u64 }),
        json!({ "name": "x", "resources": { "cores": 0 } }),
        json!({ "name": "x", "resources": { "cores": 4097 } }),
        json!({ "name": "x", "resources": { "core": 1 } }),
        json!({ "name": "x", "network": "yes" }),
        json!({ "name": "x", "inptus": [] }),
    ];
    files.extend(jobs.iter().map(with_job));
    let commands = [
        json!({}),
        json!({ "exec": [] }),
        json!({ "exec": [""] }),
        json!({ "exec": ["a\u{0}"] }),
        json!({ "environ": ["A=1"] }),
        json!({ "cat_template": "text" }),
        json!({ "exec": ["a"], "cat_output": "{{OUTPUT_DIR}}/a" }),
        json!({ "exec": ["a"], "cat_template": "text" }),
        json!({ "cat_output": "{{OUTPUT_DIR}}/a", "environ": ["A=1"] }),
        json!({ "cat_output": "{{OUTPUT_DIR}}/a", "working_directory": "sub" }),
        json!({ "exec": ["a"], "shell": true }),
    ];
    files.extend(commands.iter().map(with_command));
    for file in files {
        assert_eq!(verdicts(&schema, &file), (false, false), "{file}");
    }
}
