//! Which parts of an input root are shown through passthrough: those that hold a large file which is in the
//! store.
//!
//! Only trees whose directories are in the store are known, and only so much is read for one attempt; what is
//! learnt of a directory is remembered by its digest, so the next attempt gets further. What is not known is
//! read through the file system's process, which also begins before all of a blob has come. A file that is in
//! the store has been wanted here before: a file that nobody reads does not make its tree's other files
//! dearer to open.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use distbuild_cas::DiskStore;
use distbuild_fs::LARGE_FILE_BYTES;
use distbuild_proto::{Child, Digest, Directory};
use lru::LruCache;
use parking_lot::Mutex;

use crate::inputs::Place;

/// How much one attempt reads of directories that are not known yet, in bytes. About a millisecond.
const READ_BYTES: u64 = 256 << 10;
/// What reading a directory costs at least, in bytes.
const DIRECTORY_BYTES: u64 = 4 << 10;
/// Directories that are remembered, about 150 bytes each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// Large files of one directory that are remembered; with more, it is one of these or none.
const FILES: usize = 16;

/// What is known of directories.
#[derive(Debug)]
pub(crate) struct LargeFiles {
    /// The large files that a directory reaches.
    known: Mutex<LruCache<Digest, Arc<[Digest]>>>,
    /// An overlay can be put above what is read by passthrough.
    below_overlays: bool,
}

impl LargeFiles {
    /// Nothing is known yet of what may come to lie in the store at `root`.
    pub(crate) fn new(root: &Path) -> Self {
        let below_overlays = !distbuild_fs::is_on_overlay(root);
        Self { known: Mutex::new(LruCache::new(REMEMBERED)), below_overlays }
    }

    /// Whether it is known already that an input root has no large file.
    pub(crate) fn has_none(&self, root: &Digest) -> bool {
        self.known.lock().get(root).is_some_and(|files| files.is_empty())
    }

    /// The parts of an input root of a native job that are to be shown through passthrough. Blocks on the disk
    /// for a moment.
    pub(crate) fn places(&self, store: &DiskStore, root: &Digest) -> Vec<Place> {
        let mut search = Search { known: &self.known, store, left_bytes: READ_BYTES };
        let mut places = Vec::new();
        let Some(contents) = search.read(root) else { return places };
        let (parts, mut has_none) = parts(&contents, &mut search);
        for (place, tree) in parts {
            let large = search.files_below(&tree);
            has_none &= large.whole && large.files.is_empty();
            if large.files.iter().any(|file| store.contains(file)) {
                places.push(place);
            }
        }
        if has_none {
            self.known.lock().put(*root, Arc::default());
        }
        places
    }

    /// Whether an input root of an action that sees it as one tree is to be shown through passthrough. Blocks
    /// on the disk for a moment.
    pub(crate) fn is_large(&self, store: &DiskStore, root: &Digest) -> bool {
        let mut search = Search { known: &self.known, store, left_bytes: READ_BYTES };
        self.below_overlays
            && search.files_below(root).files.iter().any(|file| store.contains(file))
    }
}

/// The source tree and each dependency's output tree, and whether these are all.
fn parts(root: &Directory, search: &mut Search<'_>) -> (Vec<(Place, Digest)>, bool) {
    let (mut parts, mut whole) = (Vec::new(), true);
    if let Some(Child::Directory(source)) = root.get(b"src") {
        parts.push((Place::Source, source.digest));
    }
    let dependencies = match root.get(b"dep") {
        Some(Child::Directory(dependencies)) => {
            let read = search.read(&dependencies.digest);
            whole = read.is_some();
            read
        }
        _ => None,
    };
    for child in dependencies.iter().flat_map(Directory::children) {
        let number = std::str::from_utf8(child.name().as_bytes()).ok();
        if let (Child::Directory(tree), Some(Ok(number))) = (child, number.map(str::parse)) {
            parts.push((Place::Dep(number), tree.digest));
        }
    }
    (parts, whole)
}

struct Search<'a> {
    known: &'a Mutex<LruCache<Digest, Arc<[Digest]>>>,
    store: &'a DiskStore,
    left_bytes: u64,
}

/// The large files below a directory, as far as they are known.
struct Found {
    files: Arc<[Digest]>,
    whole: bool,
}

impl Search<'_> {
    /// How deep this recurs is bounded by what may be read.
    fn files_below(&mut self, directory: &Digest) -> Found {
        if let Some(files) = self.known.lock().get(directory) {
            return Found { files: Arc::clone(files), whole: true };
        }
        let Some(contents) = self.read(directory) else {
            return Found { files: Arc::default(), whole: false };
        };
        let (mut files, mut whole) = (Vec::new(), true);
        for child in contents.children() {
            match child {
                Child::File(file) if file.digest.size_bytes() >= LARGE_FILE_BYTES => {
                    files.push(file.digest);
                }
                Child::Directory(inner) => {
                    let found = self.files_below(&inner.digest);
                    files.extend_from_slice(&found.files);
                    whole &= found.whole;
                }
                Child::File(_) | Child::Symlink(_) => {}
            }
            files.truncate(FILES);
        }
        let files: Arc<[Digest]> = files.into();
        if whole {
            self.known.lock().put(*directory, Arc::clone(&files));
        }
        Found { files, whole }
    }

    /// A directory that is in the store, if it may still be read.
    fn read(&mut self, directory: &Digest) -> Option<Directory> {
        let bytes = directory.size_bytes().max(DIRECTORY_BYTES);
        self.left_bytes = self.left_bytes.checked_sub(bytes)?;
        // What is missing or damaged is for whoever needs it to tell.
        let blob = self.store.read(directory).ok()?;
        Directory::decode(directory.function(), &blob).ok()
    }
}

