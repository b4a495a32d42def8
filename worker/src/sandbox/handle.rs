//! The agent's side of the spawner.
//!
//! [`Spawner`] is a handle for any number of tasks; a thread reads the answers and completes what
//! the tasks wait for. Sending happens on the caller's thread: the spawner reads as fast as it
//! forks, so a send waits for microseconds at most, unless the text of a command is very large.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::channel::{Arrival, Inbox, send};
use super::error::{AtStep, SandboxError};
use super::protocol::{JobEnd, JobSpec, JobTimes, Reply, Request, ResourceUsage};

/// A connection to a spawner's process. When the last clone is dropped the connection closes, and
/// the spawner kills all its jobs and exits; [`RunningJob`]s do not keep it open.
#[derive(Clone, Debug)]
pub struct Spawner {
    connection: Arc<Connection>,
    no_input_roots: Option<Arc<str>>,
}

/// A job that was handed to the spawner. Dropping it before its end kills the job.
#[derive(Debug)]
pub struct RunningJob {
    number: u64,
    link: Arc<Link>,
    ended: oneshot::Receiver<Ended>,
}

/// The end of a job: none of its processes exists any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub end: JobEnd,
    /// What it used.
    pub usage: ResourceUsage,
    /// How long it took.
    pub times: JobTimes,
}

/// Closes the socket when the last [`Spawner`] is gone.
#[derive(Debug)]
struct Connection {
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    socket: UnixStream,
    /// Held while a message is sent, so that frames stay whole.
    sending: Mutex<()>,
    table: Mutex<Table>,
    /// Cancelled when the spawner is gone.
    lost: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    /// The number of the next job.
    next: u64,
    /// Whom to tell of a job's end.
    waiting: HashMap<u64, oneshot::Sender<Ended>>,
}

impl Spawner {
    /// Waits until the spawner at the other end of `socket` has made its template root.
    ///
    /// Blocks the calling thread for as long.
    ///
    /// # Errors
    /// [`SandboxError::Broken`] with the spawner's own words; [`SandboxError::Lost`] if it exits; a
    /// time-out.
    pub fn connect(socket: UnixStream, timeout: Duration) -> Result<Self, SandboxError> {
        let step = || "wait for the spawner to be ready".to_owned();
        socket.set_nonblocking(false).at(step)?;
        socket.set_read_timeout(Some(timeout)).at(step)?;
        let mut inbox = Inbox::default();
        let first = loop {
            if let Some(reply) = inbox.next()? {
                break reply;
            }
            if inbox.fill(&socket)? == Arrival::End {
                return Err(SandboxError::Lost);
            }
        };
        let no_input_roots = match first {
            Reply::Ready { no_input_roots } => no_input_roots,
            Reply::Broken { reason } => return Err(SandboxError::Broken(reason)),
            _ => return Err(io::Error::from(io::ErrorKind::InvalidData)).at(step),
        };
        socket.set_read_timeout(None).at(step)?;
        let (sending, table) = (Mutex::default(), Mutex::default());
        let lost = CancellationToken::new();
        let link = Arc::new(Link { socket, sending, table, lost });
        let reader = Arc::clone(&link);
        std::thread::Builder::new()
            .name("spawner-replies".to_owned())
            .spawn(move || reader.read_replies(inbox))
            .at(|| "start the thread that reads the spawner's answers".to_owned())?;
        let no_input_roots = no_input_roots.map(Arc::from);
        Ok(Self { connection: Arc::new(Connection { link }), no_input_roots })
    }

