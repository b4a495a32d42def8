//! Where a missing blob comes from, in order: peers that the assignment named, then whoever the
//! coordinator names (peers, a client through the coordinator, the coordinator itself).
//!
//! One call fetches a batch; each blob goes its own way and is answered when it has arrived. Where a guess
//! needs no asking, it is read there first: directories of sources and what clients upload are with the coordinator,
//! outputs of dependencies with the peers of the assignment. What is left is located and read as answers arrive, or comes
//! in the answer itself if it is small; what fails is located again without the peers that failed, a bounded
//! number of times. Every byte is compared with its digest on the way into the store; a peer that sent others
//! is avoided.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use distbuild_cas::chunks::{Arrival, ReceiveError};
use distbuild_cas::{Answers, DiskStore, FetchError, Source, StoreError, Want};
use distbuild_proto::action::Layout;
use distbuild_proto::wire::from_worker::Body;
use distbuild_proto::wire::located::Place as Located;
use distbuild_proto::wire::read_request::Place as ReadPlace;
use distbuild_proto::{Digest, wire};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream, SelectAll};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::channels::{Coordinator, Peers};
use crate::inputs::{Inputs, Place};
use crate::large::{self, LARGE_BYTES, UnderWay};
use crate::locating::{Found, Locating};
use crate::outbox::Outbox;
use crate::reading::{Progress, Reading};
use crate::session::Identity;

/// How often a blob is located that a command waits for.
const ROUNDS: u32 = 4;
/// Pause before a blob is located again; each is longer than the last by as much.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(100);

/// For whom a blob is fetched, and where in the input root it was found.
#[derive(Clone, Debug)]
pub(crate) struct Hint {
    pub(crate) inputs: Arc<Inputs>,
    pub(crate) place: Place,
    /// It is a directory: of a source tree, the coordinator has it.
    pub(crate) directory: bool,
    pub(crate) need: Need,
}

/// How much a blob is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A command waits for it.
    Now,
    /// Maybe later: nobody is asked for it again.
    Ahead {
        /// A client is not asked at all.
        spare_client: bool,
    },
}

impl Need {
    /// How often a blob is located.
    fn rounds(self) -> u32 {
        match self {
            Self::Now => ROUNDS,
            Self::Ahead { .. } => 1,
        }
    }
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
    /// Large blobs on their way.
    pub(crate) under_way: UnderWay,
    /// Silence after which a read is given up.
    pub(crate) silence: Duration,
    /// Ends every fetch.
    pub(crate) stop: CancellationToken,
}

impl Source for InputSource {
    type Hint = Hint;

    fn group(&self, hint: &Hint) -> u64 {
        hint.inputs.attempt
    }

    async fn fetch(&self, wants: Vec<Want<Hint>>, store: &DiskStore, answers: Answers) {
        let mut batch = Batch::new(self, wants, store, answers);
        self.stop.run_until_cancelled(batch.run()).await;
    }
}

/// Who is read from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Origin {
    Peer(String),
    /// Peers that a large blob is read from in pieces.
    Holders(Vec<String>),
    /// The coordinator, which has it.
    Coordinator,
    /// The client of a build, through the coordinator.
    Client(String),
    /// A client, in the coordinator's answer to where it is.
    Answer,
    /// A worker with this output tree, through the coordinator.
    Relay(Digest),
}

impl Origin {
    fn is_worker(&self) -> bool {
        matches!(self, Self::Peer(_) | Self::Holders(_) | Self::Relay(_))
    }

    fn read_place(&self) -> Option<ReadPlace> {
        match self {
            Self::Peer(_) | Self::Holders(_) | Self::Coordinator | Self::Answer => None,
            Self::Client(build) => Some(ReadPlace::LenderBuild(build.clone())),
            Self::Relay(tree) => Some(ReadPlace::OutputTree((*tree).into())),
        }
    }
}

/// One blob of a batch.
struct Item {
    want: Want<Hint>,
    located: u32,
    failed_peers: Vec<String>,
}

/// What happens to blobs of a batch, by their place in it.
enum Step {
    Arrived(Origin, Vec<(usize, Result<(), ReceiveError>)>),
    /// The transfer ended before these.
    Broke(Origin, Vec<usize>, String),
    Located(Vec<(usize, Located)>),
    /// The coordinator said nothing of these.
    Unlocated(Vec<usize>, String),
    /// The pause is over.
    Again(Vec<usize>),
}

struct Batch<'a> {
    source: &'a InputSource,
    store: &'a DiskStore,
    answers: Answers,
    items: Vec<Item>,
    steps: SelectAll<BoxStream<'a, Step>>,
}

