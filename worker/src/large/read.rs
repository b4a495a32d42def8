//! A large blob for the worker's own fetching: from these peers, with what that says about them.

use std::time::{Duration, Instant};

use distbuild_cas::chunks::ReceiveError;
use distbuild_cas::{DiskStore, Want};
use distbuild_proto::Address;

use super::under_way::Flight;
use super::{FetchFailure, Holder, HolderError, Wanted, fetch};
use crate::channels::Peers;
use crate::fetch::Hint;

/// Reads one blob from the peers at these addresses into a store. A peer that failed or sent wrong bytes
/// is avoided for a while.
pub(crate) async fn read(
    want: &Want<Hint>,
    addresses: &[String],
    store: DiskStore,
    peers: &Peers,
    silence: Duration,
    flight: &Flight,
) -> Result<(), ReceiveError> {
    let holders: Vec<Address> =
        addresses.iter().filter_map(|address| address.parse().ok()).collect();
    let wanted = Wanted { digest: want.digest, executable: want.executable, store, silence };
    let fetched =
        fetch(&wanted, &holders, flight.arrivals(), |transfer| flight.begun(transfer)).await;
    for holder in &fetched.holders {
        if let Some(error) = holder.error.as_ref().filter(|error| error.is_distrusted()) {
            let address = holder.address.to_string();
            tracing::warn!(
                peer.address = address,
                blob.digest = %want.digest,
                %error,
                "a peer failed and is avoided for a while"
            );
            peers.avoid(&address, Instant::now());
        }
    }
    match fetched.result {
        Ok(()) => Ok(()),
        Err(FetchFailure::Store(error)) => Err(ReceiveError::Store(error)),
        Err(FetchFailure::NobodyLeft) => Err(why(&fetched.holders)),
    }
}

/// The reason that says most; busy, if there is a holder that may be asked again.
fn why(holders: &[Holder]) -> ReceiveError {
    let errors = || holders.iter().filter_map(|holder| holder.error.as_ref());
    if errors().any(|error| matches!(error, HolderError::Busy)) {
        return ReceiveError::Busy;
    }
    match errors().find(|error| !matches!(error, HolderError::NotFound)) {
        Some(error) => ReceiveError::Remote(error.to_string()),
        None => ReceiveError::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_holder_is_the_reason_that_counts_and_a_missing_blob_the_last() {
        let asked = |error| Holder { address: "h:1".parse().unwrap(), pieces: 0, error };
        let of = |errors: Vec<HolderError>| {
            why(&errors.into_iter().map(Some).map(asked).collect::<Vec<_>>())
        };
        let (not_found, closed) = (|| HolderError::NotFound, || HolderError::Closed);
        assert!(matches!(of(vec![not_found(), not_found()]), ReceiveError::NotFound));
        assert!(matches!(of(vec![not_found(), closed()]), ReceiveError::Remote(_)));
        assert!(matches!(of(vec![closed(), HolderError::Busy, not_found()]), ReceiveError::Busy));
    }
}
