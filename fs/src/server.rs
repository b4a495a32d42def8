//! The file-system process: serves the mounts of one agent, until the agent's socket ends.
//!
//! Threads: the caller's reads the agent's messages and is the only one that adds and drops views; the
//! loops answer the kernel; the fetcher's read blobs; one writes to the agent; one tells the kernel
//! to drop its entries of views that are gone, since that waits for requests under way and may
//! neither stop a loop nor the reading of the answers that end the waiting.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use distbuild_proto::{AccessRecord, Digest, ObservedDirectory};
use fuser::{INodeNo, Notifier};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;

use crate::adapter::Adapter;
use crate::answers::Owner;
use crate::backing::Backings;
use crate::connection::{Begun, Connection};
use crate::contents::{BlobKey, Contents, Done, Reads, Want, WantError};
use crate::fetch::{FetchConfig, Fetcher};
use crate::inode::{Ino, ViewId};
use crate::messages::{Message, MessageCounts};
use crate::mount::MountedFuse;
use crate::protocol::{self, FromFs, ProtocolError, Recorded, Stats, ToFs};
use crate::requests::Requests;
use crate::traced::RecordLimits;
use crate::tree::Tree;
use crate::view::Views;

/// How a mount is served.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Root of the store.
    pub store: PathBuf,
    /// Who owns all files, as seen in the user namespace of the mount.
    pub owner: Owner,
    /// Threads that answer the kernel. Each takes 16 MiB of address space.
    pub loop_threads: usize,
    /// Threads that read blobs from disk.
    pub fetch_threads: usize,
    /// How long a blob may take before its readers get an error.
    pub want_deadline: Duration,
    /// Blobs that may be wanted at once.
    pub max_pending: usize,
    /// Blob files kept open; lowered to what the process may open.
    pub open_files: usize,
    /// Encoded size of the directories kept decoded.
    pub directory_cache_bytes: u64,
    /// Views at once.
    pub max_views: usize,
    /// How much a view's record may hold.
    pub record_limits: RecordLimits,
}

impl FsConfig {
    /// The defaults, over a store.
    pub fn new(store: PathBuf) -> Self {
        Self {
            store,
            owner: Owner::default(),
            loop_threads: 2,
            fetch_threads: 4,
            want_deadline: Duration::from_secs(120),
            max_pending: 16 << 10,
            open_files: 16 << 10,
            directory_cache_bytes: 64 << 20,
            max_views: 16 << 10,
            record_limits: RecordLimits::default(),
        }
    }
}

