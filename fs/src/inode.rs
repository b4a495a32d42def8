//! The inode table: which numbers the kernel or a view knows, and what they stand for.
//!
//! An inode lives while the kernel has look-ups of it or a view holds it; then its memory is given
//! back. Numbers are never used twice, so generations are not needed. A directory or symbolic link
//! belongs to one place in one view. A file is shared between views by (digest, executable, node
//! properties, k), where k numbers equal ones within one view: pages are shared, and no two names in a
//! view have one inode.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use bytes::Bytes;
use distbuild_proto::observed::Listing;
use distbuild_proto::{Digest, NodeProperties};

use crate::tree::{Attributes, NodeKind};

/// What of a mode are permissions.
const PERMISSION_BITS: u32 = 0o7777;

/// An inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of the mount.
    pub const ROOT: Self = Self(1);
    /// The directory of the traced views, by number.
    pub const ACTIONS: Self = Self(2);
    /// The directory of the shared trees, by digest.
    pub const TREES: Self = Self(3);
    const FIRST_FREE: u64 = 16;
}

/// The number of a traced view, given by the agent and never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViewId(pub u64);

impl fmt::Display for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a file is: contents and mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Its contents.
    pub digest: Digest,
    /// Whether it may be executed.
    pub executable: bool,
}

/// A file with all that is shown of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ShownFile {
    pub(crate) key: FileKey,
    pub(crate) properties: NodeProperties,
}

#[derive(Debug)]
pub(crate) struct InodeTable {
    next: u64,
    inodes: HashMap<Ino, Inode>,
    shared: HashMap<(ShownFile, u32), Ino>,
    /// With which properties, other than none, files are shared.
    variants: HashMap<FileKey, Vec<NodeProperties>>,
}

#[derive(Debug)]
struct Inode {
    lookups: u64,
    node: Node,
}

#[derive(Debug)]
pub(crate) enum Node {
    Directory(DirectoryNode),
    File(FileNode),
    Symlink(SymlinkNode),
}

#[derive(Debug)]
pub(crate) struct DirectoryNode {
    /// `None` in a shared tree.
    pub(crate) view: Option<ViewId>,
    /// `None` at the root of a view or shared tree.
    pub(crate) parent: Option<Ino>,
    pub(crate) name: Box<[u8]>,
    /// Length of the path inside the root, in bytes.
    pub(crate) path_len: usize,
    pub(crate) digest: Digest,
    pub(crate) properties: NodeProperties,
    /// What was looked at in it; `None` if nobody keeps a record of it (any more).
    pub(crate) seen: Option<SeenNames>,
}

/// What was looked at in one directory.
#[derive(Debug, Default)]
pub(crate) struct SeenNames {
    /// What listing it showed, if it was listed.
    pub(crate) listing: Option<Listing>,
    /// Something was looked at below that stands nowhere else.
    pub(crate) everything: bool,
    pub(crate) names: HashMap<Box<[u8]>, Seen>,
}

/// What a name was, with the inode that it has for the life of the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Inode(Ino),
    Absent,
}

#[derive(Debug)]
pub(crate) struct FileNode {
    pub(crate) file: ShownFile,
    /// Which of equal contents within a view; `None` if not shared between views.
    pub(crate) copy: Option<u32>,
    /// One place a view that looked it up.
    pub(crate) viewers: Vec<Viewer>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Viewer {
    pub(crate) view: ViewId,
    pub(crate) directory: Ino,
}

#[derive(Debug)]
pub(crate) struct SymlinkNode {
    pub(crate) view: Option<ViewId>,
    pub(crate) target: Bytes,
    pub(crate) properties: NodeProperties,
    /// Whether its view holds it.
    pub(crate) held: bool,
}

impl Node {
    /// Whether a view holds the inode, so that it stays although the kernel has forgotten it.
    fn is_held(&self) -> bool {
        match self {
            Self::Directory(node) => node.seen.is_some(),
            Self::File(node) => node.copy.is_some() && !node.viewers.is_empty(),
            Self::Symlink(node) => node.held,
        }
    }

