//! `Inspection`: a name space for people who look into a store.
//!
//! **Model.** Everything with a name is an [`Item`]. Folders are held in memory and never change; trees
//! and blobs are named by digest and cannot change; *shelves* are directories whose names come and go,
//! and only a [`Catalogue`] knows them. A name in a shelf keeps its inode as long as it is the same
//! item, and gets another one when it is not, so nothing that the kernel keeps of an inode is ever
//! wrong.
//!
//! Nothing is recorded, no view is traced, and nothing is given up.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use distbuild_proto::{Child, Digest, Directory, Name};
use parking_lot::Mutex;

use crate::changing::{Changing, Named};
use crate::contents::{BlobKey, WantError};
use crate::error::AccessError;
use crate::inode::{FileKey, Ino, ViewId};
use crate::tree::{Attributes, Context, Enough, Found, Listed, NodeKind, Step, Tree};

/// What lies on the shelves. Calls may wait, for as long as the catalogue itself allows. The kernel can
/// only be told that something failed; why, the catalogue tells whom it concerns.
pub trait Catalogue: Send + Sync + 'static {
    /// Names one shelf.
    type Shelf: Clone + Eq + fmt::Debug + Send + Sync + 'static;

    /// What a name on a shelf is now; `None` if there is no such name.
    ///
    /// # Errors
    /// It cannot be learnt.
    fn find(&self, shelf: &Self::Shelf, name: &[u8]) -> Result<Option<Item<Self::Shelf>>, Unknown>;

    /// The names on a shelf now, as many as are good for people.
    ///
    /// # Errors
    /// They cannot be learnt.
    fn names(&self, shelf: &Self::Shelf) -> Result<Vec<Named>, Unknown>;

    /// Contents were met in a tree, so that their size is known from now on. Never waits.
    fn met(&self, digest: Digest, within: &Arc<[Digest]>);
}

/// Why a catalogue does not know.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unknown(pub String);

/// What a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<S> {
    /// A directory whose names come and go.
    Shelf(S),
    /// A directory in memory.
    Folder(Arc<Folder<S>>),
    /// A directory by its digest.
    Tree(TreeItem),
    /// A file by its digest.
    Blob {
        /// Contents and mode.
        file: FileKey,
        /// Trees that it lies in, innermost first.
        within: Arc<[Digest]>,
    },
    /// A file in memory.
    Text(Bytes),
    /// A symbolic link with its target.
    Symlink(Bytes),
}

/// The names of a directory in memory.
pub type Folder<S> = BTreeMap<Box<[u8]>, Item<S>>;

/// A directory by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeItem {
    /// Its digest.
    pub root: Digest,
    /// What it is to a job.
    pub part: Part,
    /// Trees that it lies in, innermost first.
    pub within: Arc<[Digest]>,
}

/// What a directory is to a job. Dependencies are output trees of their own, and whoever made them
/// may hold them when nobody else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing special.
    Plain,
    /// The input root: `src` and `dep`.
    InputRoot,
    /// `dep` in an input root: the output trees of the dependencies, by position.
    Dependencies,
}

impl TreeItem {
    fn child<S>(&self, child: Child<'_>) -> Item<S> {
        match child {
            Child::File(node) => Item::Blob {
                file: FileKey { digest: node.digest, executable: node.executable },
                within: Arc::clone(&self.within),
            },
            Child::Symlink(node) => Item::Symlink(node.target.clone()),
            Child::Directory(node) => {
                let (root, within) = (node.digest, Arc::clone(&self.within));
                Item::Tree(match self.part {
                    Part::InputRoot if node.name.as_bytes() == b"dep" => {
                        Self { root, part: Part::Dependencies, within }
                    }
                    Part::Dependencies => {
                        let within = std::iter::once(root).chain(within.iter().copied()).collect();
                        Self { root, part: Part::Plain, within }
                    }
                    Part::InputRoot | Part::Plain => Self { root, part: Part::Plain, within },
                })
            }
        }
    }
}

impl<S> Item<S> {
    /// What it is in a listing.
    pub fn kind(&self) -> NodeKind {
        match self {
            Self::Shelf(_) | Self::Folder(_) | Self::Tree(_) => NodeKind::Directory,
            Self::Blob { .. } | Self::Text(_) => NodeKind::File,
            Self::Symlink(_) => NodeKind::Symlink,
        }
    }

