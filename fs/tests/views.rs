//! `Views` against a plain model: any tree, any order of look-ups, listings, forgetting and dropping
//! by several views, without FUSE, disk or threads.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use distbuild_fs::contents::{BlobKey, BlobKind};
use distbuild_fs::tree::{Attributes, Enough, Found, NodeKind, Step, Tree};
use distbuild_fs::{AccessError, Ino, RecordLimits, ViewId, Views};
use distbuild_proto::{
    AccessRecord, Digest, DigestFunction, Directory, DirectoryNode, FileNode, Mtime, Name,
    NodeProperties, Observed, RelPath, SymlinkNode,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Plain {
    File { contents: u8, executable: bool },
    Link(u8),
    Directory(BTreeMap<u8, Plain>),
}

fn tree() -> impl Strategy<Value = BTreeMap<u8, Plain>> {
    // Few names and fewer contents, so that equal ones meet.
    let leaf = prop_oneof![
        4 => (0..3_u8, any::<bool>()).prop_map(|(contents, executable)| Plain::File { contents, executable }),
        1 => (0..3_u8).prop_map(Plain::Link),
    ];
    let node = leaf.prop_recursive(3, 24, 5, |inner| {
        prop::collection::btree_map(0..6_u8, inner, 0..5).prop_map(Plain::Directory)
    });
    prop::collection::btree_map(0..6_u8, node, 0..6)
}

#[derive(Clone, Debug)]
enum Op {
    LookUp { view: usize, path: Vec<u8> },
    List { view: usize, path: Vec<u8> },
    Forget { view: usize, path: Vec<u8> },
}

fn op() -> impl Strategy<Value = Op> {
    let place = (0..2_usize, prop::collection::vec(0..7_u8, 0..4));
    prop_oneof![
        6 => place.clone().prop_map(|(view, path)| Op::LookUp { view, path }),
        1 => place.clone().prop_map(|(view, path)| Op::List { view, path }),
        2 => place.prop_map(|(view, path)| Op::Forget { view, path }),
    ]
}

fn name(byte: u8) -> Name {
    Name::new(&[b'a' + byte]).unwrap()
}

fn contents_digest(contents: u8) -> Digest {
    DigestFunction::Blake3.digest(&[contents])
}

fn encode(children: &BTreeMap<u8, Plain>, store: &mut HashMap<Digest, Directory>) -> Digest {
    let (mut files, mut directories, mut symlinks) = (vec![], vec![], vec![]);
    for (byte, child) in children {
        let name = name(*byte);
        match child {
            Plain::File { contents, executable } => {
                let digest = contents_digest(*contents);
                files.push(FileNode { name, digest, executable: *executable });
            }
            Plain::Link(to) => {
                symlinks.push(SymlinkNode { name, target: Bytes::from(vec![b'x' + to]) });
            }
            Plain::Directory(inner) => {
                directories.push(DirectoryNode { name, digest: encode(inner, store) });
            }
        }
    }
    let directory = Directory::new(files, directories, symlinks).unwrap();
    let digest = directory.encode_with_digest(DigestFunction::Blake3).0;
    store.insert(digest, directory);
    digest
}

/// The kernel's part: it keeps every look-up until it forgets.
struct Kernel<'a> {
    views: &'a Views,
    store: &'a HashMap<Digest, Directory>,
    lookups: HashMap<Ino, u64>,
}

impl Kernel<'_> {
    fn look_up(&mut self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>, AccessError> {
        let (mut contents, mut of_found) = (None, None);
        let found = loop {
            let step = match of_found {
                Some(of_found) => self.views.lookup_in(parent, name, contents, of_found)?,
                None => self.views.lookup(parent, name, contents)?,
            };
            match step {
                Step::Done(found) => break found,
                Step::Need(digest) if contents.is_none() => contents = Some(&self.store[&digest]),
                Step::NeedFound(digest) if of_found.is_none() => {
                    of_found = Some(&self.store[&digest]);
                }
                _ => panic!("needs what it was given"),
            }
        };
        Ok(match found {
            Found::Entry(attributes) | Found::ForNow(attributes) => {
                *self.lookups.entry(attributes.ino).or_default() += 1;
                Some(attributes)
            }
            Found::Absent | Found::NotYet => None,
        })
    }

    fn list(&self, directory: Ino, from: usize, room: usize) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let mut each = |child: distbuild_fs::tree::Listed<'_>| {
            if names.len() == room {
                return Enough::Yes;
            }
            names.push(child.name.to_vec());
            Enough::No
        };
        match self.views.list(directory, None, from, &mut each).unwrap() {
            Step::Done(()) => {}
            Step::NeedFound(_) => panic!("a listing needs one directory"),
            Step::Need(digest) => {
                let contents = Some(&self.store[&digest]);
                let step = self.views.list(directory, contents, from, &mut each).unwrap();
                assert_eq!(step, Step::Done(()));
            }
        }
        names
    }

    fn forget(&mut self, ino: Ino) {
        if let Some(lookups) = self.lookups.remove(&ino) {
            self.views.forget(ino, lookups);
        }
    }

    fn forget_all(&mut self) {
        for (ino, lookups) in self.lookups.drain() {
            self.views.forget(ino, lookups);
        }
    }
}

