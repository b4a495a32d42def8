//! Which trees are pinned for which build: outputs made here, and results of the cache that this worker
//! confirmed. A build's pins go when it is released, or when the session ends.

use std::collections::{HashMap, HashSet, VecDeque};

use distbuild_cas::{DiskStore, Lease, LeaseTreeError, TreeLease};
use distbuild_proto::{Digest, convert, wire};
use parking_lot::Mutex;

/// The pins of all builds.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    builds: HashMap<String, Pinned>,
    /// Builds released lately: an attempt that was cancelled too late must not pin for them again.
    released: VecDeque<String>,
}

/// How many released builds are remembered.
const RELEASED_REMEMBERED: usize = 1024;

/// What one build pins.
#[derive(Debug, Default)]
struct Pinned {
    roots: HashSet<Digest>,
    trees: Vec<TreeLease>,
    blobs: Vec<Lease>,
}

impl Pins {
    /// Checks claims and pins those that are complete: one byte each, 1 complete, 0 not. Blocks on the disk.
    pub(crate) fn check(&self, store: &DiskStore, request: &wire::CheckTrees) -> Vec<u8> {
        let check = |claim: &wire::TreeClaim| {
            let complete = self.check_one(store, claim, &request.build_id).unwrap_or(false);
            u8::from(complete)
        };
        request.claims.iter().map(check).collect()
    }

    /// None: the claim is malformed or the disk fails, which is no confirmation either.
    fn check_one(&self, store: &DiskStore, claim: &wire::TreeClaim, build: &str) -> Option<bool> {
        let root = match &claim.root {
            Some(root) => Some(Digest::try_from(root).ok()?),
            None => None,
        };
        let blobs = convert::digests(&claim.blobs).ok()?;
        // Leased first, so that nothing goes between the look and the lease.
        let lease = (!blobs.is_empty()).then(|| store.lease(&blobs));
        if !blobs.iter().all(|blob| store.contains(blob)) {
            return Some(false);
        }
        if let Some(root) = root {
            // What a build asks about again it has missed: then nothing is taken for granted.
            let again = self.has_pinned(&root, build);
            let lease = if again { store.lease_tree(&root) } else { store.claim_tree(&root) };
            match lease {
                Ok(lease) => self.keep(lease, build),
                Err(LeaseTreeError::Missing(_)) => return Some(false),
                Err(LeaseTreeError::Store(error)) => {
                    tracing::warn!(tree.root = %root, %error, "failed to check a tree");
                    return None;
                }
            }
        }
        if let Some(lease) = lease
            && let Some(pinned) = self.state.lock().pinned(build)
        {
            pinned.blobs.push(lease);
        }
        Some(true)
    }

    /// Pins a tree for a build, if all of it is there.
    ///
    /// # Errors
    /// What is missing, or a failing disk.
    pub(crate) fn pin_tree(
        &self,
        store: &DiskStore,
        root: &Digest,
        build: &str,
    ) -> Result<(), LeaseTreeError> {
        // Even a tree that is pinned already may have been damaged since, so it is leased anew; this
        // costs a look-up.
        self.keep(store.lease_tree(root)?, build);
        Ok(())
    }

    fn has_pinned(&self, root: &Digest, build: &str) -> bool {
        let state = self.state.lock();
        state.builds.get(build).is_some_and(|pinned| pinned.roots.contains(root))
    }

    fn keep(&self, lease: TreeLease, build: &str) {
        if let Some(pinned) = self.state.lock().pinned(build)
            && pinned.roots.insert(*lease.root())
        {
            pinned.trees.push(lease);
        }
    }

    /// Pins blobs for a build.
    pub(crate) fn pin_blobs(&self, store: &DiskStore, blobs: &[Digest], build: &str) {
        if blobs.is_empty() {
            return;
        }
        let lease = store.lease(blobs);
        if let Some(pinned) = self.state.lock().pinned(build) {
            pinned.blobs.push(lease);
        }
    }

    /// A build needs nothing any more. Frees outside the lock, which may take a while.
    pub(crate) fn release(&self, build: &str) {
        let mut state = self.state.lock();
        if state.released.len() >= RELEASED_REMEMBERED {
            state.released.pop_front();
        }
        state.released.push_back(build.to_owned());
        let pinned = state.builds.remove(build);
        drop(state);
        drop(pinned);
    }

