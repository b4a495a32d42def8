//! What can go wrong around a sandbox.
//!
//! None of it is ever the job's own failure: that is a [`JobEnd`](super::JobEnd). Everything here
//! is an infrastructure error.

use std::io;

/// Why a sandbox could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A system call failed; `step` says what it was for.
    #[error("{step}: {source}")]
    Step {
        /// What was being done, as in "failed to …".
        step: String,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration asks for something that cannot be or would expose the host.
    #[error("refused the sandbox configuration: {0}")]
    Config(String),
    /// The spawner was started in a process that already has threads.
    #[error("the spawner must be single-threaded at birth, this process has {0} threads")]
    Threaded(usize),
    /// A message is longer than both sides agreed on.
    #[error("a message of {size_bytes} bytes exceeds the limit of {limit_bytes} bytes")]
    MessageTooLong {
        /// Size of the message.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Bytes on the socket are no message.
    #[error("decode a message between agent and spawner: {0}")]
    Decode(#[from] postcard::Error),
    /// File descriptors got lost on their way, so no later one can be told apart.
    #[error("file descriptors were lost between agent and spawner")]
    DescriptorsLost,
    /// The spawner could not prepare itself; its own words.
    #[error("the spawner could not start: {0}")]
    Broken(String),
    /// The spawner is gone, and all its jobs with it.
    #[error("the spawner is gone")]
    Lost,
}

/// Names the step that a failed system call belonged to.
pub(super) trait AtStep<T> {
    /// Wraps the error with what was being done.
    fn at(self, step: impl FnOnce() -> String) -> Result<T, SandboxError>;
}

impl<T, E: Into<io::Error>> AtStep<T> for Result<T, E> {
    fn at(self, step: impl FnOnce() -> String) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::Step { step: step(), source: source.into() })
    }
}