/// Why a mount is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The kernel does not begin a session, or threads cannot be started.
    #[error("failed to start serving the mount")]
    Start(#[source] io::Error),
    /// The agent says something that is no message.
    #[error("failed to understand the agent")]
    Protocol(#[from] ProtocolError),
}

/// Frames that wait for the agent to read them.
const OUTGOING_LIMIT: usize = 8192;
/// Files left for everything but blobs.
const OTHER_FILES: u64 = 64;
/// How long the loops get to see that the mount is gone. Jobs that still use it hold it up.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What is served: one tree, shown once or twice.
#[derive(Debug)]
pub struct Mounts {
    /// Read through this process.
    pub usual: MountedFuse,
    /// Large files are read from the store by the kernel itself, if it lets us. Otherwise a second mount like
    /// the usual one. Only worth a try for a process that is root outside of user namespaces.
    pub passthrough: Option<MountedFuse>,
}

/// Serves a worker's mounts until the agent closes its socket, then unmounts. The process should exit
/// after that: whatever still uses them then gets `ENOTCONN`.
///
/// # Errors
/// A session cannot begin, or the agent breaks the protocol.
pub fn run(control: UnixStream, mounts: Mounts, config: FsConfig) -> Result<(), ServerError> {
    let agent = Arc::new(Agent::start(&control, config.want_deadline).map_err(ServerError::Start)?);
    let views = Arc::new(Views::new(config.record_limits));
    let (serving, no_passthrough, ended) =
        serve_agent(mounts, &config, &views, &agent).map_err(ServerError::Start)?;
    let (dropped, to_invalidate) = sync_channel(config.max_views);
    let notifiers: Vec<Notifier> = serving.connections().map(Connection::notifier).collect();
    thread::Builder::new()
        .name("fs-invalidate".into())
        .spawn(move || invalidate(&notifiers, &to_invalidate))
        .map_err(ServerError::Start)?;
    agent.send(&FromFs::Ready { no_passthrough });
    let max_views = config.max_views;
    ControlLoop { agent, views, serving, ended, dropped, max_views }.run(control)
}

/// A tree that is being served. Dropping it unmounts, fails what is pending, and does not wait.
pub struct Serving {
    // First: what is unmounted asks for nothing more.
    usual: Connection,
    passthrough: Option<Connection>,
    backings: Arc<Backings>,
    fetcher: Arc<Fetcher>,
}

/// Begins to serve any tree. `on_end` is called from a thread of its own when the kernel has ended the
/// session: after an unmount, here or by somebody else, and when the last user is gone.
///
/// # Errors
/// The kernel does not begin a session, or threads cannot be started.
pub fn serve(
    mount: MountedFuse,
    config: &FsConfig,
    tree: Arc<dyn Tree>,
    contents: Arc<dyn Contents>,
    on_end: impl FnOnce() + Send + 'static,
) -> io::Result<Serving> {
    let fetcher = Arc::new(Fetcher::new(fetch_config(config)?, Arc::clone(&tree), contents)?);
    let adapter = Adapter::new(tree, Arc::clone(&fetcher), config.owner, None);
    let usual = Begun::new(mount, adapter, config.loop_threads)?.answer(on_end)?;
    Ok(Serving {
        usual,
        passthrough: None,
        backings: Arc::new(Backings::of(&config.store)),
        fetcher,
    })
}

/// Begins to serve a worker's mounts. Says also why there is no passthrough, if there is none, and what tells
/// the end of the usual mount.
fn serve_agent(
    mounts: Mounts,
    config: &FsConfig,
    views: &Arc<Views>,
    agent: &Arc<Agent>,
) -> io::Result<(Serving, Option<String>, Receiver<()>)> {
    let tree: Arc<dyn Tree> = views.clone();
    let (end, ended) = sync_channel(1);
    let on_end = move || {
        // Nobody listens any more if the process is ending.
        let _unheard = end.send(());
    };
    let mut serving = serve(mounts.usual, config, Arc::clone(&tree), agent.clone(), on_end)?;
    let Some(mount) = mounts.passthrough else {
        let reason = "the file system is not served by root".to_owned();
        return Ok((serving, Some(reason), ended));
    };
    let backings = Arc::clone(&serving.backings);
    let (fetcher, owner) = (Arc::clone(&serving.fetcher), config.owner);
    let adapter = Adapter::new(tree, fetcher, owner, Some(Arc::clone(&backings)));
    let begun = Begun::new(mount, adapter, config.loop_threads)?;
    let refused = backings.try_out(begun.device(), &config.store).err();
    if let Some(error) = &refused {
        tracing::info!(%error, "no passthrough: large files are read through this process");
    }
    serving.passthrough = Some(begun.answer(|| ())?);
    Ok((serving, refused.map(|error| error.to_string()), ended))
}

impl Serving {
    fn connections(&self) -> impl Iterator<Item = &Connection> {
        std::iter::once(&self.usual).chain(&self.passthrough)
    }
}

fn fetch_config(config: &FsConfig) -> io::Result<FetchConfig> {
    Ok(FetchConfig {
        store: config.store.clone(),
        deadline: config.want_deadline,
        threads: config.fetch_threads,
        max_pending: config.max_pending,
        open_files: raise_open_files(config.open_files)?,
        directory_cache_bytes: config.directory_cache_bytes,
    })
}

/// Allows this process as many open files as the system lets it, and says how many blobs fit.
fn raise_open_files(wanted: usize) -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = soft.max(wanted as u64 + OTHER_FILES).min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    Ok(usize::try_from(limit.saturating_sub(OTHER_FILES)).map_or(wanted, |fit| fit.min(wanted)))
}

