//! The testkit: real daemons in temporary directories, and projects for them to build.
//!
//! Everything a test starts ends with it, also when it panics: daemons are killed and waited for when
//! their handles are dropped, directories go with them; if the tests are killed, the kernel kills the daemons. Waiting is always for an event, with a deadline.

pub mod bazel;
pub mod binary;
pub mod build;
pub mod daemon;
pub mod example;
pub mod farm;
pub mod oracle;
pub mod project;
pub mod reapi;
pub mod slow_link;
pub mod tied;
pub mod wait;

pub use bazel::Bazel;
pub use build::{Build, Finished};
pub use daemon::Daemon;
pub use farm::Farm;
pub use project::Project;
pub use slow_link::{Conditions, SlowLink};