    fn attributes(&self, ino: Ino) -> Attributes {
        let (size_bytes, permissions) = match self {
            Self::Shelf(_) | Self::Folder(_) | Self::Tree(_) => (0, 0o555),
            Self::Blob { file, .. } => {
                (file.digest.size_bytes(), if file.executable { 0o555 } else { 0o444 })
            }
            Self::Text(text) => (text.len() as u64, 0o444),
            Self::Symlink(target) => (target.len() as u64, 0o777),
        };
        Attributes { ino, kind: self.kind(), size_bytes, permissions, mtime: None }
    }
}

/// The name space.
#[derive(Debug)]
pub struct Inspection<C: Catalogue> {
    catalogue: Arc<C>,
    inodes: Mutex<Inodes<C::Shelf>>,
}

#[derive(Debug)]
struct Inodes<S> {
    next: u64,
    known: HashMap<Ino, Inode<S>>,
    /// The latest inode of each name that the kernel knows.
    by_name: HashMap<(Ino, Box<[u8]>), Ino>,
}

#[derive(Debug)]
struct Inode<S> {
    lookups: u64,
    parent: Ino,
    name: Box<[u8]>,
    item: Item<S>,
}

impl<S: Clone + Eq> Inodes<S> {
    fn new(root: Item<S>) -> Self {
        // The root is never looked up and never forgotten.
        let root = Inode { lookups: 1, parent: Ino::ROOT, name: Box::default(), item: root };
        let known = HashMap::from([(Ino::ROOT, root)]);
        Self { next: Ino::ROOT.0 + 1, known, by_name: HashMap::new() }
    }

    fn item(&self, ino: Ino) -> Result<&Item<S>, AccessError> {
        match self.known.get(&ino) {
            Some(inode) => Ok(&inode.item),
            None => Err(AccessError::UnknownInode(ino.0)),
        }
    }

    /// Counts a look-up of a name that is this item.
    fn look_up(&mut self, parent: Ino, name: &[u8], item: Item<S>) -> Attributes {
        let place = (parent, Box::<[u8]>::from(name));
        if let Some(ino) = self.by_name.get(&place)
            && let Some(inode) = self.known.get_mut(ino)
            && inode.item == item
        {
            inode.lookups += 1;
            return item.attributes(*ino);
        }
        let ino = Ino(self.next);
        self.next += 1;
        let attributes = item.attributes(ino);
        self.known.insert(ino, Inode { lookups: 1, parent, name: name.into(), item });
        self.by_name.insert(place, ino);
        attributes
    }

    fn forget(&mut self, ino: Ino, lookups: u64) {
        let Some(inode) = self.known.get_mut(&ino) else { return };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups > 0 || ino == Ino::ROOT {
            return;
        }
        if let Some(inode) = self.known.remove(&ino) {
            let place = (inode.parent, inode.name);
            // The name may be another inode by now.
            if self.by_name.get(&place) == Some(&ino) {
                self.by_name.remove(&place);
            }
        }
    }
}

impl<C: Catalogue> Inspection<C> {
    /// The name space with these names in its root.
    pub fn new(catalogue: Arc<C>, root: Folder<C::Shelf>) -> Self {
        let inodes = Mutex::new(Inodes::new(Item::Folder(Arc::new(root))));
        Self { catalogue, inodes }
    }

    /// Inodes that the kernel knows, with the root.
    pub fn inode_count(&self) -> usize {
        self.inodes.lock().known.len()
    }

    fn item(&self, ino: Ino) -> Result<Item<C::Shelf>, AccessError> {
        self.inodes.lock().item(ino).cloned()
    }

    fn shelf(&self, ino: Ino) -> Result<C::Shelf, AccessError> {
        match self.item(ino)? {
            Item::Shelf(shelf) => Ok(shelf),
            _ => Err(AccessError::NotADirectory),
        }
    }

    fn met(&self, item: &Item<C::Shelf>) {
        match item {
            Item::Tree(tree) => self.catalogue.met(tree.root, &tree.within),
            Item::Blob { file, within } => self.catalogue.met(file.digest, within),
            Item::Shelf(_) | Item::Folder(_) | Item::Text(_) | Item::Symlink(_) => {}
        }
    }
}

fn unknown(Unknown(why): Unknown) -> AccessError {
    AccessError::Contents(WantError::Refused(why))
}

