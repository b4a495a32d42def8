//! Flipped bits, torn files, files that vanish.

use std::fs::{self, FileTimes, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use distbuild_cas::{Completeness, DiskStore, StoreConfig, StoreError};
use distbuild_proto::Digest;

use crate::{digest, files_below, open, put, put_directory};

pub(crate) fn flip_a_bit(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1).unwrap();
}

#[test]
fn a_flipped_bit_is_found_at_the_first_use_after_a_start() {
    let root = tempfile::tempdir().unwrap();
    let blob = put(&open(root.path()), b"sound");
    for look in [
        |store: &DiskStore, blob| store.read(blob).map(drop),
        |store: &DiskStore, blob| store.prepare(blob, false).map(drop),
        |store: &DiskStore, blob| store.prepare(blob, true).map(drop),
        |store: &DiskStore, blob| store.open_bytes(blob).map(drop),
        |store: &DiskStore, blob| store.verify(blob),
    ] {
        let store = open(root.path());
        for path in [false, true].map(|executable| store.blob_path(&blob, executable)) {
            if path.exists() {
                flip_a_bit(&path);
            }
        }
        let generation = store.generation();
        assert!(matches!(look(&store, &blob), Err(StoreError::Damaged(_))));
        assert!(store.generation() > generation);
        assert_eq!(store.drain_evicted().digests, [blob]);
        assert!(matches!(look(&store, &blob), Err(StoreError::Missing(_))));
        assert!(!store.contains(&blob));
        put(&store, b"sound");
        look(&store, &blob).unwrap();
    }
    // One of either variant: a later one takes the place of an earlier one.
    assert_eq!(files_below(&root.path().join("quarantine")).len(), 2);
}

/// Flips a bit of a file and gives it back the times it had. The clock of some file systems ticks
/// rarely: flips on, an odd number of times, until the change shows.
fn flip_a_bit_in_secret(path: &Path) {
    let before = fs::metadata(path).unwrap();
    let changed = |found: fs::Metadata| (found.ctime(), found.ctime_nsec());
    let times = FileTimes::new()
        .set_accessed(before.accessed().unwrap())
        .set_modified(before.modified().unwrap());
    let flip = || {
        flip_a_bit(path);
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_times(times).unwrap();
        fs::set_permissions(path, before.permissions()).unwrap();
    };
    flip();
    while changed(fs::metadata(path).unwrap()) == changed(before.clone()) {
        flip();
        flip();
    }
    assert_eq!(fs::metadata(path).unwrap().modified().unwrap(), before.modified().unwrap());
}

#[test]
fn a_flipped_bit_is_found_in_a_blob_that_was_verified_before() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    for (look, executable) in [
        ((|store, blob| store.read(blob).map(drop)) as fn(&DiskStore, &Digest) -> _, false),
        (|store, blob| store.prepare(blob, false).map(drop), false),
        (|store, blob| store.prepare(blob, true).map(drop), true),
        (|store, blob| store.open_file(blob, true).map(drop), true),
        (|store, blob| store.open_bytes(blob).map(drop), false),
        // From the damaged one.
        (|store, blob| store.prepare(blob, true).map(drop), false),
    ] {
        for flip in [flip_a_bit, flip_a_bit_in_secret] {
            let blob = digest(b"sound");
            store.insert(&blob, b"sound", executable).unwrap();
            look(&store, &blob).unwrap();
            let other = store.blob_path(&blob, !executable);
            if other.exists() {
                fs::remove_file(other).unwrap();
            }
            let generation = store.generation();
            flip(&store.blob_path(&blob, executable));
            let looked: Result<(), StoreError> = look(&store, &blob);
            assert!(matches!(looked, Err(StoreError::Damaged(_))), "{looked:?}");
            assert!(store.generation() > generation);
            assert!(!store.contains(&blob));
        }
    }
}

#[test]
fn a_blob_stored_again_takes_the_place_of_one_that_was_damaged() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blob = put(&store, b"sound");
    let path = store.prepare(&blob, false).unwrap();
    flip_a_bit_in_secret(&path);
    put(&store, b"sound");
    assert_eq!(fs::read(&path).unwrap(), b"sound");
    store.verify(&blob).unwrap();
}

