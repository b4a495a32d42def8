//! What an attempt comes to: its outputs collected and pinned, its access record, and the message.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use distbuild_cas::{
    CollectError, CollectOptions, CollectedTree, Layers, LeaseTreeError, StoreError,
    tree_from_directory, tree_from_overlay,
};
use distbuild_proto::action::{ActionError, Layout};
use distbuild_proto::{AccessRecord, Digest, DigestError, RelPath, wire};

use crate::action_dir::ActionDir;
use crate::agent::Agent;
use crate::attempt::{Assignment, Stop};
use crate::fs_client::{Failure, FsError};
use crate::inputs::{Inputs, Place};
use crate::output::Captured;
use crate::sandbox::{JobEnd, SandboxError};

/// An attempt of which no process is left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) end: JobEnd,
    /// Why it was ended, if it did not end itself.
    pub(crate) stop: Option<Stop>,
    pub(crate) stdout: Captured,
    pub(crate) stderr: Captured,
    pub(crate) times: Times,
}

/// How long the parts of an attempt took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) setup: Duration,
    /// With the time that its clock stood.
    pub(crate) run: Duration,
    pub(crate) fetch_wait: Duration,
}

/// Why an attempt has no result that says anything about the job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("cancelled")]
    Cancelled,
    #[error("inputs are lost: {reason}")]
    LostInputs { deps: Vec<u32>, reason: String },
    #[error("an input could not be read: {digest}: {reason}")]
    Input { digest: Digest, reason: String },
    #[error("the assignment is malformed: {0}")]
    Malformed(String),
    #[error(transparent)]
    Action(#[from] ActionError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("this worker has no input roots that actions may change: {0}")]
    NoInputRoots(String),
    #[error(transparent)]
    FileSystem(#[from] FsError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("{}", with_cause(.0))]
    Store(#[from] StoreError),
    #[error("the outputs cannot be kept: {0}")]
    Pin(#[from] LeaseTreeError),
    #[error("failed to collect the outputs: {}", with_cause(.0))]
    Collect(CollectError),
    #[error("failed to {operation} {}: {source}", path.display())]
    Disk { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("failed to read the job's output: {0}")]
    Streams(#[source] io::Error),
    #[error("fetches of inputs took longer than {} s together", .0.as_secs())]
    FetchWait(Duration),
    #[error("the action was killed and is not gone after {} s", .0.as_secs())]
    NotKilled(Duration),
    #[error("failed at {0}")]
    Internal(&'static str),
}

impl Trouble {
    pub(crate) fn internal(what: &'static str) -> Self {
        Self::Internal(what)
    }

    pub(crate) fn disk(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Disk { operation, path: path.to_owned(), source }
    }

    /// Trouble with inputs, if there was any: losses before other failures, because only the others may go
    /// away by themselves.
    pub(crate) fn with_inputs(failures: &[Failure], inputs: &Inputs) -> Option<Self> {
        let first = failures.first()?;
        let lost: Vec<_> = failures
            .iter()
            .filter_map(|failure| Some((inputs.lost(&failure.digest)?, failure)))
            .collect();
        let Some((_, failure)) = lost.first() else {
            let reason = first.reason.to_string();
            return Some(Self::Input { digest: first.digest, reason });
        };
        let reason = failure.reason.to_string();
        let deps: BTreeSet<_> = lost
            .iter()
            .filter_map(|(place, _)| match place {
                Place::Source => None,
                Place::Dep(dep) => Some(*dep),
            })
            .collect();
        Some(Self::LostInputs { deps: deps.into_iter().collect(), reason })
    }

    /// The message.
    pub(crate) fn into_ended(self, attempt: u64) -> wire::AttemptEnded {
        let reason = self.to_string();
        let (end, lost_deps) = match self {
            Self::Cancelled => (wire::AttemptEnd::AttemptCancelled, Vec::new()),
            Self::LostInputs { deps, .. } => (wire::AttemptEnd::AttemptLostInputs, deps),
            _ => (wire::AttemptEnd::AttemptInfraError, Vec::new()),
        };
        wire::AttemptEnded { attempt, end: end.into(), reason, lost_deps, ..Default::default() }
    }
}

/// How the job itself ended.
struct Verdict {
    end: wire::AttemptEnd,
    reason: String,
    exit_code: i32,
    signal: i32,
    /// If one did.
    failed_command: Option<u32>,
}

/// Where an attempt's outputs are.
#[derive(Clone, Copy)]
pub(crate) struct Outputs<'a> {
    pub(crate) directory: &'a ActionDir,
    /// Of which some may be outputs as they are.
    pub(crate) inputs: &'a Arc<Inputs>,
}

/// Makes the report of an attempt that ran: collects outputs, stores streams, pins both for the builds that
/// wait. Blocks on the disk.
///
/// # Errors
/// Whatever is not the job's fault.
pub(crate) fn report(
    agent: &Agent,
    assignment: Assignment,
    mut finished: Finished,
    outputs: Outputs<'_>,
    record: Option<AccessRecord>,
) -> Result<wire::AttemptEnded, Trouble> {
    let begin = std::time::Instant::now();
    let mut verdict = Verdict::of(&finished, agent)?;
    let (mut output_root, mut output_directories) = (None, Vec::new());
    let (layout, succeeded) = (assignment.action.layout, wire::AttemptEnd::AttemptSucceeded);
    // A native job that failed has no outputs; what came through the Remote Execution API has those that are there.
    if verdict.end == succeeded || layout == Layout::Root {
        match collect(agent, &assignment, outputs)? {
            Ok(tree) => {
                output_root = Some(tree.root);
                output_directories = tree.inline.unwrap_or_default();
            }
            Err(fault) if verdict.end == succeeded => verdict = Verdict::failed(fault),
            Err(fault) => finished.stderr.add_line(&fault).map_err(Trouble::Streams)?,
        }
    }
    let is_our_word = verdict.failed_command.is_none() || finished.stop.is_some();
    if !verdict.reason.is_empty() && is_our_word {
        finished.stderr.add_line(&verdict.reason).map_err(Trouble::Streams)?;
    }
    let stdout = finished.stdout.store(&agent.store, assignment.function)?;
    let stderr = finished.stderr.store(&agent.store, assignment.function)?;
    let blobs: Vec<_> = [stdout.blob(), stderr.blob()].into_iter().flatten().collect();
    for build in &assignment.builds {
        agent.pins.pin_blobs(&agent.store, &blobs, build);
    }
    let result = wire::JobResult {
        exit_code: verdict.exit_code,
        signal: verdict.signal,
        failed_command: verdict.failed_command,
        output_root: output_root.map(Into::into),
        stdout: Some(stdout.into()),
        stderr: Some(stderr.into()),
        worker: agent.name.clone(),
        finished_ms: unix_ms(),
        timings: Some(finished.times.to_wire(begin.elapsed())),
        action_key: Bytes::copy_from_slice(assignment.action.digest().as_bytes()),
    };
    let opened = record.as_ref().map(|record| opened_sources(record, layout)).unwrap_or_default();
    let files_opened = record.as_ref().map_or(0, |record| record.looked_up_files().count());
    let access_record = record.as_ref().filter(|_| assignment.recorded).map(AccessRecord::encode);
    Ok(wire::AttemptEnded {
        attempt: assignment.attempt,
        end: verdict.end.into(),
        reason: verdict.reason,
        result: Some(result),
        access_record: access_record.unwrap_or_default(),
        opened: opened.into_iter().map(Into::into).collect(),
        files_opened: u32::try_from(files_opened).unwrap_or(u32::MAX),
        output_directories,
        ..Default::default()
    })
}

/// The outputs as a tree, pinned for every build that waits; or what is wrong with what the job made.
fn collect(
    agent: &Agent,
    assignment: &Assignment,
    outputs: Outputs<'_>,
) -> Result<Result<CollectedTree, String>, Trouble> {
    let options = CollectOptions::new(assignment.function);
    let (action, directory) = (&assignment.action, outputs.directory);
    let collected = match action.layout {
        Layout::Native => tree_from_directory(&agent.store, directory.out(), &options),
        Layout::Root => {
            let read = |digest: &Digest| agent.directories.read(digest, outputs.inputs);
            let above = &directory.changes();
            let layers = Layers { above, below: action.input_root, directory: &read };
            tree_from_overlay(&agent.store, &layers, &action.output_paths, &options)
        }
    };
    let tree = match collected {
        Ok(tree) => tree,
        Err(error @ (CollectError::Store(_) | CollectError::Io { .. })) => {
            return Err(Trouble::Collect(error));
        }
        Err(error) => return Ok(Err(format!("output {}", with_cause(&error)))),
    };
    for build in &assignment.builds {
        match action.layout {
            Layout::Native => agent.pins.pin_tree(&agent.store, &tree.root, build)?,
            // What was not written need not be here.
            Layout::Root => agent.pins.pin_blobs(&agent.store, tree.lease.digests(), build),
        }
    }
    Ok(Ok(tree))
}

impl Verdict {
    fn of(finished: &Finished, agent: &Agent) -> Result<Self, Trouble> {
        let number = |command: usize| Some(u32::try_from(command).unwrap_or(u32::MAX));
        let mut verdict = match &finished.end {
            JobEnd::Exited { command, code } => Self {
                end: wire::AttemptEnd::AttemptFailed,
                reason: format!("command {} ended with exit code {code}", command + 1),
                exit_code: *code,
                signal: 0,
                failed_command: number(*command),
            },
            JobEnd::Signaled { command, signal } => Self {
                end: wire::AttemptEnd::AttemptFailed,
                reason: format!("command {} was ended by signal {signal}", command + 1),
                exit_code: 128 + signal,
                signal: *signal,
                failed_command: number(*command),
            },
            JobEnd::Unrunnable { command, code, message } => Self {
                end: wire::AttemptEnd::AttemptFailed,
                reason: message.clone(),
                exit_code: *code,
                signal: 0,
                failed_command: number(*command),
            },
            // By us: what stopped it says why.
            JobEnd::Killed | JobEnd::SetupFailed(_) => Self {
                end: wire::AttemptEnd::AttemptInfraError,
                reason: "the job was killed".to_owned(),
                exit_code: 128 + libc::SIGKILL,
                signal: libc::SIGKILL,
                failed_command: None,
            },
        };
        match finished.stop {
            Some(Stop::TimedOut) => {
                verdict.end = wire::AttemptEnd::AttemptTimedOut;
                let seconds = finished.times.run.saturating_sub(finished.times.fetch_wait);
                verdict.reason = format!("timed out after {:.1} s", seconds.as_secs_f64());
            }
            Some(Stop::Output) => {
                verdict.end = wire::AttemptEnd::AttemptFailed;
                let limit = agent.limits.max_output_bytes;
                verdict.reason = format!("wrote more than {limit} bytes to stdout or stderr");
            }
            Some(Stop::Input) => return Err(Trouble::internal("reading an input")),
            Some(Stop::FetchWait) => return Err(Trouble::FetchWait(agent.limits.fetch_wait)),
            Some(Stop::Cancelled) => return Err(Trouble::Cancelled),
            None => match finished.end {
                JobEnd::Exited { code: 0, .. } => {
                    verdict.end = wire::AttemptEnd::AttemptSucceeded;
                    verdict.reason = String::new();
                    verdict.failed_command = None;
                }
                JobEnd::Killed => {
                    return Err(Trouble::internal("running the job: somebody else killed it"));
                }
                _ => {}
            },
        }
        Ok(verdict)
    }

    /// All commands succeeded, and still the job is at fault.
    fn failed(reason: String) -> Self {
        let end = wire::AttemptEnd::AttemptFailed;
        Self { end, reason, exit_code: 1, signal: 0, failed_command: None }
    }
}

impl Times {
    fn to_wire(self, collect: Duration) -> wire::Timings {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        wire::Timings {
            queued_ms: 0,
            setup_ms: ms(self.setup),
            run_ms: ms(self.run),
            collect_ms: ms(collect),
            fetch_wait_ms: ms(self.fetch_wait),
        }
    }
}

/// Distinct source files that were looked up with success.
fn opened_sources(record: &AccessRecord, layout: Layout) -> BTreeSet<Digest> {
    let is_source = |path: &RelPath| match layout {
        Layout::Native => path.components().next() == Some(b"src"),
        Layout::Root => true,
    };
    record
        .looked_up_files()
        .filter(|(path, ..)| is_source(path))
        .map(|(_, digest, _)| digest)
        .collect()
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
