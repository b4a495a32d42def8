//! Executions: builds of one action, submitted by the edge of the Remote Execution API.
//!
//! They are scheduled, retried and made again like any job, and are in no table of builds. The edge plays the
//! client: it is told what happens by the same events, says when it has the outputs, and lets go of the execution when
//! it needs them no more. Until then the workers that ran it keep them, also those of a command that failed, and
//! the core keeps knowing who has them.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use distbuild_proto::action::{Action, ROOT_DIR};
use distbuild_proto::{DigestFunction, wire};
use distbuild_sched as sched;
use distbuild_sched::BuildId;

use super::builds::{Accepted, Build, Forgotten, Stopped, Submission};
use super::work::{ActionWork, Work};
use super::{Core, secret};
use crate::pools::Properties;

/// One action to be run.
pub(crate) struct Execution {
    /// By which workers know what they keep for it; unique.
    pub(crate) id: String,
    /// For people.
    pub(crate) name: String,
    /// Who shares the workers fairly with others.
    pub(crate) user: String,
    /// Lower runs sooner.
    pub(crate) class: u8,
    /// Of its contents.
    pub(crate) function: DigestFunction,
    /// Its input root is in the coordinator's store until the execution is let go of.
    pub(crate) action: Action,
    /// What a worker must offer.
    pub(crate) selector: Properties,
}

/// The executions among the builds.
#[derive(Default)]
pub(super) struct Executions {
    /// How many are queued or run.
    running: usize,
    /// Those that have ended and that the edge has not let go of.
    held: BTreeMap<BuildId, Build>,
}

impl Executions {
    pub(super) fn running(&self) -> usize {
        self.running
    }
}

/// Why an execution is not accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// As it says.
    #[error("the coordinator is shutting down")]
    ShuttingDown,
    /// The limit is reached.
    #[error("{limit} executions are queued or running, the limit; try again later")]
    Full {
        /// [`crate::Limits::max_executions`].
        limit: usize,
    },
    /// Workers are known, and none of them offers what it asks for.
    #[error("no worker can run it: {0}")]
    NoPool(String),
    /// The scheduler does not take it.
    #[error("{0}")]
    Plan(String),
}

impl Core {
    /// Queues an execution.
    pub(super) fn execute(&mut self, execution: Execution) -> Result<Accepted, Refused> {
        if self.shutdown.is_some() {
            return Err(Refused::ShuttingDown);
        }
        let limit = self.shared.limits.max_executions;
        if self.executions.running >= limit {
            return Err(Refused::Full { limit });
        }
        // While no worker has ever been seen it waits for the first one.
        let selector = self.pools.with_input_root(execution.selector, ROOT_DIR);
        let selector = selector.map_err(Refused::NoPool)?;
        let resources = execution.action.resources;
        let spec = sched::JobSpec {
            resources: sched::Resources::new(resources.milli_cores, resources.memory_bytes),
            selector: sched::SelectorId(0),
            // The edge takes the outputs like a client: if they are lost before, they are made again.
            requested: true,
            state: sched::JobState::Unknown,
        };
        let mut plan = Box::new(sched::Graph::new());
        plan.push(&[], spec).map_err(|error| Refused::Plan(error.to_string()))?;
        let header = wire::BuildHeader {
            user: execution.user,
            title: execution.name.clone(),
            priority_class: u32::from(execution.class),
            wants_outputs: true,
            no_cache: true,
            ..Default::default()
        };
        self.executions.running += 1;
        Ok(self.begin(Submission {
            build_id: execution.id,
            secret: secret(),
            header,
            function: execution.function,
            work: Work::Action(ActionWork::new(execution.name, execution.action)),
            plan,
            requested: vec![true],
            id_bytes: Bytes::new(),
            cached: vec![None],
            pools: vec![selector],
            pool_of: vec![0],
            metadata: self.shared.metadata.build(execution.function),
            declared: HashSet::new(),
            resumed: None,
        }))
    }

    /// An execution has ended: it is kept until the edge lets go of it.
    pub(super) fn execution_ended(&mut self, id: BuildId, build: Build) {
        self.executions.running -= 1;
        if build.let_go {
            self.forget_execution(id, build);
        } else {
            self.executions.held.insert(id, build);
        }
    }

    /// The edge needs nothing of an execution any more; if it still runs, it is cancelled.
    pub(super) fn let_go(&mut self, id: BuildId) {
        if let Some(build) = self.executions.held.remove(&id) {
            return self.forget_execution(id, build);
        }
        if let Some(build) = self.builds.get_mut(&id) {
            build.let_go = true;
            build.stopped.get_or_insert(Stopped::Cancelled);
            self.scheduler.handle(self.now(), sched::Event::Cancelled { build: id });
        }
    }

    fn forget_execution(&mut self, id: BuildId, build: Build) {
        for session in &build.ran_on {
            let release = wire::ReleaseBuild { build_id: build.public_id.clone() };
            self.send_to(*session, wire::to_worker::Body::ReleaseBuild(release));
        }
        self.forgotten.push_back(Forgotten::new(id, build));
    }
}
