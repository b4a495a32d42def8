//! One execution from its action's digest to the response: looked up, checked, run, its outputs brought here, told.
//!
//! The coordinator's core sees a build of one job ([`crate::core::Execution`]) and this as its client. While it
//! runs, the action's contents are leased in the coordinator's store; when this future is dropped, the run is killed.

use std::sync::Arc;
use std::time::Duration;

use bazel_remote_apis::build::bazel::remote::execution::v2 as api;
use bazel_remote_apis::build::bazel::remote::execution::v2::execution_stage::Value as Stage;
use distbuild_cas::{DiskStore, Lease, LeaseTreeError, TreeLease};
use distbuild_proto::wire::build_event::Body;
use distbuild_proto::{Digest, DigestError, wire};
use distbuild_sched::BuildId;
use tonic::{Code, Status};

use super::command::{self, Lowered, Outputs};
use super::inline::Inline;
use super::metadata::Timeline;
use super::operations::Execution;
use super::replication::{Replication, ReplicationError};
use super::result::name_outputs;
use super::status::{invalid, missing_blobs, of_store, of_thread, ok, retry_after, to_rpc};
use super::{Executor, digest};
use crate::core::{self, Accepted, ClientReport, Handle, Message, Refused};

/// When a client may come again that found no worker, no room, or a coordinator that is going down.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// The longest `Action` and `Command` that are read, in bytes.
const MAX_COMMAND_BYTES: u64 = 16 << 20;

/// What is to be run, and for whom.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) action: api::Action,
    pub(crate) skip_cache_lookup: bool,
    /// Class of the scheduler; lower runs sooner.
    pub(crate) class: u8,
    pub(crate) client: super::client::Client,
}

/// An action whose contents are all there, and stay.
struct Ready {
    lowered: Lowered,
    name: String,
    _inputs: TreeLease,
}

/// Runs an execution; the response to all who watch it.
pub(crate) async fn run(
    shared: &Executor,
    execution: &Arc<Execution>,
    request: Request,
) -> api::ExecuteResponse {
    let patience = shared.shared.limits.unwatched_execution;
    tokio::select! {
        driven = drive(shared, execution, request) => driven.unwrap_or_else(|status| failed(&status, None)),
        status = execution.unwanted(patience) => failed(&status, None),
    }
}

async fn drive(
    shared: &Executor,
    execution: &Arc<Execution>,
    request: Request,
) -> Result<api::ExecuteResponse, Status> {
    let cacheable = !request.action.do_not_cache;
    if cacheable
        && !request.skip_cache_lookup
        && let Some(result) =
            shared.results.find(&execution.instance, execution.action, &Inline::default()).await?
    {
        let status = Some(ok());
        let result = Some(result);
        return Ok(api::ExecuteResponse {
            result,
            cached_result: true,
            status,
            ..Default::default()
        });
    }
    let ready = shared.ready(execution, &request).await?;
    let mut timeline = Timeline::queued();
    execution.advance(Stage::Queued, Some(timeline.metadata()));
    let mut run = Run::begin(shared, execution, &request, &ready).await?;
    let ended = run.watch(execution, &mut timeline).await?;
    let outcome = ended.finished.outcome();
    let told = run.tell(&ready.lowered.outputs, ended, &mut timeline, execution).await?;
    respond(shared, execution, outcome, told, cacheable).await
}

/// The answer to an execution that came to nothing, or not to its end.
pub(crate) fn failed(status: &Status, result: Option<api::ActionResult>) -> api::ExecuteResponse {
    let message = status.message().to_owned();
    api::ExecuteResponse { result, status: Some(to_rpc(status)), message, ..Default::default() }
}

/// Stores what is to be stored and answers.
async fn respond(
    shared: &Executor,
    execution: &Execution,
    outcome: wire::Outcome,
    told: Told,
    cacheable: bool,
) -> Result<api::ExecuteResponse, Status> {
    let Told { result, reason, _leases } = told;
    if outcome == wire::Outcome::TimedOut {
        return Ok(failed(&Status::deadline_exceeded(reason), Some(result)));
    }
    if cacheable && outcome == wire::Outcome::Executed && result.exit_code == 0 {
        shared.results.record(&execution.instance, execution.action, &result).await?;
    }
    let (result, status) = (Some(result), Some(ok()));
    Ok(api::ExecuteResponse { result, status, message: reason, ..Default::default() })
}

