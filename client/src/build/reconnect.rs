//! Coming back to a build whose stream broke.
//!
//! The client dials again, with pauses that grow and vary, for a bounded time. A coordinator that still runs the
//! build lets it attach with the number of the last event alone. One that was started anew gets the whole
//! submission once more, and what the client has heard: it is the client that remembers a build's events.

use std::sync::Arc;
use std::time::Duration;

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

/// Messages to the coordinator that wait, each of at most about a MiB.
pub(crate) const WAITING_REQUESTS: usize = 16;
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
        let mut pause = PAUSE;
        loop {
            let status = match tokio::time::timeout_at(deadline, self.once(&resume, &heard)).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(status)) if is_passing(&status) => status,
                Ok(Err(status)) => return Err(status.message().to_owned()),
                Err(_) => {
                    let seconds = self.limit.as_secs();
                    return Err(format!("it did not come back within {seconds} s"));
                }
            };
            tracing::debug!(%status, "the coordinator is not back");
            if Instant::now() + pause > deadline {
                let seconds = self.limit.as_secs();
                return Err(format!("it did not come back within {seconds} s"));
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

/// Whether it may be otherwise in a moment.
fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::DeadlineExceeded
    )
}
