//! `Fetcher`: blobs as open files and decoded directories, each asked for once at a time.
//!
//! A request that needs a blob which is not at hand leaves its answer here as a closure. The blob is
//! asked of [`Contents`] once, however many wait; then every waiter is called exactly once, on a
//! thread that may block: with the blob, with the failure, when the deadline passes, or when its
//! inode is given up. It is asked again only to name further views that wait. Open files and directories are kept in bounded caches; what is in them needs no
//! asking, since an open file cannot change or vanish.
//!
//! A large blob may become readable in parts before it is whole ([`Fetcher::arriving`]). Whoever wants
//! a part is called when that part can be read, with the file that the blob is written to.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use distbuild_proto::{Digest, Directory};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use crate::blob;
use crate::contents::{BlobKey, BlobKind, Contents, Reads, Want, WantError};
use crate::inode::{Ino, ViewId};
use crate::pool::Pool;
use crate::ranges::Ranges;
use crate::tree::{Context, Tree};

/// Limits of a [`Fetcher`].
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// Root of the store.
    pub store: PathBuf,
    /// How long a blob may take.
    pub deadline: Duration,
    /// Threads that read blobs from disk.
    pub threads: usize,
    /// Blobs that may be asked for at once.
    pub max_pending: usize,
    /// Files kept open.
    pub open_files: usize,
    /// Encoded size of the directories kept decoded.
    pub directory_cache_bytes: u64,
}

/// A blob that is ready for use.
#[derive(Clone, Debug)]
pub enum Blob {
    /// An open file of the right length.
    File(Arc<File>),
    /// A decoded directory.
    Directory(Arc<Directory>),
}

/// Takes a blob or why there is none.
pub type Waiter = Box<dyn FnOnce(Result<Blob, WantError>) + Send>;

/// Gets blobs. Dropping it fails what is pending and ends its threads.
pub struct Fetcher {
    shared: Arc<Shared>,
}

struct Shared {
    config: FetchConfig,
    tree: Arc<dyn Tree>,
    contents: Arc<dyn Contents>,
    pool: Pool,
    files: Mutex<LruCache<BlobKey, Arc<File>>>,
    directories: Mutex<DirectoryCache>,
    pending: Mutex<Pending>,
    deadline_set: Condvar,
}

#[derive(Default)]
struct Pending {
    blobs: HashMap<BlobKey, Asked>,
    deadlines: BTreeMap<(Instant, u64), BlobKey>,
    next_ticket: u64,
    ended: bool,
}

struct Asked {
    /// Tells this request from an earlier one for the same blob.
    ticket: u64,
    deadline: Instant,
    /// For whom it was asked: the clocks of these views stand still.
    announced: Vec<ViewId>,
    waiting: Vec<Waiting>,
    partial: Option<Partial>,
}

/// A blob of which some can be read already.
struct Partial {
    path: PathBuf,
    file: Arc<File>,
    readable: Ranges,
}

struct Waiting {
    ino: Ino,
    /// The bytes that are needed; none if all are.
    part: Option<Range<u64>>,
    waiter: Waiter,
}

