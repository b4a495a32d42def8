//! Directories of input roots for the agent itself: from the store, where most are because a command looked
//! into them, or brought there.

use std::sync::Arc;
use std::time::Duration;

use distbuild_cas::{Filler, StoreError, Want};
use distbuild_proto::{Digest, Directory};

use crate::fetch::{Hint, InputSource, Need};
use crate::inputs::{Inputs, Place};

/// Reads directories.
pub(crate) struct Directories {
    filler: Filler<InputSource>,
    /// How long one may take to arrive.
    deadline: Duration,
}

impl std::fmt::Debug for Directories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directories").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Directories {
    pub(crate) fn new(filler: Filler<InputSource>, deadline: Duration) -> Self {
        Self { filler, deadline }
    }

    /// Reads a directory of an attempt's input root. Blocks; to be called on a blocking thread of the
    /// runtime.
    ///
    /// # Errors
    /// It is neither here nor can it be brought here in time; it is no directory; the disk fails.
    pub(crate) fn read(
        &self,
        digest: &Digest,
        inputs: &Arc<Inputs>,
    ) -> Result<Directory, StoreError> {
        inputs.keep(&[*digest]);
        let store = self.filler.store();
        let blob = match store.read(digest) {
            Err(StoreError::Missing(_) | StoreError::Damaged(_)) => {
                self.bring(digest, inputs)?;
                store.read(digest)?
            }
            read => read?,
        };
        Directory::decode(digest.function(), &blob)
            .map_err(|source| StoreError::NotDirectory { digest: *digest, source })
    }

    fn bring(&self, digest: &Digest, inputs: &Arc<Inputs>) -> Result<(), StoreError> {
        let (inputs, place) = (inputs.clone(), Place::Source);
        let hint = Hint { inputs, place, directory: true, need: Need::Now };
        let want = Want { digest: *digest, executable: false, hint };
        let bring = tokio::time::timeout(self.deadline, self.filler.ensure(want));
        let brought = tokio::runtime::Handle::current().block_on(bring);
        let reason = match brought {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not here after {} s", self.deadline.as_secs()),
        };
        tracing::warn!(directory.digest = %digest, reason, "failed to bring a directory");
        Err(StoreError::Missing(*digest))
    }
}
