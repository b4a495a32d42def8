//! `Views`: the tree of a worker's mount, in memory.
//!
//! ```text
//! /action/<n>/…        traced view n: directories of its own, a record of all that is looked at
//! /tree/<digest>/…     any directory by its digest, shared and not recorded
//! ```
//!
//! A traced view holds the inode of every name that it saw until it is dropped, so a name keeps its
//! number even when the kernel forgets it in between. What exceeds the limits of a record still
//! works: such names get inodes that live only as long as the kernel knows them, and the directory that
//! holds them counts as seen with everything below.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;
use distbuild_proto::observed::Listing;
use distbuild_proto::{AccessRecord, Child, Digest, Directory, Name, NodeProperties, RelPath};
use parking_lot::Mutex;

use crate::collections;
use crate::contents::{BlobKey, BlobKind};
use crate::error::AccessError;
use crate::inode::{
    DirectoryNode, FileKey, FileNode, Ino, InodeTable, Node, Seen, SeenNames, ShownFile,
    SymlinkNode, ViewId, Viewer,
};
use crate::traced::{RecordLimits, View};
use crate::tree::{Attributes, Context, Enough, Found, Listed, NodeKind, Step, Tree};

/// All views of a mount. Shared by the threads that answer the kernel and the one that adds and
/// drops views; every call is short.
#[derive(Debug)]
pub struct Views {
    limits: RecordLimits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    inodes: InodeTable,
    views: HashMap<ViewId, View>,
}

/// Why a view is not added.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddViewError {
    /// Numbers of views are used once.
    #[error("view {0} exists")]
    Exists(ViewId),
}

impl Views {
    /// No views yet.
    pub fn new(limits: RecordLimits) -> Self {
        let state = State { inodes: InodeTable::new(), views: HashMap::new() };
        Self { limits, state: Mutex::new(state) }
    }

    /// Adds a view of the tree below `root`. Nothing of the tree is read.
    ///
    /// # Errors
    /// The number is in use.
    pub fn add(&self, view: ViewId, root: Digest) -> Result<(), AddViewError> {
        self.add_view(view, root, false)
    }

    /// The same for a tree whose directories may have [`NodeProperties`]: they are read when they are looked up.
    ///
    /// # Errors
    /// The number is in use.
    pub fn add_with_properties(&self, view: ViewId, root: Digest) -> Result<(), AddViewError> {
        self.add_view(view, root, true)
    }

    fn add_view(
        &self,
        view: ViewId,
        root: Digest,
        has_properties: bool,
    ) -> Result<(), AddViewError> {
        let State { inodes, views } = &mut *self.state.lock();
        let Entry::Vacant(slot) = views.entry(view) else {
            return Err(AddViewError::Exists(view));
        };
        let node = DirectoryNode {
            view: Some(view),
            parent: None,
            name: Box::default(),
            path_len: 0,
            digest: root,
            properties: NodeProperties::default(),
            seen: Some(SeenNames::default()),
        };
        let root = inodes.add(Node::Directory(node));
        slot.insert(View::new(root, has_properties));
        Ok(())
    }

    /// From now on requests that serve only this view (and others in this state) fail at once.
    pub fn fail(&self, view: ViewId) {
        if let Some(view) = self.state.lock().views.get_mut(&view) {
            view.failed = true;
        }
    }

    /// Takes a view away and returns its record; `None` if there is no such view. What the kernel
    /// still knows of it stays until it is forgotten, but leads nowhere.
    pub fn drop_view(&self, view: ViewId) -> Option<AccessRecord> {
        let State { inodes, views } = &mut *self.state.lock();
        views.remove(&view)?.into_record(view, inodes)
    }

    /// Inodes that the kernel or a view knows, beyond the three fixed ones.
    pub fn inode_count(&self) -> usize {
        self.state.lock().inodes.len()
    }

    /// Views that are not dropped.
    pub fn view_count(&self) -> usize {
        self.state.lock().views.len()
    }
}

/// Where a name stands.
struct Place {
    view: Option<ViewId>,
    parent: Ino,
    /// Length of its path inside the root, in bytes.
    path_len: usize,
    recorded: bool,
}

