//! `Action`: what a worker runs, whatever it came from.
//!
//! A native job is lowered into an action when its dependencies are done; a REAPI `Action` with its
//! `Command` becomes one of a single step. An action names its inputs by one digest, holds no
//! variables and no defaults any more, and is valid for as long as it exists.

use std::time::Duration;

use bytes::Bytes;

use crate::digest::{Digest, DigestError, DigestFunction};
use crate::graph::{ActionKey, CommandKey, JobId, OUTPUT_DIR, Platform, Record, Resources};
use crate::path::{Name, PathError, RelPath};
use crate::tree::{Directory, DirectoryNode, TreeError};
use crate::wire;

/// In the input root of a native job: its source tree.
pub const SOURCE_NAME: &str = "src";
/// In the input root of a native job: the outputs of its dependencies, by position.
pub const DEP_NAME: &str = "dep";
/// Where the steps of a [`Layout::Root`] action see their input root.
pub const ROOT_DIR: &str = "/distbuild/root";

/// The environment that every native command starts from, `NAME=value` sorted by name.
///
/// `SOURCE_DATE_EPOCH` is the date of every file that a job sees, 1980-01-01.
pub const FIXED_ENVIRONMENT: [&str; 6] = [
    "HOME=/distbuild/home",
    "LANG=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SOURCE_DATE_EPOCH=315532800",
    "TMPDIR=/tmp",
    "TZ=UTC",
];

/// How an input root appears to the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `src` and `dep` of the root at `/distbuild/src` and `/distbuild/dep`, read-only; the output is
    /// the whole of `/distbuild/out`.
    Native,
    /// The root at [`ROOT_DIR`], writable; the outputs are named.
    Root,
}

/// What an [`Action`] consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionParts {
    /// How the input root appears.
    pub layout: Layout,
    /// Run in order; the first that fails ends the action.
    pub steps: Vec<Step>,
    /// The `Directory` that holds all inputs.
    pub input_root: Digest,
    /// For [`Layout::Root`]: outputs relative to the input root, sorted, each once; the root itself stands for
    /// everything that the steps left there. Otherwise empty.
    pub output_paths: Vec<RelPath>,
    /// What the worker must offer.
    pub platform: Platform,
    /// Limit of the run; none: the default of the coordinator.
    pub timeout: Option<Duration>,
    /// What to reserve.
    pub resources: Resources,
    /// Whether the steps may use the network.
    pub network: bool,
    /// Fingerprint of the toolchain that the build picked; empty for REAPI actions.
    pub toolchain: String,
    /// Salts of graph and job, or of the REAPI action.
    pub salt: String,
    /// The id that the graph file declared.
    pub declared_id: Option<JobId>,
}

/// A valid action; its parts are read through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action(ActionParts);

impl std::ops::Deref for Action {
    type Target = ActionParts;

    fn deref(&self) -> &ActionParts {
        &self.0
    }
}

/// One thing that an action does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Runs a program.
    Exec(ExecStep),
    /// Writes a file.
    Cat(CatStep),
}

/// Runs a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecStep {
    argv: Vec<Bytes>,
    environ: Vec<Bytes>,
    working_directory: Bytes,
}

/// Writes text to a file, truncating it in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatStep {
    text: Bytes,
    output: Bytes,
}

