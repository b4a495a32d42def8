//! Whole fleets, from seeds that are printed.

use crate::sim::{Options, run};
use crate::{Config, Time};

#[test]
fn in_a_calm_fleet_every_job_succeeds() {
    for seed in 0..20 {
        let report = run(Options::calm(seed), Config::default()).unwrap();
        let bad =
            ["failed", "timed out", "infrastructure error", "skipped", "cancelled", "no worker"];
        for kind in bad {
            assert!(!report.outcomes.contains_key(kind), "seed {seed}: {report:?}");
        }
        assert!(report.outcomes["executed"] > 0, "seed {seed}: {report:?}");
    }
}

#[test]
fn in_a_rough_fleet_every_job_ends_once_and_every_build_ends() {
    for seed in 0..60 {
        let options = Options::rough(seed);
        let jobs = u64::from(options.builds * options.jobs);
        let report = run(options, Config::default()).unwrap();
        assert_eq!(report.outcomes.values().sum::<u64>(), jobs, "seed {seed}");
    }
}

#[test]
fn without_cancellation_every_requested_output_is_delivered_or_given_up() {
    for seed in 100..130 {
        let options = Options { cancel_percent: 0, ..Options::rough(seed) };
        run(options, Config::default()).unwrap();
    }
}

#[test]
fn a_fleet_that_is_much_too_small_still_ends_every_job() {
    for seed in 300..312 {
        let options =
            Options { workers: 2, builds: 12, check: seed % 4 == 0, ..Options::rough(seed) };
        run(options, Config::default()).unwrap();
    }
}

#[test]
fn large_builds_follow_the_rules_too() {
    for seed in 12..22 {
        let options = Options {
            workers: 3 + seed as u32,
            builds: 10,
            jobs: 600,
            check: false,
            ..Options::rough(seed)
        };
        run(options, Config::default()).unwrap();
    }
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
        stall_after_ms: 1,
    };
    for seed in 200..240 {
        run(Options::rough(seed), config.clone()).unwrap();
    }
}

#[test]
fn equal_seeds_give_equal_effects() {
    let once = run(Options::rough(7), Config::default()).unwrap();
    let again = run(Options::rough(7), Config::default()).unwrap();
    assert_eq!(once, again);
    let other = run(Options::rough(8), Config::default()).unwrap();
    assert_ne!(once.trace, other.trace);
    assert!(Time(once.took_ms) < Time(24 * 3600 * 1000));
}
