//! What a build talks to: a coordinator somewhere, or one in this process with a worker of its own.

use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_proto::{Address, transport};
use tonic::transport::Channel;

use crate::build::deliver::with_causes;
use crate::embedded::Embedded;
use crate::exit::Failure;
use crate::places::Cache;

/// Where to build.
#[derive(Clone, Debug)]
pub(crate) enum Where {
    /// In this process.
    Embedded,
    /// With the coordinator at this address.
    Remote(Address),
}

/// A coordinator that is reached.
#[derive(Debug)]
pub(crate) struct Backend {
    /// For control messages.
    pub(crate) control: Channel,
    /// For bytes.
    pub(crate) bytes: Channel,
    /// Where outputs are when they have reached this machine.
    pub(crate) store: DiskStore,
    embedded: Option<Embedded>,
}

impl Backend {
    /// Reaches the coordinator, starting it if it is to be embedded. Dropping what this returns, or
    /// the call itself, ends what was started.
    ///
    /// # Errors
    /// Nobody listens there, or something keeps this machine from running a worker.
    pub(crate) async fn start(target: &Where, cache: &Cache) -> Result<Self, Failure> {
        let (address, store, embedded) = match target {
            Where::Embedded => {
                let embedded = Embedded::start(cache).await?;
                (embedded.address().clone(), embedded.store(), Some(embedded))
            }
            Where::Remote(address) => {
                let config = StoreConfig::new(cache.outputs());
                let store = tokio::task::spawn_blocking(|| DiskStore::open(config)).await;
                let store = store.map_err(Failure::infrastructure)?;
                let store = store.map_err(|error| Failure::infrastructure(with_causes(&error)))?;
                (address.clone(), store, None)
            }
        };
        let (control, bytes) = tokio::try_join!(dial(&address), dial(&address))?;
        Ok(Self { control, bytes, store, embedded })
    }

    /// Returns what has happened when what was started can run nothing any more.
    pub(crate) async fn failed(&self) -> String {
        match &self.embedded {
            Some(embedded) => embedded.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Ends what was started.
    pub(crate) async fn end(self) {
        let Self { control, bytes, store, embedded } = self;
        // A coordinator waits for its connections when it ends.
        drop((control, bytes, store));
        if let Some(embedded) = embedded {
            embedded.end().await;
        }
    }
}

/// Dials a coordinator.
///
/// # Errors
/// Nobody listens there.
pub(crate) async fn dial(address: &Address) -> Result<Channel, Failure> {
    transport::connect(address).await.map_err(|error| {
        Failure::infrastructure(format!(
            "no coordinator is reached at {address}: {}",
            with_causes(&error)
        ))
    })
}
