//! One traced view: what it holds of the inode table, and how that becomes its access record.
//!
//! Each directory that is recorded keeps the names that were looked up in it; the view only knows which
//! directories those are and how much they hold together. Without a view nothing of this changes.

use std::collections::HashMap;

use distbuild_proto::{AccessRecord, Name, Observed, ObservedDirectory};

use crate::inode::{FileKey, Ino, InodeTable, Node, Seen, ShownFile, ViewId};

/// How much a view's record may hold.
#[derive(Clone, Copy, Debug)]
pub struct RecordLimits {
    /// Names, found or not.
    pub entries: usize,
    /// Bytes of all their paths and of the targets of symbolic links.
    pub path_bytes: usize,
}

impl Default for RecordLimits {
    /// Enough for a job that walks a large monorepo; fits a frame of the protocol, and about 100 MiB
    /// of memory at the very most.
    fn default() -> Self {
        Self { entries: 300_000, path_bytes: 16 << 20 }
    }
}

#[derive(Debug)]
pub(crate) struct View {
    pub(crate) root: Ino,
    /// The directories that are recorded, parents before children.
    pub(crate) directories: Vec<Ino>,
    /// Whether it is being ended, so that requests that serve it alone fail.
    pub(crate) failed: bool,
    /// Whether its directories may have properties.
    pub(crate) has_properties: bool,
    /// How many names look like this.
    copies: HashMap<ShownFile, u32>,
    entries: usize,
    path_bytes: usize,
}

impl View {
    pub(crate) fn new(root: Ino, has_properties: bool) -> Self {
        Self {
            root,
            directories: vec![root],
            failed: false,
            has_properties,
            copies: HashMap::new(),
            entries: 0,
            path_bytes: 0,
        }
    }

    /// Counts one more name that looks like this, and says how many there were.
    pub(crate) fn next_copy(&mut self, file: ShownFile) -> u32 {
        let copies = self.copies.entry(file).or_default();
        *copies += 1;
        *copies - 1
    }

    /// Counts a name with so many bytes of path and target; false if the record is full.
    pub(crate) fn make_room(&mut self, limits: RecordLimits, bytes: usize) -> bool {
        let room = self.entries < limits.entries && self.path_bytes + bytes <= limits.path_bytes;
        if room {
            self.entries += 1;
            self.path_bytes += bytes;
        }
        room
    }

    /// Gives up what the view holds, and says what it looked at: built from the innermost directories
    /// outwards.
    pub(crate) fn into_record(self, view: ViewId, inodes: &mut InodeTable) -> Option<AccessRecord> {
        let mut below = HashMap::new();
        for ino in self.directories.into_iter().rev() {
            let Some(node) = inodes.directory_mut(ino) else { continue };
            let Some(seen) = node.seen.take() else { continue };
            let mut directory = ObservedDirectory {
                listing: seen.listing,
                everything: seen.everything,
                ..ObservedDirectory::unseen(node.digest)
            };
            for (name, seen) in seen.names {
                let observed = match seen {
                    Seen::Absent => Some(Observed::Absent),
                    Seen::Inode(child) => match below.remove(&child) {
                        Some(child) => Some(Observed::Directory(child)),
                        None => release(view, child, inodes),
                    },
                };
                match (Name::new(&name), observed) {
                    (Ok(name), Some(observed)) => {
                        directory.names.insert(name, observed);
                    }
                    // Cannot be said exactly.
                    _ => directory.everything = true,
                }
            }
            inodes.release(ino);
            below.insert(ino, directory);
        }
        // What a record says of a name leaves properties out.
        Some(AccessRecord::new(below.remove(&self.root)?, !self.has_properties))
    }
}

/// Takes a view's hold of a file or symbolic link and says what it is.
fn release(view: ViewId, ino: Ino, inodes: &mut InodeTable) -> Option<Observed> {
    let observed = match inodes.get_mut(ino)? {
        Node::File(node) => {
            node.viewers.retain(|viewer| viewer.view != view);
            let FileKey { digest, executable } = node.file.key;
            Observed::File { digest, executable }
        }
        Node::Symlink(node) => {
            node.held = false;
            Observed::Symlink { target: node.target.clone() }
        }
        Node::Directory(_) => return None,
    };
    inodes.release(ino);
    Some(observed)
}