impl Executor {
    /// Reads an action.
    ///
    /// # Errors
    /// It is missing, or is no action.
    pub(crate) async fn read_action(&self, digest: Digest) -> Result<api::Action, Status> {
        let store = self.shared.store.clone();
        let action = blocking(move || read_message(&store, &digest, "Action")).await??;
        action.ok_or_else(|| missing_blobs([&digest]))
    }

    /// Checks an action and leases its contents.
    async fn ready(&self, execution: &Execution, request: &Request) -> Result<Ready, Status> {
        let function = execution.action.function();
        let parse = |digest: &Option<api::Digest>| {
            let digest = digest.as_ref().ok_or(DigestError::Missing);
            digest.and_then(|digest| digest::parse(function, digest)).map_err(invalid)
        };
        let command_digest = parse(&request.action.command_digest)?;
        let input_root = parse(&request.action.input_root_digest)?;
        let store = self.shared.store.clone();
        let checked = blocking(move || {
            let command = read_message::<api::Command>(&store, &command_digest, "Command")?;
            let inputs = store.claim_tree(&input_root);
            all_there(command_digest, command, inputs)
        });
        let (command, inputs) = checked.await??;
        let most = self.shared.limits.max_job_timeout;
        let lowered = command::lower(&request.action, &command, input_root, most);
        let lowered = lowered?;
        let name = request.client.name_of(&command);
        Ok(Ready { lowered, name, _inputs: inputs })
    }
}

/// Everything that is missing is told at once.
fn all_there(
    command_digest: Digest,
    command: Option<api::Command>,
    inputs: Result<TreeLease, LeaseTreeError>,
) -> Result<(api::Command, TreeLease), Status> {
    let mut missing: Vec<Digest> =
        command.is_none().then_some(command_digest).into_iter().collect();
    match (command, inputs) {
        (Some(command), Ok(inputs)) => return Ok((command, inputs)),
        (_, Err(LeaseTreeError::Missing(inputs))) => {
            missing.extend(inputs.digests);
        }
        (_, Err(LeaseTreeError::Store(error))) => return Err(of_store(&error)),
        (None, Ok(_)) => {}
    }
    Err(missing_blobs(&missing))
}

/// Reads a message from the store; none if its blob is missing.
fn read_message<M: prost::Message + Default>(
    store: &DiskStore,
    digest: &Digest,
    what: &'static str,
) -> Result<Option<M>, Status> {
    if digest.size_bytes() > MAX_COMMAND_BYTES {
        let text = format!("{what} {digest} is longer than {MAX_COMMAND_BYTES} bytes");
        return Err(Status::new(Code::InvalidArgument, text));
    }
    let blob = match digest.size_bytes() {
        0 => Ok(Default::default()),
        _ => store.read(digest),
    };
    match blob {
        Ok(blob) => M::decode(blob).map(Some).map_err(|error| {
            Status::new(Code::InvalidArgument, format!("{digest} is no {what}: {error}"))
        }),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(of_store(&error)),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| of_thread(&error))
}

/// A run in the core. Dropping it lets go of it there, which kills what still runs.
struct Run {
    core: Handle,
    replication: Replication,
    build: BuildId,
    events: crate::event_log::EventLog,
    pending: std::collections::VecDeque<wire::BuildEvent>,
}

/// How the job ended, and what the worker sent of its output tree.
struct RunEnded {
    finished: wire::JobFinished,
    result: wire::JobResult,
}

/// A result that may be announced: all that it names is here, as long as the leases last.
struct Told {
    result: api::ActionResult,
    reason: String,
    _leases: [Lease; 2],
}

