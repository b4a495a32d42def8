//! Checks one job by itself: its dependencies, inputs, limits and environment.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Names;
use crate::graph::error::{Fault, GraphError, GraphErrors, JobLabel};
use crate::graph::job::{Job, Variable};
use crate::graph::needs::{Platform, Resources};
use crate::graph::pattern::InputPattern;
use crate::graph::raw::{RawJob, RawResources};
use crate::graph::template::{Template, TemplateError, VARIABLES};
use crate::graph::text::{Recent, Text};
use crate::graph::{JobIndex, nearest};

/// Longest time-out in milliseconds: 30 days.
const MAX_TIMEOUT_MS: u64 = 30 * 24 * 3600 * 1000;
/// Up to so many dependencies are searched one by one.
const FEW_DEPS: usize = 16;

/// Checks every job; the indexes in the result are positions in the file. What is wrong is left out.
pub(super) fn check_all(
    jobs: Vec<RawJob>,
    salt: &str,
    names: &Names,
    errors: &mut GraphErrors,
) -> Vec<Job> {
    let mut patterns = Recent::new();
    let mut last_salt: Arc<str> = joined_salt(salt, "");
    let no_salt = Arc::clone(&last_salt);
    let mut checked = Vec::with_capacity(jobs.len());
    for (number, raw) in jobs.into_iter().enumerate() {
        let mut check = JobCheck {
            number,
            command: None,
            names,
            deps: Vec::new(),
            dep_texts: Vec::new(),
            positions: HashMap::new(),
            patterns: &mut patterns,
            errors,
        };
        let own_salt = check.salt(&raw.salt);
        if own_salt.is_empty() {
            last_salt = Arc::clone(&no_salt);
        } else if last_salt.split_once('\0').is_none_or(|(_, own)| own != own_salt) {
            last_salt = joined_salt(salt, own_salt);
        }
        checked.push(check.run(raw, Arc::clone(&last_salt)));
    }
    checked
}

/// Both salts with a NUL between, which neither holds; empty if both are.
fn joined_salt(graph: &str, job: &str) -> Arc<str> {
    if graph.is_empty() && job.is_empty() {
        Arc::default()
    } else {
        format!("{graph}\0{job}").into()
    }
}

/// One job in the making.
pub(super) struct JobCheck<'a> {
    number: usize,
    /// The command at hand.
    pub(super) command: Option<usize>,
    names: &'a Names,
    deps: Vec<JobIndex>,
    /// How the job calls its dependencies.
    dep_texts: Vec<Text>,
    /// Positions in `deps`, if they are many.
    positions: HashMap<JobIndex, u32>,
    patterns: &'a mut Recent<InputPattern>,
    errors: &'a mut GraphErrors,
}

