//! `Filler`: the near store, filled from far by whoever misses a blob.
//!
//! Model: a *flight* is a blob on its way; whoever wants it meanwhile waits for the same flight.
//! Flights wait in one of two lanes. In the lane of small blobs a miss goes out at once while few
//! calls are under way, and otherwise waits and goes together with the others that wait, so
//! batches grow with the load and cost no latency without it. A large blob is a call of its own,
//! in a lane of its own, so that it never holds up small ones.
//!
//! What is fetched ahead of its need waits in a third lane, with few and small calls of its own: it takes no
//! call from what is waited for. A flight that comes to be waited for leaves that lane for the one where it
//! belongs; if it is under way by then, its failure says nothing yet, since a source may do less for what
//! nobody waits for.
//!
//! Whoever wants much shares the calls with whoever wants little: in a lane, groups of wants (the actions) take
//! turns, and the last places of the queue are for groups that have few in it.
//!
//! Every blob is answered when it has come, not when its call ends. A blob that somebody else fetches takes no
//! part in the limit of its lane while it waits, so it holds up nobody.
//!
//! Every call has a deadline, every lane has a limit, and so has the queue. A waiter that goes
//! away takes nothing from the others; a flight that nobody waits for any more is not begun, and that of
//! a large blob ends.
//! Nothing is tried twice: a source knows better than this module what is worth a second try.

mod call;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use distbuild_proto::Digest;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::disk::DiskStore;
use crate::error::FetchError;
use crate::turns::Turns;

use call::OpenCall;

/// A blob that is wanted in the near store.
#[derive(Clone, Debug)]
pub struct Want<H> {
    /// Which blob.
    pub digest: Digest,
    /// In which variant it is best stored; the other one can be made from it.
    pub executable: bool,
    /// Who may have it; passed to the source as it is.
    pub hint: H,
}

/// Where blobs come from.
pub trait Source: Send + Sync + 'static {
    /// What the source wants to know of a blob beside its digest.
    type Hint: Clone + Send + 'static;

    /// For whom a blob is wanted: groups share the calls equally, whatever each of them wants.
    fn group(&self, _hint: &Self::Hint) -> u64 {
        0
    }

    /// Fetches these blobs into the store and answers for each as soon as it can; a blob without an answer at
    /// the end counts as abandoned. Dropped at its deadline.
    fn fetch(
        &self,
        wants: Vec<Want<Self::Hint>>,
        store: &DiskStore,
        answers: Answers,
    ) -> impl Future<Output = ()> + Send;
}

impl<S: Source> Source for Arc<S> {
    type Hint = S::Hint;

    fn group(&self, hint: &Self::Hint) -> u64 {
        S::group(self, hint)
    }

    fn fetch(
        &self,
        wants: Vec<Want<Self::Hint>>,
        store: &DiskStore,
        answers: Answers,
    ) -> impl Future<Output = ()> + Send {
        S::fetch(self, wants, store, answers)
    }
}

/// Takes the answers of one call of a [`Source`]. Clones are one; what comes after the end of the call is
/// of no account.
#[derive(Clone)]
pub struct Answers {
    call: Arc<dyn TakesAnswers>,
}

impl Answers {
    /// Says of one blob that it is in the store, or why it cannot be had. The first answer counts.
    pub fn answer(&self, digest: &Digest, outcome: Result<(), FetchError>) {
        self.call.answer(digest, outcome);
    }

    /// Says of one blob that somebody else fetches it, and the source waits for that: others may go meanwhile.
    pub fn waits(&self, digest: &Digest) {
        self.call.waits(digest);
    }
}

trait TakesAnswers: Send + Sync {
    fn answer(&self, digest: &Digest, outcome: Result<(), FetchError>);
    fn waits(&self, digest: &Digest);
}

/// The limits of a [`Filler`].
#[derive(Clone, Debug)]
pub struct FillerConfig {
    /// Calls for small blobs under way at once.
    pub small_calls: usize,
    /// Calls for large blobs under way at once.
    pub large_calls: usize,
    /// Blobs in one call.
    pub batch_blobs: usize,
    /// Bytes in one call; a blob larger than this is a large one.
    pub batch_bytes: u64,
    /// Blobs that wait for their call or for somebody else who fetches them, and as many that wait to be
    /// fetched ahead. The last eighth is for groups that have less than so much themselves.
    pub max_queued: usize,
    /// Calls for what is fetched ahead under way at once.
    pub ahead_calls: usize,
    /// Bytes in one such call, if it holds more than one blob: what may lie before an urgent blob on a narrow
    /// link.
    pub ahead_bytes: u64,
    /// How long a call may take, whatever its size.
    pub call_deadline: Duration,
    /// A call may take longer than that by its bytes at this speed, in bytes a second.
    pub slowest_bytes_per_second: u64,
}

impl Default for FillerConfig {
    fn default() -> Self {
        Self {
            small_calls: 8,
            large_calls: 4,
            batch_blobs: 512,
            batch_bytes: 4 << 20,
            max_queued: 65_536,
            ahead_calls: 2,
            ahead_bytes: 1 << 20,
            call_deadline: Duration::from_secs(30),
            slowest_bytes_per_second: 256 << 10,
        }
    }
}

