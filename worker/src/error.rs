//! Why a worker does not start, or has stopped.

use std::io;
use std::path::PathBuf;

use distbuild_cas::StoreError;
use distbuild_proto::Address;

use crate::sandbox::SandboxError;

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Another exclusive worker uses the state directory.
    #[error("another worker uses {} (its lock {} is taken)", state.display(), lock.display())]
    StateInUse {
        /// The state directory.
        state: PathBuf,
        /// The lock file.
        lock: PathBuf,
    },
    /// The state directory cannot be used.
    #[error("failed to {operation} {}", path.display())]
    State {
        /// What was tried: "make", "lock", …
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("failed to open the store")]
    Store(#[from] StoreError),
    /// The helper program cannot be started.
    #[error("failed to start the helper process {}", program.display())]
    Helper {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The helper process ended before it served; its own words.
    #[error("the helper process could not serve: {0}")]
    HelperEnded(String),
    /// The spawner does not run.
    #[error("failed to start the spawner")]
    Spawner(#[from] SandboxError),
    /// The name of the toolchain could not be computed.
    #[error("failed to fingerprint the toolchain")]
    Fingerprint(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Without encryption, an address of another machine needs `insecure_network`.
    #[error("plaintext connections to {0} leave this machine and were not allowed")]
    Insecure(Address),
    /// The address makes no URI.
    #[error("failed to use the address {address}")]
    Address {
        /// The address.
        address: Address,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// Peers cannot be listened to.
    #[error("failed to listen for peers at {address}")]
    Listen {
        /// Where.
        address: Address,
        /// Why not.
        source: io::Error,
    },
    /// Shut down while it was starting.
    #[error("the worker was stopped")]
    Stopped,
}