    /// The session has ended, and every build's pins with it.
    pub(crate) fn release_all(&self) {
        let state = std::mem::take(&mut *self.state.lock());
        drop(state);
    }
}

impl State {
    /// What a build pins; none if it has been released.
    fn pinned(&mut self, build: &str) -> Option<&mut Pinned> {
        if !self.builds.contains_key(build) {
            if self.released.iter().any(|released| released == build) {
                return None;
            }
            self.builds.insert(build.to_owned(), Pinned::default());
        }
        self.builds.get_mut(build)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use distbuild_cas::StoreConfig;
    use distbuild_proto::{DigestFunction, Directory, FileNode, Name};

    use super::*;

    fn store_tree(store: &DiskStore, text: &str, with_file: bool) -> Digest {
        let digest = DigestFunction::Blake3.digest(text.as_bytes());
        if with_file {
            store.insert(&digest, text.as_bytes(), false).unwrap();
        }
        let file = FileNode { name: Name::new(b"out").unwrap(), digest, executable: false };
        let directory = Directory::new(vec![file], vec![], vec![]).unwrap();
        let (root, blob) = directory.encode_with_digest(DigestFunction::Blake3);
        store.insert(&root, &blob, false).unwrap();
        root
    }

    fn claims(roots: &[Digest]) -> wire::CheckTrees {
        let claim = |root: &Digest| wire::TreeClaim { root: Some((*root).into()), blobs: vec![] };
        let claims = roots.iter().map(claim).collect();
        wire::CheckTrees { request: 1, claims, build_id: "b".to_owned() }
    }

    #[test]
    fn what_is_complete_stays_until_the_build_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(StoreConfig::new(dir.path())).unwrap();
        let whole = store_tree(&store, "whole", true);
        let broken = store_tree(&store, "broken", false);
        let pins = Pins::default();
        let mut request = claims(&[whole, broken, whole]);
        request.claims[2].blobs.push(DigestFunction::Blake3.digest(b"no stdout").into());
        assert_eq!(pins.check(&store, &request), [1, 0, 0]);
        let used_bytes = store.used_bytes();
        assert!(store.leased_blobs() >= 2);
        pins.release("b");
        assert_eq!(store.used_bytes(), used_bytes);
        // An attempt that ends late pins nothing for it.
        pins.pin_tree(&store, &whole, "b").unwrap();
        assert!(pins.state.lock().builds.is_empty());
    }

    #[test]
    fn a_tree_that_is_remembered_and_not_there_is_confirmed_once_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(StoreConfig::new(dir.path())).unwrap();
        let roots = [store_tree(&store, "one", true), store_tree(&store, "other", true)];
        roots.iter().for_each(|root| drop(store.lease_tree(root).unwrap()));
        store.remember_trees().unwrap();
        drop(store);
        let store = DiskStore::open(StoreConfig::new(dir.path())).unwrap();
        for text in ["one", "other"] {
            let blob = DigestFunction::Blake3.digest(text.as_bytes());
            std::fs::remove_file(store.blob_path(&blob, false)).unwrap();
        }
        let pins = Pins::default();
        assert_eq!(pins.check(&store, &claims(&roots[..1])), [1]);
        assert_eq!(pins.check(&store, &claims(&roots[..1])), [0]);
        // One disappointment, and nothing is believed any more.
        assert_eq!(pins.check(&store, &claims(&roots)), [0, 0]);
    }

    #[test]
    fn ten_thousand_claims_are_checked_in_a_moment_when_they_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(StoreConfig::new(dir.path())).unwrap();
        let roots: Vec<_> =
            (0..1000).map(|number| store_tree(&store, &number.to_string(), true)).collect();
        let roots: Vec<_> = roots.iter().cycle().take(10_000).copied().collect();
        let (pins, request) = (Pins::default(), claims(&roots));
        pins.check(&store, &request);
        let begin = Instant::now();
        let complete = pins.check(&store, &request);
        // Generous: an unoptimised build on a busy machine.
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        assert!(complete.iter().all(|byte| *byte == 1));
    }
}
