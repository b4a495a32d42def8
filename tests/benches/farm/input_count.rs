//! Set-up and tear-down of an action by the number of its input files, of which it reads none.
//!
//! A build runs many no-op jobs that all declare the same whole directory; what counts is the time between
//! the start of the first attempt and the end of the last, by the events, divided by the jobs. So hashing
//! the sources, which the client does once a build, stays out. The baseline is what a worker does
//! that has no file system of its own: link every file from its store into a directory, then remove it.

use std::fs;
use std::path::Path;

use distbuild_tests::{Farm, Project};
use serde_json::{Value, json};

use crate::samples::seconds;
use crate::section::Section;
use crate::summary::Target;
use crate::table::{self, Unit};

const JOBS: usize = 200;
const ROUNDS: usize = 5;
/// What counts as independent of the number of files.
const FLAT: f64 = 1.05;
const FILES_A_DIRECTORY: usize = 100;

pub(crate) fn run(section: &mut Section) {
    let mut farm = Farm::without_workers();
    farm.add_worker(0, &["--cores", "1"]);
    farm.wait_for_workers(1);
    let [few, some, lots] = [10, 1_000, 100_000].map(project);
    // Metadata has reached the worker; what is measured is an action, not the first of its kind.
    for project in [&few, &some, &lots] {
        per_job(&farm, project);
    }

    let [ours_few, ours_some, ours_lots, links_few, links_some, links_lots] = section.in_turns(
        ROUNDS,
        section.share(1.0),
        [
            &mut || per_job(&farm, &few),
            &mut || per_job(&farm, &some),
            &mut || per_job(&farm, &lots),
            &mut || link_farm(&few),
            &mut || link_farm(&some),
            &mut || link_farm(&lots),
        ],
    );

    table::head();
    let links = "hard-link farm, made and removed";
    for (files, ours, theirs) in [
        ("10", &ours_few, &links_few),
        ("1 000", &ours_some, &links_some),
        ("100 000", &ours_lots, &links_lots),
    ] {
        let what = format!("a no-op job with {files} input files, one at a time");
        table::line(&what, Unit::Milliseconds, ours, (links, theirs));
    }
    println!();
    let what = "a whole no-op job with 100 000 input files ÷ one with 10";
    section.row(what, Unit::Ratio, &ours_lots.over(&ours_few), Target::AtMost(FLAT));
}

fn project(files: usize) -> Project {
    let project = Project::new();
    for number in 0..files {
        let directory = number / FILES_A_DIRECTORY;
        project.file(format!("tree/{directory}/{number}.h"), format!("int n{number};\n"));
    }
    let job = |number: usize| {
        json!({
            "name": number.to_string(), "inputs": ["tree"], "env": [format!("NUMBER={number}")],
            "cmds": [{ "exec": ["/bin/true"] }]
        })
    };
    project.jobs((0..JOBS).map(job).collect());
    project
}

/// Seconds a job.
fn per_job(farm: &Farm, project: &Project) -> f64 {
    let finished = farm.build(&project.graph()).args(["--no-cache"]).succeed();
    assert_eq!(finished.jobs("executed"), JOBS as u64);
    let times = |kind: &str| -> Vec<u64> {
        let events = finished.events.iter().filter(|event| event["type"] == kind);
        events.filter_map(|event: &Value| event["time_ms"].as_u64()).collect()
    };
    let first = times("attempt_started").into_iter().min().unwrap();
    let last = times("attempt_finished").into_iter().max().unwrap();
    (last - first) as f64 / 1e3 / JOBS as f64
}

/// The baseline: seconds to give one action a tree of links, and to take it away.
fn link_farm(project: &Project) -> f64 {
    let (from, to) = (project.join("tree"), project.join("links"));
    seconds(|| {
        for directory in names(&from) {
            fs::create_dir_all(to.join(&directory)).unwrap();
            for file in names(&from.join(&directory)) {
                let inside = Path::new(&directory).join(file);
                fs::hard_link(from.join(&inside), to.join(&inside)).unwrap();
            }
        }
        fs::remove_dir_all(&to).unwrap();
    })
}

fn names(directory: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}