impl Fetcher {
    /// Starts the threads.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(
        config: FetchConfig,
        tree: Arc<dyn Tree>,
        contents: Arc<dyn Contents>,
    ) -> io::Result<Self> {
        let open_files = NonZeroUsize::new(config.open_files).unwrap_or(NonZeroUsize::MIN);
        let shared = Arc::new(Shared {
            pool: Pool::new(config.threads)?,
            files: Mutex::new(LruCache::new(open_files)),
            directories: Mutex::new(DirectoryCache::new(config.directory_cache_bytes)),
            pending: Mutex::default(),
            deadline_set: Condvar::new(),
            config,
            tree,
            contents,
        });
        let watched = Arc::clone(&shared);
        thread::Builder::new()
            .name("fs-deadlines".into())
            .spawn(move || watched.watch_deadlines())?;
        Ok(Self { shared })
    }

    /// The open file of a blob, if it is at hand.
    pub fn cached_file(&self, key: &BlobKey) -> Option<Arc<File>> {
        self.shared.files.lock().get(key).cloned()
    }

    /// The decoded directory, if it is at hand.
    pub fn cached_directory(&self, digest: &Digest) -> Option<Arc<Directory>> {
        self.shared.directories.lock().entries.get(digest).cloned()
    }

    /// Blobs that are asked for and not there yet.
    pub fn pending_count(&self) -> usize {
        self.shared.pending.lock().blobs.len()
    }

    /// Gets a blob for a request on `ino` and hands it to `waiter` on a thread that may block.
    pub fn want(&self, key: BlobKey, ino: Ino, waiter: Waiter) {
        Shared::want(&self.shared, key, Waiting { ino, part: None, waiter });
    }

    /// As [`want`](Self::want), but only these bytes of the file need to be there.
    pub fn want_part(&self, key: BlobKey, ino: Ino, part: Range<u64>, waiter: Waiter) {
        Shared::want(&self.shared, key, Waiting { ino, part: Some(part), waiter });
    }

    /// A blob that was asked for is on its way: it is written to the file at `path`, and these bytes of
    /// it are verified. Its deadline begins anew.
    pub fn arriving(&self, key: &BlobKey, path: &Path, readable: Ranges) {
        self.shared.arriving(key, path, readable);
    }

    /// A name was found to be the file `ino`. If its contents are on their way, whoever brings them
    /// learns that one more view may wait for them: the kernel sends no second READ for a page that
    /// is being read.
    pub fn found(&self, ino: Ino) {
        if self.shared.pending.lock().blobs.is_empty() {
            return;
        }
        if let Ok(file) = self.shared.tree.file(ino) {
            let kind = BlobKind::File { executable: file.executable };
            Shared::announce(&self.shared, BlobKey { digest: file.digest, kind }, ino);
        }
    }

    /// Runs a job on a thread that may block.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.shared.pool.run(Box::new(job));
    }

    /// An open file could not be read: it is asked for anew next time, and the views learn of it.
    pub fn read_failed(&self, key: &BlobKey, ino: Ino, why: &WantError) {
        self.shared.files.lock().pop(key);
        self.shared.report(key, &[ino], why);
    }

    /// Fails what waits for inodes that the tree has given up.
    pub fn give_up(&self) {
        let mut doomed = Vec::new();
        for asked in self.shared.pending.lock().blobs.values_mut() {
            let given_up = |waiting: &mut Waiting| self.shared.tree.is_given_up(waiting.ino);
            doomed.extend(asked.waiting.extract_if(.., given_up));
        }
        for waiting in doomed {
            (waiting.waiter)(Err(WantError::GivenUp));
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let asked: Vec<Asked> = {
            let mut pending = self.shared.pending.lock();
            pending.ended = true;
            pending.deadlines.clear();
            pending.blobs.drain().map(|(_, asked)| asked).collect()
        };
        self.shared.deadline_set.notify_all();
        for waiting in asked.into_iter().flat_map(|asked| asked.waiting) {
            (waiting.waiter)(Err(WantError::Gone));
        }
    }
}

impl Shared {
    fn want(self: &Arc<Self>, key: BlobKey, waiting: Waiting) {
        let ino = waiting.ino;
        let mut pending = self.pending.lock();
        if let Some(asked) = pending.blobs.get_mut(&key) {
            if let Some(file) = asked.readable(&waiting) {
                drop(pending);
                return self.pool.run(Box::new(move || (waiting.waiter)(Ok(Blob::File(file)))));
            }
            // Told with the lock held, so that it is not overtaken by what is told in `arriving`.
            if let (Some(part), true) = (&waiting.part, asked.partial.is_some()) {
                self.contents.reads(&key, Reads::Wait(part.clone()));
            }
            asked.waiting.push(waiting);
            drop(pending);
            return self.announce(key, ino);
        }
        let count = pending.blobs.len();
        if pending.ended || count >= self.config.max_pending {
            let why = if pending.ended { WantError::Gone } else { WantError::Busy(count) };
            drop(pending);
            return self.refuse(key, waiting, why);
        }
        let context = self.tree.context(ino);
        let deadline = Instant::now() + self.config.deadline;
        let ticket = pending.add(key, deadline, context.views.clone(), waiting);
        drop(pending);
        self.deadline_set.notify_one();
        self.ask(key, ticket, context);
    }

