//! A coordinator that does what the test says: it hands out connections, answers look-ups from a table and
//! serves blobs from memory.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distbuild_proto::transport::{Listener, server};
use distbuild_proto::wire::blobs_server::{Blobs, BlobsServer};
use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::wire::located::Place;
use distbuild_proto::wire::to_worker;
use distbuild_proto::wire::workers_server::{Workers, WorkersServer};
use distbuild_proto::{Address, Digest, DigestFunction, wire};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the services share with the test.
#[derive(Clone)]
pub(crate) struct Coordinator {
    pub(crate) table: Arc<Mutex<Table>>,
    /// Something was added to the table.
    changed: Arc<Notify>,
    connections: mpsc::Sender<Connection>,
}

#[derive(Default)]
pub(crate) struct Table {
    /// Answers of `Locate`; anything else is lost.
    pub(crate) places: HashMap<Digest, Place>,
    /// Answers of `Read`.
    pub(crate) blobs: HashMap<Digest, Bytes>,
    /// What was read, with the lender that was named.
    pub(crate) reads: Vec<(Digest, Option<String>)>,
    pub(crate) located: Vec<Digest>,
    /// Deliveries that came to their end, by transfer.
    pub(crate) delivered: HashMap<u64, Vec<wire::BlobChunk>>,
    lender: Option<mpsc::Sender<Result<wire::LendOrder, Status>>>,
}

/// One connection of a worker.
pub(crate) struct Connection {
    pub(crate) hello: wire::WorkerHello,
    to_worker: mpsc::Sender<Result<wire::ToWorker, Status>>,
    from_worker: mpsc::Receiver<Body>,
}

pub(crate) struct Fake {
    pub(crate) coordinator: Coordinator,
    pub(crate) address: Address,
    connections: mpsc::Receiver<Connection>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Fake {
    pub(crate) async fn start(directory: &Path) -> Self {
        let address = Address::Unix(directory.join("coordinator.sock"));
        let listener = Listener::bind(&address).await.unwrap();
        let (sender, connections) = mpsc::channel(16);
        let coordinator =
            Coordinator { table: Arc::default(), changed: Arc::default(), connections: sender };
        let router = server()
            .add_service(WorkersServer::new(coordinator.clone()))
            .add_service(BlobsServer::new(coordinator.clone()));
        let serving = tokio::spawn(async move {
            router.serve_with_incoming(listener).await.unwrap();
        });
        Self { coordinator, address, connections, serving }
    }

    /// The next connection that a worker opens.
    pub(crate) async fn connection(&mut self) -> Connection {
        within(self.connections.recv()).await.unwrap()
    }

    /// Breaks a connection; gives the one that the worker opens then.
    pub(crate) async fn connection_after(&mut self, broken: Connection) -> Connection {
        drop(broken);
        self.connection().await
    }

    /// Stores a blob that `Read` serves; gives its digest.
    pub(crate) fn store(&self, blob: &[u8]) -> Digest {
        let digest = DigestFunction::Blake3.digest(blob);
        self.coordinator.table.lock().blobs.insert(digest, Bytes::copy_from_slice(blob));
        digest
    }

    pub(crate) fn place(&self, digest: Digest, place: Place) {
        self.coordinator.table.lock().places.insert(digest, place);
    }

    /// Orders blobs from the worker that lends; gives what it delivers.
    pub(crate) async fn order(
        &self,
        transfer: u64,
        digests: &[Digest],
        own_call: bool,
    ) -> Vec<wire::BlobChunk> {
        let digests = digests.iter().map(|digest| (*digest).into()).collect();
        let lender = self.coordinator.until(|table| table.lender.clone()).await;
        lender.send(Ok(wire::LendOrder { transfer, digests, own_call })).await.unwrap();
        self.coordinator.until(|table| table.delivered.remove(&transfer)).await
    }

    /// How often a blob was read here.
    pub(crate) fn reads_of(&self, digest: &Digest) -> usize {
        self.coordinator.table.lock().reads.iter().filter(|(read, _)| read == digest).count()
    }
}

impl Connection {
    pub(crate) async fn send(&self, body: to_worker::Body) {
        self.say(wire::ToWorker { body: Some(body), ..Default::default() }).await;
    }

    async fn say(&self, message: wire::ToWorker) {
        within(self.to_worker.send(Ok(message))).await.unwrap();
    }

    pub(crate) async fn welcome(&self, session: u64, resumed: bool) {
        let welcome = wire::Welcome {
            session,
            lend_secret: Bytes::from_static(b"secret"),
            lease_ms: 30_000,
            resumed,
        };
        self.send(to_worker::Body::Welcome(welcome)).await;
    }

    /// The next message that is no heartbeat.
    pub(crate) async fn next(&mut self) -> Body {
        loop {
            match within(self.from_worker.recv()).await.expect("the worker has hung up") {
                Body::Heartbeat(_) => {}
                body => return body,
            }
        }
    }

    /// The end of an attempt; with everything that was said before it.
    pub(crate) async fn end(&mut self) -> (wire::AttemptEnded, Vec<Body>) {
        let mut before = Vec::new();
        loop {
            match self.next().await {
                Body::AttemptEnded(ended) => return (ended, before),
                body => before.push(body),
            }
        }
    }