/// Why parts or a message are no action.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// No program to run.
    #[error("a step has no program")]
    EmptyArgv,
    /// An argument, a variable or a path that the operating system cannot take.
    #[error("a step holds a NUL in an argument, its environment or a path")]
    Nul,
    /// An entry without a name or without `=`.
    #[error("environment entry {0:?} is not NAME=value")]
    Environ(String),
    /// Not sorted by name, or one name twice.
    #[error("the environment of a step is not sorted by name, each once")]
    UnsortedEnviron,
    /// The working directory is relative.
    #[error("working directory {0:?} is not absolute")]
    WorkingDirectory(String),
    /// A file that is written outside the place for outputs.
    #[error("output {path:?} does not lie below {base}")]
    Output {
        /// The path as it came.
        path: String,
        /// Where outputs lie in this layout.
        base: &'static str,
    },
    /// Not sorted, one path twice, or any at all in the native layout.
    #[error("output paths are not sorted, each once, or do not fit the layout")]
    OutputPaths,
    /// A number that names no layout.
    #[error("unknown layout {0}")]
    UnknownLayout(i32),
    /// A step of no kind.
    #[error("a step is neither exec nor cat")]
    UnknownStep,
    /// A declared id of another length than 20 bytes.
    #[error("a declared id has 20 bytes, not {0}")]
    DeclaredId(usize),
    /// More than any machine has.
    #[error("resources of {milli_cores} thousandths of a core and {memory_bytes} bytes of memory")]
    Resources {
        /// Thousandths of a core.
        milli_cores: u32,
        /// Memory in bytes.
        memory_bytes: u64,
    },
    /// The input root is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// An output path is no path.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl ExecStep {
    /// Checks a step: `environ` is `NAME=value`, sorted by name, each name once; the working
    /// directory is absolute.
    pub fn new(
        argv: Vec<Bytes>,
        environ: Vec<Bytes>,
        working_directory: Bytes,
    ) -> Result<Self, ActionError> {
        if argv.first().is_none_or(|program| program.is_empty()) {
            return Err(ActionError::EmptyArgv);
        }
        let strings = argv.iter().chain(&environ).chain([&working_directory]);
        if strings.into_iter().any(|string| string.contains(&0)) {
            return Err(ActionError::Nul);
        }
        let mut names = Vec::with_capacity(environ.len());
        for entry in &environ {
            match entry.iter().position(|byte| *byte == b'=') {
                Some(end) if end > 0 => names.push(&entry[..end]),
                _ => return Err(ActionError::Environ(lossy(entry))),
            }
        }
        if !names.is_sorted_by(|a, b| a < b) {
            return Err(ActionError::UnsortedEnviron);
        }
        if !working_directory.starts_with(b"/") {
            return Err(ActionError::WorkingDirectory(lossy(&working_directory)));
        }
        Ok(Self { argv, environ, working_directory })
    }

    /// For graphs, whose validation has checked the same already.
    pub(crate) fn checked(argv: Vec<Bytes>, environ: Vec<Bytes>, working_directory: Bytes) -> Self {
        Self { argv, environ, working_directory }
    }

    /// Program and arguments; not empty, nor is the program.
    pub fn argv(&self) -> &[Bytes] {
        &self.argv
    }

    /// The complete environment, `NAME=value`, sorted by name, each name once.
    pub fn environ(&self) -> &[Bytes] {
        &self.environ
    }

    /// An absolute path.
    pub fn working_directory(&self) -> &Bytes {
        &self.working_directory
    }
}

impl CatStep {
    /// Checks a step: `output` is absolute, without `.`, `..` or doubled slashes.
    pub fn new(text: Bytes, output: Bytes) -> Result<Self, ActionError> {
        let below = output.strip_prefix(b"/").filter(|below| !below.is_empty());
        match below.map(RelPath::new) {
            Some(Ok(_)) => Ok(Self { text, output }),
            _ => Err(ActionError::Output { path: lossy(&output), base: "/" }),
        }
    }

    /// For graphs, whose validation has checked the same already.
    pub(crate) fn checked(text: Bytes, output: Bytes) -> Self {
        Self { text, output }
    }

    /// What to write.
    pub fn text(&self) -> &Bytes {
        &self.text
    }

    /// The file, an absolute path.
    pub fn output(&self) -> &Bytes {
        &self.output
    }
}

impl Step {
    pub(crate) fn record(&self, record: &mut Record) {
        match self {
            Self::Exec(step) => {
                record.number(1);
                record.list(&step.argv, |record, word| record.bytes(word));
                record.list(&step.environ, |record, entry| record.bytes(entry));
                record.bytes(&step.working_directory);
            }
            Self::Cat(step) => {
                record.number(2);
                record.bytes(&step.text);
                record.bytes(&step.output);
            }
        }
    }
}

