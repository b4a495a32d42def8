//! `Job`: one node of a valid graph, and what it is lowered into.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::JobIndex;
use super::id::{JobId, Record};
use super::needs::{Platform, Resources};
use super::pattern::InputPattern;
use super::template::{SOURCE_DIR, Template};
use crate::action::{Action, ActionParts, CatStep, ExecStep, FIXED_ENVIRONMENT, Layout, Step};
use crate::digest::{Digest, DigestFunction};
use crate::wire;

/// A job whose fields have been checked; only a [`Graph`](super::Graph) holds them.
#[derive(Clone, Debug)]
pub struct Job {
    pub(super) name: Arc<str>,
    pub(super) declared_id: Option<JobId>,
    pub(super) inputs: Box<[InputPattern]>,
    pub(super) deps: Box<[JobIndex]>,
    pub(super) commands: Box<[Command]>,
    pub(super) platform: Platform,
    pub(super) timeout: Option<Duration>,
    pub(super) resources: Resources,
    pub(super) env: Box<[Variable]>,
    pub(super) network: bool,
    pub(super) cache: bool,
    /// The graph's salt and the job's own with a NUL between, or empty if both are.
    pub(super) salt: Arc<str>,
    /// Position in the file, from 0.
    pub(super) number: u32,
}

/// A command, not yet lowered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Exec { argv: Box<[Template]>, environ: Box<[Variable]>, working_directory: Option<Template> },
    Cat { text: Template, output: Template },
}

/// One entry of an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    /// `NAME=value`; there is no variable of ours in the name.
    pub(super) entry: Template,
    pub(super) name_len: usize,
}

impl Job {
    /// The name, unique in the graph; not empty, `.` or `..`, without NUL.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name, shared.
    pub fn shared_name(&self) -> &Arc<str> {
        &self.name
    }

    /// The id that the file declares, unique in the graph.
    pub fn declared_id(&self) -> Option<JobId> {
        self.declared_id
    }

    /// The source files that the job sees.
    pub fn inputs(&self) -> &[InputPattern] {
        &self.inputs
    }

    /// The jobs whose outputs it needs, each once and before it in the graph; the position here is
    /// the `n` of `/distbuild/dep/<n>`.
    pub fn deps(&self) -> &[JobIndex] {
        &self.deps
    }

    /// Number of commands.
    pub fn command_count(&self) -> usize {
        self.commands.len()
    }

    /// What a worker must offer.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// Limit of its run; none: the default of the coordinator.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// What to reserve.
    pub fn resources(&self) -> Resources {
        self.resources
    }

    /// Whether its commands may use the network.
    pub fn network(&self) -> bool {
        self.network
    }

    /// Whether its result may be reused.
    pub fn cache(&self) -> bool {
        self.cache
    }

    /// Position in the file or submission, from 0.
    pub fn number(&self) -> usize {
        self.number as usize
    }

    /// The commands, variables replaced and environment complete.
    pub fn steps(&self) -> Vec<Step> {
        self.commands.iter().map(|command| command.lower(&self.env)).collect()
    }

    /// What decides the job's id and key, but for dependencies and toolchain (layout: module `id`).
    ///
    /// `function` names the contents of the build, `source_root` is the source tree pruned to the
    /// inputs.
    pub fn record(&self, function: DigestFunction, source_root: Option<&Digest>) -> Record {
        let mut record = Record::default();
        record.bytes(b"distbuild job 1");
        record.number(function as u64);
        record.option(source_root, Record::digest);
        record.list(self.steps(), |record, step| step.record(record));
        self.platform.record(&mut record);
        record.flag(self.network);
        record.option(self.declared_id, |record, id| record.bytes(id.as_bytes()));
        record.bytes(self.salt.as_bytes());
        record
    }

