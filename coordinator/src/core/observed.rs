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
use distbuild_proto::{AccessRecord, Digest, Directory, wire};
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

/// What records say of a job.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(super) job: JobRef,
    /// The runs that were compared. If the last one has no change, it stands for the job.
    pub(super) compared: Vec<wire::ComparedRun>,
    /// The result of that run.
    pub(super) cached: Option<CachedResult>,
}

impl Core {
    /// What to ask about a job that neither key finds; none if it has nothing to look at, or nobody wants to know.
    pub(super) fn question(&self, job: JobRef) -> Option<Question> {
        let build = self.builds.get(&job.build).filter(|build| build.is_observed(job))?;
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
            let nothing = |job| Observed { job, compared: Vec::new(), cached: None };
            let commands =
                questions.iter().map(|asked| (asked.command, asked.declared_id)).collect();
            let candidates = state.candidates(commands).await.unwrap_or_else(|error| {
                tracing::error!(%error, "failed to look up what commands looked at");
                vec![Vec::new(); jobs.len()]
            });
            let comparing = tokio::task::spawn_blocking(move || {
                let asked = questions.into_iter().zip(candidates);
                asked.map(|(question, of)| question.answer(&of, &known)).unzip()
            });
            let (mut answers, matches): (Vec<Observed>, Vec<Option<[u8; 32]>>) = comparing
                .await
                .unwrap_or_else(|_| jobs.into_iter().map(|job| (nothing(job), None)).unzip());
            let keys = matches.iter().copied().flatten().collect();
            let results = state.actions(keys).await.unwrap_or_else(|error| {
                tracing::error!(%error, "failed to look actions up");
                Vec::new()
            });
            let matched = answers.iter_mut().zip(&matches).filter(|(_, key)| key.is_some());
            for ((answer, _), cached) in matched.zip(results) {
                answer.cached = cached;
            }
            Message::Observed { answers }
        });
    }
}

impl Question {
    /// Compares with one run after the other, up to the first of which everything holds here; gives its action key.
    fn answer(self, runs: &[Candidate], known: &KnownDirectories) -> (Observed, Option<[u8; 32]>) {
        let mut answer = Observed { job: self.job, compared: Vec::new(), cached: None };
        if runs.is_empty() {
            return (answer, None);
        }
        let function = self.input_root.function();
        let own = self.own.iter().filter_map(|blob| {
            Some((function.digest(blob), Arc::new(Directory::decode(function, blob).ok()?)))
        });
        let here = Here { own: own.collect(), known };
        for run in runs {
            let compared = self.compare(run, &here);
            let holds = compared.change.is_none() && compared.unusable.is_empty();
            answer.compared.push(compared);
            if holds {
                return (answer, Some(run.action));
            }
        }
        (answer, None)
    }

    fn compare(&self, run: &Candidate, here: &Here<'_>) -> wire::ComparedRun {
        let action_key = Bytes::copy_from_slice(&run.action);
        let compared = wire::ComparedRun { action_key, ..Default::default() };
        let unusable = |why: String| wire::ComparedRun { unusable: why, ..compared.clone() };
        let record = match AccessRecord::decode(&run.record) {
            Ok(record) => record,
            Err(error) => return unusable(error.to_string()),
        };
        // Outputs of another function would not be those that were asked for.
        if record.root().digest.function() != self.input_root.function() {
            return unusable("its contents were named by another digest function".to_owned());
        }
        if !record.is_complete() {
            return unusable("not everything stands in it that was looked at".to_owned());
        }
        match record.compare(self.input_root, here) {
            Verdict::Holds => compared,
            Verdict::Differs(difference) => {
                let change = Some(wire::ObservedChange {
                    path: Bytes::copy_from_slice(difference.path.as_bytes()),
                    what: difference.change.to_string(),
                    dependency: String::new(),
                });
                wire::ComparedRun { change, ..compared }
            }
            Verdict::Unknown(digest) => {
                unusable(format!("directory {digest} of the input root is not at hand"))
            }
        }
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
