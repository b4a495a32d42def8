//! Where a missing blob comes from, in order: peers that the assignment named, then whoever the
//! coordinator names (peers, a client through the coordinator, the coordinator itself).
//!
//! One call fetches a batch. It guesses first what needs no asking: directories of sources are with the
//! coordinator, outputs of dependencies with the peers of the assignment. What is left is located, read as
//! answers arrive, and located again without the peers that failed, a bounded number of times. Every byte
//! is compared with its digest on the way into the store; a peer that sent others is avoided.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distbuild_cas::chunks::ReceiveError;
use distbuild_cas::{DiskStore, FetchError, Source, StoreError, Want};
use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::wire::located::Place as Located;
use distbuild_proto::wire::read_request::Place as ReadPlace;
use distbuild_proto::{Digest, wire};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, SelectAll};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::channels::{Coordinator, Peers};
use crate::inputs::{Inputs, Place};
use crate::outbox::Outbox;
use crate::reading::{Reading, read};
use crate::session::Identity;

/// How often a batch is located.
const ROUNDS: u32 = 4;
/// Pause before a batch is located again.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(100);

/// For whom a blob is fetched, and where in the input root it was found.
#[derive(Clone, Debug)]
pub(crate) struct Hint {
    pub(crate) inputs: Arc<Inputs>,
    pub(crate) place: Place,
    /// It is a directory: of a source tree, the coordinator has it.
    pub(crate) directory: bool,
}

/// Why a blob could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchProblem {
    /// The coordinator says that nobody has it.
    #[error("{0}")]
    Lost(String),
    /// Everybody who was asked failed; the last reason.
    #[error("{0}")]
    Failed(String),
}

/// The source of all inputs.
#[derive(Debug)]
pub(crate) struct InputSource {
    pub(crate) coordinator: Coordinator,
    pub(crate) peers: Peers,
    pub(crate) session: watch::Receiver<Option<Identity>>,
    pub(crate) outbox: Outbox,
    /// Silence after which a read is given up.
    pub(crate) silence: Duration,
    /// Ends every fetch.
    pub(crate) stop: CancellationToken,
}

impl Source for InputSource {
    type Hint = Hint;

    async fn fetch(
        &self,
        wants: Vec<Want<Hint>>,
        store: &DiskStore,
    ) -> Vec<Result<(), FetchError>> {
        let mut batch = Batch::new(self, wants, store);
        self.stop.run_until_cancelled(batch.read_all()).await;
        batch.finish()
    }
}

/// Who is read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Origin {
    Peer(String),
    /// The coordinator, which has it.
    Coordinator,
    /// The client of a build, through the coordinator.
    Client(String),
    /// A worker with this output tree, through the coordinator.
    Relay(Digest),
}

impl Origin {
    fn is_worker(&self) -> bool {
        matches!(self, Self::Peer(_) | Self::Relay(_))
    }

    fn read_place(&self) -> Option<ReadPlace> {
        match self {
            Self::Peer(_) | Self::Coordinator => None,
            Self::Client(build) => Some(ReadPlace::LenderBuild(build.clone())),
            Self::Relay(tree) => Some(ReadPlace::OutputTree((*tree).into())),
        }
    }
}

/// One blob of a batch.
struct Item {
    want: Want<Hint>,
    outcome: Option<Result<(), FetchError>>,
    failed_peers: Vec<String>,
    problem: String,
}

/// A read that has ended: of which blobs, from whom, and how.
type Read = (Origin, Vec<usize>, Reading);

/// Where blobs are, by their place in the batch.
type Answers = BoxStream<'static, Vec<(usize, Located)>>;

struct Batch<'a> {
    source: &'a InputSource,
    store: &'a DiskStore,
    items: Vec<Item>,
}

impl<'a> Batch<'a> {
    fn new(source: &'a InputSource, wants: Vec<Want<Hint>>, store: &'a DiskStore) -> Self {
        let item = |want| Item {
            want,
            outcome: None,
            failed_peers: Vec::new(),
            problem: "nobody was asked".to_owned(),
        };
        Self { source, store, items: wants.into_iter().map(item).collect() }
    }

    async fn read_all(&mut self) {
        self.read_guesses().await;
        for round in 0..ROUNDS {
            if self.is_done() {
                return;
            }
            if round > 0 {
                tokio::time::sleep(BETWEEN_ROUNDS * round).await;
            }
            self.read_located().await;
        }
    }

    fn is_done(&self) -> bool {
        self.items.iter().all(|item| item.outcome.is_some())
    }

