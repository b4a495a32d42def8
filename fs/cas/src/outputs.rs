//! From what an action wrote over its input tree to the tree of its outputs.
//!
//! The action saw an overlay: its input tree below, and a directory above that took whatever it
//! changed. Here the two are put together again at the output paths, as the kernel did: an entry
//! above covers the one below, a *whiteout* (the device 0/0) says that the one below is gone, and a
//! directory above is merged with the one below unless it is *opaque* (an extended attribute). Only
//! what stands above is read, and of the tree below only the directories that it changes or that
//! lead to an output: a file that was not written keeps the digest that it has.
//!
//! The marks cannot be forged from within the overlay: there the kernel makes no device 0/0, and
//! stores an attribute of that name under another. It is the directory above that is walked, by the
//! rules of [`crate::collect`], when nobody has the overlay mounted any more.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use distbuild_proto::{Child, Digest, Directory, DirectoryNode, Name, RelPath};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FileStat, SFlag, fstatat};

use crate::collect::{
    At, CollectError, CollectOptions, CollectedTree, Walk, gather, io_error, kind, look,
    open_directory,
};
use crate::disk::DiskStore;
use crate::error::StoreError;

/// The mark of a directory that hides what is below it, in overlays mounted with `userxattr`.
const OPAQUE: &CStr = c"user.overlay.opaque";

/// The two layers of an overlay that was mounted with `userxattr`, `redirect_dir=off` and
/// `metacopy=off`, and is not mounted any more.
pub struct Layers<'a> {
    /// The directory above, which takes the changes.
    pub above: &'a Path,
    /// The tree below.
    pub below: Digest,
    /// Gives directories of the tree below.
    pub directory: &'a dyn Fn(&Digest) -> Result<Directory, StoreError>,
}

/// Which paths are asked for.
#[derive(Debug, Default)]
struct Wanted {
    /// This one, with everything below.
    whole: bool,
    below: BTreeMap<Name, Wanted>,
}

/// Moves the files that were written at `outputs` into the store, and builds the tree that holds what
/// stands there, at the same paths, and nothing else. What is not there is left out; symbolic links
/// are kept as they are, and none leads to an output. Blobs of the tree below that were not written
/// again need not be in the store, nor do they get there. Node properties stay with what was not changed.
///
/// # Errors
/// See [`CollectError`]; paths in errors are relative to the root.
pub fn tree_from_overlay(
    store: &DiskStore,
    layers: &Layers<'_>,
    outputs: &[RelPath],
    options: &CollectOptions,
) -> Result<CollectedTree, CollectError> {
    let wanted = Wanted::new(outputs);
    gather(store, options, |walk| {
        let above = open_directory(AT_FDCWD, layers.above.as_os_str(), layers.above)?;
        let mut merge = Merge { walk, directory: layers.directory };
        if wanted.whole {
            return merge.whole(above, Some(layers.below), 0, None);
        }
        merge.part(Some(above), Some(layers.below), &wanted, 0, None)
    })
}

impl Wanted {
    fn new(paths: &[RelPath]) -> Self {
        let mut root = Self::default();
        for path in paths {
            let mut at = &mut root;
            // What a path is made of are names.
            for name in path.components().filter_map(|component| Name::new(component).ok()) {
                at = at.below.entry(name).or_default();
            }
            at.whole = true;
        }
        root
    }
}

struct Merge<'m, 'a, 'scope, 'env> {
    walk: &'m mut Walk<'a, 'scope, 'env>,
    directory: &'m dyn Fn(&Digest) -> Result<Directory, StoreError>,
}

impl Merge<'_, '_, '_, '_> {
    /// Takes a directory as it was seen, with everything in it.
    fn whole(
        &mut self,
        above: OwnedFd,
        below: Option<Digest>,
        depth: usize,
        at: At,
    ) -> Result<(), CollectError> {
        let names = self.walk.names(&above)?;
        if let Some(below) = below
            && names.is_empty()
        {
            self.add_unchanged(at, below);
            return Ok(());
        }
        let contents = self.contents(below)?;
        let position = self.walk.begin(depth, at)?;
        let covered: HashSet<&OsStr> = names.iter().map(|name| name.as_os_str()).collect();
        let left = contents.children().filter(|child| !covered.contains(child.name().as_os_str()));
        let mut count = 0;
        for child in left {
            self.add(position, &contents, child);
            count += 1;
        }
        self.walk.count(count)?;
        let above = Arc::new(above);
        for called in &names {
            self.walk.path.push(called);
            let found = look(above.as_fd(), called, &self.walk.path)?;
            if !is_whiteout(&found) {
                let name = self.walk.name(called)?;
                self.entry(&above, &found, name, &contents, position, depth)?;
            }
            self.walk.path.pop();
        }
        Ok(())
    }

    /// Takes one entry of the directory above.
    fn entry(
        &mut self,
        above: &Arc<OwnedFd>,
        found: &FileStat,
        name: Name,
        contents: &Directory,
        position: usize,
        depth: usize,
    ) -> Result<(), CollectError> {
        if kind(found) != SFlag::S_IFDIR {
            return self.walk.leaf(above, found, name, position);
        }
        let (inner, opaque) = self.enter(above, name.as_os_str())?;
        let below = if opaque { None } else { directory_in(contents, &name) };
        self.whole(inner, below, depth + 1, Some((position, name)))
    }

