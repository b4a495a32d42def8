//! Submitting a build, and coming back to one whose stream broke.
//!
//! A submission that a dying coordinator did not answer is sent again. When the stream of a build that has begun
//! breaks, the client dials again, with pauses that grow and vary, for a bounded time. A coordinator that still
//! runs the build lets it attach with the number of the last event alone. One that was started anew gets the
//! whole submission once more, and what the client has heard: it is the client that remembers a build's events.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use distbuild_proto::transport::MAX_MESSAGE_BYTES;
use distbuild_proto::wire;
use distbuild_proto::wire::build_request::Body;
use distbuild_proto::wire::builds_client::BuildsClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::plan::Plan;
use super::sources::Sources;
use super::submit::{self, Terms, send};
use crate::output;

/// Messages to the coordinator that wait, each of at most about a MiB.
const WAITING_REQUESTS: usize = 16;
/// Pause before the second dial, at most; it doubles.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A stream to a running build.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) requests: mpsc::Sender<wire::BuildRequest>,
    pub(crate) events: Streaming<wire::BuildEvents>,
}

/// What it takes to come back to a build.
#[derive(Clone, Debug)]
pub(crate) struct Reconnector {
    pub(crate) control: Channel,
    pub(crate) terms: Terms,
    pub(crate) plan: Arc<Plan>,
    pub(crate) sources: Sources,
    /// How long it is tried.
    pub(crate) limit: Duration,
}

impl Reconnector {
    /// Submits the build. A coordinator that is lost before it has answered may come back in time, if the client
    /// would come back to the build.
    ///
    /// # Errors
    /// The coordinator's own, or that it is lost.
    pub(crate) async fn submit(&self) -> Result<Link, Status> {
        let (resume, heard) = (new_build(), wire::HeardBatch::default());
        let mut lost: Option<Instant> = None;
        let mut pause = PAUSE;
        loop {
            let answered = match lost {
                None => self.submit_once(&resume, &heard).await,
                // It may have begun.
                Some(_) => self.once(&resume, &heard).await,
            };
            let status = match answered {
                Err(status) if self.terms.resumable && is_passing(&status) => status,
                other => return other,
            };
            let since = *lost.get_or_insert_with(|| {
                output::note("the coordinator is lost before it has answered; trying again");
                Instant::now()
            });
            if since.elapsed() >= self.limit {
                return Err(status);
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }

    /// Comes back.
    ///
    /// # Errors
    /// For people: the coordinator does not come back in time, or does not know the build.
    pub(crate) async fn reconnect(
        self,
        resume: wire::ResumeBuild,
        heard: wire::HeardBatch,
    ) -> Result<Link, String> {
        let deadline = Instant::now() + self.limit;
        let too_late = || format!("it did not come back within {} s", self.limit.as_secs());
        let mut pause = PAUSE;
        loop {
            let status = match tokio::time::timeout_at(deadline, self.once(&resume, &heard)).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(status)) if is_passing(&status) => status,
                Ok(Err(status)) => return Err(status.message().to_owned()),
                Err(_) => return Err(too_late()),
            };
            tracing::debug!(%status, "the coordinator is not back");
            if Instant::now() + pause > deadline {
                return Err(too_late());
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }

    async fn once(
        &self,
        resume: &wire::ResumeBuild,
        heard: &wire::HeardBatch,
    ) -> Result<Link, Status> {
        let attach = |requests: mpsc::Sender<wire::BuildRequest>| {
            let resume = resume.clone();
            async move { send(&requests, Body::Attach(resume)).await }
        };
        match self.call(attach).await {
            Err(status) if status.code() == Code::NotFound => {}
            other => return other,
        }
        self.submit_once(resume, heard).await
    }

    /// Sends the whole submission.
    async fn submit_once(
        &self,
        resume: &wire::ResumeBuild,
        heard: &wire::HeardBatch,
    ) -> Result<Link, Status> {
        let (terms, plan) = (self.terms.clone(), self.plan.clone());
        let sources = self.sources.clone();
        let going_on = Some((resume.clone(), heard.clone()));
        self.call(|requests| async move {
            submit::submit(&requests, terms, plan, sources, going_on).await
        })
        .await
    }

    /// Opens a stream and says something on it until it is accepted.
    async fn call<F>(
        &self,
        say: impl FnOnce(mpsc::Sender<wire::BuildRequest>) -> F,
    ) -> Result<Link, Status>
    where
        F: Future<Output = Result<(), submit::Gone>> + Send + 'static,
    {
        let (requests, messages) = mpsc::channel(WAITING_REQUESTS);
        let saying = tokio::spawn(say(requests.clone()));
        let mut builds =
            BuildsClient::new(self.control.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let events = builds.build(ReceiverStream::new(messages)).await;
        saying.abort();
        Ok(Link { requests, events: events?.into_inner() })
    }
}

/// A name for a build: sorts by time, unique without asking anybody.
fn new_build() -> wire::ResumeBuild {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    wire::ResumeBuild {
        build_id: format!("{:012x}-{:08x}", now.as_millis(), rand::random::<u32>()),
        secret: Bytes::copy_from_slice(&rand::random::<[u8; 16]>()),
        seq: 0,
        may_be_new: true,
    }
}

/// Whether it may be otherwise in a moment.
fn is_passing(status: &Status) -> bool {
    // What a coordinator says itself has no cause on this side.
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}
