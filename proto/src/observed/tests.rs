use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::digest::DigestFunction;
use crate::tree::{DirectoryNode, FileNode, SymlinkNode};

const FUNCTION: DigestFunction = DigestFunction::Blake3;

/// A tree as tests write it down; names are single letters.
#[derive(Clone, Debug, PartialEq)]
enum Plain {
    File(u8, bool),
    Link(u8),
    Directory(BTreeMap<u8, Plain>),
}

#[derive(Default)]
struct Trees {
    known: HashMap<Digest, Arc<Directory>>,
    read: Cell<usize>,
}

impl Directories for Trees {
    fn directory(&self, digest: &Digest) -> Option<Arc<Directory>> {
        self.read.set(self.read.get() + 1);
        self.known.get(digest).cloned()
    }
}

impl Trees {
    fn add(&mut self, children: &BTreeMap<u8, Plain>) -> Digest {
        let (mut files, mut directories, mut symlinks) = (Vec::new(), Vec::new(), Vec::new());
        for (letter, child) in children {
            let name = name(*letter);
            match child {
                Plain::File(contents, executable) => {
                    let digest = FUNCTION.digest(&[*contents]);
                    files.push(FileNode { name, digest, executable: *executable });
                }
                Plain::Link(to) => {
                    let target = Bytes::copy_from_slice(&[*to]);
                    symlinks.push(SymlinkNode { name, target });
                }
                Plain::Directory(children) => {
                    directories.push(DirectoryNode { name, digest: self.add(children) });
                }
            }
        }
        let directory = Directory::new(files, directories, symlinks).unwrap();
        let (digest, _) = directory.encode_with_digest(FUNCTION);
        self.known.insert(digest, Arc::new(directory));
        digest
    }
}

fn name(letter: u8) -> Name {
    Name::new(&[letter]).unwrap()
}

/// What a program does: it looks a path up, component by component, or lists the directory there.
#[derive(Clone, Debug)]
struct Look {
    path: Vec<u8>,
    list: bool,
}

/// The record of a program that looks at these places of a tree.
fn observe(trees: &Trees, root: Digest, looks: &[Look]) -> AccessRecord {
    let mut record = ObservedDirectory::unseen(root);
    for look in looks {
        see(trees, &mut record, &look.path, look.list);
    }
    AccessRecord::new(record, true)
}

fn see(trees: &Trees, at: &mut ObservedDirectory, path: &[u8], list: bool) {
    let directory = trees.known[&at.digest].clone();
    let Some((first, rest)) = path.split_first() else {
        if list {
            at.listing = Some(Listing::of(&directory));
        }
        return;
    };
    let observed = at.names.entry(name(*first)).or_insert_with(|| match directory.get(&[*first]) {
        None => Observed::Absent,
        Some(Child::File(file)) => {
            Observed::File { digest: file.digest, executable: file.executable }
        }
        Some(Child::Symlink(link)) => Observed::Symlink { target: link.target.clone() },
        Some(Child::Directory(node)) => Observed::Directory(ObservedDirectory::unseen(node.digest)),
    });
    if let Observed::Directory(directory) = observed {
        see(trees, directory, rest, list);
    }
}

/// A record without what only serves to compare quickly.
fn sights(record: &AccessRecord) -> Vec<(RelPath, String)> {
    let mut sights: Vec<_> = record
        .looked_up()
        .into_iter()
        .map(|(path, observed)| match observed {
            Observed::Directory(directory) => (path, format!("{:?}", directory.listing)),
            other => (path, format!("{other:?}")),
        })
        .collect();
    sights.push((RelPath::root(), format!("{:?}", record.root().listing)));
    sights
}

fn tree() -> impl Strategy<Value = BTreeMap<u8, Plain>> {
    let leaf = prop_oneof![
        (0..3_u8, any::<bool>()).prop_map(|(contents, bit)| Plain::File(contents, bit)),
        (b'a'..b'd').prop_map(Plain::Link),
    ];
    let node = leaf.prop_recursive(3, 24, 4, |inner| {
        prop::collection::btree_map(b'a'..b'f', inner, 0..4).prop_map(Plain::Directory)
    });
    prop::collection::btree_map(b'a'..b'f', node, 0..5)
}