    /// Takes of a directory what is asked for, and leaves it out if that is nothing.
    fn part(
        &mut self,
        above: Option<OwnedFd>,
        below: Option<Digest>,
        wanted: &Wanted,
        depth: usize,
        at: At,
    ) -> Result<(), CollectError> {
        let position = self.walk.begin(depth, at)?;
        if let Some(found) = self.walk.gathered.lock().found(position) {
            found.left_out_if_empty = true;
        }
        let above = above.map(Arc::new);
        let mut contents = None;
        for (name, inner) in &wanted.below {
            self.walk.path.push(name.as_os_str());
            match &above {
                Some(above) => match self.find(above, name.as_os_str())? {
                    Some(found) if is_whiteout(&found) => {}
                    Some(found) if kind(&found) == SFlag::S_IFDIR => {
                        let (folder, opaque) = self.enter(above, name.as_os_str())?;
                        let below = match opaque {
                            true => None,
                            false => directory_in(self.read(&mut contents, below)?, name),
                        };
                        let at = Some((position, name.clone()));
                        match inner.whole {
                            true => self.whole(folder, below, depth + 1, at)?,
                            false => self.part(Some(folder), below, inner, depth + 1, at)?,
                        }
                    }
                    Some(found) if inner.whole => {
                        self.walk.leaf(above, &found, name.clone(), position)?;
                    }
                    Some(_) => {}
                    None => self.part_below(&mut contents, below, name, inner, position, depth)?,
                },
                None => self.part_below(&mut contents, below, name, inner, position, depth)?,
            }
            self.walk.path.pop();
        }
        Ok(())
    }

    /// Takes a name of which nothing stands above.
    fn part_below(
        &mut self,
        contents: &mut Option<Directory>,
        below: Option<Digest>,
        name: &Name,
        wanted: &Wanted,
        position: usize,
        depth: usize,
    ) -> Result<(), CollectError> {
        let contents = self.read(contents, below)?;
        match contents.get(name.as_bytes()) {
            Some(child) if wanted.whole => {
                self.add(position, contents, child);
                self.walk.count(1)
            }
            Some(Child::Directory(node)) => {
                let at = Some((position, name.clone()));
                self.part(None, Some(node.digest), wanted, depth + 1, at)
            }
            _ => Ok(()),
        }
    }

    /// The directory below, read when it is asked for.
    fn read<'c>(
        &self,
        contents: &'c mut Option<Directory>,
        below: Option<Digest>,
    ) -> Result<&'c Directory, CollectError> {
        match contents {
            Some(contents) => Ok(contents),
            None => Ok(contents.insert(self.contents(below)?)),
        }
    }

    fn contents(&self, below: Option<Digest>) -> Result<Directory, CollectError> {
        match below {
            Some(below) if below.size_bytes() > 0 => Ok((self.directory)(&below)?),
            _ => Ok(Directory::default()),
        }
    }

    /// What stands at a name above, if anything does.
    fn find(&self, above: &OwnedFd, name: &OsStr) -> Result<Option<FileStat>, CollectError> {
        match fstatat(above, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(io_error("look at", &self.walk.path, errno)),
        }
    }

    /// Opens a directory above, and says whether it hides the one below.
    fn enter(&self, above: &OwnedFd, name: &OsStr) -> Result<(OwnedFd, bool), CollectError> {
        let folder = open_directory(above.as_fd(), name, &self.walk.path)?;
        let opaque = is_opaque(&folder)
            .map_err(|source| io_error("read the attributes of", &self.walk.path, source))?;
        Ok((folder, opaque))
    }

    /// A directory below in which nothing was changed.
    fn add_unchanged(&mut self, at: At, digest: Digest) {
        let mut gathered = self.walk.gathered.lock();
        match at {
            None => gathered.root = Some(digest),
            Some((parent, name)) => {
                if let Some(found) = gathered.found(parent) {
                    found.directories.push(DirectoryNode { name, digest });
                }
            }
        }
    }

    /// A child of a directory below that was not changed.
    fn add(&self, position: usize, contents: &Directory, child: Child<'_>) {
        let mut gathered = self.walk.gathered.lock();
        let Some(found) = gathered.found(position) else { return };
        match child {
            Child::File(node) => found.files.push(node.clone()),
            Child::Directory(node) => found.directories.push(node.clone()),
            Child::Symlink(node) => found.symlinks.push(node.clone()),
        }
        if let Some(properties) = contents.properties_of(child.name()) {
            found.properties.insert(child.name().clone(), *properties);
        }
    }
}

fn directory_in(contents: &Directory, name: &Name) -> Option<Digest> {
    match contents.get(name.as_bytes()) {
        Some(Child::Directory(node)) => Some(node.digest),
        _ => None,
    }
}

/// Whether this stands for the absence of what is below.
fn is_whiteout(found: &FileStat) -> bool {
    kind(found) == SFlag::S_IFCHR && found.st_rdev == 0
}

/// Whether a directory of the layer above hides the one below.
///
/// # Errors
/// The file system fails.
#[expect(unsafe_code, reason = "nix has no extended attributes")]
pub fn is_opaque(folder: impl AsFd) -> io::Result<bool> {
    let mut value = [0_u8; 1];
    // SAFETY: the kernel reads a C string and writes at most one byte, which outlives the call.
    let length = unsafe {
        libc::fgetxattr(
            folder.as_fd().as_raw_fd(),
            OPAQUE.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    match Errno::result(length) {
        Ok(_) => Ok(value == *b"y"),
        // No such attribute, another value, or none on this file system.
        Err(Errno::ENODATA | Errno::ERANGE | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
