//! Actions of the Remote Execution API: how many a second, how long one takes alone, and what a large input root costs.
//!
//! The client is a plain one in this process, on one connection. Every action is a new one; what it needs is stored before the clock
//! starts, except in the lines that say `whole client`: there each action is looked up, what is missing is asked and uploaded, as build
//! tools do. The baseline starts the same program without us.

use std::sync::Arc;

use distbuild_tests::Farm;
use distbuild_tests::reapi::load::Prepared;
use distbuild_tests::reapi::{Client, Load, Report, Run};
use tokio::runtime::Runtime;

use crate::cpu::{self, Spent};
use crate::noop_jobs::spawn_many;
use crate::samples::{Samples, seconds};
use crate::section::Section;
use crate::summary::Target;
use crate::table::{self, Unit};

const CORES: usize = 2;
const ROUNDS: usize = 7;
const MANY: Run = Run { actions: 500, concurrency: 8, whole_client: false };
const ALONE: Run = Run { actions: 100, concurrency: 1, whole_client: false };
/// All of them are read in the small input root, and as many in the large one.
const READ_FILES: usize = 20;
const LARGE_FILES: usize = 50_000;
const FILE_BYTES: usize = 64;

pub(crate) fn run(section: &mut Section) {
    let mut farm = Farm::without_workers();
    farm.add_worker(0, &["--cores", &CORES.to_string()]);
    farm.wait_for_workers(1);
    let runtime = Runtime::new().unwrap();
    let client = runtime.block_on(Client::connect(&farm.address(), "")).unwrap();
    let prepare = |input_files| {
        let read_files = READ_FILES.min(input_files);
        let load = Load { input_files, file_bytes: FILE_BYTES, read_files, distinct_roots: true };
        Arc::new(runtime.block_on(load.prepare(&client)).unwrap())
    };
    let [noop, small, large] = [0, READ_FILES, LARGE_FILES].map(prepare);
    let go = |load: &Arc<Prepared>, run| runtime.block_on(load.run(run)).unwrap();
    // Metadata and contents have reached the worker; what is measured is not the first of its kind.
    for load in [&noop, &small, &large] {
        go(load, ALONE);
    }

    let mut spent = Spent::of(&farm, cpu::of_this_process, MANY.actions);
    let [mut slowest, mut slowest_of_many] = [const { Samples::new() }; 2];
    let whole = |run| Run { whole_client: true, ..run };
    let [rate, whole_rate, plain, alone, whole_alone, plain_alone, few, lots] = section.in_turns(
        ROUNDS,
        section.share(1.0),
        [
            &mut || spent.during(|| told(&go(&noop, MANY), &mut slowest_of_many).rate()),
            &mut || go(&noop, whole(MANY)).rate(),
            &mut || MANY.actions as f64 / seconds(|| spawn_many(MANY.actions, CORES)),
            &mut || median(told(&go(&noop, ALONE), &mut slowest)),
            &mut || median(&go(&noop, whole(ALONE))),
            &mut || seconds(|| spawn_many(ALONE.actions, 1)) / ALONE.actions as f64,
            &mut || median(&go(&small, ALONE)),
            &mut || median(&go(&large, ALONE)),
        ],
    );

    table::head();
    let what =
        format!("no-op actions, {} at a time, a worker with {CORES} cores", MANY.concurrency);
    let threads = "fork and exec by 2 threads";
    table::line(&what, Unit::PerSecond, &rate, (threads, &plain));
    table::line("the same, whole client", Unit::PerSecond, &whole_rate, (threads, &plain));
    let what = "99 % of them take at most";
    table::alone(what, Unit::Milliseconds, &slowest_of_many);
    let one = "fork and exec, one at a time";
    table::line("a no-op action alone, median", Unit::Milliseconds, &alone, (one, &plain_alone));
    let what = "the same, whole client";
    table::line(what, Unit::Milliseconds, &whole_alone, (one, &plain_alone));
    table::alone("99 % take at most", Unit::Milliseconds, &slowest);
    let what = format!("an action that reads {READ_FILES} of {LARGE_FILES} input files, median");
    let baseline = format!("of {READ_FILES}");
    table::line(&what, Unit::Milliseconds, &lots, (&baseline, &few));
    for (name, samples) in spent.by_process() {
        table::alone(&format!("CPU an action: {name}"), Unit::Microseconds, samples);
    }
    println!();
    let what = "no-op actions of the Remote Execution API a second, isolated, 8 at a time";
    section.row(what, Unit::PerSecond, &rate, Target::AtLeast(400.0));
    let what = "no-op action of the Remote Execution API, one at a time, median";
    section.row(what, Unit::Milliseconds, &alone, Target::AtMost(10e-3));
    let more: Samples = lots.minus(&few);
    let what = "an action that reads 20 of 50 000 input files − one of 20";
    section.row(what, Unit::Milliseconds, &more, Target::AtMost(3e-3));
}

fn median(report: &Report) -> f64 {
    report.median().as_secs_f64()
}

/// Keeps the 99th percentile beside what is asked of a report.
fn told<'a>(report: &'a Report, slowest: &mut Samples) -> &'a Report {
    slowest.push(report.percentile(99).as_secs_f64());
    report
}