/// What one view's record must be, and the inodes that its names had.
#[derive(Default)]
struct Expected {
    looked_up: BTreeMap<RelPath, Sight>,
    listed: BTreeSet<RelPath>,
    inodes: BTreeMap<RelPath, Ino>,
}

struct Run<'a> {
    kernel: Kernel<'a>,
    root: &'a BTreeMap<u8, Plain>,
    expected: [Expected; 2],
}

impl Run<'_> {
    /// Walks to a place as the kernel would; `None` where the model has nothing or no directory.
    fn walk(&mut self, view: usize, path: &[u8]) -> Option<(Ino, RelPath)> {
        let number = view.to_string();
        let mut here = self.kernel.look_up(Ino::ACTIONS, number.as_bytes()).unwrap().unwrap();
        let mut at = RelPath::root();
        let whole = Plain::Directory(self.root.clone());
        let mut model = &whole;
        for byte in path {
            let Plain::Directory(children) = model else {
                let refused = self.kernel.look_up(here.ino, name(*byte).as_bytes());
                assert!(matches!(refused, Err(AccessError::NotADirectory)));
                return None;
            };
            at = at.join(&name(*byte));
            let found = self.kernel.look_up(here.ino, name(*byte).as_bytes()).unwrap();
            let expected = &mut self.expected[view];
            expected.looked_up.insert(at.clone(), sight(children.get(byte)));
            assert_eq!(found.is_some(), children.contains_key(byte));
            (here, model) = (found?, &children[byte]);
            check_attributes(&here, model);
            let before = expected.inodes.insert(at.clone(), here.ino);
            assert!(before.is_none_or(|ino| ino == here.ino), "a name changed its inode");
        }
        Some((here.ino, at))
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::LookUp { view, path } => {
                self.walk(*view, path);
            }
            Op::Forget { view, path } => {
                if let Some((ino, _)) = self.walk(*view, path) {
                    self.kernel.forget(ino);
                }
            }
            Op::List { view, path } => {
                let Some((ino, at)) = self.walk(*view, path) else { return };
                if self.kernel.views.attributes(ino).unwrap().kind != NodeKind::Directory {
                    return;
                }
                let all = self.kernel.list(ino, 0, usize::MAX);
                let mut pieces = Vec::new();
                while pieces.len() < all.len() {
                    pieces.extend(self.kernel.list(ino, pieces.len(), 2));
                }
                assert_eq!(pieces, all);
                assert!(all.is_sorted());
                self.expected[*view].listed.insert(at);
            }
        }
    }
}

/// What a name was, without what was looked at below.
#[derive(Debug, PartialEq, Eq)]
enum Sight {
    Absent,
    Directory,
    Other(Observed),
}

impl From<&Observed> for Sight {
    fn from(observed: &Observed) -> Self {
        match observed {
            Observed::Absent => Self::Absent,
            Observed::Directory(_) => Self::Directory,
            other => Self::Other(other.clone()),
        }
    }
}

fn sight(node: Option<&Plain>) -> Sight {
    match node {
        None => Sight::Absent,
        Some(Plain::File { contents, executable }) => {
            let digest = contents_digest(*contents);
            Sight::Other(Observed::File { digest, executable: *executable })
        }
        Some(Plain::Link(to)) => {
            Sight::Other(Observed::Symlink { target: Bytes::from(vec![b'x' + to]) })
        }
        Some(Plain::Directory(_)) => Sight::Directory,
    }
}

fn check_attributes(attributes: &Attributes, model: &Plain) {
    let expected = match model {
        Plain::File { executable: true, .. } => (NodeKind::File, 1, 0o755),
        Plain::File { executable: false, .. } => (NodeKind::File, 1, 0o644),
        Plain::Link(_) => (NodeKind::Symlink, 1, 0o777),
        Plain::Directory(_) => (NodeKind::Directory, 0, 0o755),
    };
    assert_eq!((attributes.kind, attributes.size_bytes, attributes.permissions), expected);
}