impl<C: Catalogue> Tree for Inspection<C> {
    fn lookup(
        &self,
        parent: Ino,
        name: &[u8],
        contents: Option<&Directory>,
    ) -> Result<Step<Found>, AccessError> {
        if name.len() > Name::MAX_BYTES {
            return Err(AccessError::BadName);
        }
        let found = match (self.item(parent)?, contents) {
            (Item::Folder(folder), _) => folder.get(name).cloned(),
            (Item::Tree(tree), None) => return Ok(Step::Need(tree.root)),
            (Item::Tree(tree), Some(contents)) => contents.get(name).map(|child| tree.child(child)),
            (Item::Shelf(_), _) => return Ok(Step::Done(Found::NotYet)),
            (Item::Blob { .. } | Item::Text(_) | Item::Symlink(_), _) => {
                return Err(AccessError::NotADirectory);
            }
        };
        Ok(Step::Done(match found {
            None => Found::Absent,
            Some(item) => {
                self.met(&item);
                Found::Entry(self.inodes.lock().look_up(parent, name, item))
            }
        }))
    }

    fn list(
        &self,
        directory: Ino,
        contents: Option<&Directory>,
        from: usize,
        each: &mut dyn FnMut(Listed<'_>) -> Enough,
    ) -> Result<Step<()>, AccessError> {
        let mut add = |index, name: &[u8], item: &Item<C::Shelf>| {
            self.met(item);
            each(Listed { index, name, kind: item.kind() }) == Enough::No
        };
        match (self.item(directory)?, contents) {
            (Item::Folder(folder), _) => {
                let mut names = folder.iter().enumerate().skip(from);
                names.all(|(index, (name, item))| add(index, name, item));
            }
            (Item::Tree(tree), None) => return Ok(Step::Need(tree.root)),
            (Item::Tree(tree), Some(contents)) => {
                let mut children = contents.children().enumerate().skip(from);
                children
                    .all(|(index, child)| add(index, child.name().as_bytes(), &tree.child(child)));
            }
            (Item::Shelf(_), _) => {}
            (Item::Blob { .. } | Item::Text(_) | Item::Symlink(_), _) => {
                return Err(AccessError::NotADirectory);
            }
        }
        Ok(Step::Done(()))
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, AccessError> {
        self.inodes.lock().item(ino).map(|item| item.attributes(ino))
    }

    fn link_target(&self, ino: Ino) -> Result<Bytes, AccessError> {
        match self.item(ino)? {
            Item::Symlink(target) => Ok(target),
            _ => Err(AccessError::NotASymlink),
        }
    }

    fn file(&self, ino: Ino) -> Result<FileKey, AccessError> {
        match self.item(ino)? {
            Item::Blob { file, .. } => Ok(file),
            _ => Err(AccessError::IsADirectory),
        }
    }

    fn own_contents(&self, ino: Ino) -> Option<Bytes> {
        match self.inodes.lock().item(ino) {
            Ok(Item::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn changing(&self) -> Option<&dyn Changing> {
        Some(self)
    }

    fn context(&self, ino: Ino) -> Context {
        let within = match self.inodes.lock().item(ino) {
            Ok(Item::Tree(TreeItem { within, .. }) | Item::Blob { within, .. }) => within.clone(),
            _ => Arc::default(),
        };
        Context { within, ..Context::default() }
    }

    fn affected(&self, _: &BlobKey, _: &[Ino]) -> Vec<ViewId> {
        Vec::new()
    }

    fn is_given_up(&self, _: Ino) -> bool {
        false
    }

    fn forget(&self, ino: Ino, lookups: u64) {
        self.inodes.lock().forget(ino, lookups);
    }
}

impl<C: Catalogue> Changing for Inspection<C> {
    fn is_changing(&self, directory: Ino) -> bool {
        matches!(self.inodes.lock().item(directory), Ok(Item::Shelf(_)))
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Found, AccessError> {
        let shelf = self.shelf(parent)?;
        Ok(match self.catalogue.find(&shelf, name).map_err(unknown)? {
            None => Found::NotYet,
            Some(item) => {
                self.met(&item);
                Found::ForNow(self.inodes.lock().look_up(parent, name, item))
            }
        })
    }

    fn names(&self, directory: Ino) -> Result<Vec<Named>, AccessError> {
        self.catalogue.names(&self.shelf(directory)?).map_err(unknown)
    }
}
