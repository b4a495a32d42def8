//! From a directory that a job wrote to a tree in the store.
//!
//! The contents are hostile: whatever a command can make, it may have made. The walk goes by
//! descriptors and never follows a symbolic link; it is bounded in depth and in entries; what is
//! neither file, directory nor symbolic link is an error that names it; a directory or file that
//! its owner may not read is made readable first. The job has ended: nobody changes the directory
//! meanwhile, and if somebody does all the same, the walk fails or stores what it hashed.
//!
//! One thread walks; a few hash files and move them into the store ([`crate::adopt`]). They are
//! started at the second file: most jobs write one or none, and starting a thread costs more than
//! that. The directories of the tree are made at the end, children before parents.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};
use std::thread::{self, Scope, ScopedJoinHandle};

use bytes::Bytes;
use distbuild_proto::{
    Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name, NodeProperties, PathError,
    SymlinkNode, TreeError,
};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstatat};
use parking_lot::Mutex;

use crate::adopt::{Candidate, Wish};
use crate::disk::DiskStore;
use crate::error::StoreError;
use crate::lease::Lease;
use crate::materialize::MAX_TREE_DEPTH;

/// Files that wait to be hashed; each may keep its directory open.
const FILES_WAITING: usize = 64;
/// Hashing threads at most: beyond that the disk is what is waited for.
const MAX_THREADS: usize = 4;
/// Asked for once: the standard library reads the limits of the control group every time.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));

/// How a directory becomes a tree.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// The function that names files and directories.
    pub function: DigestFunction,
    /// How many threads hash.
    pub threads: usize,
    /// How many files, directories and links there may be altogether.
    pub max_entries: u64,
    /// Up to how many bytes of directories are given back beside their digests.
    pub inline_bytes: usize,
}

impl CollectOptions {
    /// Two million entries; as many threads as processors, but four at most; 16 KiB of directories.
    pub fn new(function: DigestFunction) -> Self {
        let threads = (*PROCESSORS).min(MAX_THREADS);
        Self { function, threads, max_entries: 2_000_000, inline_bytes: 16 << 10 }
    }
}

/// A directory that is a tree in the store now. What it reaches is leased until it is dropped.
#[derive(Debug)]
pub struct CollectedTree {
    /// The digest of the root directory.
    pub root: Digest,
    /// The digests of all directories, the root last.
    pub directories: Vec<Digest>,
    /// The encoded directories in the same order, if they are not larger together than
    /// [`CollectOptions::inline_bytes`].
    pub inline: Option<Vec<Bytes>>,
    /// How many regular files there are.
    pub files: u64,
    /// How many bytes the files have.
    pub bytes: u64,
    /// Keeps all of it in the store.
    pub lease: Lease,
}

/// Why a directory did not become a tree. Files that were moved into the store by then are gone
/// from the directory.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The store failed or is full, or a file could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A socket, pipe or device.
    #[error("{} is neither a file, a directory nor a symbolic link", .0.display())]
    Special(PathBuf),
    /// Too many directories below each other.
    #[error("more than {MAX_TREE_DEPTH} directories lie below each other at {}", .0.display())]
    TooDeep(PathBuf),
    /// Too much altogether.
    #[error("there are more than {limit} entries, seen at {}", path.display())]
    TooMany {
        /// The limit.
        limit: u64,
        /// Where it was passed.
        path: PathBuf,
    },
    /// A name that cannot be in a tree.
    #[error("{} cannot be stored", path.display())]
    Name {
        /// The path.
        path: PathBuf,
        /// Why.
        source: PathError,
    },
    /// A directory that cannot be encoded.
    #[error("{} cannot be stored", path.display())]
    Tree {
        /// The path.
        path: PathBuf,
        /// Why.
        source: TreeError,
    },
    /// The operating system refused.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

/// Moves the files below `directory` into the store and builds the tree that it was. The emptied
/// directories and the links stay behind for the caller to remove.
///
/// # Errors
/// See [`CollectError`]; paths in errors are relative to `directory`.
pub fn tree_from_directory(
    store: &DiskStore,
    directory: &Path,
    options: &CollectOptions,
) -> Result<CollectedTree, CollectError> {
    gather(store, options, |walk| {
        let folder = open_directory(AT_FDCWD, directory.as_os_str(), directory)?;
        walk.directory(folder, 0, None)
    })
}

