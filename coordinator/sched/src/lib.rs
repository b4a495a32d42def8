//! The scheduler as a pure state machine: which job runs where, and when.
//!
//! The driver tells what happened (`Scheduler::handle` with an `Event`), takes what is to be done
//! (`Scheduler::poll_effect`) and comes back when time has passed (`Scheduler::poll_timeout`).
//! Equal sequences of events give equal sequences of effects: there is no clock and no randomness in
//! here, nothing that could wait, and nothing without an order that is ever walked over.
//!
//! # The model
//!
//! A **job** of a build waits for its dependencies, is looked up (early cut-off), and becomes part
//! of an **execution**, which may serve several jobs with equal action keys. An execution is queued
//! until a **worker** has room; each try to run it is an **attempt**. Every job ends exactly once;
//! its outputs may be lost and made again after that.
//!
//! # Cost
//!
//! An event costs O(log n) in jobs and workers, plus the edges and jobs it changes; two factors are
//! bounded by configuration or by the fleet: distinct requests in the queue (`max_exact_shapes`)
//! and pools (distinct property sets) that a selector matches. Tests count the steps. A queued job takes about 210 bytes,
//! any other about 60, with edges (`cargo bench -p distbuild-sched` measures both).
//!
//! # How long a job can wait
//!
//! Let a job's *lane* be the queue of its user, class, selector and request. While workers that
//! could take it are online, the head of a lane starts, whatever else is submitted, at the latest
//! after `ageing` (then its lane precedes all classes), plus `reserve_after` (then a worker is kept
//! free for it, if it does not fit anywhere), plus the longest run still in progress on that worker,
//! plus the same for every lane starved longer. Locality adds at most `locality_wait`, a retry at
//! most `retry_elsewhere`: so long it leaves out the workers where it went wrong, in a lane of its
//! own, and only while another could take it. A suspect worker runs one attempt at a time and is the
//! last choice, but it is a choice: if there is no other, its jobs run one after the other. With no such worker online, it ends after `queue_timeout`.

mod aside;
mod config;
mod ending;
mod event;
mod execution;
mod fleet;
mod graph;
mod ids;
mod invariants;
mod job;
mod keys;
mod lifecycle;
mod numbered;
mod placement;
mod planted;
mod queue;
mod reattach;
mod remake;
mod resources;
mod room;
mod scheduler;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod slab;
mod status;
mod steps;
#[cfg(test)]
mod tests;
mod tried;
mod watchdog;

pub use config::Config;
pub use event::{
    Answer, AttemptEnd, Blame, Effect, Event, How, InfraReason, NoWorkerReason, Outcome,
};
pub use graph::{Graph, GraphError, JobSpec, JobState};
pub use ids::{ActionKey, AttemptId, BuildId, JobRef, SelectorId, StoreId, Time, UserId, WorkerId};
#[cfg(any(test, feature = "sim"))]
pub use planted::Planted;
pub use resources::Resources;
pub use scheduler::Scheduler;
pub use status::{Stats, WaitReason};
pub use watchdog::Stall;
