//! The digest of a directory as it lies on disk, with the help of the stat cache.
//!
//! The client asks it whether `OUT/<job>` is already what it should be, so a directory that
//! cannot be a tree (a socket in it, a file that changes) is an error, and a caller replaces it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use distbuild_proto::{
    Digest, Directory, DirectoryNode, FileNode, RelPath, SymlinkNode, TreeError,
};

use super::parallel;
use super::scan::{MAX_DEPTH, too_deep};
use super::source::{self, Entry, FileMeta, HashFailure, Kind, SourceRoot};
use super::stat_cache::StatCache;

/// The tree digest of each directory, whole and in the order given; several at once.
///
/// # Errors
/// For each directory its own: it does not exist, cannot be read, or holds what no tree can.
pub fn digest_trees(
    directories: &[PathBuf],
    cache: &StatCache,
    now: SystemTime,
) -> Vec<Result<Digest, OutputTreeError>> {
    parallel::map(directories, 8, Vec::new, |buffer, directory| {
        TreeReader { cache, now, buffer, root: open(directory)? }.digest(&RelPath::root(), 0)
    })
}

/// The tree digest of one directory. Its blobs are not kept.
///
/// # Errors
/// As for [`digest_trees`].
pub fn digest_tree(
    directory: &Path,
    cache: &StatCache,
    now: SystemTime,
) -> Result<Digest, OutputTreeError> {
    let root = open(directory)?;
    TreeReader { cache, now, buffer: &mut Vec::new(), root }.digest(&RelPath::root(), 0)
}

fn open(directory: &Path) -> Result<SourceRoot, OutputTreeError> {
    SourceRoot::open(directory)
        .map_err(|source| OutputTreeError::Io { path: directory.to_owned(), source })
}

struct TreeReader<'a> {
    root: SourceRoot,
    cache: &'a StatCache,
    now: SystemTime,
    buffer: &'a mut Vec<u8>,
}

impl TreeReader<'_> {
    fn digest(&mut self, path: &RelPath, depth: u32) -> Result<Digest, OutputTreeError> {
        let (mut files, mut directories, mut symlinks) = (Vec::new(), Vec::new(), Vec::new());
        let failed = |root: &SourceRoot, source| OutputTreeError::Io {
            path: root.display_path(path),
            source,
        };
        if depth > MAX_DEPTH {
            return Err(failed(&self.root, too_deep()));
        }
        let mut listing = self.root.listing(path).map_err(|error| failed(&self.root, error))?;
        let names = source::list(&mut listing).map_err(|error| failed(&self.root, error))?;
        for (name, kind) in names {
            let entry = match kind {
                Some(Kind::Directory) => Some(Entry::Directory),
                _ => source::look_up(&listing, name.as_bytes())
                    .map_err(|error| failed(&self.root, error))?,
            };
            match entry {
                Some(Entry::File(meta)) => {
                    let (meta, digest) = self.file(&path.join(&name), meta)?;
                    files.push(FileNode { name, digest, executable: meta.executable });
                }
                Some(Entry::Symlink(target)) => symlinks.push(SymlinkNode { name, target }),
                Some(Entry::Directory) => {
                    let digest = self.digest(&path.join(&name), depth + 1)?;
                    directories.push(DirectoryNode { name, digest });
                }
                Some(Entry::Special(kind)) => {
                    let path = self.root.display_path(&path.join(&name));
                    return Err(OutputTreeError::Special { path, kind });
                }
                None => {
                    let path = self.root.display_path(&path.join(&name));
                    return Err(OutputTreeError::Changing { path });
                }
            }
        }
        let directory = Directory::new(files, directories, symlinks)?;
        Ok(directory.encode_with_digest(self.cache.function()).0)
    }

    fn file(
        &mut self,
        path: &RelPath,
        meta: FileMeta,
    ) -> Result<(FileMeta, Digest), OutputTreeError> {
        if let Some(digest) = self.cache.get(&meta.identity) {
            return Ok((meta, digest));
        }
        match self.root.hash_file(path, self.cache.function(), self.buffer) {
            Ok(hashed) => {
                self.cache.remember(&hashed.meta.identity, &hashed.digest, self.now);
                Ok((hashed.meta, hashed.digest))
            }
            Err(HashFailure::Changed) => {
                Err(OutputTreeError::Changing { path: self.root.display_path(path) })
            }
            Err(HashFailure::Io(source)) => {
                Err(OutputTreeError::Io { path: self.root.display_path(path), source })
            }
        }
    }
}

/// Why a directory has no tree digest.
#[derive(Debug, thiserror::Error)]
pub enum OutputTreeError {
    /// It does not exist or cannot be read.
    #[error("failed to read {path:?}: {source}")]
    Io {
        /// What cannot be read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It holds a pipe, a socket or a device.
    #[error("{path:?} is {kind}")]
    Special {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It changes while it is read.
    #[error("{path:?} changes while it is read")]
    Changing {
        /// Which file.
        path: PathBuf,
    },
    /// It is no tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
}
