//! What the file system needs now: brought into the store, verified, kept while its views live.
//!
//! Of a large blob the file system learns part by part what can be read, and says which reads wait: these
//! parts come first, and while no read waits, the clocks of the actions go on. It is fetched to its end as
//! long as an action that needed some of it runs; then, if nobody waits, the fetch ends and leaves nothing.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distbuild_cas::{DiskStore, FetchError, Filler, StoreError, Want};
use distbuild_fs::WantError;
use distbuild_fs::contents::BlobKind;
use distbuild_proto::Digest;
use futures::future::join_all;
use tokio::sync::mpsc;

use crate::clock::Stopped;
use crate::fetch::{FetchProblem, Hint, InputSource, Need};
use crate::fs_client::{FsClient, Wanted};
use crate::inputs::{Inputs, InputsByView};
use crate::large::{Arrived, LARGE_BYTES, UnderWay};

/// How often a blob is fetched that turned out damaged or vanished before it could be used.
const TRIES: usize = 3;
/// Speed below which a large blob is given up, in bytes a second.
const SLOWEST_BYTES_PER_SECOND: u64 = 256 << 10;

/// Serves the file system.
#[derive(Clone)]
pub(crate) struct Wants {
    pub(crate) store: DiskStore,
    pub(crate) filler: Filler<InputSource>,
    pub(crate) fs: FsClient,
    pub(crate) inputs: InputsByView,
    pub(crate) under_way: UnderWay,
    /// How long one blob may take; a large one also by its bytes at [`SLOWEST_BYTES_PER_SECOND`].
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
        if wanted.views.is_empty() {
            return Err(WantError::Refused("it belongs to no action".to_owned()));
        }
        let inputs = self.inputs.of(&wanted.views);
        if inputs.is_empty() {
            return Err(WantError::GivenUp);
        }
        let stopped = stop_clocks(&inputs);
        for inputs in &inputs {
            inputs.keep(&[wanted.digest]);
            inputs.prefetched.wanted(&wanted.digest);
        }
        if wanted.digest.size_bytes() > LARGE_BYTES {
            return self.bring_large(&wanted, &inputs, stopped).await;
        }
        let bring = self.bring_for_any(&wanted, &inputs);
        within(self.deadline, bring).await
    }

    async fn bring_large(
        &self,
        wanted: &Wanted,
        inputs: &[Arc<Inputs>],
        stopped: Vec<Stopped>,
    ) -> Result<(), WantError> {
        let slowest = Duration::from_secs(wanted.digest.size_bytes() / SLOWEST_BYTES_PER_SECOND);
        let bring = within(self.deadline + slowest, self.bring_for_any(wanted, inputs));
        let ended = join_all(inputs.iter().map(|inputs| inputs.ended.cancelled()));
        let (mut bring, mut ended) = (pin!(bring), pin!(ended));
        let flight = self.under_way.flight(&wanted.digest);
        let demand = self.fs.demands().listen(wanted.request);
        let mut arrived = flight.arrivals().subscribe();
        // Some may have come for others already.
        arrived.mark_changed();
        let mut _stopped = Some(stopped);
        loop {
            tokio::select! {
                result = &mut bring => return result,
                _ = &mut ended => return Err(WantError::GivenUp),
                Ok(()) = arrived.changed() => {
                    let Arrived { path, readable, .. } = arrived.borrow_and_update().clone();
                    if let Some(path) = path {
                        self.fs.arriving(wanted.request, path, readable).await;
                    }
                }
                (reads, waits) = demand.changed() => {
                    reads.iter().for_each(|bytes| flight.hurry(bytes));
                    match (waits, &_stopped) {
                        (true, None) => _stopped = Some(stop_clocks(inputs)),
                        (true, Some(_)) => {}
                        (false, _) => _stopped = None,
                    }
                }
            }
        }
    }

    /// Tries the attempts one after the other: the path belongs to one of them, and what it means there is
    /// nothing to the others.
    async fn bring_for_any(
        &self,
        wanted: &Wanted,
        inputs: &[Arc<Inputs>],
    ) -> Result<(), WantError> {
        let mut result = Err(WantError::GivenUp);
        let mut lost = false;
        for inputs in inputs {
            let place = inputs.place(&wanted.hint);
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
            let add = |inputs: &Arc<Inputs>| {
                inputs.add_lost(wanted.digest, inputs.place(&wanted.hint));
            };
            inputs.iter().for_each(add);
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

/// While contents are waited for.
fn stop_clocks(inputs: &[Arc<Inputs>]) -> Vec<Stopped> {
    let now = Instant::now();
    inputs.iter().map(|inputs| inputs.clock.stop(now)).collect()
}

async fn within(
    deadline: Duration,
    bring: impl Future<Output = Result<(), WantError>>,
) -> Result<(), WantError> {
    match tokio::time::timeout(deadline, bring).await {
        Ok(result) => result,
        Err(_) => Err(WantError::Deadline(millis(deadline))),
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
