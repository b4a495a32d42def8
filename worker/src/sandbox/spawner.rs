//! The spawner's process: a table of running jobs and the loop that keeps it.
//!
//! It waits for two kinds of things: requests on the control socket, and ends of jobs, each through
//! the pidfd of its init. Nothing in the loop waits for a job. When there is nothing to do, it makes a network
//! for the next job. When the agent closes the socket, by
//! intent or by dying, every job is killed and the process ends once all are gone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use tracing::{debug, error};

use super::channel::{Arrival, Inbox, send};
use super::config::{JobUser, SpawnerConfig};
use super::error::{AtStep, SandboxError};
use super::init::{self, Init, monotonic_us};
use super::input_root;
use super::namespaces::{self, JobNetwork, clone_init};
use super::networks::{Network, Networks};
use super::privileges;
use super::protocol::{JobEnd, JobSpec, JobTimes, Reply, Report, Request, ResourceUsage};
use super::template;

/// The control socket among the events; jobs never get this number.
const CONTROL: u64 = u64::MAX;
/// Events taken from the kernel at once.
const EVENTS: usize = 64;
/// Longest report that is read.
const MAX_REPORT_BYTES: u64 = 4096;

/// Serves jobs until the agent closes `control`.
///
/// The calling process must be single-threaded and stay so, must live in a mount namespace that it
/// may change ([`enter_private_namespaces`](super::enter_private_namespaces)), and must do nothing
/// else afterwards: its root directory, signal settings and privileges are not what they were. Each
/// job is a fork of it, so it should be small.
///
/// # Errors What prevents the template root, which the agent is told too; later, only the loss of
/// the socket's framing. All jobs are dead when it returns.
pub fn run(control: OwnedFd, config: &SpawnerConfig) -> Result<(), SandboxError> {
    // First of all, so that no descriptor of ours can be 0, 1 or 2.
    let control = above_standard_streams(control)?;
    let (networks, no_input_roots) = match prepare(config) {
        Ok(prepared) => prepared,
        Err(error) => {
            let reason = error.to_string();
            // The agent may have gone; the error is returned in any case.
            let _ = send(&control, &Reply::Broken { reason }, &[]);
            return Err(error);
        }
    };
    let mut spawner = Loop::new(control, config, networks)?;
    send(&spawner.control, &Reply::Ready { no_input_roots }, &[])?;
    let result = spawner.serve();
    spawner.kill_all()?;
    match result {
        // The agent closed while it was being told something.
        Err(SandboxError::Lost) => Ok(()),
        result => result,
    }
}

/// Gives the networks, and why there are no input roots if there are none.
fn prepare(config: &SpawnerConfig) -> Result<(Option<Networks>, Option<String>), SandboxError> {
    let threads = std::fs::read_dir("/proc/self/task").at(|| "count threads".to_owned())?.count();
    if threads != 1 {
        return Err(SandboxError::Threaded(threads));
    }
    check_user(config.job_user)?;
    // In a user namespace jobs are its user 0, who owns the settings of every network made there: none
    // is as new after a job.
    let networks = config.job_user.map(|_| Networks::new()).transpose()?;
    template::enter(config)?;
    let no_input_roots = match &config.changes {
        Some(changes) => input_root::try_out(changes).err().map(|error| error.to_string()),
        None => Some("nobody has asked for them".to_owned()),
    };
    privileges::restrict_for_good()?;
    Ok((networks, no_input_roots))
}

/// A job must not be the host's root, not even without capabilities: too much belongs to it.
fn check_user(user: Option<JobUser>) -> Result<(), SandboxError> {
    let reason = match user {
        Some(JobUser { uid: 0, .. } | JobUser { gid: 0, .. }) => "jobs cannot run as root",
        Some(_) => return Ok(()),
        None => {
            let map = std::fs::read_to_string("/proc/self/uid_map")
                .at(|| "read the user namespace's map".to_owned())?;
            // Inside, outside, how many.
            if map.split_ascii_whitespace().nth(1) != Some("0") {
                return Ok(());
            }
            "root needs another user for its jobs"
        }
    };
    Err(SandboxError::Config(reason.to_owned()))
}

