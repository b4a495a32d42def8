//! `Changing`: directories whose names come and go, such as the results of builds.
//!
//! What they hold is known elsewhere, so that their calls may wait; the adapter makes them on threads
//! that may, and tells the kernel to ask again soon. A listing is taken once each time that a directory is
//! read from its beginning, so its reader sees one moment of it, however long it reads.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::AccessError;
use crate::inode::Ino;
use crate::tree::{Found, NodeKind};

/// Listings that are being read at once; each is a descriptor that somebody holds open.
const MAX_LISTINGS: usize = 4096;

/// Directories whose names come and go.
pub trait Changing: Send + Sync {
    /// Whether a directory is one of these. Never waits.
    fn is_changing(&self, directory: Ino) -> bool;

    /// What a name in it is now. Counts look-ups as [`Tree::lookup`](crate::Tree::lookup) does.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Found, AccessError>;

    /// The names in it now.
    fn names(&self, directory: Ino) -> Result<Vec<Named>, AccessError>;
}

/// A name in a changing directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: Box<[u8]>,
    /// What it is.
    pub kind: NodeKind,
}

/// The listings that are being read, by the handle that the kernel has of them.
#[derive(Debug, Default)]
pub(crate) struct Listings(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    last_handle: u64,
    taken: HashMap<u64, Option<Arc<Vec<Named>>>>,
}

impl Listings {
    /// A handle above 0 without a listing; `None` if there are too many.
    pub(crate) fn open(&self) -> Option<u64> {
        let mut open = self.0.lock();
        if open.taken.len() >= MAX_LISTINGS {
            return None;
        }
        open.last_handle += 1;
        let handle = open.last_handle;
        open.taken.insert(handle, None);
        Some(handle)
    }

    /// What was taken last.
    pub(crate) fn taken(&self, handle: u64) -> Option<Arc<Vec<Named>>> {
        self.0.lock().taken.get(&handle).cloned().flatten()
    }

    pub(crate) fn take(&self, handle: u64, names: Vec<Named>) -> Arc<Vec<Named>> {
        let names = Arc::new(names);
        // A handle may have been closed by a process that was killed while it waited.
        if let Some(slot) = self.0.lock().taken.get_mut(&handle) {
            *slot = Some(Arc::clone(&names));
        }
        names
    }

    pub(crate) fn close(&self, handle: u64) {
        self.0.lock().taken.remove(&handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &[u8]) -> Vec<Named> {
        vec![Named { name: text.into(), kind: NodeKind::File }]
    }

    #[test]
    fn each_handle_has_a_listing_of_its_own_until_it_is_closed() {
        let listings = Listings::default();
        let (one, two) = (listings.open().unwrap(), listings.open().unwrap());
        listings.take(one, names(b"early"));
        listings.take(two, names(b"late"));
        assert_eq!(*listings.taken(one).unwrap(), names(b"early"));
        listings.close(one);
        assert!(listings.taken(one).is_none());
        listings.take(one, names(b"after the end"));
        assert!(listings.taken(one).is_none());
        assert_eq!(*listings.taken(two).unwrap(), names(b"late"));
    }

    #[test]
    fn there_is_a_limit_to_the_listings_being_read() {
        let listings = Listings::default();
        let handles: Vec<u64> = (0..MAX_LISTINGS).map(|_| listings.open().unwrap()).collect();
        assert!(listings.open().is_none());
        listings.close(handles[0]);
        assert!(listings.open().is_some());
    }
}
