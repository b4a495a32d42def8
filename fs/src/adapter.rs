//! The kernel's messages, counted and handed to [`Answers`].
//!
//! The kernel is told to ask as rarely as it can: names, attributes and absent names hold for ever, and
//! OPEN, OPENDIR, FLUSH, ACCESS and extended attributes are not implemented, so that it never sends
//! them again. Only a tree with [`Changing`](crate::changing::Changing) directories makes it ask more: about
//! their names again after a second, and about each opening of a directory; and on the connection of
//! [`Backings`] it asks about each opening of a file.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyXattr, Request,
};

use crate::answers::{Answers, FOREVER, Owner};
use crate::backing::Backings;
use crate::changing::Listings;
use crate::fetch::Fetcher;
use crate::inode::Ino;
use crate::messages::{Message, Messages};
use crate::tree::Tree;

/// Requests of read-ahead that the kernel may have under way. Its default of 12 stalls all other
/// readers behind a few slow blobs.
const MAX_BACKGROUND: u16 = 1024;

/// A tree as a FUSE file system.
pub(crate) struct Adapter {
    answers: Arc<Answers>,
    messages: Arc<Messages>,
}

impl Adapter {
    pub(crate) fn new(
        tree: Arc<dyn Tree>,
        fetcher: Arc<Fetcher>,
        owner: Owner,
        backings: Option<Arc<Backings>>,
    ) -> Self {
        let listings = Listings::default();
        let answers = Answers { tree, fetcher, owner, listings, backings };
        Self { answers: Arc::new(answers), messages: Arc::default() }
    }

    /// The counts, which go on.
    pub(crate) fn messages(&self) -> Arc<Messages> {
        Arc::clone(&self.messages)
    }
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
        if let Some(backings) = &self.answers.backings {
            backings.request(config);
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
            None => self.answers.lookup(parent, name, reply),
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

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.messages.count(Message::Open);
        match self.answers.backings.as_ref().filter(|backings| backings.are_allowed()) {
            Some(backings) => self.answers.open(Ino(ino.0), backings, reply),
            None => reply.error(Errno::ENOSYS),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.messages.count(Message::Release);
        if let Some(backings) = &self.answers.backings {
            backings.release(Ino(ino.0), handle);
        }
        reply.ok();
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