impl Action {
    /// Checks that the parts fit each other.
    ///
    /// # Errors
    /// Output paths that are not sorted or do not fit the layout, a cat step that writes elsewhere.
    pub fn new(parts: ActionParts) -> Result<Self, ActionError> {
        let base = match parts.layout {
            Layout::Native => OUTPUT_DIR,
            Layout::Root => ROOT_DIR,
        };
        let fits = parts.layout == Layout::Root || parts.output_paths.is_empty();
        if !fits || !parts.output_paths.is_sorted_by(|a, b| a < b) {
            return Err(ActionError::OutputPaths);
        }
        for step in &parts.steps {
            if let Step::Cat(cat) = step
                && !cat.output.strip_prefix(base.as_bytes()).is_some_and(|p| p.starts_with(b"/"))
            {
                return Err(ActionError::Output { path: lossy(&cat.output), base });
            }
        }
        let Resources { milli_cores, memory_bytes } = parts.resources;
        if milli_cores == 0
            || milli_cores > Resources::MAX_MILLI_CORES
            || memory_bytes > Resources::MAX_MEMORY_BYTES
        {
            return Err(ActionError::Resources { milli_cores, memory_bytes });
        }
        Ok(Self(parts))
    }

    /// For graphs, whose validation has checked the same already.
    pub(crate) fn checked(parts: ActionParts) -> Self {
        Self(parts)
    }

    /// What decides the result, and nothing else: not time-out, resources or name.
    ///
    /// BLAKE3 over a record (encoding as in `graph::id`) that holds in this order: bytes
    /// `distbuild action 1`; number: layout, 1 native, 2 root; list of steps; digest of the input root;
    /// list of output paths as bytes; list of platform properties, name and value; flag: network;
    /// toolchain; salt; option of the declared id. A step is the number 1, the lists argv and environ,
    /// and the working directory; or the number 2, the text and the output.
    pub fn digest(&self) -> ActionKey {
        let mut record = Record::default();
        record.bytes(b"distbuild action 1");
        record.number(self.layout.number());
        record.list(&self.steps, |record, step| step.record(record));
        record.digest(&self.input_root);
        record.list(&self.output_paths, |record, path| record.bytes(path.as_bytes()));
        self.platform.record(&mut record);
        record.flag(self.network);
        record.bytes(self.toolchain.as_bytes());
        record.bytes(self.salt.as_bytes());
        record.option(self.declared_id, |record, id| record.bytes(id.as_bytes()));
        ActionKey::new(blake3::hash(record.as_bytes()).into())
    }

    /// What the command is, whatever its inputs are: the digest's record without the input root and the
    /// declared id, which stands for inputs too.
    ///
    /// BLAKE3 over a record that holds in this order: bytes `distbuild command 1`; number: layout; list of
    /// steps; list of output paths; list of platform properties; flag: network; toolchain; salt.
    pub fn command_key(&self) -> CommandKey {
        let mut record = Record::default();
        record.bytes(b"distbuild command 1");
        record.number(self.layout.number());
        record.list(&self.steps, |record, step| step.record(record));
        record.list(&self.output_paths, |record, path| record.bytes(path.as_bytes()));
        self.platform.record(&mut record);
        record.flag(self.network);
        record.bytes(self.toolchain.as_bytes());
        record.bytes(self.salt.as_bytes());
        CommandKey::new(blake3::hash(record.as_bytes()).into())
    }

    /// The message.
    pub fn to_wire(&self) -> wire::Action {
        wire::Action {
            layout: self.layout.number() as i32,
            steps: self.steps.iter().map(wire::Step::from).collect(),
            input_root: Some(self.input_root.into()),
            output_paths: self
                .output_paths
                .iter()
                .map(|path| Bytes::copy_from_slice(path.as_bytes()))
                .collect(),
            platform: self.platform.to_wire(),
            timeout_ms: self
                .timeout
                .map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
            resources: Some(self.resources.into()),
            network: self.network,
            toolchain: self.toolchain.clone(),
            salt: self.salt.clone(),
            declared_id: self
                .declared_id
                .map_or_else(Bytes::new, |id| Bytes::copy_from_slice(id.as_bytes())),
        }
    }

