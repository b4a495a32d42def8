//! The `Builds` service: a client's build from submission to the last event, and looking at the rest.

use std::pin::Pin;

use bytes::Bytes;
use distbuild_proto::wire;
use distbuild_proto::wire::build_request::Body;
use distbuild_proto::wire::builds_server::Builds;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::submission::{self, Named};
use crate::core::{Accepted, Attached, ClientReport, Handle, Message, NotTaken, Shared, secret};
use crate::event_log::Reader;

/// Rows in one listing, if the caller names no number.
const DEFAULT_ROWS: u32 = 1000;
/// Rows in one listing at most.
const MAX_ROWS: u32 = 100_000;

/// Length of a build's id that a client chose.
const MAX_ID_BYTES: usize = 40;
/// Length of a build's secret.
const SECRET_BYTES: usize = 16;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct BuildsService {
    pub(crate) core: Handle,
    pub(crate) shared: Shared,
}

/// Access records that are read at once for one listing.
const RECORDS_AT_ONCE: usize = 64;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Releases what workers pinned for a submission that never became a build.
struct Abandon {
    core: Handle,
    build_id: Option<String>,
}

impl Drop for Abandon {
    fn drop(&mut self) {
        if let Some(build_id) = self.build_id.take() {
            let core = self.core.clone();
            tokio::spawn(async move {
                let _ = core.tell(Message::Abandoned { build_id }).await;
            });
        }
    }
}

impl BuildsService {
    /// Begins a build, or goes on with one that ran before this coordinator was started.
    async fn submit(
        &self,
        header: wire::BuildHeader,
        messages: &mut Streaming<wire::BuildRequest>,
    ) -> Result<Attached, Status> {
        let named = match &header.resume {
            Some(resume) => self.named(resume).await?,
            None => Named { build_id: new_build_id(), secret: secret(), ends: None },
        };
        let (build_id, secret) = (named.build_id.clone(), named.secret.clone());
        let is_new = named.ends.is_none();
        let mut abandon =
            Abandon { core: self.core.clone(), build_id: is_new.then(|| build_id.clone()) };
        // What workers hold is known when they are back.
        self.core.ask(|reply| Message::Recovered { reply }).await?;
        let durable = self.shared.durable && header.resumable && is_new;
        let submission =
            submission::prepare(header, messages, &self.core, &self.shared, named).await?;
        if durable {
            // Before the client hears of the build.
            let begun = self.shared.state.begin_build(build_id, secret).await;
            begun.map_err(|error| Status::internal(error.to_string()))?;
        }
        let submission = Box::new(submission);
        let Accepted { build, events } =
            self.core.ask(|reply| Message::Submit { submission, reply }).await?.map_err(
                |refused| match refused {
                    NotTaken::GoesOn | NotTaken::ShuttingDown => {
                        Status::unavailable(refused.to_string())
                    }
                    NotTaken::Full { .. } => Status::resource_exhausted(refused.to_string()),
                },
            )?;
        abandon.build_id = None;
        Ok(Attached { build: Some(build), events, reader: Reader::default() })
    }

    /// A build under the name that its client gives: one that ran before, or a new one.
    async fn named(&self, resume: &wire::ResumeBuild) -> Result<Named, Status> {
        let wire::ResumeBuild { build_id, secret, .. } = resume.clone();
        let asked = build_id.clone();
        if self.core.ask(|reply| Message::MayResume { build_id: asked, reply }).await? {
            let known = self.shared.state.running_build(build_id.clone()).await;
            let known = known.map_err(|error| Status::internal(error.to_string()))?;
            if let Some((_, ends)) = known.filter(|(known, _)| *known == secret) {
                return Ok(Named { build_id, secret, ends: Some(ends) });
            }
        } else if resume.may_be_new {
            let fits = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
            let is_id = (1..=MAX_ID_BYTES).contains(&build_id.len()) && build_id.bytes().all(fits);
            if !is_id || secret.len() != SECRET_BYTES {
                return Err(Status::invalid_argument("a build's id or secret is malformed"));
            }
            return Ok(Named { build_id, secret, ends: None });
        }
        Err(Status::not_found(format!("build {build_id:?} is not known")))
    }
}

#[tonic::async_trait]
impl Builds for BuildsService {
    type BuildStream = BoxStream<wire::BuildEvents>;
    type ListAccessRecordsStream = BoxStream<wire::RunRecord>;

