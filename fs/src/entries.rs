//! One answer to READDIR, filled until the kernel's buffer is full.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, FileType, INodeNo, ReplyDirectory};

use crate::inode::Ino;
use crate::tree::{Enough, Listed, NodeKind};

/// What a directory entry shows as inode number: unknown, as in libfuse. The real number is only
/// given to what is looked up.
const UNKNOWN_INO: INodeNo = INodeNo(0xffff_ffff);

/// `.` and `..`, then the children. Offsets 1 and 2 follow the former, offset n + 3 the n-th child.
pub(crate) struct Entries {
    reply: ReplyDirectory,
    own: INodeNo,
    /// How many of the two dots the kernel has.
    dots: u64,
    /// The first child that it does not have.
    pub(crate) from: usize,
}

impl Entries {
    pub(crate) fn new(directory: Ino, offset: u64, reply: ReplyDirectory) -> Self {
        let from = usize::try_from(offset.saturating_sub(2)).unwrap_or(usize::MAX);
        Self { reply, own: INodeNo(directory.0), dots: offset.min(2), from }
    }

    pub(crate) fn add(&mut self, child: Listed<'_>) -> Enough {
        let offset = child.index as u64 + 3;
        let name = OsStr::from_bytes(child.name);
        let full =
            self.add_dots() || self.reply.add(UNKNOWN_INO, offset, file_type(child.kind), name);
        if full { Enough::Yes } else { Enough::No }
    }

    fn add_dots(&mut self) -> bool {
        while let Some(name) = [".", ".."].get(self.dots as usize) {
            if self.reply.add(self.own, self.dots + 1, FileType::Directory, name) {
                return true;
            }
            self.dots += 1;
        }
        false
    }

    pub(crate) fn send(mut self) {
        // Left over where there are no children; the smallest buffer holds both.
        let _full = self.add_dots();
        self.reply.ok();
    }

    /// For an answer that has to begin anew.
    pub(crate) fn into_reply(self) -> ReplyDirectory {
        self.reply
    }

    pub(crate) fn fail(self, errno: Errno) {
        self.reply.error(errno);
    }
}

pub(crate) fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::File => FileType::RegularFile,
        NodeKind::Symlink => FileType::Symlink,
    }
}