impl Run {
    async fn begin(
        shared: &Executor,
        execution: &Execution,
        request: &Request,
        ready: &Ready,
    ) -> Result<Self, Status> {
        let id = format!("{:032x}", rand::random::<u128>());
        let asked = Box::new(core::Execution {
            id,
            name: ready.name.clone(),
            user: request.client.user(&execution.instance),
            class: request.class,
            function: execution.action.function(),
            action: ready.lowered.action.clone(),
            selector: ready.lowered.selector.clone(),
        });
        let core = shared.core.clone();
        let answer = core.ask(|reply| Message::Execute { execution: asked, reply }).await;
        let Accepted { build, events } = answer.map_err(stopped)?.map_err(refused)?;
        let replication = shared.replication.clone();
        Ok(Self { core, replication, build, events, pending: Default::default() })
    }

    async fn next_event(&mut self) -> Option<wire::BuildEvent> {
        while self.pending.is_empty() {
            self.pending.extend(self.events.next().await?.events);
        }
        self.pending.pop_front()
    }

    /// Tells who watches what happens, until the job has ended.
    async fn watch(
        &mut self,
        execution: &Execution,
        timeline: &mut Timeline,
    ) -> Result<RunEnded, Status> {
        while let Some(event) = self.next_event().await {
            let at_ms = event.time_ms;
            match event.body {
                Some(Body::AttemptStarted(started)) => {
                    timeline.started(at_ms, started.worker);
                    execution.advance(Stage::Executing, Some(timeline.metadata()));
                }
                Some(Body::AttemptFinished(finished))
                    if finished.outcome() == wire::Outcome::InfraError =>
                {
                    timeline.interrupted();
                    execution.advance(Stage::Queued, Some(timeline.metadata()));
                }
                Some(Body::Output(piece)) => {
                    let log = if piece.stderr { &execution.stderr } else { &execution.stdout };
                    log.append(&piece.data);
                }
                Some(Body::JobFinished(finished)) => return self.ended(finished),
                Some(Body::OutputsRemade(remade)) => {
                    return self.ended(wire::JobFinished {
                        outcome: remade.outcome,
                        result: remade.result,
                        reason: remade.reason,
                        ..Default::default()
                    });
                }
                _ => {}
            }
        }
        Err(going_down())
    }

    fn ended(&self, mut finished: wire::JobFinished) -> Result<RunEnded, Status> {
        let result = finished.result.take();
        let reason = finished.reason.clone();
        match (finished.outcome(), result) {
            (
                wire::Outcome::Executed
                | wire::Outcome::Cached
                | wire::Outcome::CutOff
                | wire::Outcome::Failed
                | wire::Outcome::TimedOut,
                Some(result),
            ) => Ok(RunEnded { finished, result }),
            (wire::Outcome::TimedOut, None) => Err(Status::new(Code::DeadlineExceeded, reason)),
            (wire::Outcome::NoWorker, _) => {
                Err(retry_after(Code::FailedPrecondition, reason, RETRY_DELAY))
            }
            // Whoever cancels an execution of this edge drops it and hears nothing: this is the shutdown.
            (wire::Outcome::Cancelled, _) => Err(going_down()),
            _ => Err(Status::new(Code::Internal, reason)),
        }
    }

    /// Brings everything that the result names here, and says it in the API's words. Outputs that are lost on
    /// the way are made again, as often as the scheduler allows.
    async fn tell(
        &mut self,
        outputs: &Outputs,
        mut ended: RunEnded,
        timeline: &mut Timeline,
        execution: &Execution,
    ) -> Result<Told, Status> {
        loop {
            timeline.ran(&ended.result);
            match self.bring(outputs, &mut ended, execution.action).await {
                Ok((mut result, _leases)) => {
                    let delivered = ClientReport::Delivered(vec![0]);
                    self.report(delivered).await?;
                    timeline.completed();
                    result.execution_metadata = Some(timeline.metadata());
                    return Ok(Told { result, reason: ended.finished.reason, _leases });
                }
                Err(Trouble::Lost(error))
                    if ended.finished.outcome() == wire::Outcome::Executed =>
                {
                    tracing::info!(%error, "outputs of an execution were lost, they are made again");
                    self.report(ClientReport::OutputsMissing(0)).await?;
                    timeline.interrupted();
                    execution.advance(Stage::Queued, Some(timeline.metadata()));
                    ended = self.watch(execution, timeline).await?;
                }
                Err(Trouble::Lost(error)) => {
                    return Err(retry_after(Code::Unavailable, error, RETRY_DELAY));
                }
                Err(Trouble::Failed(status)) => return Err(status),
            }
        }
    }

