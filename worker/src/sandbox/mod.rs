//! The sandbox: where a job's commands run, and the process that makes it.
//!
//! The model: the agent never forks. It talks over one unix socket to a *spawner*, a process that
//! is single-threaded from birth to death, and the spawner clones one *init* for each job: process
//! 1 of PID, mount, IPC, UTS and network namespaces of its own. Init takes a copy of a root that
//! the spawner prepared once (`template`), adds the job's own mounts, gives up every privilege,
//! runs the commands in order and reports how they ended. When init is gone, so is everything that
//! it ever started: the kernel kills the rest of a PID namespace before its process 1 can be waited
//! for. The spawner reports the end of a job only then, so that whoever reads `Ended` may collect
//! outputs.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | what the spawner is told at its start |
//! | [`protocol`] | the messages between agent and spawner, and what a job and its end are |
//! | `channel` | frames and file descriptors over the socket |
//! | `handle` | the agent's side: [`Spawner`], [`RunningJob`] |
//! | `spawner` | the spawner's side: the table of jobs and its loop |
//! | `template` | the root that all jobs share, read-only |
//! | `input_root` | the overlay of a job that may change its inputs |
//! | `init`, `exec`, `cat` | process 1 of a job, and its two kinds of commands |
//! | `networks` | network namespaces that wait for jobs |
//! | `namespaces`, `privileges` | the system calls: mounts and namespaces; users, capabilities, limits |
//! | [`fingerprint`] | the name of the toolchain that jobs on this machine can see |
//!
//! It never reads an input, never interprets an output, and knows nothing of graphs, digests of
//! actions or the network beyond switching it off.

mod cat;
mod channel;
pub mod config;
mod error;
mod exec;
pub mod fingerprint;
mod handle;
mod init;
mod input_root;
mod namespaces;
mod networks;
mod privileges;
pub mod protocol;
mod spawner;
mod template;

pub use config::{JobUser, SpawnerConfig};
pub use error::SandboxError;
pub use handle::{Ended, RunningJob, Spawner};
pub use namespaces::enter_private_namespaces;
pub use protocol::{
    BindMount, Command, InputRoot, JobEnd, JobSpec, JobTimes, ResourceUsage, RootAt,
};
pub use spawner::run;