fn check_record(record: &AccessRecord, expected: &Expected) {
    let seen: BTreeMap<_, _> =
        record.looked_up().into_iter().map(|(path, seen)| (path, Sight::from(seen))).collect();
    assert_eq!(seen, expected.looked_up);
    assert_eq!(record.listed().into_iter().collect::<BTreeSet<_>>(), expected.listed);
    assert_eq!(AccessRecord::decode(&record.encode()).unwrap(), *record);
}

#[test]
fn properties_are_shown_and_tell_inodes_apart() {
    let properties = |mode, seconds| NodeProperties {
        unix_mode: mode,
        mtime: Option::and_then(seconds, |seconds| Mtime::new(seconds, 5)),
    };
    let file = |byte| FileNode { name: name(byte), digest: contents_digest(0), executable: true };
    let mut store = HashMap::new();
    let mut keep = |directory: Directory| {
        let digest = directory.encode_with_digest(DigestFunction::Blake3).0;
        store.insert(digest, directory);
        digest
    };
    let inner =
        Directory::default().with_properties(Some(properties(Some(0o750), None)), [].into());
    let inner = DirectoryNode { name: name(4), digest: keep(inner) };
    let link = SymlinkNode { name: name(3), target: Bytes::from_static(b"x") };
    let root = Directory::new(vec![file(0), file(1), file(2)], vec![inner], vec![link]).unwrap();
    let root = keep(
        root.with_properties(
            None,
            [
                (name(1), properties(Some(0o104_640), Some(-7))),
                (name(2), properties(None, Some(9))),
                (name(3), properties(Some(0o600), Some(3))),
            ]
            .into(),
        ),
    );
    let views = Views::new(RecordLimits::default());
    views.add_with_properties(ViewId(0), root).unwrap();
    views.add_with_properties(ViewId(1), root).unwrap();
    let mut kernel = Kernel { views: &views, store: &store, lookups: HashMap::new() };
    let mut shown = |view: &[u8]| {
        let root = kernel.look_up(Ino::ACTIONS, view).unwrap().unwrap().ino;
        [0, 1, 2, 3, 4].map(|byte| kernel.look_up(root, &[b'a' + byte]).unwrap().unwrap())
    };
    let (first, second) = (shown(b"0"), shown(b"1"));
    let looks =
        first.map(|it| (it.permissions, it.mtime.map(|time| (time.seconds(), time.nanos()))));
    let expected = [
        (0o755, None),
        (0o4640, Some((-7, 5))),
        (0o755, Some((9, 5))),
        (0o777, Some((3, 5))),
        (0o750, None),
    ];
    assert_eq!(looks, expected);
    let files = |all: &[Attributes; 5]| [all[0].ino, all[1].ino, all[2].ino];
    assert_eq!(files(&first), files(&second), "views share files that look alike");
    let distinct: BTreeSet<_> = files(&first).into();
    assert_eq!(distinct.len(), 3);
    // Whose contents cannot be read hurts all that show them, however they look.
    let key = BlobKey { digest: contents_digest(0), kind: BlobKind::File { executable: true } };
    views.drop_view(ViewId(0)).unwrap();
    assert_eq!(views.affected(&key, &[]), [ViewId(1)]);
    let record = views.drop_view(ViewId(1)).unwrap();
    assert!(!record.is_complete(), "it says nothing of modes and times");
    kernel.forget_all();
    assert_eq!(views.affected(&key, &[]), []);
    assert_eq!(views.inode_count(), 0);
}