impl<'a> Batch<'a> {
    fn new(
        source: &'a InputSource,
        wants: Vec<Want<Hint>>,
        store: &'a DiskStore,
        answers: Answers,
    ) -> Self {
        let item = |want| Item { want, located: 0, failed_peers: Vec::new() };
        let items = wants.into_iter().map(item).collect();
        Self { source, store, answers, items, steps: SelectAll::new() }
    }

    /// Ends when every blob is answered.
    async fn run(&mut self) {
        self.begin();
        while let Some(step) = self.steps.next().await {
            match step {
                Step::Arrived(origin, arrived) => self.arrived(&origin, arrived).await,
                Step::Broke(origin, left, why) => self.broke(&origin, left, &why),
                Step::Located(located) => self.read_located(located),
                Step::Unlocated(left, why) => self.failed(left.into_iter().map(|at| (at, &*why))),
                Step::Again(of) => self.locate(of),
            }
        }
    }

    /// Reads what probably is where it usually is, and asks for the rest.
    fn begin(&mut self) {
        let mut by_origin: HashMap<Origin, Vec<usize>> = HashMap::new();
        let mut unknown = Vec::new();
        for (at, item) in self.items.iter().enumerate() {
            match self.guess(&item.want) {
                Some(origin) => by_origin.entry(origin).or_default().push(at),
                None => unknown.push(at),
            }
        }
        by_origin.into_iter().for_each(|(origin, of)| self.read(origin, of));
        self.locate(unknown);
    }

    fn guess(&self, want: &Want<Hint>) -> Option<Origin> {
        match want.hint.place {
            Place::Source => {
                // What a client uploads for the Remote Execution API lies with the coordinator, whole.
                let uploaded = want.hint.inputs.layout == Layout::Root
                    && want.digest.size_bytes() <= LARGE_BYTES;
                (uploaded || want.hint.directory).then_some(Origin::Coordinator)
            }
            Place::Dep(dep) => {
                let inputs = &want.hint.inputs;
                let holders = inputs.holders.get(dep as usize)?;
                // Different attempts begin with different holders.
                let first = inputs.attempt as usize % holders.len().max(1);
                let in_turn = holders.iter().cycle().skip(first).take(holders.len());
                pick(&want.digest, in_turn.filter(|peer| self.is_usable(peer)))
            }
        }
    }

    fn is_usable(&self, peer: &str) -> bool {
        self.source.peers.blobs(peer, Instant::now()).is_some()
    }

    /// Asks the coordinator where blobs are, for each attempt that gives the numbers of dependencies their
    /// meaning. Sources mean the same to all and go with any.
    fn locate(&mut self, of: Vec<usize>) {
        let mut by_attempt: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut sources = Vec::new();
        for at in of {
            self.items[at].located += 1;
            let hint = &self.items[at].want.hint;
            match hint.place {
                Place::Source => sources.push(at),
                Place::Dep(_) => by_attempt.entry(hint.inputs.attempt).or_default().push(at),
            }
        }
        if let Some(first) = sources.first() {
            let attempt = self.items[*first].want.hint.inputs.attempt;
            by_attempt.entry(attempt).or_default().extend(sources);
        }
        for (attempt, of) in by_attempt {
            match self.locating(attempt, &of) {
                Some(locating) => self.follow(locating, of),
                None => {
                    let why = "there is no session with the coordinator";
                    self.failed(of.into_iter().map(|at| (at, why)));
                }
            }
        }
    }

    fn locating(&self, attempt: u64, of: &[usize]) -> Option<Locating> {
        let session = self.source.session.borrow().as_ref().map(|identity| identity.session)?;
        let wanted = |at: &usize| {
            let item = &self.items[*at];
            let dep_plus_one = match item.want.hint.place {
                Place::Source => 0,
                Place::Dep(dep) => dep.saturating_add(1),
            };
            wire::WantedBlob {
                digest: Some(item.want.digest.into()),
                dep_plus_one,
                failed_peers: item.failed_peers.clone(),
                spare_client: item.want.hint.need == Need::Ahead { spare_client: true },
            }
        };
        let blobs = of.iter().map(wanted).collect();
        let digests = of.iter().map(|at| self.items[*at].want.digest).collect();
        let request = wire::LocateRequest { session, attempt, blobs };
        let workers = self.source.coordinator.locating();
        let silence = self.source.silence;
        Some(Locating::new(workers, request, digests, self.store.clone(), silence))
    }