impl JobCheck<'_> {
    fn run(mut self, raw: RawJob, salt: Arc<str>) -> Job {
        self.deps(raw.deps);
        let inputs = self.inputs(&raw.inputs);
        let env = self.environment(raw.env);
        let commands = self.commands(raw.cmds);
        self.platform(&raw.platform);
        Job {
            name: raw.name,
            declared_id: raw.id.and_then(|id| id.parse().ok()),
            inputs,
            timeout: self.timeout(raw.timeout_ms),
            resources: self.resources(raw.resources),
            deps: std::mem::take(&mut self.deps).into(),
            commands,
            platform: raw.platform,
            env,
            network: raw.network,
            cache: raw.cache,
            salt,
            number: self.number as u32,
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        let name = Arc::clone(&self.names.list[self.number]);
        let job = Some(JobLabel { number: self.number, name });
        self.errors.push(GraphError { position: None, job, command: self.command, fault });
    }

    fn salt<'s>(&mut self, salt: &'s str) -> &'s str {
        if salt.contains('\0') {
            self.fault(Fault::SaltNul);
            return "";
        }
        salt
    }

    /// A dependency that stands twice counts once.
    fn deps(&mut self, raw: Box<[Text]>) {
        self.deps.reserve_exact(raw.len());
        self.dep_texts.reserve_exact(raw.len());
        for dep in raw {
            match self.resolve(dep.as_bytes()) {
                Some(index) if self.position(index).is_none() => {
                    self.deps.push(index);
                    self.dep_texts.push(dep);
                    self.index_deps();
                }
                Some(_) => {}
                None => self.missing_dep(&dep.to_string()),
            }
        }
    }

    /// The position of the dependency that an argument names, mostly as the job calls it in `deps`.
    fn dep_position(&self, argument: &[u8]) -> Option<u32> {
        let few = &self.dep_texts[..self.dep_texts.len().min(FEW_DEPS)];
        match few.iter().position(|text| text.as_bytes() == argument) {
            Some(position) => Some(position as u32),
            None => self.position(self.resolve(argument)?),
        }
    }

    fn resolve(&self, dep: &[u8]) -> Option<JobIndex> {
        self.names.resolve(std::str::from_utf8(dep).ok()?)
    }

    /// Keeps the map of positions, once it is worth having.
    fn index_deps(&mut self) {
        let from = match self.deps.len() {
            len if len <= FEW_DEPS => return,
            len if self.positions.is_empty() => {
                self.positions.reserve(len);
                0
            }
            len => len - 1,
        };
        let new = self.deps.iter().enumerate().skip(from);
        self.positions.extend(new.map(|(position, dep)| (*dep, position as u32)));
    }

    fn position(&self, dep: JobIndex) -> Option<u32> {
        if self.positions.is_empty() {
            self.deps.iter().position(|known| *known == dep).map(|position| position as u32)
        } else {
            self.positions.get(&dep).copied()
        }
    }

    fn missing_dep(&mut self, dep: &str) {
        let list = &self.names.list;
        let suggestion = self.errors.suggest(dep, list.len(), list.iter().map(|name| &**name));
        self.fault(Fault::MissingDep { dep: dep.to_owned(), suggestion });
    }

    fn inputs(&mut self, raw: &[Text]) -> Box<[InputPattern]> {
        let mut inputs = Vec::with_capacity(raw.len());
        for source in raw {
            match self.patterns.get_or(source, || InputPattern::parse(source.as_bytes())) {
                Ok(pattern) => inputs.push(pattern),
                Err(error) => self.fault(Fault::Input { input: source.to_string(), error }),
            }
        }
        inputs.into()
    }

    fn platform(&mut self, platform: &Platform) {
        let mut previous = None;
        for (name, _) in platform.iter() {
            if name.is_empty() || previous == Some(name) {
                self.fault(Fault::PlatformProperty(name.to_owned()));
            }
            previous = Some(name);
        }
    }

    fn timeout(&mut self, timeout_ms: Option<u64>) -> Option<Duration> {
        let timeout_ms = timeout_ms?;
        if timeout_ms == 0 || timeout_ms > MAX_TIMEOUT_MS {
            self.fault(Fault::Timeout(timeout_ms));
        }
        Some(Duration::from_millis(timeout_ms))
    }

    fn resources(&mut self, raw: RawResources) -> Resources {
        let mut resources = Resources::default();
        if let Some(cores) = raw.cores {
            let milli = (cores * 1000.0).round();
            if milli >= 1.0 && milli <= f64::from(Resources::MAX_MILLI_CORES) {
                resources.milli_cores = milli as u32;
            } else {
                self.fault(Fault::Cores(cores.to_string()));
            }
        }
        if let Some(memory_bytes) = raw.memory_bytes {
            if memory_bytes > Resources::MAX_MEMORY_BYTES {
                self.fault(Fault::Memory(memory_bytes));
            }
            resources.memory_bytes = memory_bytes;
        }
        resources
    }

    /// The entries sorted by name; of equal names the last counts, as programs that append to their
    /// own environment expect.
    pub(super) fn environment(&mut self, raw: Box<[Text]>) -> Box<[Variable]> {
        let mut variables: Vec<Variable> = Vec::with_capacity(raw.len());
        for entry in raw {
            variables.extend(self.variable(entry));
        }
        // Latest first among equals, which is the one that stays.
        variables.reverse();
        variables.sort_by(|a, b| a.name().cmp(b.name()));
        variables.dedup_by(|earlier, latest| earlier.name() == latest.name());
        variables.into()
    }

    fn variable(&mut self, entry: Text) -> Option<Variable> {
        let bytes = entry.as_bytes();
        let Some(name_len) = bytes.iter().position(|byte| *byte == b'=') else {
            self.fault(Fault::EnvironEntry(entry.to_string()));
            return None;
        };
        let name = &bytes[..name_len];
        if name.is_empty() || name.windows(2).any(|pair| pair == b"{{") {
            self.fault(Fault::EnvironName(entry.to_string()));
            return None;
        }
        let entry = self.template("an environment entry", entry)?;
        Some(Variable { entry, name_len })
    }

    /// A string that the operating system will get.
    pub(super) fn template(&mut self, what: &'static str, source: Text) -> Option<Template> {
        if source.as_bytes().contains(&0) {
            self.fault(Fault::Nul(what));
            return None;
        }
        self.text_template(what, source)
    }

    /// A string that may hold anything.
    pub(super) fn text_template(&mut self, what: &'static str, source: Text) -> Option<Template> {
        match Template::parse(source, |argument| self.dep_position(argument)) {
            Ok(template) => Some(template),
            Err(errors) => {
                for error in errors {
                    self.template_fault(what, error);
                }
                None
            }
        }
    }

    fn template_fault(&mut self, what: &'static str, error: TemplateError) {
        let fault = match error {
            TemplateError::UnknownVariable(token) => {
                let token = token.to_string();
                Fault::UnknownVariable { suggestion: nearest_variable(&token), token }
            }
            TemplateError::UnlistedDep(dep) => {
                let dep = dep.to_string();
                let listed = self.deps.iter().map(|dep| &*self.names.list[dep.get()]);
                let suggestion = self.errors.suggest(&dep, self.deps.len(), listed);
                let exists = self.names.resolve(&dep).is_some();
                Fault::UnlistedDep { dep, exists, suggestion }
            }
            TemplateError::TooLong => Fault::TooLong(what),
        };
        self.fault(fault);
    }
}

/// The nearest variable by its name alone; an argument may be of any length.
fn nearest_variable(token: &str) -> Option<&'static str> {
    let name = |token: &'_ str| -> usize {
        token.find(':').unwrap_or_else(|| token.find('}').unwrap_or(token.len()))
    };
    let names = VARIABLES.iter().map(|variable| &variable[2..name(variable)]);
    let found = nearest(&token[2..name(token)], names)?;
    VARIABLES.iter().copied().find(|variable| &variable[2..name(variable)] == found)
}
