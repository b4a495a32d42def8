//! `Tried`: the workers where an execution went wrong, by what they store their outputs in, so that
//! a worker that reconnects is still known.

use crate::ids::StoreId;

/// So many are remembered; the oldest is forgotten first. More would matter only to executions
/// that may fail more often than `max_attempts` usually allows.
pub(crate) const MAX_TRIED: usize = 4;

/// Up to `MAX_TRIED` stores, the latest last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tried([Option<StoreId>; MAX_TRIED]);

impl Tried {
    pub(crate) fn add(&mut self, store: StoreId) {
        if self.contains(store) {
            return;
        }
        self.0.rotate_left(1);
        self.0[MAX_TRIED - 1] = Some(store);
    }

    pub(crate) fn contains(&self, store: StoreId) -> bool {
        self.0.contains(&Some(store))
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = StoreId> {
        self.0.iter().copied().flatten()
    }

    /// The same for equal sets.
    pub(crate) fn sorted(mut self) -> Self {
        self.0.sort_unstable();
        self
    }
}
