//! A `distbuild build` under test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::binary::distbuild;
use crate::{tied, wait};

/// How a build will be started.
#[derive(Debug)]
pub struct Build {
    command: Command,
    scratch: tempfile::TempDir,
}

/// A build that runs.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    scratch: tempfile::TempDir,
}

/// A build that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; -1 if a signal ended the process.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// The summary, or null if none was written.
    pub summary: Value,
    /// The events, in order.
    pub events: Vec<Value>,
}

impl Build {
    /// Of a graph file.
    ///
    /// # Panics
    /// There is no temporary directory.
    pub fn of(graph: &Path) -> Self {
        let scratch = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = Command::new(distbuild());
        command.arg("build").arg(graph);
        command.arg("--summary").arg(scratch.path().join("summary.json"));
        command.arg("--events").arg(scratch.path().join("events.jsonl"));
        command.env("XDG_CACHE_HOME", scratch.path().join("cache"));
        Self { command, scratch }
    }

    /// With further arguments.
    #[must_use]
    pub fn args<A: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// On a coordinator.
    #[must_use]
    pub fn on(self, address: &str) -> Self {
        self.args(["--insecure", "--coordinator", address])
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// The program does not start.
    pub fn start(mut self) -> Running {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = tied::start(&mut self.command);
        Running { child: Some(child), scratch: self.scratch }
    }

    /// Runs it to its end.
    pub fn run(self) -> Finished {
        self.start().finish()
    }

    /// Runs it to its end, which has to be success.
    ///
    /// # Panics
    /// The build fails.
    pub fn succeed(self) -> Finished {
        let finished = self.run();
        assert_eq!(finished.code, 0, "stdout: {}\nstderr: {}", finished.stdout, finished.stderr);
        finished
    }
}

impl Running {
    /// Sends a signal.
    ///
    /// # Panics
    /// The process does not exist any more.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the build is there to be signalled");
    }

    /// Its process id.
    ///
    /// # Panics
    /// It has been waited for.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().expect("the build runs").id().cast_signed())
    }

    /// The events so far.
    pub fn events(&self) -> Vec<Value> {
        events(&self.scratch.path().join("events.jsonl"))
    }

    /// Waits for an event of a type that `accept` accepts.
    pub fn wait_event(&self, kind: &str, mut accept: impl FnMut(&Value) -> bool) -> Value {
        wait::until(kind, || {
            self.events().into_iter().find(|event| event["type"] == kind && accept(event))
        })
    }

    /// Waits until so many jobs have finished.
    pub fn wait_finished(&self, jobs: usize) {
        let finished = |event: &&Value| event["type"] == "job_finished";
        wait::until("jobs to finish", || {
            (self.events().iter().filter(finished).count() >= jobs).then_some(())
        });
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn finish(mut self) -> Finished {
        let child = self.child.take().expect("the build runs");
        let Output { status, stdout, stderr } =
            child.wait_with_output().expect("a child can be waited for");
        let summary = std::fs::read(self.scratch.path().join("summary.json")).unwrap_or_default();
        Finished {
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            summary: serde_json::from_slice(&summary).unwrap_or(Value::Null),
            events: self.events(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Finished {
    /// How many jobs ended so: `executed`, `cached`, `cut_off`, …
    ///
    /// # Panics
    /// The summary does not say.
    pub fn jobs(&self, outcome: &str) -> u64 {
        self.summary["jobs"][outcome].as_u64().unwrap_or_else(|| {
            panic!("no jobs.{outcome} in {}\nstderr: {}", self.summary, self.stderr)
        })
    }

    /// A count of bytes: `declared`, `opened`, `sent_by_client`, …
    ///
    /// # Panics
    /// The summary does not say.
    pub fn bytes(&self, what: &str) -> u64 {
        self.summary["bytes"][what].as_u64().unwrap_or_else(|| {
            panic!("no bytes.{what} in {}\nstderr: {}", self.summary, self.stderr)
        })
    }

    /// The attempts of a job.
    pub fn attempts(&self, job: &str) -> Vec<&Value> {
        let all = self.summary["attempts"].as_array().map_or(&[][..], Vec::as_slice);
        all.iter().filter(|attempt| attempt["job"] == job).collect()
    }
}

fn events(path: &PathBuf) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
