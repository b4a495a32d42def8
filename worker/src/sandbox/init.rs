//! Process 1 of a job: sets the sandbox up, runs the commands in order, reports once, and is gone.
//!
//! It is forked from the spawner, never executes anything itself and becomes the job's user before
//! the first command. As process 1 it inherits every orphan of the job and waits for all of them;
//! signals that it does not handle, which is all of them, cannot reach it from inside. When it
//! exits, the kernel kills what is left.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Gid, Pid, Uid};

use super::cat::{self, CatError};
use super::config::JobUser;
use super::error::{AtStep, SandboxError};
use super::exec::{self, ExecError};
use super::input_root::{self, SetUpError};
use super::namespaces::{self, Access, JobNetwork};
use super::privileges;
use super::protocol::{
    Command, HOME_DIR, JobEnd, JobSpec, MAX_REPORT_TEXT_BYTES, OUTPUT_DIR, Report, RootAt,
};
use super::template::{INPUT_ROOT, JOB_ROOT, RESOLV_CONF, below};

/// What init is given.
pub(super) struct Init<'a> {
    /// What to run.
    pub(super) spec: &'a JobSpec,
    /// As whom.
    pub(super) user: Option<JobUser>,
    /// In which network.
    pub(super) network: JobNetwork<'a>,
    /// Where the job's standard output and error go.
    pub(super) stdout: OwnedFd,
    /// See `stdout`.
    pub(super) stderr: OwnedFd,
    /// Where the report goes.
    pub(super) status: OwnedFd,
}

/// Microseconds on the monotonic clock, the same in every process of the machine.
pub(super) fn monotonic_us() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| time.tv_sec() as u64 * 1_000_000 + time.tv_nsec() as u64 / 1000)
        .unwrap_or_default()
}

/// The whole life of process 1.
pub(super) fn run(mut init: Init<'_>) -> ! {
    let mut ready_us = 0;
    // A panic must not unwind into the spawner's code, of which this process is a copy.
    let end = catch_unwind(AssertUnwindSafe(|| match set_up(&mut init) {
        Ok(()) => {
            ready_us = monotonic_us();
            run_commands(init.spec)
        }
        Err(SetUpError::Host(error)) => JobEnd::SetupFailed(error.to_string()),
        Err(SetUpError::Inputs(reason)) => unrunnable(0, 1, reason),
    }))
    .unwrap_or_else(|_| JobEnd::SetupFailed("process 1 of the job panicked".to_owned()));
    let report = Report { end: shorten(end), ready_us };
    // Nobody is left to tell if the pipe is broken: the spawner then sees an end without report.
    if let Ok(bytes) = postcard::to_stdvec(&report) {
        let _ = File::from(init.status).write_all(&bytes);
    }
    exit()
}

#[expect(
    unsafe_code,
    reason = "leaving without the exit handlers of the process this is a copy of"
)]
fn exit() -> ! {
    // SAFETY: ends the process; nothing runs afterwards.
    unsafe { libc::_exit(0) }
}

fn set_up(init: &mut Init<'_>) -> Result<(), SetUpError> {
    let Init { spec, user, .. } = *init;
    // While the network's descriptor is open.
    namespaces::enter_job_namespaces(&init.network)?;
    descriptors(init)?;
    nix::unistd::setsid().at(|| "start a session".to_owned())?;
    nix::unistd::sethostname(&spec.hostname).at(|| "set the host name".to_owned())?;
    match &spec.input_root {
        Some(root) if root.at == RootAt::Slash => {
            input_root::mount(root, user, Path::new(INPUT_ROOT))?;
            input_root::mount_places(spec, user, Path::new(INPUT_ROOT))?;
            namespaces::pivot_and_drop(Path::new(INPUT_ROOT))?;
        }
        root => {
            mounts(spec, user)?;
            if let Some(root) = root {
                input_root::mount(root, user, &below(Path::new(JOB_ROOT), root.at.path()))?;
            }
            namespaces::pivot_and_drop(Path::new(JOB_ROOT))?;
        }
    }
    privileges::become_job(user, spec.max_open_files)?;
    spawner_is_alive(&init.status)?;
    match &spec.input_root {
        Some(root) => input_root::make_directories(root),
        None => Ok(()),
    }
}

/// Puts the job's pipes at 1 and 2 and closes everything that was copied from the spawner. 0 is
/// `/dev/null`, as in the spawner.
#[expect(unsafe_code, reason = "descriptors are moved and closed by number")]
fn descriptors(init: &Init<'_>) -> Result<(), SandboxError> {
    let step = || "put the standard descriptors in place".to_owned();
    // A command may open its streams by path, as /dev/stderr; whoever made the pipe owned it.
    if let Some(JobUser { uid, gid }) = init.user {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        nix::unistd::fchown(&init.stdout, uid, gid).at(step)?;
        nix::unistd::fchown(&init.stderr, uid, gid).at(step)?;
    }
    let close = |first: RawFd, last: libc::c_uint| {
        // SAFETY: numbers only; the objects in this process that own the closed descriptors belong
        // to the spawner's copy, which is never used or dropped.
        Errno::result(unsafe { libc::close_range(first as libc::c_uint, last, 0) }).map(drop)
    };
    for (from, to) in [(&init.stdout, libc::STDOUT_FILENO), (&init.stderr, libc::STDERR_FILENO)] {
        // SAFETY: 1 and 2 are the spawner's own streams, of no use to this process.
        Errno::result(unsafe { libc::dup2(from.as_raw_fd(), to) }).at(step)?;
    }
    let status = init.status.as_raw_fd();
    if status > libc::STDERR_FILENO + 1 {
        close(libc::STDERR_FILENO + 1, status as libc::c_uint - 1).at(step)?;
    }
    close(status + 1, libc::c_uint::MAX).at(step)
}

