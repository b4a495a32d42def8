//! The messages between agent and spawner, and what a job and its end are.
//!
//! Both sides are the same binary of the same build, started one by the other, so the encoding
//! (`postcard`) carries no version. Strings of a job are bytes: arguments, variables and paths of
//! Unix are not text. All variables in them have been rendered before they come here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest message in bytes: arguments and environment are limited to some megabytes by the kernel,
/// the text of a `cat` by this.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// The directory of a job's declared sources.
pub const SOURCE_DIR: &str = "/distbuild/src";
/// The directory whose children `0`, `1`, … are the outputs of a job's dependencies.
pub const DEP_DIR: &str = "/distbuild/dep";
/// The directory of a job's outputs.
pub const OUTPUT_DIR: &str = "/distbuild/out";
/// The private home directory of a job.
pub const HOME_DIR: &str = "/distbuild/home";
/// Where an input root without the native layout appears.
pub const ROOT_DIR: &str = "/distbuild/root";

/// A request from the agent. `Start` travels with two descriptors: where stdout and stderr go.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Run this job; answered by `Ended` or by `StartFailed`.
    Start {
        /// A number that the agent never uses twice.
        job: u64,
        /// What to run.
        spec: JobSpec,
    },
    /// End this job with everything it started; answered by its `Ended`. Unknown jobs are ignored:
    /// they have just ended.
    Kill {
        /// The job's number.
        job: u64,
    },
}

/// An answer of the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The template root stands; sent once, before anything else.
    Ready {
        /// Why jobs cannot be given an [`InputRoot`]; `None` if they can.
        no_input_roots: Option<String>,
    },
    /// The spawner cannot start, and exits.
    Broken {
        /// Why.
        reason: String,
    },
    /// No process of the job exists any more.
    Ended {
        /// The job's number.
        job: u64,
        /// How it ended.
        end: JobEnd,
        /// What it used.
        usage: ResourceUsage,
        /// How long it took.
        times: JobTimes,
    },
    /// Nothing was started: an infrastructure error.
    StartFailed {
        /// The job's number.
        job: u64,
        /// Why.
        reason: String,
    },
}

/// What to run, and what it can see besides the template root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Run in order; the first that fails ends the job. Processes that a command leaves behind live
    /// on until the last command has ended.
    pub commands: Vec<Command>,
    /// Directories bound into the job's root, in order.
    pub mounts: Vec<BindMount>,
    /// A tree that the job may change without changing it.
    pub input_root: Option<InputRoot>,
    /// Size limit of the private `/tmp`, and of `/dev/shm`, in bytes. Counts as memory.
    pub tmp_size_bytes: u64,
    /// Size limit of the private [`HOME_DIR`], in bytes. Counts as memory.
    pub home_size_bytes: u64,
    /// Whether the job shares the host's network; otherwise it has a loopback device of its own.
    pub network: bool,
    /// The host name that the job sees.
    pub hostname: String,
    /// Limit of open files a process; lowered to the worker's own limit where that is less.
    pub max_open_files: u64,
}

impl Default for JobSpec {
    /// No commands and no mounts; 1 GiB of `/tmp` and of home, no network, 65536 open files.
    fn default() -> Self {
        Self {
            commands: Vec::new(),
            mounts: Vec::new(),
            input_root: None,
            tmp_size_bytes: 1 << 30,
            home_size_bytes: 1 << 30,
            network: false,
            hostname: "distbuild".to_owned(),
            max_open_files: 65536,
        }
    }
}

/// One command of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Run a program.
    Exec {
        /// The arguments. `argv[0]` holds a `/`, and is then a path from the working directory, or
        /// is looked up in the `PATH` of `environ`.
        argv: Vec<Vec<u8>>,
        /// The complete environment, `NAME=value` each, handed over as it stands.
        environ: Vec<Vec<u8>>,
        /// Absolute path.
        working_directory: Vec<u8>,
    },
    /// Write a text to a file, truncating it in place, or creating it with mode 0644.
    Cat {
        /// The contents.
        text: Vec<u8>,
        /// Absolute path below [`OUTPUT_DIR`], or below the input root if the job has one. It may
        /// lead through symlinks as long as they are relative and stay below that directory;
        /// anything else fails the command.
        output: Vec<u8>,
    },
}

