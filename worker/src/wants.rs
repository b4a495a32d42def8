//! What the file system needs now: brought into the store, verified, kept while its views live.

use std::sync::Arc;
use std::time::{Duration, Instant};

use distbuild_cas::{DiskStore, FetchError, Filler, StoreError, Want};
use distbuild_fs::WantError;
use distbuild_fs::contents::BlobKind;
use distbuild_proto::Digest;
use tokio::sync::mpsc;

use crate::fetch::{FetchProblem, Hint, InputSource, Need};
use crate::fs_client::{FsClient, Wanted};
use crate::inputs::{Inputs, InputsByView, Place};

/// How often a blob is fetched that turned out damaged or vanished before it could be used.
const TRIES: usize = 3;

/// Serves the file system.
#[derive(Clone)]
pub(crate) struct Wants {
    pub(crate) store: DiskStore,
    pub(crate) filler: Filler<InputSource>,
    pub(crate) fs: FsClient,
    pub(crate) inputs: InputsByView,
    /// How long one blob may take.
    pub(crate) deadline: Duration,
}

impl Wants {
    /// Answers each want; ends with the file system. As many are under way as the file system lets be
    /// pending.
    pub(crate) async fn run(self, mut wanted: mpsc::Receiver<Wanted>) {
        while let Some(wanted) = wanted.recv().await {
            let wants = self.clone();
            tokio::spawn(async move {
                let request = wanted.request;
                let bring = async {
                    let result = wants.bring(wanted).await;
                    wants.fs.want_done(request, result).await;
                };
                tokio::select! {
                    () = bring => {}
                    () = wants.fs.lost() => {}
                }
            });
        }
    }

    async fn bring(&self, wanted: Wanted) -> Result<(), WantError> {
        let inputs = self.inputs.of(&wanted.views);
        if inputs.is_empty() {
            return Err(WantError::GivenUp);
        }
        let now = Instant::now();
        let _stopped: Vec<_> = inputs.iter().map(|inputs| inputs.clock.stop(now)).collect();
        for inputs in &inputs {
            inputs.keep(&[wanted.digest]);
            inputs.prefetched.wanted(&wanted.digest);
        }
        let bring = self.bring_for_any(&wanted, &inputs);
        match tokio::time::timeout(self.deadline, bring).await {
            Ok(result) => result,
            Err(_) => Err(WantError::Deadline(millis(self.deadline))),
        }
    }

    /// Tries the attempts one after the other: the path belongs to one of them, and what it means there is
    /// nothing to the others.
    async fn bring_for_any(
        &self,
        wanted: &Wanted,
        inputs: &[Arc<Inputs>],
    ) -> Result<(), WantError> {
        let place = Place::of(&wanted.hint);
        let mut result = Err(WantError::GivenUp);
        let mut lost = false;
        for inputs in inputs {
            let executable = wanted.kind == BlobKind::File { executable: true };
            let directory = wanted.kind == BlobKind::Directory;
            let hint = Hint { inputs: inputs.clone(), place, directory, need: Need::Now };
            match self.bring_for(Want { digest: wanted.digest, executable, hint }).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    lost = error.is_lost();
                    tracing::warn!(
                        blob.digest = %wanted.digest,
                        attempt = inputs.attempt,
                        error = %error,
                        "failed to bring an input"
                    );
                    result = Err(error.into_want_error());
                }
            }
        }
        if lost {
            inputs.iter().for_each(|inputs| inputs.add_lost(wanted.digest, place));
        }
        result
    }

    async fn bring_for(&self, want: Want<Hint>) -> Result<(), BringError> {
        let mut tries = 0;
        loop {
            tries += 1;
            self.filler.ensure(want.clone()).await?;
            match self.prepare(want.digest, want.executable).await {
                Err(StoreError::Missing(_) | StoreError::Damaged(_)) if tries < TRIES => {}
                prepared => return Ok(prepared?),
            }
        }
    }

    async fn prepare(&self, digest: Digest, executable: bool) -> Result<(), StoreError> {
        let store = self.store.clone();
        let prepared =
            tokio::task::spawn_blocking(move || store.prepare(&digest, executable).map(drop));
        prepared.await.unwrap_or(Err(StoreError::Thread))
    }
}

/// Why a blob is not at hand.
#[derive(Debug, thiserror::Error)]
enum BringError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BringError {
    fn problem(&self) -> Option<&FetchProblem> {
        match self {
            Self::Fetch(FetchError::Source { source, .. }) => source.downcast_ref(),
            _ => None,
        }
    }

    fn is_lost(&self) -> bool {
        matches!(self.problem(), Some(FetchProblem::Lost(_)))
    }

    fn into_want_error(self) -> WantError {
        match (&self, self.problem()) {
            (_, Some(problem)) => WantError::Refused(problem.to_string()),
            (Self::Fetch(FetchError::TimedOut { after, .. }), _) => {
                WantError::Deadline(millis(*after))
            }
            (Self::Fetch(FetchError::Store { source, .. }), _) => {
                WantError::Read(source.to_string())
            }
            (Self::Fetch(error), _) => WantError::Refused(error.to_string()),
            (Self::Store(error), _) => WantError::Read(error.to_string()),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