/// Makes descriptor 0 `/dev/null`, which all jobs inherit, and sees that 1 and 2 are open.
#[expect(unsafe_code, reason = "descriptors are placed by number")]
fn above_standard_streams(control: OwnedFd) -> Result<OwnedFd, SandboxError> {
    let step = || "put the standard descriptors in place".to_owned();
    // SAFETY: returns a new descriptor that nobody else owns, above 2.
    let moved = unsafe {
        Errno::result(libc::fcntl(control.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3))
            .map(|fd| OwnedFd::from_raw_fd(fd))
    }
    .at(step)?;
    drop(control);
    let null = open("/dev/null", OFlag::O_RDWR, Mode::empty()).at(step)?;
    for fd in 0..=2 {
        // SAFETY: asks about a number.
        let is_open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
        if (fd == 0 || !is_open) && null.as_raw_fd() != fd {
            // SAFETY: nothing in this process owns the standard descriptors.
            Errno::result(unsafe { libc::dup2(null.as_raw_fd(), fd) }).at(step)?;
        }
    }
    if null.as_raw_fd() <= 2 {
        // It has become one of the standard descriptors.
        std::mem::forget(null);
    }
    Ok(moved)
}

/// A job whose init has not been waited for.
#[derive(Debug)]
struct Job {
    init: namespaces::Init,
    /// Where the report comes from.
    status: OwnedFd,
    /// If it did not make its own.
    network: Option<Network>,
    received_us: u64,
    killed: bool,
}

struct Loop<'a> {
    config: &'a SpawnerConfig,
    control: OwnedFd,
    inbox: Inbox,
    epoll: Epoll,
    jobs: BTreeMap<u64, Job>,
    /// `None`: every job makes its own.
    networks: Option<Networks>,
}

