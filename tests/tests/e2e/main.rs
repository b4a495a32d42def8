//! End to end: the real program, real daemons, real mounts.

#![expect(clippy::unwrap_used, reason = "a failing step of a test ends the test")]

mod behaviours;
mod embedded;
mod errors;
mod explained;
mod faults;
mod large_files;
mod lazy;
mod lua;
mod modes;
mod oracle;
mod precise;
mod prefetch;
mod restarts;
mod zstd;