    fn arriving(&self, key: &BlobKey, path: &Path, readable: Ranges) {
        let mut pending = self.pending.lock();
        let Some(asked) = pending.renew(key, Instant::now() + self.config.deadline) else { return };
        let known = asked.partial.take().filter(|partial| partial.path == path);
        let begins = known.is_none();
        let file = match known.map_or_else(|| File::open(path).map(Arc::new), |it| Ok(it.file)) {
            Ok(file) => file,
            Err(error) => {
                // It has its own name by now, or was given up; the answer tells.
                return tracing::debug!(%error, "a partial blob cannot be opened");
            }
        };
        let partial = asked.partial.insert(Partial { path: path.to_owned(), file, readable });
        let (file, readable) = (partial.file.clone(), &partial.readable);
        let can_be_read = |waiting: &mut Waiting| waiting.is_covered_by(readable);
        let served: Vec<_> = asked.waiting.extract_if(.., can_be_read).collect();
        let parts = asked.waiting.iter().filter_map(|waiting| waiting.part.clone());
        if begins {
            parts.for_each(|part| self.contents.reads(key, Reads::Wait(part)));
        }
        if asked.waiting.is_empty() && (begins || !served.is_empty()) {
            self.contents.reads(key, Reads::Done);
        }
        drop(pending);
        for waiting in served {
            let blob = Blob::File(file.clone());
            self.pool.run(Box::new(move || (waiting.waiter)(Ok(blob))));
        }
    }

    fn ask(self: &Arc<Self>, key: BlobKey, ticket: u64, context: Context) {
        let shared = Arc::clone(self);
        let done = Box::new(move |result| Self::answered(&shared, key, ticket, result));
        self.contents.want(Want { key, context }, done);
    }

    /// Asks for a pending blob again if there are views it was not asked for yet. The first answer
    /// counts.
    fn announce(self: &Arc<Self>, key: BlobKey, ino: Ino) {
        let context = self.tree.context(ino);
        let mut pending = self.pending.lock();
        let Some(asked) = pending.blobs.get_mut(&key) else { return };
        let known = asked.announced.len();
        for view in &context.views {
            if !asked.announced.contains(view) {
                asked.announced.push(*view);
            }
        }
        if asked.announced.len() > known {
            let ticket = asked.ticket;
            drop(pending);
            self.ask(key, ticket, context);
        }
    }

    fn refuse(self: &Arc<Self>, key: BlobKey, waiting: Waiting, why: WantError) {
        let shared = Arc::clone(self);
        self.pool.run(Box::new(move || {
            shared.report(&key, &[waiting.ino], &why);
            (waiting.waiter)(Err(why));
        }));
    }

    /// The answer came; the rest may need the disk.
    fn answered(self: &Arc<Self>, key: BlobKey, ticket: u64, result: Result<(), WantError>) {
        {
            let mut pending = self.pending.lock();
            if !pending.is_pending(&key, ticket) {
                return;
            }
            if matches!(result, Err(WantError::GivenUp)) {
                return pending.forget(&key, ticket);
            }
        }
        let shared = Arc::clone(self);
        self.pool.run(Box::new(move || {
            let blob = result.and_then(|()| shared.load(&key));
            shared.finish(&key, ticket, blob);
        }));
    }

    fn load(&self, key: &BlobKey) -> Result<Blob, WantError> {
        let file = self.contents.open(&self.config.store, key)?;
        match key.kind {
            BlobKind::File { .. } => {
                let file = Arc::new(file);
                self.files.lock().put(*key, Arc::clone(&file));
                Ok(Blob::File(file))
            }
            BlobKind::Directory => {
                let directory = Arc::new(blob::read_directory(file, key)?);
                self.directories.lock().put(key.digest, Arc::clone(&directory));
                Ok(Blob::Directory(directory))
            }
        }
    }

    /// Calls all waiters, once. A failure is reported before any process can see it.
    fn finish(&self, key: &BlobKey, ticket: u64, result: Result<Blob, WantError>) {
        let Some(waiting) = self.pending.lock().take(key, ticket) else {
            return;
        };
        // Of a blob that came in parts, all that was read may have been there.
        if let Err(why) = &result
            && !waiting.is_empty()
        {
            let inodes: Vec<Ino> = waiting.iter().map(|waiting| waiting.ino).collect();
            self.report(key, &inodes, why);
        }
        for waiting in waiting {
            (waiting.waiter)(result.clone());
        }
    }

