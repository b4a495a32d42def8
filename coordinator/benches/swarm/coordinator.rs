//! The coordinator as a process of its own, and what it uses.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use distbuild_coordinator::{Config, Coordinator, Limits, WritableInstances};
use distbuild_proto::Address;

use crate::Failure;

/// First argument of this program when it is to be the coordinator.
pub(crate) const ROLE: &str = "coordinator";

/// Serves until its standard input ends. The first line of its output is its address.
pub(crate) fn serve() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let directory = tempfile::tempdir()?;
        let config = Config {
            listen: Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 },
            state: directory.path().to_owned(),
            limits: Limits::default(),
            exclusive: true,
            writable_instances: WritableInstances::default(),
        };
        let coordinator = Coordinator::start(config).await?;
        let mut out = std::io::stdout();
        writeln!(out, "{}", coordinator.address())?;
        out.flush()?;
        let ended = || std::io::stdin().read_to_end(&mut Vec::new());
        tokio::task::spawn_blocking(ended).await??;
        coordinator.shutdown().await;
        Ok(())
    })
}

/// What a process has used so far.
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) rss: u64,
    pub(crate) most_rss: u64,
}

/// A coordinator that ends with this value.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    pub(crate) address: Address,
}

impl Process {
    pub(crate) fn start() -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ROLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, address: line.trim().parse()? })
    }

    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        usage(self.child.id())
    }

    /// Profiles the coordinator as long as the value lives, if the environment asks for it.
    pub(crate) fn profile(&self, name: &str) -> Result<Option<Profile>, Failure> {
        let Some(directory) = std::env::var_os("DISTBUILD_SWARM_PERF") else {
            return Ok(None);
        };
        let file = std::path::Path::new(&directory).join(name.replace('/', "-"));
        let perf = Command::new("perf")
            .args(["record", "-q", "-F", "499", "-g", "-o"])
            .arg(file)
            .args(["-p", &self.child.id().to_string()])
            .spawn()?;
        Ok(Some(Profile(perf)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// A running `perf record`.
pub(crate) struct Profile(Child);

impl Drop for Profile {
    fn drop(&mut self) {
        // It writes its file when it is interrupted, and not when it is killed.
        let _ = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

fn usage(pid: u32) -> Result<Usage, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.map(|kilobytes| kilobytes * 1024).ok_or(format!("no {name} in the status"))
    };
    let mut cpu = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let nanoseconds = schedstat.split_whitespace().next().unwrap_or_default().parse()?;
        cpu += Duration::from_nanos(nanoseconds);
    }
    Ok(Usage { cpu, rss: bytes("VmRSS:")?, most_rss: bytes("VmHWM:")? })
}
