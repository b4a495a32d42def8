//! A deterministic simulation of a driver, a fleet and its users, to test the scheduler against.
//!
//! Everything follows from the seed: graphs, run times, failures, workers that vanish and come
//! back, lost outputs, cancelled builds. The simulation keeps its own plain books and complains
//! about every effect that contradicts them; it never looks into the scheduler, except for
//! `check_invariants`.

mod world;

use std::collections::BTreeMap;

use self::world::World;
use crate::Config;

/// What to simulate. Percentages are chances, each time the matter comes up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// Workers; they differ in size and in platform.
    pub workers: u32,
    /// Builds; one is submitted every 100 ms.
    pub builds: u32,
    /// Jobs of a build.
    pub jobs: u32,
    /// An attempt ends in the job's own failure.
    pub fail_percent: u32,
    /// An attempt ends in another bad way.
    pub trouble_percent: u32,
    /// A worker vanishes, drains or says goodbye, once a simulated second and worker. It is back
    /// within a second.
    pub vanish_percent: u32,
    /// Outputs of a job are lost before they are delivered.
    pub loss_percent: u32,
    /// A build is cancelled on its way.
    pub cancel_percent: u32,
    /// Check the scheduler's invariants after every event (costs O(jobs) each).
    pub check: bool,
}

impl Options {
    /// A fleet where nothing goes wrong.
    pub fn calm(seed: u64) -> Self {
        Self {
            seed,
            workers: 8,
            builds: 5,
            jobs: 60,
            fail_percent: 0,
            trouble_percent: 0,
            vanish_percent: 0,
            loss_percent: 0,
            cancel_percent: 0,
            check: true,
        }
    }

    /// A fleet where everything goes wrong now and then.
    pub fn rough(seed: u64) -> Self {
        Self {
            fail_percent: 1,
            trouble_percent: 5,
            vanish_percent: 5,
            loss_percent: 5,
            cancel_percent: 10,
            ..Self::calm(seed)
        }
    }
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events given to the scheduler.
    pub events: u64,
    /// Attempts assigned.
    pub attempts: u64,
    /// Jobs by kind of outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Outputs made again.
    pub remade: u64,
    /// Simulated time from the first event to the end of the last build.
    pub took_ms: u64,
    /// A hash of all effects, in order: equal seeds give equal hashes.
    pub trace: u64,
}

/// A small generator of pseudo-random numbers: xorshift64* (Vigna 2016).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Any seed is fine.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound` (0 if that is 0).
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((drawn * u64::from(bound)) >> 32) as u32
    }

    /// True this often in a hundred.
    pub fn percent(&mut self, chance: u32) -> bool {
        self.below(100) < chance
    }
}

/// Runs a simulation to the end of all its builds. The error names the seed and what went wrong.
pub fn run(options: Options, config: Config) -> Result<Report, String> {
    World::new(options, config).run()
}