/// Tells the kernel that the entries of dropped views are no longer good, so that it forgets them.
fn invalidate(notifiers: &[Notifier], dropped: &Receiver<ViewId>) {
    for view in dropped {
        let name = view.to_string();
        for notifier in notifiers {
            if let Err(error) = notifier.inval_entry(INodeNo(Ino::ACTIONS.0), name.as_ref()) {
                tracing::warn!(view.id = view.0, %error, "the kernel keeps a dropped view in memory");
            }
        }
    }
}

struct ControlLoop {
    agent: Arc<Agent>,
    views: Arc<Views>,
    serving: Serving,
    ended: Receiver<()>,
    dropped: SyncSender<ViewId>,
    max_views: usize,
}

impl ControlLoop {
    fn run(self, mut control: UnixStream) -> Result<(), ServerError> {
        let result = loop {
            match protocol::read(&mut control) {
                Ok(Some(message)) => self.handle(message),
                Ok(None) => break Ok(()),
                Err(ProtocolError::Stream(error))
                    if error.kind() == io::ErrorKind::ConnectionReset =>
                {
                    break Ok(());
                }
                Err(error) => break Err(error.into()),
            }
        };
        self.log_end();
        self.agent.end();
        drop(self.serving);
        if self.ended.recv_timeout(END_LIMIT).is_err() {
            tracing::info!("jobs still use the mount; they lose it with this process");
        }
        result
    }

    fn handle(&self, message: ToFs) {
        match message {
            ToFs::AddView { view, root, properties } => {
                self.agent.send(&self.add_view(view, root, properties));
            }
            ToFs::FailView { view } => self.fail_view(view),
            ToFs::DropView { view } => self.drop_view(view),
            ToFs::WantDone { request, result } => self.agent.answered(request, result),
            ToFs::Arriving { request, path, readable } => {
                let key = self.agent.requests.lock().arrived(request);
                if let Some(key) = key {
                    self.serving.fetcher.arriving(&key, &path, readable);
                }
            }
            ToFs::Stats => self.agent.send(&FromFs::Stats(Stats {
                messages: self.serving.usual.counts(),
                passthrough_messages: self.passthrough_counts(),
                backed: self.serving.backings.count() as u64,
                inodes: self.views.inode_count() as u64,
                views: self.views.view_count() as u64,
                pending: self.serving.fetcher.pending_count() as u64,
            })),
        }
    }

    fn passthrough_counts(&self) -> MessageCounts {
        self.serving.passthrough.as_ref().map(Connection::counts).unwrap_or_default()
    }

    fn log_end(&self) {
        let (usual, passthrough) = (self.serving.usual.counts(), self.passthrough_counts());
        tracing::info!(
            fuse.messages = usual.total(),
            fuse.lookups = usual.get(Message::Lookup),
            fuse.reads = usual.get(Message::Read),
            fuse.listings = usual.get(Message::Readdir),
            fuse.passthrough.messages = passthrough.total(),
            fuse.passthrough.opens = passthrough.get(Message::Open),
            "the file system ends with its agent"
        );
    }

    fn add_view(&self, view: u64, root: Digest, properties: bool) -> FromFs {
        if self.views.view_count() >= self.max_views {
            let reason = format!("{} views exist already", self.max_views);
            return FromFs::ViewRefused { view, reason };
        }
        let added = match properties {
            true => self.views.add_with_properties(ViewId(view), root),
            false => self.views.add(ViewId(view), root),
        };
        match added {
            Ok(()) => FromFs::ViewAdded { view },
            Err(error) => FromFs::ViewRefused { view, reason: error.to_string() },
        }
    }

    fn drop_view(&self, view: u64) {
        self.fail_view(view);
        let record = self.views.drop_view(ViewId(view));
        if record.is_some() && self.dropped.try_send(ViewId(view)).is_err() {
            tracing::warn!(view.id = view, "the kernel keeps a dropped view in memory");
        }
        self.agent.send_record(view, record);
    }

    fn fail_view(&self, view: u64) {
        self.views.fail(ViewId(view));
        self.serving.fetcher.give_up();
    }
}

