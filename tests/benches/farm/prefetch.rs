//! The compiles of Lua and of zstd on a worker with an empty store, whose peer with all the sources is 10 ms and
//! 1 Gbit/s away: without prefetch, and with what the run before has shown.
//!
//! One job compiles every file. The baseline is the same script in a plain directory, in turns. The peer is
//! a worker that holds the sources because a job of its own has read them; the link is the proxy of the testkit. The time
//! of ours is that of the attempt from its arrival to its end, outputs collected, as the worker tells it.

use std::path::Path;
use std::process::{Command, Stdio};

use distbuild_tests::project::shell_with;
use distbuild_tests::{Conditions, Farm, Finished, Project, SlowLink, example};
use serde_json::{Value, json};

use crate::samples::{Samples, seconds};
use crate::section::Section;
use crate::summary::Target;
use crate::table::{self, Unit};

const ROUNDS: usize = 5;
/// Of native wall time.
const WITH_PREFETCH: f64 = 1.10;
/// The worker that compiles, and the one that holds the sources.
const COMPILER: usize = 0;
const HOLDER: usize = 1;

pub(crate) fn run(section: &mut Section) {
    for (name, project, share) in [("Lua", example::lua(), 0.35), ("zstd", example::zstd(), 1.0)] {
        measure(name, &project, share, section);
    }
}

fn measure(name: &str, project: &Project, share: f64, section: &mut Section) {
    let time = section.share(share);
    let script = write_jobs(project);
    let link = SlowLink::new(Conditions::WIDE_AREA);
    let mut farm = start(&link);
    // The holder comes to hold the sources, the coordinator to know what the compiles read.
    farm.build(&project.graph()).succeed();
    let (mut bytes, mut waits) = ([const { Samples::new() }; 3], [const { Samples::new() }; 2]);
    let [without_waits, with_waits] = &mut waits;
    let farm = std::cell::RefCell::new(&mut farm);
    let [without, with, native] = section.in_turns(
        ROUNDS,
        time,
        [
            &mut || {
                let build = cold(&mut farm.borrow_mut(), project, "off");
                attempt_seconds(&build, without_waits)
            },
            &mut || {
                let build = cold(&mut farm.borrow_mut(), project, "on");
                let counts = ["prefetch_hit", "prefetch_late", "prefetch_wasted"];
                counts.iter().zip(&mut bytes).for_each(|(count, samples)| {
                    samples.push(build.bytes(count) as f64);
                });
                attempt_seconds(&build, with_waits)
            },
            &mut || plain(project.path(), &script),
        ],
    );

    table::head();
    let baseline = ("plain directory", &native);
    let line =
        |what: &str, ours| table::line(&format!("{name}, {what}"), Unit::Seconds, ours, baseline);
    line("empty store, no prefetch", &without);
    line("empty store, prefetch", &with);
    for (what, waits) in ["no prefetch", "prefetch"].iter().zip(&waits) {
        table::alone(&format!("{name}, waiting for contents, {what}"), Unit::Milliseconds, waits);
    }
    for (what, bytes) in ["hit", "late", "wasted"].iter().zip(&bytes) {
        table::alone(&format!("{name}, bytes prefetched: {what}"), Unit::Count, bytes);
    }
    println!();
    let what =
        format!("compile of {name}, empty store, 10 ms and 1 Gbit/s away ÷ plain directory, wall");
    section.row(&format!("{what}, first run"), Unit::Ratio, &without.over(&native), Target::Told);
    let target = Target::AtMost(WITH_PREFETCH);
    section.row(&format!("{what}, prefetch"), Unit::Ratio, &with.over(&native), target);
}

/// Both workers; the one that compiles is the only one with two cores.
fn start(link: &SlowLink) -> Farm {
    let mut farm = Farm::without_workers();
    farm.add_worker(COMPILER, &["--cores", "2"]);
    let holder = ["--property", "holder=yes", "--peer-advertise", &link.address()];
    farm.add_worker(HOLDER, &holder);
    link.lead_to(farm.workers[HOLDER].as_ref().unwrap().address("grpc"));
    farm.wait_for_workers(2);
    farm
}

/// Seconds of the attempt that compiles; adds those that it waited for contents.
fn attempt_seconds(build: &Finished, waits: &mut Samples) -> f64 {
    let attempts = build.attempts("compile");
    let seconds = |field: &str| attempts[0][field].as_u64().unwrap() as f64 / 1e3;
    waits.push(seconds("fetch_wait_ms"));
    seconds("setup_ms") + seconds("run_ms") + seconds("collect_ms")
}

/// A build in which only the compiles run, on a worker that begins with nothing.
fn cold(farm: &mut Farm, project: &Project, prefetch: &str) -> Finished {
    farm.kill_worker(COMPILER);
    std::fs::remove_dir_all(farm.worker_state(COMPILER)).unwrap();
    farm.add_worker(COMPILER, &["--cores", "2", "--prefetch", prefetch]);
    farm.wait_for_workers(2);
    let build = farm.build(&project.graph()).succeed();
    assert_eq!((build.jobs("executed"), build.jobs("cached")), (1, 1));
    assert_eq!(build.bytes("sent_by_client"), 0, "everything came from the holder");
    build
}

/// The same script, without us.
fn plain(sources: &Path, script: &str) -> f64 {
    let out = tempfile::tempdir().unwrap();
    let script = script.replace("{{OUTPUT_DIR}}", &out.path().display().to_string());
    let mut command = Command::new("sh");
    command.args(["-ec", &script]).current_dir(sources).stdin(Stdio::null());
    seconds(|| assert!(command.status().unwrap().success()))
}

/// Replaces the project's jobs by one that holds all its sources and one that compiles them; gives the latter's
/// script.
fn write_jobs(project: &Project) -> String {
    let graph: Value = serde_json::from_slice(&std::fs::read(project.graph()).unwrap()).unwrap();
    let compiles = graph["jobs"].as_array().unwrap().iter();
    let compiles: Vec<&Value> = compiles.filter(|job| is_compile(job)).collect();
    let mut inputs: Vec<&str> = compiles
        .iter()
        .flat_map(|job| job["inputs"].as_array().unwrap())
        .map(|input| input.as_str().unwrap())
        .collect();
    inputs.sort_unstable();
    inputs.dedup();
    let script: Vec<String> = compiles.iter().map(|job| command_line(job)).collect();
    let script = script.join("\n");
    let mut hold = shell_with("hold", &inputs, &[], "find . -type f -exec cat {} + > /dev/null");
    hold["platform"] = json!({ "holder": "yes" });
    let mut compile = shell_with("compile", &inputs, &["hold"], &script);
    compile["cmds"][0]["exec"][1] = json!("-ec");
    compile["resources"] = json!({ "cores": 2 });
    project.jobs(json!([hold, compile]));
    script
}

fn is_compile(job: &Value) -> bool {
    let words = job["cmds"][0]["exec"].as_array().unwrap();
    words[0] == "cc" && words.contains(&json!("-c"))
}

/// Of words without spaces and quotes.
fn command_line(job: &Value) -> String {
    let words = job["cmds"][0]["exec"].as_array().unwrap().iter();
    words.map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(" ")
}
