//! Steps: how much work an event is, counted and not timed, so that a walk that grows with the
//! number of jobs or workers is a red test and not a noisy figure.
//!
//! A step is one look at a record (a job, an execution, an attempt, a worker, a lane) or at a node of
//! an index. They are counted in this crate's tests only; otherwise `step` is nothing.

#[cfg(test)]
pub(crate) use counting::{step, steps};

/// Takes one step.
#[cfg(not(test))]
pub(crate) const fn step() {}

#[cfg(test)]
mod counting {
    use std::cell::Cell;

    std::thread_local! {
        static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    /// Takes one step.
    pub(crate) fn step() {
        STEPS.with(|steps| steps.set(steps.get() + 1));
    }

    /// The steps that schedulers on this thread have taken so far.
    pub(crate) fn steps() -> u64 {
        STEPS.with(Cell::get)
    }
}
