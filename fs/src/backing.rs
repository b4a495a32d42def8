//! Passthrough: large files that the kernel reads from their files in the store, without asking.
//!
//! The kernel forgets that it need not ask before it opens a file (the profile of the usual connection) if it
//! is to be told, at each opening, which file of the store stands behind it. So this has a connection of its
//! own, on which every opening is a message: those of small files are answered at once, a large file's when
//! its blob is whole and verified. All that have one inode open at a time share one backing file, as the
//! kernel wants it, until the last of them closes it. Since the size alone decides, an inode is never read in
//! both ways.
//!
//! A file of the store that is evicted or put aside while it stands behind an inode loses its name only.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use parking_lot::Mutex;

use crate::inode::Ino;

/// Files of at least this size are read by passthrough, in bytes. Below, an opening costs more than the
/// kernel's own copy.
pub const LARGE_FILE_BYTES: u64 = 16 << 20;

/// The kernel piles no more than two file systems on one another. With nothing below the store one overlay fits
/// above this connection; with an overlay there, none.
const STACK_DEPTH: u32 = 1;
/// See [`STACK_DEPTH`].
const STACK_DEPTH_ON_OVERLAY: u32 = 2;

/// The handle of what is read through this process.
const PLAIN: FileHandle = FileHandle(0);
/// The handle of what is not.
const BACKED: FileHandle = FileHandle(1);

// The code of `FUSE_DEV_IOC_BACKING_CLOSE` in linux/fuse.h.
nix::ioctl_write_ptr!(backing_close, 229, 2, u32);

/// The files of the store that stand behind inodes of one connection.
#[derive(Debug, Default)]
pub(crate) struct Backings {
    /// Once the kernel has been seen to take a file. Before and otherwise, openings are not implemented, and
    /// the connection is a usual one.
    allowed: AtomicBool,
    stack_depth: u32,
    open: Mutex<HashMap<Ino, Backing>>,
}

#[derive(Debug)]
struct Backing {
    id: Arc<BackingId>,
    handles: u64,
}

impl Backings {
    /// For files of this store.
    pub(crate) fn of(store: &Path) -> Self {
        let on_overlay = is_on_overlay(store);
        let stack_depth = if on_overlay { STACK_DEPTH_ON_OVERLAY } else { STACK_DEPTH };
        Self { stack_depth, ..Self::default() }
    }

    /// Asks for it when the connection begins. A kernel that lacks it refuses the [trial](Self::try_out).
    pub(crate) fn request(&self, config: &mut KernelConfig) {
        let _refused_later = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
        let _refused_later = config.set_max_stack_depth(self.stack_depth);
    }

    /// Sees whether the kernel takes a file of this store: it must be new enough, this process must be
    /// privileged outside of all user namespaces, and the store must not lie on a pile of overlays.
    ///
    /// # Errors
    /// It does not, or no file can be made there.
    pub(crate) fn try_out(&self, device: impl AsFd, store: &Path) -> io::Result<()> {
        let mut nameless = OpenOptions::new();
        let nameless = nameless.read(true).write(true).custom_flags(libc::O_TMPFILE).open(store)?;
        let id = BackingId::create_raw(&device, &nameless)?;
        close(device, id)?;
        self.allowed.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it is used.
    pub(crate) fn are_allowed(&self) -> bool {
        self.allowed.load(Ordering::Acquire)
    }

    /// Answers the opening of a small file.
    pub(crate) fn open_plain(reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(PLAIN, flags);
    }

    /// Answers the opening of a file that is open already; gives the reply back if it is not.
    pub(crate) fn open_again(&self, ino: Ino, reply: ReplyOpen) -> Option<ReplyOpen> {
        let mut open = self.open.lock();
        let Some(backing) = open.get_mut(&ino) else { return Some(reply) };
        backing.handles += 1;
        let id = Arc::clone(&backing.id);
        drop(open);
        reply.opened_passthrough(BACKED, FopenFlags::FOPEN_NOFLUSH, &id);
        None
    }

    /// Answers the opening of a large file, whose blob is whole and verified.
    ///
    /// # Errors
    /// The kernel does not take the file; the reply, with why.
    pub(crate) fn open(
        &self,
        ino: Ino,
        file: &File,
        reply: ReplyOpen,
    ) -> Result<(), (ReplyOpen, io::Error)> {
        // Somebody else may have opened it while the blob came.
        let Some(reply) = self.open_again(ino, reply) else { return Ok(()) };
        let id = match reply.open_backing(file) {
            Ok(id) => Arc::new(id),
            Err(error) => return Err((reply, error)),
        };
        let mut open = self.open.lock();
        let backing = open.entry(ino).or_insert(Backing { id, handles: 0 });
        backing.handles += 1;
        let id = Arc::clone(&backing.id);
        drop(open);
        reply.opened_passthrough(BACKED, FopenFlags::FOPEN_NOFLUSH, &id);
        Ok(())
    }

    /// A handle is closed.
    pub(crate) fn release(&self, ino: Ino, handle: FileHandle) {
        if handle != BACKED {
            return;
        }
        let mut open = self.open.lock();
        let Some(backing) = open.get_mut(&ino) else { return };
        backing.handles -= 1;
        let last = if backing.handles == 0 { open.remove(&ino) } else { None };
        drop(open);
        // Told to the kernel outside the lock.
        drop(last);
    }

    /// Inodes that are open.
    pub(crate) fn count(&self) -> usize {
        self.open.lock().len()
    }
}

/// Whether a directory lies on an overlay. What is read by passthrough from a store there can have no overlay
/// above it.
pub fn is_on_overlay(directory: &Path) -> bool {
    // One that cannot be looked at will be refused for another reason.
    statfs(directory).is_ok_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
}

#[expect(unsafe_code, reason = "fuser closes only what it opened for a reply")]
fn close(device: impl AsFd, id: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one number, which outlives the call.
    unsafe { backing_close(device.as_fd().as_raw_fd(), &raw const id) }?;
    Ok(())
}
