//! The name space for inspection, without FUSE.

#![allow(clippy::unwrap_used, reason = "a test program")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use distbuild_fs::changing::Named;
use distbuild_fs::inspect::{Catalogue, Folder, Inspection, Item, Part, TreeItem, Unknown};
use distbuild_fs::tree::{Attributes, Enough, Found, NodeKind, Step, Tree};
use distbuild_fs::{FileKey, Ino};
use distbuild_proto::{Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name};
use parking_lot::Mutex;

/// One shelf, with what the test puts on it.
#[derive(Debug, Default)]
struct Shelf {
    items: Mutex<BTreeMap<Box<[u8]>, Item<u8>>>,
    broken: Mutex<bool>,
    met: Mutex<Vec<Digest>>,
}

impl Shelf {
    fn put(&self, name: &str, item: Item<u8>) {
        self.items.lock().insert(name.as_bytes().into(), item);
    }
}

impl Catalogue for Shelf {
    type Shelf = u8;

    fn find(&self, _: &u8, name: &[u8]) -> Result<Option<Item<u8>>, Unknown> {
        if *self.broken.lock() {
            return Err(Unknown("nobody answers".into()));
        }
        Ok(self.items.lock().get(name).cloned())
    }

    fn names(&self, _: &u8) -> Result<Vec<Named>, Unknown> {
        let items = self.items.lock();
        Ok(items
            .iter()
            .map(|(name, item)| Named { name: name.clone(), kind: item.kind() })
            .collect())
    }

    fn met(&self, digest: Digest, _: &Arc<[Digest]>) {
        self.met.lock().push(digest);
    }
}

fn tree() -> (Arc<Shelf>, Inspection<Shelf>, Ino) {
    let shelf = Arc::new(Shelf::default());
    let root = Folder::from([(b"jobs"[..].into(), Item::Shelf(1))]);
    let tree = Inspection::new(Arc::clone(&shelf), root);
    let jobs = entry(tree.lookup(Ino::ROOT, b"jobs", None)).ino;
    (shelf, tree, jobs)
}

fn entry<E: std::fmt::Debug>(found: Result<Step<Found>, E>) -> Attributes {
    match found.unwrap() {
        Step::Done(Found::Entry(attributes)) => attributes,
        other => panic!("no entry: {other:?}"),
    }
}

fn on_shelf(tree: &Inspection<Shelf>, shelf: Ino, name: &str) -> Attributes {
    match tree.changing().unwrap().lookup(shelf, name.as_bytes()).unwrap() {
        Found::ForNow(attributes) => attributes,
        other => panic!("not for now: {other:?}"),
    }
}

fn text(text: &'static str) -> Item<u8> {
    Item::Text(Bytes::from_static(text.as_bytes()))
}

#[test]
fn a_name_keeps_its_inode_while_it_is_the_same_and_gets_another_when_it_changes() {
    let (shelf, tree, jobs) = tree();
    shelf.put("a", text("first"));
    let first = on_shelf(&tree, jobs, "a");
    assert_eq!(on_shelf(&tree, jobs, "a"), first);
    shelf.put("a", text("second one"));
    let second = on_shelf(&tree, jobs, "a");
    assert_ne!(second.ino, first.ino);
    assert_eq!((first.size_bytes, second.size_bytes), (5, 10));
    // Who has the first open goes on reading it.
    assert_eq!(tree.own_contents(first.ino).unwrap(), "first");
}

#[test]
fn forgotten_inodes_give_their_memory_back() {
    let (shelf, tree, jobs) = tree();
    let before = tree.inode_count();
    shelf.put("a", text("first"));
    let first = on_shelf(&tree, jobs, "a").ino;
    on_shelf(&tree, jobs, "a");
    shelf.put("a", text("second"));
    let second = on_shelf(&tree, jobs, "a").ino;
    tree.forget(first, 2);
    assert_eq!(tree.inode_count(), before + 1);
    assert_eq!(on_shelf(&tree, jobs, "a").ino, second);
    tree.forget(second, 2);
    tree.forget(Ino::ROOT, 1);
    assert_eq!(tree.inode_count(), before);
    assert!(tree.attributes(second).is_err());
}

