//! Lua from empty caches on 1, 2 and 4 workers of one core, beside `make` with one and two jobs.
//!
//! The time is that of the whole build process, outputs brought; the daemons run before. The other
//! figure is what left the client, divided by what the commands looked up.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use distbuild_tests::{Farm, Project, example};
use serde_json::Value;

use crate::samples::{Samples, in_turns, seconds};
use crate::table::{self, Unit};

const ROUNDS: usize = 3;
const WORKERS: [usize; 3] = [1, 2, 4];

pub(crate) fn run() {
    let project = example::lua();
    write_makefile(&project);
    let mut ratios = [const { Vec::new() }; WORKERS.len()];
    let [one_ratio, two_ratio, four_ratio] = &mut ratios;
    let [one, two, four, make_one, make_two] = in_turns(
        ROUNDS,
        [
            &mut || cold(&project, 1, one_ratio),
            &mut || cold(&project, 2, two_ratio),
            &mut || cold(&project, 4, four_ratio),
            &mut || make(&project, "-j1"),
            &mut || make(&project, "-j2"),
        ],
    );

    table::head();
    for (workers, ours, name, make) in [
        (1, &one, "make -j1", &make_one),
        (2, &two, "make -j2", &make_two),
        (4, &four, "make -j2", &make_two),
    ] {
        let what = format!("cold build of Lua, {workers} workers of one core");
        table::line(&what, Unit::Seconds, ours, (name, make), "more workers are not slower");
    }
    for (workers, ratios) in WORKERS.iter().zip(ratios) {
        let mut samples = Samples::default();
        ratios.into_iter().for_each(|ratio| samples.push(ratio));
        let what = format!("bytes that left the client ÷ bytes opened, {workers} workers");
        table::alone(&what, Unit::Ratio, &samples, "≤ 1.05");
    }
}

/// One build with nothing cached anywhere.
fn cold(project: &Project, workers: usize, ratios: &mut Vec<f64>) -> f64 {
    let farm = Farm::start(workers);
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out").display().to_string();
    let build = farm.build(&project.graph()).args(["--out", &out]);
    let mut finished = None;
    let taken = seconds(|| finished = Some(build.succeed()));
    let finished = finished.unwrap();
    assert_eq!(finished.jobs("executed"), finished.jobs("total"));
    ratios.push(finished.bytes("sent_by_client") as f64 / finished.bytes("opened") as f64);
    taken
}

fn make(project: &Project, jobs: &str) -> f64 {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new("make");
    command.args(["--silent", jobs, "--directory"]).arg(project.path());
    command.arg(format!("OUT={}", out.path().display()));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    seconds(|| assert!(command.status().unwrap().success()))
}

/// The same commands as the graph's, read from there.
fn write_makefile(project: &Project) {
    let graph: Value = serde_json::from_slice(&std::fs::read(project.graph()).unwrap()).unwrap();
    let jobs = graph["jobs"].as_array().unwrap();
    let targets: Vec<String> = jobs.iter().map(|job| target(&job["name"])).collect();
    let mut text = format!("all: {}\n", targets.join(" "));
    for (job, target) in jobs.iter().zip(&targets) {
        let deps = job["deps"].as_array().map_or(&[][..], Vec::as_slice);
        let deps: Vec<String> = deps.iter().map(self::target).collect();
        let words = job["cmds"][0]["exec"].as_array().unwrap().iter();
        let mut command: Vec<String> =
            words.map(|word| word.as_str().unwrap().to_owned()).collect();
        for word in &mut command {
            *word = word.replace("{{OUTPUT_DIR}}", "$@.d");
            for dep in job["deps"].as_array().into_iter().flatten() {
                let name = dep.as_str().unwrap();
                *word = word
                    .replace(&format!("{{{{DEP:{name}}}}}"), &format!("{}.d", self::target(dep)));
            }
        }
        let (deps, command) = (deps.join(" "), command.join(" "));
        writeln!(text, "{target}: {deps}\n\t@mkdir -p $@.d && {command} && touch $@").unwrap();
    }
    project.file(Path::new("Makefile"), text);
}

/// The file that says that a job is done; its outputs lie beside it.
fn target(name: &Value) -> String {
    format!("$(OUT)/{}", name.as_str().unwrap().replace(' ', "-"))
}