fn looks() -> impl Strategy<Value = Vec<Look>> {
    let look = (prop::collection::vec(b'a'..b'g', 0..4), any::<bool>())
        .prop_map(|(path, list)| Look { path, list });
    prop::collection::vec(look, 0..8)
}

/// Puts something else, or nothing, at one place.
fn edit(children: &mut BTreeMap<u8, Plain>, path: &[u8], new: Option<Plain>) {
    match path {
        [] => {}
        [last] => {
            match new {
                Some(new) => children.insert(*last, new),
                None => children.remove(last),
            };
        }
        [first, rest @ ..] => {
            if let Some(Plain::Directory(inner)) = children.get_mut(first) {
                edit(inner, rest, new);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_record_holds_exactly_where_the_same_program_would_see_the_same(
        old in tree(),
        looks in looks(),
        edits in prop::collection::vec(
            (prop::collection::vec(b'a'..b'f', 1..4), prop::option::of(tree().prop_map(Plain::Directory))),
            0..3,
        ),
        contents in prop::option::of((prop::collection::vec(b'a'..b'f', 1..4), 0..3_u8, any::<bool>())),
    ) {
        let mut new = old.clone();
        for (path, what) in edits {
            edit(&mut new, &path, what);
        }
        if let Some((path, contents, bit)) = contents {
            edit(&mut new, &path, Some(Plain::File(contents, bit)));
        }
        let mut trees = Trees::default();
        let (old, new) = (trees.add(&old), trees.add(&new));
        let record = observe(&trees, old, &looks);
        let same = sights(&record) == sights(&observe(&trees, new, &looks));
        let verdict = record.compare(new, &trees);
        prop_assert_eq!(verdict == Verdict::Holds, same, "{:?}", verdict);
        prop_assert_eq!(AccessRecord::decode(&record.encode()).unwrap(), record);
    }

    #[test]
    fn bytes_are_a_record_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(record) = AccessRecord::decode(&bytes) {
            prop_assert_eq!(AccessRecord::decode(&record.encode()).unwrap(), record);
        }
    }
}

fn sample() -> BTreeMap<u8, Plain> {
    let inner = BTreeMap::from([(b'x', Plain::File(1, false)), (b'y', Plain::File(2, false))]);
    BTreeMap::from([
        (b'd', Plain::Directory(inner.clone())),
        (b'e', Plain::Directory(inner)),
        (b'f', Plain::File(0, false)),
        (b'l', Plain::Link(b'f')),
    ])
}

fn look(path: &[u8]) -> Look {
    Look { path: path.to_vec(), list: false }
}

fn after(path: &[u8], new: Option<Plain>, looks: &[Look]) -> (Verdict, usize) {
    let mut trees = Trees::default();
    let mut changed = sample();
    edit(&mut changed, path, new);
    let (old, new) = (trees.add(&sample()), trees.add(&changed));
    let record = observe(&trees, old, looks);
    let verdict = record.compare(new, &trees);
    (verdict, trees.read.get())
}

#[test]
fn each_kind_of_change_is_named_with_its_path() {
    let file = |contents| Some(Plain::File(contents, false));
    let cases: [(&[u8], _, &[u8], &str); 7] = [
        (b"dx", file(7), b"dx", "d/x has other contents"),
        (b"dx", Some(Plain::File(1, true)), b"dx", "d/x has another executable bit"),
        (b"dx", None, b"dx", "d/x is gone"),
        (b"dz", file(7), b"dz", "d/z exists now"),
        (b"d", file(7), b"d", "d is another kind of file"),
        (b"l", Some(Plain::Link(b'g')), b"l", "l points elsewhere"),
        (b"d", None, b"dx", "d is gone"),
    ];
    for (edited, new, looked, text) in cases {
        let (verdict, _) = after(edited, new, &[look(looked)]);
        let Verdict::Differs(difference) = verdict else { panic!("{text}: {verdict:?}") };
        assert_eq!(difference.to_string(), text);
    }
    let listed = Look { path: vec![], list: true };
    let (verdict, _) = after(b"n", file(1), &[listed]);
    let Verdict::Differs(difference) = verdict else { panic!("{verdict:?}") };
    assert_eq!(difference.to_string(), "the root was listed and holds other names");
}

#[test]
fn what_was_not_looked_at_may_change() {
    let looks = [look(b"dx"), look(b"q"), Look { path: vec![b'd'], list: true }];
    for path in [&b"dy"[..], b"f", b"ex", b"e", b"n"] {
        let (verdict, _) = after(path, Some(Plain::File(9, true)), &looks);
        assert_eq!(verdict, Verdict::Holds, "{path:?}");
    }
}

#[test]
fn equal_subtrees_are_not_read() {
    let looks = [look(b"dx"), look(b"dy"), look(b"ex")];
    let (verdict, read) = after(b"", None, &looks);
    assert_eq!((verdict, read), (Verdict::Holds, 0), "the same tree");
    let (verdict, read) = after(b"ey", Some(Plain::File(9, true)), &looks);
    assert_eq!((verdict, read), (Verdict::Holds, 2), "the root and e");
    let (verdict, read) = after(b"f", Some(Plain::File(9, true)), &looks);
    assert_eq!((verdict, read), (Verdict::Holds, 1), "the root");
}

#[test]
fn below_a_directory_of_which_everything_counts_as_seen_any_change_differs() {
    let mut trees = Trees::default();
    let mut changed = sample();
    edit(&mut changed, b"dy", None);
    let (old, new) = (trees.add(&sample()), trees.add(&changed));
    let mut record = observe(&trees, old, &[look(b"dx")]);
    if let Some(Observed::Directory(directory)) = record.root.names.get_mut(&b"d"[..]) {
        directory.everything = true;
    }
    let path = RelPath::new(b"d").unwrap();
    let difference = Difference { path, change: Change::Below };
    assert_eq!(record.compare(new, &trees), Verdict::Differs(difference));
    assert_eq!(record.compare(old, &trees), Verdict::Holds);
}

#[test]
fn a_directory_that_is_not_at_hand_is_no_verdict() {
    let mut trees = Trees::default();
    let old = trees.add(&sample());
    let record = observe(&trees, old, &[look(b"dx")]);
    let elsewhere = FUNCTION.digest(b"elsewhere");
    assert_eq!(record.compare(elsewhere, &trees), Verdict::Unknown(elsewhere));
}

#[test]
fn a_record_cut_short_is_not_complete_and_a_disordered_one_is_refused() {
    let mut trees = Trees::default();
    let root = trees.add(&sample());
    let record = observe(&trees, root, &[look(b"dx"), look(b"l"), look(b"nn")]);
    let whole = record.encode();
    for len in 0..whole.len() {
        // Protobuf cannot tell a message that ends early between two fields.
        assert!(!AccessRecord::decode(&whole[..len]).is_ok_and(|cut| cut.is_complete()), "{len}");
    }
    let mut disordered = <crate::wire::AccessRecord as prost::Message>::decode(&whole[..]).unwrap();
    disordered.directories.reverse();
    let bytes = prost::Message::encode_to_vec(&disordered);
    assert!(AccessRecord::decode(&bytes).is_err());
}

#[test]
fn a_record_that_is_too_long_keeps_what_was_there_and_is_not_complete() {
    let digest = DigestFunction::Blake3.digest(b"x");
    let mut directory = ObservedDirectory::unseen(digest);
    for number in 0..1000 {
        let name = Name::new(format!("{number:04}.h").as_bytes()).unwrap();
        let file = Observed::File { digest, executable: false };
        directory.names.insert(name, if number % 2 == 0 { file } else { Observed::Absent });
    }
    let mut root = ObservedDirectory::unseen(digest);
    root.names.insert(Name::new(b"src").unwrap(), Observed::Directory(directory));
    let record = AccessRecord::new(root, true).shortened(4000);
    assert!(!record.is_complete() && record.encode().len() <= 4000);
    let files = record.looked_up_files().count();
    assert!(files > 40 && record.looked_up().len() == files + 1, "{files}");
}
