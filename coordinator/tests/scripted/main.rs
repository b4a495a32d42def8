//! The coordinator over real gRPC, with scripted workers and clients in place of the real ones.

#![expect(clippy::unwrap_used, reason = "a failing step of a test ends the test")]

mod fake;

mod builds;
mod executions;
mod faults;
mod reapi;
mod sources;