/// The agent, as the file system sees it: it brings contents and hears of failures.
struct Agent {
    outgoing: Mutex<Option<SyncSender<Vec<u8>>>>,
    requests: Mutex<Requests>,
    deadline: Duration,
}

impl Agent {
    fn start(control: &UnixStream, deadline: Duration) -> io::Result<Self> {
        let (outgoing, frames) = sync_channel::<Vec<u8>>(OUTGOING_LIMIT);
        let mut stream = control.try_clone()?;
        thread::Builder::new().name("fs-to-agent".into()).spawn(move || {
            for frame in frames {
                if stream.write_all(&frame).is_err() {
                    // Ends the reading side as well, and so the process.
                    let _ended_already = stream.shutdown(Shutdown::Both);
                    return;
                }
            }
        })?;
        Ok(Self { outgoing: Mutex::new(Some(outgoing)), requests: Mutex::default(), deadline })
    }

    fn queue(&self) -> Option<SyncSender<Vec<u8>>> {
        self.outgoing.lock().clone()
    }

    /// Waits while the agent is behind with reading.
    fn send(&self, message: &FromFs) {
        match protocol::encode(message) {
            Ok(frame) => self.send_frame(frame),
            Err(error) => tracing::error!(%error, "a message cannot be sent"),
        }
    }

    /// A record that limits above the defaults made too large for a frame is sent as one that saw
    /// everything.
    fn send_record(&self, view: u64, record: Option<AccessRecord>) {
        let root = record.as_ref().map(|record| record.root().digest);
        match protocol::encode(&FromFs::Record { view, record: record.map(Recorded) }) {
            Ok(frame) => self.send_frame(frame),
            Err(error) => {
                tracing::warn!(view.id = view, %error, "an access record cannot be sent");
                let record = root.map(|root| {
                    let mut root = ObservedDirectory::unseen(root);
                    root.everything = true;
                    Recorded(AccessRecord::new(root, true))
                });
                self.send(&FromFs::Record { view, record });
            }
        }
    }

    fn send_frame(&self, frame: Vec<u8>) {
        let sent = self.queue().is_some_and(|queue| queue.send(frame).is_ok());
        if !sent {
            tracing::debug!("a message is lost: the agent is gone");
        }
    }

    fn answered(&self, request: u64, result: Result<(), WantError>) {
        let done = self.requests.lock().take(request);
        if let Some(done) = done {
            done(result);
        }
    }

    /// Nothing will be answered any more.
    fn end(&self) {
        self.outgoing.lock().take();
        let requests = std::mem::take(&mut *self.requests.lock());
        requests.fail_all();
    }
}

impl Contents for Agent {
    fn want(&self, want: Want, done: Done) {
        let Some(queue) = self.queue() else {
            return done(Err(WantError::Gone));
        };
        let request = self.requests.lock().add(want.key, done, self.deadline);
        let message = FromFs::Want {
            request,
            digest: want.key.digest,
            kind: want.key.kind,
            views: want.context.views.iter().map(|view| view.0).collect(),
            hint: want.context.hint,
        };
        // Never waits: this may be a thread that answers the kernel.
        let sent = protocol::encode(&message).is_ok_and(|frame| queue.try_send(frame).is_ok());
        if !sent {
            self.answered(request, Err(WantError::Busy(OUTGOING_LIMIT)));
        }
    }

    fn reads(&self, key: &BlobKey, reads: Reads) {
        let requests = self.requests.lock().concerned(key, &reads);
        let Some(queue) = self.queue() else { return };
        for request in requests {
            let bytes = match &reads {
                Reads::Wait(bytes) => Some(bytes.clone()),
                Reads::Done => None,
            };
            // Never waits, and the blob comes even if this is not heard.
            if let Ok(frame) = protocol::encode(&FromFs::Reads { request, bytes }) {
                let _full = queue.try_send(frame);
            }
        }
    }

    fn read_failed(&self, digest: Digest, views: Vec<ViewId>, why: &WantError) {
        let views = views.into_iter().map(|view| view.0).collect();
        self.send(&FromFs::ReadFailed { digest, views, reason: why.clone() });
    }
}