/// Runs a walk while threads hash what it finds, and builds the tree.
pub(crate) fn gather(
    store: &DiskStore,
    options: &CollectOptions,
    work: impl FnOnce(&mut Walk<'_, '_, '_>) -> Result<(), CollectError>,
) -> Result<CollectedTree, CollectError> {
    let gathered = Mutex::new(Gathered::new(store));
    let hashing = Hashing { store, function: options.function, gathered: &gathered };
    let walked = thread::scope(|scope| {
        let threads = options.threads.max(1);
        let hashers = Hashers { scope, hashing, threads, first: None, running: None };
        let mut walk =
            Walk { gathered: &gathered, hashers, options, path: PathBuf::new(), entries: 0 };
        let walked = work(&mut walk);
        let hashed = walk.hashers.finish();
        walked.and(hashed)
    });
    let gathered = gathered.into_inner();
    match gathered.failure {
        Some(failure) => return Err(failure),
        None => walked?,
    }
    gathered.build(store, options)
}

/// What was found so far.
pub(crate) struct Gathered {
    /// In the order of the walk, so a parent stands before its children.
    directories: Vec<Found>,
    /// The root, if it is a tree that was there before.
    pub(crate) root: Option<Digest>,
    lease: Lease,
    files: u64,
    bytes: u64,
    /// The first error of a hasher.
    failure: Option<CollectError>,
}

/// Where a directory stands: the position of its parent, and its name there. None: it is the root.
pub(crate) type At = Option<(usize, Name)>;

/// One directory before its digest is known.
pub(crate) struct Found {
    path: PathBuf,
    at: At,
    /// It is left out if nothing is in it.
    pub(crate) left_out_if_empty: bool,
    pub(crate) files: Vec<FileNode>,
    pub(crate) directories: Vec<DirectoryNode>,
    pub(crate) symlinks: Vec<SymlinkNode>,
    /// Of files and symbolic links that were there before.
    pub(crate) properties: BTreeMap<Name, NodeProperties>,
}

/// A file to be hashed.
struct Job {
    folder: Arc<OwnedFd>,
    parent: usize,
    name: Name,
    path: PathBuf,
}

impl Gathered {
    fn new(store: &DiskStore) -> Self {
        let lease = store.lease(&[]);
        Self { directories: Vec::new(), root: None, lease, files: 0, bytes: 0, failure: None }
    }

    /// A directory that the walk has come to.
    pub(crate) fn found(&mut self, position: usize) -> Option<&mut Found> {
        self.directories.get_mut(position)
    }

    fn build(
        mut self,
        store: &DiskStore,
        options: &CollectOptions,
    ) -> Result<CollectedTree, CollectError> {
        let function = options.function;
        let mut digests = Vec::with_capacity(self.directories.len());
        let (mut inline, mut inline_bytes) = (Some(Vec::new()), 0);
        while let Some(found) = self.directories.pop() {
            let Found { path, at, left_out_if_empty, files, directories, symlinks, properties } =
                found;
            let directory = Directory::new(files, directories, symlinks)
                .map_err(|source| CollectError::Tree { path, source })?
                .with_properties(None, properties);
            if left_out_if_empty && directory.is_empty() && at.is_some() {
                continue;
            }
            let (digest, blob) = directory.encode_with_digest(function);
            self.lease.extend(&[digest]);
            store.insert(&digest, &blob, false)?;
            digests.push(digest);
            inline_bytes += blob.len();
            inline = inline.filter(|_| inline_bytes <= options.inline_bytes);
            if let Some(inline) = &mut inline {
                inline.push(blob);
            }
            if let Some((parent, name)) = at
                && let Some(parent) = self.directories.get_mut(parent)
            {
                parent.directories.push(DirectoryNode { name, digest });
            }
        }
        let root = digests.last().copied().or(self.root);
        let root = root.unwrap_or_else(|| function.digest(&[]));
        Ok(CollectedTree {
            root,
            directories: digests,
            inline,
            files: self.files,
            bytes: self.bytes,
            lease: self.lease,
        })
    }
}

/// What hashing a file takes.
#[derive(Clone, Copy)]
struct Hashing<'a> {
    store: &'a DiskStore,
    function: DigestFunction,
    gathered: &'a Mutex<Gathered>,
}