#[test]
fn a_name_that_is_not_on_a_shelf_may_come_but_one_that_a_folder_lacks_never_does() {
    let (shelf, tree, jobs) = tree();
    assert_eq!(tree.changing().unwrap().lookup(jobs, b"a").unwrap(), Found::NotYet);
    shelf.put("a", text(""));
    assert_eq!(on_shelf(&tree, jobs, "a").kind, NodeKind::File);
    assert_eq!(tree.lookup(Ino::ROOT, b"a", None).unwrap(), Step::Done(Found::Absent));
    *shelf.broken.lock() = true;
    let error = tree.changing().unwrap().lookup(jobs, b"a").unwrap_err();
    assert!(error.to_string().contains("nobody answers"), "{error}");
}

#[test]
fn a_listing_of_a_shelf_is_what_the_catalogue_says() {
    let (shelf, tree, jobs) = tree();
    assert!(tree.changing().unwrap().is_changing(jobs));
    assert!(!tree.changing().unwrap().is_changing(Ino::ROOT));
    shelf.put("a", text(""));
    shelf.put("b", Item::Symlink(Bytes::from_static(b"a")));
    let names = tree.changing().unwrap().names(jobs).unwrap();
    let kinds: Vec<_> = names.iter().map(|named| (&named.name[..], named.kind)).collect();
    assert_eq!(kinds, [(&b"a"[..], NodeKind::File), (b"b", NodeKind::Symlink)]);
}

#[test]
fn contents_below_an_input_root_say_which_output_trees_they_may_be_found_with() {
    let function = DigestFunction::Blake3;
    let name = |text: &str| Name::new(text.as_bytes()).unwrap();
    let node = |text: &str, digest| DirectoryNode { name: name(text), digest };
    let file = FileNode { name: name("f"), digest: function.digest(b"x"), executable: true };
    let leaf = Directory::new(vec![file], vec![], vec![]).unwrap();
    let leaf_digest = leaf.encode_with_digest(function).0;
    let deps = Directory::new(vec![], vec![node("0", leaf_digest)], vec![]).unwrap();
    let deps_digest = deps.encode_with_digest(function).0;
    let nodes = vec![node("dep", deps_digest), node("src", leaf_digest)];
    let root = Directory::new(vec![], nodes, vec![]).unwrap();
    let outputs = function.digest(b"the output tree");

    let (shelf, tree, jobs) = tree();
    let item = TreeItem {
        root: root.encode_with_digest(function).0,
        part: Part::InputRoot,
        within: [outputs].into(),
    };
    shelf.put("inputs", Item::Tree(item.clone()));
    let inputs = on_shelf(&tree, jobs, "inputs").ino;
    assert_eq!(tree.lookup(inputs, b"dep", None).unwrap(), Step::Need(item.root));
    let dep = entry(tree.lookup(inputs, b"dep", Some(&root))).ino;
    let first = entry(tree.lookup(dep, b"0", Some(&deps))).ino;
    let in_dep = entry(tree.lookup(first, b"f", Some(&leaf))).ino;
    assert_eq!(*tree.context(in_dep).within, [leaf_digest, outputs]);
    assert_eq!(tree.context(in_dep).within, tree.context(first).within);
    let src = entry(tree.lookup(inputs, b"src", Some(&root))).ino;
    let in_src = entry(tree.lookup(src, b"f", Some(&leaf)));
    assert_eq!(*tree.context(in_src.ino).within, [outputs]);
    assert_eq!((in_src.size_bytes, in_src.permissions), (1, 0o555));
    let key = FileKey { digest: function.digest(b"x"), executable: true };
    assert_eq!(tree.file(in_src.ino).unwrap(), key);
}

#[test]
fn whatever_is_looked_up_or_listed_in_a_tree_has_been_met() {
    let function = DigestFunction::Sha256;
    let node = |text: &str| FileNode {
        name: Name::new(text.as_bytes()).unwrap(),
        digest: function.digest(text.as_bytes()),
        executable: false,
    };
    let directory = Directory::new(vec![node("a"), node("b")], vec![], vec![]).unwrap();
    let root = directory.encode_with_digest(function).0;
    let (shelf, tree, jobs) = tree();
    let item = TreeItem { root, part: Part::Plain, within: Arc::default() };
    shelf.put("out", Item::Tree(item));
    let out = on_shelf(&tree, jobs, "out").ino;
    entry(tree.lookup(out, b"a", Some(&directory)));
    assert_eq!(*shelf.met.lock(), [root, function.digest(b"a")]);
    let listed = tree.list(out, Some(&directory), 1, &mut |_| Enough::No).unwrap();
    assert_eq!(listed, Step::Done(()));
    assert_eq!(shelf.met.lock().last(), Some(&function.digest(b"b")));
}
