//! The agent's side of the helper process: starting it, seeing it end, and what it leaves behind.
//!
//! The helper is started with an ordinary fork and exec. It is never sent a signal while it obeys: closing
//! its sockets ends it. No parent-death signal: that would hit when the *thread* that started it ends.
//! A thread of its own waits for its end, then removes the run directory.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Uid;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::config::WorkerConfig;
use crate::error::WorkerError;
use crate::helper::{FS_SOCKET, HELPER_COMMAND, HelperConfig, SPAWNER_SOCKET};
use crate::run_dir::RunDir;
use crate::sandbox::SpawnerConfig;

/// Longest last word of a helper that is kept, in bytes.
const MAX_LAST_WORDS_BYTES: u64 = 4096;

/// A helper process and the two sockets to it.
#[derive(Debug)]
pub(crate) struct StartedHelper {
    pub(crate) fs: UnixStream,
    pub(crate) spawner: UnixStream,
    pub(crate) process: HelperProcess,
}

/// A running helper process.
#[derive(Clone, Debug)]
pub(crate) struct HelperProcess {
    child: Arc<Mutex<Child>>,
    /// Its last words, once it is gone and its directories are removed.
    ended: watch::Receiver<Option<String>>,
}

/// What this worker's jobs see of the host.
pub(crate) fn spawner_config(config: &WorkerConfig, run: &RunDir) -> SpawnerConfig {
    let job_user = Uid::effective().is_root().then_some(config.job_user);
    let sources = vec![run.mount(), run.passthrough(), run.actions().to_owned()];
    let mut spawner = SpawnerConfig::new(sources, job_user);
    spawner.hidden.push(config.state.clone());
    if !config.store.root.starts_with(&config.state) {
        spawner.hidden.push(config.store.root.clone());
    }
    spawner.changes = Some(run.actions().to_owned());
    spawner.max_jobs = config.limits.max_attempts;
    spawner
}

/// What a host does not let this worker do.
pub(crate) fn notes(no_passthrough: Option<&str>) -> Vec<String> {
    if Uid::effective().is_root() {
        return no_passthrough
            .map(|reason| format!("no passthrough: {reason}"))
            .into_iter()
            .collect();
    }
    ["jobs share one uid, the worker's own", "no read-ahead setting", "no passthrough"]
        .map(|note| format!("user namespace: {note}"))
        .into()
}

/// Starts the helper. Blocks for the length of a fork.
///
/// # Errors
/// No sockets, no process.
pub(crate) fn start(
    config: &WorkerConfig,
    spawner: SpawnerConfig,
    run: Arc<RunDir>,
) -> Result<StartedHelper, WorkerError> {
    let failed = |source| WorkerError::Helper { program: config.helper_program.clone(), source };
    // In a user namespace everything that exists belongs to user 0, which is this user.
    let owner = spawner.job_user.map_or((0, 0), |user| (user.uid, user.gid));
    let helper = HelperConfig {
        mount: run.mount(),
        passthrough: run.passthrough(),
        store: config.store.root.clone(),
        owner,
        spawner,
    };
    let helper = postcard::to_stdvec(&helper).map_err(|error| failed(io::Error::other(error)))?;
    let (fs, fs_theirs) = UnixStream::pair().map_err(failed)?;
    let (spawner, spawner_theirs) = UnixStream::pair().map_err(failed)?;
    let inherited = [fs_theirs.as_raw_fd(), spawner_theirs.as_raw_fd(), run.lock().as_raw_fd()];
    let mut command = Command::new(&config.helper_program);
    command
        .arg0("distbuild")
        .arg(HELPER_COMMAND)
        .args([FS_SOCKET, &inherited[0].to_string()])
        .args([SPAWNER_SOCKET, &inherited[1].to_string()])
        .current_dir("/")
        // What a terminal sends to our process group is for us to act on.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = inheriting(&mut command, inherited).spawn().map_err(failed)?;
    // Theirs alone from now on, so that each side sees the end of the other.
    drop((fs_theirs, spawner_theirs));
    let stdin = child.stdin.take();
    let told = stdin.map_or(Ok(()), |mut stdin| stdin.write_all(&helper));
    let process = HelperProcess::watch(child, run).map_err(failed)?;
    match told {
        // It has ended early and will have said why.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
        _ => Ok(StartedHelper { fs, spawner, process }),
    }
}

/// Lets the program inherit these descriptors, which nothing else that this process starts does.
#[expect(unsafe_code, reason = "descriptors are inherited between fork and exec")]
fn inheriting(command: &mut Command, inherited: [RawFd; 3]) -> &mut Command {
    let inherit = move || {
        for number in inherited {
            // SAFETY: changes a flag of a number; allowed between fork and exec.
            Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(inherit) }
}

impl HelperProcess {
    fn watch(mut child: Child, run: Arc<RunDir>) -> io::Result<Self> {
        let stdout = child.stdout.take();
        let child = Arc::new(Mutex::new(child));
        let (end, ended) = watch::channel(None);
        let watched = child.clone();
        thread::Builder::new().name("helper-end".to_owned()).spawn(move || {
            let mut words = Vec::new();
            if let Some(stdout) = stdout {
                // Ends when helper and spawner have both gone. What cannot be read is not said.
                let _ = stdout.take(MAX_LAST_WORDS_BYTES).read_to_end(&mut words);
            }
            // The pipe's end comes just before the process's own, so this waits for a moment.
            if let Err(error) = watched.lock().wait() {
                tracing::warn!(%error, "failed to wait for the helper process");
            }
            run.remove();
            let words = String::from_utf8_lossy(&words).trim().to_owned();
            // Nobody may be left who wants to know.
            let _ = end.send(Some(words));
        })?;
        Ok(Self { child, ended })
    }

    /// Waits until the helper is gone and its directories are removed; gives its last words.
    pub(crate) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(words) => words.clone().unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Waits for its end, and kills it if that takes longer than `patience`. Its sockets are to be closed
    /// before.
    pub(crate) async fn end(&self, patience: Duration) {
        if tokio::time::timeout(patience, self.ended()).await.is_ok() {
            return;
        }
        tracing::warn!("the helper process does not end and is killed");
        // The lock is free: the watching thread takes it when the process has closed its pipe.
        if let Some(mut child) = self.child.try_lock()
            && let Err(error) = child.kill()
        {
            tracing::warn!(%error, "failed to kill the helper process");
        }
        if tokio::time::timeout(patience, self.ended()).await.is_err() {
            tracing::error!("the helper process could not be ended");
        }
    }
}