/// Where files go that the walk finds.
struct Hashers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    hashing: Hashing<'scope>,
    /// How many to start.
    threads: usize,
    /// The first file; it may stay the only one.
    first: Option<Job>,
    running: Option<Running<'scope>>,
}

/// Threads that hash.
struct Running<'scope> {
    /// Bounds the files that wait, and with them the directories that are kept open. The other end
    /// belongs to the threads alone: if they all end, sending fails instead of waiting for ever.
    sender: SyncSender<Job>,
    threads: Vec<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Hashers<'scope, '_> {
    /// Has a file hashed, now or later.
    ///
    /// # Errors
    /// Hashing has failed; why stands in what was gathered.
    fn add(&mut self, job: Job) -> Result<(), CollectError> {
        let Some(first) = self.first.take() else {
            return match &self.running {
                Some(running) => running.send(job, &self.hashing),
                None => {
                    self.first = Some(job);
                    Ok(())
                }
            };
        };
        let running = self.running.insert(Running::start(self.scope, self.hashing, self.threads));
        running.send(first, &self.hashing)?;
        running.send(job, &self.hashing)
    }

    /// Returns when everything is hashed.
    fn finish(self) -> Result<(), CollectError> {
        if let Some(job) = self.first {
            self.hashing.hash(job);
        }
        let Some(Running { sender, threads }) = self.running else { return Ok(()) };
        // They end when nothing can come any more.
        drop(sender);
        let panicked = threads.into_iter().map(ScopedJoinHandle::join).any(|end| end.is_err());
        if panicked { Err(StoreError::Thread.into()) } else { Ok(()) }
    }
}

impl<'scope> Running<'scope> {
    fn start(scope: &'scope Scope<'scope, '_>, hashing: Hashing<'scope>, count: usize) -> Self {
        let (sender, receiver) = sync_channel(FILES_WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..count).map(|_| {
            let receiver = receiver.clone();
            scope.spawn(move || hashing.hash_all(&receiver))
        });
        Self { sender, threads: threads.collect() }
    }

    fn send(&self, job: Job, hashing: &Hashing<'_>) -> Result<(), CollectError> {
        // Nobody takes it when hashing has failed; that error is the one that counts.
        if self.sender.send(job).is_err() || hashing.gathered.lock().failure.is_some() {
            return Err(StoreError::Thread.into());
        }
        Ok(())
    }
}

/// The walking thread.
pub(crate) struct Walk<'a, 'scope, 'env> {
    pub(crate) gathered: &'a Mutex<Gathered>,
    hashers: Hashers<'scope, 'env>,
    options: &'a CollectOptions,
    /// Where the walk is, for errors.
    pub(crate) path: PathBuf,
    entries: u64,
}

