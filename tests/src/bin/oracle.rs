//! `oracle --project P --edits N --seed S`: random edits of a real project, each built with precise reuse and from
//! scratch, and compared bit for bit.
//!
//! P is `lua`, `snappy`, `zstd`, or `all`, which divides the edits among them; or `programs`, random programs that
//! look at random files. It prints each edit, and at the end
//! what was compared and counted; [`distbuild_tests::oracle`] says what that is. The exit code is 0 if nothing
//! differs and no more than `--ratio` times the minimum was run, 1 if not, and 2 for usage.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is read by people")]

use std::process::ExitCode;

use distbuild_tests::oracle::project::EditedProject;
use distbuild_tests::oracle::{Oracle, Tally};

const USAGE: &str =
    "usage: oracle --project lua|snappy|zstd|all|programs --edits N --seed S [--ratio R]";
/// Jobs that may be run for each that has to be.
const RATIO: f64 = 1.02;

struct Arguments {
    projects: Vec<&'static str>,
    edits: usize,
    seed: u64,
    ratio: f64,
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let mut all = Tally::default();
    let projects = arguments.projects.len();
    for (at, name) in arguments.projects.iter().enumerate() {
        // What does not divide goes to the first.
        let edits = arguments.edits / projects + usize::from(at < arguments.edits % projects);
        let tally = run(name, edits, arguments.seed);
        print(name, &tally);
        all.add(tally);
    }
    if projects > 1 {
        print("all", &all);
    }
    for text in all.differences.iter().chain(&all.unjustified) {
        println!("FOUND {text}");
    }
    let is_good = all.is_clean() && all.ratio() <= arguments.ratio;
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments() -> Option<Arguments> {
    let (mut project, mut edits, mut seed, mut ratio) = (None, None, None, RATIO);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--project" => project = Some(value),
            "--edits" => edits = Some(value.parse().ok()?),
            "--seed" => seed = Some(value.parse().ok()?),
            "--ratio" => ratio = value.parse().ok()?,
            _ => return None,
        }
    }
    let project = project?;
    let all = EditedProject::NAMES;
    let projects: Vec<_> = match project.as_str() {
        "all" => all.to_vec(),
        "programs" => vec!["programs"],
        _ => all.into_iter().filter(|name| project == *name).collect(),
    };
    (!projects.is_empty()).then_some(Arguments { projects, edits: edits?, seed: seed?, ratio })
}

fn run(name: &str, edits: usize, seed: u64) -> Tally {
    let project = EditedProject::of(name).expect("the names are those that are known");
    let mut oracle = Oracle::start(project, seed);
    for number in 1..=edits {
        let (before, reused) = (oracle.tally().ran, oracle.tally().minimum);
        let text = oracle.step();
        let tally = oracle.tally();
        let found = tally.differences.len() + tally.unjustified.len();
        let (ran, minimum) = (tally.ran - before, tally.minimum - reused);
        println!(
            "{name} {number}/{edits}: {text}: ran {ran}, minimum {minimum}, {found} found so far"
        );
    }
    oracle.finish()
}

fn print(name: &str, tally: &Tally) {
    let kinds: Vec<String> =
        tally.kinds.iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
    println!(
        "{name}: {} edits ({}), after {} of them something fails; {} jobs compared, {} differences, {} reused \
         without reason",
        tally.edits,
        kinds.join(", "),
        tally.failing,
        tally.jobs,
        tally.differences.len(),
        tally.unjustified.len()
    );
    println!(
        "{name}: {} jobs run, minimum {}, ratio {:.4}; by job key alone {}, with early cut-off {}; \
         {:.0} s with precise reuse, {:.0} s from scratch",
        tally.ran,
        tally.minimum,
        tally.ratio(),
        tally.by_job_key,
        tally.by_action_key,
        tally.seconds[0],
        tally.seconds[1]
    );
}
