//! What it costs that a coordinator may be killed, and what its death costs.
//!
//! No-op jobs a second on a farm whose coordinator keeps its state on the disk, beside one that keeps it in memory
//! (`/dev/shm`). Then Lua, undisturbed and with a coordinator that is killed after ten jobs and started again at
//! once: how much longer the build takes. It is built anew each time, and nothing may run twice.

use std::path::Path;

use distbuild_tests::{Farm, Project, example};

use crate::noop_jobs::{build, noop};
use crate::samples::{Samples, seconds};
use crate::section::Section;
use crate::summary::Target;
use crate::table::{self, Unit};

const JOBS: usize = 500;
const ROUNDS: usize = 9;
/// A directory in memory.
const MEMORY: &str = "/dev/shm";
/// Jobs of Lua that have finished when the coordinator is killed.
const FINISHED: usize = 10;

pub(crate) fn run(section: &mut Section) {
    let memory = tempfile::Builder::new().prefix("distbuild-").tempdir_in(MEMORY).unwrap();
    let farm = |state: Option<&Path>| {
        let mut farm = Farm::without_workers_on(state);
        farm.add_worker(0, &["--cores", "2"]);
        farm.wait_for_workers(1);
        farm
    };
    let (on_disk, in_memory) = (farm(None), farm(Some(memory.path())));
    let many = Project::with_jobs((0..JOBS).map(|n| noop(n, None)).collect());
    build(&on_disk, &many);
    build(&in_memory, &many);
    let [disk, in_memory] = section.in_turns(
        ROUNDS,
        section.share(0.5),
        [&mut || seconds(|| build(&on_disk, &many)), &mut || seconds(|| build(&in_memory, &many))],
    );
    drop(on_disk);

    let mut farm = Farm::start(2);
    let lua = example::lua();
    farm.build(&lua.graph()).succeed();
    let (undisturbed, disturbed) = {
        let farm = std::cell::RefCell::new(&mut farm);
        let [undisturbed, disturbed] = section.in_turns(
            ROUNDS,
            section.share(1.0),
            [&mut || seconds(|| build(&farm.borrow(), &lua)), &mut || {
                seconds(|| build_disturbed(&mut farm.borrow_mut(), &lua))
            }],
        );
        (undisturbed, disturbed)
    };

    table::head();
    let rate = |samples: &Samples| samples.map(|seconds| JOBS as f64 / seconds);
    table::line(
        &format!("{JOBS} no-op jobs, the coordinator's state on disk"),
        Unit::PerSecond,
        &rate(&disk),
        ("in memory", &rate(&in_memory)),
    );
    table::line(
        "Lua, two workers, the coordinator killed after ten jobs",
        Unit::Seconds,
        &disturbed,
        ("undisturbed", &undisturbed),
    );
    println!();
    let what = "no-op jobs a second, state on disk ÷ in memory";
    section.row(what, Unit::Ratio, &in_memory.over(&disk), Target::AtLeast(0.9));
    let what = "Lua takes longer when its coordinator is killed, by";
    section.row(what, Unit::Seconds, &disturbed.minus(&undisturbed), Target::AtMost(5.0));
}

fn build_disturbed(farm: &mut Farm, project: &Project) {
    let running = farm.build(&project.graph()).args(["--no-cache"]).start();
    running.wait_finished(FINISHED);
    farm.kill_coordinator();
    farm.start_coordinator_again();
    let build = running.finish();
    assert_eq!(build.code, 0, "{}", build.stderr);
    assert_eq!(build.jobs("executed"), build.jobs("total"));
    let attempts = build.summary["attempts"].as_array().unwrap().len() as u64;
    assert_eq!(attempts, build.jobs("total"), "nothing runs twice");
}
