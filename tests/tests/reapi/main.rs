//! The Remote Execution API over the real daemons, with a plain client: an item of the API a test.

#![expect(clippy::unwrap_used, reason = "a failing step of a test ends the test")]

mod commands;
mod execution;
mod executor;
