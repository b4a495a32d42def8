//! Whole farms, from seeds that are printed.

use crate::sim::{Fault, Options, Report, run};
use crate::{Config, Planted};

/// The report of a run, which has to be good.
#[track_caller]
fn good(options: &Options) -> Report {
    run(options).unwrap_or_else(|broken| {
        let last = broken.last.join("\n");
        panic!("{last}\nseed {}, step {}: {}", broken.seed, broken.step, broken.what)
    })
}

#[test]
fn without_faults_every_job_succeeds() {
    for seed in 0..3 {
        let report = good(&Options { faults: false, ..Options::new(seed) });
        let kinds: Vec<_> = report.outcomes.keys().copied().collect();
        assert_eq!((kinds, report.faults.len()), (vec!["executed"], 0), "seed {seed}");
    }
}

#[test]
fn every_kind_of_fault_breaks_no_rule() {
    for seed in 0..5 {
        let report = good(&Options::new(seed));
        assert_eq!(report.faults.len(), Fault::ALL.len(), "seed {seed}: {report:?}");
    }
}

#[test]
fn equal_seeds_give_equal_effects() {
    let once = good(&Options::new(7));
    assert_eq!(once, good(&Options::new(7)));
    assert_ne!(once.trace, good(&Options::new(8)).trace);
}

#[test]
fn tight_limits_change_outcomes_but_not_the_rules() {
    let config = Config {
        max_attempts: 1,
        max_lost_inputs: 1,
        max_rejections: 0,
        max_remakes: 1,
        quarantine_after: 1,
        locality_wait_ms: 5,
        locality_line: 1,
        retry_elsewhere_ms: 10,
        suspect_after: 1,
        queue_timeout_ms: 500,
        reserve_after_ms: 20,
        reserve_one_in: 2,
        ageing_ms: 50,
        max_lookups: 2,
        max_exact_shapes: 2,
        stall_after_ms: 500,
    };
    for seed in 200..204 {
        good(&Options { config: config.clone(), ..Options::new(seed) });
    }
}

/// Seeds within which a planted bug has to be found.
const WITHIN_SEEDS: u64 = 1_000;

#[test]
fn every_planted_bug_is_found_by_the_books_alone() {
    for bug in Planted::ALL {
        let find = |seed| {
            let planted = Options { planted: Some(bug), check: false, ..Options::new(seed) };
            run(&planted).err()
        };
        let found = (0..WITHIN_SEEDS).find_map(find);
        println!("{bug:?}: {:?}", found.as_ref().map(|it| (it.seed, it.step, &it.what)));
        let found = found.unwrap_or_else(|| panic!("{bug:?}: not found in {WITHIN_SEEDS} seeds"));
        // It is the bug that was found.
        good(&Options { check: false, ..Options::new(found.seed) });
    }
}
