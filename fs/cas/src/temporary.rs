//! Files that are not blobs yet, or no longer: `<root>/tmp/<pid>-<random>/<number>`.
//!
//! Every open store has a folder of its own, held under an `flock` that the kernel lets go of when
//! the process dies, however it dies. Whoever opens the store removes the folders that nobody holds.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::StoreError;
use crate::layout::Layout;

/// The folder for unfinished files of one open store.
#[derive(Debug)]
pub(crate) struct TemporaryFolder {
    path: PathBuf,
    next: AtomicU64,
    /// Holds the lock that says the folder is in use.
    _held: File,
}

impl TemporaryFolder {
    /// Removes what dead processes left and makes a folder of our own.
    pub(crate) fn open(layout: &Layout, nonce: &str) -> Result<Self, StoreError> {
        let parent = layout.temporary();
        let open = || -> io::Result<Self> {
            fs::create_dir_all(&parent)?;
            // A new folder is locked a moment after it is made; nobody may clean in that moment.
            let guard = File::open(&parent)?;
            guard.lock()?;
            remove_abandoned(&parent)?;
            let path = parent.join(format!("{}-{nonce}", std::process::id()));
            fs::create_dir(&path)?;
            let held = File::open(&path)?;
            held.lock()?;
            Ok(Self { path, next: AtomicU64::new(0), _held: held })
        };
        open().map_err(|source| StoreError::io("prepare", &parent, source))
    }

    /// A path in the folder that was never given before.
    pub(crate) fn next_path(&self) -> PathBuf {
        self.path.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "failed to remove unfinished files");
        }
    }
}

fn remove_abandoned(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let abandoned = match File::open(&path)?.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => return Err(error),
        };
        if abandoned {
            tracing::info!(path = %path.display(), "removing unfinished files of a dead process");
            match fs::symlink_metadata(&path)?.is_dir() {
                true => fs::remove_dir_all(&path)?,
                false => fs::remove_file(&path)?,
            }
        }
    }
    Ok(())
}

/// A file with a temporary name; gone when dropped, unless it was renamed away.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    path: Option<PathBuf>,
}

impl TemporaryFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path: Some(path) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// The file has another name now.
    pub(crate) fn renamed(mut self) {
        self.path = None;
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "failed to remove an unfinished file");
            }
            _ => {}
        }
    }
}
