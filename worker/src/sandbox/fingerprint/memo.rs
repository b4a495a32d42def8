//! What a fingerprint was seen with: stamps of the places that a change of the toolchain touches.
//!
//! A memo answers one question, whether everything that it watches is as it was, by one `stat` for
//! each. It never reads a file of the toolchain and never computes a fingerprint.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What changed less than this before the walk may change again within one tick of the clock that
/// stamps files: it is not remembered.
const SETTLED: Duration = Duration::from_secs(2);

/// A fingerprint and what it was seen with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Memo {
    /// What the fingerprint was taken of.
    pub(super) key: [u8; 32],
    pub(super) hex: String,
    pub(super) watched: Vec<Watched>,
}

/// A watched place, usually a directory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Watched {
    pub(super) path: PathBuf,
    /// Absent places are watched as well: they may appear.
    pub(super) stamp: Option<Stamp>,
    /// The directory's executables and shared libraries.
    pub(super) tools: Vec<(OsString, Stamp)>,
}

/// What tells that a file was written to or its attributes were changed, or that an entry of a
/// directory was created, removed or renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
}

impl Memo {
    /// `None` if there is no memo, or none that this version understands.
    pub(super) fn load(path: &Path) -> Option<Self> {
        postcard::from_bytes(&fs::read(path).ok()?).ok()
    }

    /// Whether it is of this key and all that it watches is as it was.
    pub(super) fn holds(&self, key: &[u8; 32]) -> bool {
        self.key == *key && self.watched.iter().all(Watched::holds)
    }

    /// Whether everything watched had been left alone for a while when the walk began. The time of
    /// the last change says so: nobody can set it, unlike the time of modification.
    pub(super) fn is_settled(&self, walk_started: SystemTime) -> bool {
        let started = walk_started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let limit = started.saturating_sub(SETTLED).as_nanos() as i128;
        let tools = self.watched.iter().flat_map(|place| &place.tools).map(|(_, stamp)| stamp);
        let mut stamps = self.watched.iter().filter_map(|place| place.stamp.as_ref()).chain(tools);
        stamps.all(|stamp| stamp.ctime_ns < limit)
    }

    /// Replaces the memo at `path` whole.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let bytes = postcard::to_stdvec(self).map_err(io::Error::other)?;
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, path)
    }
}

impl Watched {
    /// A place that counts by itself.
    pub(super) fn place(path: &Path) -> Self {
        Self { path: path.to_owned(), stamp: Stamp::of(path), tools: Vec::new() }
    }

    fn holds(&self) -> bool {
        let mut path = self.path.clone();
        Stamp::of(&path) == self.stamp
            && self.tools.iter().all(|(name, stamp)| {
                path.push(name);
                let same = Stamp::of(&path).as_ref() == Some(stamp);
                path.pop();
                same
            })
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        path.symlink_metadata().ok().as_ref().map(Self::from)
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Whether a change of this file alone is watched for: it is executable or a shared library.
pub(super) fn is_tool(name: &OsStr, metadata: &Metadata) -> bool {
    let name = name.as_bytes();
    let library = name.ends_with(b".so") || name.windows(4).any(|part| part == b".so.");
    metadata.is_file() && (library || metadata.mode() & 0o111 != 0)
}
