//! Jobs that do nothing: how many a second end to end, and how long one takes when the next waits for it.
//!
//! A build runs from the start of the client to its end; nothing is looked up in the cache, and the
//! (empty) outputs of every job are brought. The build's own start and end are in it; how much they are
//! shows the build of a single job. The baseline starts the same program without us, with pipes for
//! its output.

use std::process::{Command, Stdio};

use distbuild_tests::{Farm, Project};
use serde_json::{Value, json};

use crate::cpu::{self, Spent};
use crate::samples::{Samples, seconds};
use crate::section::Section;
use crate::summary::Target;
use crate::table::{self, Unit};

const MANY: usize = 500;
const CHAIN: usize = 100;
const ROUNDS: usize = 7;
const CORES: usize = 2;

pub(crate) fn run(section: &mut Section) {
    let mut farm = Farm::without_workers();
    farm.add_worker(0, &["--cores", "2"]);
    farm.wait_for_workers(1);
    let many = Project::with_jobs((0..MANY).map(|n| noop(n, None)).collect());
    let chain = Project::with_jobs((0..CHAIN).map(|n| noop(n, n.checked_sub(1))).collect());
    let one = Project::with_jobs(json!([noop(0, None)]));
    for project in [&many, &chain, &one] {
        build(&farm, project);
    }

    let mut spent = Spent::of(&farm, cpu::of_commands, MANY);
    let [throughput, plain, latency, plain_latency, single] = section.in_turns(
        ROUNDS,
        section.share(1.0),
        [
            &mut || spent.during(|| seconds(|| build(&farm, &many))),
            &mut || seconds(|| spawn_many(MANY, CORES)),
            &mut || seconds(|| build(&farm, &chain)) / CHAIN as f64,
            &mut || seconds(|| spawn_many(CHAIN, 1)) / CHAIN as f64,
            &mut || seconds(|| build(&farm, &one)),
        ],
    );

    table::head();
    let rate = |samples: &Samples| samples.map(|seconds| MANY as f64 / seconds);
    table::line(
        &format!("{MANY} independent no-op jobs, one worker with {CORES} cores"),
        Unit::PerSecond,
        &rate(&throughput),
        ("fork and exec by 2 threads", &rate(&plain)),
    );
    table::line(
        &format!("a chain of {CHAIN} no-op jobs, a job"),
        Unit::Milliseconds,
        &latency,
        ("fork and exec, one at a time", &plain_latency),
    );
    table::alone("a build of one no-op job, whole process", Unit::Milliseconds, &single);
    for (name, samples) in spent.by_process() {
        table::alone(&format!("CPU a job: {name}"), Unit::Microseconds, samples);
    }
    println!();
    let what = format!("no-op jobs a second, in all namespaces, one worker with {CORES} cores");
    section.row(&what, Unit::PerSecond, &rate(&throughput), Target::AtLeast(500.0));
    let what = "no-op job, one at a time, from submission to result";
    section.row(what, Unit::Milliseconds, &latency, Target::AtMost(6e-3));
}

pub(crate) fn noop(number: usize, dep: Option<usize>) -> Value {
    let deps: Vec<String> = dep.iter().map(ToString::to_string).collect();
    json!({
        "name": number.to_string(), "deps": deps, "env": [format!("NUMBER={number}")],
        "cmds": [{ "exec": ["/bin/true"] }]
    })
}

pub(crate) fn build(farm: &Farm, project: &Project) {
    let finished = farm.build(&project.graph()).args(["--no-cache"]).succeed();
    assert_eq!(finished.jobs("executed"), finished.jobs("total"));
}

/// The baseline: a program that does nothing, so many times.
pub(crate) fn spawn_many(count: usize, threads: usize) {
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..count / threads {
                    let mut command = Command::new("/bin/true");
                    let output = command.env_clear().stdin(Stdio::null()).output().unwrap();
                    assert!(output.status.success());
                }
            });
        }
    });
}