impl State {
    /// The directory, if requests in it are still to be answered.
    fn directory(&self, ino: Ino) -> Result<&DirectoryNode, AccessError> {
        let node = match self.inodes.get(ino) {
            Some(Node::Directory(node)) => node,
            Some(_) => return Err(AccessError::NotADirectory),
            None => return Err(AccessError::UnknownInode(ino.0)),
        };
        match node.view.map(|view| (view, self.views.get(&view))) {
            Some((view, None)) => Err(AccessError::ViewDropped(view)),
            Some((_, Some(View { failed: true, .. }))) => Err(AccessError::ViewFailed),
            _ => Ok(node),
        }
    }

    /// A name in `/action`: a view's number in decimal.
    fn find_view(&mut self, name: &[u8]) -> Found {
        let Some(view) = collections::parse_view_name(name) else { return Found::Absent };
        let root = self.views.get(&view).map(|view| view.root);
        root.and_then(|root| self.inodes.look_up(root)).map_or(Found::NotYet, Found::Entry)
    }

    /// A name in `/tree`: see [`collections::tree_name`].
    fn find_tree(&mut self, name: &[u8]) -> Found {
        let Some(digest) = collections::parse_tree_name(name) else {
            return Found::Absent;
        };
        let node = DirectoryNode {
            view: None,
            parent: None,
            name: Box::default(),
            path_len: 0,
            digest,
            properties: NodeProperties::default(),
            seen: None,
        };
        let ino = self.inodes.add(Node::Directory(node));
        self.inodes.look_up(ino).map_or(Found::NotYet, Found::Entry)
    }

    /// What the contents say of a name, entered into the record. `found` is the directory that the name is, if
    /// it has been read.
    fn find_child(
        &mut self,
        parent: Ino,
        name: &[u8],
        contents: &Directory,
        found: Option<&Directory>,
        limits: RecordLimits,
    ) -> Result<Found, AccessError> {
        let child = contents.get(name);
        let properties = match child {
            Some(Child::Directory(_)) => found.and_then(Directory::properties),
            Some(child) => contents.properties_of(child.name()),
            None => None,
        };
        let properties = properties.copied().unwrap_or_default();
        let target_len = match child {
            Some(Child::Symlink(node)) => node.target.len(),
            _ => 0,
        };
        let place = self.place(parent, name.len(), target_len, limits)?;
        let seen = match child {
            None => Seen::Absent,
            Some(Child::File(node)) => {
                let key = FileKey { digest: node.digest, executable: node.executable };
                Seen::Inode(self.add_file(&place, ShownFile { key, properties }))
            }
            Some(Child::Directory(node)) => {
                Seen::Inode(self.add_directory(&place, name, node.digest, properties))
            }
            Some(Child::Symlink(node)) => {
                Seen::Inode(self.inodes.add(Node::Symlink(SymlinkNode {
                    view: place.view,
                    target: node.target.clone(),
                    properties,
                    held: place.recorded,
                })))
            }
        };
        if place.recorded
            && let Some(record) = self.seen_in(parent)
        {
            record.names.insert(name.into(), seen);
        }
        Ok(self.found(seen))
    }

    /// Where a name stands that is seen for the first time, and whether there is room to record it.
    /// Below a directory that is not recorded, nothing is.
    fn place(
        &mut self,
        parent: Ino,
        name_len: usize,
        target_len: usize,
        limits: RecordLimits,
    ) -> Result<Place, AccessError> {
        let directory = self.directory(parent)?;
        let (view, path_len) = (directory.view, directory.path_len + 1 + name_len);
        let mut recorded = directory.seen.is_some();
        if let Some(view) = view.and_then(|view| self.views.get_mut(&view)) {
            recorded = recorded && view.make_room(limits, path_len + target_len);
        }
        // Below a directory that is not recorded, the one that holds it was marked before.
        if !recorded && let Some(seen) = self.seen_in(parent) {
            seen.everything = true;
        }
        Ok(Place { view, parent, path_len, recorded })
    }

    fn add_file(&mut self, place: &Place, file: ShownFile) -> Ino {
        let viewer = place.view.map(|view| Viewer { view, directory: place.parent });
        if place.recorded
            && let Some(viewer) = viewer
            && let Some(view) = self.views.get_mut(&viewer.view)
        {
            let copy = view.next_copy(file);
            return self.inodes.shared_file(file, copy, viewer);
        }
        let viewers = viewer.into_iter().collect();
        self.inodes.add(Node::File(FileNode { file, copy: None, viewers }))
    }