    fn follow(&mut self, locating: Locating, of: Vec<usize>) {
        let answers = self.answers.clone();
        let digests: Vec<_> = of.iter().map(|at| self.items[*at].want.digest).collect();
        let found = stream::unfold(locating, |mut locating| async {
            locating.next().await.map(|found| (found, locating))
        });
        let step = move |found| {
            let step = match found {
                Found::Arrived(arrived) => {
                    let result = |arrival: Arrival| (of[arrival.index], arrival.result);
                    Step::Arrived(Origin::Answer, arrived.into_iter().map(result).collect())
                }
                Found::Places(places) => Step::Located(
                    places.into_iter().map(|(index, place)| (of[index], place)).collect(),
                ),
                Found::Waits(index) => {
                    answers.waits(&digests[index]);
                    return None;
                }
                Found::Broke { left, why } => {
                    Step::Unlocated(left.into_iter().map(|index| of[index]).collect(), why)
                }
            };
            Some(step)
        };
        self.steps.push(found.filter_map(move |found| std::future::ready(step(found))).boxed());
    }

    /// Reads blobs from where they are; those that are nowhere have their answer.
    fn read_located(&mut self, located: Vec<(usize, Located)>) {
        let mut by_origin: HashMap<Origin, Vec<usize>> = HashMap::new();
        for (at, located) in located {
            let origin = match located {
                Located::Peers(peers) => self.pick_peer(at, peers.addresses),
                Located::LenderBuild(build) => Some(Origin::Client(build)),
                Located::OutputTree(tree) => Digest::try_from(&tree).ok().map(Origin::Relay),
                Located::Coordinator(_) => Some(Origin::Coordinator),
                Located::Lost(reason) => {
                    self.answer_failed(at, FetchProblem::Lost(reason));
                    continue;
                }
                // Told apart before.
                Located::Contents(_) | Located::Waits(_) => None,
            };
            match origin {
                Some(origin) => by_origin.entry(origin).or_default().push(at),
                None => self.failed([(at, "no peer that holds it can be asked")]),
            }
        }
        by_origin.into_iter().for_each(|(origin, of)| self.read(origin, of));
    }

    /// Whom of these peers to ask; those that cannot be asked count as failed.
    fn pick_peer(&mut self, at: usize, addresses: Vec<String>) -> Option<Origin> {
        let failed = &self.items[at].failed_peers;
        let (usable, others): (Vec<_>, Vec<_>) = addresses
            .into_iter()
            .filter(|address| !failed.contains(address))
            .partition(|address| self.is_usable(address));
        let picked = pick(&self.items[at].want.digest, usable.iter());
        self.items[at].failed_peers.extend(others);
        picked
    }

    fn read(&mut self, origin: Origin, of: Vec<usize>) {
        if let Origin::Holders(holders) = &origin {
            return of.into_iter().for_each(|at| self.read_large(holders.clone(), at));
        }
        let client = match &origin {
            Origin::Peer(address) => self.source.peers.blobs(address, Instant::now()),
            _ => Some(self.source.coordinator.blobs()),
        };
        let Some(client) = client else {
            return self.failed(of.into_iter().map(|at| (at, "the peer is avoided")));
        };
        let digests: Vec<_> = of.iter().map(|at| self.items[*at].want.digest).collect();
        let (store, silence) = (self.store.clone(), self.source.silence);
        let reading = Reading::new(client, digests, origin.read_place(), store, silence);
        let progress = stream::unfold(reading, |mut reading| async {
            reading.next().await.map(|progress| (progress, reading))
        });
        let step = move |progress| match progress {
            Progress::Arrived(arrived) => {
                let result = |arrival: Arrival| (of[arrival.index], arrival.result);
                Step::Arrived(origin.clone(), arrived.into_iter().map(result).collect())
            }
            Progress::Broke { left, why } => {
                Step::Broke(origin.clone(), left.into_iter().map(|index| of[index]).collect(), why)
            }
        };
        self.steps.push(progress.map(step).boxed());
    }

    fn read_large(&mut self, holders: Vec<String>, at: usize) {
        let want = self.items[at].want.clone();
        let (source, store) = (self.source, self.store.clone());
        let read = async move {
            let flight = source.under_way.flight(&want.digest);
            let (peers, silence) = (&source.peers, source.silence);
            let result = large::read(&want, &holders, store, peers, silence, &flight).await;
            Step::Arrived(Origin::Holders(holders), vec![(at, result)])
        };
        self.steps.push(stream::once(read).boxed());
    }

