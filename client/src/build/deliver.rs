//! Delivery: the outputs of requested jobs become directories, and what jobs printed becomes readable.
//!
//! A few tasks run at a time, the rest waits in a list as long as the build has jobs. A directory that
//! already holds the outputs is not touched. Nothing here is half done: a directory takes its
//! place whole or not at all, also when the build is cancelled meanwhile.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes};
use distbuild_cas::ingest::{StatCache, TreeMemory};
use distbuild_cas::{Filler, LeaseTreeError, MaterializeError, Want, materialize};
use distbuild_proto::{Digest, wire};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::fetch::{FetchTreeError, Outputs, fetch_tree};
use super::plan::Plan;
use crate::places::{Places, output_name};

/// Tasks at a time.
const AT_ONCE: usize = 16;

/// How often what the coordinator does not give is asked for again, in case its connection has just broken.
const ASKED_AGAIN: u32 = 3;
/// Pause before that.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What is to be done for a job.
#[derive(Clone, Debug)]
pub(crate) enum Errand {
    /// Bring its outputs; some directories of them, or none, have come with the result.
    Deliver { job: u32, tree: Digest, directories: Vec<Bytes> },
    /// Bring what it printed.
    Print { job: u32, result: Box<wire::JobResult> },
}

/// What has become of an errand.
#[derive(Debug)]
pub(crate) enum Done {
    /// The outputs are where they belong.
    Delivered { job: u32 },
    /// Nobody has the outputs.
    Lost { job: u32 },
    /// The outputs cannot be brought.
    Failed { reason: String },
    /// What the job printed, or why it is not known.
    Printed { job: u32, stdout: Result<Content, String>, stderr: Result<Content, String> },
    /// The build was cancelled first.
    Dropped,
}

impl Done {
    /// Whether it may be otherwise with another connection.
    fn went_wrong(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Failed { .. } => true,
            Self::Printed { stdout, stderr, .. } => stdout.is_err() || stderr.is_err(),
            Self::Delivered { .. } | Self::Dropped => false,
        }
    }
}

/// What a job printed to one stream, to be read once.
#[derive(Debug)]
pub(crate) enum Content {
    /// It came with the result.
    Inline(bytes::buf::Reader<Bytes>),
    /// It is in the store, as large as it may be.
    Stored(File),
}

impl Read for Content {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Inline(bytes) => bytes.read(into),
            Self::Stored(file) => file.read(into),
        }
    }
}

impl Content {
    /// The first bytes, without taking them; none if they cannot be read.
    pub(crate) fn head(&self, max_bytes: usize) -> Bytes {
        match self {
            Self::Inline(bytes) => {
                let bytes = bytes.get_ref();
                bytes.slice(..bytes.len().min(max_bytes))
            }
            Self::Stored(file) => {
                let mut head = vec![0; max_bytes];
                let read = file.read_at(&mut head, 0).unwrap_or(0);
                head.truncate(read);
                head.into()
            }
        }
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self::Inline(bytes.reader())
    }
}

/// The errands of one build.
pub(crate) struct Deliveries {
    courier: Courier,
    /// What is in the output directory already, by the job's number.
    existing: HashMap<u32, Digest>,
    waiting: VecDeque<Errand>,
    /// Each with how often the connection had broken when it began.
    running: JoinSet<(Done, Errand, u32)>,
    /// The coordinator is away: nothing begins.
    detached: bool,
    /// How often the connection has broken.
    breaks: u32,
}

#[derive(Clone)]
struct Courier {
    filler: Filler<Outputs>,
    out: Arc<PathBuf>,
    plan: Arc<Plan>,
    stop: CancellationToken,
}

impl Deliveries {
    pub(crate) fn new(filler: Filler<Outputs>, out: PathBuf, plan: Arc<Plan>) -> Self {
        let courier = Courier { filler, out: Arc::new(out), plan, stop: CancellationToken::new() };
        let (existing, waiting, running) = (HashMap::new(), VecDeque::new(), JoinSet::new());
        Self { courier, existing, waiting, running, detached: false, breaks: 0 }
    }

    /// Tells what [`existing`] found.
    pub(crate) fn set_existing(&mut self, existing: HashMap<u32, Digest>) {
        self.existing = existing;
    }

    /// Whether the outputs of a job are in their place already.
    pub(crate) fn is_in_place(&self, job: u32, tree: &Digest) -> bool {
        self.existing.get(&job) == Some(tree)
    }

    pub(crate) fn add(&mut self, errand: Errand) {
        self.waiting.push_back(errand);
        self.start();
    }

    fn start(&mut self) {
        while self.running.len() < AT_ONCE
            && !self.detached
            && let Some(errand) = self.waiting.pop_front()
        {
            let (courier, breaks) = (self.courier.clone(), self.breaks);
            self.running.spawn(async move {
                let done = courier.run(errand.clone()).await;
                (done, errand, breaks)
            });
        }
    }

    /// The connection to the coordinator broke: what goes wrong from here on is done again.
    pub(crate) fn detach(&mut self) {
        self.detached = true;
        self.breaks += 1;
    }

    /// The coordinator is there again.
    pub(crate) fn attach(&mut self) {
        self.detached = false;
        self.start();
    }