/// Fills a near store from a source. Cheap to clone.
pub struct Filler<S: Source> {
    shared: Arc<Shared<S>>,
}

impl<S: Source> Clone for Filler<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

struct Shared<S: Source> {
    store: DiskStore,
    source: S,
    config: FillerConfig,
    state: Mutex<State<S::Hint>>,
}

type Outcome = Option<Result<(), FetchError>>;

struct State<H> {
    /// Every blob that waits or is on its way.
    flights: HashMap<Digest, Flight>,
    small: Queue<H>,
    large: Queue<H>,
    ahead: Queue<H>,
    /// Blobs under way that somebody else fetches.
    elsewhere: usize,
}

/// Where a flight waits for its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Small,
    Large,
    Ahead,
}

struct Flight {
    lane: Lane,
    under_way: bool,
    outcome: watch::Sender<Outcome>,
}

/// The wants of a lane. One whose flight has ended, or has left for another lane, is
/// left out when its turn comes.
struct Queue<H> {
    waiting: Turns<Want<H>>,
    /// Those under way that have a blob which nobody else fetches.
    calls: usize,
}

/// Limits of a lane.
struct LaneLimits {
    calls: usize,
    blobs: usize,
    bytes: u64,
}

impl<H> Default for Queue<H> {
    fn default() -> Self {
        Self { waiting: Turns::default(), calls: 0 }
    }
}

impl<H> State<H> {
    fn queue(&mut self, lane: Lane) -> &mut Queue<H> {
        match lane {
            Lane::Small => &mut self.small,
            Lane::Large => &mut self.large,
            Lane::Ahead => &mut self.ahead,
        }
    }

    /// Blobs that somebody waits for and whose call has not begun, or stands.
    fn queued(&self) -> usize {
        self.small.waiting.len() + self.large.waiting.len() + self.elsewhere
    }
}

/// A blob that is fetched ahead of its need. If this is dropped before its call has begun, it is not fetched.
#[derive(Debug)]
pub struct Ahead {
    digest: Digest,
    outcome: watch::Receiver<Outcome>,
}

impl Ahead {
    /// Which blob.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns when it is known whether the blob has come.
    pub async fn landed(&mut self) -> bool {
        self.outcome.wait_for(Option::is_some).await.is_ok_and(|outcome| is_landed(&outcome))
    }

    /// Whether the blob has come.
    pub fn has_landed(&self) -> bool {
        is_landed(&self.outcome.borrow())
    }
}

fn is_landed(outcome: &Outcome) -> bool {
    matches!(outcome, Some(Ok(())))
}

impl<S: Source> Filler<S> {
    /// A filler of `store`.
    pub fn new(store: DiskStore, source: S, config: FillerConfig) -> Self {
        let state = State {
            flights: HashMap::new(),
            small: Queue::default(),
            large: Queue::default(),
            ahead: Queue::default(),
            elsewhere: 0,
        };
        Self { shared: Arc::new(Shared { store, source, config, state: Mutex::new(state) }) }
    }

    /// The near store.
    pub fn store(&self) -> &DiskStore {
        &self.shared.store
    }

    /// Where blobs come from.
    pub fn source(&self) -> &S {
        &self.shared.source
    }

    /// Returns when the near store holds the blob; its bytes are compared with the digest on their
    /// way in. Whoever needs it to stay [leases](DiskStore::lease) it before. Runs on a tokio
    /// runtime; may be dropped at any time.
    ///
    /// # Errors
    /// Why it could not be fetched.
    pub async fn ensure(&self, want: Want<S::Hint>) -> Result<(), FetchError> {
        let digest = want.digest;
        loop {
            if self.shared.store.contains(&digest) {
                return Ok(());
            }
            let (mut flight, ahead) = self.shared.join(want.clone())?;
            let outcome = match flight.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone().unwrap_or(Err(FetchError::Abandoned(digest))),
                Err(_) => Err(FetchError::Abandoned(digest)),
            };
            // Nobody waited when that call was made: now somebody does.
            if outcome.is_ok() || !ahead {
                return outcome;
            }
        }
    }

    /// Begins to bring blobs that nobody waits for yet, after all that somebody waits for. Gives those that are
    /// brought because of this call: not what is there or on its way, nor what finds no room. Runs on a tokio
    /// runtime.
    pub fn fetch_ahead(&self, wants: Vec<Want<S::Hint>>) -> Vec<Ahead> {
        let begun = self.shared.enter_ahead(wants);
        self.shared.depart(Lane::Ahead);
        begun
    }

    /// Whether a blob is on its way, not waiting for its call.
    pub fn is_under_way(&self, digest: &Digest) -> bool {
        self.shared.state.lock().flights.get(digest).is_some_and(|flight| flight.under_way)
    }

    /// How many blobs wait or are on their way.
    pub fn in_flight(&self) -> usize {
        self.shared.state.lock().flights.len()
    }
}

