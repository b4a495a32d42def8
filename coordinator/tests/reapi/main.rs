//! The Remote Execution API as a plain gRPC client sees it: a coordinator that really serves, one test for each thing
//! that a server has to do.

#![expect(clippy::unwrap_used, reason = "a failing step of a test ends the test")]

mod action_cache;
mod batches;
mod byte_stream;
mod capabilities;
mod chunks;
mod find_missing;
mod malformed;
mod server;
mod trees;
mod uploads;