    /// Answers for what has arrived, and tells those who wait for it.
    async fn arrived(&mut self, origin: &Origin, arrived: Vec<(usize, Result<(), ReceiveError>)>) {
        let mut held = Vec::new();
        let mut failed = Vec::new();
        let mut busy = Vec::new();
        for (at, result) in arrived {
            let want = &self.items[at].want;
            let digest = want.digest;
            match result {
                Ok(()) => {
                    if origin.is_worker() {
                        want.hint.inputs.count_from_peers(digest.size_bytes());
                    }
                    if matches!(origin, Origin::Client(_) | Origin::Answer) {
                        want.hint.inputs.prefetched.came_from_client(&digest);
                    }
                    if want.hint.place == Place::Source && *origin != Origin::Coordinator {
                        held.push(digest);
                    }
                    self.answers.answer(&digest, Ok(()));
                }
                Err(ReceiveError::Store(error)) if !is_senders_fault(&error) => {
                    let source = Arc::new(error);
                    self.answers.answer(&digest, Err(FetchError::Store { digest, source }));
                }
                // The same ones are asked again, but for the last time, when others are.
                Err(error @ ReceiveError::Busy)
                    if self.items[at].located + 1 < want.hint.need.rounds() =>
                {
                    busy.push((at, error.to_string()));
                }
                Err(error) => {
                    if let (ReceiveError::Store(_), Origin::Peer(address)) = (&error, origin) {
                        self.distrust(address);
                    }
                    failed.push((at, error.to_string()));
                }
            }
        }
        self.failed_at(origin, failed.iter().map(|(at, why)| (*at, &**why)));
        self.failed(busy.iter().map(|(at, why)| (*at, &**why)));
        if !held.is_empty() {
            // At once: others may wait for these.
            let digests = held.into_iter().map(Into::into).collect();
            let outbox = &self.source.outbox;
            outbox.send(outbox.epoch(), Body::BlobsHeld(wire::BlobsHeld { digests })).await;
        }
    }

    fn broke(&mut self, origin: &Origin, left: Vec<usize>, why: &str) {
        if let Origin::Peer(address) = origin {
            self.distrust(address);
        }
        self.failed_at(origin, left.into_iter().map(|at| (at, why)));
    }

    fn distrust(&self, address: &str) {
        tracing::warn!(peer.address = address, "a peer failed and is avoided for a while");
        self.source.peers.avoid(address, Instant::now());
    }

    fn failed_at<'w>(&mut self, origin: &Origin, blobs: impl Iterator<Item = (usize, &'w str)>) {
        let blobs: Vec<_> = blobs.collect();
        let asked = match origin {
            Origin::Peer(address) => std::slice::from_ref(address),
            Origin::Holders(addresses) => addresses,
            _ => &[],
        };
        for (at, _) in &blobs {
            self.items[*at].failed_peers.extend_from_slice(asked);
        }
        self.failed(blobs);
    }

    /// Blobs that did not come are located again after a pause, or given up.
    fn failed<'w>(&mut self, blobs: impl IntoIterator<Item = (usize, &'w str)>) {
        let mut again: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, why) in blobs {
            let item = &self.items[at];
            if item.located < item.want.hint.need.rounds() {
                again.entry(item.located).or_default().push(at);
            } else {
                self.answer_failed(at, FetchProblem::Failed(why.to_owned()));
            }
        }
        for (located, of) in again {
            let outbox = &self.source.outbox;
            let pause = async move {
                // What was only guessed is asked for at once.
                if located > 0 {
                    tokio::time::sleep(BETWEEN_ROUNDS * located).await;
                    // A coordinator that is being started again answers later. How long that may take, the
                    // deadline of the call bounds.
                    outbox.until_connected().await;
                }
                Step::Again(of)
            };
            self.steps.push(stream::once(pause).boxed());
        }
    }

    fn answer_failed(&self, at: usize, problem: FetchProblem) {
        let digest = self.items[at].want.digest;
        let source = Arc::new(problem);
        self.answers.answer(&digest, Err(FetchError::Source { digest, source }));
    }
}

/// The first of these peers, or all if there is work for more than one.
fn pick<'p>(digest: &Digest, mut usable: impl Iterator<Item = &'p String>) -> Option<Origin> {
    if digest.size_bytes() <= LARGE_BYTES {
        return usable.next().cloned().map(Origin::Peer);
    }
    let holders: Vec<_> = usable.cloned().collect();
    (!holders.is_empty()).then_some(Origin::Holders(holders))
}

/// Whether other bytes came than the digest says, and not our disk failed.
fn is_senders_fault(error: &StoreError) -> bool {
    matches!(error, StoreError::Mismatch { .. } | StoreError::TooLong { .. })
}
