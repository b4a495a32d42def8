//! A source directory with a graph, made by a test.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A directory with sources and `graph.json`.
#[derive(Debug)]
pub struct Project {
    directory: tempfile::TempDir,
}

impl Default for Project {
    fn default() -> Self {
        Self::new()
    }
}

impl Project {
    /// An empty one.
    ///
    /// # Panics
    /// There is no temporary directory.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("distbuild-project-").tempdir();
        Self { directory: directory.expect("a temporary directory can be made") }
    }

    /// One with these jobs.
    pub fn with_jobs(jobs: Value) -> Self {
        let project = Self::new();
        project.jobs(jobs);
        project
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path().join(path)
    }

    /// The graph file.
    pub fn graph(&self) -> PathBuf {
        self.join("graph.json")
    }

    /// Writes the graph: a list of jobs.
    pub fn jobs(&self, jobs: Value) {
        let graph = json!({ "version": 1, "jobs": jobs });
        self.file(
            "graph.json",
            serde_json::to_string_pretty(&graph).expect("JSON has a text form"),
        );
    }

    /// Writes a source file, and the directories above it.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn file(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
        let path = self.join(path);
        let parent = path.parent().expect("a file has a parent");
        std::fs::create_dir_all(parent).expect("directories can be made");
        std::fs::write(path, contents).expect("a file can be written");
    }

    /// Writes a source file with a mode.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn file_with_mode(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>, mode: u32) {
        self.file(&path, contents);
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.join(path), permissions).expect("a mode can be set");
    }

    /// The outputs of a job.
    pub fn out(&self, job: &str) -> PathBuf {
        self.join("distbuild-out").join(job.replace('/', "%2F"))
    }

    /// Text of one output of a job.
    ///
    /// # Panics
    /// It is not there, or no text.
    pub fn output(&self, job: &str, file: &str) -> String {
        let path = self.out(job).join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// A job with one shell command.
pub fn shell(name: &str, script: &str) -> Value {
    json!({ "name": name, "cmds": [{ "exec": ["sh", "-c", script] }] })
}

/// A job with one shell command, inputs and dependencies.
pub fn shell_with(name: &str, inputs: &[&str], deps: &[&str], script: &str) -> Value {
    json!({
        "name": name, "inputs": inputs, "deps": deps,
        "cmds": [{ "exec": ["sh", "-c", script] }]
    })
}
