//! `RawGraph`: a graph as it was read, before anything in it is believed.
//!
//! It is read from messages here and from text in [`json`]. Strings are shared as they come, so
//! that a graph of a million jobs costs little more than the distinct words in it.

mod json;

use std::sync::Arc;

use super::error::GraphErrors;
use super::needs::Platform;
use super::text::{Text, Texts};
use crate::wire;

/// A graph in which anything may be wrong.
#[derive(Clone, Debug)]
pub struct RawGraph {
    pub(super) salt: Arc<str>,
    pub(super) jobs: Vec<RawJob>,
    /// What the reading has found already.
    pub(super) errors: GraphErrors,
    texts: Texts,
    /// The platform of the job before, which is mostly that of the next one.
    platform: Platform,
}

/// A job in which anything may be wrong.
#[derive(Clone, Debug)]
pub(super) struct RawJob {
    pub(super) id: Option<Box<str>>,
    pub(super) name: Arc<str>,
    pub(super) inputs: Box<[Text]>,
    pub(super) deps: Box<[Text]>,
    pub(super) cmds: Vec<RawCommand>,
    pub(super) platform: Platform,
    pub(super) timeout_ms: Option<u64>,
    pub(super) resources: RawResources,
    pub(super) env: Box<[Text]>,
    pub(super) network: bool,
    pub(super) cache: bool,
    pub(super) salt: Box<str>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct RawCommand {
    /// Absent and empty differ, for the error only.
    pub(super) exec: Option<Box<[Text]>>,
    pub(super) environ: Box<[Text]>,
    pub(super) working_directory: Option<Text>,
    pub(super) cat_template: Option<Text>,
    pub(super) cat_output: Option<Text>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RawResources {
    pub(super) cores: Option<f64>,
    pub(super) memory_bytes: Option<u64>,
}

impl Default for RawJob {
    fn default() -> Self {
        Self {
            id: None,
            name: Arc::default(),
            inputs: Box::default(),
            deps: Box::default(),
            cmds: Vec::new(),
            platform: Platform::default(),
            timeout_ms: None,
            resources: RawResources::default(),
            env: Box::default(),
            network: false,
            cache: true,
            salt: Box::default(),
        }
    }
}

impl RawGraph {
    /// A graph without jobs.
    pub fn new(salt: &str) -> Self {
        Self {
            salt: salt.into(),
            jobs: Vec::new(),
            errors: GraphErrors::new(),
            texts: Texts::new(),
            platform: Platform::default(),
        }
    }

    /// Number of jobs so far.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there are no jobs yet.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Adds the job of a message.
    pub fn push(&mut self, job: wire::Job) {
        let job = RawJob {
            id: (!job.id.is_empty()).then(|| job.id.into()),
            name: job.name.into(),
            inputs: self.texts(&job.inputs),
            deps: self.texts(&job.deps),
            cmds: job.cmds.iter().map(|command| self.command(command)).collect(),
            platform: self.wire_platform(&job.platform),
            timeout_ms: (job.timeout_ms > 0).then_some(job.timeout_ms),
            resources: job.resources.map_or_else(RawResources::default, RawResources::from),
            env: self.texts(&job.env),
            network: job.network,
            cache: job.cache.unwrap_or(true),
            salt: job.salt.into(),
        };
        self.jobs.push(job);
    }

    fn command(&mut self, command: &wire::Command) -> RawCommand {
        RawCommand {
            exec: (!command.exec.is_empty()).then(|| self.texts(&command.exec)),
            environ: self.texts(&command.environ),
            working_directory: self.filled(&command.working_directory),
            cat_template: self.filled(&command.cat_template),
            cat_output: self.filled(&command.cat_output),
        }
    }

    fn texts<T: AsRef<[u8]>>(&mut self, words: &[T]) -> Box<[Text]> {
        words.iter().map(|word| self.texts.text(word.as_ref())).collect()
    }

    fn filled(&mut self, word: &[u8]) -> Option<Text> {
        (!word.is_empty()).then(|| self.texts.text(word))
    }

    fn wire_platform(&mut self, properties: &[wire::PlatformProperty]) -> Platform {
        let mut pairs: Vec<_> =
            properties.iter().map(|property| (&*property.name, &*property.value)).collect();
        pairs.sort_unstable();
        self.platform(&pairs)
    }

    /// The platform of sorted properties; shared with the job before if it has the same.
    fn platform(&mut self, properties: &[(&str, &str)]) -> Platform {
        if !self.platform.iter().eq(properties.iter().copied()) {
            self.platform = Platform::new(properties.iter().copied());
        }
        self.platform.clone()
    }
}

impl From<wire::Resources> for RawResources {
    fn from(message: wire::Resources) -> Self {
        let cores = f64::from(message.milli_cores) / 1000.0;
        Self {
            cores: (message.milli_cores > 0).then_some(cores),
            memory_bytes: Some(message.memory_bytes),
        }
    }
}
