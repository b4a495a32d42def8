//! A deterministic simulation of a coordinator, its workers, their disks and the network between them,
//! to test the scheduler against.
//!
//! Everything follows from the seed. A run has three parts. In the **storm** builds come while every kind
//! of fault (`Fault`) is injected, each at least once. In the **rush**, without faults, one user keeps
//! all workers busy and others wait. Then nothing new comes, and all has to end.
//!
//! # Who is simulated
//!
//! A **host** runs attempts, keeps outputs on its disk and results until they are acknowledged. Its
//! messages arrive in order on one connection and in any order between two. The **driver** does what
//! the coordinator does: sessions that survive a broken connection for a while, one session a store,
//! results accepted from the current session only, a cache, who holds which output. It is careless on
//! purpose in one thing: late and repeated reports it tells the scheduler too, which has to ignore them.
//! The **books** know what was asked and answered, and nothing about the scheduler's insides.
//!
//! # What has to hold, after every step
//!
//! - Each job ends exactly once, each build after its last job and after the last delivery, and a
//!   success is that of an attempt that has reported one from a live session.
//! - No job, and no action key, has two attempts at a time. Not counted: a cancelled attempt whose end
//!   has not been reported, and one whose session is over, which may run on where nobody hears of it.
//! - No attempt without a live session, none on a draining or unfit worker, none without its inputs.
//! - What is reserved on a worker never exceeds what it has, in the books and on the host.
//! - `free_wait_ms` and `lane_wait_ms` bound how long anything waits.
//! - The attempts of a job, and the workers that vanish under it, are bounded.
//! - The scheduler's own invariants (`Scheduler::check_invariants`), if `Options::check` says so.

mod books;
mod driver;
mod fault;
mod host;
mod users;
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use self::fault::Fault;
use self::world::World;
use crate::{Config, Planted};

/// Steps that a failure tells about.
pub const LAST_STEPS: usize = 40;

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// The storm lasts at least so many steps, and until every kind of fault was injected.
    pub steps: u64,
    /// Inject faults. False: there is no storm, only the rush.
    pub faults: bool,
    /// Check the scheduler's own invariants after every step (costs O(jobs) each).
    pub check: bool,
    /// A bug in the scheduler.
    pub planted: Option<Planted>,
    /// The scheduler's limits.
    pub config: Config,
}

impl Options {
    /// Everything that can go wrong, with waits that are short beside the length of a run.
    pub fn new(seed: u64) -> Self {
        let config = Config {
            locality_wait_ms: 100,
            retry_elsewhere_ms: 800,
            queue_timeout_ms: 4_000,
            reserve_after_ms: 500,
            ageing_ms: 1_000,
            max_lookups: 16,
            stall_after_ms: 1_000,
            ..Config::default()
        };
        Self { seed, steps: 0, faults: true, check: true, planted: None, config }
    }
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events given to the scheduler.
    pub steps: u64,
    /// Attempts assigned.
    pub attempts: u64,
    /// Faults by kind.
    pub faults: BTreeMap<Fault, u64>,
    /// Jobs by kind of outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Simulated time from the first event to the end of the last build.
    pub took_ms: u64,
    /// A hash of all effects and when they came: equal seeds give equal hashes.
    pub trace: u64,
}

/// What was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The seed.
    pub seed: u64,
    /// In which step.
    pub step: u64,
    /// What did not hold.
    pub what: String,
    /// The last steps before it.
    pub last: Vec<String>,
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

    /// A number from `least` to below `bound`.
    pub fn between(&mut self, least: u32, bound: u32) -> u64 {
        u64::from(least + self.below(bound - least))
    }

    /// True this often in a hundred.
    pub fn percent(&mut self, chance: u32) -> bool {
        self.below(100) < chance
    }

    /// One of these; `None` if there are none.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len() as u32) as usize).copied()
    }
}

/// Runs a simulation to the end of all its builds. A panic of the scheduler is a failure like others.
///
/// # Errors
/// Something did not hold; the run was repeated to tell the last steps.
pub fn run(options: &Options) -> Result<Report, Box<Broken>> {
    let mut journal = VecDeque::new();
    match attempt(options, None) {
        Ok(report) => Ok(report),
        Err((step, what)) => {
            let _ = attempt(options, Some(&mut journal));
            let last = journal.into();
            Err(Box::new(Broken { seed: options.seed, step, what, last }))
        }
    }
}

fn attempt(
    options: &Options,
    journal: Option<&mut VecDeque<String>>,
) -> Result<Report, (u64, String)> {
    let mut world = World::new(options.clone(), journal);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let what = match result {
        Ok(Ok(())) => return Ok(world.report),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            format!("the scheduler panicked: {text}")
        }
    };
    Err((world.report.steps, what))
}
