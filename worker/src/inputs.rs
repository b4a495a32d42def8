//! The inputs of one running attempt: where they may come from, what keeps them, what went wrong.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distbuild_cas::Lease;
use distbuild_proto::action::Layout;
use distbuild_proto::{Digest, RelPath};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::prefetch::Prefetched;

/// A part of an input root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The source tree, or the few directories of the root itself, or all of a root of another layout.
    Source,
    /// The output tree of the dependency at this position.
    Dep(u32),
}

impl Place {
    /// The part that a path inside an input root of this layout lies in.
    pub(crate) fn of(path: &RelPath, layout: Layout) -> Self {
        if layout == Layout::Root {
            return Self::Source;
        }
        let mut components = path.components();
        let number = match (components.next(), components.next()) {
            (Some(b"dep"), Some(number)) => std::str::from_utf8(number).ok(),
            _ => None,
        };
        number.and_then(|number| number.parse().ok()).map_or(Self::Source, Self::Dep)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// The attempt, as the coordinator numbers it.
    pub(crate) attempt: u64,
    /// How the input root is made up.
    pub(crate) layout: Layout,
    /// For each dependency: addresses of peers that hold its outputs.
    pub(crate) holders: Vec<Vec<String>>,
    /// Stands while contents are fetched.
    pub(crate) clock: Clock,
    /// Cancelled when the attempt's view is gone.
    pub(crate) ended: CancellationToken,
    /// Bytes that came from other workers.
    pub(crate) from_peers: AtomicU64,
    /// Files that are brought before they are needed.
    pub(crate) prefetched: Prefetched,
    lease: Mutex<Lease>,
    lost: Mutex<HashMap<Digest, Place>>,
}

impl Inputs {
    pub(crate) fn new(
        attempt: u64,
        layout: Layout,
        holders: Vec<Vec<String>>,
        lease: Lease,
    ) -> Self {
        Self {
            attempt,
            layout,
            holders,
            clock: Clock::default(),
            ended: CancellationToken::new(),
            from_peers: AtomicU64::new(0),
            prefetched: Prefetched::default(),
            lease: Mutex::new(lease),
            lost: Mutex::default(),
        }
    }

    /// The part of the input root that a path in it lies in.
    pub(crate) fn place(&self, path: &RelPath) -> Place {
        Place::of(path, self.layout)
    }

    /// Keeps a blob in the store until the attempt ends.
    pub(crate) fn keep(&self, digests: &[Digest]) {
        self.lease.lock().extend(digests);
    }

    /// Nobody has this blob any more.
    pub(crate) fn add_lost(&self, digest: Digest, place: Place) {
        self.lost.lock().insert(digest, place);
    }

    /// Where a blob was that nobody has any more.
    pub(crate) fn lost(&self, digest: &Digest) -> Option<Place> {
        self.lost.lock().get(digest).copied()
    }

    /// Bytes came from another worker.
    pub(crate) fn count_from_peers(&self, bytes: u64) {
        self.from_peers.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The inputs of running attempts by the number of their view. Clones are one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct InputsByView {
    table: Arc<Mutex<HashMap<u64, Arc<Inputs>>>>,
}

impl InputsByView {
    pub(crate) fn insert(&self, view: u64, inputs: Arc<Inputs>) {
        self.table.lock().insert(view, inputs);
    }

    pub(crate) fn remove(&self, view: u64) {
        let removed = self.table.lock().remove(&view);
        if let Some(inputs) = removed {
            inputs.ended.cancel();
        }
    }

    /// Those of these views that exist.
    pub(crate) fn of(&self, views: &[u64]) -> Vec<Arc<Inputs>> {
        let table = self.table.lock();
        views.iter().filter_map(|view| table.get(view)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_tells_the_part_of_the_input_root() {
        let in_layout =
            |path: &str, layout| Place::of(&RelPath::new(path.as_bytes()).unwrap(), layout);
        let place = |path| in_layout(path, Layout::Native);
        assert_eq!(place("dep/12/lib"), Place::Dep(12));
        assert_eq!(place("dep/12"), Place::Dep(12));
        assert_eq!(in_layout("dep/12/lib", Layout::Root), Place::Source);
        for source in ["", "src", "src/dep", "dep", "dep/x"] {
            assert_eq!(place(source), Place::Source, "{source}");
        }
    }
}
