//! A coordinator and workers, each a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::binary::distbuild;
use crate::build::Build;
use crate::daemon::Daemon;
use crate::wait;

/// A farm in a temporary directory.
#[derive(Debug)]
pub struct Farm {
    /// The workers, by their number; a killed one is taken out.
    pub workers: Vec<Option<Daemon>>,
    /// The coordinator.
    pub coordinator: Daemon,
    /// Its state.
    state: PathBuf,
    directory: tempfile::TempDir,
}

impl Farm {
    /// A coordinator and so many workers of one core each.
    pub fn start(workers: usize) -> Self {
        let mut farm = Self::without_workers();
        for number in 0..workers {
            farm.add_worker(number, &[]);
        }
        farm.wait_for_workers(workers);
        farm
    }

    /// A coordinator alone.
    ///
    /// # Panics
    /// There is no temporary directory.
    pub fn without_workers() -> Self {
        Self::without_workers_on(None)
    }

    /// The same, with the coordinator's state in this directory.
    ///
    /// # Panics
    /// There is no temporary directory.
    pub fn without_workers_on(state: Option<&Path>) -> Self {
        let directory = tempfile::Builder::new().prefix("distbuild-farm-").tempdir();
        let directory = directory.expect("a temporary directory can be made");
        let state = state.map_or_else(|| directory.path().join("coordinator"), Path::to_owned);
        let coordinator = start_coordinator(&state, "127.0.0.1:0");
        Self { workers: Vec::new(), coordinator, state, directory }
    }

    /// Where clients and workers dial.
    pub fn address(&self) -> String {
        self.coordinator.address("grpc").to_owned()
    }

    /// The state directory of a worker.
    pub fn worker_state(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("worker-{number}"))
    }

    /// Starts worker `w<number>`, one core unless the arguments say otherwise.
    pub fn add_worker(&mut self, number: usize, args: &[&str]) {
        let address = self.address();
        self.add_worker_through(&address, number, args);
    }

    /// The same, with a worker that dials another address.
    pub fn add_worker_through(&mut self, address: &str, number: usize, args: &[&str]) {
        let mut command = Command::new(distbuild());
        command.args(["worker", "--insecure", "--coordinator", address]);
        command.args(["--name", &format!("w{number}")]);
        if !args.contains(&"--peer-listen") {
            command.args(["--peer-listen", "127.0.0.1:0"]);
        }
        command.arg("--state").arg(self.worker_state(number));
        if !args.contains(&"--cores") {
            command.args(["--cores", "1"]);
        }
        command.args(args);
        let daemon = Daemon::start(command);
        if self.workers.len() <= number {
            self.workers.resize_with(number + 1, || None);
        }
        self.workers[number] = Some(daemon);
    }

    /// Kills a worker as a power cut would.
    ///
    /// # Panics
    /// There is no such worker.
    pub fn kill_worker(&mut self, number: usize) {
        let mut worker = self.workers[number].take().expect("the worker runs");
        worker.kill();
    }

    /// Shuts the coordinator down and starts it again at the same address.
    pub fn restart_coordinator(&mut self) {
        let address = self.address();
        self.coordinator.signal(nix::sys::signal::Signal::SIGTERM);
        self.coordinator.wait();
        self.coordinator = start_coordinator(&self.state, &address);
    }

    /// Kills the coordinator as a power cut would.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.kill();
    }

    /// Starts the coordinator that was killed again, at the same address and with the same state.
    pub fn start_coordinator_again(&mut self) {
        let address = self.address();
        self.coordinator = start_coordinator(&self.state, &address);
    }

    /// Waits until so many workers are connected.
    pub fn wait_for_workers(&self, count: usize) {
        wait::until("workers to connect", || (self.connected().len() == count).then_some(()));
    }

    /// The connected workers, as `distbuild workers --json` tells.
    ///
    /// # Panics
    /// The command fails, or prints no JSON.
    pub fn connected(&self) -> Vec<Value> {
        let output = self.ask(&["workers", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let workers: Value =
            serde_json::from_slice(&output.stdout).expect("workers --json is JSON");
        workers.as_array().expect("workers --json is an array").clone()
    }

    /// Runs a command of the client against this coordinator.
    ///
    /// # Panics
    /// The program does not start.
    pub fn ask(&self, args: &[&str]) -> Output {
        let mut command = Command::new(distbuild());
        command.args(args).args(["--insecure", "--coordinator", &self.address()]);
        command.output().expect("the program starts")
    }

    /// A build of a graph on this farm.
    pub fn build(&self, graph: &Path) -> Build {
        Build::of(graph).on(&self.address())
    }
}

fn start_coordinator(state: &Path, listen: &str) -> Daemon {
    let mut command = Command::new(distbuild());
    command.args(["coordinator", "--insecure", "--listen", listen, "--http", "127.0.0.1:0"]);
    command.arg("--state").arg(state);
    Daemon::start(command)
}