proptest! {
    #[test]
    fn views_show_and_record_what_the_model_holds(
        root in tree(),
        ops in prop::collection::vec(op(), 0..60),
        forget_first in any::<bool>(),
    ) {
        let mut store = HashMap::new();
        let digest = encode(&root, &mut store);
        let views = Views::new(RecordLimits::default());
        // Reading directories for properties that they have not changes nothing.
        views.add(ViewId(0), digest).unwrap();
        views.add_with_properties(ViewId(1), digest).unwrap();
        let kernel = Kernel { views: &views, store: &store, lookups: HashMap::new() };
        let mut run = Run { kernel, root: &root, expected: Default::default() };
        for op in &ops {
            run.apply(op);
        }
        for expected in &run.expected {
            let distinct: BTreeSet<_> = expected.inodes.values().collect();
            prop_assert_eq!(distinct.len(), expected.inodes.len(), "two names share an inode");
        }
        if forget_first {
            run.kernel.forget_all();
        }
        for view in 0..2 {
            let record = views.drop_view(ViewId(view)).unwrap();
            // Of modes and times a record says nothing.
            prop_assert_eq!(record.is_complete(), view == 0);
            check_record(&record, &run.expected[view as usize]);
        }
        run.kernel.forget_all();
        prop_assert_eq!(views.inode_count(), 0, "memory is not given back");
    }

    #[test]
    fn a_record_without_room_changes_nothing_but_itself(root in tree(), entries in 0..6_usize) {
        let mut store = HashMap::new();
        let digest = encode(&root, &mut store);
        let views = Views::new(RecordLimits { entries, ..RecordLimits::default() });
        views.add(ViewId(0), digest).unwrap();
        let mut kernel = Kernel { views: &views, store: &store, lookups: HashMap::new() };
        let top = kernel.look_up(Ino::ACTIONS, b"0").unwrap().unwrap();
        let mut inodes = BTreeSet::new();
        for (byte, child) in &root {
            let found = kernel.look_up(top.ino, name(*byte).as_bytes()).unwrap().unwrap();
            check_attributes(&found, child);
            prop_assert!(inodes.insert(found.ino), "two names share an inode");
        }
        let record = views.drop_view(ViewId(0)).unwrap();
        prop_assert_eq!(record.looked_up().len(), root.len().min(entries));
        prop_assert_eq!(record.root().everything, root.len() > entries);
        kernel.forget_all();
        prop_assert_eq!(views.inode_count(), 0, "memory is not given back");
    }
}

/// Two views of one file, found at `dep/0/f`.
fn two_views() -> (Views, HashMap<Digest, Directory>, [Ino; 2]) {
    let file = BTreeMap::from([(5, Plain::File { contents: 1, executable: false })]);
    let nested = Plain::Directory(BTreeMap::from([(0, Plain::Directory(file))]));
    let root = BTreeMap::from([(3, nested)]);
    let mut store = HashMap::new();
    let digest = encode(&root, &mut store);
    let views = Views::new(RecordLimits::default());
    let mut found = [Ino::ROOT; 2];
    for view in 0..2_u64 {
        views.add(ViewId(view), digest).unwrap();
        let mut kernel = Kernel { views: &views, store: &store, lookups: HashMap::new() };
        let mut here =
            kernel.look_up(Ino::ACTIONS, view.to_string().as_bytes()).unwrap().unwrap().ino;
        for component in [b"d", b"a", b"f"] {
            here = kernel.look_up(here, component).unwrap().unwrap().ino;
        }
        found[view as usize] = here;
    }
    (views, store, found)
}

#[test]
fn a_file_knows_the_views_that_looked_it_up_and_where_it_comes_from() {
    let (views, _, [file, same]) = two_views();
    assert_eq!(file, same);
    let context = views.context(file);
    assert_eq!(context.views, [ViewId(0), ViewId(1)]);
    assert_eq!(context.hint.as_bytes(), b"d/a");
    let key = BlobKey { digest: contents_digest(1), kind: BlobKind::File { executable: false } };
    assert_eq!(views.affected(&key, &[]), [ViewId(0), ViewId(1)]);
}

#[test]
fn a_shared_file_is_given_up_only_when_all_its_views_are() {
    let (views, _, [file, _]) = two_views();
    views.fail(ViewId(0));
    assert!(!views.is_given_up(file));
    assert!(views.file(file).is_ok());
    views.drop_view(ViewId(1));
    assert!(views.is_given_up(file));
    assert!(matches!(views.file(file), Err(AccessError::ViewFailed)));
}

#[test]
fn nothing_is_found_in_a_dropped_view() {
    let (views, store, _) = two_views();
    let mut kernel = Kernel { views: &views, store: &store, lookups: HashMap::new() };
    let root = kernel.look_up(Ino::ACTIONS, b"0").unwrap().unwrap();
    views.drop_view(ViewId(0));
    assert!(matches!(kernel.look_up(root.ino, b"d"), Err(AccessError::ViewDropped(ViewId(0)))));
    assert!(kernel.look_up(Ino::ACTIONS, b"0").unwrap().is_none());
}

#[test]
fn a_view_number_is_used_once_at_a_time() {
    let (views, store, _) = two_views();
    let digest = *store.keys().next().unwrap();
    assert!(views.add(ViewId(0), digest).is_err());
}

#[test]
fn a_name_longer_than_any_file_system_holds_is_refused() {
    let (views, store, _) = two_views();
    let mut kernel = Kernel { views: &views, store: &store, lookups: HashMap::new() };
    let root = kernel.look_up(Ino::ACTIONS, b"0").unwrap().unwrap();
    let refused = kernel.look_up(root.ino, &[b'x'; 256]);
    assert!(matches!(refused, Err(AccessError::BadName)));
}
