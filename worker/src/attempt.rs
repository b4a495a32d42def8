//! One attempt: an assigned action from its arrival to its report.
//!
//! ```text
//! directories into the store ▸ view ▸ output directory ▸ commands ▸ view dropped ▸ outputs collected ▸ report
//! ```
//!
//! While the commands run, one place watches for their end, the time limits, a cancellation, too much
//! output and the loss of a helper. Whatever ends them early first fails what they wait for in the file
//! system, then kills; in each case the report waits until no process is left. A clear order decides what
//! the end is called: cancelled, then trouble with inputs or the worker, then time, then the job's own end.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use distbuild_proto::action::Action;
use distbuild_proto::{DigestFunction, wire};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::clock::Expired;
use crate::fs_client::{AddedView, DroppedView, FsError};
use crate::inputs::{Inputs, Place};
use crate::job_spec::{ShownRoot, job_spec};
use crate::outbox::Epoch;
use crate::output::{Captured, Keep, Live, capture};
use crate::prefetch::Tally;
use crate::report::{Finished, Times, Trouble, report};
use crate::sandbox::{Ended, JobEnd, RunningJob, SandboxError};

/// How long a job's streams may take to end when no process is left.
const STREAMS_END: Duration = Duration::from_secs(10);

/// An attempt that is to be run.
#[derive(Debug)]
pub(crate) struct Attempt {
    agent: Arc<Agent>,
    epoch: Epoch,
    cancel: CancellationToken,
}

/// What was assigned, in terms of the domain.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) attempt: u64,
    pub(crate) action: Action,
    pub(crate) function: DigestFunction,
    pub(crate) builds: Vec<String>,
}

/// An attempt on its way to its commands.
struct Running<'a> {
    view: &'a AddedView,
    root: ShownRoot,
    /// Where its outputs and long streams go.
    directory: PathBuf,
    arrived: Instant,
}

/// Why commands were ended before they ended themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Asked for.
    Cancelled,
    /// The time limit.
    TimedOut,
    /// Fetches stopped the clock for too long.
    FetchWait,
    /// More output than may be kept.
    Output,
    /// An input could not be read.
    Input,
}

/// The two streams of a job, being read.
struct Streams {
    stdout: JoinHandle<std::io::Result<Captured>>,
    stderr: JoinHandle<std::io::Result<Captured>>,
    overflow: CancellationToken,
}

impl Attempt {
    pub(crate) fn new(agent: Arc<Agent>, epoch: Epoch, cancel: CancellationToken) -> Self {
        Self { agent, epoch, cancel }
    }

    /// Runs it and tells how it ended.
    #[tracing::instrument(skip_all, fields(attempt = assign.attempt, job = assign.job_name))]
    pub(crate) async fn run(
        self,
        assign: wire::Assign,
        foreseen: oneshot::Receiver<wire::Prefetch>,
    ) -> wire::AttemptEnded {
        let attempt = assign.attempt;
        let mut tally = Tally::default();
        let ended = self.execute(assign, foreseen, &mut tally).await;
        let mut ended = ended.unwrap_or_else(|trouble| {
            tracing::warn!(reason = %trouble, "the attempt ends without a result");
            trouble.into_ended(attempt)
        });
        ended.prefetched = Some(tally.all);
        ended.prefetched_from_client = Some(tally.from_client);
        ended
    }

    async fn execute(
        &self,
        mut assign: wire::Assign,
        foreseen: oneshot::Receiver<wire::Prefetch>,
        tally: &mut Tally,
    ) -> Result<wire::AttemptEnded, Trouble> {
        let arrived = Instant::now();
        let directories = std::mem::take(&mut assign.directories);
        let holders = assign.deps.iter().map(|dep| dep.peer_addresses.clone()).collect();
        let assignment = Assignment::parse(assign)?;
        let inputs = Inputs::new(assignment.attempt, holders, self.agent.store.lease(&[]));
        let inputs = Arc::new(inputs);
        let large = self.store_directories(directories, &inputs, &assignment).await?;
        let root = assignment.action.input_root;
        let prefetcher = self.agent.prefetcher.as_ref();
        let prefetching = prefetcher.map(|it| it.spawn(foreseen, root, inputs.clone()));
        let view = self.agent.fs.add_view(root).await?;
        let number = view.number;
        self.agent.inputs.insert(number, inputs.clone());
        let directory = self.agent.run.actions().join(number.to_string());
        let root = self.shown_root(number, large);
        let running = Running { view: &view, root, directory: directory.clone(), arrived };
        let ran = self.run_commands(&assignment, &inputs, running).await;
        let dropped = self.agent.fs.drop_view(number).await;
        self.agent.inputs.remove(number);
        drop(prefetching);
        if let Some(prefetcher) = prefetcher {
            let record = dropped.as_ref().ok().and_then(|dropped| dropped.record.as_ref());
            *tally = inputs.prefetched.end(record, prefetcher);
        }
        let ended = match (ran, dropped) {
            (Ok(ran), Ok(dropped)) => self.report(assignment, ran, dropped, &inputs).await,
            (Err(trouble), _) => Err(trouble),
            (_, Err(error)) => Err(error.into()),
        };
        self.remove(directory);
        ended
    }