    /// Whether nothing is left to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// What has become of the next errand; waits for ever while there is none.
    pub(crate) async fn next(&mut self) -> Done {
        loop {
            match self.running.join_next().await {
                Some(Ok((done, errand, breaks))) => {
                    if breaks != self.breaks && done.went_wrong() {
                        self.waiting.push_back(errand);
                        self.start();
                        continue;
                    }
                    self.start();
                    return done;
                }
                Some(Err(_)) => {
                    self.start();
                    return Done::Dropped;
                }
                None => return std::future::pending().await,
            }
        }
    }

    /// Begins nothing new; what is being written is written to its end.
    pub(crate) fn stop(&mut self) {
        self.waiting.clear();
        self.courier.stop.cancel();
    }
}

impl Courier {
    async fn run(self, errand: Errand) -> Done {
        let stop = self.stop.clone();
        match errand {
            Errand::Deliver { job, tree, directories } => {
                self.deliver(job, tree, directories).await
            }
            Errand::Print { job, result } => {
                stop.run_until_cancelled(self.print(job, *result)).await.unwrap_or(Done::Dropped)
            }
        }
    }

    async fn deliver(&self, job: u32, tree: Digest, directories: Vec<Bytes>) -> Done {
        let failed = |reason: String| {
            let name = self.plan.name(job);
            Done::Failed {
                reason: format!("the outputs of {name:?} cannot be delivered: {reason}"),
            }
        };
        match self.write(job, tree, directories).await {
            Ok(()) => return Done::Delivered { job },
            Err(MaterializeError::Tree(LeaseTreeError::Missing(_))) => {}
            // Found damaged while it was copied, and put aside.
            Err(MaterializeError::Store(error)) if error.is_missing() => {}
            Err(error) => return failed(with_causes(&error)),
        }
        let fetched = asking_again(|| fetch_tree(&self.filler, tree), |error| !error.is_lost());
        match self.stop.run_until_cancelled(fetched).await {
            None => return Done::Dropped,
            Some(Ok(())) => {}
            Some(Err(error)) if error.is_lost() => return Done::Lost { job },
            Some(Err(FetchTreeError::Fetch(error))) => return failed(with_causes(&error)),
            Some(Err(error)) => return failed(error.to_string()),
        }
        match self.write(job, tree, Vec::new()).await {
            Ok(()) => Done::Delivered { job },
            Err(error) => failed(with_causes(&error)),
        }
    }

    /// Writes the directory if the store has all of it, these directories included.
    async fn write(
        &self,
        job: u32,
        tree: Digest,
        directories: Vec<Bytes>,
    ) -> Result<(), MaterializeError> {
        let store = self.filler.store().clone();
        let destination = self.out.join(output_name(self.plan.name(job)));
        let shown = destination.clone();
        let written = tokio::task::spawn_blocking(move || {
            for directory in directories {
                let digest = tree.function().digest(&directory);
                store.insert(&digest, &directory, false).map_err(LeaseTreeError::from)?;
            }
            materialize(&store, &tree, &destination)
        });
        written.await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(MaterializeError::Io { operation: "write", path: shown, source })
        })
    }

    async fn print(&self, job: u32, result: wire::JobResult) -> Done {
        let tree = result.output_root.as_ref().and_then(|root| Digest::try_from(root).ok());
        let stdout = self.content(tree, result.stdout).await;
        let stderr = self.content(tree, result.stderr).await;
        Done::Printed { job, stdout, stderr }
    }

    async fn content(
        &self,
        tree: Option<Digest>,
        content: Option<wire::Content>,
    ) -> Result<Content, String> {
        let Some(wire::Content { inline, blob }) = content else { return Ok(Bytes::new().into()) };
        let Some(blob) = blob else { return Ok(inline.into()) };
        let digest = Digest::try_from(&blob).map_err(|error| error.to_string())?;
        let want = Want { digest, executable: false, hint: tree };
        let ensured = asking_again(|| self.filler.ensure(want.clone()), |_| true).await;
        ensured.map_err(|error| with_causes(&error))?;
        let store = self.filler.store().clone();
        let opened = tokio::task::spawn_blocking(move || store.open_bytes(&digest));
        let opened = opened.await.map_err(|error| error.to_string())?;
        opened.map(Content::Stored).map_err(|error| with_causes(&error))
    }
}

/// Tries again what may fail only because the connection has just broken: so that this is known by then.
async fn asking_again<T, E, F: Future<Output = Result<T, E>>>(
    ask: impl Fn() -> F,
    is_passing: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 0..ASKED_AGAIN {
        match ask().await {
            Err(error) if is_passing(&error) => tokio::time::sleep(ASK_AGAIN).await,
            other => return other,
        }
    }
    ask().await
}

/// The trees that lie in the output directory under the names of requested jobs. Blocks.
pub(crate) fn existing(
    places: &Places,
    plan: &Plan,
    stat_cache: &StatCache,
) -> HashMap<u32, Digest> {
    let folder = places.cache.delivered();
    let mut memory = TreeMemory::open(&folder, &places.out, stat_cache.function());
    let numbers = 0..u32::try_from(plan.len()).unwrap_or(u32::MAX);
    let (jobs, names): (Vec<u32>, Vec<String>) = numbers
        .filter(|job| plan.is_requested(*job))
        .map(|job| (job, output_name(plan.name(job))))
        .unzip();
    let digests = memory.digest_trees(&names, stat_cache, SystemTime::now());
    if let Err(error) = memory.save() {
        tracing::warn!(path = %folder.display(), %error, "outputs in place not remembered");
    }
    jobs.into_iter().zip(digests).filter_map(|(job, digest)| Some((job, digest.ok()?))).collect()
}

/// An error with what caused it.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
