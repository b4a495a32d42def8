//! Why a job runs, or what stands for it: written down when it is decided, for whoever asks later.
//!
//! The input root of a job is forgotten with its build, so what was compared cannot be compared again. Jobs
//! that their job keys find take no decision here; of them nothing is written.

use bytes::Bytes;
use distbuild_proto::action::DEP_NAME;
use distbuild_proto::wire::{self, Decision};
use distbuild_sched::JobRef;

use super::Core;
use super::work::Work;
use crate::event_log::unix_ms;

/// How many explanations are gathered in one message to the database.
const EXPLANATIONS_AT_ONCE: usize = 1024;

/// What belongs to a decision.
#[derive(Debug, Default)]
pub(super) struct Explained {
    pub(super) result: Option<wire::JobResult>,
    pub(super) compared: Vec<wire::ComparedRun>,
    pub(super) outputs_were_lost: bool,
}

impl Core {
    /// Writes down how it was decided whether a job runs.
    pub(super) fn explain(&mut self, job: JobRef, decision: Decision, explained: Explained) {
        let Some(build) = self.builds.get(&job.build) else { return };
        let Work::Graph(work) = &build.work else { return };
        let index = job.index as usize;
        let key = build.job(job).prepared.as_ref().map(|prepared| prepared.key);
        let deps = build.work.deps(index);
        let Explained { result, mut compared, outputs_were_lost } = explained;
        for change in compared.iter_mut().filter_map(|run| run.change.as_mut()) {
            let position = dependency(&change.path).and_then(|position| deps.get(position));
            if let Some(dep) = position {
                build.work.name(dep.get()).clone_into(&mut change.dependency);
            }
        }
        self.explanations.push(wire::Explanation {
            build_id: build.public_id.clone(),
            job_name: build.work.name(index).to_owned(),
            job_id: Bytes::copy_from_slice(work.ids[index].as_bytes()),
            time_ms: unix_ms(),
            decision: decision.into(),
            action_key: key.map(|key| Bytes::copy_from_slice(&key)).unwrap_or_default(),
            result,
            compared,
            outputs_were_lost,
        });
        if self.explanations.len() >= EXPLANATIONS_AT_ONCE {
            self.send_explanations();
        }
    }

    /// Sends the explanations of one round to the database, in the background.
    pub(super) fn send_explanations(&mut self) {
        if self.explanations.is_empty() {
            return;
        }
        let explanations = std::mem::take(&mut self.explanations);
        let state = self.shared.state.clone();
        tokio::spawn(async move {
            if let Err(error) = state.explain(explanations).await {
                tracing::warn!(%error, "failed to write down why jobs run");
            }
        });
    }
}

/// The position of the dependency whose outputs a path inside the input root leads to.
fn dependency(path: &[u8]) -> Option<usize> {
    let below = path.strip_prefix(DEP_NAME.as_bytes())?.strip_prefix(b"/")?;
    let position = below.split(|byte| *byte == b'/').next()?;
    std::str::from_utf8(position).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_outputs_names_the_dependency() {
        assert_eq!(dependency(b"dep/12/lib/a.h"), Some(12));
        assert_eq!(dependency(b"dep/0"), Some(0));
        assert_eq!(dependency(b"src/dep/0"), None);
        assert_eq!(dependency(b"dep"), None);
    }
}
