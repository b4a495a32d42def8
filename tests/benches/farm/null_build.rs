//! A build that has nothing to do: ten thousand distinct jobs and sources, all cached, outputs in place.
//!
//! From the start of the process to its end, embedded and against a coordinator that runs. The baseline
//! is `make` with as many targets that are up to date.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use distbuild_tests::{Build, Farm, Project, binary};
use serde_json::{Value, json};

use crate::samples::{Samples, seconds};
use crate::section::Section;
use crate::summary::Target;
use crate::table::{self, Unit};

const JOBS: usize = 10_000;
const ROUNDS: usize = 9;
/// Files that have changed this recently are read by the next build even if their stamps are known.
const SETTLED: Duration = Duration::from_secs(3);

pub(crate) fn run(section: &mut Section) {
    let project = project();
    let mut farm = Farm::without_workers();
    farm.add_worker(0, &["--cores", "2"]);
    farm.wait_for_workers(1);
    let state = tempfile::tempdir().unwrap();
    let arguments = |out: &str| -> Vec<String> {
        let (out, state) = (project.join(out), state.path().join(out));
        ["--out".into(), out.display().to_string(), "--state".into(), state.display().to_string()]
            .into()
    };
    let embedded = || Build::of(&project.graph()).args(arguments("out-embedded"));
    let remote = || farm.build(&project.graph()).args(arguments("out-remote"));

    table::head();
    for (name, build) in [("embedded", embedded().succeed()), ("remote", remote().succeed())] {
        assert_eq!(build.jobs("executed"), JOBS as u64, "the first build runs all");
        let first: Samples =
            [build.summary["wall_ms"].as_f64().unwrap() / 1e3].into_iter().collect();
        table::alone(&format!("for comparison: the first build, {name}"), Unit::Seconds, &first);
    }
    make(&project);
    std::thread::sleep(SETTLED);
    for build in [embedded().succeed(), remote().succeed()] {
        assert_eq!(build.jobs("cached"), JOBS as u64, "nothing is left to do");
    }

    let address = farm.address();
    let plain = |out: &str, more: &[&str]| {
        let mut command = Command::new(binary::distbuild());
        command.arg("build").arg(project.graph()).args(arguments(out)).args(more);
        succeed(command)
    };
    let [embedded, remote, make] = section.in_turns(
        ROUNDS,
        section.share(1.0),
        [
            &mut || plain("out-embedded", &[]),
            &mut || plain("out-remote", &["--insecure", "--coordinator", &address]),
            &mut || make(&project),
        ],
    );
    for (name, ours) in [("embedded", &embedded), ("remote", &remote)] {
        let what = format!("null build of {JOBS} jobs, {name}");
        table::line(&what, Unit::Seconds, ours, ("make", &make));
        section.row(&what, Unit::Seconds, ours, Target::AtMost(0.5));
    }
    println!();
}

fn project() -> Project {
    let project = Project::new();
    let mut makefile = "all:\n".to_owned();
    for number in 0..JOBS {
        project.file(source(number), format!("source {number}\n"));
        let (source, target) = (source(number), format!("out-make/{number}"));
        writeln!(makefile, "all: {target}\n{target}: {source}\n\tcp {source} {target}").unwrap();
    }
    project.file("Makefile", makefile);
    std::fs::create_dir(project.join("out-make")).unwrap();
    let job = |number: usize| -> Value {
        let source = source(number);
        json!({
            "name": format!("copy {number}"), "inputs": [source],
            "cmds": [{ "exec": ["/bin/cp", source, "{{OUTPUT_DIR}}/copy"] }]
        })
    };
    project.jobs((0..JOBS).map(job).collect());
    project
}

fn source(number: usize) -> String {
    format!("src/{}/{number}.txt", number / 100)
}

fn make(project: &Project) -> f64 {
    let mut command = Command::new("make");
    command.arg("--silent").arg("--directory").arg(project.path());
    succeed(command)
}

/// Seconds from start to end.
fn succeed(mut command: Command) -> f64 {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut status = None;
    let taken = seconds(|| status = Some(command.status().unwrap()));
    assert!(status.is_some_and(|status| status.success()), "{command:?}");
    taken
}
