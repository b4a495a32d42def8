//! The kernel's messages, answered from a [`Tree`] and a [`Fetcher`].
//!
//! What is in memory (or in the page cache) is answered on the thread that read the message. Whatever
//! else a message needs, its reply moves into the fetcher and is sent from one of its threads. The
//! kernel is told to ask as rarely as it can: names, attributes and absent names hold for ever, and
//! OPEN, OPENDIR, FLUSH, ACCESS and extended attributes are not implemented, so that it never sends
//! them again. Only a tree with [`Changing`] directories makes it ask more: about their names again
//! after a second, and about each opening of a directory.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use distbuild_proto::{Digest, Directory};
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyXattr, Request,
};

use crate::blob;
use crate::changing::{Changing, Listings, Named};
use crate::contents::{BlobKey, BlobKind, WantError};
use crate::entries::{Entries, file_type};
use crate::error::AccessError;
use crate::fetch::{Blob, Fetcher};
use crate::inode::Ino;
use crate::messages::{Message, Messages};
use crate::tree::{Attributes, Enough, Found, Listed, NodeKind, Step, Tree};

/// A hundred years: longer than any mount lives.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long the kernel may take the names of a changing directory for granted.
const FOR_NOW: Duration = Duration::from_secs(1);

/// 1980-01-01T00:00:00Z, the date of everything: the first that a zip file can hold.
const FIXED_TIME: Duration = Duration::from_secs(315_532_800);

/// Requests of read-ahead that the kernel may have under way. Its default of 12 stalls all other
/// readers behind a few slow blobs.
const MAX_BACKGROUND: u16 = 1024;

/// Who owns everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// User, as seen in the user namespace of the mount.
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
}

/// A tree as a FUSE file system.
pub(crate) struct Adapter {
    answers: Arc<Answers>,
    messages: Arc<Messages>,
}

/// What is needed to answer, on whichever thread.
struct Answers {
    tree: Arc<dyn Tree>,
    fetcher: Arc<Fetcher>,
    owner: Owner,
    listings: Listings,
}

impl Adapter {
    pub(crate) fn new(
        tree: Arc<dyn Tree>,
        fetcher: Arc<Fetcher>,
        owner: Owner,
        messages: Arc<Messages>,
    ) -> Self {
        let listings = Listings::default();
        Self { answers: Arc::new(Answers { tree, fetcher, owner, listings }), messages }
    }
}

impl Answers {
    fn lookup(
        self: &Arc<Self>,
        parent: Ino,
        name: &[u8],
        contents: Option<&Directory>,
        reply: ReplyEntry,
    ) {
        match self.tree.lookup(parent, name, contents) {
            Ok(Step::Done(found)) => self.reply_found(found, reply),
            Ok(Step::Need(digest)) => {
                let (answers, name) = (Arc::clone(self), Box::<[u8]>::from(name));
                self.with_directory(digest, parent, move |directory| match directory {
                    Ok(directory) => answers.lookup(parent, &name, Some(&directory), reply),
                    Err(error) => reply.error(error.errno()),
                });
            }
            Err(error) => reply.error(error.errno()),
        }
    }

    fn reply_found(&self, found: Found, reply: ReplyEntry) {
        match found {
            Found::Entry(attributes) => {
                if attributes.kind == NodeKind::File {
                    self.fetcher.found(attributes.ino);
                }
                reply.entry(&FOREVER, &self.file_attr(attributes), Generation(0));
            }
            Found::ForNow(attributes) => {
                reply.entry(&FOR_NOW, &self.file_attr(attributes), Generation(0));
            }
            // Inode 0 with a lifetime: absent, and remembered by the kernel.
            Found::Absent => {
                let nothing =
                    Attributes { ino: Ino(0), kind: NodeKind::File, size_bytes: 0, permissions: 0 };
                reply.entry(&FOREVER, &self.file_attr(nothing), Generation(0));
            }
            Found::NotYet => reply.error(Errno::ENOENT),
        }
    }

    /// The changing directories, if this is one.
    fn changing(&self, directory: Ino) -> Option<&dyn Changing> {
        self.tree.changing().filter(|changing| changing.is_changing(directory))
    }

