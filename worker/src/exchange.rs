//! Stores that exchange blobs as workers do, with nothing else of a worker: no session, no file system, no
//! jobs. For benchmarks of the way from one store to another.

use std::sync::Arc;

use distbuild_cas::{DiskStore, FetchError, Filler, Want};
use distbuild_proto::action::Layout;
use distbuild_proto::{Address, Digest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::channels::{Coordinator, Peers};
use crate::config::WorkerConfig;
use crate::error::WorkerError;
use crate::fetch::{Hint, InputSource, Need};
use crate::inputs::{Inputs, Place};
use crate::large::UnderWay;
use crate::outbox::Outbox;

/// Serves a store to peers until `stop` is cancelled; gives the address.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(
    config: &WorkerConfig,
    listen: &Address,
    store: DiskStore,
    stop: CancellationToken,
) -> Result<Address, WorkerError> {
    crate::peers::serve(config, listen, store, stop).await
}

/// Fetches what one action misses from peers. Clones share their calls.
#[derive(Clone)]
pub struct Exchange {
    filler: Filler<InputSource>,
    inputs: Arc<Inputs>,
}

impl Exchange {
    /// Fills `store` from `peers` as `config` says. Nobody else is asked: there is no session.
    ///
    /// # Errors
    /// The coordinator's address makes no URI.
    pub fn new(
        config: &WorkerConfig,
        store: DiskStore,
        peers: Vec<String>,
    ) -> Result<Self, WorkerError> {
        let source = InputSource {
            coordinator: Coordinator::new(config)?,
            peers: Peers::new(config),
            session: watch::channel(None).1,
            outbox: Outbox::new().0,
            under_way: UnderWay::default(),
            silence: config.limits.silence,
            stop: CancellationToken::new(),
        };
        let inputs = Arc::new(Inputs::new(1, Layout::Native, vec![peers], store.lease(&[])));
        Ok(Self { filler: Filler::new(store, source, config.limits.filler.clone()), inputs })
    }

    /// Returns when the store holds the blob.
    ///
    /// # Errors
    /// No peer gave it.
    pub async fn fetch(&self, digest: Digest) -> Result<(), FetchError> {
        let (inputs, place) = (self.inputs.clone(), Place::Dep(0));
        let hint = Hint { inputs, place, directory: false, need: Need::Now };
        self.filler.ensure(Want { digest, executable: false, hint }).await
    }
}