    /// Stores the few directories of the input root that nobody else has. Says which parts of it are to be shown
    /// through passthrough.
    async fn store_directories(
        &self,
        blobs: Vec<bytes::Bytes>,
        inputs: &Arc<Inputs>,
        assignment: &Assignment,
    ) -> Result<Vec<Place>, Trouble> {
        let (agent, inputs) = (self.agent.clone(), inputs.clone());
        let (function, root) = (assignment.function, assignment.action.input_root);
        let stored = tokio::task::spawn_blocking(move || {
            for blob in blobs {
                let digest = function.digest(&blob);
                inputs.keep(&[digest]);
                agent.store.insert(&digest, &blob, false)?;
            }
            match agent.fs.no_passthrough() {
                None => Ok(agent.large_files.places(&agent.store, &root)),
                Some(_) => Ok(Vec::new()),
            }
        });
        stored.await.map_err(|_| Trouble::internal("storing directories"))?
    }

    fn shown_root(&self, view: u64, large: Vec<Place>) -> ShownRoot {
        let below = |mount: PathBuf| mount.join("action").join(view.to_string());
        let run = &self.agent.run;
        ShownRoot { usual: below(run.mount()), passthrough: below(run.passthrough()), large }
    }

    async fn run_commands(
        &self,
        assignment: &Assignment,
        inputs: &Inputs,
        running: Running<'_>,
    ) -> Result<Finished, Trouble> {
        let Running { view, root, directory, arrived } = running;
        let out = directory.join("out");
        let spec = job_spec(&assignment.action, &root, &out)?;
        std::fs::create_dir_all(&out).map_err(|source| Trouble::disk("make", &out, source))?;
        let ((stdout, stdout_end), (stderr, stderr_end)) = (stream()?, stream()?);
        let streams = self.capture(assignment.attempt, &directory, stdout, stderr);
        let mut job = self.agent.spawner.start(spec, stdout_end, stderr_end)?;
        tokio::select! {
            // Without process 1 the end tells why.
            _ = job.started() => {}
            () = self.cancel.cancelled() => {}
        }
        let started = Instant::now();
        inputs.clock.start(started);
        self.agent.begun(assignment.attempt, self.epoch).await;
        let timeout = assignment.action.timeout.unwrap_or(Duration::MAX);
        let (ended, stop) = self.watch(&mut job, inputs, timeout, &streams.overflow, view).await?;
        let (_, fetch_wait) = inputs.clock.read(Instant::now());
        let whole = arrived.elapsed();
        let (stdout, stderr) = streams.finish().await?;
        // An init that was killed has told nothing; then the clock here is good enough.
        let run = match stop {
            Some(_) => started.elapsed(),
            None => Duration::from_micros(ended.times.run_us),
        };
        let run = run.min(whole);
        let times = Times { setup: whole - run, run, fetch_wait };
        Ok(Finished { end: ended.end, stop, out, stdout, stderr, times })
    }

    fn capture(
        &self,
        attempt: u64,
        directory: &std::path::Path,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    ) -> Streams {
        let overflow = CancellationToken::new();
        let limits = &self.agent.limits;
        let read = |pipe, stderr, name| {
            let outbox = self.agent.outbox().clone();
            let live = Live { outbox, epoch: self.epoch, attempt, stderr };
            let keep = Keep {
                inline_bytes: limits.inline_output_bytes,
                max_bytes: limits.max_output_bytes,
                spool: directory.join(name),
            };
            tokio::spawn(capture(pipe, live, keep, overflow.clone()))
        };
        let (stdout, stderr) = (read(stdout, false, "stdout"), read(stderr, true, "stderr"));
        Streams { stdout, stderr, overflow }
    }