    /// Starts a job whose standard output and error go to the given descriptors, usually the write
    /// ends of pipes. They are closed here once sent: a pipe ends when no process of the job holds
    /// it.
    ///
    /// # Errors
    /// The spawner is gone, or the job's message is larger than
    /// [`MAX_MESSAGE_BYTES`](super::protocol::MAX_MESSAGE_BYTES). What fails later, fails in
    /// [`RunningJob::ended`].
    pub fn start(
        &self,
        spec: JobSpec,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<RunningJob, SandboxError> {
        let link = &self.connection.link;
        let (waiting, ended) = oneshot::channel();
        let number = {
            let mut table = link.table.lock();
            if link.lost.is_cancelled() {
                return Err(SandboxError::Lost);
            }
            let number = table.next;
            table.next += 1;
            table.waiting.insert(number, waiting);
            number
        };
        let request = Request::Start { job: number, spec };
        let sent = {
            let _whole = link.sending.lock();
            send(&link.socket, &request, &[stdout.as_fd(), stderr.as_fd()])
        };
        if let Err(error) = sent {
            link.table.lock().waiting.remove(&number);
            return Err(error);
        }
        Ok(RunningJob { number, link: Arc::clone(link), ended })
    }

    /// Why jobs cannot be given an [`InputRoot`](super::InputRoot) that they may change; `None` if they
    /// can.
    pub fn no_input_roots(&self) -> Option<&str> {
        self.no_input_roots.as_deref()
    }

    /// Returns when the spawner is gone, and all its jobs with it.
    pub async fn lost(&self) {
        self.connection.link.lost.cancelled().await;
    }

    /// Whether the spawner is gone.
    pub fn is_lost(&self) -> bool {
        self.connection.link.lost.is_cancelled()
    }
}

impl RunningJob {
    /// Waits until no process of the job exists any more. To be awaited to its end once; may be
    /// dropped and called again before.
    ///
    /// # Errors [`SandboxError::Lost`]: the spawner is gone; the kernel kills the job, but nobody
    /// can tell when it is dead, so that its outputs must not be touched.
    pub async fn ended(&mut self) -> Result<Ended, SandboxError> {
        (&mut self.ended).await.map_err(|_| SandboxError::Lost)
    }

    /// Kills the job with everything it started. Returns at once; [`ended`](Self::ended) tells when
    /// all is dead. Does nothing if the job has ended.
    pub fn kill(&self) -> Result<(), SandboxError> {
        if !self.link.table.lock().waiting.contains_key(&self.number) {
            return Ok(());
        }
        let _whole = self.link.sending.lock();
        send(&self.link.socket, &Request::Kill { job: self.number }, &[])
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        // If the spawner cannot be told, it is gone and the job with it.
        let _ = self.kill();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Fails only if the other side has closed first.
        let _ = self.link.socket.shutdown(Shutdown::Both);
    }
}

impl Link {
    /// Completes what is waited for until the connection ends; then everything left is lost.
    fn read_replies(&self, mut inbox: Inbox) {
        if let Err(error) = self.serve_replies(&mut inbox) {
            error!(error = %error, "failed to read the spawner's answers");
        }
        // Under the lock: a job that is put on the table before this is taken off it here.
        let mut table = self.table.lock();
        self.lost.cancel();
        table.waiting.clear();
    }

    fn serve_replies(&self, inbox: &mut Inbox) -> Result<(), SandboxError> {
        loop {
            while let Some(reply) = inbox.next()? {
                self.complete(reply);
            }
            if inbox.fill(&self.socket)? == Arrival::End {
                return Ok(());
            }
        }
    }

    /// Whoever waited may have given up: an answer that nobody takes is dropped.
    fn complete(&self, reply: Reply) {
        match reply {
            Reply::Ended { job, end, usage, times } => self.end(job, Ended { end, usage, times }),
            Reply::StartFailed { job, reason } => {
                let (usage, times) = Default::default();
                self.end(job, Ended { end: JobEnd::SetupFailed(reason), usage, times });
            }
            Reply::Ready { .. } | Reply::Broken { .. } => {}
        }
    }

    fn end(&self, job: u64, ended: Ended) {
        if let Some(waiting) = self.table.lock().waiting.remove(&job) {
            let _ = waiting.send(ended);
        }
    }
}
