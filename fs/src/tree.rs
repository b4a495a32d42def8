//! `Tree`: what the adapter asks of a read-only name space, whatever it shows.
//!
//! A tree answers from memory and never waits. Where it needs the blob of a directory to answer, it
//! says which; the caller gets it and asks again with it. Only [`Changing`] directories may wait.

use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::{Digest, Directory, Mtime, RelPath};

use crate::changing::Changing;
use crate::contents::BlobKey;
use crate::error::AccessError;
use crate::inode::{FileKey, Ino, ViewId};

/// A read-only name space: directories, files that are named by digest, symbolic links.
pub trait Tree: Send + Sync + 'static {
    /// What a name is. An answer with an inode counts as one look-up of it, to be given back with
    /// [`forget`](Self::forget).
    fn lookup(
        &self,
        parent: Ino,
        name: &[u8],
        contents: Option<&Directory>,
    ) -> Result<Step<Found>, AccessError>;

    /// The same, with the contents of the directory that the name is.
    fn lookup_in(
        &self,
        parent: Ino,
        name: &[u8],
        contents: Option<&Directory>,
        _found: &Directory,
    ) -> Result<Step<Found>, AccessError> {
        self.lookup(parent, name, contents)
    }

    /// Gives each child from the `from`-th on to `each`, until that says that it has enough.
    fn list(
        &self,
        directory: Ino,
        contents: Option<&Directory>,
        from: usize,
        each: &mut dyn FnMut(Listed<'_>) -> Enough,
    ) -> Result<Step<()>, AccessError>;

    /// Type, size and permissions of an inode.
    fn attributes(&self, ino: Ino) -> Result<Attributes, AccessError>;

    /// Where a symbolic link points.
    fn link_target(&self, ino: Ino) -> Result<Bytes, AccessError>;

    /// The contents of a file that is named by digest.
    fn file(&self, ino: Ino) -> Result<FileKey, AccessError>;

    /// The contents of a file that the tree holds itself, which is named by no digest.
    fn own_contents(&self, _ino: Ino) -> Option<Bytes> {
        None
    }

    /// The directories whose names come and go, if the tree has such.
    fn changing(&self) -> Option<&dyn Changing> {
        None
    }

    /// On whose behalf, and from where in their trees, this inode is read.
    fn context(&self, ino: Ino) -> Context;

    /// The views that are hurt when these contents cannot be read while `waiting` wait for them.
    fn affected(&self, key: &BlobKey, waiting: &[Ino]) -> Vec<ViewId>;

    /// Whether requests on this inode serve nobody any more, so that they may fail at once.
    fn is_given_up(&self, ino: Ino) -> bool;

    /// The kernel gives `lookups` look-ups of an inode back.
    fn forget(&self, ino: Ino, lookups: u64);
}

/// An answer, or what is needed for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// The answer.
    Done(T),
    /// The same call with this directory's contents will answer.
    Need(Digest),
    /// [`Tree::lookup_in`] with these contents of the directory that was looked up will answer.
    NeedFound(Digest),
}

/// What a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An inode.
    Entry(Attributes),
    /// An inode, which may be another one in a second.
    ForNow(Attributes),
    /// Nothing, for as long as the directory is there.
    Absent,
    /// Nothing now; the kernel must ask again next time.
    NotYet,
}

/// What the kernel shows of an inode, beyond what is equal for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub ino: Ino,
    /// Its type.
    pub kind: NodeKind,
    /// Size in bytes; a symbolic link's is the length of its target.
    pub size_bytes: u64,
    /// Permission bits.
    pub permissions: u16,
    /// When it was last changed, if it is not the date of everything.
    pub mtime: Option<Mtime>,
}

/// The types that a tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// One child in a listing.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// Its position, from 0.
    pub index: usize,
    /// Its name.
    pub name: &'a [u8],
    /// Its type.
    pub kind: NodeKind,
}

/// Whether the receiver of a listing has enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enough {
    /// No more children, and the last was not taken.
    Yes,
    /// The next one, please.
    No,
}

/// On whose behalf, and from where in their trees, contents are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The views that have looked it up; none for shared trees.
    pub views: Vec<ViewId>,
    /// The first up to two components of the directory it was found in, such as `src` or `dep/3`, in
    /// one of these views.
    pub hint: RelPath,
    /// Trees that it lies in, innermost first, if the tree knows: who holds one may hold it.
    pub within: Arc<[Digest]>,
}