    /// Reads what probably is where it usually is.
    async fn read_guesses(&mut self) {
        let mut by_origin: HashMap<Origin, Vec<usize>> = HashMap::new();
        for (at, item) in self.items.iter().enumerate() {
            if let Some(origin) = self.guess(&item.want) {
                by_origin.entry(origin).or_default().push(at);
            }
        }
        let mut reads: FuturesUnordered<_> =
            by_origin.into_iter().map(|(origin, of)| self.read(origin, of)).collect();
        while let Some(read) = reads.next().await {
            self.take(read).await;
        }
    }

    fn guess(&self, want: &Want<Hint>) -> Option<Origin> {
        match want.hint.place {
            Place::Source => want.hint.directory.then_some(Origin::Coordinator),
            Place::Dep(dep) => {
                let inputs = &want.hint.inputs;
                let holders = inputs.holders.get(dep as usize)?;
                // Different attempts begin with different holders.
                let first = inputs.attempt as usize % holders.len().max(1);
                let mut in_turn = holders.iter().cycle().skip(first).take(holders.len());
                in_turn.find(|peer| self.is_usable(peer)).cloned().map(Origin::Peer)
            }
        }
    }

    fn is_usable(&self, peer: &str) -> bool {
        self.source.peers.blobs(peer, Instant::now()).is_some()
    }

