//! Files that enter the store by rename.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use distbuild_cas::StoreError;
use distbuild_proto::DigestFunction;

use crate::{digest, open};

#[test]
fn an_adopted_file_is_moved_and_not_copied() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let path = root.path().join("out.o");
    fs::write(&path, "object").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4777)).unwrap();
    let far = std::time::SystemTime::now() + std::time::Duration::from_secs(1 << 30);
    File::options().write(true).open(&path).unwrap().set_modified(far).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let blob = store.hash_and_adopt(&path, DigestFunction::Blake3, false).unwrap();
    assert_eq!(blob, digest(b"object"));
    let stored = fs::metadata(store.blob_path(&blob, false)).unwrap();
    assert_eq!((stored.ino(), stored.mode() & 0o7777), (inode, 0o444));
    assert!(stored.modified().unwrap() < far);
    assert!(!path.exists());
    assert_eq!(store.used_bytes(), 4096);
}

#[test]
fn a_file_that_belongs_to_somebody_else_becomes_ours() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let path = root.path().join("out");
    fs::write(&path, "x").unwrap();
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    let blob = store.hash_and_adopt(&path, DigestFunction::Blake3, true).unwrap();
    let stored = fs::metadata(store.blob_path(&blob, true)).unwrap();
    let ours = fs::metadata(root.path()).unwrap();
    assert_eq!((stored.uid(), stored.mode() & 0o7777), (ours.uid(), 0o555));
}

#[test]
fn a_file_with_two_names_or_an_open_writer_is_copied() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let (path, other) = (root.path().join("out"), root.path().join("other"));
    fs::write(&path, "linked").unwrap();
    fs::hard_link(&path, &other).unwrap();
    store.adopt_file(&path, &digest(b"linked"), false).unwrap();
    fs::write(&other, "changed").unwrap();
    assert_eq!(store.read(&digest(b"linked")).unwrap(), &b"linked"[..]);
    assert!(!path.exists());

    fs::write(&path, "written").unwrap();
    let writer = OpenOptions::new().append(true).open(&path).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    store.adopt_file(&path, &digest(b"written"), false).unwrap();
    drop(writer);
    let stored = fs::metadata(store.blob_path(&digest(b"written"), false)).unwrap();
    assert_ne!(stored.ino(), inode);
    assert!(!path.exists());
}

#[test]
fn a_file_from_another_file_system_is_copied() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = elsewhere.path().join("out");
    fs::write(&path, "far").unwrap();
    store.adopt_file(&path, &digest(b"far"), true).unwrap();
    assert_eq!(store.read(&digest(b"far")).unwrap(), &b"far"[..]);
    assert!(!path.exists());
}

#[test]
fn wrong_bytes_and_what_is_no_regular_file_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    let (path, link) = (root.path().join("out"), root.path().join("link"));
    fs::write(&path, "wrong").unwrap();
    let error = store.adopt_file(&path, &digest(b"right"), false).unwrap_err();
    assert!(matches!(error, StoreError::Mismatch { .. }));
    assert!(path.exists() && !store.contains(&digest(b"right")));
    symlink(&path, &link).unwrap();
    let fifo = root.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for not_regular in [&link, &fifo, &root.path().to_owned()] {
        let error = store.hash_and_adopt(not_regular, DigestFunction::Sha1, false).unwrap_err();
        assert!(matches!(error, StoreError::NotRegular(_)), "{error}");
    }
}

#[test]
fn a_file_whose_blob_is_there_already_is_used_up_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root.path().join("store"));
    for _ in 0..2 {
        let path = root.path().join("out");
        fs::write(&path, "twice").unwrap();
        store.hash_and_adopt(&path, DigestFunction::Blake3, false).unwrap();
        assert!(!path.exists());
    }
    assert_eq!((store.known_blobs(), store.used_bytes()), (1, 4096));
}
