//! One attempt: an assigned action from its arrival to its report.
//!
//! ```text
//! directories into the store ▸ view ▸ output directory ▸ commands ▸ view dropped ▸ outputs collected ▸ report
//! ```
//!
//! All of it is one task: what a short job costs is mostly who wakes whom. What may wait for the disk is on a
//! blocking thread, once before the commands if the input root is new, and once after them.
//!
//! While the commands run, one place watches for their end, the time limits, a cancellation, too much
//! output and the loss of a helper. Whatever ends them early first fails what they wait for in the file
//! system, then kills; in each case the report waits until no process is left. A clear order decides what
//! the end is called: cancelled, then trouble with inputs or the worker, then time, then the job's own end.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use distbuild_proto::action::{Action, Layout};
use distbuild_proto::{DigestFunction, wire};
use nix::fcntl::OFlag;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::action_dir::ActionDir;
use crate::agent::Agent;
use crate::clock::Expired;
use crate::fs_client::{AddedView, DroppedView, FsError};
use crate::inputs::{Inputs, Place};
use crate::job_spec::{ShownRoot, native_job, root_job};
use crate::outbox::Epoch;
use crate::output::{Captured, Keep, Live, capture};
use crate::prefetch::Tally;
use crate::report::{Finished, Outputs, Times, Trouble, report};
use crate::sandbox::{Ended, JobEnd, RunningJob, SandboxError};

/// How long a job's streams may take to end when no process is left.
const STREAMS_END: Duration = Duration::from_secs(10);
/// The coordinator is told that commands run when they have run for so long; of shorter ones it hears the end
/// only, so that an action takes one message each way.
const BEGUN_AFTER: Duration = Duration::from_millis(100);

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
    /// Whether what its commands look at is to be told.
    pub(crate) recorded: bool,
}

/// An attempt on its way to its commands.
struct Running<'a> {
    view: &'a AddedView,
    root: ShownRoot,
    directory: &'a ActionDir,
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
        let layout = assignment.action.layout;
        if layout == Layout::Root
            && let Some(reason) = self.agent.spawner.no_input_roots()
        {
            return Err(Trouble::NoInputRoots(reason.to_owned()));
        }
        let lease = self.agent.store.lease(&[]);
        let inputs = Inputs::new(assignment.attempt, layout, holders, lease);
        let inputs = Arc::new(inputs);
        let large = self.store_directories(directories, &inputs, &assignment).await?;
        let root = assignment.action.input_root;
        let prefetcher = self.agent.prefetcher.as_ref();
        let prefetching = prefetcher.map(|it| it.spawn(foreseen, root, inputs.clone()));
        let view = self.agent.fs.add_view(root, layout == Layout::Root).await?;
        let number = view.number;
        self.agent.inputs.insert(number, inputs.clone());
        let directory = ActionDir::new(self.agent.run.actions(), number);
        let root = self.shown_root(number, large);
        let running = Running { view: &view, root, directory: &directory, arrived };
        let ran = self.run_commands(&assignment, &inputs, running).await;
        let dropped = self.agent.fs.drop_view(number).await;
        self.agent.inputs.remove(number);
        drop(prefetching);
        if let Some(prefetcher) = prefetcher {
            let record = dropped.as_ref().ok().and_then(|dropped| dropped.record.as_ref());
            *tally = inputs.prefetched.end(record, prefetcher);
        }
        let ran = ran.and_then(|ran| {
            let dropped = dropped?;
            check(&ran, &dropped, &inputs)?;
            Ok((ran, dropped))
        });
        self.report(assignment, ran, directory, inputs).await
    }

    /// Stores the few directories of the input root that nobody else has. Says which parts of it are to be shown
    /// through passthrough.
    async fn store_directories(
        &self,
        blobs: Vec<bytes::Bytes>,
        inputs: &Inputs,
        assignment: &Assignment,
    ) -> Result<Vec<Place>, Trouble> {
        let (function, root) = (assignment.function, assignment.action.input_root);
        let layout = assignment.action.layout;
        let mut blobs: Vec<_> =
            blobs.into_iter().map(|blob| (function.digest(&blob), blob)).collect();
        blobs.iter().for_each(|(digest, _)| inputs.keep(&[*digest]));
        let agent = self.agent.clone();
        blobs.retain(|(digest, _)| !agent.store.is_verified(digest));
        let may_have_large =
            agent.fs.no_passthrough().is_none() && !agent.large_files.has_none(&root);
        if blobs.is_empty() && !may_have_large {
            return Ok(Vec::new());
        }
        let stored = tokio::task::spawn_blocking(move || {
            for (digest, blob) in &blobs {
                agent.store.insert(digest, blob, false)?;
            }
            Ok(match layout {
                _ if !may_have_large => Vec::new(),
                Layout::Native => agent.large_files.places(&agent.store, &root),
                Layout::Root => {
                    let large = agent.large_files.is_large(&agent.store, &root);
                    large.then_some(Place::Source).into_iter().collect()
                }
            })
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
        let action = &assignment.action;
        let spec = match action.layout {
            Layout::Native => native_job(action, &root, directory.out()),
            Layout::Root => root_job(action, &root, directory.out(), self.agent.input_root_at),
        };
        directory.make(action.layout)?;
        let ((stdout, stdout_end), (stderr, stderr_end)) = (stream()?, stream()?);
        let overflow = CancellationToken::new();
        let mut job = self.agent.spawner.start(spec, stdout_end, stderr_end)?;
        let started = Instant::now();
        inputs.clock.start(started);
        let timeout = assignment.action.timeout.unwrap_or(Duration::MAX);
        let watched = self.watch(&mut job, inputs, timeout, &overflow, view);
        let capture = |pipe, stderr| {
            self.capture(assignment.attempt, directory, pipe, stderr, overflow.clone())
        };
        let streams = async { tokio::join!(capture(stdout, false), capture(stderr, true)) };
        let begun = async {
            tokio::time::sleep(BEGUN_AFTER).await;
            self.agent.begun(assignment.attempt, self.epoch).await;
        };
        let ((ended, stop), (stdout, stderr)) = together(watched, streams, begun).await?;
        let (_, fetch_wait) = inputs.clock.read(Instant::now());
        let whole = arrived.elapsed();
        // An init that was killed has told nothing; then the clock here is good enough.
        let run = match stop {
            Some(_) => started.elapsed(),
            None => Duration::from_micros(ended.times.run_us),
        };
        let run = run.min(whole);
        let times = Times { setup: whole - run, run, fetch_wait };
        let (stdout, stderr) =
            (stdout.map_err(Trouble::Streams)?, stderr.map_err(Trouble::Streams)?);
        Ok(Finished { end: ended.end, stop, stdout, stderr, times })
    }

    fn capture(
        &self,
        attempt: u64,
        directory: &ActionDir,
        pipe: pipe::Receiver,
        stderr: bool,
        overflow: CancellationToken,
    ) -> impl Future<Output = std::io::Result<Captured>> + use<> {
        let (outbox, limits) = (self.agent.outbox().clone(), &self.agent.limits);
        let live = Live { outbox, epoch: self.epoch, attempt, stderr };
        let keep = Keep {
            inline_bytes: limits.inline_output_bytes,
            max_bytes: limits.max_output_bytes,
            spool: directory.spool(stderr),
        };
        capture(pipe, live, keep, overflow)
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

    /// Makes the report. What is left of the action goes when that has been told.
    async fn report(
        &self,
        assignment: Assignment,
        ran: Result<(Finished, DroppedView), Trouble>,
        directory: ActionDir,
        inputs: Arc<Inputs>,
    ) -> Result<wire::AttemptEnded, Trouble> {
        let agent = self.agent.clone();
        let (tell, told) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let ended = ran.and_then(|(finished, dropped)| {
                let outputs = Outputs { directory: &directory, inputs: &inputs };
                let mut ended = report(&agent, assignment, finished, outputs, dropped.record)?;
                ended.bytes_from_peers = inputs.from_peers.load(Ordering::Relaxed);
                Ok(ended)
            });
            // Whoever waits has gone if the worker is shut down.
            let _ = tell.send(ended);
            directory.remove();
        });
        told.await.map_err(|_| Trouble::internal("collecting outputs"))?
    }
}

