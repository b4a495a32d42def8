//! The compiles of Lua and zstd with their sources in the file system of a worker, against sources in a
//! plain directory.
//!
//! The file system is served by a process as a worker's is, with all contents in the store, and without
//! the rest of a worker. Each file is compiled in each place, one place after the other, before
//! the next file, so that whatever else the machine does for a while meets all places. The places:
//!
//! - `shared`: the shared view of the whole tree, which every compile uses; warm after the round before the
//!   first one that counts;
//! - `traced`: a new traced view for every compile, as for a job that compiles one file; contents in
//!   the page cache;
//! - `plain`: a directory on the disk.
//!
//! Processor time is that of the compiler with what it starts, and of the process that serves the mount.
//! Other work on the machine only ever adds to it, through caches and shared cores. So of each file in each place the
//! least counts, summed over the files; in brackets stand the ratios of single rounds. Messages are those
//! that the serving process got from the kernel, without the kernel's forgetting of views, which comes later.

mod commands;
pub(crate) mod compiler;
pub(crate) mod served;

use std::path::{Path, PathBuf};
use std::time::Instant;

use distbuild_tests::{Project, example};

use crate::samples::Samples;
use crate::section::{LEAST_ROUNDS, Section};
use crate::summary::{Row, Target};
use crate::table::{self, Unit};
use commands::Compile;
use compiler::Compiler;
use served::Served;

const ROUNDS: usize = 7;
const PLACES: [&str; 3] = ["shared", "traced", "plain"];
const SHARED: usize = 0;
const TRACED: usize = 1;
const PLAIN: usize = 2;

/// What FUSE.md counted, and a tenth more: messages per file, the first time and warm.
const MESSAGES_FIRST: f64 = 155.0 * 1.1;
const MESSAGES_WARM: f64 = 20.0 * 1.1;

/// What one compile took in one place.
#[derive(Clone, Copy, Debug)]
struct Took {
    compiler: compiler::Took,
    /// Seconds of the process that serves the mount.
    serving_cpu: f64,
    messages: u64,
}

/// Every file once in every place.
type Round = Vec<[Took; PLACES.len()]>;

pub(crate) fn run(section: &mut Section) {
    let projects = [("Lua", example::lua(), 0.33), ("zstd", example::zstd(), 1.0)];
    for (name, project, share) in projects {
        measure(name, &project, share, section);
    }
}

fn measure(name: &str, project: &Project, share: f64, section: &mut Section) {
    let time = section.share(share);
    let served = Served::start(project.path());
    let mut bench = Bench {
        compiles: commands::of(project),
        compiler: Compiler::start(served.pid()),
        plain: project.path().to_owned(),
        served,
        views: 0,
    };
    let first = bench.warm_up();
    let (started, mut rounds) = (Instant::now(), Vec::new());
    while rounds.len() < ROUNDS {
        let taken = started.elapsed();
        if rounds.len() >= LEAST_ROUNDS && taken + taken / rounds.len() as u32 > time {
            break;
        }
        rounds.push(bench.round(rounds.len()));
    }
    report(name, first, &rounds, section);
}

fn report(name: &str, first: u64, rounds: &[Round], section: &mut Section) {
    let files = rounds[0].len();
    println!("{name}, {files} files, {} rounds\n", rounds.len());
    table::head();
    let cpu: fn(&Took) -> f64 = |took| took.compiler.user + in_the_kernel(took);
    for (what, figure) in [
        ("CPU with the file system", cpu),
        ("CPU in the kernel and the file system", in_the_kernel),
        ("wall", |took: &Took| took.compiler.wall),
    ] {
        for (place, called) in PLACES.iter().enumerate().take(PLAIN) {
            let [ours, plain] = [place, PLAIN].map(|place| sums(rounds, place, figure));
            let baseline = ("plain directory", &plain);
            table::line(&format!("{called}: {what}"), Unit::Seconds, &ours, baseline);
        }
    }
    println!();
    for (place, which, most) in [(SHARED, "shared views", 1.01), (TRACED, "traced views", 1.03)] {
        let what = format!("compile of {name} through warm {which} ÷ plain directory, CPU");
        let seen = sums(rounds, place, cpu).over(&sums(rounds, PLAIN, cpu));
        let ratio = least(rounds, place, cpu) / least(rounds, PLAIN, cpu);
        let row = Row::of_estimate(&what, Unit::Ratio, ratio, &seen, Target::AtMost(most));
        section.add(row);
        // What a file system can add; what a compiler does by itself, and its noise, left out.
        let what = format!("of that in the kernel and the file system, {name}, {which}");
        let added = least(rounds, place, in_the_kernel) - least(rounds, PLAIN, in_the_kernel);
        let part = [added / least(rounds, PLAIN, cpu)].into_iter().collect();
        section.row(&what, Unit::Ratio, &part, Target::Told);
    }
    let each = |place| sums(rounds, place, |took| took.messages as f64).map(|n| n / files as f64);
    let first = [first as f64 / files as f64].into_iter().collect();
    for (which, seen, most) in [
        ("shared view, first", first, MESSAGES_FIRST),
        ("shared view, warm", each(SHARED), MESSAGES_WARM),
        ("a new traced view each", each(TRACED), MESSAGES_FIRST),
    ] {
        let what = format!("messages a compiled file of {name}, {which}");
        section.row(&what, Unit::Count, &seen, Target::AtMost(most));
    }
}

fn in_the_kernel(took: &Took) -> f64 {
    took.compiler.system + took.serving_cpu
}

/// Of each round the sum over the files.
fn sums(rounds: &[Round], place: usize, figure: fn(&Took) -> f64) -> Samples {
    rounds.iter().map(|round| round.iter().map(|took| figure(&took[place])).sum()).collect()
}

/// Of each file the least of the rounds, summed over the files.
fn least(rounds: &[Round], place: usize, figure: fn(&Took) -> f64) -> f64 {
    let of_file = |file: usize| {
        rounds.iter().map(|round| figure(&round[file][place])).fold(f64::INFINITY, f64::min)
    };
    (0..rounds[0].len()).map(of_file).sum()
}

/// What compiles one project in all places.
struct Bench {
    compiles: Vec<Compile>,
    compiler: Compiler,
    plain: PathBuf,
    served: Served,
    views: u64,
}

impl Bench {
    /// Every file once in the shared view; says how many messages that took.
    fn warm_up(&mut self) -> u64 {
        let shared = self.served.shared();
        (0..self.compiles.len()).map(|number| self.compile(number, &shared).messages).sum()
    }

    fn round(&mut self, round: usize) -> Round {
        (0..self.compiles.len()).map(|number| self.in_each_place(number, round + number)).collect()
    }

    fn in_each_place(&mut self, number: usize, turn: usize) -> [Took; PLACES.len()] {
        self.views += 1;
        let traced = self.served.add_view(self.views);
        let directories = [self.served.shared(), traced, self.plain.clone()];
        let mut took = [None; PLACES.len()];
        for position in 0..PLACES.len() {
            let place = (position + turn) % PLACES.len();
            took[place] = Some(self.compile(number, &directories[place]));
        }
        self.served.drop_view(self.views);
        took.map(|took| took.unwrap())
    }

    fn compile(&mut self, number: usize, directory: &Path) -> Took {
        let messages = self.served.messages();
        let serving = self.served.cpu();
        let compiler = self.compiler.run(&self.compiles[number], directory);
        let serving_cpu = self.served.cpu() - serving;
        let messages = self.served.messages() - messages;
        Took { compiler, serving_cpu, messages }
    }
}