/// The mounts that are the job's own.
fn mounts(spec: &JobSpec, user: Option<JobUser>) -> Result<(), SandboxError> {
    let root = Path::new(JOB_ROOT);
    let (uid, gid) = user.map_or((0, 0), |user| (user.uid, user.gid));
    for (at, mode, size_bytes) in [
        ("/tmp", "1777", spec.tmp_size_bytes),
        ("/dev/shm", "1777", spec.tmp_size_bytes),
        (HOME_DIR, "0755", spec.home_size_bytes),
    ] {
        private_tmpfs(&below(root, at), mode, size_bytes, user)?;
    }
    namespaces::mount_proc(&below(root, "/proc"))?;
    for mount in &spec.mounts {
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::RootDir);
        if !mount.to.starts_with("/distbuild") || !mount.to.components().all(plain) {
            let reason = format!("{} is not below /distbuild", mount.to.display());
            return Err(SandboxError::Config(reason));
        }
        let to = below(root, &mount.to);
        let access = if mount.writable { Access::Writable } else { Access::ReadOnly };
        namespaces::bind(&mount.from, &to, access)?;
        if mount.writable && user.is_some() {
            nix::unistd::chown(&to, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .at(|| format!("hand {} to the job", mount.to.display()))?;
        }
    }
    if spec.network {
        let to = below(root, "/etc/resolv.conf");
        namespaces::bind(Path::new(RESOLV_CONF), &to, Access::ReadOnly)?;
    }
    Ok(())
}

/// A tmpfs of the job's own.
pub(super) fn private_tmpfs(
    at: &Path,
    mode: &str,
    size_bytes: u64,
    user: Option<JobUser>,
) -> Result<(), SandboxError> {
    let (uid, gid) = user.map_or((0, 0), |user| (user.uid, user.gid));
    // An empty file costs kernel memory as well: one is worth a KiB.
    let inodes = size_bytes / 1024 + 16;
    let size_bytes = size_bytes.max(4096);
    let options = format!("mode={mode},uid={uid},gid={gid},size={size_bytes},nr_inodes={inodes}");
    namespaces::mount_tmpfs(at, &options, Access::Writable)
}

/// The spawner may have died before init asked to die with it; then nobody reads the report.
fn spawner_is_alive(status: &OwnedFd) -> Result<(), SandboxError> {
    let mut descriptors = [PollFd::new(status.as_fd(), PollFlags::empty())];
    poll(&mut descriptors, PollTimeout::ZERO).at(|| "look after the spawner".to_owned())?;
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    match descriptors[0].revents() {
        Some(events) if events.intersects(gone) => Err(SandboxError::Lost),
        _ => Ok(()),
    }
}

/// Runs the commands until one fails.
fn run_commands(spec: &JobSpec) -> JobEnd {
    let outputs = spec.input_root.as_ref().map_or(OUTPUT_DIR, |root| root.at.path());
    for (number, command) in spec.commands.iter().enumerate() {
        match run_command(number, command, outputs) {
            JobEnd::Exited { code: 0, .. } => {}
            end => return end,
        }
    }
    JobEnd::Exited { command: spec.commands.len().saturating_sub(1), code: 0 }
}

fn run_command(number: usize, command: &Command, outputs: &str) -> JobEnd {
    match command {
        Command::Exec { argv, environ, working_directory } => {
            match exec::start(argv, environ, working_directory) {
                Ok(pid) => wait_for(number, pid),
                Err(ExecError::Unrunnable { code, message }) => unrunnable(number, code, message),
                Err(error @ ExecError::System { .. }) => JobEnd::SetupFailed(error.to_string()),
            }
        }
        Command::Cat { text, output } => match cat::write(text, output, outputs) {
            Ok(()) => JobEnd::Exited { command: number, code: 0 },
            Err(error @ CatError::Refused { .. }) => unrunnable(number, 1, error.to_string()),
            Err(error @ CatError::Storage { .. }) => JobEnd::SetupFailed(error.to_string()),
        },
    }
}

/// Waits for one command, and for every orphan that ends meanwhile.
fn wait_for(number: usize, pid: Pid) -> JobEnd {
    loop {
        match wait_any() {
            Ok((ended, status)) if ended == pid => {
                return if libc::WIFSIGNALED(status) {
                    JobEnd::Signaled { command: number, signal: libc::WTERMSIG(status) }
                } else {
                    JobEnd::Exited { command: number, code: libc::WEXITSTATUS(status) }
                };
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return JobEnd::SetupFailed(format!("wait for a command: {errno}")),
        }
    }
}

/// Waits for any child to end. nix's own fails, and loses the child, on a real-time signal.
#[expect(unsafe_code, reason = "nix knows no real-time signals")]
fn wait_any() -> Result<(Pid, i32), Errno> {
    let mut status = 0;
    // SAFETY: the kernel writes one number, which outlives the call.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, 0) })?;
    Ok((Pid::from_raw(pid), status))
}

/// A failed command whose error nobody but init can print.
fn unrunnable(command: usize, code: i32, message: String) -> JobEnd {
    // The reader of the job's stderr may have gone; the report carries the message too.
    let _ = writeln!(std::io::stderr(), "distbuild: {message}");
    JobEnd::Unrunnable { command, code, message }
}

/// Cuts texts so that the report fits into the pipe.
fn shorten(mut end: JobEnd) -> JobEnd {
    if let JobEnd::Unrunnable { message: text, .. } | JobEnd::SetupFailed(text) = &mut end {
        text.truncate(text.floor_char_boundary(MAX_REPORT_TEXT_BYTES));
    }
    end
}
