//! Leases: what is in use is not removed for lack of room.
//!
//! A lease counts, blob by blob, and may name blobs that are not there yet: lease first, fetch
//! then, and nothing falls in between. It protects from eviction, not from damage.

use std::sync::Arc;

use distbuild_proto::Digest;

use crate::disk::{DiskStore, Shared};

/// Keeps blobs in a store until it is dropped.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    digests: Vec<Digest>,
}

impl DiskStore {
    /// Leases these blobs, whether they are there or not.
    pub fn lease(&self, digests: &[Digest]) -> Lease {
        let mut lease = Lease { shared: self.shared.clone(), digests: Vec::new() };
        lease.extend(digests);
        lease
    }

    /// How many blobs are leased at the moment, counting those of trees that were leased and are
    /// still held until an eviction needs their room.
    pub fn leased_blobs(&self) -> usize {
        self.shared.index.lock().pinned()
    }
}

impl Lease {
    /// Leases more.
    pub fn extend(&mut self, digests: &[Digest]) {
        let mut index = self.shared.index.lock();
        digests.iter().for_each(|digest| index.pin(digest));
        self.digests.extend_from_slice(digests);
    }

    /// What is leased; a blob may stand here more than once.
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// Takes over a pin that somebody else set.
    pub(crate) fn take_over(&mut self, pinned: Digest) {
        self.digests.push(pinned);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut index = self.shared.index.lock();
        self.digests.iter().for_each(|digest| index.unpin(digest));
        drop(index);
        self.shared.released();
    }
}

impl Shared {
    /// Something may be evictable that was not.
    pub(crate) fn released(&self) {
        if self.index.lock().used_bytes() > self.config.high_bytes() {
            self.wake.wake();
        }
    }
}