    /// Answers from where it may have to be waited for.
    fn lookup_changing(self: &Arc<Self>, parent: Ino, name: &[u8], reply: ReplyEntry) {
        let (answers, name) = (Arc::clone(self), Box::<[u8]>::from(name));
        self.fetcher.run(move || {
            let found = answers.tree.changing().map(|changing| changing.lookup(parent, &name));
            match found.unwrap_or(Ok(Found::NotYet)) {
                Ok(found) => answers.reply_found(found, reply),
                Err(error) => reply.error(error.errno()),
            }
        });
    }

    fn list_changing(
        self: &Arc<Self>,
        directory: Ino,
        handle: u64,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let entries = Entries::new(directory, offset, reply);
        if offset > 0
            && let Some(names) = self.listings.taken(handle)
        {
            return send_names(entries, &names);
        }
        let answers = Arc::clone(self);
        self.fetcher.run(move || {
            let names = answers.tree.changing().map(|changing| changing.names(directory));
            match names.unwrap_or(Ok(Vec::new())) {
                Ok(names) => send_names(entries, &answers.listings.take(handle, names)),
                Err(error) => entries.fail(error.errno()),
            }
        });
    }

    fn list(
        self: &Arc<Self>,
        directory: Ino,
        offset: u64,
        contents: Option<&Directory>,
        reply: ReplyDirectory,
    ) {
        let mut entries = Entries::new(directory, offset, reply);
        let from = entries.from;
        match self.tree.list(directory, contents, from, &mut |child| entries.add(child)) {
            Ok(Step::Done(())) => entries.send(),
            Ok(Step::Need(digest)) => {
                let answers = Arc::clone(self);
                self.with_directory(digest, directory, move |contents| match contents {
                    Ok(contents) => {
                        answers.list(directory, offset, Some(&contents), entries.into_reply())
                    }
                    Err(error) => entries.fail(error.errno()),
                });
            }
            Err(error) => entries.fail(error.errno()),
        }
    }

    fn read(self: &Arc<Self>, ino: Ino, offset: u64, size: u32, reply: ReplyData) {
        if let Some(contents) = self.tree.own_contents(ino) {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(contents.len());
            let to = from.saturating_add(size as usize).min(contents.len());
            return reply.data(&contents[from..to]);
        }
        let file = match self.tree.file(ino) {
            Ok(file) => file,
            Err(error) => return reply.error(error.errno()),
        };
        let left = file.digest.size_bytes().saturating_sub(offset);
        let len = u64::from(size).min(left) as usize;
        if len == 0 {
            return reply.data(&[]);
        }
        let kind = BlobKind::File { executable: file.executable };
        let span = Span { key: BlobKey { digest: file.digest, kind }, ino, offset, len };
        let answers = Arc::clone(self);
        let Some(file) = self.fetcher.cached_file(&span.key) else {
            return self.fetcher.want(
                span.key,
                ino,
                Box::new(move |blob| match blob {
                    Ok(Blob::File(file)) => answers.read_waiting(&file, &span, reply),
                    Ok(Blob::Directory(_)) => reply.error(Errno::EIO),
                    Err(error) => reply.error(AccessError::from(error).errno()),
                }),
            );
        };
        with_buffer(len, |buffer| {
            if blob::read_cached_at(&file, buffer, offset) {
                return reply.data(buffer);
            }
            self.fetcher.run(move || answers.read_waiting(&file, &span, reply));
        });
    }

    fn read_waiting(&self, file: &std::fs::File, span: &Span, reply: ReplyData) {
        with_buffer(span.len, |buffer| match blob::read_at(file, buffer, span.offset) {
            Ok(()) => reply.data(buffer),
            Err(error) => {
                self.fetcher.read_failed(&span.key, span.ino, &error);
                reply.error(Errno::EIO);
            }
        });
    }

    /// Calls `then` with a directory: here and now if it is at hand.
    fn with_directory(
        &self,
        digest: Digest,
        ino: Ino,
        then: impl FnOnce(Result<Arc<Directory>, AccessError>) + Send + 'static,
    ) {
        if let Some(directory) = self.fetcher.cached_directory(&digest) {
            return then(Ok(directory));
        }
        let key = BlobKey { digest, kind: BlobKind::Directory };
        let waiter = move |blob: Result<Blob, WantError>| match blob {
            Ok(Blob::Directory(directory)) => then(Ok(directory)),
            Ok(Blob::File(_)) => then(Err(AccessError::NotADirectory)),
            Err(error) => then(Err(error.into())),
        };
        self.fetcher.want(key, ino, Box::new(waiter));
    }

