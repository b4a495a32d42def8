//! What one action has on the disk beside its inputs: the directory that it writes its outputs to, and next
//! to it the files that long streams go to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use distbuild_proto::action::Layout;

use crate::report::Trouble;
use crate::run_dir::remove_tree;
use crate::sandbox::protocol::{CHANGES_DIR, WORK_DIR};
use crate::spread;

/// The places of one action. Nothing is there before [`make`](Self::make).
#[derive(Debug)]
pub(crate) struct ActionDir {
    out: PathBuf,
}

impl ActionDir {
    /// Below the worker's directory of all actions, by the number of the action's view.
    pub(crate) fn new(actions: &Path, view: u64) -> Self {
        Self { out: spread::place(actions, view) }
    }

    /// The output directory.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// Where a stream goes that is too long to be kept in memory.
    pub(crate) fn spool(&self, stderr: bool) -> PathBuf {
        self.out.with_extension(if stderr { "stderr" } else { "stdout" })
    }

    /// What takes the changes that an action makes in its input root.
    pub(crate) fn changes(&self) -> PathBuf {
        self.out.join(CHANGES_DIR)
    }

    /// Makes the output directory, or, in the same place, what an overlay needs.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn make(&self, layout: Layout) -> Result<(), Trouble> {
        let make = |path: &Path| {
            let made = spread::make(path, 0o755);
            made.map_err(|source| Trouble::disk("make", path, source))
        };
        make(&self.out)?;
        match layout {
            Layout::Native => Ok(()),
            Layout::Root => make(&self.changes()).and_then(|()| make(&self.out.join(WORK_DIR))),
        }
    }

    /// Removes what is left. Blocks on the disk; what cannot be removed goes with the worker's directory.
    pub(crate) fn remove(self) {
        let spools = [self.spool(false), self.spool(true)];
        let removed = spools.iter().map(|spool| match fs::remove_file(spool) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        });
        for removed in removed.chain([remove_tree(&self.out)]) {
            if let Err(error) = removed {
                tracing::warn!(path = %self.out.display(), %error, "failed to remove an action");
            }
        }
    }
}
