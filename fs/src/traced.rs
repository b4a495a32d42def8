//! One traced view: what it holds of the inode table, and how that becomes its access record.
//!
//! Each directory that is recorded keeps the names that were looked up in it; the view only knows which
//! directories those are and how much they hold together. Without a view nothing of this changes.

use std::collections::HashMap;

use distbuild_proto::{Name, RelPath};

use crate::inode::{FileKey, Ino, InodeTable, Node, Seen, ViewId};
use crate::record::{AccessRecord, LookedUp, Observed};

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
    /// Whether everything that was looked at is recorded.
    pub(crate) complete: bool,
    /// Whether it is being ended, so that requests that serve it alone fail.
    pub(crate) failed: bool,
    /// How many names have these contents.
    copies: HashMap<FileKey, u32>,
    entries: usize,
    path_bytes: usize,
}

impl View {
    pub(crate) fn new(root: Ino) -> Self {
        Self {
            root,
            directories: vec![root],
            complete: true,
            failed: false,
            copies: HashMap::new(),
            entries: 0,
            path_bytes: 0,
        }
    }

    /// Counts one more name of these contents, and says how many there were.
    pub(crate) fn next_copy(&mut self, key: FileKey) -> u32 {
        let copies = self.copies.entry(key).or_default();
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

    /// Gives up what the view holds, and says what it looked at.
    pub(crate) fn into_record(self, view: ViewId, inodes: &mut InodeTable) -> AccessRecord {
        let mut paths = HashMap::from([(self.root, RelPath::root())]);
        let mut looked_up = Vec::with_capacity(self.entries);
        let mut listed = Vec::new();
        for ino in self.directories {
            let Some(path) = paths.remove(&ino) else {
                continue;
            };
            let Some(seen) = inodes.directory_mut(ino).and_then(|node| node.seen.take()) else {
                continue;
            };
            for (name, seen) in seen.names {
                let Ok(name) = Name::new(&name) else { continue };
                let path = path.join(&name);
                let observed = match seen {
                    Seen::Absent => Observed::Absent,
                    Seen::Inode(child) => release(view, child, inodes),
                };
                if let (Observed::Directory, Seen::Inode(child)) = (&observed, seen) {
                    paths.insert(child, path.clone());
                }
                looked_up.push(LookedUp { path, observed });
            }
            if seen.listed {
                listed.push(path);
            }
            inodes.release(ino);
        }
        AccessRecord::new(looked_up, listed, self.complete)
    }
}

/// Takes a view's hold of one inode and says what it is. A directory's hold goes with its own record.
fn release(view: ViewId, ino: Ino, inodes: &mut InodeTable) -> Observed {
    let observed = match inodes.get_mut(ino) {
        Some(Node::File(node)) => {
            node.viewers.retain(|viewer| viewer.view != view);
            Observed::File { digest: node.key.digest, executable: node.key.executable }
        }
        Some(Node::Symlink(node)) => {
            node.held = false;
            Observed::Symlink { target: node.target.clone() }
        }
        Some(Node::Directory(_)) => return Observed::Directory,
        None => Observed::Absent,
    };
    inodes.release(ino);
    observed
}