impl Walk<'_, '_, '_> {
    /// Walks one directory and what is below it.
    fn directory(&mut self, folder: OwnedFd, depth: usize, at: At) -> Result<(), CollectError> {
        let position = self.begin(depth, at)?;
        let names = self.names(&folder)?;
        let folder = Arc::new(folder);
        for name in names {
            self.path.push(&name);
            self.entry(&folder, name, position, depth)?;
            self.path.pop();
        }
        Ok(())
    }

    /// Begins a directory; gives its position among those found.
    pub(crate) fn begin(&mut self, depth: usize, at: At) -> Result<usize, CollectError> {
        if depth > MAX_TREE_DEPTH {
            return Err(CollectError::TooDeep(self.path.clone()));
        }
        let mut gathered = self.gathered.lock();
        gathered.directories.push(Found {
            path: self.path.clone(),
            at,
            left_out_if_empty: false,
            files: Vec::new(),
            directories: Vec::new(),
            symlinks: Vec::new(),
            properties: BTreeMap::new(),
        });
        Ok(gathered.directories.len() - 1)
    }

    /// Counts entries that the tree will have.
    pub(crate) fn count(&mut self, entries: usize) -> Result<(), CollectError> {
        self.entries += entries as u64;
        let limit = self.options.max_entries;
        if self.entries > limit {
            return Err(CollectError::TooMany { limit, path: self.path.clone() });
        }
        Ok(())
    }

    /// The names in a directory. All at once, because a listing must not be under way while what it
    /// lists is moved.
    pub(crate) fn names(&mut self, folder: &OwnedFd) -> Result<Vec<OsString>, CollectError> {
        let path = self.path.clone();
        let failed = |source: io::Error| io_error("list", &path, source);
        let copy = folder.try_clone().map_err(failed)?;
        let listing = Dir::from_fd(copy).map_err(|errno| failed(errno.into()))?;
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry.map_err(|errno| failed(errno.into()))?;
            let name = CStr::to_bytes(entry.file_name());
            if name == b"." || name == b".." {
                continue;
            }
            self.count(1)?;
            names.push(OsString::from_vec(name.to_vec()));
        }
        Ok(names)
    }

    fn entry(
        &mut self,
        folder: &Arc<OwnedFd>,
        called: OsString,
        position: usize,
        depth: usize,
    ) -> Result<(), CollectError> {
        let found = look(folder.as_fd(), &called, &self.path)?;
        let name = self.name(&called)?;
        match kind(&found) {
            SFlag::S_IFDIR => {
                let inner = open_directory(folder.as_fd(), &called, &self.path)?;
                self.directory(inner, depth + 1, Some((position, name)))
            }
            _ => self.leaf(folder, &found, name, position),
        }
    }

    pub(crate) fn name(&self, called: &OsStr) -> Result<Name, CollectError> {
        Name::new(called.as_bytes())
            .map_err(|source| CollectError::Name { path: self.path.clone(), source })
    }

    /// Takes what is no directory.
    pub(crate) fn leaf(
        &mut self,
        folder: &Arc<OwnedFd>,
        found: &FileStat,
        name: Name,
        position: usize,
    ) -> Result<(), CollectError> {
        match kind(found) {
            SFlag::S_IFREG => {
                let (folder, path) = (folder.clone(), self.path.clone());
                self.hashers.add(Job { folder, parent: position, name, path })
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(folder.as_fd(), name.as_os_str())
                    .map_err(|errno| io_error("read the link", &self.path, errno))?;
                let target = target.into_vec().into();
                if let Some(found) = self.gathered.lock().found(position) {
                    found.symlinks.push(SymlinkNode { name, target });
                }
                Ok(())
            }
            _ => Err(CollectError::Special(self.path.clone())),
        }
    }
}

/// The type of a file.
pub(crate) fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT
}

impl Hashing<'_> {
    /// What a thread does: takes files until there are no more.
    fn hash_all(self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let next = jobs.lock().recv();
            let Ok(job) = next else { return };
            // After a failure the walk ends at its next file; until then the channel is emptied.
            if self.gathered.lock().failure.is_none() {
                self.hash(job);
            }
        }
    }

    fn hash(self, Job { folder, parent, name, path }: Job) {
        let candidate = Candidate { folder: folder.as_fd(), name: name.as_os_str(), shown: &path };
        let wish = Wish { function: self.function, executable: None, expected: None, pin: true };
        match self.store.adopt(&candidate, &wish) {
            Ok(adopted) => {
                let mut gathered = self.gathered.lock();
                gathered.lease.take_over(adopted.digest);
                gathered.files += 1;
                gathered.bytes += adopted.digest.size_bytes();
                let (digest, executable) = (adopted.digest, adopted.executable);
                if let Some(found) = gathered.directories.get_mut(parent) {
                    found.files.push(FileNode { name, digest, executable });
                }
            }
            Err(error) => {
                self.gathered.lock().failure.get_or_insert(error.into());
            }
        }
    }
}

/// Opens a directory for listing, giving its owner the permission first if need be.
pub(crate) fn open_directory(
    at: impl AsFd,
    name: &OsStr,
    path: &Path,
) -> Result<OwnedFd, CollectError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = || openat(at.as_fd(), name, flags, Mode::empty());
    let found = look(at.as_fd(), name, path)?;
    let mode = Mode::from_bits_truncate(found.st_mode);
    let opened = if mode.contains(Mode::S_IRWXU) {
        open()
    } else {
        // All three: files are looked at, and moved away.
        fchmodat(at.as_fd(), name, mode | Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)
            .and_then(|()| open())
    };
    opened.map_err(|errno| io_error("open", path, errno))
}

pub(crate) fn look(at: impl AsFd, name: &OsStr, path: &Path) -> Result<FileStat, CollectError> {
    fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|errno: Errno| io_error("look at", path, errno))
}

pub(crate) fn io_error(
    operation: &'static str,
    path: &Path,
    source: impl Into<io::Error>,
) -> CollectError {
    CollectError::Io { operation, path: path.to_owned(), source: source.into() }
}
