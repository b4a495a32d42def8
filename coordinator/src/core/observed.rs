//! The third look-up, after job and action: has the same command run where all that it looked at was as it is
//! here? Then it would do the same again, whatever else has changed among its inputs.
//!
//! The records of the command's last runs are compared with the new input root, directory by directory; equal ones
//! cost nothing. Directories of sources and of small output trees are at hand; those of other outputs are read from
//! the workers first, and if that fails, a record that would take them is no match. What is found is a claim like any other hit, checked before it is used.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::observed::{Directories, Verdict};
use distbuild_proto::{AccessRecord, Digest, Directory, wire};
use distbuild_sched::JobRef;

use super::{Core, Message, output_trees};
use crate::directories::KnownDirectories;
use crate::locator::Session as SessionId;
use crate::state::{CachedResult, Candidate};

/// A job of which neither key is known.
#[derive(Debug)]
pub(crate) struct Question {
    job: JobRef,
    command: [u8; 32],
    declared_id: Option<[u8; 20]>,
    input_root: Digest,
    /// The directories of the input root that only it has.
    own: Vec<Bytes>,
    /// How often directories were fetched for it.
    fetched: usize,
    /// It is answered with what is at hand.
    last: bool,
}

/// Directories are fetched so often for one job; each time a whole tree of outputs.
const FETCHES: usize = 64;

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
            fetched: 0,
            last: false,
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
                asked.map(|(question, of)| question.answer(&of, &known)).collect::<Vec<_>>()
            });
            let answered = comparing.await.unwrap_or_else(|_| {
                jobs.into_iter()
                    .map(|job| Answered::Settled(Box::new(nothing(job)), None))
                    .collect()
            });
            let (mut answers, mut matches, mut unsettled) = (Vec::new(), Vec::new(), Vec::new());
            for answered in answered {
                match answered {
                    Answered::Settled(answer, run) => {
                        answers.push(*answer);
                        matches.push(run);
                    }
                    Answered::Missing(question, directory) => unsettled.push((question, directory)),
                }
            }
            let keys = matches.iter().copied().flatten().collect();
            let results = state.actions(keys).await.unwrap_or_else(|error| {
                tracing::error!(%error, "failed to look actions up");
                Vec::new()
            });
            let matched = answers.iter_mut().zip(&matches).filter(|(_, key)| key.is_some());
            for ((answer, _), cached) in matched.zip(results) {
                answer.cached = cached;
            }
            Message::Observed { answers, unsettled }
        });
    }

    /// Has a directory of some dependency's outputs fetched, and the question asked again.
    pub(super) fn fetch_for(&self, mut question: Question, directory: Digest) {
        let build = self.builds.get(&question.job.build);
        let roots = build.into_iter().flat_map(|build| {
            let deps = build.work.deps(question.job.index as usize).iter();
            deps.filter_map(|dep| build.jobs[dep.get()].output_root)
        });
        let lenders: BTreeSet<SessionId> =
            roots.flat_map(|root| self.sessions_with(&root)).collect();
        let lenders: Vec<_> = lenders.into_iter().collect();
        let (relay, known) = (self.shared.relay.clone(), self.shared.directories.clone());
        self.spawn_message(async move {
            let fetched = output_trees::fetch(&relay, &known, &lenders, directory).await;
            if let Err(error) = &fetched {
                tracing::info!(%error, %directory, "outputs are not compared with what runs looked at");
            }
            question.fetched += 1;
            question.last = fetched.is_err() || question.fetched == FETCHES;
            Message::AskAgain { question: Box::new(question) }
        });
    }
}

/// What came of a question.
enum Answered {
    /// With the action key of the run that stands for the job, if there is one.
    Settled(Box<Observed>, Option<[u8; 32]>),
    /// This directory is not at hand.
    Missing(Question, Digest),
}

enum Compared {
    Told(wire::ComparedRun),
    Missing(Digest),
}

impl Question {
    /// Compares with one run after the other, up to the first of which everything holds here.
    fn answer(self, runs: &[Candidate], known: &KnownDirectories) -> Answered {
        let mut answer = Box::new(Observed { job: self.job, compared: Vec::new(), cached: None });
        if runs.is_empty() {
            return Answered::Settled(answer, None);
        }
        let function = self.input_root.function();
        let own = self.own.iter().filter_map(|blob| {
            Some((function.digest(blob), Arc::new(Directory::decode(function, blob).ok()?)))
        });
        let here = Here { own: own.collect(), known };
        for run in runs {
            let compared = match self.compare(run, &here) {
                Compared::Told(compared) => compared,
                Compared::Missing(directory) => return Answered::Missing(self, directory),
            };
            let holds = compared.change.is_none() && compared.unusable.is_empty();
            answer.compared.push(compared);
            if holds {
                return Answered::Settled(answer, Some(run.action));
            }
        }
        Answered::Settled(answer, None)
    }

    fn compare(&self, run: &Candidate, here: &Here<'_>) -> Compared {
        let action_key = Bytes::copy_from_slice(&run.action);
        let compared = wire::ComparedRun { action_key, ..Default::default() };
        let unusable =
            |why: String| Compared::Told(wire::ComparedRun { unusable: why, ..compared.clone() });
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
            Verdict::Holds => Compared::Told(compared),
            Verdict::Differs(difference) => {
                let change = Some(wire::ObservedChange {
                    path: Bytes::copy_from_slice(difference.path.as_bytes()),
                    what: difference.change.to_string(),
                    dependency: String::new(),
                });
                Compared::Told(wire::ComparedRun { change, ..compared })
            }
            Verdict::Unknown(digest) if self.last => {
                unusable(format!("directory {digest} of the input root is not at hand"))
            }
            Verdict::Unknown(digest) => Compared::Missing(digest),
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