    fn add_directory(
        &mut self,
        place: &Place,
        name: &[u8],
        digest: Digest,
        properties: NodeProperties,
    ) -> Ino {
        let ino = self.inodes.add(Node::Directory(DirectoryNode {
            view: place.view,
            parent: Some(place.parent),
            name: name.into(),
            path_len: place.path_len,
            digest,
            properties,
            seen: place.recorded.then(SeenNames::default),
        }));
        if place.recorded
            && let Some(view) = place.view.and_then(|view| self.views.get_mut(&view))
        {
            view.directories.push(ino);
        }
        ino
    }

    fn found(&mut self, seen: Seen) -> Found {
        match seen {
            Seen::Absent => Found::Absent,
            Seen::Inode(ino) => self.inodes.look_up(ino).map_or(Found::NotYet, Found::Entry),
        }
    }

    /// What was looked at in a directory that is recorded.
    fn seen_in(&mut self, directory: Ino) -> Option<&mut SeenNames> {
        self.inodes.directory_mut(directory)?.seen.as_mut()
    }

    /// The first up to two components of a directory's path.
    fn hint(&self, mut directory: Ino) -> RelPath {
        let mut outermost: [&[u8]; 2] = [&[], &[]];
        while let Some(node) = self.inodes.directory(directory)
            && let Some(parent) = node.parent
        {
            outermost = [&node.name, outermost[0]];
            directory = parent;
        }
        let names = outermost.into_iter().filter_map(|name| Name::new(name).ok());
        names.fold(RelPath::root(), |path, name| path.join(&name))
    }

    fn has_properties(&self, view: Option<ViewId>) -> bool {
        view.and_then(|view| self.views.get(&view)).is_some_and(|view| view.has_properties)
    }

    fn has_failed(&self, view: ViewId) -> bool {
        self.views.get(&view).is_none_or(|view| view.failed)
    }

    fn is_given_up(&self, ino: Ino) -> bool {
        match self.inodes.get(ino) {
            Some(Node::Directory(node)) => node.view.is_some_and(|view| self.has_failed(view)),
            Some(Node::Symlink(node)) => node.view.is_some_and(|view| self.has_failed(view)),
            Some(Node::File(node)) => {
                let of_a_shared_tree = node.copy.is_none() && node.viewers.is_empty();
                !of_a_shared_tree && node.viewers.iter().all(|viewer| self.has_failed(viewer.view))
            }
            None => false,
        }
    }
}

impl Views {
    fn look_up(
        &self,
        parent: Ino,
        name: &[u8],
        contents: Option<&Directory>,
        found: Option<&Directory>,
    ) -> Result<Step<Found>, AccessError> {
        let mut state = self.state.lock();
        match parent {
            Ino::ROOT => return Ok(Step::Done(collections::find(name))),
            Ino::ACTIONS => return Ok(Step::Done(state.find_view(name))),
            Ino::TREES => return Ok(Step::Done(state.find_tree(name))),
            _ => {}
        }
        let directory = state.directory(parent)?;
        if let Some(seen) = directory.seen.as_ref().and_then(|seen| seen.names.get(name).copied()) {
            return Ok(Step::Done(state.found(seen)));
        }
        if name.len() > Name::MAX_BYTES {
            return Err(AccessError::BadName);
        }
        let Some(contents) = contents else {
            return Ok(Step::Need(directory.digest));
        };
        if found.is_none()
            && state.has_properties(directory.view)
            && let Some(Child::Directory(node)) = contents.get(name)
        {
            return Ok(Step::NeedFound(node.digest));
        }
        let found = state.find_child(parent, name, contents, found, self.limits)?;
        Ok(Step::Done(found))
    }
}

impl Tree for Views {
    fn lookup(
        &self,
        parent: Ino,
        name: &[u8],
        contents: Option<&Directory>,
    ) -> Result<Step<Found>, AccessError> {
        self.look_up(parent, name, contents, None)
    }

    fn lookup_in(
        &self,
        parent: Ino,
        name: &[u8],
        contents: Option<&Directory>,
        found: &Directory,
    ) -> Result<Step<Found>, AccessError> {
        self.look_up(parent, name, contents, Some(found))
    }