impl<S: Source> Shared<S> {
    /// The flight of a blob, begun if there is none; and whether its call was made ahead of the need.
    fn join(
        self: &Arc<Self>,
        want: Want<S::Hint>,
    ) -> Result<(watch::Receiver<Outcome>, bool), FetchError> {
        let small = want.digest.size_bytes() <= self.config.batch_bytes;
        let lane = if small { Lane::Small } else { Lane::Large };
        let group = self.source.group(&want.hint);
        let receiver = {
            let mut state = self.state.lock();
            let queued = state.queued();
            let full = self.is_full(queued, state.queue(lane).waiting.len_of(group));
            let receiver = match state.flights.get_mut(&want.digest) {
                Some(flight) if flight.lane != Lane::Ahead || flight.under_way => {
                    return Ok((flight.outcome.subscribe(), flight.lane == Lane::Ahead));
                }
                _ if full => return Err(FetchError::Overloaded(queued)),
                Some(flight) => {
                    flight.lane = lane;
                    flight.outcome.subscribe()
                }
                None => {
                    let (outcome, receiver) = watch::channel(None);
                    let flight = Flight { lane, under_way: false, outcome };
                    state.flights.insert(want.digest, flight);
                    receiver
                }
            };
            state.queue(lane).waiting.push(group, want);
            receiver
        };
        self.depart(lane);
        Ok((receiver, false))
    }

    /// Flights of blobs that are not there, begun in the lane of what is fetched ahead.
    fn enter_ahead(&self, wants: Vec<Want<S::Hint>>) -> Vec<Ahead> {
        let missing = wants.into_iter().filter(|want| !self.store.contains(&want.digest));
        let missing: Vec<_> = missing.collect();
        let mut state = self.state.lock();
        let mut begun = Vec::new();
        for want in missing {
            let digest = want.digest;
            if state.ahead.waiting.len() >= self.config.max_queued
                || state.flights.contains_key(&digest)
            {
                continue;
            }
            let (outcome, receiver) = watch::channel(None);
            let flight = Flight { lane: Lane::Ahead, under_way: false, outcome };
            state.flights.insert(digest, flight);
            state.ahead.waiting.push(self.source.group(&want.hint), want);
            begun.push(Ahead { digest, outcome: receiver });
        }
        begun
    }

    /// Whether a group that has so many of the blobs queued has to do without another one.
    fn is_full(&self, queued: usize, of_group: usize) -> bool {
        let limit = self.config.max_queued;
        let share = limit / 8;
        queued >= limit || queued >= limit - share && of_group >= share
    }

    /// Begins as many calls of a lane as it has room for. The state is not locked while a call is
    /// spawned: a runtime that shuts down drops the call at once, and that takes the lock.
    fn depart(self: &Arc<Self>, lane: Lane) {
        while let Some(batch) = self.next_batch(lane) {
            let call = OpenCall::new(self.clone(), lane, &batch);
            tokio::spawn(call.run(batch));
        }
    }

    /// What goes out next, if the lane has room for a call; the call counts from here on.
    fn next_batch(&self, lane: Lane) -> Option<Vec<Want<S::Hint>>> {
        let mut state = self.state.lock();
        let limits = self.limits(lane);
        if state.queue(lane).calls >= limits.calls.max(1) {
            return None;
        }
        let batch = take_batch(&mut state, lane, &limits);
        if batch.is_empty() {
            return None;
        }
        state.queue(lane).calls += 1;
        Some(batch)
    }

    fn limits(&self, lane: Lane) -> LaneLimits {
        let config = &self.config;
        let (calls, blobs, bytes) = match lane {
            Lane::Small => (config.small_calls, config.batch_blobs, config.batch_bytes),
            Lane::Large => (config.large_calls, 1, config.batch_bytes),
            Lane::Ahead => (config.ahead_calls, config.batch_blobs, config.ahead_bytes),
        };
        LaneLimits { calls, blobs, bytes }
    }

    fn deadline(&self, wants: &[Want<S::Hint>]) -> Duration {
        let bytes: u64 = wants.iter().map(|want| want.digest.size_bytes()).sum();
        let seconds = bytes / self.config.slowest_bytes_per_second.max(1);
        self.config.call_deadline.saturating_add(Duration::from_secs(seconds))
    }
}

/// From each group in turn, in the order of arrival, leaving out what nobody waits for any more.
fn take_batch<H>(state: &mut State<H>, lane: Lane, limits: &LaneLimits) -> Vec<Want<H>> {
    let mut batch = Vec::new();
    let mut bytes = 0u64;
    while let Some((group, want)) = state.queue(lane).waiting.pop() {
        let Some(flight) = state.flights.get_mut(&want.digest) else { continue };
        if flight.lane != lane || flight.under_way {
            continue;
        }
        if flight.outcome.is_closed() {
            state.flights.remove(&want.digest);
            continue;
        }
        bytes = bytes.saturating_add(want.digest.size_bytes());
        if !batch.is_empty() && (batch.len() >= limits.blobs || bytes > limits.bytes) {
            state.queue(lane).waiting.put_back(group, want);
            break;
        }
        flight.under_way = true;
        batch.push(want);
    }
    batch
}
