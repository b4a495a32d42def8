//! A real spawner process, and jobs run through it.

use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use distbuild_worker::sandbox::{
    self, BindMount, Command, Ended, JobEnd, JobSpec, JobUser, RunningJob, Spawner, SpawnerConfig,
};
use tempfile::TempDir;

/// The first argument of a process that is to be a spawner; the configuration follows.
const SPAWNER: &str = "--be-the-spawner";
/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// As whom jobs of a privileged spawner run.
pub(crate) const JOB: JobUser = JobUser { uid: 54321, gid: 54322 };
/// Who an ordinary user is: `nobody`.
pub(crate) const NOBODY: u32 = 65534;

/// Who starts the spawner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    Root,
    OrdinaryUser,
}

/// Becomes the spawner if this process was started as one; to be called before any thread starts.
pub(crate) fn serve_if_asked() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, first, config] = &arguments[..] else { return };
    if first != SPAWNER {
        return;
    }
    let config: SpawnerConfig = serde_json::from_str(config).expect("a configuration");
    let control = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned().unwrap();
    sandbox::enter_private_namespaces().expect("private namespaces");
    match sandbox::run(control, &config) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("spawner: {error}");
            std::process::exit(1)
        }
    }
}

/// A copy of this binary in a directory that every user may enter; the build's may be closed.
static PROGRAM: OnceLock<TempDir> = OnceLock::new();

/// Makes the copy; to be called before any thread starts, so that no fork holds it open for
/// writing.
pub(crate) fn install() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    fs::copy("/proc/self/exe", directory.path().join("spawner")).unwrap();
    PROGRAM.set(directory).expect("called once");
}

/// Removes the copy.
pub(crate) fn uninstall() {
    let program = PROGRAM.get().expect("installed").path();
    fs::remove_dir_all(program).unwrap();
}

/// A spawner's process with a state directory; both are gone when it is dropped.
pub(crate) struct Daemon {
    pub(crate) state: TempDir,
    pub(crate) kind: As,
    pub(crate) child: Child,
    pub(crate) spawner: Option<Spawner>,
    jobs: AtomicU32,
}

impl Daemon {
    pub(crate) fn start(kind: As) -> Self {
        Self::start_with(kind, |_, _| {})
    }

    /// Starts a spawner whose configuration is changed by `change`, which gets the state directory.
    pub(crate) fn start_with(kind: As, change: impl FnOnce(&mut SpawnerConfig, &Path)) -> Self {
        Self::try_start(kind, change).expect("the spawner starts")
    }

    pub(crate) fn try_start(
        kind: As,
        change: impl FnOnce(&mut SpawnerConfig, &Path),
    ) -> Result<Self, sandbox::SandboxError> {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests start daemons as root and as others"
        );
        let state = tempfile::tempdir().unwrap();
        let actions = state.path().join("actions");
        fs::create_dir(&actions).unwrap();
        fs::set_permissions(state.path(), Permissions::from_mode(0o755)).unwrap();
        let user = (kind == As::Root).then_some(JOB);
        let mut config = SpawnerConfig::new(vec![actions.clone()], user);
        change(&mut config, state.path());
        let program = PROGRAM.get().expect("installed").path().join("spawner");
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = std::process::Command::new(&program);
        command.arg(SPAWNER).arg(serde_json::to_string(&config).unwrap());
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        if kind == As::OrdinaryUser {
            for path in [state.path(), &actions] {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            command.uid(NOBODY).gid(NOBODY).current_dir("/");
        }
        let mut child = command.spawn().unwrap();
        drop(command);
        match Spawner::connect(ours, PATIENCE) {
            Ok(spawner) => {
                Ok(Self { state, kind, child, spawner: Some(spawner), jobs: AtomicU32::new(0) })
            }
            Err(error) => {
                child.kill().unwrap();
                child.wait().unwrap();
                Err(error)
            }
        }
    }

