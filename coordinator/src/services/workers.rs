//! The `Workers` service: a session's control stream, and where blobs are.

use std::pin::Pin;

use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::wire::workers_server::Workers;
use distbuild_proto::{Digest, wire};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::locating::{self, Locating};
use crate::core::{Handle, Message};
use crate::relay::Relay;
use crate::state::State;

/// Version of the protocol that workers speak.
const PROTOCOL: u32 = 1;
/// Messages on the way to one worker.
const WAITING_MESSAGES: usize = 1024;
/// Blobs in one request to locate them.
const MAX_LOCATED: usize = 4096;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct WorkersService {
    pub(crate) core: Handle,
    pub(crate) state: State,
    pub(crate) relay: Relay,
    /// Messages that may wait for a worker that is not connected.
    pub(crate) max_backlog: usize,
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Workers for WorkersService {
    type SessionStream = BoxStream<wire::ToWorker>;
    type LocateStream = BoxStream<wire::LocateResponse>;

    async fn session(
        &self,
        request: Request<Streaming<wire::FromWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.body);
        let Some(Body::Hello(hello)) = first else {
            return Err(Status::invalid_argument("a session begins with a hello"));
        };
        if hello.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "the worker speaks protocol {}, this coordinator {PROTOCOL}",
                hello.protocol
            )));
        }
        if hello.store_id.is_empty() || hello.name.is_empty() {
            return Err(Status::invalid_argument("a worker needs a name and a store"));
        }
        let hello = Box::new(hello);
        // All that waited for a connection has room in it, and the welcome.
        let waiting = WAITING_MESSAGES.max(self.max_backlog + 1);
        let (outbox, to_worker) = mpsc::channel(waiting);
        let joined = self.core.ask(|reply| Message::Join { hello, outbox, reply }).await?;
        if let Some(record) = joined.record
            && let Err(error) = self.state.record_session(record).await
        {
            // The worker begins anew if this coordinator is started again.
            tracing::warn!(%error, "failed to write a session down");
        }
        let core = self.core.clone();
        // When the core has ended the session, nobody listens to the worker any more.
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        tokio::spawn(async move {
            let (session, connection) = (joined.session, joined.connection);
            while let Some(Ok(Some(message))) = ended.run_until_cancelled(messages.message()).await
            {
                let Some(body) = message.body else { continue };
                let body = Box::new(body);
                let message = Message::FromWorker { session, connection, body };
                if core.tell(message).await.is_err() {
                    return;
                }
            }
            let _ = core.tell(Message::Disconnected { session, connection }).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(to_worker).map(move |message| {
            let _guard = &guard;
            Ok(message)
        }))))
    }

    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<Self::LocateStream>, Status> {
        let request = request.into_inner();
        let blobs = request.blobs.len();
        if blobs == 0 || blobs > MAX_LOCATED {
            return Err(Status::invalid_argument(format!(
                "{blobs} blobs in one request, allowed are 1 to {MAX_LOCATED}"
            )));
        }
        // That it has to be waited for, and where it is then.
        let (reply, answers) = mpsc::channel(2 * blobs);
        let digest = |wanted: &wire::WantedBlob| Digest::try_from(wanted.digest.clone()).ok();
        let digests = request.blobs.iter().map(digest).collect();
        self.core.tell(Message::Locate { request, reply }).await?;
        let (out, responses) = mpsc::channel(locating::WAITING_MESSAGES);
        tokio::spawn(Locating { relay: self.relay.clone(), digests, out }.run(answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}
