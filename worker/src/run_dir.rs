//! The directories of one running worker below its state directory, and what dead ones left there.
//!
//! Each worker, embedded or not, uses `run/<pid>-<n>` and `actions/<pid>-<n>`. It holds a lock on
//! `run/<pid>-<n>/lock`, which its helper process inherits: the kernel gives it back when the last of
//! them is gone, however they died. Whoever starts removes the directories whose lock is free. A
//! lock on `run/lock` keeps two starting workers apart.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::WorkerError;
use crate::spread::spread_below;

/// The directories of one worker.
#[derive(Debug)]
pub(crate) struct RunDir {
    run: PathBuf,
    actions: PathBuf,
    lock: Flock<File>,
}

/// A lock that keeps other exclusive workers away from a state directory.
#[derive(Debug)]
pub(crate) struct ExclusiveLock {
    _lock: Flock<File>,
}

impl ExclusiveLock {
    /// Takes `<state>/worker.lock`.
    pub(crate) fn take(state: &Path) -> Result<Self, WorkerError> {
        make_dir(state)?;
        let path = state.join("worker.lock");
        match Flock::lock(open_lock(&path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                Err(WorkerError::StateInUse { state: state.to_owned(), lock: path })
            }
            Err((_, errno)) => Err(failed("lock", &path, errno.into())),
        }
    }
}

impl RunDir {
    /// Removes what dead workers left and makes directories of its own.
    pub(crate) fn make(state: &Path) -> Result<Self, WorkerError> {
        let (runs, actions) = (state.join("run"), state.join("actions"));
        make_dir(&runs)?;
        make_dir(&actions)?;
        let guard = runs.join("lock");
        let _guard = Flock::lock(open_lock(&guard)?, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed("lock", &guard, errno.into()))?;
        remove_leftovers(&runs, &actions)?;
        let pid = std::process::id();
        let free = |number: &u32| !runs.join(format!("{pid}-{number}")).exists();
        let number = (0..=u32::MAX).find(free).unwrap_or_default();
        let name = format!("{pid}-{number}");
        let (run, actions) = (runs.join(&name), actions.join(&name));
        make_dir(&run)?;
        make_dir(&run.join("mount"))?;
        make_dir(&run.join("passthrough"))?;
        make_dir(&actions)?;
        spread_below(&actions);
        let lock = run.join("lock");
        let lock = Flock::lock(open_lock(&lock)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| failed("lock", &lock, errno.into()))?;
        Ok(Self { run, actions, lock })
    }

    /// Where the helper mounts the file system, in a namespace of its own.
    pub(crate) fn mount(&self) -> PathBuf {
        self.run.join("mount")
    }

    /// Where the helper shows the file system once more, if large files can be read by passthrough.
    pub(crate) fn passthrough(&self) -> PathBuf {
        self.run.join("passthrough")
    }

    /// Below this every action has a directory, at its [`place`](crate::spread::place).
    pub(crate) fn actions(&self) -> &Path {
        &self.actions
    }

    /// The lock, for the helper process to inherit.
    pub(crate) fn lock(&self) -> &File {
        &self.lock
    }

    /// Removes the directories; for when the helper process is gone.
    pub(crate) fn remove(&self) {
        for path in [&self.actions, &self.run] {
            if let Err(error) = remove_tree(path) {
                tracing::warn!(path = %path.display(), %error, "failed to remove a directory");
            }
        }
    }
}

fn remove_leftovers(runs: &Path, actions: &Path) -> Result<(), WorkerError> {
    for entry in fs::read_dir(runs).map_err(|source| failed("read", runs, source))? {
        let run = entry.map_err(|source| failed("read", runs, source))?.path();
        if !run.is_dir() {
            continue;
        }
        let lock = run.join("lock");
        let dead = match OpenOptions::new().read(true).open(&lock) {
            Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok(),
            // It died between making the directory and the lock.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if dead && let Some(name) = run.file_name() {
            tracing::info!(path = %run.display(), "removing what a dead worker left");
            for path in [actions.join(name), run.clone()] {
                if let Err(error) = remove_tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "failed to remove leftovers");
                }
            }
        }
    }
    Ok(())
}

/// Removes a tree, also one in which a job has taken its owner's permissions away.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            permit(path)?;
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Lets the owner into every directory of a tree that nobody uses any more.
fn permit(path: &Path) -> io::Result<()> {
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<(), WorkerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| failed("make", path, source))
}

fn open_lock(path: &Path) -> Result<File, WorkerError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| failed("open", path, source))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> WorkerError {
    WorkerError::State { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not() {
        let state = tempfile::tempdir().unwrap();
        let living = RunDir::make(state.path()).unwrap();
        let dead = RunDir::make(state.path()).unwrap();
        let (run, actions) = (dead.run.clone(), dead.actions.clone());
        fs::create_dir_all(actions.join("7/out")).unwrap();
        drop(dead);
        let _third = RunDir::make(state.path()).unwrap();
        assert!(!actions.join("7").exists());
        assert!(living.run.exists() && living.actions.exists());
        assert_ne!(run, living.run);
    }

    #[test]
    fn a_state_directory_has_one_exclusive_worker() {
        let state = tempfile::tempdir().unwrap();
        let first = ExclusiveLock::take(state.path()).unwrap();
        let second = ExclusiveLock::take(state.path());
        assert!(matches!(second, Err(WorkerError::StateInUse { .. })));
        drop(first);
        ExclusiveLock::take(state.path()).unwrap();
    }

    #[test]
    fn a_tree_without_permissions_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("a/b");
        fs::create_dir_all(path.join("c")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        remove_tree(&state.path().join("a")).unwrap();
        assert!(!state.path().join("a").exists());
    }
}
