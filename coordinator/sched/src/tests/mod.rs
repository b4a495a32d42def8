//! Tests of the whole scheduler, in the order of a job's life, and by simulation.

mod ending;
mod fairness;
mod lifecycle;
mod placement;
mod random;
mod reattach;
mod remake;
mod retries;
mod rig;
mod simulation;
mod steps;
mod watchdog;