impl<'a> Loop<'a> {
    fn new(
        control: OwnedFd,
        config: &'a SpawnerConfig,
        networks: Option<Networks>,
    ) -> Result<Self, SandboxError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .at(|| "open the spawner's event queue".to_owned())?;
        epoll
            .add(&control, EpollEvent::new(EpollFlags::EPOLLIN, CONTROL))
            .at(|| "watch the agent's socket".to_owned())?;
        let (inbox, jobs) = (Inbox::default(), BTreeMap::new());
        Ok(Self { config, control, inbox, epoll, jobs, networks })
    }

    /// Handles requests and ends until the agent closes.
    fn serve(&mut self) -> Result<(), SandboxError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let wants_spare = self.networks.as_ref().is_some_and(Networks::wants_spare);
            let patience = if wants_spare { EpollTimeout::ZERO } else { EpollTimeout::NONE };
            let count = self.wait(&mut events, patience)?;
            if count == 0
                && let Some(networks) = &mut self.networks
            {
                networks.make_spare();
            }
            for event in &events[..count] {
                if event.data() != CONTROL {
                    self.reap(event.data(), true)?;
                } else if self.requests()? == Arrival::End {
                    return Ok(());
                }
            }
        }
    }

    fn wait(
        &self,
        events: &mut [EpollEvent],
        patience: EpollTimeout,
    ) -> Result<usize, SandboxError> {
        loop {
            match self.epoll.wait(events, patience) {
                Err(Errno::EINTR) => {}
                result => return result.at(|| "wait for jobs and requests".to_owned()),
            }
        }
    }

    fn requests(&mut self) -> Result<Arrival, SandboxError> {
        if self.inbox.fill(&self.control)? == Arrival::End {
            return Ok(Arrival::End);
        }
        while let Some(request) = self.inbox.next()? {
            match request {
                Request::Kill { job } => {
                    if let Some(job) = self.jobs.get_mut(&job) {
                        job.killed = true;
                        kill(&job.init)?;
                    }
                }
                Request::Start { job, spec } => {
                    let stdout = self.inbox.next_descriptor()?;
                    let stderr = self.inbox.next_descriptor()?;
                    if let Err(error) = self.start(job, &spec, stdout, stderr) {
                        let reason = error.to_string();
                        send(&self.control, &Reply::StartFailed { job, reason }, &[])?;
                    }
                }
            }
        }
        Ok(Arrival::Bytes)
    }

    /// Forks a job's init; its set-up happens there and so beside this loop.
    fn start(
        &mut self,
        number: u64,
        spec: &JobSpec,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<(), SandboxError> {
        if self.jobs.len() >= self.config.max_jobs {
            let reason = format!("{} jobs are running, as many as allowed", self.jobs.len());
            return Err(SandboxError::Config(reason));
        }
        let received_us = monotonic_us();
        let (status, report) =
            pipe2(OFlag::O_CLOEXEC).at(|| "open a pipe for the job's report".to_owned())?;
        let spare = self.networks.as_mut().filter(|_| !spec.network).and_then(Networks::take);
        let init = match clone_init().at(|| "start the job's process 1".to_owned()) {
            Ok(Some(init)) => init,
            Err(error) => {
                self.give_back(spare);
                return Err(error);
            }
            Ok(None) => {
                let user = self.config.job_user;
                let network = match (&spare, &self.networks) {
                    (Some(spare), _) => JobNetwork::Of(spare.namespace()),
                    (None, _) if !spec.network => JobNetwork::New,
                    (None, Some(networks)) => JobNetwork::Of(networks.home()),
                    (None, None) => JobNetwork::Inherited,
                };
                init::run(Init { spec, user, network, stdout, stderr, status: report })
            }
        };
        let pid = init.pid.as_raw().unsigned_abs();
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        let watched = self.epoll.add(&init.pidfd, event).at(|| "watch the job".to_owned());
        self.jobs.insert(number, Job { init, status, network: spare, received_us, killed: false });
        if let Err(error) = watched {
            // Its end would never be seen.
            self.kill_and_reap(number)?;
            return Err(error);
        }
        debug!(job = number, pid, "job started");
        Ok(())
    }

    /// Takes a job that has ended off the table. Its PID namespace is empty: the kernel has killed
    /// and waited for everything in it before it let init be seen as ended.
    fn reap(&mut self, number: u64, tell: bool) -> Result<(), SandboxError> {
        let Some(job) = self.jobs.remove(&number) else { return Ok(()) };
        let usage = wait_with_usage(&job.init)?;
        let ended_us = monotonic_us();
        let (end, ready_us) = match read_report(job.status) {
            Ok(report) => (report.end, report.ready_us),
            Err(_) if job.killed => (JobEnd::Killed, 0),
            Err(error) => (JobEnd::SetupFailed(format!("process 1 was lost: {error}")), 0),
        };
        let ready_us = if ready_us == 0 { ended_us } else { ready_us };
        let times = JobTimes {
            setup_us: ready_us.saturating_sub(job.received_us),
            run_us: ended_us.saturating_sub(ready_us),
        };
        debug!(job = number, ?end, "job ended");
        if tell {
            send(&self.control, &Reply::Ended { job: number, end, usage, times }, &[])?;
        }
        self.give_back(job.network);
        Ok(())
    }

    /// A network in which no process is left.
    fn give_back(&mut self, network: Option<Network>) {
        if let (Some(networks), Some(network)) = (&mut self.networks, network) {
            networks.give_back(network);
        }
    }

    fn kill_and_reap(&mut self, number: u64) -> Result<(), SandboxError> {
        if let Some(job) = self.jobs.get(&number) {
            kill(&job.init)?;
        }
        self.reap(number, false)
    }

    /// Kills every job, all before the first is waited for.
    fn kill_all(&mut self) -> Result<(), SandboxError> {
        for job in self.jobs.values() {
            kill(&job.init)?;
        }
        while let Some(number) = self.jobs.keys().next().copied() {
            if let Err(error) = self.reap(number, false) {
                error!(job = number, error = %error, "failed to wait for a killed job");
            }
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "nix has no pidfd_send_signal")]
fn kill(init: &namespaces::Init) -> Result<(), SandboxError> {
    let info = std::ptr::null::<libc::siginfo_t>();
    let pidfd = init.pidfd.as_fd().as_raw_fd();
    // SAFETY: numbers, and a null pointer that stands for the default information.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, info, 0) };
    match Errno::result(result) {
        // It has ended and is about to be waited for.
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).at(|| "kill a job".to_owned()),
    }
}

#[expect(unsafe_code, reason = "nix has no wait4")]
fn wait_with_usage(init: &namespaces::Init) -> Result<ResourceUsage, SandboxError> {
    // SAFETY: all zeroes is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = init.pid.as_raw();
    loop {
        // SAFETY: the kernel writes one `rusage`, which outlives the call.
        let result = unsafe { libc::wait4(pid, std::ptr::null_mut(), 0, &raw mut usage) };
        match Errno::result(result) {
            Err(Errno::EINTR) => {}
            result => break result.map(drop).at(|| "wait for a job's process 1".to_owned())?,
        }
    }
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Ok(ResourceUsage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        max_rss_bytes: usage.ru_maxrss as u64 * 1024,
    })
}

/// Reads what init has written; it is dead, so this never waits.
fn read_report(status: OwnedFd) -> io::Result<Report> {
    let mut bytes = Vec::new();
    File::from(status).take(MAX_REPORT_BYTES).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Err(io::Error::other("killed from outside, or out of memory"));
    }
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}
