//! The `Blobs` service of the coordinator: its own blobs, and the relay to those that nobody dials.

use std::pin::Pin;

use distbuild_cas::chunks::{Arrival, ChunkBatcher, ChunkReceiver, ReceiveError, error_chunk};
use distbuild_cas::serving::{self, Gone, ReadStream, Reader};
use distbuild_proto::wire::blobs_server::Blobs;
use distbuild_proto::wire::lend_request;
use distbuild_proto::wire::read_request::Place;
use distbuild_proto::{Digest, convert, wire};
use futures::{Stream, StreamExt};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::core::{Handle, Message, Shared};
use crate::relay::Lender;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct BlobsService {
    pub(crate) core: Handle,
    pub(crate) shared: Shared,
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl BlobsService {
    /// Answers a request: what is here first, then what others lend.
    async fn answer(
        &self,
        digests: Vec<Digest>,
        place: Option<Place>,
        reader: Reader,
    ) -> Result<(), Gone> {
        let mut batcher = ChunkBatcher::default();
        let (mut stored, mut elsewhere) = (Vec::new(), Vec::new());
        for (index, digest) in (0..).zip(digests) {
            if let Some(data) = self.shared.metadata.get(&digest) {
                let chunk = wire::BlobChunk { index, data, last: true, ..Default::default() };
                if let Some(chunks) = batcher.push(chunk) {
                    reader.send(chunks).await?;
                }
            } else if self.shared.store.contains(&digest) {
                stored.push((index, digest));
            } else {
                elsewhere.push((index, digest));
            }
        }
        if let Some(chunks) = batcher.finish() {
            reader.send(chunks).await?;
        }
        if !stored.is_empty() {
            let (store, reader) = (self.shared.store.clone(), reader.clone());
            let sent = tokio::task::spawn_blocking(move || reader.send_stored(&store, stored));
            sent.await.unwrap_or(Err(Gone))?;
        }
        self.relay(elsewhere, place, &reader).await
    }

    /// Fetches from the lenders of a place, one after the other, what is not here.
    async fn relay(
        &self,
        mut missing: Vec<(u32, Digest)>,
        place: Option<Place>,
        reader: &Reader,
    ) -> Result<(), Gone> {
        if missing.is_empty() {
            return Ok(());
        }
        let mut problem = String::new();
        for lender in self.lenders(place).await {
            let digests: Vec<_> = missing.iter().map(|(_, digest)| *digest).collect();
            let mut transfer = match self.shared.relay.order(&lender, &digests).await {
                Ok(transfer) => transfer,
                Err(error) => {
                    problem = error.to_string();
                    continue;
                }
            };
            let mut progress = Progress::new(&missing);
            loop {
                match transfer.next().await {
                    Ok(Some(chunks)) => {
                        let chunks = progress.pass_on(chunks);
                        if !chunks.is_empty() {
                            reader.send(chunks).await?;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        problem = error.to_string();
                        break;
                    }
                }
            }
            let (left, broken) = progress.finish();
            if let Some(index) = broken {
                let text = format!("the transfer broke off: {problem}");
                reader.send(vec![error_chunk(index, text, false)]).await?;
            }
            missing = left;
            if missing.is_empty() {
                return Ok(());
            }
        }
        let gone = missing.into_iter().map(|(index, digest)| {
            let text = if problem.is_empty() {
                format!("nobody has {digest}")
            } else {
                format!("nobody has {digest}: {problem}")
            };
            error_chunk(index, text, true)
        });
        reader.send(gone.collect()).await
    }

    async fn lenders(&self, place: Option<Place>) -> Vec<Lender> {
        match place {
            Some(Place::LenderBuild(build_id)) => vec![Lender::Build(build_id)],
            Some(Place::OutputTree(tree)) => {
                let Ok(tree) = Digest::try_from(&tree) else {
                    return Vec::new();
                };
                let holders = self.core.ask(|reply| Message::Holders { tree, reply }).await;
                let mut holders = holders.unwrap_or_default();
                if holders.is_empty() {
                    holders = self.recorded_holders(tree).await;
                }
                holders.into_iter().map(Lender::Worker).collect()
            }
            None => Vec::new(),
        }
    }

    /// Sessions on the stores that held a tree when it was recorded: its build has ended.
    async fn recorded_holders(&self, tree: Digest) -> Vec<u64> {
        match self.shared.state.holders_of(tree).await {
            Ok(stores) => {
                let sessions = self.core.ask(|reply| Message::SessionsOf { stores, reply }).await;
                sessions.unwrap_or_default()
            }
            Err(error) => {
                tracing::warn!(%error, "failed to look up who held a tree");
                Vec::new()
            }
        }
    }
}

/// Which blobs of a transfer have passed, under which numbers the reader knows them.
struct Progress<'a> {
    wanted: &'a [(u32, Digest)],
    done: Vec<bool>,
    begun: Option<usize>,
}

impl<'a> Progress<'a> {
    fn new(wanted: &'a [(u32, Digest)]) -> Self {
        Self { wanted, done: vec![false; wanted.len()], begun: None }
    }

    /// Renumbers pieces for the reader; what the lender does not have is kept for the next one.
    fn pass_on(&mut self, chunks: Vec<wire::BlobChunk>) -> Vec<wire::BlobChunk> {
        let mut passed = Vec::with_capacity(chunks.len());
        for mut chunk in chunks {
            let at = chunk.index as usize;
            let Some((index, _)) = self.wanted.get(at) else {
                continue;
            };
            if self.done[at] || chunk.not_found && self.begun != Some(at) {
                continue;
            }
            self.done[at] = chunk.last;
            self.begun = (!chunk.last).then_some(at);
            chunk.index = *index;
            passed.push(chunk);
        }
        passed
    }

    /// What is left for the next lender, and the blob that broke off in the middle.
    fn finish(self) -> (Vec<(u32, Digest)>, Option<u32>) {
        let begun = self.begun;
        let left = (0..self.wanted.len())
            .filter(|at| !self.done[*at] && begun != Some(*at))
            .map(|at| self.wanted[at])
            .collect();
        (left, begun.map(|at| self.wanted[at].0))
    }
}

fn refused(digest: &Digest, error: &ReceiveError) -> Status {
    Status::invalid_argument(format!("blob {digest}: {error}"))
}

#[tonic::async_trait]
impl Blobs for BlobsService {
    type ReadStream = ReadStream;
    type LendStream = BoxStream<wire::LendOrder>;

    async fn read(
        &self,
        request: Request<wire::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let (digests, reader, answer) = serving::accept(request.get_ref())?;
        let (service, place) = (self.clone(), request.into_inner().place);
        tokio::spawn(async move {
            // A reader that has gone away needs nothing more.
            let _ = service.answer(digests, place, reader).await;
        });
        Ok(Response::new(answer))
    }

    async fn lend(
        &self,
        request: Request<Streaming<wire::LendRequest>>,
    ) -> Result<Response<Self::LendStream>, Status> {
        let mut messages = request.into_inner();
        let Some(request) = messages.message().await? else {
            return Err(Status::invalid_argument("a lender says first who it is"));
        };
        let lender = match &request.body {
            Some(lend_request::Body::Build(build)) => Lender::Build(build.build_id.clone()),
            Some(lend_request::Body::Worker(worker)) => Lender::Worker(worker.session),
            Some(lend_request::Body::Delivery(_)) | None => {
                return Err(Status::invalid_argument("a lender says first who it is"));
            }
        };
        if !self.core.ask(|reply| Message::MayLend { request, reply }).await? {
            return Err(Status::permission_denied("unknown lender, or a wrong secret"));
        }
        let mut lending = self.shared.relay.lend(lender);
        let orders = lending.orders().ok_or_else(|| Status::internal("no orders"))?;
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                if let Some(lend_request::Body::Delivery(delivery)) = message.body {
                    lending.delivered(delivery);
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(orders).map(Ok))))
    }

    async fn deliver(
        &self,
        request: Request<Streaming<wire::DeliverRequest>>,
    ) -> Result<Response<wire::DeliverResponse>, Status> {
        let mut messages = request.into_inner();
        let Some(first) = messages.message().await? else {
            return Err(Status::invalid_argument("a delivery names its transfer first"));
        };
        let Some(reader) = self.shared.relay.deliver(first.transfer) else {
            return Err(Status::cancelled("nobody waits for this transfer any more"));
        };
        let mut next = Some(first);
        while let Some(message) = next {
            if reader.send(message.chunks).await.is_err() {
                return Err(Status::cancelled("the reader has gone away"));
            }
            next = messages.message().await?;
        }
        Ok(Response::new(wire::DeliverResponse {}))
    }

    async fn upload(
        &self,
        request: Request<Streaming<wire::UploadRequest>>,
    ) -> Result<Response<wire::UploadResponse>, Status> {
        let mut messages = request.into_inner();
        let Some(first) = messages.message().await? else {
            return Err(Status::invalid_argument("an upload names its blobs first"));
        };
        let body = first.build.clone().map(lend_request::Body::Build);
        let lender = wire::LendRequest { body };
        if !self.core.ask(|reply| Message::MayLend { request: lender, reply }).await? {
            return Err(Status::permission_denied("unknown build, or a wrong secret"));
        }
        let digests = convert::digests(&first.digests)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut receiver = ChunkReceiver::new(self.shared.store.clone(), digests.clone());
        let mut chunks = first.chunks;
        loop {
            let arrived;
            (receiver, arrived) = tokio::task::spawn_blocking(move || {
                let mut arrived = Vec::new();
                for chunk in &chunks {
                    arrived.extend(receiver.take(chunk)?);
                }
                Ok::<_, distbuild_cas::chunks::ProtocolError>((receiver, arrived))
            })
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
            for Arrival { index, result } in arrived {
                result.map_err(|error| refused(&digests[index], &error))?;
            }
            match messages.message().await? {
                Some(message) => chunks = message.chunks,
                None => break,
            }
        }
        if let Some(index) = receiver.finish().first() {
            return Err(refused(&digests[*index], &ReceiveError::Incomplete));
        }
        Ok(Response::new(wire::UploadResponse {}))
    }
}