#[cfg(test)]
mod tests {
    use distbuild_cas::StoreConfig;
    use distbuild_proto::{DigestFunction, DirectoryNode, FileNode, Name};

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    /// A digest that is all that is looked at.
    fn file(name_of_it: &str, size_bytes: u64) -> FileNode {
        let hash = DigestFunction::Blake3.digest(name_of_it.as_bytes());
        let digest = Digest::new(DigestFunction::Blake3, hash.hash(), size_bytes).unwrap();
        FileNode { name: name(name_of_it), digest, executable: false }
    }

    fn directory(store: &DiskStore, files: Vec<FileNode>, inner: &[(&str, Digest)]) -> Digest {
        let inner =
            inner.iter().map(|(at, digest)| DirectoryNode { name: name(at), digest: *digest });
        let directory = Directory::new(files, inner.collect(), vec![]).unwrap();
        let (digest, blob) = directory.encode_with_digest(DigestFunction::Blake3);
        store.insert(&digest, &blob, false).unwrap();
        digest
    }

    fn root(store: &DiskStore, src: Digest, deps: &[Digest]) -> Digest {
        let names: Vec<String> = (0..deps.len()).map(|number| number.to_string()).collect();
        let deps: Vec<_> = names.iter().map(String::as_str).zip(deps.iter().copied()).collect();
        let dep = directory(store, vec![], &deps);
        directory(store, vec![], &[("src", src), ("dep", dep)])
    }

    fn store() -> (tempfile::TempDir, DiskStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::open(StoreConfig::new(dir.path())).unwrap();
        (dir, store)
    }

    fn large_blob(store: &DiskStore, seed: u8) -> FileNode {
        let blob = vec![seed; LARGE_FILE_BYTES as usize];
        let digest = DigestFunction::Blake3.digest(&blob);
        store.insert(&digest, &blob, false).unwrap();
        FileNode { name: name("large"), digest, executable: false }
    }

    #[test]
    fn a_tree_is_chosen_once_a_large_file_of_it_is_in_the_store() {
        let (dir, store) = store();
        let known = LargeFiles::new(dir.path());
        let small = directory(&store, vec![file("small", LARGE_FILE_BYTES - 1)], &[]);
        let absent = directory(&store, vec![file("absent", LARGE_FILE_BYTES)], &[]);
        let deep = directory(&store, vec![large_blob(&store, 1)], &[]);
        let deep = directory(&store, vec![], &[("a", small), ("b", deep)]);
        let places = |src, deps: &[Digest]| known.places(&store, &root(&store, src, deps));
        assert_eq!(places(small, &[absent, deep, small]), [Place::Dep(1)]);
        assert_eq!(places(deep, &[absent]), [Place::Source]);
        assert_eq!(places(absent, &[]), []);
        assert!(!known.has_none(&root(&store, absent, &[])));
        assert!(!known.has_none(&root(&store, small, &[small])));
        assert_eq!(places(small, &[small]), []);
        assert!(known.has_none(&root(&store, small, &[small])));
        // It came meanwhile: what is remembered is the tree, not the store.
        let late = directory(&store, vec![large_blob(&store, 2)], &[]);
        assert_eq!(places(late, &[]), [Place::Source]);
    }

    #[test]
    fn what_is_too_much_for_one_attempt_is_learnt_by_several() {
        let (dir, store) = store();
        let known = LargeFiles::new(dir.path());
        let many: Vec<(String, Digest)> = (0..200)
            .map(|number| {
                let small = file(&format!("f{number}"), 1);
                (format!("d{number:03}"), directory(&store, vec![small], &[]))
            })
            .collect();
        let mut inner: Vec<_> =
            many.iter().map(|(name, digest)| (name.as_str(), *digest)).collect();
        let last = directory(&store, vec![large_blob(&store, 3)], &[]);
        inner.push(("last", last));
        let root = root(&store, directory(&store, vec![], &inner), &[]);
        assert_eq!(known.places(&store, &root), []);
        let attempts = (0..8).find(|_| known.places(&store, &root) == [Place::Source]);
        assert_eq!(attempts, Some(2), "64 directories at a time");
    }

    #[test]
    fn an_unknown_tree_is_not_chosen_and_not_remembered() {
        let (dir, store) = store();
        let known = LargeFiles::new(dir.path());
        let (_elsewhere, other) = self::store();
        let tree = directory(&other, vec![large_blob(&store, 4)], &[]);
        let root = root(&store, tree, &[]);
        assert_eq!(known.places(&store, &root), []);
        assert!(!known.has_none(&root));
        store.insert(&tree, &other.read(&tree).unwrap(), false).unwrap();
        assert_eq!(known.places(&store, &root), [Place::Source]);
    }
}
