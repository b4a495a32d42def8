//! Lending: source files read again for whoever needs their contents, verified once more.
//!
//! Between hashing and reading a file may change. It is then an error that names the file, never
//! other bytes under the old digest: the file must be in the state in which it was hashed when it
//! is opened and when its end is reached, its bytes are hashed while they are read, and the last
//! piece is handed out only when the hash is right. So a file of one piece is verified before any
//! of it is seen; of a larger one a receiver may have seen pieces when the error comes, and has no
//! whole blob.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::{Digest, Hasher, RelPath};
use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::IngestStats;
use super::source::{self, FileIdentity, SourceRoot};
use super::stat_cache::StatCache;

/// The declared sources of a build: trees and digests at hand, contents on request.
pub struct Snapshot {
    pub(super) roots: Vec<Digest>,
    pub(super) directories: HashMap<Digest, Bytes>,
    pub(super) files: HashMap<Digest, LentFile>,
    pub(super) source: SourceRoot,
    pub(super) cache: Arc<StatCache>,
    pub(super) stats: IngestStats,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("source", &self.source)
            .field("jobs", &self.roots.len())
            .field("directories", &self.directories.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// A source file that may be lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LentFile {
    /// Where it lies below the source root; of several with equal contents the first that was
    /// found.
    pub path: RelPath,
    /// The state in which it was hashed.
    pub identity: FileIdentity,
}

impl Snapshot {
    /// The root directory of each job's pruned source tree, in the order of the jobs.
    pub fn roots(&self) -> &[Digest] {
        &self.roots
    }

    /// The blobs of all directories that the roots reach, each once.
    pub fn directories(&self) -> &HashMap<Digest, Bytes> {
        &self.directories
    }

    /// The files that jobs declare, by contents: all that may be lent.
    pub fn files(&self) -> &HashMap<Digest, LentFile> {
        &self.files
    }

    /// What the ingest did.
    pub fn stats(&self) -> IngestStats {
        self.stats
    }

    /// Opens a source file in the state in which it was hashed. Blocks; for a thread that may.
    ///
    /// # Errors
    /// No job declares such a file, it cannot be opened, or it has changed.
    pub fn open_verified(&self, digest: &Digest) -> Result<LentReader, LendError> {
        let file = self.files.get(digest).ok_or(LendError::NotDeclared(*digest))?;
        let path = self.source.display_path(&file.path);
        let fd = match self.source.open_file(&file.path) {
            Ok(fd) => fd,
            // It has been removed, or something else is in its place or above it.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR | Errno::ENXIO) => {
                return Err(LendError::SourceChanged { path });
            }
            Err(errno) => return Err(LendError::Io { path, source: errno.into() }),
        };
        let reader = LentReader {
            fd,
            path,
            digest: *digest,
            identity: file.identity,
            hasher: Some(digest.function().hasher()),
            cache: Arc::clone(&self.cache),
        };
        reader.check_identity()?;
        Ok(reader)
    }
}

/// A source file that is being lent.
#[derive(Debug)]
pub struct LentReader {
    fd: OwnedFd,
    path: PathBuf,
    digest: Digest,
    identity: FileIdentity,
    /// Gone when the end has been reached or an error met.
    hasher: Option<Hasher>,
    cache: Arc<StatCache>,
}

impl LentReader {
    /// The next piece of at most `max_bytes` (at least one); none at the end. An empty file has no
    /// piece, and is verified all the same. Blocks.
    ///
    /// # Errors
    /// The file has changed, or cannot be read. No more pieces come after an error.
    pub fn next_piece(&mut self, max_bytes: usize) -> Result<Option<Bytes>, LendError> {
        let Some(mut hasher) = self.hasher.take() else { return Ok(None) };
        let left = self.identity.size_bytes - hasher.size_bytes();
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(max_bytes.max(1));
        let mut piece = vec![0; wanted];
        let mut filled = 0;
        while filled < wanted {
            match nix::unistd::read(&self.fd, &mut piece[filled..]) {
                Ok(0) => return Err(self.changed()),
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(LendError::Io { path: self.path.clone(), source: errno.into() });
                }
            }
        }
        hasher.update(&piece);
        if hasher.size_bytes() < self.identity.size_bytes {
            self.hasher = Some(hasher);
        } else {
            self.check_end(hasher)?;
        }
        Ok((!piece.is_empty()).then(|| Bytes::from(piece)))
    }

    /// All of the file, verified. For files that the caller knows to be small.
    ///
    /// # Errors
    /// As for [`Self::next_piece`].
    pub fn read_all(mut self) -> Result<Bytes, LendError> {
        Ok(self.next_piece(usize::MAX)?.unwrap_or_default())
    }

    /// The file, for people to read.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    fn check_end(&self, hasher: Hasher) -> Result<(), LendError> {
        self.check_identity()?;
        if hasher.finish() == self.digest {
            return Ok(());
        }
        // The file looks as it did: what is remembered of it must not mislead the next build.
        self.cache.forget(&self.identity);
        Err(self.changed())
    }

    fn check_identity(&self) -> Result<(), LendError> {
        let stat = fstat(&self.fd)
            .map_err(|errno| LendError::Io { path: self.path.clone(), source: errno.into() })?;
        match source::file_meta(&stat) {
            Some(meta) if meta.identity == self.identity => Ok(()),
            _ => Err(self.changed()),
        }
    }

    fn changed(&self) -> LendError {
        LendError::SourceChanged { path: self.path.clone() }
    }
}

/// Why a source file cannot be lent.
#[derive(Debug, thiserror::Error)]
pub enum LendError {
    /// No job of the build declares a file with these contents.
    #[error("no declared source file has the contents {0}")]
    NotDeclared(Digest),
    /// The file is no longer what was hashed.
    #[error("the source file {path:?} has changed since the build read it")]
    SourceChanged {
        /// Which file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("failed to read the source file {path:?}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}