/// Whether the job ran to an end that says anything about it.
fn check(finished: &Finished, dropped: &DroppedView, inputs: &Inputs) -> Result<(), Trouble> {
    if finished.stop == Some(Stop::Cancelled) {
        return Err(Trouble::Cancelled);
    }
    if let Some(trouble) = Trouble::with_inputs(&dropped.failures, inputs) {
        return Err(trouble);
    }
    match (&finished.end, finished.stop) {
        (JobEnd::SetupFailed(reason), None) => {
            Err(Trouble::Sandbox(SandboxError::Broken(reason.clone())))
        }
        _ => Ok(()),
    }
}

/// Does `work` and reads the streams meanwhile; if need be they are read to their end after it. What is
/// `beside` that is left undone when the work ends before.
async fn together<T, S>(
    work: impl Future<Output = Result<T, Trouble>>,
    streams: impl Future<Output = S>,
    beside: impl Future<Output = ()>,
) -> Result<(T, S), Trouble> {
    let (mut work, mut streams, mut beside) = (pin!(work), pin!(streams), pin!(beside));
    let (mut read, mut is_done) = (None, false);
    let worked = loop {
        tokio::select! {
            biased;
            worked = &mut work => break worked?,
            whole = &mut streams, if read.is_none() => read = Some(whole),
            () = &mut beside, if !is_done => is_done = true,
        }
    };
    let read = match read {
        Some(read) => read,
        None => tokio::time::timeout(STREAMS_END, streams)
            .await
            .map_err(|_| Trouble::internal("reading the job's output to its end"))?,
    };
    Ok((worked, read))
}

impl Assignment {
    fn parse(assign: wire::Assign) -> Result<Self, Trouble> {
        let function = DigestFunction::from_number(assign.digest_function)?;
        let action = assign.action.ok_or(Trouble::Malformed("no action".to_owned()))?;
        let action = Action::from_wire(action)?;
        let (attempt, builds, recorded) = (assign.attempt, assign.build_ids, !assign.unrecorded);
        Ok(Self { attempt, action, function, builds, recorded })
    }
}

/// A pipe: our end for tasks, the job's end as commands expect it.
fn stream() -> Result<(pipe::Receiver, OwnedFd), Trouble> {
    let failed = |error: std::io::Error| Trouble::Streams(error);
    let (ours, theirs) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    Ok((pipe::Receiver::from_owned_fd(ours).map_err(failed)?, theirs))
}