    /// A job with directories of its own, empty and ready to be filled.
    pub(crate) fn job(&self, commands: Vec<Command>) -> Job<'_> {
        let number = self.jobs.fetch_add(1, Ordering::Relaxed);
        let home = self.state.path().join("actions").join(number.to_string());
        let mut mounts = Vec::new();
        for (name, writable) in [("src", false), ("dep", false), ("out", true)] {
            let from = home.join(name);
            fs::create_dir_all(&from).unwrap();
            if self.kind == As::OrdinaryUser {
                chown(&from, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            mounts.push(BindMount { from, to: Path::new("/distbuild").join(name), writable });
        }
        let spec = JobSpec { commands, mounts, ..JobSpec::default() };
        Job { daemon: self, spec, home }
    }

    /// Runs one script to its end.
    pub(crate) fn sh(&self, script: &str) -> Outcome {
        self.job(vec![sh(script)]).run()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.spawner = None;
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                assert!(std::thread::panicking(), "the spawner did not exit after its agent had");
            }
            std::thread::yield_now();
        }
    }
}

/// A job that was not started yet.
pub(crate) struct Job<'a> {
    daemon: &'a Daemon,
    pub(crate) spec: JobSpec,
    home: PathBuf,
}

impl Job<'_> {
    /// Where the host has the job's `src`, `dep` or `out`.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    pub(crate) fn start(&self) -> Running {
        let (stdout, stdout_end) = nix::unistd::pipe().unwrap();
        let (stderr, stderr_end) = nix::unistd::pipe().unwrap();
        if self.daemon.kind == As::OrdinaryUser {
            // Its agent would be the same user and have made the pipes itself.
            for end in [&stdout_end, &stderr_end] {
                std::os::unix::fs::fchown(end, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let spawner = self.daemon.spawner.as_ref().unwrap();
        let job = spawner.start(self.spec.clone(), stdout_end, stderr_end).unwrap();
        Running { job, stdout: BufReader::new(stdout.into()), stderr: drain(stderr.into()) }
    }

    pub(crate) fn run(&self) -> Outcome {
        self.start().finish()
    }
}

/// A job that was started.
pub(crate) struct Running {
    pub(crate) job: RunningJob,
    pub(crate) stdout: BufReader<File>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    /// Waits until the job prints its next line.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn ended(&mut self) -> Ended {
        self.try_ended().expect("the spawner lives")
    }

    pub(crate) fn try_ended(&mut self) -> Result<Ended, sandbox::SandboxError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, self.job.ended()).await.expect("an end in time")
        })
    }

    /// Waits for the end, and then for everything that was printed.
    pub(crate) fn finish(mut self) -> Outcome {
        let stdout = drain_buffered(self.stdout);
        self.stdout = BufReader::new(File::open("/dev/null").unwrap());
        let ended = self.ended();
        let (stdout, stderr) = (stdout.join().unwrap(), self.stderr.join().unwrap());
        Outcome { ended, stdout, stderr }
    }
}

fn drain(mut pipe: File) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn drain_buffered(mut pipe: BufReader<File>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// What a job came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ended: Ended,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Outcome {
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Asserts that all commands succeeded, and returns what they printed.
    #[track_caller]
    pub(crate) fn succeeded(self) -> String {
        let JobEnd::Exited { code: 0, .. } = self.ended.end else { panic!("failed: {self:?}") };
        self.out()
    }
}

/// The environment that commands get here.
pub(crate) fn environ() -> Vec<Vec<u8>> {
    ["PATH=/usr/bin:/bin", "HOME=/distbuild/home", "TMPDIR=/tmp"].map(Vec::from).into()
}

pub(crate) fn exec(argv: &[&str]) -> Command {
    Command::Exec {
        argv: argv.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        environ: environ(),
        working_directory: b"/distbuild/src".to_vec(),
    }
}

pub(crate) fn sh(script: &str) -> Command {
    exec(&["/bin/sh", "-c", script])
}

pub(crate) fn cat(text: &str, output: &str) -> Command {
    Command::Cat { text: text.as_bytes().to_vec(), output: output.as_bytes().to_vec() }
}

/// How many processes of the whole machine have this argument.
pub(crate) fn processes_with(argument: &str) -> usize {
    let has = |entry: &fs::DirEntry| {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|other| other == argument.as_bytes())
    };
    fs::read_dir("/proc").unwrap().flatten().filter(has).count()
}
