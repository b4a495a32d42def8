//! How a worker runs: what it offers, where it keeps its state, and every limit by name.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distbuild_cas::{FillerConfig, StoreConfig};
use distbuild_proto::Address;

use crate::error::WorkerError;
use crate::sandbox::{JobUser, RootAt};

/// The user and group that jobs run as when the worker is root: in the range that systemd leaves
/// unused, and below 65536, so that it exists in containers that map no more users than that.
const JOB_ID: u32 = 61_000;

/// A worker's configuration.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// The coordinator to dial.
    pub coordinator: Address,
    /// Name in reports; not empty.
    pub name: String,
    /// Directory of the store and of running actions; made if missing. Several embedded workers may
    /// share one.
    pub state: PathBuf,
    /// What the worker offers: thousandths of a core.
    pub milli_cores: u32,
    /// What the worker offers: memory in bytes.
    pub memory_bytes: u64,
    /// Platform properties beside `os`, `arch`, `toolchain` and `input-root`, which the worker adds itself unless they
    /// are given.
    pub properties: BTreeMap<String, String>,
    /// Where peers reach this worker's blobs; none: only through the coordinator.
    pub peer_listen: Option<Address>,
    /// Address that peers are told instead of the one listened at: for hosts behind a translation.
    pub peer_advertise: Option<Address>,
    /// Connections without encryption may leave this machine.
    pub insecure_network: bool,
    /// Inputs are fetched before they are needed, as far as it is known what will be.
    pub prefetch: bool,
    /// No other exclusive worker may use the state directory.
    pub exclusive: bool,
    /// The program that becomes the helper process when it is started with
    /// [`HELPER_COMMAND`](crate::HELPER_COMMAND).
    pub helper_program: PathBuf,
    /// As whom jobs run if the worker is root; an ordinary user's jobs run as that user.
    pub job_user: JobUser,
    /// The store; its root is `<state>/store` unless changed.
    pub store: StoreConfig,
    /// Where actions see an input root that they may change: those that came through the Remote Execution API.
    pub input_root_at: RootAt,
    /// The limits.
    pub limits: Limits,
}

impl WorkerConfig {
    /// A worker with the defaults: all processors and three quarters of the memory of this machine, no
    /// peers, not exclusive.
    pub fn new(coordinator: Address, name: impl Into<String>, state: impl Into<PathBuf>) -> Self {
        let state = state.into();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            coordinator,
            name: name.into(),
            milli_cores: u32::try_from(cores * 1000).unwrap_or(u32::MAX),
            memory_bytes: memory_bytes().unwrap_or(1 << 30) / 4 * 3,
            properties: BTreeMap::new(),
            peer_listen: None,
            peer_advertise: None,
            insecure_network: false,
            prefetch: true,
            exclusive: false,
            helper_program: PathBuf::from("/proc/self/exe"),
            job_user: JobUser { uid: JOB_ID, gid: JOB_ID },
            store: StoreConfig::new(state.join("store")),
            state,
            input_root_at: RootAt::default(),
            limits: Limits::default(),
        }
    }

    /// Makes the state directory, and its path and the store's good in every process and namespace.
    pub(crate) fn make_absolute(&mut self) -> Result<(), WorkerError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| WorkerError::State { operation, path, source }
        };
        let root = &mut self.store.root;
        *root = std::path::absolute(&root).map_err(failed("find", root))?;
        let in_state = std::path::absolute(&self.state)
            .ok()
            .and_then(|state| root.strip_prefix(state).map(Path::to_owned).ok());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.state)
            .map_err(failed("make", &self.state))?;
        self.state = self.state.canonicalize().map_err(failed("find", &self.state))?;
        if let Some(rest) = in_state {
            *root = self.state.join(rest);
        }
        Ok(())
    }
}

/// Memory of this machine in bytes.
fn memory_bytes() -> Option<u64> {
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Limits and waits.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Attempts at once, far above what the scheduler assigns; more are rejected. Default 1024.
    pub max_attempts: usize,
    /// Bytes of a stream that travel in the result; more become a blob. Default 1 MiB.
    pub inline_output_bytes: usize,
    /// Most that an action may write to stdout, or to stderr, before it fails. Default 1 GiB.
    pub max_output_bytes: u64,
    /// How long all fetches of one action may stop its clock together. Default 30 min.
    pub fetch_wait: Duration,
    /// How long one blob may take to arrive, whatever is tried. Default 110 s: below the file system's
    /// own limit, so that the reason is known.
    pub blob_deadline: Duration,
    /// How long a killed action may take to be gone. Default 30 s.
    pub kill: Duration,
    /// How long the helper processes may take to serve. Default 30 s.
    pub helper_start: Duration,
    /// How long the helper processes may take to end by themselves. Default 10 s.
    pub helper_end: Duration,
    /// How long after its start a worker begins to index its store. Default 3 s.
    pub scan_after: Duration,
    /// How long after a look at the host's toolchain a running worker looks again; a look takes milliseconds
    /// if nothing has changed. Default 10 s.
    pub toolchain_check: Duration,
    /// How long a draining worker stays for the outputs that only it holds. Default 10 min.
    pub drain: Duration,
    /// How long the coordinator may take to welcome. Default 10 s.
    pub welcome: Duration,
    /// Longest pause between two dials; the first is a sixty-fourth of it. Default 3 s.
    pub max_backoff: Duration,
    /// Silence after which a peer's or the coordinator's bytes are given up. Default 30 s.
    pub silence: Duration,
    /// How long a peer that failed is not asked. Default 30 s.
    pub avoid_peer: Duration,
    /// Connections to peers that are kept. Default 64.
    pub max_peers: usize,
    /// Streams that this worker serves to peers at once, and deliveries through the coordinator.
    /// Default 32 each.
    pub max_serving: usize,
    /// Most that is fetched for one attempt before it is needed. Default 256 MiB.
    pub prefetch_bytes: u64,
    /// How fetches are batched.
    pub filler: FillerConfig,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_attempts: 1024,
            inline_output_bytes: 1 << 20,
            max_output_bytes: 1 << 30,
            fetch_wait: Duration::from_secs(1800),
            blob_deadline: Duration::from_secs(110),
            kill: Duration::from_secs(30),
            helper_start: Duration::from_secs(30),
            helper_end: Duration::from_secs(10),
            scan_after: Duration::from_secs(3),
            toolchain_check: Duration::from_secs(10),
            drain: Duration::from_secs(600),
            welcome: Duration::from_secs(10),
            max_backoff: Duration::from_secs(3),
            silence: Duration::from_secs(30),
            avoid_peer: Duration::from_secs(30),
            max_peers: 64,
            max_serving: 32,
            prefetch_bytes: 256 << 20,
            filler: FillerConfig {
                call_deadline: Duration::from_secs(60),
                // More than there is room for at once: which is next, the actions' turns decide.
                large_calls: 64,
                ..FillerConfig::default()
            },
        }
    }
}
