//! `simulate --seeds M [--first-seed S] [--steps N] [--planted BUG]`: the scheduler in simulated farms, one
//! a seed, in which every kind of fault happens.
//!
//! What is simulated and what has to hold is told in `distbuild_sched::sim`. It prints how many steps were
//! taken and how many faults of each kind happened. If something does not hold, it prints the seed, what was
//! broken, the last steps before, and the command that does the same again; then the exit code is 1. It is 2 for
//! usage. `--steps` makes each storm at least so long. `--planted` puts a bug into the scheduler, or `all` one
//! after the other, and tells which seed finds it first; then not to find it is the failure.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is read by people")]

use std::collections::BTreeMap;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use distbuild_sched::Planted;
use distbuild_sched::sim::{Broken, Fault, Options, Report, run};

const USAGE: &str = "usage: simulate --seeds M [--first-seed S] [--steps N] [--planted BUG|all]";

struct Arguments {
    seeds: u64,
    first_seed: u64,
    steps: u64,
    planted: Vec<Planted>,
}

#[derive(Default)]
struct Tally {
    seeds: u64,
    steps: u64,
    fewest_steps: Option<u64>,
    attempts: u64,
    simulated_ms: u64,
    faults: BTreeMap<Fault, u64>,
    outcomes: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.steps += report.steps;
        let fewest = self.fewest_steps.unwrap_or(report.steps);
        self.fewest_steps = Some(fewest.min(report.steps));
        self.attempts += report.attempts;
        self.simulated_ms += report.took_ms;
        for (fault, count) in &report.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (kind, count) in &report.outcomes {
            *self.outcomes.entry(kind).or_default() += count;
        }
    }
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    // A panic of the scheduler is a result of a run, told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    if !arguments.planted.is_empty() {
        return find_planted(&arguments);
    }
    let started = Instant::now();
    let (tally, broken) = simulate(&arguments, None);
    print(&tally, started);
    match broken {
        None => ExitCode::SUCCESS,
        Some(broken) => {
            tell(&broken, arguments.steps);
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Option<Arguments> {
    let mut arguments = Arguments { seeds: 0, first_seed: 0, steps: 0, planted: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--seeds" => arguments.seeds = value.parse().ok()?,
            "--first-seed" => arguments.first_seed = value.parse().ok()?,
            "--steps" => arguments.steps = value.parse().ok()?,
            "--planted" => {
                let named = |bug: &Planted| value == "all" || format!("{bug:?}") == value;
                arguments.planted = Planted::ALL.into_iter().filter(named).collect();
                if arguments.planted.is_empty() {
                    return None;
                }
            }
            _ => return None,
        }
    }
    (arguments.seeds > 0).then_some(arguments)
}

/// Runs the seeds on every core, up to the first that fails: of those that fail, the least is told.
fn simulate(arguments: &Arguments, planted: Option<Planted>) -> (Tally, Option<Broken>) {
    let next = AtomicU64::new(0);
    let end = AtomicU64::new(arguments.seeds);
    let results = Mutex::new((Tally::default(), None::<Broken>));
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= end.load(Ordering::Relaxed) {
                return;
            }
            let seed = arguments.first_seed.wrapping_add(number);
            let result = run(&Options { steps: arguments.steps, planted, ..Options::new(seed) });
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(report) => results.0.add(&report),
                Err(broken) => {
                    end.fetch_min(number, Ordering::Relaxed);
                    let earlier = results.1.as_ref().is_some_and(|known| known.seed < seed);
                    if !earlier {
                        results.1 = Some(*broken);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn print(tally: &Tally, started: Instant) {
    println!(
        "{} seeds, {} steps (at least {} a seed), {} attempts, {} s simulated in {:.1} s",
        tally.seeds,
        tally.steps,
        tally.fewest_steps.unwrap_or_default(),
        tally.attempts,
        tally.simulated_ms / 1000,
        started.elapsed().as_secs_f64()
    );
    println!("faults:");
    for fault in Fault::ALL {
        let count = tally.faults.get(&fault).copied().unwrap_or_default();
        println!("  {count:>9}  {fault:?}");
    }
    println!("jobs:");
    for (kind, count) in &tally.outcomes {
        println!("  {count:>9}  {kind}");
    }
}

fn tell(broken: &Broken, steps: u64) {
    println!("BROKEN seed {}, step {}: {}", broken.seed, broken.step, broken.what);
    println!("the last steps:");
    for step in &broken.last {
        println!("  {step}");
    }
    println!(
        "again: cargo run -p distbuild-tests --bin simulate -- --seeds 1 --first-seed {} --steps {steps}",
        broken.seed
    );
}

fn find_planted(arguments: &Arguments) -> ExitCode {
    let mut is_complete = true;
    for bug in &arguments.planted {
        match simulate(arguments, Some(*bug)).1 {
            Some(Broken { seed, step, what, .. }) => {
                println!("{bug:?}: found by seed {seed}, step {step}: {what}");
            }
            None => {
                is_complete = false;
                println!("{bug:?}: not found in {} seeds", arguments.seeds);
            }
        }
    }
    if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
