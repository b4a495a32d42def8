//! A coordinator and a worker in this process, for builds on this machine alone.
//!
//! They are the very daemons, over a Unix socket in a directory that only this user enters. The worker's
//! state and the coordinator's are kept in the cache directory, which any number of builds may
//! use at once; socket and worker live as long as the build.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use distbuild_cas::DiskStore;
use distbuild_coordinator::{Config, Coordinator, Limits, WritableInstances};
use distbuild_proto::Address;
use distbuild_worker::{RunningWorker, Worker, WorkerConfig};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use crate::build::deliver::with_causes;
use crate::exit::Failure;
use crate::places::Cache;

/// How long the worker may take to end what it runs.
const WORKER_END: Duration = Duration::from_secs(2);

/// How the names of runtime directories begin.
const PREFIX: &str = "distbuild-";
/// Characters that make the names distinct.
const DISTINCT: &str = "XXXXXX";
/// All that is in a runtime directory.
const SOCKET: &str = "socket";

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
        let address = Address::Unix(directory.path.join(SOCKET));
        let state = cache.coordinator();
        let config = Config {
            listen: address,
            state,
            exclusive: false,
            writable_instances: WritableInstances::default(),
            limits: limits(),
        };
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

/// There is one worker and no other will come: what it can never run need not wait for one.
fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.scheduler.queue_timeout_ms = 1000;
    limits
}

/// A directory for a socket; removed when dropped.
///
/// It is locked as long as it is in use. One that is not was left behind by a process that was killed; the
/// next one removes it.
#[derive(Debug)]
struct RuntimeDirectory {
    path: PathBuf,
    _lock: Flock<File>,
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
            sweep(&parent);
            match Self::make_in(&parent) {
                Ok(made) => return Ok(made),
                Err(error) => last = Some((parent, error)),
            }
        }
        let (parent, error) = last.unwrap_or((
            Path::new("/tmp").to_owned(),
            std::io::Error::from(std::io::ErrorKind::NotFound),
        ));
        Err(Failure::infrastructure(format!(
            "failed to make a directory for a socket in {}: {error}",
            parent.display()
        )))
    }

    fn make_in(parent: &Path) -> std::io::Result<Self> {
        let mut made = Err(std::io::Error::from(std::io::ErrorKind::ResourceBusy));
        // Somebody who sweeps may come between the directory and its lock.
        for _ in 0..8 {
            let path = nix::unistd::mkdtemp(&parent.join(format!("{PREFIX}{DISTINCT}")))?;
            match lock(&path) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                Err(error) => made = Err(error),
            }
        }
        made
    }
}

impl Drop for RuntimeDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path.join(SOCKET));
        let _ = fs::remove_dir(&self.path);
    }
}

/// Locks a directory, if it still is where it was and nobody else has it.
fn lock(path: &Path) -> std::io::Result<Flock<File>> {
    let directory = File::open(path)?;
    let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| std::io::Error::from(errno))?;
    let (locked, named) = (lock.metadata()?, fs::symlink_metadata(path)?);
    if (locked.dev(), locked.ino()) != (named.dev(), named.ino()) {
        return Err(std::io::Error::from(std::io::ErrorKind::NotFound));
    }
    Ok(lock)
}

/// Removes the runtime directories of this user whose processes are gone. Others may have names like
/// theirs, so only an empty directory goes, or one with nothing but a socket in it.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let distinct = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if distinct.is_none_or(|distinct| distinct.len() != DISTINCT.len()) {
            continue;
        }
        let path = entry.path();
        let own = fs::symlink_metadata(&path).is_ok_and(|found| {
            found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0
        });
        if !own {
            continue;
        }
        let Ok(_lock) = lock(&path) else { continue };
        let names: Vec<_> = fs::read_dir(&path)
            .into_iter()
            .flatten()
            .map(|entry| entry.map(|entry| entry.file_name()).unwrap_or_default())
            .take(2)
            .collect();
        let socket = path.join(SOCKET);
        match names.as_slice() {
            [] => {}
            [only]
                if only == SOCKET
                    && fs::symlink_metadata(&socket)
                        .is_ok_and(|found| found.file_type().is_socket()) =>
            {
                let _ = fs::remove_file(&socket);
            }
            _ => continue,
        }
        let _ = fs::remove_dir(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_swept_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let used = RuntimeDirectory::make_in(parent.path()).unwrap();
        // As a killed process leaves it: nobody holds a lock.
        let left = parent.path().join(format!("{PREFIX}{DISTINCT}"));
        let left = nix::unistd::mkdtemp(&left).unwrap();
        drop(std::os::unix::net::UnixListener::bind(left.join(SOCKET)).unwrap());
        let others = parent.path().join("distbuild-backup");
        fs::create_dir(&others).unwrap();
        fs::write(others.join("mine"), "").unwrap();
        sweep(parent.path());
        assert!(used.path.exists() && others.join("mine").exists());
        assert!(!left.exists());
        let path = used.path.clone();
        drop(used);
        assert!(!path.exists());
    }
}