    fn file_attr(&self, attributes: Attributes) -> FileAttr {
        let time = SystemTime::UNIX_EPOCH + FIXED_TIME;
        FileAttr {
            ino: INodeNo(attributes.ino.0),
            size: attributes.size_bytes,
            blocks: attributes.size_bytes.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: file_type(attributes.kind),
            perm: attributes.permissions,
            nlink: 1,
            uid: self.owner.uid,
            gid: self.owner.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

fn send_names(mut entries: Entries, names: &[Named]) {
    for (index, Named { name, kind }) in names.iter().enumerate().skip(entries.from) {
        if entries.add(Listed { index, name, kind: *kind }) == Enough::Yes {
            break;
        }
    }
    entries.send();
}

/// The bytes that a READ asks for.
struct Span {
    key: BlobKey,
    ino: Ino,
    offset: u64,
    len: usize,
}

/// A buffer of the thread's own, so that no READ allocates and zeroes one. The kernel asks for 1 MiB
/// at most.
fn with_buffer<R>(len: usize, use_it: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let mut buffer = BUFFER.take();
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let result = use_it(&mut buffer[..len]);
    BUFFER.set(buffer);
    result
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not READDIRPLUS: a listing must not hide later look-ups. Not EXPORT: no handles to forgotten
        // inodes. A kernel that lacks one of these works, only with more messages.
        let wanted = [
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_EXPORT_SUPPORT,
        ];
        // Without OPENDIR, the kernel keeps the first listing of a directory for ever.
        let lasting = self.answers.tree.changing().is_none();
        let opendir = lasting.then_some(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        for flag in wanted.into_iter().chain(opendir) {
            if config.add_capabilities(flag).is_err() {
                tracing::info!(fuse.flag = ?flag, "the kernel lacks a FUSE feature");
            }
        }
        if config.set_max_background(MAX_BACKGROUND).is_err() {
            tracing::warn!("the number of background requests could not be raised");
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.messages.count(Message::Lookup);
        let (parent, name) = (Ino(parent.0), name.as_bytes());
        match self.answers.changing(parent) {
            Some(_) => self.answers.lookup_changing(parent, name, reply),
            None => self.answers.lookup(parent, name, None, reply),
        }
    }

    // fuser also calls this for each inode of a batch, whose type it keeps to itself.
    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.messages.count(Message::Forget);
        self.answers.tree.forget(Ino(ino.0), lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.messages.count(Message::Getattr);
        match self.answers.tree.attributes(Ino(ino.0)) {
            Ok(attributes) => reply.attr(&FOREVER, &self.answers.file_attr(attributes)),
            Err(error) => reply.error(error.errno()),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.messages.count(Message::Readlink);
        match self.answers.tree.link_target(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error.errno()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.messages.count(Message::Read);
        self.answers.read(Ino(ino.0), offset, size, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.messages.count(Message::Readdir);
        let directory = Ino(ino.0);
        match self.answers.changing(directory) {
            Some(_) => self.answers.list_changing(directory, handle.0, offset, reply),
            None => self.answers.list(directory, offset, None, reply),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.messages.count(Message::Statfs);
        // An overlay above refuses a lower layer without this answer.
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.messages.count(Message::Open);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.messages.count(Message::Opendir);
        if self.answers.tree.changing().is_none() {
            return reply.error(Errno::ENOSYS);
        }
        if self.answers.changing(Ino(ino.0)).is_none() {
            let lasting = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
            return reply.opened(FileHandle(0), lasting);
        }
        match self.answers.listings.open() {
            Some(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            None => reply.error(Errno::ENFILE),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.messages.count(Message::Other);
        self.answers.listings.close(handle.0);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.messages.count(Message::Flush);
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.messages.count(Message::Getxattr);
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        self.messages.count(Message::Listxattr);
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.messages.count(Message::Access);
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.messages.count(Message::Other);
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.messages.count(Message::Other);
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.messages.count(Message::Other);
        reply.error(Errno::ENOTTY);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        self.messages.count(Message::Other);
        // The kernel then knows that there are no holes.
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        self.messages.count(Message::Other);
        reply.error(Errno::ENOSYS);
    }
}