    fn attributes(&self, ino: Ino) -> Attributes {
        let (kind, size_bytes, permissions, properties) = match self {
            Self::Directory(node) => (NodeKind::Directory, 0, 0o755, node.properties),
            Self::File(FileNode { file: ShownFile { key, properties }, .. }) => {
                let permissions = if key.executable { 0o755 } else { 0o644 };
                (NodeKind::File, key.digest.size_bytes(), permissions, *properties)
            }
            Self::Symlink(node) => {
                // The system knows no other permissions of a link.
                let properties = NodeProperties { unix_mode: None, ..node.properties };
                (NodeKind::Symlink, node.target.len() as u64, 0o777, properties)
            }
        };
        let permissions = match properties.unix_mode {
            Some(mode) => (mode & PERMISSION_BITS) as u16,
            None => permissions,
        };
        Attributes { ino, kind, size_bytes, permissions, mtime: properties.mtime }
    }
}

impl InodeTable {
    pub(crate) fn new() -> Self {
        let (inodes, shared, variants) = Default::default();
        Self { next: Ino::FIRST_FREE, inodes, shared, variants }
    }

    pub(crate) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// A new inode that the kernel has not looked up yet.
    pub(crate) fn add(&mut self, node: Node) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        self.inodes.insert(ino, Inode { lookups: 0, node });
        ino
    }

    /// The `copy`-th file that looks like this, which all views share.
    pub(crate) fn shared_file(&mut self, file: ShownFile, copy: u32, viewer: Viewer) -> Ino {
        if let Some(&ino) = self.shared.get(&(file, copy)) {
            if let Some(Node::File(node)) = self.get_mut(ino) {
                node.viewers.push(viewer);
            }
            return ino;
        }
        let node = FileNode { file, copy: Some(copy), viewers: vec![viewer] };
        let ino = self.add(Node::File(node));
        self.shared.insert((file, copy), ino);
        if copy == 0 && file.properties != NodeProperties::default() {
            self.variants.entry(file.key).or_default().push(file.properties);
        }
        ino
    }

    /// The inodes of these contents that views share.
    pub(crate) fn shared_files(&self, key: FileKey) -> impl Iterator<Item = &FileNode> {
        let variants = self.variants.get(&key).into_iter().flatten().copied();
        let variants = std::iter::once(NodeProperties::default()).chain(variants);
        // A view holds all copies below the highest that it uses, so those with views have no gap.
        let inodes = variants.flat_map(move |properties| {
            let file = ShownFile { key, properties };
            (0..).map_while(move |copy| self.shared.get(&(file, copy)))
        });
        inodes.filter_map(|ino| match self.get(*ino) {
            Some(Node::File(node)) => Some(node),
            _ => None,
        })
    }

    pub(crate) fn get(&self, ino: Ino) -> Option<&Node> {
        self.inodes.get(&ino).map(|inode| &inode.node)
    }

    pub(crate) fn get_mut(&mut self, ino: Ino) -> Option<&mut Node> {
        self.inodes.get_mut(&ino).map(|inode| &mut inode.node)
    }

    pub(crate) fn directory(&self, ino: Ino) -> Option<&DirectoryNode> {
        match self.get(ino) {
            Some(Node::Directory(node)) => Some(node),
            _ => None,
        }
    }

    pub(crate) fn directory_mut(&mut self, ino: Ino) -> Option<&mut DirectoryNode> {
        match self.get_mut(ino) {
            Some(Node::Directory(node)) => Some(node),
            _ => None,
        }
    }

    pub(crate) fn attributes(&self, ino: Ino) -> Option<Attributes> {
        self.get(ino).map(|node| node.attributes(ino))
    }

    /// Counts a look-up by the kernel and says what it gets.
    pub(crate) fn look_up(&mut self, ino: Ino) -> Option<Attributes> {
        let inode = self.inodes.get_mut(&ino)?;
        inode.lookups += 1;
        Some(inode.node.attributes(ino))
    }

    /// The kernel gives look-ups back.
    pub(crate) fn forget(&mut self, ino: Ino, lookups: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(lookups);
            self.release(ino);
        }
    }

    /// Frees an inode that neither the kernel nor a view needs.
    pub(crate) fn release(&mut self, ino: Ino) {
        let unused = |inode: &Inode| inode.lookups == 0 && !inode.node.is_held();
        if !self.inodes.get(&ino).is_some_and(unused) {
            return;
        }
        if let Some(Inode { node: Node::File(file), .. }) = self.inodes.remove(&ino)
            && let Some(copy) = file.copy
        {
            self.shared.remove(&(file.file, copy));
            if copy == 0 {
                self.forget_variant(&file.file);
            }
        }
    }

    /// No first file looks like this any more.
    fn forget_variant(&mut self, file: &ShownFile) {
        if let Entry::Occupied(mut variants) = self.variants.entry(file.key) {
            variants.get_mut().retain(|properties| *properties != file.properties);
            if variants.get().is_empty() {
                variants.remove();
            }
        }
    }
}
