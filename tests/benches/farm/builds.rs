//! Whole builds of Lua and zstd on two workers of one core each, from empty caches and fully cached,
//! beside `make -j2` and `ninja -j2`.
//!
//! The time is that of the whole process of the client, outputs brought into a new directory; the daemons run
//! before. The cached build is the one after the cold one on the same farm.

use distbuild_tests::{Farm, Project, example};

use crate::plain_build::{self, Compiler, Plain, is_here};
use crate::samples::{Samples, seconds};
use crate::section::Section;
use crate::summary::{Row, Target};
use crate::table::{self, Unit};

const ROUNDS: usize = 7;
const WORKERS: usize = 2;

pub(crate) fn run(section: &mut Section) {
    table::head();
    for (name, project, share) in [("Lua", example::lua(), 0.33), ("zstd", example::zstd(), 1.0)] {
        plain_build::write(&project);
        measure(name, &project, share, section);
    }
    println!();
}

fn measure(name: &str, project: &Project, share: f64, section: &mut Section) {
    let compiler = Compiler::plain();
    let (mut cached, mut ratios) = (Samples::new(), Samples::new());
    let ninja = is_here(Plain::Ninja.program());
    let [cold, make, with_ninja] = section.in_turns(
        ROUNDS,
        section.share(share),
        [
            &mut || {
                let build = on_a_farm(project, WORKERS);
                cached.push(build.cached);
                ratios.push(build.sent_to_opened);
                build.cold
            },
            &mut || Plain::Make.build(project, WORKERS, &compiler),
            // What is not here is not measured, and takes no time.
            &mut || if ninja { Plain::Ninja.build(project, WORKERS, &compiler) } else { f64::NAN },
        ],
    );
    for (what, ours, most) in [("empty caches", &cold, 1.10), ("fully cached", &cached, 0.2)] {
        for (program, theirs) in [(Plain::Make, &make), (Plain::Ninja, &with_ninja)] {
            let called = format!("{} -j{WORKERS}", program.program());
            let what = format!("build of {name}, {what}, {WORKERS} workers ÷ {called}");
            if program == Plain::Ninja && !ninja {
                section.add(Row::skipped(&what, "ninja is not installed"));
                continue;
            }
            table::line(&what, Unit::Seconds, ours, (&called, theirs));
            section.row(&what, Unit::Ratio, &ours.over(theirs), Target::AtMost(most));
        }
    }
    let what = format!("bytes sent by the client ÷ opened, {name}, {WORKERS} workers");
    section.row(&what, Unit::Ratio, &ratios, Target::AtMost(1.05));
}

/// A build with nothing cached anywhere and one with everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Built {
    /// Seconds.
    pub(crate) cold: f64,
    /// Seconds.
    pub(crate) cached: f64,
    pub(crate) sent_to_opened: f64,
}

/// Builds on a new farm.
pub(crate) fn on_a_farm(project: &Project, workers: usize) -> Built {
    let farm = Farm::start(workers);
    let out = tempfile::tempdir().unwrap();
    let build = |out: &str| {
        let build = farm.build(&project.graph()).args(["--out", out]);
        let mut finished = None;
        let taken = seconds(|| finished = Some(build.succeed()));
        (taken, finished.unwrap())
    };
    let (cold, finished) = build(&out.path().join("cold").display().to_string());
    assert_eq!(finished.jobs("executed"), finished.jobs("total"));
    let sent_to_opened = finished.bytes("sent_by_client") as f64 / finished.bytes("opened") as f64;
    let (cached, finished) = build(&out.path().join("cached").display().to_string());
    assert_eq!(finished.jobs("cached"), finished.jobs("total"));
    Built { cold, cached, sent_to_opened }
}
