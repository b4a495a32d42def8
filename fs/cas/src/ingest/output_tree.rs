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

use super::scan::{MAX_DEPTH, too_deep};
use super::source::{self, Entry, FileIdentity, FileMeta, HashFailure, Kind, SourceRoot};
use super::stat_cache::StatCache;
use super::tree_memory::Identities;

/// The tree digest of one directory. Its blobs are not kept.
///
/// # Errors
/// It does not exist, cannot be read, or holds what no tree can.
pub fn digest_tree(
    directory: &Path,
    cache: &StatCache,
    now: SystemTime,
) -> Result<Digest, OutputTreeError> {
    read_tree(directory, cache, now, &mut Vec::new(), None)
}

/// The same with a buffer to read into, gathering the identity of everything that is looked at.
pub(super) fn read_tree(
    directory: &Path,
    cache: &StatCache,
    now: SystemTime,
    buffer: &mut Vec<u8>,
    identities: Option<&mut Identities>,
) -> Result<Digest, OutputTreeError> {
    let root = SourceRoot::open(directory)
        .map_err(|source| OutputTreeError::Io { path: directory.to_owned(), source })?;
    TreeReader { root, cache, now, buffer, identities }.digest(&RelPath::root(), 0)
}

struct TreeReader<'a> {
    root: SourceRoot,
    cache: &'a StatCache,
    now: SystemTime,
    buffer: &'a mut Vec<u8>,
    identities: Option<&'a mut Identities>,
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
        // Before the names: what comes or goes while they are read makes it another one.
        let itself = source::identity(&listing).map_err(|error| failed(&self.root, error))?;
        self.note(path, &itself);
        let names = source::list(&mut listing).map_err(|error| failed(&self.root, error))?;
        for (name, kind) in names {
            let entry = match kind {
                Some(Kind::Directory) => Some(Entry::Directory),
                _ => source::look_up(&listing, name.as_bytes())
                    .map_err(|error| failed(&self.root, error))?,
            };
            match entry {
                Some(Entry::File(meta)) => {
                    let path = path.join(&name);
                    let (meta, digest) = self.file(&path, meta)?;
                    self.note(&path, &meta.identity);
                    files.push(FileNode { name, digest, executable: meta.executable });
                }
                Some(Entry::Symlink(target, identity)) => {
                    self.note(&path.join(&name), &identity);
                    symlinks.push(SymlinkNode { name, target });
                }
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

    fn note(&mut self, path: &RelPath, identity: &FileIdentity) {
        if let Some(identities) = &mut self.identities {
            identities.add(path.as_bytes(), identity);
        }
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
