//! The third look-up, after job and action: has the same command run where all that it looked at was as it is
//! here? Then it would do the same again, whatever else has changed among its inputs.
//!
//! The records of the command's last runs are compared with the new input root, directory by directory; equal ones
//! cost nothing. Only what is at hand is read, directories of sources and small output trees; a record that would
//! take more is no match. What is found is a claim like any other hit, checked before it is used.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::observed::{Directories, Verdict};
use distbuild_proto::{AccessRecord, Digest, Directory};
use distbuild_sched::JobRef;

use super::{Core, Message};
use crate::directories::KnownDirectories;
use crate::state::{CachedResult, Candidate};

/// A job of which neither key is known.
pub(super) struct Question {
    job: JobRef,
    command: [u8; 32],
    declared_id: Option<[u8; 20]>,
    input_root: Digest,
    /// The directories of the input root that only it has.
    own: Vec<Bytes>,
}

impl Core {
    /// What to ask about a job that neither key finds; none if it has nothing to look at.
    pub(super) fn question(&self, job: JobRef) -> Option<Question> {
        let build = self.builds.get(&job.build).filter(|build| build.has_inputs(job))?;
        let prepared = build.job(job).prepared.as_ref()?;
        Some(Question {
            job,
            command: *prepared.action.command_key().as_bytes(),
            declared_id: prepared.action.declared_id.map(|id| *id.as_bytes()),
            input_root: prepared.action.input_root,
            own: prepared.directories.clone(),
        })
    }

    /// Looks for runs that stand for these jobs; nothing here waits for it.
    pub(super) fn ask_records(&self, questions: Vec<Question>) {
        let (state, known) = (self.shared.state.clone(), self.shared.directories.clone());
        self.spawn_message(async move {
            let jobs: Vec<_> = questions.iter().map(|question| question.job).collect();
            let commands =
                questions.iter().map(|asked| (asked.command, asked.declared_id)).collect();
            let candidates = state.candidates(commands).await.unwrap_or_else(|error| {
                tracing::error!(%error, "failed to look up what commands looked at");
                Vec::new()
            });
            let matching = tokio::task::spawn_blocking(move || {
                let asked = questions.into_iter().zip(candidates);
                asked.filter_map(|(question, of)| question.answer(&of, &known)).collect()
            });
            let matches: Vec<(JobRef, [u8; 32])> = matching.await.unwrap_or_default();
            let keys = matches.iter().map(|(_, action)| *action).collect();
            let results = state.actions(keys).await.unwrap_or_else(|error| {
                tracing::error!(%error, "failed to look actions up");
                Vec::new()
            });
            let found = matches.into_iter().map(|(job, _)| job).zip(results);
            let mut found: HashMap<JobRef, Option<CachedResult>> = found.collect();
            let answer = |job| (job, found.remove(&job).flatten());
            Message::Observed { answers: jobs.into_iter().map(answer).collect() }
        });
    }
}

impl Question {
    /// The first run of which everything holds here.
    fn answer(self, runs: &[Candidate], known: &KnownDirectories) -> Option<(JobRef, [u8; 32])> {
        if runs.is_empty() {
            return None;
        }
        let function = self.input_root.function();
        let own = self.own.iter().filter_map(|blob| {
            Some((function.digest(blob), Arc::new(Directory::decode(function, blob).ok()?)))
        });
        let here = Here { own: own.collect(), known };
        let holds = |run: &&Candidate| {
            AccessRecord::decode(&run.record).is_ok_and(|record| {
                // Outputs of another function would not be those that were asked for.
                record.root().digest.function() == function
                    && record.is_complete()
                    && record.compare(self.input_root, &here) == Verdict::Holds
            })
        };
        let run = runs.iter().find(holds)?;
        tracing::debug!(
            job.index = self.job.index,
            "nothing that an earlier run looked at has changed"
        );
        Some((self.job, run.action))
    }
}

/// The directories of one input root.
struct Here<'a> {
    own: HashMap<Digest, Arc<Directory>>,
    known: &'a KnownDirectories,
}

impl Directories for Here<'_> {
    fn directory(&self, digest: &Digest) -> Option<Arc<Directory>> {
        self.own.get(digest).cloned().or_else(|| self.known.get(digest))
    }
}
