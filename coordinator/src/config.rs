//! Every limit of the coordinator, by name, with its default.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use distbuild_proto::Address;

/// How a coordinator runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients and workers reach it.
    pub listen: Address,
    /// Directory for the state database and the coordinator's own blobs; made if missing.
    pub state: PathBuf,
    /// No other exclusive coordinator may use the state directory.
    pub exclusive: bool,
    /// Whose results clients of the Remote Execution API may write. Default none: who can write a result decides
    /// what others get for their actions.
    pub writable_instances: WritableInstances,
    /// The limits.
    pub limits: Limits,
}

/// Instances of the Remote Execution API whose results clients may write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WritableInstances {
    all: bool,
    names: BTreeSet<String>,
}

impl WritableInstances {
    /// The name that stands for every instance.
    pub const ALL: &'static str = "*";

    /// Whether clients may write results of this instance.
    pub fn contains(&self, instance: &str) -> bool {
        self.all || self.names.contains(instance)
    }
}

impl FromIterator<String> for WritableInstances {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let names: BTreeSet<_> = names.into_iter().collect();
        Self { all: names.contains(Self::ALL), names }
    }
}

/// Limits and waits.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Silence after which a worker's session ends. Default 30 s.
    pub lease: Duration,
    /// How long a worker whose connection broke may take to come back. Default 10 s.
    pub reconnect: Duration,
    /// How long after a start submissions wait for the workers that were connected before it: what they hold and
    /// run is known when they are back. A worker that comes later begins anew. Default 15 s.
    pub recovery: Duration,
    /// How long a build goes on whose client's connection broke, and how long after a start a build that was
    /// running is remembered for its client, and an attempt for its build. Default 30 s.
    pub client_reconnect: Duration,
    /// Events of one build on their way to a client that may come back, which it has not said to have taken in;
    /// the next ones wait. Default 65 536.
    pub max_unheard_events: usize,
    /// How long a submission waits while no worker has ever registered. Default 10 min.
    pub first_worker: Duration,
    /// How long a worker may take to say whether it holds trees; then they count as missing.
    /// Default 10 s.
    pub tree_check: Duration,
    /// Directories of the sources of all running builds, in memory. Default 2 GiB.
    pub max_metadata_bytes: u64,
    /// Blobs in the coordinator's own store (`--upload`). Default 20 GiB.
    pub max_store_bytes: u64,
    /// Source blobs whose holders are remembered. Default 500 000.
    pub max_located: usize,
    /// How long one worker may take to fetch a blob from a client before another may. Default 10 s,
    /// and longer for large blobs.
    pub grant: Duration,
    /// Builds of native clients at a time. Default 1000.
    pub max_builds: usize,
    /// Executions of the Remote Execution API that are queued or run at a time. Default 10 000.
    pub max_executions: usize,
    /// How long an execution of the Remote Execution API goes on that nobody watches. Default 60 s.
    pub unwatched_execution: Duration,
    /// Messages for one worker that wait, while it is connected and while it is not. Default 4096.
    pub max_worker_backlog: usize,
    /// Time limit of a job that names none. Default 1 h.
    pub job_timeout: Duration,
    /// Longest time limit that a job may name. Default 24 h.
    pub max_job_timeout: Duration,
    /// The scheduler's own.
    pub scheduler: distbuild_sched::Config,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            reconnect: Duration::from_secs(10),
            recovery: Duration::from_secs(15),
            client_reconnect: Duration::from_secs(30),
            max_unheard_events: 65_536,
            first_worker: Duration::from_secs(600),
            tree_check: Duration::from_secs(10),
            max_metadata_bytes: 2 << 30,
            max_store_bytes: 20 << 30,
            max_located: 500_000,
            grant: Duration::from_secs(10),
            max_builds: 1000,
            max_executions: 10_000,
            unwatched_execution: Duration::from_secs(60),
            max_worker_backlog: 4096,
            job_timeout: Duration::from_secs(3600),
            max_job_timeout: Duration::from_secs(24 * 3600),
            scheduler: distbuild_sched::Config::default(),
        }
    }
}
