//! Lending: what this worker holds, for those that cannot dial it.

use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::DiskStore;
use distbuild_cas::lending::{self, Lends};
use distbuild_cas::serving::send_stored;
use distbuild_proto::Digest;
use distbuild_proto::wire::lend_request::Body;
use distbuild_proto::wire::{self, BlobChunk};
use tokio::sync::{Semaphore, watch};

use crate::channels::Coordinator;
use crate::session::Identity;

/// Pause before a broken stream is opened again.
const REOPEN: Duration = Duration::from_millis(500);

/// Lends for whichever session is current; never ends by itself.
pub(crate) async fn lend(
    coordinator: Coordinator,
    store: DiskStore,
    mut session: watch::Receiver<Option<Identity>>,
    max_deliveries: usize,
) {
    let deliveries = Arc::new(Semaphore::new(max_deliveries.max(1)));
    loop {
        let Some(identity) = session.borrow_and_update().clone() else {
            if session.changed().await.is_err() {
                return;
            }
            continue;
        };
        let lender = wire::WorkerLender { session: identity.session, secret: identity.secret };
        let lender = Body::Worker(lender);
        let lends = Stored(store.clone());
        tokio::select! {
            result = lending::lend(coordinator.blobs(), lender, lends, deliveries.clone()) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "the stream of orders broke");
                }
                tokio::time::sleep(REOPEN).await;
            }
            changed = session.changed() => if changed.is_err() { return },
        }
    }
}

#[derive(Clone)]
struct Stored(DiskStore);

impl Lends for Stored {
    fn send_all(&self, digests: &[Digest], send: impl FnMut(Vec<BlobChunk>) -> bool) {
        // The reader may have given up; that is its affair.
        let _ = send_stored(&self.0, (0..).zip(digests.iter().copied()), send);
    }
}
