//! Directories of jobs into the store.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use distbuild_cas::{
    CollectError, CollectOptions, Completeness, MAX_TREE_DEPTH, materialize, tree_from_directory,
};
use distbuild_proto::{DigestFunction, Directory};

use crate::{block, digest, open};

fn options() -> CollectOptions {
    CollectOptions { threads: 3, ..CollectOptions::new(DigestFunction::Blake3) }
}

#[test]
fn a_directory_becomes_a_tree_and_back_the_same_directory() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let out = root.path().join("out");
    fs::create_dir_all(out.join("sub/empty")).unwrap();
    fs::write(out.join("sub/tool"), "tool").unwrap();
    fs::set_permissions(out.join("sub/tool"), Permissions::from_mode(0o700)).unwrap();
    fs::write(out.join(OsStr::from_bytes(b"odd \n\xfe")), "odd").unwrap();
    fs::write(out.join("nothing"), "").unwrap();
    symlink("sub/tool", out.join("link")).unwrap();
    symlink("/etc", out.join("sub/outside")).unwrap();
    let inode = fs::metadata(out.join("sub/tool")).unwrap().ino();
    let tree = tree_from_directory(&store, &out, &options()).unwrap();
    assert_eq!((tree.files, tree.bytes, tree.directories.len()), (3, 7, 3));
    assert_eq!(tree.directories.last(), Some(&tree.root));
    let inline = tree.inline.as_ref().expect("few directories are given back");
    let named = inline.iter().map(|directory| options().function.digest(directory));
    assert_eq!(named.collect::<Vec<_>>(), tree.directories);
    let stored = store.blob_path(&digest(b"tool"), true);
    assert_eq!(fs::metadata(stored).unwrap().ino(), inode);
    assert_eq!(store.complete(&tree.root).unwrap(), Completeness::Complete);

    let again = root.path().join("again");
    materialize(&store, &tree.root, &again).unwrap();
    assert_eq!(fs::read(again.join(OsStr::from_bytes(b"odd \n\xfe"))).unwrap(), b"odd");
    assert!(fs::symlink_metadata(again.join("sub/outside")).unwrap().is_symlink());
    assert!(again.join("sub/empty").is_dir());
    let few = CollectOptions { inline_bytes: inline[0].len(), ..options() };
    let second = tree_from_directory(&store, &again, &few).unwrap();
    assert_eq!((second.root, &second.inline), (tree.root, &None));
    // Two files, what is empty, two directories.
    assert_eq!(store.leased_blobs(), 5);
    drop((tree, second));
    // Lets go of the tree that was held while it was written out.
    store.evict_to_low_watermark().unwrap();
    assert_eq!(store.leased_blobs(), 0);
}

#[test]
fn an_empty_directory_is_the_empty_blob() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let out = root.path().join("out");
    fs::create_dir(&out).unwrap();
    let tree = tree_from_directory(&store, &out, &options()).unwrap();
    assert_eq!((tree.root, tree.files), (digest(b""), 0));
}

#[test]
fn a_directory_that_even_its_owner_may_not_read_is_read() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let out = root.path().join("out");
    fs::create_dir_all(out.join("closed")).unwrap();
    fs::write(out.join("closed/file"), "inside").unwrap();
    fs::set_permissions(out.join("closed/file"), Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(out.join("closed"), Permissions::from_mode(0o000)).unwrap();
    let tree = tree_from_directory(&store, &out, &options()).unwrap();
    assert_eq!((tree.files, tree.bytes), (1, 6));
    assert!(store.contains(&digest(b"inside")));
}

#[test]
fn what_is_no_file_directory_or_link_is_an_error_that_names_it() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let out = root.path().join("out");
    fs::create_dir_all(out.join("sub")).unwrap();
    nix::unistd::mkfifo(&out.join("sub/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = tree_from_directory(&store, &out, &options()).unwrap_err();
    assert!(matches!(&error, CollectError::Special(path) if path.as_os_str() == "sub/pipe"));
    assert_eq!(store.leased_blobs(), 0);
}

#[test]
fn depth_and_number_of_entries_are_bounded() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let out = root.path().join("out");
    let mut deep = out.clone();
    (0..=MAX_TREE_DEPTH).for_each(|_| deep.push("d"));
    fs::create_dir_all(&deep).unwrap();
    let error = tree_from_directory(&store, &out, &options()).unwrap_err();
    assert!(matches!(error, CollectError::TooDeep(_)));
    let few = CollectOptions { max_entries: 3, ..options() };
    let error = tree_from_directory(&store, &out, &few).unwrap_err();
    assert!(matches!(error, CollectError::TooMany { limit: 3, .. }));
}

#[test]
fn a_link_in_place_of_the_directory_is_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let (real, out) = (root.path().join("real"), root.path().join("out"));
    fs::create_dir(&real).unwrap();
    fs::write(real.join("secret"), "secret").unwrap();
    symlink(&real, &out).unwrap();
    let error = tree_from_directory(&store, &out, &options()).unwrap_err();
    assert!(matches!(error, CollectError::Io { .. }));
    assert!(real.join("secret").exists());
}

#[test]
fn many_files_in_many_directories_are_hashed_by_several_threads() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let out = root.path().join("out");
    for folder in 0..20u32 {
        let folder_path = out.join(format!("d{folder}"));
        fs::create_dir_all(&folder_path).unwrap();
        for file in 0..30u32 {
            // Each contents stands in two directories.
            let data = block((folder / 2) * 100 + file);
            fs::write(folder_path.join(format!("f{file}")), data).unwrap();
        }
    }
    let tree = tree_from_directory(&store, &out, &options()).unwrap();
    assert_eq!((tree.files, tree.bytes), (600, 600 * 4096));
    let top = Directory::decode(DigestFunction::Blake3, &store.read(&tree.root).unwrap()).unwrap();
    let digests: Vec<_> = top.directories().iter().map(|node| node.digest).collect();
    assert_eq!(digests.len(), 20);
    assert_eq!(store.complete(&tree.root).unwrap(), Completeness::Complete);
    assert_eq!(top.get(b"d0").map(|_| ()), Some(()));
}

#[test]
fn a_full_store_ends_the_collection() {
    let root = tempfile::tempdir().unwrap();
    let store = crate::open_sized(&root.path().join("store"), 8 * 4096);
    let out = root.path().join("out");
    fs::create_dir(&out).unwrap();
    for number in 0..40 {
        fs::write(out.join(format!("{number}")), block(number)).unwrap();
    }
    let error = tree_from_directory(&store, &out, &options()).unwrap_err();
    assert!(matches!(error, CollectError::Store(distbuild_cas::StoreError::Full(_))), "{error}");
    assert_eq!(store.leased_blobs(), 0);
}
