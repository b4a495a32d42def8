//! Trees out of the store.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use distbuild_cas::{DiskStore, LeaseTreeError, MAX_TREE_DEPTH, MaterializeError, materialize};
use distbuild_proto::{
    Digest, DigestFunction, Directory, DirectoryNode, FileNode, Name, SymlinkNode,
};

use crate::{digest, file, name, open, put, put_directory};

fn put_tree(store: &DiskStore) -> Digest {
    let (tool, text) = (put(store, b"tool"), put(store, b"text"));
    let inner = put_directory(store, &[("text", text)], &[("empty dir", digest(b""))]);
    let root = Directory::new(
        vec![
            FileNode { name: name("tool"), digest: tool, executable: true },
            FileNode { executable: false, ..file("empty", digest(b"")) },
            FileNode { name: Name::new(b"line\n\xff").unwrap(), digest: text, executable: false },
        ],
        vec![DirectoryNode { name: name("inner"), digest: inner }],
        vec![SymlinkNode { name: name("link"), target: "../no/where".into() }],
    )
    .unwrap();
    let (digest, blob) = root.encode_with_digest(DigestFunction::Blake3);
    store.insert(&digest, &blob, false).unwrap();
    digest
}

fn names(folder: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_tree_is_written_with_modes_links_and_names_of_any_bytes() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let tree = put_tree(&store);
    let out = root.path().join("out");
    materialize(&store, &tree, &out).unwrap();
    assert_eq!(names(&out), [&b"empty"[..], b"inner", b"line\n\xff", b"link", b"tool"]);
    assert_eq!((mode(&out), mode(&out.join("inner/empty dir"))), (0o755, 0o755));
    assert_eq!((mode(&out.join("tool")), mode(&out.join("empty"))), (0o755, 0o644));
    assert_eq!(fs::read(out.join("inner/text")).unwrap(), b"text");
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("../no/where"));
    // What the user does to it does not reach the store.
    fs::write(out.join("tool"), "changed").unwrap();
    store.verify(&digest(b"tool")).unwrap();
    assert_eq!(names(root.path()), [&b"out"[..], b"store"]);
}

#[test]
fn a_directory_that_is_there_is_replaced_as_a_whole() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let tree = put_tree(&store);
    let out = root.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("stale"), "").unwrap();
    let before = fs::metadata(&out).unwrap().ino();
    materialize(&store, &tree, &out).unwrap();
    assert_ne!(fs::metadata(&out).unwrap().ino(), before);
    assert!(out.join("tool").exists() && !out.join("stale").exists());
    assert_eq!(names(root.path()), [&b"out"[..], b"store"]);
}

#[test]
fn a_symbolic_link_is_replaced_and_what_it_leads_to_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let tree = put_tree(&store);
    let real = root.path().join("real");
    fs::create_dir(&real).unwrap();
    fs::write(real.join("mine"), "mine").unwrap();
    fs::write(root.path().join("file"), "mine").unwrap();
    for target in ["real", "file", "nowhere"] {
        // A slash at the end does not lead through it either.
        for written in ["link", "link/"] {
            let link = root.path().join("link");
            symlink(target, &link).unwrap();
            materialize(&store, &tree, &root.path().join(written)).unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_dir(), "{target}");
            assert!(link.join("tool").exists(), "{target}");
            fs::remove_dir_all(&link).unwrap();
        }
    }
    assert_eq!(names(&real), [b"mine"]);
    assert_eq!(fs::read(root.path().join("file")).unwrap(), b"mine");
    assert_eq!(names(root.path()), [&b"file"[..], b"real", b"store"]);
}

#[test]
fn links_on_the_way_to_the_destination_are_followed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let tree = put_tree(&store);
    fs::create_dir(root.path().join("real")).unwrap();
    symlink("real", root.path().join("link")).unwrap();
    materialize(&store, &tree, &root.path().join("link/out")).unwrap();
    assert!(root.path().join("real/out/tool").exists());
    assert!(fs::symlink_metadata(root.path().join("link")).unwrap().is_symlink());
}

#[test]
fn a_failure_leaves_the_destination_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let lacking = put_directory(&store, &[("absent", digest(b"absent"))], &[]);
    let out = root.path().join("out");
    let error = materialize(&store, &lacking, &out).unwrap_err();
    assert!(matches!(error, MaterializeError::Tree(LeaseTreeError::Missing(_))));
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "").unwrap();
    // Found only when the file is read, half-way through the tree.
    let (first, torn) = (put(&store, b"first"), put(&store, b"torn"));
    let tree = put_directory(&store, &[("a", first), ("b", torn)], &[]);
    drop(store);
    let store = open(&root.path().join("store"));
    fs::write(store.blob_path(&torn, false), "t0rn").unwrap();
    let error = materialize(&store, &tree, &out).unwrap_err();
    assert!(matches!(error, MaterializeError::Store(_)), "{error}");
    assert_eq!(names(&out), [b"mine"]);
    assert_eq!(names(root.path()), [&b"out"[..], b"store"]);
}

#[test]
fn a_destination_that_is_no_directory_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let tree = put_tree(&store);
    let file = root.path().join("file");
    fs::write(&file, "mine").unwrap();
    let error = materialize(&store, &tree, &file).unwrap_err();
    assert!(matches!(error, MaterializeError::Destination(_)), "{error}");
    let error = materialize(&store, &tree, &root.path().join("no/parent")).unwrap_err();
    assert!(matches!(error, MaterializeError::Io { .. }), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn a_tree_that_is_too_deep_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let mut tree = put_directory(&store, &[], &[]);
    for _ in 0..=MAX_TREE_DEPTH {
        tree = put_directory(&store, &[], &[("d", tree)]);
    }
    let error = materialize(&store, &tree, &root.path().join("out")).unwrap_err();
    assert!(matches!(error, MaterializeError::TooDeep(_)));
    assert_eq!(names(root.path()), [b"store"]);
}