    fn report(&self, key: &BlobKey, waiting: &[Ino], why: &WantError) {
        tracing::warn!(blob.digest = %key.digest, error = %why, "contents could not be read");
        self.contents.read_failed(key.digest, self.tree.affected(key, waiting), why);
    }

    fn watch_deadlines(self: Arc<Self>) {
        let mut pending = self.pending.lock();
        while !pending.ended {
            match pending.deadlines.first_key_value() {
                None => self.deadline_set.wait(&mut pending),
                Some((&(deadline, ticket), &key)) if deadline <= Instant::now() => {
                    pending.deadlines.pop_first();
                    drop(pending);
                    let why = WantError::Deadline(self.config.deadline.as_millis() as u64);
                    let shared = Arc::clone(&self);
                    self.pool.run(Box::new(move || shared.finish(&key, ticket, Err(why))));
                    pending = self.pending.lock();
                }
                Some((&(deadline, _), _)) => {
                    self.deadline_set.wait_until(&mut pending, deadline);
                }
            }
        }
    }
}

impl Asked {
    /// The file, if what is waited for can be read from it.
    fn readable(&self, waiting: &Waiting) -> Option<Arc<File>> {
        let partial = self.partial.as_ref()?;
        waiting.is_covered_by(&partial.readable).then(|| partial.file.clone())
    }
}

impl Waiting {
    fn is_covered_by(&self, readable: &Ranges) -> bool {
        self.part.as_ref().is_some_and(|part| readable.covers(part))
    }
}

impl Pending {
    fn add(
        &mut self,
        key: BlobKey,
        deadline: Instant,
        announced: Vec<ViewId>,
        waiting: Waiting,
    ) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let asked = Asked { ticket, deadline, announced, waiting: vec![waiting], partial: None };
        self.blobs.insert(key, asked);
        self.deadlines.insert((deadline, ticket), key);
        ticket
    }

    /// A pending blob, with a new deadline.
    fn renew(&mut self, key: &BlobKey, deadline: Instant) -> Option<&mut Asked> {
        let asked = self.blobs.get_mut(key)?;
        self.deadlines.remove(&(asked.deadline, asked.ticket));
        asked.deadline = deadline;
        self.deadlines.insert((deadline, asked.ticket), *key);
        Some(asked)
    }

    /// Those for whom a blob was asked need it no more. Others who wait have asked for themselves.
    fn forget(&mut self, key: &BlobKey, ticket: u64) {
        if self.blobs.get(key).is_some_and(|asked| asked.waiting.is_empty()) {
            self.take(key, ticket);
        }
    }

    fn is_pending(&self, key: &BlobKey, ticket: u64) -> bool {
        self.blobs.get(key).is_some_and(|asked| asked.ticket == ticket)
    }

    fn take(&mut self, key: &BlobKey, ticket: u64) -> Option<Vec<Waiting>> {
        if !self.is_pending(key, ticket) {
            return None;
        }
        let asked = self.blobs.remove(key)?;
        self.deadlines.remove(&(asked.deadline, ticket));
        Some(asked.waiting)
    }
}

/// Decoded directories, the least recently used of which go first; bounded by encoded size.
struct DirectoryCache {
    entries: LruCache<Digest, Arc<Directory>>,
    bytes: u64,
    limit_bytes: u64,
}

impl DirectoryCache {
    /// What an entry costs beyond its encoding, about.
    const ENTRY_BYTES: u64 = 256;

    fn new(limit_bytes: u64) -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0, limit_bytes }
    }

    fn put(&mut self, digest: Digest, directory: Arc<Directory>) {
        if self.entries.put(digest, directory).is_none() {
            self.bytes += digest.size_bytes() + Self::ENTRY_BYTES;
        }
        while self.bytes > self.limit_bytes
            && let Some((oldest, _)) = self.entries.pop_lru()
        {
            self.bytes -= oldest.size_bytes() + Self::ENTRY_BYTES;
        }
    }
}