    /// Asks the coordinator for what is left and reads as its answers arrive.
    async fn read_located(&mut self) {
        let mut answers = SelectAll::new();
        for (attempt, left) in self.left_by_attempt() {
            match self.locate(attempt, left.clone()).await {
                Ok(located) => answers.push(located),
                Err(problem) => {
                    left.iter().for_each(|at| self.items[*at].problem.clone_from(&problem));
                }
            }
        }
        let mut reads = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(read) = reads.next() => self.take(read).await,
                Some(located) = answers.next() => {
                    for (origin, of) in self.origins(located) {
                        reads.push(self.read(origin, of));
                    }
                }
                else => return,
            }
        }
    }

    /// What is left, by the attempt that gives the numbers of dependencies their meaning. Sources mean
    /// the same to all and go with any.
    fn left_by_attempt(&self) -> BTreeMap<u64, Vec<usize>> {
        let mut left: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut sources = Vec::new();
        for (at, item) in self.items.iter().enumerate() {
            match (&item.outcome, item.want.hint.place) {
                (Some(_), _) => {}
                (None, Place::Source) => sources.push(at),
                (None, Place::Dep(_)) => {
                    left.entry(item.want.hint.inputs.attempt).or_default().push(at);
                }
            }
        }
        if let Some(first) = sources.first() {
            let attempt = self.items[*first].want.hint.inputs.attempt;
            left.entry(attempt).or_default().extend(sources);
        }
        left
    }

    /// Answers as they come: which blobs are where.
    async fn locate(&self, attempt: u64, left: Vec<usize>) -> Result<Answers, String> {
        let session = self.source.session.borrow().as_ref().map(|identity| identity.session);
        let session = session.ok_or("there is no session with the coordinator")?;
        let wanted = |at: &usize| {
            let item = &self.items[*at];
            let dep_plus_one = match item.want.hint.place {
                Place::Source => 0,
                Place::Dep(dep) => dep.saturating_add(1),
            };
            let failed_peers = item.failed_peers.clone();
            wire::WantedBlob { digest: Some(item.want.digest.into()), dep_plus_one, failed_peers }
        };
        let blobs = left.iter().map(wanted).collect();
        let request = wire::LocateRequest { session, attempt, blobs };
        let mut workers = self.source.coordinator.workers();
        let answers = match tokio::time::timeout(self.source.silence, workers.locate(request)).await
        {
            Ok(Ok(answers)) => answers.into_inner(),
            Ok(Err(status)) => return Err(format!("the coordinator failed: {}", status.message())),
            Err(_) => return Err("the coordinator does not answer".to_owned()),
        };
        // What is not answered, because the stream breaks, is asked again.
        let answered = answers.take_while(|answer| std::future::ready(answer.is_ok()));
        let named = move |answer: Result<wire::LocateResponse, Status>| {
            let located = answer.map(|answer| answer.located).unwrap_or_default().into_iter();
            located
                .filter_map(|located| Some((*left.get(located.index as usize)?, located.place?)))
                .collect()
        };
        Ok(answered.map(named).boxed())
    }

    /// Sorts located blobs by where they are; those that are nowhere have their outcome.
    fn origins(&mut self, located: Vec<(usize, Located)>) -> HashMap<Origin, Vec<usize>> {
        let mut by_origin: HashMap<Origin, Vec<usize>> = HashMap::new();
        for (at, located) in located {
            let origin = match located {
                Located::Peers(peers) => self.pick_peer(at, peers.addresses),
                Located::LenderBuild(build) => Some(Origin::Client(build)),
                Located::OutputTree(tree) => Digest::try_from(&tree).ok().map(Origin::Relay),
                Located::Coordinator(_) => Some(Origin::Coordinator),
                Located::Lost(reason) => {
                    let item = &mut self.items[at];
                    let source = Arc::new(FetchProblem::Lost(reason));
                    item.outcome =
                        Some(Err(FetchError::Source { digest: item.want.digest, source }));
                    None
                }
            };
            if let Some(origin) = origin {
                by_origin.entry(origin).or_default().push(at);
            }
        }
        by_origin
    }

    /// The first of these peers that can be asked; the others count as failed.
    fn pick_peer(&mut self, at: usize, addresses: Vec<String>) -> Option<Origin> {
        for address in addresses {
            if !self.items[at].failed_peers.contains(&address) {
                if self.is_usable(&address) {
                    return Some(Origin::Peer(address));
                }
                self.items[at].failed_peers.push(address);
            }
        }
        self.items[at].problem = "no peer that holds it can be asked".to_owned();
        None
    }

    fn read(&self, origin: Origin, of: Vec<usize>) -> BoxFuture<'a, Read> {
        let client = match &origin {
            Origin::Peer(address) => self.source.peers.blobs(address, Instant::now()),
            _ => Some(self.source.coordinator.blobs()),
        };
        let digests: Vec<_> = of.iter().map(|at| self.items[*at].want.digest).collect();
        let (store, silence) = (self.store.clone(), self.source.silence);
        Box::pin(async move {
            let reading = match client {
                Some(client) => read(client, digests, origin.read_place(), store, silence).await,
                None => Reading::none(digests.len(), "the peer is avoided"),
            };
            (origin, of, reading)
        })
    }

    /// Takes the results of one read.
    async fn take(&mut self, (origin, of, reading): Read) {
        let mut held = Vec::new();
        let mut distrusted = false;
        for (at, result) in of.into_iter().zip(reading.results) {
            let item = &mut self.items[at];
            let digest = item.want.digest;
            let error = match result {
                Ok(()) => {
                    if origin.is_worker() {
                        item.want.hint.inputs.count_from_peers(digest.size_bytes());
                    }
                    if item.want.hint.place == Place::Source && origin != Origin::Coordinator {
                        held.push(digest);
                    }
                    item.outcome = Some(Ok(()));
                    continue;
                }
                Err(error) => error,
            };
            match error {
                ReceiveError::Store(error) if !is_senders_fault(&error) => {
                    let source = Arc::new(error);
                    item.outcome = Some(Err(FetchError::Store { digest, source }));
                    continue;
                }
                ReceiveError::NotFound => item.problem = format!("{digest} was not found"),
                ReceiveError::Incomplete => {
                    distrusted = true;
                    item.problem.clone_from(&reading.broken);
                }
                ReceiveError::Remote(text) => item.problem = text,
                ReceiveError::Store(error) => {
                    distrusted = true;
                    item.problem = error.to_string();
                }
            }
            if let Origin::Peer(address) = &origin {
                item.failed_peers.push(address.clone());
            }
        }
        if distrusted && let Origin::Peer(address) = &origin {
            tracing::warn!(peer.address = address, "a peer failed and is avoided for a while");
            self.source.peers.avoid(address, Instant::now());
        }
        if !held.is_empty() {
            // At once: others may wait for these.
            let digests = held.into_iter().map(Into::into).collect();
            let outbox = &self.source.outbox;
            outbox.send(outbox.epoch(), Body::BlobsHeld(wire::BlobsHeld { digests })).await;
        }
    }

    fn finish(self) -> Vec<Result<(), FetchError>> {
        let outcome = |item: Item| {
            item.outcome.unwrap_or_else(|| {
                let source = Arc::new(FetchProblem::Failed(item.problem));
                Err(FetchError::Source { digest: item.want.digest, source })
            })
        };
        self.items.into_iter().map(outcome).collect()
    }
}

/// Whether other bytes came than the digest says, and not our disk failed.
fn is_senders_fault(error: &StoreError) -> bool {
    matches!(error, StoreError::Mismatch { .. } | StoreError::TooLong { .. })
}
