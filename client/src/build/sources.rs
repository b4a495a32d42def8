//! The source side of a build: the trees of all its jobs, and what can be lent of them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use distbuild_cas::ingest::{Ingest, IngestError, Snapshot, StatCache};
use distbuild_proto::Digest;
use distbuild_proto::graph::{GraphErrors, Job};

use crate::exit::Failure;
use crate::places::Places;

/// The declared sources of a build.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// Directories, digests, and files that may be lent.
    pub(crate) snapshot: Arc<Snapshot>,
    /// What is known of files on this machine.
    pub(crate) stat_cache: Arc<StatCache>,
    /// The source tree of each job, in the order of the jobs; none for a job without inputs.
    pub(crate) roots: Vec<Option<Digest>>,
}

impl Sources {
    /// Reads what these jobs declare. Blocks and uses several threads.
    ///
    /// # Errors
    /// Every input that does not exist or cannot be one.
    pub(crate) fn read<'a>(
        places: &Places,
        stat_cache: Arc<StatCache>,
        jobs: impl Iterator<Item = &'a Job> + Clone,
    ) -> Result<Self, Failure> {
        let ingest = Ingest::new(&places.source, &places.excluded(), stat_cache.clone())
            .map_err(Failure::usage)?;
        let patterns: Vec<_> = jobs.clone().map(Job::inputs).collect();
        let snapshot = ingest
            .snapshot(&patterns, SystemTime::now())
            .map_err(|error| in_words(&error, jobs.clone()))?;
        if let Err(error) = stat_cache.save() {
            tracing::warn!(%error, "digests of source files not remembered");
        }
        let roots = jobs.zip(snapshot.roots());
        let roots = roots.map(|(job, root)| (!job.inputs().is_empty()).then_some(*root)).collect();
        Ok(Self { snapshot: Arc::new(snapshot), stat_cache, roots })
    }
}

fn in_words<'a>(error: &IngestError, jobs: impl Iterator<Item = &'a Job>) -> Failure {
    let IngestError::Inputs(errors) = error else { return Failure::usage(error) };
    let names: Vec<&str> = jobs.map(Job::name).collect();
    let mut text = match errors.len() {
        1 => "an input is invalid".to_owned(),
        count => format!("{count} inputs are invalid"),
    };
    if errors.len() > GraphErrors::LISTED {
        let _ = write!(text, ", the first {} are", GraphErrors::LISTED);
    }
    for error in errors.iter().take(GraphErrors::LISTED) {
        let _ = write!(text, "\n  job {:?}: {error}", names.get(error.job).unwrap_or(&""));
    }
    Failure::usage(text)
}