    async fn report(&self, report: ClientReport) -> Result<(), Status> {
        self.core.tell(Message::Report { build: self.build, report }).await.map_err(stopped)
    }

    async fn bring(
        &self,
        outputs: &Outputs,
        ended: &mut RunEnded,
        action: Digest,
    ) -> Result<(api::ActionResult, [Lease; 2]), Trouble> {
        let result = &ended.result;
        let root = result.output_root.as_ref().map(Digest::try_from).transpose();
        let root = root.map_err(|error| malformed(&error))?;
        let inline = std::mem::take(&mut ended.finished.output_directories);
        let directories = match &root {
            Some(root) if !outputs.wanted.is_empty() => {
                self.replication.directories(root, inline).await?
            }
            _ => Default::default(),
        };
        let root = root.unwrap_or_else(|| action.function().digest(b""));
        let told = name_outputs(outputs, (!directories.is_empty()).then_some(&root), &directories);
        let mut named = told.map_err(|error| {
            Trouble::Failed(Status::new(Code::FailedPrecondition, error.to_string()))
        })?;
        let mut text = |content: &Option<wire::Content>| -> Result<Option<api::Digest>, Trouble> {
            let Some(content) = content else { return Ok(None) };
            let digest = match &content.blob {
                Some(blob) => {
                    let digest = Digest::try_from(blob).map_err(|error| malformed(&error))?;
                    named.files.push(digest);
                    digest
                }
                None if content.inline.is_empty() => return Ok(None),
                None => {
                    let digest = action.function().digest(&content.inline);
                    named.made.push((digest, content.inline.clone()));
                    digest
                }
            };
            Ok(Some(digest::to_api(&digest)))
        };
        let (stdout_digest, stderr_digest) = (text(&result.stdout)?, text(&result.stderr)?);
        let made = self.replication.insert(named.made).await?;
        let files = self.replication.bring(&root, &named.files).await?;
        let exit_code = exit_code(result);
        let result = api::ActionResult { exit_code, stdout_digest, stderr_digest, ..named.result };
        Ok((result, [made, files]))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let (core, build) = (self.core.clone(), self.build);
        tokio::spawn(async move {
            // A core that has stopped runs nothing.
            let _ = core.tell(Message::LetGo { build }).await;
        });
    }
}

/// Why a result cannot be told.
enum Trouble {
    /// It may be made again.
    Lost(String),
    Failed(Status),
}

impl From<ReplicationError> for Trouble {
    fn from(error: ReplicationError) -> Self {
        match error {
            ReplicationError::Lost { .. } => Self::Lost(error.to_string()),
            ReplicationError::Store(_) => {
                Self::Failed(Status::new(Code::ResourceExhausted, error.to_string()))
            }
            ReplicationError::Stopped(_) => Self::Failed(going_down()),
        }
    }
}

fn malformed(error: &distbuild_proto::DigestError) -> Trouble {
    Trouble::Failed(Status::new(Code::Internal, format!("a worker's result is malformed: {error}")))
}

/// As a shell tells it: a signal is 128 and its number.
fn exit_code(result: &wire::JobResult) -> i32 {
    if result.signal != 0 { 128 + result.signal } else { result.exit_code }
}

fn refused(refused: Refused) -> Status {
    match &refused {
        Refused::ShuttingDown => going_down(),
        Refused::Full { .. } => {
            retry_after(Code::ResourceExhausted, refused.to_string(), RETRY_DELAY)
        }
        Refused::NoPool(_) => Status::new(Code::FailedPrecondition, refused.to_string()),
        Refused::Plan(_) => Status::new(Code::Internal, refused.to_string()),
    }
}

fn stopped(_: core::Stopped) -> Status {
    going_down()
}

fn going_down() -> Status {
    retry_after(Code::Unavailable, "the coordinator is shutting down", RETRY_DELAY)
}
