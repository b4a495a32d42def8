//! What is wrong with a graph: every error names its job, and all of them are counted.

use std::fmt;
use std::sync::Arc;

use super::pattern::PatternError;
use super::suggest::nearest;

/// Place in a file, both counted from 1; the column in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Byte in the line.
    pub column: usize,
}

/// Which job an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobLabel {
    /// Position in the file, from 0.
    pub number: usize,
    /// Its name; empty if it has none.
    pub name: Arc<str>,
}

/// `job "cc lapi.c"`, or `job number 3` (from 1) of a job without a name.
impl fmt::Display for JobLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(f, "job number {}", self.number + 1)
        } else {
            write!(f, "job {:?}", self.name)
        }
    }
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphError {
    /// Where in the file, if that is known.
    pub position: Option<Position>,
    /// The job; none if it is about the whole file.
    pub job: Option<JobLabel>,
    /// The command of the job, from 0.
    pub command: Option<usize>,
    /// What is wrong.
    pub fault: Fault,
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Position { line, column }) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        if let Some(job) = &self.job {
            write!(f, "{job}: ")?;
        }
        if let Some(command) = self.command {
            write!(f, "cmds[{command}]: ")?;
        }
        self.fault.fmt(f)
    }
}

impl std::error::Error for GraphError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.fault)
    }
}

/// What can be wrong with a graph. Suggestions are the nearest known word, if one is near.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The text is no JSON, or a value has the wrong type.
    #[error("{0}")]
    Json(String),
    /// A version that is not ours.
    #[error("version {0} of the graph format is not known, only version 1 is")]
    Version(u64),
    /// A field that must be there is not.
    #[error("the field {0:?} is missing")]
    MissingField(&'static str),
    /// A field that the format does not have.
    #[error("unknown field {field:?}{}", did_you_mean(.suggestion.as_ref()))]
    UnknownField {
        /// The field as written.
        field: String,
        /// The nearest field.
        suggestion: Option<String>,
    },
    /// A key that stands twice in one object.
    #[error("the field {0:?} stands twice")]
    DuplicateField(String),
    /// More jobs than can be numbered.
    #[error("{0} jobs are too many")]
    TooManyJobs(usize),
    /// A job without a name.
    #[error("its name is missing or empty")]
    NameMissing,
    /// A name that is no directory's name.
    #[error("its name cannot be \".\" or \"..\"")]
    NameDots,
    /// A name with a NUL.
    #[error("its name holds a NUL")]
    NameNul,
    /// A name that is no directory's name even when `/` is escaped.
    #[error("its name has {0} bytes with \"/\" written as \"%2F\", a directory's has at most 255")]
    NameTooLong(usize),
    /// Two jobs with one name.
    #[error("duplicate name, job number {} has it too", .0 + 1)]
    DuplicateName(usize),
    /// Two names that are the same directory's name when `/` is escaped.
    #[error("its outputs would replace those of {0}: \"/\" is written as \"%2F\"")]
    NameCollides(JobLabel),
    /// A name that would be taken for another job.
    #[error("its name is the id of {0}")]
    NameIsId(JobLabel),
    /// No id.
    #[error("id {0:?} is not 40 lower-case hexadecimal digits")]
    MalformedId(String),
    /// Two jobs with one id.
    #[error("duplicate id, {0} declares it too")]
    DuplicateId(JobLabel),
    /// A dependency that is no job.
    #[error("dependency {dep:?} does not exist{}", did_you_mean(.suggestion.as_ref()))]
    MissingDep {
        /// The dependency as written.
        dep: String,
        /// The nearest name.
        suggestion: Option<String>,
    },
    /// Jobs that need each other. Holds the first names along the dependencies.
    #[error("depends on itself: {}", cycle(.names, *.length))]
    Cycle {
        /// The first names; each needs the next.
        names: Vec<Arc<str>>,
        /// Number of jobs in the cycle.
        length: usize,
    },
    /// A command of both kinds.
    #[error(
        "is both exec and cat; fill exec, environ and working_directory, or cat_template and cat_output"
    )]
    BothKinds,
    /// A command of no kind.
    #[error("is neither exec nor cat; fill exec, or cat_template and cat_output")]
    NeitherKind,
    /// A text without a file.
    #[error("has a cat_template but no cat_output")]
    CatWithoutOutput,
    /// No program.
    #[error("its argv is empty")]
    EmptyArgv,
    /// A string that the operating system cannot take.
    #[error("{0} holds a NUL")]
    Nul(&'static str),
    /// A string longer than a template may be.
    #[error("{0} is longer than 1 GiB")]
    TooLong(&'static str),
    /// A variable that does not exist.
    #[error(
        "unknown variable {token}{}",
        .suggestion.map_or_else(
            || format!("; for the text itself write {}", literal(.token)),
            |word| format!("; did you mean {word}?"),
        )
    )]
    UnknownVariable {
        /// The token as written.
        token: String,
        /// The nearest variable.
        suggestion: Option<&'static str>,
    },
    /// A variable for the output of a job that `deps` does not list.
    #[error("{{{{DEP:{dep}}}}} is not listed in deps{}", unlisted_hint(*.exists, .suggestion.as_ref()))]
    UnlistedDep {
        /// The argument as written.
        dep: String,
        /// There is such a job.
        exists: bool,
        /// The nearest dependency.
        suggestion: Option<String>,
    },
    /// An output that is not below the output directory.
    #[error("output path {0:?} does not lie below {{{{OUTPUT_DIR}}}}")]
    OutputLeaves(String),
    /// An entry of an environment without `=`.
    #[error("environment entry {0:?} has no \"=\"")]
    EnvironEntry(String),
    /// An entry of an environment without a name, or with a variable in it.
    #[error("environment entry {0:?} has no plain name before its \"=\"")]
    EnvironName(String),
    /// A platform property that has no name, or whose name stands twice.
    #[error("platform property {0:?} has no name or stands twice")]
    PlatformProperty(String),
    /// A time-out of nothing, or for ever.
    #[error("timeout_ms must lie between 1 and 2592000000 (30 days), not {0}")]
    Timeout(u64),
    /// No cores, or more than any machine has.
    #[error("resources.cores must lie between 0.001 and 4096, not {0}")]
    Cores(String),
    /// More memory than any machine has.
    #[error("resources.memory_bytes must be at most 1125899906842624 (1 PiB), not {0}")]
    Memory(u64),
    /// A salt with a NUL.
    #[error("the salt holds a NUL")]
    SaltNul,
    /// An input that is no path or glob below the source root.
    #[error("input {input:?} {error}")]
    Input {
        /// The input as written.
        input: String,
        /// Why.
        error: PatternError,
    },
    /// An input that is not on the disk.
    #[error("input {input:?} {}{}", missing_input(*.glob), did_you_mean(.suggestion.as_ref()))]
    InputMissing {
        /// The input as written.
        input: String,
        /// It is a glob that matches nothing.
        glob: bool,
        /// The nearest file.
        suggestion: Option<String>,
    },
    /// An input that lies behind a symlink.
    #[error("input {input:?} leaves the source root through the symlink {link:?}")]
    InputThroughSymlink {
        /// The input as written.
        input: String,
        /// The symlink, relative to the source root.
        link: String,
    },
    /// A selector that no known pool of workers matches.
    #[error("no known worker pool offers {selector}{}", did_you_mean(.suggestion.as_ref()))]
    NoPool {
        /// The properties that are asked for.
        selector: String,
        /// The nearest property that is offered.
        suggestion: Option<String>,
    },
}