#[test]
fn a_file_that_was_only_touched_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blob = put(&store, b"sound");
    let path = store.prepare(&blob, false).unwrap();
    let file = OpenOptions::new().read(true).open(&path).unwrap();
    for _ in 0..2 {
        file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
        store.prepare(&blob, false).unwrap();
        store.read(&blob).unwrap();
    }
    assert!(store.drain_evicted().digests.is_empty());
}

#[test]
fn a_damaged_variant_is_replaced_from_the_sound_one() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blob = put(&store, b"sound");
    let executable = store.prepare(&blob, true).unwrap();
    drop(store);
    flip_a_bit(&executable);
    let store = open(root.path());
    assert_eq!(store.prepare(&blob, true).unwrap(), executable);
    assert_eq!(fs::read(&executable).unwrap(), b"sound");
}

#[test]
fn a_torn_file_is_found_at_the_first_touch() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blob = put(&store, b"whole");
    drop(store);
    let store = open(root.path());
    fs::write(store.blob_path(&blob, false), "who").unwrap();
    assert!(!store.contains(&blob));
    assert!(!store.blob_path(&blob, false).exists());
}

#[test]
fn a_scan_puts_torn_files_and_things_that_are_no_files_aside() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blobs = [&b"one"[..], b"two", b"three"].map(|data| put(&store, data));
    let paths = blobs.map(|blob| store.blob_path(&blob, false));
    drop(store);
    fs::write(&paths[0], "").unwrap();
    fs::remove_file(&paths[1]).unwrap();
    std::os::unix::fs::symlink(&paths[2], &paths[1]).unwrap();
    let store = open(root.path());
    let report = store.scan().unwrap();
    assert_eq!((report.files, report.damaged), (1, 2));
    assert_eq!(blobs.map(|blob| store.contains(&blob)), [false, false, true]);
}

#[test]
fn a_file_that_somebody_removed_is_missing_and_can_be_stored_again() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let blob = put(&store, b"vanishes");
    for _ in 0..2 {
        fs::remove_file(store.blob_path(&blob, false)).unwrap();
        assert!(matches!(store.prepare(&blob, false), Err(StoreError::Missing(_))));
        put(&store, b"vanishes");
        assert_eq!(store.read(&blob).unwrap(), &b"vanishes"[..]);
        fs::remove_file(store.blob_path(&blob, false)).unwrap();
        put(&store, b"vanishes");
        store.open_file(&blob, false).unwrap();
        fs::remove_file(store.blob_path(&blob, false)).unwrap();
        assert!(store.read(&blob).unwrap_err().is_missing());
        put(&store, b"vanishes");
    }
}

#[test]
fn damage_beats_a_lease_and_makes_the_tree_incomplete() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let leaf = put(&store, b"leaf");
    let inner = put_directory(&store, &[("leaf", leaf)], &[]);
    let tree = put_directory(&store, &[], &[("inner", inner)]);
    let lease = store.lease_tree(&tree).unwrap();
    flip_a_bit(&store.blob_path(&leaf, false));
    assert!(matches!(store.verify(&leaf), Err(StoreError::Damaged(_))));
    let Completeness::Missing(missing) = store.complete(&tree).unwrap() else {
        panic!("the damaged tree counts as complete");
    };
    assert_eq!((missing.digests.as_slice(), missing.count), (&[leaf][..], 1));
    assert!(store.lease_tree(&tree).is_err());
    put(&store, b"leaf");
    assert_eq!(store.complete(&tree).unwrap(), Completeness::Complete);
    drop(store.lease_tree(&tree).unwrap());
    drop(lease);
}

#[test]
fn the_quarantine_does_not_grow_for_ever() {
    let root = tempfile::tempdir().unwrap();
    let config = StoreConfig { quarantine_max_files: 3, ..StoreConfig::new(root.path()) };
    let store = DiskStore::open(config).unwrap();
    for number in 0..10u8 {
        let blob = put(&store, &[number, 0]);
        flip_a_bit(&store.blob_path(&blob, false));
        assert!(matches!(store.verify(&blob), Err(StoreError::Damaged(_))));
    }
    assert_eq!(files_below(&root.path().join("quarantine")).len(), 3);
    assert!(!store.contains(&digest(&[9, 0])));
}
