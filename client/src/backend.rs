//! What a build talks to: a coordinator somewhere, or one in this process with a worker of its own.

use std::error::Error;
use std::io;
use std::time::Duration;

use distbuild_cas::{DiskStore, StoreConfig};
use distbuild_proto::{Address, transport};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::build::deliver::with_causes;
use crate::embedded::Embedded;
use crate::exit::Failure;
use crate::places::Cache;

/// How long a coordinator is dialled again that nobody listens for yet: a script may start it and what
/// needs it in one go.
const STARTING: Duration = Duration::from_secs(3);
/// Pause before the second dial; it doubles.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_millis(500);

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

/// Dials a coordinator, again and again for [`STARTING`] while nobody listens there.
///
/// # Errors
/// Nobody listens there, or the address cannot be reached.
pub(crate) async fn dial(address: &Address) -> Result<Channel, Failure> {
    patiently(|| transport::connect(address)).await.map_err(|error| {
        Failure::infrastructure(format!(
            "no coordinator is reached at {address}: {}",
            with_causes(&error)
        ))
    })
}

async fn patiently<T, E: Error + 'static>(
    mut connect: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + STARTING;
    let mut pause = PAUSE;
    loop {
        let error = match connect().await {
            Err(error) if nobody_listens(&error) => error,
            other => return other,
        };
        if Instant::now() + pause > deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(MAX_PAUSE);
    }
}

/// Whether the host is there and the port or the socket is not.
fn nobody_listens(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            );
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_coordinator_that_does_not_listen_yet_is_dialled_again() {
        let mut refusals = 3;
        let dialled = patiently(async || {
            if refusals == 0 {
                return Ok("there");
            }
            refusals -= 1;
            Err(io::Error::from(io::ErrorKind::ConnectionRefused))
        });
        assert_eq!(dialled.await.unwrap(), "there");
    }

    #[tokio::test]
    async fn only_a_missing_listener_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let free_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let missing = directory.path().join("socket").display().to_string();
        for address in [free_port.to_string(), format!("unix:{missing}")] {
            let error = transport::connect(&address.parse().unwrap()).await.unwrap_err();
            assert!(nobody_listens(&error), "{address}: {}", with_causes(&error));
        }
        let mut dials = 0;
        let dialled = patiently(async || {
            dials += 1;
            Err::<(), _>(io::Error::from(io::ErrorKind::HostUnreachable))
        });
        dialled.await.unwrap_err();
        assert_eq!(dials, 1);
    }
}