fn did_you_mean(suggestion: Option<&String>) -> String {
    suggestion.map_or_else(String::new, |word| format!("; did you mean {word:?}?"))
}

fn literal(token: &str) -> String {
    let inner = token.strip_prefix("{{").and_then(|token| token.strip_suffix("}}"));
    format!("{{{{LITERAL:{}}}}}", inner.unwrap_or(token))
}

fn unlisted_hint(exists: bool, suggestion: Option<&String>) -> String {
    match suggestion {
        _ if exists => "; add it there".to_owned(),
        Some(dep) => format!("; did you mean {{{{DEP:{dep}}}}}?"),
        None => String::new(),
    }
}

fn missing_input(glob: bool) -> &'static str {
    if glob { "matches nothing" } else { "does not exist" }
}

fn cycle(names: &[Arc<str>], length: usize) -> String {
    let mut text = names.join(" -> ");
    if length > names.len() {
        text.push_str(&format!(" -> … {} more …", length - names.len()));
    }
    if let Some(first) = names.first() {
        text.push_str(" -> ");
        text.push_str(first);
    }
    text
}

/// All errors of a graph: the first [`GraphErrors::LISTED`], and the count of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphErrors {
    listed: Vec<GraphError>,
    total: usize,
    comparisons_left: usize,
}

impl GraphErrors {
    /// How many errors are listed.
    pub const LISTED: usize = 100;
    /// How many words all suggestions of a graph may be compared with, so that a hundred misspelt
    /// names among a million do not take minutes.
    const COMPARISONS: usize = 5_000_000;

    /// No errors.
    pub fn new() -> Self {
        Self { listed: Vec::new(), total: 0, comparisons_left: Self::COMPARISONS }
    }

    /// Counts an error, and lists it if it is one of the first.
    pub fn push(&mut self, error: GraphError) {
        self.total += 1;
        if self.listed.len() < Self::LISTED {
            self.listed.push(error);
        }
    }

    /// Counts errors that are not worth making because the list is full.
    pub(super) fn count(&mut self, more: usize) {
        self.total += more;
    }

    /// An error about one job.
    pub fn push_job(&mut self, number: usize, name: &Arc<str>, fault: Fault) {
        let job = Some(JobLabel { number, name: Arc::clone(name) });
        self.push(GraphError { position: None, job, command: None, fault });
    }

    /// The nearest of some `count` candidates, unless the list is full or too much was compared.
    pub(super) fn suggest<'a>(
        &mut self,
        wanted: &str,
        count: usize,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Option<String> {
        if self.listed.len() >= Self::LISTED || count > self.comparisons_left {
            return None;
        }
        self.comparisons_left -= count;
        nearest(wanted, candidates).map(str::to_owned)
    }

    /// The first errors.
    pub fn listed(&self) -> &[GraphError] {
        &self.listed
    }

    /// How many there are in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// `value` if there are no errors, else the errors.
    ///
    /// # Errors
    /// These.
    pub fn unless_empty<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl Default for GraphErrors {
    fn default() -> Self {
        Self::new()
    }
}

/// One error on one line; several as a heading with one line each.
impl fmt::Display for GraphErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.listed.as_slice(), self.total) {
            ([only], 1) => return only.fmt(f),
            (listed, total) if listed.len() < total => {
                write!(f, "{total} errors in the graph, the first {} are", listed.len())?;
            }
            (_, total) => write!(f, "{total} errors in the graph")?,
        }
        self.listed.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for GraphErrors {}
