//! A submission that goes on: what its client has heard and what was written down, job by job.

use std::collections::BTreeMap;

use distbuild_proto::{Digest, wire};
use tonic::Status;

use crate::core::{Resumed, Shared};
use crate::state::{AttemptEnd, CachedResult};

/// See the module.
pub(crate) struct Heard {
    /// The last event that the client has taken in.
    pub(crate) seq: u64,
    pub(crate) heard: wire::HeardBatch,
    pub(crate) ends: Vec<AttemptEnd>,
}

impl Heard {
    /// Brings it into the order of the graph. `found` gets the results that this build has, in place of what the
    /// cache holds now: those that were written down, and those that the client was told of.
    ///
    /// # Errors
    /// The client names a job that it does not have, or the state cannot be read.
    pub(crate) async fn settle(
        self,
        shared: &Shared,
        positions: &[u32],
        found: &mut [Option<CachedResult>],
    ) -> Result<Resumed, Status> {
        let position = |job: u32| {
            let text = || Status::invalid_argument(format!("there is no job {job}"));
            positions.get(job as usize).copied().ok_or_else(text)
        };
        let mut resumed = Resumed { seq: self.seq, ..Resumed::default() };
        for end in self.ends {
            let index = position(end.finished.job)?;
            resumed.ends.insert(index, end);
        }
        for (index, end) in &resumed.ends {
            if end.finished.outcome() == wire::Outcome::Executed
                && let Some(result) = &end.result
            {
                let holders = end.holders.clone();
                found[*index as usize] = Some(CachedResult { result: result.clone(), holders });
            }
        }
        let mut elsewhere = BTreeMap::new();
        for job in self.heard.finished {
            let index = position(job.job)?;
            resumed.told.insert(index, job.outcome());
            let Some(root) = &job.output_root else { continue };
            let known =
                found[index as usize].as_ref().and_then(|it| it.result.output_root.as_ref());
            if known != Some(root) {
                let root = Digest::try_from(root)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                elsewhere.insert(index, (root, job.action_key));
            }
        }
        for (index, (root, action_key)) in elsewhere {
            let holders = shared.state.holders_of(root).await;
            let holders = holders.map_err(|error| Status::internal(error.to_string()))?;
            let output_root = Some(root.into());
            let result = wire::JobResult { output_root, action_key, ..Default::default() };
            found[index as usize] = Some(CachedResult { result, holders });
        }
        for attempt in self.heard.attempts {
            resumed.attempts.insert(position(attempt.job)?, attempt);
        }
        Ok(resumed)
    }
}