    /// Checks a message.
    ///
    /// # Errors
    /// Whatever no action can hold.
    pub fn from_wire(message: wire::Action) -> Result<Self, ActionError> {
        let steps: Result<_, _> = message.steps.into_iter().map(Step::try_from).collect();
        let output_paths: Result<_, _> =
            message.output_paths.iter().map(|path| RelPath::new(path)).collect();
        let declared_id = match message.declared_id.len() {
            0 => None,
            JobId::LEN => Some(JobId::try_from(&message.declared_id[..])?),
            len => return Err(ActionError::DeclaredId(len)),
        };
        Self::new(ActionParts {
            layout: Layout::from_number(message.layout)?,
            steps: steps?,
            input_root: Digest::try_from(message.input_root)?,
            output_paths: output_paths?,
            platform: Platform::from_wire(message.platform),
            timeout: (message.timeout_ms > 0).then(|| Duration::from_millis(message.timeout_ms)),
            resources: message.resources.into(),
            network: message.network,
            toolchain: message.toolchain,
            salt: message.salt,
            declared_id,
        })
    }
}

impl Layout {
    fn number(self) -> u64 {
        match self {
            Self::Native => 1,
            Self::Root => 2,
        }
    }

    fn from_number(number: i32) -> Result<Self, ActionError> {
        match number {
            1 => Ok(Self::Native),
            2 => Ok(Self::Root),
            _ => Err(ActionError::UnknownLayout(number)),
        }
    }
}

impl From<&Step> for wire::Step {
    fn from(step: &Step) -> Self {
        let kind = match step {
            Step::Exec(step) => wire::step::Kind::Exec(wire::ExecStep {
                argv: step.argv.clone(),
                environ: step.environ.clone(),
                working_directory: step.working_directory.clone(),
            }),
            Step::Cat(step) => wire::step::Kind::Cat(wire::CatStep {
                text: step.text.clone(),
                output: step.output.clone(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::Step> for Step {
    type Error = ActionError;

    fn try_from(message: wire::Step) -> Result<Self, ActionError> {
        match message.kind {
            Some(wire::step::Kind::Exec(step)) => {
                ExecStep::new(step.argv, step.environ, step.working_directory).map(Self::Exec)
            }
            Some(wire::step::Kind::Cat(step)) => {
                CatStep::new(step.text, step.output).map(Self::Cat)
            }
            None => Err(ActionError::UnknownStep),
        }
    }
}

/// The input root of a native job, `{src, dep/{0, 1, …}}`, and the blobs of its few directories, of
/// which some may be equal.
///
/// `src` is the job's source tree, or an empty directory; `dep` holds the output trees of the
/// dependencies, named by position. All digests are of `function`.
///
/// # Errors
/// None that a valid digest causes; the tree's own errors are passed on.
pub fn input_root(
    src: Option<Digest>,
    deps: &[Digest],
    function: DigestFunction,
) -> Result<(Digest, Vec<(Digest, Bytes)>), TreeError> {
    let mut blobs = Vec::with_capacity(3);
    let mut store = |directory: Directory| {
        let (digest, blob) = directory.encode_with_digest(function);
        blobs.push((digest, blob));
        digest
    };
    let node = |name: &str, digest: Digest| -> Result<DirectoryNode, TreeError> {
        Ok(DirectoryNode { name: Name::new(name.as_bytes())?, digest })
    };
    let src = src.unwrap_or_else(|| store(Directory::default()));
    let numbered = deps.iter().enumerate();
    let numbered: Result<_, _> =
        numbered.map(|(position, digest)| node(&position.to_string(), *digest)).collect();
    let dep = store(Directory::new(Vec::new(), numbered?, Vec::new())?);
    let children = vec![node(DEP_NAME, dep)?, node(SOURCE_NAME, src)?];
    let root = store(Directory::new(Vec::new(), children, Vec::new())?);
    Ok((root, blobs))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
