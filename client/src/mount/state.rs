//! What a state directory holds, whoever wrote it: an embedded pair, a coordinator, or a worker.

use std::path::Path;

use distbuild_cas::Layout;
use distbuild_coordinator::Archive;

use super::records::{NoRecords, Records};
use super::stores::Stores;
use crate::build::deliver::with_causes;
use crate::exit::Failure;

/// Where a coordinator's state may lie in a directory: it is one, or that of an embedded pair.
const COORDINATORS: [&str; 2] = ["", "coordinator"];
/// Where stores may lie beside those of coordinators: a worker's own, those of an embedded pair, and what
/// builds and mounts with a coordinator have fetched.
const STORES: [&str; 4] = ["store", "worker/store", "outputs", "inspected"];

/// What there is to be shown.
pub(super) struct State {
    pub(super) records: Box<dyn Records>,
    pub(super) stores: Stores,
}

impl State {
    /// Looks for what is there.
    ///
    /// # Errors
    /// Nothing, or a database that cannot be read.
    pub(super) fn open(directory: &Path) -> Result<Self, Failure> {
        let coordinators = COORDINATORS.map(|place| directory.join(place));
        let archive = coordinators.iter().find(|state| state.join(Archive::FILE).is_file());
        let archive = archive.map(|state| Archive::open(state)).transpose().map_err(|error| {
            Failure::infrastructure(format!("failed to read the results: {}", with_causes(&error)))
        })?;
        let own = coordinators.iter().map(|state| state.join(Archive::STORE));
        let places = STORES.map(|place| directory.join(place)).into_iter().chain(own);
        let stores: Vec<Layout> = places.filter(|root| root.is_dir()).map(Layout::new).collect();
        if archive.is_none() && stores.is_empty() {
            return Err(Failure::usage(format!(
                "{} is neither a cache nor the state of a coordinator or a worker",
                directory.display()
            )));
        }
        let records: Box<dyn Records> = match archive {
            Some(archive) => Box::new(archive),
            None => Box::new(NoRecords),
        };
        Ok(Self { records, stores: Stores::new(stores) })
    }
}

#[cfg(test)]
mod tests {
    use distbuild_cas::{DiskStore, StoreConfig};
    use distbuild_proto::DigestFunction;

    use super::*;
    use crate::mount::holdings::Holdings;

    #[test]
    fn a_workers_state_has_blobs_and_no_results() {
        let directory = tempfile::tempdir().unwrap();
        let store = DiskStore::open(StoreConfig::new(directory.path().join("store"))).unwrap();
        let digest = DigestFunction::Blake3.digest(b"a");
        store.insert(&digest, b"a", true).unwrap();
        let state = State::open(directory.path()).unwrap();
        assert!(state.records.job_ids().unwrap().is_empty());
        let found = state.stores.find(DigestFunction::Blake3, digest.hash()).unwrap();
        assert_eq!(found.unwrap().digest, digest);
    }

    #[test]
    fn a_directory_that_is_no_state_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let error = State::open(directory.path()).err().unwrap();
        assert!(error.to_string().contains(&*directory.path().to_string_lossy()), "{error}");
        assert!(directory.path().read_dir().unwrap().next().is_none());
    }
}