    async fn build(
        &self,
        request: Request<Streaming<wire::BuildRequest>>,
    ) -> Result<Response<Self::BuildStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.body);
        let attached = match first {
            Some(Body::Header(header)) => self.submit(header, &mut messages).await?,
            Some(Body::Attach(resume)) => {
                let text = format!("build {:?} does not run here", resume.build_id);
                let attached = self.core.ask(|reply| Message::Attach { resume, reply }).await?;
                attached.ok_or_else(|| Status::not_found(text))?
            }
            _ => return Err(Status::invalid_argument("a build begins with its header")),
        };
        let Attached { build, events, reader } = attached;
        let core = self.core.clone();
        // When the events have all been sent, nobody listens to the client any more.
        let told_all = CancellationToken::new();
        let guard = told_all.clone().drop_guard();
        let log = events.clone();
        tokio::spawn(async move {
            let closed = loop {
                let message = match told_all.run_until_cancelled(messages.message()).await {
                    Some(Ok(Some(message))) => message,
                    // A client that has heard of the end closes its stream; one that closes it earlier wants its
                    // build no more.
                    Some(Ok(None)) => break true,
                    Some(Err(_)) | None => break false,
                };
                let report = match message.body {
                    Some(Body::Delivered(jobs)) => ClientReport::Delivered(jobs.jobs),
                    Some(Body::OutputsMissing(job)) => ClientReport::OutputsMissing(job.job),
                    Some(Body::Cancel(_)) => ClientReport::Cancel,
                    Some(Body::HeardSeq(seq)) => {
                        log.heard(seq);
                        continue;
                    }
                    _ => continue,
                };
                let Some(build) = build else { continue };
                if core.tell(Message::Report { build, report }).await.is_err() {
                    return;
                }
            };
            if let Some(build) = build {
                let _ = core.tell(Message::ClientGone { build, reader, closed }).await;
            }
        });
        let stream = futures::stream::unfold(Some((events, guard)), move |state| async move {
            let (events, guard) = state?;
            match events.next_for(reader).await {
                Ok(Some(next)) => Some((Ok(next), Some((events, guard)))),
                Ok(None) => None,
                Err(gone) => Some((Err(Status::unavailable(gone.to_string())), None)),
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn cancel(
        &self,
        request: Request<wire::CancelRequest>,
    ) -> Result<Response<wire::CancelResponse>, Status> {
        let build_id = request.into_inner().build_id;
        let text = format!("no build {build_id:?} is running");
        if self.core.ask(|reply| Message::Cancel { build_id, reply }).await? {
            Ok(Response::new(wire::CancelResponse {}))
        } else {
            Err(Status::not_found(text))
        }
    }

    async fn status(
        &self,
        _request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        Ok(Response::new(self.core.ask(|reply| Message::Status { reply }).await?))
    }

    async fn list_workers(
        &self,
        _request: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        let workers = self.core.ask(|reply| Message::Workers { reply }).await?;
        Ok(Response::new(wire::ListWorkersResponse { workers }))
    }

    async fn list_results(
        &self,
        request: Request<wire::ListResultsRequest>,
    ) -> Result<Response<wire::ListResultsResponse>, Status> {
        let results = self.shared.state.results(rows(request.into_inner().limit)).await;
        let results = results.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::ListResultsResponse { results }))
    }

    async fn get_result(
        &self,
        request: Request<wire::GetResultRequest>,
    ) -> Result<Response<wire::GetResultResponse>, Status> {
        let result = self.shared.state.result(request.into_inner().job_id.to_vec()).await;
        match result.map_err(|error| Status::internal(error.to_string()))? {
            Some(result) => Ok(Response::new(wire::GetResultResponse { result: Some(result) })),
            None => Err(Status::not_found("no result is known under this id")),
        }
    }

    async fn list_builds(
        &self,
        request: Request<wire::ListBuildsRequest>,
    ) -> Result<Response<wire::ListBuildsResponse>, Status> {
        let builds = self.shared.state.builds(rows(request.into_inner().limit)).await;
        let builds = builds.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::ListBuildsResponse { builds }))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::Explanation>, Status> {
        let wire::ExplainRequest { job, build_id } = request.into_inner();
        let text = match build_id.as_str() {
            "" => format!("no build that is remembered had a job {job:?}"),
            _ => format!("nothing is known of a job {job:?} in build {build_id:?}"),
        };
        let found = self.shared.state.explanation(job, build_id).await;
        let found = found.map_err(|error| Status::internal(error.to_string()))?;
        found.map(Response::new).ok_or_else(|| Status::not_found(text))
    }

    async fn list_access_records(
        &self,
        request: Request<wire::ListAccessRecordsRequest>,
    ) -> Result<Response<Self::ListAccessRecordsStream>, Status> {
        let keys = request.into_inner().action_keys;
        let keys: Result<Vec<[u8; 32]>, _> = keys.iter().map(|key| key[..].try_into()).collect();
        let keys = keys.map_err(|_| Status::invalid_argument("an action key has 32 bytes"))?;
        let state = self.shared.state.clone();
        let batches: Vec<_> = keys.chunks(RECORDS_AT_ONCE).map(<[_]>::to_vec).collect();
        let records = futures::stream::iter(batches).then(move |keys| {
            let state = state.clone();
            async move {
                let found = state.records_of(keys).await;
                let found = found.map_err(|error| Status::internal(error.to_string()))?;
                let message = |(key, record): ([u8; 32], Vec<u8>)| {
                    let action_key = Bytes::copy_from_slice(&key);
                    Ok(wire::RunRecord { action_key, record: record.into() })
                };
                Ok::<_, Status>(futures::stream::iter(found.into_iter().map(message)))
            }
        });
        Ok(Response::new(Box::pin(records.try_flatten())))
    }
}

fn rows(limit: u32) -> u32 {
    if limit == 0 { DEFAULT_ROWS } else { limit.min(MAX_ROWS) }
}

/// A name for a build: sorts by time, unique without asking anybody.
fn new_build_id() -> String {
    format!("{:012x}-{:08x}", crate::event_log::unix_ms(), rand::random::<u32>())
}