    /// The action of this job with these inputs ([`input_root`](crate::action::input_root)) and the
    /// toolchain that the build picked.
    pub fn lower(&self, input_root: Digest, toolchain: &str) -> Action {
        Action::checked(ActionParts {
            layout: Layout::Native,
            steps: self.steps(),
            input_root,
            output_paths: Vec::new(),
            platform: self.platform.clone(),
            timeout: self.timeout,
            resources: self.resources,
            network: self.network,
            toolchain: toolchain.to_owned(),
            salt: self.salt.to_string(),
            declared_id: self.declared_id,
        })
    }

    /// The message of this job, with its dependencies called `deps`.
    pub(super) fn to_wire(&self, deps: Vec<String>) -> wire::Job {
        wire::Job {
            id: self.declared_id.map_or_else(String::new, |id| id.to_string()),
            name: self.name.to_string(),
            inputs: self.inputs.iter().map(InputPattern::to_bytes).collect(),
            deps,
            cmds: self.commands.iter().map(Command::to_wire).collect(),
            platform: self.platform.to_wire(),
            timeout_ms: self.timeout.map_or(0, |timeout| timeout.as_millis() as u64),
            resources: Some(self.resources.into()),
            env: self.env.iter().map(Variable::to_wire).collect(),
            network: self.network,
            cache: Some(self.cache),
            salt: self.salt.split_once('\0').map_or("", |(_, own)| own).to_owned(),
        }
    }
}

impl Command {
    fn lower(&self, env: &[Variable]) -> Step {
        match self {
            Self::Exec { argv, environ, working_directory } => Step::Exec(ExecStep::checked(
                argv.iter().map(|word| word.render().into()).collect(),
                environment(env, environ),
                working_directory
                    .as_ref()
                    .map_or(Bytes::from_static(SOURCE_DIR.as_bytes()), from_source),
            )),
            Self::Cat { text, output } => {
                let output = normalized(&output.render());
                Step::Cat(CatStep::checked(text.render().into(), output.into()))
            }
        }
    }

    fn to_wire(&self) -> wire::Command {
        match self {
            Self::Exec { argv, environ, working_directory } => wire::Command {
                exec: argv.iter().map(|word| word.source().to_bytes()).collect(),
                environ: environ.iter().map(Variable::to_wire).collect(),
                working_directory: working_directory
                    .as_ref()
                    .map_or_else(Bytes::new, |directory| directory.source().to_bytes()),
                ..wire::Command::default()
            },
            Self::Cat { text, output } => wire::Command {
                cat_template: text.source().to_bytes(),
                cat_output: output.source().to_bytes(),
                ..wire::Command::default()
            },
        }
    }
}

impl Variable {
    pub(super) fn name(&self) -> &[u8] {
        &self.entry.source().as_bytes()[..self.name_len]
    }

    fn to_wire(&self) -> Bytes {
        self.entry.source().to_bytes()
    }
}

/// The fixed environment, overridden by the job's, then by the command's; sorted by name.
fn environment(env: &[Variable], environ: &[Variable]) -> Vec<Bytes> {
    let fixed = FIXED_ENVIRONMENT.iter().map(|entry| Bytes::from_static(entry.as_bytes()));
    let given = env.iter().chain(environ).map(|variable| variable.entry.render().into());
    let mut entries: Vec<Bytes> = fixed.chain(given).collect();
    entries.reverse();
    // Stable: of equal names the latest comes first, and stays.
    entries.sort_by(|a, b| name(a).cmp(name(b)));
    entries.dedup_by(|earlier, latest| name(earlier) == name(latest));
    entries
}

fn name(entry: &[u8]) -> &[u8] {
    entry.split(|byte| *byte == b'=').next().unwrap_or_default()
}

/// A working directory; a relative one starts at the source directory.
fn from_source(directory: &Template) -> Bytes {
    let rendered = directory.render();
    if rendered.starts_with(b"/") {
        rendered.into()
    } else {
        [SOURCE_DIR.as_bytes(), b"/", &rendered].concat().into()
    }
}

/// An absolute path without `.`, `..` and superfluous slashes, by its text alone.
pub(super) fn normalized(path: &[u8]) -> Vec<u8> {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            _ => components.push(component),
        }
    }
    [b"/", components.join(&b'/').as_slice()].concat()
}

#[cfg(test)]
mod tests;
