//! A source tree of a hundred thousand files that is built for the second time: how long until its first
//! job starts.
//!
//! One job declares the whole tree and runs in every build. Measured is the time from the start of the
//! process to the moment at which the coordinator says that the job has started; nothing in the tree has
//! changed since it was read. The baseline is `find`, which looks at every file once.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use distbuild_tests::build::Finished;
use distbuild_tests::{Build, Farm, Project};
use serde_json::json;

use crate::samples::seconds;
use crate::section::Section;
use crate::summary::Target;
use crate::table::{self, Unit};

const FILES: usize = 100_000;
const FILES_A_DIRECTORY: usize = 100;
const ROUNDS: usize = 7;
/// Files that have changed this recently are read by the next build even if their stamps are known.
const SETTLED: Duration = Duration::from_secs(3);

pub(crate) fn run(section: &mut Section) {
    let project = Project::with_jobs(json!([{
        "name": "look", "inputs": ["src"], "cache": false, "cmds": [{ "exec": ["/bin/true"] }]
    }]));
    for file in 0..FILES {
        project.file(format!("src/{}/{file}.txt", file / FILES_A_DIRECTORY), format!("{file}\n"));
    }
    let mut farm = Farm::without_workers();
    farm.add_worker(0, &["--cores", "2"]);
    farm.wait_for_workers(1);
    let state = tempfile::tempdir().unwrap();
    let with_state =
        |build: Build, name: &str| build.args([Path::new("--state"), &state.path().join(name)]);
    let embedded = || first_start(with_state(Build::of(&project.graph()), "embedded"));
    let remote = || first_start(with_state(farm.build(&project.graph()), "remote"));
    std::thread::sleep(SETTLED);
    // Once so that all is known, once more so that what this has written is known, too.
    for _ in 0..2 {
        embedded();
        remote();
    }
    table::head();
    let [embedded, remote, find] = section.in_turns(
        ROUNDS,
        section.share(1.0),
        [&mut || embedded(), &mut || remote(), &mut || find(&project)],
    );
    for (name, ours) in [("embedded", &embedded), ("remote", &remote)] {
        let what = format!("{FILES} source files, second build until its job starts, {name}");
        table::line(&what, Unit::Seconds, ours, ("find with stat", &find));
        section.row(&what, Unit::Seconds, ours, Target::AtMost(1.0));
    }
    println!();
}

/// Seconds from the start of a build to that of its first job.
fn first_start(build: Build) -> f64 {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let Finished { events, .. } = build.succeed();
    let first = events.iter().find(|event| event["type"] == "attempt_started").unwrap();
    first["time_ms"].as_f64().unwrap() / 1e3 - started.as_secs_f64()
}

fn find(project: &Project) -> f64 {
    let mut command = Command::new("find");
    command.arg(project.join("src")).args(["-type", "f", "-printf", "%s %T@\n"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    seconds(|| assert!(command.status().unwrap().success()))
}
