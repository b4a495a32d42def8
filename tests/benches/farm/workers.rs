//! Lua from empty caches on 1, 2, 4 and 8 workers of one core each: more workers are not slower, and the
//! client sends each byte once, whatever their number.
//!
//! Workers may offer more cores than the machine has: `make` with more jobs on the same processors shows what
//! that alone costs.

use distbuild_tests::{Project, example};

use crate::builds::on_a_farm;
use crate::plain_build::{self, Compiler, Plain};
use crate::samples::Samples;
use crate::section::Section;
use crate::summary::Target;
use crate::table::{self, Unit};

const ROUNDS: usize = 5;
const WORKERS: [usize; 4] = [1, 2, 4, 8];
/// Where processors are the limit, equal times are what is hoped for; so much is noise.
const NOT_SLOWER: f64 = 1.05;

pub(crate) fn run(section: &mut Section) {
    let project = example::lua();
    plain_build::write(&project);
    let mut ratios = [const { Samples::new() }; WORKERS.len()];
    let [one_ratio, two_ratio, four_ratio, eight_ratio] = &mut ratios;
    let [one, two, four, eight, make_two, make_four] = section.in_turns(
        ROUNDS,
        section.share(1.0),
        [
            &mut || cold(&project, 1, one_ratio),
            &mut || cold(&project, 2, two_ratio),
            &mut || cold(&project, 4, four_ratio),
            &mut || cold(&project, 8, eight_ratio),
            &mut || make(&project, 2),
            &mut || make(&project, 4),
        ],
    );

    table::head();
    let ours = [one, two, four, eight];
    for (workers, ours) in WORKERS.iter().zip(&ours) {
        let (jobs, make) = if *workers > 2 { (4, &make_four) } else { (2, &make_two) };
        let what = format!("Lua, empty caches, {workers} workers");
        table::line(&what, Unit::Seconds, ours, (&format!("make -j{jobs}"), make));
    }
    println!();
    for n in 1..WORKERS.len() {
        let what = format!("Lua, empty caches, {} workers ÷ {}", WORKERS[n], WORKERS[n - 1]);
        let target = Target::AtMost(NOT_SLOWER);
        section.row(&what, Unit::Ratio, &ours[n].over(&ours[n - 1]), target);
    }
    let what = "for comparison: Lua, make -j4 ÷ make -j2";
    section.row(what, Unit::Ratio, &make_four.over(&make_two), Target::Told);
    for (workers, ratios) in WORKERS.iter().zip(&ratios) {
        let what = format!("bytes sent by the client ÷ opened, Lua, {workers} workers");
        section.row(&what, Unit::Ratio, ratios, Target::AtMost(1.05));
    }
}

fn cold(project: &Project, workers: usize, ratios: &mut Samples) -> f64 {
    let build = on_a_farm(project, workers);
    ratios.push(build.sent_to_opened);
    build.cold
}

fn make(project: &Project, jobs: usize) -> f64 {
    Plain::Make.build(project, jobs, &Compiler::plain())
}
