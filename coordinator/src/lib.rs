//! The coordinator: gRPC services, durable state, driver of the scheduler.
//!
//! A build comes in through [`services`], is validated and looked up there, and is then driven by the
//! [`core`]: one task that owns the pure scheduler and performs its effects. Bytes never pass through
//! the core: [`relay`] carries them between lenders and readers.

mod archive;
mod config;
mod core;
mod directories;
mod event_log;
mod locator;
mod metadata;
mod pools;
pub mod reapi;
mod relay;
mod services;
mod state;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_proto::Address;
use distbuild_proto::transport::{Listener, MAX_MESSAGE_BYTES, server};
use distbuild_proto::wire::blobs_server::BlobsServer;
use distbuild_proto::wire::builds_server::BuildsServer;
use distbuild_proto::wire::workers_server::WorkersServer;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use archive::Archive;
pub use config::{Config, Limits, WritableInstances};
pub use state::StateError;

use crate::core::{Handle, Message, Shared};
use crate::services::blobs::BlobsService;
use crate::services::builds::BuildsService;
use crate::services::workers::WorkersService;

/// A running coordinator. Dropping it stops serving at once; [`Self::shutdown`] is the clean way.
#[derive(Debug)]
pub struct Coordinator {
    address: Address,
    core: Handle,
    relay: relay::Relay,
    state: state::State,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
    /// Taken back by the kernel however the process ends.
    _exclusive: Option<File>,
}

impl Coordinator {
    /// Opens the state and serves.
    ///
    /// # Errors
    /// The state directory or the address cannot be used.
    pub async fn start(config: Config) -> Result<Self, CoordinatorError> {
        std::fs::create_dir_all(&config.state).map_err(|source| {
            CoordinatorError::StateDirectory { path: config.state.clone(), source }
        })?;
        let exclusive = config.exclusive.then(|| lock(&config.state)).transpose()?;
        let limits = Arc::new(config.limits);
        let store = StoreConfig {
            max_bytes: limits.max_store_bytes,
            ..StoreConfig::new(config.state.join(Archive::STORE))
        };
        let metadata = metadata::Metadata::new(limits.max_metadata_bytes);
        let shared = Shared {
            state: state::State::open(&config.state.join(Archive::FILE))?,
            relay: relay::Relay::default(),
            directories: directories::KnownDirectories::new(metadata.clone()),
            metadata,
            store: DiskStore::open(store)?,
            limits,
            durable: config.exclusive,
        };
        let listener = Listener::bind(&config.listen).await.map_err(|source| {
            CoordinatorError::Listen { address: config.listen.to_string(), source }
        })?;
        let address = listener.address().clone();
        let (core, _task) = core::start(shared.clone()).await?;
        let stop = CancellationToken::new();
        let (relay, state) = (shared.relay.clone(), shared.state.clone());
        let api = reapi::routes(&core, &shared, config.writable_instances);
        let server = tokio::spawn(serve(listener, core.clone(), shared, api, stop.clone()));
        Ok(Self { address, core, relay, state, stop, server, _exclusive: exclusive })
    }

    /// Where it is reached; a port 0 has become the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Stops serving, when everything is written down. Builds that run, and whose clients come back, go on with the
    /// next coordinator on this state if it is an exclusive one; all others are cancelled, and their clients told.
    pub async fn shutdown(mut self) {
        let ended = self.core.ask(|reply| Message::Shutdown { reply });
        if tokio::time::timeout(SHUTDOWN, ended).await.is_err() {
            tracing::warn!("builds did not end in time, shutting down without them");
        }
        if tokio::time::timeout(SHUTDOWN, self.state.settle()).await.is_err() {
            tracing::warn!("the state is not written down in time");
        }
        // With the core the sessions of workers have ended; what is still open are lenders.
        self.relay.close();
        self.stop.cancel();
        let _ = tokio::time::timeout(SHUTDOWN, &mut self.server).await;
    }
}

/// How long builds, and then connections, may take to end.
const SHUTDOWN: std::time::Duration = std::time::Duration::from_secs(5);

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.stop.cancel();
        self.server.abort();
    }
}

/// Keeps other exclusive coordinators away from a state directory.
fn lock(state: &Path) -> Result<File, CoordinatorError> {
    let path = state.join("coordinator.lock");
    let open = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let locked = open.map_err(TryLockError::Error).and_then(|lock| lock.try_lock().map(|()| lock));
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => CoordinatorError::StateInUse { path: state.to_owned() },
        TryLockError::Error(source) => CoordinatorError::StateDirectory { path, source },
    })
}

async fn serve(
    listener: Listener,
    core: Handle,
    shared: Shared,
    api: Routes,
    stop: CancellationToken,
) {
    let builds = BuildsService { core: core.clone(), shared: shared.clone() };
    let workers = WorkersService {
        core: core.clone(),
        state: shared.state.clone(),
        relay: shared.relay.clone(),
        max_backlog: shared.limits.max_worker_backlog,
    };
    let blobs = BlobsService { core, shared };
    let served = server()
        .add_routes(api)
        .add_service(BuildsServer::new(builds).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(BlobsServer::new(blobs).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(WorkersServer::new(workers).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(listener, stop.cancelled())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the server failed");
    }
}

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The state directory cannot be made or locked.
    #[error("failed to use state directory {}: {source}", path.display())]
    StateDirectory {
        /// The directory, or the lock in it.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another exclusive coordinator uses the state directory.
    #[error(
        "another coordinator uses the state directory {}; stop it, or name another one with --state",
        path.display()
    )]
    StateInUse {
        /// The directory.
        path: PathBuf,
    },
    /// The address cannot be listened on.
    #[error("failed to listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The state database cannot be opened.
    #[error(transparent)]
    State(#[from] StateError),
    /// The blob store cannot be opened.
    #[error(transparent)]
    Store(#[from] distbuild_cas::StoreError),
}