    pub(crate) async fn acknowledge(&self, attempt: u64) {
        self.say(wire::ToWorker { body: None, acknowledged: vec![attempt] }).await;
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("nothing happened in time")
}

impl Coordinator {
    /// Waits until the table gives something.
    pub(crate) async fn until<T>(&self, mut pick: impl FnMut(&mut Table) -> Option<T>) -> T {
        let picked = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if let Some(picked) = pick(&mut self.table.lock()) {
                    return picked;
                }
                changed.await;
            }
        };
        within(picked).await
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        change(&mut self.table.lock());
        self.changed.notify_waiters();
    }
}

#[tonic::async_trait]
impl Workers for Coordinator {
    type SessionStream = BoxStream<wire::ToWorker>;
    type LocateStream = BoxStream<wire::LocateResponse>;

    async fn session(
        &self,
        request: Request<Streaming<wire::FromWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.body);
        let Some(Body::Hello(hello)) = first else { panic!("a session begins with a hello") };
        let (to_worker, outgoing) = mpsc::channel(64);
        let (incoming, from_worker) = mpsc::channel(4096);
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                if incoming.send(message.body.unwrap()).await.is_err() {
                    return;
                }
            }
        });
        let connection = Connection { hello, to_worker, from_worker };
        self.connections.send(connection).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<Self::LocateStream>, Status> {
        let mut table = self.table.lock();
        let mut located = Vec::new();
        for (index, wanted) in (0..).zip(request.into_inner().blobs) {
            let digest = Digest::try_from(wanted.digest).unwrap();
            table.located.push(digest);
            self.changed.notify_waiters();
            let lost = || Place::Lost("nobody has it".to_owned());
            let place = table.places.get(&digest).cloned().unwrap_or_else(lost);
            located.push(wire::Located { index, place: Some(place) });
        }
        let waits = located.iter().any(|located| matches!(located.place, Some(Place::Waits(_))));
        let answer = futures::stream::iter([Ok(wire::LocateResponse { located })]);
        // Who is told to wait waits.
        let rest = futures::stream::pending().take(usize::from(waits));
        Ok(Response::new(Box::pin(answer.chain(rest))))
    }
}

#[tonic::async_trait]
impl Blobs for Coordinator {
    type ReadStream = BoxStream<wire::ReadResponse>;
    type LendStream = BoxStream<wire::LendOrder>;

    async fn read(
        &self,
        request: Request<wire::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let lender = match request.place {
            Some(wire::read_request::Place::LenderBuild(build)) => Some(build),
            _ => None,
        };
        let mut table = self.table.lock();
        let mut chunks = Vec::new();
        for (index, digest) in (0..).zip(&request.digests) {
            let digest = Digest::try_from(digest).unwrap();
            table.reads.push((digest, lender.clone()));
            chunks.push(match table.blobs.get(&digest) {
                Some(data) => {
                    wire::BlobChunk { index, data: data.clone(), last: true, ..Default::default() }
                }
                None => {
                    let error = "not here".to_owned();
                    wire::BlobChunk { index, error, not_found: true, ..Default::default() }
                }
            });
        }
        let answer = futures::stream::iter([Ok(wire::ReadResponse { chunks })]);
        Ok(Response::new(Box::pin(answer)))
    }

    async fn lend(
        &self,
        request: Request<Streaming<wire::LendRequest>>,
    ) -> Result<Response<Self::LendStream>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.body);
        let Some(wire::lend_request::Body::Worker(lender)) = first else {
            return Err(Status::invalid_argument("workers lend here"));
        };
        if &lender.secret[..] != b"secret" {
            return Err(Status::permission_denied("a wrong secret"));
        }
        let (sender, orders) = mpsc::channel(4);
        self.change(|table| table.lender = Some(sender));
        let coordinator = self.clone();
        tokio::spawn(async move {
            let mut begun: HashMap<u64, Vec<wire::BlobChunk>> = HashMap::new();
            while let Ok(Some(message)) = messages.message().await {
                let Some(wire::lend_request::Body::Delivery(delivery)) = message.body else {
                    panic!("only deliveries follow");
                };
                begun.entry(delivery.transfer).or_default().extend(delivery.chunks);
                if delivery.last {
                    let chunks = begun.remove(&delivery.transfer).unwrap_or_default();
                    let transfer = delivery.transfer;
                    coordinator.change(|table| drop(table.delivered.insert(transfer, chunks)));
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(orders))))
    }

    async fn deliver(
        &self,
        request: Request<Streaming<wire::DeliverRequest>>,
    ) -> Result<Response<wire::DeliverResponse>, Status> {
        let mut messages = request.into_inner();
        let (mut transfer, mut chunks) = (0, Vec::new());
        while let Some(message) = messages.message().await? {
            transfer = message.transfer;
            chunks.extend(message.chunks);
        }
        self.change(|table| drop(table.delivered.insert(transfer, chunks)));
        Ok(Response::new(wire::DeliverResponse {}))
    }

    async fn upload(
        &self,
        _: Request<Streaming<wire::UploadRequest>>,
    ) -> Result<Response<wire::UploadResponse>, Status> {
        Err(Status::unimplemented("no uploads"))
    }
}
