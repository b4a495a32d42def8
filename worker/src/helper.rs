//! The helper process: single-threaded at birth, it mounts the file system in a namespace of its own,
//! then becomes two.
//!
//! ```text
//! agent ── starts ──▶ helper: namespaces, mount ── forks ──▶ spawner (stays single-threaded)
//!                        └── becomes the file-system server (threads)
//! ```
//!
//! Each of the two serves the agent over a socket that it inherited and ends at that socket's end, so
//! nothing outlives an agent, however that died. The server waits for the spawner before it exits, and a server
//! that is killed takes the spawner with it: when the helper is gone, so are all jobs. What the helper inherits beside the sockets is the lock of the agent's
//! run directory, which says to others that somebody still lives there.
//!
//! The configuration comes through standard input, since `argv` is limited and public. Why it could not
//! serve, it says in one line on standard output; its log goes to standard error, the agent's.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use distbuild_fs::mount::{mount, mount_in_namespace};
use distbuild_fs::namespace::Privilege;
use distbuild_fs::{FsConfig, MountError, Mounts, Owner, ServerError};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getppid};
use serde::{Deserialize, Serialize};

use crate::sandbox::{self, SandboxError, SpawnerConfig};

/// The hidden subcommand of the binary that calls [`helper_main`].
pub const HELPER_COMMAND: &str = "worker-helper";
/// Argument: the number of the descriptor that leads to the file-system server.
pub(crate) const FS_SOCKET: &str = "--fs-socket";
/// Argument: the number of the descriptor that leads to the spawner.
pub(crate) const SPAWNER_SOCKET: &str = "--spawner-socket";
/// Longest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// What the agent tells its helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HelperConfig {
    /// An existing directory, for the mount.
    pub(crate) mount: PathBuf,
    /// Another, for the mount that reads large files by passthrough.
    pub(crate) passthrough: PathBuf,
    /// Root of the store.
    pub(crate) store: PathBuf,
    /// Owner of all files in the mount, as seen in the helper's user namespace.
    pub(crate) owner: (u32, u32),
    /// How jobs are started.
    pub(crate) spawner: SpawnerConfig,
}

/// Why the helper does not serve (any more).
#[derive(Debug, thiserror::Error)]
enum HelperError {
    #[error("the helper of a worker is started by the worker itself")]
    Arguments,
    #[error("failed to read the helper's configuration: {0}")]
    Config(#[source] io::Error),
    #[error("failed to understand the helper's configuration: {0}")]
    Decode(#[from] postcard::Error),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("failed to fork the spawner: {0}")]
    Fork(#[source] Errno),
    #[error(transparent)]
    Spawner(#[from] SandboxError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("failed to tie the spawner to the file system: {0}")]
    Tie(#[source] Errno),
    #[error("failed to wait for the spawner: {0}")]
    Wait(#[source] Errno),
}

/// The whole life of the helper process. `arguments` are those behind [`HELPER_COMMAND`]. To be called
/// before the process has any other thread; logging may have been set up.
pub fn helper_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever started it reads this, if it still lives.
            let _ = writeln!(io::stdout(), "{}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<(), HelperError> {
    let (fs_socket, spawner_socket) = parse(arguments).ok_or(HelperError::Arguments)?;
    let (fs_socket, spawner_socket) = (inherit(fs_socket)?, inherit(spawner_socket)?);
    let mut bytes = Vec::new();
    io::stdin().take(MAX_CONFIG_BYTES).read_to_end(&mut bytes).map_err(HelperError::Config)?;
    let config: HelperConfig = postcard::from_bytes(&bytes)?;
    let mounts = mounts(&config)?;
    let server = Pid::this();
    match fork_spawner().map_err(HelperError::Fork)? {
        ForkResult::Child => {
            drop(fs_socket);
            die_with(server).map_err(HelperError::Tie)?;
            spawn_jobs(spawner_socket, mounts, &config.spawner)
        }
        ForkResult::Parent { child } => {
            drop(spawner_socket);
            serve_files(fs_socket, mounts, config, child)
        }
    }
}

/// Enters namespaces and mounts. In a user namespace the kernel takes no file for passthrough.
fn mounts(config: &HelperConfig) -> Result<Mounts, MountError> {
    let (usual, privilege) = mount_in_namespace(&config.mount)?;
    let passthrough = match privilege {
        Privilege::Root => Some(mount(&config.passthrough)?),
        Privilege::User => None,
    };
    Ok(Mounts { usual, passthrough })
}

/// Without the file system there is nothing to run; and whoever waits for the end of the helper's output must
/// not wait for a process that was left alone.
fn die_with(server: Pid) -> Result<(), Errno> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have died before that was set.
    if getppid() == server { Ok(()) } else { Err(Errno::ESRCH) }
}

fn spawn_jobs(control: OwnedFd, mounts: Mounts, config: &SpawnerConfig) -> Result<(), HelperError> {
    // These copies of the devices would keep the mounts alive without their server.
    drop(mounts);
    Ok(sandbox::run(control, config)?)
}

fn serve_files(
    control: OwnedFd,
    mounts: Mounts,
    config: HelperConfig,
    spawner: Pid,
) -> Result<(), HelperError> {
    let (uid, gid) = config.owner;
    let fs_config = FsConfig { owner: Owner { uid, gid }, ..FsConfig::new(config.store) };
    let served = distbuild_fs::server::run(UnixStream::from(control), mounts, fs_config);
    // It ends with its own socket, which the agent closes as well.
    waitpid(spawner, None).map_err(HelperError::Wait)?;
    Ok(served?)
}

#[expect(unsafe_code, reason = "a fork, so that both live in one namespace")]
fn fork_spawner() -> Result<ForkResult, Errno> {
    // SAFETY: this process has one thread, so the child may do whatever the parent might.
    unsafe { fork() }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Option<(RawFd, RawFd)> {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let arguments: Vec<_> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    let [FS_SOCKET, fs, SPAWNER_SOCKET, spawner] = arguments[..] else { return None };
    let number = |text: &str| text.parse().ok().filter(|number| *number > libc::STDERR_FILENO);
    Some((number(fs)?, number(spawner)?))
}

/// Takes an inherited descriptor over, and sees that no program started from here inherits it again.
#[expect(unsafe_code, reason = "inherited descriptors are known by number only")]
fn inherit(number: RawFd) -> Result<OwnedFd, HelperError> {
    // SAFETY: asks and sets the flags of a number.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    Errno::result(result).map_err(|_| HelperError::Arguments)?;
    // SAFETY: it is open, and the starter gave it to this process under this number for this purpose.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}