    /// Waits until no process of the job is left, and sees to it that this happens.
    async fn watch(
        &self,
        job: &mut RunningJob,
        inputs: &Inputs,
        timeout: Duration,
        overflow: &CancellationToken,
        view: &AddedView,
    ) -> Result<(Ended, Option<Stop>), Trouble> {
        let fetch_limit = self.agent.limits.fetch_wait;
        let stop = tokio::select! {
            biased;
            ended = job.ended() => return Ok((ended?, None)),
            () = self.agent.fs.lost() => return Err(FsError::Lost.into()),
            () = self.cancel.cancelled() => Stop::Cancelled,
            () = view.failed.cancelled() => Stop::Input,
            () = overflow.cancelled() => Stop::Output,
            expired = inputs.clock.expired(timeout, fetch_limit) => match expired {
                Expired::Run => Stop::TimedOut,
                Expired::Fetch => Stop::FetchWait,
            },
        };
        // First what the processes hang in: a kill waits for that.
        self.agent.fs.fail_view(view.number).await?;
        job.kill()?;
        match tokio::time::timeout(self.agent.limits.kill, job.ended()).await {
            Ok(ended) => Ok((ended?, Some(stop))),
            Err(_) => Err(Trouble::NotKilled(self.agent.limits.kill)),
        }
    }

    async fn report(
        &self,
        assignment: Assignment,
        finished: Finished,
        dropped: DroppedView,
        inputs: &Inputs,
    ) -> Result<wire::AttemptEnded, Trouble> {
        if finished.stop == Some(Stop::Cancelled) {
            return Err(Trouble::Cancelled);
        }
        if let Some(trouble) = Trouble::with_inputs(&dropped.failures, inputs) {
            return Err(trouble);
        }
        if let (JobEnd::SetupFailed(reason), None) = (&finished.end, finished.stop) {
            return Err(Trouble::Sandbox(SandboxError::Broken(reason.clone())));
        }
        let (agent, from_peers) = (self.agent.clone(), inputs.from_peers.load(Ordering::Relaxed));
        let reported = tokio::task::spawn_blocking(move || {
            let mut ended = report(&agent, assignment, finished, dropped.record)?;
            ended.bytes_from_peers = from_peers;
            Ok(ended)
        });
        reported.await.map_err(|_| Trouble::internal("collecting outputs"))?
    }

    /// Removes what is left of the action, in the background.
    fn remove(&self, directory: PathBuf) {
        tokio::task::spawn_blocking(move || {
            if let Err(error) = crate::run_dir::remove_tree(&directory) {
                tracing::warn!(path = %directory.display(), %error, "failed to remove an action");
            }
        });
    }
}

impl Assignment {
    fn parse(assign: wire::Assign) -> Result<Self, Trouble> {
        let function = DigestFunction::from_number(assign.digest_function)?;
        let action = assign.action.ok_or(Trouble::Malformed("no action".to_owned()))?;
        let action = Action::from_wire(action)?;
        let (attempt, builds) = (assign.attempt, assign.build_ids);
        Ok(Self { attempt, action, function, builds })
    }
}

impl Streams {
    /// Both streams, whole.
    async fn finish(self) -> Result<(Captured, Captured), Trouble> {
        let end = async {
            let (stdout, stderr) = tokio::join!(self.stdout, self.stderr);
            let joined = |result: Result<std::io::Result<Captured>, _>| {
                result.map_err(std::io::Error::other).and_then(|captured| captured)
            };
            Ok((joined(stdout)?, joined(stderr)?))
        };
        match tokio::time::timeout(STREAMS_END, end).await {
            Ok(captured) => captured.map_err(Trouble::Streams),
            Err(_) => Err(Trouble::internal("reading the job's output to its end")),
        }
    }
}

/// A pipe: our end for tasks, the job's end as commands expect it.
fn stream() -> Result<(pipe::Receiver, OwnedFd), Trouble> {
    let (sender, receiver) = pipe::pipe().map_err(Trouble::Streams)?;
    let sender = sender.into_blocking_fd().map_err(Trouble::Streams)?;
    Ok((receiver, sender))
}
