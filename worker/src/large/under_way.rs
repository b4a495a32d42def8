//! Large blobs on their way, for those who wait for a part of one.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use distbuild_proto::Digest;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::transfer::{Arrived, Transfer};

/// Every large blob that somebody fetches or waits for. Clones are one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnderWay {
    table: Arc<Mutex<HashMap<Digest, Weak<Flight>>>>,
}

/// One of them, as long as somebody holds it.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    arrived: watch::Sender<Arrived>,
    transfer: Mutex<Weak<Transfer>>,
}

impl UnderWay {
    /// The flight of a blob, whether its transfer has begun or not.
    pub(crate) fn flight(&self, digest: &Digest) -> Arc<Flight> {
        let mut table = self.table.lock();
        if let Some(flight) = table.get(digest).and_then(Weak::upgrade) {
            return flight;
        }
        // Few are under way, so a look at all of them is cheap.
        table.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(Flight::default());
        table.insert(*digest, Arc::downgrade(&flight));
        flight
    }
}

impl Flight {
    /// What comes is told here.
    pub(crate) fn arrivals(&self) -> &watch::Sender<Arrived> {
        &self.arrived
    }

    /// This transfer brings it from now on.
    pub(crate) fn begun(&self, transfer: &Arc<Transfer>) {
        *self.transfer.lock() = Arc::downgrade(transfer);
    }

    /// A reader waits for these bytes.
    pub(crate) fn hurry(&self, bytes: &Range<u64>) {
        let transfer = self.transfer.lock().upgrade();
        if let Some(transfer) = transfer {
            transfer.hurry(bytes);
        }
    }
}
