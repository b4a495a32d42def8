//! What the kernel's messages are answered with, from a [`Tree`] and a [`Fetcher`].
//!
//! What is in memory (or in the page cache) is answered on the thread that read the message. Whatever
//! else a message needs, its reply moves into the fetcher and is sent from one of its threads.

use std::cell::RefCell;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use distbuild_proto::{Digest, Directory, Mtime};
use fuser::{
    Errno, FileAttr, Generation, INodeNo, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen,
};

use crate::backing::{Backings, LARGE_FILE_BYTES};
use crate::blob;
use crate::changing::{Changing, Listings, Named};
use crate::contents::{BlobKey, BlobKind, WantError};
use crate::entries::{Entries, file_type};
use crate::error::AccessError;
use crate::fetch::{Blob, Fetcher};
use crate::inode::Ino;
use crate::tree::{Attributes, Enough, Found, Listed, NodeKind, Step, Tree};

/// A hundred years: longer than any mount lives.
pub(crate) const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long the kernel may take the names of a changing directory for granted.
const FOR_NOW: Duration = Duration::from_secs(1);

/// 1980-01-01T00:00:00Z, the date of everything: the first that a zip file can hold.
const FIXED_TIME: Duration = Duration::from_secs(315_532_800);

/// Who owns everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// User, as seen in the user namespace of the mount.
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
}

/// What is needed to answer, on whichever thread.
pub(crate) struct Answers {
    pub(crate) tree: Arc<dyn Tree>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) owner: Owner,
    pub(crate) listings: Listings,
    /// Of the passthrough connection only.
    pub(crate) backings: Option<Arc<Backings>>,
}

impl Answers {
    pub(crate) fn lookup(self: &Arc<Self>, parent: Ino, name: &[u8], reply: ReplyEntry) {
        self.lookup_with(parent, name, None, None, reply);
    }

    /// With the contents of the parent, and of the directory that the name is, as far as they were needed.
    fn lookup_with(
        self: &Arc<Self>,
        parent: Ino,
        name: &[u8],
        contents: Option<&Directory>,
        found: Option<Arc<Directory>>,
        reply: ReplyEntry,
    ) {
        let answer = match &found {
            Some(found) => self.tree.lookup_in(parent, name, contents, found),
            None => self.tree.lookup(parent, name, contents),
        };
        match answer {
            Ok(Step::Done(found)) => self.reply_found(found, reply),
            Ok(Step::Need(digest)) => {
                let (answers, name) = (Arc::clone(self), Box::<[u8]>::from(name));
                self.with_directory(digest, parent, move |directory| match directory {
                    Ok(it) => answers.lookup_with(parent, &name, Some(&it), found, reply),
                    Err(error) => reply.error(error.errno()),
                });
            }
            Ok(Step::NeedFound(digest)) => {
                let (answers, name) = (Arc::clone(self), Box::<[u8]>::from(name));
                self.with_directory(digest, parent, move |directory| match directory {
                    Ok(it) => answers.lookup_with(parent, &name, None, Some(it), reply),
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
                let nothing = Attributes {
                    ino: Ino(0),
                    kind: NodeKind::File,
                    size_bytes: 0,
                    permissions: 0,
                    mtime: None,
                };
                reply.entry(&FOREVER, &self.file_attr(nothing), Generation(0));
            }
            Found::NotYet => reply.error(Errno::ENOENT),
        }
    }

    /// The changing directories, if this is one.
    pub(crate) fn changing(&self, directory: Ino) -> Option<&dyn Changing> {
        self.tree.changing().filter(|changing| changing.is_changing(directory))
    }

    /// Answers from where it may have to be waited for.
    pub(crate) fn lookup_changing(self: &Arc<Self>, parent: Ino, name: &[u8], reply: ReplyEntry) {
        let (answers, name) = (Arc::clone(self), Box::<[u8]>::from(name));
        self.fetcher.run(move || {
            let found = answers.tree.changing().map(|changing| changing.lookup(parent, &name));
            match found.unwrap_or(Ok(Found::NotYet)) {
                Ok(found) => answers.reply_found(found, reply),
                Err(error) => reply.error(error.errno()),
            }
        });
    }

    pub(crate) fn list_changing(
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

    pub(crate) fn list(
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
            // What a listing shows depends on no other directory.
            Ok(Step::NeedFound(_)) => entries.fail(Errno::EIO),
            Err(error) => entries.fail(error.errno()),
        }
    }

    pub(crate) fn read(self: &Arc<Self>, ino: Ino, offset: u64, size: u32, reply: ReplyData) {
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
            return self.fetcher.want_part(
                span.key,
                ino,
                offset..offset + len as u64,
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

    fn read_waiting(&self, file: &File, span: &Span, reply: ReplyData) {
        with_buffer(span.len, |buffer| match blob::read_at(file, buffer, span.offset) {
            Ok(()) => reply.data(buffer),
            Err(error) => {
                self.fetcher.read_failed(&span.key, span.ino, &error);
                reply.error(Errno::EIO);
            }
        });
    }

    /// Answers the opening of a file on the passthrough connection. A large file is opened when its blob is
    /// whole.
    pub(crate) fn open(self: &Arc<Self>, ino: Ino, backings: &Arc<Backings>, reply: ReplyOpen) {
        if self.tree.own_contents(ino).is_some() {
            return Backings::open_plain(reply);
        }
        let file = match self.tree.file(ino) {
            Ok(file) if file.digest.size_bytes() < LARGE_FILE_BYTES => {
                return Backings::open_plain(reply);
            }
            Ok(file) => file,
            Err(error) => return reply.error(error.errno()),
        };
        let Some(reply) = backings.open_again(ino, reply) else { return };
        let kind = BlobKind::File { executable: file.executable };
        let key = BlobKey { digest: file.digest, kind };
        if let Some(file) = self.fetcher.cached_file(&key) {
            return self.open_backed(ino, key, &file, backings, reply);
        }
        let (answers, backings) = (Arc::clone(self), Arc::clone(backings));
        let waiter = move |blob: Result<Blob, WantError>| match blob {
            Ok(Blob::File(file)) => answers.open_backed(ino, key, &file, &backings, reply),
            Ok(Blob::Directory(_)) => reply.error(Errno::EIO),
            Err(error) => reply.error(AccessError::from(error).errno()),
        };
        self.fetcher.want(key, ino, Box::new(waiter));
    }

    fn open_backed(
        &self,
        ino: Ino,
        key: BlobKey,
        file: &File,
        backings: &Backings,
        reply: ReplyOpen,
    ) {
        if let Err((reply, error)) = backings.open(ino, file, reply) {
            self.fetcher.read_failed(&key, ino, &WantError::Read(error.to_string()));
            reply.error(Errno::EIO);
        }
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

    pub(crate) fn file_attr(&self, attributes: Attributes) -> FileAttr {
        let time = SystemTime::UNIX_EPOCH + FIXED_TIME;
        let mtime = attributes.mtime.and_then(system_time).unwrap_or(time);
        FileAttr {
            ino: INodeNo(attributes.ino.0),
            size: attributes.size_bytes,
            blocks: attributes.size_bytes.div_ceil(512),
            atime: time,
            mtime,
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

/// `None`: it is beyond what this system can say.
fn system_time(time: Mtime) -> Option<SystemTime> {
    let seconds = Duration::from_secs(time.seconds().unsigned_abs());
    let second = match time.seconds() < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(seconds),
        false => SystemTime::UNIX_EPOCH.checked_add(seconds),
    };
    second?.checked_add(Duration::from_nanos(u64::from(time.nanos())))
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
