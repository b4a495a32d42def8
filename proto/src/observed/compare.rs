//! Does a record hold in another tree? Only directories are read, and of equal subtrees none.

use std::fmt;
use std::sync::Arc;

use super::{AccessRecord, Listing, Observed, ObservedDirectory};
use crate::digest::Digest;
use crate::path::RelPath;
use crate::tree::{Child, Directory};

/// Where directories are found by their digest.
pub trait Directories {
    /// The directory; `None` if it is not at hand.
    fn directory(&self, digest: &Digest) -> Option<Arc<Directory>>;
}

/// Whether commands that looked at what a record says would see the same in another tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of it is the same.
    Holds,
    /// The first thing that is not.
    Differs(Difference),
    /// This directory of the other tree is not at hand.
    Unknown(Digest),
}

/// Something that commands would see otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where, inside the root.
    pub path: RelPath,
    /// What became of it.
    pub change: Change,
}

/// What became of a place that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was looked for in vain and is there now.
    Appeared,
    /// It is there no more.
    Vanished,
    /// It is another kind of thing.
    Kind,
    /// A file's contents are others.
    Contents,
    /// A file may be executed now, or no more.
    Executable,
    /// A symbolic link points elsewhere.
    Target,
    /// The names in a directory that was listed are others, or their kinds.
    Listing,
    /// Something below, all of which counts as seen.
    Below,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Appeared => "exists now",
            Self::Vanished => "is gone",
            Self::Kind => "is another kind of file",
            Self::Contents => "has other contents",
            Self::Executable => "has another executable bit",
            Self::Target => "points elsewhere",
            Self::Listing => "was listed and holds other names",
            Self::Below => "holds something that changed",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, change } = self;
        match path.is_root() {
            true => write!(f, "the root {change}"),
            false => write!(f, "{path} {change}"),
        }
    }
}

impl AccessRecord {
    /// Whether everything that the record says is so in the tree below `root`, too. An incomplete record
    /// tells nothing about what it misses: ask [`is_complete`](Self::is_complete) before.
    pub fn compare(&self, root: Digest, directories: &impl Directories) -> Verdict {
        let found = Comparison { directories }.directory(&RelPath::root(), &self.root, root);
        match found {
            Ok(()) => Verdict::Holds,
            Err(Stop::Differs(difference)) => Verdict::Differs(difference),
            Err(Stop::Unknown(digest)) => Verdict::Unknown(digest),
        }
    }
}

struct Comparison<'a, D> {
    directories: &'a D,
}

enum Stop {
    Differs(Difference),
    Unknown(Digest),
}

impl<D: Directories> Comparison<'_, D> {
    fn directory(&self, at: &RelPath, was: &ObservedDirectory, is: Digest) -> Result<(), Stop> {
        if was.digest == is {
            return Ok(());
        }
        if was.everything {
            return Err(differs(at, Change::Below));
        }
        if was.listing.is_none() && was.names.is_empty() {
            return Ok(());
        }
        let directory = match is.size_bytes() {
            0 => Arc::default(),
            _ => self.directories.directory(&is).ok_or(Stop::Unknown(is))?,
        };
        if was.listing.is_some_and(|listing| listing != Listing::of(&directory)) {
            return Err(differs(at, Change::Listing));
        }
        for (name, was) in &was.names {
            self.child(&at.join(name), was, directory.get(name.as_bytes()))?;
        }
        Ok(())
    }

    fn child(&self, at: &RelPath, was: &Observed, is: Option<Child<'_>>) -> Result<(), Stop> {
        let change = match (was, is) {
            (Observed::Absent, None) => return Ok(()),
            (Observed::Absent, Some(_)) => Change::Appeared,
            (_, None) => Change::Vanished,
            (Observed::Directory(was), Some(Child::Directory(is))) => {
                return self.directory(at, was, is.digest);
            }
            (Observed::File { digest, executable }, Some(Child::File(is))) => {
                match (*digest == is.digest, *executable == is.executable) {
                    (true, true) => return Ok(()),
                    (false, _) => Change::Contents,
                    (true, false) => Change::Executable,
                }
            }
            (Observed::Symlink { target }, Some(Child::Symlink(is))) => {
                match *target == is.target {
                    true => return Ok(()),
                    false => Change::Target,
                }
            }
            _ => Change::Kind,
        };
        Err(differs(at, change))
    }
}

fn differs(at: &RelPath, change: Change) -> Stop {
    Stop::Differs(Difference { path: at.clone(), change })
}
