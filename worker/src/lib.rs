//! The worker: agent, sandbox, peers; runs actions and collects their outputs.
//!
//! Model: an *agent* (this process, or a part of it) holds a session with the coordinator and runs what it is
//! assigned. It owns the store, and all bytes enter and leave through it. It neither mounts nor forks:
//! a *helper* process, the same binary started anew, serves the file system and starts the jobs, each half
//! over a socket of its own; both end when the agent does.
//!
//! | modules | hold |
//! |---|---|
//! | [`worker`] with [`config`], [`error`] | the public face: start, drain, shut down |
//! | `session`, `outbox`, `agent` | the control stream, what is said over it, what is heard |
//! | `attempt`, `report`, `output`, `clock`, `job_spec`, `directories` | one action from assignment to report |
//! | `inputs`, `wants`, `fetch`, `locating`, `reading`, `channels` | how contents get here when a command reads them |
//! | [`large`] | large blobs: pieces from several holders at once, over connections of their own |
//! | `peers`, `lend` | how they leave for other workers and clients |
//! | [`exchange`] | both of them alone, to be measured |
//! | `trees` | what is kept for whom |
//! | `toolchain` | what the worker calls what jobs see of the host, and whether that has changed |
//! | [`helper`], `helper_process`, `fs_client`, `run_dir` | the helper process and the directories of a run |
//! | [`sandbox`] | where commands run |
//!
//! It never decides what runs where, and never keeps a result that the coordinator has not acknowledged.

mod action_dir;
mod agent;
mod attempt;
mod channels;
mod clock;
pub mod config;
mod directories;
pub mod error;
pub mod exchange;
mod fetch;
mod fs_client;
pub mod helper;
mod helper_process;
mod inputs;
mod job_spec;
pub mod large;
mod large_files;
mod lend;
mod locating;
mod outbox;
mod output;
mod peers;
mod prefetch;
mod reading;
mod report;
mod run_dir;
pub mod sandbox;
mod session;
mod spread;
mod toolchain;
mod trees;
mod wants;
pub mod worker;

pub use config::{Limits, WorkerConfig};
pub use error::WorkerError;
pub use helper::{HELPER_COMMAND, helper_main};
pub use peers::serve_peers;
pub use sandbox::RootAt;
pub use worker::{RunningWorker, Worker};