/// A directory of the host that a job sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// Absolute path below one of the spawner's [`sources`](super::SpawnerConfig::sources).
    pub from: PathBuf,
    /// One of the mount points: [`SOURCE_DIR`], [`DEP_DIR`], [`OUTPUT_DIR`], [`ROOT_DIR`], or a
    /// directory that an earlier mount has brought there.
    pub to: PathBuf,
    /// Whether the job may write. The directory `from` itself is then handed to the job's user.
    pub writable: bool,
}

/// A tree that a job sees as its own: what it changes goes elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRoot {
    /// The tree: absolute path below one of the spawner's [`sources`](super::SpawnerConfig::sources).
    pub inputs: PathBuf,
    /// A directory below one of the sources that holds two empty ones, [`CHANGES_DIR`] and
    /// [`WORK_DIR`], on one file system. The former takes what the job changes, as the upper layer
    /// of an overlay, and is handed to the job's user.
    pub changes: PathBuf,
    /// Where the job sees it.
    pub at: RootAt,
    /// Directories that are made, with their parents, before the first command, if they are not
    /// there; relative to the tree.
    pub directories: Vec<PathBuf>,
}

/// Where a job sees its [`InputRoot`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootAt {
    /// At [`ROOT_DIR`], beside all that jobs see of the host.
    #[default]
    Fixed,
    /// At `/`: of the host there is nothing but `/proc`, `/dev` and an empty `/tmp`.
    Slash,
}

impl RootAt {
    /// The path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Fixed => ROOT_DIR,
            Self::Slash => "/",
        }
    }
}

/// What takes the changes, in [`InputRoot::changes`].
pub const CHANGES_DIR: &str = "upper";
/// What the kernel works in, in [`InputRoot::changes`].
pub const WORK_DIR: &str = "work";

/// How a job ended. Commands are numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobEnd {
    /// The last command ended with code 0, or an earlier or the last one with another code. A job
    /// without commands ends with command 0 and code 0.
    Exited {
        /// The last command that ran.
        command: usize,
        /// Its exit code.
        code: i32,
    },
    /// A signal ended a command.
    Signaled {
        /// The command.
        command: usize,
        /// The number of the signal.
        signal: i32,
    },
    /// A command could not be run; the job has failed by its own fault. The message was also
    /// written to the job's stderr.
    Unrunnable {
        /// The command.
        command: usize,
        /// As a shell reports it: 127 for a program that was not found, 126 for one that cannot be
        /// executed or a working directory that cannot be entered, 1 for a `cat` that was refused
        /// or an input root in which a directory of [`InputRoot::directories`] cannot be.
        code: i32,
        /// What is wrong, one line.
        message: String,
    },
    /// Ended by a `Kill` before the last command had ended.
    Killed,
    /// The sandbox could not be set up or kept up: an infrastructure error.
    SetupFailed(String),
}

/// What all processes of a job used that were waited for by another process of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceUsage {
    /// Processor time in user mode, in microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, in microseconds; includes the set-up.
    pub system_us: u64,
    /// Resident memory of the largest process, in bytes.
    pub max_rss_bytes: u64,
}

/// How long the parts of a job took on the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobTimes {
    /// From the spawner reading the request until the first command could start, in microseconds.
    pub setup_us: u64,
    /// From there until no process was left, in microseconds.
    pub run_us: u64,
}

/// What init tells the spawner, in one write, just before it exits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// How the commands ended.
    pub(super) end: JobEnd,
    /// When the sandbox stood, on the monotonic clock, in microseconds; 0 if it never did.
    pub(super) ready_us: u64,
}

/// Longest text in a [`Report`], in bytes, so that a report fits into a pipe in one piece.
pub(super) const MAX_REPORT_TEXT_BYTES: usize = 2048;