    fn list(
        &self,
        directory: Ino,
        contents: Option<&Directory>,
        from: usize,
        each: &mut dyn FnMut(Listed<'_>) -> Enough,
    ) -> Result<Step<()>, AccessError> {
        match directory {
            Ino::ROOT => {
                let kind = NodeKind::Directory;
                let names = collections::NAMES.into_iter().enumerate().skip(from);
                for (index, name) in names {
                    if each(Listed { index, name, kind }) == Enough::Yes {
                        break;
                    }
                }
                return Ok(Step::Done(()));
            }
            Ino::ACTIONS | Ino::TREES => return Ok(Step::Done(())),
            _ => {}
        }
        let mut state = self.state.lock();
        let digest = state.directory(directory)?.digest;
        let Some(contents) = contents else {
            return Ok(Step::Need(digest));
        };
        let first = state.seen_in(directory).is_some_and(|seen| seen.listing.is_none());
        drop(state);
        if first {
            let listing = Listing::of(contents);
            if let Some(seen) = self.state.lock().seen_in(directory) {
                seen.listing = Some(listing);
            }
        }
        for (index, child) in contents.children().enumerate().skip(from) {
            let kind = match child {
                Child::File(_) => NodeKind::File,
                Child::Directory(_) => NodeKind::Directory,
                Child::Symlink(_) => NodeKind::Symlink,
            };
            if each(Listed { index, name: child.name().as_bytes(), kind }) == Enough::Yes {
                break;
            }
        }
        Ok(Step::Done(()))
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes, AccessError> {
        match ino {
            Ino::ROOT => Ok(collections::attributes(ino, 0o555)),
            Ino::ACTIONS | Ino::TREES => Ok(collections::attributes(ino, collections::UNLISTED)),
            _ => self.state.lock().inodes.attributes(ino).ok_or(AccessError::UnknownInode(ino.0)),
        }
    }

    fn link_target(&self, ino: Ino) -> Result<Bytes, AccessError> {
        match self.state.lock().inodes.get(ino) {
            Some(Node::Symlink(node)) => Ok(node.target.clone()),
            Some(_) => Err(AccessError::NotASymlink),
            None => Err(AccessError::UnknownInode(ino.0)),
        }
    }

    fn file(&self, ino: Ino) -> Result<FileKey, AccessError> {
        let state = self.state.lock();
        match state.inodes.get(ino) {
            Some(Node::File(_)) if state.is_given_up(ino) => Err(AccessError::ViewFailed),
            Some(Node::File(node)) => Ok(node.file.key),
            Some(_) => Err(AccessError::IsADirectory),
            None => Err(AccessError::UnknownInode(ino.0)),
        }
    }

    fn context(&self, ino: Ino) -> Context {
        let state = self.state.lock();
        match state.inodes.get(ino) {
            Some(Node::Directory(node)) => Context {
                views: node.view.into_iter().collect(),
                hint: state.hint(ino),
                ..Context::default()
            },
            Some(Node::File(node)) => Context {
                views: node.viewers.iter().map(|viewer| viewer.view).collect(),
                hint: node
                    .viewers
                    .first()
                    .map(|viewer| state.hint(viewer.directory))
                    .unwrap_or_default(),
                ..Context::default()
            },
            Some(Node::Symlink(_)) | None => Context::default(),
        }
    }

    fn affected(&self, key: &BlobKey, waiting: &[Ino]) -> Vec<ViewId> {
        let state = self.state.lock();
        let mut views: Vec<ViewId> = Vec::new();
        for ino in waiting {
            match state.inodes.get(*ino) {
                Some(Node::Directory(node)) => views.extend(node.view),
                Some(Node::File(node)) => {
                    views.extend(node.viewers.iter().map(|viewer| viewer.view))
                }
                Some(Node::Symlink(_)) | None => {}
            }
        }
        if let BlobKind::File { executable } = key.kind {
            let file = FileKey { digest: key.digest, executable };
            let sharing = state.inodes.shared_files(file).flat_map(|node| &node.viewers);
            views.extend(sharing.map(|viewer| viewer.view));
        }
        views.sort_unstable();
        views.dedup();
        views
    }

    fn is_given_up(&self, ino: Ino) -> bool {
        self.state.lock().is_given_up(ino)
    }

    fn forget(&self, ino: Ino, lookups: u64) {
        self.state.lock().inodes.forget(ino, lookups);
    }
}
