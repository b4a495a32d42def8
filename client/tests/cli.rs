//! The binary as a script sees it, as far as it needs neither worker nor coordinator: `check`, usage
//! errors, exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Output};

/// A directory with a graph file, some sources and a home.
struct Project {
    directory: tempfile::TempDir,
}

impl Project {
    fn new(graph: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("src")).unwrap();
        std::fs::write(directory.path().join("src/a.c"), "int a;\n").unwrap();
        std::fs::write(directory.path().join("graph.json"), graph).unwrap();
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self, words: &[&str]) -> Output {
        self.run_with(words, &[])
    }

    fn run_with(&self, words: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_distbuild"))
            .args(words)
            .current_dir(self.path())
            .env_clear()
            .env("HOME", self.path().join("home"))
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn job(name: &str, inputs: &str, deps: &str) -> String {
    format!(
        r#"{{ "name": "{name}", "inputs": {inputs}, "deps": {deps}, "cmds": [{{ "exec": ["/bin/true"] }}] }}"#
    )
}

fn graph(jobs: &[String]) -> String {
    format!(r#"{{ "version": 1, "jobs": [{}] }}"#, jobs.join(", "))
}

#[test]
fn a_valid_graph_is_ok() {
    let project = Project::new(&graph(&[
        job("cc a", r#"["src/**"]"#, "[]"),
        job("link", "[]", r#"["cc a"]"#),
    ]));
    let output = project.run(&["check", "graph.json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(output.stdout, b"ok: 2 jobs\n");
}

#[test]
fn every_error_of_a_graph_is_listed() {
    let project = Project::new(&graph(&[job("a", "[]", r#"["b"]"#), job("c", "[]", r#"["d"]"#)]));
    let output = project.run(&["check", "graph.json"]);
    assert_eq!(code(&output), 2);
    let text = stderr(&output);
    assert!(text.contains("2 errors in the graph"), "{text}");
    assert!(text.contains(r#"job "a""#) && text.contains(r#"job "c""#), "{text}");
}

#[test]
fn an_input_that_does_not_exist_names_the_job_and_the_nearest_file() {
    let project = Project::new(&graph(&[job("cc", r#"["src/b.c"]"#, "[]")]));
    let output = project.run(&["check", "graph.json"]);
    assert_eq!(code(&output), 2);
    let text = stderr(&output);
    assert!(text.contains(r#"job "cc""#) && text.contains("src/b.c"), "{text}");
    assert!(text.contains("did you mean"), "{text}");
}

#[test]
fn the_graph_file_and_the_outputs_are_no_inputs() {
    for input in ["graph.json", "distbuild-out/x"] {
        let project = Project::new(&graph(&[job("a", &format!("[\"{input}\"]"), "[]")]));
        std::fs::create_dir(project.path().join("distbuild-out")).unwrap();
        std::fs::write(project.path().join("distbuild-out/x"), "x").unwrap();
        assert_eq!(code(&project.run(&["check", "graph.json"])), 2, "{input}");
    }
}

#[test]
fn an_output_directory_that_holds_what_is_the_users_is_refused() {
    let project = Project::new(&graph(&[job("src", r#"["src/**"]"#, "[]")]));
    std::fs::write(project.path().join("file"), "mine").unwrap();
    std::os::unix::fs::symlink(".", project.path().join("here")).unwrap();
    for (words, text) in [
        (&["--out", "."][..], "source root"),
        (&["--out", ".."], "source root"),
        (&["--out", "here"], "source root"),
        (&["--out", "src", "--source", "src"], "source root"),
        (&["--out", ".", "--source", "src"], "is or holds"),
        (&["--out", "file"], "is not a directory"),
    ] {
        let words = [&["build", "graph.json"][..], words].concat();
        let output = project.run(&words);
        assert_eq!(code(&output), 2, "{words:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{words:?}: {}", stderr(&output));
    }
    assert_eq!(std::fs::read(project.path().join("src/a.c")).unwrap(), b"int a;\n");
}

#[test]
fn what_cannot_be_written_to_stdout_is_an_error() {
    let project = Project::new(&graph(&[job("a", "[]", "[]")]));
    let run = |words: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_distbuild"))
            .args(words)
            .current_dir(project.path())
            .env_clear()
            .env("HOME", project.path().join("home"))
            .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
            .output()
            .unwrap()
    };
    for words in [&["check", "graph.json"][..], &["completion", "bash"]] {
        let output = run(words);
        assert_eq!(code(&output), 3, "{words:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("failed to write to stdout"), "{}", stderr(&output));
    }
}

#[test]
fn an_interrupt_ends_the_wait_for_a_pipe_that_nobody_writes_to() {
    use std::os::unix::process::CommandExt as _;
    let project = Project::new("");
    let pipe = project.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_distbuild"))
        .args(["build", "pipe"])
        .current_dir(project.path())
        .env_clear()
        .env("HOME", project.path().join("home"))
        .stderr(std::process::Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    // Opening the other end returns when the build has begun to read; signals are caught by then.
    let writer = std::fs::File::options().write(true).open(&pipe).unwrap();
    let process = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGHUP).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(writer);
    assert_eq!(code(&output), 130, "{}", stderr(&output));
}

#[test]
fn the_source_root_may_lie_elsewhere() {
    let project = Project::new(&graph(&[job("a", r#"["a.c"]"#, "[]")]));
    assert_eq!(code(&project.run(&["check", "graph.json"])), 2);
    assert_eq!(code(&project.run(&["check", "graph.json", "--source", "src"])), 0);
    let by_variable = project.run_with(&["check", "graph.json"], &[("DISTBUILD_SOURCE", "src")]);
    assert_eq!(code(&by_variable), 0);
    std::fs::write(project.path().join("d.toml"), "source = \"src\"\n").unwrap();
    let by_file = project.run(&["check", "graph.json", "--config", "d.toml"]);
    assert_eq!(code(&by_file), 0, "{}", stderr(&by_file));
}

#[test]
fn a_job_that_is_not_in_the_graph_is_a_usage_error() {
    let project = Project::new(&graph(&[job("link", "[]", "[]")]));
    let output = project.run(&["build", "graph.json", "--job", "lnik"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains(r#"did you mean "link"?"#), "{}", stderr(&output));
}

#[test]
fn a_graph_that_is_not_there_is_a_usage_error() {
    let project = Project::new("");
    let output = project.run(&["build", "other.json"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("other.json"));
}

#[test]
fn plaintext_has_to_be_asked_for() {
    let project = Project::new(&graph(&[job("a", "[]", "[]")]));
    for words in [
        &["build", "graph.json", "--coordinator", "127.0.0.1:1"][..],
        &["coordinator", "--listen", "127.0.0.1:0"],
        &["worker", "--coordinator", "127.0.0.1:1"],
        &["status", "--coordinator", "127.0.0.1:1"],
    ] {
        let output = project.run(words);
        assert_eq!(code(&output), 2, "{words:?}");
        assert!(stderr(&output).contains("--insecure"), "{words:?}: {}", stderr(&output));
    }
    let network = project.run(&["coordinator", "--listen", "0.0.0.0:0", "--insecure"]);
    assert_eq!(code(&network), 2);
    assert!(stderr(&network).contains("--insecure-network"));
}

#[test]
fn a_coordinator_that_is_not_there_is_an_infrastructure_error() {
    let project = Project::new(&graph(&[job("a", "[]", "[]")]));
    let socket = format!("unix:{}", project.path().join("nobody").display());
    let build = project.run(&[
        "build",
        "graph.json",
        "--coordinator",
        &socket,
        "--insecure",
        "--summary",
        "summary.json",
    ]);
    assert_eq!(code(&build), 3, "{}", stderr(&build));
    let summary = std::fs::read(project.path().join("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!(summary["outcome"], "infra_error");
    assert_eq!(summary["jobs"]["infra_error"], 1);
    let status = project.run(&["status", "--coordinator", &socket, "--insecure"]);
    assert_eq!(code(&status), 3);
}

#[test]
fn a_command_that_asks_a_coordinator_needs_one() {
    let project = Project::new("");
    for words in [&["status"][..], &["workers"], &["cancel", "b1"], &["worker", "--insecure"]] {
        let output = project.run(words);
        assert_eq!(code(&output), 2, "{words:?}");
        assert!(stderr(&output).contains("--coordinator"), "{words:?}");
    }
}

#[test]
fn a_wrong_configuration_file_is_a_usage_error() {
    let project = Project::new(&graph(&[job("a", "[]", "[]")]));
    std::fs::write(project.path().join("d.toml"), "[check]\nsuorce = \"src\"\n").unwrap();
    let output = project.run(&["check", "graph.json", "--config", "d.toml"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains(r#"did you mean "source"?"#), "{}", stderr(&output));
}

#[test]
fn completion_scripts_know_the_commands() {
    let project = Project::new("");
    let output = project.run(&["completion", "bash"]);
    assert_eq!(code(&output), 0);
    assert!(String::from_utf8(output.stdout).unwrap().contains("coordinator"));
}

#[test]
fn help_tells_the_exit_codes() {
    let project = Project::new("");
    let output = project.run(&["--help"]);
    assert_eq!(code(&output), 0);
    assert!(String::from_utf8(output.stdout).unwrap().contains("130 cancelled"));
    assert_eq!(code(&project.run(&["bulid"])), 2);
}
