//! A coordinator and a worker in this process, for builds on this machine alone.
//!
//! They are the very daemons, over a Unix socket in a directory that only this user enters. The worker's
//! state and the coordinator's are kept in the cache directory, which any number of builds may
//! use at once; socket and worker live as long as the build.

use std::path::{Path, PathBuf};
use std::time::Duration;

use distbuild_cas::DiskStore;
use distbuild_coordinator::{Config, Coordinator, Limits};
use distbuild_proto::Address;
use distbuild_worker::{RunningWorker, Worker, WorkerConfig};

use crate::build::deliver::with_causes;
use crate::exit::Failure;
use crate::places::Cache;

/// How long the worker may take to end what it runs.
const WORKER_END: Duration = Duration::from_secs(2);

/// A running pair.
#[derive(Debug)]
pub(crate) struct Embedded {
    worker: RunningWorker,
    coordinator: Coordinator,
    _directory: RuntimeDirectory,
}

impl Embedded {
    /// Starts both; returns when the worker is ready to run jobs.
    ///
    /// # Errors
    /// The cache cannot be used, or this machine cannot run a worker.
    pub(crate) async fn start(cache: &Cache) -> Result<Self, Failure> {
        let directory = RuntimeDirectory::make()?;
        let address = Address::Unix(directory.path.join("socket"));
        let config =
            Config { listen: address, state: cache.coordinator(), limits: Limits::default() };
        let failed = |error: &dyn std::error::Error| Failure::infrastructure(with_causes(error));
        let coordinator = Coordinator::start(config).await.map_err(|error| failed(&error))?;
        let config = WorkerConfig::new(coordinator.address().clone(), "local", cache.worker());
        let worker = Worker::start(config).await.map_err(|error| failed(&error))?;
        Ok(Self { worker, coordinator, _directory: directory })
    }

    /// Where the coordinator is reached.
    pub(crate) fn address(&self) -> &Address {
        self.coordinator.address()
    }

    /// The worker's store.
    pub(crate) fn store(&self) -> DiskStore {
        self.worker.store()
    }

    /// Returns its last words when the worker can run nothing any more.
    pub(crate) async fn failed(&self) -> String {
        self.worker.failed().await
    }

    /// Ends the worker, then the coordinator.
    pub(crate) async fn end(self) {
        if tokio::time::timeout(WORKER_END, self.worker.shutdown()).await.is_err() {
            tracing::warn!("the embedded worker does not end in time");
        }
        self.coordinator.shutdown().await;
    }
}

/// A directory for a socket; removed when dropped.
#[derive(Debug)]
struct RuntimeDirectory {
    path: PathBuf,
}

impl RuntimeDirectory {
    /// Makes a directory that only this user enters. A socket's path is short, so it does not lie in
    /// the cache.
    fn make() -> Result<Self, Failure> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let own = runtime.filter(|path| path.is_absolute() && path.is_dir());
        let parents = own.into_iter().chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
        let mut last = None;
        for parent in parents {
            match nix::unistd::mkdtemp(&parent.join("distbuild-XXXXXX")) {
                Ok(path) => return Ok(Self { path }),
                Err(errno) => last = Some((parent, errno)),
            }
        }
        let (parent, errno) =
            last.unwrap_or((Path::new("/tmp").to_owned(), nix::errno::Errno::ENOENT));
        Err(Failure::infrastructure(format!(
            "failed to make a directory for a socket in {}: {errno}",
            parent.display()
        )))
    }
}

impl Drop for RuntimeDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
