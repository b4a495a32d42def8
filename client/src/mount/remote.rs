//! What a coordinator knows, and what its workers hold.
//!
//! Contents go into a store on this machine, which bounds them; they are asked for once. A coordinator
//! is asked by hash *and* size, so a hash alone leads somewhere only after this mount has met the
//! blob in a directory, or has fetched it.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::{DiskStore, FetchError, Filler, FillerConfig, Lease};
use distbuild_fs::contents::{BlobKey, Done};
use distbuild_fs::inspect::Unknown;
use distbuild_fs::{Contents, ViewId, Want, WantError};
use distbuild_proto::transport::MAX_MESSAGE_BYTES;
use distbuild_proto::wire::builds_client::BuildsClient;
use distbuild_proto::{Digest, DigestFunction, wire};
use futures::stream::{self, StreamExt, TryStreamExt};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::holdings::{Complaints, Held, Holdings, MAX_LISTED};
use super::records::{JobId, Records};
use super::stores::find_in;
use crate::build::deliver::with_causes;
use crate::build::fetch::Outputs;

/// How long the coordinator may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Results in one listing: each comes whole.
const LISTED_JOBS: u32 = 1000;
/// Builds in one listing: each comes with the ids of all its jobs.
const LISTED_BUILDS: u32 = 64;
/// Calls under way at once for one question.
const CALLS_AT_ONCE: usize = 32;
/// Names of jobs that are remembered.
const NAMES: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();
/// Builds that have ended, and are remembered.
const BUILDS: NonZeroUsize = NonZeroUsize::new(16).unwrap();
/// Blobs whose sizes are remembered.
const MET: NonZeroUsize = NonZeroUsize::new(4 * MAX_LISTED).unwrap();
/// Blobs that were asked for last and are kept, so that they are still there when they are opened.
const LEASED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Results and builds of a coordinator.
pub(super) struct CoordinatorRecords {
    builds: BuildsClient<Channel>,
    runtime: Handle,
    stop: CancellationToken,
    names: Mutex<LruCache<JobId, String>>,
    ended: Mutex<LruCache<String, wire::FinishedBuild>>,
}

