//! What can be wrong with the inputs that jobs declare, in words for the user.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use distbuild_proto::TreeError;
use distbuild_proto::graph::InputPattern;

/// Why an ingest gave no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The source root cannot be opened.
    #[error("failed to open the source root {path:?}: {source}")]
    Root {
        /// The source root.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Inputs of jobs are invalid; every one that was found, in the order of jobs and their
    /// patterns.
    #[error("{} of the jobs' inputs are invalid, first: {}", .0.len(), first(.0))]
    Inputs(Vec<InputError>),
    /// More than 2³² names or patterns.
    #[error("the jobs declare more names than can be held")]
    TooManyNames,
    /// The source tree cannot be a tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn first(errors: &[InputError]) -> String {
    errors.first().map(InputError::to_string).unwrap_or_default()
}

/// One declared input that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("input \"{pattern}\": {problem}")]
pub struct InputError {
    /// Position of the job in the list that was ingested.
    pub job: usize,
    /// The pattern as the job declares it.
    pub pattern: InputPattern,
    /// What is wrong with it.
    pub problem: InputProblem,
}

/// What is wrong with an input. Paths are relative to the source root.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InputProblem {
    /// Nothing has this name.
    #[error("{path:?} does not exist{}", suggestion(.nearest))]
    Missing {
        /// The outermost component of the input that does not exist.
        path: PathBuf,
        /// What exists beside it and looks most like it.
        nearest: Option<PathBuf>,
    },
    /// The pattern matches no file.
    #[error("the pattern matches no file")]
    NoMatch,
    /// The path goes on behind a symlink.
    #[error(
        "the path leaves the source root through a symlink, {path:?}; symlinks are not followed"
    )]
    ThroughSymlink {
        /// The symlink.
        path: PathBuf,
    },
    /// The path goes on behind something that is no directory.
    #[error("{path:?} is not a directory")]
    NotADirectory {
        /// What is no directory.
        path: PathBuf,
    },
    /// A pipe, a socket or a device.
    #[error("{path:?} is {kind}; inputs are regular files, directories and symlinks")]
    Special {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The output directory, the state, or the graph file.
    #[error(
        "{path:?} is the output directory, the state directory or the graph file, none of which can \
         be an input"
    )]
    Excluded {
        /// What is excluded.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("failed to read {path:?}: {source}")]
    Unreadable {
        /// What cannot be read.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// It changed again and again while it was hashed.
    #[error("{path:?} changes while it is read")]
    Changing {
        /// Which file.
        path: PathBuf,
    },
}

fn suggestion(nearest: &Option<PathBuf>) -> String {
    nearest.as_ref().map(|path| format!("; did you mean {path:?}?")).unwrap_or_default()
}
