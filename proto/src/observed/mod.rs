//! Access records: what one action's commands looked at in their input root.
//!
//! A record is a tree of its own, the part of the input root that was looked at: each name that was looked up stands once, with
//! what it was, found or not; a directory that was listed has a hash over its names and types. Each directory also
//! carries the digest that it had, though nobody looked at that: as long as it is the same, so is everything below.
//!
//! The record says nothing about which process looked, when, or how often. What it says of a place is exact or more than
//! was looked at, never less; if less may stand here, it is marked incomplete: good for a guess, not for a conclusion.

mod compare;
mod encoding;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::digest::Digest;
use crate::path::{Name, RelPath};
use crate::tree::{Child, Directory};

pub use compare::{Change, Difference, Directories, Verdict};
pub use encoding::RecordError;

/// What an action's commands looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRecord {
    root: ObservedDirectory,
    complete: bool,
}

/// What was looked at in one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedDirectory {
    /// The digest of the encoded [`Directory`].
    pub digest: Digest,
    /// Its names and types, if it was listed.
    pub listing: Option<Listing>,
    /// So much was looked at here that all below counts as seen.
    pub everything: bool,
    /// The names that were looked up in it.
    pub names: BTreeMap<Name, Observed>,
}

/// What a name was when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// A regular file.
    File {
        /// Its contents.
        digest: Digest,
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to, as it stands.
        target: Bytes,
    },
    /// A directory; looking it up does not look at what is in it.
    Directory(ObservedDirectory),
    /// Nothing of this name.
    Absent,
}

/// A hash over the names and types of a directory's children: all that listing it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing([u8; 32]);

impl Listing {
    /// What listing the directory shows.
    pub fn of(directory: &Directory) -> Self {
        let mut hasher = blake3::Hasher::new();
        for child in directory.children() {
            let kind = match child {
                Child::File(_) => b'f',
                Child::Directory(_) => b'd',
                Child::Symlink(_) => b'l',
            };
            // A name holds no NUL, so no two listings are one sequence of bytes.
            hasher.update(&[kind]).update(child.name().as_bytes()).update(&[0]);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

impl ObservedDirectory {
    /// A directory in which nothing was looked at yet.
    pub fn unseen(digest: Digest) -> Self {
        Self { digest, listing: None, everything: false, names: BTreeMap::new() }
    }

    /// What was there, as long as there is room, in bytes.
    fn shortened(&self, room: &mut usize) -> Self {
        /// Of an entry without its name, encoded, at most.
        const ENTRY_BYTES: usize = 64;
        let Self { digest, listing, everything, .. } = *self;
        let mut shortened = Self { digest, listing, everything, names: BTreeMap::new() };
        for (name, observed) in &self.names {
            let Some(left) = room.checked_sub(ENTRY_BYTES + name.as_bytes().len()) else { break };
            let kept = match observed {
                Observed::Absent => continue,
                Observed::Directory(directory) => {
                    *room = left;
                    Observed::Directory(directory.shortened(room))
                }
                Observed::File { .. } | Observed::Symlink { .. } => {
                    *room = left;
                    observed.clone()
                }
            };
            shortened.names.insert(name.clone(), kept);
        }
        shortened
    }

    fn visit<'a>(&'a self, at: &RelPath, each: &mut impl FnMut(RelPath, &'a Observed)) {
        for (name, observed) in &self.names {
            let path = at.join(name);
            each(path.clone(), observed);
            if let Observed::Directory(directory) = observed {
                directory.visit(&path, each);
            }
        }
    }
}

impl AccessRecord {
    /// A record of the part of a tree that was looked at. `complete` is false if something was looked at that
    /// does not stand here.
    pub fn new(root: ObservedDirectory, complete: bool) -> Self {
        Self { root, complete }
    }

    /// The root of the tree.
    pub fn root(&self) -> &ObservedDirectory {
        &self.root
    }

    /// Whether everything that was looked at stands here. If not, the record may be used to guess
    /// (prefetch) but not to conclude (a cache hit).
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// As much of what was there as fits about `max_bytes` when encoded; what was looked for in vain is left
    /// out. Not complete.
    #[must_use]
    pub fn shortened(&self, max_bytes: usize) -> Self {
        let mut room = max_bytes;
        Self { root: self.root.shortened(&mut room), complete: false }
    }

    /// Every name that was looked up, by its path inside the root, parents before children.
    pub fn looked_up(&self) -> Vec<(RelPath, &Observed)> {
        let mut found = Vec::new();
        self.root.visit(&RelPath::root(), &mut |path, observed| found.push((path, observed)));
        found
    }

    /// What the name at this path was; `None` if it was not looked up.
    pub fn get(&self, path: &RelPath) -> Option<&Observed> {
        let mut components = path.components();
        let mut found = self.root.names.get(components.next()?)?;
        for component in components {
            let Observed::Directory(directory) = found else { return None };
            found = directory.names.get(component)?;
        }
        Some(found)
    }

    /// The files among the names: path, digest, executable.
    pub fn looked_up_files(&self) -> impl Iterator<Item = (RelPath, Digest, bool)> {
        self.looked_up().into_iter().filter_map(|(path, observed)| match observed {
            Observed::File { digest, executable } => Some((path, *digest, *executable)),
            Observed::Symlink { .. } | Observed::Directory(_) | Observed::Absent => None,
        })
    }

    /// Every directory that was listed, parents before children; the root is the empty path.
    pub fn listed(&self) -> Vec<RelPath> {
        let root = self.root.listing.is_some().then(RelPath::root);
        let below = self.looked_up().into_iter().filter_map(|(path, observed)| match observed {
            Observed::Directory(directory) if directory.listing.is_some() => Some(path),
            _ => None,
        });
        root.into_iter().chain(below).collect()
    }
}
