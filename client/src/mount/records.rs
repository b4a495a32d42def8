//! `Records`: the results and builds that a mount shows, as somebody wrote them down.

use distbuild_coordinator::{Archive, StateError};
use distbuild_fs::inspect::Unknown;
use distbuild_proto::wire;

use crate::build::deliver::with_causes;

/// The public id of a job.
pub(super) type JobId = [u8; 20];

/// Jobs and builds in one listing.
const MAX_LISTED: u32 = 10_000;

/// What somebody knows of results and builds. Calls may wait, with a deadline.
pub(super) trait Records: Send + Sync + 'static {
    /// The newest result under an id.
    fn result(&self, id: &JobId) -> Result<Option<wire::NamedResult>, Unknown>;

    /// Ids with results, newest first, not all of them.
    fn job_ids(&self) -> Result<Vec<JobId>, Unknown>;

    /// The names of jobs, in order, as far as they have results.
    fn job_names(&self, ids: &[JobId]) -> Result<Vec<Option<String>>, Unknown>;

    /// A build that runs or ran.
    fn build(&self, id: &str) -> Result<Option<wire::FinishedBuild>, Unknown>;

    /// Ids of builds, newest first, not all of them.
    fn build_ids(&self) -> Result<Vec<String>, Unknown>;
}

impl Records for Archive {
    fn result(&self, id: &JobId) -> Result<Option<wire::NamedResult>, Unknown> {
        self.result(id).map_err(failed)
    }

    fn job_ids(&self) -> Result<Vec<JobId>, Unknown> {
        let ids = self.job_ids(MAX_LISTED).map_err(failed)?;
        Ok(ids.into_iter().filter_map(|id| id.try_into().ok()).collect())
    }

    fn job_names(&self, ids: &[JobId]) -> Result<Vec<Option<String>>, Unknown> {
        ids.iter().map(|id| self.job_name(id).map_err(failed)).collect()
    }

    fn build(&self, id: &str) -> Result<Option<wire::FinishedBuild>, Unknown> {
        self.build(id).map_err(failed)
    }

    fn build_ids(&self) -> Result<Vec<String>, Unknown> {
        self.build_ids(MAX_LISTED).map_err(failed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is made for map_err")]
fn failed(error: StateError) -> Unknown {
    Unknown(with_causes(&error))
}

/// Of a state directory without results, such as a worker's.
#[derive(Debug)]
pub(super) struct NoRecords;

impl Records for NoRecords {
    fn result(&self, _: &JobId) -> Result<Option<wire::NamedResult>, Unknown> {
        Ok(None)
    }

    fn job_ids(&self) -> Result<Vec<JobId>, Unknown> {
        Ok(Vec::new())
    }

    fn job_names(&self, ids: &[JobId]) -> Result<Vec<Option<String>>, Unknown> {
        Ok(vec![None; ids.len()])
    }

    fn build(&self, _: &str) -> Result<Option<wire::FinishedBuild>, Unknown> {
        Ok(None)
    }

    fn build_ids(&self) -> Result<Vec<String>, Unknown> {
        Ok(Vec::new())
    }
}