impl CoordinatorRecords {
    /// Calls fail at once when `stop` is cancelled. Made on the runtime that the calls will run on; they
    /// are made from other threads.
    pub(super) fn new(channel: Channel, stop: CancellationToken) -> Self {
        Self {
            builds: BuildsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
            runtime: Handle::current(),
            stop,
            names: Mutex::new(LruCache::new(NAMES)),
            ended: Mutex::new(LruCache::new(BUILDS)),
        }
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Unknown> {
        // The timer is made where there is a runtime, and this thread has none.
        let within = async { tokio::time::timeout(DEADLINE, answer).await };
        match self.runtime.block_on(self.stop.run_until_cancelled(within)) {
            Some(Ok(Ok(answer))) => Ok(answer),
            Some(Ok(Err(status))) => {
                Err(Unknown(format!("the coordinator does not answer: {}", status.message())))
            }
            Some(Err(_)) => {
                Err(Unknown(format!("the coordinator was silent for {} s", DEADLINE.as_secs())))
            }
            None => Err(Unknown("the mount is ending".to_owned())),
        }
    }

    async fn get(&self, id: &JobId) -> Result<Option<wire::NamedResult>, Status> {
        let request = wire::GetResultRequest { job_id: id.to_vec().into() };
        let answer = self.builds.clone().get_result(request).await.map(Response::into_inner);
        match answer {
            Ok(answer) => {
                if let Some(named) = &answer.result {
                    self.names.lock().put(*id, named.name.clone());
                }
                Ok(answer.result)
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    async fn name(&self, id: &JobId) -> Result<Option<String>, Status> {
        let known = self.names.lock().get(id).cloned();
        match known {
            Some(name) => Ok(Some(name)),
            None => Ok(self.get(id).await?.map(|named| named.name)),
        }
    }

    fn list_builds(&self) -> Result<Vec<wire::FinishedBuild>, Unknown> {
        let mut client = self.builds.clone();
        let request = wire::ListBuildsRequest { limit: LISTED_BUILDS };
        Ok(self.wait(client.list_builds(request))?.into_inner().builds)
    }
}

impl Records for CoordinatorRecords {
    fn result(&self, id: &JobId) -> Result<Option<wire::NamedResult>, Unknown> {
        self.wait(self.get(id))
    }

    fn job_ids(&self) -> Result<Vec<JobId>, Unknown> {
        let mut client = self.builds.clone();
        let request = wire::ListResultsRequest { limit: LISTED_JOBS };
        let results = self.wait(client.list_results(request))?.into_inner().results;
        Ok(results.into_iter().filter_map(|named| named.job_id[..].try_into().ok()).collect())
    }

    fn job_names(&self, ids: &[JobId]) -> Result<Vec<Option<String>>, Unknown> {
        let names = stream::iter(ids).map(|id| self.name(id)).buffered(CALLS_AT_ONCE);
        self.wait(names.try_collect())
    }

    fn build(&self, id: &str) -> Result<Option<wire::FinishedBuild>, Unknown> {
        if let Some(known) = self.ended.lock().get(id) {
            return Ok(Some(known.clone()));
        }
        let is_it = |build: &wire::FinishedBuild| {
            build.summary.as_ref().is_some_and(|summary| summary.build_id == id)
        };
        let found = self.list_builds()?.into_iter().find(is_it);
        if let Some(build) = &found
            && build.summary.as_ref().is_some_and(|summary| summary.finished)
        {
            self.ended.lock().put(id.to_owned(), build.clone());
        }
        Ok(found)
    }

    fn build_ids(&self) -> Result<Vec<String>, Unknown> {
        let builds = self.list_builds()?;
        Ok(builds.into_iter().filter_map(|build| Some(build.summary?.build_id)).collect())
    }
}

/// Blobs that are fetched through a coordinator.
pub(super) struct RemoteHoldings {
    filler: Filler<Outputs>,
    runtime: Handle,
    met: Mutex<LruCache<Hash, Held>>,
    leases: Mutex<LruCache<Digest, Lease>>,
    complaints: Complaints,
}

/// A hash without the size that belongs to it.
type Hash = (DigestFunction, Box<[u8]>);

impl RemoteHoldings {
    /// Fetches into `store`, on the runtime that this is called on.
    pub(super) fn new(store: DiskStore, channel: Channel) -> Self {
        let source = Outputs::new(channel, Arc::default());
        Self {
            filler: Filler::new(store, source, FillerConfig::default()),
            runtime: Handle::current(),
            met: Mutex::new(LruCache::new(MET)),
            leases: Mutex::new(LruCache::new(LEASED)),
            complaints: Complaints::default(),
        }
    }
}

/// Asks those that hold one of the trees, innermost first.
async fn fetch(filler: &Filler<Outputs>, want: &Want) -> Result<(), FetchError> {
    let digest = want.key.digest;
    let ask = |hint| distbuild_cas::Want { digest, executable: false, hint };
    let mut answer = Err(FetchError::NotFound(digest));
    let anywhere = want.context.within.is_empty().then_some(None);
    for hint in want.context.within.iter().copied().map(Some).chain(anywhere) {
        answer = filler.ensure(ask(hint)).await;
        if !matches!(answer, Err(FetchError::NotFound(_))) {
            break;
        }
    }
    answer
}

impl Contents for RemoteHoldings {
    fn want(&self, want: Want, done: Done) {
        let digest = want.key.digest;
        let lease = self.filler.store().lease(&[digest]);
        let earlier = self.leases.lock().push(digest, lease);
        drop(earlier);
        let filler = self.filler.clone();
        self.runtime.spawn(async move {
            let fetched = fetch(&filler, &want).await;
            done(fetched.map_err(|error| WantError::Refused(with_causes(&error))));
        });
    }

    fn open(&self, _: &Path, key: &BlobKey) -> Result<File, WantError> {
        let opened = self.filler.store().open_bytes(&key.digest);
        opened.map_err(|error| WantError::Read(with_causes(&error)))
    }

    fn read_failed(&self, digest: Digest, _: Vec<ViewId>, why: &WantError) {
        self.complaints.tell(&digest, why);
    }
}

impl Holdings for RemoteHoldings {
    fn find(&self, function: DigestFunction, hash: &[u8]) -> Result<Option<Held>, Unknown> {
        if let Some(held) = self.met.lock().get(&(function, hash.into())) {
            return Ok(Some(held.clone()));
        }
        let nothing = function.digest(b"");
        let stored = match hash == nothing.hash() {
            true => Some(nothing),
            false => find_in(self.filler.store().layout(), function, hash)?,
        };
        Ok(stored.map(|digest| Held { digest, within: Arc::default() }))
    }

    fn hashes(&self, function: DigestFunction) -> Result<Vec<String>, Unknown> {
        let met = self.met.lock();
        let of_function = met.iter().map(|(_, held)| held.digest);
        let of_function = of_function.filter(|digest| digest.function() == function);
        Ok(of_function.take(MAX_LISTED).map(|digest| digest.hex()).collect())
    }

    fn met(&self, digest: Digest, within: &Arc<[Digest]>) {
        let hash = (digest.function(), digest.hash().into());
        let held = || Held { digest, within: Arc::clone(within) };
        self.met.lock().get_or_insert(hash, held);
    }
}
